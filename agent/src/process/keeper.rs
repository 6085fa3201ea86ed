//! The keeper: what stands behind every warden of this process, Linux only.
//!
//! A warden has the rights of the session that it guards, which can kill, stop or trace it.
//! This process is therefore a child subreaper too: whatever a dead warden leaves becomes
//! its child, and the keeper, a thread, kills that. It also ends wardens that are stopped,
//! traced, or still there when they should have ended.
//!
//! Which child is whose: every warden is known from before it begins a session (in the sense
//! of `setsid`), and everything below it is in that session or in one that was begun below
//! it. Nobody can enter another's session. A child of ours that is not in our session and is
//! no warden therefore came from a warden that is gone, and nothing that this process
//! started for itself (git, another agent of the same process) looks like that. Where this
//! process is also what orphans of the whole machine come to, as the first process of a
//! container is, these are killed too, but only in the moments after a warden was lost.
//!
//! ```text
//! Ward (held by a Link) --depart, drop--> Departing --ended by itself--> told
//!                                            '--stopped, traced, late--> killed --> swept --> told --> quiet
//! ```

use std::collections::HashSet;
use std::io;
use std::process::Command;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};
use tokio::sync::oneshot;

use super::WardenLoss;
use super::tree::{self, Killed, Process, Stat, State, Trees};

/// How long a warden may be stopped before it counts as lost: one that is stopped together
/// with this process may be continued a little later.
const STOPPED: Duration = Duration::from_millis(250);
/// How long killing may take before the rest is reported. It goes on nevertheless, unless the rest
/// is what it was a sweep before.
const KILLING: Duration = Duration::from_secs(20);
/// Sweeps in a row that find nothing, until what a lost warden left counts as gone.
const QUIET: u32 = 2;
/// How often dead children are taken that nobody else will take.
const TIDY: Duration = Duration::from_secs(60);

const NOTHING: Killed = Killed {
    found: 0,
    refused: 0,
    left: Vec::new(),
    complete: true,
};

/// What cannot be seen is not known to be gone.
const UNSEEN: Killed = Killed {
    found: 0,
    refused: 0,
    left: Vec::new(),
    complete: false,
};

/// The keeper of this process.
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
    /// Those that somebody waits for, or let go. As many as wardens, at most.
    departing: Vec<Departing>,
    /// What the last sweep could not kill.
    left: Vec<Process>,
}

/// A warden that is about to end.
#[derive(Debug)]
struct Departing {
    process: std::process::Child,
    began: Instant,
    /// When it is killed if it is still there.
    by: Instant,
    seen: bool,
    stopped: Option<Instant>,
    loss: Option<(WardenLoss, Instant)>,
    /// It is reaped: what it left has come to us. (That its first thread is a zombie would not
    /// say so: while another thread is there, children stay.)
    gone: bool,
    /// It was lost, and all that it left was killed.
    swept: bool,
    /// How often in a row nothing at all was found since, but for other users' processes, which
    /// nothing here can end. One look may miss a program that starts
    /// the next and is gone, when numbers of processes begin anew meanwhile.
    quiet: u32,
    /// What it left was told to die and hangs in the kernel: to tell it again is of no use.
    hangs: bool,
    tell: Option<oneshot::Sender<Departed>>,
}

impl Departing {
    /// It was lost, and something can be done about what it left.
    fn is_owed(&self) -> bool {
        self.loss.is_some() && self.quiet < QUIET && !self.hangs
    }
}

/// What is left of a warden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Departed {
    /// Why it did not end as it should, if so.
    pub(super) loss: Option<WardenLoss>,
    /// What could not be killed after it.
    pub(super) survivors: u32,
}

