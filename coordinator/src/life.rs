//! Start-up and shutdown, and the port that is served in between.

pub(crate) mod files;
pub(crate) mod listeners;
pub(crate) mod server;
pub(crate) mod start;
