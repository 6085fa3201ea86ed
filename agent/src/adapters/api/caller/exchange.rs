//! One exchange with a provider: the request goes out, and what comes back is read for what it is: the stream of an
//! answer, a whole answer, an error, or something else. It does not know repetitions and bills.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use kage_core::call::{MAX_REQUEST_ID, RateTold};
use kage_core::cause::causes;
use kage_core::event::OutputStream;
use kage_core::failure::{Failure, FailureKind};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use tokio::time::Instant;

use super::super::answer::{Draft, MAX_ANSWER, Progress};
use super::super::frames::{Frames, Opening, opening};
use super::super::halt::Halt;
use super::super::wire::Refusal;
use super::Caller;
use crate::adapters::local_time;
use crate::adapters::port::Reporter;
use crate::calls::{Granted, asked_wait, told};

/// The most bytes of an error's body that are read.
const ERROR_BODY: usize = 64 << 10;
/// How long the next bytes of an error's body are waited for; its status says enough without them.
const ERROR_WAIT: Duration = Duration::from_secs(10);
/// The number of idle limits in a row in which pings alone are accepted. A model may think for
/// longer than one limit without sending anything. But pings show only that the connection works,
/// and they never end when the model behind it hangs.
const PINGS: u32 = 3;

impl Caller {
    /// Makes the call once. The kind of a failure says whether a repetition may help.
    pub(super) async fn once(
        &self,
        body: Bytes,
        draft: &mut Draft,
        heard: &mut Heard,
        granted: &Granted,
        reporter: &Reporter,
    ) -> Result<Ended, Halt> {
        let mut request = self.client.post(&self.url).header(CONTENT_TYPE, "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(body);
        heard.sent = true;
        let response = match request.send().await {
            Ok(response) => response,
            // What never went out costs nothing; what went out and was not answered may be on a bill.
            Err(error) if error.is_connect() || error.is_builder() => return Ok(Ended::Refused(network(&error))),
            Err(error) => return Ok(Ended::Failed(network(&error))),
        };
        heard.of(response.headers());
        if !response.status().is_success() {
            return Ok(Ended::Refused(self.refusal(response).await));
        }
        let mut bytes = Box::pin(response.bytes_stream());
        // What the body is shows in the body; its headers may be a proxy's.
        let mut head = Vec::new();
        let is = loop {
            if let Some(is) = opening(self.wire.framing, &head) {
                break is;
            }
            match bytes.next().await {
                Some(Ok(more)) => head.extend_from_slice(&more),
                Some(Err(error)) => return Ok(Ended::Failed(cut(&error))),
                None => break Opening::Frames,
            }
        };
        granted.started(heard.rates.clone());
        let mut bytes = stream::iter([Ok(Bytes::from(head))]).chain(bytes);
        let most = match is {
            Opening::Frames => {
                let failure = self.read(bytes, draft, reporter).await?;
                return Ok(failure.map_or(Ended::Whole, Ended::Failed));
            }
            Opening::Json => MAX_ANSWER,
            Opening::Page => ERROR_BODY,
        };
        let mut body = Vec::new();
        while let Some(more) = bytes.next().await {
            match more {
                Ok(more) => body.extend_from_slice(&more),
                Err(error) => return Ok(Ended::Failed(cut(&error))),
            }
            reporter.alive();
            if body.len() > most {
                break;
            }
        }
        self.no_stream(draft, &body, reporter).await
    }

    /// Reads a successful answer that is no stream: a whole answer, an error, or neither.
    async fn no_stream(&self, draft: &mut Draft, body: &[u8], reporter: &Reporter) -> Result<Ended, Halt> {
        match (self.wire.whole)(draft, body) {
            Some(Progress::Failed(failure)) => return Ok(Ended::NoStream(failure)),
            Some(_) => {
                let words = (self.wire.finish)(draft.clone()).words;
                if !words.is_empty() {
                    let words = Bytes::from(format!("{words}\n"));
                    reporter.output(OutputStream::Stdout, words).await?;
                }
                return Ok(Ended::Whole);
            }
            None => {}
        }
        if let Some(refusal) = (self.wire.refusal)(body) {
            return Ok(Ended::NoStream(refusal.classify(Some(200), None, Some(local_time()))));
        }
        let words = crate::process::excerpt::one_line(&String::from_utf8_lossy(body), 200);
        let name = &self.name;
        let text = format!(
            "no model answered at this address ([adapter.{name}] base_url), but something else did, with HTTP 200: {words}"
        );
        Ok(Ended::NoStream(Failure::new(FailureKind::Network, text)))
    }

    /// Reads the stream to its end. `None` = the message is whole.
    pub(in crate::adapters::api) async fn read<S, B, E>(
        &self,
        bytes: S,
        draft: &mut Draft,
        reporter: &Reporter,
    ) -> Result<Option<Failure>, Halt>
    where
        S: Stream<Item = Result<B, E>> + Unpin + Send,
        B: bytes::Buf + Send,
        E: std::error::Error + Send + Sync + 'static,
    {
        let mut frames = Frames::new(self.wire.framing, bytes);
        let mut mid_line = false;
        let pings = self.idle.saturating_mul(PINGS);
        let mut said_at = Instant::now();
        let failure = loop {
            let frame = match tokio::time::timeout_at(said_at + pings, frames.next()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => break cut(&error),
                Ok(None) if (self.wire.ended)(draft) => {
                    if mid_line {
                        reporter.output(OutputStream::Stdout, Bytes::from_static(b"\n")).await?;
                    }
                    return Ok(None);
                }
                Ok(None) => break Failure::new(FailureKind::Network, "the stream ended before the message did"),
                // A repetition would take as long.
                Err(_) => return Err(Halt::Failed(only_pings(pings))),
            };
            reporter.alive();
            let progress = frame.map_or(Progress::Ping, |data| draft.event(self.wire.event, &data));
            if progress != Progress::Ping {
                said_at = Instant::now();
            }
            match progress {
                Progress::None | Progress::Ping => {}
                Progress::Text(text) if text.is_empty() => {}
                Progress::Text(text) => {
                    mid_line = !text.ends_with('\n');
                    reporter.output(OutputStream::Stdout, Bytes::from(text)).await?;
                }
                Progress::Complete => {
                    if mid_line {
                        reporter.output(OutputStream::Stdout, Bytes::from_static(b"\n")).await?;
                    }
                    return Ok(None);
                }
                Progress::Failed(failure) => break failure,
            }
        };
        if mid_line {
            reporter
                .output(OutputStream::Stdout, Bytes::from_static(b" [broken off]\n"))
                .await?;
        }
        Ok(Some(failure))
    }

    /// Classifies an error response.
    async fn refusal(&self, mut response: reqwest::Response) -> Failure {
        let status = response.status().as_u16();
        let heard = local_time();
        let asked = asked_wait(response.headers(), heard.now);
        let mut body = Vec::new();
        while let Ok(Ok(Some(chunk))) = tokio::time::timeout(ERROR_WAIT, response.chunk()).await {
            body.extend_from_slice(&chunk);
            if body.len() > ERROR_BODY {
                break;
            }
        }
        // Other bodies are not the provider's own, for example a proxy's page.
        let refusal = (self.wire.refusal)(&body).unwrap_or_else(|| Refusal {
            message: crate::process::excerpt::one_line(&String::from_utf8_lossy(&body), 200),
            ..Refusal::default()
        });
        refusal.classify(Some(status), asked, Some(heard))
    }
}

/// What is known of a call besides its answer: whether it went out, and what the headers of the answer said.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) sent: bool,
    pub(super) rates: RateTold,
    /// The provider's own id of the request.
    pub(super) request: Option<String>,
}

