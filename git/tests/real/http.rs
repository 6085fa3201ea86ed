//! Smart HTTP: plain git against it, over a real server on loopback.

use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::TryStreamExt as _;
use kage_core::id::Oid;
use kage_git::smart_http::{ServeError, Service, advertise, serve};
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::{Auth, Expected, Mirror, UserRepo};
use tokio::task::JoinSet;
use tokio_util::io::StreamReader;

use crate::sandbox::{Sandbox, write};

pub(crate) const TOKEN: &str = "test-token";

/// A server for one mirror; stops when dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    _tasks: JoinSet<()>,
}

#[derive(serde::Deserialize)]
struct InfoRefs {
    service: String,
}

impl Server {
    pub(crate) async fn start(mirror: Mirror) -> Self {
        let router = Router::new()
            .route("/r/info/refs", get(info_refs))
            .route("/r/git-upload-pack", post(|s, h, b| rpc(Service::UploadPack, s, h, b)))
            .route(
                "/r/git-receive-pack",
                post(|s, h, b| rpc(Service::ReceivePack, s, h, b)),
            )
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(mirror);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/r", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, _tasks: tasks }
    }

    /// Plain git that may ask this server.
    pub(crate) async fn git(&self, sandbox: &Sandbox, folder: PathBuf, args: &[&str]) -> Result<String, String> {
        git(sandbox, folder, args).await
    }
}

