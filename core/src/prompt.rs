//! The text a model gets: first what all sessions of a task share, byte for byte, then
//! what is this session's own. A provider's prompt cache works on the first part.

/// A rendered prompt in its two parts. A model reads `shared`, then `own`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Byte-identical for all sessions and attempts of a task. Empty without a context.
    pub shared: String,
    /// This session's context, then the task's prompt.
    pub own: String,
}
