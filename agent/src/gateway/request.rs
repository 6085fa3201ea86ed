//! One request of a program: whether it may be made, and sending it on with the real key. Every header goes along, but
//! for those of one hop and the program's key.

use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName,
    HeaderValue, LOCATION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kage_core::call::{Ask, OutputBounds, RateTold};
use kage_core::cause::{causes, chain};
use kage_core::failure::Failure;
use kage_core::usage::Usage;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::dialect::{self, Asked, Rejection, Route};
use super::passing::{AnswerBody, OpenCall, Passing, said};
use super::sums::{Metered, Sums};
use super::{GatewayLimits, GatewayTold, body, prefix};
use crate::adapters::api::Counting;
use crate::adapters::local_time;
use crate::adapters::metered::{MeteredProvider, MeteredWire};
use crate::calls::{Calls, asked_wait, told};

/// The most fields of a request.
const MOST_FIELDS: usize = 128;
/// Tokens that an answer may have when neither its request nor the gateway knows a limit: no model's is higher.
const MOST_OUTPUT: NonZeroU32 = const { NonZeroU32::new(128_000).unwrap() };
/// Tokens that each answer to a request without a limit may have under a budget once one was cut. Fewer than
/// [`MOST_OUTPUT`], so that the limit of whatever a budget holds back is written into the request.
const LONG_OUTPUT: NonZeroU32 = const { NonZeroU32::new(64_000).unwrap() };

/// Fields that are for the next hop only, beside those that `Connection` names.
const HOP: [HeaderName; 9] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What the connections of a gateway share.
pub(super) struct Shared {
    pub(super) provider: MeteredProvider,
    /// The session's key.
    pub(super) key: String,
    pub(super) client: reqwest::Client,
    pub(super) limits: GatewayLimits,
    pub(super) calls: Calls,
    pub(super) told: mpsc::Sender<GatewayTold>,
    pub(super) refusing: watch::Sender<Option<Failure>>,
    pub(super) enough: CancellationToken,
    pub(super) closing: CancellationToken,
    pub(super) kept: Mutex<Kept>,
}

/// What a gateway remembers.
#[derive(Debug, Default)]
pub(super) struct Kept {
    sums: Sums,
    /// How many calls were refused for good.
    refusals: u32,
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn metered(&self) -> Metered {
        self.kept().sums.metered
    }

    /// A call was answered.
    pub(super) fn answered(&self, asked: &Asked, usage: Usage, whole: bool, limited: bool) {
        let sums = &mut self.kept().sums;
        sums.answered(&asked.model, asked.bytes, usage, whole);
        if whole {
            sums.was_limited = limited;
        }
    }

    /// The provider refused a call.
    pub(super) fn refused(&self) {
        self.kept().sums.metered.refused += 1;
    }

    /// A model's name where its price is looked up.
    pub(super) fn priced(&self, model: &str) -> String {
        match &self.provider.seller {
            None => model.to_owned(),
            Some(seller) => format!("{seller}/{model}"),
        }
    }

    /// What is asked before a call.
    fn ask(&self, wire: MeteredWire, asked: &Asked, body: &[u8]) -> Ask {
        let kept = self.kept();
        let thinking = body::thinking(wire, body);
        Ask {
            account: self.provider.account.clone(),
            model: self.priced(&asked.model),
            free: false,
            // Once its model answered, a session's calls have its conversation in the cache.
            prefix: (!kept.sums.has_answered(&asked.model))
                .then(|| prefix::prefix(wire, body))
                .flatten(),
            input: kept.sums.bound(&asked.model, asked.bytes),
            output: bounds(asked, thinking, kept.sums.was_limited),
        }
    }

