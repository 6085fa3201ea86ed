//! Sessions as people see them. The way back does not exist: a client shows wire
//! sessions and decodes the parts that it decides on (verdict, result, failure).

use std::time::Duration;

use kage_core::checkpoint::Resumption;
use kage_core::recovery::{Action, Confidence, Incident};
use kage_core::session::{Fork, MessageState, Question, Session, SessionMessage, SessionState, Unclaimed};
use kage_core::usage::Money;

use super::time::{span, stamp};
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
            SessionState::Cancelled { .. } => Self::Cancelled,
            SessionState::Saving { .. } => Self::Saving,
        }
    }
}

impl v1::SessionState {
    /// True when the session's state will not change any more.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        match self {
            Self::Unspecified | Self::Queued | Self::Running | Self::Claimed | Self::Verifying | Self::Saving => false,
            Self::Verified | Self::Rejected | Self::Unverified | Self::Failed | Self::Cancelled => true,
        }
    }
}

impl v1::JobKind {
    /// The word for it, as in rows of the store and in texts.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Session => "session",
            Self::Verify => "verify",
            Self::Baseline => "baseline",
        }
    }

    /// The kind of this word.
    #[must_use]
    pub fn of_word(word: &str) -> Self {
        [Self::Session, Self::Verify, Self::Baseline]
            .into_iter()
            .find(|kind| kind.as_str() == word)
            .unwrap_or_default()
    }
}

/// A session; while it is queued, why it waits; how long its attempts ran.
#[must_use]
pub fn session(session: &Session, waiting: Option<String>, ran: Duration) -> v1::Session {
    let costs = session.costs();
    let (activity, activity_at) = match &session.activity {
        Some((text, at)) => (text.clone(), Some(*at)),
        None => (String::new(), None),
    };
    let before = match &session.ended_as {
        Some(Unclaimed::Failed { failure }) => Some(failure.clone().into()),
        Some(Unclaimed::Cancelled) | None => None,
    };
    let failure = match &session.state {
        SessionState::Failed { failure, .. }
        | SessionState::Saving {
            end: Unclaimed::Failed { failure },
        } => Some(failure.clone().into()),
        SessionState::Queued
        | SessionState::Running { .. }
        | SessionState::Claimed { .. }
        | SessionState::Verifying { .. }
        | SessionState::Verified { .. }
        | SessionState::Rejected { .. }
        | SessionState::Unverified { .. }
        | SessionState::Saving {
            end: Unclaimed::Cancelled,
        }
        | SessionState::Cancelled { .. } => before,
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
        activity_at: activity_at.map(stamp),
        usage: (!session.usage.is_empty()).then(|| session.total_usage().into()),
        money: costs.all.into_iter().map(Into::into).collect(),
        models: models(session, costs.by_model),
        calls: session.calls.answered,
        tools: session.tools.clone().map(Into::into),
        result: session.state.result().cloned().map(Into::into),
        verdict: session.state.verdict().cloned().map(Into::into),
        failure,
        waiting: waiting.unwrap_or_default(),
        started_at: session.started_at.map(stamp),
        ended_at: session.ended_at.map(stamp),
        call_retries: session.calls.repeated,
        incidents: session.incidents.iter().map(Into::into).collect(),
        warnings: session.warnings.clone(),
        checkpoints: session.checkpoints.taken,
        head: session.checkpoints.head.as_ref().map_or(0, |head| head.number),
        resumptions: session.checkpoints.resumptions.iter().map(Into::into).collect(),
        reworks: session.reworks,
        ran: Some(span(ran)),
        is_unfinished: session.is_unfinished(),
        messages: session.messages.kept.iter().map(Into::into).collect(),
        questions: session.open_questions().iter().map(Into::into).collect(),
        fork: session.fork.as_ref().map(Into::into),
        contained: session
            .contained
            .map(|tier| v1::ContainmentTier::from(tier).into())
            .unwrap_or_default(),
    }
}

