//! The daemon of this machine, started again after its own end, after `kage down`, and after
//! everything was killed. No command needs a person to start it.

use std::time::{Duration, Instant};

use kage_tests::command::Person;
use kage_tests::repo::Repo;
use kage_tests::wait::wait_for;
use rustix::process::{Pid, Signal, kill_process};

async fn down(person: &Person, repo: &Repo) {
    let down = person.kage(repo.path(), &["down"]).await;
    assert_eq!(down.code, 0, "{down:#?}");
    assert!(!person.path("state/coordinator/endpoint").exists());
}

#[tokio::test]
async fn every_command_that_reads_starts_the_daemon_again() {
    let person = Person::new();
    person.adapter("maker", "cat >/dev/null; echo made > made.txt");
    let repo = Repo::sample(&person.path("repo"));
    let run = person.kage(repo.path(), &["run", "make it", "--with", "maker"]).await;
    assert_eq!(run.code, 0, "{run:#?}");
    for command in [
        &["ls"][..],
        &["show"],
        &["logs"],
        &["diff"],
        &["compare"],
        &["explain"],
        &["wait"],
        &["stop"],
        &["checkpoint", "ls"],
        &["checkpoint", "graph"],
        &["agent", "ls"],
        &["token", "ls"],
        &["merge", "--dry-run"],
        &["apply"],
    ] {
        down(&person, &repo).await;
        let answer = person.kage(repo.path(), command).await;
        assert_eq!(answer.code, 0, "{command:?}: {answer:#?}");
    }
    assert!(repo.path().join("made.txt").exists());
}

#[tokio::test]
async fn where_nothing_was_run_nothing_is_started() {
    let person = Person::new();
    let repo = Repo::sample(&person.path("repo"));
    for command in [
        &["ls"][..],
        &["show"],
        &["apply"],
        &["stop"],
        &["agent", "ls"],
        &["rm", "abcd"],
    ] {
        let answer = person.kage(repo.path(), command).await;
        assert_eq!(answer.code, 8, "{command:?}: {answer:#?}");
        assert!(answer.err.contains("kage run"), "{command:?}: {answer:#?}");
    }
    assert!(!person.path("state").exists(), "nothing is made");
}

#[tokio::test]
async fn a_command_that_comes_while_the_daemon_ends_is_answered() {
    let person = Person::new();
    person.adapter("maker", "cat >/dev/null; echo made > made.txt");
    let repo = Repo::sample(&person.path("repo"));
    let run = person.kage(repo.path(), &["run", "make it", "--with", "maker"]).await;
    assert_eq!(run.code, 0, "{run:#?}");
    for round in 0..3 {
        let down = person.kage(repo.path(), &["down"]);
        let ls = || person.kage(repo.path(), &["ls"]);
        let (down, one, other) = tokio::join!(down, ls(), ls());
        assert_eq!(down.code, 0, "{round}: {down:#?}");
        for listed in [one, other] {
            assert_eq!(listed.code, 0, "{round}: {listed:#?}");
            assert!(listed.out.contains("make it"), "{round}: {listed:#?}");
        }
    }
}

#[tokio::test]
async fn after_everything_was_killed_the_next_command_goes_on_and_dead_time_is_not_counted() {
    let person = Person::new();
    let go = person.path("go");
    let script = format!(
        "cat >/dev/null; echo begun; [ -e {} ] || sleep 1000; echo made > made.txt",
        go.display()
    );
    person.adapter("patient", &script);
    let repo = Repo::sample(&person.path("repo"));
    let begun = Instant::now();
    let mut client = person
        .command(repo.path(), &["run", "make it", "--with", "patient"])
        .spawn()
        .unwrap();
    let shown = async || {
        let shown = person.kage(repo.path(), &["show", "--format", "json"]).await;
        (shown.code == 0).then(|| shown.json())
    };
    wait_for("the session runs", async || {
        let shown = shown().await?;
        (shown["sessions"][0]["state"] == "SESSION_STATE_RUNNING").then_some(())
    })
    .await;
    let pid = std::fs::read_to_string(person.path("state/daemon.lock")).unwrap();
    let daemon = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    // The client first: it would start the daemon again.
    client.kill().await.unwrap();
    kill_process(daemon, Signal::KILL).unwrap();
    let killed = Instant::now();
    assert!(person.path("state/coordinator/endpoint").exists(), "it left its files");
    // Another program listens at the old address, and must not be asked.
    std::fs::write(person.path("state/coordinator/endpoint"), "http://127.0.0.1:9\n").unwrap();
    // Nothing runs: this time must be missing from the shown durations.
    tokio::time::sleep(Duration::from_secs(3)).await;
    std::fs::write(&go, "").unwrap();
    let dead = killed.elapsed();

    let listed = person.kage(repo.path(), &["ls"]).await;
    assert_eq!(listed.code, 0, "{listed:#?}");
    let waited = person.kage(repo.path(), &["wait"]).await;
    assert_eq!(waited.code, 0, "{waited:#?}");
    let session = shown().await.unwrap()["sessions"][0].clone();
    assert_eq!(
        (&session["state"], &session["attempts"]),
        (&"SESSION_STATE_UNVERIFIED".into(), &2.into()),
        "{session:#}"
    );
    let ran = session["ran"].as_str().unwrap().trim_end_matches('s');
    let ran = Duration::from_secs_f64(ran.parse().unwrap());
    let most = begun.elapsed() - dead;
    assert!(ran <= most, "{ran:?} of {most:?}, and {dead:?} dead");
    let compared = person.kage(repo.path(), &["compare", "--format", "json"]).await.json();
    assert_eq!(compared["report"]["rows"][0]["session"]["ran"], session["ran"]);
}
