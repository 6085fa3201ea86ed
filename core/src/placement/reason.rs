//! Why a job waits, in words for people, and whether any agent could do it at all.

use std::collections::{BTreeMap, BTreeSet};

use super::{AgentView, Availability, Waiting};
use crate::contain::Tier;
use crate::id::{AdapterName, AgentId};
use crate::time::{Timestamp, in_words};

/// Explains why a job waits. `agents` are all known ones, including disconnected ones.
#[must_use]
pub fn why_waiting(job: &Waiting<'_>, agents: &[AgentView<'_>], now: Timestamp) -> String {
    if job.not_before > now {
        return format!("tries again in {}", in_words(job.not_before.since(now)));
    }
    let able = match able(job, agents) {
        Ok(able) => able,
        Err(lacking) => return lacking,
    };
    let state = if able.iter().any(|agent| agent.is_free_for(job)) {
        "its turn comes next".to_owned()
    } else {
        refused(job, &able).unwrap_or_else(|| states(job, &able))
    };
    format!("waits for {}; {state}", wanted(job))
}

/// What every known agent lacks for a job. `None` when one could do it, now or later.
#[must_use]
pub fn nobody_can(job: &Waiting<'_>, agents: &[AgentView<'_>]) -> Option<String> {
    able(job, agents).err()
}

/// The agents that can do the job, whether or not they take work now; at least one.
fn able<'a>(job: &Waiting<'_>, agents: &'a [AgentView<'a>]) -> Result<Vec<&'a AgentView<'a>>, String> {
    if agents.is_empty() {
        return Err("no agent is connected".to_owned());
    }
    let serving: Vec<_> = agents.iter().filter(|agent| agent.serves(job)).collect();
    if serving.is_empty() {
        return Err(format!("no agent works for project {}", job.project));
    }
    let serving: Vec<_> = serving.into_iter().filter(|agent| agent.is_allowed(job)).collect();
    if serving.is_empty() {
        return Err(not_allowed(job));
    }
    let with_adapter: Vec<_> = serving.iter().copied().filter(|agent| agent.has_adapter(job)).collect();
    if let (Some(adapter), true) = (job.adapter, with_adapter.is_empty()) {
        return Err(no_adapter(adapter, &serving));
    }
    let able: Vec<_> = with_adapter
        .iter()
        .copied()
        .filter(|agent| agent.has_labels(job))
        .collect();
    if able.is_empty() {
        return Err(no_labels(job, &with_adapter));
    }
    let labelled = able;
    let able: Vec<_> = labelled.iter().copied().filter(|agent| agent.contains(job)).collect();
    if able.is_empty() {
        return Err(no_tier(job, &labelled));
    }
    Ok(able)
}

fn not_allowed(job: &Waiting<'_>) -> String {
    let (work, word, all) = match job.adapter {
        Some(_) => ("run sessions", "run", "run"),
        None => ("verify results", "verify", "run,verify"),
    };
    format!(
        "no agent may {work}; say with `kage coordinator --token-agents {all}` that agents with the coordinator's own \
         token may, or let one join with a token of `kage token create --role agent --can {word}`, which needs TLS"
    )
}

fn no_adapter(adapter: &AdapterName, serving: &[&AgentView<'_>]) -> String {
    // An agent that is connected but whose adapter is broken is nearer than any other.
    let broken = serving.iter().find_map(|agent| {
        let said = agent.known.iter().find(|known| known.name == *adapter)?;
        Some((agent.name, said.unavailable.as_deref()?))
    });
    if let Some((agent, why)) = broken {
        return format!("the adapter {adapter} does not work on {agent}: {why}");
    }
    let known: BTreeSet<&str> = serving
        .iter()
        .flat_map(|agent| agent.adapters.iter().map(AdapterName::as_str))
        .collect();
    let known = if known.is_empty() {
        "none at all".to_owned()
    } else {
        known.into_iter().collect::<Vec<_>>().join(", ")
    };
    format!("no agent has the adapter {adapter}; the fleet has {known}")
}

fn no_labels(job: &Waiting<'_>, agents: &[&AgentView<'_>]) -> String {
    let nobody = job.requirements.iter().filter(|(key, value)| {
        let carries = |agent: &&AgentView<'_>| agent.labels.get(*key) == Some(*value);
        !agents.iter().any(carries)
    });
    let nobody: Vec<String> = nobody.map(|(key, value)| format!("{key}={value}")).collect();
    let with = job
        .adapter
        .map(|adapter| format!(" with {adapter}"))
        .unwrap_or_default();
    if nobody.is_empty() {
        let all: Vec<String> = job
            .requirements
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        format!("no agent{with} carries all of {}", all.join(", "))
    } else {
        format!("no agent{with} carries {}", nobody.join(" or "))
    }
}

