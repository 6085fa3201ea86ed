//! `proxy`: what the gateway of a session adds to each token of a streamed answer, and how much passes it. The
//! baseline is a proxy that hands on bytes with the same libraries and counts nothing; provider, proxies and program
//! are in one process.

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, header};
use axum::response::Response;
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hdrhistogram::Histogram;
use kage_agent::adapters::metered::{MeteredProvider, MeteredWire};
use kage_agent::calls::Calls;
use kage_agent::gateway::Gateway;
use kage_core::call::AccountName;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bench::figure::Figure;

const KEY: &str = "kage-bench-session";
/// The query that asks the provider for one token after the other; without it all come at once.
const PACED: &str = "paced";
/// How an answer ends.
const END: &str = "{\"type\":\"message_stop\"}\n\n";

#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Tokens of a paced answer.
    pub tokens: usize,
    /// The time between two of them.
    pub pace: Duration,
    /// Tokens of an answer that comes as fast as it is read.
    pub fast: usize,
    /// How many of these.
    pub answers: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            tokens: 2_000,
            pace: Duration::from_millis(2),
            fast: 100_000,
            answers: 8,
        }
    }
}

/// Measures both cases; fails when an answer does not come whole.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let _already_there = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    let mut serving = JoinSet::new();
    let epoch = Instant::now();
    let provider = serve(&mut serving, provider(size, epoch)).await?;
    let bare = serve(&mut serving, bare(client.clone(), provider.clone())).await?;
    let metered = MeteredProvider {
        wire: MeteredWire::Messages,
        account: AccountName::of_key("bench", &provider, None),
        address: provider.parse()?,
        key: "sk-bench".to_owned(),
        seller: None,
    };
    let gateway = Gateway::open(metered, client.clone(), KEY.to_owned())?;
    let (address, end) = (gateway.pass().address, CancellationToken::new());
    let counting = tokio::spawn(gateway.serve(Calls::Unlimited, |_told| std::future::ready(()), end.clone()));

    // One after the other, and the direct way first, so that everything is warm.
    let direct = latency(&client, &provider, size, epoch).await?;
    let by_bare = latency(&client, &bare, size, epoch).await?;
    let by_gateway = latency(&client, &address, size, epoch).await?;
    let bare_speed = throughput(&client, &bare, size).await?;
    let speed = throughput(&client, &address, size).await?;
    end.cancel();
    let metered = counting.await.context("the gateway ended")??;
    ensure!(
        metered.answered == 1 + size.answers as u64 && metered.broken == 0,
        "{metered:?}"
    );

    let millis = |time: Duration| (time.as_secs_f64() * 1e3, "ms");
    Ok(vec![
        Figure::new(
            "proxy",
            "a streamed token, p50",
            millis(by_gateway),
            ("bare axum and reqwest pass-through", millis(by_bare).0),
        ),
        Figure::new(
            "proxy",
            "a streamed token, p50",
            millis(by_gateway),
            ("no proxy", millis(direct).0),
        ),
        Figure::new(
            "proxy",
            "throughput",
            (speed, "MiB/s"),
            ("bare axum and reqwest pass-through", bare_speed),
        ),
    ])
}

async fn serve(serving: &mut JoinSet<io::Result<()>>, routes: Router) -> io::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    // Without this the kernel would hold tokens back, and be measured.
    let listener = listener.tap_io(|stream| {
        let _late = stream.set_nodelay(true);
    });
    serving.spawn(async move { axum::serve(listener, routes).await });
    Ok(format!("http://{address}"))
}

fn event(kind: &str, data: &serde_json::Value) -> Bytes {
    Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
}

