//! Who is there, what waits, and what is offered to whom: the coordinator's memory of
//! the fleet. Synchronous and without I/O; `dispatch` and `services::agent` drive it
//! under a short lock. Nothing in it is the truth: that is the store, from which it is
//! filled at a start.
//!
//! ```text
//!   job:    waiting --place--> offered --accept--> starting --started--> running --ended--> (gone)
//!              ^                  |  (refused, unanswered, agent gone)
//!              \------------------/
//!   agent:  connected --closed--> away --grace--> lost
//!              ^  \--silent--------------------->  |
//!              \---------------hello---------------/
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use kage_core::fleet::Agent;
use kage_core::id::{AdapterName, AgentId, AttemptId, Digest, JobId, OfferId, ProjectId, SessionId, TaskId};
use kage_core::job::JobKind;
use kage_core::placement::{AgentView, Waiting, place, why_waiting};
use kage_core::time::Timestamp;
use kage_proto::v1;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Timings;
use crate::store::QueuedJob;

mod deadline;
#[cfg(test)]
mod tests;

/// The way to an agent. When it is full the agent does not read, and is cut off.
pub(crate) type Outbox = mpsc::Sender<Result<v1::ConnectResponse, tonic::Status>>;

/// Tells the connections of one agent apart; a later one has a larger number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Serial(u64);

/// A job that an agent is to be offered.
#[derive(Debug, Clone)]
pub(crate) struct Pick {
    pub(crate) job: QueuedJob,
    pub(crate) agent: AgentId,
    pub(crate) serial: Serial,
}

/// What an offer said, kept until it is answered.
#[derive(Debug, Clone)]
pub(crate) struct Offered {
    pub(crate) attempt: AttemptId,
    pub(crate) token_hash: Digest,
    /// The number that the attempt will have.
    pub(crate) number: u32,
}

/// What placing came to.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    pub(crate) picks: Vec<Pick>,
    /// When to look again if nothing else happens.
    pub(crate) next: Option<Timestamp>,
}

/// What an agent is doing, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Presence {
    pub(crate) state: v1::AgentState,
    pub(crate) busy: u32,
}

/// What a connection found.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) serial: Serial,
    /// Cancelled when a newer connection replaces this one, or the agent is cut off.
    pub(crate) cut: CancellationToken,
    /// Attempts of this start that the agent does not know: it never heard that they began.
    pub(crate) forgotten: Vec<AttemptId>,
}

struct Link {
    serial: Serial,
    heard: Instant,
    outbox: Outbox,
    cut: CancellationToken,
}

enum Presently {
    Connected(Link),
    Away { until: Instant },
    Lost,
}

struct Member {
    agent: Agent,
    usable: BTreeSet<AdapterName>,
    /// The only project it works for, if it is bound to one.
    project: Option<ProjectId>,
    presently: Presently,
    running: HashMap<AttemptId, Running>,
    /// Offers and starts in flight: each takes a slot.
    pending: u32,
}

struct Running {
    task: TaskId,
    lease_until: Instant,
}

enum Stage {
    /// Its work is being read from the store.
    Preparing,
    Open(Offered),
}

struct Offer {
    job: QueuedJob,
    agent: AgentId,
    serial: Serial,
    deadline: Instant,
    stage: Stage,
}

impl Member {
    fn busy(&self) -> u32 {
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        running.saturating_add(self.pending)
    }

    fn link(&self) -> Option<&Link> {
        match &self.presently {
            Presently::Connected(link) => Some(link),
            Presently::Away { .. } | Presently::Lost => None,
        }
    }

    fn view(&self) -> Option<AgentView<'_>> {
        self.link().map(|_| AgentView {
            id: self.agent.id,
            name: &self.agent.name,
            free_slots: self.agent.slots.saturating_sub(self.busy()),
            labels: &self.agent.labels,
            adapters: &self.usable,
            project: self.project.as_ref(),
            draining: self.agent.draining,
        })
    }
}