impl From<&SessionMessage> for v1::SessionMessage {
    fn from(message: &SessionMessage) -> Self {
        let (state, attempt) = match message.state {
            MessageState::Waiting => (v1::MessageState::Waiting, 0),
            MessageState::Told { attempt } => (v1::MessageState::Told, attempt),
            MessageState::Given { attempt, .. } => (v1::MessageState::Given, attempt),
            MessageState::Followed { attempt, .. } => (v1::MessageState::Followed, attempt),
            MessageState::TakenBack => (v1::MessageState::TakenBack, 0),
        };
        Self {
            number: message.number,
            text: message.text.clone(),
            sent_by: message.by.clone(),
            sent_at: Some(stamp(message.at)),
            state: state.into(),
            attempt,
            summary: message.words(),
        }
    }
}

impl From<&Question> for v1::Question {
    fn from(question: &Question) -> Self {
        let answer = question.answer.as_ref();
        Self {
            number: question.number,
            about: question.about.clone(),
            asked_at: Some(stamp(question.asked_at)),
            until: Some(stamp(question.until())),
            answered_by: answer.map(|answer| answer.by.clone()).unwrap_or_default(),
            allowed: answer.is_some_and(|answer| answer.allow),
        }
    }
}

impl From<&Fork> for v1::SessionFork {
    fn from(fork: &Fork) -> Self {
        Self {
            session: fork.from.to_string(),
            checkpoint: fork.checkpoint,
            forked_by: fork.by.clone(),
            forked_at: Some(stamp(fork.at)),
            summary: fork.words(),
        }
    }
}

fn models(session: &Session, money: Vec<Vec<Money>>) -> Vec<v1::ModelUsage> {
    let entries = session.usage.iter().zip(money);
    entries
        .map(|(entry, money)| v1::ModelUsage {
            model: entry.model.clone(),
            metered: entry.metered,
            usage: Some(entry.usage.into()),
            money: money.into_iter().map(Into::into).collect(),
            price: entry.price.as_ref().map(ToString::to_string).unwrap_or_default(),
        })
        .collect()
}

impl From<&Resumption> for v1::Resumption {
    fn from(resumption: &Resumption) -> Self {
        Self {
            attempt: resumption.attempt,
            checkpoint: resumption.number,
            commit: resumption.commit.to_string(),
            position: resumption.position,
            repeated_calls: resumption.repeated_calls,
        }
    }
}

impl From<&Incident> for v1::Incident {
    fn from(incident: &Incident) -> Self {
        let decision = &incident.decision;
        Self {
            at: Some(stamp(incident.at)),
            job: if incident.verify {
                v1::JobKind::Verify
            } else {
                v1::JobKind::Session
            }
            .into(),
            attempt: incident.attempt,
            agent: incident.agent.clone().unwrap_or_default(),
            failure: Some(incident.failure.clone().into()),
            action: v1::RecoveryAction::from(decision.action).into(),
            next_attempt_at: decision.action.next_attempt().map(stamp),
            reason: decision.reason.clone(),
            confidence: v1::Confidence::from(decision.confidence).into(),
            summary: incident.words(),
        }
    }
}

impl From<Action> for v1::RecoveryAction {
    fn from(action: Action) -> Self {
        match action {
            Action::RetryCurrent { .. } => Self::RetryCurrent,
            Action::RollbackLast { .. } => Self::RollbackLast,
            Action::RollbackSafe { .. } => Self::RollbackSafe,
            Action::Rework { .. } => Self::Rework,
            Action::MoveAgent { .. } => Self::MoveAgent,
            Action::SwitchAdapter { .. } => Self::SwitchAdapter,
            Action::HoldUntil { .. } => Self::HoldUntil,
            Action::Escalate => Self::Escalate,
        }
    }
}

impl From<Confidence> for v1::Confidence {
    fn from(confidence: Confidence) -> Self {
        match confidence {
            Confidence::Low => Self::Low,
            Confidence::Medium => Self::Medium,
            Confidence::High => Self::High,
        }
    }
}

