//! Rate limits of accounts, as providers keep them: a bucket of requests and buckets of tokens, which fill
//! evenly. It decides whether a request is admitted, and writes what the provider says of it in headers. An
//! account is whoever has one key. It does not know scripts or HTTP bodies.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use crate::cache::CallUsage;
use crate::dialect::Dialect;
use crate::script::ApiError;

/// What one account may use. A full bucket can be used at once; an empty one is full again after `refill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    pub requests: u64,
    /// Tokens of prompts. Where the provider has one bucket for prompts and answers, of both.
    pub input_tokens: u64,
    /// Tokens of answers, where the provider has a bucket for them.
    pub output_tokens: u64,
    /// How long an empty bucket takes to be full. Providers say a minute.
    pub refill: Duration,
}

impl RateLimits {
    /// Limits per minute, as they stand in a provider's table.
    #[must_use]
    pub const fn per_minute(requests: u64, input_tokens: u64, output_tokens: u64) -> Self {
        Self {
            requests,
            input_tokens,
            output_tokens,
            refill: Duration::from_secs(60),
        }
    }
}

/// One bucket. Answers are taken out after the fact, so it may be below zero.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    /// Lets in what came since the last time.
    #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52")]
    fn fill(&mut self, limit: u64, refill: Duration, now: Instant) {
        let share = now.saturating_duration_since(self.at).as_secs_f64() / refill.as_secs_f64();
        self.level = (self.level + limit as f64 * share).min(limit as f64);
        self.at = now;
    }

    /// Until it holds so much. What it can never hold takes as long as filling it.
    #[expect(clippy::cast_precision_loss, reason = "limits are far below 2^52")]
    fn until(&self, amount: u64, limit: u64, refill: Duration) -> Duration {
        let missing = (amount.min(limit) as f64 - self.level).max(0.0);
        let share = missing / (limit as f64).max(f64::MIN_POSITIVE);
        Duration::try_from_secs_f64(refill.as_secs_f64() * share).unwrap_or(Duration::MAX)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below zero there is nothing"
    )]
    fn remaining(&self) -> u64 {
        self.level.max(0.0) as u64
    }
}

#[derive(Debug, Clone, Copy)]
struct Account {
    requests: Bucket,
    input: Bucket,
    output: Bucket,
}

/// The accounts of a server, and the limits that hold for each of them.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    limits: Option<RateLimits>,
    accounts: HashMap<String, Account>,
}

/// How one bucket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BucketStanding {
    limit: u64,
    remaining: u64,
    /// Until it is full.
    reset: Duration,
}

/// How an account's buckets stand after a request, admitted or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    requests: BucketStanding,
    input: BucketStanding,
    output: BucketStanding,
}

impl Limiter {
    /// Sets the limits of every account. What is used up stays used up.
    pub(crate) fn set(&mut self, limits: Option<RateLimits>) {
        self.limits = limits;
        if limits.is_none() {
            self.accounts.clear();
        }
    }

    /// Admits a request, which uses `usage`, or says what is answered instead. `None`: nothing limits it.
    #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
    pub(crate) fn admit(
        &mut self,
        dialect: Dialect,
        account: &str,
        usage: CallUsage,
        now: Instant,
    ) -> Option<(Standing, Result<(), ApiError>)> {
        let limits = self.limits.filter(|_| dialect != Dialect::Ollama)?;
        let full = |limit: u64| Bucket {
            level: limit as f64,
            at: now,
        };
        let buckets = self.accounts.entry(account.to_owned()).or_insert_with(|| Account {
            requests: full(limits.requests),
            input: full(limits.input_tokens),
            output: full(limits.output_tokens),
        });
        buckets.requests.fill(limits.requests, limits.refill, now);
        buckets.input.fill(limits.input_tokens, limits.refill, now);
        buckets.output.fill(limits.output_tokens, limits.refill, now);
        let (input, output) = counted(dialect, usage);
        let waits = [
            (buckets.requests.until(1, limits.requests, limits.refill), "requests"),
            (
                buckets.input.until(input, limits.input_tokens, limits.refill),
                "input tokens",
            ),
            // Answers count as they are written: what is left is enough to begin one.
            (
                buckets
                    .output
                    .until(u64::from(output > 0), limits.output_tokens, limits.refill),
                "output tokens",
            ),
        ];
        let longest = waits.into_iter().max_by_key(|(wait, _)| *wait);
        let too_large = input > limits.input_tokens;
        let refused = longest.filter(|(wait, _)| !wait.is_zero() || too_large);
        if refused.is_none() {
            buckets.requests.level -= 1.0;
            buckets.input.level -= input as f64;
            buckets.output.level -= output as f64;
        }
        let standing = |bucket: &Bucket, limit| BucketStanding {
            limit,
            remaining: bucket.remaining(),
            reset: bucket.until(limit, limit, limits.refill),
        };
        let standing = Standing {
            requests: standing(&buckets.requests, limits.requests),
            input: standing(&buckets.input, limits.input_tokens),
            output: standing(&buckets.output, limits.output_tokens),
        };
        let decision = refused.map_or(Ok(()), |(wait, what)| Err(refusal(dialect, wait, what)));
        Some((standing, decision))
    }
}

