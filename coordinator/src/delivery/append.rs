//! Deliveries of agents: one intake per attempt and connection, so that the commits and the disk of
//! one attempt do not delay another's. An intake checks the right to write, stores a result before
//! the event that reports it, and makes output durable before the end of its attempt.

use std::sync::Arc;

use kage_core::attempt::EndReason;
use kage_core::checkpoint::TakenCheckpoint;
use kage_core::event::{AttemptOutcome, Event, EventBody, OutputStream, ResultCommit};
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::{AgentId, AttemptId, Digest, JobId, ProjectId, SessionId, TaskId};
use kage_core::job::JobType;
use kage_core::recovery::Jitter;
use kage_core::task::{RepositoryRef, ResultRules};
use kage_proto::convert::agent::AttemptKey;
use kage_proto::convert::event::output_stream;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::append_request::Batch;
use kage_proto::v1::append_response;
use tokio::sync::mpsc;

use crate::coordinator::{Coordinator, Held};
use crate::duties::dispatch;
use crate::output::{Feed, FeedClosed, OutputAck};
use crate::ports::{ArrivedResult, ResultNotTaken};
use crate::refusals::{internal, read_error, store_error};
use crate::store::{AppendEvents, Appended, Claim, Ending};
use crate::telemetry;

/// The answers on the stream.
pub(crate) type Responses = mpsc::Sender<Result<v1::AppendResponse, tonic::Status>>;

/// The deliveries of one attempt on one connection.
pub(crate) struct AttemptIntake {
    coordinator: Arc<Coordinator>,
    key: AttemptKey,
    /// The agent of the connection.
    agent: Option<AgentId>,
    acks: mpsc::Sender<OutputAck>,
    fence: Held,
    subject: Option<Subject>,
    feed: Option<Arc<Feed>>,
    /// The reason to accept no more events.
    rejected: Option<String>,
}

/// The store's data about the attempt.
struct Subject {
    task: TaskId,
    session: SessionId,
    agent: AgentId,
    /// Whether it may write, when it was looked up.
    refused: Option<String>,
    /// Whether it works on the session, and does not check it.
    has_results: bool,
}

/// Why a result is never accepted, by what follows from that.
#[derive(Debug)]
enum NoResult {
    /// The attempt could not have one: its job is done again.
    Attempt(String),
    /// The session fails with this.
    Session(Failure),
}

/// Whether the intake continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
enum After {
    More,
    Finished,
}

impl AttemptIntake {
    pub(crate) fn new(
        coordinator: Arc<Coordinator>,
        key: AttemptKey,
        agent: Option<AgentId>,
        acks: mpsc::Sender<OutputAck>,
    ) -> Self {
        let fence = coordinator.fences.hold(key.attempt);
        Self {
            coordinator,
            key,
            agent,
            acks,
            fence,
            subject: None,
            feed: None,
            rejected: None,
        }
    }

    /// Accepts batches until the attempt is finished or the connection ends.
    pub(crate) async fn run(mut self, mut batches: mpsc::Receiver<Batch>, responses: Responses) -> AttemptKey {
        let mut next = None;
        loop {
            let batch = match next.take() {
                Some(batch) => batch,
                None => match batches.recv().await {
                    Some(batch) => batch,
                    None => break,
                },
            };
            let after = match batch {
                Batch::Events(mut events) => {
                    next = join(&mut events, &mut batches);
                    self.events(events, &responses).await
                }
                Batch::Output(output) => self.output(output, &responses).await,
            };
            match after {
                Ok(After::More) => {}
                // Batches that were sent before the sender knew are answered; then the intake ends.
                Ok(After::Finished) => batches.close(),
                Err(error) => {
                    // The stream ends; the agent sends unacknowledged events again.
                    responses.send(Err(error.into())).await.ok();
                    break;
                }
            }
        }
        self.key
    }

