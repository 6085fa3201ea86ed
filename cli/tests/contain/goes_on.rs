//! What a box does not change: how programs end, are fed, frozen and stopped, and what they may write.

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kage_agent::process::{Cause, Control, Environment, Limits, RunError, Runner, Status, Stdin};
use kage_core::contain::Tier;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Machine, TIERS, executable, free, limits, run};

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_status_the_input_and_every_byte_come_through() {
    let machine = Machine::new();
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        // In T2 another process reports the program's end, in a number as a shell does.
        let killed = match tier {
            Tier::T2 => Status::Code(137),
            _ => Status::Signal(9),
        };
        for (script, status) in [
            ("exit 0", Status::Code(0)),
            ("exit 42", Status::Code(42)),
            ("kill -KILL $$", killed),
        ] {
            let (ended, said) = run(Some(&room), machine.sh(script), free()).await;
            let ended = ended.unwrap();
            assert_eq!(
                (ended.cause, ended.status, ended.survivors),
                (Cause::Itself, status, 0),
                "{tier} {script}: {said}"
            );
        }
        let mut command = machine.sh("cat; pwd; echo err >&2");
        command.stdin = Stdin::Bytes(Bytes::from(vec![b'x'; 300_000]));
        let (ended, said) = run(Some(&room), command, free()).await;
        assert!(ended.unwrap().status.success());
        let rest = said.trim_start_matches('x');
        assert_eq!(said.len() - rest.len(), 300_000, "{tier}");
        assert!(
            rest.contains(machine.worktree.to_str().unwrap()) && rest.contains("err"),
            "{tier}: {rest}"
        );
        // Nothing of the way into the box is left.
        let descriptors = "ls /proc/self/fd | sort -n | tr '\\n' ' '";
        let (_, inside) = run(Some(&room), machine.sh(descriptors), free()).await;
        let (_, outside) = run(None, machine.sh(descriptors), free()).await;
        assert_eq!(inside, outside, "{tier}");
        let (_, said) = run(Some(&room), machine.sh("wc -c; id -u; env | sort"), free()).await;
        assert!(said.starts_with("0\n"), "{tier}: {said}");
        let own = format!("0\n{}\n", rustix::process::geteuid().as_raw());
        assert!(
            said.starts_with(&own) && said.contains("TOKEN=") && !said.contains("CARGO"),
            "{tier}: {said}"
        );
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_is_no_end_of_it() {
    let machine = Machine::new();
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        for program in ["/no/such/program", "no-such-program"] {
            let mut command = machine.sh("");
            command.program = program.into();
            let (ended, _) = run(Some(&room), command, free()).await;
            match ended {
                Err(RunError::Spawn { source, .. }) => {
                    assert_eq!(source.kind(), std::io::ErrorKind::NotFound, "{tier}");
                }
                other => panic!("{tier}: {other:?}"),
            }
        }
        // A box that cannot be built is no verdict.
        let broken = room.lending(format!("/proc/{}/task", std::process::id()));
        let (ended, _) = run(Some(&broken), machine.sh("true"), free()).await;
        match (tier, ended) {
            (Tier::T2, Err(RunError::Spawn { .. })) => {}
            (Tier::T1, Ok(ended)) => assert!(ended.status.success()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn nothing_of_a_task_runs_before_the_box_stands() {
    let machine = Machine::new();
    let source = "#include <stdio.h>\n#include <stdlib.h>\n__attribute__((constructor)) static void go(void) \
        { FILE *f = fopen(getenv(\"MARK\"), \"w\"); if (f) fclose(f); }\n";
    fs::write(machine.worktree.join("x.c"), source).unwrap();
    let compiled = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o", "x.so", "x.c"])
        .current_dir(&machine.worktree)
        .status()
        .unwrap();
    assert!(compiled.success());
    let (library, mark) = (machine.worktree.join("x.so"), machine.state.join("mark"));
    let set = [("LD_PRELOAD", &library), ("MARK", &mark)];
    let set = set.map(|(name, value)| (name.to_owned(), value.to_str().unwrap().to_owned()));
    let environment = || Environment::from_iter(machine.environment().into_iter().chain(set.clone()));
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        // A home of cargo that leads out is not furnished.
        let (cargo, home) = (machine.home.join(".cargo"), machine.scratch.join("home/.cargo"));
        fs::create_dir_all(&cargo).unwrap();
        fs::write(cargo.join("config.toml"), "").unwrap();
        std::os::unix::fs::symlink(&machine.state, &home).unwrap();
        let mut command = machine.sh("true");
        command.env = environment();
        drop(run(Some(&room), command, free()).await);
        let mut command = machine.sh("true");
        let cargo = ("CARGO_HOME".to_owned(), cargo.to_str().unwrap().to_owned());
        command.env = Environment::from_iter(machine.environment().into_iter().chain([cargo]));
        drop(run(Some(&room), command, free()).await);
        assert!(!mark.exists() && !machine.state.join("config.toml").exists(), "{tier}");
        fs::remove_file(home).unwrap();
    }
    let mut command = machine.sh("true");
    command.env = environment();
    run(None, command, free()).await.0.unwrap();
    assert!(mark.exists(), "outside it runs");
}

#[tokio::test]
async fn its_own_folders_are_writable_and_executable_and_devices_work() {
    let machine = Machine::new();
    let script = r#"
        set -e
        for folder in . "$HOME" "$TMPDIR" /dev/shm; do
            printf '#!/bin/sh\necho ran\n' > "$folder/kage-tool"; chmod +x "$folder/kage-tool"
        done
        ./kage-tool; "$HOME/kage-tool"
        mkdir -p a/b; mv kage-tool a/b; ln a/b/kage-tool "$HOME/linked" || ln -s a "$HOME/linked"; mkfifo pipe
        echo x > /dev/null; head -c4 /dev/urandom >/dev/null; cat /dev/zero | head -c4 >/dev/null
        rm -r a /dev/shm/kage-tool; : > "$TMPDIR/socket"
        python3 -c 'import socket, os; socket.socket(socket.AF_UNIX).bind(os.environ["HOME"] + "/s")'
        python3 -c 'import os, pty; pty.openpty()'
        cat /etc/resolv.conf /etc/passwd >/dev/null; ls / >/dev/null; nproc >/dev/null
        echo done"#;
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        let (ended, said) = run(Some(&room), machine.sh(script), free()).await;
        assert!(
            ended.unwrap().status.success() && said.ends_with("done\n"),
            "{tier}: {said}"
        );
        for own in [&machine.worktree, &machine.scratch] {
            fs::remove_dir_all(own).unwrap();
            fs::create_dir_all(own.join("home")).unwrap();
        }
        fs::create_dir_all(machine.scratch.join("tmp")).unwrap();
    }
}

#[tokio::test]
async fn a_polite_stop_is_heard_and_what_is_detached_ends_with_it() {
    let machine = Machine::new();
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        let stop = CancellationToken::new();
        let (sender, mut chunks) = mpsc::channel(1);
        let runner = Runner::Warden(executable()).within(Some(&room));
        let script = "trap 'echo polite; exit 3' TERM
            (setsid sh -c \"trap '' TERM HUP; while :; do sleep 0.05; done\" >&- 2>&- <&- &)
            echo ready; while :; do sleep 0.02; done";
        let running = runner.run(machine.sh(script), limits(), Control::stop_only(stop.clone()), sender);
        let reading = async {
            let mut said = String::new();
            while let Some(chunk) = chunks.recv().await {
                said.push_str(&String::from_utf8_lossy(&chunk.bytes));
                if said.contains("ready") {
                    stop.cancel();
                }
            }
            said
        };
        let (ended, said) = tokio::join!(running, reading);
        let ended = ended.unwrap();
        assert_eq!((ended.cause, ended.survivors), (Cause::Stopped, 0), "{tier}");
        assert!(said.contains("polite"), "{tier}: {said}");
        assert_eq!(ended.status, Status::Code(3), "{tier}");
    }
}

#[tokio::test]
async fn a_frozen_program_waits_and_goes_on() {
    let machine = Machine::new();
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        let (freeze, frozen) = watch::channel(false);
        let control = Control {
            stop: CancellationToken::new(),
            frozen,
        };
        let count = machine.worktree.join("count");
        let (sender, mut chunks) = mpsc::channel(1);
        let runner = Runner::Warden(executable()).within(Some(&room));
        let script = "i=0; while [ ! -e end ]; do i=$((i+1)); echo $i > count.new; mv count.new count; done; rm end";
        let limits = Limits {
            timeout: Some(Duration::from_secs(60)),
            ..limits()
        };
        let running = runner.run(machine.sh(script), limits, control, sender);
        let number = || fs::read_to_string(&count).ok()?.trim().parse::<u64>().ok();
        let watching = async {
            wait_for(|| number().is_some()).await;
            freeze.send_replace(true);
            // Until it stands still.
            wait_for_still(&number).await;
            let at = number();
            freeze.send_replace(false);
            wait_for(|| number() > at).await;
            fs::write(machine.worktree.join("end"), "").unwrap();
        };
        let draining = async { while chunks.recv().await.is_some() {} };
        let (ended, (), ()) = tokio::join!(running, watching, draining);
        assert!(ended.unwrap().status.success(), "{tier}");
        fs::remove_file(&count).unwrap();
    }
}

async fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn wait_for_still(number: impl Fn() -> Option<u64>) {
    let deadline = Instant::now() + DEADLINE;
    let (mut last, mut times) = (number(), 0);
    while times < 20 {
        assert!(Instant::now() < deadline, "it does not stand still");
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = number();
        times = if now == last { times + 1 } else { 0 };
        last = now;
    }
}
