//! The coordinator's gate over gRPC. Questions wait for the answer, for as long as the attempt lives; what is
//! told goes out beside the call, a few times if it must, in tasks that the agent keeps.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use kage_core::call::{Ask, RateTold, Spent};
use kage_core::failure::FailureKind;
use kage_core::id::CallId;
use kage_proto::client::{Client, ConnectError};
use kage_proto::convert::agent::AttemptKey;
use kage_proto::convert::call as wire;
use kage_proto::convert::time::duration;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::reserve_response::Answer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{CallRefused, Granted};
use crate::backoff::Backoff;
use crate::ports::Random;

/// How long one question waits for its answer; the coordinator answers earlier that it has to wait.
const ANSWER: Duration = Duration::from_secs(30);
/// The shortest and the longest wait between two questions.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_secs(30);
/// How long it is tried to tell of a call. The event of it comes in any case.
const TELLING: Duration = Duration::from_secs(60);

/// How long the end of an attempt waits for that.
const LAST_TELLING: Duration = Duration::from_secs(10);
/// How long a grant may be on its way to somebody who does not wait for it any more.
const LATE: Duration = Duration::from_secs(1);

/// Makes a connection with the newest credentials, which connects when it is used.
pub type Connect = Arc<dyn Fn() -> Result<Client, ConnectError> + Send + Sync>;

/// A call that is being answered.
type Answering<T> = BoxFuture<'static, Result<T, tonic::Status>>;

/// The agent's side of the gate, shared by its attempts.
#[derive(Clone)]
pub struct GateClient {
    shared: Arc<Shared>,
}

struct Shared {
    connect: Connect,
    /// The connection that worked last.
    client: Mutex<Option<Client>>,
    random: Random,
    /// Cancelled when the agent ends.
    end: CancellationToken,
}

impl fmt::Debug for GateClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GateClient").finish_non_exhaustive()
    }
}

impl GateClient {
    /// What is told of calls is given up with `end`.
    #[must_use]
    pub fn new(connect: Connect, random: Random, end: CancellationToken) -> Self {
        Self {
            shared: Arc::new(Shared {
                connect,
                client: Mutex::new(None),
                random,
                end,
            }),
        }
    }

    /// The gate as an attempt uses it.
    #[must_use]
    pub fn of(&self, key: AttemptKey) -> Gate {
        Gate {
            client: self.clone(),
            key,
            telling: TaskTracker::new(),
        }
    }

    fn connected(&self) -> Result<Client, ApiError> {
        let mut kept = self.shared.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let client = (self.shared.connect)().map_err(|error| ApiError::Unavailable {
            message: error.to_string(),
            retry: None,
        })?;
        *kept = Some(client.clone());
        Ok(client)
    }

    /// The next call connects anew, with the credentials of then.
    fn broken(&self) {
        *self.shared.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Makes a call once, in bounded time.
    async fn once<T>(&self, call: impl FnOnce(Client) -> Answering<T> + Send) -> Result<T, ApiError> {
        let client = self.connected()?;
        let silent = || ApiError::Unavailable {
            message: "the coordinator does not answer".to_owned(),
            retry: None,
        };
        let answer = match tokio::time::timeout(ANSWER, call(client)).await {
            Ok(answer) => answer.map_err(ApiError::from),
            Err(_) => Err(silent()),
        };
        if let Err(ApiError::Unavailable { .. } | ApiError::Unauthenticated) = &answer {
            self.broken();
        }
        answer
    }

    /// Repeats a call in a task of its own until it is answered.
    fn tell(&self, tasks: &TaskTracker, call: impl Fn(Client) -> Answering<()> + Send + Sync + 'static) {
        let this = self.clone();
        let telling = async move {
            let mut backoff = Backoff::default();
            loop {
                match this.once(&call).await {
                    Ok(()) => return,
                    Err(error) if may_pass(&error) => {
                        tracing::debug!(%error, "a call is not told yet");
                    }
                    Err(error) => return tracing::debug!(%error, "a call is not told"),
                }
                tokio::time::sleep(backoff.next(&this.shared.random)).await;
            }
        };
        let end = self.shared.end.clone();
        tasks.spawn(async move {
            // What was not told by then counts by its event, or whole.
            let _told = end.run_until_cancelled(tokio::time::timeout(TELLING, telling)).await;
        });
    }
}

/// Whether the coordinator may answer the same call later.
fn may_pass(error: &ApiError) -> bool {
    error.is_transient() || matches!(error, ApiError::Internal { .. } | ApiError::Unauthenticated)
}

/// The gate of one attempt.
#[derive(Debug, Clone)]
pub struct Gate {
    client: GateClient,
    key: AttemptKey,
    /// What is being told of calls of the attempt.
    telling: TaskTracker,
}

impl Gate {
    /// Waits until everything is told of the attempt's calls, for a while: what is not known at the end of
    /// the attempt counts whole.
    pub async fn settled(&self) {
        self.telling.close();
        if tokio::time::timeout(LAST_TELLING, self.telling.wait()).await.is_err() {
            tracing::warn!("the coordinator does not know of the end of every call");
        }
    }

