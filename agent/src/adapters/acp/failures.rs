//! What an agent's error, or the way in which its turn ended, means. Agents put the reason into the message,
//! into `data` under keys of their own, or into an error of their provider as JSON.

use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::{FailureTable, ProviderError, Speaker};
use kage_core::time::LocalTime;
use serde_json::Value;

use super::rpc::{RpcError, code};
use crate::process::excerpt::one_line;

/// Characters of an error that are shown.
const SHOWN: usize = 400;

/// Whose words are classified, and with what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judge<'a> {
    pub(super) table: &'a FailureTable,
    pub(super) speaker: Speaker<'a>,
    pub(super) heard: LocalTime,
}

impl Judge<'_> {
    /// The failure of a request, which `doing` names.
    pub(super) fn error(&self, doing: &str, error: &RpcError) -> Failure {
        let words = words(error);
        let shown = one_line(&words, SHOWN);
        if error.code == code::AUTH_REQUIRED {
            return Failure::new(FailureKind::Auth, shown);
        }
        let known = self.table.classify(self.speaker, &words, self.heard);
        if let Some(kind) = own_kind(&error.data) {
            return Failure {
                retry_after: known.and_then(|known| known.retry_after),
                ..Failure::new(kind, shown)
            };
        }
        if let Some(known) = known {
            return known;
        }
        if let Some(status) = status(error) {
            return ProviderError {
                status: Some(status),
                message: &shown,
                heard: Some(self.heard),
                ..ProviderError::default()
            }
            .classify();
        }
        Failure::new(FailureKind::AdapterCrash, format!("the agent refused {doing}: {shown}"))
    }

    /// A turn in which nothing happened at all, though the agent says that it ended well.
    pub(super) fn nothing_happened(&self, wrote: &str) -> Failure {
        let text = "the agent ended its turn without a word and without using a tool; some do that when their \
                    key is refused: check it";
        match self.table.classify(self.speaker, wrote, self.heard) {
            Some(failure) => failure,
            None => Failure::new(FailureKind::AdapterCrash, text),
        }
    }
}

/// The end of a turn by its reason; `None`: it ended well.
pub(super) fn of_reason(reason: &str) -> Option<Failure> {
    let (kind, text) = match reason {
        "end_turn" => return None,
        "max_tokens" => (
            FailureKind::ContextOverflow,
            "the agent reached the most tokens that its model may use".to_owned(),
        ),
        "max_turn_requests" => (
            FailureKind::TurnLimit,
            "the agent reached the most calls of its model that a turn may have".to_owned(),
        ),
        "refusal" => (
            FailureKind::ModelRefused,
            "the agent refused to work on the task".to_owned(),
        ),
        "cancelled" => (FailureKind::AdapterCrash, "the agent cancelled its own turn".to_owned()),
        other => (
            FailureKind::AdapterCrash,
            format!(
                "the agent ended its turn for a reason that the protocol does not have: {}",
                one_line(other, 80)
            ),
        ),
    };
    Some(Failure::new(kind, text))
}

/// The words of an error, the most telling ones first.
fn words(error: &RpcError) -> String {
    let data = ["message", "details", "error"].into_iter();
    let data = data.filter_map(|key| error.data.get(key)?.as_str());
    let data = data.chain(error.data.as_str());
    let mut all = Vec::<String>::new();
    for text in data.chain([error.message.as_str()]) {
        let text = inner(text);
        // Most of them say "Internal error" and then the reason.
        if !text.is_empty() && all.iter().all(|known| !known.contains(&text)) {
            all.push(text);
        }
    }
    if all.is_empty() {
        all.push(format!("error {}", error.code));
    }
    all.join("; ")
}

/// The message in a provider's error that was passed on as JSON, with the reason that it names.
fn inner(text: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        return text.trim().to_owned();
    };
    let Some(message) = value.pointer("/error/message").and_then(Value::as_str) else {
        return text.trim().to_owned();
    };
    let reason = value.pointer("/error/details/0/reason").and_then(Value::as_str);
    match reason {
        Some(reason) => format!("{message} ({reason})"),
        None => message.to_owned(),
    }
}

/// The class that an agent names itself.
fn own_kind(data: &Value) -> Option<FailureKind> {
    Some(match data.get("errorKind")?.as_str()? {
        "authentication_failed" | "oauth_org_not_allowed" => FailureKind::Auth,
        "rate_limit" => FailureKind::RateLimited,
        "billing_error" => FailureKind::QuotaExhausted,
        "overloaded" | "server_error" => FailureKind::Overloaded,
        "invalid_request" | "model_not_found" => FailureKind::InvalidRequest,
        "prompt_too_long" => FailureKind::ContextOverflow,
        _ => return None,
    })
}