    async fn events(&mut self, batch: v1::EventBatch, responses: &Responses) -> Result<After, ApiError> {
        if let Some(reason) = self.rejected.clone() {
            return Ok(self.reject(reason, responses).await);
        }
        let events: Result<Vec<Event>, _> = batch.events.into_iter().map(Event::try_from).collect();
        let events = match events {
            Ok(events) => events,
            Err(invalid) => {
                return self
                    .give_up(format!("an event is malformed: {invalid}"), responses)
                    .await;
            }
        };
        let mut finished = false;
        let mut refused = None;
        let mut taken = Vec::with_capacity(events.len());
        for mut event in events {
            if let EventBody::ResultCommitted { result, pack } = &mut event.body {
                match self.result(result, pack).await? {
                    Ok(Some(found)) => *result = found,
                    Ok(None) => {}
                    Err(NoResult::Attempt(reason)) => return self.give_up(reason, responses).await,
                    Err(NoResult::Session(failure)) => {
                        // The attempt ends in its place, with the reason. What follows it is not stored.
                        refused = Some(failure.message.clone());
                        event.body = EventBody::Finished(AttemptOutcome::Failed(failure));
                    }
                }
            }
            if let EventBody::CheckpointTaken(taken) = &event.body
                && let Err(reason) = self.checkpoint(taken).await?
            {
                return self.give_up(reason, responses).await;
            }
            if event.body.is_last() {
                finished = true;
                self.before_end().await?;
            }
            taken.push(event);
            if refused.is_some() {
                break;
            }
        }
        let after = self.store(taken, finished, responses).await?;
        match refused {
            // Unless it was rejected for another reason.
            Some(reason) if after == After::Finished && self.rejected.is_none() => {
                Ok(self.reject(reason, responses).await)
            }
            Some(_) | None => Ok(after),
        }
    }

    /// Stores events, and answers.
    async fn store(&mut self, events: Vec<Event>, finished: bool, responses: &Responses) -> Result<After, ApiError> {
        let Some(agent) = self.speaker().await? else {
            return Ok(self.reject("no such attempt was started".to_owned(), responses).await);
        };
        let count = events.len();
        let command = AppendEvents {
            claim: Claim {
                attempt: self.key.attempt,
                token_hash: self.key.token.hash(),
            },
            agent,
            events,
            next_job: JobId::from_random(self.coordinator.random()),
            jitter: Jitter::from_random(self.coordinator.random()),
            prices: Arc::clone(&self.coordinator.prices),
            rules: self.coordinator.budgets.clone(),
            now: self.coordinator.now(),
        };
        match self.coordinator.apply(command).await.map_err(store_error)? {
            Appended::Acked { seq } => {
                telemetry::events(count);
                self.respond(append_response::Result::AckedSeq(seq), responses).await;
                Ok(if finished { After::Finished } else { After::More })
            }
            Appended::Gap { acked_seq } => {
                self.respond(append_response::Result::AckedSeq(acked_seq), responses)
                    .await;
                Ok(After::More)
            }
            Appended::Stale(stale) => Ok(self.reject(stale.to_string(), responses).await),
            Appended::UnknownAttempt => Ok(self.reject("no such attempt was started".to_owned(), responses).await),
            Appended::Invalid(invalid) => self.give_up(invalid.to_string(), responses).await,
        }
    }

    async fn output(&mut self, batch: v1::OutputBatch, responses: &Responses) -> Result<After, ApiError> {
        if let Some(reason) = self.rejected.clone() {
            return Ok(self.reject(reason, responses).await);
        }
        let stream = match output_stream("stream", batch.stream) {
            Ok(stream) => stream,
            Err(invalid) => return self.give_up(invalid.to_string(), responses).await,
        };
        let most = self.coordinator.callers.output;
        if most > 0 && batch.offset.saturating_add(batch.data.len() as u64) > most {
            let reason = format!("an attempt may have {most} bytes of each stream of output");
            return self.give_up(reason, responses).await;
        }
        let Some(subject) = self.subject().await? else {
            return Ok(self.reject("no such attempt was started".to_owned(), responses).await);
        };
        let (task, refused) = (subject.task, subject.refused.clone());
        let refused = refused.or_else(|| self.fence.is_closed().then(|| "the attempt has ended".to_owned()));
        if let Some(reason) = refused {
            return self.late_output(stream, &batch, reason, responses).await;
        }
        let feed = match &self.feed {
            Some(feed) => Arc::clone(feed),
            None => {
                let feed = self
                    .coordinator
                    .outputs
                    .feed(self.key.attempt, task)
                    .await
                    .map_err(|error| internal("output cannot be written", &error))?;
                Arc::clone(self.feed.insert(feed))
            }
        };
        // The feed acknowledges on `acks`, also when it fails.
        if feed.append(stream, batch.offset, batch.data, &self.acks).await.is_err() {
            self.feed = None;
            return Err(ApiError::Unavailable {
                message: "output cannot be written now".to_owned(),
                retry: None,
            });
        }
        Ok(After::More)
    }

