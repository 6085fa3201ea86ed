//! EventService: the stream on which an agent delivers events and output of all its attempts.

use std::collections::BTreeMap;
use std::sync::Arc;

use kage_core::id::AgentId;
use kage_proto::blob::AGENT_HEADER;
use kage_proto::convert::InvalidField;
use kage_proto::convert::agent::AttemptKey;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::append_request::Batch;
use kage_proto::v1::append_response;
use kage_proto::v1::event_service_server::EventService;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::internal;
use crate::coordinator::Coordinator;
use crate::delivery::append::{AttemptIntake, Responses, response};
use crate::output::OutputAck;

/// Answers that wait for the network. An agent that does not read them is not read from.
const QUEUED_RESPONSES: usize = 256;
/// Batches of one attempt that wait for its intake, of at most 64 KiB each. When full, the
/// connection is not read.
const QUEUED_BATCHES: usize = 16;

#[derive(Debug)]
pub(crate) struct Events(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl EventService for Events {
    type AppendStream = ReceiverStream<Result<v1::AppendResponse, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let caller = super::principal(&request);
        let named = request.metadata().get(AGENT_HEADER);
        let agent = caller.agent(named.map(|value| value.to_str().unwrap_or_default()))?;
        let (responses, stream) = mpsc::channel(QUEUED_RESPONSES);
        let (acks, acknowledged) = mpsc::channel(QUEUED_RESPONSES);
        let delivery = Delivery {
            coordinator: Arc::clone(&self.0),
            agent,
            intakes: BTreeMap::new(),
            running: JoinSet::new(),
            acks,
            responses: responses.clone(),
        };
        self.0.tasks.spawn(forward(acknowledged, responses));
        self.0.tasks.spawn(delivery.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn forward(mut acks: mpsc::Receiver<OutputAck>, responses: Responses) {
    while let Some(ack) = acks.recv().await {
        let message = match ack.length {
            Ok(offset) => {
                let stream = v1::OutputStream::from(ack.stream).into();
                let acked = v1::OutputAck { stream, offset };
                Ok(response(ack.attempt, append_response::Result::AckedOutput(acked)))
            }
            Err(error) => Err(internal("output cannot be written", &error).into()),
        };
        if responses.send(message).await.is_err() {
            return;
        }
    }
}

struct Delivery {
    coordinator: Arc<Coordinator>,
    agent: Option<AgentId>,
    intakes: BTreeMap<AttemptKey, mpsc::Sender<Batch>>,
    running: JoinSet<AttemptKey>,
    acks: mpsc::Sender<OutputAck>,
    responses: Responses,
}

impl Delivery {
    async fn run(mut self, mut inbound: Streaming<v1::AppendRequest>) {
        loop {
            tokio::select! {
                // Ends of the delivery come before inputs that may never run out.
                biased;
                () = self.coordinator.closing.cancelled() => break,
                () = self.responses.closed() => break,
                Some(ended) = self.running.join_next() => {
                    if let Ok(key) = ended {
                        self.forget(&key);
                    }
                }
                message = inbound.message() => match message {
                    Ok(Some(request)) => {
                        if let Err(invalid) = self.deliver(request).await {
                            self.responses.send(Err(ApiError::from(invalid).into())).await.ok();
                            break;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "delivery broke off");
                        break;
                    }
                },
            }
        }
        // Read batches are handled and answered before the stream ends.
        self.intakes.clear();
        while self.running.join_next().await.is_some() {}
    }

    async fn deliver(&mut self, request: v1::AppendRequest) -> Result<(), InvalidField> {
        let key = request.key.ok_or_else(|| InvalidField::new("key", "is missing"))?;
        let key = AttemptKey::try_from(key).map_err(|invalid| invalid.within("key"))?;
        let mut batch = request.batch.ok_or_else(|| InvalidField::new("batch", "is missing"))?;
        loop {
            let intake = self.intake(&key);
            match intake.send(batch).await {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendError(back)) => {
                    // The intake ended with its attempt; a new one answers late batches.
                    batch = back;
                    self.intakes.remove(&key);
                }
            }
        }
    }

    fn intake(&mut self, key: &AttemptKey) -> mpsc::Sender<Batch> {
        if let Some(intake) = self.intakes.get(key) {
            return intake.clone();
        }
        let (batches, queue) = mpsc::channel(QUEUED_BATCHES);
        let intake = AttemptIntake::new(
            Arc::clone(&self.coordinator),
            key.clone(),
            self.agent,
            self.acks.clone(),
        );
        self.running.spawn(intake.run(queue, self.responses.clone()));
        self.intakes.insert(key.clone(), batches.clone());
        batches
    }

    fn forget(&mut self, key: &AttemptKey) {
        if self.intakes.get(key).is_some_and(mpsc::Sender::is_closed) {
            self.intakes.remove(key);
        }
    }
}
