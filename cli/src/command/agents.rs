//! `kage agent`: joins and runs an agent; lists, cordons, drains and revokes agents.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use kage_agent::identity::enrolment;
use kage_core::access::JoinToken;
use kage_core::contain::Tier;
use kage_core::task::Labels;
use kage_core::time::Timestamp;
use kage_proto::client::{Client, Credentials, PemFile};
use kage_proto::convert::agent::access as adapter_access;
use kage_proto::convert::contain::claimed;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::args::{AgentOptions, AgentRun};
use crate::assignments;
use crate::config_file;
use crate::daemon;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::output::note;
use crate::table::Table;
use crate::tasks;
use crate::view;

pub(super) async fn run(invocation: Invocation, args: AgentRun) -> anyhow::Result<Exit> {
    let options = args.options.or(config_file::read(args.config.as_deref())?);
    let state_dir = options.state.clone().unwrap_or_else(|| invocation.state.agent());
    let (url, credentials) = match (args.join, args.address) {
        (Some(token), Some(address)) => join(&state_dir, &token, &address).await?,
        (_, _) => {
            let handed = Handed {
                file: args.join_file,
                variable: std::env::var(JOIN_TOKEN).ok().filter(|token| !token.is_empty()),
            };
            coordinator(&invocation, &options, &state_dir, handed).await?
        }
    };
    if args.join_only {
        if credentials.identity.is_none() {
            let advice = "--join-only needs a join token: --join TOKEN HOST:PORT, or --join-file with --coordinator";
            return Err(Refusal::usage(advice).into());
        }
        return Ok(Exit::Done);
    }
    let labels: Labels = assignments::labels("--label", &options.label)?;
    let start = daemon::AgentStart {
        url,
        credentials,
        labels,
        state_dir,
        options,
        config: args.config,
    };
    daemon::agent(&invocation, start).await?;
    Ok(Exit::Done)
}

/// The variable with a join token.
const JOIN_TOKEN: &str = "KAGE_JOIN_TOKEN";

/// Where a join token is that is not on the command line.
struct Handed {
    file: Option<PathBuf>,
    variable: Option<String>,
}

impl Handed {
    /// The token; the file wins.
    fn token(self) -> anyhow::Result<Option<String>> {
        match self.file {
            Some(file) => read_token(&file).map(|text| Some(text.trim().to_owned())),
            None => Ok(self.variable),
        }
    }
}

/// The coordinator's address, and the agent's credentials for it. An agent that has not joined joins, if
/// it was handed a token.
async fn coordinator(
    invocation: &Invocation,
    options: &AgentOptions,
    state_dir: &Path,
    handed: Handed,
) -> anyhow::Result<(String, Credentials)> {
    let Some(url) = options.coordinator.clone() else {
        if handed.file.is_some() {
            return Err(Refusal::usage("--join-file needs --coordinator https://HOST:PORT").into());
        }
        let access = invocation.existing().await?;
        return Ok((access.url, access.credentials));
    };
    let credentials = match (&options.token_file, &options.ca_file) {
        (Some(token), ca) => from_files(token, ca.as_deref())?,
        (None, Some(_)) => return Err(Refusal::usage("--ca-file needs --token-file").into()),
        (None, None) => match enrolment::stored(state_dir)? {
            Some(credentials) => credentials,
            None => {
                let token = handed.token()?.ok_or_else(|| {
                    Refusal::usage(
                        "this agent has not joined: --coordinator needs --token-file, or join with \
                         --join-file FILE, KAGE_JOIN_TOKEN, or `kage agent run --join TOKEN HOST:PORT`",
                    )
                })?;
                let address = url.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
                let address = address.ok_or_else(|| Refusal::usage("to join, give --coordinator https://HOST:PORT"))?;
                join(state_dir, &token, address).await?.1
            }
        },
    };
    if credentials.identity.is_some() && !options.label.is_empty() {
        return Err(Refusal::usage("an agent that joined carries the labels of its join token").into());
    }
    Ok((url, credentials))
}

