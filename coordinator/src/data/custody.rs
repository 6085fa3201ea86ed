//! Decides whether a data folder and a database belong together, before anything is written to
//! either: with the wrong database, a coordinator would treat everything in the folder as garbage.
//!
//! Both carry the id of the store and the number of times it was opened. The folder has them in
//! `store-id`, which is written after the database, so that an interrupted first start can be
//! repeated. The file `kage.db-open` exists while a coordinator runs: if it is found at a start,
//! the last run did not end cleanly, and the log of its database has to be there. The file
//! `store-position` has the position of the last commit that was acknowledged: a database that ends
//! before it is an older copy, or has lost its end.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_core::id::{AttemptId, StoreId};
use kage_core::retention::QUARANTINE;
use kage_core::time::Timestamp;

use crate::store::{Absent, Found, Known, Opened, parse_position};

/// The folder's record of its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) id: StoreId,
    /// How many times the data was opened.
    pub(crate) opened: u64,
    /// The database was adopted for a folder that held data before.
    pub(crate) adopted: bool,
    /// Until then nothing has confirmed that the database is the right one, and files that it does
    /// not know stay where they are.
    pub(crate) unswept_until: Option<Timestamp>,
}

const ADOPTED: &str = "adopted";
const UNSWEPT: &str = "unswept-until=";

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let mut mark = Self {
            id: words.next()?.parse().ok()?,
            opened: words.next()?.parse().ok()?,
            adopted: false,
            unswept_until: None,
        };
        for word in words {
            if let Some(until) = word.strip_prefix(UNSWEPT) {
                mark.unswept_until = Some(Timestamp::from_millis(until.parse().ok()?));
            }
            mark.adopted |= word == ADOPTED;
        }
        Some(mark)
    }

    /// The folder's record from now on.
    pub(crate) fn next(opened: Opened, before: Option<Self>, beginning: Beginning, now: Timestamp) -> Self {
        let adopted = match beginning {
            Beginning::First => false,
            Beginning::Adopted => true,
            Beginning::Older | Beginning::Usual => before.is_some_and(|mark| mark.adopted),
        };
        let before = before.and_then(|mark| mark.unswept_until).filter(|until| *until > now);
        let unswept_until = match beginning {
            Beginning::First | Beginning::Adopted | Beginning::Older => {
                let week = u64::try_from(QUARANTINE.as_millis()).unwrap_or(u64::MAX);
                Some(Timestamp::from_millis(now.as_millis().saturating_add(week)))
            }
            Beginning::Usual => before,
        };
        Self {
            id: opened.id,
            opened: opened.times,
            adopted,
            unswept_until,
        }
    }

    /// How long files that the database does not know stay where they are. A week at most, even when
    /// the clock was set back.
    pub(crate) fn unswept_for(&self, now: Timestamp) -> Duration {
        let until = self.unswept_until.map_or(0, Timestamp::as_millis);
        Duration::from_millis(until.saturating_sub(now.as_millis())).min(QUARANTINE)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.opened)?;
        if self.adopted {
            write!(f, " {ADOPTED}")?;
        }
        match self.unswept_until {
            Some(until) => write!(f, " {UNSWEPT}{}", until.as_millis()),
            None => Ok(()),
        }
    }
}

/// The content of a data folder besides the database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// The attempts whose output it has.
    pub(crate) attempts: Vec<AttemptId>,
    /// Whether there are results of sessions.
    pub(crate) results: bool,
    pub(crate) repositories: bool,
    pub(crate) blobs: bool,
}

impl Holdings {
    /// Inspects a data folder.
    pub(crate) fn of(root: &Path) -> io::Result<Self> {
        let attempts = names(&root.join("output"))?;
        let attempts = attempts.iter().filter_map(|name| name.parse().ok()).collect();
        let (mut results, mut repositories) = (false, false);
        for project in folders(&root.join("repos"))? {
            for repository in folders(&project)? {
                repositories = true;
                results = results || has_results(&repository)?;
            }
        }
        let mut blobs = false;
        for project in folders(&root.join("blobs"))? {
            blobs = blobs || !names(&project)?.is_empty();
        }
        Ok(Self {
            attempts,
            results,
            repositories,
            blobs,
        })
    }

    fn is_empty(&self) -> bool {
        self.attempts.is_empty() && !self.repositories && !self.blobs
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut held = Vec::new();
        match self.attempts.len() {
            0 => {}
            1 => held.push("the output of 1 attempt".to_owned()),
            n => held.push(format!("the output of {n} attempts")),
        }
        if self.results {
            held.push("results of sessions".to_owned());
        } else if self.repositories {
            held.push("repositories".to_owned());
        }
        if self.blobs {
            held.push("blobs".to_owned());
        }
        match held.split_last() {
            None => f.write_str("no output, repositories or blobs"),
            Some((last, [])) => f.write_str(last),
            Some((last, others)) => write!(f, "{} and {last}", others.join(", ")),
        }
    }
}

