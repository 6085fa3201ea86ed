//! What `docs/json.md` shows: its examples, run in order, and the form of lines and errors.

use std::process::Stdio;

use kage_tests::command::{Person, said};
use kage_tests::programs;
use kage_tests::repo::{Repo, VERIFY};
use serde_json::Value;

const PAGE: &str = include_str!("../../../docs/json.md");
const FIX: &str = "cat >/dev/null; echo mended; echo 'add() { echo $(($1 + $2)); }' > add.sh";

fn prepared() -> (Person, Repo) {
    let person = Person::new();
    person.adapter("fixer", FIX);
    person.adapter("idler", "cat >/dev/null");
    let repo = Repo::sample(&person.path("repo"));
    (person, repo)
}

#[tokio::test]
async fn the_examples_print_what_the_page_says() {
    let (person, repo) = prepared();
    std::fs::create_dir(person.path("bin")).unwrap();
    std::os::unix::fs::symlink(programs::kage(), person.path("bin/kage")).unwrap();
    let block = PAGE.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let examples: Vec<_> = block.split("$ ").filter(|example| !example.is_empty()).collect();
    // A command may have "$ " in it: those here begin a line.
    assert!(
        examples.len() > 10 && examples.iter().all(|example| example.ends_with('\n')),
        "{block}"
    );
    let examples: Vec<_> = examples
        .iter()
        .map(|example| example.split_once('\n').unwrap())
        .collect();
    let commands = examples.iter().map(|(command, _)| format!("{command}\nprintf '\\0'\n"));
    let path = std::env::var("PATH").unwrap();
    let shell = tokio::process::Command::new("bash")
        .args(["-e", "-c", &commands.collect::<String>()])
        .current_dir(repo.path())
        .env_clear()
        .env("PATH", format!("{}:{path}", person.path("bin").display()))
        .env("HOME", person.path(""))
        .env("XDG_CONFIG_HOME", person.path("config"))
        .env("KAGE_STATE_DIR", person.path("state"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let done = said(shell.await.unwrap());
    let printed: Vec<_> = done.out.split('\0').collect();
    for ((command, expected), printed) in examples.iter().zip(&printed) {
        assert_eq!(printed, expected, "{command}: {done:#?}");
    }
    assert_eq!((done.code, printed.len()), (0, examples.len() + 1), "{done:#?}");
    person.kage(repo.path(), &["down"]).await;
}

#[tokio::test]
async fn every_line_says_what_it_is_and_the_last_has_the_report() {
    let (person, repo) = prepared();
    let run = [
        "run", "mend it", "--with", "fixer", "--verify", VERIFY, "--format", "jsonl",
    ];
    let run = person.kage(repo.path(), &run).await;
    assert_eq!(run.code, 0, "{run:#?}");
    let lines: Vec<Value> = run
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (last, before) = lines.split_last().unwrap();
    assert_eq!(last["report"]["best"]["session"], "fixer", "{last:#}");
    assert_eq!(lines[0]["type"], "task");
    for line in before {
        let of_task = match line["type"].as_str().unwrap() {
            "task" => &line["id"],
            "event" => &line["task_id"],
            other => panic!("{other}: {line:#}"),
        };
        assert_eq!(of_task, &last["id"], "{line:#}");
        assert_eq!(line.get("report"), None, "{line:#}");
    }
    let told = |body: &str| before.iter().filter(|line| line["event"].get(body).is_some()).count();
    assert_eq!((told("result_committed"), told("finished")), (1, 3), "{lines:#?}");
    let files = before.iter().find_map(|line| line["event"].get("files_changed"));
    assert_eq!(files.unwrap()["files"][0]["path"], "add.sh");
}

#[tokio::test]
async fn an_error_is_one_object_on_standard_output_and_words_beside() {
    let (person, repo) = prepared();
    let cases: [(&[&str], &str, u64); 4] = [
        (&["run", "x", "--with", "Not A Name"], "usage", 2),
        (&["ls", "--no-such-flag"], "usage", 2),
        (&["run", "x", "--with", "no-such-adapter"], "usage", 2),
        // The daemon runs since then.
        (&["show"], "not_found", 4),
    ];
    for (arguments, kind, code) in cases {
        for format in ["json", "jsonl"] {
            let failed = person
                .kage(repo.path(), &[arguments, &["--format", format]].concat())
                .await;
            assert_eq!(failed.code, i32::try_from(code).unwrap(), "{failed:#?}");
            let error: Value = serde_json::from_str(&failed.out).unwrap();
            assert_eq!(
                (&error["type"], &error["kind"], &error["code"]),
                (&"error".into(), &kind.into(), &code.into()),
                "{failed:#?}"
            );
            let message = error["message"].as_str().unwrap();
            assert!(failed.err.contains(message), "{failed:#?}");
        }
    }
    let refused = person
        .kage(
            repo.path(),
            &["run", "x", "--with", "no-such-adapter", "--format", "json"],
        )
        .await;
    let error = refused.json();
    assert_eq!(error["reason"], "NO_AGENT", "{error:#}");
    assert!(
        error["hint"].as_str().unwrap().contains("--wait-for-agent"),
        "{error:#}"
    );
    let help = person.kage(repo.path(), &["ls", "--help", "--format", "json"]).await;
    assert!(help.code == 0 && help.out.contains("Usage:"), "{help:#?}");
}
