//! Who takes a session over when its adapter cannot go on.

use serde::{Deserialize, Serialize};

use crate::id::AdapterName;

/// The most adapters that one session may fall back to.
pub const MAX_FALLBACKS: usize = 8;

/// An adapter that may take a session over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Who would work.
    pub adapter: AdapterName,
    /// `None` = the adapter's default.
    pub model: Option<String>,
}
