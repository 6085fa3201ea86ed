//! Trees of processes below this one, from `/proc`, and signals to them.
//!
//! A tree is everything that descends from one of our children. Only in a child subreaper does this
//! include everything that a program started, because orphans become our children.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal};

/// A process: numbers are reused, but a number with a start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Process {
    pid: i32,
    started: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It runs, or waits for something.
    Alive,
    /// It waits in the kernel where only SIGKILL has an effect: for a disk, or with `vfork` for a
    /// child to start its program. It starts nothing meanwhile, and handles other signals
    /// afterwards.
    Blocked,
    Stopped,
    Traced,
    /// It is dead and not reaped.
    Ended,
}

/// The system's data about a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    pub(super) pid: i32,
    pub(super) parent: i32,
    pub(super) group: i32,
    /// Its session: a process can start a new one, and cannot enter another's.
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

/// The most processes that are followed upwards.
const DEEPEST: usize = 10_000;

/// The data of one process; `None` when it does not exist.
///
/// # Errors
/// When the data cannot be read, for example for lack of file descriptors.
pub(super) fn stat(pid: i32) -> io::Result<Option<Stat>> {
    read_stat(&format!("/proc/{pid}/stat"))
}

/// The data of this process.
///
/// # Errors
/// When `/proc` is missing, or shows the processes of another namespace.
pub(super) fn this_process() -> io::Result<Stat> {
    let this = read_stat("/proc/self/stat")?.filter(|this| this.pid == getpid().as_raw_nonzero().get());
    this.ok_or_else(|| io::Error::other("/proc does not show this process; mount the one of its own namespace"))
}

/// Whether a process descends from this one, as every program of a session does. One that is gone may have.
///
/// # Errors
/// When the data cannot be read.
pub(crate) fn is_below_this_process(pid: i32) -> io::Result<bool> {
    let this = getpid().as_raw_nonzero().get();
    let mut at = pid;
    // More than any tree is deep: numbers may be used again while it is followed.
    for _ in 0..DEEPEST {
        let Some(found) = stat(at)? else {
            return Ok(true);
        };
        match found.parent {
            parent if parent == this => return Ok(true),
            0 | 1 => return Ok(false),
            parent => at = parent,
        }
    }
    Ok(true)
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
            // Its first thread ended. A process can continue without it.
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
    /// The process belongs to another user, for example one that `sudo` started.
    Refused,
}

/// Signals exactly this process, never one that reused its number.
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
        // For any other reason (a filter of system calls that does not know the call, a lack of
        // descriptors), the number is safe for a process that still exists.
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

/// The trees below those children of this process that a rule selects.
pub(super) struct Trees<R> {
    roots: R,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Killed {
    /// Processes found.
    pub(super) found: usize,
    /// Processes of another user, which refuse our signals.
    pub(super) refused: usize,
    /// Processes that still exist, sorted.
    pub(super) left: Vec<Process>,
    /// Every process that there was when it began is among them, with all that it started.
    pub(super) complete: bool,
}

impl Killed {
    /// True when only remaining processes were found, and they are the same as before.
    pub(super) fn is_same_rest(&self, before: &[Process]) -> bool {
        let is_all = self.complete && self.found == self.left.len();
        is_all && !self.left.is_empty() && self.left == before
    }
}

/// Walks over all processes before killing continues with what was found.
const WALKS: usize = 100;
/// Looks for processes that were started a moment ago, before all are walked over again.
const LOOKS: usize = 200;
/// How many times killed processes are checked until they are dead, and the pause between.
const DYING: (u32, Duration) = (1000, Duration::from_millis(1));

impl Trees<fn(&Stat) -> bool> {
    pub(super) fn all() -> Self {
        Self { roots: |_| true }
    }
}

impl<R: Fn(&Stat) -> bool> Trees<R> {
    /// The trees below the children for which this is true.
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

    /// The same, without one process.
    pub(super) fn signal_all_but(&self, spared: Option<i32>, what: Signal) -> io::Result<usize> {
        let mut hunt = Hunt::new(&self.roots, |process, _| {
            if Some(process.pid) != spared {
                let _others_are_left_alone = signal(process, what);
            }
            Met::Still
        });
        hunt.walk()?;
        Ok(hunt.members.len())
    }

    /// Stops every process, and new ones that they start meanwhile, until none is new and none
    /// runs. Returns true when that succeeded.
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
        // Each walk can only find children of processes that ran during the previous one. The bound
        // is for processes that cannot be stopped; they are killed anyway.
        for _ in 0..WALKS {
            match hunt.walk()? {
                Met::Still => return Ok((hunt.members, true)),
                Met::Moving => hunt.chase()?,
            }
        }
        Ok((hunt.members, false))
    }

    /// Kills every process after stopping all, so that none can replace a killed one.
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

/// A process that is not known to have ended counts as present.
fn is_there(process: &Process) -> bool {
    match stat(process.pid) {
        Ok(Some(stat)) => stat.started == process.started && stat.state != State::Ended,
        Ok(None) => false,
        Err(_) => true,
    }
}

/// Whether a process needed a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Still,
    Moving,
}

/// A process that ran when it was stopped. Another user's process runs on, however often it is
/// signalled.
const fn met(stopping: Signalled) -> Met {
    match stopping {
        Signalled::Done => Met::Moving,
        Signalled::Refused => Met::Still,
    }
}

/// Handles the members of trees one by one, at the moment each is seen: a process that lives
/// shorter than a walk would have ended at its end.
struct Hunt<'a, R, F> {
    roots: &'a R,
    own: i32,
    /// By number, with their start times.
    members: HashMap<i32, u64>,
    meet: F,
    /// The newest number that was checked, if the system reports it.
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

    /// Checks every process. The result says whether at least one was moving.
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
        // Parents come first, until numbers wrap around.
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

    /// Checks the processes that were started since, as fast as they are. Only walks find all.
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
                // Numbers wrapped around, or too many processes are new.
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

    /// Handles a process if it is a member; `None`: membership is unknown.
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
        // Its number may be reused by now.
        Ok(self::stat(stat.parent)?.is_some_and(|parent| parent.started == *started))
    }
}

/// The newest number of a process or thread. `None` where the system does not report it: `/proc`
/// may show processes only.
fn newest() -> Option<i32> {
    let line = fs::read_to_string("/proc/loadavg").ok()?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests;
