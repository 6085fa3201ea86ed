//! Guarantees that need a warden: no process of a program is left, whatever it detaches and
//! whichever process dies. Linux only; other systems have no warden.
#![cfg(target_os = "linux")]

mod hostile;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kage_agent::process::{
    Cause, Chunk, Command, Containment, Control, Ended, Environment, Limits, RunError, Runner, Status, Stdin,
    WARDEN_ARGUMENT,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);
/// Tells the test below that it is the agent that gets killed.
const VICTIM: &str = "KAGE_TEST_VICTIM";

fn runner() -> Runner {
    Runner::Warden(env!("CARGO_BIN_EXE_kage").into())
}

fn limits() -> Limits {
    Limits {
        timeout: Some(Duration::from_secs(60)),
        grace: Duration::from_millis(300),
    }
}

/// What every program of these tests gets.
const PATH: (&str, &str) = ("PATH", "/usr/local/bin:/usr/bin:/bin");

fn sh(script: &str, cwd: &Path) -> Command {
    Command {
        program: "sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Environment::from_iter([PATH]),
        cwd: cwd.to_owned(),
        stdin: Stdin::Null,
    }
}

async fn run(command: Command, limits: Limits, control: Control) -> (Result<Ended, RunError>, String) {
    let (sender, mut chunks) = mpsc::channel::<Chunk>(1);
    let runner = runner();
    let gather = async {
        let mut output = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            output.extend_from_slice(&chunk.bytes);
        }
        String::from_utf8(output).expect("what the scripts print is UTF-8")
    };
    tokio::join!(runner.run(command, limits, control, sender), gather)
}

fn free() -> Control {
    Control::stop_only(CancellationToken::new())
}

/// Starts a process that escapes a process group: in its own session, forked twice, ignoring
/// SIGTERM. Each writes its process number into a file before the script continues.
const ESCAPE: &str = "
    detach() { setsid sh -c \"trap '' TERM HUP; echo \\$\\$ > $1.new; mv $1.new $1; while :; do sleep 0.05; done\" >&- 2>&- <&- & }
    (detach one &)
    (setsid sh -c \"(sh -c 'echo \\$\\$ > two.new; mv two.new two; exec sleep 1000' &)\" &)
    while [ ! -e one ] || [ ! -e two ]; do sleep 0.01; done
";

fn pid(folder: &Path, name: &str) -> Option<i32> {
    std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
}

/// The state of a process; `None` = it does not exist.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything but ends with the last bracket.
    stat.rsplit(')').next()?.trim_start().chars().next()
}

fn alive(pid: i32) -> bool {
    // A zombie is dead, unless one of its threads lives; its parent has not reaped it yet.
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    state(pid).is_some_and(|state| state != 'Z' || threads() > 1)
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn the_status_and_every_byte_come_through() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(runner().containment(), Containment::Warden);
    for (script, status) in [
        ("exit 0", Status::Code(0)),
        ("exit 42", Status::Code(42)),
        ("kill -KILL $$", Status::Signal(9)),
        ("kill -SEGV $$", Status::Signal(11)),
    ] {
        let (ended, _) = run(sh(script, folder.path()), limits(), free()).await;
        let ended = ended.unwrap();
        assert_eq!(
            (ended.cause, ended.status, ended.survivors),
            (Cause::Itself, status, 0),
            "{script}"
        );
    }
    let mut command = sh("cat; pwd; cat /proc/self/environ", folder.path());
    command.stdin = Stdin::Bytes(Bytes::from(vec![b'x'; 300_000]));
    let (_, output) = run(command, limits(), free()).await;
    let rest = output.trim_start_matches('x');
    assert_eq!(output.len() - rest.len(), 300_000);
    let cwd = std::fs::canonicalize(folder.path()).unwrap();
    let rest = rest.strip_prefix(&format!("{}\n", cwd.display())).unwrap();
    let names: Vec<_> = rest
        .split('\0')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert!(
        names.contains(&"PATH")
            && names
                .iter()
                .all(|name| ["PATH", "PWD", "OLDPWD", "_", "SHLVL"].contains(name))
    );
}

#[tokio::test]
async fn a_program_that_cannot_start_is_an_error() {
    let mut command = sh("", Path::new("/"));
    command.program = "/nonexistent/program".into();
    let (ended, _) = run(command, limits(), free()).await;
    let Err(RunError::Spawn { source, .. }) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn what_a_program_leaves_running_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (ended, output) = run(
        sh(&format!("{ESCAPE} echo bye; exit 3"), folder.path()),
        limits(),
        free(),
    )
    .await;
    let ended = ended.unwrap();
    assert_eq!(
        (ended.status, ended.survivors, output.as_str()),
        (Status::Code(3), 0, "bye\n")
    );
    for name in ["one", "two"] {
        assert!(!alive(pid(folder.path(), name).unwrap()), "{name}");
    }
}

#[tokio::test]
async fn stopping_ends_everything() {
    let folder = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let path = folder.path().to_owned();
    let command = sh(&format!("{ESCAPE} sleep 1000"), &path);
    let stop_when_begun = async {
        let (stop, path) = (stop.clone(), path.clone());
        let begun = move || {
            wait_for("both are running", || {
                path.join("one").exists() && path.join("two").exists()
            })
        };
        tokio::task::spawn_blocking(begun).await.unwrap();
        stop.cancel();
    };
    let control = Control::stop_only(stop.clone());
    let ((ended, _), ()) = tokio::join!(run(command, limits(), control), stop_when_begun);
    let ended = ended.unwrap();
    assert_eq!(
        (ended.cause, ended.status, ended.survivors),
        (Cause::Stopped, Status::Signal(15), 0)
    );
    for name in ["one", "two"] {
        assert!(!alive(pid(&path, name).unwrap()), "{name}");
    }
}

#[tokio::test]
async fn a_fork_bomb_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    // Each one lives for a moment and starts the next in a new session.
    let script =
        "trap '' TERM; echo 'setsid sh ./next & sleep 0.02' > next; for i in 1 2 3 4; do sh ./next & done; sleep 1000";
    let short = Limits {
        timeout: Some(Duration::from_millis(300)),
        ..limits()
    };
    let (ended, _) = run(sh(script, folder.path()), short, free()).await;
    let ended = ended.unwrap();
    assert_eq!((ended.cause, ended.survivors), (Cause::TimedOut, 0));
}

