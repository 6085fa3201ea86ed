//! Join tokens, joined agents and people's tokens.

use kage_core::id::{AgentId, TokenId};
use kage_core::time::Timestamp;
use rusqlite::params;

use super::SqliteRows;
use crate::store::admission::{Enrolment, JoinTokenRow, PersonToken};
use crate::store::rows::{AdmissionRows, Failed};
use crate::store::sqlite::record::{self, enrolment_columns, join_token_columns, person_token_columns};
use crate::store::sqlite::value::{id, json, time};

impl AdmissionRows for SqliteRows<'_> {
    fn join_token(&mut self, token: TokenId) -> Result<Option<JoinTokenRow>, Failed> {
        self.one(
            concat!("SELECT ", join_token_columns!(), " FROM join_tokens WHERE id = ?1"),
            params![id(token)],
            record::join_token,
        )
    }

    fn put_join_token(&mut self, token: TokenId, row: &JoinTokenRow) -> Result<(), Failed> {
        self.execute(
            concat!(
                "INSERT OR REPLACE INTO join_tokens (id, ",
                join_token_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
            ),
            params![
                id(token),
                row.secret.as_str(),
                row.project.as_str(),
                json("labels", &row.labels)?,
                time(row.expires_at),
                row.can.to_string(),
                row.uses,
                json("uses of a join token", &row.used)?,
            ],
        )
    }

    fn forget_join_tokens(&mut self, before: Timestamp) -> Result<(), Failed> {
        self.execute("DELETE FROM join_tokens WHERE expires_at < ?1", params![time(before)])
    }

    fn enrolment(&mut self, agent: AgentId) -> Result<Option<Enrolment>, Failed> {
        self.one(
            concat!("SELECT ", enrolment_columns!(), " FROM enrolments WHERE agent = ?1"),
            params![id(agent)],
            record::enrolment,
        )
    }

    fn put_enrolment(&mut self, enrolment: &Enrolment) -> Result<(), Failed> {
        self.execute(
            concat!(
                "INSERT OR REPLACE INTO enrolments (",
                enrolment_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
            ),
            params![
                id(enrolment.agent),
                enrolment.project.as_str(),
                json("labels", &enrolment.labels)?,
                time(enrolment.enrolled_at),
                enrolment.revoked_at.map(time),
                enrolment.can.to_string(),
            ],
        )
    }

    fn person_token(&mut self, token: TokenId) -> Result<Option<PersonToken>, Failed> {
        self.one(
            concat!("SELECT ", person_token_columns!(), " FROM person_tokens WHERE id = ?1"),
            params![id(token)],
            record::person_token,
        )
    }

    fn put_person_token(&mut self, token: &PersonToken) -> Result<(), Failed> {
        self.execute(
            concat!(
                "INSERT OR REPLACE INTO person_tokens (",
                person_token_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
            ),
            params![
                id(token.id),
                token.hash.as_str(),
                token.role.as_str(),
                token.name,
                time(token.created_at),
                token.revoked_at.map(time),
                token.project.as_ref().map(kage_core::id::ProjectId::as_str),
            ],
        )
    }
}
