//! An answer on its way to a program. Each piece is counted and handed on at once. When it ends, breaks off or is
//! wanted no more, what was counted until then is committed, and told.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame};
use kage_core::call::{CallEnd, MAX_REQUEST_ID, RateTold, Spent};
use kage_core::event::EventBody;
use kage_core::usage::Usage;
use tokio::sync::mpsc::OwnedPermit;

use super::GatewayTold;
use super::dialect::Asked;
use super::request::Shared;
use crate::adapters::api::{AnswerEnd, Counting};
use crate::calls::Granted;

/// The body of an answer, whoever made it.
pub(super) type AnswerBody = UnsyncBoxBody<Bytes, reqwest::Error>;

/// A call that is being answered.
pub(super) struct Passing<S> {
    bytes: S,
    counting: Counting,
    /// `None` when it is settled.
    open: Option<OpenCall>,
}

/// What is settled when the call ends.
pub(super) struct OpenCall {
    pub(super) shared: Arc<Shared>,
    pub(super) asked: Asked,
    pub(super) granted: Granted,
    /// Its place in the channel.
    pub(super) place: OwnedPermit<GatewayTold>,
    pub(super) rates: RateTold,
    /// The provider's id of the request, from the headers.
    pub(super) request: Option<String>,
}

impl<S> Passing<S> {
    pub(super) const fn new(bytes: S, counting: Counting, open: OpenCall) -> Self {
        Self {
            bytes,
            counting,
            open: Some(open),
        }
    }

    /// Settles the call, once.
    fn settle(&mut self) {
        let Some(open) = self.open.take() else {
            return;
        };
        let counted = self.counting.counted();
        // An error that came before anything of an answer costs nothing.
        if let (AnswerEnd::Failed(_), false) = (counted.end, self.counting.began()) {
            open.granted.release(&open.rates);
            open.shared.refused();
            return;
        }
        let whole = counted.end == AnswerEnd::Whole;
        let mut usage = counted.usage;
        if !whole && usage != Usage::UNKNOWN {
            // What was told of the output is that of its beginning.
            usage.output = usage.output.max(self.counting.written());
        }
        let model = open.shared.priced(if counted.model.is_empty() {
            &open.asked.model
        } else {
            &counted.model
        });
        let request = open.request.or(Some(counted.id)).filter(|id| !id.is_empty());
        let spent = Spent {
            model: model.clone(),
            usage,
            end: if whole { CallEnd::Whole } else { CallEnd::Cut },
            request: request.map(|id| id.chars().take(MAX_REQUEST_ID / 4).collect()),
        };
        open.shared
            .answered(&open.asked, usage, whole, self.counting.was_limited());
        let call = open.granted.commit(spent, &open.rates);
        open.place.send(GatewayTold::Used(EventBody::UsageRecorded {
            model,
            usage,
            reported: None,
            metered: true,
            tools: None,
            call: Some(call),
        }));
    }
}

impl<S: Stream<Item = reqwest::Result<Bytes>> + Unpin> Body for Passing<S> {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        match Pin::new(&mut self.bytes).poll_next(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(bytes))) => {
                self.counting.take(&bytes);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Poll::Ready(Some(Err(error))) => {
                self.settle();
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.counting.finish();
                self.settle();
                Poll::Ready(None)
            }
        }
    }
}

/// The program does not want the rest: the provider bills what it said until then.
impl<S> Drop for Passing<S> {
    fn drop(&mut self) {
        self.settle();
    }
}

/// A body of the gateway's own words.
pub(super) fn said(text: String) -> AnswerBody {
    let body = http_body_util::Full::new(Bytes::from(text));
    body.map_err(|never| match never {}).boxed_unsync()
}
