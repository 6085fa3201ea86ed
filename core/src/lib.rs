//! The pure domain of Kage Bunshin.
//!
//! Everything here is a synchronous function of its arguments: no I/O, no clock, no
//! randomness. Modules are listed foundation first; each uses only those above it.

#![warn(missing_docs)]

pub mod cause;
pub mod id;
mod words;
pub mod time;
pub mod labels;
pub mod access;
pub mod json;
pub mod folder;
pub mod pattern;
pub mod mentions;
pub mod command_files;
pub mod login;
pub mod usage;
pub mod call;
pub mod tool_uses;
pub mod price;
pub mod budget;
pub mod call_queue;
pub mod ledger;
pub mod fallback;
pub mod failure;
pub mod failure_table;
pub mod recovery;
pub mod checkpoint;
pub mod left_out;
pub mod caches;
pub mod contain;
pub mod network;
pub mod test_counts;
pub mod event;
pub mod sent_result;
pub mod rework;
pub mod session;
pub mod context;
pub mod priority;
pub mod task;
pub mod attempt;
pub mod job;
pub mod base_verdict;
pub mod deadline;
pub mod fleet;
pub mod placement;
pub mod prompt;
pub mod protect;
pub mod shadowed;
pub mod suspicion;
pub mod risk;
pub mod report;
pub mod comparison;
pub mod retention;

pub mod decoders;
