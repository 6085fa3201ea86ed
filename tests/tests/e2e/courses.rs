//! Tasks that do not pay for every session: one of a ladder, whose coordinator is killed on the way, and
//! one that stops at the first verified result.

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::repo::{Repo, VERIFY};
use kage_tests::tasks::{Describe, session, task};

/// Takes the sum for a product.
const WRONG: &str = "cat > /dev/null; echo 'add() { echo $(($1 * $2)); }' > add.sh\n";
/// Keeps what it was told beside the right sum.
const RIGHT: &str = "cat > heard.md; echo 'add() { echo $(($1 + $2)); }' > add.sh\n";

fn course(kind: v1::course::Kind) -> impl FnOnce(&mut v1::Policy) {
    move |policy| {
        policy.course = Some(v1::Course { kind: Some(kind) });
        policy.max_reworks = Some(0);
    }
}

#[tokio::test]
async fn a_ladder_goes_up_with_what_verify_wrote_also_after_a_crash() {
    let mut cluster = Cluster::start().await;
    let gate = cluster.root().join("gate");
    let wrong = format!("until [ -e '{}' ]; do sleep 0.05; done\n{WRONG}", gate.display());
    let options = AgentOptions::named("agent").slots(3);
    let options = options.script("wrong", wrong).script("right", RIGHT);
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let spec = task("mend the sum")
        .on(&repo)
        .verified_by(VERIFY)
        .policy(course(v1::course::Kind::Ladder(v1::Ladder {})))
        .session("cheap", SHELL, "wrong")
        .session("mid", SHELL, "right")
        .session("best", SHELL, "right");
    let id = cluster.create(spec).await;
    let runs = |task: &v1::Task| session(task, "cheap").state() == v1::SessionState::Running;
    let running = cluster.until(&id, "cheap runs", runs).await;
    for waits in ["mid", "best"] {
        assert_eq!(
            session(&running, waits).attempts,
            0,
            "there are slots, but it is not its turn"
        );
    }
    cluster.crash_coordinator().await;
    std::fs::write(&gate, "").unwrap();

    let ended = cluster.ended(&id).await;
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");
    let states = ["cheap", "mid", "best"].map(|name| session(&ended, name).state());
    let expected = [
        v1::SessionState::Rejected,
        v1::SessionState::Verified,
        v1::SessionState::Cancelled,
    ];
    assert_eq!(states, expected, "{ended:#?}");
    assert_eq!(session(&ended, "best").attempts, 0);
    let mid = session(&ended, "mid");
    let copy = Repo::empty(&cluster.root().join("copy"));
    let commit = cluster.fetch_result(&copy, mid);
    let heard = copy.git(&["show", &format!("{commit}:heard.md")]);
    for part in [
        "mend the sum",
        "An earlier try failed verify",
        "add 2 3 is 6",
        "sh test.sh",
    ] {
        assert!(heard.contains(part), "{part}: {heard}");
    }

    let report = cluster.report(&id).await;
    assert_eq!(report.best.as_ref().unwrap().session, "mid");
    let noted = |part: &str| report.notes.iter().any(|note| note.contains(part));
    assert!(
        noted("1 session was not started, because enough sessions were verified"),
        "{report:#?}"
    );
    let of_mid = report
        .rows
        .iter()
        .find(|row| row.session.as_ref().unwrap().name == "mid");
    let told = "its turn came when verify rejected cheap";
    assert!(of_mid.unwrap().history.iter().any(|line| line == told), "{report:#?}");
}

#[tokio::test]
async fn the_first_verified_result_stops_the_others_and_keeps_their_work() {
    let mut cluster = Cluster::start().await;
    let gate = cluster.outside().join("gate");
    let slow = "cat > /dev/null; echo half > half.txt; sleep 600\n";
    let fast = format!("until [ -e '{}' ]; do sleep 0.05; done\n{RIGHT}", gate.display());
    let options = AgentOptions::named("agent").slots(3);
    cluster
        .add_agent(options.script("slow", slow).script("fast", fast))
        .await;
    let repo = cluster.sample();
    let spec = task("mend the sum")
        .on(&repo)
        .verified_by(VERIFY)
        .policy(course(v1::course::Kind::FirstVerified(1)))
        .session("fast", SHELL, "fast")
        .session("slow", SHELL, "slow");
    let id = cluster.create(spec).await;
    // What it did since its newest checkpoint is lost when it is stopped.
    let kept = |task: &v1::Task| session(task, "slow").checkpoints > 1;
    cluster.until(&id, "the work of the slow one is kept", kept).await;
    std::fs::write(&gate, "").unwrap();
    let ended = cluster.ended(&id).await;
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");
    let slow = session(&ended, "slow");
    assert_eq!(slow.state(), v1::SessionState::Cancelled);
    assert!(slow.is_unfinished, "its work is kept: {slow:#?}");
    let report = cluster.report(&id).await;
    let noted = |part: &str| report.notes.iter().any(|note| note.contains(part));
    assert!(
        noted("1 session was stopped, because enough sessions were verified"),
        "{report:#?}"
    );
    // Nobody knows what scripts cost.
    assert!(noted("how much that saved is unknown"), "{report:#?}");
}
