//! `kage agent`: runs one, lists them, drains one.

use anyhow::Context as _;
use kage_core::task::Labels;
use kage_proto::status::ApiError;
use kage_proto::v1;
use serde::Serialize;

use crate::args::AgentRun;
use crate::assignments;
use crate::connect;
use crate::daemon;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::tasks;
use crate::view;

#[derive(Debug, Serialize)]
struct AgentJson<'a> {
    id: &'a str,
    name: &'a str,
    state: &'static str,
    pid: u32,
    slots: u32,
    busy: u32,
    labels: std::collections::BTreeMap<&'a str, &'a str>,
    adapters: Vec<AdapterJson<'a>>,
    version: &'a str,
    last_seen_ms: u64,
}

#[derive(Debug, Serialize)]
struct AdapterJson<'a> {
    name: &'a str,
    version: &'a str,
    unavailable: Option<&'a str>,
}

pub(super) async fn run(invocation: Invocation, args: AgentRun) -> anyhow::Result<Exit> {
    let (url, token) = match (args.coordinator, args.token_file) {
        (Some(url), Some(file)) => {
            let token = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read the token file {}", file.display()))
                .map_err(|e| Refusal::usage(format!("{e:#}")))?;
            (url, token)
        }
        (Some(_), None) => return Err(Refusal::usage("--coordinator needs --token-file").into()),
        (None, _) => match (
            &invocation.settings.coordinator.url,
            connect::running(&invocation.state).await,
        ) {
            (Some(_), _) | (None, None) => {
                let access = invocation.existing().await?;
                (access.url, access.token)
            }
            (None, Some(access)) => (access.url, access.token),
        },
    };
    let labels: Labels = assignments::labels("--label", &args.label)?;
    daemon::agent(
        &invocation,
        daemon::AgentOptions {
            url,
            token,
            name: args.name,
            slots: args.slots,
            labels,
            state_dir: args.state.unwrap_or_else(|| invocation.state.agent()),
            manifest_dirs: args.adapters,
        },
    )
    .await?;
    Ok(Exit::Done)
}

pub(super) async fn ls(invocation: &Invocation) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let response = access.client.fleet().list_agents(v1::ListAgentsRequest {}).await;
    let agents = response.map_err(ApiError::from)?.into_inner().agents;
    let json: Vec<_> = agents.iter().map(agent_json).collect();
    invocation.out.result(&json)?;
    invocation.out.text(&view::table(
        &["agent", "name", "state", "pid", "busy", "labels", "adapters"],
        agents.iter().map(row),
    ))?;
    for agent in &agents {
        for adapter in agent.adapters.iter().filter(|a| !a.unavailable.is_empty()) {
            invocation.out.text(&format!(
                "{}: {} cannot be used: {}",
                agent.name, adapter.name, adapter.unavailable
            ))?;
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn drain(invocation: &Invocation, agent: String) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let request = v1::DrainAgentRequest {
        request_id: tasks::request_id(),
        agent,
    };
    let response = access
        .client
        .fleet()
        .drain_agent(request)
        .await
        .map_err(ApiError::from)?;
    let agent = response.into_inner().agent.unwrap_or_default();
    invocation.out.result(&agent_json(&agent))?;
    invocation.out.text(&format!(
        "{} takes no more work; it still runs {}",
        agent.name, agent.busy
    ))?;
    Ok(Exit::Done)
}

fn agent_json(agent: &v1::Agent) -> AgentJson<'_> {
    AgentJson {
        id: &agent.id,
        name: &agent.name,
        state: state(agent.state()),
        pid: agent.pid,
        slots: agent.slots,
        busy: agent.busy,
        labels: agent.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        adapters: agent
            .adapters
            .iter()
            .map(|a| AdapterJson {
                name: &a.name,
                version: &a.version,
                unavailable: (!a.unavailable.is_empty()).then_some(a.unavailable.as_str()),
            })
            .collect(),
        version: &agent.version,
        last_seen_ms: agent.last_seen_ms,
    }
}

fn row(agent: &v1::Agent) -> Vec<String> {
    let mut labels: Vec<_> = agent.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    labels.sort();
    let adapters: Vec<_> = agent
        .adapters
        .iter()
        .filter(|a| a.unavailable.is_empty())
        .map(|a| a.name.as_str())
        .collect();
    vec![
        view::short_id(&agent.id).to_owned(),
        agent.name.clone(),
        state(agent.state()).to_owned(),
        agent.pid.to_string(),
        format!("{}/{}", agent.busy, agent.slots),
        labels.join(" "),
        adapters.join(" "),
    ]
}

const fn state(state: v1::AgentState) -> &'static str {
    match state {
        v1::AgentState::Unspecified => "unknown",
        v1::AgentState::Connected => "connected",
        v1::AgentState::Draining => "draining",
        v1::AgentState::Disconnected => "disconnected",
    }
}
