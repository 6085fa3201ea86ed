//! What a person does with a coordinator's data: copies it while it works, loses it, and puts it back;
//! and a call that is cut off, which is repeated without a second task.

use std::time::Duration;

use kage_tests::command::{Person, said};
use kage_tests::faults::link::{Link, Weather};
use kage_tests::repo::{Repo, VERIFY};
use kage_tests::wait::wait_for;

const FIXER: &str = "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh";

#[tokio::test]
async fn a_backup_is_put_back_after_everything_was_lost() {
    let person = Person::new();
    person.adapter("fixer", FIXER);
    let repo = Repo::sample(&person.path("repo"));
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;
    let run = ["run", "mend it", "--with", "fixer", "--verify", VERIFY];
    let ran = kage(&run).await;
    assert_eq!(ran.code, 0, "{ran:#?}");

    let backup = person.path("backup");
    let backup = backup.to_str().unwrap();
    let made = kage(&["coordinator", "backup", backup, "--format", "json"]).await;
    assert_eq!(made.code, 0, "{made:#?}");
    let made = made.json();
    assert_eq!(
        (&made["tasks"], &made["repositories"]),
        (&1.into(), &1.into()),
        "{made:#}"
    );
    assert_eq!(made["flaws"].as_array().map(Vec::len), Some(0), "{made:#}");
    for checked in [&["coordinator", "verify", backup][..], &["coordinator", "verify"]] {
        let checked = kage(checked).await;
        assert_eq!(checked.code, 0, "{checked:#?}");
        assert!(checked.out.contains("has 1 tasks"), "{checked:#?}");
    }
    let again = kage(&["coordinator", "backup", backup]).await;
    assert_eq!(again.code, 2, "{again:#?}");
    assert!(again.err.contains("is not empty"), "{again:#?}");
    assert_eq!(kage(&["down"]).await.code, 0);
    let early = kage(&["coordinator", "restore", backup]).await;
    assert_eq!(early.code, 2, "{early:#?}");
    assert!(early.err.contains("is not empty"), "{early:#?}");

    std::fs::remove_dir_all(person.path("state/coordinator")).unwrap();
    let restored = kage(&["coordinator", "restore", backup]).await;
    assert_eq!(restored.code, 0, "{restored:#?}");
    let listed = kage(&["ls", "--format", "json"]).await.json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed:#}");
    let applied = kage(&["apply"]).await;
    assert_eq!(applied.code, 0, "{applied:#?}");
    assert!(repo.git(&["diff"]).contains("+add()"));
    assert_eq!(kage(&["down"]).await.code, 0);
}

#[tokio::test]
async fn a_call_that_was_cut_off_is_repeated_without_a_second_task() {
    let person = Person::new();
    person.adapter("fixer", FIXER);
    let repo = Repo::sample(&person.path("repo"));
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;
    // The daemon is there, and another way to it.
    let up = kage(&["run", "mend it", "--with", "fixer", "-d"]).await;
    assert_eq!(up.code, 0, "{up:#?}");
    let endpoint = std::fs::read_to_string(person.path("state/coordinator/endpoint")).unwrap();
    let link = Link::to(endpoint.trim()).await;
    let remote = |arguments: &[&str]| {
        let mut command = person.command(repo.path(), arguments);
        command
            .env("KAGE__COORDINATOR__URL", link.url())
            .env("KAGE__COORDINATOR__TOKEN_FILE", person.path("state/coordinator/token"));
        command
    };
    let remotely = async |arguments: &[&str]| said(remote(arguments).output().await.unwrap());
    let number = async || {
        kage(&["ls", "--format", "json"])
            .await
            .json()
            .as_array()
            .map_or(0, Vec::len)
    };

    // Its answer takes a while, in which it is cut off.
    let mut known = number().await;
    let cut_off = loop {
        link.set(Weather::Bad {
            delay: Duration::from_millis(250),
            jitter: Duration::ZERO,
            bytes_per_second: u32::MAX,
            loss: 0,
        });
        let child = remote(&["run", "mend it", "--with", "fixer", "-d"]).spawn().unwrap();
        let child = tokio::spawn(child.wait_with_output());
        wait_for("the task is stored", async || (number().await > known).then_some(())).await;
        known += 1;
        link.set(Weather::Cut);
        let ran = said(child.await.unwrap().unwrap());
        // Unless the answer was quicker.
        if ran.code != 0 {
            break ran;
        }
    };
    assert_eq!(cut_off.code, 8, "{cut_off:#?}");
    assert!(
        cut_off.err.contains("it is not known whether the task was stored"),
        "{cut_off:#?}"
    );
    let (_, id) = cut_off.err.split_once("--request-id ").unwrap();
    let id = id.split('`').next().unwrap();

    link.set(Weather::Fair);
    let again = ["run", "mend it", "--with", "fixer", "-d", "--request-id", id];
    let first = remotely(&again).await;
    assert_eq!(first.code, 0, "{first:#?}");
    assert_eq!(remotely(&again).await.out, first.out);
    assert_eq!(number().await, known, "no second task");
    let other = remotely(&["run", "mend another", "--with", "fixer", "-d", "--request-id", id]).await;
    assert_eq!(other.code, 2, "{other:#?}");
    assert!(other.err.contains("was used for another request"), "{other:#?}");

    // Also by the daemon that the command finds itself, which gets the values of the shell.
    let own = [
        "run",
        "mend it",
        "--with",
        "fixer",
        "-d",
        "--env",
        "WORDS",
        "--request-id",
        "own",
    ];
    let own = async || {
        let mut command = person.command(repo.path(), &own);
        said(command.env("WORDS", "of this shell").output().await.unwrap())
    };
    let first = own().await;
    assert_eq!(first.code, 0, "{first:#?}");
    assert_eq!(own().await.out, first.out);
    assert_eq!(number().await, known + 1);
    assert_eq!(kage(&["down", "--force"]).await.code, 0);
}
