//! Calls that clients may repeat: their replies are remembered while a client may still ask.

use kage_core::time::Timestamp;

use crate::store::command::{REQUEST_LIFETIME, Request};
use crate::store::error::StoreError;
use crate::store::rows::{Failed, RequestKey, RequestRow, Rows};

/// How many old calls each new one removes: more than one, so that the table does not grow, and
/// few, so that a call stays fast.
const FORGET: u32 = 2;

/// The reply to an earlier call with this id, if there is one.
pub(in crate::store) fn earlier_reply(
    rows: &mut dyn Rows,
    method: &'static str,
    request: &Request,
) -> Result<Option<String>, Failed> {
    match rows.request(&RequestKey::of(method, request))? {
        None => Ok(None),
        Some(row) if row.payload == request.payload => Ok(Some(row.reply)),
        Some(_) => Err(Failed::Refused(StoreError::RequestConflict { id: request.id.clone() })),
    }
}

pub(in crate::store) fn remember(
    rows: &mut dyn Rows,
    method: &'static str,
    request: Request,
    reply: String,
    now: Timestamp,
) -> Result<(), Failed> {
    let key = RequestKey::of(method, &request);
    let row = RequestRow {
        payload: request.payload,
        reply,
        at: now,
    };
    rows.insert_request(&key, &row)?;
    let lifetime = u64::try_from(REQUEST_LIFETIME.as_millis()).unwrap_or(u64::MAX);
    let before = Timestamp::from_millis(now.as_millis().saturating_sub(lifetime));
    rows.forget_requests(before, FORGET)
}