/// A data folder as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    /// `None`: an older version wrote the folder, or it is new.
    pub(crate) mark: Option<Mark>,
    /// The opening that did not end cleanly.
    pub(crate) left_open: Option<u64>,
    /// Whether the database has a log beside it that is not empty.
    pub(crate) log: bool,
    /// The position of the last acknowledged commit; `None`: nothing noted it yet.
    pub(crate) acknowledged: Option<u64>,
    pub(crate) holdings: Holdings,
}

/// What a person takes upon themselves with a start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Consent {
    /// That the data and the database belong together.
    pub(crate) adopt: bool,
    /// That the database is older than the data.
    pub(crate) older: bool,
}

/// How a coordinator starts, by what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    First,
    /// They count as belonging together from now on.
    Adopted,
    /// The database is an older copy of the folder's: the folder may know more.
    Older,
    /// Folder and database were used together before.
    Usual,
}

/// Folder and database do not belong together. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The data has no database.
    #[error(
        "{} has {holdings}, and its database kage.db {state}; nothing was changed. Put kage.db back, with its \
         kage.db-wal if there is one; or move the folder away, to begin with nothing; or start once with \
         --adopt-data, which makes a database that knows nothing of this data", path.display()
    )]
    NoDatabase {
        path: PathBuf,
        /// The folder's content, in words.
        holdings: String,
        /// What is wrong with the file.
        state: String,
    },
    /// The database is new, but the data is not.
    #[error(
        "{} has {holdings}, and its database kage.db has never been used; nothing was changed. Put the kage.db back \
         that belongs to this data, with its kage.db-wal if there is one; or move the folder away, to begin with \
         nothing; or start once with --adopt-data, which keeps this database", path.display()
    )]
    Unused {
        path: PathBuf,
        /// The folder's content, in words.
        holdings: String,
    },
    /// The database belongs to other data.
    #[error(
        "{} belongs to store {folder}, and its database kage.db {database}; nothing was changed. Put the kage.db back \
         that belongs to this data, with its kage.db-wal if there is one; or start once with --adopt-data, which \
         takes this database for the right one", path.display()
    )]
    OtherStore {
        path: PathBuf,
        folder: StoreId,
        /// The database's id, in words.
        database: String,
    },
    /// The last part of the database is missing.
    #[error(
        "{} has the output of {unknown} attempts that its database kage.db does not know, and the log kage.db-wal of \
         the run that was broken off is missing; nothing was changed. Put kage.db-wal back beside the kage.db of the \
         same time; or start once with --adopt-data, which goes on without what was in it", path.display()
    )]
    NoLog {
        path: PathBuf,
        /// How many attempts only the folder knows.
        unknown: usize,
    },
    /// The database ends before what was acknowledged.
    #[error(
        "{}: the database kage.db is older than the data beside it: it ends at {known}, and {acknowledged} was \
         acknowledged; nothing was changed. Put the kage.db back that was here last, with its kage.db-wal if there is \
         one; or start once with --accept-older, which goes on without what was acknowledged since, and leaves the \
         files of that where they are for a week", path.display()
    )]
    Behind {
        path: PathBuf,
        /// How far the database goes, in words.
        known: String,
        /// What the folder knows of, in words.
        acknowledged: String,
    },
    /// The folder's record of its store cannot be read.
    #[error("{} does not hold the id of a store; put it back from a backup, or start once with --adopt-data", path.display())]
    Mark { path: PathBuf },
}

/// Decides how to start.
pub(crate) fn judge(folder: &Folder, found: &Found, consent: Consent) -> Result<Beginning, Misfit> {
    match found {
        Found::Nothing(absent) => without_database(folder, *absent, consent.adopt),
        Found::Database(known) => with_database(folder, known, consent),
    }
}

fn without_database(folder: &Folder, absent: Absent, adopt: bool) -> Result<Beginning, Misfit> {
    // A log without its file is a database whose file was moved away.
    if folder.mark.is_none() && folder.holdings.is_empty() && !folder.log {
        return Ok(Beginning::First);
    }
    if adopt {
        return Ok(Beginning::Adopted);
    }
    let state = match absent {
        Absent::Missing => "is missing",
        Absent::Empty => "has no bytes",
        Absent::Blank => "has no tables",
    };
    let state = match folder.log {
        true => format!("{state}, though its log kage.db-wal is there"),
        false => state.to_owned(),
    };
    Err(Misfit::NoDatabase {
        path: folder.path.clone(),
        holdings: folder.holdings.to_string(),
        state,
    })
}