    /// Remembers that calls are refused for good. A program that goes on regardless is ended.
    fn refuse(&self, failure: Failure) {
        let refusals = {
            let mut kept = self.kept();
            kept.refusals += 1;
            kept.refusals
        };
        self.refusing.send_if_modified(|refusing| {
            let is_first = refusing.is_none();
            if is_first {
                *refusing = Some(failure);
            }
            is_first
        });
        if refusals > self.limits.refusals {
            self.enough.cancel();
        }
    }

    fn rejected(&self, wire: MeteredWire, why: Rejection, message: &str) -> Response<AnswerBody> {
        let (status, text) = dialect::rejection(wire, why, message);
        let mut response = Response::new(said(text));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if why == Rejection::Budget {
            // For programs of OpenAI's SDK, which ask this before they repeat a call.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

/// Serves the requests of one connection.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "pieces of answers may be held back");
    }
    let (limits, closing) = (shared.limits, shared.closing.clone());
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, std::convert::Infallible>(answer(request, &shared).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_header_size(limits.head_bytes)
        .max_headers(MOST_FIELDS);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = &mut serving => served,
        // The attempt is over, and nobody reads the rest.
        () = closing.cancelled() => return,
    };
    if let Err(error) = served {
        tracing::debug!(error = chain(&error), "a program's connection broke");
    }
}

async fn answer(request: Request<Incoming>, shared: &Arc<Shared>) -> Response<AnswerBody> {
    let wire = shared.provider.wire;
    let (mut head, body) = request.into_parts();
    let query = head.uri.query();
    let Some(query) = dialect::exchange(&mut head.headers, query, &shared.key, &shared.provider.key) else {
        return shared.rejected(
            wire,
            Rejection::Key,
            "this is the gateway of a session, and not its key",
        );
    };
    let path = head.uri.path();
    let base = shared.provider.address.path().trim_end_matches('/');
    let below = path.strip_prefix(base).filter(|below| below.starts_with('/'));
    let route = below.map_or(Route::Unknown, |below| dialect::route(wire, &head.method, below));
    let route = match route {
        Route::Unknown => {
            let message = format!(
                "{} {path} is not a call that the gateway of a session passes on",
                head.method
            );
            return shared.rejected(wire, Rejection::NotFound, &message);
        }
        // A path that is read in another way elsewhere leads elsewhere.
        Route::Call(_) | Route::Free if path.contains("..") || path.contains("%2") || path.contains("//") => {
            return shared.rejected(wire, Rejection::NotFound, "its path is not plain");
        }
        route @ (Route::Call(_) | Route::Free) => route,
    };
    let limited = Limited::new(body, shared.limits.body_bytes);
    let body = match tokio::time::timeout(shared.limits.body, limited.collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return shared.rejected(
                wire,
                Rejection::TooLarge,
                "the request is larger than any provider takes",
            );
        }
        Ok(Err(_)) | Err(_) => {
            return shared.rejected(wire, Rejection::TooLarge, "the request did not come whole in time");
        }
    };
    let mut url = shared.provider.address.clone();
    url.set_path(path);
    url.set_query(query.as_deref());
    let onward = Onward {
        method: head.method,
        url,
        headers: onward(&head.headers),
        body,
    };
    match route {
        Route::Call(wire) => call(wire, onward, shared).await,
        Route::Free | Route::Unknown => match onward.send(&shared.client).await {
            Ok(response) => {
                let (head, response) = passed(response);
                Response::from_parts(head, response.boxed_unsync())
            }
            Err(error) => shared.rejected(wire, Rejection::Unreachable, &unreachable(&error)),
        },
    }
}

