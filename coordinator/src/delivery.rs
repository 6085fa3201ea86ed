//! What agents deliver: events, output and results, taken in durably before it is acknowledged.

pub(crate) mod results;
pub(crate) mod append;
