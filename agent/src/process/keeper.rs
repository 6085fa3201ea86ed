//! The keeper behind every warden of this process. Linux only.
//!
//! A warden has the same rights as the session that it guards, so the session can kill, stop or
//! trace it. So this process is a child subreaper too: processes that a dead warden leaves become
//! its children, and the keeper, a thread, kills them. It also ends wardens that are stopped,
//! traced, or still alive when they should have ended.
//!
//! How children are told apart: every warden is registered before it starts a session (in the sense
//! of `setsid`), and all its descendants are in that session or in one that was started below it. A
//! process cannot enter another's session. So a child that is not in our session and is no warden
//! came from a warden that has ended; nothing that this process started for itself (git, another
//! agent of the same process) looks like that. If this process also inherits the orphans of the
//! whole machine, as the first process of a container does, these are killed too, but only in the
//! moments after a warden was lost.
//!
//! A link holds a warden as a [`Ward`] until it departs; [`departing`](super::departing) decides
//! what follows.

use std::collections::HashSet;
use std::io;
use std::process::Command;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};
use tokio::sync::oneshot;

use super::WardenLoss;
use super::departing::{Departed, Departing, Look};
use super::tree::{self, Killed, Process, Stat, State, Trees};

/// How long a warden may be stopped before it counts as lost: when it is stopped together with this
/// process, it may be continued a little later.
const STOPPED: Duration = Duration::from_millis(250);
/// How often dead children without another parent are reaped.
const TIDY: Duration = Duration::from_secs(60);

const NOTHING: Killed = Killed {
    found: 0,
    refused: 0,
    left: Vec::new(),
    complete: true,
};

/// Processes that cannot be seen are not known to have ended.
const UNSEEN: Killed = Killed {
    found: 0,
    refused: 0,
    left: Vec::new(),
    complete: false,
};

#[derive(Debug)]
pub(super) struct Keeper {
    /// Children that were there before it are not its business.
    since: u64,
    session: i32,
    group: i32,
    shared: Mutex<Shared>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Shared {
    /// Every warden that is not reaped.
    wardens: HashSet<i32>,
    /// Wardens that are awaited or released. At most as many as wardens exist.
    departing: Vec<Departure>,
    /// Processes that the last sweep could not kill.
    left: Vec<Process>,
}

/// A warden that is about to end, and the receiver of its outcome.
#[derive(Debug)]
struct Departure {
    process: std::process::Child,
    began: Instant,
    /// It was looked at since it began to depart.
    seen: bool,
    /// When it was stopped; `None` while it runs.
    stopped: Option<Instant>,
    state: Departing,
    tell: Option<oneshot::Sender<Departed>>,
}

impl Departure {
    /// Observes the warden, and kills it if it does not end by itself.
    fn look(&mut self, now: Instant, wardens: &mut HashSet<i32>) {
        self.seen = true;
        if !self.state.is_there() {
            return;
        }
        let pid = i32::try_from(self.process.id()).unwrap_or(0);
        let look = match self.process.try_wait() {
            Ok(Some(status)) => {
                wardens.remove(&pid);
                Look::Reaped((!status.success()).then(|| loss(status)))
            }
            Ok(None) if self.state.is_lost() => Look::There(None),
            Ok(None) => Look::There(trouble(pid, &mut self.stopped)),
            Err(error) => {
                tracing::error!(%error, "a warden cannot be waited for");
                Look::Reaped(Some(WardenLoss::Ended))
            }
        };
        self.state = self.state.looked(look, now);
        if self.state.is_there()
            && self.state.is_lost()
            && let Err(error) = self.process.kill()
        {
            tracing::debug!(pid, %error, "a warden cannot be killed");
        }
    }
}

/// A warden. Dropping it leaves the warden to the keeper.
#[derive(Debug)]
pub(super) struct Ward {
    process: Option<std::process::Child>,
    pid: i32,
    stopped: Option<Instant>,
    /// How long it gets when it is dropped.
    patience: Duration,
}

impl Ward {
    /// Starts a warden, which must not begin a session before it hears from us.
    pub(super) fn start(command: &mut Command, patience: Duration) -> io::Result<Self> {
        let keeper = Keeper::get()?;
        let process = command.spawn()?;
        let pid = i32::try_from(process.id()).map_err(io::Error::other)?;
        keeper.lock().wardens.insert(pid);
        Ok(Self {
            process: Some(process),
            pid,
            stopped: None,
            patience,
        })
    }

