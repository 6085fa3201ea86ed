//! The coordinator's memory of the fleet: connected agents, waiting jobs and open offers.
//! Synchronous and without I/O; `dispatch` and `services::agent` drive it under a short lock. The
//! store, from which the board is filled at a start, holds the truth.
//!
//! ```text
//!   job:    waiting --place--> offered --accept--> starting --started--> running --ended--> (gone)
//!              ^                  |  (refused, unanswered, agent gone)
//!              \------------------/
//!   agent:  connected --closed--> away --grace--> lost
//!              ^  \--silent--------------------->  |
//!              \---------------hello---------------/
//! ```

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use kage_core::attempt::EndReason;
use kage_core::deadline::STOP_ANSWER;
use kage_core::fleet::Agent;
use kage_core::id::{AdapterName, AgentId, AttemptId, BootId, Digest, JobId, OfferId, ProjectId, SessionId, TaskId};
use kage_core::job::Subject;
use kage_core::placement::{AgentView, Availability, Lane, Refusal};
use kage_core::time::Timestamp;
use kage_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::terms::Late;

use self::lanes::Lanes;
use self::members::Members;
use self::terms::Terms;
use crate::config::Timings;
use crate::store::{LiveAttempt, QueuedJob};

pub(crate) mod agents;
mod deadline;
mod lanes;
mod members;
mod offers;
mod queue;
mod terms;
#[cfg(test)]
mod tests;

/// The channel to an agent. When it is full the agent does not read, and is cut off.
pub(crate) type Outbox = mpsc::Sender<Result<v1::ConnectResponse, tonic::Status>>;

/// Distinguishes the connections of one agent; a later one has a larger number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Serial(u64);

/// A job to be offered to an agent.
#[derive(Debug, Clone)]
pub(crate) struct Pick {
    pub(crate) job: QueuedJob,
    pub(crate) agent: AgentId,
    pub(crate) serial: Serial,
}

/// The content of an offer, kept until the answer.
#[derive(Debug, Clone)]
pub(crate) struct Offered {
    pub(crate) attempt: AttemptId,
    pub(crate) token_hash: Digest,
    /// The number that the attempt will have.
    pub(crate) number: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Placed {
    pub(crate) picks: Vec<Pick>,
    /// When to check again if nothing else happens.
    pub(crate) next: Option<Timestamp>,
}

/// A session whose job waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) task: TaskId,
    pub(crate) session: SessionId,
    /// When it may begin at the earliest; `None`: now.
    pub(crate) until: Option<Timestamp>,
    /// Why it waits for an agent; `None`: it waits for its time.
    pub(crate) why: Option<String>,
}

/// An agent's activity, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Presence {
    pub(crate) state: v1::AgentState,
    /// How many slots of each lane are taken.
    pub(crate) busy: BTreeMap<Lane, u32>,
}

impl Presence {
    pub(crate) fn busy(&self, lane: Lane) -> u32 {
        self.busy.get(&lane).copied().unwrap_or_default()
    }
}

/// The state that a new connection found.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) serial: Serial,
    /// Cancelled when a newer connection replaces this one, or the agent is revoked.
    pub(crate) cut: CancellationToken,
    /// Attempts of this start that the agent does not know: it never received the order to start
    /// them.
    pub(crate) forgotten: Vec<AttemptId>,
}

/// Signs of life from the agent at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    /// The time of its last message.
    pub(crate) heard: Instant,
    /// True while the coordinator carries out the last message, and reads no further ones.
    pub(crate) busy: bool,
}

struct AgentLink {
    serial: Serial,
    /// Receivers learn of the end of the connection too.
    pulse: watch::Sender<Pulse>,
    answers_pings: bool,
    /// The newest version of context deltas that the agent reads.
    context_deltas: u32,
    outbox: Outbox,
    cut: CancellationToken,
}

enum Presently {
    Connected(AgentLink),
    Away {
        until: Instant,
    },
    /// Its attempts have ended. At first it may still come back.
    Lost {
        since: Instant,
    },
}

struct Member {
    agent: Agent,
    lanes: Lanes,
    /// The only project it works for, if it is bound to one.
    project: Option<ProjectId>,
    presently: Presently,
    running: BTreeMap<AttemptId, Running>,
    /// It was revoked, and never comes back.
    shut_out: bool,
    /// Whether it is stored as draining, and which start of it that is of.
    stored_draining: (BootId, bool),
}

struct Running {
    task: TaskId,
    /// The adapter that works; `None`: a command does.
    adapter: Option<AdapterName>,
    subject: Subject,
    lease_until: Instant,
}

