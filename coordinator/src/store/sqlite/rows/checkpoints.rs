//! Checkpoints of sessions.

use std::collections::BTreeSet;

use kage_core::checkpoint::{Checkpoint, Safety};
use kage_core::id::{AdapterName, Oid, SessionId, TaskId};
use rusqlite::params;

use super::SqliteRows;
use crate::store::rows::{CheckpointRows, Failed};
use crate::store::sqlite::value::{get_json, id, json};

impl CheckpointRows for SqliteRows<'_> {
    fn insert_checkpoint(&mut self, task: TaskId, checkpoint: &Checkpoint) -> Result<(), Failed> {
        let taken = &checkpoint.taken;
        self.insert(
            "checkpoint",
            "INSERT INTO checkpoints (task, session, number, commit_id, parent, tree, pack, segment, doc) \
             VALUES ((SELECT n FROM tasks WHERE id = ?1), ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                id(task),
                id(checkpoint.session),
                checkpoint.number,
                taken.commit.as_str(),
                taken.parent.as_str(),
                taken.tree.as_str(),
                taken.pack.as_ref().map(|pack| pack.as_str()),
                taken.transcript.as_ref().map(|segment| segment.blob.as_str()),
                json("checkpoint", checkpoint)?,
            ],
        )
    }

    fn checkpoints(&mut self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>, Failed> {
        self.all(
            "SELECT doc FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND session = ?2 \
             ORDER BY number",
            params![id(task), id(session)],
            |row| get_json(row, 0, "checkpoint"),
        )
    }

    fn position(
        &mut self,
        task: TaskId,
        session: SessionId,
        commit: &Oid,
    ) -> Result<Option<(u64, AdapterName)>, Failed> {
        let newest: Option<Checkpoint> = self.one(
            "SELECT doc FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND session = ?2 \
             AND commit_id = ?3 ORDER BY number DESC LIMIT 1",
            params![id(task), id(session), commit.as_str()],
            |row| get_json(row, 0, "checkpoint"),
        )?;
        Ok(newest.map(|checkpoint| (checkpoint.position, checkpoint.adapter)))
    }

    fn base_trees(&mut self, task: TaskId, base: &Oid) -> Result<Vec<Oid>, Failed> {
        let near: Vec<Checkpoint> = self.all(
            "SELECT doc FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) \
             AND (commit_id = ?2 OR parent = ?2)",
            params![id(task), base.as_str()],
            |row| get_json(row, 0, "checkpoint"),
        )?;
        let of_base = near.into_iter().filter(|checkpoint| checkpoint.taken.is_base(base));
        let trees: BTreeSet<_> = of_base.map(|checkpoint| checkpoint.taken.tree).collect();
        Ok(trees.into_iter().collect())
    }

    fn safety(&mut self, task: TaskId, tree: &Oid) -> Result<Safety, Failed> {
        let safeties = self
            .with_tree(task, tree)?
            .into_iter()
            .map(|checkpoint| checkpoint.safety);
        Ok(safeties
            .into_iter()
            .find(|safety| *safety != Safety::Unknown)
            .unwrap_or_default())
    }

    fn save_safety(&mut self, task: TaskId, tree: &Oid, safety: Safety) -> Result<(), Failed> {
        for mut checkpoint in self.with_tree(task, tree)? {
            checkpoint.safety = safety;
            self.execute(
                "UPDATE checkpoints SET doc = ?4 WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND session = ?2 \
                 AND number = ?3",
                params![
                    id(task),
                    id(checkpoint.session),
                    checkpoint.number,
                    json("checkpoint", &checkpoint)?
                ],
            )?;
        }
        Ok(())
    }
}

impl SqliteRows<'_> {
    fn with_tree(&self, task: TaskId, tree: &Oid) -> Result<Vec<Checkpoint>, Failed> {
        self.all(
            "SELECT doc FROM checkpoints WHERE task = (SELECT n FROM tasks WHERE id = ?1) AND tree = ?2 \
             ORDER BY session, number",
            params![id(task), tree.as_str()],
            |row| get_json(row, 0, "checkpoint"),
        )
    }
}
