//! ModelGateService: what agents ask before calls of models, and tell after them.

use std::sync::Arc;
use std::time::Duration;

use kage_core::attempt::Attempt;
use kage_core::call::Ask;
use kage_core::call_queue::{CallAsked, CallTurn, CallUsed, gated_prefix};
use kage_core::id::{AgentId, CallId};
use kage_proto::blob::AGENT_HEADER;
use kage_proto::convert::agent::AttemptKey;
use kage_proto::convert::call;
use kage_proto::convert::time::span;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::model_gate_service_server::ModelGateService;
use kage_proto::v1::reserve_response::Answer;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::principal;
use crate::calls::BudgetPlace;
use crate::coordinator::Coordinator;
use crate::refusals::{read_error, store_error};
use crate::store::{AskToStart, CallSettled, Claim, CommitCall, MayStart, ReleaseCall, ReserveCall, Reserved};

/// How long others wait for the end of a call before they are refused for what it holds back. It is longer than
/// answers take: an agent may wait a quarter of an hour for the first byte of one. A call whose agent is
/// lost ends with its attempt, long before this.
const HELD: Duration = Duration::from_secs(2 * 60 * 60);
/// How long a question is held that has to wait: the agent asks again then.
const HOLD: Duration = Duration::from_secs(5);
/// When an agent asks again after that.
const AGAIN: Duration = Duration::from_millis(50);
/// How often the first of those who wait for money looks without a sign that anything changed: an attempt may have
/// ended, or a reservation may have waited for too long.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct ModelGate(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl ModelGateService for ModelGate {
    async fn reserve(&self, message: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        let speaker = speaker(&message)?;
        let (key, call, ask) = call::read_reserve(message.into_inner()).map_err(ApiError::from)?;
        let closing = &self.0.closing;
        let answer = match self.authorised(&key, speaker).await? {
            Ok(attempt) => {
                let deciding = self.decide(&key, &attempt, call, ask);
                match closing.run_until_cancelled(deciding).await {
                    Some(answer) => answer?,
                    None => wait("the coordinator is shutting down".to_owned()),
                }
            }
            Err(gone) => refused(gone, v1::FailureKind::Cancelled),
        };
        Ok(Response::new(v1::ReserveResponse { answer: Some(answer) }))
    }

    async fn started(&self, message: Request<v1::StartedRequest>) -> Result<Response<v1::StartedResponse>, Status> {
        let speaker = speaker(&message)?;
        let message = message.into_inner();
        let (key, call) = call::key_and_call(message.key, &message.call_id).map_err(ApiError::from)?;
        let told = call::read_limits(message.limits);
        if let Err(message) = self.authorised(&key, speaker).await? {
            return Err(ApiError::FailedPrecondition { message }.into());
        }
        self.0.turns.started(call, &told);
        Ok(Response::new(v1::StartedResponse {}))
    }

    async fn commit(&self, message: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let speaker = speaker(&message)?;
        let (key, call, spent, told) = call::read_commit(message.into_inner()).map_err(ApiError::from)?;
        let now = self.0.now();
        let used = CallUsed::of(&spent.usage, &spent.model, &self.0.prices, now);
        let command = CommitCall {
            claim: claim(&key),
            agent: speaker,
            call,
            spent,
            prices: Arc::clone(&self.0.prices),
            now,
        };
        self.settled(self.0.apply(command).await.map_err(store_error)?)?;
        self.0.turns.committed(call, used, &told);
        Ok(Response::new(v1::CommitResponse {}))
    }

    async fn release(&self, message: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let speaker = speaker(&message)?;
        let message = message.into_inner();
        let (key, call) = call::key_and_call(message.key, &message.call_id).map_err(ApiError::from)?;
        let told = call::read_limits(message.limits);
        let command = ReleaseCall {
            claim: claim(&key),
            agent: speaker,
            call,
            now: self.0.now(),
        };
        self.settled(self.0.apply(command).await.map_err(store_error)?)?;
        self.0.turns.released(call, &told);
        Ok(Response::new(v1::ReleaseResponse {}))
    }

    async fn may_start(&self, message: Request<v1::MayStartRequest>) -> Result<Response<v1::MayStartResponse>, Status> {
        let agent = speaker(&message)?;
        let key = call::read_may_start(message.into_inner()).map_err(ApiError::from)?;
        let command = AskToStart {
            claim: claim(&key),
            agent,
            rules: self.0.budgets.clone(),
            now: self.0.now(),
        };
        let refused = match self.0.apply(command).await.map_err(store_error)? {
            MayStart::Yes => String::new(),
            MayStart::No(reason) => reason,
            MayStart::Stale(message) => return Err(ApiError::FailedPrecondition { message }.into()),
        };
        Ok(Response::new(v1::MayStartResponse { refused }))
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

fn wait(reason: String) -> Answer {
    Answer::Wait(v1::ReserveWait {
        reason,
        retry_after: Some(span(AGAIN)),
    })
}

fn refused(reason: String, kind: v1::FailureKind) -> Answer {
    Answer::Refused(v1::ReserveRefused {
        reason,
        kind: kind.into(),
        retry_after: None,
    })
}

fn held(reason: String, wait: Duration) -> Answer {
    Answer::Refused(v1::ReserveRefused {
        reason,
        kind: v1::FailureKind::RateLimited.into(),
        retry_after: Some(span(wait)),
    })
}

impl ModelGate {
    /// Wakes those who wait for what was held; refuses those without authority.
    fn settled(&self, settled: CallSettled) -> Result<(), ApiError> {
        match settled {
            CallSettled::Settled => self.0.budget_lines.freed(),
            CallSettled::Nothing => {}
            CallSettled::Stale(message) => return Err(ApiError::FailedPrecondition { message }),
        }
        Ok(())
    }

    /// Whether a call of an attempt may be made: its turn first, then its budgets. What has to wait for money gives
    /// its turn to others.
    async fn decide(&self, key: &AttemptKey, attempt: &Attempt, call: CallId, ask: Ask) -> Result<Answer, ApiError> {
        let until = Instant::now() + HOLD;
        let asked = CallAsked {
            call,
            task: attempt.task,
            session: attempt.session,
            is_first: attempt.number == 1,
            account: ask.account.clone(),
            model: ask.model.clone(),
            prefix: gated_prefix(&ask, &self.0.prices, self.0.now()),
            input: ask.input,
        };
        let turns = &self.0.turns;
        let mut place = None::<BudgetPlace<'_>>;
        loop {
            // What costs nothing runs on machines of one's own, which queue themselves.
            if !ask.free {
                match turns.turn(&asked, until).await {
                    CallTurn::Go => {}
                    CallTurn::Wait { reason, .. } => return Ok(wait(reason)),
                    CallTurn::Held { reason, wait } => return Ok(held(reason, wait)),
                }
            }
            let so_far = self.0.budget_lines.so_far();
            let now = self.0.now();
            let command = ReserveCall {
                claim: claim(key),
                agent: Some(attempt.agent),
                call,
                ask: ask.clone(),
                rules: self.0.budgets.clone(),
                prices: Arc::clone(&self.0.prices),
                held_until: now + HELD,
                now,
            };
            let reserved = self.0.apply(command).await.map_err(store_error);
            if !matches!(reserved, Ok(Reserved::Unlimited | Reserved::Granted { .. }) | Err(_)) {
                turns.withdraw(call);
            }
            match reserved? {
                Reserved::Unlimited => return Ok(granted(ask.output.most.get(), None)),
                Reserved::Granted { output, warning } => return Ok(granted(output, warning)),
                Reserved::Refused(reason) => return Ok(refused(reason, v1::FailureKind::BudgetExceeded)),
                Reserved::Stale(reason) => return Ok(refused(reason, v1::FailureKind::Cancelled)),
                Reserved::Wait { reason, scope } => {
                    if Instant::now() >= until {
                        return Ok(wait(reason));
                    }
                    let kept = place.take().filter(|place| place.is_of(&scope));
                    let kept = kept.unwrap_or_else(|| self.0.budget_lines.join(scope, so_far));
                    kept.woken(Instant::now() + LOOK, until).await;
                    place = Some(kept);
                }
            }
        }
    }

    /// The attempt of a key; the inner error says why it has no authority.
    async fn authorised(
        &self,
        key: &AttemptKey,
        speaker: Option<AgentId>,
    ) -> Result<Result<Attempt, String>, ApiError> {
        let Some(view) = self.0.store.attempt(key.attempt).await.map_err(read_error)? else {
            return Ok(Err("no such attempt was started".to_owned()));
        };
        let attempt = view.attempt;
        let authority = attempt.authorise(&key.token.hash(), speaker.unwrap_or(attempt.agent));
        Ok(authority.map(|()| attempt).map_err(|gone| gone.to_string()))
    }
}
