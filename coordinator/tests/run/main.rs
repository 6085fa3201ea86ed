//! A whole coordinator in this process, seen through its port only.

mod cluster;
mod control;
mod delivery;
mod planes;