impl Heard {
    fn of(&mut self, headers: &HeaderMap) {
        self.rates = told(headers, local_time().now);
        let id = ["request-id", "x-request-id"]
            .iter()
            .find_map(|name| headers.get(*name));
        let id = id
            .and_then(|id| id.to_str().ok())
            .filter(|id| id.len() <= MAX_REQUEST_ID);
        self.request = id.map(str::to_owned);
    }
}

/// How one call ended.
pub(super) enum Ended {
    Whole,
    /// It broke off, at whatever point.
    Failed(Failure),
    /// It did not go out, or the provider refused it.
    Refused(Failure),
    /// It succeeded, with something else than the stream of an answer.
    NoStream(Failure),
}

fn cut(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Network, format!("the stream was cut: {error}"))
}

fn only_pings(silence: Duration) -> Failure {
    let silence = silence.as_secs();
    let message = format!("the provider sent nothing but pings for {silence} seconds");
    Failure::new(FailureKind::Timeout, message)
}

/// A failure before there was an answer. The URL is left out: it is in the configuration.
pub(in crate::adapters::api) fn network(error: &reqwest::Error) -> Failure {
    let words: Vec<_> = causes(error).skip(1).map(ToString::to_string).collect();
    let words = format!("the provider cannot be reached: {}", words.join(": "));
    let kind = if error.is_timeout() {
        FailureKind::Timeout
    } else if error.is_builder() {
        FailureKind::InvalidRequest
    } else {
        FailureKind::Network
    };
    Failure::new(kind, words)
}
