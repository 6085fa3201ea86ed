//! What a session had done when it ended without a claim is there: it can be looked at and landed,
//! and is never taken for a success.

use kage_tests::command::Person;
use kage_tests::repo::{Repo, VERIFY};
use serde_json::Value;

const SOLVER: &str = "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh";
/// It changes a file, and then the kernel kills it.
const KILLED: &str = "cat >/dev/null; echo 'half done' > notes.txt; kill -9 $$";
/// It changes a file, and then hangs.
const HANGS: &str = "cat >/dev/null; echo 'half done' > notes.txt; sleep 1000";

/// What is told of a session in JSON of `show`, and that people read the same.
async fn shown(person: &Person, repo: &Repo, task: &str, name: &str) -> Value {
    let done = person.kage(repo.path(), &["show", task, "--format", "json"]).await;
    assert_eq!(done.code, 0, "{done:#?}");
    let json = done.json();
    let sessions = json["sessions"].as_array().unwrap();
    let session = sessions.iter().find(|session| session["name"] == name).unwrap().clone();
    assert_eq!(session["is_unfinished"], true, "{session:#}");
    assert_eq!(session["state"], "SESSION_STATE_FAILED", "{session:#}");
    let told = person.kage(repo.path(), &["show", task]).await;
    let listed = person.kage(repo.path(), &["ls"]).await;
    assert!(listed.out.contains("1 unfinished"), "{listed:#?}");
    assert!(
        told.out.contains(&format!("{name}: unfinished result from checkpoint")),
        "{told:#?}"
    );
    session
}

/// The session's change can be seen, and lands when it is asked for by name.
async fn lands(person: &Person, repo: &Repo, task: &str, name: &str) {
    let diff = person.kage(repo.path(), &["diff", task, "--session", name]).await;
    assert_eq!(diff.code, 0, "{diff:#?}");
    assert!(diff.out.contains("+half done"), "{diff:#?}");
    let applied = person.kage(repo.path(), &["apply", task, "--session", name]).await;
    assert_eq!(applied.code, 0, "{applied:#?}");
    assert!(
        applied.err.contains(&format!("the result of {name} is unfinished")),
        "{applied:#?}"
    );
    assert!(applied.out.contains("unfinished result"), "{applied:#?}");
    let there = std::fs::read_to_string(repo.path().join("notes.txt")).unwrap();
    assert_eq!(there, "half done\n");
}

#[tokio::test]
async fn work_of_a_program_that_was_killed_lands_by_name_only() {
    let person = Person::new();
    person.adapter("killed", KILLED);
    person.adapter("solver", SOLVER);
    let repo = Repo::sample(&person.path("repo"));
    let arguments = [
        "run",
        "mend the sum",
        "--with",
        "killed",
        "--verify",
        VERIFY,
        "--format",
        "json",
    ];
    let alone = person.kage(repo.path(), &arguments).await;
    assert_eq!(alone.code, 1, "it is no success: {alone:#?}");
    let alone = alone.json();
    assert_eq!(
        alone["report"]["best"]["session"].as_str().unwrap_or_default(),
        "",
        "{alone:#}"
    );
    let task = alone["id"].as_str().unwrap();
    let session = shown(&person, &repo, task, "killed").await;
    assert_eq!(session["failure"]["kind"], "FAILURE_KIND_ADAPTER_CRASH", "{session:#}");
    let refused = person.kage(repo.path(), &["apply", task]).await;
    assert_eq!(refused.code, 4, "nothing lands by itself: {refused:#?}");
    lands(&person, &repo, task, "killed").await;

    let other = Repo::sample(&person.path("other"));
    let arguments = [
        "run",
        "mend the sum",
        "--with",
        "killed",
        "--with",
        "solver",
        "--verify",
        VERIFY,
        "--format",
        "json",
    ];
    let both = person.kage(other.path(), &arguments).await;
    assert_eq!(both.code, 0, "{both:#?}");
    let both = both.json();
    assert_eq!(both["report"]["best"]["session"], "solver", "{both:#}");
    let rows = both["report"]["rows"].as_array().unwrap();
    let order: Vec<_> = rows
        .iter()
        .map(|row| row["session"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(order, ["solver", "killed"], "{both:#}");
    assert_eq!(rows[1]["session"]["is_unfinished"], true, "{both:#}");
}

/// Verify of an unfinished result, when somebody asks for it.
#[tokio::test]
async fn unfinished_work_is_verified_when_asked_and_does_not_win_by_that() {
    let person = Person::new();
    person.adapter(
        "right",
        "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh; kill -9 $$",
    );
    person.adapter("wrong", KILLED);
    let repo = Repo::sample(&person.path("repo"));
    let run = ["run", "mend the sum", "--with", "right,wrong", "--verify", VERIFY];
    let run = person
        .kage(repo.path(), &[&run[..], &["--format", "json"]].concat())
        .await;
    assert_eq!(run.code, 1, "{run:#?}");
    let task = run.json()["id"].as_str().unwrap().to_owned();
    let wrong = person.kage(repo.path(), &["verify", &task, "--session", "wrong"]).await;
    assert_eq!(wrong.code, 1, "{wrong:#?}");
    assert!(wrong.out.contains("wrong: verify failed with exit code"), "{wrong:#?}");
    let right = person.kage(repo.path(), &["verify", &task, "--session", "right"]).await;
    assert_eq!(right.code, 0, "{right:#?}");
    assert!(
        right.out.contains("right: verify passed (unfinished result)"),
        "{right:#?}"
    );

    let compared = person
        .kage(repo.path(), &["compare", &task, "--format", "json"])
        .await
        .json();
    let rows = compared["report"]["rows"].as_array().unwrap();
    let verdicts: Vec<_> = rows.iter().map(|row| &row["session"]).collect();
    assert_eq!(verdicts[0]["name"], "right", "{compared:#}");
    assert_eq!(verdicts[0]["state"], "SESSION_STATE_FAILED", "{compared:#}");
    assert_eq!(verdicts[0]["verdict"]["kind"], "VERDICT_KIND_PASSED", "{compared:#}");
    assert_eq!(verdicts[1]["verdict"]["kind"], "VERDICT_KIND_FAILED", "{compared:#}");
    assert_eq!(
        compared["report"]["best"]["session"].as_str().unwrap_or_default(),
        "",
        "{compared:#}"
    );
    let diff = person.kage(repo.path(), &["diff", &task, "--session", "right"]).await;
    assert!(
        diff.err.contains("is unfinished") && diff.err.contains("verify passed"),
        "{diff:#?}"
    );
    let applied = person.kage(repo.path(), &["apply", &task, "--session", "right"]).await;
    assert_eq!(applied.code, 0, "{applied:#?}");
}

#[tokio::test]
async fn work_of_a_session_that_took_too_long_lands_by_name() {
    let person = Person::new();
    person.adapter("hangs", HANGS);
    let repo = Repo::sample(&person.path("repo"));
    let arguments = [
        "run",
        "mend the sum",
        "--with",
        "hangs",
        "--timeout",
        "3s",
        "--verify",
        VERIFY,
        "--format",
        "json",
    ];
    let ended = person.kage(repo.path(), &arguments).await;
    assert_ne!(ended.code, 0, "{ended:#?}");
    let task = ended.json()["id"].as_str().unwrap().to_owned();
    let session = shown(&person, &repo, &task, "hangs").await;
    assert_eq!(session["failure"]["kind"], "FAILURE_KIND_TIMEOUT", "{session:#}");
    lands(&person, &repo, &task, "hangs").await;
}