/// What of a call is taken out of the bucket of prompts and of that of answers.
fn counted(dialect: Dialect, usage: CallUsage) -> (u64, u64) {
    let new = usage.input + usage.cache_write_5m + usage.cache_write_1h;
    match dialect {
        // Tokens that come from the cache do not count.
        Dialect::Messages => (new, usage.output),
        // One bucket for all.
        Dialect::Responses | Dialect::Chat => (new + usage.cache_read + usage.output, 0),
        Dialect::Gemini | Dialect::Ollama => (new + usage.cache_read, 0),
    }
}

fn refusal(dialect: Dialect, wait: Duration, what: &str) -> ApiError {
    let message = format!("This request would exceed your account's rate limit of {what}.");
    let error = match dialect {
        Dialect::Messages | Dialect::Ollama => ApiError::new(429, "rate_limit_error", message),
        Dialect::Responses | Dialect::Chat => {
            let kind = if what == "requests" { what } else { "tokens" };
            ApiError::new(429, kind, message).with_code("rate_limit_exceeded")
        }
        Dialect::Gemini => ApiError::new(429, "RESOURCE_EXHAUSTED", message),
    };
    ApiError {
        retry_after: Some(Duration::from_secs(whole_seconds(wait).max(1))),
        ..error
    }
}

/// Rounded up: whoever waits for so long is not early.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl Standing {
    /// What the provider's answers say of it.
    pub(crate) fn headers(&self, dialect: Dialect, now: SystemTime) -> Vec<(String, String)> {
        let mut headers = Vec::new();
        let mut say = |name: String, value: String| headers.push((name, value));
        match dialect {
            Dialect::Messages => {
                for (what, bucket) in [
                    ("requests", self.requests),
                    ("input-tokens", self.input),
                    ("output-tokens", self.output),
                ] {
                    let name = |part| format!("anthropic-ratelimit-{what}-{part}");
                    say(name("limit"), bucket.limit.to_string());
                    say(name("remaining"), bucket.remaining.to_string());
                    say(name("reset"), moment(now + bucket.reset));
                }
            }
            Dialect::Responses | Dialect::Chat => {
                for (what, bucket) in [("requests", self.requests), ("tokens", self.input)] {
                    let name = |part| format!("x-ratelimit-{part}-{what}");
                    say(name("limit"), bucket.limit.to_string());
                    say(name("remaining"), bucket.remaining.to_string());
                    say(name("reset"), format!("{}ms", bucket.reset.as_millis()));
                }
            }
            // They say nothing of it.
            Dialect::Gemini | Dialect::Ollama => {}
        }
        headers
    }
}

