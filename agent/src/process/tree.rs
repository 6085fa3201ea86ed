//! Trees of processes below this one, by `/proc`, and signals to them.
//!
//! A tree is all that descends from a child of ours. That is everything a program started
//! only in a child subreaper, where whoever loses its parent becomes our child.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal};

/// One process at one time: numbers are reused, numbers with start times are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Process {
    pid: i32,
    started: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It runs, or waits for something.
    Alive,
    /// It waits in the kernel for something that no signal but the last ends: for a disk, or
    /// with `vfork` for a child to begin its own program. It starts nothing meanwhile, and
    /// takes its signals when it goes on.
    Blocked,
    Stopped,
    Traced,
    /// It is dead, and whoever has to has not looked yet.
    Ended,
}

/// What the system says of a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    /// Its session: a process can begin one, and cannot enter another's.
    pub(super) session: i32,
    /// In ticks since the machine started.
    pub(super) started: u64,
    pub(super) state: State,
}

impl Stat {
    pub(super) const fn process(&self) -> Process {
        Process {
            pid: self.pid,
            started: self.started,
        }
    }
}

/// What the system says of one process; `None` when there is none.
///
/// # Errors
/// When this cannot be told, as for want of file descriptors.
pub(super) fn stat(pid: i32) -> io::Result<Option<Stat>> {
    read_stat(&format!("/proc/{pid}/stat"))
}

/// What the system says of this process.
///
/// # Errors
/// When `/proc` is missing, or shows the processes of another namespace.
pub(super) fn this_process() -> io::Result<Stat> {
    let this = read_stat("/proc/self/stat")?.filter(|this| this.pid == getpid().as_raw_nonzero().get());
    this.ok_or_else(|| io::Error::other("/proc does not show this process; mount the one of its own namespace"))
}