/// The HTTP status of a provider, as the code of the error or somewhere in its data.
fn status(error: &RpcError) -> Option<u16> {
    fn find(value: &Value, depth: usize) -> Option<u64> {
        let object = value.as_object().filter(|_| depth > 0)?;
        let named = ["http_status_code", "statusCode", "status"];
        let own = named.into_iter().find_map(|key| object.get(key)?.as_u64());
        own.or_else(|| object.values().find_map(|value| find(value, depth - 1)))
    }
    let told = u64::try_from(error.code).ok().or_else(|| find(&error.data, 4))?;
    u16::try_from(told).ok().filter(|status| (400..600).contains(status))
}

#[cfg(test)]
mod tests {
    use kage_core::time::Timestamp;
    use serde_json::json;

    use super::*;

    fn kind(family: &str, code: i64, message: &str, data: Value) -> FailureKind {
        let judge = Judge {
            table: FailureTable::builtin(),
            speaker: Speaker {
                adapter: "mine",
                family,
            },
            heard: LocalTime::utc(Timestamp::from_millis(1_790_000_000_000)),
        };
        let message = message.to_owned();
        judge.error("session/prompt", &RpcError { code, message, data }).kind
    }

    /// As the agents said them.
    #[test]
    fn errors_of_real_agents_have_their_class() {
        let none = || Value::Null;
        let refused = "{\"error\":{\"code\":400,\"message\":\"API key not valid. Please pass a valid API key.\",\
            \"status\":\"INVALID_ARGUMENT\",\"details\":[{\"reason\":\"API_KEY_INVALID\"}]}}";
        for (family, code, message, data, expected) in [
            ("gemini", 400, refused, none(), FailureKind::Auth),
            (
                "claude-code",
                -32603,
                "Internal error: Invalid API key \u{b7} Fix external API key",
                json!({"errorKind": "authentication_failed"}),
                FailureKind::Auth,
            ),
            (
                "claude-code",
                -32603,
                "Internal error: API Error: Request rejected (429)",
                json!({"errorKind": "rate_limit"}),
                FailureKind::RateLimited,
            ),
            (
                "codex",
                -32603,
                "Internal error",
                json!({"message": "unexpected status 401 Unauthorized: Incorrect API key provided: sk-fake.",
                       "codex_error_info": "other"}),
                FailureKind::Auth,
            ),
            (
                "codex",
                -32603,
                "Internal error",
                json!({"message": "exceeded retry limit, last status: 429 Too Many Requests",
                       "codex_error_info": {"response_too_many_failed_attempts": {"http_status_code": 429}}}),
                FailureKind::RateLimited,
            ),
            (
                "opencode",
                -32603,
                "Internal error: Incorrect API key provided: sk-fake. You can find your API key at https://x.",
                json!({"service": "session", "errorName": "APIError"}),
                FailureKind::Auth,
            ),
            (
                "qwen",
                -32603,
                "Internal error",
                json!({"details": "401 Incorrect API key provided: sk-fake."}),
                FailureKind::Auth,
            ),
            ("", -32000, "Authentication required: 401 no", none(), FailureKind::Auth),
            (
                "",
                -32603,
                "x",
                json!({"a": {"b": {"status": 503}}}),
                FailureKind::Overloaded,
            ),
            ("", 404, "no such model", none(), FailureKind::InvalidRequest),
            ("", -32601, "Method not found", none(), FailureKind::AdapterCrash),
            ("", 0, "", none(), FailureKind::AdapterCrash),
        ] {
            assert_eq!(kind(family, code, message, data.clone()), expected, "{message} {data}");
        }
    }

    #[test]
    fn a_turn_has_ended_well_for_one_reason_only() {
        assert_eq!(of_reason("end_turn"), None);
        for (reason, expected) in [
            ("max_tokens", FailureKind::ContextOverflow),
            ("max_turn_requests", FailureKind::TurnLimit),
            ("refusal", FailureKind::ModelRefused),
            ("cancelled", FailureKind::AdapterCrash),
            ("because", FailureKind::AdapterCrash),
            ("", FailureKind::AdapterCrash),
        ] {
            assert_eq!(of_reason(reason).unwrap().kind, expected, "{reason}");
        }
    }
}
