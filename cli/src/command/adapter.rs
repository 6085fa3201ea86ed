//! `kage adapter`: lists the adapters of this machine, shows their manifests, checks one, and begins a new
//! one.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use kage_agent::adapters::cli::manifest::Manifest;
use kage_agent::adapters::{Described, Origin, described};
use kage_agent::process::AgentEnvironment;
use kage_core::id::AdapterName;
use serde::Serialize;

use crate::args::AgentOptions;
use crate::conformance::{Check, Finding, Verdict};
use crate::exit::{Exit, Refusal};
use crate::hold;
use crate::invocation::Invocation;
use crate::output::note;
use crate::table::Table;
use crate::{adapters, daemon, settings};

/// The begin of a manifest of a person's own. `NAME` and `PROGRAM` are filled in.
const TEMPLATE: &str = include_str!("../../data/adapter.toml");

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    /// What it runs; `None`: it calls an API itself.
    program: Option<String>,
    version: String,
    /// What lets it in at its provider, in words.
    access: Option<String>,
    /// Why it cannot be used here.
    unavailable: Option<String>,
    /// Where it comes from: `built in`, `settings`, or the file of its manifest.
    origin: String,
}

#[derive(Debug, Serialize)]
struct List {
    adapters: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a str,
    origin: String,
    manifest: &'a str,
}

#[derive(Debug, Serialize)]
struct Checked<'a> {
    name: &'a str,
    findings: &'a [Finding],
}

pub(super) async fn ls(invocation: &Invocation) -> anyhow::Result<Exit> {
    let registry = daemon::registry(invocation, &AgentOptions::default(), &invocation.state.agent()).await?;
    let now = hold::now();
    let mut listed = Vec::new();
    for adapter in of_this_machine(invocation)? {
        let Some(made) = registry.get(&adapter.name) else {
            continue;
        };
        let mut info = made.info();
        if info.unavailable.is_none() {
            info.unavailable = made.answers().await.err();
        }
        listed.push(Listed {
            name: adapter.name.to_string(),
            program: adapter.program,
            version: info.version,
            access: info.access.map(|access| access.words(now)),
            unavailable: info.unavailable,
            origin: adapter.origin.to_string(),
        });
    }
    let list = List { adapters: listed };
    invocation.out.result("adapters", &list)?;
    invocation.out.table(&table(&list.adapters))?;
    Ok(Exit::Done)
}

fn table(adapters: &[Listed]) -> Table {
    let rows = adapters.iter().map(|adapter| {
        let access = adapter.unavailable.as_ref().or(adapter.access.as_ref());
        vec![
            adapter.name.clone(),
            adapter.program.clone().unwrap_or_else(|| "its API".to_owned()),
            adapter.version.clone(),
            access.cloned().unwrap_or_default(),
            adapter.origin.clone(),
        ]
    });
    Table::of_words(&["adapter", "runs", "version", "login or key", "from"], rows)
}

pub(super) fn show(invocation: &Invocation, name: &str) -> anyhow::Result<Exit> {
    let (origin, manifest) = manifest_of(invocation, name)?;
    let shown = Shown {
        name,
        origin: origin.to_string(),
        manifest: &manifest,
    };
    invocation.out.result("manifest", &shown)?;
    invocation.out.text(&manifest)?;
    Ok(Exit::Done)
}

pub(super) async fn check(invocation: &Invocation, name: String, model: Option<String>) -> anyhow::Result<Exit> {
    let (origin, text) = manifest_of(invocation, &name)?;
    let source = match origin {
        Origin::File(path) => path,
        Origin::BuiltIn | Origin::Settings => format!("{name}.toml").into(),
    };
    let manifest = Manifest::parse(&text, &source)?;
    let root = tempfile::tempdir().context("cannot make a folder for the check")?;
    let (settings, state) = (&invocation.settings, &invocation.state);
    let config = |environment| adapters::config(settings, state, &AgentOptions::default(), &state.agent(), environment);
    let check = Check::prepare(&manifest, model, root.path().to_owned(), config).await?;
    note("the model is scripted; a program that repeats calls may take a minute for a step");
    let findings = check.run().await?;
    let holds = findings.iter().all(|finding| finding.verdict != Verdict::Missing);
    let checked = Checked {
        name: &name,
        findings: &findings,
    };
    invocation.out.result("check", &checked)?;
    invocation.out.table(&findings_table(&findings))?;
    Ok(if holds { Exit::Done } else { Exit::TaskFailed })
}

fn findings_table(findings: &[Finding]) -> Table {
    let rows = findings.iter().map(|finding| {
        let verdict = match finding.verdict {
            Verdict::Holds => "ok",
            Verdict::Missing => "missing",
            Verdict::NotOffered => "not offered",
        };
        vec![finding.step.to_owned(), verdict.to_owned(), finding.detail.clone()]
    });
    Table::of_words(&["step", "", "what was seen"], rows)
}

