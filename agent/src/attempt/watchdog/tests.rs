//! Adapters that end too late, or not at all.

use std::pin::pin;
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use kage_core::fleet::AdapterInfo;
use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::adapters::AdapterConfig;
use crate::adapters::api::tests::provider::{Answer, Place, message, tool};
use crate::adapters::cli::CliAdapter;
use crate::adapters::cli::manifest::Manifest;
use crate::process::{AgentEnvironment, Runner};

const MINUTE: Duration = Duration::from_secs(60);

/// Does nothing until it is told to stop, and then what it was made for.
enum Still {
    Stops,
    /// Holds its thread until somebody sends.
    Blocks(Mutex<std::sync::mpsc::Receiver<()>>),
}

impl Adapter for Still {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: "still".parse().unwrap(),
            version: String::new(),
            unavailable: None,
            resumes: self.resumes(),
            access: None,
            slots: 0,
            hears: false,
        }
    }

    fn secrets(&self) -> Vec<crate::process::Secret> {
        Vec::new()
    }

    fn run(&self, _: SessionInput, _: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        Box::pin(async move {
            stop.cancelled().await;
            match self {
                Self::Stops => {}
                Self::Blocks(until) => until.lock().unwrap().recv().unwrap(),
            }
            AdapterEnd::Stopped
        })
    }
}

fn input(timeout: Duration, idle: Duration, frozen: watch::Receiver<bool>) -> SessionInput {
    SessionInput {
        limits: SessionLimits { timeout, idle },
        frozen,
        ..SessionInput::blank("/nonexistent".into())
    }
}

#[tokio::test]
async fn neither_clock_runs_while_the_attempt_is_frozen() {
    for (limit, idle, why) in [
        (Duration::ZERO, MINUTE, "it took longer"),
        (MINUTE, Duration::ZERO, "it printed nothing"),
    ] {
        let (freeze, frozen) = watch::channel(true);
        let (_active, last_active) = watch::channel(Instant::now());
        let stopped = CancellationToken::new();
        let mut watched = pin!(watch_over(
            Arc::new(Still::Stops),
            input(limit, idle, frozen),
            Reporter::channel(1).0,
            last_active,
            &stopped,
            MINUTE,
        ));
        assert!(timeout(Duration::from_millis(20), &mut watched).await.is_err());
        freeze.send_replace(false);
        let Watched {
            end: AdapterEnd::Failed(failure),
            abandoned: false,
        } = watched.await
        else {
            panic!("it ended otherwise");
        };
        assert!(failure.message.starts_with(why), "{failure}");
    }
}

#[tokio::test]
async fn an_attempt_that_nobody_can_thaw_ends_at_its_limit() {
    for (limit, idle, why) in [
        (Duration::ZERO, MINUTE, "it took longer"),
        (MINUTE, Duration::ZERO, "it printed nothing"),
    ] {
        let (freeze, frozen) = watch::channel(true);
        let (_active, last_active) = watch::channel(Instant::now());
        let stopped = CancellationToken::new();
        drop(freeze);
        let watched = watch_over(
            Arc::new(Still::Stops),
            input(limit, idle, frozen),
            Reporter::channel(1).0,
            last_active,
            &stopped,
            MINUTE,
        );
        assert_eq!(timed_out(watched.await), why);
    }
}