/// A model that says numbers; a paced one says when.
fn provider(size: Size, epoch: Instant) -> Router {
    Router::new().fallback(move |request: Request<Body>| async move {
        let paced = request.uri().query() == Some(PACED);
        let start = json!({"type": "message_start", "message": {"id": "msg", "type": "message", "role": "assistant",
            "model": "m", "content": [], "usage": {"input_tokens": 10, "output_tokens": 1}}});
        let block = json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}});
        let delta =
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}});
        let opening = [event("message_start", &start), event("content_block_start", &block)];
        let closing = [
            event("content_block_stop", &json!({"type": "content_block_stop", "index": 0})),
            event("message_delta", &delta),
            event("message_stop", &json!({"type": "message_stop"})),
        ];
        let count = if paced { size.tokens } else { size.fast };
        let tokens = stream::iter(0..count).then(move |_| async move {
            if paced {
                tokio::time::sleep(size.pace).await;
            }
            let text = format!("{} ", epoch.elapsed().as_nanos());
            event(
                "content_block_delta",
                &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
            )
        });
        let body = stream::iter(opening).chain(tokens).chain(stream::iter(closing));
        let mut response = Response::new(Body::from_stream(body.map(Ok::<_, Infallible>)));
        let kind = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    })
}

/// A proxy that hands on what it gets.
fn bare(client: reqwest::Client, provider: String) -> Router {
    Router::new().fallback(move |request: Request<Body>| {
        let (client, provider) = (client.clone(), provider.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 32 << 20).await.unwrap_or_default();
            let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
            let answer = client.post(format!("{provider}{path}")).body(body).send().await;
            match answer {
                Ok(answer) => {
                    let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
                    let kind = HeaderValue::from_static("text/event-stream");
                    response.headers_mut().insert(header::CONTENT_TYPE, kind);
                    response
                }
                Err(error) => Response::new(Body::from(error.to_string())),
            }
        }
    })
}

async fn ask(client: &reqwest::Client, address: &str, query: &str) -> anyhow::Result<reqwest::Response> {
    let body =
        json!({"model": "m", "max_tokens": 9000, "stream": true, "messages": [{"role": "user", "content": "count"}]});
    let request = client.post(format!("{address}/v1/messages?{query}")).json(&body);
    let request = request
        .header("x-api-key", KEY)
        .header("anthropic-version", "2023-06-01");
    Ok(request.send().await?.error_for_status()?)
}

/// The time from saying a token to hearing it, in the middle.
async fn latency(client: &reqwest::Client, address: &str, size: Size, epoch: Instant) -> anyhow::Result<Duration> {
    let mut answer = ask(client, address, PACED).await?;
    let (mut times, mut rest) = (Histogram::<u64>::new(3)?, String::new());
    while let Some(piece) = answer.chunk().await? {
        let now = u64::try_from(epoch.elapsed().as_nanos())?;
        rest.push_str(std::str::from_utf8(&piece)?);
        while let Some((line, after)) = rest.split_once('\n') {
            let delta = Some(line).filter(|line| line.contains("text_delta"));
            if let Some((_, said)) = delta.and_then(|line| line.split_once("\"text\":\"")) {
                let said: u64 = said.split(' ').next().context("a token is a time")?.parse()?;
                times.record(now.saturating_sub(said))?;
            }
            rest = after.to_owned();
        }
    }
    ensure!(times.len() == size.tokens as u64, "{} tokens came", times.len());
    Ok(Duration::from_nanos(times.value_at_quantile(0.5)))
}

/// MiB per second of answers that come as fast as they are read.
async fn throughput(client: &reqwest::Client, address: &str, size: Size) -> anyhow::Result<f64> {
    let (begun, mut bytes, mut length) = (Instant::now(), 0, None);
    for _ in 0..size.answers {
        let mut answer = ask(client, address, "").await?;
        let mut one = 0;
        let mut end = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            one += piece.len();
            end.extend_from_slice(&piece[piece.len().saturating_sub(END.len())..]);
            end.drain(..end.len().saturating_sub(END.len()));
        }
        ensure!(end == END.as_bytes(), "an answer is not whole");
        // Times have as many digits in all of them, or one more.
        let first = *length.get_or_insert(one);
        ensure!(one.abs_diff(first) <= size.fast, "{one} bytes after {first}");
        bytes += one;
    }
    Ok(bytes as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64())
}
