//! Verdicts on bases that are kept.

use kage_core::base_verdict::{BaseKey, KeptVerdict};
use kage_core::time::Timestamp;
use rusqlite::params;

use super::SqliteRows;
use crate::store::rows::{BaseVerdictRows, Failed};
use crate::store::sqlite::value::{get_json, json, time};

impl BaseVerdictRows for SqliteRows<'_> {
    fn base_verdicts(&mut self, key: &BaseKey) -> Result<Vec<KeptVerdict>, Failed> {
        self.all(
            "SELECT doc FROM base_verdicts WHERE key = ?1 ORDER BY machine",
            params![key.as_str()],
            |row| get_json(row, 0, "base verdict"),
        )
    }

    fn put_base_verdict(&mut self, kept: &KeptVerdict) -> Result<(), Failed> {
        self.execute(
            "INSERT OR REPLACE INTO base_verdicts (key, machine, decided_at, doc) VALUES (?1, ?2, ?3, ?4)",
            params![
                kept.key.as_str(),
                kept.machine.as_str(),
                time(kept.decided_at),
                json("base verdict", kept)?,
            ],
        )
    }

    fn forget_base_verdicts(&mut self, before: Timestamp) -> Result<(), Failed> {
        self.execute("DELETE FROM base_verdicts WHERE decided_at < ?1", params![time(before)])
    }
}
