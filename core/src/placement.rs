//! Placement: which waiting job goes to which agent.
//!
//! Pure and cheap, because it is called on every dispatch. It decides on a view of the
//! fleet that the caller gives, and changes nothing; whether an agent then takes the job
//! is the agent's word. The caller keeps the queue and the counts of held and placed jobs.
//!
//! Two orders share every agent. Seven jobs of eight go by urgency: priority first, then
//! tasks take turns. The eighth is the one that has waited longest, whatever its priority.
//! So a job with `n` older ones before it is placed at the latest when an agent that fits it
//! has been given `8 * (n + 1)` jobs, however many more urgent ones keep coming.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use crate::fleet::AdapterInfo;
use crate::id::{AdapterName, AgentId, JobId, ProjectId, TaskId};
use crate::job::Affinity;
use crate::priority::Priority;
use crate::task::Labels;
use crate::time::Timestamp;

mod reason;
#[cfg(test)]
mod tests;

pub use reason::{nobody_can, why_waiting};

/// Of so many jobs that an agent is given, one is the oldest that it can do.
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
    /// How urgent its task is.
    pub priority: Priority,
    /// Jobs of its task that agents hold now, also for fairness.
    pub held: u32,
    /// The adapter it needs; `None` for a verify job.
    pub adapter: Option<&'a AdapterName>,
    /// The labels it needs: the task's and the session's together.
    pub requirements: &'a Labels,
    /// It must not start earlier.
    pub not_before: Timestamp,
    /// When it was queued.
    pub queued_at: Timestamp,
    /// True when it only takes what nobody else wants: it never goes before another job, and
    /// is never owed a place.
    pub spare: bool,
    /// Where it had best be: an agent to take if it is free, one to take only if no other is.
    pub affinity: Affinity,
}

/// Whether an agent takes new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It does.
    Open,
    /// Somebody said that it shall not, until they say otherwise.
    Cordoned,
    /// It finishes what it has, and leaves.
    Draining,
    /// It is known and not connected, and may come back.
    Away,
}

/// What placement sees of an agent.
#[derive(Debug, Clone, Copy)]
pub struct AgentView<'a> {
    /// The agent.
    pub id: AgentId,
    /// What people call it.
    pub name: &'a str,
    /// Jobs it could take now.
    pub free_slots: u32,
    /// Jobs it was given so far.
    pub placed: u64,
    /// Its labels.
    pub labels: &'a Labels,
    /// The only project it works for; `None` = any.
    pub project: Option<&'a ProjectId>,
    /// The adapters that work there.
    pub adapters: &'a BTreeSet<AdapterName>,
    /// All that it says of adapters, also of those that do not work.
    pub known: &'a [AdapterInfo],
    /// Whether it takes new work.
    pub availability: Availability,
}

/// What to offer now, and when to look again if nothing else happens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Placement {
    /// Offers, the first in line first.
    pub assignments: Vec<(JobId, AgentId)>,
    /// The earliest time at which a job that may not start yet may.
    pub next_wakeup: Option<Timestamp>,
}

impl AgentView<'_> {
    fn has_adapter(&self, job: &Waiting<'_>) -> bool {
        job.adapter.is_none_or(|adapter| self.adapters.contains(adapter))
    }

    fn has_labels(&self, job: &Waiting<'_>) -> bool {
        job.requirements
            .iter()
            .all(|(key, value)| self.labels.get(key) == Some(value))
    }

    fn serves(&self, job: &Waiting<'_>) -> bool {
        self.project.is_none_or(|project| project == job.project)
    }

    /// True when it can do the job once it takes work and has room.
    fn could_do(&self, job: &Waiting<'_>) -> bool {
        self.serves(job) && self.has_adapter(job) && self.has_labels(job)
    }

    fn fits(&self, job: &Waiting<'_>) -> bool {
        self.availability == Availability::Open && self.could_do(job)
    }
}

/// Places what can be placed.
///
/// `waiting` is in the order of the queue, the oldest first. The order is that of the module;
/// the task whose turn it is, is the one that would then hold the fewest jobs, and among
/// equals the job that was queued first. A job goes to the agent with the most free slots
/// among those that fit. One that nobody can take now stays behind and holds up no other.
pub fn place(waiting: &[Waiting<'_>], agents: &[AgentView<'_>], now: Timestamp) -> Placement {
    let mut placement = Placement::default();
    let mut fleet = Fleet::new(agents);
    let mut turns = HashMap::<TaskId, u32>::new();
    let mut urgent = Vec::new();
    let mut line = Line::default();
    for (index, job) in waiting.iter().enumerate() {
        if job.not_before > now {
            let earliest = placement
                .next_wakeup
                .map_or(job.not_before, |at| at.min(job.not_before));
            placement.next_wakeup = Some(earliest);
        } else if fleet.free > 0 && job.spare {
            urgent.push(Reverse((true, Reverse(job.priority), 0, job.queued_at, index)));
        } else if fleet.free > 0 {
            let turn = turns.entry(job.task).or_insert(job.held);
            urgent.push(Reverse((false, Reverse(job.priority), *turn, job.queued_at, index)));
            *turn = turn.saturating_add(1);
            line.jobs.push(index);
        }
    }
    // A heap, because most of a long queue is never looked at once the fleet is full.
    let mut urgent = BinaryHeap::from(urgent);
    let mut placed = vec![false; waiting.len()];
    while let Some(Reverse((_, _, _, _, index))) = urgent.pop() {
        if fleet.free == 0 {
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
            // Its own turn comes again once the oldest has what is due to it.
            let first = match fleet.owes_oldest(agent) {
                true => line.oldest(waiting, &placed, &agents[agent]).unwrap_or(index),
                false => index,
            };
            let Some(agent) = fleet.best(&waiting[first]) else {
                break;
            };
            fleet.give(agent);
            placed[first] = true;
            placement.assignments.push((waiting[first].job, agents[agent].id));
        }
    }
    placement
}

