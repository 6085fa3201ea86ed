//! What the programs of a task find around them: a short TMPDIR, variables and files that the task
//! names, and no value in anything that is kept.

use std::fs;
use std::path::{Path, PathBuf};

use kage_tests::command::Person;
use kage_tests::repo::Repo;
use kage_tests::wait::wait_for;

/// A value that stands nowhere but in a shell.
const CANARY: &str = "postgres://me:canary-7f3a9c@db/tests";

#[tokio::test]
async fn sockets_with_long_names_fit_below_tmpdir_and_it_goes_with_its_attempt() {
    let person = Person::new();
    person.adapter(
        "maker",
        "cat >/dev/null; [ ${#TMPDIR} -le 45 ] && : > \"$TMPDIR/file\" && echo \"$TMPDIR\" > tmp.txt",
    );
    let repo = Repo::sample(&person.path("repo"));
    let verify = "[ ${#TMPDIR} -le 45 ] && : > \"$TMPDIR/file\"";
    let run = [
        "run", "make it", "--with", "maker", "--verify", verify, "--apply", "--format", "json",
    ];
    let run = person.kage(repo.path(), &run).await;
    assert_eq!(run.code, 0, "{run:#?}");
    let tmp = fs::read_to_string(repo.path().join("tmp.txt")).unwrap();
    let tmp = PathBuf::from(tmp.trim());
    wait_for("the temporary folder is removed", async || {
        (!tmp.exists()).then_some(())
    })
    .await;
}

/// A repository whose tests need variables and a file of the home.
fn project(person: &Person) -> Repo {
    let repo = Repo::sample(&person.path("repo"));
    let settings =
        "[env]\npass = [\"DATABASE_URL\"]\nset = { MODE = \"ci\" }\n[home]\ncopy = [\".npmrc\", \".gone\"]\n";
    repo.write("kage.toml", settings);
    repo.commit("what the tests need");
    fs::write(person.path(".npmrc"), "registry=here\n").unwrap();
    repo
}

