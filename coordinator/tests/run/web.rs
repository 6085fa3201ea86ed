//! gRPC-Web as a browser speaks it: HTTP/1.1, frames in the body, trailers as the last one.

use std::sync::Arc;

use kage_proto::v1;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::admission::person_of;
use crate::cluster::{Cluster, soon, spec};

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// One call, whose answer is read as it comes.
struct Call {
    stream: Box<dyn Stream>,
    head: String,
    /// The body so far, without the marks of its chunks.
    body: Vec<u8>,
    raw: Vec<u8>,
}

/// A frame of a gRPC-Web body.
enum Frame {
    Message(Vec<u8>),
    Trailers(String),
}

pub(crate) async fn connect(cluster: &Cluster) -> Box<dyn Stream> {
    let stream = TcpStream::connect(cluster.address).await.unwrap();
    let Some(ca) = &cluster.credentials.ca else {
        return Box::new(stream);
    };
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.content()).unwrap())
        .unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from("127.0.0.1").unwrap();
    Box::new(
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap(),
    )
}

impl Call {
    async fn send(cluster: &Cluster, head: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut request = format!("{head} HTTP/1.1\r\nhost: kage\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n", body.len());
        let mut stream = connect(cluster).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut raw = Vec::new();
        let end = loop {
            if let Some(at) = raw.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            assert!(soon("the head", stream.read_buf(&mut raw)).await.unwrap() > 0);
        };
        let head = String::from_utf8(raw.drain(..end + 4).collect()).unwrap();
        Self {
            stream,
            head,
            body: Vec::new(),
            raw,
        }
    }

    async fn grpc(cluster: &Cluster, method: &str, bearer: &str, message: &impl Message) -> Self {
        let content = message.encode_to_vec();
        let mut body = vec![0];
        body.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        body.extend(content);
        let headers = [
            ("authorization", bearer),
            ("content-type", "application/grpc-web+proto"),
            ("x-grpc-web", "1"),
            ("origin", ORIGIN),
        ];
        Self::send(cluster, &format!("POST /kage.v1.{method}"), &headers, &body).await
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Moves whole chunks into the body.
    fn unchunk(&mut self) {
        loop {
            let Some(at) = self.raw.windows(2).position(|window| window == b"\r\n") else {
                return;
            };
            let size = std::str::from_utf8(&self.raw[..at]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            let end = at + 2 + size + 2;
            if self.raw.len() < end {
                return;
            }
            self.body.extend(&self.raw[at + 2..end - 2]);
            self.raw.drain(..end);
        }
    }

    /// The next frame, which may be long in coming.
    async fn frame(&mut self) -> Frame {
        assert_eq!(self.header("transfer-encoding"), Some("chunked"), "{}", self.head);
        loop {
            self.unchunk();
            if self.body.len() >= 5 {
                let size = u32::from_be_bytes(self.body[1..5].try_into().unwrap()) as usize;
                if self.body.len() >= 5 + size {
                    let flags = self.body[0];
                    let content = self.body[5..5 + size].to_vec();
                    self.body.drain(..5 + size);
                    return match flags {
                        0 => Frame::Message(content),
                        0x80 => Frame::Trailers(String::from_utf8(content).unwrap()),
                        other => panic!("a frame with the flags {other:x}"),
                    };
                }
            }
            let read = soon("a frame", self.stream.read_buf(&mut self.raw)).await.unwrap();
            assert!(read > 0, "the answer breaks off");
        }
    }

    async fn message<M: Message + Default>(&mut self) -> M {
        match self.frame().await {
            Frame::Message(content) => M::decode(content.as_slice()).unwrap(),
            Frame::Trailers(trailers) => panic!("no message, but {trailers}"),
        }
    }

    async fn trailers(&mut self) -> String {
        match self.frame().await {
            Frame::Trailers(trailers) => trailers,
            Frame::Message(content) => panic!("no trailers, but a message of {} bytes", content.len()),
        }
    }
}

const ORIGIN: &str = "https://board.example";

async fn start(dir: &std::path::Path, tls: bool) -> Cluster {
    Cluster::start_with(dir, |config, _| {
        config.tls = tls;
        config.web_origins = vec![ORIGIN.parse().unwrap()];
    })
    .await
}

async fn a_browser_reads(tls: bool) {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), tls).await;
    let bearer = cluster.bearer();
    let task = cluster.create(spec(&["one"])).await;

