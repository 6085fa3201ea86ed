use kage_core::access::Admittance;
use kage_core::checkpoint::Resumes;
use kage_core::contain::{Containment, Tier};
use kage_core::fleet::AdapterInfo;
use kage_core::id::BootId;
use kage_core::job::{Affinity, JobKind, Subject};
use kage_core::priority::Priority;
use kage_core::task::Labels;

use super::deadline::Due;
use super::*;

mod lanes;
mod random;

const NOW: Timestamp = Timestamp::from_millis(1_000);

struct Table {
    board: Board,
    start: Instant,
}

fn table() -> Table {
    Table {
        board: Board::new(Timings::default()),
        start: Instant::now(),
    }
}

fn agent(n: u128, slots: u32) -> Agent {
    Agent {
        id: AgentId::from_random(n),
        name: format!("agent-{n}"),
        boot: BootId::from_random(n),
        labels: Labels::new(),
        adapters: vec![AdapterInfo {
            name: "shell".parse().unwrap(),
            version: String::new(),
            unavailable: None,
            resumes: Resumes::None,
            access: None,
            slots: 0,
            hears: false,
        }],
        slots,
        pid: 1,
        version: String::new(),
        draining: false,
        cordoned: false,
        admittance: Admittance::EARLIER,
        machine: None,
        contained: Containment::NOTHING,
        seen_at: NOW,
    }
}

fn job(n: u128) -> QueuedJob {
    QueuedJob {
        job: JobId::from_random(n),
        task: TaskId::from_random(n),
        subject: Subject::Session(SessionId::from_random(n)),
        project: ProjectId::default(),
        kind: JobKind::Session,
        adapter: "shell".parse().unwrap(),
        requirements: Labels::new(),
        contain: Tier::T0,
        priority: Priority::NORMAL,
        not_before: NOW,
        queued_at: NOW,
        affinity: Affinity::default(),
    }
}

fn offered(n: u128) -> Offered {
    Offered {
        attempt: AttemptId::from_random(n),
        token_hash: Digest::of(b"token"),
        number: 1,
    }
}

type Inbox = mpsc::Receiver<Result<v1::ConnectResponse, tonic::Status>>;

impl Table {
    fn cordon(&mut self, n: u128, cordoned: bool) {
        let stored = Agent {
            cordoned,
            ..agent(n, 1)
        };
        self.board.stored(&stored, None, self.start);
    }

    fn join(&mut self, agent: Agent, claimed: &[AttemptId]) -> (Joined, Inbox) {
        let (outbox, inbox) = mpsc::channel(8);
        (self.board.join(agent, outbox, claimed, self.start), inbox)
    }

    fn place(&mut self) -> Vec<Pick> {
        self.board.place(NOW, self.start).picks
    }

    fn offer(&mut self, n: u128, pick: Pick) -> OfferId {
        let id = OfferId::from_random(n);
        self.board.prepare(id, pick, self.start);
        self.board
            .send(id, offered(n), v1::ConnectResponse::default(), self.start);
        id
    }

    fn run(&mut self, n: u128, pick: Pick) -> AttemptId {
        let (agent, serial) = (pick.agent, pick.serial);
        let id = self.offer(n, pick);
        let (job, offered) = self.board.accept(id, agent, serial).unwrap();
        assert!(self.board.started(agent, serial, &job, offered.attempt, self.start));
        offered.attempt
    }
}

#[test]
fn a_projects_queue_is_full_by_its_own_jobs_only() {
    let mut table = table();
    for n in 1..=3 {
        table.board.enqueue(job(n));
    }
    let other: ProjectId = "other".parse().unwrap();
    table.board.enqueue(QueuedJob {
        project: other.clone(),
        ..job(4)
    });
    let own = ProjectId::default();
    assert!(table.board.has_waiting(&own, 3) && !table.board.has_waiting(&own, 4));
    assert!(table.board.has_waiting(&other, 1) && !table.board.has_waiting(&other, 2));
    table.board.withdraw(JobId::from_random(1));
    assert!(!table.board.has_waiting(&own, 3));
}