/// See the module.
pub(crate) struct Board {
    timings: Timings,
    members: HashMap<AgentId, Member>,
    /// In the order of the queue.
    waiting: BTreeMap<(Timestamp, u64), QueuedJob>,
    places: HashMap<JobId, (Timestamp, u64)>,
    by_session: HashMap<SessionId, JobId>,
    offers: HashMap<OfferId, Offer>,
    /// Jobs of a task that agents hold, for fairness.
    held: HashMap<TaskId, u32>,
    /// Not to be offered there until then.
    refusals: HashMap<JobId, Vec<(AgentId, Instant)>>,
    /// Running attempts whose agent is to be told to stop, also after it came back.
    stopping: HashSet<AttemptId>,
    counter: u64,
}

impl Board {
    pub(crate) fn new(timings: Timings) -> Self {
        Self {
            timings,
            members: HashMap::new(),
            waiting: BTreeMap::new(),
            places: HashMap::new(),
            by_session: HashMap::new(),
            offers: HashMap::new(),
            held: HashMap::new(),
            refusals: HashMap::new(),
            stopping: HashSet::new(),
            counter: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    // The queue.

    /// A job waits.
    pub(crate) fn enqueue(&mut self, job: QueuedJob) {
        self.withdraw(job.job);
        let place = (job.queued_at, self.next());
        self.places.insert(job.job, place);
        self.by_session.insert(job.session, job.job);
        self.waiting.insert(place, job);
    }

    /// A job waits no longer.
    pub(crate) fn withdraw(&mut self, job: JobId) {
        if let Some(job) = self.places.remove(&job).and_then(|place| self.waiting.remove(&place)) {
            self.by_session.remove(&job.session);
        }
    }

    /// Takes jobs from the queue for agents that have room.
    pub(crate) fn place(&mut self, now: Timestamp, instant: Instant) -> Placed {
        if self.waiting.is_empty() || !self.has_room() {
            return Placed::default();
        }
        self.refusals.retain(|_, agents| {
            agents.retain(|(_, until)| *until > instant);
            !agents.is_empty()
        });
        let views: Vec<_> = self.members.values().filter_map(Member::view).collect();
        let (refused, plain): (Vec<_>, Vec<_>) = self
            .waiting
            .values()
            .map(|job| self.waiting_view(job))
            .partition(|job| self.refusals.contains_key(&job.job));
        let mut placement = place(&plain, &views, now);
        let mut free: HashMap<_, _> = views.iter().map(|view| (view.id, view.free_slots)).collect();
        for (_, agent) in &placement.assignments {
            if let Some(free) = free.get_mut(agent) {
                *free = free.saturating_sub(1);
            }
        }
        for job in refused {
            let refusers = self.refusals.get(&job.job).map_or(&[][..], Vec::as_slice);
            let willing: Vec<_> = views
                .iter()
                .filter(|view| refusers.iter().all(|(agent, _)| *agent != view.id))
                .map(|view| AgentView {
                    free_slots: free.get(&view.id).copied().unwrap_or(0),
                    ..*view
                })
                .collect();
            let alone = place(&[job], &willing, now);
            for (_, agent) in &alone.assignments {
                if let Some(free) = free.get_mut(agent) {
                    *free = free.saturating_sub(1);
                }
            }
            placement.assignments.extend(alone.assignments);
            placement.next_wakeup = placement.next_wakeup.into_iter().chain(alone.next_wakeup).min();
        }
        // A refusal that runs out is also a reason to look again.
        let forgiven = self.refusals.values().flatten().map(|(_, until)| *until).min();
        let forgiven = forgiven.map(|until| now + until.saturating_duration_since(instant));
        let next = placement.next_wakeup.into_iter().chain(forgiven).min();
        let picks = placement
            .assignments
            .into_iter()
            .filter_map(|(job, agent)| self.pick(job, agent))
            .collect();
        Placed { picks, next }
    }

    fn pick(&mut self, job: JobId, agent: AgentId) -> Option<Pick> {
        let member = self.members.get_mut(&agent)?;
        let serial = member.link()?.serial;
        member.pending += 1;
        let job = self.waiting.remove(&self.places.remove(&job)?)?;
        self.by_session.remove(&job.session);
        *self.held.entry(job.task).or_default() += 1;
        Some(Pick { job, agent, serial })
    }

    fn has_room(&self) -> bool {
        self.members
            .values()
            .any(|m| m.link().is_some() && !m.agent.draining && m.agent.slots > m.busy())
    }

    fn waiting_view<'a>(&self, job: &'a QueuedJob) -> Waiting<'a> {
        Waiting {
            job: job.job,
            task: job.task,
            project: &job.project,
            held: self.held.get(&job.task).copied().unwrap_or(0),
            adapter: match job.kind {
                JobKind::Session => Some(&job.adapter),
                JobKind::Verify { .. } => None,
            },
            requirements: &job.requirements,
            not_before: job.not_before,
            queued_at: job.queued_at,
            affinity: job.affinity,
        }
    }

