//! Machines whose clocks are far apart.

use std::sync::Arc;
use std::time::Duration;

use kage_core::event::AttemptOutcome;
use kage_core::time::Timestamp;
use kage_proto::convert::time::time;

use crate::admission::{hello_of, member};
use crate::cluster::{Cluster, FakeAgent, spec};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// People and agents have this machine's clock; the coordinator's is a day before or after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_between_the_clocks_costs_nothing() {
    for ahead in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::start_with(dir.path(), |config, ports| {
            config.tls = true;
            let system = Arc::clone(&ports.clock);
            ports.clock = Arc::new(move || {
                let now = system();
                if ahead {
                    now + DAY
                } else {
                    Timestamp::from_millis(now.as_millis() - u64::try_from(DAY.as_millis()).unwrap_or(0))
                }
            });
        })
        .await;
        // A certificate of the coordinator, a join token, one of the agent.
        let joined = member(&cluster, "").await;
        let mut agent = FakeAgent::connect_by(&joined.client, hello_of(&joined)).await;
        let task = cluster.create(spec(&["s"])).await;
        let job = agent.take().await;
        // The agent's times are of 1970, and only shown.
        agent.finish(&job.key, 1, AttemptOutcome::Claimed).await;
        let task = cluster.get(&task.id).await;
        assert_eq!(task.state(), kage_proto::v1::TaskState::Succeeded, "{task:#?}");
        let [created, ended] = [task.created_at, task.ended_at].map(|at| time(at.unwrap()));
        assert!(ended >= created, "by one clock: {task:#?}");
        cluster.stop().await;
    }
}
