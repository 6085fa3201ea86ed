//! Sessions that attack their wardens: none of their processes is left, and other sessions are not
//! harmed.

use std::time::Duration;

use kage_agent::process::{Cause, Control, Ended, Environment, RunError, Status, WardenLoss, settle};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{DEADLINE, ESCAPE, PATH, alive, free, limits, pid, run, sh, wait_for};

/// The processes that have a mark in their arguments or their environment.
fn marked(mark: &str) -> Vec<i32> {
    let has = |pid: i32, file: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    let entries = std::fs::read_dir("/proc").expect("Linux has it").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| (has(*pid, "cmdline") || has(*pid, "environ")) && alive(*pid))
        .collect()
}

/// What a session does before it attacks its warden, `$PPID`. All its processes have `$MARK` in
/// their arguments, even if they clear their environment. `TEST` stands for this process: the
/// session's processes end with it, even if it is killed during a test.
const HOSTILE: [(&str, &str); 4] = [
    (
        "a loop in a session of its own",
        "setsid sh -c 'trap \"\" TERM HUP; while kill -0 TEST; do sleep 0.05; done' $MARK & sleep 0.01",
    ),
    (
        "a daemon: twice forked, another folder, nothing inherited",
        "(cd / && env -i setsid sh -c '(trap \"\" TERM; while kill -0 TEST; do /bin/sleep 0.01; done) &' $MARK </dev/null >/dev/null 2>&1 &)",
    ),
    (
        "each lives for a moment and starts the next in a session of its own",
        "echo 'kill -0 TEST || exit; setsid sh ./next $1 & sleep 0.01' > next; for i in 1 2 3; do sh ./next $MARK & done",
    ),
    (
        "each starts the next in a session of its own and is gone",
        "echo 'kill -0 TEST || exit; setsid sh ./next $1 & ' > next; sh ./next $MARK &",
    ),
];

/// A session beside the hostile one, until it is stopped.
struct Neighbour {
    folder: tempfile::TempDir,
    stop: CancellationToken,
    run: tokio::task::JoinHandle<(Result<Ended, RunError>, String)>,
}

impl Neighbour {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let stop = CancellationToken::new();
        let (path, control) = (folder.path().to_owned(), Control::stop_only(stop.clone()));
        let run =
            tokio::spawn(async move { run(sh(&format!("{ESCAPE} wait; sleep 1000"), &path), limits(), control).await });
        let path = folder.path().to_owned();
        let begun = move || {
            wait_for("the neighbour runs", || {
                path.join("one").exists() && path.join("two").exists()
            })
        };
        tokio::task::spawn_blocking(begun).await.expect("it does not panic");
        Self { folder, stop, run }
    }

    async fn ends_unharmed(self) {
        for name in ["one", "two"] {
            assert!(
                alive(pid(self.folder.path(), name).expect("it wrote its number")),
                "{name} of the neighbour"
            );
        }
        self.stop.cancel();
        let (ended, _) = self.run.await.expect("it does not panic");
        let ended = ended.expect("it was stopped");
        assert_eq!((ended.cause, ended.survivors), (Cause::Stopped, 0));
    }
}

/// A session that does something hostile and then this; its end, when nothing of it is left.
async fn turn_against(how: &str, hostile: &str, stop: CancellationToken) -> Result<Ended, RunError> {
    let folder = tempfile::tempdir().expect("a folder");
    let mark = format!("mark-{:032x}", rand::random::<u128>());
    let hostile = hostile.replace("TEST", &std::process::id().to_string());
    let mut command = sh(&format!("{hostile}\n{how}"), folder.path());
    command.env = Environment::from_iter([PATH, ("MARK", &mark)]);
    let (ended, _) = run(command, limits(), Control::stop_only(stop)).await;
    assert_eq!(marked(&mark), Vec::<i32>::new(), "{hostile}: {ended:?}");
    ended
}

/// These sessions start programs as fast as they can: they run one test at a time, or each would
/// only measure how busy the others keep the machine.
pub(super) static ALONE: Mutex<()> = Mutex::const_new(());

