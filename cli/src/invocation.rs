//! What every command needs: settings, the state folder, the output, and access to the coordinator.

use crate::connect::{self, Access, AccessError, WhenAbsent};
use crate::output::Output;
use crate::settings::Settings;
use crate::state::StateDir;

/// One run of the program.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// From files and the environment.
    pub settings: Settings,
    pub state: StateDir,
    pub out: Output,
}

impl Invocation {
    /// The coordinator with the earlier tasks. Starts the daemon of this machine again if it has
    /// ended.
    ///
    /// # Errors
    /// When nothing was run yet, or it cannot be started or reached.
    pub async fn existing(&self) -> Result<Access, AccessError> {
        connect::access(&self.settings, &self.state, WhenAbsent::StartAgain).await
    }

    /// The coordinator, started when this machine has none.
    ///
    /// # Errors
    /// When it cannot be started or reached.
    pub async fn started(&self) -> Result<Access, AccessError> {
        connect::access(&self.settings, &self.state, WhenAbsent::Start).await
    }
}
