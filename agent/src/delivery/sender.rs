//! Delivery: one task that sends events and output over a connection of its own, takes
//! acknowledgements, and resumes after the last of them whenever the connection broke. The ledger
//! decides what to send; this file moves bytes.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kage_core::event::OutputStream;
use kage_core::id::{AgentId, AttemptId};
use kage_proto::blob::AGENT_HEADER;
use kage_proto::client::ConnectError;
use kage_proto::convert::event::output_stream;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::append_request::Batch;
use kage_proto::v1::append_response::Result as Reply;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;

use crate::backoff::Backoff;
use crate::delivery::ledger::{Ledger, Next, Progress};
use crate::delivery::live::{Live, StopReason};
use crate::delivery::outbox::{Outbox, OutboxChange, Settled};
use crate::delivery::output;
use crate::identity::trust::Keyring;
use crate::ports::{Blocking, Random};

/// Messages waiting for the connection. Few, so that an event never waits behind much output.
const OUTBOUND: usize = 4;
/// Time limit of connecting.
const CONNECT: Duration = Duration::from_secs(10);
/// Silence while acknowledgements are due after which a connection counts as dead.
const SILENCE: Duration = Duration::from_secs(30);
/// An idle connection is closed after this time when there is nothing to deliver.
const IDLE: Duration = Duration::from_secs(60);
/// Most changes handled in one round.
const CHANGES: usize = 64;

pub(crate) struct DeliveryParts {
    pub(crate) ledger: Ledger,
    pub(crate) changes: mpsc::Receiver<Vec<OutboxChange>>,
    pub(crate) settled: Arc<Settled>,
    pub(crate) outbox: Outbox,
    pub(crate) live: Live,
    pub(crate) output_dir: PathBuf,
    pub(crate) agent: AgentId,
    pub(crate) coordinator_url: String,
    pub(crate) keyring: Keyring,
    pub(crate) random: Random,
    pub(crate) blocking: Blocking,
}

/// What is left to deliver, for tasks that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Something of an earlier start of this agent is undelivered.
    pub(crate) leftovers: bool,
    /// True when there are undelivered events or output.
    pub(crate) any: bool,
}

