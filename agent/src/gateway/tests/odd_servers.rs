//! Servers that a script cannot describe: such that wait between two pieces, and such that pack what they say.

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::post;
use tokio::sync::Notify;

use super::*;

const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_9\",\"model\":\"m\",\"usage\":{\"input_tokens\":77,\"cache_read_input_tokens\":3,\"output_tokens\":1}}}\n\n";

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(tokio::spawn(async move { axum::serve(listener, router).await }));
    url
}

/// A server that sends the start of an answer, and the rest never.
async fn half() -> (String, Arc<Notify>) {
    let gone = Arc::new(Notify::new());
    let notify = Arc::clone(&gone);
    let answer = move |headers: http::HeaderMap| {
        let notify = Arc::clone(&notify);
        async move {
            assert_eq!(headers["accept-encoding"], "identity");
            let (pieces, body) = mpsc::channel::<Result<Bytes, io::Error>>(1);
            pieces.send(Ok(Bytes::from_static(START.as_bytes()))).await.unwrap();
            drop(tokio::spawn(async move {
                pieces.closed().await;
                notify.notify_one();
            }));
            let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body));
            Response::builder().header("request-id", "req_7").body(body).unwrap()
        }
    };
    (serve(Router::new().route("/v1/messages", post(answer))).await, gone)
}

/// A server that refuses every request, and keeps it.
pub(super) async fn keeping() -> (String, Arc<Mutex<Vec<Value>>>) {
    let kept = Arc::<Mutex<Vec<Value>>>::default();
    let keeping = Arc::clone(&kept);
    let answer = move |body: Bytes| {
        let keeping = Arc::clone(&keeping);
        async move {
            keeping.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
            http::StatusCode::BAD_REQUEST
        }
    };
    (serve(Router::new().fallback(answer)).await, kept)
}

#[tokio::test]
async fn a_piece_is_passed_on_before_the_next_one_comes_and_a_cancelled_answer_is_on_the_bill() {
    let (url, gone) = half().await;
    let (gate, log) = gate::granting(3, 5000).await;
    let served = Served::start(
        MeteredWire::Messages,
        &url,
        Calls::Gated(gate),
        GatewayLimits::default(),
    );
    let mut response = served.call(MeteredWire::Messages, true).send().await.unwrap();
    let first = tokio::time::timeout(PATIENCE, response.chunk())
        .await
        .expect("it is there at once");
    assert_eq!(first.unwrap().unwrap(), START);
    // The program does not want the rest.
    drop(response);
    tokio::time::timeout(PATIENCE, gone.notified())
        .await
        .expect("the provider's connection ends too");
    assert_eq!(log.waited(2).await, ["started", "committed cut"]);
    let told = Arc::clone(&served.told);
    let (metered, usages) = served.close().await;
    assert_eq!((metered.answered, metered.broken), (1, 1));
    assert_eq!((usages[0].input, usages[0].cache_read, usages[0].output), (77, 3, 1));
    let told = told.lock().unwrap();
    let EventBody::UsageRecorded {
        call: Some(call),
        model,
        ..
    } = &told[0]
    else {
        panic!("{told:?}");
    };
    assert_eq!((call.request.as_deref(), model.as_str()), (Some("req_7"), "m"));
}

