//! What is said of a checkpoint in one word: why it was taken, and whether its files are safe.

use crate::words::words;

words! {
    /// Why a checkpoint was taken. Data: it is never part of a command or a reference.
    pub enum CheckpointReason: "a reason of checkpoints" {
        /// Before the first step of a session.
        Baseline = "baseline",
        /// A tool call, or a burst of writes, changed files.
        FilesChanged = "files_changed" ("files changed"),
        /// The attempt failed and may be retried; edits may be half done.
        BeforeRetry = "before_retry" ("before a retry"),
        /// A person asked for it.
        Requested = "requested" ("asked for"),
        /// Files are about to be restored to an older state.
        BeforeRestore = "before_restore" ("before a restore"),
        /// The adapter ended successfully.
        Final = "final",
    }
}

impl CheckpointReason {
    /// True when it was taken between two steps, so that no edit is half done in it.
    #[must_use]
    pub const fn is_settled(self) -> bool {
        match self {
            Self::Baseline | Self::FilesChanged | Self::Requested | Self::Final => true,
            Self::BeforeRetry | Self::BeforeRestore => false,
        }
    }
}

words! {
    /// What is known about a checkpoint's files.
    #[derive(Default)]
    pub enum Safety: "a word for how safe a checkpoint is" {
        /// Verify did not run on these files.
        #[default]
        Unknown = "unknown",
        /// Verify passed on exactly these files.
        Safe = "safe",
        /// Verify failed on exactly these files.
        Unsafe = "unsafe",
    }
}
