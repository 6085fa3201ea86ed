//! Placement compared with its rules word by word, which walk every agent for every job, and the
//! roster compared with a new one.

use proptest::prelude::*;

use super::*;

fn fits(agent: &AgentView<'_>, job: &Waiting<'_>) -> bool {
    agent.availability == Availability::Open
        && agent.contained.tier >= job.contain
        && agent.could_do(job)
        && job.refusals.iter().all(|refusal| refusal.agent != agent.id)
}

/// The rules of [`place`] without lists and heaps.
fn naive(waiting: &[Waiting<'_>], agents: &[AgentView<'_>]) -> Vec<(JobId, AgentId)> {
    let mut slots: Vec<u32> = agents.iter().map(|agent| agent.free_slots).collect();
    let mut given: Vec<u64> = agents.iter().map(|agent| agent.placed).collect();
    let best = |job: &Waiting<'_>, slots: &[u32]| {
        (0..agents.len())
            .filter(|agent| slots[*agent] > 0 && fits(&agents[*agent], job))
            .max_by_key(|agent| {
                let id = Some(agents[*agent].id);
                let wanted = job.affinity.prefer == id;
                let unwanted = job.affinity.avoid == id;
                (wanted, !unwanted, slots[*agent], Reverse(*agent))
            })
    };
    let mut queue: Vec<_> = waiting
        .iter()
        .enumerate()
        .filter(|(_, job)| job.not_before <= NOW)
        .map(|(index, job)| {
            let before = waiting[..index]
                .iter()
                .filter(|other| other.task == job.task && other.not_before <= NOW && !other.spare)
                .count();
            let turn = job.held + u32::try_from(before).unwrap();
            let turn = if job.spare { 0 } else { turn };
            (job.spare, Reverse(job.priority), turn, job.queued_at, index)
        })
        .collect();
    queue.sort_unstable();
    let mut assignments = Vec::new();
    // The first in the queue that any agent can take, unless an older one is due there.
    while let Some((place, agent)) =
        (0..queue.len()).find_map(|place| Some((place, best(&waiting[queue[place].4], &slots)?)))
    {
        let due = given[agent] % OLDEST_EVERY == OLDEST_EVERY - 1;
        let oldest = (0..queue.len())
            .filter(|place| !queue[*place].0 && fits(&agents[agent], &waiting[queue[*place].4]))
            .min_by_key(|place| queue[*place].4);
        let place = oldest.filter(|_| due).unwrap_or(place);
        let index = queue.remove(place).4;
        let agent = best(&waiting[index], &slots).unwrap();
        slots[agent] -= 1;
        given[agent] += 1;
        assignments.push((waiting[index].job, agents[agent].id));
    }
    assignments
}

/// A job as properties draw it.
#[derive(Debug, Clone)]
struct DrawnJob {
    task: u128,
    codex: bool,
    linux: bool,
    contain: Tier,
    later: bool,
    elsewhere: bool,
    spare: bool,
    queued: u64,
    prefer: Option<u128>,
    avoid: Option<u128>,
    refusals: Vec<Refusal<'static>>,
    priority: i32,
}

/// Mostly none at all, as with most tasks and agents.
fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![3 => Just(Tier::T0), 1 => prop::sample::select(Tier::ALL.to_vec())]
}

fn refusal() -> impl Strategy<Value = Refusal<'static>> {
    (0..8_u128).prop_map(|n| Refusal {
        agent: agent_id(n),
        reason: "no",
    })
}

fn drawn_job() -> impl Strategy<Value = DrawnJob> {
    let wishes = (
        prop::option::of(0..8_u128),
        prop::option::of(0..8_u128),
        prop::collection::vec(refusal(), 0..3),
    );
    (0..4_u128, any::<[bool; 5]>(), 0..3_u64, wishes, (-1..2_i32, tier())).prop_map(
        |(task, flags, queued, (prefer, avoid, refusals), (priority, contain))| {
            let [codex, linux, later, elsewhere, spare] = flags;
            DrawnJob {
                task,
                codex,
                linux,
                contain,
                later,
                elsewhere,
                spare,
                queued,
                prefer,
                avoid,
                refusals,
                priority,
            }
        },
    )
}

/// An agent as properties draw it, without its id, which is its index.
#[derive(Debug, Clone)]
struct DrawnAgent {
    slots: u32,
    /// The slots that codex has of its own, and how many jobs it was given in them.
    own: Option<(u32, u64)>,
    placed: u64,
    codex: bool,
    linux: bool,
    contained: Containment,
    open: bool,
    checks: bool,
    bound: Option<bool>,
}