/// Which clock ended it, in the first words of its failure.
fn timed_out(watched: Watched) -> String {
    let AdapterEnd::Failed(failure) = watched.end else {
        panic!("it ended otherwise: {:?}", watched.end);
    };
    assert_eq!((failure.kind, watched.abandoned), (FailureKind::Timeout, false));
    failure.message.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Lets the loop over an API work with this provider.
async fn watch_loop(place: &Place, limits: SessionLimits) -> Watched {
    let (reporter, mut reports) = Reporter::channel(8);
    let (active, last_active) = watch::channel(Instant::now());
    let input = SessionInput {
        limits,
        ..place.input()
    };
    let stopped = CancellationToken::new();
    let watching = watch_over(place.shared(), input, reporter, last_active, &stopped, MINUTE);
    let listening = async {
        while reports.recv().await.is_some() {
            active.send_replace(Instant::now());
        }
    };
    tokio::join!(watching, listening).0
}

#[tokio::test]
async fn a_loop_over_an_api_ends_at_the_limits_of_its_task() {
    let short = Duration::from_millis(300);
    let minute = SessionLimits {
        timeout: MINUTE,
        idle: MINUTE,
    };
    // The provider does not answer.
    let place = Place::new([Answer::Silence]).await;
    let idle = SessionLimits { idle: short, ..minute };
    assert_eq!(timed_out(watch_loop(&place, idle).await), "it printed nothing");

    // A tool works for ever. It starts no further program, which a busy system may refuse.
    let bash = tool("t", "bash", json!({"command": "echo $$ > pid; exec sleep 600"}));
    let place = Place::new([Answer::Stream(message(&[bash], "tool_use"))]).await;
    let timeout = SessionLimits {
        timeout: 10 * short,
        ..minute
    };
    assert_eq!(timed_out(watch_loop(&place, timeout).await), "it took longer");
    // On a machine that is busy it may not have begun.
    if let Ok(pid) = std::fs::read_to_string(place.folder.path().join("tree/pid")) {
        let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        assert!(rustix::process::test_kill_process(pid).is_err(), "its tool is ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_blocks_its_thread_is_given_up() {
    let (release, until) = std::sync::mpsc::channel();
    let (_active, last_active) = watch::channel(Instant::now());
    let stopped = CancellationToken::new();
    stopped.cancel();
    let watched = watch_over(
        Arc::new(Still::Blocks(Mutex::new(until))),
        input(MINUTE, MINUTE, watch::channel(false).1),
        Reporter::channel(1).0,
        last_active,
        &stopped,
        Duration::from_millis(20),
    )
    .await;
    let given_up = Watched {
        end: AdapterEnd::Stopped,
        abandoned: true,
    };
    assert_eq!(watched, given_up);
    release.send(()).unwrap();
}

/// Lets a script work as the program of this manifest, without any report but its first.
async fn watch_program(script: &str, manifest: &str, asked: SessionLimits) -> Watched {
    let folder = tempfile::tempdir().unwrap();
    let text = format!("name = 'x'\ncommand = 'sh'\nargs = ['-c', {script:?}]\n{manifest}");
    let manifest = Manifest::parse(&text, &folder.path().join("x.toml")).unwrap();
    let env = [("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())].into();
    let adapter = CliAdapter::new(
        manifest,
        &AdapterConfig::new(AgentEnvironment::new(env), Runner::default()),
        &crate::adapters::logins().unwrap(),
    )
    .await;
    let (reporter, mut reports) = Reporter::channel(8);
    let (active, last_active) = watch::channel(Instant::now());
    let input = SessionInput {
        limits: asked,
        ..SessionInput::blank(folder.path().join("scratch"))
    };
    let stopped = CancellationToken::new();
    let watching = watch_over(Arc::new(adapter), input, reporter, last_active, &stopped, MINUTE);
    let listening = async {
        while reports.recv().await.is_some() {
            active.send_replace(Instant::now());
        }
    };
    tokio::join!(watching, listening).0
}

#[tokio::test]
async fn a_program_ends_at_the_limit_of_its_manifest_or_of_its_task() {
    let minute = SessionLimits {
        timeout: MINUTE,
        idle: MINUTE,
    };
    let short = Duration::from_millis(100);
    let busy = "while :; do echo x; sleep 0.01; done";
    let cases = [
        (
            "sleep 60",
            "",
            SessionLimits { idle: short, ..minute },
            "it printed nothing",
        ),
        (
            "echo x; sleep 60",
            "[watchdog]\nidle_seconds = 1",
            minute,
            "it printed nothing",
        ),
        (
            busy,
            "",
            SessionLimits {
                timeout: short,
                ..minute
            },
            "it took longer",
        ),
        (
            busy,
            "[watchdog]\ntimeout_seconds = 1",
            minute,
            "it took longer than 1 s",
        ),
        // A manifest lowers a limit and does not raise it.
        (
            "sleep 60",
            "[watchdog]\nidle_seconds = 300",
            SessionLimits { idle: short, ..minute },
            "it printed nothing",
        ),
    ];
    for (script, manifest, asked, why) in cases {
        let watched = watch_program(script, manifest, asked).await;
        let AdapterEnd::Failed(failure) = watched.end else {
            panic!("{script}: {:?}", watched.end);
        };
        assert_eq!((failure.kind, watched.abandoned), (FailureKind::Timeout, false));
        assert!(failure.message.starts_with(why), "{script}: {failure}");
    }
}

#[tokio::test]
async fn committing_and_sending_have_a_limit_that_stands_still_while_the_attempt_is_frozen() {
    let (freeze, frozen) = watch::channel(true);
    assert_eq!(within(Duration::ZERO, frozen.clone(), async { 1 }).await, Some(1));
    let mut stuck = pin!(within(Duration::ZERO, frozen, std::future::pending::<()>()));
    assert!(timeout(Duration::from_millis(20), &mut stuck).await.is_err());
    freeze.send_replace(false);
    assert_eq!(stuck.await, None);
}
