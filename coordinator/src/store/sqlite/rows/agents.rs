//! The fleet.

use kage_core::fleet::Agent;
use kage_core::id::{AgentId, BootId, Digest};
use kage_core::time::Timestamp;
use rusqlite::params;

use super::SqliteRows;
use crate::store::rows::{AgentRows, Failed};
use crate::store::sqlite::record::{self, agent_columns};
use crate::store::sqlite::value::{get_id, id, json, time};

impl AgentRows for SqliteRows<'_> {
    fn agent_boot(&mut self, agent: AgentId) -> Result<Option<BootId>, Failed> {
        self.one("SELECT boot FROM agents WHERE id = ?1", params![id(agent)], |row| {
            get_id(row, 0)
        })
    }

    fn agent(&mut self, agent: AgentId) -> Result<Option<Agent>, Failed> {
        self.one(
            concat!("SELECT ", agent_columns!(), " FROM agents WHERE id = ?1"),
            params![id(agent)],
            record::agent,
        )
    }

    fn put_agent(&mut self, agent: &Agent) -> Result<(), Failed> {
        self.execute(
            concat!(
                "INSERT OR REPLACE INTO agents (",
                agent_columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
            ),
            params![
                id(agent.id),
                agent.name,
                id(agent.boot),
                json("labels", &agent.labels)?,
                json("adapters", &agent.adapters)?,
                agent.slots,
                agent.pid,
                agent.version,
                agent.draining,
                time(agent.seen_at),
                agent.cordoned,
                agent.machine.as_ref().map(Digest::as_str),
                json("admittance", &agent.admittance)?,
                json("containment", &agent.contained)?,
            ],
        )
    }

    fn save_agent_seen(&mut self, agent: AgentId, at: Timestamp) -> Result<(), Failed> {
        self.execute(
            "UPDATE agents SET seen_at = ?2 WHERE id = ?1",
            params![id(agent), time(at)],
        )
    }
}
