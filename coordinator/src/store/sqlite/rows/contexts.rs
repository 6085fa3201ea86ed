//! Base contexts.

use kage_core::id::{AgentId, Digest, ProjectId};
use rusqlite::params;

use super::SqliteRows;
use crate::store::rows::{ContextRow, ContextRows, Failed};
use crate::store::sqlite::value::{get_int, id, int};

impl ContextRows for SqliteRows<'_> {
    fn context(&mut self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextRow>, Failed> {
        self.one(
            "SELECT size, times_put, sessions, delta_bytes FROM contexts WHERE project = ?1 AND digest = ?2",
            params![project.as_str(), digest.as_str()],
            |row| {
                Ok(ContextRow {
                    size: get_int(row, 0)?,
                    times_put: get_int(row, 1)?,
                    sessions: get_int(row, 2)?,
                    delta_bytes: get_int(row, 3)?,
                })
            },
        )
    }

    fn put_context(&mut self, project: &ProjectId, digest: &Digest, row: &ContextRow) -> Result<(), Failed> {
        self.execute(
            "INSERT INTO contexts (project, digest, size, times_put, sessions, delta_bytes) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO UPDATE SET size = excluded.size, \
             times_put = excluded.times_put, sessions = excluded.sessions, delta_bytes = excluded.delta_bytes",
            params![
                project.as_str(),
                digest.as_str(),
                int(row.size),
                int(row.times_put),
                int(row.sessions),
                int(row.delta_bytes)
            ],
        )
    }

    fn add_context_sent(
        &mut self,
        project: &ProjectId,
        digest: &Digest,
        agent: AgentId,
        bytes: u64,
    ) -> Result<(), Failed> {
        self.execute(
            "INSERT INTO contexts_sent (project, digest, agent, times, bytes) VALUES (?1, ?2, ?3, 1, ?4) \
             ON CONFLICT DO UPDATE SET times = times + 1, bytes = bytes + excluded.bytes",
            params![project.as_str(), digest.as_str(), id(agent), int(bytes)],
        )
    }
}
