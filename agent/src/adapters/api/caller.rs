//! One call of a provider with a few retries, in any dialect. The cost of every call is reported,
//! also of calls that were cut or stopped.

use std::num::NonZeroU32;
use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use kage_core::call::{AccountName, Ask, BilledInput, CallEnd, OutputBounds, Prefix, RateTold, Spent, input_bound};
use kage_core::event::EventBody;
use kage_core::failure::FailureKind;
use kage_core::id::AdapterName;
use kage_core::usage::{PicoUsd, Usage};

use super::CallRules;
use super::answer::{Answer, Draft, Stop};
use super::halt::{Halt, thawed};
use super::wire::Wire;
use crate::adapters::port::{Reporter, ReporterClosed};
use crate::calls::{Calls, Granted};
use crate::process::Control;
use exchange::{Ended, Heard};

mod exchange;

pub(super) use exchange::network;

/// The longest wait within a call. The task's recovery handles longer waits.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The longest back-off of our own choice.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
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
    /// Tokens of a prompt from which on the provider makes the conversation shorter.
    pub(super) compact_at: Option<u64>,
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
    /// Adds a value to a header that is a list.
    pub(super) fn with_beta(&mut self, name: &str, value: &str) {
        match self
            .headers
            .iter_mut()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
        {
            Some((_, list)) => *list = format!("{list},{value}"),
            None => self.headers.push((name.to_owned(), value.to_owned())),
        }
    }

    /// Takes it out again.
    pub(super) fn without_beta(&mut self, value: &str) {
        for (_, list) in &mut self.headers {
            if let Some(others) = list.strip_suffix(value) {
                *list = others.trim_end_matches(',').to_owned();
            }
        }
        self.headers.retain(|(_, list)| !list.is_empty());
    }

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
            input: self.with_summary(input_bound(self.before, bytes as u64), most),
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

    /// What input may cost, in tokens, where the provider may make the conversation shorter first: the prompt is read
    /// twice then, and a summary is written, whose tokens cost five of input.
    fn with_summary(&self, input: u64, most: NonZeroU32) -> u64 {
        match self.compact_at {
            Some(at) if input >= at => input.saturating_mul(2).saturating_add(5 * u64::from(most.get())),
            Some(_) | None => input,
        }
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
