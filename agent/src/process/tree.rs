//! The descendants of this process, by `/proc`, and signals to them.
//!
//! Correct only in a child subreaper, where whoever loses its parent becomes our child.

use std::collections::{HashMap, HashSet};
use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal};

/// One process at one time: numbers are reused, numbers with start times are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    pid: i32,
    started: u64,
}

#[derive(Debug, Clone, Copy)]
struct Stat {
    parent: i32,
    started: u64,
    zombie: bool,
}

/// Reads `/proc/<pid>/stat`. The name in it is in parentheses and may hold anything.
fn stat(pid: i32) -> Option<Stat> {
    let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let name_end = line.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(line.get(name_end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        zombie: matches!(fields.first(), Some(&("Z" | "X"))),
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// Every descendant that is not a zombie.
fn descendants() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut children: HashMap<i32, Vec<(i32, Stat)>> = HashMap::new();
    for entry in entries.flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            && let Some(stat) = stat(pid)
        {
            children.entry(stat.parent).or_default().push((pid, stat));
        }
    }
    let mut found = Vec::new();
    let mut open = vec![getpid().as_raw_nonzero().get()];
    while let Some(parent) = open.pop() {
        for (pid, stat) in children.remove(&parent).unwrap_or_default() {
            open.push(pid);
            if !stat.zombie {
                found.push(Process {
                    pid,
                    started: stat.started,
                });
            }
        }
    }
    found
}

/// Signals exactly this process, never one that took over its number.
fn signal(process: Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return;
    };
    let same = || stat(process.pid).is_some_and(|stat| stat.started == process.started);
    // Whatever fails here failed because the process is gone or another user's; both show
    // in the next scan.
    let _sent = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) if same() => pidfd_send_signal(&fd, signal),
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::NOSYS) if same() => kill_process(pid, signal),
        Err(error) => Err(error),
    };
}

/// Sends a signal to every descendant there is now. Returns how many that are.
pub(super) fn signal_all(what: Signal) -> usize {
    let found = descendants();
    for process in &found {
        signal(*process, what);
    }
    found.len()
}

/// Stops every descendant, and those that they start meanwhile, until none is new.
pub(super) fn stop_all() {
    let mut stopped = HashSet::new();
    // Each round can only find children of processes that ran during the last one; the
    // bound is for a fork bomb, which the killing that follows deals with.
    for _ in 0..100 {
        let mut new = false;
        for process in descendants() {
            if stopped.insert(process) {
                signal(process, Signal::STOP);
                new = true;
            }
        }
        if !new {
            return;
        }
    }
}

/// How many descendants there are.
pub(super) fn count() -> usize {
    descendants().len()
}