    /// Asks whether a program may start that makes its calls without asking. One whose coordinator does not answer
    /// in time may: what it reports is held to its budgets later.
    ///
    /// # Errors
    /// When a budget is used up already.
    pub async fn may_start(&self) -> Result<(), CallRefused> {
        let asking = async {
            let mut backoff = Backoff::default();
            loop {
                let request = wire::may_start(self.key.clone());
                let answer = self.client.once(|client: Client| -> Answering<_> {
                    Box::pin(async move { client.model_gate().may_start(request).await })
                });
                match answer.await {
                    Ok(answer) => return answer.into_inner().refused,
                    Err(error) if may_pass(&error) => {
                        tracing::debug!(%error, "a program waits for the coordinator");
                    }
                    // An older one does not ask, and one that knows the attempt no more ends it.
                    Err(error) => {
                        tracing::debug!(%error, "a program starts without an answer");
                        return String::new();
                    }
                }
                tokio::time::sleep(backoff.next(&self.client.shared.random)).await;
            }
        };
        let reason = tokio::time::timeout(ANSWER, asking).await.unwrap_or_default();
        if reason.is_empty() {
            return Ok(());
        }
        Err(CallRefused {
            kind: FailureKind::BudgetExceeded,
            reason,
            retry_after: None,
        })
    }

    pub(super) async fn reserve(&self, ask: Ask, mut waits: impl FnMut(&str) + Send) -> Result<Granted, CallRefused> {
        let id = CallId::from_random((self.client.shared.random)());
        let request = wire::reserve(self.key.clone(), id, ask.clone());
        let mut backoff = Backoff::default();
        let most = ask.output.most;
        let mut question = Question {
            gate: self,
            call: id,
            is_open: false,
        };
        let granted = move |output, warning, gate| Granted {
            id,
            ask,
            output,
            warning,
            gate,
        };
        loop {
            let request = request.clone();
            let asking = |client: Client| -> Answering<_> {
                Box::pin(async move { client.model_gate().reserve(request).await })
            };
            question.is_open = true;
            let answer = self.client.once(asking).await.map(|answer| answer.into_inner().answer);
            // Only an answer that was lost leaves open whether the call was granted.
            question.is_open = answer.is_err();
            match answer {
                Ok(Some(Answer::Granted(v1::ReserveGranted {
                    output_limit, warning, ..
                }))) => {
                    let output = NonZeroU32::new(output_limit).map_or(most, |limit| limit.min(most));
                    let warning = Some(warning).filter(|warning| !warning.is_empty());
                    return Ok(granted(output, warning, Some(self.clone())));
                }
                Ok(Some(Answer::Wait(wait))) => {
                    backoff.reset();
                    waits(&wait.reason);
                    let after = wait.retry_after.map(duration).unwrap_or_default();
                    tokio::time::sleep(after.clamp(SHORTEST, LONGEST)).await;
                }
                Ok(Some(Answer::Refused(refused))) => {
                    let kind = match v1::FailureKind::try_from(refused.kind) {
                        Ok(v1::FailureKind::BudgetExceeded) => FailureKind::BudgetExceeded,
                        Ok(v1::FailureKind::RateLimited) => FailureKind::RateLimited,
                        _ => FailureKind::Cancelled,
                    };
                    return Err(CallRefused {
                        kind,
                        reason: refused.reason,
                        retry_after: refused.retry_after.map(duration),
                    });
                }
                // A newer coordinator has an answer that this agent does not know.
                Ok(None) => {
                    waits("the coordinator's answer is not known here; update this agent");
                    tokio::time::sleep(LONGEST).await;
                }
                // An older one has no gate, and limits nothing.
                Err(ApiError::Unimplemented { .. }) => {
                    question.is_open = false;
                    return Ok(granted(most, None, None));
                }
                Err(error) if may_pass(&error) => {
                    tracing::debug!(%error, "a call waits for the coordinator");
                    waits("the coordinator cannot be reached, and without it no call is made");
                    tokio::time::sleep(backoff.next(&self.client.shared.random)).await;
                }
                Err(error) => {
                    return Err(CallRefused {
                        kind: FailureKind::Unknown,
                        reason: format!("the coordinator does not let the model be called: {error}"),
                        retry_after: None,
                    });
                }
            }
        }
    }

    /// Releases a call that nobody waits for any more. It is told twice: the first time it may be told before
    /// the call is granted.
    fn abandon(&self, call: CallId) {
        self.release(call, &RateTold::default());
        let gate = self.clone();
        let end = self.client.shared.end.clone();
        self.telling.spawn(async move {
            if end.run_until_cancelled(tokio::time::sleep(LATE)).await.is_some() {
                gate.release(call, &RateTold::default());
            }
        });
    }

    pub(super) fn started(&self, call: CallId, told: &RateTold) {
        let request = v1::StartedRequest {
            key: Some(self.key.clone().into()),
            call_id: call.to_string(),
            limits: wire::limits(told),
        };
        self.client.tell(&self.telling, move |client| {
            let request = request.clone();
            Box::pin(async move { client.model_gate().started(request).await.map(drop) })
        });
    }

    pub(super) fn commit(&self, call: CallId, spent: Spent, told: &RateTold) {
        let request = wire::commit(self.key.clone(), call, spent, told);
        self.client.tell(&self.telling, move |client| {
            let request = request.clone();
            Box::pin(async move { client.model_gate().commit(request).await.map(drop) })
        });
    }

    pub(super) fn release(&self, call: CallId, told: &RateTold) {
        let request = v1::ReleaseRequest {
            key: Some(self.key.clone().into()),
            call_id: call.to_string(),
            limits: wire::limits(told),
        };
        self.client.tell(&self.telling, move |client| {
            let request = request.clone();
            Box::pin(async move { client.model_gate().release(request).await.map(drop) })
        });
    }
}

/// The question for a call. Whoever stops waiting for its answer leaves nothing held back.
struct Question<'a> {
    gate: &'a Gate,
    call: CallId,
    /// Whether the call may be granted without anybody here knowing.
    is_open: bool,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        // Without a runtime nothing can be told.
        if self.is_open && tokio::runtime::Handle::try_current().is_ok() {
            self.gate.abandon(self.call);
        }
    }
}
