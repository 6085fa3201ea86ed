//! Calls of models: what is asked before one, and what is told of it.

use std::num::NonZeroU32;
use std::time::Duration;

use kage_core::call::{Ask, CallEnd, CallRef, LimitTold, MAX_REQUEST_ID, OutputBounds, Prefix, RateTold, Spent};
use kage_core::id::CallId;

use super::agent::AttemptKey;
use super::time::{duration, span};
use super::{InvalidField, enumerated, non_empty, parse, required, unspecified, value};
use crate::v1;

/// The most bytes kept of a model's name.
const LONGEST_MODEL: usize = 300;
/// The longest time that a provider's word on waiting counts for.
const LONGEST_WAIT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A text up to so many bytes.
fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

impl From<CallRef> for v1::CallRef {
    fn from(call: CallRef) -> Self {
        Self {
            call_id: call.id.to_string(),
            account: call.account.into(),
            cut: call.end == CallEnd::Cut,
            provider_request_id: call.request.unwrap_or_default(),
        }
    }
}

/// The call of an event. One that cannot be read is as good as none: the event counts all the same.
pub(super) fn call_ref(call: v1::CallRef) -> Option<CallRef> {
    Some(CallRef {
        id: call.call_id.parse().ok()?,
        account: call.account.parse().ok()?,
        end: if call.cut { CallEnd::Cut } else { CallEnd::Whole },
        request: non_empty(cut(call.provider_request_id, MAX_REQUEST_ID)),
    })
}

/// The wire form of a question.
#[must_use]
pub fn reserve(key: AttemptKey, call: CallId, ask: Ask) -> v1::ReserveRequest {
    v1::ReserveRequest {
        key: Some(key.into()),
        call_id: call.to_string(),
        account: ask.account.into(),
        model: ask.model,
        free: ask.free,
        prefix: ask.prefix.map(|prefix| v1::PromptPrefix {
            digest: prefix.digest.into(),
            tokens: prefix.tokens,
        }),
        input_bound: ask.input,
        output_most: ask.output.most.get(),
        output_usual: ask.output.usual.get(),
    }
}

/// A question, its attempt and its call.
///
/// # Errors
/// When a field cannot be what it says.
pub fn read_reserve(request: v1::ReserveRequest) -> Result<(AttemptKey, CallId, Ask), InvalidField> {
    let tokens = |field: &str, tokens: u32| {
        NonZeroU32::new(tokens).ok_or_else(|| InvalidField::new(field, "is 0; an answer has at least one token"))
    };
    let most = tokens("output_most", request.output_most)?;
    let prefix = request.prefix.map(|prefix| {
        let digest = parse("prefix.digest", &prefix.digest)?;
        let tokens = prefix.tokens;
        Ok(Prefix { digest, tokens })
    });
    let ask = Ask {
        account: parse("account", &request.account)?,
        model: cut(request.model, LONGEST_MODEL),
        free: request.free,
        prefix: prefix.transpose()?,
        input: request.input_bound,
        output: OutputBounds {
            most,
            usual: tokens("output_usual", request.output_usual)?.min(most),
        },
    };
    let (key, call) = key_and_call(request.key, &request.call_id)?;
    Ok((key, call, ask))
}

fn read_key(key: Option<v1::AttemptKey>) -> Result<AttemptKey, InvalidField> {
    AttemptKey::try_from(required("key", key)?).map_err(|invalid| invalid.within("key"))
}

/// The attempt and the call of a request.
///
/// # Errors
/// When one of them cannot be read.
pub fn key_and_call(key: Option<v1::AttemptKey>, call: &str) -> Result<(AttemptKey, CallId), InvalidField> {
    Ok((read_key(key)?, parse("call_id", call)?))
}

/// The wire form of the question whether a program may start.
#[must_use]
pub fn may_start(key: AttemptKey) -> v1::MayStartRequest {
    v1::MayStartRequest { key: Some(key.into()) }
}

/// The attempt of a program that may start or not.
///
/// # Errors
/// When it cannot be read.
pub fn read_may_start(request: v1::MayStartRequest) -> Result<AttemptKey, InvalidField> {
    read_key(request.key)
}

/// The wire form of what a call used.
#[must_use]
pub fn commit(key: AttemptKey, call: CallId, spent: Spent, told: &RateTold) -> v1::CommitRequest {
    let end = match spent.end {
        CallEnd::Whole => v1::CallEnd::Whole,
        CallEnd::Cut => v1::CallEnd::Cut,
    };
    v1::CommitRequest {
        key: Some(key.into()),
        call_id: call.to_string(),
        model: spent.model,
        usage: Some(spent.usage.into()),
        end: end.into(),
        provider_request_id: spent.request.unwrap_or_default(),
        limits: limits(told),
    }
}

