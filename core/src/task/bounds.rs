//! The bounds of a spec: what types cannot rule out, and the limits of sizes.

use std::collections::BTreeSet;

use super::{Course, InvalidEnvironment, Labels, MAX_ENVIRONMENT_BYTES, MAX_EXCLUDES_BYTES, TaskSpec};
use crate::context::{Delta, InvalidContext, overridden};
use crate::fallback::MAX_FALLBACKS;
use crate::id::SessionName;
use crate::pattern::Patterns;

/// Why a spec is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// There is nothing to do.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt is longer than any model accepts.
    #[error("the prompt has {0} bytes; the limit is {MAX_PROMPT_BYTES}")]
    PromptTooLong(usize),
    /// No session is to do it.
    #[error("no session was requested; name an adapter")]
    NoAssignment,
    /// More sessions than one task may have.
    #[error("{0} sessions were requested; the limit is {MAX_SESSIONS}")]
    TooManySessions(usize),
    /// Two sessions have one name.
    #[error("two sessions are named {0:?}")]
    DuplicateName(SessionName),
    /// More fallbacks than needed, and each is part of every row.
    #[error("session {0:?} has more than {MAX_FALLBACKS} adapters to fall back to")]
    TooManyFallbacks(SessionName),
    /// A label that nobody could ask for.
    #[error("a label has no name")]
    EmptyLabel,
    /// Verify needs a commit to check.
    #[error("a verify command needs a repository")]
    VerifyWithoutRepository,
    /// Nothing would say that a result is verified, or that the next session's turn came.
    #[error("{0} needs a verify command")]
    CourseWithoutVerify(&'static str),
    /// It would be a race to the end, although it says otherwise.
    #[error("stopping at {enough} verified results needs as many sessions; the task has {sessions}")]
    TooFewToVerify {
        /// How many verified results were to stop the others.
        enough: u32,
        /// How many sessions there are.
        sessions: usize,
    },
    /// A delta needs a base.
    #[error("session {0:?} has a context delta, and the task has no base context")]
    DeltaWithoutBase(SessionName),
    /// A delta is not a merge patch that can be applied.
    #[error("session {session:?} has an invalid context delta")]
    InvalidDelta {
        /// The session.
        session: SessionName,
        /// What is wrong with it.
        #[source]
        problem: InvalidContext,
    },
    /// A protected pattern is invalid, so the paths to restore are unknown.
    #[error("the protected path {0:?} is not a path pattern")]
    ProtectPattern(String),
    /// More than an offer to an agent can carry.
    #[error("{what} has {bytes} bytes; the limit is {most}")]
    TooLong {
        /// The name of the part.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// The environment of its programs cannot be given to them.
    #[error("the environment cannot be used: {0}")]
    Environment(InvalidEnvironment),
    /// A limit of zero would end every attempt at once.
    #[error("{0} must be more than zero")]
    ZeroLimit(&'static str),
}

/// The longest accepted prompt, in bytes.
pub const MAX_PROMPT_BYTES: usize = 16 << 20;
/// The most sessions one task may have.
pub const MAX_SESSIONS: usize = 256;
/// The longest set-up or verify command, and all protected paths together, in bytes.
pub const MAX_COMMAND_BYTES: usize = 64 << 10;
/// The longest name of a model, in bytes.
pub const MAX_MODEL_BYTES: usize = 200;
/// The longest context delta of one session, in bytes.
pub const MAX_DELTA_BYTES: usize = 512 << 10;
/// The labels of the task, and those that it or one session requires of agents: keys and values of each, in bytes.
pub const MAX_LABEL_BYTES: usize = 16 << 10;
/// What all deltas of a task together may override: the names of the places, in bytes.
pub const MAX_OVERRIDDEN_BYTES: usize = 256 << 10;

/// Which part of a spec cannot be part of a task, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPart {
    /// Its path within the spec, as in `assignments[2].context_delta`.
    pub field: String,
    /// Why.
    pub problem: InvalidSpec,
}

impl TaskSpec {
    /// Everything that is wrong with it and that no type can rule out; empty when it can be a task.
    #[must_use]
    pub fn problems(&self) -> Vec<InvalidPart> {
        let mut found = Problems(Vec::new());
        self.check_what_to_do(&mut found);
        self.check_policy(&mut found);
        self.check_assignments(&mut found);
        found.0
    }

    fn check_what_to_do(&self, found: &mut Problems) {
        if self.prompt.trim().is_empty() {
            found.add("prompt", InvalidSpec::EmptyPrompt);
        }
        if self.prompt.len() > MAX_PROMPT_BYTES {
            found.add("prompt", InvalidSpec::PromptTooLong(self.prompt.len()));
        }
        if self.assignments.is_empty() {
            found.add("assignments", InvalidSpec::NoAssignment);
        }
        if self.assignments.len() > MAX_SESSIONS {
            found.add("assignments", InvalidSpec::TooManySessions(self.assignments.len()));
        }
        if self.labels.keys().any(String::is_empty) {
            found.add("labels", InvalidSpec::EmptyLabel);
        }
        let bytes = self.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        found.at_most("labels", "the list of labels", bytes, MAX_LABEL_BYTES);
        let problems = self.environment.problems().into_iter();
        for (part, problem) in problems {
            found.add(format!("environment.{part}"), InvalidSpec::Environment(problem));
        }
        let bytes = self.environment.bytes();
        found.at_most("environment", "the environment", bytes, MAX_ENVIRONMENT_BYTES);
        if self.policy.verify.verify.is_some() && self.repository.is_none() {
            found.add("repository", InvalidSpec::VerifyWithoutRepository);
        }
    }

    fn check_policy(&self, found: &mut Problems) {
        let policy = &self.policy;
        let checks = &policy.verify;
        let (setup, verify) = (length(&checks.setup), length(&checks.verify));
        found.at_most("policy.verify.setup", "the set-up command", setup, MAX_COMMAND_BYTES);
        found.at_most("policy.verify.verify", "the verify command", verify, MAX_COMMAND_BYTES);
        let session = length(&policy.session_setup);
        let what = "the set-up command of sessions";
        found.at_most("policy.session_setup", what, session, MAX_COMMAND_BYTES);
        let (field, what) = ("policy.results.excludes", "the list of ignored patterns");
        found.at_most(field, what, policy.results.excludes.len(), MAX_EXCLUDES_BYTES);
        let protected = checks.protect.iter().map(String::len).sum();
        found.at_most(
            "policy.verify.protect",
            "the list of protected paths",
            protected,
            MAX_COMMAND_BYTES,
        );
        found.labels("policy.requirements", &policy.requirements);
        if let Err(invalid) = Patterns::new(&checks.protect) {
            found.add("policy.verify.protect", InvalidSpec::ProtectPattern(invalid.pattern));
        }
        for (field, limit, what) in [
            ("policy.timeout", policy.timeout, "the time-out"),
            ("policy.idle_timeout", policy.idle_timeout, "the idle time-out"),
            ("policy.verify.timeout", checks.timeout, "the verify time-out"),
        ] {
            if limit.is_zero() {
                found.add(field, InvalidSpec::ZeroLimit(what));
            }
        }
        let course = match policy.course {
            Course::Race => None,
            Course::FirstVerified(_) => Some("stopping at the first verified result"),
            Course::Ladder => Some("a ladder of sessions"),
        };
        if let (Some(what), None) = (course, &checks.verify) {
            found.add("policy.course", InvalidSpec::CourseWithoutVerify(what));
        }
        let sessions = self.assignments.len();
        if let Course::FirstVerified(enough) = policy.course
            && sessions > 0
            && enough.get() as usize > sessions
        {
            let enough = enough.get();
            found.add("policy.course", InvalidSpec::TooFewToVerify { enough, sessions });
        }
        if policy.max_attempts == 0 {
            found.add("policy.max_attempts", InvalidSpec::ZeroLimit("the number of attempts"));
        }
    }

    fn check_assignments(&self, found: &mut Problems) {
        let mut names = BTreeSet::new();
        let mut deltas = Vec::new();
        for (position, assignment) in self.assignments.iter().take(MAX_SESSIONS).enumerate() {
            let field = |part: &str| format!("assignments[{position}].{part}");
            let model = length(&assignment.model);
            found.at_most(field("model"), "the name of a model", model, MAX_MODEL_BYTES);
            for (n, fallback) in assignment.fallbacks.iter().take(MAX_FALLBACKS).enumerate() {
                let part = field(&format!("fallbacks[{n}].model"));
                found.at_most(part, "the name of a model", length(&fallback.model), MAX_MODEL_BYTES);
            }
            if assignment.fallbacks.len() > MAX_FALLBACKS {
                let problem = InvalidSpec::TooManyFallbacks(assignment.name.clone());
                found.add(field("fallbacks"), problem);
            }
            found.labels(field("requirements"), &assignment.requirements);
            if !names.insert(&assignment.name) {
                found.add(field("name"), InvalidSpec::DuplicateName(assignment.name.clone()));
            }
            if assignment.timeout.is_some_and(|limit| limit.is_zero()) {
                found.add(field("timeout"), InvalidSpec::ZeroLimit("the time-out"));
            }
            let Some(delta) = &assignment.context_delta else {
                continue;
            };
            let field = field("context_delta");
            if self.context_base.is_none() {
                found.add(field, InvalidSpec::DeltaWithoutBase(assignment.name.clone()));
            } else if delta.len() > MAX_DELTA_BYTES {
                found.at_most(field, "a context delta", delta.len(), MAX_DELTA_BYTES);
            } else {
                match Delta::parse(delta.as_bytes()) {
                    Ok(delta) => deltas.push(delta),
                    Err(problem) => {
                        let session = assignment.name.clone();
                        found.add(field, InvalidSpec::InvalidDelta { session, problem });
                    }
                }
            }
        }
        let places = overridden(&deltas);
        let places = places.iter().map(|place| place.to_string().len()).sum();
        let what = "the list of what the context deltas change";
        found.at_most("assignments", what, places, MAX_OVERRIDDEN_BYTES);
    }
}

struct Problems(Vec<InvalidPart>);

impl Problems {
    fn add(&mut self, field: impl Into<String>, problem: InvalidSpec) {
        let field = field.into();
        self.0.push(InvalidPart { field, problem });
    }

    /// What every offer of a task carries has to fit into one message: an agent whose offers do
    /// not would lose its connection with each.
    fn at_most(&mut self, field: impl Into<String>, what: &'static str, bytes: usize, most: usize) {
        if bytes > most {
            self.add(field, InvalidSpec::TooLong { what, bytes, most });
        }
    }

    fn labels(&mut self, field: impl Into<String>, labels: &Labels) {
        let bytes = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.at_most(field, "the list of required labels", bytes, MAX_LABEL_BYTES);
    }
}

fn length(text: &Option<String>) -> usize {
    text.as_ref().map_or(0, String::len)
}

#[cfg(test)]
mod tests;
