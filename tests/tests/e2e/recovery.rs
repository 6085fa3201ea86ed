//! Failures on the way do not end a session that waiting or another machine cures.

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::tasks::{Describe, session, task};

#[tokio::test]
async fn a_used_up_limit_is_waited_for_and_a_full_disk_is_left() {
    let mut cluster = Cluster::start().await;
    let runs = cluster.root().join("runs");
    let script = format!(
        "echo >> '{runs}'\n\
         case $(wc -l < '{runs}') in\n\
         1) echo 'quota exceeded, resets in 1 s' >&2; exit 1 ;;\n\
         2) echo 'cannot write: No space left on device' >&2; exit 1 ;;\n\
         *) echo done ;;\n\
         esac\n",
        runs = runs.display()
    );
    for name in ["one", "two"] {
        cluster
            .add_agent(AgentOptions::named(name).script("flaky", script.as_str()))
            .await;
    }
    let spec = task("try").session("only", SHELL, "flaky");
    let id = cluster.create(spec.policy(|policy| policy.max_attempts = 2)).await;
    let ended = cluster.ended(&id).await;
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");

    let only = session(&ended, "only");
    let told: Vec<_> = only.incidents.iter().map(|i| (i.attempt, i.action())).collect();
    let expected = [(1, v1::RecoveryAction::HoldUntil), (2, v1::RecoveryAction::MoveAgent)];
    assert_eq!(told, expected, "{:#?}", only.incidents);
    let held = &only.incidents[0];
    let wait = held.next_attempt_at_ms - held.at_ms;
    // A reset that soon is not believed: the first wait is two seconds.
    assert!(
        (2_000..=2_500).contains(&wait),
        "the first wait, and a quarter at most: {wait} ms"
    );
    assert_ne!(only.agent, only.incidents[1].agent, "another machine did it");
    assert_eq!(std::fs::read_to_string(&runs).unwrap().lines().count(), 3);

    let report = cluster.report(&id).await;
    for incident in &only.incidents {
        let history = &report.rows[0].history;
        assert!(history.contains(&incident.summary), "{history:#?}");
    }
}
