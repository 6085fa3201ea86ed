//! Placement: which waiting job goes to which agent, and why one still waits.
//!
//! Pure and cheap, because it is called on every dispatch. It decides on a view of the
//! fleet that the caller gives, and changes nothing; whether an agent then takes the job
//! is the agent's word. The caller keeps the queue and the count of held jobs.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use crate::id::{AdapterName, AgentId, JobId, ProjectId, TaskId};
use crate::job::Affinity;
use crate::task::Labels;
use crate::time::{Timestamp, in_words};

#[cfg(test)]
mod tests;

/// A job that waits for an agent.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// The job.
    pub job: JobId,
    /// Its task, for fairness.
    pub task: TaskId,
    /// Its project.
    pub project: &'a ProjectId,
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
    /// Where it had best be: an agent to take if it is free, one to take only if no other is.
    pub affinity: Affinity,
}

/// What placement sees of a connected agent.
#[derive(Debug, Clone, Copy)]
pub struct AgentView<'a> {
    /// The agent.
    pub id: AgentId,
    /// What people call it.
    pub name: &'a str,
    /// Jobs it could take now.
    pub free_slots: u32,
    /// Its labels.
    pub labels: &'a Labels,
    /// The only project it works for; `None` = any.
    pub project: Option<&'a ProjectId>,
    /// The adapters that work there.
    pub adapters: &'a BTreeSet<AdapterName>,
    /// It takes no new jobs.
    pub draining: bool,
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

    fn fits(&self, job: &Waiting<'_>) -> bool {
        !self.draining && self.serves(job) && self.has_adapter(job) && self.has_labels(job)
    }
}

/// Places what can be placed.
///
/// `waiting` is in the order of the queue. Tasks take turns: the task that would then hold
/// the fewest jobs goes first, and among equals the job that was queued first. A job goes to
/// the agent with the most free slots among those that fit. One that nobody can take now
/// stays behind and holds up no other.
pub fn place(waiting: &[Waiting<'_>], agents: &[AgentView<'_>], now: Timestamp) -> Placement {
    let mut placement = Placement::default();
    let mut fleet = Fleet::new(agents);
    let mut turns = HashMap::<TaskId, u32>::new();
    let mut queue = Vec::new();
    for (index, job) in waiting.iter().enumerate() {
        if job.not_before > now {
            let earliest = placement
                .next_wakeup
                .map_or(job.not_before, |at| at.min(job.not_before));
            placement.next_wakeup = Some(earliest);
        } else if fleet.free > 0 {
            let turn = turns.entry(job.task).or_insert(job.held);
            queue.push(Reverse((*turn, job.queued_at, index)));
            *turn = turn.saturating_add(1);
        }
    }
    // A heap, because most of a long queue is never looked at once the fleet is full.
    let mut queue = BinaryHeap::from(queue);
    while let Some(Reverse((_, _, index))) = queue.pop() {
        if fleet.free == 0 {
            break;
        }
        let job = &waiting[index];
        if let Some(agent) = fleet.take(job) {
            placement.assignments.push((job.job, agent));
        }
    }
    placement
}

/// The free slots of the agents while jobs are placed.
struct Fleet<'a> {
    agents: &'a [AgentView<'a>],
    slots: Vec<u32>,
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
            .map(|agent| if agent.draining { 0 } else { agent.free_slots })
            .collect();
        Self {
            agents,
            free: slots.iter().copied().map(u64::from).sum(),
            slots,
            pools: HashMap::new(),
        }
    }

    fn take(&mut self, job: &Waiting<'a>) -> Option<AgentId> {
        let preferred = job.affinity.prefer.and_then(|id| {
            let index = self.agents.iter().position(|agent| agent.id == id)?;
            (self.slots[index] > 0 && self.agents[index].fits(job)).then_some(index)
        });
        let index = match preferred {
            Some(index) => index,
            None => self.roomiest(job)?,
        };
        self.slots[index] -= 1;
        self.free -= 1;
        Some(self.agents[index].id)
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

/// Says why a job waits, for the person who asks.
#[must_use]
pub fn why_waiting(job: &Waiting<'_>, agents: &[AgentView<'_>], now: Timestamp) -> String {
    if job.not_before > now {
        return format!("tries again in {}", in_words(job.not_before.since(now)));
    }
    if agents.is_empty() {
        return "no agent is connected".to_owned();
    }
    let serving: Vec<_> = agents.iter().filter(|agent| agent.serves(job)).collect();
    if serving.is_empty() {
        return format!("no agent that is connected works for project {}", job.project);
    }
    let with_adapter: Vec<_> = serving.iter().copied().filter(|agent| agent.has_adapter(job)).collect();
    if let (Some(adapter), true) = (job.adapter, with_adapter.is_empty()) {
        let known: BTreeSet<&str> = serving
            .iter()
            .flat_map(|agent| agent.adapters.iter().map(AdapterName::as_str))
            .collect();
        let known = if known.is_empty() {
            "none at all".to_owned()
        } else {
            known.into_iter().collect::<Vec<_>>().join(", ")
        };
        return format!("no agent has the adapter {adapter}; the fleet has {known}");
    }
    let wanted = wanted(job);
    let fitting: Vec<_> = with_adapter.into_iter().filter(|agent| agent.has_labels(job)).collect();
    if fitting.is_empty() {
        return format!("no agent fits: it waits for {wanted}");
    }
    let taking: Vec<_> = fitting.iter().filter(|agent| !agent.draining).collect();
    let full = taking.iter().all(|agent| agent.free_slots == 0);
    let (has, have) = if job.adapter.is_none() && job.requirements.is_empty() {
        ("is connected", "are connected")
    } else {
        ("has it", "have it")
    };
    let state = match (taking.as_slice(), full) {
        ([], _) => match fitting.as_slice() {
            [only] => format!("only {} {has}, and takes no new jobs", only.name),
            several => format!("{} {have}, and take no new jobs", count(several.len())),
        },
        ([only], true) => format!("only {} {has}, and is full", only.name),
        ([_, _], true) => format!("two {have}, both full"),
        (several, true) => format!("{} {have}, all full", count(several.len())),
        (_, false) => "its turn comes next".to_owned(),
    };
    format!("waits for {wanted}; {state}")
}

/// "an agent with codex and os=linux".
fn wanted(job: &Waiting<'_>) -> String {
    let adapter = job.adapter.map(ToString::to_string);
    let labels = job.requirements.iter().map(|(key, value)| format!("{key}={value}"));
    let needs: Vec<String> = adapter.into_iter().chain(labels).collect();
    if needs.is_empty() {
        "any agent".to_owned()
    } else {
        format!("an agent with {}", needs.join(" and "))
    }
}

fn count(n: usize) -> String {
    match n {
        2 => "two".to_owned(),
        3 => "three".to_owned(),
        4 => "four".to_owned(),
        _ => n.to_string(),
    }
}
