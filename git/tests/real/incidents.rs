//! Incidents of other tools that must not happen here: at least one test for each of the twelve
//! incidents, named after its number.
//!
//! ```text
//!  1  a reverted .gitignore, then a clean: formerly ignored files were deleted
//!  2  a restore moved the branch, and commits fell off it
//!  3  nested repositories were renamed for a snapshot, and stayed so after a crash
//!  4  a file could not be added, and the old tree became the new snapshot
//!  5  a session in a subfolder reverted other folders with an old index
//!  6  temporary packs and snapshots filled the disk
//!  7  snapshots without a reference were collected
//!  8  what was staged was clobbered, what was ignored overwritten
//!  9  a restore deleted nearly all files of a big repository
//! 10  two at work in one worktree: silent loss
//! 11  the removal of a worktree took work along that nobody else had
//! 12  worktrees made while others fetch: now and then one failed
//! ```

mod checkpoints;
mod restores;
