//! An agent made of calls: it takes sessions of the adapter `agent`, delivers invented events and
//! bytes, and records what it was given, what it sent and what was acknowledged. It can be put to
//! sleep, so that it continues with outdated knowledge when it wakes.

use std::collections::BTreeMap;
use std::time::Duration;

use kage_core::time::Timestamp;
use kage_proto::blob::AGENT_HEADER;
use kage_proto::client::Client;
use kage_proto::convert::time::stamp;
use kage_proto::v1;
use kage_proto::v1::append_request::Batch;
use kage_proto::v1::append_response::Result as Reply;
use kage_proto::v1::connect_request::Message as ToCoordinator;
use kage_proto::v1::connect_response::Message as FromCoordinator;
use kage_proto::v1::event::Body;
use kage_proto::{PROTOCOL, PROTOCOL_MIN};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::record::Record;
use crate::history::{JobKey, What, Write};

/// The adapter whose sessions scripted agents, which are made of calls, take.
pub const SCRIPTED_AGENT: &str = "calls";

/// The interval of an agent's actions.
const BEAT: Duration = Duration::from_millis(15);
/// Heartbeats are sent every so many beats.
const HEARTBEAT: u64 = 13;
/// Messages in flight; a connection that accepts no more is given up.
const QUEUED: usize = 64;
/// Events of a session before its last.
const EVENTS: u64 = 6;
/// Bytes of output of a session.
const BYTES: usize = 3000;
/// Bytes per message.
const PIECE: usize = 700;
const STDOUT: i32 = v1::OutputStream::Stdout as i32;

#[derive(Debug)]
pub struct ScriptedAgent {
    name: String,
    client: Client,
    record: Record,
    agent_id: String,
    boot_id: String,
    held: BTreeMap<String, Held>,
    offered: BTreeMap<String, Held>,
}

#[derive(Debug, Clone)]
struct Held {
    key: v1::AttemptKey,
    job: JobKey,
    number: u32,
    sent: u64,
    acked: u64,
    printed: usize,
    kept: usize,
}

impl Held {
    fn body(&self, seq: u64) -> Body {
        match seq {
            1 => Body::PhaseChanged(v1::PhaseChanged {
                phase: v1::Phase::Working.into(),
            }),
            3 => Body::UsageRecorded(v1::UsageRecorded {
                model: "invented".to_owned(),
                usage: Some(v1::Usage {
                    output: 10 + u64::from(self.number),
                    ..v1::Usage::default()
                }),
                ..v1::UsageRecorded::default()
            }),
            last if last == EVENTS + 1 => Body::Finished(v1::Finished {
                outcome: Some(v1::finished::Outcome::Claimed(v1::Claimed {})),
            }),
            _ => Body::Activity(v1::Activity {
                summary: format!("step {seq} of attempt {}", self.number),
            }),
        }
    }

    /// Its output, different in every attempt.
    fn output(&self, from: usize, to: usize) -> Vec<u8> {
        let id = self.key.attempt_id.as_bytes();
        (from..to)
            .map(|at| id[at % id.len()].wrapping_add((at / id.len()) as u8))
            .collect()
    }

    fn is_delivered(&self) -> bool {
        self.acked == EVENTS + 1 && self.kept == BYTES
    }
}

struct Links {
    control: mpsc::Sender<v1::ConnectRequest>,
    orders: tonic::Streaming<v1::ConnectResponse>,
    delivery: mpsc::Sender<v1::AppendRequest>,
    replies: tonic::Streaming<v1::AppendResponse>,
    beat: u64,
}

impl ScriptedAgent {
    /// An agent that is not connected yet.
    #[must_use]
    pub fn new(name: &str, client: Client, record: Record) -> Self {
        Self {
            name: name.to_owned(),
            client,
            agent_id: record.draw(),
            boot_id: record.draw(),
            record,
            held: BTreeMap::new(),
            offered: BTreeMap::new(),
        }
    }