    /// The warden's pipes; there the first time only.
    pub(super) fn take_pipes(&mut self) -> (Option<std::process::ChildStdout>, Option<std::process::ChildStderr>) {
        match &mut self.process {
            Some(process) => (process.stdout.take(), process.stderr.take()),
            None => (None, None),
        }
    }

    /// What blocks the warden, if anything.
    pub(super) fn look(&mut self) -> Option<WardenLoss> {
        trouble(self.pid, &mut self.stopped)
    }

    /// Expects the warden to end within some time. The answer comes when it has ended and, after a
    /// loss, when its processes have ended. `loss`: the warden is known to be lost.
    pub(super) fn depart(&mut self, within: Duration, loss: Option<WardenLoss>) -> oneshot::Receiver<Departed> {
        let (tell, told) = oneshot::channel();
        self.leave(within, loss, Some(tell));
        told
    }

    fn leave(&mut self, within: Duration, loss: Option<WardenLoss>, tell: Option<oneshot::Sender<Departed>>) {
        let (Some(process), Some(keeper)) = (self.process.take(), KEEPER.get()) else {
            return;
        };
        let now = Instant::now();
        keeper.lock().departing.push(Departure {
            process,
            began: now,
            seen: false,
            stopped: self.stopped,
            state: Departing::new(now, within, loss),
            tell,
        });
        keeper.news.notify_all();
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        self.leave(self.patience, None, None);
    }
}

/// What blocks a warden. `stopped` keeps the time since when it is stopped.
fn trouble(pid: i32, stopped: &mut Option<Instant>) -> Option<WardenLoss> {
    let state = match tree::stat(pid) {
        Ok(Some(stat)) => stat.state,
        // Only we can reap it, and did not.
        Ok(None) | Err(_) => return None,
    };
    let tracer = tree::tracer(pid);
    // A tracer of this whole process is harmless: people inspect programs like that.
    if tracer != 0 && tracer != tree::tracer(getpid().as_raw_nonzero().get()) {
        return Some(WardenLoss::Traced);
    }
    match state {
        State::Stopped => {
            let since = *stopped.get_or_insert_with(Instant::now);
            (since.elapsed() >= STOPPED).then_some(WardenLoss::Stopped)
        }
        State::Ended => Some(WardenLoss::Ended),
        State::Alive | State::Blocked | State::Traced => {
            *stopped = None;
            None
        }
    }
}

static KEEPER: OnceLock<Keeper> = OnceLock::new();
static BEGINNING: Mutex<()> = Mutex::new(());

impl Keeper {
    /// The keeper; begun when it is first needed.
    fn get() -> io::Result<&'static Self> {
        let _one_begins_it = BEGINNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = KEEPER.get() {
            return Ok(keeper);
        }
        set_child_subreaper(Some(getpid()))?;
        let (ready, begun) = std::sync::mpsc::sync_channel(1);
        // A thread that is there already works also when no other can be started.
        thread::Builder::new().name("keeper".to_owned()).spawn(move || {
            let keeper = match Self::of_this_thread() {
                Ok(keeper) => KEEPER.get_or_init(|| keeper),
                Err(error) => {
                    let _caller_waits = ready.send(Err(error));
                    return;
                }
            };
            let _caller_waits = ready.send(Ok(()));
            keeper.keep();
        })?;
        begun.recv().map_err(io::Error::other)??;
        KEEPER.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// This process, as the system describes it. Its session and group may be 0: in a namespace of
    /// processes, such as a container, both may have been started outside. What a warden starts
    /// inside is never 0.
    fn of_this_thread() -> io::Result<Self> {
        let this = tree::this_process()?;
        Ok(Self {
            since: tree::this_thread_started()?,
            session: this.session,
            group: this.group,
            shared: Mutex::default(),
            news: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's loop: observe departing wardens, kill what lost ones left, report.
    fn keep(&self) -> ! {
        let mut tidied = Instant::now();
        let mut rounds = 0_u32;
        // True after it was logged that nothing can be seen of this loss.
        let mut is_blind = false;
        loop {
            let mut shared = self.lock();
            loop {
                shared = match shared.pause(rounds) {
                    Pause::None => break,
                    Pause::For(time) => {
                        let waited = self.news.wait_timeout(shared, time);
                        drop(waited.unwrap_or_else(PoisonError::into_inner).0);
                        shared = self.lock();
                        break;
                    }
                    Pause::Forever => self.news.wait(shared).unwrap_or_else(PoisonError::into_inner),
                };
            }
            if shared.look() {
                (rounds, is_blind) = (0, false);
            }
            let owed = shared.owed();
            drop(shared);
            let swept = if owed {
                rounds = rounds.saturating_add(1);
                self.sweep().unwrap_or_else(|error| {
                    if !std::mem::replace(&mut is_blind, true) {
                        tracing::warn!(%error, "what a lost warden left cannot be seen");
                    }
                    UNSEEN
                })
            } else {
                NOTHING
            };
            self.lock().tell(&swept);
            if tidied.elapsed() > TIDY {
                tidied = Instant::now();
                self.tidy();
            }
        }
    }

    /// True for a child that came to us from a lost warden.
    fn is_orphan(&self, stat: &Stat) -> bool {
        // The lock is taken after the process was seen in its own session, and a warden is
        // registered before it starts one.
        stat.session != self.session && stat.started >= self.since && !self.lock().wardens.contains(&stat.pid)
    }

    /// Kills the processes of lost wardens.
    fn sweep(&self) -> io::Result<Killed> {
        let orphans = Trees::below(|stat: &Stat| self.is_orphan(stat));
        let killed = orphans.kill_all();
        self.tidy();
        killed
    }

    /// Reaps dead children without a waiter: orphans, and processes of a killed git. A child that
    /// this process waits for is in our group or leads its own.
    fn tidy(&self) {
        let own = getpid().as_raw_nonzero().get();
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return;
        };
        for entry in entries.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(Ok(Some(stat))) = pid.map(tree::stat) else {
                continue;
            };
            let strange = || stat.group != self.group && stat.group != stat.pid;
            let nobodys = || match stat.session == self.session {
                true => strange(),
                false => self.is_orphan(&stat),
            };
            if stat.parent == own
                && stat.state == State::Ended
                && stat.started >= self.since
                && nobodys()
                && let Err(error) = waitpid(Pid::from_raw(stat.pid), WaitOptions::NOHANG)
            {
                tracing::debug!(%error, pid = stat.pid, "a dead orphan cannot be taken");
            }
        }
    }

    /// True while something must be killed that this process may not end before.
    fn is_busy(&self) -> bool {
        let shared = self.lock();
        let open = |it: &Departure| it.state.is_there() && (!it.seen || it.stopped.is_some());
        shared.owed() || shared.departing.iter().any(open)
    }
}

enum Pause {
    None,
    For(Duration),
    Forever,
}

impl Shared {
    /// How long there is nothing to do.
    fn pause(&self, rounds: u32) -> Pause {
        if self.departing.iter().any(|it| !it.seen) {
            return Pause::None;
        }
        // Fast at first, against processes that start others as fast as they can.
        let sweeping = self
            .owed()
            .then(|| Duration::from_millis(rounds.saturating_sub(500).clamp(1, 1000).into()));
        // Most end at once.
        let waiting = self.departing.iter().map(|it| {
            let age = it.began.elapsed() / 4;
            age.clamp(Duration::from_millis(1), Duration::from_millis(50))
        });
        match waiting.chain(sweeping).min() {
            Some(time) => Pause::For(time),
            None => Pause::Forever,
        }
    }