/// Does it 20 times, five at the same time: as many sessions that turn against their wardens.
async fn twenty_times(how: &str, hostile: &str, stop: &CancellationToken) -> Vec<Result<Ended, RunError>> {
    let mut ends = Vec::new();
    for _ in 0..4 {
        let five = (0..5).map(|_| turn_against(how, hostile, stop.clone()));
        ends.extend(futures_util::future::join_all(five).await);
    }
    ends
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_kills_its_warden_leaves_nothing() {
    let _alone = ALONE.lock().await;
    let neighbour = Neighbour::start().await;
    for (what, hostile) in HOSTILE {
        for ended in twenty_times("kill -KILL $PPID; sleep 1000", hostile, &CancellationToken::new()).await {
            let Err(RunError::WardenLost { how, survivors: 0, .. }) = ended else {
                panic!("{what}: {ended:?}");
            };
            assert_eq!(how, WardenLoss::Killed(9), "{what}");
        }
    }
    neighbour.ends_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_stops_its_warden_leaves_nothing() {
    let _alone = ALONE.lock().await;
    let neighbour = Neighbour::start().await;
    for (what, hostile) in HOSTILE {
        for ended in twenty_times("kill -STOP $PPID; sleep 1000", hostile, &CancellationToken::new()).await {
            let Err(RunError::WardenLost { how, survivors: 0, .. }) = ended else {
                panic!("{what}: {ended:?}");
            };
            assert_eq!(how, WardenLoss::Stopped, "{what}");
        }
    }
    neighbour.ends_unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_stops_its_warden_is_stopped_like_another() {
    let _alone = ALONE.lock().await;
    for (what, hostile) in HOSTILE {
        // It is stopped before the warden is observed for the first time, or after.
        let stop = CancellationToken::new();
        let stopping = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stop.cancel();
        };
        let how = "trap '' TERM; kill -STOP $PPID; while :; do sleep 0.1; done";
        let (ends, ()) = tokio::join!(twenty_times(how, hostile, &stop), stopping);
        for ended in ends {
            match ended {
                Ok(ended) => assert_eq!((ended.cause, ended.survivors), (Cause::Stopped, 0), "{what}"),
                Err(RunError::WardenLost {
                    how: WardenLoss::Stopped,
                    survivors: 0,
                    ..
                }) => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_takes_its_wardens_files_away_leaves_nothing() {
    for program in ["prlimit", "setsid"] {
        if std::process::Command::new(program).arg("--version").output().is_err() {
            eprintln!("SKIPPED: no {program}");
            return;
        }
    }
    // The warden cannot look into /proc any more.
    let how = "prlimit --pid $PPID --nofile=0:0 || exit 9; exit 3";
    let ended = turn_against(how, HOSTILE[0].1, CancellationToken::new()).await.unwrap();
    assert_eq!((ended.status, ended.survivors), (Status::Code(3), 0));
}

#[tokio::test]
async fn a_process_that_goes_on_without_its_first_thread_is_ended() {
    if std::process::Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no python3");
        return;
    }
    // In /proc it looks like a zombie. 60 and 93 are `exit`, which ends one thread.
    let hidden = "import ctypes, os, platform, sys, threading, time
threading.Thread(target=lambda: [open('runs', 'w'), time.sleep(1000)]).start()
ctypes.CDLL(None).syscall(60 if platform.machine() == 'x86_64' else 93, 0)";
    let hostile = format!("setsid python3 -c \"{hidden}\" $MARK & while [ ! -e runs ]; do sleep 0.01; done");
    for how in ["exit 0", "kill -KILL $PPID; sleep 1000"] {
        let ended = turn_against(how, &hostile, CancellationToken::new()).await;
        let left = match ended {
            Ok(ended) => ended.survivors,
            Err(RunError::WardenLost { survivors, .. }) => survivors,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(left, 0, "{how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_traces_its_warden_leaves_nothing() {
    if std::process::Command::new("strace").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no strace");
        return;
    }
    let how = "strace -f -o /dev/null -p $PPID & sleep 1000";
    let ended = turn_against(how, HOSTILE[0].1, CancellationToken::new()).await;
    let Err(RunError::WardenLost { how, survivors: 0, .. }) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(how, WardenLoss::Traced);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_nobody_waits_for_any_more_leaves_nothing() {
    let _alone = ALONE.lock().await;
    for how in ["kill -STOP $PPID", "true"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let script = format!("{ESCAPE} {how}; touch turned; sleep 1000");
        let running = tokio::spawn(async move { run(sh(&script, &path), limits(), free()).await });
        let turned = folder.path().join("turned");
        let deadline = tokio::time::Instant::now() + DEADLINE;
        // A busy machine may end it before its last message, because its warden is stopped by then.
        while !turned.exists() && !running.is_finished() {
            assert!(tokio::time::Instant::now() < deadline, "it turned");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.abort();
        match running.await {
            Ok((Err(RunError::WardenLost { survivors: 0, .. }), _)) => {}
            Ok(ended) => panic!("{ended:?}"),
            Err(aborted) => assert!(aborted.is_cancelled()),
        }
        settle(DEADLINE).await;
        let path = folder.path().to_owned();
        let gone = move || {
            for name in ["one", "two"] {
                wait_for(name, || !alive(pid(&path, name).unwrap()));
            }
        };
        tokio::task::spawn_blocking(gone).await.unwrap();
    }
}
