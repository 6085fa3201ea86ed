//! A coordinator in this process and agents written against the generated client.

use std::collections::VecDeque;
use std::mem::{Discriminant, discriminant};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kage_coordinator::{Config, Ports, RunError, run};
use kage_core::access::Capabilities;
use kage_core::checkpoint::Resumes;
use kage_core::event::{AttemptOutcome, Event, EventBody, OutputStream};
use kage_core::fleet::AdapterInfo;
use kage_core::id::{AgentId, BootId, Digest};
use kage_core::task::{Assignment, TaskSpec};
use kage_core::time::Timestamp;
use kage_proto::client::{Client, Credentials, PemFile};
use kage_proto::convert::agent::{AttemptKey, Hello, Work};
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::connect_request::Message as FromAgent;
use kage_proto::v1::connect_response::Message as ToAgent;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

/// A test that takes longer hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for a future, and fails when it takes too long.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen in {DEADLINE:?}"),
    }
}

pub(crate) struct Cluster {
    pub(crate) address: SocketAddr,
    pub(crate) url: String,
    /// The owner's token.
    pub(crate) credentials: Credentials,
    pub(crate) token: String,
    pub(crate) client: Client,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), RunError>>,
}

impl Cluster {
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, |_, _| {}).await
    }

    /// The error of a start that must fail, with its causes.
    pub(crate) async fn refused(dir: &Path) -> String {
        let running = run(config(dir), Ports::system(), CancellationToken::new());
        let error = soon("the refusal", running).await.expect_err("it does not start");
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }

    pub(crate) async fn start_with(dir: &Path, change: impl FnOnce(&mut Config, &mut Ports)) -> Self {
        let mut config = config(dir);
        let (ready, address) = oneshot::channel();
        let mut ports = Ports {
            on_ready: Some(ready),
            ..Ports::system()
        };
        change(&mut config, &mut ports);
        let tls = config.speaks_tls();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(run(config, ports, shutdown.clone()));
        let address = soon("start", address).await.expect("it starts");
        let token = std::fs::read_to_string(dir.join("token")).unwrap();
        let mut credentials = Credentials::bearer(&token);
        let mut url = format!("http://{address}");
        if tls {
            credentials = credentials.trusting(PemFile::read(dir.join("tls/ca.pem")).unwrap());
            url = format!("https://127.0.0.1:{}", address.port());
        }
        let client = Client::connect_as(&url, &credentials).await.unwrap();
        Self {
            address,
            url,
            credentials,
            token,
            client,
            shutdown,
            running,
        }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        soon("shutdown", self.running).await.unwrap().unwrap();
    }

    /// The error with which it stops by itself.
    pub(crate) async fn died(self) -> String {
        let error = soon("the end", self.running).await.unwrap().expect_err("it fails");
        error.to_string()
    }

    pub(crate) async fn create(&self, spec: TaskSpec) -> v1::Task {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let request = v1::CreateTaskRequest {
            request_id: format!("create-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            spec: Some(spec.into()),
            // Tests name what waits, also before an agent connects.
            wait_for_agent: true,
            origin: None,
        };
        let reply = self.client.tasks().create_task(request).await.unwrap();
        reply.into_inner().task.unwrap()
    }

    pub(crate) async fn get(&self, task_id: &str) -> v1::Task {
        let request = v1::GetTaskRequest {
            task_id: task_id.to_owned(),
            view: v1::TaskView::Full.into(),
        };
        self.client
            .tasks()
            .get_task(request)
            .await
            .unwrap()
            .into_inner()
            .task
            .unwrap()
    }

    pub(crate) async fn watch(&self, task_id: &str, cursor: &str, follow: bool) -> Streaming<v1::WatchTaskResponse> {
        let request = v1::WatchTaskRequest {
            task_id: task_id.to_owned(),
            cursor: cursor.to_owned(),
            output: vec![v1::OutputStream::Stdout.into()],
            session: String::new(),
            follow,
        };
        self.client.tasks().watch_task(request).await.unwrap().into_inner()
    }

    /// Stores a blob of the default project.
    pub(crate) async fn put(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let bearer = self.bearer();
        let path = format!("PUT /v1/blobs/default/{digest}");
        let (status, _) = self.http(&path, &[("authorization", bearer.as_str())], bytes).await;
        assert!(matches!(status, 200 | 201), "{status}");
        digest
    }

    /// Stores a base context, as a client does; the file that it is in, below the coordinator's data.
    pub(crate) async fn put_context(&self, data: &Path, text: &str) -> PathBuf {
        let digest = Digest::of(text.as_bytes());
        let put = v1::PutContextRequest {
            digest: digest.to_string(),
            content: text.to_owned().into(),
            ..v1::PutContextRequest::default()
        };
        self.client.contexts().put_context(put).await.unwrap();
        let file = data
            .join("blobs/default")
            .join(&digest.as_str()[..2])
            .join(digest.as_str());
        assert!(file.exists());
        file
    }

    /// An HTTP/1.1 request; the status and the body that came back.
    pub(crate) async fn http(&self, head: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let mut request = format!("{head} HTTP/1.1\r\nhost: kage\r\nconnection: close\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut reply = Vec::new();
        soon("reply", stream.read_to_end(&mut reply)).await.unwrap();
        let end = reply.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let status = std::str::from_utf8(&reply[9..12]).unwrap().parse().unwrap();
        (status, reply[end + 4..].to_vec())
    }

    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }
}

fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.timings.heartbeat = Duration::from_millis(100);
    // Most tests are about other things than which agents may verify.
    config.token_agents = Capabilities::ALL;
    config.timings.grace = Duration::from_millis(200);
    config.timings.refusal = Duration::from_millis(200);
    config.timings.drain = Duration::from_millis(500);
    config
}

/// Which job an offer is of.
fn job_of(offer: &v1::Offer) -> Option<(&str, &str, Discriminant<v1::work::Kind>)> {
    let work = offer.work.as_ref()?;
    Some((&work.task_id, &work.session_id, discriminant(work.kind.as_ref()?)))
}

pub(crate) fn spec(sessions: &[&str]) -> TaskSpec {
    TaskSpec {
        project: Default::default(),
        prompt: "do it".into(),
        prompt_blob: None,
        repository: None,
        context_base: None,
        assignments: sessions
            .iter()
            .map(|name| Assignment {
                name: name.parse().unwrap(),
                adapter: "noop".parse().unwrap(),
                model: None,
                context_delta: None,
                requirements: Default::default(),
                fallbacks: Vec::new(),
                timeout: None,
            })
            .collect(),
        policy: Default::default(),
        fresh_baseline: false,
        labels: kage_core::task::Labels::new(),
        environment: kage_core::task::TaskEnvironment::default(),
    }
}

/// An agent that follows the test.
pub(crate) struct FakeAgent {
    pub(crate) hello: Hello,
    control: mpsc::Sender<v1::ConnectRequest>,
    messages: Streaming<v1::ConnectResponse>,
    delivery: mpsc::Sender<v1::AppendRequest>,
    answers: Streaming<v1::AppendResponse>,
    /// Messages that arrived while another one was awaited.
    early: VecDeque<ToAgent>,
    pub(crate) welcome: v1::Welcome,
}

pub(crate) fn hello(n: u128, slots: u32) -> Hello {
    Hello {
        agent: AgentId::from_random(n),
        boot: BootId::from_random(n),
        protocols: 1..=1,
        name: format!("fake-{n}"),
        slots,
        labels: Default::default(),
        adapters: vec![AdapterInfo {
            name: "noop".parse().unwrap(),
            version: String::new(),
            unavailable: None,
            resumes: Resumes::None,
            access: None,
            slots: 0,
            hears: false,
        }],
        running: Vec::new(),
        pid: 1,
        version: "test".into(),
        answers_pings: false,
        machine: None,
        contained: kage_core::contain::Containment::NOTHING,
        context_deltas: 1,
    }
}

/// A job that the agent was granted.
#[derive(Clone)]
pub(crate) struct Granted {
    pub(crate) key: AttemptKey,
    pub(crate) work: Work,
}

impl FakeAgent {
    pub(crate) async fn connect(cluster: &Cluster, hello: Hello) -> Self {
        Self::connect_by(&cluster.client, hello).await
    }

    /// Sends Hello, and is refused.
    pub(crate) async fn refused_by(client: &Client, hello: Hello) -> ApiError {
        let (control, requests) = mpsc::channel(1);
        control.send(from_agent(FromAgent::Hello(hello.into()))).await.unwrap();
        let messages = client.agent().connect(ReceiverStream::new(requests)).await.unwrap();
        let answer = soon("an answer", messages.into_inner().message()).await;
        answer.expect_err("it is not let in").into()
    }