#[test]
fn offers_as_many_jobs_as_there_are_slots() {
    let mut t = table();
    for n in 1..=3 {
        t.board.enqueue(job(n));
    }
    assert!(t.place().is_empty());
    let (_joined, mut inbox) = t.join(agent(1, 2), &[]);
    let picks = t.place();
    assert_eq!(picks.len(), 2);
    assert!(t.place().is_empty());
    assert_eq!(t.board.waiting.len(), 1);
    let attempt = t.run(1, picks[0].clone());
    inbox.try_recv().unwrap().unwrap();
    assert!(t.place().is_empty());
    t.board.ended(AgentId::from_random(1), attempt);
    assert_eq!(t.place().len(), 1);
}

#[test]
fn an_unanswered_offer_goes_back_unharmed() {
    let mut t = table();
    t.board.enqueue(job(1));
    let (joined, _inbox) = t.join(agent(1, 1), &[]);
    let pick = t.place().remove(0);
    let id = t.offer(1, pick);
    assert!(!t.board.due(t.start + Duration::from_secs(4)).requeued);
    assert!(t.board.due(t.start + Duration::from_secs(5)).requeued);
    assert!(t.board.accept(id, AgentId::from_random(1), joined.serial).is_none());
    assert_eq!(t.place().len(), 1);
}

#[test]
fn a_refused_job_goes_elsewhere() {
    let mut t = table();
    t.board.enqueue(job(1));
    let (_first, _inbox) = t.join(agent(1, 1), &[]);
    let pick = t.place().remove(0);
    let id = t.offer(1, pick);
    t.board.refuse(id, AgentId::from_random(2), String::new(), t.start);
    assert!(t.place().is_empty(), "another agent cannot refuse it");
    t.board
        .refuse(id, AgentId::from_random(1), "its disk is full".to_owned(), t.start);
    assert_eq!(
        t.board.why_waiting(SessionId::from_random(1), NOW, t.start).as_deref(),
        Some("waits for an agent with shell; agent-1 refused it: its disk is full")
    );
    let placed = t.board.place(NOW, t.start);
    assert!(placed.picks.is_empty());
    assert_eq!(placed.next, Some(NOW + Timings::default().refusal));
    let (_second, _inbox2) = t.join(agent(2, 1), &[]);
    assert_eq!(t.place().remove(0).agent, AgentId::from_random(2));
}

#[test]
fn a_refusal_is_forgiven() {
    let mut t = table();
    t.board.enqueue(job(1));
    let (_first, _inbox) = t.join(agent(1, 1), &[]);
    let pick = t.place().remove(0);
    let id = t.offer(1, pick);
    t.board.refuse(id, AgentId::from_random(1), String::new(), t.start);
    let later = t.start + Timings::default().refusal;
    assert_eq!(t.board.place(NOW, later).picks.len(), 1);
}

#[test]
fn a_newer_connection_replaces_the_older() {
    let mut t = table();
    t.board.enqueue(job(1));
    t.board.enqueue(job(2));
    let (first, _inbox) = t.join(agent(1, 2), &[]);
    let mut picks = t.place();
    let attempt = t.run(1, picks.remove(0));
    let id = t.offer(2, picks.remove(0));
    let (second, _inbox2) = t.join(agent(1, 2), &[]);
    assert!(first.cut.is_cancelled());
    assert_eq!(second.forgotten, vec![attempt]);
    assert_eq!(t.board.presence(AgentId::from_random(1)).busy(Lane::SLOTS), 0);
    assert!(t.board.accept(id, AgentId::from_random(1), first.serial).is_none());
    t.board.leave(AgentId::from_random(1), first.serial, t.start);
    assert_eq!(t.board.connected(), 1);
    let (third, _inbox3) = t.join(agent(1, 2), &[attempt]);
    assert!(third.forgotten.is_empty());
}

