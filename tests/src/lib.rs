//! The foundation of the end-to-end stories and the benchmarks: real programs in separate
//! processes, temporary state, sample repositories, and waiting for conditions. It asserts nothing
//! about Kage Bunshin; the stories in `tests/e2e` do.

pub mod tier;
pub mod wait;

pub mod process;
pub mod root;
pub mod programs;
pub mod repo;

pub mod cluster;
pub mod command;

pub mod billing;
pub mod blobs;
mod books;
pub mod tasks;

pub mod faults;
pub mod history;
pub mod chaos;

pub mod bench;

#[cfg(test)]
mod structure;