/// What the agents have instead of the tier that the job demands, and why the nearest of them has no higher one.
fn no_tier(job: &Waiting<'_>, agents: &[&AgentView<'_>]) -> String {
    // An agent with several lanes is one agent.
    let tiers: BTreeMap<AgentId, Tier> = agents.iter().map(|agent| (agent.id, agent.contained.tier)).collect();
    let of = |tier: Tier| tiers.values().filter(|has| **has == tier).count();
    let kinds = Tier::ALL.into_iter().map(|tier| (tier, of(tier)));
    let said: Vec<String> = kinds
        .filter(|(_, agents)| *agents > 0)
        .map(|(tier, agents)| match agents {
            1 => format!("1 agent has {tier}"),
            _ => format!("{agents} agents have {tier}"),
        })
        .collect();
    let nearest = agents.iter().max_by_key(|agent| agent.contained.tier);
    let why = nearest.filter(|agent| !agent.contained.short_of.is_empty());
    let why = why.map(|agent| format!(" ({}: {})", agent.name, agent.contained.short_of));
    let with = match needs(job).as_slice() {
        [] => String::new(),
        needs => format!(" with {}", needs.join(" and ")),
    };
    format!(
        "no agent{with} has containment {}: {}{}; `kage doctor` on an agent's machine says what it lacks",
        job.contain,
        said.join(", "),
        why.unwrap_or_default()
    )
}

/// The refusals of agents that have free slots.
fn refused(job: &Waiting<'_>, able: &[&AgentView<'_>]) -> Option<String> {
    let roomy = able
        .iter()
        .filter(|agent| agent.availability == Availability::Open && agent.free_slots > 0);
    let mut refusals = roomy.filter_map(|agent| Some((agent.name, agent.refusal(job)?.reason)));
    let (first, reason) = refusals.next()?;
    Some(match refusals.count() {
        0 => format!("{first} refused it: {reason}"),
        1 => format!("{first} and one other refused it: {reason}"),
        others => format!("{first} and {others} others refused it: {reason}"),
    })
}

/// Why each able agent has no free slot.
fn states(job: &Waiting<'_>, able: &[&AgentView<'_>]) -> String {
    let anybody = job.adapter.is_none() && job.requirements.is_empty() && job.contain.is_lowest();
    if let [only] = able {
        let (name, word) = (only.name, word(only));
        return if anybody {
            format!("there is only {name}, which is {word}")
        } else {
            format!("only {name} has it, and is {word}")
        };
    }
    let number = count(able.len());
    let subject = if anybody {
        format!("there are {number}")
    } else {
        format!("{number} have it")
    };
    let of = |wanted: &str| able.iter().filter(|agent| word(agent) == wanted).count();
    let kinds: Vec<(&str, usize)> = ["full", "cordoned", "draining", "not connected"]
        .into_iter()
        .map(|kind| (kind, of(kind)))
        .filter(|(_, agents)| *agents > 0)
        .collect();
    match kinds.as_slice() {
        [(kind, 2)] => format!("{subject}, both {kind}"),
        [(kind, _)] => format!("{subject}, all {kind}"),
        several => {
            let parts: Vec<String> = several
                .iter()
                .map(|(kind, agents)| format!("{agents} {kind}"))
                .collect();
            format!("{subject}: {}", parts.join(", "))
        }
    }
}

const fn word(agent: &AgentView<'_>) -> &'static str {
    match agent.availability {
        Availability::Open => "full",
        Availability::Cordoned => "cordoned",
        Availability::Draining => "draining",
        Availability::Away => "not connected",
    }
}

/// "an agent with codex and os=linux".
fn wanted(job: &Waiting<'_>) -> String {
    let mut needs = needs(job);
    if !job.contain.is_lowest() {
        needs.push(format!("containment {}", job.contain));
    }
    if needs.is_empty() {
        "any agent".to_owned()
    } else {
        format!("an agent with {}", needs.join(" and "))
    }
}

/// The adapter and the labels that a job needs.
fn needs(job: &Waiting<'_>) -> Vec<String> {
    let adapter = job.adapter.map(ToString::to_string);
    let labels = job.requirements.iter().map(|(key, value)| format!("{key}={value}"));
    adapter.into_iter().chain(labels).collect()
}

fn count(n: usize) -> String {
    match n {
        2 => "two".to_owned(),
        3 => "three".to_owned(),
        4 => "four".to_owned(),
        _ => n.to_string(),
    }
}
