//! What providers tell about an account's limits in the headers of their answers.
//!
//! Anthropic: `anthropic-ratelimit-{requests,input-tokens,output-tokens}-{limit,remaining,reset}`, with the
//! reset as a time. OpenAI and those that speak like it: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`,
//! with the reset as a duration such as `6m0s`; their tokens are of input and answer together, and count here as
//! input.

use std::time::Duration;

use kage_core::call::{LimitTold, RateTold};
use kage_core::failure_table::parse_retry_after;
use kage_core::time::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// The wait that an answer asks for.
#[must_use]
pub fn asked_wait(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let millis = text(headers, "retry-after-ms").and_then(|value| value.parse().ok());
    let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    millis
        .map(Duration::from_millis)
        .or_else(|| asked.and_then(|value| parse_retry_after(value, now)))
}

/// What an answer tells; empty where it tells nothing that is understood.
#[must_use]
pub fn told(headers: &HeaderMap, now: Timestamp) -> RateTold {
    let anthropic = |what: &str| limit(headers, |part| format!("anthropic-ratelimit-{what}-{part}"), now);
    let openai = |what: &str| limit(headers, |part| format!("x-ratelimit-{part}-{what}"), now);
    RateTold {
        requests: anthropic("requests").or_else(|| openai("requests")),
        input: anthropic("input-tokens").or_else(|| openai("tokens")),
        output: anthropic("output-tokens"),
        retry_after: None,
    }
}

fn limit(headers: &HeaderMap, name: impl Fn(&str) -> String, now: Timestamp) -> Option<LimitTold> {
    let number = |part| text(headers, &name(part)).and_then(|value| value.parse().ok());
    Some(LimitTold {
        remaining: number("remaining")?,
        limit: number("limit"),
        reset: text(headers, &name("reset")).and_then(|value| reset(value, now)),
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Until a reset that is told as a time or as a duration.
fn reset(value: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(at) = value.parse::<jiff::Timestamp>() {
        let at = u64::try_from(at.as_millisecond()).ok()?;
        return Some(Timestamp::from_millis(at).since(now));
    }
    // `1s`, `6m0s`, `120ms`, and seconds without a unit.
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let span: jiff::SignedDuration = value.parse().ok()?;
    span.try_into().ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        });
        pairs.collect()
    }

    #[test]
    fn limits_are_read_in_both_spellings() {
        let now = Timestamp::from_millis(1_790_000_000_000);
        let at = jiff::Timestamp::from_millisecond(1_790_000_030_000)
            .unwrap()
            .to_string();
        let anthropic = headers(&[
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "0"),
            ("anthropic-ratelimit-requests-reset", &at),
            ("anthropic-ratelimit-input-tokens-limit", "30000"),
            ("anthropic-ratelimit-input-tokens-remaining", "29000"),
            ("anthropic-ratelimit-output-tokens-remaining", "7"),
        ]);
        let limit = |limit, remaining, reset: Option<u64>| LimitTold {
            limit,
            remaining,
            reset: reset.map(Duration::from_millis),
        };
        assert_eq!(
            told(&anthropic, now),
            RateTold {
                requests: Some(limit(Some(50), 0, Some(30_000))),
                input: Some(limit(Some(30_000), 29_000, None)),
                output: Some(limit(None, 7, None)),
                retry_after: None,
            }
        );
        let openai = headers(&[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "6m0s"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-tokens", "120ms"),
        ]);
        let read = told(&openai, now);
        assert_eq!(read.requests, Some(limit(Some(60), 59, Some(360_000))));
        assert_eq!(read.input, Some(limit(None, 149_984, Some(120))));
    }

    #[test]
    fn what_is_not_understood_tells_nothing() {
        let now = Timestamp::from_millis(1_790_000_000_000);
        assert!(told(&HeaderMap::new(), now).is_empty());
        let odd = headers(&[
            ("x-ratelimit-remaining-requests", "many"),
            ("anthropic-ratelimit-input-tokens-remaining", "-1"),
            ("x-ratelimit-limit-requests", "5"),
        ]);
        assert!(told(&odd, now).is_empty());
        let past = headers(&[
            ("anthropic-ratelimit-requests-remaining", "3"),
            ("anthropic-ratelimit-requests-reset", "2001-01-01T00:00:00Z"),
        ]);
        assert_eq!(told(&past, now).requests.unwrap().reset, Some(Duration::ZERO));
        for (value, expected) in [("7", Some(7000)), ("nonsense", None), ("-3", None)] {
            let waits = headers(&[("retry-after", value)]);
            assert_eq!(asked_wait(&waits, now), expected.map(Duration::from_millis), "{value}");
        }
        let waits = headers(&[("retry-after", "7"), ("retry-after-ms", "6500")]);
        assert_eq!(asked_wait(&waits, now), Some(Duration::from_millis(6500)));
    }
}
