//! Whether a coordinator answers, whether it accepts the caller, and how much its clock differs
//! from this machine's.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use kage_agent::identity::enrolment;
use kage_agent::identity::renewal::Validity;
use kage_agent::identity::trust::http_client;
use kage_core::cause::{causes, chain};
use kage_proto::client::Credentials;
use reqwest::StatusCode;
use reqwest::header::DATE;
use serde::Serialize;

use crate::connect;
use crate::invocation::Invocation;
use crate::settings::Settings;

/// Time limit of the coordinator's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clocks that differ by more make certificates and tokens end too early or too late.
const CLOCKS_DIFFER: f64 = 60.0;
/// A blob that does not exist: the answer shows whether the caller is accepted.
const NOTHING: &str = "/v1/blobs/default/0000000000000000000000000000000000000000000000000000000000000000";

#[derive(Debug, Default, Serialize)]
pub(super) struct Connection {
    pub(super) url: String,
    /// It answered and accepts the caller.
    pub(super) reached: bool,
    /// The seconds by which its clock is ahead of this one.
    pub(super) clock_ahead_seconds: Option<f64>,
    /// The end of the agent's certificate, if that is the credential.
    pub(super) certificate_until: Option<String>,
}

/// Looks at the coordinator that was named, is set, or runs here; `None` without any.
pub(super) async fn check(
    invocation: &Invocation,
    named: Option<String>,
    problems: &mut Vec<String>,
) -> Option<Connection> {
    let (url, credentials) = match named {
        Some(url) => match enrolment::stored(&invocation.state.agent()) {
            Ok(Some(credentials)) => (url, credentials),
            Ok(None) => {
                problems.push(format!(
                    "the agent of this machine has not joined, so it cannot show itself to {url}; \
                     use kage agent run --join TOKEN HOST:PORT"
                ));
                return None;
            }
            Err(error) => {
                problems.push(format!("the agent's certificate cannot be read: {error}"));
                return None;
            }
        },
        None => match &invocation.settings.coordinator.url {
            Some(url) => match set(&invocation.settings) {
                Ok(credentials) => (url.clone(), credentials),
                Err(problem) => {
                    problems.push(problem);
                    return None;
                }
            },
            None => {
                let access = match connect::running(&invocation.state).await {
                    Ok(access) => access?,
                    Err(error) => {
                        problems.push(chain(&error));
                        return None;
                    }
                };
                (access.url, access.credentials)
            }
        },
    };
    let mut connection = Connection {
        url: url.clone(),
        ..Connection::default()
    };
    if let Some(identity) = &credentials.identity {
        match Validity::of(identity.certificate.content()) {
            Some(validity) => {
                connection.certificate_until = Some(validity.until.to_string());
                if let Some(problem) = certificate_problem(validity, now_seconds()) {
                    problems.push(problem);
                }
            }
            None => problems.push("the agent's certificate cannot be read; join again".to_owned()),
        }
    }
    match ask(&url, &credentials).await {
        Ok((status, ahead)) => {
            connection.clock_ahead_seconds = ahead;
            match status {
                // It accepts the caller, and has no such blob.
                StatusCode::NOT_FOUND => connection.reached = true,
                StatusCode::UNAUTHORIZED => {
                    problems.push(format!("{url} does not know the token or certificate shown"))
                }
                other => problems.push(format!(
                    "{url} answers {other}: the token or certificate was revoked, or expired"
                )),
            }
            if let Some(ahead) = ahead.filter(|ahead| ahead.abs() > CLOCKS_DIFFER) {
                problems.push(format!(
                    "the coordinator's clock is {:.0} seconds {} this machine's; set the clocks, for example with NTP",
                    ahead.abs(),
                    if ahead > 0.0 { "ahead of" } else { "behind" }
                ));
            }
        }
        Err(problem) => problems.push(problem),
    }
    Some(connection)
}

fn set(settings: &Settings) -> Result<Credentials, String> {
    let coordinator = &settings.coordinator;
    let token = coordinator
        .token_file
        .as_ref()
        .ok_or("coordinator.url is set, but coordinator.token_file is not")?;
    let text = std::fs::read_to_string(token).map_err(|error| format!("{}: {error}", token.display()))?;
    let credentials = Credentials::bearer(&text);
    let Some(ca) = &coordinator.ca_file else {
        return Ok(credentials);
    };
    let ca = kage_proto::client::PemFile::read(ca).map_err(|error| format!("{}: {error}", ca.display()))?;
    Ok(credentials.trusting(ca))
}

fn certificate_problem(validity: Validity, now_seconds: f64) -> Option<String> {
    let seconds = |time: kage_core::time::Timestamp| time.as_millis() as f64 / 1000.0;
    if seconds(validity.until) <= now_seconds {
        return Some(format!(
            "the agent's certificate ended at {}; remove tls/ from its state folder and join again",
            validity.until
        ));
    }
    // A running agent tries to renew it every hour.
    let late = seconds(validity.renewal()) + 24.0 * 3600.0 < now_seconds;
    late.then(|| {
        format!(
            "the agent's certificate ends at {} and should have been renewed at {}; is the agent running?",
            validity.until,
            validity.renewal()
        )
    })
}

fn now_seconds() -> f64 {
    Timestamp::now().as_millisecond() as f64 / 1000.0
}

/// How the coordinator answers, and by how many seconds its clock is ahead.
async fn ask(url: &str, credentials: &Credentials) -> Result<(StatusCode, Option<f64>), String> {
    let unusable = |error: reqwest::Error| format!("what would be shown to {url} cannot be used: {error}");
    let client = http_client(credentials).and_then(|builder| builder.timeout(PATIENCE).no_proxy().build());
    let client = client.map_err(unusable)?;
    let path = format!("{}{NOTHING}", url.trim_end_matches('/'));
    let before = now_seconds();
    let response = client.get(path).send().await;
    let response = response.map_err(|error| {
        let why = causes(&error).last().map(ToString::to_string);
        format!("{url} cannot be reached: {}", why.unwrap_or_default())
    })?;
    let middle = f64::midpoint(before, now_seconds());
    let date = response.headers().get(DATE).and_then(|value| value.to_str().ok());
    let theirs = date.and_then(|date| rfc2822::parse(date).ok());
    // The header has whole seconds: half a second is missing on average.
    let ahead = theirs.map(|theirs| theirs.timestamp().as_second() as f64 + 0.5 - middle);
    Ok((response.status(), ahead))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_a_problem_when_it_ended_or_nobody_renews_it() {
        let day = 24.0 * 3600.0;
        let at = |days: u64| kage_core::time::Timestamp::from_millis(days * 24 * 3600 * 1000);
        let validity = Validity {
            from: at(0),
            until: at(90),
        };
        assert_eq!(certificate_problem(validity, 59.0 * day), None);
        assert_eq!(certificate_problem(validity, 60.5 * day), None);
        assert!(
            certificate_problem(validity, 62.0 * day)
                .unwrap()
                .contains("should have been renewed")
        );
        assert!(
            certificate_problem(validity, 90.0 * day)
                .unwrap()
                .contains("join again")
        );
    }
}
