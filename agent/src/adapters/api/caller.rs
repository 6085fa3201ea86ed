//! One call of a provider with a few retries, in any dialect. The cost of every call is reported,
//! also of calls that were cut or stopped.

use std::num::NonZeroU32;
use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use kage_core::call::{
    AccountName, Ask, BilledInput, CallEnd, MAX_REQUEST_ID, OutputBounds, Prefix, RateTold, Spent, input_bound,
};
use kage_core::cause::causes;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::AdapterName;
use kage_core::usage::{PicoUsd, Usage};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use tokio::time::Instant;

use super::CallRules;
use super::answer::{Answer, Draft, MAX_ANSWER, Progress, Stop};
use super::frames::{Frames, Opening, opening};
use super::halt::{Halt, thawed};
use super::wire::{Refusal, Wire};
use crate::adapters::local_time;
use crate::adapters::port::{Reporter, ReporterClosed};
use crate::calls::{Calls, Granted, asked_wait, told};
use crate::process::Control;

/// The longest wait within a call. The task's recovery handles longer waits.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest back-off of our own choice.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// The most bytes of an error's body that are read.
const ERROR_BODY: usize = 64 << 10;
/// How long the next bytes of an error's body are waited for; its status says enough without them.
const ERROR_WAIT: Duration = Duration::from_secs(10);
/// The number of idle limits in a row in which pings alone are accepted. A model may think for
/// longer than one limit without sending anything. But pings show only that the connection works,
/// and they never end when the model behind it hangs.
const PINGS: u32 = 3;
/// How often a call is repeated that was answered by something else than a stream.
const MAX_ODD: u32 = 1;
const CONNECT: Duration = Duration::from_secs(20);

/// The client for all calls. Redirects are refused, because they would send the key elsewhere.
pub(crate) fn client() -> reqwest::Result<reqwest::Client> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error means that a provider is installed already, which is fine.
        let _already_there = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder()
        .connect_timeout(CONNECT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("kage/", env!("CARGO_PKG_VERSION")))
        .build()
}

pub(super) struct Caller {
    pub(super) client: reqwest::Client,
    pub(super) wire: &'static Wire,
    /// The adapter's name in messages.
    pub(super) name: AdapterName,
    pub(super) url: String,
    pub(super) headers: Vec<(String, String)>,
    /// The model that is asked for.
    pub(super) model: String,
    /// The room that is asked for.
    pub(super) context: Option<NonZeroU32>,
    /// The last call that was answered.
    pub(super) before: Option<BilledInput>,
    /// True when calls cost nothing.
    pub(super) free: bool,
    /// What stands before the model's name where its price is looked up.
    pub(super) seller: Option<AdapterName>,
    /// The session's idle limit, which the watchdog keeps: a provider that sends nothing at all is
    /// its business. Pings are life to the watchdog, so their limit is a multiple of this.
    pub(super) idle: Duration,
    pub(super) rules: CallRules,
    /// What every call goes through.
    pub(super) calls: Calls,
    /// The account that pays.
    pub(super) account: AccountName,
    /// What other sessions send too, until the first call was answered.
    pub(super) prefix: Option<Prefix>,
    /// The last answer was cut at its limit of tokens.
    pub(super) was_cut: bool,
    /// What people were warned of already.
    pub(super) warned: Option<String>,
}

/// Writes a request whose answer may have so many tokens.
pub(super) type Body<'a> = &'a (dyn Fn(NonZeroU32) -> Result<Vec<u8>, Halt> + Sync);

/// Whether the same call may succeed a little later.
fn passes(kind: FailureKind) -> bool {
    match kind {
        FailureKind::RateLimited | FailureKind::Overloaded | FailureKind::Network | FailureKind::Timeout => true,
        FailureKind::QuotaExhausted
        | FailureKind::Auth
        | FailureKind::TokenExpired
        | FailureKind::InvalidRequest
        | FailureKind::ModelRefused
        | FailureKind::ContextOverflow
        | FailureKind::ContextUnavailable
        | FailureKind::CorruptedState
        | FailureKind::LogicError
        | FailureKind::TurnLimit
        | FailureKind::NoChange
        | FailureKind::ResultTooLarge
        | FailureKind::SecretFound
        | FailureKind::ResultRefused
        | FailureKind::AdapterCrash
        | FailureKind::AdapterUnavailable
        | FailureKind::DiskFull
        | FailureKind::MachineBusy
        | FailureKind::SetupFailed
        | FailureKind::AgentLost
        | FailureKind::BudgetExceeded
        | FailureKind::Cancelled
        | FailureKind::Unknown => false,
    }
}