#[test]
fn a_start_on_a_connection_that_is_gone_does_not_count() {
    let mut t = table();
    t.board.enqueue(job(1));
    let (joined, _inbox) = t.join(agent(1, 1), &[]);
    let pick = t.place().remove(0);
    let id = t.offer(1, pick);
    let me = AgentId::from_random(1);
    let (job, offered) = t.board.accept(id, me, joined.serial).unwrap();
    t.board.leave(me, joined.serial, t.start);
    assert!(!t.board.started(me, joined.serial, &job, offered.attempt, t.start));
    assert_eq!(t.board.presence(me).busy(Lane::SLOTS), 0);
}

#[test]
fn agents_are_lost_after_grace_silence_or_a_lease() {
    let timings = Timings::default();
    let mut t = table();
    let (joined, _inbox) = t.join(agent(1, 1), &[]);
    let me = AgentId::from_random(1);
    t.board.leave(me, joined.serial, t.start);
    assert_eq!(t.board.due(t.start), Due::default());
    let boot = BootId::from_random(1);
    assert_eq!(
        t.board.due(t.start + timings.grace).lost,
        [(me, boot, EndReason::AgentGone)]
    );
    assert_eq!(t.board.due(t.start + timings.grace), Due::default(), "told once");

    let (joined, _inbox) = t.join(agent(1, 1), &[]);
    let silent = t.start + timings.lost_after;
    assert_eq!(t.board.due(silent).lost, [(me, boot, EndReason::AgentSilent)]);
    assert!(joined.cut.is_cancelled());

    let (joined, _inbox) = t.join(agent(1, 1), &[]);
    t.board.enqueue(job(1));
    let pick = t.place().remove(0);
    let attempt = t.run(1, pick);
    let expired = t.start + timings.lease_ttl;
    t.board.heard(me, joined.serial, NOW, expired);
    assert_eq!(t.board.due(expired).expired, [(me, attempt)]);
    assert_eq!(t.board.due(expired), Due::default(), "asked once for now");
    t.board.renewed(me, &[attempt], expired);
    assert_eq!(t.board.due(expired), Due::default());
}

#[test]
fn a_stop_reaches_an_agent_that_was_away() {
    let mut t = table();
    t.board.enqueue(job(1));
    let (joined, mut inbox) = t.join(agent(1, 1), &[]);
    let pick = t.place().remove(0);
    let attempt = t.run(1, pick);
    for _offered_and_granted in 0..2 {
        inbox.try_recv().unwrap().unwrap();
    }
    let me = AgentId::from_random(1);
    t.board.stop(me, attempt, t.start);
    let told = inbox.try_recv().unwrap().unwrap();
    assert_eq!(
        told,
        stop_message(attempt, "the session was cancelled, or continues on another agent")
    );
    t.board.leave(me, joined.serial, t.start);
    assert_eq!(t.board.to_stop(&[attempt]), [attempt]);
    t.board.ended(me, attempt);
    assert!(t.board.to_stop(&[attempt]).is_empty());
}

#[test]
fn says_why_a_session_waits() {
    let mut t = table();
    t.board.enqueue(job(1));
    let session = SessionId::from_random(1);
    assert_eq!(
        t.board.why_waiting(session, NOW, t.start).as_deref(),
        Some("no agent is connected")
    );
    t.board.withdraw(JobId::from_random(1));
    assert_eq!(t.board.why_waiting(session, NOW, t.start), None);
}

#[test]
fn an_agent_that_cannot_go_on_is_why_its_sessions_wait() {
    let mut t = table();
    t.board.enqueue(job(1));
    let (joined, _inbox) = t.join(agent(1, 1), &[]);
    let (me, session) = (AgentId::from_random(1), SessionId::from_random(1));
    let pick = t.place().remove(0);
    let attempt = t.run(1, pick);
    let full = || Some("output cannot be written: no space".to_owned());
    let why = |t: &Table| t.board.why_not_going_on(session);
    assert_eq!(why(&t), None);
    t.board.hindered(me, joined.serial, full());
    assert_eq!(
        why(&t).as_deref(),
        Some("agent-1 cannot go on: output cannot be written: no space")
    );
    assert_eq!(t.board.why_not_going_on(SessionId::from_random(2)), None);
    t.board.hindered(me, joined.serial, None);
    assert_eq!(why(&t), None);

    t.board.hindered(me, joined.serial, full());
    let (newer, _inbox) = t.join(agent(1, 1), &[attempt]);
    assert_eq!(why(&t), None, "a new connection knows nothing of it yet");
    t.board.hindered(me, joined.serial, full());
    assert_eq!(why(&t), None, "the older one has no say");
    t.board.hindered(me, newer.serial, full());
    assert!(why(&t).is_some());
    t.board.leave(me, newer.serial, t.start);
    assert_eq!(why(&t), None);
}

