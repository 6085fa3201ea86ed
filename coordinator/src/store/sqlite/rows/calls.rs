//! The ledger of calls, and what is held back for those that did not end.

use kage_core::budget::{Held, ScopeKey, Tally};
use kage_core::id::{AttemptId, CallId};
use kage_core::ledger::{CallRow, Reservation};
use rusqlite::{Params, Row, params};

use super::SqliteRows;
use crate::store::error::EngineError;
use crate::store::rows::{CallRows, Failed};
use crate::store::sqlite::value::{get, get_json, id, int, json, time};

/// Money is added up in two parts, because a sum in pico-dollars may be larger than a column.
const PART: i64 = 1_000_000;

impl CallRows for SqliteRows<'_> {
    fn has_call(&mut self, attempt: AttemptId, name: &str) -> Result<bool, Failed> {
        let found: Option<i64> = self.one(
            "SELECT 1 FROM calls WHERE attempt = ?1 AND name = ?2",
            params![id(attempt), name],
            |row| get(row, 0),
        )?;
        Ok(found.is_some())
    }

    fn insert_call(&mut self, row: &CallRow) -> Result<(), Failed> {
        self.insert(
            "call",
            "INSERT INTO calls (attempt, name, task, session, project, person, at, pico, tokens, doc) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                id(row.attempt),
                row.name,
                id(row.task),
                id(row.session),
                row.project.as_str(),
                row.person,
                time(row.at),
                row.amount().0,
                int(row.usage.total()),
                json("call", row)?,
            ],
        )
    }

    fn reservation(&mut self, attempt: AttemptId, call: CallId) -> Result<Option<Reservation>, Failed> {
        self.one(
            "SELECT doc FROM reservations WHERE attempt = ?1 AND call = ?2",
            params![id(attempt), id(call)],
            |row| get_json(row, 0, "reservation"),
        )
    }

    fn reservations_of(&mut self, attempt: AttemptId) -> Result<Vec<Reservation>, Failed> {
        self.all(
            "SELECT doc FROM reservations WHERE attempt = ?1 ORDER BY call",
            params![id(attempt)],
            |row| get_json(row, 0, "reservation"),
        )
    }

    fn put_reservation(&mut self, reservation: &Reservation) -> Result<(), Failed> {
        self.execute(
            "INSERT OR REPLACE INTO reservations (attempt, call, task, session, project, person, doc) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                id(reservation.attempt),
                id(reservation.call),
                id(reservation.task),
                id(reservation.session),
                reservation.project.as_str(),
                reservation.person,
                json("reservation", reservation)?,
            ],
        )
    }

    fn remove_reservation(&mut self, attempt: AttemptId, call: CallId) -> Result<(), Failed> {
        self.execute(
            "DELETE FROM reservations WHERE attempt = ?1 AND call = ?2",
            params![id(attempt), id(call)],
        )
    }

    fn used_of(&mut self, scope: &ScopeKey) -> Result<(Tally, Vec<Held>), Failed> {
        match scope {
            ScopeKey::Session(task, session) => self.used(
                ("task = ?1 AND session = ?2", params![id(*task), id(*session)]),
                ("task = ?1 AND session = ?2", params![id(*task), id(*session)]),
            ),
            ScopeKey::Task(task) => self.used(("task = ?1", params![id(*task)]), ("task = ?1", params![id(*task)])),
            ScopeKey::Person(person, since) => self.used(
                ("person = ?1 AND at >= ?2", params![person, time(*since)]),
                ("person = ?1", params![person]),
            ),
            ScopeKey::Project(project, since) => self.used(
                ("project = ?1 AND at >= ?2", params![project.as_str(), time(*since)]),
                ("project = ?1", params![project.as_str()]),
            ),
        }
    }
}

impl SqliteRows<'_> {
    fn used(
        &self,
        (of_calls, calls): (&str, impl Params),
        (of_held, held): (&str, impl Params),
    ) -> Result<(Tally, Vec<Held>), Failed> {
        let sums = format!(
            "SELECT coalesce(sum(pico / {PART}), 0), coalesce(sum(pico % {PART}), 0), \
             coalesce(sum(tokens / {PART}), 0), coalesce(sum(tokens % {PART}), 0) FROM calls WHERE {of_calls}"
        );
        let tally = self.one(&sums, calls, tally)?.unwrap_or_default();
        let reserved: Vec<Reservation> = self.all(
            &format!("SELECT doc FROM reservations WHERE {of_held} ORDER BY attempt, call"),
            held,
            |row| get_json(row, 0, "reservation"),
        )?;
        Ok((tally, reserved.into_iter().map(|reserved| reserved.held).collect()))
    }
}

fn tally(row: &Row<'_>) -> Result<Tally, EngineError> {
    let part = |index| get::<i64>(row, index).map(i128::from);
    let part_of = i128::from(PART);
    let tokens = part(2)? * part_of + part(3)?;
    Ok(Tally {
        money: part(0)? * part_of + part(1)?,
        tokens: u128::try_from(tokens).unwrap_or_default(),
    })
}
