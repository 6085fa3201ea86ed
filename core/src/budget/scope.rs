//! What a budget is of: a session, a task, or what a person or a project spends in a day or month.

use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::Limit;
use crate::id::{ProjectId, SessionId, TaskId};
use crate::time::Timestamp;
use crate::words::words;

words! {
    /// How long a budget lasts until it begins anew, in UTC.
    pub enum BudgetPeriod: "a period of a budget" {
        /// From midnight.
        Day = "day",
        /// From the first of the month.
        Month = "month",
    }
}

impl BudgetPeriod {
    /// When the present one began.
    #[must_use]
    pub fn began(self, now: Timestamp) -> Timestamp {
        let millis = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        let Ok(at) = jiff::Timestamp::from_millisecond(millis) else {
            return now;
        };
        let day = at.to_zoned(TimeZone::UTC).date();
        let first = match self {
            Self::Day => day,
            Self::Month => day.first_of_month(),
        };
        let start = DateTime::from_parts(first, jiff::civil::Time::midnight()).to_zoned(TimeZone::UTC);
        let start = start
            .ok()
            .and_then(|start| u64::try_from(start.timestamp().as_millisecond()).ok());
        start.map_or(now, Timestamp::from_millis)
    }
}

/// What a budget is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BudgetScope {
    /// One session.
    Session,
    /// All sessions of a task.
    Task,
    /// All tasks of a person, in each period.
    Person(BudgetPeriod),
    /// All tasks of a project, in each period.
    Project(BudgetPeriod),
}

impl fmt::Display for BudgetScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session => f.write_str("the session"),
            Self::Task => f.write_str("the task"),
            Self::Person(period) => write!(f, "the person for this {}", period.as_str()),
            Self::Project(period) => write!(f, "the project for this {}", period.as_str()),
        }
    }
}

/// A budget: what it is of, and how much that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetRule {
    /// What it is of.
    pub scope: BudgetScope,
    /// How much may be used.
    pub limit: Limit,
}

/// The calls that count against a budget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScopeKey {
    /// Of a session.
    Session(TaskId, SessionId),
    /// Of a task.
    Task(TaskId),
    /// Of the tasks of a person, since a time.
    Person(String, Timestamp),
    /// Of a project, since a time.
    Project(ProjectId, Timestamp),
}

impl BudgetScope {
    /// The calls that count against it with a call of this session; `None`: nobody is known to pay.
    #[must_use]
    pub fn key(
        self,
        session: (TaskId, SessionId),
        project: &ProjectId,
        person: Option<&str>,
        now: Timestamp,
    ) -> Option<ScopeKey> {
        Some(match self {
            Self::Session => ScopeKey::Session(session.0, session.1),
            Self::Task => ScopeKey::Task(session.0),
            Self::Person(period) => ScopeKey::Person(person?.to_owned(), period.began(now)),
            Self::Project(period) => ScopeKey::Project(project.clone(), period.began(now)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_begin_at_midnight_and_on_the_first_in_utc() {
        let at = |text: &str| {
            let at: jiff::Timestamp = text.parse().unwrap();
            Timestamp::from_millis(at.as_millisecond().try_into().unwrap())
        };
        for (now, day, month) in [
            ("2026-11-30T21:09:42Z", "2026-11-30T00:00:00Z", "2026-11-01T00:00:00Z"),
            ("2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            (
                "2028-02-29T23:59:59.999Z",
                "2028-02-29T00:00:00Z",
                "2028-02-01T00:00:00Z",
            ),
        ] {
            assert_eq!(BudgetPeriod::Day.began(at(now)), at(day), "{now}");
            assert_eq!(BudgetPeriod::Month.began(at(now)), at(month), "{now}");
        }
    }
}