#[tokio::test]
async fn freezing_reaches_what_left_the_group() {
    let folder = tempfile::tempdir().unwrap();
    let (freeze, frozen) = watch::channel(false);
    let stop = CancellationToken::new();
    let control = Control {
        stop: stop.clone(),
        frozen,
    };
    let script = "setsid sh -c 'echo $$ > ticker; while :; do echo x >> ticks; sleep 0.01; done' & wait";
    let path = folder.path().to_owned();
    let ticks = folder.path().join("ticks");
    let size = move || std::fs::metadata(&ticks).map_or(0, |found| found.len());
    let watch = async {
        let watching = move || {
            wait_for("it ticks", || size() > 0);
            freeze.send_replace(true);
            // While it starts a program with `vfork`, it waits for a child that is stopped.
            wait_for("it stands still", || {
                pid(&path, "ticker").is_some_and(|pid| matches!(state(pid), Some('T' | 'D')))
            });
            let before = size();
            freeze.send_replace(false);
            wait_for("it goes on", || size() > before);
            freeze.send_replace(true);
        };
        tokio::task::spawn_blocking(watching).await.unwrap();
        // Frozen programs can be ended as well.
        stop.cancel();
    };
    let ((ended, _), ()) = tokio::join!(run(sh(script, folder.path()), limits(), control), watch);
    let ended = ended.unwrap();
    assert_eq!((ended.cause, ended.survivors), (Cause::Stopped, 0));
}

#[tokio::test]
async fn programs_are_killed_for_memory_before_their_wardens() {
    let folder = tempfile::tempdir().unwrap();
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let own: i32 = own.trim().parse().unwrap();
    // The warden lowers its own score again once the program runs.
    let script = format!(
        "until [ $(cat /proc/$PPID/oom_score_adj) = {own} ]; do sleep 0.01; done; cat /proc/self/oom_score_adj"
    );
    let (_, output) = run(sh(&script, folder.path()), limits(), free()).await;
    assert_eq!(output.trim().parse::<i32>().unwrap(), (own + 200).min(1000));
}

