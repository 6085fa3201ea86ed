//! The identity of a database: what a file shows before it is opened for writing, and its row
//! afterwards. `custody` decides whether it belongs to a data folder.

use std::path::PathBuf;

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
    /// How many commits changed it; 0 for a version that did not count.
    pub(crate) position: u64,
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
    /// How many commits changed it, the one of this opening included.
    pub(crate) position: u64,
}

/// The facts that a coordinator opens its database with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opening {
    /// The id of a database that has none.
    pub(crate) fresh: StoreId,
    /// How often the data was opened before, as far as its folder knows.
    pub(crate) times: u64,
    /// The position that was acknowledged before, as far as its folder knows.
    pub(crate) position: u64,
    /// The file in which positions are noted.
    pub(crate) noted: PathBuf,
}
