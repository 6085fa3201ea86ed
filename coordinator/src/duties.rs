//! Work that the coordinator does on its own: placing jobs, freeing disk space, and following what
//! others committed.

pub(crate) mod dispatch;
pub(crate) mod gaps;
pub(crate) mod retention;
