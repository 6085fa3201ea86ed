//! The adapters that take over a session when its adapter cannot continue.

use serde::{Deserialize, Serialize};

use crate::id::AdapterName;

/// The most adapters that one session may fall back to.
pub const MAX_FALLBACKS: usize = 8;

/// An adapter that may take over a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The adapter.
    pub adapter: AdapterName,
    /// `None`: the adapter's default.
    pub model: Option<String>,
}
