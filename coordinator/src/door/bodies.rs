//! Request and response bodies that end early: a stranger's request that is too large or too slow,
//! and both bodies when the caller loses its right to the call.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use kage_proto::status::ApiError;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

/// The right to a call, and the message for its revocation.
#[derive(Debug, Clone)]
pub(crate) struct Right {
    pub(crate) revoked: CancellationToken,
    pub(crate) words: &'static str,
}

impl Right {
    pub(crate) fn denial(&self) -> ApiError {
        ApiError::PermissionDenied {
            message: self.words.to_owned(),
        }
    }
}

/// The most that a request of a stranger may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Most {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

/// Why the body of a request ended before its time; empty when it did not.
pub(crate) type Why = Arc<OnceLock<ApiError>>;

#[derive(Debug, thiserror::Error)]
#[error("the body ended early")]
struct BrokenOff;

struct Revocation {
    right: Right,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Revocation {
    fn new(right: Right) -> Self {
        Self {
            revoked: Box::pin(right.revoked.clone().cancelled_owned()),
            right,
        }
    }
}

/// The body of a request, up to its limits.
pub(crate) struct Bounded {
    body: Body,
    revocation: Option<Revocation>,
    most: Option<(u64, Pin<Box<Sleep>>)>,
    why: Why,
}

impl Bounded {
    pub(crate) fn new(body: Body, right: Option<Right>, most: Option<Most>) -> (Self, Why) {
        let why = Why::default();
        let bounded = Self {
            body,
            revocation: right.map(Revocation::new),
            most: most.map(|most| (most.bytes, Box::pin(tokio::time::sleep(most.time)))),
            why: Arc::clone(&why),
        };
        (bounded, why)
    }

    fn broken_off(&mut self, why: ApiError) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Earlier reasons stay.
        self.why.set(why).ok();
        self.body = Body::empty();
        Poll::Ready(Some(Err(axum::Error::new(BrokenOff))))
    }
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.why.get().is_some() {
            return Poll::Ready(None);
        }
        if let Some(revocation) = &mut self.revocation
            && revocation.revoked.as_mut().poll(context).is_ready()
        {
            let denial = revocation.right.denial();
            return self.broken_off(denial);
        }
        if let Some((_, late)) = &mut self.most
            && late.as_mut().poll(context).is_ready()
        {
            return self.broken_off(too_much("a request without a token or certificate took too long"));
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some((left, _)) = &mut self.most
            && let Some(Ok(frame)) = &frame
        {
            let size = frame.data_ref().map_or(0, |data| data.len() as u64);
            match left.checked_sub(size) {
                Some(rest) => *left = rest,
                None => return self.broken_off(too_much("a request without a token or certificate is too long")),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.why.get().is_some() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn too_much(message: &str) -> ApiError {
    ApiError::ResourceExhausted {
        message: message.to_owned(),
        retry: None,
    }
}

/// A response body that ends when its reader loses the right to it: with a status if the protocol
/// has a place for it, otherwise cut.
pub(crate) struct UntilRevoked {
    body: Body,
    revocation: Revocation,
    grpc: bool,
    sent: Sent,
}

/// How much of a response was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Nothing,
    /// Some frames, while the reader had the right to them.
    Some,
    /// One frame that was ready at the revocation.
    Last,
    /// The whole body, including its end.
    All,
}

impl UntilRevoked {
    pub(crate) fn new(body: Body, headers: &HeaderMap, right: Right) -> Self {
        Self {
            body,
            revocation: Revocation::new(right),
            grpc: is_grpc(headers),
            // A call that failed at once has its status in the head.
            sent: if headers.contains_key(Status::GRPC_STATUS) {
                Sent::All
            } else {
                Sent::Nothing
            },
        }
    }
}

/// True for a call or an answer of gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    Written::by(headers) == Written::Grpc
}

/// What a body is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    Grpc,
    Json,
    Otherwise,
}

impl Written {
    /// By its content type.
    pub(crate) fn by(headers: &HeaderMap) -> Self {
        let named = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = named.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        match kind.to_ascii_lowercase().as_str() {
            "application/grpc" | "application/grpc+proto" => Self::Grpc,
            "application/json" => Self::Json,
            _ => Self::Otherwise,
        }
    }
}

impl HttpBody for UntilRevoked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.sent == Sent::All {
            return Poll::Ready(None);
        }
        if self.revocation.revoked.as_mut().poll(context).is_pending() {
            let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
            self.sent = Sent::Some;
            return Poll::Ready(frame);
        }
        // This very call may have revoked the right: a response that was ready is still delivered,
        // which is one frame and the end after it. Any other end is reported as the revocation,
        // whatever the producer of the response makes of it.
        let next = match self.sent {
            Sent::Nothing | Sent::Last => Pin::new(&mut self.body).poll_frame(context),
            Sent::Some | Sent::All => Poll::Pending,
        };
        match (self.sent, next) {
            (Sent::Nothing, Poll::Ready(Some(Ok(frame)))) if frame.is_data() => {
                self.sent = Sent::Last;
                return Poll::Ready(Some(Ok(frame)));
            }
            (Sent::Last, Poll::Ready(None)) => {
                self.sent = Sent::All;
                return Poll::Ready(None);
            }
            (Sent::Last, Poll::Ready(Some(Ok(frame)))) if frame.is_trailers() => {
                self.sent = Sent::All;
                return Poll::Ready(Some(Ok(frame)));
            }
            _ => {}
        }
        self.sent = Sent::All;
        self.body = Body::empty();
        let end = if self.grpc {
            let mut trailers = HeaderMap::new();
            let added = Status::from(self.revocation.right.denial()).add_header(&mut trailers);
            added.map(|()| Frame::trailers(trailers)).map_err(axum::Error::new)
        } else {
            Err(axum::Error::new(BrokenOff))
        };
        Poll::Ready(Some(end))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == Sent::All || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that holds something until it ends.
pub(crate) struct Holding<T> {
    pub(crate) body: Body,
    pub(crate) _held: T,
}

impl<T: Unpin> HttpBody for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use http::HeaderValue;
    use http_body_util::BodyExt as _;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    #[test]
    fn what_a_body_is_written_in_is_told_by_its_type() {
        for (named, expected) in [
            (Some("application/grpc"), Written::Grpc),
            (Some("application/grpc+proto"), Written::Grpc),
            (Some("application/json"), Written::Json),
            (Some("Application/JSON; charset=utf-8"), Written::Json),
            (Some("application/grpc+json"), Written::Otherwise),
            (Some("application/jsonp"), Written::Otherwise),
            (Some("text/plain"), Written::Otherwise),
            (Some(""), Written::Otherwise),
            (None, Written::Otherwise),
        ] {
            let named = named.map(|named| (CONTENT_TYPE, http::HeaderValue::from_static(named)));
            let headers: HeaderMap = named.into_iter().collect();
            assert_eq!(Written::by(&headers), expected, "{headers:?}");
        }
    }

