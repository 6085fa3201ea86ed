//! The escape suite: every attack inside a box of every tier that holds it, and outside.

use std::sync::Arc;
use std::time::Duration;

use kage_agent::contain::{AskedTier, Network, Room};
use kage_core::contain::Tier;

use super::attacks::{Attack, CALLS, Outside, PYTHON, SHELL};
use super::{Machine, SECRET, TIERS, free, run, skip};

/// How many attacks run at once.
const AT_ONCE: usize = 4;

/// Runs attacks, and returns those that got out, with what the others said.
async fn got_out(
    machine: &Arc<Machine>,
    room: Option<&Arc<Room>>,
    attacks: &[(&'static Attack, bool)],
) -> Vec<(&'static str, bool, String)> {
    // Outside they work, and would be in each other's way.
    let at_once = if room.is_some() { AT_ONCE } else { 1 };
    let turns = Arc::new(tokio::sync::Semaphore::new(at_once));
    let mut running = tokio::task::JoinSet::new();
    for (attack, in_python) in attacks {
        let (machine, room, turns) = (Arc::clone(machine), room.cloned(), Arc::clone(&turns));
        let (attack, in_python) = (*attack, *in_python);
        running.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            let mut command = machine.sh(attack.script);
            if in_python {
                command.program = "python3".into();
                command.args = vec!["-c".into(), format!("{PYTHON}{}", attack.script).into()];
            }
            let (ended, said) = run(room.as_ref(), command, free()).await;
            (attack.name, ended.unwrap().status.success(), said)
        });
    }
    running.join_all().await
}

fn all() -> Vec<(&'static Attack, bool)> {
    let shell = SHELL.iter().map(|attack| (attack, false));
    shell.chain(CALLS.iter().map(|attack| (attack, true))).collect()
}

/// Whether this process has `CAP_SYS_ADMIN`.
fn is_admin() -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & CAP_SYS_ADMIN != 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_gets_out_of_a_box_and_outside_they_do() {
    assert!(all().len() >= 60, "{}", all().len());
    let machine = Arc::new(Machine::new());
    let _shared = tempfile::Builder::new()
        .prefix("kage-test-")
        .tempfile_in("/dev/shm")
        .unwrap();
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        let due: Vec<_> = all().into_iter().filter(|(attack, _)| attack.tier <= tier).collect();
        let out = got_out(&machine, Some(&room), &due).await;
        let (mut names, mut leaks) = (Vec::new(), Vec::new());
        for (name, got_out, said) in out {
            if got_out {
                names.push(name);
            }
            if said.contains(SECRET) {
                leaks.push((name, said));
            }
        }
        assert!(names.is_empty() && leaks.is_empty(), "{tier}: {names:?} {leaks:?}");
    }
    // Each does what it says: outside it works.
    let admin = is_admin();
    let due: Vec<_> = all()
        .into_iter()
        .filter(|(attack, _)| match attack.outside {
            Outside::Everybody => true,
            Outside::Admin => admin,
            Outside::Unknown => false,
        })
        .collect();
    let held: Vec<_> = got_out(&machine, None, &due)
        .await
        .into_iter()
        .filter(|(_, got_out, _)| !got_out)
        .collect();
    assert!(held.is_empty(), "{held:?}");
}

#[tokio::test]
async fn a_box_without_a_network_has_a_loopback_and_nothing_else() {
    let machine = Machine::new();
    let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listening.local_addr().unwrap().port();
    let room = machine.room(Tier::T2, AskedTier::T2);
    let script = |what: &str| {
        let mut command = machine.sh("");
        command.program = "python3".into();
        command.args = vec!["-c".into(), format!("import socket\n{what}").into()];
        command
    };
    let to_host = format!("socket.create_connection(('127.0.0.1', {port}), 2)");
    for (what, open, none) in [
        (to_host.as_str(), true, false),
        (
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))",
            true,
            false,
        ),
        (
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('169.254.169.254', 80))",
            true,
            false,
        ),
        (
            "l = socket.create_server(('127.0.0.1', 0)); socket.create_connection(l.getsockname(), 2)",
            true,
            true,
        ),
    ] {
        for (network, expected) in [(Network::Open, open), (Network::None, none)] {
            // Whether a machine of a test has a route is its own matter.
            if network == Network::Open && what != to_host {
                continue;
            }
            let (ended, said) = run(Some(&room.on(network)), script(what), free()).await;
            assert_eq!(ended.unwrap().status.success(), expected, "{network:?} {what}: {said}");
        }
    }
}

