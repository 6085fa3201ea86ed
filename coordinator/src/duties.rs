//! Work that the coordinator does on its own: placing jobs, freeing disk space, and finding out the
//! result of a commit with an unknown outcome.

pub(crate) mod dispatch;
pub(crate) mod unknown_outcome;
pub(crate) mod retention;