/// The wait before the next call: the provider's request or our backoff, plus a random part, so
/// that callers that failed together do not return together.
fn delay(asked: Option<Duration>, backoff: Duration, attempt: u32, random: f64) -> Duration {
    let own = backoff
        .saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)))
        .min(LONGEST_BACKOFF);
    let wait = asked.map_or(own, |asked| asked.max(own.min(Duration::from_millis(100))));
    wait + wait.mul_f64(0.25 * random.clamp(0.0, 1.0))
}

impl Caller {
    /// Makes the call, again where that may help. `most`: the tokens that its answer may have.
    pub(super) async fn call(
        &mut self,
        body: Body<'_>,
        most: NonZeroU32,
        reporter: &Reporter,
        control: &Control,
    ) -> Result<Answer, Halt> {
        let usual = Bytes::from(body(most)?);
        let mut attempt = 1;
        let mut odd = 0;
        loop {
            let granted = self.granted_awake(usual.len(), most, reporter, control).await?;
            let body = match self.ready(&granted, &usual, most, body, reporter).await {
                Ok(body) => body,
                Err(halt) => {
                    granted.release(&RateTold::default());
                    return Err(halt);
                }
            };
            let mut draft = Draft::of(body.len(), self.context);
            draft.before = self.before;
            let mut heard = Heard::default();
            let end = tokio::select! {
                biased;
                () = control.stop.cancelled() => Err(Halt::Stopped),
                end = self.once(body, &mut draft, &mut heard, &granted, reporter) => end,
            };
            self.settle(granted, &draft, &heard, &end, reporter).await?;
            let failure = match end? {
                Ended::Whole => {
                    self.before = draft.billed();
                    self.prefix = None;
                    let mut answer = (self.wire.finish)(draft);
                    self.was_cut = answer.stop == Stop::Cut;
                    if answer.usage.is_zero() {
                        answer.usage = Usage::UNKNOWN;
                    }
                    return Ok(answer);
                }
                Ended::Failed(failure) | Ended::Refused(failure) => failure,
                Ended::NoStream(failure) => {
                    odd += 1;
                    failure
                }
            };
            let failure = (self.wire.advice)(failure, &self.model);
            let too_long = failure.retry_after.is_some_and(|asked| asked > LONGEST_WAIT);
            let enough = attempt >= self.rules.max_calls || odd > MAX_ODD;
            if enough || too_long || !passes(failure.kind) {
                return Err(Halt::Failed(failure));
            }
            let delay = delay(failure.retry_after, self.rules.backoff, attempt, rand::random());
            reporter
                .event(EventBody::CallRetried {
                    failure,
                    delay,
                    attempt,
                })
                .await?;
            tokio::select! {
                biased;
                () = control.stop.cancelled() => return Err(Halt::Stopped),
                () = tokio::time::sleep(delay) => {}
            }
            attempt += 1;
        }
    }

    /// Waits until a request of so many bytes may be made by a session that may work. A frozen one holds nothing
    /// back: that would be missing elsewhere, for as long as it is frozen.
    async fn granted_awake(
        &self,
        bytes: usize,
        most: NonZeroU32,
        reporter: &Reporter,
        control: &Control,
    ) -> Result<Granted, Halt> {
        loop {
            thawed(&mut control.frozen.clone(), &control.stop).await?;
            let granted = tokio::select! {
                biased;
                () = control.stop.cancelled() => return Err(Halt::Stopped),
                granted = self.granted(bytes, most, reporter) => granted?,
            };
            // It may have been frozen while it waited. Without a sender it counts as not frozen.
            let is_frozen = *control.frozen.borrow() && control.frozen.has_changed().is_ok();
            if !is_frozen {
                return Ok(granted);
            }
            granted.release(&RateTold::default());
        }
    }

    /// The body of a call that was granted. Warns people first, if they are to be warned.
    async fn ready(
        &mut self,
        granted: &Granted,
        usual: &Bytes,
        most: NonZeroU32,
        body: Body<'_>,
        reporter: &Reporter,
    ) -> Result<Bytes, Halt> {
        if let Some(warning) = granted.warning()
            && self.warned.as_deref() != Some(warning)
        {
            self.warned = Some(warning.to_owned());
            reporter.event(EventBody::Warning(warning.to_owned())).await?;
        }
        let limit = granted.output();
        if limit == most {
            return Ok(usual.clone());
        }
        Ok(Bytes::from(body(limit)?))
    }