/// Where the manifest of an adapter is from, and its text.
fn manifest_of(invocation: &Invocation, name: &str) -> anyhow::Result<(Origin, String)> {
    let all = of_this_machine(invocation)?;
    let Some(adapter) = all.iter().find(|adapter| adapter.name.as_str() == name) else {
        let names: Vec<_> = all.iter().map(|adapter| adapter.name.as_str()).collect();
        return Err(Refusal::usage(format!("there is no adapter {name:?}; there are {}", names.join(", "))).into());
    };
    match &adapter.manifest {
        Some(manifest) => Ok((adapter.origin.clone(), manifest.clone())),
        None => Err(Refusal::usage(format!(
            "{name} has no manifest: it is built in, or stands in `[adapter.{name}]` of the settings"
        ))
        .into()),
    }
}

pub(super) fn new(invocation: &Invocation, name: &str, program: Option<&str>) -> anyhow::Result<Exit> {
    let name = name
        .parse::<AdapterName>()
        .map_err(|error| Refusal::usage(error.to_string()))?;
    let folder = settings::user_adapters().context("you have no home folder, in which your manifests would be")?;
    let file = folder.join(format!("{name}.toml"));
    let text = template(&name, program.unwrap_or(name.as_str()), &file)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let created = std::fs::OpenOptions::new().write(true).create_new(true).open(&file);
    let mut created = match created {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let problem = format!("{} is there already; edit it, or choose another name", file.display());
            return Err(Refusal::usage(problem).into());
        }
        created => created.with_context(|| format!("cannot write {}", file.display()))?,
    };
    created.write_all(text.as_bytes())?;
    let shown = Shown {
        name: name.as_str(),
        origin: Origin::File(file.clone()).to_string(),
        manifest: &text,
    };
    invocation.out.result("manifest", &shown)?;
    invocation.out.text(&file.display().to_string())?;
    note(&format!(
        "edit it, then look at `kage adapter ls`; `kage run --with {name}` uses it"
    ));
    Ok(Exit::Done)
}

/// The text of a new manifest, which is a manifest as it is.
fn template(name: &AdapterName, program: &str, file: &Path) -> anyhow::Result<String> {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let text = TEMPLATE
        .replace("\"NAME\"", &quoted(name.as_str()))
        .replace("\"PROGRAM\"", &quoted(program));
    Manifest::parse(&text, file)?;
    Ok(text)
}

fn of_this_machine(invocation: &Invocation) -> anyhow::Result<Vec<Described>> {
    let (settings, state) = (&invocation.settings, &invocation.state);
    let environment = AgentEnvironment::of_this_process();
    let config = adapters::config(settings, state, &AgentOptions::default(), &state.agent(), environment)?;
    Ok(described(&config)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn adapters_and_what_a_check_found_fit_every_width() {
        let listed =
            |name: &str, program: Option<&str>, version: &str, access: Option<&str>, unavailable: Option<&str>| {
                Listed {
                    name: name.to_owned(),
                    program: program.map(str::to_owned),
                    version: version.to_owned(),
                    access: access.map(str::to_owned),
                    unavailable: unavailable.map(str::to_owned),
                    origin: "built in".to_owned(),
                }
            };
        let adapters = [
            listed("claude-api", None, "", Some("ANTHROPIC_API_KEY"), None),
            listed(
                "codex",
                Some("codex"),
                "0.171.0",
                Some("login of ChatGPT, until 14:00"),
                None,
            ),
            listed("qwen", Some("qwen"), "", None, Some("the program qwen is not in PATH")),
        ];
        insta::assert_snapshot!("adapters", everywhere(&table(&adapters)));
        let found = |step, verdict, detail: &str| Finding {
            step,
            verdict,
            detail: detail.to_owned(),
        };
        let findings = [
            found("starts", Verdict::Holds, "the program answered after 0.3 s"),
            found(
                "tells its usage",
                Verdict::Missing,
                "no line of the output has tokens, so money is unknown",
            ),
            found("goes on", Verdict::NotOffered, "the manifest has no `resume`"),
        ];
        insta::assert_snapshot!("findings", everywhere(&findings_table(&findings)));
    }

    #[test]
    fn a_new_manifest_is_one_whatever_the_program_is_called() {
        let name: AdapterName = "my-tool".parse().unwrap();
        for program in [
            "my-tool",
            "/opt/my tools/x",
            "with \"quotes\" and \\",
            "{manifest_dir}/run.sh",
        ] {
            let text = template(&name, program, Path::new("/x/my-tool.toml")).unwrap();
            let manifest = Manifest::parse(&text, Path::new("/x/my-tool.toml")).unwrap();
            assert_eq!(
                (manifest.name.as_str(), manifest.command.as_str()),
                ("my-tool", program)
            );
        }
        assert!(template(&name, "{nothing}", Path::new("/x")).is_err());
        assert!(template(&name, " ", Path::new("/x")).is_err());
    }

    /// What is switched off in the template is right too: every line that is only a comment sign away from
    /// being a setting.
    #[test]
    fn every_setting_that_the_template_proposes_is_one() {
        let proposed: Vec<_> = TEMPLATE
            .lines()
            .filter(|line| !line.starts_with("# "))
            .map(|line| line.strip_prefix('#').unwrap_or(line))
            .collect();
        let text = proposed.join("\n").replace("\"NAME\"", "\"my-tool\"");
        assert!(text.lines().count() > 40, "{text}");
        Manifest::parse(&text, Path::new("/x/my-tool.toml")).unwrap();
    }
}
