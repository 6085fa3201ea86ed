//! The shared parts of a simulated world: the seed and its draws, the clocks, the records, and the
//! state of the disk.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kage_core::event::OutputStream;
use kage_core::id::Oid;
use kage_core::time::Timestamp;
use kage_tests::chaos::record::Record;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

use crate::forge::{Files, Forge, text};
use crate::run::Plant;

/// The start time of every world, in milliseconds since 1970.
const EPOCH: u64 = 1_800_000_000_000;

/// Draws from the seed. Clones draw from the same place.
#[derive(Debug, Clone)]
pub(crate) struct Dice(Arc<Mutex<SmallRng>>);

impl Dice {
    /// The draws of one user: the draws of others do not change them.
    fn of(seed: u64, user: &str) -> Self {
        // FNV: the same everywhere and always.
        let hash = user.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(Arc::new(Mutex::new(SmallRng::seed_from_u64(seed ^ hash))))
    }

    fn lock(&self) -> MutexGuard<'_, SmallRng> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn bits(&self) -> u128 {
        self.lock().random()
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&self, end: u64) -> u64 {
        self.lock().random_range(0..end)
    }

    /// True so often in a thousand.
    pub(crate) fn chance(&self, thousandths: u64) -> bool {
        self.below(1000) < thousandths
    }

    pub(crate) fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    /// Whole milliseconds, from one to the other.
    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

/// The events and output that an adapter gave its attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Emitted {
    /// Words of its activities, in order.
    pub(crate) activities: Vec<String>,
    /// Bytes by stream.
    pub(crate) output: BTreeMap<&'static str, Vec<u8>>,
    /// Its end, if it ended by itself.
    pub(crate) end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It reported success.
    Done,
    Failed,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Commands of the store that went wrong.
    pub(crate) store_faults: AtomicU64,
    /// Reads of the store that went wrong.
    pub(crate) read_faults: AtomicU64,
    /// Crashes of coordinator and agents.
    pub(crate) crashes: AtomicU64,
    /// Starts of daemons.
    pub(crate) starts: AtomicU64,
    /// Links cut or held.
    pub(crate) cuts: AtomicU64,
    /// Jumps of clocks.
    pub(crate) jumps: AtomicU64,
    /// Calls made again although they were answered.
    pub(crate) repeats: AtomicU64,
    /// Faults that no system could survive.
    pub(crate) planted: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    /// Workspaces made of a checkpoint.
    pub(crate) resumed: AtomicU64,
    /// Verify commands that came to an answer.
    pub(crate) judged: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct World {
    /// All randomness derives from this.
    pub(crate) seed: u64,
    /// What is wrong on purpose.
    pub(crate) plant: Plant,
    /// When everything is whole again for good. People create tasks until then.
    pub(crate) healed: Duration,
    /// What clients, watchers and scripted agents saw.
    pub(crate) record: Record,
    /// By attempt.
    pub(crate) emitted: Mutex<BTreeMap<String, Emitted>>,
    /// Commits, blobs and worktrees.
    pub(crate) forge: Mutex<Forge>,
    /// Commits that tasks may start from.
    pub(crate) bases: Vec<Oid>,
    /// Whether adapters tell when their tools run.
    pub(crate) whole_steps: bool,
    /// What somebody saw that must never be.
    accused: Mutex<Vec<String>>,
    pub(crate) trouble: AtomicBool,
    /// True once the coordinator's clock was off.
    pub(crate) jumped: AtomicBool,
    /// The number of people who have not seen the end of their tasks.
    pub(crate) busy: AtomicUsize,
    pub(crate) counts: Counts,
    log: Mutex<Vec<String>>,
    clocks: Mutex<BTreeMap<String, Arc<AtomicI64>>>,
    dir: TempDir,
}

