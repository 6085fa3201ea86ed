//! Work that the coordinator does on its own: placing jobs, handing over what people say to running sessions, freeing disk space, making results
//! of what nobody claimed, and following what others committed.

pub(crate) mod telling;
pub(crate) mod dispatch;
pub(crate) mod saving;
pub(crate) mod gaps;
pub(crate) mod retention;
