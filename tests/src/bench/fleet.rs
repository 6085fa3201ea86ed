//! The measured system: coordinator and agents as separate processes, each this program with
//! another first argument.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use anyhow::Context;
use kage_proto::client::Client;

use crate::cluster::{AgentOptions, Cluster, Programs};
use crate::process::{Daemon, Launch};
use crate::wait::wait_for;

/// The first argument that makes this program a coordinator.
pub const COORDINATOR: &str = "serve-coordinator";
/// The first argument that makes this program an agent.
pub const AGENT: &str = "serve-agent";
/// The first argument that makes this program the bare transport.
pub const BARE: &str = "serve-bare";

/// The file with the address of the bare transport.
pub const BARE_ENDPOINT: &str = "bare-endpoint";

/// A process adapter, described by a manifest, that runs a real program which does nothing.
pub const REAL: &str = "bench-real";

const REAL_MANIFEST: &str = r#"
name = "bench-real"
command = "true"
"#;

/// Starts a coordinator without agents.
pub async fn coordinator() -> anyhow::Result<Cluster> {
    let program = std::env::current_exe()?;
    Ok(Cluster::start_with(Programs {
        coordinator: (program.clone(), vec![COORDINATOR.into()]),
        agent: (program, vec![AGENT.into()]),
    })
    .await)
}

/// Starts a coordinator and this many agents.
pub async fn start(agents: u32, slots: u32) -> anyhow::Result<Cluster> {
    let mut cluster = coordinator().await?;
    for index in 1..=agents {
        let options = AgentOptions::named(&format!("agent-{index}"))
            .slots(slots)
            .manifest(REAL, REAL_MANIFEST);
        cluster.add_agent(options).await;
    }
    Ok(cluster)
}

/// Starts the bare transport beside a system, and connects to it as clients of the system do.
pub async fn bare(directory: &Path) -> anyhow::Result<(Daemon, Client)> {
    let endpoint = directory.join(BARE_ENDPOINT);
    let _absent = std::fs::remove_file(&endpoint);
    let launch = Launch {
        name: "bare".to_owned(),
        program: std::env::current_exe()?,
        arguments: vec![OsString::from(BARE), endpoint.clone().into()],
        environment: BTreeMap::new(),
        log: directory.join("bare.log"),
    };
    let daemon = launch.start().context("the bare transport starts")?;
    let url = wait_for("the bare transport says where it listens", async || {
        std::fs::read_to_string(&endpoint).ok()
    })
    .await;
    let client = Client::connect(&url, "none").await?;
    Ok((daemon, client))
}