/// Makes a call of a model.
async fn call(wire: MeteredWire, mut onward: Onward, shared: &Arc<Shared>) -> Response<AnswerBody> {
    let path = onward.url.path().to_owned();
    let asked = dialect::asked(wire, &path, &onward.body);
    let packed = onward
        .headers
        .get(CONTENT_ENCODING)
        .is_some_and(|encoding| encoding != "identity");
    if packed {
        // What cannot be read has no model, and no bound.
        return shared.rejected(
            wire,
            Rejection::TooLarge,
            "the gateway of a session reads no compressed requests",
        );
    }
    // The end of the call has a place in the channel from here on.
    let Ok(place) = shared.told.clone().reserve_owned().await else {
        return shared.rejected(wire, Rejection::Unreachable, "the session is over");
    };
    if let (Calls::Gated(_), Some(why)) = (&shared.calls, asked.unbounded) {
        return shared.rejected(wire, Rejection::Invalid, why);
    }
    let ask = shared.ask(wire, &asked, &onward.body);
    let waits = |reason: &str| {
        // The next reason replaces one that had no place.
        drop(shared.told.try_send(GatewayTold::Waits(reason.to_owned())));
    };
    let granted = match shared.calls.reserve(ask, waits).await {
        Ok(granted) => granted,
        Err(refused) => {
            let message = dialect::budget_message(wire, &refused.reason);
            shared.refuse(refused.into());
            return shared.rejected(wire, Rejection::Budget, &message);
        }
    };
    if let Some(limit) = written(&asked, granted.output()) {
        onward.body = body::limit_output(wire, &onward.body, limit);
    }
    let response = match onward.send(&shared.client).await {
        Ok(response) => response,
        Err(error) if error.is_connect() => {
            granted.release(&RateTold::default());
            return shared.rejected(wire, Rejection::Unreachable, &unreachable(&error));
        }
        // It may have been made: what is granted counts whole.
        Err(error) => {
            drop(granted);
            return shared.rejected(wire, Rejection::Unreachable, &unreachable(&error));
        }
    };
    let now = local_time().now;
    let mut rates = told(response.headers(), now);
    let (mut head, response) = passed(response);
    if !head.status.is_success() {
        rates.retry_after = asked_wait(&head.headers, now);
        shared.refused();
        granted.release(&rates);
        return Response::from_parts(head, response.boxed_unsync());
    }
    // With a length nobody would read on to the end, at which the whole of an answer is counted.
    head.headers.remove(CONTENT_LENGTH);
    granted.started(rates.clone());
    let request = ["request-id", "x-request-id"]
        .iter()
        .find_map(|name| head.headers.get(*name));
    let open = OpenCall {
        shared: Arc::clone(shared),
        request: request.and_then(|id| id.to_str().ok()).map(str::to_owned),
        asked,
        granted,
        place,
        rates,
    };
    let bytes = response.into_data_stream();
    Response::from_parts(head, Passing::new(bytes, Counting::new(wire), open).boxed_unsync())
}

/// Tokens that all answers to a request may have. `was_limited`: the last answer was cut at its limit.
fn bounds(asked: &Asked, thinking: u64, was_limited: bool) -> OutputBounds {
    let most = asked.limit().unwrap_or(MOST_OUTPUT);
    let mut output = OutputBounds::of(most, was_limited);
    // A model that may think for so long has to be able to answer after it.
    let thinking = u32::try_from(thinking).unwrap_or(u32::MAX);
    let room = NonZeroU32::new(thinking.saturating_add(output.least().get())).unwrap_or(most);
    output.usual = output.usual.max(room).min(most);
    if asked.limit().is_none() {
        output.usual = output.usual.min(LONG_OUTPUT);
    }
    OutputBounds {
        most: most.saturating_mul(asked.answers),
        usual: output.usual.saturating_mul(asked.answers),
    }
}

/// The limit of each answer that is written into a request of which all answers may have `granted` tokens. `None`:
/// the request has it, or nothing is held back for it.
fn written(asked: &Asked, granted: NonZeroU32) -> Option<NonZeroU32> {
    let each = NonZeroU32::new(granted.get() / asked.answers).unwrap_or(NonZeroU32::MIN);
    (each < asked.limit().unwrap_or(MOST_OUTPUT)).then_some(each)
}

/// A request as the provider gets it.
struct Onward {
    method: Method,
    url: url::Url,
    headers: HeaderMap,
    body: Bytes,
}

