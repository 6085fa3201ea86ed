//! Placement: which waiting job goes to which agent, and why one still waits.
//!
//! Pure and cheap, because it is called on every dispatch. It decides on a view of the
//! fleet that the caller gives, and changes nothing; whether an agent then takes the job
//! is the agent's word. The caller keeps the queue and the count of held jobs.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::Duration;

use crate::id::{AdapterName, AgentId, JobId, TaskId};
use crate::job::Affinity;
use crate::task::Labels;
use crate::time::Timestamp;

/// A job that waits for an agent.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// The job.
    pub job: JobId,
    /// Its task, for fairness.
    pub task: TaskId,
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

    fn fits(&self, job: &Waiting<'_>) -> bool {
        !self.draining && self.has_adapter(job) && self.has_labels(job)
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
    pools: HashMap<(Option<&'a AdapterName>, &'a Labels), Pool>,
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
        let pool = self.pools.entry((job.adapter, job.requirements)).or_insert_with(|| {
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
    let with_adapter: Vec<_> = agents.iter().filter(|agent| agent.has_adapter(job)).collect();
    if let (Some(adapter), true) = (job.adapter, with_adapter.is_empty()) {
        let known: BTreeSet<&str> = agents
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

/// Rounded up, so that nobody is told "in 0 s".
fn in_words(wait: Duration) -> String {
    let seconds = wait.as_millis().div_ceil(1000);
    if seconds < 120 {
        format!("{seconds} s")
    } else {
        format!("{} min", seconds.div_ceil(60))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(100_000);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn agent_id(n: u128) -> AgentId {
        AgentId::from_random(n)
    }

    /// What views and waiting jobs borrow from.
    struct Needs {
        codex: AdapterName,
        none: Labels,
        linux: Labels,
        both: BTreeSet<AdapterName>,
        claude: BTreeSet<AdapterName>,
        no_adapter: BTreeSet<AdapterName>,
    }

    impl Needs {
        fn new() -> Self {
            let name = |text: &str| text.parse::<AdapterName>().unwrap();
            Self {
                codex: name("codex"),
                none: Labels::new(),
                linux: Labels::from([("os".to_owned(), "linux".to_owned())]),
                both: [name("codex"), name("claude-code")].into(),
                claude: [name("claude-api"), name("claude-code")].into(),
                no_adapter: BTreeSet::new(),
            }
        }

        fn job(&self, n: u128, task: u128) -> Waiting<'_> {
            Waiting {
                job: JobId::from_random(n),
                task: TaskId::from_random(task),
                held: 0,
                adapter: None,
                requirements: &self.none,
                not_before: at(0),
                queued_at: at(0),
                affinity: Affinity::default(),
            }
        }

        fn agent<'a>(&'a self, n: u128, name: &'a str, free_slots: u32) -> AgentView<'a> {
            AgentView {
                id: agent_id(n),
                name,
                free_slots,
                labels: &self.none,
                adapters: &self.no_adapter,
                draining: false,
            }
        }
    }

    /// The numbers of jobs and agents, in the order of the offers.
    fn placed(waiting: &[Waiting<'_>], agents: &[AgentView<'_>]) -> Vec<(u128, u128)> {
        let number = |text: String| u128::from_str_radix(&text, 16).unwrap();
        place(waiting, agents, NOW)
            .assignments
            .into_iter()
            .map(|(job, agent)| (number(job.to_string()), number(agent.to_string())))
            .collect()
    }

    #[test]
    fn jobs_spread_over_agents_by_free_slots() {
        let needs = Needs::new();
        let jobs: Vec<_> = (1..=5).map(|n| needs.job(n, 1)).collect();
        let agents = [needs.agent(1, "a", 1), needs.agent(2, "b", 3)];
        assert_eq!(placed(&jobs, &agents), [(1, 2), (2, 2), (3, 1), (4, 2)]);
    }

    #[test]
    fn tasks_take_turns_and_what_they_hold_counts() {
        let needs = Needs::new();
        let agents = [needs.agent(1, "a", 4)];
        let first = |n| needs.job(n, 1);
        let second = |n| Waiting {
            queued_at: at(50),
            ..needs.job(n, 2)
        };
        let jobs = [first(1), first(2), first(3), second(11), second(12)];
        assert_eq!(placed(&jobs, &agents), [(1, 1), (11, 1), (2, 1), (12, 1)]);

        let mut jobs = jobs;
        for job in &mut jobs[..3] {
            job.held = 2;
        }
        assert_eq!(placed(&jobs, &agents), [(11, 1), (12, 1), (1, 1), (2, 1)]);
    }

    #[test]
    fn a_job_that_nobody_takes_holds_up_no_other() {
        let needs = Needs::new();
        let codex = Waiting {
            adapter: Some(&needs.codex),
            ..needs.job(1, 1)
        };
        let linux = Waiting {
            requirements: &needs.linux,
            ..needs.job(2, 1)
        };
        let agents = [needs.agent(1, "a", 2)];
        assert_eq!(placed(&[codex, linux, needs.job(3, 1)], &agents), [(3, 1)]);

        let able = AgentView {
            adapters: &needs.both,
            labels: &needs.linux,
            ..agents[0]
        };
        assert_eq!(placed(&[codex, linux, needs.job(3, 1)], &[able]), [(1, 1), (2, 1)]);
        let draining = AgentView { draining: true, ..able };
        assert_eq!(placed(&[codex, linux, needs.job(3, 1)], &[draining]), []);
    }

    #[test]
    fn wishes_are_followed_when_they_can_be() {
        let needs = Needs::new();
        let wish = |prefer: Option<u128>, avoid: Option<u128>| Waiting {
            affinity: Affinity {
                prefer: prefer.map(agent_id),
                avoid: avoid.map(agent_id),
            },
            requirements: &needs.linux,
            ..needs.job(1, 1)
        };
        // Agents 1 and 2 fit, 3 does not.
        let cases = [
            ((3, 1), wish(None, None), 1),
            ((3, 1), wish(None, Some(1)), 2),
            ((3, 0), wish(None, Some(1)), 1),
            ((3, 1), wish(Some(2), None), 2),
            ((3, 0), wish(Some(2), None), 1),
            ((3, 1), wish(Some(3), None), 1),
            ((3, 1), wish(Some(9), Some(9)), 1),
        ];
        for ((first, second), job, expected) in cases {
            let fits = |n, name, slots| AgentView {
                labels: &needs.linux,
                ..needs.agent(n, name, slots)
            };
            let agents = [fits(1, "a", first), fits(2, "b", second), needs.agent(3, "c", 9)];
            assert_eq!(placed(&[job], &agents), [(1, expected)], "{:?}", job.affinity);
        }
    }

    #[test]
    fn jobs_that_may_not_start_wake_the_caller_even_when_all_is_full() {
        let needs = Needs::new();
        let later = |n, millis| Waiting {
            not_before: at(millis),
            ..needs.job(n, 1)
        };
        let jobs = [later(1, 130_000), later(2, 120_000), later(3, 100_000)];
        for (slots, offers) in [(0, 0), (5, 1)] {
            let placement = place(&jobs, &[needs.agent(1, "a", slots)], NOW);
            assert_eq!(placement.next_wakeup, Some(at(120_000)));
            assert_eq!(placement.assignments.len(), offers);
        }
        assert_eq!(place(&[], &[], NOW), Placement::default());
    }

    #[test]
    fn waiting_is_explained_honestly() {
        let needs = Needs::new();
        let codex = Waiting {
            adapter: Some(&needs.codex),
            ..needs.job(1, 1)
        };
        let later = |millis| Waiting {
            not_before: at(millis),
            ..codex
        };
        let linux = Waiting {
            requirements: &needs.linux,
            ..codex
        };
        let able = |n, name, slots| AgentView {
            adapters: &needs.both,
            ..needs.agent(n, name, slots)
        };
        let claude = AgentView {
            adapters: &needs.claude,
            ..needs.agent(9, "c", 4)
        };
        let drains = |n, name| AgentView {
            draining: true,
            ..able(n, name, 2)
        };
        let cases = [
            (later(111_001), vec![], "tries again in 12 s"),
            (later(100_001), vec![able(1, "a", 1)], "tries again in 1 s"),
            (later(400_000), vec![], "tries again in 5 min"),
            (codex, vec![], "no agent is connected"),
            (
                codex,
                vec![claude],
                "no agent has the adapter codex; the fleet has claude-api, claude-code",
            ),
            (
                codex,
                vec![needs.agent(1, "a", 1)],
                "no agent has the adapter codex; the fleet has none at all",
            ),
            (
                linux,
                vec![able(1, "a", 1)],
                "no agent fits: it waits for an agent with codex and os=linux",
            ),
            (
                codex,
                vec![able(1, "a", 0), claude],
                "waits for an agent with codex; only a has it, and is full",
            ),
            (
                codex,
                vec![able(1, "a", 0), able(2, "b", 0), claude],
                "waits for an agent with codex; two have it, both full",
            ),
            (
                codex,
                vec![able(1, "a", 0), able(2, "b", 0), able(3, "c", 0)],
                "waits for an agent with codex; three have it, all full",
            ),
            (
                codex,
                vec![drains(1, "a")],
                "waits for an agent with codex; only a has it, and takes no new jobs",
            ),
            (
                codex,
                vec![drains(1, "a"), drains(2, "b")],
                "waits for an agent with codex; two have it, and take no new jobs",
            ),
            (
                codex,
                vec![able(1, "a", 1)],
                "waits for an agent with codex; its turn comes next",
            ),
            (
                needs.job(1, 1),
                vec![able(1, "a", 0), able(2, "b", 0)],
                "waits for any agent; two are connected, both full",
            ),
        ];
        for (job, agents, text) in cases {
            assert_eq!(why_waiting(&job, &agents, NOW), text);
        }
    }

    /// The rules of [`place`] word by word, without heaps.
    fn naive(waiting: &[Waiting<'_>], agents: &[AgentView<'_>]) -> Vec<(JobId, AgentId)> {
        let mut slots: Vec<u32> = agents.iter().map(|agent| agent.free_slots).collect();
        let mut queue: Vec<_> = waiting
            .iter()
            .enumerate()
            .filter(|(_, job)| job.not_before <= NOW)
            .map(|(index, job)| {
                let before = waiting[..index]
                    .iter()
                    .filter(|other| other.task == job.task && other.not_before <= NOW)
                    .count();
                (job.held + u32::try_from(before).unwrap(), job.queued_at, index)
            })
            .collect();
        queue.sort_unstable();
        let mut assignments = Vec::new();
        for (_, _, index) in queue {
            let job = &waiting[index];
            let best = (0..agents.len())
                .filter(|agent| slots[*agent] > 0 && agents[*agent].fits(job))
                .max_by_key(|agent| {
                    let id = Some(agents[*agent].id);
                    let wanted = job.affinity.prefer == id;
                    let unwanted = job.affinity.avoid == id;
                    (wanted, !unwanted, slots[*agent], Reverse(*agent))
                });
            if let Some(best) = best {
                slots[best] -= 1;
                assignments.push((job.job, agents[best].id));
            }
        }
        assignments
    }

    proptest! {
        #[test]
        fn places_as_the_naive_rules_do(
            jobs in prop::collection::vec((0..4_u128, any::<[bool; 3]>(), 0..3_u64, prop::option::of(0..5_u128), prop::option::of(0..5_u128)), 0..40),
            fleet in prop::collection::vec((0..5_u32, any::<[bool; 3]>()), 0..5),
        ) {
            let needs = Needs::new();
            let mut waiting: Vec<_> = jobs
                .iter()
                .zip(1..)
                .map(|((task, [codex, linux, later], queued, prefer, avoid), n)| Waiting {
                    held: u32::try_from(*task).unwrap(),
                    adapter: codex.then_some(&needs.codex),
                    requirements: if *linux { &needs.linux } else { &needs.none },
                    not_before: if *later { at(NOW.as_millis() + 1) } else { NOW },
                    queued_at: at(*queued),
                    affinity: Affinity { prefer: prefer.map(agent_id), avoid: avoid.map(agent_id) },
                    ..needs.job(n, *task)
                })
                .collect();
            waiting.sort_by_key(|job| job.queued_at);
            let agents: Vec<_> = fleet
                .iter()
                .zip(0..)
                .map(|((slots, [codex, linux, draining]), n)| AgentView {
                    adapters: if *codex { &needs.both } else { &needs.claude },
                    labels: if *linux { &needs.linux } else { &needs.none },
                    draining: *draining,
                    ..needs.agent(n, "x", *slots)
                })
                .collect();
            let placement = place(&waiting, &agents, NOW);
            prop_assert_eq!(&placement.assignments, &naive(&waiting, &agents));
            let later = waiting.iter().any(|job| job.not_before > NOW);
            prop_assert_eq!(placement.next_wakeup.is_some(), later);
        }
    }
}