#[tokio::test]
async fn a_gateway_ends_with_its_session_and_tells_what_was_going_on() {
    let (url, _gone) = half().await;
    let served = Served::plain(MeteredWire::Messages, &url);
    let mut response = served.call(MeteredWire::Messages, true).send().await.unwrap();
    response.chunk().await.unwrap();
    let address = served.pass.address.clone();
    let (metered, usages) = served.close().await;
    assert_eq!((metered.broken, sums(&usages)), (1, (80, 1)));
    assert!(
        api::client().unwrap().get(address).send().await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn what_cannot_be_read_is_unknown_and_not_zero() {
    let packed = || async {
        let body = Body::from(&[0x28, 0xb5, 0x2f, 0xfd, 0, 1, 2, 3][..]);
        Response::builder()
            .header("content-encoding", "zstd")
            .body(body)
            .unwrap()
    };
    let url = serve(Router::new().route("/v1/messages", post(packed))).await;
    let served = Served::plain(MeteredWire::Messages, &url);
    let response = served.call(MeteredWire::Messages, true).send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap().len(), 8, "it is passed on all the same");
    let (metered, usages) = served.close().await;
    assert_eq!((metered.answered, usages.as_slice()), (1, [Usage::UNKNOWN].as_slice()));
}

#[tokio::test]
async fn a_whole_answer_is_counted_also_when_its_length_is_told() {
    let whole = || async {
        let answer = serde_json::json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": "done"}],
            "usage": {"input_tokens": 11, "output_tokens": 7}
        });
        Response::builder()
            .header("content-type", "application/json")
            .body(Body::from(answer.to_string()))
            .unwrap()
    };
    let url = serve(Router::new().route("/v1/messages", post(whole))).await;
    let direct = api::client().unwrap().post(format!("{url}/v1/messages")).send().await;
    assert!(direct.unwrap().headers().contains_key("content-length"));
    let served = Served::plain(MeteredWire::Messages, &url);
    let response = served.call(MeteredWire::Messages, false).send().await.unwrap();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(answer["content"][0]["text"], "done");
    let (metered, usages) = served.close().await;
    assert_eq!((metered.answered, metered.broken, sums(&usages)), (1, 0, (11, 7)));
}

#[tokio::test]
async fn headers_of_one_hop_stay_there_and_a_redirect_is_not_followed() {
    let elsewhere = || async {
        let response = Response::builder()
            .status(307)
            .header("location", "http://192.0.2.1/v1/messages");
        let response = response
            .header("connection", "x-secret-hop")
            .header("x-secret-hop", "1");
        response.header("x-kept", "2").body(Body::empty()).unwrap()
    };
    let url = serve(Router::new().route("/v1/messages", post(elsewhere))).await;
    let served = Served::plain(MeteredWire::Messages, &url);
    let response = served.call(MeteredWire::Messages, true).send().await.unwrap();
    assert_eq!(response.status(), 307);
    assert_eq!(response.headers().get("x-secret-hop"), None);
    assert_eq!(response.headers()["x-kept"], "2");
    assert_eq!(response.headers().get("location"), None, "it may have the key");
    served.close().await;
}

#[tokio::test]
async fn what_a_cut_answer_said_is_on_the_bill() {
    let text = "x".repeat(202);
    let delta = json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    let begin = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}});
    let events = [
        format!("event: content_block_start\ndata: {begin}\n\n"),
        format!("event: content_block_delta\ndata: {delta}\n\n").repeat(2),
    ];
    let body = format!("{START}{}", events.concat());
    let answer = move || {
        let body = body.clone();
        async move { Response::new(Body::from(body)) }
    };
    let url = serve(Router::new().route("/v1/messages", post(answer))).await;
    let served = Served::plain(MeteredWire::Messages, &url);
    let response = served.call(MeteredWire::Messages, true).send().await.unwrap();
    response.text().await.unwrap();
    let (metered, usages) = served.close().await;
    assert_eq!((metered.broken, sums(&usages)), (1, (80, 101)));
    assert!(usages[0].unreported.of_the_bill(), "it is an estimate");
}

#[tokio::test]
async fn a_wait_that_the_provider_asks_for_is_known_until_it_answers() {
    let mut turn = Turn::say("x");
    turn.faults = vec![Fault::rate_limited(Duration::from_secs(3600)), refusals(1).remove(0)];
    let server = ScriptedServer::start(vec![Script::new("s", Matcher::any(), [turn])])
        .await
        .unwrap();
    let served = Served::plain(MeteredWire::Messages, &server.url());
    let left = || served.pass.asked_wait.left(crate::adapters::local_time().now);
    assert_eq!(left(), None);
    for (status, hours) in [(429, 1), (429, 0), (200, 0)] {
        let response = served.call(MeteredWire::Messages, true).send().await.unwrap();
        assert_eq!(response.status(), status);
        drop(response.bytes().await);
        let rounded = left().map_or(0, |left| left.as_secs().div_ceil(3600));
        assert_eq!(rounded, hours, "{:?}", left());
    }
    served.close().await;
}