/// Joins, or reports that the agent has joined before.
async fn join(state_dir: &Path, token: &str, address: &str) -> anyhow::Result<(String, Credentials)> {
    let url = format!("https://{address}");
    if let Some(credentials) = enrolment::stored(state_dir)? {
        note(&format!(
            "joined before; the token is not used. To join again, remove {}",
            state_dir.join("tls").display()
        ));
        return Ok((url, credentials));
    }
    let token: JoinToken = token
        .parse()
        .map_err(|e| Refusal::usage(format!("the join token: {e}")))?;
    let random: Arc<dyn Fn() -> u128 + Send + Sync> = Arc::new(rand::random::<u128>);
    let joined = enrolment::join(state_dir, address, &token, &random).await?;
    note(&format!(
        "joined as agent {}; from now on: kage agent run --coordinator {url}",
        joined.agent
    ));
    Ok((url, joined.credentials))
}

/// The content of a file with a token; `-` is standard input.
fn read_token(file: &Path) -> anyhow::Result<String> {
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    text.with_context(|| format!("cannot read the token file {}", file.display()))
        .map_err(|e| Refusal::usage(format!("{e:#}")).into())
}

fn from_files(token: &Path, ca: Option<&Path>) -> anyhow::Result<Credentials> {
    let credentials = Credentials::bearer(&read_token(token)?);
    let Some(ca) = ca else {
        return Ok(credentials);
    };
    let file = PemFile::read(ca)
        .with_context(|| format!("cannot read the CA file {}", ca.display()))
        .map_err(|e| Refusal::usage(format!("{e:#}")))?;
    Ok(credentials.trusting(file))
}

pub(super) async fn revoke(invocation: &Invocation, agent: String) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let request = v1::RevokeAgentRequest {
        request_id: tasks::request_id(),
        agent: agent.clone(),
    };
    let response = access.client.fleet().revoke_agent(request).await;
    let revoked = response.map_err(ApiError::from)?.into_inner();
    invocation.out.message("revoked_agent", &revoked)?;
    invocation
        .out
        .text(&format!("{agent} ({}) is shut out", view::short_id(&revoked.agent_id)))?;
    Ok(Exit::Done)
}

pub(super) async fn ls(invocation: &Invocation) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let agents = all(&access.client).await?;
    invocation.out.messages("agent", &agents)?;
    invocation.out.table(&table(&agents))?;
    let now = Timestamp::from_millis(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default());
    for agent in &agents {
        if let Some(short_of) = short_of(agent) {
            invocation.out.text(&short_of)?;
        }
        for adapter in agent.adapters.iter().filter(|a| a.unavailable.is_empty()) {
            if let Some(access) = adapter.access.clone().and_then(adapter_access) {
                invocation
                    .out
                    .text(&format!("{}: {}: {}", called(agent), adapter.name, access.words(now)))?;
            }
        }
        for adapter in agent.adapters.iter().filter(|a| !a.unavailable.is_empty()) {
            invocation.out.text(&format!(
                "{}: {} cannot be used: {}",
                called(agent),
                adapter.name,
                adapter.unavailable
            ))?;
        }
    }
    Ok(Exit::Done)
}

/// Fetches the agents page by page.
async fn all(client: &Client) -> Result<Vec<v1::Agent>, ApiError> {
    let mut agents = Vec::new();
    let mut request = v1::ListAgentsRequest::default();
    loop {
        let page = client.fleet().list_agents(request).await?.into_inner();
        agents.extend(page.agents);
        if page.next_page_token.is_empty() {
            return Ok(agents);
        }
        request = v1::ListAgentsRequest {
            page_token: page.next_page_token,
            ..v1::ListAgentsRequest::default()
        };
    }
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
    invocation.out.message("agent", &agent)?;
    invocation.out.text(&format!(
        "{} takes no more work and ends when its running sessions are finished; it still runs {}",
        called(&agent),
        agent.busy
    ))?;
    Ok(Exit::Done)
}

pub(super) async fn cordon(invocation: &Invocation, agent: String) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let request = v1::CordonAgentRequest {
        request_id: tasks::request_id(),
        agent,
    };
    let response = access.client.fleet().cordon_agent(request).await;
    let agent = response.map_err(ApiError::from)?.into_inner().agent.unwrap_or_default();
    invocation.out.message("agent", &agent)?;
    invocation.out.text(&format!(
        "{} gets no new work until `kage agent uncordon {}`; it still runs {}",
        called(&agent),
        view::short_id(&agent.id),
        agent.busy,
    ))?;
    Ok(Exit::Done)
}