#[test]
fn a_program_whose_agent_is_gone_before_it_starts_is_ended() {
    use std::io::{Read as _, Write as _};

    let (mut agent, warden) = std::os::unix::net::UnixStream::pair().unwrap();
    let os = |text: &str| serde_json::json!({"Unix": text.as_bytes()});
    let start = serde_json::json!({"start": {
        "program": os("sleep"), "args": [os("1000")], "env": [[os("PATH"), os("/usr/local/bin:/usr/bin:/bin")]],
        "cwd": "/", "stdin": "null", "grace": {"secs": 1, "nanos": 0},
    }});
    writeln!(agent, "{start}").unwrap();
    drop(agent);
    let mut warden = std::process::Command::new(env!("CARGO_BIN_EXE_kage"))
        .arg(WARDEN_ARGUMENT)
        .stdin(std::os::fd::OwnedFd::from(warden))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Both hold it: it ends when neither is left.
    let mut held = warden.stdout.take().unwrap();
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(held.read_to_end(&mut Vec::new())));
    let nothing = end.recv_timeout(DEADLINE).expect("nothing is left").unwrap();
    assert_eq!(nothing, 0);
    warden.wait().unwrap();
}

#[tokio::test]
#[ignore = "not a test of its own: the agent that is killed in the test below"]
async fn victim() {
    let folder = std::env::var_os(VICTIM).expect("the test below says where");
    let folder = Path::new(&folder);
    let turn = std::fs::read_to_string(folder.join("turn")).unwrap();
    let (ended, _) = run(sh(&format!("{ESCAPE} {turn}; sleep 1000"), folder), limits(), free()).await;
    panic!("the program was to run until the agent is killed: {ended:?}");
}

#[test]
fn everything_ends_when_the_agent_is_killed() {
    // The second waits until the agent is about to be killed, because the agent would see it.
    for turn in [
        "true",
        "while [ ! -e now ]; do sleep 0.001; done; kill -STOP $PPID; touch turned",
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("turn"), turn).unwrap();
        let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored"])
            .env(VICTIM, folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pids = || Some([pid(folder.path(), "one")?, pid(folder.path(), "two")?]);
        wait_for("both are running", || pids().is_some());
        let pids = pids().unwrap();
        assert!(pids.iter().all(|pid| alive(*pid)));
        if turn != "true" {
            std::fs::write(folder.path().join("now"), "").unwrap();
            wait_for("the warden is stopped", || folder.path().join("turned").exists());
        }
        // SIGKILL: the agent cannot do anything about it any more.
        agent.kill().unwrap();
        agent.wait().unwrap();
        wait_for("nothing is left", || !pids.iter().any(|pid| alive(*pid)));
    }
}

/// As programs run in containers that were entered, and under many CI services: the session and the
/// group of the agent were begun outside its namespace of processes, where their number is 0.
#[test]
fn an_agent_whose_session_was_begun_outside_its_namespace_works() {
    let cases = [
        "the_status_and_every_byte_come_through",
        "hostile::a_session_that_kills_its_warden_leaves_nothing",
    ];
    pass_where_proc_is("mount -t proc proc /proc", &cases);
}

/// As a service with `ProcSubset=pid`: `/proc` has no files except those of processes.
#[test]
fn an_agent_that_sees_processes_and_nothing_else_works() {
    let cases = [
        "what_a_program_leaves_running_ends_with_it",
        "stopping_ends_everything",
        "hostile::a_session_that_nobody_waits_for_any_more_leaves_nothing",
    ];
    pass_where_proc_is("mount -t proc -o subset=pid proc /proc", &cases);
}

/// Passes tests of this file in a namespace of processes of their own.
fn pass_where_proc_is(mounted: &str, cases: &[&str]) {
    // The processes there are the machine's too.
    let _alone = hostile::ALONE.blocking_lock();
    let inside = |privileges: &[&str], test: &[&str]| {
        std::process::Command::new("unshare")
            .args(privileges)
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c"])
            .args([&format!("{mounted} && exec \"$@\""), "sh"])
            .args(test)
            .stdin(Stdio::null())
            .output()
    };
    let may = |privileges: &&&[&str]| inside(privileges, &["true"]).is_ok_and(|output| output.status.success());
    let ways = [&[][..], &["--user", "--map-root-user"]];
    let Some(privileges) = ways.iter().find(may) else {
        // `scripts/test` counts it.
        if let Some(skipped) = std::env::var_os("KAGE_SKIPPED") {
            use std::io::Write as _;
            let mut skipped = std::fs::OpenOptions::new()
                .append(true)
                .open(skipped)
                .expect("the list of skipped tests can be written");
            writeln!(skipped, "an agent in a namespace of processes: no {mounted:?} here")
                .expect("the list of skipped tests can be written");
        }
        return;
    };
    let this = std::env::current_exe().expect("a program knows its file");
    let this = this.to_str().expect("cargo names it in UTF-8");
    for case in cases {
        let output = inside(privileges, &[this, "--exact", case, "--nocapture"]).expect("unshare ran before");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{case}: {output:?}"
        );
    }
}