    /// Waits until a request of so many bytes may be made. What it waits for is shown once.
    async fn granted(&self, bytes: usize, most: NonZeroU32, reporter: &Reporter) -> Result<Granted, Halt> {
        let ask = Ask {
            account: self.account.clone(),
            model: self.as_priced(&self.model),
            free: self.free,
            prefix: self.prefix.clone(),
            input: input_bound(self.before, bytes as u64),
            output: OutputBounds::of(most, self.was_cut),
        };
        // Reasons are shown by the future beside the one that waits.
        let (tell, mut reasons) = tokio::sync::watch::channel(String::new());
        let asking = self.calls.reserve(ask, |reason| {
            reporter.alive();
            tell.send_if_modified(|last| {
                let is_new = last.as_str() != reason;
                if is_new {
                    reason.clone_into(last);
                }
                is_new
            });
        });
        tokio::pin!(asking);
        loop {
            tokio::select! {
                biased;
                granted = &mut asking => return granted.map_err(|refused| Halt::Failed(refused.into())),
                Ok(()) = reasons.changed() => {
                    let reason = reasons.borrow_and_update().clone();
                    reporter.event(EventBody::Activity(format!("waits: {reason}"))).await?;
                }
            }
        }
    }

    /// Makes the call once. The kind of a failure says whether a repetition may help.
    async fn once(
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
    pub(super) async fn read<S, B, E>(
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

    /// A model as it is priced.
    fn as_priced(&self, model: &str) -> String {
        match &self.seller {
            None => model.to_owned(),
            Some(seller) => format!("{seller}/{model}"),
        }
    }

    /// Tells what a call used. Providers bill cut and abandoned answers too, so what came of one counts. An
    /// answer without a count has used nobody knows how much, which is not nothing. Only a whole answer
    /// calls tools.
    async fn settle(
        &self,
        granted: Granted,
        draft: &Draft,
        heard: &Heard,
        end: &Result<Ended, Halt>,
        reporter: &Reporter,
    ) -> Result<(), ReporterClosed> {
        let end = match end {
            Ok(Ended::Whole) => CallEnd::Whole,
            _ if draft.began() => CallEnd::Cut,
            Ok(Ended::Refused(failure)) => {
                let rates = RateTold {
                    retry_after: failure.retry_after,
                    ..heard.rates.clone()
                };
                granted.release(&rates);
                return Ok(());
            }
            // Something else than a model answered.
            Ok(Ended::NoStream(_)) => {
                granted.release(&heard.rates);
                return Ok(());
            }
            // It was stopped before it went out.
            Err(_) if !heard.sent => {
                granted.release(&heard.rates);
                return Ok(());
            }
            // Whether the provider works on it and bills it, nobody knows.
            Ok(Ended::Failed(_)) | Err(_) => {
                drop(granted);
                return Ok(());
            }
        };
        let model = if draft.model.is_empty() {
            &self.model
        } else {
            &draft.model
        };
        let spent = Spent {
            model: self.as_priced(model),
            usage: match end {
                _ if draft.usage.is_zero() => Usage::UNKNOWN,
                CallEnd::Whole => draft.usage,
                CallEnd::Cut => draft.used_so_far(),
            },
            end,
            request: heard
                .request
                .clone()
                .or_else(|| Some(draft.id.clone()).filter(|id| !id.is_empty())),
        };
        let (model, usage) = (spent.model.clone(), spent.usage);
        let call = granted.commit(spent, &heard.rates);
        let whole = end == CallEnd::Whole;
        let calls = draft.calls.values().filter(|_| whole);
        let used = EventBody::UsageRecorded {
            model,
            usage,
            reported: self.free.then_some(PicoUsd(0)),
            metered: true,
            tools: Some(calls.map(|call| call.name.as_str()).collect()),
            call: Some(call),
        };
        reporter.event(used).await
    }
}

/// What is known of a call besides its answer: whether it went out, and what the headers of the answer said.
#[derive(Debug, Default)]
struct Heard {
    sent: bool,
    rates: RateTold,
    /// The provider's own id of the request.
    request: Option<String>,
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
enum Ended {
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
pub(super) fn network(error: &reqwest::Error) -> Failure {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_obey_the_provider_and_are_never_shorter() {
        let second = Duration::from_secs(1);
        for (asked, attempt, random, expected) in [
            (None, 1, 0.0, Duration::from_secs(1)),
            (None, 3, 0.0, Duration::from_secs(4)),
            (None, 30, 0.0, LONGEST_BACKOFF),
            (None, 1, 1.0, Duration::from_millis(1250)),
            (Some(Duration::from_secs(7)), 1, 0.0, Duration::from_secs(7)),
            (Some(Duration::from_secs(8)), 1, 1.0, Duration::from_secs(10)),
            // "At once" is still not a busy loop.
            (Some(Duration::ZERO), 1, 0.0, Duration::from_millis(100)),
        ] {
            assert_eq!(
                delay(asked, second, attempt, random),
                expected,
                "{asked:?} {attempt} {random}"
            );
        }
    }
}
