//! AgentService: the control session of an agent, from its Hello to the end of its connection. The
//! board has the known agents; the store has the durable state.

use std::sync::Arc;
use std::time::Duration;

use kage_core::attempt::EndReason;
use kage_core::fleet::{AdapterInfo, Agent};
use kage_core::id::{AgentId, AttemptId, BootId, OfferId};
use kage_core::job::{JobState, JobType};
use kage_proto::convert::agent::{AttemptKey, Hello, attempt_keys};
use kage_proto::convert::parse;
use kage_proto::convert::time::span;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::agent_service_server::AgentService;
use kage_proto::v1::connect_request::Message as FromAgent;
use kage_proto::v1::connect_response::Message as ToAgent;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::incumbent::{Turns, make_way};
use self::introduction::{admittance, agreed_protocol, labels};
use super::principal;
use crate::board::{Board, Joined, Outbox, Serial, drain_message, stop_message};
use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::duties::{dispatch, telling};
use crate::refusals::store_error;
use crate::store::{
    Claim, EndAttempts, Ending, QueuedJob, RecordAgent, RenewLeases, Renewed, SetDraining, Start, StartAttempt,
};
use crate::telemetry;

/// Messages that wait for the network. An agent that lets them pile up is cut off.
const QUEUED_MESSAGES: usize = 1024;
/// How long a connection may take to send Hello.
const HELLO: Duration = Duration::from_secs(10);
/// A heartbeat of an idle agent changes no lease. It is stored at this interval nevertheless, so
/// that the time of the last contact survives a restart.
const SEEN_STORED: Duration = Duration::from_secs(5 * 60);
/// Most bytes kept of an agent's reason for not continuing.
const MAX_REASON: usize = 300;
/// The most attempts an agent may run at once.
const MAX_SLOTS: u32 = 1024;

mod incumbent;
mod introduction;

#[derive(Debug)]
pub(crate) struct Agents {
    coordinator: Arc<Coordinator>,
    turns: Arc<Turns>,
}

impl Agents {
    pub(crate) fn new(coordinator: Arc<Coordinator>) -> Self {
        Self {
            coordinator,
            turns: Arc::default(),
        }
    }
}