    /// Bytes that were durable before the attempt ended are acknowledged again: their sender missed
    /// the acknowledgement. Other bytes come too late.
    async fn late_output(
        &mut self,
        stream: OutputStream,
        batch: &v1::OutputBatch,
        reason: String,
        responses: &Responses,
    ) -> Result<After, ApiError> {
        let length = self
            .coordinator
            .outputs
            .length(self.key.attempt, stream)
            .await
            .map_err(|error| internal("output cannot be written", &error))?;
        let end = batch.offset.saturating_add(batch.data.len() as u64);
        let known = self
            .subject
            .as_ref()
            .is_some_and(|subject| Some(subject.agent) == self.agent || self.agent.is_none());
        if known && end <= length {
            let ack = v1::OutputAck {
                stream: v1::OutputStream::from(stream).into(),
                offset: length,
            };
            self.respond(append_response::Result::AckedOutput(ack), responses).await;
            return Ok(After::Finished);
        }
        Ok(self.reject(reason, responses).await)
    }

    /// What a result is by its objects; `None`: the store refuses the event anyway. An inner `Err`: it can
    /// never be accepted.
    async fn result(
        &mut self,
        result: &ResultCommit,
        pack: &Digest,
    ) -> Result<Result<Option<ResultCommit>, NoResult>, ApiError> {
        let Some(subject) = self.subject().await? else {
            return Ok(Ok(None));
        };
        if subject.refused.is_some() {
            // The store reports it when it gets the event.
            return Ok(Ok(None));
        }
        if !subject.has_results {
            let reason = "only work on a session has a result".to_owned();
            return Ok(Err(NoResult::Attempt(reason)));
        }
        let (task, session) = (subject.task, subject.session);
        let Some((project, repository, rules)) = self.place_of(task).await? else {
            return Ok(Err(NoResult::Attempt("the task was removed".to_owned())));
        };
        let Some(repository) = &repository else {
            let why = "the task has no repository to take a result into";
            let failure = Failure::new(FailureKind::ResultRefused, why);
            return Ok(Err(NoResult::Session(failure)));
        };
        let fence = &self.fence;
        let arrived = ArrivedResult {
            project: &project,
            repository,
            session,
            result,
            pack,
            rules: &rules,
            ended: &|| fence.is_closed(),
        };
        match self.coordinator.objects.take_in(arrived).await {
            Ok(found) => Ok(Ok(Some(found))),
            // Of an attempt that has ended, the store says so when it gets the event.
            Err(ResultNotTaken::Ended) => Ok(Ok(None)),
            Err(ResultNotTaken::Later(message)) => Err(ApiError::Unavailable { message, retry: None }),
            Err(ResultNotTaken::Never(failure)) => {
                let attempt = self.key.attempt;
                tracing::warn!(%attempt, failure = failure.message, "attempt ended: its result is refused");
                Ok(Err(NoResult::Session(failure)))
            }
        }
    }

    /// A checkpoint counts when everything of it is durable. `Err` inside = it never will be.
    async fn checkpoint(&mut self, taken: &TakenCheckpoint) -> Result<Result<(), String>, ApiError> {
        let Some(subject) = self.subject().await? else {
            return Ok(Ok(()));
        };
        if subject.refused.is_some() {
            // The store reports it when it gets the event.
            return Ok(Ok(()));
        }
        let task = subject.task;
        let Some((project, ..)) = self.place_of(task).await? else {
            return Ok(Err("the task was removed".to_owned()));
        };
        let segment = taken.transcript.as_ref().map(|segment| &segment.blob);
        for blob in taken.pack.iter().chain(segment) {
            let stored = self.coordinator.objects.has_blob(&project, blob).await;
            if !stored.map_err(|error| internal("a blob could not be looked up", &error))? {
                return Ok(Err(format!(
                    "blob {blob} of checkpoint {} was not uploaded",
                    taken.commit
                )));
            }
        }
        Ok(Ok(()))
    }

