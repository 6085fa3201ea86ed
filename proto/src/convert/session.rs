//! Sessions as people see them. The way back does not exist: a client shows wire
//! sessions and decodes the parts that it decides on (verdict, result, failure).

use kage_core::session::{Session, SessionState};
use kage_core::usage::Money;

use super::optional_millis;
use crate::v1;

impl From<&SessionState> for v1::SessionState {
    fn from(state: &SessionState) -> Self {
        match state {
            SessionState::Queued => Self::Queued,
            SessionState::Running { .. } => Self::Running,
            SessionState::Claimed { .. } => Self::Claimed,
            SessionState::Verifying { .. } => Self::Verifying,
            SessionState::Verified { .. } => Self::Verified,
            SessionState::Rejected { .. } => Self::Rejected,
            SessionState::Unverified { .. } => Self::Unverified,
            SessionState::Failed { .. } => Self::Failed,
            SessionState::Cancelled => Self::Cancelled,
        }
    }
}

/// A session with what it cost so far and, while it is queued, why it waits.
#[must_use]
pub fn session(session: &Session, money: impl IntoIterator<Item = Money>, waiting: Option<String>) -> v1::Session {
    let (activity, activity_at) = match &session.activity {
        Some((text, at)) => (text.clone(), Some(*at)),
        None => (String::new(), None),
    };
    let failure = match &session.state {
        SessionState::Failed { failure } => Some(failure.clone().into()),
        SessionState::Queued
        | SessionState::Running { .. }
        | SessionState::Claimed { .. }
        | SessionState::Verifying { .. }
        | SessionState::Verified { .. }
        | SessionState::Rejected { .. }
        | SessionState::Unverified { .. }
        | SessionState::Cancelled => None,
    };
    v1::Session {
        id: session.id.to_string(),
        name: session.name.to_string(),
        adapter: session.adapter.to_string(),
        model: session.model.clone().unwrap_or_default(),
        state: v1::SessionState::from(&session.state).into(),
        agent: session.agent.clone().unwrap_or_default(),
        attempts: session.attempts,
        activity,
        activity_at_ms: optional_millis(activity_at),
        usage: Some(session.total_usage().into()),
        money: money.into_iter().map(Into::into).collect(),
        result: session.state.result().cloned().map(Into::into),
        verdict: session.state.verdict().cloned().map(Into::into),
        failure,
        waiting: waiting.unwrap_or_default(),
        started_at_ms: optional_millis(session.started_at),
        ended_at_ms: optional_millis(session.ended_at),
        call_retries: session.call_retries,
    }
}

#[cfg(test)]
mod tests {
    use kage_core::failure::{Failure, FailureKind};
    use kage_core::id::{AttemptId, SessionId, TaskId};

    use super::*;

    #[test]
    fn shows_the_parts_of_the_state() {
        let mut domain = Session::new(
            SessionId::from_random(1),
            TaskId::from_random(2),
            "one".parse().unwrap(),
            "shell".parse().unwrap(),
            None,
        );
        let wire = session(&domain, [], Some("no agent".into()));
        assert_eq!(wire.state(), v1::SessionState::Queued);
        assert_eq!((wire.waiting.as_str(), wire.started_at_ms), ("no agent", 0));
        domain.state = SessionState::Running {
            attempt: AttemptId::from_random(3),
        };
        assert_eq!(session(&domain, [], None).state(), v1::SessionState::Running);
        domain.state = SessionState::Failed {
            failure: Failure::new(FailureKind::Auth, "no key"),
        };
        let wire = session(&domain, [], None);
        assert_eq!(wire.failure.map(|f| f.message), Some("no key".into()));
    }
}
