//! Start-up and shutdown, and the server in between.

pub(crate) mod files;
pub(crate) mod listeners;
pub(crate) mod server;
pub(crate) mod failure;
pub(crate) mod belonging;
pub(crate) mod start;
