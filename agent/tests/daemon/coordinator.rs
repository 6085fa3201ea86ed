//! A coordinator in this process: it speaks the protocol, keeps everything it receives, blobs too,
//! and can cut connections, be silent, and refuse attempts.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use kage_core::contain::Tier;
use kage_core::id::{AttemptId, AttemptToken, Digest, SessionId, TaskId};
use kage_core::task::RepositoryRef;
use kage_proto::convert::agent::{AttemptKey, Work, WorkKind};
use kage_proto::convert::time::span;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use kage_proto::v1::append_request::Batch;
use kage_proto::v1::append_response::Result as Reply;
use kage_proto::v1::connect_request::Message as FromAgent;
use kage_proto::v1::connect_response::Message as ToAgent;
use kage_proto::v1::event_service_server::{EventService, EventServiceServer};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long tests wait for what must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) hellos: Vec<v1::Hello>,
    pub(crate) events: HashMap<String, Vec<v1::Event>>,
    pub(crate) output: HashMap<(String, i32), Vec<u8>>,
    pub(crate) accepted: Vec<String>,
    pub(crate) refused: Vec<v1::Refuse>,
    pub(crate) drained: bool,
    /// The error that every Hello gets.
    pub(crate) refuses_hello: Option<ApiError>,
    pub(crate) pongs: Vec<u64>,
    pub(crate) appends: u32,
    pub(crate) control: Option<mpsc::Sender<Result<v1::ConnectResponse, Status>>>,
    /// Append streams are cut after so many batches, each stream once.
    pub(crate) cut_after: Vec<u32>,
    /// Attempts whose writes are refused.
    pub(crate) rejected: HashSet<String>,
    /// True when heartbeats renew leases.
    pub(crate) renews: bool,
    /// True when events are acknowledged.
    pub(crate) acks: bool,
    /// Batches of events that were not.
    pub(crate) withheld: u32,
    pub(crate) lease_ttl: Duration,
    /// The session of all offered work; `None` = each has its own.
    pub(crate) session: Option<SessionId>,
    /// The repository of offered work.
    pub(crate) repository: Option<RepositoryRef>,
    /// The repository, served as plain files.
    pub(crate) git: Option<std::path::PathBuf>,
    /// Blobs by digest.
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    /// How many blobs are still refused.
    pub(crate) refuse_blobs: u32,
    /// True when no blob is answered.
    pub(crate) hold_blobs: bool,
}

#[derive(Clone)]
pub(crate) struct Coordinator {
    kept: Arc<Mutex<Kept>>,
    changed: Arc<watch::Sender<u64>>,
}

pub(crate) struct Served {
    pub(crate) coordinator: Coordinator,
    pub(crate) address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Served {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let coordinator = Coordinator {
            kept: Arc::new(Mutex::new(Kept {
                renews: true,
                acks: true,
                lease_ttl: Duration::from_secs(20),
                ..Kept::default()
            })),
            changed: Arc::new(watch::channel(0).0),
        };
        let mut serving = JoinSet::new();
        let blobs = axum::Router::new()
            .route("/v1/blobs/{project}/{digest}", get(get_blob).put(put_blob))
            .route("/git/default/repo/{*path}", get(get_git))
            .layer(DefaultBodyLimit::disable())
            .with_state(coordinator.clone());
        let router = tonic::service::Routes::new(AgentServiceServer::new(coordinator.clone()))
            .add_service(EventServiceServer::new(coordinator.clone()))
            .into_axum_router()
            .merge(blobs);
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            coordinator,
            address,
            _serving: serving,
        }
    }
}

