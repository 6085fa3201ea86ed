//! The query that finds a page of tasks: what a filter asks for, as conditions that an index
//! answers.

use kage_core::id::{RepositoryId, WorktreeId};
use rusqlite::types::Value;

use super::value::int;
use crate::store::query::{PageToken, TaskFilter};

/// The part of a query that comes after its columns and tables (`tasks t`), and its values.
#[derive(Debug)]
pub(super) struct PageQuery {
    conditions: Vec<&'static str>,
    values: Vec<Value>,
}

impl PageQuery {
    /// The newest `limit` tasks that the filter takes, of those before `after`.
    pub(super) fn new(filter: &TaskFilter, after: Option<PageToken>, limit: u32) -> Self {
        let mut query = Self {
            conditions: vec!["t.project = ?", "t.n < ?"],
            values: vec![
                Value::Text(filter.project.to_string()),
                Value::Integer(after.map_or(i64::MAX, |token| int(token.0))),
            ],
        };
        for (condition, wanted) in [
            ("t.repository = ?", filter.repository.as_ref().map(RepositoryId::as_str)),
            ("t.worktree = ?", filter.worktree.as_ref().map(WorktreeId::as_str)),
            ("t.created_by = ?", filter.created_by.as_deref()),
        ] {
            if let Some(value) = wanted {
                query.conditions.push(condition);
                query.values.push(Value::Text(value.to_owned()));
            }
        }
        query.values.push(Value::Integer(limit.into()));
        query
    }

    /// Conditions, order and limit.
    pub(super) fn rest(&self) -> String {
        format!("WHERE {} ORDER BY t.n DESC LIMIT ?", self.conditions.join(" AND "))
    }

    /// The values of all its parameters, in their order.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }
}

#[cfg(test)]
mod tests {
    use kage_core::id::Digest;
    use rusqlite::params_from_iter;

    use super::*;
    use crate::store::sqlite::Database;

    #[test]
    fn a_page_of_one_place_is_found_by_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let (_, connection) = Database::new(&dir.path().join("kage.db")).unwrap();
        let digest = || Digest::of(b"place");
        let all = TaskFilter::default();
        let of_repository = TaskFilter {
            repository: Some(RepositoryId::of(digest())),
            created_by: Some("owner".to_owned()),
            ..all.clone()
        };
        let of_worktree = TaskFilter {
            worktree: Some(WorktreeId::of(digest())),
            ..of_repository.clone()
        };
        for (filter, index) in [
            (all, "tasks_by_project"),
            (of_repository, "tasks_by_repository"),
            (of_worktree, "tasks_by_"),
        ] {
            let query = PageQuery::new(&filter, None, 2);
            let sql = format!(
                "EXPLAIN QUERY PLAN SELECT t.n, p.spec FROM tasks t JOIN specs p ON p.task = t.n {}",
                query.rest()
            );
            let mut plan = connection.prepare(&sql).unwrap();
            let steps = plan.query_map(params_from_iter(query.values()), |row| row.get::<_, String>(3));
            let steps: Vec<_> = steps.unwrap().map(Result::unwrap).collect();
            assert!(steps[0].contains(index), "{filter:?}: {steps:?}");
            assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{steps:?}");
        }
    }
}
