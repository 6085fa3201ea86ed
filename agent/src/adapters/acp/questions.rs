//! What an agent asks a person, and until when each question waits. Nobody has to be there: a question that
//! nobody answers in time is denied.

use std::collections::BTreeMap;

use kage_core::event::EventBody;
use kage_core::session::{Answer, PermissionPolicy};
use kage_core::task::Permissions;
use kage_core::time::in_words;
use tokio::time::Instant;

use super::conversation::Question;
use super::permission::Decision;

/// The open questions of a session.
#[derive(Debug)]
pub(super) struct Questions {
    permissions: Permissions,
    open: BTreeMap<u32, Instant>,
}

/// What becomes of a question that was just asked.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Asked {
    Decided(Decision),
    /// It waits; the event tells people of it.
    Waits(Box<EventBody>),
}

/// A decision, and the event that tells of it.
pub(super) type Decided = (u32, Decision, EventBody);

impl Questions {
    pub(super) const fn new(permissions: Permissions) -> Self {
        Self {
            permissions,
            open: BTreeMap::new(),
        }
    }

    /// An agent asks.
    pub(super) fn ask(&mut self, question: Question, now: Instant) -> Asked {
        match self.permissions.policy {
            PermissionPolicy::Allow => Asked::Decided(Decision::Allow),
            PermissionPolicy::Deny => Asked::Decided(Decision::Deny),
            PermissionPolicy::Ask => {
                let wait = self.permissions.wait;
                self.open.insert(question.number, now + wait);
                let event = EventBody::PermissionAsked {
                    number: question.number,
                    about: question.about,
                    wait,
                };
                Asked::Waits(Box::new(event))
            }
        }
    }

    /// A person answered; `None`: nothing is asked by this number any more.
    pub(super) fn answered(&mut self, number: u32, answer: &Answer) -> Option<Decided> {
        self.open.remove(&number)?;
        let decision = match answer.allow {
            true => Decision::Allow,
            false => Decision::Deny,
        };
        Some(decided(number, decision, format!("by {}", answer.by)))
    }

    /// When the next one has waited long enough.
    pub(super) fn until(&self) -> Option<Instant> {
        self.open.values().min().copied()
    }

    /// One whose time is over.
    pub(super) fn expired(&mut self, now: Instant) -> Option<Decided> {
        let (number, _) = self.open.iter().find(|(_, until)| **until <= now)?;
        let number = *number;
        self.open.remove(&number);
        let by = format!("because nobody answered within {}", in_words(self.permissions.wait));
        Some(decided(number, Decision::Deny, by))
    }

    /// The agent asks nothing any more: its turn is over.
    pub(super) fn withdrawn(&mut self) -> Vec<EventBody> {
        let open = std::mem::take(&mut self.open);
        let told = open.into_keys().map(|number| {
            let (_, _, event) = decided(number, Decision::Deny, "because the turn ended".to_owned());
            event
        });
        told.collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

fn decided(number: u32, decision: Decision, by: String) -> Decided {
    let event = EventBody::PermissionDecided {
        number,
        allowed: decision == Decision::Allow,
        by,
    };
    (number, decision, event)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn question(number: u32) -> Question {
        Question {
            number,
            about: "run x".to_owned(),
        }
    }

    fn questions(policy: PermissionPolicy) -> Questions {
        let wait = Duration::from_secs(60);
        Questions::new(Permissions { policy, wait })
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_policy_ask_waits_and_never_for_ever() {
        let now = Instant::now();
        for (policy, decision) in [
            (PermissionPolicy::Allow, Decision::Allow),
            (PermissionPolicy::Deny, Decision::Deny),
        ] {
            let mut questions = questions(policy);
            assert_eq!(questions.ask(question(1), now), Asked::Decided(decision));
            assert_eq!(questions.until(), None);
        }
        let mut questions = questions(PermissionPolicy::Ask);
        for number in [1, 2, 3] {
            assert!(matches!(questions.ask(question(number), now), Asked::Waits(_)));
        }
        let yes = Answer {
            allow: true,
            by: "ann".to_owned(),
        };
        let (number, decision, event) = questions.answered(2, &yes).unwrap();
        assert_eq!((number, decision), (2, Decision::Allow));
        let told = EventBody::PermissionDecided {
            number: 2,
            allowed: true,
            by: "by ann".to_owned(),
        };
        assert_eq!(event, told);
        assert_eq!(questions.answered(2, &yes), None, "it is decided");
        assert_eq!(questions.expired(now), None);
        let late = questions.until().unwrap();
        let (number, decision, event) = questions.expired(late).unwrap();
        assert_eq!((number, decision), (1, Decision::Deny));
        let EventBody::PermissionDecided { by, .. } = event else {
            panic!("{event:?}");
        };
        assert_eq!(by, "because nobody answered within 60 s");
        assert_eq!(questions.withdrawn().len(), 1);
        assert!(questions.is_empty());
    }
}
