//! The coordinator: it holds the state of every task and places the work.

pub mod store;
