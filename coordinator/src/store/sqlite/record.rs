//! Rows of columns as domain values: agents and admission. Each has its list of columns, with which
//! every query for it starts, and the function that reads them in that order.

use kage_core::fleet::Agent;
use rusqlite::Row;

use super::value::{get, get_id, get_json, get_optional_parsed, get_optional_time, get_parsed, get_time};
use crate::store::admission::{Enrolment, JoinTokenRow, PersonToken};
use crate::store::error::EngineError;

/// Columns of `join_tokens` after its id, for [`join_token`].
macro_rules! join_token_columns {
    () => {
        "secret, project, labels, expires_at, can, uses, used"
    };
}
pub(super) use join_token_columns;

pub(super) fn join_token(row: &Row<'_>) -> Result<JoinTokenRow, EngineError> {
    Ok(JoinTokenRow {
        secret: get_parsed(row, 0, "digest")?,
        project: get_parsed(row, 1, "project")?,
        labels: get_json(row, 2, "labels")?,
        expires_at: get_time(row, 3)?,
        can: get_parsed(row, 4, "capabilities")?,
        uses: get(row, 5)?,
        used: get_json(row, 6, "uses of a join token")?,
    })
}

/// Columns of `enrolments`, for [`enrolment`].
macro_rules! enrolment_columns {
    () => {
        "agent, project, labels, enrolled_at, revoked_at, can"
    };
}
pub(super) use enrolment_columns;

pub(super) fn enrolment(row: &Row<'_>) -> Result<Enrolment, EngineError> {
    Ok(Enrolment {
        agent: get_id(row, 0)?,
        project: get_parsed(row, 1, "project")?,
        labels: get_json(row, 2, "labels")?,
        enrolled_at: get_time(row, 3)?,
        revoked_at: get_optional_time(row, 4)?,
        can: get_parsed(row, 5, "capabilities")?,
    })
}

/// Columns of `person_tokens`, for [`person_token`].
macro_rules! person_token_columns {
    () => {
        "id, hash, role, name, created_at, revoked_at, project"
    };
}
pub(super) use person_token_columns;

pub(super) fn person_token(row: &Row<'_>) -> Result<PersonToken, EngineError> {
    Ok(PersonToken {
        id: get_id(row, 0)?,
        hash: get_parsed(row, 1, "digest")?,
        role: get_parsed(row, 2, "role")?,
        name: get(row, 3)?,
        created_at: get_time(row, 4)?,
        revoked_at: get_optional_time(row, 5)?,
        project: get_optional_parsed(row, 6, "project")?,
    })
}

/// Columns of `agents`, for [`agent`].
macro_rules! agent_columns {
    () => {
        "id, name, boot, labels, adapters, slots, pid, version, draining, seen_at, cordoned, machine, admittance, \
         contained"
    };
}
pub(super) use agent_columns;

pub(super) fn agent(row: &Row<'_>) -> Result<Agent, EngineError> {
    Ok(Agent {
        id: get_id(row, 0)?,
        name: get(row, 1)?,
        boot: get_id(row, 2)?,
        labels: get_json(row, 3, "labels")?,
        adapters: get_json(row, 4, "adapters")?,
        slots: get(row, 5)?,
        pid: get(row, 6)?,
        version: get(row, 7)?,
        draining: get(row, 8)?,
        seen_at: get_time(row, 9)?,
        cordoned: get(row, 10)?,
        machine: get_optional_parsed(row, 11, "digest")?,
        admittance: get_json(row, 12, "admittance")?,
        contained: get_json(row, 13, "containment")?,
    })
}