/// The files below a folder that have these bytes in them.
fn files_with(folder: &Path, bytes: &[u8], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_with(&path, bytes, found),
            Ok(kind) if kind.is_file() => {
                let content = fs::read(&path).unwrap_or_default();
                if content.windows(bytes.len()).any(|part| part == bytes) {
                    found.push(path);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

#[tokio::test]
async fn programs_get_what_the_shell_of_the_run_has_and_nothing_keeps_it() {
    let person = Person::new();
    person.adapter("idle", "cat >/dev/null; echo 1 > one.txt");
    // It says the value, as a program may; its own text has it in two parts.
    let split = CANARY.split_at(20);
    let script = format!(
        "cat >/dev/null; echo \"it is $DATABASE_URL\"; want='{}''{}'; [ \"$DATABASE_URL\" = \"$want\" ] || exit 3; \
         [ \"$MODE\" = test ] && grep -q here ~/.npmrc && echo \"${{#DATABASE_URL}}\" > seen.txt",
        split.0, split.1
    );
    person.adapter("maker", &script);
    let repo = project(&person);
    // The daemon is started by a shell that has no value.
    let first = person.kage(repo.path(), &["run", "make it", "--with", "idle"]).await;
    assert_eq!(first.code, 0, "{first:#?}");
    assert!(
        first.err.contains("not set in this shell") && first.err.contains("DATABASE_URL"),
        "{first:#?}"
    );

    let verify = format!(
        "[ ${{#DATABASE_URL}} = {} ] && [ $MODE = test ] && echo \"$DATABASE_URL\"",
        CANARY.len()
    );
    let run = [
        "run",
        "make it",
        "--with",
        "maker",
        "--env",
        "MODE=test",
        "--verify",
        &verify,
        "--format",
        "json",
    ];
    let mut command = person.command(repo.path(), &run);
    let run = kage_tests::command::said(command.env("DATABASE_URL", CANARY).output().await.unwrap());
    assert_eq!(run.code, 0, "{run:#?}");
    assert!(
        run.err.contains("passed to the task's programs: DATABASE_URL"),
        "{run:#?}"
    );
    assert!(!run.out.contains(CANARY) && !run.err.contains(CANARY), "{run:#?}");
    let task = run.json()["id"].as_str().unwrap().to_owned();
    let logs = person.kage(repo.path(), &["logs", &task]).await;
    assert!(
        logs.out.contains("it is ***") && run.err.contains(".gone is not there"),
        "{logs:#?}"
    );

    // The file with the values goes when the task is over; then nothing has them.
    let left = person.path("state/agent/handed");
    wait_for("the values are removed", async || {
        fs::read_dir(&left).unwrap().next().is_none().then_some(())
    })
    .await;
    let mut found = Vec::new();
    files_with(&person.path(""), CANARY.as_bytes(), &mut found);
    assert_eq!(found, Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_base_that_fails_for_want_of_a_variable_names_it_and_keys_are_refused() {
    let person = Person::new();
    person.adapter("maker", "cat >/dev/null; echo made > made.txt");
    let repo = project(&person);
    let verify = "test -n \"$DATABASE_URL\"";
    let run = [
        "run",
        "make it",
        "--with",
        "maker",
        "--verify",
        verify,
        "--max-attempts",
        "1",
    ];
    let run = person
        .kage(
            repo.path(),
            &[&run[..], &["--rework", "0", "--format", "json"]].concat(),
        )
        .await;
    let shown = person.kage(repo.path(), &["show", "--format", "json"]).await;
    assert!(shown.out.contains("not set here: DATABASE_URL"), "{run:#?} {shown:#?}");

    for (name, why) in [
        ("ANTHROPIC_API_KEY", "of a model provider"),
        ("LD_PRELOAD=/tmp/x.so", "LD_PRELOAD cannot be"),
        ("PATH", "PATH cannot be"),
        ("A-B=1", "not a name"),
    ] {
        let refused = person
            .kage(repo.path(), &["run", "x", "--with", "maker", "--env", name])
            .await;
        assert_eq!(refused.code, 2, "{refused:#?}");
        assert!(refused.err.contains(why), "{why}: {refused:#?}");
    }
}

#[tokio::test]
async fn setup_prepares_the_worktree_of_a_session_and_its_failure_is_not_the_models() {
    let person = Person::new();
    person.adapter("maker", "cat >/dev/null; cat ready.cache > made.txt");
    let repo = Repo::sample(&person.path("repo"));
    let setup = ["--setup", "echo ready > ready.cache; echo is set up"];
    let run = [
        "run",
        "make it",
        "--with",
        "maker",
        "--verify",
        "test -f ready.cache && ls | grep -q made",
        "--format",
        "json",
    ];
    let ready = person
        .kage(repo.path(), &[&run[..], &setup[..], &["--apply"]].concat())
        .await;
    assert_eq!(ready.code, 0, "{ready:#?}");
    assert!(repo.path().join("made.txt").exists() && !repo.path().join("ready.cache").exists());
    let logs = person.kage(repo.path(), &["logs"]).await;
    assert!(logs.out.contains("is set up"), "{logs:#?}");

    let failing = [
        "--session-setup",
        "echo no database here; exit 7",
        "--max-attempts",
        "1",
    ];
    let failed = person
        .kage(repo.path(), &[&run[..], &setup[..], &failing[..]].concat())
        .await;
    assert_eq!(failed.code, 1, "{failed:#?}");
    let shown = person.kage(repo.path(), &["show", "--format", "json"]).await;
    assert!(
        shown.out.contains("setup failed with exit code 7: no database here"),
        "{shown:#?}"
    );
    assert!(shown.out.contains("SETUP_FAILED"), "{shown:#?}");
}

#[tokio::test]
async fn ignored_files_that_are_included_are_in_every_worktree_and_in_no_result() {
    let person = Person::new();
    // It tries to take it along, too.
    person.adapter(
        "maker",
        "cat >/dev/null; grep -q canary .env || exit 3; : > .gitignore; git add -f .env; echo made > made.txt",
    );
    let repo = Repo::sample(&person.path("repo"));
    repo.write(".gitignore", "*.cache\n.env\n");
    repo.write(".worktreeinclude", ".env\n");
    repo.write(".env", "KEY=canary\n");
    repo.commit("what the tests need");
    let run = [
        "run",
        "make it",
        "--with",
        "maker",
        "--verify",
        "grep -q canary .env",
        "--format",
        "json",
    ];
    let run = person.kage(repo.path(), &run).await;
    assert_eq!(run.code, 0, "{run:#?}");
    assert!(run.err.contains("included although git ignores them: .env"), "{run:#?}");
    let diff = person.kage(repo.path(), &["diff"]).await;
    assert!(
        diff.out.contains("made.txt") && !diff.out.contains(".env\n+KEY"),
        "{diff:#?}"
    );
    assert!(!diff.out.contains("canary"), "{diff:#?}");
}
