//! The HTTP proxy: `CONNECT`, which becomes a tunnel, and requests without encryption, which are sent on
//! anew. What it cannot do is answered with why, for people who read the output of programs.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1 as client;
use hyper::ext::ReasonPhrase;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kage_core::cause::chain;
use kage_core::network::Destination;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::connect::{NoConnection, Outside, PlainWay};
use super::listening::ProgramStream;
use super::tunnel::carry;

/// The most fields of a request or an answer.
const MOST_FIELDS: usize = 128;
/// The ports of requests without one.
const HTTP_PORT: u16 = 80;

/// What is answered: words of the door, or what a host sends.
type Answer = Response<Either<Full<Bytes>, Incoming>>;
/// What goes on beside requests: a tunnel, or the connection on which a request was sent.
type Beside = BoxFuture<'static, ()>;

/// Fields that are for the next hop only, beside those that `Connection` names.
const HOP: [HeaderName; 8] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Serves the requests of one connection, and what they began.
pub(super) async fn serve(stream: ProgramStream, shared: Arc<Shared>, closing: CancellationToken) {
    // One is handed over at a time, and taken at once.
    let (begin, mut begun) = mpsc::channel::<Beside>(1);
    let limits = shared.limits;
    let service = service_fn(|request| answer(request, &shared, &begin));
    let mut http = server::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_header_size(limits.head_bytes)
        .max_headers(MOST_FIELDS);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let mut beside = FuturesUnordered::new();
    let (mut served, mut told) = (false, false);
    while !served || !beside.is_empty() {
        tokio::select! {
            ended = &mut serving, if !served => {
                served = true;
                if let Err(error) = ended {
                    tracing::debug!(error = chain(&error), "a program's connection broke");
                }
                while let Ok(new) = begun.try_recv() {
                    beside.push(new);
                }
            }
            Some(new) = begun.recv() => beside.push(new),
            Some(()) = beside.next() => {}
            () = closing.cancelled(), if !told => {
                told = true;
                if !served {
                    serving.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: &Arc<Shared>,
    begin: &mpsc::Sender<Beside>,
) -> Result<Answer, hyper::Error> {
    if request.method() == Method::CONNECT {
        return Ok(tunnel(request, shared, begin).await);
    }
    let to = match plain_target(request.uri()) {
        Ok(to) => to,
        Err(why) => return Ok(said(StatusCode::BAD_REQUEST, &why)),
    };
    match shared.connector.plain(&to).await {
        Ok(way) => send_on(request, &to, way, shared, begin).await,
        Err(none) => Ok(unconnected(&none, shared)),
    }
}

/// Where a request without encryption goes.
fn plain_target(uri: &Uri) -> Result<Destination, String> {
    match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) => {
            Destination::parse(authority.as_str(), Some(HTTP_PORT)).map_err(|invalid| chain(&invalid))
        }
        (Some(scheme), _) => Err(format!(
            "{scheme}:// is not asked for by an address; a program sends CONNECT"
        )),
        (None, _) => Err(
            "this is the network of an attempt, a proxy: programs reach hosts through it by \
                          HTTP_PROXY and HTTPS_PROXY"
                .to_owned(),
        ),
    }
}

async fn tunnel(request: Request<Incoming>, shared: &Arc<Shared>, begin: &mpsc::Sender<Beside>) -> Answer {
    // The one form that CONNECT has is host and port.
    let asked = request.uri().authority().map_or("", |authority| authority.as_str());
    let to = match Destination::parse(asked, None) {
        Ok(to) => to,
        Err(invalid) => return said(StatusCode::BAD_REQUEST, &chain(&invalid)),
    };
    let outside = match shared.connector.tunnel(&to).await {
        Ok(outside) => outside,
        Err(none) => return unconnected(&none, shared),
    };
    let idle = shared.limits.idle;
    let carrying = async move {
        match hyper::upgrade::on(request).await {
            Ok(program) => carry(TokioIo::new(program), outside, idle).await,
            Err(error) => tracing::debug!(%error, "a program went away before its tunnel"),
        }
    };
    if begin.send(carrying.boxed()).await.is_err() {
        return said(StatusCode::SERVICE_UNAVAILABLE, "the attempt ends");
    }
    Response::new(Either::Left(Full::default()))
}

/// Sends a request without encryption to where it goes, on a connection of its own.
async fn send_on(
    mut request: Request<Incoming>,
    to: &Destination,
    way: PlainWay,
    shared: &Shared,
    begin: &mpsc::Sender<Beside>,
) -> Result<Answer, hyper::Error> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    // Without the port where it is the usual one, as programs write it themselves.
    let host = match to.port {
        HTTP_PORT => to.host.to_string(),
        _ => to.to_string(),
    };
    // From the destination that was decided about, whatever the request's own words were.
    let (outside, target, authorization) = match way {
        PlainWay::Direct(outside) => (outside, path.to_owned(), None),
        PlainWay::Proxy(outside, proxy) => {
            let target = format!("http://{host}{}", if path.starts_with('/') { path } else { "/" });
            (outside, target, proxy.authorization().cloned())
        }
    };
    let (Ok(target), Ok(host)) = (Uri::try_from(target), HeaderValue::try_from(host)) else {
        return Ok(said(StatusCode::BAD_REQUEST, "the address cannot be read"));
    };
    *request.uri_mut() = target;
    *request.version_mut() = Version::HTTP_11;
    for_one_hop(request.headers_mut());
    request.headers_mut().insert(HOST, host);
    // The connection is this request's alone.
    request
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(authorization) = authorization {
        request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
    }
    match sent(request, outside, shared, begin).await {
        Ok(mut answer) => {
            for_one_hop(answer.headers_mut());
            *answer.version_mut() = Version::HTTP_11;
            Ok(answer.map(Either::Right))
        }
        Err(error) => Ok(said(
            StatusCode::BAD_GATEWAY,
            &format!("{to} did not answer: {}", chain(&error)),
        )),
    }
}

async fn sent(
    request: Request<Incoming>,
    outside: Outside,
    shared: &Shared,
    begin: &mpsc::Sender<Beside>,
) -> Result<Response<Incoming>, hyper::Error> {
    let (movement, idle) = (outside.movement(), shared.limits.idle);
    let mut http = client::Builder::new();
    let (mut sender, connection) = http.max_headers(MOST_FIELDS).handshake(TokioIo::new(outside)).await?;
    let carrying = async move {
        tokio::select! {
            ended = connection => {
                if let Err(error) = ended {
                    tracing::debug!(error = chain(&error), "a host's connection broke");
                }
            }
            () = movement.stops_for(idle) => tracing::debug!("a request carries nothing, and ends"),
        }
    };
    // When nobody takes it, the request fails at once, and says so.
    drop(begin.send(carrying.boxed()).await);
    sender.send_request(request).await
}

/// Takes out what is for one hop only.
fn for_one_hop(fields: &mut HeaderMap) {
    let named: Vec<HeaderName> = fields
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.into_iter().chain(HOP).chain([PROXY_CONNECTION]) {
        fields.remove(name);
    }
}

fn unconnected(none: &NoConnection, shared: &Shared) -> Answer {
    match none {
        NoConnection::Refused(refused) => {
            shared.tally.refused();
            shared.refusals.note(refused);
            said(StatusCode::FORBIDDEN, &refused.to_string())
        }
        late if late.is_late() => said(StatusCode::GATEWAY_TIMEOUT, &chain(late)),
        broken => said(StatusCode::BAD_GATEWAY, &chain(broken)),
    }
}

/// An answer of the door itself, also in the words beside the status: many programs show nothing else of an
/// answer to `CONNECT`.
fn said(status: StatusCode, text: &str) -> Answer {
    let text = format!("kage: {text}");
    let mut answer = Response::new(Either::Left(Full::from(format!("{text}\n"))));
    *answer.status_mut() = status;
    let fields = answer.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Ok(reason) = ReasonPhrase::try_from(text) {
        answer.extensions_mut().insert(reason);
    }
    answer
}