enum OfferStage {
    /// Its work is being read from the store.
    Preparing,
    Open(Offered),
}

struct Offer {
    job: QueuedJob,
    agent: AgentId,
    serial: Serial,
    deadline: Instant,
    stage: OfferStage,
}

/// No offer of this job to the agent until then.
struct Refused {
    agent: AgentId,
    until: Instant,
    reason: String,
}

impl Refused {
    fn view(&self) -> Refusal<'_> {
        Refusal {
            agent: self.agent,
            reason: &self.reason,
        }
    }
}

impl Member {
    /// Removes a running attempt, whose slot becomes free.
    fn remove_running(&mut self, attempt: AttemptId) -> Option<Running> {
        let running = self.running.remove(&attempt)?;
        self.lanes.release(running.adapter.as_ref());
        Some(running)
    }

    fn link(&self) -> Option<&AgentLink> {
        match &self.presently {
            Presently::Connected(link) => Some(link),
            Presently::Away { .. } | Presently::Lost { .. } => None,
        }
    }

    /// The views of its lanes.
    fn views(&self) -> impl Iterator<Item = AgentView<'_>> {
        self.lanes.iter().map(|(lane, counted)| AgentView {
            id: self.agent.id,
            lane,
            name: &self.agent.name,
            free_slots: counted.free(),
            placed: counted.placed,
            labels: &self.agent.labels,
            adapters: &counted.usable,
            known: &self.agent.adapters,
            project: self.project.as_ref(),
            can: self.agent.admittance.can,
            contained: &self.agent.contained,
            availability: self.availability(),
        })
    }

    fn view(&self, lane: Lane) -> Option<AgentView<'_>> {
        self.views().find(|view| view.lane == lane)
    }

    fn availability(&self) -> Availability {
        match (self.link(), self.agent.draining, self.agent.cordoned) {
            (None, _, _) => Availability::Away,
            (Some(_), true, _) => Availability::Draining,
            (Some(_), false, true) => Availability::Cordoned,
            (Some(_), false, false) => Availability::Open,
        }
    }

    /// True when it is connected, or was so recently that it may come back.
    fn counts(&self, now: Instant, patience: Duration) -> bool {
        !self.shut_out
            && match &self.presently {
                Presently::Connected(_) | Presently::Away { .. } => true,
                Presently::Lost { since } => now.saturating_duration_since(*since) < patience,
            }
    }
}

pub(crate) struct Board {
    timings: Timings,
    members: Members,
    /// In queue order.
    waiting: BTreeMap<(Timestamp, u64), QueuedJob>,
    places: HashMap<JobId, (Timestamp, u64)>,
    by_session: HashMap<SessionId, JobId>,
    offers: BTreeMap<OfferId, Offer>,
    /// Jobs of each task that agents hold, for fairness.
    held: HashMap<TaskId, u32>,
    refusals: HashMap<JobId, Vec<Refused>>,
    /// Hindrances that connected agents reported: why they cannot continue their attempts.
    hindrances: BTreeMap<AgentId, String>,
    /// Running attempts whose agent has to stop them, even if it comes back later.
    stopping: HashSet<AttemptId>,
    /// Deadlines of live attempts.
    terms: Terms,
    stop_answer: Duration,
    counter: u64,
}

impl Board {
    pub(crate) fn new(timings: Timings) -> Self {
        Self {
            timings,
            members: Members::default(),
            waiting: BTreeMap::new(),
            places: HashMap::new(),
            by_session: HashMap::new(),
            offers: BTreeMap::new(),
            held: HashMap::new(),
            refusals: HashMap::new(),
            hindrances: BTreeMap::new(),
            stopping: HashSet::new(),
            terms: Terms::default(),
            stop_answer: STOP_ANSWER,
            counter: 0,
        }
    }

