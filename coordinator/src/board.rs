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
use std::time::Duration;

use kage_core::attempt::EndReason;
use kage_core::deadline::STOP_ANSWER;
use kage_core::fleet::Agent;
use kage_core::id::{AdapterName, AgentId, AttemptId, Digest, JobId, OfferId, ProjectId, SessionId, TaskId};
use kage_core::job::Subject;
use kage_core::placement::{AgentView, Availability, Refusal};
use kage_core::time::Timestamp;
use kage_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::terms::Late;

use self::members::Members;
use self::terms::Terms;
use crate::config::Timings;
use crate::store::{LiveAttempt, QueuedJob};

pub(crate) mod agents;
mod deadline;
mod members;
mod offers;
mod queue;
mod terms;
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

/// What shows that the agent at the other end of a connection lives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    /// When it last said something.
    pub(crate) heard: Instant,
    /// True while the coordinator carries out what it said, and reads nothing more from it.
    pub(crate) busy: bool,
}

struct Link {
    serial: Serial,
    /// Whoever follows it learns of the end of the connection too.
    pulse: watch::Sender<Pulse>,
    /// It said that it answers pings.
    answers_pings: bool,
    outbox: Outbox,
    cut: CancellationToken,
}

enum Presently {
    Connected(Link),
    Away {
        until: Instant,
    },
    /// Nobody waits for it any more. It may come back all the same, at first.
    Lost {
        since: Instant,
    },
}

struct Member {
    agent: Agent,
    usable: BTreeSet<AdapterName>,
    /// The only project it works for, if it is bound to one.
    project: Option<ProjectId>,
    presently: Presently,
    running: BTreeMap<AttemptId, Running>,
    /// Offers and starts in flight: each takes a slot.
    pending: u32,
    /// Offers it was given so far.
    placed: u64,
    /// It was revoked, and never comes back.
    shut_out: bool,
}

struct Running {
    task: TaskId,
    subject: Subject,
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

/// An agent is not to be offered a job until then.
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
    fn busy(&self) -> u32 {
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        running.saturating_add(self.pending)
    }

    fn link(&self) -> Option<&Link> {
        match &self.presently {
            Presently::Connected(link) => Some(link),
            Presently::Away { .. } | Presently::Lost { .. } => None,
        }
    }

    fn view(&self) -> AgentView<'_> {
        AgentView {
            id: self.agent.id,
            name: &self.agent.name,
            free_slots: self.agent.slots.saturating_sub(self.busy()),
            placed: self.placed,
            labels: &self.agent.labels,
            adapters: &self.usable,
            known: &self.agent.adapters,
            project: self.project.as_ref(),
            availability: self.availability(),
        }
    }

    fn availability(&self) -> Availability {
        match (self.link(), self.agent.draining, self.agent.cordoned) {
            (None, _, _) => Availability::Away,
            (Some(_), true, _) => Availability::Draining,
            (Some(_), false, true) => Availability::Cordoned,
            (Some(_), false, false) => Availability::Open,
        }
    }

    /// True when it is there, or was so lately that it may come back.
    fn counts(&self, now: Instant, patience: Duration) -> bool {
        !self.shut_out
            && match &self.presently {
                Presently::Connected(_) | Presently::Away { .. } => true,
                Presently::Lost { since } => now.saturating_duration_since(*since) < patience,
            }
    }
}

/// See the module.
pub(crate) struct Board {
    timings: Timings,
    members: Members,
    /// In the order of the queue.
    waiting: BTreeMap<(Timestamp, u64), QueuedJob>,
    places: HashMap<JobId, (Timestamp, u64)>,
    by_session: HashMap<SessionId, JobId>,
    offers: BTreeMap<OfferId, Offer>,
    /// Jobs of a task that agents hold, for fairness.
    held: HashMap<TaskId, u32>,
    refusals: HashMap<JobId, Vec<Refused>>,
    /// What keeps agents that are connected from going on with what they run.
    hindrances: BTreeMap<AgentId, String>,
    /// Running attempts whose agent is to be told to stop, also after it came back.
    stopping: HashSet<AttemptId>,
    /// Until when attempts may be live.
    terms: Terms,
    stop_answer: Duration,
    /// How often somebody said that an agent takes work or does not. An agent that joins
    /// meanwhile may have been read before.
    orders: u64,
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
            orders: 0,
            counter: 0,
        }
    }

    /// The same, which waits so long for answers to orders to stop.
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

    /// An attempt lost its authority or ended.
    pub(crate) fn ended(&mut self, agent: AgentId, attempt: AttemptId) {
        self.stopping.remove(&attempt);
        self.terms.forget(attempt);
        let running = self.members.change(agent, |member| member.running.remove(&attempt));
        if let Some(running) = running.flatten() {
            self.let_go(running.task);
        }
    }

    /// The attempts that agents work on.
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

    /// True when a job waits or is offered.
    pub(crate) fn holds(&self, job: JobId) -> bool {
        self.places.contains_key(&job) || self.offers.values().any(|offer| offer.job.job == job)
    }

    /// Leases were extended.
    pub(crate) fn renewed(&mut self, agent: AgentId, attempts: &[AttemptId], now: Instant) {
        let until = now + self.timings.lease_ttl;
        let terms = &mut self.terms;
        self.members.change(agent, |member| {
            for attempt in attempts {
                if let Some(running) = member.running.get_mut(attempt) {
                    // Without a lease it stood still.
                    terms.give_back(*attempt, now.saturating_duration_since(running.lease_until));
                    running.lease_until = until;
                }
            }
        });
    }

    /// An attempt is live, for so long at most.
    pub(crate) fn allow(&mut self, agent: AgentId, attempt: AttemptId, allowed: Duration, now: Instant) {
        self.terms.allow(agent, attempt, allowed, now);
    }

    /// The attempts in time of which nothing is known are live for what is left to them, as
    /// after a start. Whoever ended one meanwhile gets the time to say so.
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
                | EndReason::Restored => self.terms.allow(live.agent, live.attempt, left, now),
            }
        }
    }

    /// Tells an agent to stop an attempt, now or when it is back, and waits so long for an answer.
    pub(crate) fn stop(&mut self, agent: AgentId, attempt: AttemptId, now: Instant) {
        self.terms.stop(agent, attempt, self.stop_answer, now);
        self.stopping.insert(attempt);
        self.tell(
            agent,
            stop_message(attempt, "the session was cancelled, or goes on elsewhere"),
        );
    }

    /// Tells an agent to stop an attempt whose session goes back to a checkpoint, and to keep
    /// its worktree. One that is not there now hears later only that it is to stop.
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

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board")
            .field("agents", &self.members.len())
            .field("waiting", &self.waiting.len())
            .field("offers", &self.offers.len())
            .finish_non_exhaustive()
    }
}

/// The message that stops an attempt.
pub(crate) fn stop_message(attempt: AttemptId, reason: &str) -> v1::ConnectResponse {
    v1::ConnectResponse {
        message: Some(v1::connect_response::Message::Stop(v1::Stop {
            attempt_id: attempt.to_string(),
            reason: reason.to_owned(),
            keep_worktree: false,
        })),
    }
}

/// How long the coordinator may sleep between two looks at its deadlines.
pub(crate) fn tick(timings: &Timings) -> Duration {
    let shortest = timings.grace.min(timings.offer).min(timings.lost_after);
    (shortest / 4).clamp(Duration::from_millis(5), Duration::from_millis(250))
}
