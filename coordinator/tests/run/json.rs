//! Calls as JSON over HTTP/1.1, as curl makes them.

use kage_proto::v1;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::cluster::{Cluster, soon, spec};

struct Caller {
    http: Client,
    base: String,
    bearer: String,
}

impl Caller {
    fn of(cluster: &Cluster) -> Self {
        // The client wants one, also where nothing is encrypted. Another test may have named it.
        drop(tokio_rustls::rustls::crypto::ring::default_provider().install_default());
        Self {
            http: Client::builder().no_proxy().http1_only().build().unwrap(),
            base: format!("http://{}/kage.v1.", cluster.address),
            bearer: cluster.bearer(),
        }
    }

    async fn send(&self, method: Method, call: &str, kind: &str, body: impl Into<String>) -> (StatusCode, String) {
        let request = self
            .http
            .request(method, format!("{}{call}", self.base))
            .header("authorization", &self.bearer)
            .header("content-type", kind)
            .body(body.into());
        let answer = soon("an answer", request.send()).await.unwrap();
        let status = answer.status();
        (status, soon("its body", answer.text()).await.unwrap())
    }

    async fn call(&self, call: &str, body: &Value) -> (StatusCode, Value) {
        let (status, text) = self
            .send(Method::POST, call, "application/json", body.to_string())
            .await;
        (
            status,
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}")),
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unary_call_is_made_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let caller = Caller::of(&cluster);
    let task = cluster.create(spec(&["one"])).await;

    let (status, got) = caller.call("TaskService/GetTask", &json!({ "task_id": task.id })).await;
    assert_eq!((status, &got["task"]["id"]), (StatusCode::OK, &json!(task.id)));
    let (_, got) = caller.call("TaskService/ListTasks", &json!({ "pageSize": 5 })).await;
    assert_eq!(got["tasks"].as_array().unwrap().len(), 1, "{got}");
    // A change, with the same rules for repeated calls.
    for _ in 0..2 {
        let cancel = json!({ "task_id": task.id, "request_id": "json" });
        let (status, got) = caller.call("TaskService/CancelTask", &cancel).await;
        assert_eq!((status, &got["task"]["id"]), (StatusCode::OK, &json!(task.id)), "{got}");
    }
    // No body is an empty request.
    let (status, text) = caller
        .send(Method::POST, "ServerService/GetServerInfo", "application/json", "")
        .await;
    assert!(status == StatusCode::OK && text.contains("\"version\""), "{text}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_as_json_has_its_code_and_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut caller = Caller::of(&cluster);
    let nothing = json!({ "task_id": "task_00000000000000000000000000000000" });
    let misspelt = json!({ "task": "x" });
    let empty = json!({ "spec": {} });
    for (call, body, status, code) in [
        ("TaskService/GetTask", &nothing, 404, "not_found"),
        ("TaskService/GetTask", &misspelt, 400, "invalid_argument"),
        ("TaskService/CreateTask", &empty, 400, "invalid_argument"),
        ("TaskService/WatchTask", &nothing, 501, "unimplemented"),
        ("TaskService/GetNothing", &nothing, 501, "unimplemented"),
    ] {
        let (told, json) = caller.call(call, body).await;
        assert_eq!(
            (told.as_u16(), json["code"].as_str()),
            (status, Some(code)),
            "{call}: {json}"
        );
        assert_ne!(json["message"], "", "{call}");
    }
    let (_, json) = caller.call("TaskService/CreateTask", &empty).await;
    let details = json["details"].as_array().unwrap();
    let wrong = details
        .iter()
        .find(|detail| detail["type"] == "google.rpc.BadRequest")
        .unwrap();
    assert_ne!(wrong["debug"]["fieldViolations"][0]["field"], "", "{json}");

    caller.bearer = "Bearer wrong".to_owned();
    let (told, json) = caller.call("TaskService/GetTask", &nothing).await;
    assert_eq!((told.as_u16(), json["code"].as_str()), (401, Some("unauthenticated")));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_served_is_refused_and_not_answered_with_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let caller = Caller::of(&cluster);
    let call = "TaskService/ListTasks";
    for kind in [
        "text/plain",
        "application/grpc+json",
        "application/x-www-form-urlencoded",
        "",
    ] {
        let (status, text) = caller.send(Method::POST, call, kind, "{}").await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind}");
        assert!(text.contains("application/json"), "{text}");
    }
    let (status, _) = caller.send(Method::GET, call, "application/json", "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    // gRPC itself goes on as before.
    let tasks = cluster.client.tasks().list_tasks(v1::ListTasksRequest::default()).await;
    assert!(tasks.unwrap().into_inner().tasks.is_empty());
    cluster.stop().await;
}
