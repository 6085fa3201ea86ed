//! Tasks that demand a tier of containment over the wire: who is offered their work, and what waits. An
//! agent answers for every round of offers, so that "never" is counted and not waited for.

use kage_core::contain::{Containment, Tier};
use kage_core::event::AttemptOutcome;
use kage_core::id::BootId;
use kage_core::task::TaskSpec;
use kage_proto::convert::agent::Hello;
use kage_proto::convert::contain::claimed;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};

/// How often an agent of a lower tier is looked at for work that it must not get.
const ROUNDS: u32 = 30;

fn of_tier(n: u128, slots: u32, tier: Tier, short_of: &str) -> Hello {
    Hello {
        contained: Containment {
            tier,
            short_of: short_of.to_owned(),
        },
        ..hello(n, slots)
    }
}

fn demanding(tier: Tier) -> TaskSpec {
    let mut spec = spec(&["s"]);
    spec.policy.contain = tier;
    spec
}

/// Has the agent do a task without demands in each round: the queue was looked at for it, and what it got
/// was that task.
async fn gets_only_what_demands_nothing(cluster: &Cluster, agent: &mut FakeAgent, rounds: u32) {
    for round in 0..rounds {
        let plain = cluster.create(spec(&["plain"])).await;
        let job = soon("work without demands", agent.take()).await;
        assert_eq!(
            (job.work.task.to_string(), job.work.contain),
            (plain.id, Tier::T0),
            "round {round}"
        );
        agent.finish(&job.key, 1, AttemptOutcome::Claimed).await;
    }
}

async fn waiting(cluster: &Cluster, task: &v1::Task) -> String {
    cluster.get(&task.id).await.sessions.remove(0).waiting
}

#[tokio::test]
async fn work_of_a_tier_is_offered_to_no_agent_of_a_lower_one() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut low = FakeAgent::connect(&cluster, of_tier(1, 8, Tier::T1, "no bwrap")).await;

    let request = v1::CreateTaskRequest {
        request_id: "refused".to_owned(),
        spec: Some(demanding(Tier::T2).into()),
        ..v1::CreateTaskRequest::default()
    };
    let refused = ApiError::from(cluster.client.tasks().create_task(request).await.unwrap_err());
    assert_eq!(refused.reason(), "NO_AGENT");
    let lacks = "no agent with noop has containment T2: 1 agent has T1 (fake-1: no bwrap); `kage doctor` on an agent's \
                 machine says what it lacks";
    assert!(refused.to_string().ends_with(lacks), "{refused}");

    let boxed = cluster.create(demanding(Tier::T2)).await;
    gets_only_what_demands_nothing(&cluster, &mut low, ROUNDS).await;
    assert_eq!(waiting(&cluster, &boxed).await, lacks);
    // What it has is enough for this one.
    let enough = cluster.create(demanding(Tier::T1)).await;
    let job = soon("work of its own tier", low.take()).await;
    assert_eq!((job.work.task.to_string(), job.work.contain), (enough.id, Tier::T1));

    let mut high = FakeAgent::connect(&cluster, of_tier(2, 1, Tier::T2, "")).await;
    let job = soon("work of its tier", high.take()).await;
    assert_eq!(
        (job.work.task.to_string(), job.work.contain),
        (boxed.id.clone(), Tier::T2)
    );
    high.finish(&job.key, 1, AttemptOutcome::Claimed).await;
    let session = cluster.get(&boxed.id).await.sessions.remove(0);
    assert_eq!(claimed(session.contained), Some(Tier::T2));
    cluster.stop().await;
}

#[tokio::test]
async fn an_agent_whose_tier_sank_gets_no_such_work_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut agent = FakeAgent::connect(&cluster, of_tier(1, 2, Tier::T2, "")).await;
    let first = cluster.create(demanding(Tier::T2)).await;
    let job = soon("work of its tier", agent.take()).await;
    assert_eq!(job.work.task.to_string(), first.id);

    // Its next start proves less: what it worked on waits, and so does what is new.
    let mut sunk = of_tier(1, 2, Tier::T0, "the kernel was changed");
    sunk.boot = BootId::from_random(99);
    let mut agent = FakeAgent::connect(&cluster, sunk).await;
    let second = cluster.create(demanding(Tier::T2)).await;
    gets_only_what_demands_nothing(&cluster, &mut agent, 3).await;
    for task in [&first, &second] {
        let waits = waiting(&cluster, task).await;
        assert!(
            waits.contains("1 agent has T0 (fake-1: the kernel was changed)"),
            "{waits}"
        );
    }
    let listed = cluster
        .client
        .fleet()
        .list_agents(v1::ListAgentsRequest::default())
        .await;
    let listed = listed.unwrap().into_inner().agents.remove(0).contained.unwrap();
    assert_eq!(
        (listed.tier(), listed.short_of.as_str()),
        (v1::ContainmentTier::T0, "the kernel was changed")
    );

    // After a restart of the coordinator too, before the agent is back, nothing else is known of it.
    cluster.stop().await;
    let cluster = Cluster::start(dir.path()).await;
    let listed = cluster
        .client
        .fleet()
        .list_agents(v1::ListAgentsRequest::default())
        .await;
    assert_eq!(
        listed.unwrap().into_inner().agents.remove(0).contained.unwrap().tier(),
        v1::ContainmentTier::T0
    );
    let mut high = FakeAgent::connect(&cluster, of_tier(2, 2, Tier::T3, "")).await;
    for _ in [&first, &second] {
        let job = soon("work of its tier", high.take()).await;
        assert_eq!(job.work.contain, Tier::T2);
        high.finish(&job.key, 1, AttemptOutcome::Claimed).await;
    }
    // Its first attempt was in a lower tier than the second one that finished it, but no lower than demanded.
    let session = cluster.get(&first.id).await.sessions.remove(0);
    assert_eq!(claimed(session.contained), Some(Tier::T2));
    let session = cluster.get(&second.id).await.sessions.remove(0);
    assert_eq!(claimed(session.contained), Some(Tier::T3));
    cluster.stop().await;
}

#[tokio::test]
async fn an_agent_that_says_nothing_of_its_containment_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    // As agents of earlier versions, whose Hello has no such field.
    let mut older = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let boxed = cluster.create(demanding(Tier::T1)).await;
    gets_only_what_demands_nothing(&cluster, &mut older, 3).await;
    assert!(waiting(&cluster, &boxed).await.contains("1 agent has T0; "));
    cluster.stop().await;
}