fn drawn_agent() -> impl Strategy<Value = DrawnAgent> {
    let own = prop::option::of((0..4_u32, 0..20_u64));
    (
        0..5_u32,
        own,
        0..20_u64,
        any::<[bool; 4]>(),
        (any::<Option<bool>>(), tier()),
    )
        .prop_map(
            |(slots, own, placed, [codex, linux, open, checks], (bound, tier))| DrawnAgent {
                slots,
                own,
                placed,
                codex,
                linux,
                contained: Containment {
                    tier,
                    short_of: String::new(),
                },
                open,
                checks,
                bound,
            },
        )
}

struct World {
    needs: Needs,
    other: ProjectId,
}

impl World {
    fn new() -> Self {
        Self {
            needs: Needs::new(),
            other: "other".parse().unwrap(),
        }
    }

    fn job<'a>(&'a self, n: u128, drawn: &'a DrawnJob) -> Waiting<'a> {
        Waiting {
            held: u32::try_from(drawn.task).unwrap(),
            priority: drawn.priority.try_into().unwrap(),
            project: self.project(drawn.elsewhere),
            adapter: drawn.codex.then_some(&self.needs.codex),
            requirements: self.labels(drawn.linux),
            contain: drawn.contain,
            not_before: if drawn.later { at(NOW.as_millis() + 1) } else { NOW },
            queued_at: at(drawn.queued),
            spare: drawn.spare,
            affinity: Affinity {
                prefer: drawn.prefer.map(agent_id),
                avoid: drawn.avoid.map(agent_id),
            },
            refusals: &drawn.refusals,
            ..self.needs.job(n, drawn.task)
        }
    }

    /// The lanes of an agent.
    fn agent<'a>(&'a self, n: u128, drawn: &'a DrawnAgent) -> Vec<AgentView<'a>> {
        let own = drawn.own.filter(|_| drawn.codex);
        let slots = AgentView {
            adapters: if drawn.codex && own.is_none() {
                &self.needs.both
            } else {
                &self.needs.claude
            },
            labels: self.labels(drawn.linux),
            project: drawn.bound.map(|elsewhere| self.project(elsewhere)),
            can: if drawn.checks {
                Capabilities::ALL
            } else {
                Capabilities::RUN
            },
            availability: if drawn.open {
                Availability::Open
            } else {
                Availability::Draining
            },
            contained: &drawn.contained,
            placed: drawn.placed,
            ..self.needs.agent(n, "x", drawn.slots)
        };
        let own = own.map(|(free_slots, placed)| AgentView {
            lane: Lane::SLOTS.next(),
            adapters: &self.needs.only_codex,
            free_slots,
            placed,
            ..slots
        });
        [slots].into_iter().chain(own).collect()
    }

    /// The lanes of all agents.
    fn agents<'a>(&'a self, fleet: &'a [DrawnAgent]) -> Vec<AgentView<'a>> {
        let lanes = fleet.iter().zip(0..).flat_map(|(agent, n)| self.agent(n, agent));
        lanes.collect()
    }

    const fn project(&self, elsewhere: bool) -> &ProjectId {
        if elsewhere { &self.other } else { &self.needs.project }
    }

    const fn labels(&self, linux: bool) -> &Labels {
        if linux { &self.needs.linux } else { &self.needs.none }
    }
}

/// A change of an agent: its description, or only its free slots and availability.
type Change = (usize, bool, DrawnAgent);

