//! Requests without encryption, and ways through the proxy of the agent.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::header::{CONNECTION, PROXY_AUTHORIZATION};

use super::*;

/// A server that answers with the head that it was sent, and the length of the body.
async fn mirror() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = |request: Request| async {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
        let mut text = format!("{} {}\n", head.method, head.uri);
        for (name, value) in &head.headers {
            text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
        }
        text.push_str(&format!("body of {}\n", body.len()));
        let answer = Response::builder()
            .header(CONNECTION, "x-secret")
            .header("x-secret", "1");
        answer.body(Body::from(text)).unwrap()
    };
    let app = Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

#[tokio::test]
async fn a_request_is_sent_on_in_the_words_that_were_decided_about() {
    let port = mirror().await;
    let door = open(rules(&[&format!("registry.test:{port}"), "127.0.0.1"]));
    let answer = door
        .raw(&format!(
            "GET http://Registry.TEST.:{port}/a/b?c=%20d HTTP/1.1\r\nHost: evil.example\r\nConnection: close, x-hop\r\n\
             X-Hop: 1\r\nX-Kept: 2\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic c2VjcmV0\r\nTE: gzip\r\n\
             Upgrade: websocket\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("GET /a/b?c=%20d\n"), "{answer}");
    assert!(answer.contains(&format!("\nhost: registry.test:{port}\n")), "{answer}");
    assert!(answer.contains("\nx-kept: 2\n"), "{answer}");
    for gone in ["evil", "x-hop", "proxy-", "\nte:", "upgrade", "x-secret"] {
        assert!(!answer.to_lowercase().contains(gone), "{gone}: {answer}");
    }

    let body = "b".repeat(100_000);
    let answer = door
        .raw(&format!(
            "POST http://registry.test:{port}/ HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
             {:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ))
        .await;
    assert!(
        answer.contains("POST /\n") && answer.contains("body of 100000\n"),
        "{answer}"
    );

    // Several on one connection.
    let two = format!("GET http://registry.test:{port}/1 HTTP/1.1\r\n\r\n");
    let last = format!("GET http://registry.test:{port}/2 HTTP/1.1\r\nConnection: close\r\n\r\n");
    let answer = door.raw(&(two + &last)).await;
    assert!(answer.contains("GET /1\n") && answer.contains("GET /2\n"), "{answer}");
    let (traffic, told) = door.close().await;
    assert_eq!((traffic.connections, traffic.refused, told.len()), (3, 0, 0));
    assert!(traffic.sent > 100_000 && traffic.received > 100, "{traffic:?}");
}

#[tokio::test]
async fn a_request_that_is_none_for_a_door_is_answered_with_why() {
    let port = mirror().await;
    let door = open(rules(&["registry.test", &format!("127.0.0.1:{port}")]));
    for (request, status, said) in [
        ("GET / HTTP/1.1\r\nHost: registry.test\r\n\r\n", 400, "HTTPS_PROXY"),
        (
            "GET https://registry.test/ HTTP/1.1\r\n\r\n",
            400,
            "a program sends CONNECT",
        ),
        ("GET ftp://registry.test/ HTTP/1.1\r\n\r\n", 400, "ftp://"),
        (
            "GET http://other.test/ HTTP/1.1\r\n\r\n",
            403,
            "[network] allow = [\"other.test\"]",
        ),
        ("GET http://registry.test@other.test/ HTTP/1.1\r\n\r\n", 400, ""),
        ("GET http://registry.test:0/ HTTP/1.1\r\n\r\n", 400, ""),
        ("CONNECT / HTTP/1.1\r\n\r\n", 400, ""),
        ("CONNECT registry.test HTTP/1.1\r\n\r\n", 400, "port"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01", 400, ""),
    ] {
        let answer = door.raw(request).await;
        assert!(
            answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request}: {answer}"
        );
        assert!(answer.contains(said), "{request}: {answer}");
    }
    let fields = "X-A: b\r\n".repeat(1000);
    let answer = door
        .raw(&format!("GET http://registry.test/ HTTP/1.1\r\n{fields}\r\n"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    door.close().await;
}

#[tokio::test]
async fn the_proxy_of_the_agent_is_asked_when_there_is_one() {
    let port = mirror().await;
    // What it does is what a proxy does, so another door is one.
    let far = open(rules(&[&format!("*.test:{port}"), "127.0.0.1"]));
    let upstream = |address: SocketAddr| {
        let proxy = format!("http://me:secret@{address}");
        let environment = [("HTTPS_PROXY", proxy.clone()), ("http_proxy", proxy)];
        Upstream::of(&crate::process::AgentEnvironment::from_iter(environment)).unwrap()
    };
    // The names lead to this machine, which only the far one may be asked about.
    let mut near = rules(&[&format!("registry.test:{port}"), &format!("unknown.example:{port}")]);
    near.upstream = upstream(far.address);
    near.resolve = Arc::new(|_| panic!("the agent's proxy resolves"));
    let near = open(near);

    let mut tunnel = near.tunnel(&format!("registry.test:{port}")).await.unwrap();
    tunnel
        .write_all(b"GET /in HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    soon(tunnel.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.contains("GET /in\n"), "{answer}");

    let request = format!("GET http://registry.test:{port}/plain HTTP/1.1\r\nConnection: close\r\n\r\n");
    let answer = near.raw(&request).await;
    assert!(
        answer.contains("GET /plain\n") && !answer.contains(PROXY_AUTHORIZATION.as_str()),
        "{answer}"
    );

    let refused = near.tunnel("other.test:443").await.unwrap_err();
    assert!(
        refused.starts_with("HTTP/1.1 403 "),
        "the list is asked here: {refused}"
    );
    let failed = near.tunnel(&format!("unknown.example:{port}")).await.unwrap_err();
    assert!(
        failed.starts_with("HTTP/1.1 502 ") && failed.contains("it answered 403"),
        "{failed}"
    );
    near.close().await;
    let (traffic, _) = far.close().await;
    assert_eq!(traffic.connections, 3);

    // What lets the agent in is sent to its proxy, and to nobody else.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut near = rules(&["registry.test"]);
    near.upstream = upstream(listener.local_addr().unwrap());
    let near = open(near);
    let proxy = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = head_of(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 407 no\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        head
    };
    let (head, answer) = tokio::join!(soon(proxy), near.tunnel("registry.test:443"));
    assert!(head.starts_with("CONNECT registry.test:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: Basic bWU6c2VjcmV0\r\n"), "{head}");
    assert!(answer.unwrap_err().contains("it answered 407"));
    near.close().await;
}