    /// Answers every ping, and nothing else, until `future` is done.
    pub(crate) async fn answering<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        loop {
            let message = tokio::select! {
                done = &mut future => return done,
                message = self.messages.message() => message,
            };
            match message.unwrap().expect("the session goes on").message.unwrap() {
                ToAgent::Ping(v1::Ping { sequence }) => self.say(FromAgent::Pong(v1::Pong { sequence })).await,
                other => self.early.push_back(other),
            }
        }
    }

    pub(crate) async fn connect_by(client: &Client, hello: Hello) -> Self {
        let (control, requests) = mpsc::channel(64);
        control
            .send(from_agent(FromAgent::Hello(hello.clone().into())))
            .await
            .unwrap();
        let messages = client.agent().connect(ReceiverStream::new(requests)).await.unwrap();
        let (delivery, batches) = mpsc::channel(64);
        let answers = client.events().append(ReceiverStream::new(batches)).await.unwrap();
        let mut agent = Self {
            hello,
            control,
            messages: messages.into_inner(),
            delivery,
            answers: answers.into_inner(),
            early: VecDeque::new(),
            welcome: v1::Welcome::default(),
        };
        let ToAgent::Welcome(welcome) = agent.next().await else {
            panic!("the first message is a welcome");
        };
        agent.welcome = welcome;
        agent
    }

    async fn receive(&mut self) -> ToAgent {
        let message = soon("a message to the agent", self.messages.message()).await;
        message.unwrap().expect("the session goes on").message.unwrap()
    }

    pub(crate) async fn next(&mut self) -> ToAgent {
        match self.early.pop_front() {
            Some(message) => message,
            None => self.receive().await,
        }
    }

    /// The next message of a kind; others are kept for later.
    async fn first<T>(&mut self, is: impl Fn(&ToAgent) -> Option<T>) -> T {
        if let Some(at) = self.early.iter().position(|message| is(message).is_some()) {
            return self.early.remove(at).and_then(|message| is(&message)).unwrap();
        }
        loop {
            let message = self.receive().await;
            match is(&message) {
                Some(found) => return found,
                None => self.early.push_back(message),
            }
        }
    }

    pub(crate) async fn delivery_end(&mut self) -> Option<tonic::Status> {
        loop {
            match soon("the end of the delivery", self.answers.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    }

    pub(crate) async fn end(&mut self) -> Option<tonic::Status> {
        loop {
            match soon("the end of the session", self.messages.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    }

    pub(crate) async fn offer(&mut self) -> v1::Offer {
        self.first(|message| match message {
            ToAgent::Offer(offer) => Some(v1::Offer::clone(offer)),
            _ => None,
        })
        .await
    }

    pub(crate) async fn say(&self, message: FromAgent) {
        self.control.send(from_agent(message)).await.unwrap();
    }

    /// Accepts the next offer. One that is withdrawn meanwhile is replaced by another of the same job.
    pub(crate) async fn take(&mut self) -> Granted {
        let mut offer = self.offer().await;
        loop {
            self.say(FromAgent::Accept(v1::Accept {
                offer_id: offer.offer_id.clone(),
            }))
            .await;
            let key = AttemptKey::try_from(offer.key.clone().unwrap()).unwrap();
            let attempt = key.attempt.to_string();
            let job = job_of(&offer);
            let instead = self
                .first(|message| match message {
                    ToAgent::Granted(granted) if granted.attempt_id == attempt => Some(None),
                    ToAgent::Offer(other) if job_of(other) == job => Some(Some(v1::Offer::clone(other))),
                    _ => None,
                })
                .await;
            match instead {
                Some(other) => offer = other,
                None => {
                    let work = Work::try_from(offer.work.unwrap()).unwrap();
                    return Granted { key, work };
                }
            }
        }
    }

    pub(crate) async fn send_events(&self, key: &AttemptKey, first: u64, bodies: Vec<EventBody>) {
        let events = (first..).zip(bodies).map(|(seq, body)| Event {
            seq,
            at: Timestamp::from_millis(seq),
            body,
        });
        let batch = v1::EventBatch {
            events: events.map(Into::into).collect(),
        };
        self.deliver(key, v1::append_request::Batch::Events(batch)).await;
    }

    pub(crate) async fn send_output(&self, key: &AttemptKey, offset: u64, data: &[u8]) {
        let batch = v1::OutputBatch {
            stream: v1::OutputStream::from(OutputStream::Stdout).into(),
            offset,
            data: data.to_vec().into(),
        };
        self.deliver(key, v1::append_request::Batch::Output(batch)).await;
    }

    async fn deliver(&self, key: &AttemptKey, batch: v1::append_request::Batch) {
        let request = v1::AppendRequest {
            key: Some(key.clone().into()),
            batch: Some(batch),
        };
        // The coordinator may have ended the delivery by now; whoever waits for an answer sees that.
        self.delivery.send(request).await.ok();
    }

    pub(crate) async fn answer(&mut self) -> v1::append_response::Result {
        let answer = soon("an answer to a delivery", self.answers.message()).await;
        answer.unwrap().expect("the delivery goes on").result.unwrap()
    }

    /// Reads answers until events up to `seq` are acknowledged.
    pub(crate) async fn acked(&mut self, seq: u64) {
        loop {
            match self.answer().await {
                v1::append_response::Result::AckedSeq(acked) if acked >= seq => return,
                v1::append_response::Result::AckedSeq(_) | v1::append_response::Result::AckedOutput(_) => {}
                v1::append_response::Result::Rejected(rejected) => panic!("rejected: {}", rejected.reason),
            }
        }
    }

    pub(crate) async fn rejected(&mut self) -> String {
        loop {
            match self.answer().await {
                v1::append_response::Result::AckedSeq(_) | v1::append_response::Result::AckedOutput(_) => {}
                v1::append_response::Result::Rejected(rejected) => return rejected.reason,
            }
        }
    }

    pub(crate) async fn finish(&mut self, key: &AttemptKey, seq: u64, outcome: AttemptOutcome) {
        self.send_events(key, seq, vec![EventBody::Finished(outcome)]).await;
        self.acked(seq).await;
    }
}

fn from_agent(message: FromAgent) -> v1::ConnectRequest {
    v1::ConnectRequest { message: Some(message) }
}