#[test]
fn a_cordoned_agent_keeps_what_it_runs_and_gets_no_more() {
    let mut t = table();
    t.board.enqueue(job(1));
    t.board.enqueue(job(2));
    let (_joined, _inbox) = t.join(agent(1, 1), &[]);
    let me = AgentId::from_random(1);
    let pick = t.place().remove(0);
    let attempt = t.run(1, pick);
    t.cordon(1, true);
    t.board.ended(me, attempt);
    assert!(t.place().is_empty());
    assert_eq!(
        t.board.why_waiting(SessionId::from_random(2), NOW, t.start).as_deref(),
        Some("waits for an agent with shell; only agent-1 has it, and is cordoned")
    );
    assert_eq!(t.board.presence(me).state, v1::AgentState::Connected);
    t.cordon(1, false);
    assert_eq!(t.place().len(), 1);
}

#[test]
fn an_agent_that_left_counts_for_a_while_and_a_revoked_one_does_not() {
    let mut t = table();
    t.board.enqueue(job(1));
    let (joined, _inbox) = t.join(agent(1, 1), &[]);
    let me = AgentId::from_random(1);
    t.board.leave(me, joined.serial, t.start);
    let gone = t.start + Timings::default().grace;
    assert_eq!(t.board.due(gone).lost.len(), 1);
    let session = SessionId::from_random(1);
    let away = "waits for an agent with shell; only agent-1 has it, and is not connected";
    assert_eq!(t.board.why_waiting(session, NOW, gone).as_deref(), Some(away));
    let nobody = Some("no agent is connected");
    let late = gone + Timings::default().max_detached;
    assert_eq!(t.board.why_waiting(session, NOW, late).as_deref(), nobody);
    t.board.shut_out(me);
    assert_eq!(t.board.why_waiting(session, NOW, gone).as_deref(), nobody);
}

#[test]
fn a_stop_that_comes_before_the_start_is_stored_is_not_overtaken() {
    let mut t = table();
    t.board.enqueue(job(1));
    let (_joined, mut inbox) = t.join(agent(1, 1), &[]);
    let pick = t.place().remove(0);
    let (id, serial) = (pick.agent, pick.serial);
    let offer = t.offer(1, pick);
    let (taken, offered) = t.board.accept(offer, id, serial).unwrap();
    t.board.stop(id, offered.attempt, t.start);
    assert!(
        !t.board.started(id, serial, &taken, offered.attempt, t.start),
        "it is ended instead"
    );
    let granted = std::iter::from_fn(|| inbox.try_recv().ok()).any(|message| {
        matches!(
            message.unwrap().message,
            Some(v1::connect_response::Message::Granted(_))
        )
    });
    assert!(!granted, "the agent forgot the work when it heard the stop");
    // The slot is free again.
    t.board.enqueue(job(2));
    assert_eq!(t.place().len(), 1);
}

#[test]
fn a_session_whose_job_was_replaced_says_why_it_waits() {
    let mut t = table();
    t.board.enqueue(job(1));
    let next = QueuedJob {
        job: JobId::from_random(2),
        ..job(1)
    };
    let session = next.subject.session().unwrap();
    t.board.enqueue(next);
    t.board.withdraw(JobId::from_random(1));
    assert!(t.board.why_waiting(session, NOW, t.start).is_some());
}

