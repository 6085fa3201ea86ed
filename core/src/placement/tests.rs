//! Placement as tables; `naive` compares it with its rules, written without lists and heaps.

use super::*;

mod naive;

const NOW: Timestamp = Timestamp::from_millis(100_000);

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn agent_id(n: u128) -> AgentId {
    AgentId::from_random(n)
}

/// Owner of the data that views and waiting jobs borrow.
struct Needs {
    project: ProjectId,
    codex: AdapterName,
    none: Labels,
    linux: Labels,
    both: BTreeSet<AdapterName>,
    claude: BTreeSet<AdapterName>,
    only_codex: BTreeSet<AdapterName>,
    no_adapter: BTreeSet<AdapterName>,
    bare: Containment,
}

impl Needs {
    fn new() -> Self {
        let name = |text: &str| text.parse::<AdapterName>().unwrap();
        Self {
            project: ProjectId::default(),
            codex: name("codex"),
            none: Labels::new(),
            linux: Labels::from([("os".to_owned(), "linux".to_owned())]),
            both: [name("codex"), name("claude-code")].into(),
            claude: [name("claude-api"), name("claude-code")].into(),
            only_codex: [name("codex")].into(),
            no_adapter: BTreeSet::new(),
            bare: Containment::NOTHING,
        }
    }

    fn job(&self, n: u128, task: u128) -> Waiting<'_> {
        Waiting {
            job: JobId::from_random(n),
            task: TaskId::from_random(task),
            project: &self.project,
            priority: Priority::NORMAL,
            held: 0,
            adapter: None,
            requirements: &self.none,
            contain: Tier::T0,
            not_before: at(0),
            queued_at: at(0),
            spare: false,
            affinity: Affinity::default(),
            refusals: &[],
        }
    }

    fn agent<'a>(&'a self, n: u128, name: &'a str, free_slots: u32) -> AgentView<'a> {
        AgentView {
            id: agent_id(n),
            lane: Lane::SLOTS,
            name,
            free_slots,
            placed: 0,
            labels: &self.none,
            project: None,
            adapters: &self.no_adapter,
            known: &[],
            can: Capabilities::ALL,
            contained: &self.bare,
            availability: Availability::Open,
        }
    }
}

/// Places on a roster that is made for the call.
fn place_on<'a>(waiting: &[Waiting<'a>], agents: &[AgentView<'a>]) -> Placement {
    let mut roster = roster_of(agents);
    place(waiting, &mut roster, |seat| find(agents, seat), NOW)
}

/// The roster of agents whose lanes stand beside each other.
fn roster_of(agents: &[AgentView<'_>]) -> Roster {
    let mut roster = Roster::default();
    for lanes in agents.chunk_by(|one, other| one.id == other.id) {
        roster.list(lanes[0].id, lanes.iter().copied());
    }
    roster
}

fn find<'a>(agents: &[AgentView<'a>], seat: Seat) -> Option<AgentView<'a>> {
    agents.iter().copied().find(|agent| agent.seat() == seat)
}

/// The numbers of jobs and agents, in the order of the offers.
fn placed(waiting: &[Waiting<'_>], agents: &[AgentView<'_>]) -> Vec<(u128, u128)> {
    let number = |text: String| u128::from_str_radix(&text, 16).unwrap();
    place_on(waiting, agents)
        .assignments
        .into_iter()
        .map(|(job, agent)| (number(job.to_string()), number(agent.to_string())))
        .collect()
}

