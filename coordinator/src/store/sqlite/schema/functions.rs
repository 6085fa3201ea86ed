//! What a step of the schema needs and SQL does not have: prices and digests. The functions are there while a
//! file is brought to the present schema, and only steps call them.

use kage_core::id::Digest;
use kage_core::price::{PriceTable, Used};
use kage_core::time::Timestamp;
use kage_core::usage::{PicoUsd, Usage};
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::{Connection, Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The function of `priced.sql`.
const PRICED: &str = "kage_priced";
/// The function of `prompts.sql`.
const DIGEST: &str = "kage_digest";

pub(super) fn add(connection: &Connection, prices: &PriceTable) -> Result<()> {
    let prices = prices.clone();
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection.create_scalar_function(PRICED, 2, flags, move |values| priced(&prices, values))?;
    connection.create_scalar_function(DIGEST, 1, flags, |values| {
        let text: String = values.get(0)?;
        Ok(String::from(Digest::of(text.as_bytes())))
    })
}

pub(super) fn remove(connection: &Connection) -> Result<()> {
    connection.remove_function(PRICED, 2)?;
    connection.remove_function(DIGEST, 1)
}

/// An entry of a session's usage before its money was stored.
#[derive(Deserialize)]
struct UsageEntry {
    model: String,
    metered: bool,
    usage: Usage,
    reported: Option<PicoUsd>,
}

/// The entries of a session's usage, priced as of its start, as they were whenever they were shown.
fn priced(prices: &PriceTable, values: &Context<'_>) -> Result<String> {
    let wrong = |error: serde_json::Error| Error::UserFunctionError(Box::new(error));
    let started_at: Option<i64> = values.get(1)?;
    let at = Timestamp::from_millis(started_at.unwrap_or_default().unsigned_abs());
    let mut entries: Vec<Value> = serde_json::from_str(&values.get::<String>(0)?).map_err(wrong)?;
    for value in &mut entries {
        let entry = UsageEntry::deserialize(&*value).map_err(wrong)?;
        let used = Used {
            model: &entry.model,
            usage: &entry.usage,
            reported: entry.reported,
            metered: entry.metered,
            // It is the sum of a session.
            call: None,
        };
        let charge = prices.charge(used, at);
        if let Some(entry) = value.as_object_mut() {
            let money = serde_json::to_value(charge.money).map_err(wrong)?;
            let price = serde_json::to_value(charge.price).map_err(wrong)?;
            entry.extend([("money".to_owned(), money), ("price".to_owned(), price)]);
        }
    }
    serde_json::to_string(&entries).map_err(wrong)
}