/// Why a connection for delivery could not be made, or ended.
#[derive(Debug, thiserror::Error)]
enum DeliveryLinkError {
    #[error("cannot connect")]
    Connect(#[source] ConnectError),
    #[error("the coordinator does not accept events")]
    Call(#[source] ApiError),
    #[error("the coordinator did not answer in time")]
    Silent,
    #[error("the coordinator closed the stream")]
    Closed,
    #[error("the agent's id cannot be sent")]
    Header,
}

struct Connected {
    outbound: mpsc::Sender<v1::AppendRequest>,
    inbound: tonic::Streaming<v1::AppendResponse>,
}

enum DeliveryLink {
    Down { until: Instant },
    Connecting(BoxFuture<'static, Result<Connected, DeliveryLinkError>>),
    Up(Box<Connected>),
}

enum DeliveryInput {
    Changes,
    NoMoreChanges,
    Retry,
    Connected(Result<Connected, DeliveryLinkError>),
    Reply(Result<Option<v1::AppendResponse>, tonic::Status>),
    Room(Option<mpsc::OwnedPermit<v1::AppendRequest>>),
    Overdue,
    Idle,
    Shutdown,
}

pub(crate) struct Delivery {
    parts: DeliveryParts,
    link: DeliveryLink,
    backoff: Backoff,
    files: HashMap<(AttemptId, OutputStream), Arc<File>>,
    backlog: watch::Sender<Backlog>,
    heard: Instant,
}

impl Delivery {
    /// A delivery that has not started, and its backlog.
    pub(crate) fn new(parts: DeliveryParts) -> (Self, watch::Receiver<Backlog>) {
        let backlog = Backlog {
            leftovers: parts.ledger.has_leftovers(),
            any: !parts.ledger.is_empty(),
        };
        let (sender, receiver) = watch::channel(backlog);
        let delivery = Self {
            parts,
            link: DeliveryLink::Down { until: Instant::now() },
            backoff: Backoff::default(),
            files: HashMap::new(),
            backlog: sender,
            heard: Instant::now(),
        };
        (delivery, receiver)
    }

    /// Delivers until `shutdown` is cancelled.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        for attempt in self.parts.ledger.already_delivered() {
            let progress = self.parts.ledger.drop_attempt(attempt);
            self.settle(attempt, progress).await;
        }
        let mut changes = Vec::new();
        loop {
            let input = self.input(&mut changes, &shutdown).await;
            match input {
                DeliveryInput::Changes => {
                    for change in changes.drain(..).flatten() {
                        let progress = self.parts.ledger.apply(change);
                        self.give_back(progress);
                    }
                }
                DeliveryInput::Retry => self.link = DeliveryLink::Connecting(Box::pin(self.connect())),
                DeliveryInput::Connected(Ok(connected)) => {
                    self.heard = Instant::now();
                    self.parts.ledger.resend();
                    self.link = DeliveryLink::Up(Box::new(connected));
                    tracing::debug!("delivery connected");
                }
                DeliveryInput::Connected(Err(error)) => self.down(&error),
                DeliveryInput::Reply(Ok(Some(reply))) => {
                    self.heard = Instant::now();
                    // Only now the connection is known to work: a coordinator that accepts
                    // everything and stores nothing, for lack of space, must not be sent the same
                    // again and again at once.
                    // want of room, must not be sent the same again and again at once.
                    self.backoff.reset();
                    self.reply(reply).await;
                }
                DeliveryInput::Reply(Ok(None)) | DeliveryInput::Room(None) => self.down(&DeliveryLinkError::Closed),
                DeliveryInput::Reply(Err(status)) => self.down(&DeliveryLinkError::Call(status.into())),
                DeliveryInput::Room(Some(permit)) => self.send_next(permit).await,
                DeliveryInput::Overdue => self.down(&DeliveryLinkError::Silent),
                DeliveryInput::Idle => self.link = DeliveryLink::Down { until: Instant::now() },
                DeliveryInput::NoMoreChanges | DeliveryInput::Shutdown => return,
            }
            self.backlog.send_if_modified(|backlog| {
                let now = Backlog {
                    leftovers: backlog.leftovers && self.parts.ledger.has_leftovers(),
                    any: !self.parts.ledger.is_empty(),
                };
                std::mem::replace(backlog, now) != now
            });
        }
    }

    async fn input(&mut self, changes: &mut Vec<Vec<OutboxChange>>, shutdown: &CancellationToken) -> DeliveryInput {
        let received = self.parts.changes.recv_many(changes, CHANGES);
        let shutdown = shutdown.cancelled();
        match &mut self.link {
            DeliveryLink::Down { until } => {
                tokio::select! {
                    biased;
                    () = shutdown => DeliveryInput::Shutdown,
                    // A fleet without anything to report needs no connections.
                    () = tokio::time::sleep_until(*until), if !self.parts.ledger.is_empty() => DeliveryInput::Retry,
                    count = received => DeliveryInput::changes(count),
                }
            }
            DeliveryLink::Connecting(connecting) => {
                tokio::select! {
                    biased;
                    () = shutdown => DeliveryInput::Shutdown,
                    result = connecting => DeliveryInput::Connected(result),
                    count = received => DeliveryInput::changes(count),
                }
            }
            DeliveryLink::Up(connected) => {
                let ready = self.parts.ledger.has_next();
                let due = self.parts.ledger.awaits_acks();
                let idle = self.parts.ledger.is_empty();
                tokio::select! {
                    biased;
                    () = shutdown => DeliveryInput::Shutdown,
                    reply = connected.inbound.message() => DeliveryInput::Reply(reply),
                    count = received => DeliveryInput::changes(count),
                    permit = connected.outbound.clone().reserve_owned(), if ready => DeliveryInput::Room(permit.ok()),
                    () = tokio::time::sleep_until(self.heard + SILENCE), if due => DeliveryInput::Overdue,
                    () = tokio::time::sleep_until(self.heard + IDLE), if idle => DeliveryInput::Idle,
                }
            }
        }
    }

    fn connect(&self) -> impl Future<Output = Result<Connected, DeliveryLinkError>> + Send + 'static {
        let url = self.parts.coordinator_url.clone();
        let keyring = self.parts.keyring.clone();
        let agent = self.parts.agent;
        async move {
            let connecting = async {
                let client = keyring.connect(&url).await.map_err(DeliveryLinkError::Connect)?;
                let (outbound, messages) = mpsc::channel(OUTBOUND);
                let mut request = tonic::Request::new(ReceiverStream::new(messages));
                let name: MetadataValue<_> = agent.to_string().parse().map_err(|_| DeliveryLinkError::Header)?;
                request.metadata_mut().insert(AGENT_HEADER, name);
                let response = client.events().append(request).await;
                let inbound = response
                    .map_err(|status| DeliveryLinkError::Call(status.into()))?
                    .into_inner();
                Ok(Connected { outbound, inbound })
            };
            tokio::time::timeout(CONNECT, connecting)
                .await
                .unwrap_or(Err(DeliveryLinkError::Silent))
        }
    }

    fn down(&mut self, error: &DeliveryLinkError) {
        let wait = self.backoff.next(&self.parts.random);
        tracing::debug!(
            error = error as &dyn std::error::Error,
            ?wait,
            "delivery is not connected"
        );
        self.link = DeliveryLink::Down {
            until: Instant::now() + wait,
        };
    }