#[test]
fn a_job_goes_to_no_agent_of_a_lower_tier() {
    let needs = Needs::new();
    let tiers = Tier::ALL.map(|tier| Containment {
        tier,
        short_of: String::new(),
    });
    for contain in Tier::ALL {
        // The higher the tier of an agent, the fewer slots it has: the roomiest one is the wrong one.
        let agents: Vec<_> = tiers
            .iter()
            .zip(1..)
            .map(|(contained, n)| AgentView {
                contained,
                ..needs.agent(n, "a", 5 - u32::try_from(n).unwrap())
            })
            .collect();
        let jobs: Vec<_> = (1..=20)
            .map(|n| Waiting {
                contain,
                ..needs.job(n, 1)
            })
            .collect();
        let given = placed(&jobs, &agents);
        let enough = agents.iter().filter(|agent| agent.contained.tier >= contain);
        let room: u32 = enough.map(|agent| agent.free_slots).sum();
        assert_eq!(given.len(), room as usize, "{contain}");
        for (_, agent) in given {
            assert!(tiers[agent as usize - 1].tier >= contain, "{contain} on agent {agent}");
        }
    }
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
fn checks_and_sessions_go_to_agents_that_may_do_them() {
    let needs = Needs::new();
    let can = |n, can| AgentView {
        can,
        adapters: &needs.both,
        ..needs.agent(n, "a", 9)
    };
    let verify = Capabilities::NONE.with(Capability::Verify);
    let agents = [can(1, Capabilities::RUN), can(2, verify)];
    let session = Waiting {
        adapter: Some(&needs.codex),
        ..needs.job(2, 1)
    };
    let labelled = Waiting {
        requirements: &needs.linux,
        ..needs.job(3, 1)
    };
    let jobs = [needs.job(1, 1), session, labelled];
    assert_eq!(placed(&jobs, &agents), [(1, 2), (2, 1)]);
    // A preference gives no right, and labels do not either.
    let preferred = Waiting {
        affinity: Affinity {
            prefer: Some(agent_id(1)),
            avoid: None,
        },
        ..needs.job(1, 1)
    };
    let untrusted = AgentView {
        labels: &needs.linux,
        ..agents[0]
    };
    assert_eq!(placed(&[preferred, labelled], &[untrusted]), []);
    let why = why_waiting(&preferred, &[untrusted], NOW);
    assert!(why.starts_with("no agent may verify results; "), "{why}");
    let why = why_waiting(&session, &[agents[1]], NOW);
    assert!(why.starts_with("no agent may run sessions; "), "{why}");
    // Nothing else of an agent that may not do it is of interest.
    let away = AgentView {
        availability: Availability::Away,
        ..agents[1]
    };
    let why = why_waiting(&needs.job(1, 1), &[agents[0], away], NOW);
    assert_eq!(why, "waits for any agent; there is only a, which is not connected");
}

#[test]
fn an_agent_of_a_project_works_for_that_project_only() {
    let needs = Needs::new();
    let other: ProjectId = "other".parse().unwrap();
    let there = Waiting {
        project: &other,
        ..needs.job(2, 2)
    };
    let bound = AgentView {
        project: Some(&other),
        ..needs.agent(1, "bound", 5)
    };
    assert_eq!(placed(&[needs.job(1, 1), there], &[bound]), [(2, 1)]);
    let free = needs.agent(2, "free", 1);
    assert_eq!(placed(&[needs.job(1, 1), there], &[bound, free]), [(1, 2), (2, 1)]);
    assert_eq!(
        why_waiting(&needs.job(1, 1), &[bound], NOW),
        "no agent works for project default"
    );
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
    for availability in [Availability::Cordoned, Availability::Draining, Availability::Away] {
        let closed = AgentView { availability, ..able };
        assert_eq!(placed(&[codex, linux, needs.job(3, 1)], &[closed]), []);
    }
}

#[test]
fn wishes_are_followed_when_they_can_be() {
    let needs = Needs::new();
    let wanting = |prefer: Option<u128>, avoid: Option<u128>| Waiting {
        affinity: Affinity {
            prefer: prefer.map(agent_id),
            avoid: avoid.map(agent_id),
        },
        requirements: &needs.linux,
        ..needs.job(1, 1)
    };
    // Agents 1 and 2 fit, 3 does not.
    let cases = [
        ((3, 1), wanting(None, None), 1),
        ((3, 1), wanting(None, Some(1)), 2),
        ((3, 0), wanting(None, Some(1)), 1),
        ((3, 1), wanting(Some(2), None), 2),
        ((3, 0), wanting(Some(2), None), 1),
        ((3, 1), wanting(Some(3), None), 1),
        ((3, 1), wanting(Some(9), Some(9)), 1),
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
        let placement = place_on(&jobs, &[needs.agent(1, "a", slots)]);
        assert_eq!(placement.next_wakeup, Some(at(120_000)));
        assert_eq!(placement.assignments.len(), offers);
    }
    assert_eq!(place_on(&[], &[]), Placement::default());
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
    let closed = |n, name, availability| AgentView {
        availability,
        ..able(n, name, 2)
    };
    let (cordoned, draining, away) = (Availability::Cordoned, Availability::Draining, Availability::Away);
    let broken = [AdapterInfo {
        name: needs.codex.clone(),
        version: String::new(),
        unavailable: Some("there is no program codex".to_owned()),
        resumes: crate::checkpoint::Resumes::None,
        access: None,
        slots: 0,
        hears: false,
    }];
    let carries = |labels, agent| AgentView { labels, ..agent };
    let gpu = Labels::from([("gpu".to_owned(), "true".to_owned())]);
    let both = Labels::from([
        ("gpu".to_owned(), "true".to_owned()),
        ("os".to_owned(), "linux".to_owned()),
    ]);
    let gpu_linux = Waiting {
        requirements: &both,
        ..codex
    };
    let anything = needs.job(1, 1);
    let (no_box, some_box) = (
        Containment {
            tier: Tier::T0,
            short_of: "the kernel has no user namespaces".to_owned(),
        },
        Containment {
            tier: Tier::T2,
            short_of: String::new(),
        },
    );
    let tier = |contain, job| Waiting { contain, ..job };
    let boxed = |contained, agent| AgentView { contained, ..agent };
    let refusal = |n| Refusal {
        agent: agent_id(n),
        reason: "its disk is full",
    };
    let (one, two, four) = ([refusal(1)], [refusal(1), refusal(2)], [1, 2, 3, 4].map(refusal));
    let refused = |refusals| Waiting { refusals, ..codex };
    let cases = [
        (
            refused(&one),
            vec![able(1, "a", 1), able(2, "b", 0)],
            "waits for an agent with codex; a refused it: its disk is full",
        ),
        (
            refused(&two),
            vec![able(1, "a", 1), able(2, "b", 1)],
            "waits for an agent with codex; a and one other refused it: its disk is full",
        ),
        (
            refused(&four),
            vec![able(1, "a", 1), able(2, "b", 1), able(3, "c", 1)],
            "waits for an agent with codex; a and 2 others refused it: its disk is full",
        ),
        (
            refused(&one),
            vec![able(1, "a", 1), able(2, "b", 1)],
            "waits for an agent with codex; its turn comes next",
        ),
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
            codex,
            vec![
                claude,
                AgentView {
                    known: &broken,
                    ..needs.agent(2, "b", 1)
                },
            ],
            "the adapter codex does not work on b: there is no program codex",
        ),
        (linux, vec![able(1, "a", 1)], "no agent with codex carries os=linux"),
        (
            gpu_linux,
            vec![able(1, "a", 1)],
            "no agent with codex carries gpu=true or os=linux",
        ),
        (
            gpu_linux,
            vec![carries(&gpu, able(1, "a", 1)), carries(&needs.linux, able(2, "b", 1))],
            "no agent with codex carries all of gpu=true, os=linux",
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
            vec![closed(1, "a", draining)],
            "waits for an agent with codex; only a has it, and is draining",
        ),
        (
            codex,
            vec![closed(1, "a", cordoned), closed(2, "b", cordoned)],
            "waits for an agent with codex; two have it, both cordoned",
        ),
        (
            codex,
            vec![closed(1, "a", away), claude],
            "waits for an agent with codex; only a has it, and is not connected",
        ),
        (
            codex,
            vec![
                closed(1, "a", away),
                closed(2, "b", draining),
                closed(3, "c", cordoned),
                able(4, "d", 0),
                able(5, "e", 0),
            ],
            "waits for an agent with codex; 5 have it: 2 full, 1 cordoned, 1 draining, 1 not connected",
        ),
        (
            codex,
            vec![able(1, "a", 1), closed(2, "b", cordoned)],
            "waits for an agent with codex; its turn comes next",
        ),
        (
            tier(Tier::T2, anything),
            vec![able(1, "a", 1), able(2, "b", 1)],
            "no agent has containment T2: 2 agents have T0; `kage doctor` on an agent's machine says what it lacks",
        ),
        (
            tier(Tier::T3, codex),
            vec![
                boxed(&no_box, able(1, "a", 1)),
                boxed(&some_box, able(2, "b", 1)),
                claude,
            ],
            "no agent with codex has containment T3: 1 agent has T0, 1 agent has T2; `kage doctor` on an agent's machine \
             says what it lacks",
        ),
        (
            tier(Tier::T1, anything),
            vec![boxed(&no_box, able(1, "a", 1))],
            "no agent has containment T1: 1 agent has T0 (a: the kernel has no user namespaces); `kage doctor` on an \
             agent's machine says what it lacks",
        ),
        (
            tier(Tier::T1, anything),
            vec![able(1, "a", 1), boxed(&some_box, able(2, "b", 0))],
            "waits for an agent with containment T1; only b has it, and is full",
        ),
        (
            tier(Tier::T2, codex),
            vec![boxed(&some_box, able(1, "a", 1)), able(2, "b", 1)],
            "waits for an agent with codex and containment T2; its turn comes next",
        ),
        (
            anything,
            vec![able(1, "a", 0), able(2, "b", 0)],
            "waits for any agent; there are two, both full",
        ),
        (
            anything,
            vec![closed(1, "a", cordoned)],
            "waits for any agent; there is only a, which is cordoned",
        ),
    ];
    for (job, agents, text) in cases {
        assert_eq!(why_waiting(&job, &agents, NOW), text);
        // A waiting job could be done; a job whose needs nobody meets could not.
        let could = text.starts_with("waits") || text.starts_with("tries again");
        let expected = (!could).then(|| text.to_owned());
        if job.not_before <= NOW {
            assert_eq!(nobody_can(&job, &agents), expected);
        }
    }
}