/// When the calling thread was started, in ticks since the machine started.
pub(super) fn this_thread_started() -> io::Result<u64> {
    read_stat("/proc/thread-self/stat")?
        .map(|stat| stat.started)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn read_stat(path: &str) -> io::Result<Option<Stat>> {
    match fs::read(path) {
        Ok(line) => Ok(parse(&line)),
        // It ended before or while it was read, or the system hides it.
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
                || error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads a line of `/proc/<pid>/stat`. The name in it is in parentheses and may hold anything.
fn parse(line: &[u8]) -> Option<Stat> {
    let name_end = line.iter().rposition(|byte| *byte == b')')?;
    let (start, rest) = (line.split(|byte| *byte == b' ').next()?, line.get(name_end + 1..)?);
    let fields: Vec<&str> = std::str::from_utf8(rest).ok()?.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    Some(Stat {
        pid: std::str::from_utf8(start).ok()?.parse().ok()?,
        state: match *fields.first()? {
            // Its first thread ended. A process can go on without it.
            "Z" | "X" if number(17)? > 1 => State::Alive,
            "Z" | "X" => State::Ended,
            "D" => State::Blocked,
            "T" => State::Stopped,
            "t" => State::Traced,
            _ => State::Alive,
        },
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// The process that traces a process; 0 = none.
pub(super) fn tracer(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let traced = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    traced.and_then(|tracer| tracer.trim().parse().ok()).unwrap_or(0)
}

/// The effect of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signalled {
    /// It was sent, or there is nothing any more that it could be sent to.
    Done,
    /// The process is another user's, as what `sudo` starts is.
    Refused,
}

/// Signals exactly this process, never one that took over its number.
fn signal(process: Process, what: Signal) -> Signalled {
    signal_by(process, what, |pid| pidfd_open(pid, PidfdFlags::empty()))
}

fn signal_by(process: Process, what: Signal, open: impl Fn(Pid) -> rustix::io::Result<OwnedFd>) -> Signalled {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return Signalled::Done;
    };
    let same = || stat(process.pid).is_ok_and(|stat| stat.is_some_and(|stat| stat.started == process.started));
    let by_descriptor = open(pid).and_then(|fd| if same() { pidfd_send_signal(&fd, what) } else { Ok(()) });
    let sent = match by_descriptor {
        // Whatever else keeps it from that (a filter of system calls that knows no such call, a
        // lack of descriptors), the number is good for one that is still there.
        Err(error) if error != Errno::SRCH => match same() {
            true => kill_process(pid, what),
            false => Ok(()),
        },
        sent => sent,
    };
    match sent {
        Err(Errno::PERM) => Signalled::Refused,
        Ok(()) | Err(_) => Signalled::Done,
    }
}

/// The trees below those children of this process that a rule picks.
pub(super) struct Trees<R> {
    roots: R,
}

/// The result of killing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Killed {
    /// Processes found.
    pub(super) found: usize,
    /// How many of them are another user's, and take no signal of ours.
    pub(super) refused: usize,
    /// Those that are still there, in order.
    pub(super) left: Vec<Process>,
    /// Every process that there was when it began is among them, with all that it started.
    pub(super) complete: bool,
}

impl Killed {
    /// Whether nothing was found but what is left, and that is what was left before.
    pub(super) fn is_same_rest(&self, before: &[Process]) -> bool {
        let is_all = self.complete && self.found == self.left.len();
        is_all && !self.left.is_empty() && self.left == before
    }
}

/// Walks over all processes before killing goes on with what was found.
const WALKS: usize = 100;
/// Looks for processes that were started a moment ago, before all are walked over again.
const LOOKS: usize = 200;
/// How often what was killed is looked at until it is dead, and the pause between.
const DYING: (u32, Duration) = (1000, Duration::from_millis(1));

impl Trees<fn(&Stat) -> bool> {
    pub(super) fn all() -> Self {
        Self { roots: |_| true }
    }
}

impl<R: Fn(&Stat) -> bool> Trees<R> {
    /// Those below the children for which this is true.
    pub(super) const fn below(roots: R) -> Self {
        Self { roots }
    }

    /// Sends a signal to every process there is now. Returns how many that are.
    pub(super) fn signal_all(&self, what: Signal) -> io::Result<usize> {
        let mut hunt = Hunt::new(&self.roots, |process, _| {
            let _others_are_left_alone = signal(process, what);
            Met::Still
        });
        hunt.walk()?;
        Ok(hunt.members.len())
    }

    /// Stops every process, and those that they start meanwhile, until none is new and none
    /// runs. True when that is so.
    pub(super) fn stop_all(&self) -> io::Result<bool> {
        Ok(self.stopped()?.1)
    }

    fn stopped(&self) -> io::Result<(HashMap<i32, u64>, bool)> {
        let mut hunt = Hunt::new(&self.roots, |process, state| match state {
            State::Stopped | State::Traced | State::Ended => Met::Still,
            State::Blocked => {
                let _shows_when_it_is_killed = signal(process, Signal::STOP);
                Met::Still
            }
            State::Alive => met(signal(process, Signal::STOP)),
        });
        // Each walk can only find children of processes that ran during the last one; the
        // bound is for what cannot be stopped, which is killed all the same.
        for _ in 0..WALKS {
            match hunt.walk()? {
                Met::Still => return Ok((hunt.members, true)),
                Met::Moving => hunt.chase()?,
            }
        }
        Ok((hunt.members, false))
    }

    /// Kills every process after it was stopped, so that none can start another for one that
    /// is killed.
    pub(super) fn kill_all(&self) -> io::Result<Killed> {
        let (members, complete) = self.stopped()?;
        let members: Vec<_> = members
            .into_iter()
            .map(|(pid, started)| Process { pid, started })
            .collect();
        let refused = members
            .iter()
            .filter(|process| signal(**process, Signal::KILL) == Signalled::Refused)
            .count();
        let mut left = members.clone();
        for _ in 0..DYING.0 {
            left.retain(is_there);
            if left.is_empty() {
                break;
            }
            std::thread::sleep(DYING.1);
        }
        left.sort_unstable();
        Ok(Killed {
            found: members.len(),
            refused,
            left,
            complete,
        })
    }

    pub(super) fn count(&self) -> io::Result<usize> {
        let mut hunt = Hunt::new(&self.roots, |_, _| Met::Still);
        hunt.walk()?;
        Ok(hunt.members.len())
    }
}

/// What is not known to be gone is there.
fn is_there(process: &Process) -> bool {
    match stat(process.pid) {
        Ok(Some(stat)) => stat.started == process.started && stat.state != State::Ended,
        Ok(None) => false,
        Err(_) => true,
    }
}

/// Whether what was met had to be dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Still,
    Moving,
}

/// One that ran when it was told to stop. Another user's runs on, however often it is told.
const fn met(stopping: Signalled) -> Met {
    match stopping {
        Signalled::Done => Met::Moving,
        Signalled::Refused => Met::Still,
    }
}

/// Meets the members of trees one by one, each in the moment in which it is seen: one that
/// lives for less than a walk would be gone at its end.
struct Hunt<'a, R, F> {
    roots: &'a R,
    own: i32,
    /// By number, with their start times.
    members: HashMap<i32, u64>,
    meet: F,
    /// The newest number that was looked at, where the system tells.
    newest: Option<i32>,
}

impl<'a, R: Fn(&Stat) -> bool, F: Fn(Process, State) -> Met> Hunt<'a, R, F> {
    fn new(roots: &'a R, meet: F) -> Self {
        Self {
            roots,
            own: getpid().as_raw_nonzero().get(),
            members: HashMap::new(),
            meet,
            newest: None,
        }
    }

    /// Looks at every process. Moving = at least one was.
    fn walk(&mut self) -> io::Result<Met> {
        let mut all = Met::Still;
        let mut strange = Vec::new();
        self.newest = newest();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if let Some(stat) = stat(pid)? {
                match self.look(&stat)? {
                    Some(Met::Moving) => all = Met::Moving,
                    Some(Met::Still) => {}
                    None => strange.push(stat),
                }
            }
        }
        // Parents come first, as long as numbers do not begin anew.
        loop {
            let before = self.members.len();
            let mut rest = Vec::new();
            for stat in strange {
                match self.look(&stat)? {
                    Some(Met::Moving) => all = Met::Moving,
                    Some(Met::Still) => {}
                    None => rest.push(stat),
                }
            }
            if self.members.len() == before {
                return Ok(all);
            }
            strange = rest;
        }
    }

    /// Looks at those that were started since, as fast as they are. It is walks that find all.
    fn chase(&mut self) -> io::Result<()> {
        self.chase_by(newest)
    }

    fn chase_by(&mut self, newest: impl Fn() -> Option<i32>) -> io::Result<()> {
        let mut quiet = 0;
        for _ in 0..LOOKS {
            let (Some(known), Some(newest)) = (self.newest, newest()) else {
                return Ok(());
            };
            match newest.saturating_sub(known) {
                0 => quiet += 1,
                1..=1000 => quiet = 0,
                // Numbers began anew, or too many are new.
                _ => return Ok(()),
            }
            if quiet > 10 {
                return Ok(());
            }
            for pid in known.saturating_add(1)..=newest {
                if let Some(stat) = stat(pid)? {
                    self.look(&stat)?;
                }
            }
            self.newest = Some(newest);
        }
        Ok(())
    }

    /// Meets a process if it is a member; `None` = it is not known to be one.
    fn look(&mut self, stat: &Stat) -> io::Result<Option<Met>> {
        if stat.state == State::Ended {
            return Ok(Some(Met::Still));
        }
        let known = self.members.get(&stat.pid) == Some(&stat.started);
        if !known && !self.belongs(stat)? {
            return Ok(None);
        }
        self.members.insert(stat.pid, stat.started);
        let met = (self.meet)(stat.process(), stat.state);
        Ok(Some(if known { met } else { Met::Moving }))
    }

    fn belongs(&self, stat: &Stat) -> io::Result<bool> {
        if stat.parent == self.own {
            return Ok((self.roots)(stat));
        }
        let Some(started) = self.members.get(&stat.parent) else {
            return Ok(false);
        };
        // Its number may be another's by now.
        Ok(self::stat(stat.parent)?.is_some_and(|parent| parent.started == *started))
    }
}

/// The newest number of a process or thread. `None` where the system does not tell: `/proc` may
/// show processes and nothing else.
fn newest() -> Option<i32> {
    let line = fs::read_to_string("/proc/loadavg").ok()?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests;