    /// Why a session's job waits; `None` when none of it does.
    pub(crate) fn why_waiting(&self, session: SessionId, now: Timestamp) -> Option<String> {
        let job = self.waiting.get(self.places.get(self.by_session.get(&session)?)?)?;
        let views: Vec<_> = self.members.values().filter_map(Member::view).collect();
        Some(why_waiting(&self.waiting_view(job), &views, now))
    }

    // Offers.

    /// The job taken from the queue is being prepared for its agent.
    pub(crate) fn prepare(&mut self, id: OfferId, pick: Pick, now: Instant) {
        self.offers.insert(
            id,
            Offer {
                job: pick.job,
                agent: pick.agent,
                serial: pick.serial,
                deadline: now + self.timings.offer,
                stage: Stage::Preparing,
            },
        );
    }

    /// Sends an offer. The job waits again when its agent is gone meanwhile.
    pub(crate) fn send(&mut self, id: OfferId, offered: Offered, message: v1::ConnectResponse, now: Instant) {
        let deadline = now + self.timings.offer;
        let Some(offer) = self.offers.get_mut(&id) else {
            return;
        };
        offer.stage = Stage::Open(offered);
        offer.deadline = deadline;
        let agent = offer.agent;
        if !self.tell(agent, message) {
            self.take_back(id);
        }
    }

    /// Takes an offer back. The job waits again, and nothing is counted.
    pub(crate) fn take_back(&mut self, id: OfferId) {
        if let Some(job) = self.release(id) {
            self.enqueue(job);
        }
    }

    /// Drops an offer whose job moved on.
    pub(crate) fn drop_offer(&mut self, id: OfferId) {
        self.release(id);
    }

    /// Takes an offer back, and does not offer the job there for a while.
    pub(crate) fn refuse(&mut self, id: OfferId, agent: AgentId, now: Instant) {
        let Some(offer) = self.offers.get(&id).filter(|offer| offer.agent == agent) else {
            return;
        };
        let until = now + self.timings.refusal;
        self.refusals.entry(offer.job.job).or_default().push((agent, until));
        self.take_back(id);
    }

    /// The agent took an offer. `None` when it was taken back. The slot stays taken until
    /// [`Board::started`] or [`Board::not_started`].
    pub(crate) fn accept(&mut self, id: OfferId, agent: AgentId, serial: Serial) -> Option<(QueuedJob, Offered)> {
        let offer = self.offers.get(&id)?;
        if offer.agent != agent || offer.serial != serial || matches!(offer.stage, Stage::Preparing) {
            return None;
        }
        let offer = self.offers.remove(&id)?;
        match offer.stage {
            Stage::Open(offered) => Some((offer.job, offered)),
            Stage::Preparing => None,
        }
    }

    /// An accepted attempt is stored. False when its agent has no such connection any more:
    /// the caller ends the attempt.
    pub(crate) fn started(
        &mut self,
        agent: AgentId,
        serial: Serial,
        task: TaskId,
        attempt: AttemptId,
        now: Instant,
    ) -> bool {
        let lease_until = now + self.timings.lease_ttl;
        let Some(member) = self.members.get_mut(&agent) else {
            self.let_go(task);
            return false;
        };
        member.pending = member.pending.saturating_sub(1);
        if member.link().is_none_or(|link| link.serial != serial) {
            self.let_go(task);
            return false;
        }
        member.running.insert(attempt, Running { task, lease_until });
        true
    }

