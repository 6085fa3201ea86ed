//! A whole coordinator in this process, used through its port only.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod admission;
mod backup;
mod capabilities;
mod checkpoints;
mod claims;
mod clocks;
mod cluster;
mod containment;
mod contexts;
mod control;
mod custody;
mod deadlines;
mod delivery;
mod unknown_outcome;
mod fleet;
mod forgery;
mod json;
mod limits;
mod lists;
mod origins;
mod planes;
mod projects;
mod repositories;
mod results;
mod retention;
mod rights;
mod strangers;
mod watches;
mod web;
