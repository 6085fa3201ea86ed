//! Sessions of an adapter that has slots of its own take none of the agent's.

use kage_core::deadline::Term;

use super::*;

/// An agent with one slot for programs and checks, and two for sessions of an API.
fn with_api(n: u128, slots: u32) -> Agent {
    let mut agent = agent(n, 1);
    agent.adapters.push(AdapterInfo {
        name: api(),
        slots,
        ..agent.adapters[0].clone()
    });
    agent
}

fn api() -> AdapterName {
    "some-api".parse().unwrap()
}

fn api_job(n: u128) -> QueuedJob {
    QueuedJob {
        adapter: api(),
        ..job(n)
    }
}

fn taken(t: &Table) -> (u32, u32) {
    let presence = t.board.presence(AgentId::from_random(1));
    let lane = Lane::of(Some(&api()), &with_api(1, 2).adapters);
    (presence.busy(Lane::SLOTS), presence.busy(lane))
}

#[test]
fn each_kind_of_work_fills_its_own_slots() {
    let mut t = table();
    for n in 1..=3 {
        t.board.enqueue(api_job(n));
        t.board.enqueue(job(10 + n));
    }
    // The check of a result needs the machine, whatever made the result.
    let commit = "b".repeat(40).parse().unwrap();
    t.board.enqueue(QueuedJob {
        kind: JobKind::Verify { commit },
        ..api_job(20)
    });
    let (_joined, _inbox) = t.join(with_api(1, 2), &[]);
    let picks = t.place();
    let mut given: Vec<_> = picks.iter().map(|pick| pick.job.needs().cloned()).collect();
    given.sort();
    let shell = "shell".parse().ok();
    assert_eq!(given, [shell.clone(), Some(api()), Some(api())]);
    assert_eq!(taken(&t), (1, 2));

    // What ends makes room for its own kind.
    let attempts: Vec<_> = picks
        .into_iter()
        .zip(1..)
        .map(|(pick, n)| (pick.job.needs().cloned(), t.run(n, pick)))
        .collect();
    for (needs, attempt) in attempts {
        t.board.ended(AgentId::from_random(1), attempt);
        let next = t.place();
        let next: Vec<_> = next.iter().map(|pick| pick.job.needs().cloned()).collect();
        match needs == shell {
            true => assert_eq!(next.as_slice(), std::slice::from_ref(&shell)),
            false => assert!(next.iter().all(|next| *next == Some(api()))),
        }
    }
    assert_eq!(taken(&t), (1, 1));
}

#[test]
fn slots_stay_taken_when_the_agent_comes_back_with_others() {
    let mut t = table();
    t.board.enqueue(api_job(1));
    let (_first, _inbox) = t.join(with_api(1, 2), &[]);
    let pick = t.place().remove(0);
    let attempt = t.run(1, pick);
    assert_eq!(taken(&t), (0, 1));
    // Without slots of its own, as of an earlier version, the session takes one of the agent's.
    let (_second, _inbox2) = t.join(with_api(1, 0), &[attempt]);
    assert_eq!(t.board.presence(AgentId::from_random(1)).busy(Lane::SLOTS), 1);
    let (_third, _inbox3) = t.join(with_api(1, 2), &[attempt]);
    assert_eq!(taken(&t), (0, 1));
    t.board.ended(AgentId::from_random(1), attempt);
    assert_eq!(taken(&t), (0, 0));
    assert!(t.board.members.roster_is_current());
}

#[test]
fn what_ran_before_a_start_of_the_coordinator_is_counted_where_it_runs() {
    let mut t = table();
    let live = LiveAttempt {
        attempt: AttemptId::from_random(1),
        job: JobId::from_random(1),
        subject: Subject::Session(SessionId::from_random(1)),
        task: TaskId::from_random(1),
        adapter: Some(api()),
        agent: AgentId::from_random(1),
        boot: BootId::from_random(1),
        lease_until: NOW,
        term: Term {
            started_at: NOW,
            ends_by: NOW,
            stop_asked: None,
        },
    };
    t.board.expect(with_api(1, 2), vec![live], t.start);
    let (_joined, _inbox) = t.join(with_api(1, 2), &[AttemptId::from_random(1)]);
    assert_eq!(taken(&t), (0, 1));
    t.board.enqueue(job(2));
    t.board.enqueue(api_job(3));
    t.board.enqueue(api_job(4));
    assert_eq!(t.place().len(), 2, "a slot of each kind is free");
}
