//! ModelGateService: what agents ask before calls of models, and tell after them.

use std::sync::Arc;

use kage_core::attempt::Attempt;
use kage_core::call::Ask;
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
use crate::refusals::read_error;

/// How long a call is waited for that nothing is heard of.
const HELD: std::time::Duration = std::time::Duration::from_secs(15 * 60);

#[derive(Debug)]
pub(crate) struct ModelGate(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl ModelGateService for ModelGate {
    async fn reserve(&self, message: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        let speaker = speaker(&message)?;
        let (key, _call, ask) = call::read_reserve(message.into_inner()).map_err(ApiError::from)?;
        let answer = match self.authorised(&key, speaker).await? {
            Ok(_attempt) => granted(&ask),
            Err(reason) => refused(reason, v1::FailureKind::Cancelled),
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
        let (key, _call, _spent, _told) = call::read_commit(message.into_inner()).map_err(ApiError::from)?;
        self.may(&key, speaker).await?;
        Ok(Response::new(v1::CommitResponse {}))
    }

    async fn release(&self, message: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let speaker = speaker(&message)?;
        let message = message.into_inner();
        let (key, _call) = call::key_and_call(message.key, &message.call_id).map_err(ApiError::from)?;
        self.may(&key, speaker).await?;
        Ok(Response::new(v1::ReleaseResponse {}))
    }
}

/// The agent that speaks, if it is known.
fn speaker<T>(message: &Request<T>) -> Result<Option<AgentId>, ApiError> {
    let named = message.metadata().get(AGENT_HEADER);
    principal(message).agent(named.map(|value| value.to_str().unwrap_or_default()))
}

fn granted(ask: &Ask) -> Answer {
    Answer::Granted(v1::ReserveGranted {
        output_limit: ask.output.most.get(),
        held_for: Some(span(HELD)),
    })
}

fn refused(reason: String, kind: v1::FailureKind) -> Answer {
    let kind = kind.into();
    Answer::Refused(v1::ReserveRefused { reason, kind })
}

impl ModelGate {
    /// The live attempt of a key; the inner error says why it has no authority.
    async fn authorised(
        &self,
        key: &AttemptKey,
        speaker: Option<AgentId>,
    ) -> Result<Result<Attempt, String>, ApiError> {
        let Some(view) = self.0.store.attempt(key.attempt).await.map_err(read_error)? else {
            return Ok(Err("no such attempt was started".to_owned()));
        };
        let agent = speaker.unwrap_or(view.attempt.agent);
        let authority = view.attempt.authorise(&key.token.hash(), agent);
        Ok(authority.map(|()| view.attempt).map_err(|stale| stale.to_string()))
    }

    /// Refuses those without authority.
    async fn may(&self, key: &AttemptKey, speaker: Option<AgentId>) -> Result<Attempt, ApiError> {
        let authority = self.authorised(key, speaker).await?;
        authority.map_err(|message| ApiError::FailedPrecondition { message })
    }
}
