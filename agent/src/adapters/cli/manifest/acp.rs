//! What a manifest says of a program that speaks the Agent Client Protocol: `[acp]`, which makes it an adapter
//! that is talked to instead of one whose output is read.

use serde::Deserialize;

/// `[acp]`. Without keys, it is an agent that does its own work in its own way and counts as most do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AcpRule {
    /// The way of authentication to ask for before a session is made, by its id, for agents that want one
    /// although their key is set.
    pub authenticate: Option<String>,
    /// What the agent is let do through us: it writes and reads files of the worktree, or runs commands, by
    /// requests instead of by itself.
    pub serve: Vec<Service>,
    /// What is answered when the agent asks whether it may do something, unless the task says it.
    pub permissions: PermissionPolicy,
    pub usage: UsageWords,
}

/// What an agent is answered that asks for permission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PermissionPolicy {
    /// It may: it works in the session's own worktree and box, like a program that does not ask.
    #[default]
    Allow,
    /// It may not. What it does without asking, it does.
    Deny,
    /// A person is asked, for ten minutes unless the task says otherwise; then it may not.
    Ask,
}

/// What an agent can be served with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Text files of the worktree.
    Files,
    /// Commands, in the session's box.
    Terminal,
}

/// What an agent's counts of tokens mean: the protocol leaves it open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UsageWords {
    /// How far its counts can be believed.
    pub counts: Counts,
    /// Whether tokens that were read from a cache, or written to one, are among the input too.
    pub input_includes_cached: bool,
    /// Whether what the model thought is among the output too.
    pub output_includes_thoughts: bool,
}

/// What the counts of one answer are about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counts {
    /// All calls of the turn.
    #[default]
    Turn,
    /// All calls since the session began in this process.
    Session,
    /// Not all calls, so that nothing is known.
    Nothing,
}

impl AcpRule {
    pub(crate) fn serves(&self, service: Service) -> bool {
        self.serve.contains(&service)
    }
}
