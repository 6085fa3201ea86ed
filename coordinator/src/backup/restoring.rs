//! Puts a backup into a new data folder.

use std::path::Path;

use kage_core::time::Timestamp;

use super::checking::verify;
use super::making::refuse_content;
use super::{BackupError, Contained, MANIFEST, Manifest, blocking, copying};
use crate::data::custody::{Beginning, Mark};
use crate::data::folder::DataDir;
use crate::data::standstill;
use crate::store::{Opened, Store, position_text};

/// Checks a backup and copies it into a data folder that is empty or not there. For a week, files
/// that its database does not know stay in that folder. With `incomplete`, it is also put back when
/// it lacks files that its rows name.
///
/// # Errors
/// When it is not whole, or a folder cannot be used.
pub async fn restore(from: &Path, to: &Path, incomplete: bool, now: Timestamp) -> Result<Contained, BackupError> {
    let (backup, data) = (from.to_owned(), to.to_owned());
    blocking(move || {
        match Manifest::read(&backup)? {
            Some(_) => {}
            None => return Err(BackupError::Unfinished { path: backup }),
        }
        refuse_content(&data)
    })
    .await?;
    let contained = verify(from).await?;
    if !incomplete && !contained.flaws.is_empty() {
        return Err(BackupError::Flawed { flaws: contained.flaws });
    }
    let (backup, data) = (from.to_owned(), to.to_owned());
    blocking(move || put_back(&backup, &data, now)).await?;
    Ok(contained)
}

fn put_back(from: &Path, to: &Path, now: Timestamp) -> Result<(), BackupError> {
    let data = DataDir::open(to).map_err(BackupError::DataDir)?;
    let contents = Store::contents(&from.join("kage.db"))?;
    let Some(id) = contents.id else {
        return Err(BackupError::NoData { path: from.to_owned() });
    };
    // The database comes last: without it nothing starts on a part of the data.
    let apart = [MANIFEST, "kage.db", "lock", standstill::LOCK];
    let mut bytes = 0;
    copying::folder(from, to, &|name| !apart.contains(&name), &mut bytes)?;
    copying::write(&data.position(), position_text(contents.position).as_bytes())?;
    let opened = Opened {
        id,
        times: contents.opened,
        position: contents.position,
    };
    let mark = Mark::next(opened, None, Beginning::Older, now);
    data.mark(mark).map_err(BackupError::DataDir)?;
    copying::settle(to)?;
    copying::file(&from.join("kage.db"), &data.database(), &mut bytes)?;
    copying::settle(to)
}