impl World {
    /// A world before its start.
    pub(crate) fn new(seed: u64, plant: Plant) -> Arc<Self> {
        let ids = Dice::of(seed, "record");
        // In memory if possible: durability is not tested here.
        let memory = Path::new("/dev/shm");
        let dir = tempfile::Builder::new().prefix("kage-world-").to_owned();
        let dir = if memory.is_dir() {
            dir.tempdir_in(memory)
        } else {
            dir.tempdir()
        };
        let mut forge = Forge::default();
        let base = |n: u64| Files::from([("a".to_owned(), text(n, n != 2)), ("b".to_owned(), text(n, n != 2))]);
        let bases = (0..3).map(|n| forge.base(base(n))).collect();
        Arc::new(Self {
            seed,
            plant,
            forge: Mutex::new(forge),
            bases,
            whole_steps: Dice::of(seed, "steps").chance(700),
            accused: Mutex::default(),
            healed: Dice::of(seed, "healed").millis(10_000, 40_000),
            record: Record::drawing(Arc::new(move || ids.bits())),
            emitted: Mutex::default(),
            trouble: AtomicBool::new(false),
            jumped: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            counts: Counts::default(),
            log: Mutex::default(),
            clocks: Mutex::default(),
            dir: dir.unwrap(),
        })
    }

    /// The source of randomness of one user.
    pub(crate) fn dice(&self, user: &str) -> Dice {
        Dice::of(self.seed, user)
    }

    /// Where a host keeps its files.
    pub(crate) fn dir(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    /// Records an event with its time.
    pub(crate) fn log(&self, what: impl std::fmt::Display) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        self.log_at(at, what);
    }

    /// The same, from outside of all hosts.
    pub(crate) fn log_at(&self, at: Duration, what: impl std::fmt::Display) {
        let line = format!("{:>9.3} {what}", at.as_secs_f64());
        self.log.lock().unwrap().push(line);
    }

    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Whether this goes wrong now, in a world that is wrong in this way on purpose.
    pub(crate) fn plants(&self, plant: Plant, dice: &Dice) -> bool {
        let planted = self.plant == plant && dice.chance(200);
        if planted {
            count(&self.counts.planted);
        }
        planted
    }

    /// Notes what must never be.
    pub(crate) fn accuse(&self, text: String) {
        self.accused.lock().unwrap().push(text);
    }

    /// Everything that must never be and was.
    pub(crate) fn take_accused(&self) -> Vec<String> {
        std::mem::take(&mut self.accused.lock().unwrap())
    }

    /// How far the clock of a host is off, in milliseconds.
    pub(crate) fn offset(&self, host: &str) -> Arc<AtomicI64> {
        let mut clocks = self.clocks.lock().unwrap();
        Arc::clone(clocks.entry(host.to_owned()).or_default())
    }

    /// The clock on a host's wall.
    pub(crate) fn clock(&self, host: &str) -> Arc<dyn Fn() -> Timestamp + Send + Sync> {
        let offset = self.offset(host);
        Arc::new(move || {
            let elapsed = turmoil::sim_elapsed().unwrap_or_default().as_millis();
            let true_time = EPOCH + u64::try_from(elapsed).unwrap();
            Timestamp::from_millis(true_time.saturating_add_signed(offset.load(Ordering::Relaxed)))
        })
    }

    /// Notes something that an adapter reports.
    pub(crate) fn emit(&self, attempt: &str, change: impl FnOnce(&mut Emitted)) {
        let mut emitted = self.emitted.lock().unwrap();
        change(emitted.entry(attempt.to_owned()).or_default());
    }

    /// Notes bytes that an adapter prints.
    pub(crate) fn print(&self, attempt: &str, stream: OutputStream, bytes: &[u8]) {
        self.emit(attempt, |emitted| {
            emitted
                .output
                .entry(stream.as_str())
                .or_default()
                .extend_from_slice(bytes);
        });
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

thread_local! {
    /// Panics in this thread since the last call. A task that panics is not reported elsewhere.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Sees to it that panics are noticed.
pub(crate) fn notice_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            usual(info);
        }));
    });
}

/// Panics since the last call.
pub(crate) fn take_panics() -> Vec<String> {
    PANICS.take()
}
