//! The ledger of calls, as people see it. Only what is asked for has a way back.

use kage_core::call::CallEnd;
use kage_core::ledger::{CallRow, CostGroup, CostsBy};

use super::time::stamp;
use super::{InvalidField, enumerated};
use crate::v1;

/// What costs are added up by.
///
/// # Errors
/// When it is no value of the enum.
pub fn costs_by(field: &str, number: i32) -> Result<CostsBy, InvalidField> {
    Ok(match enumerated(field, number)? {
        v1::CostsBy::Unspecified | v1::CostsBy::Model => CostsBy::Model,
        v1::CostsBy::Adapter => CostsBy::Adapter,
        v1::CostsBy::Person => CostsBy::Person,
        v1::CostsBy::Project => CostsBy::Project,
        v1::CostsBy::Task => CostsBy::Task,
        v1::CostsBy::Day => CostsBy::Day,
    })
}

impl From<CostsBy> for v1::CostsBy {
    fn from(by: CostsBy) -> Self {
        match by {
            CostsBy::Adapter => Self::Adapter,
            CostsBy::Model => Self::Model,
            CostsBy::Person => Self::Person,
            CostsBy::Project => Self::Project,
            CostsBy::Task => Self::Task,
            CostsBy::Day => Self::Day,
        }
    }
}

/// Rows added up, with their key.
#[must_use]
pub fn group(key: String, group: &CostGroup) -> v1::CostGroup {
    v1::CostGroup {
        key,
        calls: group.calls,
        usage: Some(group.usage.into()),
        money: group.money().into_iter().map(Into::into).collect(),
    }
}

impl From<CallRow> for v1::LedgerCall {
    fn from(row: CallRow) -> Self {
        let end = match row.end {
            None => v1::CallEnd::Unspecified,
            Some(CallEnd::Whole) => v1::CallEnd::Whole,
            Some(CallEnd::Cut) => v1::CallEnd::Cut,
        };
        Self {
            task_id: row.task.to_string(),
            session_id: row.session.to_string(),
            attempt_id: row.attempt.to_string(),
            name: row.name,
            project: row.project.into(),
            person: row.person.unwrap_or_default(),
            adapter: row.adapter.into(),
            account: row.account.map(Into::into).unwrap_or_default(),
            model: row.model,
            usage: Some(row.usage.into()),
            money: Some(row.money.into()),
            price: row.price.map(|price| price.to_string()).unwrap_or_default(),
            reported_pico: row.reported.map(|amount| amount.0),
            metered: row.metered,
            end: end.into(),
            provider_request_id: row.request.unwrap_or_default(),
            at: Some(stamp(row.at)),
        }
    }
}