impl Coordinator {
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Kept) -> T) -> T {
        let looked = look(&mut self.kept.lock().unwrap());
        self.changed.send_modify(|n| *n += 1);
        looked
    }

    /// Waits until `check` returns a value.
    pub(crate) async fn until<T>(&self, what: &str, mut check: impl FnMut(&Kept) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                if let Some(found) = check(&self.kept.lock().unwrap()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(DEADLINE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("{what} did not happen"),
        }
    }

    pub(crate) fn say(&self, message: ToAgent) {
        let control = self.with(|kept| kept.control.clone()).expect("an agent is connected");
        let message = v1::ConnectResponse { message: Some(message) };
        control.try_send(Ok(message)).unwrap();
    }

    /// Ends the control session for good.
    pub(crate) fn shut_out(&self, why: &str) {
        let control = self.with(|kept| kept.control.take()).expect("an agent is connected");
        control.try_send(Err(Status::permission_denied(why))).unwrap();
    }

    /// Offers work and grants it as soon as it is accepted. Needs a connected agent.
    pub(crate) async fn grant(&self, n: u128, kind: WorkKind) -> String {
        let id = self.offer(n, kind);
        self.until("accept", |kept| kept.accepted.contains(&id).then_some(()))
            .await;
        self.say(ToAgent::Granted(v1::Granted { attempt_id: id.clone() }));
        id
    }

    pub(crate) fn offer(&self, n: u128, kind: WorkKind) -> String {
        self.offer_in(Tier::T0, n, kind)
    }

    /// Offers work that demands a tier of containment.
    pub(crate) fn offer_in(&self, contain: Tier, n: u128, kind: WorkKind) -> String {
        let work = Work {
            task: TaskId::from_random(n),
            session: self.with(|kept| kept.session).unwrap_or(SessionId::from_random(n)),
            attempt: 1,
            project: kage_core::id::ProjectId::default(),
            repository: self.with(|kept| kept.repository.clone()),
            environment: kage_core::task::TaskEnvironment::default(),
            contain,
            kind,
        };
        let key = AttemptKey {
            attempt: AttemptId::from_random(n),
            token: AttemptToken::from_random(n),
        };
        let id = key.attempt.to_string();
        self.say(ToAgent::Offer(Box::new(v1::Offer {
            // The attempt's id serves as the offer's too.
            offer_id: id.clone(),
            key: Some(key.into()),
            work: Some(work.into()),
        })));
        id
    }

    pub(crate) async fn connected(&self, times: usize) {
        self.until("hello", |kept| (kept.hellos.len() >= times).then_some(()))
            .await;
    }

    /// Waits for the end of an attempt and returns its events.
    pub(crate) async fn finished(&self, attempt: &str) -> Vec<v1::Event> {
        self.until("the end of the attempt", |kept| {
            let events = kept.events.get(attempt)?;
            let last = events.last()?;
            matches!(last.body, Some(v1::event::Body::Finished(_))).then(|| events.clone())
        })
        .await
    }
}

async fn get_git(State(coordinator): State<Coordinator>, Path(path): Path<String>) -> Result<Vec<u8>, StatusCode> {
    let repository = coordinator.with(|kept| kept.git.clone()).ok_or(StatusCode::NOT_FOUND)?;
    std::fs::read(repository.join(path)).map_err(|_| StatusCode::NOT_FOUND)
}

async fn get_blob(
    State(coordinator): State<Coordinator>,
    Path((_, digest)): Path<(String, String)>,
) -> Result<Vec<u8>, StatusCode> {
    let blob = coordinator.with(|kept| kept.blobs.get(&digest).cloned());
    blob.ok_or(StatusCode::NOT_FOUND)
}

async fn put_blob(
    State(coordinator): State<Coordinator>,
    Path((_, digest)): Path<(String, String)>,
    body: axum::body::Bytes,
) -> StatusCode {
    if coordinator.with(|kept| kept.hold_blobs) {
        std::future::pending::<()>().await;
    }
    coordinator.with(|kept| {
        if kept.refuse_blobs > 0 {
            kept.refuse_blobs -= 1;
            return StatusCode::FORBIDDEN;
        }
        assert_eq!(Digest::of(&body).as_str(), digest);
        kept.blobs.insert(digest, body.into());
        StatusCode::CREATED
    })
}

