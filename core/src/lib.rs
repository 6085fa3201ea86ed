//! The pure domain of Kage Bunshin.
//!
//! Everything here is a synchronous function of its arguments: no I/O, no clock, no
//! randomness. Modules are listed foundation first; each uses only those above it.

pub mod attempt;
pub mod context;
pub mod event;
pub mod failure;
pub mod failure_table;
pub mod fleet;
pub mod id;
pub mod job;
pub mod json;
pub mod placement;
pub mod price;
pub mod prompt;
pub mod recovery;
pub mod report;
pub mod risk;
pub mod session;
pub mod task;
pub mod time;
pub mod usage;
