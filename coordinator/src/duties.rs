//! What the coordinator does without being asked: placing jobs, making room, and finding out what
//! became of a commit with an unknown outcome.

pub(crate) mod dispatch;
pub(crate) mod unknown_outcome;
pub(crate) mod retention;