    fn right() -> Right {
        Right {
            revoked: CancellationToken::new(),
            words: "the token was revoked",
        }
    }

    fn grpc() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        headers
    }

    type Sender = mpsc::Sender<Result<Bytes, std::io::Error>>;

    fn stream() -> (Sender, Body) {
        let (sender, receiver) = mpsc::channel(8);
        (sender, Body::from_stream(ReceiverStream::new(receiver)))
    }

    #[tokio::test]
    async fn an_answer_ends_with_permission_denied_where_it_is_grpcs_and_breaks_off_elsewhere() {
        for headers in [grpc(), HeaderMap::new()] {
            let right = right();
            let (sender, body) = stream();
            let mut answer = UntilRevoked::new(body, &headers, right.clone());
            sender.send(Ok(Bytes::from_static(b"a"))).await.unwrap();
            assert!(answer.frame().await.unwrap().unwrap().is_data());
            // Ready frames count as much as future ones.
            sender.send(Ok(Bytes::from_static(b"b"))).await.unwrap();
            right.revoked.cancel();
            let end = answer.frame().await.unwrap();
            if is_grpc(&headers) {
                let trailers = end.unwrap().into_trailers().unwrap();
                let error = ApiError::from(Status::from_header_map(&trailers).unwrap());
                assert_eq!(error, right.denial());
            } else {
                assert!(end.is_err());
            }
            assert!(answer.frame().await.is_none());
            assert!(sender.is_closed(), "whoever made the answer learns of it");
        }
    }

    #[tokio::test]
    async fn an_answer_that_waits_is_woken_by_the_revocation() {
        let right = right();
        let (_sender, body) = stream();
        let mut answer = UntilRevoked::new(body, &grpc(), right.clone());
        let end = tokio::spawn(async move { answer.frame().await.unwrap().unwrap().is_trailers() });
        tokio::task::yield_now().await;
        right.revoked.cancel();
        assert!(end.await.unwrap());
    }

    #[tokio::test]
    async fn the_call_that_revokes_its_own_token_is_answered() {
        let right = right();
        right.revoked.cancel();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = Body::new(Body::from("ready").with_trailers(async { Some(Ok(trailers)) }));
        let answer = UntilRevoked::new(body, &grpc(), right).collect().await.unwrap();
        assert_eq!(answer.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(answer.to_bytes().as_ref(), b"ready");
    }

    #[tokio::test]
    async fn a_stream_that_ends_for_the_revocation_says_so() {
        let right = right();
        let (sender, body) = stream();
        let mut answer = UntilRevoked::new(body, &grpc(), right.clone());
        right.revoked.cancel();
        // The producer lost the request, and ends the response as if it were complete.
        drop(sender);
        let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "7");
        assert!(answer.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_its_limits_and_says_which_it_met() {
        let most = Most {
            bytes: 4,
            time: Duration::from_secs(10),
        };
        let read = async |pieces: &[&'static str], most: Option<Most>, right: Option<Right>| {
            let (sender, body) = stream();
            for piece in pieces {
                sender.send(Ok(Bytes::from_static(piece.as_bytes()))).await.unwrap();
            }
            if pieces.last() == Some(&"end") {
                drop(sender);
            } else {
                // It stays open.
                tokio::spawn(async move { sender.closed().await });
            }
            let (bounded, why) = Bounded::new(body, right, most);
            let whole = to_bytes(Body::new(bounded), usize::MAX).await;
            (whole.is_ok(), why.get().map(ToString::to_string))
        };
        assert_eq!(read(&["e", "end"], Some(most), None).await, (true, None));
        let (whole, why) = read(&["en", "end"], Some(most), None).await;
        assert!(!whole && why.unwrap().contains("too long"));
        let (whole, why) = read(&["en"], Some(most), None).await;
        assert!(!whole && why.unwrap().contains("took too long"));
        let revoked = right();
        revoked.revoked.cancel();
        let (whole, why) = read(&["en"], None, Some(revoked)).await;
        assert_eq!((whole, why.as_deref()), (false, Some("the token was revoked")));
    }
}
