//! Calls that clients may repeat.

use kage_core::time::Timestamp;
use rusqlite::params;

use super::SqliteRows;
use crate::store::rows::{Failed, RequestKey, RequestRow, RequestRows};
use crate::store::sqlite::value::{get, get_parsed, get_time, time};

impl RequestRows for SqliteRows<'_> {
    fn request(&mut self, key: &RequestKey) -> Result<Option<RequestRow>, Failed> {
        self.one(
            "SELECT payload, reply, at FROM requests WHERE principal = ?1 AND method = ?2 AND id = ?3",
            params![key.principal, key.method, key.id],
            |row| {
                Ok(RequestRow {
                    payload: get_parsed(row, 0, "digest")?,
                    reply: get(row, 1)?,
                    at: get_time(row, 2)?,
                })
            },
        )
    }

    fn insert_request(&mut self, key: &RequestKey, row: &RequestRow) -> Result<(), Failed> {
        self.insert(
            "request",
            "INSERT INTO requests (principal, method, id, payload, reply, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                key.principal,
                key.method,
                key.id,
                row.payload.as_str(),
                row.reply,
                time(row.at)
            ],
        )
    }

    fn forget_requests(&mut self, before: Timestamp, limit: u32) -> Result<(), Failed> {
        self.execute(
            "DELETE FROM requests WHERE n IN (SELECT n FROM requests ORDER BY n LIMIT ?2) AND at < ?1",
            params![time(before), limit],
        )
    }
}