    /// True when a warden needs a sweep.
    fn owed(&self) -> bool {
        self.departing.iter().any(|it| it.state.is_owed())
    }

    /// Observes all departing wardens, and kills those that do not end by themselves. Returns true
    /// when one is newly lost.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        let mut news = false;
        for it in &mut self.departing {
            let known = it.seen && it.state.is_lost();
            it.look(now, &mut self.wardens);
            news |= !known && it.state.is_lost();
        }
        news
    }

    /// Reports the outcome of wardens that have ended, and forgets finished ones. `killed`: the
    /// result of a sweep that began after the wardens were observed.
    fn tell(&mut self, killed: &Killed) {
        let now = Instant::now();
        let same = killed.is_same_rest(&self.left);
        self.left.clone_from(&killed.left);
        for it in &mut self.departing {
            it.state = it.state.swept(killed, same, now);
            let outcome = it.state.outcome(killed.left.len(), now);
            if let Some(departed) = outcome
                && let Some(tell) = it.tell.take()
            {
                // The receiver may be gone.
                let _told = tell.send(departed);
            }
        }
        self.departing
            .retain(|it| it.state.is_there() || it.tell.is_some() || it.state.is_owed());
    }
}

fn loss(status: std::process::ExitStatus) -> WardenLoss {
    use std::os::unix::process::ExitStatusExt as _;
    status.signal().map_or(WardenLoss::Ended, WardenLoss::Killed)
}

/// Waits until nothing is left that only this process can kill, or for so long.
pub(super) async fn settle(patience: Duration) {
    let Some(keeper) = KEEPER.get() else {
        return;
    };
    let began = Instant::now();
    while keeper.is_busy() && began.elapsed() < patience {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
