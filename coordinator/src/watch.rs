//! Tasks and agents as clients see them, once and as they change.

pub(crate) mod cursor;
pub(crate) mod view;
pub(crate) mod watching;
pub(crate) mod tasks;