#[tonic::async_trait]
impl AgentService for Agents {
    type ConnectStream = ReceiverStream<Result<v1::ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (outbox, stream) = mpsc::channel(QUEUED_MESSAGES);
        let (coordinator, turns) = (Arc::clone(&self.coordinator), Arc::clone(&self.turns));
        let caller = principal(&request);
        self.coordinator.tasks.spawn(async move {
            if let Err(error) = converse(coordinator, turns, caller, request.into_inner(), outbox.clone()).await {
                tracing::warn!(%error, "control session ended");
                outbox.send(Err(error.into())).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn converse(
    coordinator: Arc<Coordinator>,
    turns: Arc<Turns>,
    caller: Principal,
    mut inbound: Streaming<v1::ConnectRequest>,
    outbox: Outbox,
) -> Result<(), ApiError> {
    let revoked = revocation(&coordinator, &caller);
    let first = tokio::time::timeout(HELLO, inbound.message())
        .await
        .map_err(|_| ApiError::invalid("message", "no hello came in time"))?;
    let hello = match first?.and_then(|request| request.message) {
        Some(FromAgent::Hello(hello)) => Hello::try_from(hello).map_err(|invalid| invalid.within("hello"))?,
        Some(
            FromAgent::Accept(_)
            | FromAgent::Refuse(_)
            | FromAgent::Heartbeat(_)
            | FromAgent::Draining(_)
            | FromAgent::Pong(_),
        )
        | None => {
            return Err(ApiError::invalid("message", "the first message must be a hello"));
        }
    };
    caller.may_speak_for(hello.agent)?;
    let protocol = agreed_protocol(&hello)?;
    // Boxed: otherwise an idle agent would hold this memory for days.
    let opening = Box::pin(async {
        let _turn = make_way(&coordinator, &turns, (hello.agent, hello.boot), &outbox).await?;
        Session::open(Arc::clone(&coordinator), &caller, hello, protocol, outbox).await
    });
    let (session, joined) = opening.await?;
    let agent = session.agent;
    tracing::info!(%agent, name = session.name, "agent connected");
    let result = session.run(inbound, joined.cut, revoked).await;
    coordinator.board().leave(agent, joined.serial, Instant::now());
    coordinator.placeable.notify_one();
    tracing::info!(%agent, "agent disconnected");
    result
}

/// Cancelled when the caller is shut out; never, when it shows the owner's token.
fn revocation(coordinator: &Coordinator, caller: &Principal) -> CancellationToken {
    let agent = match caller {
        Principal::Agent { id, .. } => coordinator.identities.enrolled(*id),
        Principal::Owner | Principal::OwnAgent { .. } | Principal::Person { .. } | Principal::Stranger => None,
    };
    agent.map_or_else(CancellationToken::new, |agent| agent.revoked)
}

struct Session {
    coordinator: Arc<Coordinator>,
    agent: AgentId,
    boot: BootId,
    name: String,
    serial: Serial,
    outbox: Outbox,
    /// When the store last heard that the agent is there.
    seen_stored: Instant,
    starts: JoinSet<()>,
}

impl Session {
    /// Admits the agent: ends the attempts of its older starts, extends those that it still runs,
    /// and tells it which of them to stop.
    async fn open(
        coordinator: Arc<Coordinator>,
        caller: &Principal,
        hello: Hello,
        protocol: u32,
        outbox: Outbox,
    ) -> Result<(Self, Joined), ApiError> {
        let (id, boot, answers_pings) = (hello.agent, hello.boot, hello.answers_pings);
        let context_deltas = hello.context_deltas;
        let said = Agent {
            id,
            name: hello.name.clone(),
            boot,
            labels: labels(caller, hello.labels),
            adapters: hello.adapters.into_iter().map(bounded).collect(),
            slots: hello.slots.min(MAX_SLOTS),
            pid: hello.pid,
            version: hello.version,
            draining: false,
            cordoned: false,
            machine: hello.machine,
            contained: hello.contained,
            admittance: admittance(caller, coordinator.token_agents),
            seen_at: coordinator.now(),
        };
        let agent = coordinator
            .apply(RecordAgent { agent: said })
            .await
            .map_err(store_error)?;
        let older = EndAttempts {
            which: Ending::OtherBoots { agent: id, boot },
            reason: EndReason::AgentRestarted,
            now: coordinator.now(),
        };
        coordinator.apply(older).await.map_err(store_error)?;
        let renewed = coordinator
            .apply(renewal(&coordinator, id, boot, hello.running))
            .await
            .map_err(store_error)?;
        let welcome = v1::Welcome {
            protocol,
            heartbeat_interval: Some(span(coordinator.timings.heartbeat)),
            lease_ttl: Some(span(coordinator.timings.lease_ttl)),
            max_detached: Some(span(coordinator.timings.max_detached)),
            stop: renewed.refused.iter().map(ToString::to_string).collect(),
        };
        send(&outbox, ToAgent::Welcome(welcome))?;
        let joined = {
            let mut board = coordinator.board();
            let joined = enter(&mut board, caller, agent, outbox.clone(), &renewed.renewed);
            if answers_pings {
                board.answers_pings(id, joined.serial);
            }
            board.reads_context_deltas(id, joined.serial, context_deltas);
            joined
        };
        if !joined.forgotten.is_empty() {
            let which = Ending::These(joined.forgotten.clone());
            dispatch::end(Arc::clone(&coordinator), which, EndReason::AgentGone).await;
        }
        coordinator.placeable.notify_one();
        telling::hand_over_to(&coordinator, id, &renewed.renewed).await;
        let session = Self {
            coordinator,
            agent: id,
            boot,
            name: hello.name,
            serial: joined.serial,
            outbox,
            seen_stored: Instant::now(),
            starts: JoinSet::new(),
        };
        Ok((session, joined))
    }

    async fn run(
        mut self,
        mut inbound: Streaming<v1::ConnectRequest>,
        cut: CancellationToken,
        revoked: CancellationToken,
    ) -> Result<(), ApiError> {
        let closing = self.coordinator.closing.clone();
        let result = loop {
            tokio::select! {
                // Ends of the session come before inputs that may never run out.
                biased;
                () = revoked.cancelled() => break Err(ApiError::PermissionDenied {
                    message: "the agent was revoked".to_owned(),
                }),
                () = cut.cancelled() => break Err(ApiError::Conflict {
                    message: "another connection of this agent took over, or it did not read".to_owned(),
                }),
                () = closing.cancelled() => break Ok(()),
                () = self.outbox.closed() => break Ok(()),
                Some(_) = self.starts.join_next() => {}
                message = inbound.message() => match message {
                    Ok(Some(request)) => {
                        if let Err(error) = Box::pin(self.handle(request)).await {
                            break Err(error);
                        }
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => {
                        tracing::debug!(%error, "control session broke off");
                        break Ok(());
                    }
                },
            }
        };
        // A start that is being stored is seen to its end.
        while self.starts.join_next().await.is_some() {}
        result
    }

    async fn handle(&mut self, request: v1::ConnectRequest) -> Result<(), ApiError> {
        let now = Instant::now();
        self.coordinator
            .board()
            .heard(self.agent, self.serial, self.coordinator.now(), now);
        match request.message {
            Some(FromAgent::Accept(accept)) => self.accept(parse("accept.offer_id", &accept.offer_id)?),
            Some(FromAgent::Refuse(refuse)) => {
                let offer: OfferId = parse("refuse.offer_id", &refuse.offer_id)?;
                tracing::info!(agent = %self.agent, reason = refuse.reason, "offer refused");
                telemetry::offer_refused();
                let mut reason = refuse.reason;
                reason.truncate(reason.floor_char_boundary(MAX_REASON));
                self.coordinator.board().refuse(offer, self.agent, reason, now);
                self.coordinator.placeable.notify_one();
            }
            Some(FromAgent::Heartbeat(heartbeat)) => self.heartbeat(heartbeat).await?,
            Some(FromAgent::Draining(v1::Draining {})) => self.draining().await?,
            Some(FromAgent::Hello(_)) => return Err(ApiError::invalid("message", "a second hello")),
            // A pong needs no further handling. The other case: a newer agent sends a message that
            // an older coordinator does not know.
            Some(FromAgent::Pong(_)) | None => {}
        }
        self.coordinator.board().carried_out(self.agent, self.serial);
        Ok(())
    }

    /// Stores the attempt beside the loop, so that several starts share a commit.
    fn accept(&mut self, offer: OfferId) {
        let coordinator = Arc::clone(&self.coordinator);
        let (agent, boot, serial) = (self.agent, self.boot, self.serial);
        let (accepted, contained) = {
            // Of the same connection: another one may tell of another tier.
            let mut board = coordinator.board();
            (board.accept(offer, agent, serial), board.contained(agent))
        };
        let Some((job, offered)) = accepted else {
            // Withdrawn meanwhile: the agent gets no start, and forgets the offer.
            return;
        };
        let name = self.name.clone();
        let resumes = coordinator.board().resumes(agent, &job.adapter);
        self.starts.spawn(async move {
            let attempt = offered.attempt;
            let now = coordinator.now();
            let command = StartAttempt {
                task: job.task,
                job: job.job,
                attempt,
                number: offered.number,
                token_hash: offered.token_hash,
                agent,
                boot,
                agent_name: name,
                resumes,
                contained,
                lease_until: now + coordinator.timings.lease_ttl,
                slack: coordinator.patience.slack,
                now,
            };
            match coordinator.apply(command).await {
                Ok(Start::Started) => {
                    telemetry::attempt_started(JobType::of(job.subject, &job.kind));
                    let begins = coordinator
                        .board()
                        .started(agent, serial, &job, attempt, Instant::now());
                    let hears = coordinator.board().hears(agent, &job.adapter);
                    if begins && hears {
                        // What was said since the attempt was stored.
                        telling::hand_over_to(&coordinator, agent, &[attempt]).await;
                    }
                    if !begins {
                        let which = Ending::These(vec![attempt]);
                        dispatch::end(coordinator, which, EndReason::AgentGone).await;
                    }
                }
                Ok(Start::NotStartable) => not_started(&coordinator, agent, attempt, job).await,
                Err(error) => {
                    tracing::error!(%attempt, error = &error as &dyn std::error::Error, "cannot start an attempt");
                    // It may have been stored nevertheless. Ending it is right in both cases.
                    let which = Ending::These(vec![attempt]);
                    dispatch::end(Arc::clone(&coordinator), which, EndReason::AgentGone).await;
                    not_started(&coordinator, agent, attempt, job).await;
                }
            }
        });
    }

    async fn heartbeat(&mut self, heartbeat: v1::Heartbeat) -> Result<(), ApiError> {
        let running = attempt_keys(heartbeat.running)?;
        let idle = running.is_empty() && self.seen_stored.elapsed() < SEEN_STORED;
        let outcome = if idle {
            Renewed::default()
        } else {
            let command = renewal(&self.coordinator, self.agent, self.boot, running);
            let outcome = self.coordinator.apply(command).await.map_err(store_error)?;
            self.seen_stored = Instant::now();
            outcome
        };
        let mut hindrance = heartbeat.hindrance;
        hindrance.truncate(hindrance.floor_char_boundary(MAX_REASON));
        {
            let mut board = self.coordinator.board();
            board.renewed(self.agent, &outcome.renewed, Instant::now());
            let hindrance = Some(hindrance).filter(|text| !text.is_empty());
            board.hindered(self.agent, self.serial, hindrance);
        }
        for attempt in outcome.refused {
            self.say(stop_message(attempt, "the attempt has no authority any more"))?;
        }
        let renewed = outcome.renewed.iter().map(AttemptId::to_string).collect();
        let sequence = heartbeat.sequence;
        send(
            &self.outbox,
            ToAgent::HeartbeatAck(v1::HeartbeatAck { sequence, renewed }),
        )
    }

    async fn draining(&mut self) -> Result<(), ApiError> {
        // Nothing is offered to it while that is stored.
        self.coordinator.board().drains(self.agent);
        let command = SetDraining {
            request: None,
            agent: self.agent,
            draining: true,
            now: self.coordinator.now(),
        };
        self.coordinator.apply(command).await.map_err(store_error)?;
        Ok(())
    }

    fn say(&self, message: v1::ConnectResponse) -> Result<(), ApiError> {
        self.outbox.try_send(Ok(message)).map_err(|_| not_reading())
    }
}

/// Puts an agent on the board, and tells it what it did not hear while it was away.
fn enter(board: &mut Board, caller: &Principal, agent: Agent, outbox: Outbox, renewed: &[AttemptId]) -> Joined {
    let now = Instant::now();
    let id = agent.id;
    let joined = board.join(agent, outbox, renewed, now);
    let project = match caller {
        Principal::Agent { project, .. } => Some(project.clone()),
        Principal::Owner | Principal::OwnAgent { .. } | Principal::Person { .. } | Principal::Stranger => None,
    };
    board.scope(id, project);
    board.renewed(id, renewed, now);
    for attempt in board.to_stop(renewed) {
        board.tell(id, stop_message(attempt, "the session was cancelled"));
    }
    if board.agent(id).is_some_and(|agent| agent.draining) {
        board.tell(id, drain_message());
    }
    joined
}

/// An adapter with no more slots of its own than an agent may have.
fn bounded(adapter: AdapterInfo) -> AdapterInfo {
    AdapterInfo {
        slots: adapter.slots.min(MAX_SLOTS),
        ..adapter
    }
}

/// An accepted job did not become an attempt. It waits again if the store says so: its agent may
/// have been restarted meanwhile, which is no fault of the job.
async fn not_started(coordinator: &Coordinator, agent: AgentId, attempt: AttemptId, job: QueuedJob) {
    {
        let mut board = coordinator.board();
        board.not_started(agent, &job);
        board.tell(agent, stop_message(attempt, "the job moved on before it was started"));
    }
    let waits = match coordinator.store.work(job.task, job.job).await {
        Ok(work) => work.and_then(|work| match work.job.state {
            JobState::Queued { not_before } => Some(QueuedJob {
                not_before,
                affinity: work.job.affinity,
                ..job
            }),
            JobState::Later { .. } | JobState::Leased { .. } | JobState::Done => None,
        }),
        Err(error) => {
            tracing::error!(job = %job.job, error = &error as &dyn std::error::Error, "cannot be read");
            // If it moved on, its next start reports that.
            Some(job)
        }
    };
    if let Some(job) = waits {
        coordinator.board().enqueue(job);
    }
    coordinator.placeable.notify_one();
}

fn renewal(coordinator: &Coordinator, agent: AgentId, boot: BootId, running: Vec<AttemptKey>) -> RenewLeases {
    let now = coordinator.now();
    let claims = running.into_iter().map(|key| Claim {
        attempt: key.attempt,
        token_hash: key.token.hash(),
    });
    RenewLeases {
        agent,
        boot,
        claims: claims.collect(),
        lease_until: now + coordinator.timings.lease_ttl,
        now,
    }
}

fn send(outbox: &Outbox, message: ToAgent) -> Result<(), ApiError> {
    let message = v1::ConnectResponse { message: Some(message) };
    outbox.try_send(Ok(message)).map_err(|_| not_reading())
}

fn not_reading() -> ApiError {
    ApiError::ResourceExhausted {
        message: "the agent does not read what it is sent".to_owned(),
        retry: None,
    }
}

#[cfg(test)]
mod tests;