/// The jobs that may start, the oldest first.
#[derive(Default)]
struct Line {
    jobs: Vec<usize>,
    /// Everything before is placed.
    begin: usize,
}

impl Line {
    /// The oldest job that is not placed and that the agent can do.
    fn oldest(&mut self, waiting: &[Waiting<'_>], placed: &[bool], agent: &AgentView<'_>) -> Option<usize> {
        let gone = self.jobs[self.begin..].iter().take_while(|index| placed[**index]);
        self.begin += gone.count();
        let mut left = self.jobs[self.begin..].iter().copied();
        left.find(|index| !placed[*index] && agent.fits(&waiting[*index]))
    }
}

/// The free slots of the agents while jobs are placed.
struct Fleet<'a> {
    agents: &'a [AgentView<'a>],
    slots: Vec<u32>,
    given: Vec<u64>,
    /// The sum of `slots`.
    free: u64,
    /// Jobs with equal needs share a heap of the agents that fit them.
    pools: HashMap<(&'a ProjectId, Option<&'a AdapterName>, &'a Labels), Pool>,
}

/// Agents by free slots, then by position. An entry is stale when its agent has fewer slots
/// by now; it is then put back with what is left.
type Pool = BinaryHeap<(u32, Reverse<usize>)>;

impl<'a> Fleet<'a> {
    fn new(agents: &'a [AgentView<'a>]) -> Self {
        let slots: Vec<u32> = agents
            .iter()
            .map(|agent| match agent.availability {
                Availability::Open => agent.free_slots,
                Availability::Cordoned | Availability::Draining | Availability::Away => 0,
            })
            .collect();
        Self {
            agents,
            free: slots.iter().copied().map(u64::from).sum(),
            slots,
            given: agents.iter().map(|agent| agent.placed).collect(),
            pools: HashMap::new(),
        }
    }

    /// True when the next job of an agent is the oldest that it can do.
    fn owes_oldest(&self, agent: usize) -> bool {
        self.given[agent] % OLDEST_EVERY == OLDEST_EVERY - 1
    }

    fn give(&mut self, agent: usize) {
        self.slots[agent] -= 1;
        self.given[agent] = self.given[agent].wrapping_add(1);
        self.free -= 1;
    }

    /// Where a job had best go now.
    fn best(&mut self, job: &Waiting<'a>) -> Option<usize> {
        let preferred = job.affinity.prefer.and_then(|id| {
            let index = self.agents.iter().position(|agent| agent.id == id)?;
            (self.slots[index] > 0 && self.agents[index].fits(job)).then_some(index)
        });
        preferred.or_else(|| self.roomiest(job))
    }

    /// The agent that fits and has the most free slots; the one to avoid only if it is alone.
    fn roomiest(&mut self, job: &Waiting<'a>) -> Option<usize> {
        let (agents, slots) = (self.agents, &self.slots);
        let pool = self
            .pools
            .entry((job.project, job.adapter, job.requirements))
            .or_insert_with(|| {
                (0..agents.len())
                    .filter(|index| slots[*index] > 0 && agents[*index].fits(job))
                    .map(|index| (slots[index], Reverse(index)))
                    .collect()
            });
        let first = freshest(pool, slots)?;
        if job.affinity.avoid != Some(agents[first].id) {
            return Some(first);
        }
        let aside = pool.pop();
        let second = freshest(pool, slots);
        pool.extend(aside);
        second.or(Some(first))
    }
}

/// The index at the top of the pool, after stale entries are put right. It stays in the pool.
fn freshest(pool: &mut Pool, slots: &[u32]) -> Option<usize> {
    while let Some(mut top) = pool.peek_mut() {
        let (recorded, Reverse(index)) = *top;
        if slots[index] == recorded {
            return Some(index);
        }
        if slots[index] == 0 {
            std::collections::binary_heap::PeekMut::pop(top);
        } else {
            top.0 = slots[index];
        }
    }
    None
}
