//! The ledger: a row for each call of a model, and for each report of a program about calls of its own. What a
//! session used and cost is the sum of its rows, to the last unit: both are written together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::budget::Held;
use crate::call::{AccountName, CallEnd};
use crate::id::{AdapterName, AttemptId, CallId, ProjectId, SessionId, TaskId};
use crate::price::PriceId;
use crate::time::Timestamp;
use crate::usage::{Money, PicoUsd, Provenance, Usage};
use crate::words::words;

/// One call, or one report of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRow {
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// Its name in the attempt: the call's id, or `#` and the number of the event that reported it.
    pub name: String,
    /// Its task.
    pub task: TaskId,
    /// Its session.
    pub session: SessionId,
    /// The project of the task.
    pub project: ProjectId,
    /// The person who created the task, as the coordinator knew them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<String>,
    /// The adapter of the session.
    pub adapter: AdapterName,
    /// The account that pays; `None`: a program of its own makes the calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// As it is priced.
    pub model: String,
    /// Tokens.
    pub usage: Usage,
    /// What the program reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<PicoUsd>,
    /// What it cost, by the prices of when it was accepted.
    pub money: Money,
    /// The price row with which that was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<PriceId>,
    /// True when the tokens come from a metered response.
    pub metered: bool,
    /// How the call ended; `None`: it is a report, or nothing more was heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<CallEnd>,
    /// The provider's own id of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// When it was accepted.
    pub at: Timestamp,
}

impl CallRow {
    /// The name of a report in its attempt.
    #[must_use]
    pub fn name_of_report(seq: u64) -> String {
        format!("#{seq}")
    }

    /// What counts against budgets.
    #[must_use]
    pub fn amount(&self) -> PicoUsd {
        self.money.amount.unwrap_or_default()
    }
}

/// What is held back for a call that was granted and did not end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The attempt that makes it.
    pub attempt: AttemptId,
    /// Which call.
    pub call: CallId,
    /// Its task.
    pub task: TaskId,
    /// Its session.
    pub session: SessionId,
    /// The project of the task.
    pub project: ProjectId,
    /// The person who created the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub person: Option<String>,
    /// The account that pays.
    pub account: AccountName,
    /// As it is priced.
    pub model: String,
    /// Tokens of its input at most.
    pub input: u64,
    /// Tokens that its answer may have.
    pub output: u32,
    /// How much that is.
    pub held: Held,
    /// When it was granted.
    pub at: Timestamp,
}

impl Reservation {
    /// The tokens of a call that nobody heard the end of: all that it could use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            input: self.input,
            output: u64::from(self.output),
            ..Usage::default()
        }
    }

    /// What such a call counts for.
    #[must_use]
    pub const fn money(&self) -> Money {
        Money {
            amount: Some(self.held.money),
            provenance: Provenance::Estimated,
        }
    }
}

words! {
    /// What rows are added up by.
    pub enum CostsBy: "what costs are added up by" {
        /// The adapter of the session.
        Adapter = "adapter",
        /// The model, as it is priced.
        Model = "model",
        /// The person who created the task.
        Person = "person",
        /// The project.
        Project = "project",
        /// The task.
        Task = "task",
        /// The day, in UTC.
        Day = "day",
    }
}

impl CostsBy {
    fn key(self, row: &CallRow) -> String {
        match self {
            Self::Adapter => row.adapter.to_string(),
            Self::Model => row.model.clone(),
            Self::Person => row.person.clone().unwrap_or_default(),
            Self::Project => row.project.to_string(),
            Self::Task => row.task.to_string(),
            Self::Day => day(row.at),
        }
    }
}

/// The day of a time in UTC, as `2026-01-31`.
fn day(at: Timestamp) -> String {
    let millis = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    at.to_zoned(jiff::tz::TimeZone::UTC).date().to_string()
}

/// Rows added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CostGroup {
    /// Calls, and reports of programs.
    pub calls: u64,
    /// Tokens.
    pub usage: Usage,
    sums: BTreeMap<Provenance, Option<i128>>,
    has_unknown: bool,
}

impl CostGroup {
    /// Adds a row. Tokens that nobody reported leave a known and an unknown part.
    pub fn add(&mut self, row: &CallRow) {
        self.calls += 1;
        self.usage += row.usage;
        if row.usage.is_zero() && row.reported.is_none() {
            return;
        }
        let untold = row.reported.is_none() && row.usage.unreported.of_the_bill();
        self.has_unknown |= untold;
        if untold && row.usage.total() == 0 {
            return;
        }
        let Money { amount, provenance } = row.money;
        let sum = self.sums.entry(provenance).or_insert(amount.map(|_| 0));
        *sum = sum.zip(amount).map(|(sum, amount)| sum + i128::from(amount.0));
    }

    /// One amount for each provenance that occurs. They are never added up to one.
    #[must_use]
    pub fn money(&self) -> Vec<Money> {
        let mut sums = self.sums.clone();
        if self.has_unknown && !sums.is_empty() {
            sums.insert(Provenance::Unknown, None);
        }
        let money = sums.into_iter().map(|(provenance, sum)| Money {
            amount: sum.map(|sum| PicoUsd(i64::try_from(sum).unwrap_or(i64::MAX))),
            provenance,
        });
        money.collect()
    }
}