/// One warden. Dropping it leaves it to the keeper.
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

    /// What keeps it from its work, if anything does.
    pub(super) fn look(&mut self) -> Option<WardenLoss> {
        trouble(self.pid, &mut self.stopped)
    }

    /// It should end within some time; the answer comes when it has, and when what a lost one
    /// left is gone. `loss` = it is known to be lost.
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
        keeper.lock().departing.push(Departing {
            process,
            began: now,
            by: now + within,
            seen: false,
            stopped: self.stopped,
            loss: loss.map(|loss| (loss, now)),
            gone: false,
            swept: false,
            quiet: 0,
            hangs: false,
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

/// What keeps a warden from its work. `stopped` remembers since when it stands still.
fn trouble(pid: i32, stopped: &mut Option<Instant>) -> Option<WardenLoss> {
    let state = match tree::stat(pid) {
        Ok(Some(stat)) => stat.state,
        // Only we can reap it, and did not.
        Ok(None) | Err(_) => return None,
    };
    let tracer = tree::tracer(pid);
    // Whoever traces us and our children means no harm: that is how people look at programs.
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

    /// Who keeps, as the system describes it. The session and the group of this process may be 0:
    /// both were begun outside where this process is in a namespace of processes (in a container,
    /// for instance), and what a warden begins inside never is.
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

    /// The thread's loop: look at those that depart, kill what lost ones left, tell.
    fn keep(&self) -> ! {
        let mut tidied = Instant::now();
        let mut rounds = 0_u32;
        // Whether it was said of this loss that nothing can be seen.
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
        // The lock is taken after the process was seen in a session of its own, and a warden
        // is known before it begins one.
        stat.session != self.session && stat.started >= self.since && !self.lock().wardens.contains(&stat.pid)
    }

    /// Kills what there is of lost wardens' trees.
    fn sweep(&self) -> io::Result<Killed> {
        let orphans = Trees::below(|stat: &Stat| self.is_orphan(stat));
        let killed = orphans.kill_all();
        self.tidy();
        killed
    }

    /// Takes dead children that are nobody's: orphans, and what a git that was killed had
    /// started. A child of our own is in our group or leads its own, and is waited for.
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
        let open = |it: &Departing| !it.gone && (!it.seen || it.stopped.is_some());
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
        // Fast at first, against those that start others as fast as they can.
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

    /// One of them is owed a sweep.
    fn owed(&self) -> bool {
        self.departing.iter().any(Departing::is_owed)
    }

    /// Looks at all that depart, and kills those that do not do it by themselves. Returns
    /// whether one is newly lost.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        let mut news = false;
        for it in &mut self.departing {
            let known = it.seen && it.loss.is_some();
            it.seen = true;
            let pid = i32::try_from(it.process.id()).unwrap_or(0);
            if !it.gone {
                match it.process.try_wait() {
                    Ok(Some(status)) => {
                        it.gone = true;
                        self.wardens.remove(&pid);
                        if !status.success() && it.loss.is_none() {
                            it.loss = Some((loss(status), now));
                        }
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::error!(%error, "a warden cannot be waited for");
                        it.gone = true;
                        it.loss.get_or_insert((WardenLoss::Ended, now));
                    }
                }
            }
            if !it.gone {
                let late = || (now >= it.by).then_some(WardenLoss::Silent);
                if it.loss.is_none() {
                    it.loss = match trouble(pid, &mut it.stopped) {
                        // It ended since it was waited for.
                        Some(WardenLoss::Ended) => None,
                        trouble => trouble.or_else(late).map(|loss| (loss, now)),
                    };
                }
                if it.loss.is_some()
                    && let Err(error) = it.process.kill()
                {
                    tracing::debug!(pid, %error, "a warden cannot be killed");
                }
            }
            news |= !known && it.loss.is_some();
        }
        news
    }

    /// Tells those whose warden is gone, and forgets what nobody has to look at any more.
    /// `killed` = what a sweep came to that began after the wardens were looked at.
    fn tell(&mut self, killed: &Killed) {
        let same = killed.complete && !killed.left.is_empty() && killed.left == self.left;
        self.left.clone_from(&killed.left);
        for it in &mut self.departing {
            let sweeping = it.loss.is_some() && it.gone;
            it.swept |= sweeping && killed.complete && killed.left.is_empty();
            if sweeping {
                let nothing = killed.complete && killed.found == killed.refused;
                it.quiet = if nothing { it.quiet + 1 } else { 0 };
            }
            it.hangs |= sweeping && same && it.loss.is_some_and(|(_, since)| since.elapsed() >= KILLING);
            let done = match it.loss {
                None => it.gone,
                Some((_, since)) => !it.is_owed() || since.elapsed() >= KILLING,
            };
            if done && let Some(tell) = it.tell.take() {
                let departed = Departed {
                    loss: it.loss.map(|(loss, _)| loss),
                    survivors: match it.loss {
                        Some(_) if !it.swept => u32::try_from(killed.left.len().max(1)).unwrap_or(u32::MAX),
                        Some(_) | None => 0,
                    },
                };
                // Whoever asked may be gone.
                let _told = tell.send(departed);
            }
        }
        self.departing
            .retain(|it| !it.gone || it.tell.is_some() || it.is_owed());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// One that was lost a while ago, reaped by now, and whoever waits for it.
    fn lost(ago: Duration) -> (Shared, oneshot::Receiver<Departed>) {
        let mut process = Command::new("true").spawn().unwrap();
        process.wait().unwrap();
        let (tell, told) = oneshot::channel();
        let since = Instant::now().checked_sub(ago).unwrap();
        let departing = Departing {
            process,
            began: since,
            by: since,
            seen: true,
            stopped: None,
            loss: Some((WardenLoss::Ended, since)),
            gone: true,
            swept: false,
            quiet: 0,
            hangs: false,
            tell: Some(tell),
        };
        let shared = Shared {
            departing: vec![departing],
            ..Shared::default()
        };
        (shared, told)
    }

    fn killed(found: usize, refused: usize, left: usize) -> Killed {
        let this = tree::this_process().unwrap();
        Killed {
            found,
            refused,
            left: vec![this.process(); left],
            complete: true,
        }
    }

    #[test]
    fn what_nothing_can_end_is_told_and_then_forgotten() {
        let late = KILLING + Duration::from_secs(1);
        // How long ago it was lost; what each sweep comes to; whether it is owed another after each;
        // what is told.
        let nothing = || killed(0, 0, 0);
        type Case = (&'static str, Duration, Vec<(Killed, bool)>, Option<u32>);
        let cases: [Case; 6] = [
            (
                "it left nothing",
                Duration::ZERO,
                vec![(nothing(), true), (nothing(), false)],
                Some(0),
            ),
            (
                "another user's stays",
                Duration::ZERO,
                vec![
                    (killed(2, 1, 1), true),
                    (killed(1, 1, 1), true),
                    (killed(1, 1, 1), false),
                ],
                Some(1),
            ),
            (
                "something of ours hangs, and may end yet",
                Duration::ZERO,
                vec![
                    (killed(1, 0, 1), true),
                    (killed(1, 0, 1), true),
                    (killed(1, 0, 1), true),
                ],
                None,
            ),
            (
                "something of ours hangs for long",
                late,
                vec![(killed(1, 0, 1), true), (killed(1, 0, 1), false)],
                Some(1),
            ),
            (
                "there is always something else",
                late,
                vec![
                    (killed(1, 0, 1), true),
                    (killed(2, 0, 2), true),
                    (killed(3, 0, 3), true),
                ],
                Some(1),
            ),
            (
                "nothing can be seen",
                late,
                vec![(UNSEEN, true), (UNSEEN, true), (UNSEEN, true)],
                Some(1),
            ),
        ];
        for (what, ago, sweeps, survivors) in cases {
            let (mut shared, mut told) = lost(ago);
            for (killed, owed) in sweeps {
                shared.tell(&killed);
                assert_eq!(shared.owed(), owed, "{what}: {killed:?}");
                assert_eq!(shared.departing.is_empty(), !owed, "{what}");
            }
            let told = told.try_recv().ok().map(|departed| departed.survivors);
            assert_eq!(told, survivors, "{what}");
        }
    }
}
