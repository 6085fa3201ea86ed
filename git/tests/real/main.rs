//! This crate with real git, on repositories in temporary folders. Each test has its own HOME;
//! "plain git" is git as a person would run it there.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod faults;
mod sandbox;
mod secrets;

mod checkpoints;
mod concurrent;
mod crashes;
mod differences;
mod flawed;
mod healing;
mod hostile;
mod http;
mod identity;
mod incidents;
mod landings;
mod landings_hooks;
mod landings_onto;
mod landings_random;
mod landings_states;
mod large;
mod large_random;
mod leftovers;
mod lineage;
mod names;
mod odd;
mod packs;
mod planted;
mod proofs;
mod restores;
mod restores_many;
mod restores_random;
mod results_random;
mod reused;
mod snapshots;
mod submodules;
mod unfinished;
mod upkeep;
mod without;
mod worktrees;
