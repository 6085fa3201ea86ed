//! The table of rights, each row called over the wire by each role.

use kage_coordinator::door::access::TABLE;
use kage_core::access::Role;
use kage_proto::client::Client;
use kage_proto::v1;

use crate::admission::{call, member, person_of, start, stranger};
use crate::cluster::Cluster;

/// A person with a token of this role, for all projects.
async fn person(cluster: &Cluster, role: v1::Role) -> Client {
    person_of(cluster, &cluster.client, role, "").await.unwrap().client
}

/// How each row of the table is called.
fn requests(route: &str) -> Vec<(&str, String)> {
    let blob = format!("/v1/blobs/default/{}", "0".repeat(64));
    match route {
        "GET /v1/blobs" => vec![("GET", blob.clone()), ("HEAD", blob)],
        "PUT /v1/blobs" => vec![("PUT", blob)],
        "git fetch" => vec![
            ("GET", "/git/default/none/info/refs?service=git-upload-pack".to_owned()),
            ("POST", "/git/default/none/git-upload-pack".to_owned()),
        ],
        "git push" => vec![
            ("GET", "/git/default/some/info/refs?service=git-receive-pack".to_owned()),
            ("POST", "/git/default/some/git-receive-pack".to_owned()),
        ],
        "GET /metrics" => vec![("GET", "/metrics".to_owned())],
        "GET /healthz" => vec![("GET", "/healthz".to_owned())],
        "GET /readyz" => vec![("GET", "/readyz".to_owned())],
        rpc => vec![("POST", rpc.to_owned())],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_table_holds_over_the_wire() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let agent = member(&cluster, "").await;
    let clients = [
        (Role::Owner, cluster.client.clone()),
        (Role::Admin, person(&cluster, v1::Role::Admin).await),
        (Role::Submit, person(&cluster, v1::Role::Submit).await),
        (Role::View, person(&cluster, v1::Role::View).await),
        (Role::Agent, agent.client.clone()),
        (Role::Stranger, stranger(&cluster).await),
    ];
    assert_eq!(clients.len(), Role::ALL.len());
    let mut wrong = Vec::new();
    for (route, roles) in TABLE {
        for (role, client) in &clients {
            for (method, path) in requests(route) {
                let (http, grpc) = call(client, method, &path, &[]).await;
                let refused = match grpc.as_deref() {
                    Some("16") => Some(Role::Stranger),
                    Some("7") => Some(*role),
                    Some(_) => None,
                    None if http == 401 => Some(Role::Stranger),
                    None if http == 403 => Some(*role),
                    None => None,
                };
                let may = *role == Role::Owner || roles.contains(role);
                // A stranger is asked to authenticate; other callers are denied.
                let expected = (!may).then_some(*role);
                if refused != expected {
                    wrong.push(format!("{role} {method} {path}: http {http}, grpc {grpc:?}"));
                }
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
    for (role, client) in &clients {
        let (_, status) = call(client, "POST", "/kage.v1.TaskService/DropEverything", &[]).await;
        let expected = if *role == Role::Stranger { "16" } else { "12" };
        assert_eq!(status.as_deref(), Some(expected), "{role}");
    }
    cluster.stop().await;
}
