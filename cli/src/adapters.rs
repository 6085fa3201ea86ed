//! How the adapters of this machine are made: built in, of the user, of repositories that the user agreed to, of
//! the settings, of an agent's options.

use std::path::Path;

use kage_agent::adapters::AdapterConfig;
use kage_agent::process::{AgentEnvironment, Runner};

use crate::agreed::Agreements;
use crate::args::AgentOptions;
use crate::settings::{self, Settings};
use crate::state::StateDir;

/// The configuration of adapters for an agent with this environment, whose state is in `state_dir`.
///
/// # Errors
/// When prices or the rules for failures cannot be read.
pub(crate) fn config(
    settings: &Settings,
    state: &StateDir,
    options: &AgentOptions,
    state_dir: &Path,
    environment: AgentEnvironment,
) -> anyhow::Result<AdapterConfig> {
    let agreed = Agreements::read()?.manifest_folders();
    let manifest_dirs = settings::user_adapters()
        .into_iter()
        .chain(agreed)
        .chain(settings.agent.adapters.iter().cloned())
        .chain(options.adapters.iter().cloned())
        .collect();
    let mut config = AdapterConfig::new(environment, Runner::this_executable());
    config.settings = options.adapter.clone().or(&settings.adapter);
    config.prices = settings::prices(None)?;
    config.manifest_dirs = manifest_dirs;
    // Sessions write below either.
    config.kept_out.extend([state.path(), state_dir].map(Path::to_owned));
    config.failures = settings::failures(options.failures.as_deref())?;
    Ok(config)
}
