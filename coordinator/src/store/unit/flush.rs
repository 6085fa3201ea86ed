//! What a command changed, written in one go and told to those who follow the store.

use std::sync::Arc;

use super::{Changed, Unit, Write};
use crate::store::change::{Change, size_of};
use crate::store::error::EngineError;
use crate::store::rows::{Failed, JobRow};

impl Unit<'_> {
    /// Writes everything that the command changed, and says what that is.
    pub(in crate::store) fn flush(mut self) -> Result<Vec<Change>, Failed> {
        let mut told = Vec::with_capacity(self.writes.len() + self.changed.len());
        for write in std::mem::take(&mut self.writes) {
            told.extend(self.write(write)?);
        }
        for changed in std::mem::take(&mut self.changed) {
            told.extend(self.save(changed)?);
        }
        Ok(told)
    }

    fn write(&mut self, write: Write) -> Result<Option<Change>, Failed> {
        let engine = &mut *self.engine;
        Ok(match write {
            Write::Request(key, row) => nobody_follows(engine.insert_request(&key, &row))?,
            Write::ForgetRequests(before, limit) => nobody_follows(engine.forget_requests(before, limit))?,
            Write::Task(head, spec) => {
                engine.insert_task(&head, &spec)?;
                Some(Change::Created {
                    size: size_of(&*spec),
                    head: Arc::from(head),
                    spec: Arc::from(spec),
                })
            }
            Write::RemoveTask(task) => {
                engine.remove_task(task)?;
                let open = self.open_jobs.remove(&task).unwrap_or_default();
                Some(Change::Dropped {
                    task,
                    open: open.into_iter().collect(),
                })
            }
            Write::Session(session, position) => {
                engine.insert_session(&session, position)?;
                Some(Change::Session {
                    session: Arc::from(session),
                    before: None,
                })
            }
            Write::Job(row) => {
                engine.insert_job(&row)?;
                Some(self.job_changed(*row)?)
            }
            Write::Attempt(attempt, note) => {
                engine.insert_attempt(&attempt, &note)?;
                Some(Change::Started {
                    attempt: Arc::from(attempt),
                    note: Arc::new(note),
                })
            }
            Write::ExtendLeases(until, now) => {
                engine.extend_leases(until, now)?;
                Some(Change::LeasesExtended { until, now })
            }
            Write::Event(task, pos, attempt, event) => {
                engine.insert_event(task, pos, attempt, &event)?;
                Some(Change::Event {
                    task,
                    pos,
                    attempt,
                    size: size_of(&*event),
                    event: Arc::from(event),
                })
            }
            Write::Checkpoint(task, checkpoint) => nobody_follows(engine.insert_checkpoint(task, &checkpoint))?,
            Write::Safety(task, tree, safety) => nobody_follows(engine.save_safety(task, &tree, safety))?,
            Write::BaseVerdict(kept) => nobody_follows(engine.put_base_verdict(&kept))?,
            Write::ForgetBaseVerdicts(before) => nobody_follows(engine.forget_base_verdicts(before))?,
            Write::Call(row) => nobody_follows(engine.insert_call(&row))?,
            Write::Reservation(reservation) => nobody_follows(engine.put_reservation(&reservation))?,
            Write::RemoveReservation(attempt, call) => nobody_follows(engine.remove_reservation(attempt, call))?,
            Write::Agent(agent) => {
                engine.put_agent(&agent)?;
                Some(Change::Agent(Arc::from(agent)))
            }
            Write::AgentSeen(agent, at) => {
                engine.save_agent_seen(agent, at)?;
                Some(Change::AgentSeen(agent, at))
            }
            Write::JoinToken(token, row) => nobody_follows(engine.put_join_token(token, &row))?,
            Write::ForgetJoinTokens(before) => nobody_follows(engine.forget_join_tokens(before))?,
            Write::Enrolment(enrolment) => {
                engine.put_enrolment(&enrolment)?;
                Some(Change::Enrolment(Arc::new(enrolment)))
            }
            Write::PersonToken(token) => {
                engine.put_person_token(&token)?;
                Some(Change::PersonToken(Arc::new(token)))
            }
            Write::Context(project, digest, row) => nobody_follows(engine.put_context(&project, &digest, &row))?,
            Write::ContextSent(project, digest, agent, bytes) => {
                nobody_follows(engine.add_context_sent(&project, &digest, agent, bytes))?
            }
        })
    }

    /// Saves the last form of a row that is there.
    fn save(&mut self, changed: Changed) -> Result<Option<Change>, Failed> {
        Ok(match changed {
            // Its jobs are saved after it.
            Changed::Task(task) => match self.tasks.get(&task) {
                Some(Some(head)) => {
                    self.engine.save_task(head)?;
                    Some(Change::Task(Arc::new(head.clone())))
                }
                Some(None) | None => None,
            },
            Changed::Session(task, id) => match self.sessions.remove(&(task, id)).flatten() {
                Some(session) => {
                    self.engine.save_session(&session)?;
                    Some(Change::Session {
                        session: Arc::new(session),
                        before: self.stood.get(&id).copied(),
                    })
                }
                None => None,
            },
            Changed::Job(task, id) => match self.jobs.remove(&(task, id)).flatten() {
                Some(row) => {
                    self.engine.save_job(&row)?;
                    Some(self.job_changed(row)?)
                }
                None => None,
            },
            Changed::Attempt(id) => match self.attempts.remove(&id).flatten() {
                Some(attempt) => {
                    self.engine.save_attempt(&attempt)?;
                    Some(Change::Attempt(Arc::new(attempt)))
                }
                None => None,
            },
        })
    }

    /// Whoever decided on a job has its task here.
    fn job_changed(&mut self, row: JobRow) -> Result<Change, Failed> {
        let task = row.job.task;
        let project = match self.tasks.get(&task) {
            Some(Some(head)) => head.project.clone(),
            Some(None) | None => {
                let dangling = EngineError::Dangling {
                    job: row.job.id,
                    what: "task",
                };
                self.engine.task(task)?.ok_or(dangling)?.project
            }
        };
        Ok(Change::Job {
            row: Arc::new(row),
            project,
        })
    }
}

/// Nothing in memory follows this row.
fn nobody_follows(written: Result<(), Failed>) -> Result<Option<Change>, Failed> {
    written.map(|()| None)
}
