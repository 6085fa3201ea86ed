//! The reads of the model.

use std::collections::{BTreeMap, BTreeSet};

use kage_core::checkpoint::Checkpoint;
use kage_core::fleet::Agent;
use kage_core::id::{AgentId, AttemptId, Digest, JobId, ProjectId, SessionId, TaskId, TokenId};
use kage_core::job::JobState;
use kage_core::ledger::{CallRow, CostTable, CostsBy, Reservation};

use super::{AttemptRow, Model};
use crate::store::admission::{Enrolment, JoinTokenRow, PersonToken};
use crate::store::apply::waiting;
use crate::store::command::QueuedJob;
use crate::store::error::EngineError;
use crate::store::query::{
    AttemptView, CallFilter, ContextSent, ContextStats, Counts, EndedTask, InFiles, LiveAttempt, PageToken,
    ProjectCounts, Reads, TaskEvent, TaskFilter, TaskOrder, TaskPage, TaskView, Work,
};

impl Reads for Model {
    fn task(&self, id: TaskId) -> Result<Option<TaskView>, EngineError> {
        Ok(self.tasks.get(&id).map(|row| self.view(row)))
    }

    fn tasks(&self, filter: &TaskFilter, after: Option<PageToken>, limit: u32) -> Result<TaskPage, EngineError> {
        let mut tasks = Vec::new();
        let mut next = None;
        let rows = &self.task_order.rows;
        let ids: Box<dyn Iterator<Item = _>> = match filter.order {
            TaskOrder::NewestFirst => Box::new(rows.range(..after.map_or(u64::MAX, |token| token.0)).rev()),
            TaskOrder::OldestFirst => Box::new(rows.range(after.map_or(0, |token| token.0)..)),
        };
        for id in ids.map(|(_, id)| id) {
            let Some(row) = self.tasks.get(id) else { continue };
            if !filter.takes(&row.head, &row.spec) {
                continue;
            }
            if tasks.len() == limit as usize {
                next = Some(match filter.order {
                    TaskOrder::NewestFirst => PageToken(row.order + 1),
                    TaskOrder::OldestFirst => PageToken(row.order),
                });
                break;
            }
            tasks.push(self.view(row));
        }
        Ok(TaskPage { tasks, next })
    }

    fn tasks_with_prefix(&self, prefix: &str) -> Result<Vec<TaskId>, EngineError> {
        let ids = self.tasks.rows.keys();
        Ok(ids
            .filter(|id| id.to_string().starts_with(prefix))
            .take(2)
            .copied()
            .collect())
    }

    fn work(&self, task: TaskId, job: JobId) -> Result<Option<Work>, EngineError> {
        let (Some(task), Some(row)) = (self.tasks.get(&task), self.jobs.get(&(task, job))) else {
            return Ok(None);
        };
        let key = (row.job.task, row.job.subject.session().unwrap_or(task.head.first));
        let (_, session) = self
            .sessions
            .get(&key)
            .ok_or(EngineError::Dangling { job, what: "session" })?;
        Ok(Some(Work {
            checkpoints: if session.checkpoints.head.is_some() {
                self.checkpoints_of(key.0, key.1).cloned().collect()
            } else {
                Vec::new()
            },
            spec: task.spec.clone(),
            session: session.clone(),
            job: row.job.clone(),
            number: row.job.started + 1,
        }))
    }

    fn checkpoints(&self, task: TaskId, session: SessionId) -> Result<Vec<Checkpoint>, EngineError> {
        Ok(self.checkpoints_of(task, session).cloned().collect())
    }

    fn queued_jobs(&self) -> Result<Vec<QueuedJob>, EngineError> {
        let mut queued = Vec::new();
        for row in self.jobs.rows.values() {
            let task = self.tasks.get(&row.job.task).ok_or(EngineError::Dangling {
                job: row.job.id,
                what: "task",
            })?;
            queued.extend(waiting(row, &task.head.project));
        }
        queued.sort_by_key(|job| (job.queued_at, job.job));
        Ok(queued)
    }

    fn attempt(&self, id: AttemptId) -> Result<Option<AttemptView>, EngineError> {
        Ok(self.attempts.get(&id).map(AttemptRow::view))
    }

    fn attempts_of(&self, task: TaskId) -> Result<Vec<AttemptView>, EngineError> {
        let mut rows: Vec<_> = self
            .attempts
            .rows
            .values()
            .filter(|row| row.attempt.task == task)
            .collect();
        rows.sort_by_key(|row| row.order);
        Ok(rows.into_iter().map(AttemptRow::view).collect())
    }

    fn live_attempts(&self, agent: Option<AgentId>) -> Result<Vec<LiveAttempt>, EngineError> {
        let live = self.live_rows().into_iter();
        Ok(live
            .filter(|row| agent.is_none_or(|agent| row.attempt.agent == agent))
            .map(|row| LiveAttempt::of(&row.attempt, &row.note))
            .collect())
    }

    fn events(&self, task: TaskId, after: u64, limit: u32) -> Result<Vec<TaskEvent>, EngineError> {
        let after = (task, after.saturating_add(1));
        let rows = self.events.rows.range(after..=(task, u64::MAX)).take(limit as usize);
        let mut events = Vec::new();
        for ((_, pos), (attempt, event)) in rows {
            let Some(row) = self.attempts.get(attempt) else {
                continue;
            };
            events.push(TaskEvent::of(*pos, event.clone(), &row.view()));
        }
        Ok(events)
    }

