//! The command line of Kage Bunshin, and what only it needs.

pub mod scripted;