fn authorised(headers: &HeaderMap) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .is_some_and(|value| value == format!("Bearer {TOKEN}").as_str())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn info_refs(State(mirror): State<Mirror>, Query(query): Query<InfoRefs>, headers: HeaderMap) -> Response {
    if !authorised(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let service = Service::from_name(&query.service).unwrap();
    let bytes = advertise(&mirror, service, text(&headers, "git-protocol"))
        .await
        .unwrap();
    ([(header::CONTENT_TYPE, service.advertisement_type())], bytes).into_response()
}

async fn rpc(service: Service, State(mirror): State<Mirror>, headers: HeaderMap, body: Body) -> Response {
    if !authorised(&headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let gzip = text(&headers, "content-encoding") == Some("gzip");
    let body = StreamReader::new(body.into_data_stream().map_err(std::io::Error::other));
    match serve(&mirror, service, text(&headers, "git-protocol"), gzip, body).await {
        Ok(reply) => (
            [(header::CONTENT_TYPE, service.result_type())],
            Body::from_stream(reply),
        )
            .into_response(),
        Err(ServeError::Refused { reason }) => (StatusCode::FORBIDDEN, reason).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
    }
}

/// Plain git, off this thread, so that the server runs meanwhile.
async fn git(sandbox: &Sandbox, folder: PathBuf, args: &[&str]) -> Result<String, String> {
    let header = format!("http.extraHeader=Authorization: Bearer {TOKEN}");
    let mut all = vec!["-c", header.as_str()];
    all.extend(args);
    tokio::task::block_in_place(|| sandbox.try_git(&folder, &all))
}

fn base(commit: &Oid) -> String {
    format!("refs/kage/bases/{commit}")
}

#[tokio::test(flavor = "multi_thread")]
async fn bases_go_in_and_come_out() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n")]);
    // More than git's post buffer (1 MiB), so that it comes in chunks after a probe.
    let noise: Vec<u8> = (0_u64..400_000)
        .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect();
    write(&source.join("noise"), &noise);
    let head = sandbox.commit(&source, "noise");
    let mirror = Mirror::open_or_init(sandbox.path("m.git")).await.unwrap();
    let server = Server::start(mirror.clone()).await;
    let spec = format!("HEAD:{}", base(&head));
    git(&sandbox, source.clone(), &["push", "-q", &server.url, &spec])
        .await
        .unwrap();
    git(&sandbox, source.clone(), &["push", "-q", &server.url, &spec])
        .await
        .unwrap();
    assert_eq!(mirror.resolve(&base(&head)).await.unwrap(), Some(head.clone()));

    let here = Mirror::open_or_init(sandbox.path("here.git")).await.unwrap();
    let auth = Auth::Bearer(TOKEN.to_owned());
    let spec = format!("{0}:{0}", base(&head));
    here.fetch(&server.url, &auth, &[&spec]).await.unwrap();
    assert!(here.has_commit(&head).await.unwrap());
    for version in ["0", "1", "2"] {
        let other = sandbox.path(&format!("other{version}"));
        sandbox.git(&sandbox.path(""), &["init", "-q", other.to_str().unwrap()]);
        let protocol = format!("protocol.version={version}");
        git(
            &sandbox,
            other.clone(),
            &["-c", &protocol, "fetch", "-q", &server.url, &base(&head)],
        )
        .await
        .unwrap();
        assert_eq!(sandbox.git(&other, &["rev-parse", "FETCH_HEAD"]), head.as_str());
    }
    assert!(here.fetch(&server.url, &Auth::None, &[&spec]).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_with_many_haves_comes_compressed() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n")]);
    for number in 0..100 {
        sandbox.git(&source, &["commit", "-q", "--allow-empty", "-m", &number.to_string()]);
    }
    let (mirror, old) = sandbox.mirror("m.git", &source).await;
    let server = Server::start(mirror.clone()).await;
    // A clone with history of its own on top: its "have" lines exceed what git sends plain.
    let clone = sandbox.path("clone");
    sandbox.git(&sandbox.path(""), &["clone", "-q", source.to_str().unwrap(), "clone"]);
    for number in 0..100 {
        sandbox.git(
            &clone,
            &["commit", "-q", "--allow-empty", "-m", &format!("own {number}")],
        );
    }
    write(&source.join("a"), "newer\n");
    let new = sandbox.commit(&source, "newer");
    mirror
        .fetch(
            &crate::sandbox::url(&source),
            &Auth::None,
            &[&format!("HEAD:{}", base(&new))],
        )
        .await
        .unwrap();
    for version in ["protocol.version=0", "protocol.version=2"] {
        git(
            &sandbox,
            clone.clone(),
            &["-c", version, "fetch", "-q", &server.url, &base(&new)],
        )
        .await
        .unwrap();
    }
    assert_eq!(sandbox.git(&clone, &["rev-parse", "FETCH_HEAD"]), new.as_str());
    assert_ne!(old, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_references_are_neither_written_nor_shown() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n")]);
    let (mirror, head) = sandbox.mirror("m.git", &source).await;
    mirror
        .update_ref("refs/kage/private/x", &head, &Expected::Absent)
        .await
        .unwrap();
    mirror
        .update_ref("refs/kage/results/x", &head, &Expected::Absent)
        .await
        .unwrap();
    let server = Server::start(mirror.clone()).await;
    let shown = git(&sandbox, source.clone(), &["ls-remote", &server.url])
        .await
        .unwrap();
    let names: Vec<_> = shown
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(_, name)| name)
        .collect();
    assert_eq!(names, [base(&head).as_str(), "refs/kage/results/x"]);

    write(&source.join("a"), "b\n");
    let new = sandbox.commit(&source, "b");
    for target in [
        "refs/heads/main",
        "refs/kage/results/x",
        "refs/kage/bases/x",
        &base(&head),
    ] {
        let spec = format!("+HEAD:{target}");
        let pushed = git(&sandbox, source.clone(), &["push", "-q", &server.url, &spec]).await;
        assert!(pushed.is_err(), "{target}");
    }
    let deleted = git(
        &sandbox,
        source.clone(),
        &["push", "-q", &server.url, &format!(":{}", base(&head))],
    )
    .await;
    assert!(deleted.is_err());
    assert!(!mirror.has_commit(&new).await.unwrap());
    assert_eq!(mirror.resolve(&base(&head)).await.unwrap(), Some(head));
}

/// Sends the base of a clone as a command does.
async fn send(path: &Path, url: &str, receiver: Receiver) -> Snapshot {
    let repository = UserRepo::discover(path).await.unwrap();
    let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await.unwrap();
    let auth = Auth::Bearer(TOKEN.to_owned());
    snapshot.push(url, &auth, receiver).await.unwrap();
    snapshot
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_clone_sends_only_what_the_first_did_not() {
    let sandbox = Sandbox::new();
    let first = sandbox.repository("first", &[("a", "a\n")]);
    for number in 0..150 {
        sandbox.git(&first, &["commit", "-q", "--allow-empty", "-m", &number.to_string()]);
    }
    let second = sandbox.path("second");
    sandbox.git(&sandbox.path(""), &["clone", "-q", first.to_str().unwrap(), "second"]);
    for (path, more) in [(&first, 4), (&second, 20)] {
        for number in 0..more {
            let message = format!("{} {number}", path.display());
            sandbox.git(path, &["commit", "-q", "--allow-empty", "-m", &message]);
        }
        write(&path.join("a"), format!("work of {}\n", path.display()));
    }
    let mut stored = Vec::new();
    for receiver in [Receiver::HasHistory, Receiver::New] {
        let mirror = Mirror::open_or_init(sandbox.path(&format!("{receiver:?}.git")))
            .await
            .unwrap();
        let server = Server::start(mirror.clone()).await;
        let one = send(&first, &server.url, Receiver::New).await;
        // Neither clone has the tip of the other, which is uncommitted work over commits of its own.
        let other = send(&second, &server.url, receiver).await;
        for snapshot in [&one, &other] {
            mirror
                .check_files_of(std::slice::from_ref(&snapshot.base))
                .await
                .unwrap();
        }
        // Sent again, it is there already.
        send(&second, &server.url, Receiver::HasHistory).await;
        let counted = sandbox.git(mirror.path(), &["count-objects", "-v"]);
        let packed = counted.lines().find_map(|line| line.strip_prefix("in-pack: "));
        stored.push(packed.unwrap().parse::<u32>().unwrap());
    }
    assert!(stored[0] < 200, "the common history is stored once: {stored:?}");
    assert!(stored[1] > 300, "it is not found by a plain push: {stored:?}");
}
