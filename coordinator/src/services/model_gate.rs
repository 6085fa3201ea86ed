//! ModelGateService: what agents ask before calls of models, and tell after them.

use std::sync::Arc;
use std::time::Duration;

use kage_core::attempt::Attempt;
use kage_core::id::AgentId;
use kage_proto::blob::AGENT_HEADER;
use kage_proto::convert::agent::AttemptKey;
use kage_proto::convert::call;
use kage_proto::convert::time::span;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::model_gate_service_server::ModelGateService;
use kage_proto::v1::reserve_response::Answer;
use tonic::{Request, Response, Status};

use super::principal;
use crate::coordinator::Coordinator;
use crate::refusals::{read_error, store_error};
use crate::store::{CallSettled, Claim, CommitCall, ReleaseCall, ReserveCall, Reserved};

/// How long others wait for the end of a call before they are refused for what it holds back. It is longer than
/// answers take: an agent may wait a quarter of an hour for the first byte of one. A call whose agent is
/// lost ends with its attempt, long before this.
const HELD: Duration = Duration::from_secs(2 * 60 * 60);
/// How long a question is held that has to wait: the agent asks again then.
const HOLD: Duration = Duration::from_secs(5);
/// When an agent asks again after that.
const AGAIN: Duration = Duration::from_millis(50);
/// How often a question that has to wait is looked at without a sign that anything changed: a lease may
/// have ended, or another coordinator's attempt.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct ModelGate(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl ModelGateService for ModelGate {
    async fn reserve(&self, message: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        let speaker = speaker(&message)?;
        let (key, call, ask) = call::read_reserve(message.into_inner()).map_err(ApiError::from)?;
        let until = tokio::time::Instant::now() + HOLD;
        let answer = loop {
            // Before the question, so that no change between it and the wait is missed.
            let freed = self.0.calls_ended.notified();
            let now = self.0.now();
            let command = ReserveCall {
                claim: claim(&key),
                agent: speaker,
                call,
                ask: ask.clone(),
                rules: self.0.budgets.clone(),
                prices: Arc::clone(&self.0.prices),
                held_until: now + HELD,
                now,
            };
            match self.0.apply(command).await.map_err(store_error)? {
                Reserved::Unlimited => break granted(ask.output.most.get(), None),
                Reserved::Granted { output, warning } => break granted(output, warning),
                Reserved::Refused(reason) => break refused(reason, v1::FailureKind::BudgetExceeded),
                Reserved::Stale(reason) => break refused(reason, v1::FailureKind::Cancelled),
                Reserved::Wait(reason) => {
                    let look = tokio::time::Instant::now() + LOOK;
                    if look >= until || self.0.closing.is_cancelled() {
                        break Answer::Wait(v1::ReserveWait {
                            reason,
                            retry_after: Some(span(AGAIN)),
                        });
                    }
                    tokio::select! {
                        () = freed => {}
                        () = self.0.closing.cancelled() => {}
                        () = tokio::time::sleep_until(look) => {}
                    }
                }
            }
        };
        Ok(Response::new(v1::ReserveResponse { answer: Some(answer) }))
    }

    async fn started(&self, message: Request<v1::StartedRequest>) -> Result<Response<v1::StartedResponse>, Status> {
        let speaker = speaker(&message)?;
        let message = message.into_inner();
        let (key, _call) = call::key_and_call(message.key, &message.call_id).map_err(ApiError::from)?;
        self.may(&key, speaker).await?;
        Ok(Response::new(v1::StartedResponse {}))
    }

    async fn commit(&self, message: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let speaker = speaker(&message)?;
        let (key, call, spent, _told) = call::read_commit(message.into_inner()).map_err(ApiError::from)?;
        let command = CommitCall {
            claim: claim(&key),
            agent: speaker,
            call,
            spent,
            prices: Arc::clone(&self.0.prices),
            now: self.0.now(),
        };
        self.settled(self.0.apply(command).await.map_err(store_error)?)?;
        Ok(Response::new(v1::CommitResponse {}))
    }

    async fn release(&self, message: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let speaker = speaker(&message)?;
        let message = message.into_inner();
        let (key, call) = call::key_and_call(message.key, &message.call_id).map_err(ApiError::from)?;
        let command = ReleaseCall {
            claim: claim(&key),
            agent: speaker,
            call,
            now: self.0.now(),
        };
        self.settled(self.0.apply(command).await.map_err(store_error)?)?;
        Ok(Response::new(v1::ReleaseResponse {}))
    }
}

/// The agent that speaks, if it is known.
fn speaker<T>(message: &Request<T>) -> Result<Option<AgentId>, ApiError> {
    let named = message.metadata().get(AGENT_HEADER);
    principal(message).agent(named.map(|value| value.to_str().unwrap_or_default()))
}

fn claim(key: &AttemptKey) -> Claim {
    Claim {
        attempt: key.attempt,
        token_hash: key.token.hash(),
    }
}

fn granted(output_limit: u32, warning: Option<String>) -> Answer {
    Answer::Granted(v1::ReserveGranted {
        output_limit,
        held_for: Some(span(HELD)),
        warning: warning.unwrap_or_default(),
    })
}

fn refused(reason: String, kind: v1::FailureKind) -> Answer {
    let kind = kind.into();
    Answer::Refused(v1::ReserveRefused { reason, kind })
}

impl ModelGate {
    /// Wakes those who wait for what was held; refuses those without authority.
    fn settled(&self, settled: CallSettled) -> Result<(), ApiError> {
        match settled {
            CallSettled::Settled => self.0.calls_ended.notify_waiters(),
            CallSettled::Nothing => {}
            CallSettled::Stale(message) => return Err(ApiError::FailedPrecondition { message }),
        }
        Ok(())
    }

    /// Refuses those without authority.
    async fn may(&self, key: &AttemptKey, speaker: Option<AgentId>) -> Result<Attempt, ApiError> {
        let stale = |message: String| ApiError::FailedPrecondition { message };
        let view = self.0.store.attempt(key.attempt).await.map_err(read_error)?;
        let attempt = view
            .ok_or_else(|| stale("no such attempt was started".to_owned()))?
            .attempt;
        let agent = speaker.unwrap_or(attempt.agent);
        let authority = attempt.authorise(&key.token.hash(), agent);
        authority.map(|()| attempt).map_err(|gone| stale(gone.to_string()))
    }
}
