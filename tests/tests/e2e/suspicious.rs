//! A result that passes verify because its code ends the run: the output of verify is compared with the
//! base's.

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, session, task, verdict};

const TESTS: &str = "\
. ./add.sh
echo 1..2
[ \"$(add 0 0)\" = 0 ] && echo 'ok 1 - zero' || { echo 'not ok 1 - zero'; bad=1; }
[ \"$(add 2 3)\" = 5 ] && echo 'ok 2 - sum' || { echo 'not ok 2 - sum'; bad=1; }
exit ${bad:-0}
";

#[tokio::test]
async fn code_that_ends_the_run_is_suspicious_and_loses_to_honest_work() {
    let mut cluster = Cluster::start().await;
    let gate = cluster.root().join("gate");
    let waiting = |work: &str| {
        let wait = format!("cat >/dev/null; until [ -e '{}' ]; do sleep 0.02; done", gate.display());
        format!("{wait}\n{work}\n")
    };
    let options = AgentOptions::named("agent")
        .slots(3)
        .script("cheat", waiting("echo 'exit 0' > add.sh"))
        .script(
            "honest",
            waiting(&format!("cat > add.sh <<'END'\n# Mended, and longer.\n\n{SOLUTION}END")),
        );
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    repo.write("test.sh", TESTS);
    repo.commit("tests that count");
    cluster.push_base(&repo);
    let spec = task("make the sum right")
        .on(&repo)
        .verified_by(VERIFY)
        .session("cheat", SHELL, "cheat")
        .session("honest", SHELL, "honest");
    let id = cluster.create(spec).await;
    cluster
        .until(&id, "the base is checked", |task| task.baseline.is_some())
        .await;
    std::fs::write(&gate, "").unwrap();
    let ended = cluster.ended(&id).await;
    let report = cluster.report(&id).await;

    let base = ended.baseline.as_ref().unwrap().tests.clone().unwrap();
    assert_eq!((base.lines, base.suites[0].suite.as_str()), (3, "TAP"), "{base:?}");
    assert_eq!((base.suites[0].passed, base.suites[0].failed), (1, 1), "{base:?}");
    for name in ["cheat", "honest"] {
        assert_eq!(verdict(session(&ended, name)), v1::VerdictKind::Passed, "{name}");
    }
    assert_eq!(report.best.as_ref().unwrap().session, "honest", "{report:#?}");
    let [honest, cheat] = &report.rows[..] else {
        panic!("two rows: {report:#?}")
    };
    assert_eq!(
        (honest.risk(), honest.suspicious),
        (v1::Risk::None, false),
        "{honest:#?}"
    );
    assert_eq!((cheat.risk(), cheat.suspicious), (v1::Risk::High, true), "{cheat:#?}");
    let numbers = "ran fewer tests in verify than the base: 2 tests on the base, none here (TAP)";
    assert_eq!(cheat.flags, [numbers]);
}
