//! Worlds as processes of this program, two at a time, and their arguments.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::run::{Outcome, Plant, run, speak};

/// Worlds at the same time: each is one thread.
const AT_ONCE: usize = 2;
/// A world that takes longer loops.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks whether a world has ended.
const POLL: Duration = Duration::from_millis(5);

/// The seed of the world of this process.
const SEED: &str = "KAGE_SEED";
const PLANT: &str = "KAGE_SIMULATION_PLANT";
/// The file for the outcome.
const OUTCOME: &str = "KAGE_SIMULATION_OUTCOME";

/// The work of this process, if it runs one world.
pub(crate) struct Asked {
    seed: u64,
    plant: Plant,
    outcome: Option<PathBuf>,
}

/// The world that this process has to run, if any.
pub(crate) fn asked_for() -> Option<Asked> {
    let seed = std::env::var(SEED).ok()?;
    let plant = std::env::var(PLANT).ok();
    Some(Asked {
        seed: seed.parse().unwrap_or_else(|_| panic!("{SEED}={seed} is no number")),
        plant: plant.map_or(Plant::Nothing, |plant| serde_json::from_str(&plant).unwrap()),
        outcome: std::env::var_os(OUTCOME).map(PathBuf::from),
    })
}

impl Asked {
    /// Runs it, for another process or for a person.
    pub(crate) fn carry_out(self) {
        if let Some(path) = self.outcome {
            let outcome = run(self.seed, self.plant);
            return std::fs::write(path, serde_json::to_vec(&outcome).unwrap()).unwrap();
        }
        speak();
        let outcome = run(self.seed, self.plant);
        for line in &outcome.trace {
            eprintln!("{line}");
        }
        assert!(outcome.wrong.is_empty(), "{:#?}", outcome.wrong);
    }
}

/// The one command that repeats a seed.
pub(crate) fn replay(seed: u64) -> String {
    format!("{SEED}={seed} cargo test -p kage-tests --test simulation seeds -- --nocapture")
}

/// Runs worlds and returns their outcomes, in the order of their seeds.
pub(crate) fn worlds(seeds: Range<u64>, plant: Plant) -> Vec<Outcome> {
    let dir = tempfile::tempdir().unwrap();
    let next = AtomicU64::new(seeds.start);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let outcome = world(seed, plant, dir.path());
                    outcomes.lock().unwrap().push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

fn world(seed: u64, plant: Plant, dir: &Path) -> Outcome {
    let (path, said) = (dir.join(format!("{seed}.json")), dir.join(format!("{seed}.said")));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["seeds", "--exact", "--nocapture", "--test-threads=1"])
        .env(SEED, seed.to_string())
        .env(PLANT, serde_json::to_string(&plant).unwrap())
        .env(OUTCOME, &path)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.to_string(),
            None if begun.elapsed() > PATIENCE => {
                child.kill().unwrap();
                child.wait().unwrap();
                break format!("no end in {PATIENCE:?}");
            }
            None => std::thread::sleep(POLL),
        }
    };
    match std::fs::read(&path).ok().map(|bytes| serde_json::from_slice(&bytes)) {
        Some(Ok(outcome)) => outcome,
        Some(Err(_)) | None => {
            let said = std::fs::read_to_string(said).unwrap_or_default();
            Outcome::broken(
                seed,
                format!("the process of the world ended without a word ({status}): {said}"),
            )
        }
    }
}