    /// Works until it is told to stop; while `asleep` is true it neither reads nor sends.
    pub async fn run(mut self, asleep: watch::Receiver<bool>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if let Ok(links) = self.connect().await {
                let mut asleep = asleep.clone();
                let working = self.work(links, &mut asleep);
                // The connection broke, or the coordinator ended it.
                stop.run_until_cancelled(working).await;
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    async fn connect(&mut self) -> Result<Links, tonic::Status> {
        self.offered.clear();
        for held in self.held.values_mut() {
            (held.sent, held.printed) = (held.acked, held.kept);
        }
        let (control, messages) = mpsc::channel(QUEUED);
        let hello = v1::Hello {
            agent_id: self.agent_id.clone(),
            boot_id: self.boot_id.clone(),
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL,
            name: self.name.clone(),
            slots: 2,
            adapters: vec![v1::AdapterInfo {
                name: SCRIPTED_AGENT.to_owned(),
                version: "1".to_owned(),
                ..v1::AdapterInfo::default()
            }],
            running: self.held.values().map(|held| held.key.clone()).collect(),
            pid: std::process::id(),
            version: "1".to_owned(),
            ..v1::Hello::default()
        };
        send(&control, ToCoordinator::Hello(hello)).await?;
        let orders = self.client.agent().connect(ReceiverStream::new(messages)).await?;
        let (delivery, batches) = mpsc::channel(QUEUED);
        let mut request = tonic::Request::new(ReceiverStream::new(batches));
        let name = self.agent_id.parse().expect("an id is printable");
        request.metadata_mut().insert(AGENT_HEADER, name);
        let replies = self.client.events().append(request).await?;
        Ok(Links {
            control,
            orders: orders.into_inner(),
            delivery,
            replies: replies.into_inner(),
            beat: 0,
        })
    }

    async fn work(&mut self, mut links: Links, asleep: &mut watch::Receiver<bool>) -> Result<(), tonic::Status> {
        let mut beat = tokio::time::interval(BEAT);
        loop {
            if *asleep.borrow() {
                asleep.wait_for(|asleep| !*asleep).await.ok();
                // It does not know how long it slept: it continues first of all.
                self.deliver(&links).await?;
            }
            tokio::select! {
                biased;
                order = links.orders.message() => match order? {
                    Some(order) => self.order(&links, order).await?,
                    None => return Ok(()),
                },
                reply = links.replies.message() => match reply? {
                    Some(reply) => self.reply(reply),
                    None => return Ok(()),
                },
                _ = beat.tick() => {
                    links.beat += 1;
                    if links.beat % HEARTBEAT == 1 {
                        let running = self.held.values().map(|held| held.key.clone()).collect();
                        let sequence = links.beat;
                        let beat = v1::Heartbeat {
                            sequence,
                            running,
                            ..v1::Heartbeat::default()
                        };
                        send(&links.control, ToCoordinator::Heartbeat(beat)).await?;
                    }
                    self.deliver(&links).await?;
                }
            }
        }
    }

    async fn order(&mut self, links: &Links, order: v1::ConnectResponse) -> Result<(), tonic::Status> {
        match order.message {
            Some(FromCoordinator::Offer(offer)) => {
                let (Some(key), Some(work)) = (offer.key, offer.work) else {
                    return Err(tonic::Status::internal("an offer without key or work"));
                };
                let Some(v1::work::Kind::Session(session)) = work.kind else {
                    let reason = "a scripted agent works on sessions".to_owned();
                    let offer_id = offer.offer_id;
                    return send(&links.control, ToCoordinator::Refuse(v1::Refuse { offer_id, reason })).await;
                };
                let held = Held {
                    job: JobKey {
                        task: work.task_id,
                        session: session.name,
                        job: "session".to_owned(),
                    },
                    number: work.attempt,
                    sent: 0,
                    acked: 0,
                    printed: 0,
                    kept: 0,
                    key,
                };
                self.offered.insert(held.key.attempt_id.clone(), held);
                let offer_id = offer.offer_id;
                send(&links.control, ToCoordinator::Accept(v1::Accept { offer_id })).await?;
            }
            Some(FromCoordinator::Granted(granted)) => {
                if let Some(held) = self.offered.remove(&granted.attempt_id) {
                    let what = What::Granted {
                        attempt: granted.attempt_id.clone(),
                        job: held.job.clone(),
                        number: held.number,
                        token: held.key.token.clone(),
                    };
                    self.record.add(&self.name, what);
                    self.held.insert(granted.attempt_id, held);
                }
            }
            Some(FromCoordinator::Stop(stop)) => self.lose(&stop.attempt_id),
            Some(FromCoordinator::Welcome(welcome)) => {
                for attempt in welcome.stop {
                    self.lose(&attempt);
                }
            }
            // A scripted agent renews nothing, never drains, and has no files for a checkpoint.
            Some(_) | None => {}
        }
        Ok(())
    }

    fn lose(&mut self, attempt: &str) {
        self.offered.remove(attempt);
        if self.held.remove(attempt).is_some() {
            self.record.add(&self.name, What::Rejected(attempt.to_owned()));
        }
    }

    /// Sends the next item of each attempt: its bytes before its last event.
    async fn deliver(&mut self, links: &Links) -> Result<(), tonic::Status> {
        for (attempt, held) in &mut self.held {
            if held.printed < BYTES {
                let to = (held.printed + PIECE).min(BYTES);
                let bytes = held.output(held.printed, to);
                let offset = held.printed as u64;
                let write = Write::Output {
                    stream: STDOUT,
                    offset,
                    bytes: bytes.clone(),
                };
                self.record.add(&self.name, What::Sent(attempt.clone(), write));
                let batch = Batch::Output(v1::OutputBatch {
                    stream: STDOUT,
                    offset,
                    data: bytes.into(),
                });
                append(links, held, batch).await?;
                held.printed = to;
            }
            let may_finish = held.printed == BYTES;
            if held.sent < EVENTS || (held.sent == EVENTS && may_finish) {
                let seq = held.sent + 1;
                self.record
                    .add(&self.name, What::Sent(attempt.clone(), Write::Events(seq)));
                let event = v1::Event {
                    seq,
                    at: Some(stamp(Timestamp::from_millis(1))),
                    body: Some(held.body(seq)),
                };
                append(links, held, Batch::Events(v1::EventBatch { events: vec![event] })).await?;
                held.sent = seq;
            }
        }
        Ok(())
    }

    fn reply(&mut self, reply: v1::AppendResponse) {
        let attempt = reply.attempt_id;
        let Some(held) = self.held.get_mut(&attempt) else {
            return;
        };
        match reply.result {
            Some(Reply::AckedSeq(seq)) => {
                self.record.add(&self.name, What::AckedEvents(attempt.clone(), seq));
                held.acked = held.acked.max(seq);
                held.sent = held.sent.max(seq);
            }
            Some(Reply::AckedOutput(ack)) => {
                let what = What::AckedOutput(attempt.clone(), ack.stream, ack.offset);
                self.record.add(&self.name, what);
                held.kept = held.kept.max(usize::try_from(ack.offset).unwrap_or(BYTES));
                held.printed = held.printed.max(held.kept);
            }
            Some(Reply::Rejected(_)) => return self.lose(&attempt),
            None => {}
        }
        if held.is_delivered() {
            self.held.remove(&attempt);
        }
    }
}

async fn send(to: &mpsc::Sender<v1::ConnectRequest>, message: ToCoordinator) -> Result<(), tonic::Status> {
    let message = v1::ConnectRequest { message: Some(message) };
    to.send(message)
        .await
        .map_err(|_| tonic::Status::unavailable("the control session is over"))
}

async fn append(links: &Links, held: &Held, batch: Batch) -> Result<(), tonic::Status> {
    let request = v1::AppendRequest {
        key: Some(held.key.clone()),
        batch: Some(batch),
    };
    let sent = links.delivery.send(request).await;
    sent.map_err(|_| tonic::Status::unavailable("the delivery is over"))
}