/// Costs by what they are added up by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CostTable {
    by: CostsBy,
    /// By key.
    pub groups: BTreeMap<String, CostGroup>,
    /// All rows together.
    pub all: CostGroup,
}

impl CostTable {
    /// A table without rows.
    #[must_use]
    pub fn new(by: CostsBy) -> Self {
        Self {
            by,
            groups: BTreeMap::new(),
            all: CostGroup::default(),
        }
    }

    /// Adds a row.
    pub fn add(&mut self, row: &CallRow) {
        self.all.add(row);
        self.groups.entry(self.by.key(row)).or_default().add(row);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::price::{PriceTable, Used};
    use crate::session::Session;

    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    fn row(model: &str, usage: Usage, money: Money, reported: Option<PicoUsd>) -> CallRow {
        CallRow {
            attempt: AttemptId::from_random(1),
            name: CallRow::name_of_report(1),
            task: TaskId::from_random(2),
            session: SessionId::from_random(3),
            project: ProjectId::default(),
            person: Some("ana".to_owned()),
            adapter: "claude-api".parse().unwrap(),
            account: None,
            model: model.to_owned(),
            usage,
            reported,
            money,
            price: None,
            metered: true,
            end: None,
            request: None,
            at: NOW,
        }
    }

    #[test]
    fn rows_are_added_up_by_what_is_asked_and_provenances_stand_apart() {
        let money = |pico, provenance| Money {
            amount: Some(PicoUsd(pico)),
            provenance,
        };
        let tokens = |input| Usage {
            input,
            ..Usage::default()
        };
        let rows = [
            row("a", tokens(1), money(5, Provenance::Billed), None),
            row("b", tokens(2), money(7, Provenance::Estimated), None),
            row("a", tokens(4), money(11, Provenance::Billed), None),
        ];
        let mut table = CostTable::new(CostsBy::Model);
        rows.iter().for_each(|row| table.add(row));
        let group = &table.groups["a"];
        assert_eq!((group.calls, group.usage.input), (2, 5));
        assert_eq!(group.money(), [money(16, Provenance::Billed)]);
        assert_eq!(
            table.all.money(),
            [money(16, Provenance::Billed), money(7, Provenance::Estimated)]
        );
        for (by, key) in [
            (CostsBy::Adapter, "claude-api"),
            (CostsBy::Person, "ana"),
            (CostsBy::Project, "default"),
            (CostsBy::Task, "00000000000000000000000000000002"),
            (CostsBy::Day, "2026-11-18"),
        ] {
            let mut table = CostTable::new(by);
            rows.iter().for_each(|row| table.add(row));
            assert_eq!(table.groups.keys().collect::<Vec<_>>(), [key]);
        }
    }

    fn used() -> impl Strategy<Value = (String, Usage, Option<i64>, bool, bool)> {
        let model = prop::sample::select(vec![
            "claude-opus-5-5",
            "gpt-6.1-sol",
            "nobody-knows-1",
            "",
            "gpt-6-luna",
        ]);
        let tokens = || prop_oneof![Just(0_u64), 1_u64..400_000];
        let usage = (tokens(), tokens(), tokens(), tokens(), any::<bool>()).prop_map(
            |(input, output, cache_read, cache_write_5m, told)| Usage {
                input,
                output,
                cache_read,
                cache_write_5m,
                unreported: if told {
                    crate::usage::Unreported::default()
                } else {
                    crate::usage::Unreported::ALL
                },
                ..Usage::default()
            },
        );
        (
            model,
            usage,
            prop::option::of(0_i64..1_000_000),
            any::<bool>(),
            any::<bool>(),
        )
            .prop_map(|(model, usage, reported, metered, cut)| (model.to_owned(), usage, reported, metered, cut))
    }

    proptest! {
        /// What a session is told to have cost is the sum of its rows in the ledger, per provenance and to
        /// the last unit; also of more models than a session keeps apart.
        #[test]
        fn ledger_sums_equal_the_sessions_totals(
            used in prop::collection::vec(used(), 0..40),
            invented in 0_usize..60,
        ) {
            let mut session = Session::new(
                SessionId::from_random(3),
                TaskId::from_random(2),
                "one".parse().unwrap(),
                "claude-api".parse().unwrap(),
                None,
            );
            let mut table = CostTable::new(CostsBy::Model);
            let invented = (0..invented).map(|n| {
                let usage = Usage { input: n as u64 + 1, ..Usage::default() };
                (format!("invented-{n}"), usage, Some(3), false, false)
            });
            for (model, usage, reported, metered, cut) in invented.chain(used) {
                let reported = reported.map(PicoUsd);
                let charge = session.charge(Used {
                    model: &model,
                    usage: &usage,
                    reported,
                    metered,
                    call: metered.then_some(if cut { CallEnd::Cut } else { CallEnd::Whole }),
                }, PriceTable::builtin(), NOW);
                table.add(&row(&model, usage, charge.money, reported));
            }
            prop_assert_eq!(table.all.money(), session.costs().all);
            prop_assert_eq!(table.all.usage, session.total_usage());
            let mut sum = Usage::default();
            table.groups.values().for_each(|group| sum += group.usage);
            prop_assert_eq!(sum, table.all.usage);
        }
    }
}