    async fn send_next(&mut self, permit: mpsc::OwnedPermit<v1::AppendRequest>) {
        let was_due = self.parts.ledger.awaits_acks();
        let (key, batch) = match self.parts.ledger.next() {
            Next::Nothing => return,
            Next::Events(key, events) => (key, Batch::Events(v1::EventBatch { events })),
            Next::Output {
                key,
                stream,
                offset,
                length,
            } => match self.read(key.attempt, stream, offset, length).await {
                Ok(data) => (
                    key,
                    Batch::Output(v1::OutputBatch {
                        stream: v1::OutputStream::from(stream).into(),
                        offset,
                        data,
                    }),
                ),
                Err(error) => {
                    // The file is gone or damaged; without it the attempt can never be complete.
                    tracing::error!(attempt = %key.attempt, stream = stream.as_str(), %error, "output is lost");
                    let reason = format!("its output was lost on the agent: {error}");
                    self.drop_attempt(key.attempt, reason).await;
                    return;
                }
            },
        };
        permit.send(v1::AppendRequest {
            key: Some(key.into()),
            batch: Some(batch),
        });
        // Silence counts from the moment at which an answer is due, however much is sent after it.
        if !was_due {
            self.heard = Instant::now();
        }
    }

    async fn read(
        &mut self,
        attempt: AttemptId,
        stream: OutputStream,
        offset: u64,
        length: usize,
    ) -> std::io::Result<bytes::Bytes> {
        let open = self.files.get(&(attempt, stream)).cloned();
        let path = output::path(&self.parts.output_dir, attempt, stream);
        let reading = self.parts.blocking.run(move || {
            let file = match open {
                Some(file) => file,
                None => Arc::new(File::open(path)?),
            };
            output::read(&file, offset, length).map(|bytes| (file, bytes))
        });
        let (file, bytes) = reading.await.map_err(std::io::Error::other)??;
        self.files.entry((attempt, stream)).or_insert(file);
        Ok(bytes)
    }

    async fn reply(&mut self, reply: v1::AppendResponse) {
        let Ok(attempt) = reply.attempt_id.parse::<AttemptId>() else {
            tracing::warn!(attempt = reply.attempt_id, "acknowledgement names no attempt");
            return;
        };
        match reply.result {
            Some(Reply::AckedSeq(seq)) => {
                let progress = self.parts.ledger.acked_events(attempt, seq);
                if let Some(seq) = progress.acked {
                    self.parts.settled.events(attempt, seq);
                }
                self.settle(attempt, progress).await;
            }
            Some(Reply::AckedOutput(ack)) => {
                let Ok(stream) = output_stream("stream", ack.stream) else {
                    tracing::warn!(%attempt, stream = ack.stream, "acknowledgement names no stream");
                    return;
                };
                let progress = self.parts.ledger.acked_output(attempt, stream, ack.offset);
                if let Some(offset) = progress.acked {
                    self.parts.settled.output(attempt, stream, offset);
                }
                self.settle(attempt, progress).await;
            }
            Some(Reply::Rejected(rejected)) => {
                tracing::info!(%attempt, reason = rejected.reason, "attempt has no authority any more");
                self.drop_attempt(attempt, rejected.reason).await;
            }
            // A newer coordinator sends a reply that this agent does not know.
            None => tracing::debug!(%attempt, "unknown reply"),
        }
    }

    async fn drop_attempt(&mut self, attempt: AttemptId, reason: String) {
        self.parts.live.stop(attempt, StopReason::Ordered(reason));
        let progress = self.parts.ledger.drop_attempt(attempt);
        self.settle(attempt, progress).await;
    }

    async fn settle(&mut self, attempt: AttemptId, progress: Progress) {
        self.give_back(progress);
        if !progress.delivered {
            return;
        }
        self.parts.settled.forget(attempt);
        self.parts.live.remove(attempt);
        if progress.had_output {
            for stream in OutputStream::ALL {
                self.files.remove(&(attempt, stream));
            }
            let dir = self.parts.output_dir.clone();
            let removing = self.parts.blocking.run(move || output::remove(&dir, attempt));
            if let Ok(Err(error)) = removing.await {
                tracing::warn!(%attempt, %error, "delivered output was not removed");
            }
        }
    }

    fn give_back(&self, progress: Progress) {
        if progress.event_bytes > 0 {
            self.parts.outbox.event_space().give_bytes(progress.event_bytes);
        }
        if progress.output_bytes > 0 {
            self.parts.outbox.output_space().give_bytes(progress.output_bytes);
        }
    }
}

impl DeliveryInput {
    const fn changes(count: usize) -> Self {
        if count == 0 { Self::NoMoreChanges } else { Self::Changes }
    }
}