    fn agents(&self) -> Result<Vec<Agent>, EngineError> {
        let mut agents: Vec<_> = self.agents.rows.values().cloned().collect();
        agents.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(agents)
    }

    fn projects(&self) -> Result<Vec<ProjectCounts>, EngineError> {
        let mut projects = BTreeMap::new();
        for row in self.tasks.rows.values() {
            let project = &row.head.project;
            let counted = projects.entry(project.clone()).or_insert_with(|| ProjectCounts {
                project: project.clone(),
                tasks: 0,
                open: 0,
            });
            counted.tasks += 1;
            counted.open += u64::from(!row.head.state.is_terminal());
        }
        Ok(projects.into_values().collect())
    }

    fn enrolments(&self) -> Result<Vec<Enrolment>, EngineError> {
        Ok(self.enrolments.rows.values().cloned().collect())
    }

    fn join_token(&self, token: TokenId) -> Result<Option<JoinTokenRow>, EngineError> {
        Ok(self.join_tokens.get(&token).cloned())
    }

    fn person_tokens(&self) -> Result<Vec<PersonToken>, EngineError> {
        let mut tokens: Vec<_> = self.person_tokens.rows.values().cloned().collect();
        tokens.sort_by_key(|token| (token.created_at, token.id));
        Ok(tokens)
    }

    fn context_size(&self, project: &ProjectId, digest: &Digest) -> Result<Option<u64>, EngineError> {
        let key = (project.clone(), digest.clone());
        Ok(self.contexts.get(&key).map(|row| row.size))
    }

    fn context_stats(&self, project: &ProjectId, digest: &Digest) -> Result<Option<ContextStats>, EngineError> {
        let Some(row) = self.contexts.get(&(project.clone(), digest.clone())) else {
            return Ok(None);
        };
        let sent = self.sent.rows.iter();
        let sent = sent
            .filter(|((owner, name, _), _)| owner == project && name == digest)
            .map(|((_, _, agent), (times, bytes))| ContextSent {
                agent: *agent,
                agent_name: self
                    .agents
                    .get(agent)
                    .map(|agent| agent.name.clone())
                    .unwrap_or_default(),
                times: *times,
                bytes: *bytes,
            })
            .collect();
        Ok(Some(ContextStats {
            size: row.size,
            times_put: row.times_put,
            sessions: row.sessions,
            delta_bytes: row.delta_bytes,
            sent,
        }))
    }

    fn counts(&self) -> Result<Counts, EngineError> {
        let mut counts = Counts::default();
        for row in self.jobs.rows.values() {
            let of_type = counts.of_mut(row.job.type_of());
            match row.job.state {
                JobState::Later { .. } => of_type.later += 1,
                JobState::Queued { .. } => of_type.queued += 1,
                JobState::Leased { .. } => of_type.leased += 1,
                JobState::Done => {}
            }
        }
        Ok(counts)
    }

    fn ended(&self) -> Result<Vec<EndedTask>, EngineError> {
        let rows = self.task_order.rows.values().filter_map(|id| self.tasks.get(id));
        let ended = rows.filter_map(|row| {
            let id = row.head.id;
            let attempts = self.attempts.rows.values().filter(|row| row.attempt.task == id);
            let blobs: BTreeSet<Digest> = self.of_task(id).flat_map(blobs).cloned().collect();
            Some(EndedTask {
                task: id,
                project: row.head.project.clone(),
                ended_at: row.head.ended_at?,
                attempts: attempts.map(|row| row.attempt.id).collect(),
                blobs: blobs.into_iter().collect(),
            })
        });
        let mut ended: Vec<_> = ended.collect();
        ended.sort_by_key(|ended| ended.ended_at);
        Ok(ended)
    }

    fn in_files(&self) -> Result<InFiles, EngineError> {
        let mut files = InFiles {
            attempts: self.attempts.rows.keys().copied().collect(),
            sessions: self.sessions.rows.keys().map(|(_, session)| *session).collect(),
            blobs: BTreeSet::new(),
        };
        for row in self.tasks.rows.values() {
            let spec = &row.spec;
            let of_spec = spec.prompt_blob.iter().chain(&spec.context_base);
            let kept = self.of_task(row.head.id).flat_map(blobs).chain(of_spec);
            files
                .blobs
                .extend(kept.cloned().map(|digest| (spec.project.clone(), digest)));
        }
        Ok(files)
    }

    fn calls(&self, filter: &CallFilter, after: u64, limit: u32) -> Result<Vec<(u64, CallRow)>, EngineError> {
        let later = self.calls.rows.range(after.saturating_add(1)..);
        let found = later.filter(|(_, row)| filter.takes(row));
        let rows = found.map(|(n, row)| (*n, row.clone()));
        Ok(rows.take(limit as usize).collect())
    }

    fn costs(&self, filter: &CallFilter, by: CostsBy) -> Result<CostTable, EngineError> {
        let mut table = CostTable::new(by);
        let rows = self.calls.rows.values().filter(|row| filter.takes(row));
        rows.for_each(|row| table.add(row));
        Ok(table)
    }

    fn reservations(&self) -> Result<Vec<Reservation>, EngineError> {
        Ok(self.reservations.rows.values().cloned().collect())
    }
}

fn blobs(checkpoint: &Checkpoint) -> impl Iterator<Item = &Digest> {
    let segment = checkpoint.taken.transcript.as_ref().map(|segment| &segment.blob);
    checkpoint.taken.pack.iter().chain(segment)
}
