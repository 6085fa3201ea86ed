//! One request to a token endpoint: a refresh token for the next pair (RFC 6749, section 6). What the
//! server says is never shown whole, because it may repeat tokens.

use std::time::Duration;

use kage_core::time::Timestamp;
use reqwest::StatusCode;
use serde_json::{Map, Value};

use super::file::NewTokens;
use super::rule::{RequestForm, TokenServer};
use super::token::Token;
use crate::ports::Clock;

/// How long a server may take. Locks of logins are held meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// The life of a token about which the server says nothing.
const USUAL: Duration = Duration::from_secs(60 * 60);
/// The most bytes of an answer that are read.
const LONGEST: usize = 64 << 10;
/// The longest code of a server that is shown.
const CODE: usize = 60;

/// Why there are no new tokens.
#[derive(Debug, thiserror::Error)]
pub(super) enum RefreshError {
    /// The refresh token is good for nothing any more.
    #[error("the server refused the refresh token ({0})")]
    Refused(String),
    /// The server does not accept this client or this request; the token may be good.
    #[error("the server does not accept the request ({0})")]
    Misunderstood(String),
    #[error("the server cannot give a token now ({0})")]
    Away(String),
    #[error("the server cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("the server's answer has no access token")]
    Answer,
}

/// Exchanges a refresh token. The caller has to keep what comes back: the token that was sent is
/// spent.
pub(super) async fn exchange(
    client: &reqwest::Client,
    server: &TokenServer,
    refresh: &Token,
    scopes: Option<&str>,
    clock: &Clock,
) -> Result<NewTokens, RefreshError> {
    let mut fields = vec![
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh.reveal()),
        ("client_id", &server.client),
    ];
    fields.extend(server.client_secret.as_deref().map(|secret| ("client_secret", secret)));
    fields.extend(scopes.map(|scopes| ("scope", scopes)));
    let request = client
        .post(&server.url)
        .timeout(PATIENCE)
        .header("accept", "application/json");
    let request = match server.request {
        RequestForm::Json => {
            let fields = fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Value::from(value)));
            request.json(&Value::Object(fields.collect::<Map<_, _>>()))
        }
        RequestForm::Form => {
            let body = url::form_urlencoded::Serializer::new(String::new())
                .extend_pairs(fields)
                .finish();
            request
                .header("content-type", "application/x-www-form-urlencoded")
                .body(body)
        }
    };
    let mut response = request
        .send()
        .await
        .map_err(|error| RefreshError::Unreachable(error.without_url()))?;
    let status = response.status();
    let body = body(&mut response).await;
    let answer = body.map(|body| serde_json::from_slice(&body).unwrap_or(Value::Null));
    if !status.is_success() {
        return Err(refusal(status, &answer.unwrap_or(Value::Null)));
    }
    let answer = answer.map_err(|error| RefreshError::Unreachable(error.without_url()))?;
    let token = |name: &str| answer.get(name).and_then(Value::as_str).and_then(Token::new);
    let life = answer.get("expires_in").and_then(Value::as_f64);
    let life = life
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(USUAL);
    Ok(NewTokens {
        access: token("access_token").ok_or(RefreshError::Answer)?,
        refresh: token("refresh_token"),
        life,
        until: clock() + life,
    })
}

/// The body, up to a length that no answer has.
async fn body(response: &mut reqwest::Response) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        body.extend_from_slice(&piece);
        if body.len() > LONGEST {
            break;
        }
    }
    Ok(body)
}

/// What an answer without tokens means.
fn refusal(status: StatusCode, answer: &Value) -> RefreshError {
    let named = answer.get("error");
    let code = named.and_then(|error| error.as_str().or_else(|| error.get("type")?.as_str()));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let code = code.filter(|code| code.len() <= CODE && code.chars().all(plain));
    let said = match code {
        Some(code) => format!("HTTP {}, {code}", status.as_u16()),
        None => format!("HTTP {}", status.as_u16()),
    };
    match (status.as_u16(), code) {
        (408 | 429 | 500.., _) => RefreshError::Away(said),
        (
            _,
            Some(
                "invalid_client"
                | "unauthorized_client"
                | "unsupported_grant_type"
                | "invalid_scope"
                | "invalid_request",
            ),
        ) => RefreshError::Misunderstood(said),
        (_, Some("invalid_grant")) | (400 | 401, _) => RefreshError::Refused(said),
        (_, _) => RefreshError::Misunderstood(said),
    }
}

/// The time that a caller waits at least between two tries at a server that is away.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// Whether a try at this time comes too soon after the one that failed.
pub(super) fn too_soon(failed: Option<Timestamp>, now: Timestamp) -> bool {
    failed.is_some_and(|failed| now.since(failed) < AGAIN && failed <= now)
}