    /// The same board with this time limit for answers to orders to stop.
    pub(crate) const fn waiting_for_stops(mut self, stop_answer: Duration) -> Self {
        self.stop_answer = stop_answer;
        self
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn let_go(&mut self, task: TaskId) {
        if let Some(held) = self.held.get_mut(&task) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&task);
            }
        }
    }

    /// The attempt lost its authority or ended.
    pub(crate) fn ended(&mut self, agent: AgentId, attempt: AttemptId) {
        self.stopping.remove(&attempt);
        self.terms.forget(attempt);
        let running = self.members.change(agent, |member| member.remove_running(attempt));
        if let Some(running) = running.flatten() {
            self.let_go(running.task);
        }
    }

    /// Every running attempt with its agent.
    pub(crate) fn running(&self) -> Vec<(AgentId, AttemptId)> {
        let running = |member: &Member| {
            let id = member.agent.id;
            member
                .running
                .keys()
                .map(move |attempt| (id, *attempt))
                .collect::<Vec<_>>()
        };
        self.members.iter().flat_map(running).collect()
    }

    /// True when the job waits or is offered.
    pub(crate) fn holds(&self, job: JobId) -> bool {
        self.places.contains_key(&job) || self.offers.values().any(|offer| offer.job.job == job)
    }

    pub(crate) fn renewed(&mut self, agent: AgentId, attempts: &[AttemptId], now: Instant) {
        let until = now + self.timings.lease_ttl;
        let terms = &mut self.terms;
        self.members.change(agent, |member| {
            for attempt in attempts {
                if let Some(running) = member.running.get_mut(attempt) {
                    // The attempt stood still while it had no lease.
                    terms.give_back(*attempt, now.saturating_duration_since(running.lease_until));
                    running.lease_until = until;
                }
            }
        });
    }

    /// True when its agent was told to stop the attempt, or will be.
    pub(crate) fn is_stopping(&self, attempt: AttemptId) -> bool {
        self.stopping.contains(&attempt)
    }

    /// True when the time of the attempt is limited.
    pub(crate) fn is_limited(&self, attempt: AttemptId) -> bool {
        self.terms.has(attempt)
    }

    /// Limits how long an attempt may be live.
    pub(crate) fn allow(&mut self, agent: AgentId, attempt: AttemptId, allowed: Duration, now: Instant) {
        self.terms.allow(agent, attempt, allowed, now);
    }

    /// Gives live attempts without a deadline the rest of their time, as after a start. An agent
    /// that was told to end one of them gets time to report that.
    pub(crate) fn resume(&mut self, live: &[LiveAttempt], clock: Timestamp, now: Instant) {
        for live in live {
            if self.terms.has(live.attempt) {
                continue;
            }
            let (reason, left) = live.term.left(self.stop_answer, clock);
            let left = left.max(self.timings.lease_ttl);
            match reason {
                EndReason::StopUnanswered => self.terms.stop(live.agent, live.attempt, left, now),
                EndReason::Overdue
                | EndReason::Finished
                | EndReason::AgentRestarted
                | EndReason::AgentGone
                | EndReason::AgentSilent
                | EndReason::Superseded
                | EndReason::Restored => self.terms.allow(live.agent, live.attempt, left, now),
            }
        }
    }

    /// Tells an agent to stop an attempt, now or when it reconnects, and limits the time to answer.
    pub(crate) fn stop(&mut self, agent: AgentId, attempt: AttemptId, now: Instant) {
        self.terms.stop(agent, attempt, self.stop_answer, now);
        self.stopping.insert(attempt);
        self.tell(
            agent,
            stop_message(attempt, "the session was cancelled, or continues on another agent"),
        );
    }

    /// Tells an agent to stop an attempt whose session goes back to a checkpoint, and to keep its
    /// worktree. A disconnected agent gets a plain Stop when it reconnects; its worktree is not
    /// kept.
    pub(crate) fn send_back(&mut self, agent: AgentId, attempt: AttemptId) {
        self.stopping.insert(attempt);
        let stop = v1::Stop {
            attempt_id: attempt.to_string(),
            reason: "the session goes back to a checkpoint".to_owned(),
            keep_worktree: true,
        };
        let message = Some(v1::connect_response::Message::Stop(stop));
        self.tell(agent, v1::ConnectResponse { message });
    }
}

impl Board {
    /// Tells the agent of an attempt whose check nobody needs any more to stop it.
    pub(crate) fn supersede(&mut self, agent: AgentId, attempt: AttemptId) {
        self.stopping.insert(attempt);
        let why = "a message made the session go on, so this result is not checked";
        self.tell(agent, stop_message(attempt, why));
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

pub(crate) fn stop_message(attempt: AttemptId, reason: &str) -> v1::ConnectResponse {
    v1::ConnectResponse {
        message: Some(v1::connect_response::Message::Stop(v1::Stop {
            attempt_id: attempt.to_string(),
            reason: reason.to_owned(),
            keep_worktree: false,
        })),
    }
}

/// The message that asks an agent to take no more work.
pub(crate) fn drain_message() -> v1::ConnectResponse {
    v1::ConnectResponse {
        message: Some(v1::connect_response::Message::Drain(v1::Drain {})),
    }
}

/// The longest time between two looks at the deadlines.
pub(crate) fn tick(timings: &Timings) -> Duration {
    let shortest = timings.grace.min(timings.offer).min(timings.lost_after);
    (shortest / 4).clamp(Duration::from_millis(5), Duration::from_millis(250))
}
