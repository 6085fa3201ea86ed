//! Placement: which waiting job goes to which agent.
//!
//! Pure and cheap, because it is called on every dispatch: the cost depends on the waiting jobs and
//! their candidate agents, which a [`Roster`] finds, and not on the size of the fleet. The agent
//! itself decides whether it accepts the job. The caller keeps the queue, the roster, and the
//! counts of held and placed jobs.
//!
//! Every agent follows two orders. Seven jobs of eight go by urgency: priority first, then tasks
//! take turns. The eighth is the job that has waited longest, whatever its priority. So a job with
//! `n` older ones before it is placed at the latest when an agent that fits it has been given `8 *
//! (n + 1)` jobs, however many more urgent ones keep coming.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use crate::access::{Capabilities, Capability};
use crate::contain::{Containment, Tier};
use crate::fleet::AdapterInfo;
use crate::id::{AdapterName, AgentId, JobId, ProjectId, TaskId};
use crate::job::Affinity;
use crate::priority::Priority;
use crate::task::Labels;
use crate::time::Timestamp;

mod lane;
mod reason;
mod roster;
#[cfg(test)]
mod tests;

pub use lane::{Lane, Seat};
pub use reason::{nobody_can, why_waiting};
pub use roster::Roster;

/// One of this many jobs that an agent gets is the oldest that it can do.
pub const OLDEST_EVERY: u64 = 8;

/// A job that waits for an agent.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// The job.
    pub job: JobId,
    /// Its task, for fairness.
    pub task: TaskId,
    /// Its project.
    pub project: &'a ProjectId,
    /// The priority of its task.
    pub priority: Priority,
    /// Jobs of its task that agents hold now, also for fairness.
    pub held: u32,
    /// The adapter it needs; `None` for a verify job.
    pub adapter: Option<&'a AdapterName>,
    /// The labels it needs: the task's and the session's together.
    pub requirements: &'a Labels,
    /// The lowest tier of containment that its agent may have.
    pub contain: Tier,
    /// It must not start earlier.
    pub not_before: Timestamp,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// True when it only takes capacity that no other job wants: it never goes before another job,
    /// and never counts as the oldest.
    pub spare: bool,
    /// Preferences: an agent to choose if it is free, and one to choose only if no other is.
    pub affinity: Affinity,
    /// Agents that refused it recently, and are not asked now.
    pub refusals: &'a [Refusal<'a>],
}

/// An agent's refusal of a job for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// The agent.
    pub agent: AgentId,
    /// Its reason, for people.
    pub reason: &'a str,
}

/// Whether an agent takes new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It takes new work.
    Open,
    /// A person excluded it from new work until further notice.
    Cordoned,
    /// It finishes its jobs, and leaves.
    Draining,
    /// It is known but not connected, and may return.
    Away,
}

/// The view of an agent, or rather of one of its lanes, for placement.
#[derive(Debug, Clone, Copy)]
pub struct AgentView<'a> {
    /// The agent.
    pub id: AgentId,
    /// The lane: the other fields about jobs and adapters are of it alone.
    pub lane: Lane,
    /// Its name for people.
    pub name: &'a str,
    /// Jobs that it could take now.
    pub free_slots: u32,
    /// Jobs that it was given so far.
    pub placed: u64,
    /// Its labels.
    pub labels: &'a Labels,
    /// The only project it works for; `None`: any.
    pub project: Option<&'a ProjectId>,
    /// The adapters that work there.
    pub adapters: &'a BTreeSet<AdapterName>,
    /// All adapters that it reports, including unusable ones.
    pub known: &'a [AdapterInfo],
    /// What it may be given to do.
    pub can: Capabilities,
    /// How well it keeps programs apart from its machine.
    pub contained: &'a Containment,
    /// Whether it takes new work.
    pub availability: Availability,
}

/// What to offer now, and when to look again if nothing else happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Placement {
    /// Offers, the first in line first.
    pub assignments: Vec<(JobId, AgentId)>,
    /// The earliest time at which a delayed job may start.
    pub next_wakeup: Option<Timestamp>,
}