/// A moment after RFC 3339.
fn moment(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| String::new(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RateLimits = RateLimits::per_minute(60, 6000, 600);

    fn usage(input: u64, cache_read: u64, output: u64) -> CallUsage {
        CallUsage {
            input,
            cache_read,
            output,
            ..CallUsage::default()
        }
    }

    fn limiter() -> Limiter {
        let mut limiter = Limiter::default();
        limiter.set(Some(LIMITS));
        limiter
    }

    fn retry_after(decision: Option<(Standing, Result<(), ApiError>)>) -> Option<u64> {
        let refused = decision.expect("it is limited").1.err()?;
        assert_eq!(refused.status, 429);
        Some(refused.retry_after.expect("it says when").as_secs())
    }

    #[test]
    fn a_full_bucket_is_used_at_once_and_fills_evenly() {
        let (mut limiter, start) = (limiter(), Instant::now());
        let mut ask = |at: Duration| retry_after(limiter.admit(Dialect::Messages, "a", usage(1, 0, 1), start + at));
        for request in 0..60 {
            assert_eq!(ask(Duration::ZERO), None, "{request}");
        }
        assert_eq!(ask(Duration::ZERO), Some(1));
        assert_eq!(ask(Duration::from_millis(990)), Some(1));
        assert_eq!(ask(Duration::from_millis(1010)), None);
        assert_eq!(ask(Duration::from_millis(1020)), Some(1));
    }

    #[test]
    fn what_comes_from_a_cache_counts_where_the_provider_counts_it() {
        let now = Instant::now();
        let left = |dialect| {
            let (standing, decision) = limiter().admit(dialect, "a", usage(100, 900, 50), now).unwrap();
            decision.unwrap();
            (standing.input.remaining, standing.output.remaining)
        };
        assert_eq!(left(Dialect::Messages), (5900, 550));
        assert_eq!(left(Dialect::Chat), (4950, 600));
        assert_eq!(left(Dialect::Gemini), (5000, 600));
        assert_eq!(limiter().admit(Dialect::Ollama, "a", usage(1, 0, 1), now), None);
    }

    #[test]
    fn an_answer_may_be_longer_than_what_is_left_and_is_waited_for_afterwards() {
        let (mut limiter, start) = (limiter(), Instant::now());
        let mut ask = |output, at| {
            let at = start + Duration::from_secs(at);
            retry_after(limiter.admit(Dialect::Messages, "a", usage(1, 0, output), at))
        };
        assert_eq!(ask(1200, 0), None);
        // 600 below zero, and one to begin with.
        assert_eq!(ask(1, 0), Some(61));
        assert_eq!(ask(1, 61), None);
    }

    #[test]
    fn accounts_have_buckets_of_their_own_and_limits_change_under_them() {
        let (mut limiter, now) = (limiter(), Instant::now());
        let ask = |limiter: &mut Limiter, account| {
            let decision = limiter.admit(Dialect::Messages, account, usage(2000, 0, 0), now);
            retry_after(decision)
        };
        for _ in 0..3 {
            assert_eq!(ask(&mut limiter, "a"), None);
        }
        assert_eq!(ask(&mut limiter, "a"), Some(20));
        assert_eq!(ask(&mut limiter, "b"), None);
        limiter.set(Some(RateLimits::per_minute(30, 3000, 300)));
        assert_eq!(ask(&mut limiter, "a"), Some(40), "it fills half as fast");
        assert_eq!(ask(&mut limiter, "b"), None, "no more than the new limit is left");
        assert_eq!(ask(&mut limiter, "b"), Some(20));
        limiter.set(Some(RateLimits::per_minute(30, 1000, 300)));
        assert_eq!(ask(&mut limiter, "c"), Some(1), "it is larger than the limit");
        limiter.set(None);
        assert_eq!(limiter.admit(Dialect::Messages, "a", usage(1, 0, 0), now), None);
    }

    #[test]
    fn headers_are_those_of_the_provider() {
        let standing = limiter()
            .admit(Dialect::Messages, "a", usage(1500, 0, 60), Instant::now())
            .unwrap()
            .0;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        let said = |dialect| -> Vec<String> {
            let headers = standing.headers(dialect, now).into_iter();
            headers.map(|(name, value)| format!("{name}: {value}")).collect()
        };
        assert_eq!(
            said(Dialect::Messages),
            [
                "anthropic-ratelimit-requests-limit: 60",
                "anthropic-ratelimit-requests-remaining: 59",
                "anthropic-ratelimit-requests-reset: 2026-09-21T14:13:21Z",
                "anthropic-ratelimit-input-tokens-limit: 6000",
                "anthropic-ratelimit-input-tokens-remaining: 4500",
                "anthropic-ratelimit-input-tokens-reset: 2026-09-21T14:13:35Z",
                "anthropic-ratelimit-output-tokens-limit: 600",
                "anthropic-ratelimit-output-tokens-remaining: 540",
                "anthropic-ratelimit-output-tokens-reset: 2026-09-21T14:13:26Z",
            ]
        );
        assert_eq!(
            said(Dialect::Chat)[3..],
            [
                "x-ratelimit-limit-tokens: 6000",
                "x-ratelimit-remaining-tokens: 4500",
                "x-ratelimit-reset-tokens: 15000ms",
            ]
        );
        assert_eq!(said(Dialect::Gemini), Vec::<String>::new());
    }
}
