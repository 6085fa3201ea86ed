//! What verify runs on: the result in a clean checkout, without a session's untracked files and its
//! changes to the tests.

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::repo::{Repo, SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, session, task, verdict};

/// An ignored file makes the test pass where it lies; the commit does not hold it.
const IGNORED: &str = "\
cat >/dev/null
echo 'add() { echo $(($1 + $2)); }' > generated.cache
echo 'a change, so that there is a result' > notes.txt
sh test.sh && echo 'passes here'
";

/// The solution is in a file that git did not know.
const UNTRACKED: &str = "\
cat >/dev/null
mkdir -p lib
echo 'add() { echo $(($1 + $2)); }' > lib/sum.sh
echo '. ./lib/sum.sh' > add.sh
";

/// The yardstick is made to pass.
const CHEAT: &str = "cat >/dev/null; echo 'exit 0' > test.sh";

fn solve() -> String {
    format!("cat >/dev/null; cat > add.sh <<'END'\n# Fixed, with a comment to be longer.\n{SOLUTION}END\n")
}

async fn run(spec: impl FnOnce(&Repo) -> v1::TaskSpec) -> (v1::Task, v1::Report) {
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent")
        .slots(2)
        .script("ignored", IGNORED)
        .script("untracked", UNTRACKED)
        .script("cheat", CHEAT)
        .script("solve", solve());
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let id = cluster.create(spec(&repo)).await;
    let ended = cluster.ended(&id).await;
    let report = cluster.report(&id).await;
    (ended, report)
}

#[tokio::test]
async fn an_ignored_file_does_not_help_and_an_untracked_one_is_part_of_the_result() {
    let (ended, report) = run(|repo| {
        task("make the test pass")
            .on(repo)
            .verified_by(VERIFY)
            .session("ignored", SHELL, "ignored")
            .session("untracked", SHELL, "untracked")
    })
    .await;
    let ignored = session(&ended, "ignored");
    assert_eq!(verdict(ignored), v1::VerdictKind::Failed, "{ignored:#?}");
    assert_eq!(ignored.state(), v1::SessionState::Rejected);
    assert_eq!(ignored.result.as_ref().unwrap().paths, ["notes.txt"]);

    let untracked = session(&ended, "untracked");
    assert_eq!(verdict(untracked), v1::VerdictKind::Passed, "{untracked:#?}");
    assert_eq!(untracked.result.as_ref().unwrap().paths, ["add.sh", "lib/sum.sh"]);
    assert_eq!(report.best.as_ref().unwrap().session, "untracked");
}

fn leave_named(policy: &mut v1::Policy) {
    policy.verify.as_mut().unwrap().leave_named = true;
}

#[tokio::test]
async fn a_session_that_edits_the_tests_is_flagged_and_ranks_below() {
    let (ended, report) = run(|repo| {
        task("make the test pass")
            .on(repo)
            .verified_by(VERIFY)
            .policy(leave_named)
            .session("cheat", SHELL, "cheat")
            .session("honest", SHELL, "solve")
    })
    .await;
    assert_eq!(verdict(session(&ended, "cheat")), v1::VerdictKind::Passed);
    assert_eq!(report.best.as_ref().unwrap().session, "honest", "{report:#?}");
    let [first, second] = &report.rows[..] else {
        panic!("two rows: {report:#?}")
    };
    assert_eq!(first.session.as_ref().unwrap().name, "honest");
    assert!(first.flags.is_empty(), "{first:#?}");
    assert_eq!(second.risk(), v1::Risk::High, "{second:#?}");
    assert!(second.flags.iter().any(|flag| flag.contains("test.sh")), "{second:#?}");
}

/// A test beside the change, which is no solution.
const TESTS_ONLY: &str = "cat >/dev/null; mkdir -p tests; echo true > tests/more.sh";