impl Onward {
    async fn send(self, client: &reqwest::Client) -> reqwest::Result<Response<reqwest::Body>> {
        let request = client.request(self.method, self.url).headers(self.headers);
        let request = if self.body.is_empty() {
            request
        } else {
            request.body(self.body)
        };
        request.send().await.map(Into::into)
    }
}

/// Removes what is for one hop only.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<&str> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let stays =
        |name: &HeaderName| !HOP.contains(name) && !named.iter().any(|hop| hop.eq_ignore_ascii_case(name.as_str()));
    let kept = headers.iter().filter(|(name, _)| stays(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The headers of a request as the provider gets them. An answer that was packed could not be counted.
fn onward(headers: &HeaderMap) -> HeaderMap {
    let mut headers = end_to_end(headers);
    for name in [HOST, CONTENT_LENGTH] {
        headers.remove(name);
    }
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// An answer as the program gets it.
fn passed(response: Response<reqwest::Body>) -> (http::response::Parts, reqwest::Body) {
    let (mut head, body) = response.into_parts();
    head.headers = end_to_end(&head.headers);
    // It may repeat the address with the real key in it.
    head.headers.remove(LOCATION);
    head.version = http::Version::HTTP_11;
    (head, body)
}

/// Without the address, which programs do not need.
fn unreachable(error: &reqwest::Error) -> String {
    let words: Vec<_> = causes(error).skip(1).map(ToString::to_string).collect();
    format!("the provider cannot be reached: {}", words.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(output: Option<u64>, answers: u32) -> Asked {
        Asked {
            model: "m".to_owned(),
            output,
            answers: NonZeroU32::new(answers).unwrap(),
            unbounded: None,
            bytes: 9,
        }
    }

    #[test]
    fn the_bounds_are_those_of_all_answers() {
        for (output, answers, thinking, was_limited, usual, most) in [
            (Some(9_000), 1, 0, false, 9_000, 9_000),
            (Some(32_000), 1, 0, false, 16_384, 32_000),
            (Some(32_000), 1, 20_000, false, 24_096, 32_000),
            (Some(32_000), 1, 0, true, 32_000, 32_000),
            (Some(9_000), 8, 0, false, 72_000, 72_000),
            (Some(32_000), 8, 0, false, 131_072, 256_000),
            // Limits that are none.
            (None, 1, 0, false, 16_384, 128_000),
            (Some(0), 1, 0, false, 16_384, 128_000),
            (Some(1 << 40), 1, 0, true, 64_000, 128_000),
            (None, 1, 0, true, 64_000, 128_000),
            (None, 2, 0, true, 128_000, 256_000),
        ] {
            let bounds = bounds(&asked(output, answers), thinking, was_limited);
            assert_eq!(
                (bounds.usual.get(), bounds.most.get()),
                (usual, most),
                "{output:?} {answers} {thinking} {was_limited}"
            );
        }
    }

    #[test]
    fn a_limit_is_written_where_the_request_has_none_that_is_held_back() {
        for (output, answers, granted, expected) in [
            (Some(9_000), 1, 9_000, None),
            (Some(9_000), 1, 5_000, Some(5_000)),
            (Some(9_000), 8, 72_000, None),
            (Some(9_000), 8, 5_000, Some(625)),
            (Some(9_000), 3, 5_000, Some(1_666)),
            // The most that is granted under a budget, and what is granted without one.
            (None, 1, 64_000, Some(64_000)),
            (None, 2, 128_000, Some(64_000)),
            (None, 1, 128_000, None),
            (Some(u64::from(u32::MAX)), 2, u32::MAX, Some(u32::MAX / 2)),
        ] {
            let limit = written(&asked(output, answers), NonZeroU32::new(granted).unwrap());
            assert_eq!(limit.map(NonZeroU32::get), expected, "{output:?} {answers} {granted}");
        }
    }
}