    // Unary.
    let asked = v1::GetTaskRequest {
        task_id: task.id.clone(),
        view: v1::TaskView::Full.into(),
    };
    let mut call = Call::grpc(&cluster, "TaskService/GetTask", &bearer, &asked).await;
    assert_eq!(call.header("content-type"), Some("application/grpc-web+proto"));
    assert_eq!(call.header("access-control-allow-origin"), Some(ORIGIN));
    let got: v1::GetTaskResponse = call.message().await;
    assert_eq!(got.task.unwrap().id, task.id);
    assert!(call.trailers().await.contains("grpc-status:0"));

    // A server stream: what is there comes at once, what happens later while it is open.
    let asked = v1::WatchTaskRequest {
        task_id: task.id.clone(),
        follow: true,
        ..v1::WatchTaskRequest::default()
    };
    let mut call = Call::grpc(&cluster, "TaskService/WatchTask", &bearer, &asked).await;
    let first: v1::WatchTaskResponse = call.message().await;
    assert!(!first.cursor.is_empty());
    let cancel = v1::CancelTaskRequest {
        request_id: "web".to_owned(),
        task_id: task.id.clone(),
    };
    let mut cancelling = Call::grpc(&cluster, "TaskService/CancelTask", &bearer, &cancel).await;
    let _: v1::CancelTaskResponse = cancelling.message().await;
    let trailers = loop {
        match call.frame().await {
            Frame::Message(content) => drop(v1::WatchTaskResponse::decode(content.as_slice()).unwrap()),
            Frame::Trailers(trailers) => break trailers,
        }
    };
    assert!(trailers.contains("grpc-status:0"), "{trailers}");

    // An error, and somebody whom nobody knows.
    let nobody = v1::GetTaskRequest {
        task_id: "task_00000000000000000000000000000000".to_owned(),
        view: v1::TaskView::Full.into(),
    };
    let call = Call::grpc(&cluster, "TaskService/GetTask", &bearer, &nobody).await;
    assert_eq!(status(call).await, "5");
    let call = Call::grpc(&cluster, "TaskService/GetTask", "Bearer wrong", &nobody).await;
    assert_eq!(status(call).await, "16");

    // An error after messages: the token is revoked.
    let other = cluster.create(spec(&["two"])).await;
    let asked = v1::WatchTaskRequest {
        task_id: other.id,
        follow: true,
        ..v1::WatchTaskRequest::default()
    };
    let viewer = person_of(&cluster, &cluster.client, v1::Role::View, "").await.unwrap();
    let bearer_of_viewer = format!("Bearer {}", viewer.credentials.token.unwrap());
    let mut call = Call::grpc(&cluster, "TaskService/WatchTask", &bearer_of_viewer, &asked).await;
    let _: v1::WatchTaskResponse = call.message().await;
    let revoke = v1::RevokeTokenRequest {
        request_id: "revoke".to_owned(),
        token_id: viewer.token.id,
    };
    cluster.client.access().revoke_token(revoke).await.unwrap();
    let trailers = call.trailers().await;
    assert!(
        trailers.contains("grpc-status:7") && trailers.contains("revoked"),
        "{trailers}"
    );

    // The same: the coordinator shuts down.
    let mut call = Call::grpc(&cluster, "TaskService/WatchTask", &bearer, &asked).await;
    let _: v1::WatchTaskResponse = call.message().await;
    let rest = async {
        loop {
            if let Frame::Trailers(trailers) = call.frame().await {
                return trailers;
            }
        }
    };
    let (trailers, ()) = tokio::join!(rest, cluster.stop());
    assert!(trailers.contains("grpc-status:14"), "{trailers}");
}

/// The status of a call that failed, wherever it stands: without a message the head may have it.
async fn status(mut call: Call) -> String {
    assert!(
        call.header("content-type").unwrap().starts_with("application/grpc-web"),
        "{}",
        call.head
    );
    if let Some(status) = call.header("grpc-status") {
        return status.to_owned();
    }
    let trailers = call.trailers().await;
    let mut lines = trailers.lines();
    lines
        .find_map(|line| line.strip_prefix("grpc-status:"))
        .unwrap()
        .trim()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_reads_in_the_clear_on_loopback() {
    a_browser_reads(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_reads_over_tls() {
    a_browser_reads(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_pages_of_named_origins_may_call() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path(), false).await;
    let ask = async |cluster: &Cluster, origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "authorization,content-type,x-grpc-web",
            ),
        ];
        let call = Call::send(cluster, "OPTIONS /kage.v1.TaskService/GetTask", &headers, b"").await;
        call.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(ask(&cluster, ORIGIN).await.as_deref(), Some(ORIGIN));
    assert_eq!(ask(&cluster, "https://elsewhere.example").await, None);
    cluster.stop().await;
    // Without a named one, nobody's.
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    assert_eq!(ask(&cluster, ORIGIN).await, None);
    cluster.stop().await;
}