#[tokio::test]
async fn a_check_that_passes_without_the_change_is_no_proof_of_it() {
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent")
        .slots(2)
        .script("tests", TESTS_ONLY)
        .script("solve", format!("{}\necho built > made.o", solve()));
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let check_verify = |policy: &mut v1::Policy| policy.verify.as_mut().unwrap().check_verify = true;
    for (verify, said, best) in [
        (VERIFY, v1::WithoutChange::Failed, "solve"),
        ("sh test.sh || true", v1::WithoutChange::Passed, ""),
    ] {
        let spec = task("make the test pass")
            .on(&repo)
            .verified_by(verify)
            .policy(check_verify);
        let id = cluster
            .create(spec.session("solve", SHELL, "solve").session("tests", SHELL, "tests"))
            .await;
        let ended = cluster.ended(&id).await;
        let verdict = |name| session(&ended, name).verdict.clone().unwrap();
        assert_eq!(verdict("solve").without_change(), said, "{verify}: {ended:#?}");
        let report = cluster.report(&id).await;
        assert_eq!(report.best.as_ref().unwrap().session, best, "{verify}: {report:#?}");
        let solve = report
            .rows
            .iter()
            .find(|row| row.session.as_ref().unwrap().name == "solve")
            .unwrap();
        let flagged = solve.flags.iter().any(|flag| flag.contains("without its change"));
        assert_eq!(flagged, said == v1::WithoutChange::Passed, "{solve:#?}");
        let unasked = session(&ended, "tests")
            .verdict
            .as_ref()
            .map(v1::Verdict::without_change);
        let expected = match said {
            v1::WithoutChange::Passed => v1::WithoutChange::NothingElse,
            _ => v1::WithoutChange::Unspecified,
        };
        assert_eq!(unasked, Some(expected), "it did not pass, or changes tests only");
    }
}

#[tokio::test]
async fn a_result_of_high_risk_does_not_win_by_itself() {
    let (ended, report) = run(|repo| {
        task("make the test pass")
            .on(repo)
            .verified_by(VERIFY)
            .policy(leave_named)
            .session("cheat", SHELL, "cheat")
            .session("ignored", SHELL, "ignored")
    })
    .await;
    assert_eq!(verdict(session(&ended, "cheat")), v1::VerdictKind::Passed);
    assert_eq!(report.best.as_ref().unwrap().session, "");
    let best = report.best.unwrap();
    assert_eq!(best.reason(), v1::BestReason::HighRisk);
    assert_eq!(
        (best.session.as_str(), best.session_id.as_str(), best.candidate.as_str()),
        ("", "", "cheat")
    );
    assert!(best.message.contains("test.sh"), "{}", best.message);
}

