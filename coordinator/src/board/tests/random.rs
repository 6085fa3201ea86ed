//! After any sequence of events on the board, the roster for placement is current.

use kage_core::deadline::Term;
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Expect(u128),
    Join(u128, u32),
    Scope(u128, bool),
    Leave(usize),
    Drain(u128),
    Stored(u128, bool, bool),
    ShutOut(u128),
    Enqueue(u128),
    Withdraw(u128),
    Place,
    Send(usize),
    Accept(usize),
    Refuse(usize),
    Start(usize),
    GiveUp(usize),
    End(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let agent = || 1..4_u128;
    let any_of = || 0..20_usize;
    let agents = prop_oneof![
        1 => agent().prop_map(Step::Expect),
        4 => (agent(), 0..4_u32).prop_map(|(agent, slots)| Step::Join(agent, slots)),
        1 => (agent(), any::<bool>()).prop_map(|(agent, bound)| Step::Scope(agent, bound)),
        1 => any_of().prop_map(Step::Leave),
        1 => agent().prop_map(Step::Drain),
        2 => (agent(), any::<bool>(), any::<bool>())
            .prop_map(|(agent, draining, cordoned)| Step::Stored(agent, draining, cordoned)),
        1 => agent().prop_map(Step::ShutOut),
        1 => (0..20_000_u64).prop_map(Step::Pass),
    ];
    let queue = prop_oneof![
        4 => (1..30_u128).prop_map(Step::Enqueue),
        1 => (1..30_u128).prop_map(Step::Withdraw),
        4 => Just(Step::Place),
    ];
    let offers = prop_oneof![
        3 => any_of().prop_map(Step::Send),
        3 => any_of().prop_map(Step::Accept),
        1 => any_of().prop_map(Step::Refuse),
        3 => any_of().prop_map(Step::Start),
        1 => any_of().prop_map(Step::GiveUp),
        1 => any_of().prop_map(Step::End),
    ];
    prop_oneof![agents, queue, offers]
}

/// The state that callers of the board keep between two calls.
#[derive(Default)]
struct Driver {
    counter: u128,
    joined: Vec<(AgentId, Serial)>,
    inboxes: Vec<Inbox>,
    offers: Vec<(OfferId, AgentId, Serial)>,
    accepted: Vec<(AgentId, Serial, QueuedJob, Offered)>,
    running: Vec<(AgentId, AttemptId)>,
}

impl Driver {
    fn carry_out(&mut self, t: &mut Table, step: Step) {
        let board = &mut t.board;
        let id = AgentId::from_random;
        match step {
            Step::Expect(n) => {
                self.counter += 1;
                let running = LiveAttempt {
                    attempt: AttemptId::from_random(self.counter),
                    job: JobId::from_random(n),
                    subject: Subject::Session(SessionId::from_random(n)),
                    task: TaskId::from_random(n),
                    adapter: (n % 2 == 0).then(|| "shell".parse().unwrap()),
                    agent: id(n),
                    boot: BootId::from_random(n),
                    lease_until: NOW,
                    term: Term {
                        started_at: NOW,
                        ends_by: NOW,
                        stop_asked: None,
                    },
                };
                if board.agent(id(n)).is_none() {
                    self.running.push((id(n), running.attempt));
                    board.expect(agent(n, 2), vec![running], t.start);
                }
            }
            Step::Join(n, slots) => {
                let (joined, inbox) = t.join(agent(n, slots), &[]);
                self.joined.push((id(n), joined.serial));
                self.inboxes.push(inbox);
            }
            Step::Scope(n, bound) => board.scope(id(n), bound.then(|| "other".parse().unwrap())),
            Step::Leave(at) => {
                if let Some((agent, serial)) = take(&mut self.joined, at) {
                    board.leave(agent, serial, t.start);
                }
            }
            Step::Drain(n) => board.drains(id(n)),
            Step::Stored(n, draining, cordoned) => {
                let stored = Agent {
                    draining,
                    cordoned,
                    ..agent(n, 2)
                };
                board.stored(&stored, None, t.start);
            }
            Step::ShutOut(n) => board.shut_out(id(n)),
            Step::Enqueue(n) => board.enqueue(job(n)),
            Step::Withdraw(n) => board.withdraw(JobId::from_random(n)),
            Step::Place => {
                for pick in board.place(NOW, t.start).picks {
                    self.counter += 1;
                    let offer = OfferId::from_random(self.counter);
                    self.offers.push((offer, pick.agent, pick.serial));
                    board.prepare(offer, pick, t.start);
                }
            }
            Step::Send(at) => {
                if let Some((offer, _, _)) = pick(&self.offers, at) {
                    self.counter += 1;
                    let message = v1::ConnectResponse::default();
                    board.send(*offer, offered(self.counter), message, t.start);
                }
            }
            Step::Accept(at) => {
                if let Some((offer, agent, serial)) = pick(&self.offers, at)
                    && let Some((job, offered)) = board.accept(*offer, *agent, *serial)
                {
                    self.accepted.push((*agent, *serial, job, offered));
                }
            }
            Step::Refuse(at) => {
                if let Some((offer, agent, _)) = take(&mut self.offers, at) {
                    board.refuse(offer, agent, "no".to_owned(), t.start);
                }
            }
            Step::Start(at) => {
                if let Some((agent, serial, job, offered)) = take(&mut self.accepted, at)
                    && board.started(agent, serial, &job, offered.attempt, t.start)
                {
                    self.running.push((agent, offered.attempt));
                }
            }
            Step::GiveUp(at) => {
                if let Some((agent, _, job, _)) = take(&mut self.accepted, at) {
                    board.not_started(agent, &job);
                }
            }
            Step::End(at) => {
                if let Some((agent, attempt)) = take(&mut self.running, at) {
                    board.ended(agent, attempt);
                }
            }
            Step::Pass(millis) => {
                t.start += Duration::from_millis(millis);
                let _due = board.due(t.start);
            }
        }
    }
}

fn pick<T>(list: &[T], at: usize) -> Option<&T> {
    list.get(at % list.len().max(1))
}

fn take<T>(list: &mut Vec<T>, at: usize) -> Option<T> {
    (!list.is_empty()).then(|| list.swap_remove(at % list.len()))
}

proptest! {
    #[test]
    fn the_roster_follows_every_change(steps in prop::collection::vec(step(), 1..80)) {
        let (mut t, mut driver) = (table(), Driver::default());
        for step in steps {
            let said = format!("{step:?}");
            driver.carry_out(&mut t, step);
            prop_assert!(t.board.members.roster_is_current(), "after {said}");
        }
    }
}