impl AgentView<'_> {
    /// The agent's lane that is viewed.
    #[must_use]
    pub const fn seat(&self) -> Seat {
        Seat {
            agent: self.id,
            lane: self.lane,
        }
    }

    fn has_adapter(&self, job: &Waiting<'_>) -> bool {
        match job.adapter {
            Some(adapter) => self.adapters.contains(adapter),
            None => self.lane == Lane::SLOTS,
        }
    }

    /// Whether it is trusted with such a job. Every job without an adapter is a check.
    const fn is_allowed(&self, job: &Waiting<'_>) -> bool {
        self.can.has(match job.adapter {
            Some(_) => Capability::Run,
            None => Capability::Verify,
        })
    }

    fn has_labels(&self, job: &Waiting<'_>) -> bool {
        job.requirements
            .iter()
            .all(|(key, value)| self.labels.get(key) == Some(value))
    }

    /// Whether it keeps programs as far apart from its machine as the job demands.
    fn contains(&self, job: &Waiting<'_>) -> bool {
        self.contained.tier >= job.contain
    }

    fn serves(&self, job: &Waiting<'_>) -> bool {
        self.project.is_none_or(|project| project == job.project)
    }

    /// True when it can do the job, once it takes work and has a free slot.
    #[must_use]
    pub fn could_do(&self, job: &Waiting<'_>) -> bool {
        self.serves(job) && self.is_allowed(job) && self.has_adapter(job) && self.has_labels(job) && self.contains(job)
    }

    fn refusal<'a>(&self, job: &Waiting<'a>) -> Option<&'a Refusal<'a>> {
        job.refusals.iter().find(|refusal| refusal.agent == self.id)
    }

    /// True when it could be offered the job now.
    #[must_use]
    pub fn is_free_for(&self, job: &Waiting<'_>) -> bool {
        self.availability == Availability::Open && self.free_slots > 0 && self.may_take(job)
    }

    /// True when it can do the job and did not refuse it.
    fn may_take(&self, job: &Waiting<'_>) -> bool {
        self.could_do(job) && self.refusal(job).is_none()
    }
}

/// Places as many jobs as possible, and records the placements in the roster.
///
/// `waiting` is in queue order, oldest first; `view` gives a lane of an agent of the roster, whose free
/// slots are the roster's. The order is that of the module; the next turn goes to the task that would
/// then hold the fewest jobs, and among equals to the job that was queued first. A job goes to the
/// agent with the most free slots among those that fit. A job that no agent can take now stays in
/// the queue and delays no other.
pub fn place<'a>(
    waiting: &[Waiting<'a>],
    roster: &mut Roster,
    view: impl Fn(Seat) -> Option<AgentView<'a>>,
    now: Timestamp,
) -> Placement {
    let mut placement = Placement::default();
    let mut fleet = Fleet {
        roster,
        view,
        hopeless: HashMap::new(),
    };
    let mut turns = HashMap::<TaskId, u32>::new();
    let mut urgent = Vec::new();
    let mut line = Line::default();
    for (index, job) in waiting.iter().enumerate() {
        if job.not_before > now {
            let earliest = placement
                .next_wakeup
                .map_or(job.not_before, |at| at.min(job.not_before));
            placement.next_wakeup = Some(earliest);
        } else if fleet.roster.has_room() {
            let turn = match job.spare {
                true => 0,
                false => {
                    let turn = turns.entry(job.task).or_insert(job.held);
                    let own = *turn;
                    *turn = turn.saturating_add(1);
                    own
                }
            };
            // Most jobs of a long queue need the few agents that are full.
            if fleet.has_room_for(job) {
                urgent.push(Reverse((job.spare, Reverse(job.priority), turn, job.queued_at, index)));
                if !job.spare {
                    line.jobs.push(index);
                }
            }
        }
    }
    // A heap, because most of a long queue is never looked at once the fleet is full.
    let mut urgent = BinaryHeap::from(urgent);
    let mut placed = vec![false; waiting.len()];
    while let Some(Reverse((_, _, _, _, index))) = urgent.pop() {
        if !fleet.roster.has_room() {
            break;
        }
        if placed[index] {
            continue;
        }
        let job = &waiting[index];
        while !placed[index] {
            let Some(agent) = fleet.best(job) else {
                break;
            };
            // Urgency decides again once the oldest job has had its turn.
            let first = match owes_oldest(fleet.roster.placed(agent.seat())) {
                true => line.oldest(waiting, &placed, &agent).unwrap_or(index),
                false => index,
            };
            let Some(agent) = fleet.best(&waiting[first]) else {
                break;
            };
            fleet.roster.give(agent.seat());
            placed[first] = true;
            placement.assignments.push((waiting[first].job, agent.id));
        }
    }
    placement
}

