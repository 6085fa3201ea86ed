//! A coordinator's gate that does as it is told.

use std::sync::atomic::{AtomicU32, Ordering};

use kage_core::id::{AttemptId, AttemptToken};
use kage_proto::client::Client;
use kage_proto::convert::agent::AttemptKey;
use kage_proto::v1;
use kage_proto::v1::model_gate_service_server::{ModelGateService, ModelGateServiceServer};
use kage_proto::v1::reserve_response::Answer;
use tonic::{Request, Response, Status};

use super::*;

/// What was told after calls, in order.
pub(super) struct Log {
    told: watch::Receiver<Vec<&'static str>>,
    refused: Arc<AtomicU32>,
}

impl Log {
    /// How many calls were refused.
    pub(super) fn refused(&self) -> u32 {
        self.refused.load(Ordering::Relaxed)
    }

    /// What was told, once there is so much of it.
    pub(super) async fn waited(mut self, count: usize) -> Vec<&'static str> {
        let heard = self.told.wait_for(|told| told.len() >= count);
        let mut told = tokio::time::timeout(PATIENCE, heard)
            .await
            .expect("it is told")
            .unwrap()
            .clone();
        // Tasks of their own tell it.
        told.sort_by_key(|word| *word != "started");
        told
    }
}

struct FakeGate {
    /// How many calls are granted.
    grants: Mutex<u32>,
    waits: Mutex<Vec<&'static str>>,
    /// Whether it never answers.
    silent: bool,
    output: u32,
    told: watch::Sender<Vec<&'static str>>,
    refused: Arc<AtomicU32>,
}

impl FakeGate {
    fn tell(&self, word: &'static str) {
        self.told.send_modify(|told| told.push(word));
    }
}

#[tonic::async_trait]
impl ModelGateService for FakeGate {
    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Result<Response<v1::ReserveResponse>, Status> {
        let request = request.into_inner();
        assert!(
            request.input_bound > 0 && request.output_most >= request.output_usual,
            "{request:?}"
        );
        assert!(
            request.account.contains('/') && !request.account.contains(REAL),
            "{request:?}"
        );
        if self.silent {
            std::future::pending::<()>().await;
        }
        let wait = self.waits.lock().unwrap().pop();
        let mut grants = self.grants.lock().unwrap();
        let answer = match (wait, *grants) {
            (Some(reason), _) => Answer::Wait(v1::ReserveWait {
                reason: reason.to_owned(),
                retry_after: None,
            }),
            (None, 0) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Answer::Refused(v1::ReserveRefused {
                    reason: "the budget of 1.00 USD is used up".to_owned(),
                    kind: v1::FailureKind::BudgetExceeded.into(),
                    retry_after: None,
                })
            }
            (None, left) => {
                *grants = left - 1;
                Answer::Granted(v1::ReserveGranted {
                    output_limit: self.output.min(request.output_usual),
                    held_for: None,
                    warning: String::new(),
                })
            }
        };
        Ok(Response::new(v1::ReserveResponse { answer: Some(answer) }))
    }

    async fn started(&self, _request: Request<v1::StartedRequest>) -> Result<Response<v1::StartedResponse>, Status> {
        self.tell("started");
        Ok(Response::new(v1::StartedResponse {}))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        self.tell(match request.into_inner().end() {
            v1::CallEnd::Whole => "committed whole",
            v1::CallEnd::Cut | v1::CallEnd::Unspecified => "committed cut",
        });
        Ok(Response::new(v1::CommitResponse {}))
    }

    async fn may_start(
        &self,
        _request: Request<v1::MayStartRequest>,
    ) -> Result<Response<v1::MayStartResponse>, Status> {
        Ok(Response::new(v1::MayStartResponse::default()))
    }

    async fn release(&self, _request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        self.tell("released");
        Ok(Response::new(v1::ReleaseResponse {}))
    }
}

/// Grants so many calls, with answers of at most `output` tokens.
pub(super) async fn granting(grants: u32, output: u32) -> (Gate, Log) {
    start(grants, output, Vec::new(), false).await
}

/// Lets the first call wait.
pub(super) async fn waiting_once(reason: &'static str) -> (Gate, Log) {
    start(1, 5000, vec![reason], false).await
}

/// Answers no question.
pub(super) async fn silent() -> (Gate, Log) {
    start(0, 5000, Vec::new(), true).await
}

async fn start(grants: u32, output: u32, waits: Vec<&'static str>, silent: bool) -> (Gate, Log) {
    let (told, log) = watch::channel(Vec::new());
    let refused = Arc::<AtomicU32>::default();
    let gate = FakeGate {
        grants: Mutex::new(grants),
        waits: Mutex::new(waits),
        silent,
        output,
        told,
        refused: Arc::clone(&refused),
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = tonic::service::Routes::new(ModelGateServiceServer::new(gate)).into_axum_router();
    // It ends with the test's runtime.
    drop(tokio::spawn(async move { axum::serve(listener, router).await }));
    let connect = Arc::new(move || Client::connect_lazy(&url, "token"));
    let random = Arc::new(rand::random::<u128>);
    let client = GateClient::new(connect, random, CancellationToken::new());
    let key = AttemptKey {
        attempt: AttemptId::from_random(1),
        token: AttemptToken::from_random(2),
    };
    (client.of(key), Log { told: log, refused })
}