#[tokio::test]
async fn what_the_verify_command_names_is_the_bases_unless_the_task_is_about_it() {
    let cheat = |prompt: &str, policy: fn(&mut v1::Policy)| {
        let prompt = prompt.to_owned();
        async move {
            let (ended, report) = run(|repo| {
                task(&prompt)
                    .on(repo)
                    .verified_by(VERIFY)
                    .policy(policy)
                    .session("cheat", SHELL, "cheat")
            })
            .await;
            (session(&ended, "cheat").clone(), report)
        }
    };
    let protect = |policy: &mut v1::Policy| {
        policy.verify.as_mut().unwrap().protect = vec!["test.sh".to_owned()];
    };
    /// A prompt, and the further settings.
    type Case = (&'static str, fn(&mut v1::Policy));
    let cases: [Case; 2] = [
        // Its name is in the verify command alone.
        ("make the test pass", |_| {}),
        ("rewrite test.sh", protect),
    ];
    for (prompt, policy) in cases {
        let (cheat, report) = cheat(prompt, policy).await;
        let verdict = cheat.verdict.unwrap();
        assert_eq!(verdict.kind(), v1::VerdictKind::Failed, "{prompt}: {verdict:?}");
        assert_eq!(verdict.restored, ["test.sh"], "{prompt}");
        assert_eq!(report.rows[0].risk(), v1::Risk::Low, "{prompt}: {report:#?}");
    }
    // The task is about it: verify runs with the new version, and it does not land unseen.
    let (cheat, report) = cheat("rewrite test.sh", |_| {}).await;
    assert_eq!(verdict(&cheat), v1::VerdictKind::Passed);
    assert_eq!(report.rows[0].risk(), v1::Risk::High, "{report:#?}");
    assert_eq!(report.best.as_ref().unwrap().session, "");
}

#[tokio::test]
async fn a_result_is_not_risky_for_what_the_task_asked_for() {
    let mut cluster = Cluster::start().await;
    let write = "cat >/dev/null; echo 'echo hello' > greet.sh";
    let options = AgentOptions::named("agent").slots(2).script("write", write);
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let greets = "sh greet.sh | grep -q hello";
    for (prompt, winner) in [("write greet.sh, which says hello", "write"), ("say hello", "")] {
        let spec = task(prompt)
            .on(&repo)
            .verified_by(greets)
            .session("write", SHELL, "write");
        let id = cluster.create(spec).await;
        assert_eq!(cluster.ended(&id).await.state(), v1::TaskState::Succeeded);
        assert_eq!(cluster.report(&id).await.best.unwrap().session, winner, "{prompt}");
    }
    // The file exists by now, and has to print something else.
    repo.write("greet.sh", "echo good morning\n");
    repo.commit("a greeting");
    cluster.push_base(&repo);
    for (prompt, winner) in [("let greet.sh say hello", "write"), ("say hello", "")] {
        let spec = task(prompt)
            .on(&repo)
            .verified_by(greets)
            .session("write", SHELL, "write");
        let id = cluster.create(spec).await;
        cluster.ended(&id).await;
        assert_eq!(cluster.report(&id).await.best.unwrap().session, winner, "{prompt}");
    }
}

/// The safety of the first checkpoint of every session.
async fn first_checkpoints(cluster: &Cluster, task_id: &str) -> Vec<v1::Safety> {
    let request = v1::ListCheckpointsRequest {
        task_id: task_id.to_owned(),
        session: String::new(),
        page_size: 500,
        page_token: String::new(),
    };
    let listed = cluster.client().checkpoints().list_checkpoints(request).await;
    let listed = listed.expect("checkpoints are listed").into_inner().checkpoints;
    let first = listed.iter().filter(|checkpoint| checkpoint.number == 1);
    first
        .inspect(|checkpoint| assert_eq!(checkpoint.reason(), v1::CheckpointReason::Baseline))
        .map(v1::Checkpoint::safety)
        .collect()
}

#[tokio::test]
async fn the_base_is_checked_once_beside_the_sessions_that_start_from_it() {
    let mut cluster = Cluster::start().await;
    let gate = cluster.root().join("gate");
    let waits = format!(
        "cat >/dev/null; until [ -e '{}' ]; do sleep 0.02; done; ",
        gate.display()
    );
    let options = AgentOptions::named("agent")
        .slots(3)
        .script("wait", waits + &solve())
        .script("cheat", CHEAT);
    cluster.add_agent(options).await;
    let repo = cluster.sample();

    let spec = task("make the test pass")
        .on(&repo)
        .verified_by("test -e test.sh")
        .session("one", SHELL, "wait")
        .session("two", SHELL, "wait");
    let id = cluster.create(spec).await;
    // Both work, and one slot was free.
    let checked = cluster
        .until(&id, "the base is checked", |task| task.baseline.is_some())
        .await;
    assert_eq!(checked.state(), v1::TaskState::Running);
    let verdict = checked.baseline.unwrap();
    assert_eq!(verdict.kind(), v1::VerdictKind::Passed, "{verdict:?}");
    let two = |task: &v1::Task| task.sessions.iter().all(|session| session.checkpoints > 0);
    cluster.until(&id, "both have a checkpoint", two).await;
    assert_eq!(
        first_checkpoints(&cluster, &id).await,
        [v1::Safety::Safe, v1::Safety::Safe]
    );
    std::fs::write(&gate, "").unwrap();
    assert_eq!(cluster.ended(&id).await.state(), v1::TaskState::Succeeded);
    let notes = cluster.report(&id).await.notes;
    assert!(notes.iter().all(|note| note.contains("containment")), "{notes:?}");

    // The base fails: that is reported, if necessary after the task failed.
    let protect = |policy: &mut v1::Policy| {
        policy.verify.as_mut().unwrap().protect = vec!["test.sh".to_owned()];
    };
    let spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .policy(protect)
        .session("cheat", SHELL, "cheat");
    let id = cluster.create(spec).await;
    assert_eq!(cluster.ended(&id).await.state(), v1::TaskState::Failed);
    cluster
        .until(&id, "the base is checked", |task| task.baseline.is_some())
        .await;
    assert_eq!(first_checkpoints(&cluster, &id).await, [v1::Safety::Unsafe]);
    let notes = cluster.report(&id).await.notes;
    assert!(
        notes[0].starts_with("verify already fails on the base: verify failed with"),
        "{notes:?}"
    );
}

#[tokio::test]
async fn programs_that_an_earlier_session_put_into_path_forge_no_verdict() {
    let mut cluster = Cluster::start().await;
    // The first folder of PATH, like ~/.local/bin, is one that sessions can write, so this agent has no T1.
    let first = cluster.outside().join("bin");
    std::fs::create_dir(&first).unwrap();
    let mark = cluster.outside().join("forged");
    let planting = format!(
        "for name in sh git make python3 grep; do
printf '#!/bin/sh\\necho $0 >> %s\\nexit 0\\n' '{mark}' > '{first}'/$name; chmod 755 '{first}'/$name; done\n",
        mark = mark.display(),
        first = first.display()
    );
    let gate = cluster.root().join("gate");
    let wait = format!("until [ -e '{}' ]; do sleep 0.02; done; ", gate.display());
    let options = AgentOptions::named("agent")
        .slots(2)
        .with_path_of(&first.join("any"))
        .script("plant", wait + &solve() + &planting)
        .script("wrong", "cat >/dev/null; echo 'add() { echo 3; }' > add.sh");
    cluster.add_agent(options).await;
    let repo = cluster.sample();

    for (script, expected) in [("plant", v1::VerdictKind::Passed), ("wrong", v1::VerdictKind::Failed)] {
        let spec = task("make the test pass")
            .on(&repo)
            .verified_by(VERIFY)
            .session("one", SHELL, script);
        let id = cluster.create(spec).await;
        // The next test covers programs planted while verify runs.
        cluster
            .until(&id, "the base is checked", |task| task.baseline.is_some())
            .await;
        std::fs::write(&gate, "").unwrap();
        let ended = cluster.ended(&id).await;
        assert_eq!(verdict(session(&ended, "one")), expected, "{script}: {ended:#?}");
    }
    assert!(first.join("git").exists());
    let forged = std::fs::read_to_string(&mark).unwrap_or_default();
    assert_eq!(forged, "", "{}", cluster.log("agent"));
}

#[tokio::test]
async fn a_program_that_is_put_into_path_while_verify_runs_forges_no_verdict() {
    let mut cluster = Cluster::start().await;
    let first = cluster.outside().join("bin");
    std::fs::create_dir(&first).unwrap();
    let options = AgentOptions::named("agent")
        .with_path_of(&first.join("any"))
        .script("solve", solve());
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    // The first run of it on the result plants, as another session could in this moment.
    let planted = first.join("make");
    let verify = format!(
        "if grep -rqs 'to be longer' . && [ ! -e '{0}' ]; then echo '#!/bin/sh' > '{0}'; chmod 755 '{0}'; fi; {VERIFY}",
        planted.display()
    );
    let spec = task("make the test pass")
        .on(&repo)
        .verified_by(&verify)
        .session("one", SHELL, "solve");
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;
    let one = session(&ended, "one");
    assert_eq!(verdict(one), v1::VerdictKind::Passed, "{ended:#?}");
    let told = one
        .incidents
        .iter()
        .filter(|incident| incident.summary.contains("was put in front of"));
    assert_eq!(
        told.count(),
        1,
        "the first verdict does not count: {:#?}",
        one.incidents
    );
}