#[test]
fn an_ordinary_user_has_the_same_boxes() {
    as_an_ordinary_user(&["escapes::no_attack_gets_out_of_a_box_and_outside_they_do"]);
}

#[test]
fn a_fork_bomb_of_an_ordinary_user_ends_at_the_limit_of_its_box() {
    as_an_ordinary_user(&["escapes::a_fork_bomb_ends_at_the_limit_of_its_box", "--ignored"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the test above runs it, as an ordinary user: nothing limits root"]
async fn a_fork_bomb_ends_at_the_limit_of_its_box() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let machine = Machine::new();
    let room = machine.room(Tier::T2, AskedTier::T2);
    let bomb = "exec perl -e '$n = 0; while (defined(my $p = fork)) { if (!$p) { sleep 600; exit } $n++ }
        open my $f, \">\", \"full.new\"; print $f $n; close $f; rename \"full.new\", \"full\"; sleep 600'";
    let stop = tokio_util::sync::CancellationToken::new();
    let bombing = run(
        Some(&room),
        machine.sh(bomb),
        kage_agent::process::Control::stop_only(stop.clone()),
    );
    let watching = async {
        let full = machine.worktree.join("full");
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !full.exists() {
            assert!(std::time::Instant::now() < deadline, "no fork fails");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A neighbour of the same user starts what it likes.
        let script = "i=0; while [ $i -lt 200 ]; do sleep 5 & i=$((i+1)); done; echo $i";
        let beside = run(Some(&room), machine.sh(script), free()).await;
        stop.cancel();
        (std::fs::read_to_string(full).unwrap(), beside)
    };
    let ((bomb, _), (forks, (ended, said))) = tokio::join!(bombing, watching);
    assert_eq!(bomb.unwrap().survivors, 0);
    let forks: u64 = forks.parse().unwrap();
    assert!((1000..4096).contains(&forks), "{forks}");
    assert!(ended.unwrap().status.success() && said.ends_with("200\n"), "{said}");
}

/// Runs a test again as a user without rights, where this one is root.
fn as_an_ordinary_user(arguments: &[&str]) {
    if !rustix::process::geteuid().is_root() {
        return skip(
            "contain",
            "an ordinary user runs the suite, so boxes of root are not tried",
        );
    }
    let ordinary = || {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command
    };
    if !ordinary().arg("true").status().is_ok_and(|status| status.success()) {
        return skip("contain", "setpriv cannot become an ordinary user");
    }
    let place = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(place.path(), Some(65534), Some(65534)).unwrap();
    // They may be in a folder that only root enters.
    let own = tempfile::tempdir().unwrap();
    std::fs::set_permissions(own.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copied = |from: std::path::PathBuf, name: &str| {
        let to = own.path().join(name);
        // By another process: what another thread starts meanwhile would hold it open for writing.
        let copied = std::process::Command::new("cp").arg(from).arg(&to).status();
        assert!(copied.is_ok_and(|status| status.success()));
        to
    };
    let suite = copied(std::env::current_exe().unwrap(), "suite");
    let program = copied(super::executable(), "kage");
    let mut child = ordinary()
        .arg(suite)
        .env(super::PROGRAM, program)
        .arg("--exact")
        .args(arguments)
        .env("TMPDIR", place.path())
        .env("HOME", place.path())
        .current_dir("/")
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(600);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(std::time::Instant::now() < deadline, "it takes too long");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}
