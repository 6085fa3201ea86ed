//! The coordinator's port: nothing is answered without the token, and git works in both versions of
//! HTTP.

use kage_proto::client::Client;
use kage_proto::v1;
use kage_tests::blobs;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::command::{Person, said};
use kage_tests::repo::Repo;
use kage_tests::tasks::{Describe as _, task};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tonic::Code;

#[tokio::test]
async fn nothing_is_answered_without_the_token() {
    let cluster = Cluster::start().await;
    let repo = cluster.sample();
    let digest = "0".repeat(64);
    let paths = [
        format!("/v1/blobs/default/{digest}"),
        "/git/default/sample/info/refs?service=git-upload-pack".to_owned(),
        "/git/default/sample/info/refs?service=git-receive-pack".to_owned(),
        "/metrics".to_owned(),
    ];
    for path in paths {
        let url = format!("{}{path}", cluster.url());
        for request in [
            blobs::http().get(&url),
            blobs::http().get(&url).bearer_auth("0".repeat(64)),
            blobs::http().put(&url).body("x"),
        ] {
            let status = request.send().await.unwrap().status();
            assert_eq!(status, 401, "{path}");
        }
        let allowed = blobs::http()
            .get(&url)
            .bearer_auth(cluster.token())
            .send()
            .await
            .unwrap();
        assert_ne!(allowed.status(), 401, "{path}");
    }
    assert!(repo.try_git(&["ls-remote", &cluster.git_url()], &[]).is_err());

    let stranger = Client::connect(cluster.url(), "wrong").await.unwrap();
    let codes = [
        stranger
            .tasks()
            .list_tasks(v1::ListTasksRequest::default())
            .await
            .unwrap_err()
            .code(),
        stranger
            .contexts()
            .get_context(v1::GetContextRequest::default())
            .await
            .unwrap_err()
            .code(),
        stranger
            .fleet()
            .list_agents(v1::ListAgentsRequest::default())
            .await
            .unwrap_err()
            .code(),
        stranger
            .agent()
            .connect(tokio_stream::empty())
            .await
            .unwrap_err()
            .code(),
        stranger
            .events()
            .append(tokio_stream::empty())
            .await
            .unwrap_err()
            .code(),
        stranger
            .tasks()
            .watch_task(v1::WatchTaskRequest::default())
            .await
            .unwrap_err()
            .code(),
    ];
    assert_eq!(codes, [Code::Unauthenticated; 6]);
}

#[tokio::test]
async fn a_command_whose_token_is_revoked_says_so_and_is_denied() {
    let mut cluster = Cluster::start().await;
    let script = "cat >/dev/null\necho hello\nexec sleep 600\n";
    cluster
        .add_agent(AgentOptions::named("agent").script("hello", script))
        .await;
    let id = cluster.create(task("hello").session("only", SHELL, "hello")).await;
    let client = cluster.client();
    let make = v1::CreateTokenRequest {
        request_id: "make".to_owned(),
        role: v1::Role::View.into(),
        name: "wall".to_owned(),
        project: String::new(),
    };
    let made = client.access().create_token(make).await.unwrap().into_inner();
    let person = Person::new();
    let token = person.path("token");
    std::fs::write(&token, &made.bearer).unwrap();
    let mut command = person.command(&person.path(""), &["logs", "--follow", &id]);
    command
        .env("KAGE__COORDINATOR__URL", cluster.url())
        .env("KAGE__COORDINATOR__TOKEN_FILE", &token);
    let mut watching = command.spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().expect("it goes on").contains("hello") {}
    let revoke = v1::RevokeTokenRequest {
        request_id: "revoke".to_owned(),
        token_id: made.token.unwrap().id,
    };
    client.access().revoke_token(revoke).await.unwrap();
    let said = said(watching.wait_with_output().await.unwrap());
    assert_eq!(said.code, 5, "{said:#?}");
    assert!(said.err.contains("the token was revoked"), "{said:#?}");
}

#[tokio::test]
async fn the_token_is_only_readable_by_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let cluster = Cluster::start().await;
    let token = cluster.data_dir().join("token");
    assert_eq!(std::fs::metadata(token).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(cluster.token().len(), 64);
}

#[tokio::test]
async fn git_fetches_over_both_versions_of_http() {
    let cluster = Cluster::start().await;
    let repo = cluster.sample();
    let head = repo.head();
    let header = cluster.git_configuration();
    for version in ["HTTP/1.1", "HTTP/2"] {
        let other = Repo::empty(&cluster.repository_dir(&version.replace('/', "-")));
        let mut configuration: Vec<(&str, &str)> = header.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        configuration.push(("http.version", version));
        let refspec = format!("refs/kage/bases/{head}");
        other.git_with(&["fetch", "--quiet", &cluster.git_url(), &refspec], &configuration);
        assert_eq!(other.git(&["rev-parse", "FETCH_HEAD"]).trim(), head, "{version}");
    }
    // git upgrades at most; a client that speaks h2 from the first byte is answered too.
    let speaks_h2 = blobs::http2();
    let url = format!("{}/info/refs?service=git-upload-pack", cluster.git_url());
    let response = speaks_h2.get(url).bearer_auth(cluster.token()).send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.version()),
        (200, reqwest::Version::HTTP_2)
    );
}