#[test]
fn an_attempt_that_is_neither_ended_nor_stopped_is_late() {
    let mut t = table();
    for n in 1..=2 {
        t.board.enqueue(job(n));
    }
    let (joined, _inbox) = t.join(agent(1, 2), &[]);
    let me = AgentId::from_random(1);
    let picks = t.place();
    let attempts: Vec<_> = (1..).zip(picks).map(|(n, pick)| t.run(n, pick)).collect();
    let (limited, stopped) = (attempts[0], attempts[1]);
    let allowed = Duration::from_secs(90);
    t.board.allow(me, limited, allowed, t.start);
    t.board.allow(me, stopped, allowed, t.start);
    t.board.stop(me, stopped, t.start);
    let late = |t: &mut Table, after: Duration| {
        let now = t.start + after;
        t.board.heard(me, joined.serial, NOW, now);
        t.board.renewed(me, &[limited, stopped], now);
        t.board.due(now).late
    };
    // Heartbeats alone do not postpone a deadline.
    for beat in (0..60).step_by(5) {
        assert_eq!(late(&mut t, Duration::from_secs(beat)), []);
    }
    let stopped = Late {
        attempt: stopped,
        agent: me,
        reason: EndReason::StopUnanswered,
    };
    assert_eq!(late(&mut t, STOP_ANSWER), [stopped]);
    assert_eq!(late(&mut t, allowed - Duration::from_secs(1)), []);
    let limited = Late {
        attempt: limited,
        agent: me,
        reason: EndReason::Overdue,
    };
    assert_eq!(late(&mut t, allowed), [limited]);
}

#[test]
fn an_agent_that_does_not_answer_is_asked_after_the_others() {
    let mut t = table();
    let mut wanted = job(1);
    wanted.affinity.prefer = Some(AgentId::from_random(1));
    t.board.enqueue(wanted);
    let (_first, _inbox) = t.join(agent(1, 4), &[]);
    let pick = t.place().remove(0);
    t.offer(1, pick);
    let (_second, _inbox2) = t.join(agent(2, 1), &[]);
    let later = t.start + Timings::default().offer;
    assert!(t.board.due(later).requeued);
    assert_eq!(t.place().remove(0).agent, AgentId::from_random(2));
}

#[test]
fn machines_are_those_on_which_a_base_could_be_checked_now() {
    let mut table = table();
    let spec = |requirement: &[(&str, &str)]| {
        let mut spec = kage_core::task::TaskSpec {
            project: ProjectId::default(),
            prompt: "do it".to_owned(),
            prompt_blob: None,
            repository: None,
            context_base: None,
            assignments: Vec::new(),
            policy: kage_core::task::Policy::default(),
            environment: kage_core::task::TaskEnvironment::default(),
            fresh_baseline: false,
            labels: Labels::new(),
        };
        let labels = requirement
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        spec.policy.requirements = labels.collect();
        spec
    };
    let machine = |n: u8| Digest::of(&[n]);
    let on = |n: u128, brings: Option<u8>, os: &str| Agent {
        machine: brings.map(machine),
        labels: Labels::from([("os".to_owned(), os.to_owned())]),
        ..agent(n, 1)
    };
    let mut inboxes = Vec::new();
    for agent in [
        on(1, Some(1), "linux"),
        on(2, Some(1), "linux"),
        on(3, Some(2), "macos"),
        on(4, None, "linux"),
    ] {
        inboxes.push(table.join(agent, &[]));
    }
    let sorted = |numbers: &[u8]| {
        let mut all: Vec<_> = numbers.iter().map(|n| machine(*n)).collect();
        all.sort();
        all
    };
    assert_eq!(table.board.machines(&spec(&[])), sorted(&[1, 2]));
    assert_eq!(table.board.machines(&spec(&[("os", "macos")])), sorted(&[2]));
    assert_eq!(table.board.machines(&spec(&[("os", "plan9")])), sorted(&[]));
    // One that takes no work, and one that is away.
    let cordoned = Agent {
        cordoned: true,
        ..on(3, Some(2), "macos")
    };
    table.board.stored(&cordoned, None, table.start);
    assert_eq!(table.board.machines(&spec(&[])), sorted(&[1]));
    for (n, (joined, _)) in (1..).zip(&inboxes[..2]) {
        table.board.leave(AgentId::from_random(n), joined.serial, table.start);
    }
    assert_eq!(table.board.machines(&spec(&[])), sorted(&[]));
}
