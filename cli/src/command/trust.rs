//! `kage adapter trust`: a person agrees to what a repository brings that runs programs here.

use std::path::Path;

use kage_agent::adapters::{Origin, described};
use kage_agent::process::AgentEnvironment;
use kage_git::UserRepo;
use serde::Serialize;

use crate::agreed::{Agreements, Brought, BroughtAdapters};
use crate::args::AgentOptions;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::{adapters, view};

#[derive(Debug, Serialize)]
struct Agreed<'a> {
    repository: String,
    /// What agreed adapters and servers run, by their names.
    adapters: Vec<Runs<'a>>,
    mcp_servers: Vec<Runs<'a>>,
}

#[derive(Debug, Serialize)]
struct Runs<'a> {
    name: &'a str,
    runs: &'a str,
}

pub(super) async fn run(invocation: &Invocation, withdraw: bool) -> anyhow::Result<Exit> {
    let repository = UserRepo::discover(Path::new(".")).await?;
    let brought = match withdraw {
        true => Brought::default(),
        false => Brought::by(&repository)?,
    };
    if !withdraw && brought == Brought::default() {
        let root = repository.root().display();
        let problem = format!("{root} brings nothing to agree to: no manifest in .kage/adapters, and no .mcp.json");
        return Err(Refusal::usage(problem).into());
    }
    let mut agreements = Agreements::read()?;
    if let Some(own) = &brought.adapters {
        check_names(invocation, &agreements, repository.home(), own)?;
    }
    agreements.agree(repository.home(), &brought)?;
    let result = Agreed {
        repository: repository.root().display().to_string(),
        adapters: runs(brought.adapters.iter().flat_map(|of| &of.programs)),
        mcp_servers: runs(brought.mcp.iter().flat_map(|of| &of.servers)),
    };
    invocation.out.result("agreed", &result)?;
    for (what, all) in [("adapter", &result.adapters), ("MCP server", &result.mcp_servers)] {
        for Runs { name, runs } in all {
            let (name, runs) = (view::printable(name), view::one_line(runs, 200));
            invocation.out.text(&format!("{what} {name} runs {runs}"))?;
        }
    }
    invocation.out.text(match withdraw {
        true => "nothing of this repository runs here any more",
        false => "agreed, until one of their files changes",
    })?;
    Ok(Exit::Done)
}

fn runs<'a>(all: impl Iterator<Item = (&'a String, &'a String)>) -> Vec<Runs<'a>> {
    all.map(|(name, runs)| Runs { name, runs }).collect()
}

/// A repository's adapter has a name of its own: it must not take the place of another one.
fn check_names(
    invocation: &Invocation,
    agreements: &Agreements,
    clone: &Path,
    own: &BroughtAdapters,
) -> anyhow::Result<()> {
    let (settings, state) = (&invocation.settings, &invocation.state);
    let environment = AgentEnvironment::of_this_process();
    let mut config = adapters::config(settings, state, &AgentOptions::default(), &state.agent(), environment)?;
    // Those that this agreement replaces, or has already.
    let replaced = agreements.manifest_folders();
    config.manifest_dirs.retain(|folder| !replaced.contains(folder));
    let others = described(&config)?;
    if let Some(other) = others
        .iter()
        .find(|other| own.programs.contains_key(other.name.as_str()))
    {
        let from = match &other.origin {
            Origin::BuiltIn => "built in".to_owned(),
            Origin::Settings => "of your settings".to_owned(),
            Origin::File(path) => format!("of {}", path.display()),
        };
        let problem = format!(
            "there is an adapter {} already ({from}): the repository's needs another name",
            other.name
        );
        return Err(Refusal::usage(problem).into());
    }
    if let Some((clone, name)) = agreements.taken(clone, own)? {
        return Err(Refusal::usage(format!(
            "{} has an adapter {name} too, with other files: run `kage adapter trust --withdraw` there first, or rename \
             one of them",
            clone.display()
        ))
        .into());
    }
    Ok(())
}
