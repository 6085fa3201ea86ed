//! The query for rows of the ledger: the filter as conditions that an index answers, so that what a few days or
//! a task cost is not looked for in all years.

use rusqlite::types::Value;

use super::value::{id, int};
use crate::store::query::CallFilter;

/// The index is by project first. Its projects are few, and each is found by one step of it.
const OF_ANY_PROJECT: &str = "project IN (WITH RECURSIVE each(one) AS (SELECT min(project) FROM calls UNION ALL \
    SELECT (SELECT min(project) FROM calls WHERE project > each.one) FROM each WHERE one IS NOT NULL) SELECT one FROM each)";

/// The conditions of a query on `calls`, and their values.
#[derive(Debug, Default)]
pub(super) struct LedgerQuery {
    conditions: Vec<&'static str>,
    values: Vec<Value>,
}

impl LedgerQuery {
    pub(super) fn new(filter: &CallFilter) -> Self {
        let mut query = Self::default();
        // A task has the fewest rows: with a plus, no index is looked for.
        let ([of_project, since, until], of_any_project) = match filter.task {
            Some(task) => {
                query.add("task = ?", Value::Blob(id(task).to_vec()));
                (["+project = ?", "+at >= ?", "+at < ?"], None)
            }
            None => (["project = ?", "at >= ?", "at < ?"], Some(OF_ANY_PROJECT)),
        };
        let times = [(since, filter.since), (until, filter.until)];
        let is_of_a_time = times.iter().any(|(_, at)| at.is_some());
        match (&filter.project, of_any_project) {
            (Some(project), _) => query.add(of_project, Value::Text(project.to_string())),
            (None, Some(any)) if is_of_a_time => query.conditions.push(any),
            (None, _) => {}
        }
        for (condition, at) in times {
            if let Some(at) = at {
                query.add(condition, Value::Integer(int(at.as_millis())));
            }
        }
        query
    }

    /// The same, for rows with larger numbers.
    pub(super) fn after(mut self, n: u64) -> Self {
        self.add("n > ?", Value::Integer(int(n)));
        self
    }

    fn add(&mut self, condition: &'static str, value: Value) {
        self.conditions.push(condition);
        self.values.push(value);
    }

    /// From `WHERE` on; empty when all rows are asked for.
    pub(super) fn condition(&self) -> String {
        match self.conditions.as_slice() {
            [] => String::new(),
            conditions => format!(" WHERE {}", conditions.join(" AND ")),
        }
    }

    /// The values of all its parameters, in their order.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }
}

#[cfg(test)]
mod tests {
    use kage_core::id::{ProjectId, TaskId};
    use kage_core::price::PriceTable;
    use kage_core::time::Timestamp;
    use rusqlite::params_from_iter;

    use super::*;
    use crate::store::sqlite::Database;

    #[test]
    fn costs_of_a_task_or_a_time_are_found_by_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let (_, connection) = Database::new(&dir.path().join("kage.db"), PriceTable::builtin()).unwrap();
        let since = CallFilter {
            since: Some(Timestamp::from_millis(7)),
            ..CallFilter::default()
        };
        let of_project = CallFilter {
            project: Some(ProjectId::default()),
            ..since.clone()
        };
        let between = CallFilter {
            until: Some(Timestamp::from_millis(9)),
            ..since.clone()
        };
        let of_task = CallFilter {
            task: Some(TaskId::from_random(1)),
            ..of_project.clone()
        };
        for (filter, step) in [
            (CallFilter::default(), "SCAN calls"),
            (since, "calls_by_project (project=? AND at>?)"),
            (of_project, "calls_by_project (project=? AND at>?)"),
            (between, "calls_by_project (project=? AND at>? AND at<?)"),
            (of_task, "calls_by_task (task=?)"),
        ] {
            let query = LedgerQuery::new(&filter);
            let sql = format!("EXPLAIN QUERY PLAN SELECT doc FROM calls{}", query.condition());
            let mut plan = connection.prepare(&sql).unwrap();
            let steps = plan.query_map(params_from_iter(query.values()), |row| row.get::<_, String>(3));
            let steps: Vec<_> = steps.unwrap().map(Result::unwrap).collect();
            assert!(steps[0].contains(step), "{filter:?}: {steps:?}");
        }
    }
}