/// What a call used.
///
/// # Errors
/// When a field cannot be what it says.
pub fn read_commit(request: v1::CommitRequest) -> Result<(AttemptKey, CallId, Spent, RateTold), InvalidField> {
    let (key, call) = key_and_call(request.key, &request.call_id)?;
    let end = match enumerated("end", request.end)? {
        v1::CallEnd::Unspecified => return Err(unspecified("end")),
        v1::CallEnd::Whole => CallEnd::Whole,
        v1::CallEnd::Cut => CallEnd::Cut,
    };
    let spent = Spent {
        model: cut(request.model, LONGEST_MODEL),
        usage: value::plausible(required("usage", request.usage)?.into()),
        end,
        request: non_empty(cut(request.provider_request_id, MAX_REQUEST_ID)),
    };
    Ok((key, call, spent, read_limits(request.limits)))
}

/// What a provider told, if it told anything.
#[must_use]
pub fn limits(told: &RateTold) -> Option<v1::ProviderLimits> {
    let limit = |told: Option<LimitTold>| {
        told.map(|told| v1::ProviderLimit {
            limit: told.limit,
            remaining: told.remaining,
            reset: told.reset.map(span),
        })
    };
    (!told.is_empty()).then(|| v1::ProviderLimits {
        requests: limit(told.requests),
        input: limit(told.input),
        output: limit(told.output),
        retry_after: told.retry_after.map(span),
    })
}

/// What a provider told.
#[must_use]
pub fn read_limits(limits: Option<v1::ProviderLimits>) -> RateTold {
    let limits = limits.unwrap_or_default();
    let wait = |time| duration(time).min(LONGEST_WAIT);
    let limit = |told: Option<v1::ProviderLimit>| {
        told.map(|told| LimitTold {
            limit: told.limit,
            remaining: told.remaining,
            reset: told.reset.map(wait),
        })
    };
    RateTold {
        requests: limit(limits.requests),
        input: limit(limits.input),
        output: limit(limits.output),
        retry_after: limits.retry_after.map(wait),
    }
}

#[cfg(test)]
mod tests {
    use kage_core::id::{AttemptId, AttemptToken, Digest};
    use kage_core::usage::Usage;

    use super::*;

    fn key() -> AttemptKey {
        AttemptKey {
            attempt: AttemptId::from_random(1),
            token: AttemptToken::from_random(2),
        }
    }

    fn tokens(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    #[test]
    fn a_question_survives_the_wire() {
        let ask = Ask {
            account: "anthropic/0123456789ab".parse().unwrap(),
            model: "claude-opus-5-5".to_owned(),
            free: false,
            prefix: Some(Prefix {
                digest: Digest::of(b"prefix"),
                tokens: 900,
            }),
            input: 1234,
            output: OutputBounds::of(tokens(128_000), false),
        };
        let call = CallId::from_random(3);
        let wire = reserve(key(), call, ask.clone());
        assert_eq!(read_reserve(wire.clone()).unwrap(), (key(), call, ask));
        type Spoil = fn(&mut v1::ReserveRequest);
        let spoils: [(&str, Spoil); 5] = [
            ("key", |wire| wire.key = None),
            ("call_id", |wire| wire.call_id = "x".to_owned()),
            ("account", |wire| wire.account = String::new()),
            ("output_most", |wire| wire.output_most = 0),
            ("output_usual", |wire| wire.output_usual = 0),
        ];
        for (field, spoil) in spoils {
            let mut wire = wire.clone();
            spoil(&mut wire);
            assert_eq!(read_reserve(wire).unwrap_err().field, field);
        }
        let mut greedy = wire;
        greedy.output_usual = u32::MAX;
        let (_, _, ask) = read_reserve(greedy).unwrap();
        assert_eq!(ask.output.usual, ask.output.most);
    }

    #[test]
    fn what_a_call_used_survives_the_wire() {
        let spent = Spent {
            model: "m".to_owned(),
            usage: Usage {
                input: 5,
                output: 6,
                ..Usage::default()
            },
            end: CallEnd::Cut,
            request: Some("req_1".to_owned()),
        };
        let told = RateTold {
            requests: Some(LimitTold {
                limit: Some(50),
                remaining: 49,
                reset: Some(Duration::from_secs(3)),
            }),
            retry_after: Some(Duration::from_secs(2)),
            ..RateTold::default()
        };
        let call = CallId::from_random(3);
        let wire = commit(key(), call, spent.clone(), &told);
        assert_eq!(read_commit(wire.clone()).unwrap(), (key(), call, spent, told));
        let unspecified = v1::CommitRequest { end: 0, ..wire };
        assert_eq!(read_commit(unspecified).unwrap_err().field, "end");
        assert_eq!(limits(&RateTold::default()), None);
        assert!(read_limits(None).is_empty());
    }
}