proptest! {
    /// Holds after any changes of the fleet too; the roster then equals one made from the changed
    /// fleet.
    #[test]
    fn places_as_the_naive_rules_do(
        jobs in prop::collection::vec(drawn_job(), 0..40),
        mut fleet in prop::collection::vec(drawn_agent(), 0..8),
        changes in prop::collection::vec((0..8_usize, any::<bool>(), drawn_agent()), 0..12),
    ) {
        let world = World::new();
        let mut waiting: Vec<_> = jobs.iter().zip(1..).map(|(job, n)| world.job(n, job)).collect();
        waiting.sort_by_key(|job| job.queued_at);
        let mut roster = roster_of(&world.agents(&fleet));
        let inside = |(place, _, _): &Change| *place < fleet.len();
        let changes: Vec<Change> = changes.into_iter().filter(inside).collect();
        for (place, anew, drawn) in changes {
            let (n, agent) = (place as u128, &mut fleet[place]);
            if anew {
                *agent = drawn;
                roster.list(agent_id(n), world.agent(n, agent));
            } else {
                (agent.slots, agent.placed, agent.open) = (drawn.slots, drawn.placed, drawn.open);
                if let (Some(own), Some(drawn)) = (&mut agent.own, drawn.own) {
                    *own = drawn;
                }
                world.agent(n, agent).iter().for_each(|lane| roster.note(lane));
            }
        }
        let mut agents = world.agents(&fleet);
        prop_assert_eq!(&roster, &roster_of(&agents));

        let placement = place(&waiting, &mut roster, |seat| find(&agents, seat), NOW);
        prop_assert_eq!(&placement.assignments, &naive(&waiting, &agents));
        let later = waiting.iter().any(|job| job.not_before > NOW);
        prop_assert_eq!(placement.next_wakeup.is_some(), later);

        for (job, given) in &placement.assignments {
            let job = waiting.iter().find(|waiting| waiting.job == *job).unwrap();
            let lane = |agent: &&mut AgentView<'_>| agent.id == *given && agent.could_do(job);
            let agent = agents.iter_mut().find(lane).unwrap();
            agent.free_slots -= 1;
            agent.placed += 1;
        }
        prop_assert_eq!(&roster, &roster_of(&agents));
    }

    /// A spare job takes only capacity that no other job would have got.
    #[test]
    fn a_spare_job_is_in_nobodys_way(
        jobs in prop::collection::vec(drawn_job(), 0..30),
        fleet in prop::collection::vec((0..5_u32, 0..20_u64), 0..4),
    ) {
        let world = World::new();
        let mut waiting: Vec<_> = jobs
            .iter()
            .zip(1..)
            .map(|(job, n)| Waiting {
                adapter: (job.codex && !job.spare).then_some(&world.needs.codex),
                requirements: &world.needs.none,
                contain: Tier::T0,
                not_before: NOW,
                refusals: &[],
                ..world.job(n, job)
            })
            .collect();
        waiting.sort_by_key(|job| job.queued_at);
        let agents: Vec<_> = fleet
            .iter()
            .zip(0..)
            .map(|((slots, placed), n)| AgentView {
                adapters: &world.needs.both,
                placed: *placed,
                ..world.needs.agent(n, "x", *slots)
            })
            .collect();
        let (spare, plain): (Vec<_>, Vec<_>) = waiting.iter().copied().partition(|job| job.spare);
        let together = place_on(&waiting, &agents).assignments;
        let alone = place_on(&plain, &agents).assignments;
        prop_assert_eq!(&together[..alone.len()], &alone[..]);
        let room: u32 = fleet.iter().map(|(slots, _)| *slots).sum();
        let left = (room as usize - alone.len()).min(spare.len());
        prop_assert_eq!(together.len() - alone.len(), left);
    }

    /// Every agent that could do a job is among its candidates.
    #[test]
    fn candidates_leave_nobody_out(
        job in drawn_job(),
        fleet in prop::collection::vec(drawn_agent(), 0..8),
    ) {
        let world = World::new();
        let job = world.job(1, &job);
        let mut roster = Roster::default();
        for (agent, n) in fleet.iter().zip(0..) {
            roster.list(agent_id(n), world.agent(n, agent));
        }
        let candidates: Vec<_> = roster.candidates(&job).collect();
        for view in fleet.iter().zip(0..).flat_map(|(agent, n)| world.agent(n, agent)) {
            let found = candidates.iter().filter(|seat| **seat == view.seat()).count();
            prop_assert!(found <= 1 && (found == 1 || !view.could_do(&job)), "{view:?}");
        }
    }

    /// However many more urgent jobs keep coming, and whatever the agents do in between.
    #[test]
    fn no_job_waits_for_ever(
        first in prop::collection::vec(drawn_job(), 1..8),
        rounds in prop::collection::vec((prop::collection::vec(drawn_job(), 0..6), 1..3_u32), 1..60),
    ) {
        let world = World::new();
        let needs = &world.needs;
        let drawn = |drawn, n: u128, queued| Waiting {
            // Later tasks hold nothing yet: by turns alone they would always go first.
            held: if n < 100 { 9 } else { 0 },
            not_before: NOW,
            spare: false,
            queued_at: at(queued),
            refusals: &[],
            ..world.job(n, drawn)
        };
        let mut given = [0_u64; 3];
        let mut queue: Vec<_> = first.iter().zip(1..).map(|(job, n)| drawn(job, n, 0)).collect();
        let watched = queue.clone();
        let mut came = 100;
        for ((more, slots), round) in rounds.iter().zip(1..) {
            for job in more {
                came += 1;
                queue.push(drawn(job, came, round));
            }
            let agent = |n: usize, adapters, labels| AgentView {
                placed: given[n],
                adapters,
                labels,
                ..needs.agent(n as u128, "x", if n == 0 { *slots } else { slots - 1 })
            };
            let agents = [
                agent(0, &needs.both, &needs.linux),
                agent(1, &needs.both, &needs.none),
                agent(2, &needs.claude, &needs.none),
            ];
            for (job, agent) in place_on(&queue, &agents).assignments {
                queue.retain(|waiting| waiting.job != job);
                given[agents.iter().position(|view| view.id == agent).unwrap()] += 1;
            }
            for (older, job) in watched.iter().enumerate() {
                if queue.iter().any(|waiting| waiting.job == job.job) {
                    for (view, given) in agents.iter().zip(given) {
                        let bound = OLDEST_EVERY * (older as u64 + 1);
                        prop_assert!(!view.could_do(job) || given < bound, "job {older} still waits after {given}");
                    }
                }
            }
        }
    }
}
