//! The identity of a database: what a file shows before it is opened for writing, and its row
//! afterwards. `custody` decides whether it belongs to a data folder.

use kage_core::id::StoreId;

/// The kind of a file that may be one of our databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is no database in it.
    Nothing(Absent),
    Database(Known),
}

/// Why there is no database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    Missing,
    Empty,
    /// The file has no tables: they are in a log that is not beside it.
    Blank,
}

/// The known facts about a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its id; `None` = a version wrote it that gave none.
    pub(crate) id: Option<StoreId>,
    /// How often a coordinator has opened it.
    pub(crate) opened: u64,
    /// As far as it records, no call was ever made on it.
    pub(crate) unused: bool,
    /// How many of the attempts that were asked about it does not know.
    pub(crate) unknown: usize,
}

/// A database that is open now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) id: StoreId,
    /// How often a coordinator has opened it, this time included.
    pub(crate) times: u64,
}
