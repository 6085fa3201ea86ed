//! Callers without credentials: however many connect, stay silent or send incomplete messages,
//! other callers do not wait.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use kage_coordinator::ConnectionLimits;
use kage_proto::client::{Client, Credentials};
use kage_proto::status::ApiError;
use kage_proto::v1;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tower::{Service as _, ServiceExt as _};

use crate::cluster::{Cluster, soon, spec};
use crate::web;

/// What opens every connection of HTTP/2, and an empty frame of settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Long enough for an honest caller, even on a busy machine.
const SHORT: Duration = Duration::from_millis(1500);

async fn start(dir: &Path, tls: bool, limits: ConnectionLimits) -> Cluster {
    Cluster::start_with(dir, |config, _| {
        config.tls = tls;
        config.connections = limits;
    })
    .await
}

fn short() -> ConnectionLimits {
    ConnectionLimits {
        first_request: SHORT,
        stranger_request: SHORT,
        ..ConnectionLimits::default()
    }
}

/// Waits until the other side ends a connection.
async fn ended(mut stream: impl tokio::io::AsyncRead + Unpin) {
    let mut last = Vec::new();
    // It may be reset, too.
    drop(soon("the end of a connection", stream.read_to_end(&mut last)).await);
}

/// True when the other side ended it already.
fn is_ended(stream: &TcpStream) -> bool {
    let mut byte = [0];
    match stream.try_read(&mut byte) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// A new caller connects and gets an answer.
async fn is_answered(cluster: &Cluster) {
    let client = Client::connect_as(&cluster.url, &cluster.credentials).await.unwrap();
    let mut tasks = client.tasks();
    let listed = tasks.list_tasks(v1::ListTasksRequest::default());
    soon("an answer", listed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_nothing_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), false, short()).await;
    for said in [
        &b""[..],
        b"P",
        b"PRI * HTTP/2.0\r\n",
        b"GET / HTTP/1.1\r\nhost: ka",
        PREFACE,
    ] {
        let mut stream = TcpStream::connect(cluster.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        ended(stream).await;
    }
    // Who was answered, and asks nothing more, too.
    let mut stream = TcpStream::connect(cluster.address).await.unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: kage\r\n\r\n")
        .await
        .unwrap();
    ended(stream).await;
    is_answered(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_whoever_asks_nothing_is_let_go_before_and_after_the_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), true, short()).await;
    ended(TcpStream::connect(cluster.address).await.unwrap()).await;
    let mut half = TcpStream::connect(cluster.address).await.unwrap();
    half.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
    ended(half).await;
    ended(web::connect(&cluster).await).await;
    is_answered(&cluster).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_of_one_address_make_room_and_those_who_are_known_stay() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ConnectionLimits {
        strangers: 8,
        strangers_per_address: 4,
        ..ConnectionLimits::default()
    };
    let cluster = start(dir.path(), false, limits).await;
    let task = cluster.create(spec(&["one"])).await;
    // More of them than strangers may be, from the same address.
    let mut watches = Vec::new();
    for _ in 0..6 {
        let client = Client::connect_as(&cluster.url, &cluster.credentials).await.unwrap();
        let request = v1::WatchTaskRequest {
            task_id: task.id.clone(),
            follow: true,
            ..v1::WatchTaskRequest::default()
        };
        let mut watch = client.tasks().watch_task(request).await.unwrap().into_inner();
        soon("the task", watch.message()).await.unwrap().unwrap();
        watches.push(watch);
    }
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(cluster.address).await.unwrap());
    }
    is_answered(&cluster).await;
    soon("an end of all but the newest", async {
        while silent.iter().filter(|stream| !is_ended(stream)).count() > 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let request = v1::CancelTaskRequest {
        request_id: "stop".to_owned(),
        task_id: task.id,
    };
    cluster.client.tasks().cancel_task(request).await.unwrap();
    for mut watch in watches {
        while soon("the end of the watch", watch.message()).await.unwrap().is_some() {}
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eleven_hundred_silent_connections_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), false, ConnectionLimits::default()).await;
    let mut silent = Vec::new();
    for _ in 0..1100 {
        silent.push(soon("a connection", TcpStream::connect(cluster.address)).await.unwrap());
    }
    is_answered(&cluster).await;
    let most = ConnectionLimits::default().strangers_per_address;
    soon("an end of the oldest", async {
        while silent.iter().filter(|stream| !is_ended(stream)).count() > most {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    cluster.stop().await;
}

/// Begins to enrol over a connection that others may use too. What comes of it.
async fn half_enrolment(client: &Client, first: Bytes) -> (ApiError, tokio::sync::mpsc::Sender<Bytes>) {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(first).await.unwrap();
    let body = ReceiverStream::new(receiver).map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(piece)));
    let request = http::Request::builder()
        .method("POST")
        .uri("/kage.v1.EnrollmentService/Enroll")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(StreamBody::new(body)))
        .unwrap();
    let mut channel = client.channel();
    let answer = soon("an answer", channel.ready().await.unwrap().call(request))
        .await
        .unwrap();
    let status = tonic::Status::from_header_map(answer.headers()).expect("it is a refusal");
    (status.into(), sender)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolments_that_do_not_end_are_few_and_small_and_end_soon() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), true, short()).await;
    let nobody = Credentials {
        token: None,
        ..cluster.credentials.clone()
    };
    let stranger = Client::connect_as(&cluster.url, &nobody).await.unwrap();
    // Each says that four kibibytes come, and sends a little of it.
    let head = Bytes::from_static(&[0, 0, 0, 0x10, 0, 1, 2, 3]);
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (stranger, head) = (stranger.clone(), head.clone());
        all.spawn(async move { half_enrolment(&stranger, head).await.0 });
    }
    is_answered(&cluster).await;
    let other = Client::connect_as(&cluster.url, &nobody).await.unwrap();
    let mut enrollment = other.enrollment();
    let asked = enrollment.enroll(v1::EnrollRequest::default());
    let refused = ApiError::from(soon("an answer", asked).await.unwrap_err());
    assert_eq!(refused.reason(), "INVALID_ARGUMENT", "it was read whole");
    let mut answers = std::collections::BTreeMap::<String, u32>::new();
    for error in all.join_all().await {
        assert_eq!(error.reason(), "RESOURCE_EXHAUSTED", "{error}");
        *answers.entry(error.to_string()).or_default() += 1;
    }
    let late = answers.get("a request without a token or certificate took too long");
    let many = answers.keys().find(|words| words.contains("at once"));
    assert!(late.is_some_and(|late| *late <= 8) && many.is_some(), "{answers:?}");

    // A mebibyte is not even waited for.
    let (error, _) = half_enrolment(&other, Bytes::from_static(&[0, 0, 0x10, 0, 0, 1, 2, 3])).await;
    assert!(
        error.reason() == "INVALID_ARGUMENT" && error.to_string().contains("too large"),
        "{error}"
    );
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_known_is_let_go_only_when_no_call_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let limits = ConnectionLimits {
        idle: Duration::from_millis(300),
        ..short()
    };
    let cluster = start(dir.path(), false, limits).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut watch = cluster.watch(&task.id, "", true).await;
    soon("the task", watch.message()).await.unwrap().unwrap();
    // A slow upload: a part of it, and the rest when others were long gone.
    let blob = b"slow but honest".as_slice();
    let head = format!(
        "PUT /v1/blobs/default/{} HTTP/1.1\r\nhost: kage\r\nauthorization: {}\r\ncontent-length: {}\r\n\r\nslow ",
        kage_core::id::Digest::of(blob),
        cluster.bearer(),
        blob.len()
    );
    let mut upload = TcpStream::connect(cluster.address).await.unwrap();
    upload.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..3 {
        // Each is known, says no more, and has to wait longer than it may be idle.
        let mut idle = TcpStream::connect(cluster.address).await.unwrap();
        let asked = format!(
            "GET /metrics HTTP/1.1\r\nhost: kage\r\nauthorization: {}\r\n\r\n",
            cluster.bearer()
        );
        idle.write_all(asked.as_bytes()).await.unwrap();
        ended(idle).await;
        ended(TcpStream::connect(cluster.address).await.unwrap()).await;
    }
    upload.write_all(&blob[5..]).await.unwrap();
    let mut answer = [0; 12];
    soon("an answer", upload.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 201");
    let request = v1::CancelTaskRequest {
        request_id: "stop".to_owned(),
        task_id: task.id,
    };
    // The connection of this client may have ended meanwhile, which nobody notices.
    cluster.client.tasks().cancel_task(request).await.unwrap();
    while soon("the end of the watch", watch.message()).await.unwrap().is_some() {}
    cluster.stop().await;
}
