//! What the end-to-end stories and the benchmarks stand on: real programs in processes of
//! their own, temporary state, sample repositories, and waiting for conditions. It asserts
//! nothing about Kage Bunshin; that is for the stories in `tests/e2e`.

pub mod tier;
pub mod wait;

pub mod process;
pub mod root;
pub mod programs;
pub mod repo;

pub mod cluster;
pub mod command;

pub mod blobs;
pub mod tasks;

pub mod faults;
pub mod history;
pub mod chaos;

pub mod bench;

#[cfg(test)]
mod structure;