    /// An accepted job could not be started.
    pub(crate) fn not_started(&mut self, agent: AgentId, task: TaskId) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.pending = member.pending.saturating_sub(1);
        }
        self.let_go(task);
    }

    fn release(&mut self, id: OfferId) -> Option<QueuedJob> {
        let offer = self.offers.remove(&id)?;
        self.not_started(offer.agent, offer.job.task);
        Some(offer.job)
    }

    fn let_go(&mut self, task: TaskId) {
        if let Some(held) = self.held.get_mut(&task) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&task);
            }
        }
    }

    // Attempts.

    /// An attempt lost its authority or ended.
    pub(crate) fn ended(&mut self, agent: AgentId, attempt: AttemptId) {
        self.stopping.remove(&attempt);
        let running = self.members.get_mut(&agent).and_then(|m| m.running.remove(&attempt));
        if let Some(running) = running {
            self.let_go(running.task);
        }
    }

    /// Leases were extended.
    pub(crate) fn renewed(&mut self, agent: AgentId, attempts: &[AttemptId], now: Instant) {
        let until = now + self.timings.lease_ttl;
        if let Some(member) = self.members.get_mut(&agent) {
            for attempt in attempts {
                if let Some(running) = member.running.get_mut(attempt) {
                    running.lease_until = until;
                }
            }
        }
    }

    /// Tells an agent to stop an attempt, now or when it is back.
    pub(crate) fn stop(&mut self, agent: AgentId, attempt: AttemptId) {
        self.stopping.insert(attempt);
        self.tell(agent, stop_message(attempt, "the session was cancelled"));
    }

    // Agents.

    /// An agent that was there before this coordinator started, with what it ran.
    pub(crate) fn expect(&mut self, agent: Agent, running: Vec<(AttemptId, TaskId)>, now: Instant) {
        let until = now + self.timings.lease_ttl;
        for (_, task) in &running {
            *self.held.entry(*task).or_default() += 1;
        }
        let presently = if running.is_empty() {
            Presently::Lost
        } else {
            Presently::Away { until }
        };
        let running = running
            .into_iter()
            .map(|(attempt, task)| {
                let lease_until = until;
                (attempt, Running { task, lease_until })
            })
            .collect();
        self.members.insert(
            agent.id,
            Member {
                usable: usable(&agent),
                project: None,
                agent,
                presently,
                running,
                pending: 0,
            },
        );
    }

    /// The newest connection of an agent. An older one is cut, and its offers go back.
    pub(crate) fn join(&mut self, agent: Agent, outbox: Outbox, claimed: &[AttemptId], now: Instant) -> Joined {
        let serial = Serial(self.next());
        let cut = CancellationToken::new();
        let link = Link {
            serial,
            heard: now,
            outbox,
            cut: cut.clone(),
        };
        let id = agent.id;
        self.take_back_all(id);
        let mut forgotten = HashMap::new();
        match self.members.get_mut(&id) {
            Some(member) => {
                if let Presently::Connected(old) = &member.presently {
                    old.cut.cancel();
                }
                let lost = member.running.extract_if(|attempt, _| !claimed.contains(attempt));
                forgotten.extend(lost);
                member.usable = usable(&agent);
                member.agent = agent;
                member.presently = Presently::Connected(link);
            }
            None => {
                self.members.insert(
                    id,
                    Member {
                        usable: usable(&agent),
                        project: None,
                        agent,
                        presently: Presently::Connected(link),
                        running: HashMap::new(),
                        pending: 0,
                    },
                );
            }
        }
        for running in forgotten.values() {
            self.let_go(running.task);
        }
        Joined {
            serial,
            cut,
            forgotten: forgotten.into_keys().collect(),
        }
    }

    /// Binds an agent to a project, or to none.
    pub(crate) fn scope(&mut self, agent: AgentId, project: Option<ProjectId>) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.project = project;
        }
    }

    /// Attempts that a returning agent still has authority over, and should stop.
    pub(crate) fn to_stop(&self, attempts: &[AttemptId]) -> Vec<AttemptId> {
        attempts.iter().copied().filter(|a| self.stopping.contains(a)).collect()
    }

    /// A connection ended. Ignored when a newer one took its place.
    pub(crate) fn leave(&mut self, agent: AgentId, serial: Serial, now: Instant) {
        let until = now + self.timings.grace;
        let Some(member) = self.members.get_mut(&agent) else {
            return;
        };
        if member.link().is_none_or(|link| link.serial != serial) {
            return;
        }
        member.presently = Presently::Away { until };
        self.take_back_all(agent);
    }

    /// The agent said something.
    pub(crate) fn heard(&mut self, agent: AgentId, serial: Serial, at: Timestamp, now: Instant) {
        if let Some(member) = self.members.get_mut(&agent)
            && let Presently::Connected(link) = &mut member.presently
            && link.serial == serial
        {
            link.heard = now;
            member.agent.seen_at = at;
        }
    }

    /// The agent takes no new work, or does again.
    pub(crate) fn set_draining(&mut self, agent: AgentId, draining: bool) {
        if let Some(member) = self.members.get_mut(&agent) {
            member.agent.draining = draining;
        }
    }

    /// Sends a message to an agent. False when it is not connected; one that does not read
    /// is cut off.
    pub(crate) fn tell(&mut self, agent: AgentId, message: v1::ConnectResponse) -> bool {
        let Some(link) = self.members.get(&agent).and_then(Member::link) else {
            return false;
        };
        match link.outbox.try_send(Ok(message)) {
            Ok(()) => true,
            Err(_) => {
                link.cut.cancel();
                false
            }
        }
    }

    /// What is known of an agent.
    pub(crate) fn agent(&self, id: AgentId) -> Option<&Agent> {
        self.members.get(&id).map(|member| &member.agent)
    }

    pub(crate) fn presence(&self, id: AgentId) -> Presence {
        match self.members.get(&id) {
            None => Presence {
                state: v1::AgentState::Disconnected,
                busy: 0,
            },
            Some(member) => Presence {
                state: match (&member.presently, member.agent.draining) {
                    (Presently::Connected(_), false) => v1::AgentState::Connected,
                    (Presently::Connected(_), true) => v1::AgentState::Draining,
                    (Presently::Away { .. } | Presently::Lost, _) => v1::AgentState::Disconnected,
                },
                busy: member.busy(),
            },
        }
    }

    pub(crate) fn connected(&self) -> usize {
        self.members.values().filter(|member| member.link().is_some()).count()
    }

    fn take_back_all(&mut self, agent: AgentId) {
        let offers: Vec<_> = self
            .offers
            .iter()
            .filter(|(_, offer)| offer.agent == agent)
            .map(|(id, _)| *id)
            .collect();
        for id in offers {
            self.take_back(id);
        }
    }
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board")
            .field("agents", &self.members.len())
            .field("waiting", &self.waiting.len())
            .field("offers", &self.offers.len())
            .finish_non_exhaustive()
    }
}

fn usable(agent: &Agent) -> BTreeSet<AdapterName> {
    let usable = agent.adapters.iter().filter(|adapter| adapter.unavailable.is_none());
    usable.map(|adapter| adapter.name.clone()).collect()
}

/// The message that stops an attempt.
pub(crate) fn stop_message(attempt: AttemptId, reason: &str) -> v1::ConnectResponse {
    v1::ConnectResponse {
        message: Some(v1::connect_response::Message::Stop(v1::Stop {
            attempt_id: attempt.to_string(),
            reason: reason.to_owned(),
        })),
    }
}

/// How long the coordinator may sleep between two looks at its deadlines.
pub(crate) fn tick(timings: &Timings) -> Duration {
    let shortest = timings.grace.min(timings.offer).min(timings.lost_after);
    (shortest / 4).clamp(Duration::from_millis(5), Duration::from_millis(250))
}
