//! The command line: the daemon that the first command starts, several commands at once,
//! landing a result, exit codes, and the demo.

use kage_tests::command::{Person, said};
use kage_tests::repo::{Repo, VERIFY};
use kage_tests::wait::wait_for;
use serde_json::Value;

/// A script that makes the sample's test pass.
const FIX: &str = "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh";

/// The output of `kage show` for a task.
async fn shown(person: &Person, repo: &Repo, task: &str) -> Value {
    person
        .kage(repo.path(), &["show", task, "--format", "json"])
        .await
        .json()
}

#[tokio::test]
async fn two_runs_share_a_daemon_and_a_third_shell_looks_on() {
    let person = Person::new();
    person.adapter("fixer", &format!("{FIX}; echo mended"));
    person.adapter("sleeper", "cat >/dev/null; echo asleep; sleep 1000");
    let repo = Repo::sample(&person.path("repo"));

    // Neither of them finds a daemon; together they start one.
    let mut fixing = person.command(repo.path(), &["run", "mend it", "--with", "fixer", "--verify", VERIFY]);
    let mut sleeping = person.command(
        repo.path(),
        &["run", "sleep", "--with", "sleeper", "-d", "--format", "json"],
    );
    let (fixed, asleep) = tokio::join!(fixing.output(), sleeping.output());
    let (fixed, asleep) = (said(fixed.unwrap()), said(asleep.unwrap()));
    assert_eq!(fixed.code, 0, "{fixed:#?}");
    assert!(fixed.out.contains("verified"), "{fixed:#?}");
    assert_eq!(asleep.code, 0, "{asleep:#?}");
    let task = asleep.json()["id"].as_str().unwrap().to_owned();

    let listed = person.kage(repo.path(), &["ls", "--format", "json"]).await.json();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed:#}");
    let agents = person
        .kage(repo.path(), &["agent", "ls", "--format", "json"])
        .await
        .json();
    assert_eq!(agents.as_array().unwrap().len(), 1, "one daemon: {agents:#}");

    // Following the log shows the output of the other shell's session, and ends with it.
    let following = person.command(repo.path(), &["logs", "-f", &task]).spawn().unwrap();
    wait_for("the sleeper runs", async || {
        let task = shown(&person, &repo, &task).await;
        (task["sessions"][0]["state"] == "SESSION_STATE_RUNNING").then_some(())
    })
    .await;
    let stopped = person.kage(repo.path(), &["stop", &task[..8]]).await;
    assert_eq!(stopped.code, 0, "{stopped:#?}");
    let waited = person.kage(repo.path(), &["wait", &task]).await;
    assert_eq!(waited.code, 130, "a stopped task is cancelled: {waited:#?}");
    let log = said(following.wait_with_output().await.unwrap());
    assert_eq!(log.code, 0, "{log:#?}");
}