    /// A task's project and repository, and how much a result of it may have.
    async fn place_of(
        &self,
        task: TaskId,
    ) -> Result<Option<(ProjectId, Option<RepositoryRef>, ResultRules)>, ApiError> {
        let view = self.coordinator.store.task(task).await.map_err(read_error)?;
        Ok(view.map(|view| {
            let spec = view.task.spec;
            (spec.project, spec.repository, spec.policy.results)
        }))
    }

    /// Watches end with the task, so delivered output has to be readable by then.
    async fn before_end(&self) -> Result<(), ApiError> {
        let unavailable = |closed: FeedClosed| ApiError::Unavailable {
            message: closed.to_string(),
            retry: None,
        };
        // Output that could not be written has to be sent again first. Its file writer is gone by
        // then, so only this intake knows.
        if let Some(feed) = &self.feed {
            feed.settle().await.map_err(unavailable)?;
        }
        let settled = self.coordinator.outputs.settle(self.key.attempt).await;
        settled.map_err(unavailable)
    }

    async fn speaker(&mut self) -> Result<Option<AgentId>, ApiError> {
        match self.agent {
            Some(agent) => Ok(Some(agent)),
            None => Ok(self.subject().await?.map(|subject| subject.agent)),
        }
    }

    async fn subject(&mut self) -> Result<Option<&Subject>, ApiError> {
        if self.subject.is_none() {
            let view = self
                .coordinator
                .store
                .attempt(self.key.attempt)
                .await
                .map_err(read_error)?;
            self.subject = view.map(|view| {
                let attempt = view.attempt;
                let speaker = self.agent.unwrap_or(attempt.agent);
                let refused = attempt.authorise(&self.key.token.hash(), speaker).err();
                Subject {
                    task: attempt.task,
                    session: attempt.session,
                    agent: attempt.agent,
                    refused: refused.map(|stale| stale.to_string()),
                    has_results: view.job == JobType::Session,
                }
            });
        }
        Ok(self.subject.as_ref())
    }

    /// The agent's own fault, and no repetition cures it: the attempt ends, so that its
    /// job does not wait for a lease to run out.
    async fn give_up(&mut self, reason: String, responses: &Responses) -> Result<After, ApiError> {
        let attempt = self.key.attempt;
        tracing::warn!(%attempt, reason, "attempt ended: its agent sends what cannot be taken");
        if self.subject().await?.is_some_and(|subject| subject.refused.is_none()) {
            let which = Ending::These(vec![attempt]);
            dispatch::end(Arc::clone(&self.coordinator), which, EndReason::AgentGone).await;
        }
        Ok(self.reject(reason, responses).await)
    }

    async fn reject(&mut self, reason: String, responses: &Responses) -> After {
        self.rejected = Some(reason.clone());
        self.respond(append_response::Result::Rejected(v1::Rejected { reason }), responses)
            .await;
        // Later batches get their own intake, and the same answer.
        After::Finished
    }

    async fn respond(&self, result: append_response::Result, responses: &Responses) {
        let response = response(self.key.attempt, result);
        // A disconnected agent sends it again.
        responses.send(Ok(response)).await.ok();
    }
}

/// The most events that are committed together.
const JOINED_EVENTS: usize = 512;

/// Adds the events that arrived during the last commit, so that they share the next one. Returns
/// the following batch if it was taken from the queue for this.
fn join(events: &mut v1::EventBatch, batches: &mut mpsc::Receiver<Batch>) -> Option<Batch> {
    while events.events.len() < JOINED_EVENTS {
        match batches.try_recv() {
            Ok(Batch::Events(more)) if follows(events, &more) => events.events.extend(more.events),
            Ok(other) => return Some(other),
            Err(_) => return None,
        }
    }
    None
}

/// True if one batch continues where the other ends. A repeated batch does not.
fn follows(events: &v1::EventBatch, more: &v1::EventBatch) -> bool {
    match (events.events.last(), more.events.first()) {
        (Some(last), Some(first)) => last.seq.checked_add(1) == Some(first.seq),
        (Some(_) | None, _) => false,
    }
}

pub(crate) fn response(attempt: AttemptId, result: append_response::Result) -> v1::AppendResponse {
    v1::AppendResponse {
        attempt_id: attempt.to_string(),
        result: Some(result),
    }
}
