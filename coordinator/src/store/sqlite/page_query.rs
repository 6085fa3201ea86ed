//! The query for a page of tasks: the filter as conditions that an index answers.

use kage_core::id::{RepositoryId, RepositoryName, WorktreeId};
use rusqlite::types::Value;

use super::value::int;
use crate::store::query::{PageToken, TaskFilter, TaskOrder};

/// The part of a query after its columns and tables (`tasks t`, `specs p`), and its values.
#[derive(Debug)]
pub(super) struct PageQuery {
    conditions: Vec<String>,
    values: Vec<Value>,
    order: TaskOrder,
}

impl PageQuery {
    /// The first `limit` tasks that match the filter, starting after `after`.
    pub(super) fn new(filter: &TaskFilter, after: Option<PageToken>, limit: u32) -> Self {
        let mut query = Self {
            conditions: Vec::new(),
            values: Vec::new(),
            order: filter.order,
        };
        query.add("t.project = ?", Value::Text(filter.project.to_string()));
        let after = after.map(|token| int(token.0));
        match filter.order {
            TaskOrder::NewestFirst => query.add("t.n < ?", Value::Integer(after.unwrap_or(i64::MAX))),
            TaskOrder::OldestFirst => query.add("t.n >= ?", Value::Integer(after.unwrap_or(0))),
        }
        for (condition, wanted) in [
            ("t.repository = ?", filter.repository.as_ref().map(RepositoryId::as_str)),
            ("t.worktree = ?", filter.worktree.as_ref().map(WorktreeId::as_str)),
            ("t.created_by = ?", filter.created_by.as_deref()),
            (
                "json_extract(p.spec, '$.repository.name') = ?",
                filter.works_on.as_ref().map(RepositoryName::as_str),
            ),
        ] {
            if let Some(value) = wanted {
                query.add(condition, Value::Text(value.to_owned()));
            }
        }
        if let Some(states) = &filter.states {
            let places = vec!["?"; states.len()].join(", ");
            query
                .conditions
                .push(format!("json_extract(t.doc, '$.state') IN ({places})"));
            let words = states.iter().map(|state| Value::Text(state.as_str().to_owned()));
            query.values.extend(words);
        }
        for (key, value) in &filter.labels {
            let has = "EXISTS (SELECT 1 FROM json_each(p.spec, '$.labels') WHERE key = ? AND value = ?)";
            query.conditions.push(has.to_owned());
            query.values.extend([key, value].map(|text| Value::Text(text.clone())));
        }
        for (condition, at) in [
            ("json_extract(t.doc, '$.created_at') >= ?", filter.created_from),
            ("json_extract(t.doc, '$.created_at') < ?", filter.created_before),
        ] {
            if let Some(at) = at {
                query.add(condition, Value::Integer(int(at.as_millis())));
            }
        }
        query.values.push(Value::Integer(limit.into()));
        query
    }

    fn add(&mut self, condition: &str, value: Value) {
        self.conditions.push(condition.to_owned());
        self.values.push(value);
    }

    pub(super) fn rest(&self) -> String {
        let order = match self.order {
            TaskOrder::NewestFirst => "DESC",
            TaskOrder::OldestFirst => "ASC",
        };
        format!("WHERE {} ORDER BY t.n {order} LIMIT ?", self.conditions.join(" AND "))
    }

    /// The token of the page that starts with this row number.
    pub(super) fn token(&self, n: i64) -> Option<PageToken> {
        let from = match self.order {
            TaskOrder::NewestFirst => n + 1,
            TaskOrder::OldestFirst => n,
        };
        u64::try_from(from).ok().map(PageToken)
    }

    /// The values of all its parameters, in their order.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }
}

#[cfg(test)]
mod tests {
    use kage_core::id::Digest;
    use kage_core::price::PriceTable;
    use rusqlite::params_from_iter;

    use super::*;
    use crate::store::sqlite::Database;

    #[test]
    fn a_page_of_one_place_is_found_by_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let (_, connection) = Database::new(&dir.path().join("kage.db"), PriceTable::builtin()).unwrap();
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
        let oldest = TaskFilter {
            order: TaskOrder::OldestFirst,
            ..all.clone()
        };
        for (filter, index) in [
            (all, "tasks_by_project"),
            (oldest, "tasks_by_project"),
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