#[tokio::test]
async fn a_result_is_compared_shown_and_landed() {
    let person = Person::new();
    person.adapter("fixer", FIX);
    person.adapter("idler", "cat >/dev/null");
    let repo = Repo::sample(&person.path("repo"));
    let head = repo.head();
    let run = person
        .kage(
            repo.path(),
            &[
                "run",
                "mend it",
                "--with",
                "fixer,idler",
                "--verify",
                VERIFY,
                "--format",
                "json",
            ],
        )
        .await;
    assert_eq!(run.code, 0, "{run:#?}");
    let report = run.json();
    assert_eq!(report["report"]["best"]["session"], "fixer", "{report:#}");
    let states: Vec<_> = report["report"]["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["session"]["state"])
        .collect();
    assert_eq!(states, ["SESSION_STATE_VERIFIED", "SESSION_STATE_FAILED"], "{report:#}");
    let shown = person.kage(repo.path(), &["show", "--format", "json"]).await.json();
    assert_eq!(shown["state"], "TASK_STATE_SUCCEEDED", "{shown:#}");
    assert!(shown.get("report").is_none(), "nobody compared the sessions: {shown:#}");

    let idle = person.kage(repo.path(), &["apply", "--session", "idler"]).await;
    assert_eq!(
        idle.code, 2,
        "what was not verified is not landed by default: {idle:#?}"
    );
    let patch = person.kage(repo.path(), &["diff"]).await;
    assert!(patch.out.starts_with("diff --git"), "{patch:#?}");
    let dry = person.kage(repo.path(), &["apply", "--dry-run"]).await;
    assert_eq!(dry.code, 0, "{dry:#?}");
    assert_eq!(
        repo.git(&["status", "--porcelain"]).trim(),
        "",
        "a dry run writes nothing"
    );

    let applied = person.kage(repo.path(), &["apply"]).await;
    assert_eq!(applied.code, 0, "{applied:#?}");
    assert_ne!(repo.git(&["status", "--porcelain"]).trim(), "");
    assert_eq!(repo.head(), head, "applying commits nothing");
    repo.git(&["checkout", "--quiet", "--", "."]);
    let merged = person.kage(repo.path(), &["merge"]).await;
    assert_eq!(merged.code, 0, "{merged:#?}");
    assert_ne!(repo.head(), head, "merging makes a commit");
    assert_eq!(repo.git(&["status", "--porcelain"]).trim(), "");
}

#[tokio::test]
async fn down_ends_the_daemon_and_refuses_while_a_task_runs() {
    let person = Person::new();
    person.adapter("sleeper", "cat >/dev/null; echo asleep; sleep 1000");
    let repo = Repo::sample(&person.path("repo"));
    let down = async |arguments: &[&str]| person.kage(repo.path(), &[&["down"], arguments].concat()).await;
    let nothing = down(&[]).await;
    assert_eq!(nothing.code, 0, "{nothing:#?}");
    assert!(nothing.out.contains("nothing to stop"), "{nothing:#?}");

    let sleep = ["run", "sleep", "--with", "sleeper", "-d", "--format", "json"];
    let asleep = person.kage(repo.path(), &sleep).await;
    let task = asleep.json()["id"].as_str().unwrap().to_owned();
    wait_for("the sleeper runs", async || {
        let task = shown(&person, &repo, &task).await;
        (task["sessions"][0]["state"] == "SESSION_STATE_RUNNING").then_some(())
    })
    .await;
    let busy = down(&[]).await;
    assert_eq!(busy.code, 2, "{busy:#?}");
    let words = format!("task {} has not ended", &task[..8]);
    assert!(busy.err.contains(&words) && busy.err.contains("--force"), "{busy:#?}");
    let forced = down(&["--force"]).await;
    assert_eq!(forced.code, 0, "{forced:#?}");
    // Work that was handed back continues with the next daemon, which any command starts.
    let again = person.kage(repo.path(), &sleep).await;
    assert_eq!(again.code, 0, "{again:#?}");
    wait_for("the sleeper runs again", async || {
        let task = shown(&person, &repo, &task).await;
        (task["sessions"][0]["state"] == "SESSION_STATE_RUNNING").then_some(())
    })
    .await;
    for task in [task.as_str(), again.json()["id"].as_str().unwrap()] {
        assert_eq!(person.kage(repo.path(), &["stop", task]).await.code, 0);
        assert_eq!(person.kage(repo.path(), &["wait", task]).await.code, 130);
    }
    assert_eq!(down(&[]).await.code, 0);
}

#[tokio::test]
async fn mistakes_have_an_exit_code_and_say_what_to_do() {
    let person = Person::new();
    let empty = Repo::empty(&person.path("empty"));
    let cases: [(&[&str], i32, &str); 5] = [
        (&["ls"], 8, "kage run"),
        (&["run", "x", "--with", "Not A Name"], 2, "--with"),
        (&["run", "x", "--with", "claude-api", "--agents", "gpu"], 2, "KEY=VALUE"),
        (&["run", "x", "--with", "claude-api"], 2, "no commits yet"),
        (&["show", "abcdef"], 4, "not found"),
    ];
    for (arguments, code, words) in cases {
        let said = person.kage(empty.path(), arguments).await;
        assert_eq!(said.code, code, "{arguments:?}: {said:#?}");
        assert!(said.err.contains(words), "{arguments:?}: {said:#?}");
    }
    let outside = person
        .kage(&person.path("config"), &["run", "x", "--with", "claude-api"])
        .await;
    assert_eq!(outside.code, 2, "{outside:#?}");
    assert!(outside.err.contains("not inside a git repository"), "{outside:#?}");
}

#[tokio::test]
async fn the_demo_shows_the_whole_thing() {
    let person = Person::new();
    let demo = person.kage(&person.path("config"), &["demo", "--format", "json"]).await;
    assert_eq!(demo.code, 0, "{demo:#?}");
    assert!(demo.err.contains("SCRIPTED"), "{demo:#?}");
    let report = demo.json();
    assert_eq!(report["winner"], "claude-api-1", "{report:#}");
    let sessions = report["sessions"].as_array().unwrap();
    let of = |name: &str| sessions.iter().find(|s| s["name"] == name).unwrap();
    assert_eq!(of("claude-api-1")["verdict"], "passed", "{report:#}");
    assert_eq!(of("claude-api-2")["call_retries"], 1, "answered 429 once: {report:#}");
    assert_eq!(of("claude-api-2")["verdict"], "passed", "{report:#}");
    assert_eq!(of("shell-fixer")["verdict"], "failed", "{report:#}");
    assert_eq!(of("claude-api-1")["money"][0]["provenance"], "billed", "{report:#}");
    let mut agents: Vec<_> = sessions.iter().map(|s| s["agent"].to_string()).collect();
    agents.sort();
    agents.dedup();
    assert_eq!(agents.len(), 3, "three agents worked: {report:#}");
}

#[tokio::test]
async fn what_verify_starts_ends_with_it() {
    let person = Person::new();
    person.adapter("fixer", FIX);
    let repo = Repo::sample(&person.path("repo"));
    let numbers = person.outside("numbers");
    // In its own session and ignoring signals, like a server that a test forgot.
    let verify = format!(
        "setsid sh -c 'trap \"\" TERM HUP; echo $$ >> {numbers}; while :; do sleep 0.1; done' >/dev/null 2>&1 </dev/null &
until [ -s {numbers} ]; do sleep 0.01; done; sh test.sh",
        numbers = numbers.display()
    );
    let run = person
        .kage(repo.path(), &["run", "mend it", "--with", "fixer", "--verify", &verify])
        .await;
    assert_eq!(run.code, 0, "{run:#?}");
    let numbers = std::fs::read_to_string(numbers).unwrap();
    assert_ne!(numbers, "");
    for pid in numbers.lines() {
        // Verify of the base may still be ending.
        wait_for("a program of verify ends", async || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (stat.is_empty() || stat.contains(") Z ")).then_some(())
        })
        .await;
    }
}
