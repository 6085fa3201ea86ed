//! Checkpoints of sessions.

use kage_core::checkpoint::{Checkpoint, CheckpointReason, Safety};
use kage_core::id::{AdapterName, Oid, SessionId, TaskId};
use rusqlite::params;

use super::SqliteRows;
use crate::store::rows::{CheckpointRows, Failed};
use crate::store::sqlite::record::{self, checkpoint_columns};
use crate::store::sqlite::value::{get_int, get_parsed, id, int, time};

impl CheckpointRows for SqliteRows<'_> {
    fn insert_checkpoint(&mut self, task: TaskId, checkpoint: &Checkpoint) -> Result<(), Failed> {
        let taken = &checkpoint.taken;
        let segment = taken.transcript.as_ref();
        self.insert(
            "checkpoint",
            concat!(
                "INSERT INTO checkpoints (task, ",
                checkpoint_columns!(),
                ") VALUES ((SELECT n FROM tasks WHERE id = ?1), ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, \
                 ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)"
            ),
            params![
                id(task),
                id(checkpoint.session),
                checkpoint.number,
                checkpoint.attempt,
                checkpoint.adapter.as_str(),
                checkpoint.agent,
                taken.commit.as_str(),
                taken.parent.as_str(),
                taken.tree.as_str(),
                taken.reason.as_str(),
                taken.note,
                int(taken.files_changed),
                taken.pack.as_ref().map(|pack| pack.as_str()),
                segment.map(|segment| segment.blob.as_str()),
                segment.map(|segment| int(segment.from)),
                segment.map(|segment| int(segment.to)),
                int(checkpoint.position),
                checkpoint.calls,
                checkpoint.safety.as_str(),
                time(checkpoint.taken_at),
                time(checkpoint.stored_at),
                taken.calls,
            ],
        )
    }

    fn checkpoints(&mut self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>, Failed> {
        self.all(
            concat!(
                "SELECT ",
                checkpoint_columns!(),
                " FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND session = ?2 ORDER BY number"
            ),
            params![id(task), id(session)],
            record::checkpoint,
        )
    }

    fn position(
        &mut self,
        task: TaskId,
        session: SessionId,
        commit: &Oid,
    ) -> Result<Option<(u64, AdapterName)>, Failed> {
        self.one(
            "SELECT position, adapter FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND session = ?2 \
             AND commit_id = ?3 ORDER BY number DESC LIMIT 1",
            params![id(task), id(session), commit.as_str()],
            |row| Ok((get_int(row, 0)?, get_parsed(row, 1, "adapter name")?)),
        )
    }

    fn base_trees(&mut self, task: TaskId, base: &Oid) -> Result<Vec<Oid>, Failed> {
        self.all(
            "SELECT DISTINCT tree FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) \
             AND (commit_id = ?2 OR (reason = ?3 AND parent = ?2)) ORDER BY tree",
            params![id(task), base.as_str(), CheckpointReason::Baseline.as_str()],
            |row| get_parsed(row, 0, "tree"),
        )
    }

    fn safety(&mut self, task: TaskId, tree: &Oid) -> Result<Safety, Failed> {
        let known = self.one(
            "SELECT safety FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND tree = ?2 \
             AND safety <> ?3 ORDER BY session, number LIMIT 1",
            params![id(task), tree.as_str(), Safety::Unknown.as_str()],
            |row| get_parsed(row, 0, "safety"),
        )?;
        Ok(known.unwrap_or_default())
    }

    fn save_safety(&mut self, task: TaskId, tree: &Oid, safety: Safety) -> Result<(), Failed> {
        self.execute(
            "UPDATE checkpoints SET safety = ?3 WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND tree = ?2",
            params![id(task), tree.as_str(), safety.as_str()],
        )
    }
}
