//! Admission over TLS: agents with join tokens and certificates, people with tokens. `rights` tests
//! what each of them may do.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kage_core::access::{JoinToken, agent_uri};
use kage_core::event::{AttemptOutcome, EventBody};
use kage_core::id::AgentId;
use kage_core::time::Timestamp;
use kage_proto::blob::AGENT_HEADER;
use kage_proto::client::{Authorised, Client, ClientCertificate, Credentials, PemFile};
use kage_proto::status::ApiError;
use kage_proto::v1;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;
use tonic::body::Body;
use tower::{Service as _, ServiceExt as _};

use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};

pub(crate) async fn start(dir: &Path) -> Cluster {
    Cluster::start_with(dir, |config, _| config.tls = true).await
}

/// A coordinator whose clock can be put forward.
async fn start_with_clock(dir: &Path) -> (Cluster, Arc<AtomicU64>) {
    let ahead = Arc::new(AtomicU64::new(0));
    let offset = Arc::clone(&ahead);
    let cluster = Cluster::start_with(dir, |config, ports| {
        config.tls = true;
        let system = Arc::clone(&ports.clock);
        ports.clock = Arc::new(move || Timestamp::from_millis(system().as_millis() + offset.load(Ordering::Relaxed)));
    });
    (cluster.await, ahead)
}

pub(crate) fn request_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("admission-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn join_token(cluster: &Cluster, project: &str) -> JoinToken {
    let request = v1::CreateJoinTokenRequest {
        request_id: request_id(),
        project: project.to_owned(),
        labels: [("gpu".to_owned(), "true".to_owned())].into(),
        ..v1::CreateJoinTokenRequest::default()
    };
    let response = cluster.client.fleet().create_join_token(request).await.unwrap();
    response.into_inner().join_token.parse().unwrap()
}

/// A caller with the CA's certificate only.
pub(crate) async fn stranger(cluster: &Cluster) -> Client {
    let credentials = Credentials {
        token: None,
        ..cluster.credentials.clone()
    };
    Client::connect_as(&cluster.url, &credentials).await.unwrap()
}

async fn enrol(
    cluster: &Cluster,
    token: &JoinToken,
    project: &str,
    key: &KeyPair,
) -> Result<v1::EnrollResponse, ApiError> {
    let csr = CertificateParams::default().serialize_request(key).unwrap();
    let request = v1::EnrollRequest {
        token_id: token.id.to_string(),
        secret: token.secret.clone(),
        project: project.to_owned(),
        certificate_request: csr.der().to_vec(),
    };
    let response = stranger(cluster).await.enrollment().enroll(request).await;
    response.map(tonic::Response::into_inner).map_err(ApiError::from)
}

pub(crate) struct Member {
    pub(crate) id: AgentId,
    pub(crate) client: Client,
    credentials: Credentials,
    _files: TempDir,
}

fn identity(files: &Path, certificate: &str, key: &KeyPair) -> ClientCertificate {
    std::fs::write(files.join("agent.pem"), certificate).unwrap();
    std::fs::write(files.join("agent.key"), key.serialize_pem()).unwrap();
    ClientCertificate {
        certificate: PemFile::read(files.join("agent.pem")).unwrap(),
        key: PemFile::read(files.join("agent.key")).unwrap(),
    }
}

pub(crate) async fn member(cluster: &Cluster, project: &str) -> Member {
    let token = join_token(cluster, project).await;
    let key = KeyPair::generate().unwrap();
    let response = enrol(cluster, &token, "", &key).await.unwrap();
    assert_eq!(response.labels["gpu"], "true");
    let files = tempfile::tempdir().unwrap();
    let credentials = Credentials {
        token: None,
        identity: Some(identity(files.path(), &response.certificate, &key)),
        ..cluster.credentials.clone()
    };
    Member {
        id: response.agent_id.parse().unwrap(),
        client: Client::connect_as(&cluster.url, &credentials).await.unwrap(),
        credentials,
        _files: files,
    }
}

pub(crate) fn hello_of(member: &Member) -> kage_proto::convert::agent::Hello {
    kage_proto::convert::agent::Hello {
        agent: member.id,
        ..hello(1, 2)
    }
}

pub(crate) struct Person {
    pub(crate) token: v1::Token,
    pub(crate) client: Client,
    pub(crate) credentials: Credentials,
}