/// True when the next job of an agent with so many placements is the oldest that it can do.
const fn owes_oldest(given: u64) -> bool {
    given % OLDEST_EVERY == OLDEST_EVERY - 1
}

/// The jobs that may start, oldest first.
#[derive(Default)]
struct Line {
    jobs: Vec<usize>,
    /// Everything before is placed.
    begin: usize,
}

impl Line {
    /// The oldest unplaced job that the agent can do.
    fn oldest(&mut self, waiting: &[Waiting<'_>], placed: &[bool], agent: &AgentView<'_>) -> Option<usize> {
        let gone = self.jobs[self.begin..].iter().take_while(|index| placed[**index]);
        self.begin += gone.count();
        let mut left = self.jobs[self.begin..].iter().copied();
        left.find(|index| !placed[*index] && agent.may_take(&waiting[*index]))
    }
}

/// The agents while jobs are placed.
struct Fleet<'r, 'a, V> {
    roster: &'r mut Roster,
    view: V,
    /// Whether no agent has a free slot for jobs with such needs. Never reset: free slots only
    /// decrease during placement.
    hopeless: HashMap<Needs<'a>, bool>,
}

/// The needs of jobs that can go to the same agents.
type Needs<'a> = (&'a ProjectId, Option<&'a AdapterName>, &'a Labels, Tier);

impl<'a, V: Fn(Seat) -> Option<AgentView<'a>>> Fleet<'_, 'a, V> {
    /// The best agent for a job now.
    fn best(&mut self, job: &Waiting<'a>) -> Option<AgentView<'a>> {
        self.preferred(job).or_else(|| self.roomiest(job))
    }

    /// The agent that the job prefers, if it can take it now.
    fn preferred(&self, job: &Waiting<'a>) -> Option<AgentView<'a>> {
        let mut lanes = self.roster.seats(job.affinity.prefer?);
        lanes.find_map(|seat| {
            let agent = (self.view)(seat)?;
            (!self.roster.is_full(seat) && agent.may_take(job)).then_some(agent)
        })
    }

    /// The agent that fits and has the most free slots; the one to avoid only if it is the only
    /// one.
    fn roomiest(&mut self, job: &Waiting<'a>) -> Option<AgentView<'a>> {
        let needs = needs(job);
        if self.hopeless.get(&needs) == Some(&true) {
            return None;
        }
        let mut avoided = None;
        let mut able = 0;
        for agent in self.roster.with_room(job).filter_map(&self.view) {
            if !agent.could_do(job) {
                continue;
            }
            able += 1;
            if agent.refusal(job).is_some() {
                continue;
            }
            if job.affinity.avoid != Some(agent.id) {
                return Some(agent);
            }
            avoided = Some(agent);
        }
        if able == 0 {
            self.hopeless.insert(needs, true);
        }
        avoided
    }

    /// False when no agent with a free slot could do such a job.
    fn has_room_for(&mut self, job: &Waiting<'a>) -> bool {
        let (roster, view) = (&self.roster, &self.view);
        let hopeless = self
            .hopeless
            .entry(needs(job))
            .or_insert_with(|| !roster.with_room(job).filter_map(view).any(|agent| agent.could_do(job)));
        !*hopeless
    }
}

const fn needs<'a>(job: &Waiting<'a>) -> Needs<'a> {
    (job.project, job.adapter, job.requirements, job.contain)
}
