//! Which store a database is: what is known of a file before it is opened for writing, and what
//! it says of itself afterwards. Whether it belongs to a data folder is decided in `custody`.

use kage_core::id::StoreId;

/// What a file is that may be a database of ours.
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
    /// The file has no tables: what made them is in a log that is not beside it.
    Blank,
}

/// What is known of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its id; `None` = a version wrote it that gave none.
    pub(crate) id: Option<StoreId>,
    /// How often a coordinator has opened it.
    pub(crate) opened: u64,
    /// Nobody has ever asked anything of it, as far as it remembers.
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
