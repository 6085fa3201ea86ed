//! The first look at the data of a start: whether the folder and its database belong together, before
//! anything is written to either. `custody` decides; here it is asked and told.

use crate::data::custody::{self, Beginning, Consent, Mark};
use crate::data::folder::DataDir;
use crate::life::failure::RunError;
use crate::store::Store;

/// The relation between data and database.
pub(super) struct Custody {
    pub(super) beginning: Beginning,
    /// The folder's earlier record of its store.
    pub(super) mark: Option<Mark>,
    /// The position that was acknowledged before.
    pub(super) acknowledged: u64,
}

impl Custody {
    pub(super) fn of(data: &DataDir, consent: Consent) -> Result<Self, RunError> {
        let folder = data.look(consent.adopt)?;
        let found = Store::look(&data.database(), &folder.holdings.attempts).map_err(RunError::Open)?;
        let beginning = custody::judge(&folder, &found, consent).map_err(RunError::Misfit)?;
        let path = folder.path.display();
        match beginning {
            Beginning::First => tracing::info!(%path, "a new store is made"),
            Beginning::Adopted => tracing::warn!(
                %path, holdings = %folder.holdings,
                "the data and its database are taken as one store from now on"
            ),
            Beginning::Older => tracing::warn!(
                %path, holdings = %folder.holdings,
                "the database is an older copy: what only the folder knows of stays, and is not shown"
            ),
            Beginning::Usual => {}
        }
        Ok(Self {
            beginning,
            mark: folder.mark,
            acknowledged: folder.acknowledged.unwrap_or(0),
        })
    }
}
