//! This crate against real git, on repositories in temporary folders. Each test has a HOME of
//! its own; what it calls plain git is git as a person would run it there.

mod sandbox;

mod http;
mod packs;
mod worktrees;