pub(super) async fn uncordon(invocation: &Invocation, agent: String) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let request = v1::UncordonAgentRequest {
        request_id: tasks::request_id(),
        agent,
    };
    let response = access.client.fleet().uncordon_agent(request).await;
    let agent = response.map_err(ApiError::from)?.into_inner().agent.unwrap_or_default();
    invocation.out.message("agent", &agent)?;
    invocation.out.text(&format!("{} gets work again", called(&agent)))?;
    Ok(Exit::Done)
}

/// The agent's name, which is not unique, and its id.
fn called(agent: &v1::Agent) -> String {
    format!("{} ({})", agent.name, view::short_id(&agent.id))
}

fn table(agents: &[v1::Agent]) -> Table {
    let header = [
        "agent", "name", "state", "pid", "busy", "can", "contains", "labels", "adapters",
    ];
    Table::of_words(&header, agents.iter().map(row))
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
        match agent.cordoned {
            true => format!("{}, cordoned", state(agent.state())),
            false => state(agent.state()).to_owned(),
        },
        agent.pid.to_string(),
        slots(agent),
        can(agent),
        tier(agent).map_or_else(|| "-".to_owned(), |tier| tier.to_string()),
        labels.join(" "),
        adapters.join(" "),
    ]
}

/// What it may be given to do; nothing, if its coordinator does not say.
fn can(agent: &v1::Agent) -> String {
    let words = agent.can().filter_map(|capability| match capability {
        v1::Capability::Run => Some("run"),
        v1::Capability::Verify => Some("verify"),
        v1::Capability::Unspecified => None,
    });
    words.collect::<Vec<_>>().join(",")
}

/// The tier of containment that it proved; `None`: its coordinator does not say.
fn tier(agent: &v1::Agent) -> Option<Tier> {
    claimed(agent.contained.as_ref()?.tier)
}

/// Why it has no higher tier of containment, if it says so.
fn short_of(agent: &v1::Agent) -> Option<String> {
    let contained = agent
        .contained
        .as_ref()
        .filter(|contained| !contained.short_of.is_empty())?;
    let tier = claimed(contained.tier).unwrap_or_default();
    Some(format!(
        "{}: containment {tier}: {}",
        called(agent),
        view::one_line(&contained.short_of, 500)
    ))
}

/// What is taken of the agent's slots, and of those that adapters have of their own.
fn slots(agent: &v1::Agent) -> String {
    let mut text = format!("{}/{}", agent.busy, agent.slots);
    let own = agent
        .adapters
        .iter()
        .filter(|a| a.slots > 0 && a.unavailable.is_empty());
    for adapter in own {
        text += &format!(" {} {}/{}", adapter.name, adapter.busy, adapter.slots);
    }
    text
}

const fn state(state: v1::AgentState) -> &'static str {
    match state {
        v1::AgentState::Unspecified => "unknown",
        v1::AgentState::Connected => "connected",
        v1::AgentState::Draining => "draining",
        v1::AgentState::Disconnected => "disconnected",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn agents_fit_every_width() {
        let agent = |id: &str, name: &str, state: v1::AgentState, cordoned| v1::Agent {
            id: format!("{id}89abcdef"),
            name: name.to_owned(),
            state: state.into(),
            pid: 4711,
            cordoned,
            labels: [("gpu", "true"), ("zone", "eu")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            adapters: ["claude-api", "codex", "shell-fixer"]
                .map(|name| v1::AdapterInfo {
                    name: name.to_owned(),
                    ..v1::AdapterInfo::default()
                })
                .into(),
            ..v1::Agent::default()
        };
        let agents = [
            agent("01230123", "big-machine", v1::AgentState::Connected, false),
            agent("45674567", "laptop", v1::AgentState::Draining, true),
        ];
        insta::assert_snapshot!(everywhere(&table(&agents)));
    }
}
