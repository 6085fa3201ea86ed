//! Domain values as column values, and back. A value that this program cannot have written is
//! reported as corruption.

use kage_core::id::{AgentId, AttemptId, BootId, CallId, JobId, SessionId, StoreId, TaskId, TokenId};
use kage_core::time::Timestamp;
use rusqlite::Row;
use rusqlite::types::FromSql;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::de::value::StrDeserializer;

use super::trouble::failed;
use crate::store::error::EngineError;

/// The error for a stored value that this program cannot have written.
pub(super) fn corrupt<E>(what: &'static str) -> impl FnOnce(E) -> EngineError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |source| EngineError::Corrupt {
        what,
        source: source.into(),
    }
}

pub(super) fn get<T: FromSql>(row: &Row<'_>, index: usize) -> Result<T, EngineError> {
    row.get(index).map_err(failed)
}

/// An id as a column.
pub(super) trait Id: Copy {
    fn bits(self) -> u128;
    fn of(bits: u128) -> Self;
}

macro_rules! ids {
    ($($name:ident),*) => {$(
        impl Id for $name {
            fn bits(self) -> u128 {
                self.as_bits()
            }

            fn of(bits: u128) -> Self {
                Self::from_random(bits)
            }
        }
    )*};
}

ids!(
    TaskId, SessionId, JobId, AttemptId, AgentId, BootId, TokenId, StoreId, CallId
);

pub(super) fn id<I: Id>(id: I) -> [u8; 16] {
    id.bits().to_be_bytes()
}

pub(super) fn get_id<I: Id>(row: &Row<'_>, index: usize) -> Result<I, EngineError> {
    get::<[u8; 16]>(row, index).map(|bytes| I::of(u128::from_be_bytes(bytes)))
}

/// A count as a column. Columns end at `i64::MAX`, which no count reaches.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn get_int(row: &Row<'_>, index: usize) -> Result<u64, EngineError> {
    u64::try_from(get::<i64>(row, index)?).map_err(corrupt("count"))
}

pub(super) fn time(at: Timestamp) -> i64 {
    int(at.as_millis())
}

pub(super) fn get_time(row: &Row<'_>, index: usize) -> Result<Timestamp, EngineError> {
    get_int(row, index).map(Timestamp::from_millis)
}

pub(super) fn get_optional_time(row: &Row<'_>, index: usize) -> Result<Option<Timestamp>, EngineError> {
    match get::<Option<i64>>(row, index)? {
        None => Ok(None),
        Some(millis) => {
            let millis = u64::try_from(millis).map_err(corrupt("time"))?;
            Ok(Some(Timestamp::from_millis(millis)))
        }
    }
}

pub(super) fn json<T: Serialize>(what: &'static str, value: &T) -> Result<String, EngineError> {
    serde_json::to_string(value).map_err(|source| EngineError::Unstorable {
        what,
        source: Box::new(source),
    })
}

pub(super) fn get_json<T: DeserializeOwned>(row: &Row<'_>, index: usize, what: &'static str) -> Result<T, EngineError> {
    let text = row.get_ref(index).map_err(failed)?.as_str().map_err(corrupt(what))?;
    serde_json::from_str(text).map_err(corrupt(what))
}

/// A value without anything in it as its name, the same as in documents.
pub(super) fn word<T: Serialize>(what: &'static str, value: &T) -> Result<String, EngineError> {
    let text = json(what, value)?;
    Ok(text.trim_matches('"').to_owned())
}

pub(super) fn get_word<T: DeserializeOwned>(row: &Row<'_>, index: usize, what: &'static str) -> Result<T, EngineError> {
    let text = row.get_ref(index).map_err(failed)?.as_str().map_err(corrupt(what))?;
    T::deserialize(StrDeserializer::<serde::de::value::Error>::new(text)).map_err(corrupt(what))
}

/// A text that names something.
pub(super) fn get_parsed<T>(row: &Row<'_>, index: usize, what: &'static str) -> Result<T, EngineError>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = row.get_ref(index).map_err(failed)?.as_str().map_err(corrupt(what))?;
    text.parse().map_err(corrupt(what))
}

/// A text that names something, or nothing.
pub(super) fn get_optional_parsed<T>(row: &Row<'_>, index: usize, what: &'static str) -> Result<Option<T>, EngineError>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: Option<String> = get(row, index)?;
    text.map(|text| text.parse().map_err(corrupt(what))).transpose()
}