#[test]
fn the_urgent_go_first_and_every_eighth_is_the_oldest() {
    let needs = Needs::new();
    let of = |n, task, priority| Waiting {
        priority,
        queued_at: at(u64::try_from(n).unwrap()),
        ..needs.job(n, task)
    };
    let mut jobs = vec![of(1, 1, Priority::LOW), of(2, 2, Priority::NORMAL)];
    jobs.extend((3..20).map(|n| of(n, 3, Priority::HIGH)));
    let order = |agents: &[AgentView<'_>]| {
        placed(&jobs, agents)
            .into_iter()
            .map(|(job, _)| job)
            .collect::<Vec<_>>()
    };
    assert_eq!(order(&[needs.agent(1, "a", 10)]), [3, 4, 5, 6, 7, 8, 9, 1, 10, 11]);
    let later = AgentView {
        placed: 15,
        ..needs.agent(1, "a", 3)
    };
    assert_eq!(order(&[later]), [1, 3, 4]);
    // A job that the agent cannot do is not its oldest.
    let mut picky = jobs.clone();
    picky[0].requirements = &needs.linux;
    let numbers: Vec<_> = placed(&picky, &[later]).into_iter().map(|(job, _)| job).collect();
    assert_eq!(numbers, [2, 3, 4]);
}