#[tonic::async_trait]
impl AgentService for Coordinator {
    type ConnectStream = ReceiverStream<Result<v1::ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let mut inbound = request.into_inner();
        let (control, stream) = mpsc::channel(64);
        let own = self.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                own.hear(message, &control);
            }
        });
        tasks.detach_all();
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Coordinator {
    fn hear(&self, message: v1::ConnectRequest, control: &mpsc::Sender<Result<v1::ConnectResponse, Status>>) {
        let say = |message| {
            let message = v1::ConnectResponse { message: Some(message) };
            // The agent may be gone already.
            drop(control.try_send(Ok(message)));
        };
        self.with(|kept| match message.message.unwrap() {
            FromAgent::Hello(hello) => {
                kept.hellos.push(hello);
                if let Some(refusal) = &kept.refuses_hello {
                    // The agent may be gone already.
                    drop(control.try_send(Err(refusal.clone().into())));
                    return;
                }
                kept.control = Some(control.clone());
                say(ToAgent::Welcome(v1::Welcome {
                    protocol: 1,
                    heartbeat_interval: Some(span(Duration::from_millis(50))),
                    lease_ttl: Some(span(kept.lease_ttl)),
                    max_detached: Some(span(Duration::from_secs(600))),
                    stop: Vec::new(),
                }));
            }
            FromAgent::Accept(accept) => kept.accepted.push(accept.offer_id),
            FromAgent::Refuse(refuse) => kept.refused.push(refuse),
            FromAgent::Heartbeat(heartbeat) => say(ToAgent::HeartbeatAck(v1::HeartbeatAck {
                sequence: heartbeat.sequence,
                renewed: if kept.renews {
                    heartbeat.running.into_iter().map(|key| key.attempt_id).collect()
                } else {
                    Vec::new()
                },
            })),
            FromAgent::Draining(v1::Draining {}) => kept.drained = true,
            FromAgent::Pong(pong) => kept.pongs.push(pong.sequence),
        });
    }
}

#[tonic::async_trait]
impl EventService for Coordinator {
    type AppendStream = ReceiverStream<Result<v1::AppendResponse, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        assert!(request.metadata().get("x-kage-agent").is_some());
        assert!(request.metadata().get("authorization").is_some());
        let mut inbound = request.into_inner();
        let (replies, stream) = mpsc::channel(64);
        let own = self.clone();
        let cut = self.with(|kept| {
            kept.appends += 1;
            kept.cut_after.pop()
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut taken = 0;
            while let Ok(Some(request)) = inbound.message().await {
                if cut.is_some_and(|cut| taken >= cut) {
                    return;
                }
                taken += 1;
                // Every third batch is stored and its acknowledgement lost with the cut.
                if let Some(reply) = own.store(request)
                    && (cut.is_none() || taken % 3 != 0)
                    && replies.send(Ok(reply)).await.is_err()
                {
                    return;
                }
            }
        });
        tasks.detach_all();
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Coordinator {
    fn store(&self, request: v1::AppendRequest) -> Option<v1::AppendResponse> {
        let attempt_id = request.key.unwrap().attempt_id;
        self.with(|kept| {
            let result = if kept.rejected.contains(&attempt_id) {
                Reply::Rejected(v1::Rejected {
                    reason: "the attempt has ended".to_owned(),
                })
            } else {
                match request.batch.unwrap() {
                    Batch::Events(batch) => {
                        if !kept.acks {
                            kept.withheld += 1;
                            return None;
                        }
                        let events = kept.events.entry(attempt_id.clone()).or_default();
                        for event in batch.events {
                            if event.seq == events.len() as u64 + 1 {
                                events.push(event);
                            }
                        }
                        Reply::AckedSeq(events.len() as u64)
                    }
                    Batch::Output(batch) => {
                        assert!(batch.data.len() <= kage_proto::MAX_INLINE);
                        let output = kept.output.entry((attempt_id.clone(), batch.stream)).or_default();
                        let offset = usize::try_from(batch.offset).unwrap();
                        if let Some(known) = output.len().checked_sub(offset)
                            && let Some(new) = batch.data.get(known..)
                        {
                            output.extend_from_slice(new);
                        }
                        Reply::AckedOutput(v1::OutputAck {
                            stream: batch.stream,
                            offset: output.len() as u64,
                        })
                    }
                }
            };
            Some(v1::AppendResponse {
                attempt_id,
                result: Some(result),
            })
        })
    }
}