/// A token that an admin creates, for one project or for all.
pub(crate) async fn person_of(
    cluster: &Cluster,
    by: &Client,
    role: v1::Role,
    project: &str,
) -> Result<Person, tonic::Status> {
    let request = v1::CreateTokenRequest {
        request_id: request_id(),
        role: role.into(),
        name: "somebody".to_owned(),
        project: project.to_owned(),
    };
    let response = by.access().create_token(request).await?.into_inner();
    let credentials = Credentials {
        token: Some(response.bearer),
        ..cluster.credentials.clone()
    };
    let client = Client::connect_as(&cluster.url, &credentials).await.unwrap();
    Ok(Person {
        token: response.token.unwrap(),
        client,
        credentials,
    })
}

/// The HTTP status and the gRPC status, as far as the head of the answer has one.
pub(crate) async fn call(client: &Client, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, Option<String>) {
    let grpc = path.starts_with("/kage.") || path.starts_with("/grpc.");
    let mut request = http::Request::builder().method(method).uri(path);
    if grpc {
        request = request
            .header("content-type", "application/grpc")
            .header("te", "trailers");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // An empty message, for a call that reads one.
    let body = if grpc { &[0u8; 5][..] } else { &[] };
    let body = http_body_util::Full::new(bytes::Bytes::copy_from_slice(body));
    let mut channel: Authorised = client.channel();
    let ready = channel.ready().await.unwrap();
    let response = soon("an answer", ready.call(request.body(Body::new(body)).unwrap()))
        .await
        .unwrap();
    let status = response.headers().get("grpc-status");
    let status = status.map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_is_good_once_in_time_and_for_its_project() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, ahead) = start_with_clock(dir.path()).await;
    let token = join_token(&cluster, "").await;
    let (mine, thief) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let refused = |outcome: Result<v1::EnrollResponse, ApiError>| outcome.unwrap_err().reason();

    let guessed = JoinToken {
        secret: "0".repeat(64),
        ..token.clone()
    };
    let reason = refused(enrol(&cluster, &guessed, "", &thief).await);
    assert_eq!(reason, "JOIN_TOKEN_UNKNOWN");
    let reason = refused(enrol(&cluster, &token, "other", &mine).await);
    assert_eq!(reason, "JOIN_TOKEN_OTHER_PROJECT");
    let joined = enrol(&cluster, &token, "default", &mine).await.unwrap();
    let reason = refused(enrol(&cluster, &token, "", &thief).await);
    assert_eq!(reason, "JOIN_TOKEN_USED");
    // Its own holder may repeat the call: the answer may have been lost.
    let again = enrol(&cluster, &token, "", &mine).await.unwrap();
    assert_eq!(again.agent_id, joined.agent_id);
    let request = v1::RevokeAgentRequest {
        request_id: request_id(),
        agent: joined.agent_id,
    };
    cluster.client.fleet().revoke_agent(request).await.unwrap();
    let reason = refused(enrol(&cluster, &token, "", &mine).await);
    assert_eq!(reason, "JOINED_AGENT_REVOKED");

    let late = join_token(&cluster, "").await;
    ahead.store(10 * 60 * 1000, Ordering::Relaxed);
    let reason = refused(enrol(&cluster, &late, "", &thief).await);
    assert_eq!(reason, "JOIN_TOKEN_EXPIRED");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_says_how_many_agents_join_and_what_they_may_do() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, ahead) = start_with_clock(dir.path()).await;
    let request = |uses, hours: i64, can: &[v1::Capability]| v1::CreateJoinTokenRequest {
        request_id: request_id(),
        uses,
        life: Some(kage_proto::convert::time::Span {
            seconds: hours * 3600,
            nanos: 0,
        }),
        can: can.iter().map(|one| i32::from(*one)).collect(),
        ..v1::CreateJoinTokenRequest::default()
    };
    for wrong in [
        request(2000, 24, &[]),
        request(1, 24 * 31, &[]),
        request(1, 0, &[]),
        request(1, 1, &[v1::Capability::Unspecified]),
    ] {
        let refused = cluster.client.fleet().create_join_token(wrong).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
    let mut fleet = cluster.client.fleet();
    let created = fleet.create_join_token(request(2, 24, &[v1::Capability::Run]));
    let created = created.await.unwrap().into_inner();
    assert_eq!((created.uses, created.can), (2, vec![v1::Capability::Run.into()]));
    let token: JoinToken = created.join_token.parse().unwrap();
    ahead.store(23 * 60 * 60 * 1000, Ordering::Relaxed);
    // Three race for two places.
    let keys: Vec<_> = (0..3).map(|_| KeyPair::generate().unwrap()).collect();
    let racing = keys.iter().map(|key| enrol(&cluster, &token, "", key));
    let outcomes = futures_util::future::join_all(racing).await;
    let joined: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(joined.len(), 2);
    assert!(
        joined.iter().all(|one| one.can == [i32::from(v1::Capability::Run)]),
        "{joined:?}"
    );
    let refused = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).unwrap();
    assert_eq!(refused.reason(), "JOIN_TOKEN_USED");

    let created = fleet.create_join_token(request(9, 24, &[])).await.unwrap().into_inner();
    let token: JoinToken = created.join_token.parse().unwrap();
    let revoke = v1::RevokeTokenRequest {
        request_id: request_id(),
        token_id: token.id.to_string(),
    };
    let revoked = cluster.client.access().revoke_token(revoke).await.unwrap().into_inner();
    assert!(revoked.token.unwrap().revoked_at.is_some());
    let refused = enrol(&cluster, &token, "", &keys[0]).await.unwrap_err();
    assert_eq!(refused.reason(), "JOIN_TOKEN_EXPIRED");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_the_ca_did_not_sign_is_worth_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (cluster, ahead) = start_with_clock(dir.path()).await;
    let honest = member(&cluster, "").await;

    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own_ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(agent_uri(honest.id).try_into().unwrap())];
    let forged = params.signed_by(&key, &own_ca).unwrap();
    let files = tempfile::tempdir().unwrap();
    let credentials = Credentials {
        token: None,
        identity: Some(identity(files.path(), &forged.pem(), &key)),
        ..cluster.credentials.clone()
    };
    // With TLS 1.3 a client learns of the refusal when it first reads.
    if let Ok(client) = Client::connect_as(&cluster.url, &credentials).await {
        let call = client.events().append(tokio_stream::empty()).await;
        let error = ApiError::from(call.unwrap_err());
        assert!(matches!(error, ApiError::Unavailable { .. }), "{error:?}");
    }
    // The other way round: a server that another CA vouches for is not believed.
    std::fs::write(files.path().join("ca.pem"), own_ca.pem()).unwrap();
    let wrong = Credentials {
        ca: Some(PemFile::read(files.path().join("ca.pem")).unwrap()),
        ..cluster.credentials.clone()
    };
    assert!(Client::connect_as(&cluster.url, &wrong).await.is_err());

    // A connection may be older than the end of its certificate.
    assert!(honest.client.events().append(tokio_stream::empty()).await.is_ok());
    ahead.store(91 * 24 * 60 * 60 * 1000, Ordering::Relaxed);
    let error = ApiError::from(honest.client.events().append(tokio_stream::empty()).await.unwrap_err());
    assert!(error.to_string().contains("expired"), "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_speaks_for_itself_only_and_works_for_its_project_only() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let (one, other) = (member(&cluster, "").await, member(&cluster, "elsewhere").await);
    let mut worker = FakeAgent::connect_by(&one.client, hello_of(&one)).await;
    let mut elsewhere = FakeAgent::connect_by(&other.client, hello_of(&other)).await;
    cluster.create(spec(&["s"])).await;
    let job = worker.take().await;

    // In another agent's name: the control session, the delivery, a blob.
    let requests = tokio_stream::iter([v1::ConnectRequest {
        message: Some(v1::connect_request::Message::Hello(hello_of(&one).into())),
    }]);
    let mut stream = other.client.agent().connect(requests).await.unwrap().into_inner();
    let error = ApiError::from(soon("a refusal", stream.message()).await.unwrap_err());
    assert!(error.to_string().contains("the caller is not agent"), "{error}");
    let mut request = tonic::Request::new(tokio_stream::empty());
    request
        .metadata_mut()
        .insert(AGENT_HEADER, one.id.to_string().parse().unwrap());
    let error = ApiError::from(other.client.events().append(request).await.unwrap_err());
    assert!(matches!(error, ApiError::PermissionDenied { .. }), "{error:?}");
    let blob = format!("/v1/blobs/elsewhere/{}", "0".repeat(64));
    let status = call(&other.client, "PUT", &blob, &[(AGENT_HEADER, &one.id.to_string())]).await;
    assert_eq!(status.0, 403);

    // With the attempt's own token, in its own name: the attempt was given to another agent.
    elsewhere
        .send_events(&job.key, 1, vec![EventBody::Activity("mine now".to_owned())])
        .await;
    let reason = elsewhere.rejected().await;
    assert!(reason.contains("agent"), "{reason}");
    worker.finish(&job.key, 1, AttemptOutcome::Claimed).await;

    // Another project's bytes and repositories.
    for path in [
        format!("/v1/blobs/default/{}", "0".repeat(64)),
        "/git/default/repo/info/refs?service=git-upload-pack".to_owned(),
    ] {
        assert_eq!(call(&other.client, "GET", &path, &[]).await.0, 403, "{path}");
        assert_eq!(call(&one.client, "GET", &path, &[]).await.0, 404, "{path}");
    }
    // Work of its project goes to the agent that is bound to the project.
    let mut there = spec(&["t"]);
    there.project = "elsewhere".parse().unwrap();
    cluster.create(there).await;
    let job = elsewhere.take().await;
    assert_eq!(job.work.project.as_str(), "elsewhere");
    elsewhere.finish(&job.key, 1, AttemptOutcome::Claimed).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_agent_is_cut_off_within_a_second_and_others_do_its_work() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let (bad, good) = (member(&cluster, "").await, member(&cluster, "").await);
    let mut revoked = FakeAgent::connect_by(&bad.client, hello_of(&bad)).await;
    cluster.create(spec(&["s"])).await;
    let job = revoked.take().await;
    revoked
        .send_events(&job.key, 1, vec![EventBody::Activity("working".to_owned())])
        .await;
    revoked.acked(1).await;
    let mut other = FakeAgent::connect_by(&good.client, hello_of(&good)).await;

    let request = v1::RevokeAgentRequest {
        request_id: request_id(),
        agent: bad.id.to_string(),
    };
    cluster.client.fleet().revoke_agent(request).await.unwrap();
    let denied = ApiError::PermissionDenied {
        message: "the agent was revoked".to_owned(),
    };
    for end in [revoked.end().await, revoked.delivery_end().await] {
        assert_eq!(end.map(ApiError::from), Some(denied.clone()));
    }
    for path in ["/kage.v1.EventService/Append", "/grpc.health.v1.Health/Check"] {
        assert_eq!(
            call(&bad.client, "POST", path, &[]).await.1.as_deref(),
            Some("7"),
            "{path}"
        );
    }
    let error = ApiError::from(bad.client.events().append(tokio_stream::empty()).await.unwrap_err());
    assert!(error.to_string().contains("revoked"), "{error}");
    let second = other.take().await;
    assert_eq!(second.work.attempt, 2);
    other.finish(&second.key, 1, AttemptOutcome::Claimed).await;

    // It stays revoked after a restart of the coordinator, and the other one stays admitted.
    cluster.stop().await;
    let cluster = start(dir.path()).await;
    let back = Client::connect_as(&cluster.url, &bad.credentials).await.unwrap();
    let error = ApiError::from(back.events().append(tokio_stream::empty()).await.unwrap_err());
    assert!(error.to_string().contains("revoked"), "{error}");
    let back = Client::connect_as(&cluster.url, &good.credentials).await.unwrap();
    assert!(back.events().append(tokio_stream::empty()).await.is_ok());
    let request = v1::RevokeAgentRequest {
        request_id: request_id(),
        agent: "nobody".to_owned(),
    };
    let unknown = ApiError::from(cluster.client.fleet().revoke_agent(request).await.unwrap_err());
    assert!(matches!(unknown, ApiError::NotFound { .. }), "{unknown:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persons_token_lasts_until_it_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let request = v1::CreateTokenRequest {
        request_id: request_id(),
        role: v1::Role::View.into(),
        name: "wall".to_owned(),
        project: String::new(),
    };
    let mut access = cluster.client.access();
    let first = access.create_token(request.clone()).await.unwrap().into_inner();
    let again = access.create_token(request).await.unwrap().into_inner();
    assert_eq!(again, first);
    let stored = std::fs::read(dir.path().join("kage.db-wal")).unwrap_or_default();
    let secret = first.bearer.rsplit('-').next().unwrap().as_bytes();
    assert!(
        !stored.windows(secret.len()).any(|window| window == secret),
        "it is stored"
    );
    cluster.stop().await;

    let cluster = start(dir.path()).await;
    let credentials = Credentials {
        token: Some(first.bearer.clone()),
        ..cluster.credentials.clone()
    };
    let viewer = Client::connect_as(&cluster.url, &credentials).await.unwrap();
    let task = cluster.create(spec(&["s"])).await;
    let request = v1::WatchTaskRequest {
        task_id: task.id,
        follow: true,
        ..Default::default()
    };
    let mut watch = viewer.tasks().watch_task(request).await.unwrap().into_inner();
    soon("a first message", watch.message()).await.unwrap().unwrap();
    let token_id = first.token.unwrap().id;
    let request = v1::RevokeTokenRequest {
        request_id: request_id(),
        token_id: token_id.clone(),
    };
    cluster.client.access().revoke_token(request).await.unwrap();
    let end = loop {
        match soon("the end of the watch", watch.message()).await {
            Ok(message) => assert!(message.is_some(), "it is ended, not finished"),
            Err(status) => break ApiError::from(status),
        }
    };
    let denied = ApiError::PermissionDenied {
        message: "the token was revoked".to_owned(),
    };
    assert_eq!(end, denied);
    let refused = viewer.tasks().list_tasks(v1::ListTasksRequest::default()).await;
    let error = ApiError::from(refused.unwrap_err());
    assert!(error.to_string().contains("revoked"), "{error}");
    let listed = cluster
        .client
        .access()
        .list_tokens(v1::ListTokensRequest::default())
        .await
        .unwrap();
    let tokens = listed.into_inner().tokens;
    assert_eq!((tokens.len(), tokens[0].id.as_str()), (1, token_id.as_str()));
    assert!(tokens[0].revoked_at.is_some());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_for_whoever_holds_one_and_was_not_shut_out() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let member = member(&cluster, "").await;
    let key = KeyPair::generate().unwrap();
    let ask = async |client: &Client| {
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let request = v1::RenewRequest {
            certificate_request: csr.der().to_vec(),
        };
        let response = client.enrollment().renew(request).await;
        response.map(tonic::Response::into_inner).map_err(ApiError::from)
    };
    let renewed = ask(&member.client).await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let credentials = Credentials {
        identity: Some(identity(files.path(), &renewed.certificate, &key)),
        ..member.credentials.clone()
    };
    // It is the same agent with another certificate.
    let again = Client::connect_as(&cluster.url, &credentials).await.unwrap();
    let agent = FakeAgent::connect_by(&again, hello_of(&member)).await;
    assert_eq!(agent.hello.agent, member.id);

    let owner = ask(&cluster.client).await.unwrap_err();
    assert!(matches!(owner, ApiError::FailedPrecondition { .. }), "{owner}");
    let nobody = ask(&stranger(&cluster).await).await.unwrap_err();
    assert!(matches!(nobody, ApiError::Unauthenticated), "{nobody}");
    let revoke = v1::RevokeAgentRequest {
        request_id: request_id(),
        agent: member.id.to_string(),
    };
    cluster.client.fleet().revoke_agent(revoke).await.unwrap();
    let late = Client::connect_as(&cluster.url, &credentials).await.unwrap();
    let refused = ask(&late).await.unwrap_err();
    assert!(refused.to_string().contains("revoked"), "{refused}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_of_a_revoked_token_ends_as_denied_and_the_call_that_revokes_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let admin = person_of(&cluster, &cluster.client, v1::Role::Admin, "").await.unwrap();
    let denied = ApiError::PermissionDenied {
        message: "the token was revoked".to_owned(),
    };
    let task = cluster.create(spec(&["s"])).await;
    let request = v1::WatchTaskRequest {
        task_id: task.id,
        follow: true,
        ..Default::default()
    };
    let mut watch = admin.client.tasks().watch_task(request).await.unwrap().into_inner();
    soon("the task", watch.message()).await.unwrap().unwrap();
    // A stream of another service, in which the client could go on to ask.
    let (_asking, asked) = tokio::sync::mpsc::channel(1);
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(admin.client.channel());
    let asked = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut described = reflection.server_reflection_info(asked).await.unwrap().into_inner();

    let revoke = v1::RevokeTokenRequest {
        request_id: request_id(),
        token_id: admin.token.id.clone(),
    };
    let answer = admin.client.access().revoke_token(revoke).await.unwrap().into_inner();
    assert!(answer.token.unwrap().revoked_at.is_some());
    let end = soon("the end of the watch", watch.message()).await;
    assert_eq!(end.map_err(ApiError::from).unwrap_err(), denied);
    let end = soon("the end of the reflection", described.message()).await;
    assert_eq!(end.map_err(ApiError::from).unwrap_err(), denied);
    let again = admin.client.tasks().list_tasks(v1::ListTasksRequest::default()).await;
    assert_eq!(again.map_err(ApiError::from).unwrap_err(), denied);
    cluster.stop().await;
}