#[test]
fn whoever_refused_a_job_is_not_asked_now() {
    let needs = Needs::new();
    let agents = [needs.agent(1, "a", 3), needs.agent(2, "b", 1)];
    let refused = |by| Waiting {
        refusals: by,
        ..needs.job(1, 1)
    };
    let by = |n| Refusal {
        agent: agent_id(n),
        reason: "its disk is full",
    };
    let (first, both) = ([by(1)], [by(1), by(2)]);
    assert_eq!(placed(&[refused(&first), needs.job(2, 2)], &agents), [(1, 2), (2, 1)]);
    assert_eq!(placed(&[refused(&both), needs.job(2, 2)], &agents), [(2, 1)]);
    let wished = Waiting {
        affinity: Affinity {
            prefer: Some(agent_id(1)),
            avoid: None,
        },
        ..refused(&first)
    };
    assert_eq!(placed(&[wished], &agents), [(1, 2)]);
}

#[test]
fn candidates_are_the_shortest_list_with_the_roomiest_first() {
    let needs = Needs::new();
    let other: ProjectId = "other".parse().unwrap();
    let able = |n, slots| AgentView {
        adapters: &needs.both,
        ..needs.agent(n, "x", slots)
    };
    let mut roster = Roster::default();
    for agent in [
        able(1, 1),
        able(2, 0),
        needs.agent(3, "c", 9),
        AgentView {
            labels: &needs.linux,
            ..able(4, 2)
        },
        AgentView {
            project: Some(&other),
            ..able(5, 8)
        },
        AgentView {
            project: Some(&needs.project),
            ..able(6, 2)
        },
    ] {
        roster.list(agent.id, [agent]);
    }
    let of = |job: Waiting<'_>| roster.candidates(&job).map(|seat| seat.agent).collect::<Vec<_>>();
    let ids = |numbers: &[u128]| numbers.iter().copied().map(agent_id).collect::<Vec<_>>();
    let codex = Waiting {
        adapter: Some(&needs.codex),
        ..needs.job(1, 1)
    };
    assert_eq!(of(needs.job(1, 1)), ids(&[3, 4, 6, 1, 2]));
    assert_eq!(of(codex), ids(&[4, 6, 1, 2]));
    assert_eq!(
        of(Waiting {
            requirements: &needs.linux,
            ..codex
        }),
        ids(&[4])
    );
    assert_eq!(
        of(Waiting {
            project: &other,
            ..codex
        }),
        ids(&[5, 4, 1, 2])
    );
}