fn with_database(folder: &Folder, known: &Known, consent: Consent) -> Result<Beginning, Misfit> {
    let path = || folder.path.clone();
    let left = !folder.holdings.attempts.is_empty() || folder.holdings.results;
    let misfit = match folder.mark {
        Some(mark) if known.id != Some(mark.id) => Some(Misfit::OtherStore {
            path: path(),
            folder: mark.id,
            database: match known.id {
                Some(id) => format!("to store {id}"),
                None => "says nothing of a store, since an older version wrote it".to_owned(),
            },
        }),
        mark if known.unused && left && mark.is_none_or(|mark| !mark.adopted) => Some(Misfit::Unused {
            path: path(),
            holdings: folder.holdings.to_string(),
        }),
        // Another program may have written the log into the file, which then knows everything.
        Some(_) if folder.left_open == Some(known.opened) && !folder.log && known.unknown > 0 => Some(Misfit::NoLog {
            path: path(),
            unknown: known.unknown,
        }),
        Some(mark) => {
            return match behind(folder, mark, known) {
                Some(misfit) if !consent.adopt && !consent.older => Err(misfit),
                Some(_) => Ok(Beginning::Older),
                None => Ok(Beginning::Usual),
            };
        }
        // A version without ids wrote both, or a first start was interrupted.
        None => None,
    };
    match misfit {
        Some(misfit) if !consent.adopt => Err(misfit),
        Some(_) | None => Ok(Beginning::Adopted),
    }
}

/// The refusal of a database that ends before what its folder knows of.
fn behind(folder: &Folder, mark: Mark, known: &Known) -> Option<Misfit> {
    let (known, acknowledged) = match folder.acknowledged {
        Some(acknowledged) if known.position < acknowledged => {
            (format!("commit {}", known.position), format!("commit {acknowledged}"))
        }
        Some(_) | None if known.opened < mark.opened => {
            (format!("start {}", known.opened), format!("start {}", mark.opened))
        }
        Some(_) | None => return None,
    };
    Some(Misfit::Behind {
        path: folder.path.clone(),
        known,
        acknowledged,
    })
}

const MARK: &str = "store-id";
const OPEN: &str = "kage.db-open";
const POSITION: &str = "store-position";

impl Folder {
    /// Inspects a data folder. With `adopt`, an unreadable record counts as none.
    pub(crate) fn look(root: &Path, adopt: bool) -> Result<Self, LookError> {
        let failed = |source| LookError::Io {
            path: root.to_owned(),
            source,
        };
        let mark = match text(&root.join(MARK)).map_err(failed)? {
            None => None,
            Some(text) => match Mark::parse(&text) {
                Some(mark) => Some(mark),
                None if adopt => None,
                None => {
                    return Err(LookError::Misfit(Misfit::Mark { path: root.join(MARK) }));
                }
            },
        };
        let left_open = text(&root.join(OPEN)).map_err(failed)?;
        let acknowledged = text(&root.join(POSITION)).map_err(failed)?;
        let log = match std::fs::metadata(root.join("kage.db-wal")) {
            // An empty log has nothing that could be lost.
            Ok(file) => file.len() > 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self {
            path: root.to_owned(),
            mark,
            left_open: left_open.and_then(|text| text.trim().parse().ok()),
            log,
            acknowledged: acknowledged.and_then(|text| parse_position(&text)),
            holdings: Holdings::of(root).map_err(failed)?,
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    /// The folder and the database are of different stores.
    #[error(transparent)]
    Misfit(Misfit),
    #[error("{} cannot be inspected", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The name of the file that says which store a folder belongs to.
pub(crate) const fn mark_file() -> &'static str {
    MARK
}

/// The name of the file with the position of the last acknowledged commit.
pub(crate) const fn position_file() -> &'static str {
    POSITION
}

/// The name of the file that exists while a coordinator runs.
pub(crate) const fn open_file() -> &'static str {
    OPEN
}

fn text(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names in a folder; empty when it does not exist.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

fn folders(of: &Path) -> io::Result<Vec<PathBuf>> {
    let names = names(of)?.into_iter().map(|name| of.join(name));
    Ok(names.filter(|path| path.is_dir()).collect())
}

/// True when a bare repository has references of results.
fn has_results(repository: &Path) -> io::Result<bool> {
    let loose = names(&repository.join(RESULTS))?;
    let packed = text(&repository.join("packed-refs"))?.unwrap_or_default();
    Ok(!loose.is_empty() || packed.contains(RESULTS))
}

const RESULTS: &str = "refs/kage/results";

#[cfg(test)]
mod tests;