#[cfg(test)]
mod tests {
    use kage_core::failure::{Failure, FailureKind};
    use kage_core::id::{AttemptId, SessionId, TaskId};
    use kage_core::recovery::Decision;
    use kage_core::session::ModelUsage;
    use kage_core::time::Timestamp;
    use kage_core::usage::{PicoUsd, Provenance, Usage};

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
        let wire = session(&domain, Some("no agent".into()), Duration::ZERO);
        assert_eq!(wire.state(), v1::SessionState::Queued);
        assert_eq!((wire.waiting.as_str(), wire.started_at), ("no agent", None));
        assert_eq!(wire.usage, None, "nobody told of any");
        domain.state = SessionState::Running {
            attempt: AttemptId::from_random(3),
        };
        assert_eq!(
            session(&domain, None, Duration::from_millis(7)).state(),
            v1::SessionState::Running
        );
        domain.state = SessionState::Failed {
            failure: Failure::new(FailureKind::Auth, "no key"),
            unfinished: None,
            verdict: None,
        };
        let wire = session(&domain, None, Duration::from_millis(7));
        assert_eq!(wire.ran, Some(span(Duration::from_millis(7))));
        assert_eq!(wire.failure.map(|f| f.message), Some("no key".into()));
        let used = |model: &str, input| ModelUsage {
            model: model.to_owned(),
            metered: true,
            usage: Usage {
                input,
                ..Usage::default()
            },
            reported: None,
            money: Money {
                amount: Some(PicoUsd(i64::try_from(input).unwrap() * 3)),
                provenance: Provenance::Billed,
            },
            price: None,
        };
        domain.usage = vec![used("large", 5), used("small", 7)];
        domain.calls.answered = 3;
        assert_eq!(wire.tools, None, "nobody told of any");
        domain.tools = Some(["bash", "edit", "bash"].into_iter().collect());
        let wire = session(&domain, None, Duration::ZERO);
        let told: Vec<_> = wire
            .models
            .iter()
            .map(|m| (m.model.as_str(), m.usage.map(|usage| usage.input), m.money[0].pico))
            .collect();
        assert_eq!(told, [("large", Some(5), Some(15)), ("small", Some(7), Some(21))]);
        assert_eq!((wire.calls, wire.money[0].pico), (3, Some(36)));
        let tools = wire.tools.unwrap().uses;
        let tools: Vec<_> = tools.iter().map(|used| (used.tool.as_str(), used.calls)).collect();
        assert_eq!(tools, [("bash", 2), ("edit", 1)]);
    }

    #[test]
    fn shows_each_decision() {
        let at = Timestamp::from_millis(1_000);
        for (action, wire, next) in [
            (Action::RetryCurrent { at }, v1::RecoveryAction::RetryCurrent, Some(at)),
            (Action::RollbackLast { at }, v1::RecoveryAction::RollbackLast, Some(at)),
            (Action::RollbackSafe { at }, v1::RecoveryAction::RollbackSafe, Some(at)),
            (Action::Rework { at, from: 3 }, v1::RecoveryAction::Rework, Some(at)),
            (Action::MoveAgent { at }, v1::RecoveryAction::MoveAgent, Some(at)),
            (
                Action::SwitchAdapter { at },
                v1::RecoveryAction::SwitchAdapter,
                Some(at),
            ),
            (Action::HoldUntil { at }, v1::RecoveryAction::HoldUntil, Some(at)),
            (Action::Escalate, v1::RecoveryAction::Escalate, None),
        ] {
            let incident = Incident {
                at,
                verify: false,
                attempt: 2,
                agent: Some("w1".into()),
                failure: Failure::new(FailureKind::Network, "cut"),
                decision: Decision {
                    action,
                    reason: "why".into(),
                    confidence: Confidence::Medium,
                },
            };
            let shown = v1::Incident::from(&incident);
            assert_eq!((shown.action(), shown.next_attempt_at), (wire, next.map(stamp)));
            assert_eq!(
                (shown.job(), shown.attempt, shown.agent.as_str()),
                (v1::JobKind::Session, 2, "w1")
            );
            assert_eq!(shown.confidence(), v1::Confidence::Medium);
            assert!(shown.summary.starts_with("attempt 2"), "{}", shown.summary);
        }
    }
}
