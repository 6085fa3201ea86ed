//! The verdict on a base is kept: a later task takes it, and says when and by whom it was found.

use std::path::Path;

use kage_proto::convert::time::time;
use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::repo::{Repo, SOLUTION};
use kage_tests::tasks::{Describe, session, task, verdict};

/// How often verify ran.
fn runs(count: &Path) -> usize {
    std::fs::read_to_string(count).unwrap_or_default().lines().count()
}

/// A task whose session waits for its gate and whose base is known before that opens.
async fn run(cluster: &Cluster, repo: &Repo, script: &str, verify: &str, fresh: bool) -> (v1::Task, v1::Report) {
    let spec = v1::TaskSpec {
        fresh_baseline: fresh,
        ..task("make the test pass")
            .on(repo)
            .verified_by(verify)
            .session("one", SHELL, script)
    };
    let id = cluster.create(spec).await;
    cluster
        .until(&id, "the base is checked", |task| task.baseline.is_some())
        .await;
    std::fs::write(cluster.root().join(script), "").unwrap();
    let ended = cluster.ended(&id).await;
    assert_eq!(verdict(session(&ended, "one")), v1::VerdictKind::Passed, "{ended:#?}");
    (ended, cluster.report(&id).await)
}

#[tokio::test]
async fn the_base_of_many_tasks_is_verified_once() {
    let mut cluster = Cluster::start().await;
    let waiting = |gate: &str| {
        let gate = cluster.root().join(gate);
        let wait = format!(
            "cat >/dev/null; until [ -e '{}' ]; do sleep 0.02; done; ",
            gate.display()
        );
        format!("{wait}cat > add.sh <<'END'\n{SOLUTION}END\n")
    };
    let mut options = AgentOptions::named("builder").slots(3);
    for gate in ["first", "second", "anew", "other"] {
        options = options.script(gate, waiting(gate));
    }
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let count = cluster.outside().join("count");
    let verify = format!("echo ran >> '{}'; test -e test.sh", count.display());

    let (first, report) = run(&cluster, &repo, "first", &verify, false).await;
    assert_eq!((first.baseline_kept_since, runs(&count)), (None, 2));
    assert!(
        report.notes.iter().all(|note| note.contains("containment")),
        "{report:?}"
    );

    // Verify runs on the result alone.
    let (second, report) = run(&cluster, &repo, "second", &verify, false).await;
    assert_eq!(runs(&count), 3);
    let at = second.baseline_kept_since.expect("an earlier task left the verdict");
    let between = first.created_at.map(time)..=second.created_at.map(time);
    assert!(between.contains(&Some(time(at))), "{at:?}");
    let found = second.baseline.unwrap();
    assert_eq!(
        (found.kind(), found.agent.as_str()),
        (v1::VerdictKind::Passed, "builder")
    );
    let note = &report.notes[0];
    assert!(note.starts_with("base verified on 2"), "{note}");
    assert!(note.ends_with(" UTC by builder, for an earlier task"), "{note}");

    let (anew, _) = run(&cluster, &repo, "anew", &verify, true).await;
    assert_eq!((anew.baseline_kept_since, runs(&count)), (None, 5));
    let other = format!("{verify} -a -e add.sh");
    let (other, _) = run(&cluster, &repo, "other", &other, false).await;
    assert_eq!((other.baseline_kept_since, runs(&count)), (None, 7));
}
