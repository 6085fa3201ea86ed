//! `kage doctor`: what this machine has and lacks for a coordinator, an agent or a person, and what
//! to do about it.

use kage_agent::ground::caches::{FoundCache, look};
use kage_agent::ground::disk::{HealedMirror, Usage};
use kage_agent::process::Runner;
use kage_core::contain::Containment;
use kage_core::fleet::AdapterInfo;
use kage_core::left_out::in_units;
use kage_core::time::Timestamp;
use serde::Serialize;

use crate::args::{AgentOptions, Doctor, MachineRole};
use crate::daemon;
use crate::environment;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::table::Table;
use crate::view;

mod connection;
mod data;

use connection::Connection;
use data::Data;

#[derive(Debug, Serialize)]
struct Diagnosis {
    version: &'static str,
    system: String,
    /// Version of the bundled SQLite.
    sqlite: &'static str,
    git: Option<String>,
    /// How far a session's processes are kept from leaving something behind.
    containment: String,
    /// The tier of containment that the agent here proved at its last start, and why it is no higher one.
    contained: Containment,
    state_dir: String,
    /// Free bytes where the state is kept.
    free_bytes: Option<u64>,
    /// The disk usage of this machine's agent.
    agent_disk: Usage,
    /// Caches of package managers, and how attempts of this machine's agent get them.
    caches: Vec<FoundCache>,
    /// Damaged mirrors that were fetched again, oldest first.
    healed_mirrors: Vec<HealedMirror>,
    /// The coordinator that this machine uses.
    connection: Option<Connection>,
    /// The data of a coordinator of this machine.
    coordinator_data: Option<Data>,
    /// As they are for the shell in which this is typed, which tasks of the daemon here work with.
    adapters: Vec<Adapter>,
    /// The daemon of this machine, when it runs.
    daemon: Option<Daemon>,
    problems: Vec<String>,
}

/// How the daemon of this machine was started.
#[derive(Debug, Serialize)]
struct Daemon {
    /// The names of variables that differ from this shell's.
    differs: Vec<String>,
    /// The adapters with the environment of its start.
    adapters: Vec<Adapter>,
}

#[derive(Debug, Serialize)]
struct Adapter {
    name: String,
    version: String,
    unavailable: Option<String>,
    /// What lets it in at its provider, in words.
    access: Option<String>,
}

/// What a machine cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    adapters: bool,
    /// A coordinator that answers.
    coordinator: bool,
    /// The data of a coordinator.
    data: bool,
}

impl Needs {
    /// Without a role nothing but adapters: a machine may not be in use yet. `remote`: its settings name a
    /// coordinator, whose agents have the adapters that a person uses.
    const fn of(role: Option<MachineRole>, remote: bool) -> Self {
        let (adapters, coordinator, data) = match role {
            None => (true, false, false),
            Some(MachineRole::Coordinator) => (false, true, true),
            Some(MachineRole::Agent) => (true, true, false),
            Some(MachineRole::Person) => (!remote, remote, false),
        };
        Self {
            adapters,
            coordinator,
            data,
        }
    }
}

/// Below this, in bytes, the disk counts as full: a mirror and a few worktrees must fit.
const LOW_DISK: u64 = 2 << 30;

pub(super) async fn run(invocation: &Invocation, args: Doctor) -> anyhow::Result<Exit> {
    let diagnosis = diagnose(invocation, args).await;
    invocation.out.result("diagnosis", &diagnosis)?;
    invocation.out.text(&words(&diagnosis))?;
    Ok(if diagnosis.problems.is_empty() {
        Exit::Done
    } else {
        Exit::TaskFailed
    })
}

async fn diagnose(invocation: &Invocation, args: Doctor) -> Diagnosis {
    let mut problems = Vec::new();
    let git = kage_git::program::version().await.ok();
    if let Err(error) = kage_git::program::check().await {
        problems.push(format!("{error}; install it and put it on PATH"));
    }
    let free_bytes = free_bytes(invocation.state.path());
    if free_bytes.is_some_and(|free| free < LOW_DISK) {
        problems.push(format!(
            "only {} MiB are free in {}; make room, or set KAGE_STATE_DIR to a folder on another disk",
            free_bytes.unwrap_or_default() >> 20,
            invocation.state.path().display()
        ));
    }
    let now = now();
    let needs = Needs::of(args.role, invocation.settings.coordinator.url.is_some());
    let adapters = match needs.adapters {
        true => adapters(invocation, now, &mut problems).await,
        false => Vec::new(),
    };
    let daemon = daemon_here(invocation, &mut problems).await;
    let connection = connection::check(invocation, args.coordinator, &mut problems).await;
    if needs.coordinator && connection.is_none() {
        problems.push("no coordinator runs here, and none is configured".to_owned());
    }
    let folder = invocation.state.coordinator();
    let coordinator_data = data::check(&folder, now.as_millis(), &mut problems);
    if needs.data && coordinator_data.is_none() {
        problems.push(format!("no coordinator has kept its data in {}", folder.display()));
    }
    Diagnosis {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        sqlite: rusqlite::version(),
        git,
        containment: Runner::this_executable().containment().to_string(),
        contained: kage_agent::contained_at_last(&invocation.state.agent()).unwrap_or(Containment::NOTHING),
        state_dir: invocation.state.path().display().to_string(),
        free_bytes,
        agent_disk: Usage::of(&invocation.state.agent()).await,
        caches: caches(invocation),
        healed_mirrors: HealedMirror::all(&invocation.state.agent()),
        connection,
        coordinator_data,
        adapters,
        daemon,
        problems,
    }
}

/// The adapters of this machine, each asked whether it answers.
async fn adapters(invocation: &Invocation, now: Timestamp, problems: &mut Vec<String>) -> Vec<Adapter> {
    let found = daemon::registry(invocation, &AgentOptions::default(), &invocation.state.agent()).await;
    let registry = match found {
        Ok(registry) => registry,
        Err(error) => {
            problems.push(format!("{error:#}"));
            return Vec::new();
        }
    };
    let mut adapters = Vec::new();
    for adapter in registry.values() {
        let mut info = adapter.info();
        if info.unavailable.is_none() {
            info.unavailable = adapter.answers().await.err();
        }
        adapters.push(shown(info, now));
    }
    if !adapters.is_empty() && adapters.iter().all(|adapter| adapter.unavailable.is_some()) {
        problems.push("no adapter can be used here; see the reasons above".to_owned());
    }
    adapters
}

/// The caches of this home folder. Their copies are made where the agent keeps its state.
fn caches(invocation: &Invocation) -> Vec<FoundCache> {
    let settings = invocation.settings.agent.caches.caches();
    let state = invocation.state.agent();
    let Some((home, state)) = std::env::home_dir().zip(state.ancestors().find(|folder| folder.is_dir())) else {
        return Vec::new();
    };
    look(&home, state, &settings)
}

fn now() -> Timestamp {
    Timestamp::from_millis(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default())
}

fn shown(adapter: AdapterInfo, now: Timestamp) -> Adapter {
    Adapter {
        name: adapter.name.to_string(),
        version: adapter.version,
        unavailable: adapter.unavailable,
        access: adapter.access.map(|access| access.words(now)),
    }
}

/// The daemon of this machine, if the settings name no other coordinator and it runs.
async fn daemon_here(invocation: &Invocation, problems: &mut Vec<String>) -> Option<Daemon> {
    if invocation.settings.coordinator.url.is_some() {
        return None;
    }
    let compared = match environment::compared(invocation).await {
        Ok(compared) => compared?,
        Err(error) => {
            problems.push(format!("the daemon of this machine cannot be asked: {error:#}"));
            return None;
        }
    };
    problems.extend(compared.problem);
    let now = now();
    Some(Daemon {
        differs: compared.differs,
        adapters: compared
            .adapters
            .into_iter()
            .map(|adapter| shown(adapter, now))
            .collect(),
    })
}

fn free_bytes(path: &std::path::Path) -> Option<u64> {
    // The folder may not exist yet; the disk of its future place counts.
    let existing = path.ancestors().find(|dir| dir.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// How it went with the coordinator.
fn reached(connection: &Connection) -> String {
    let mut text = connection.url.clone();
    text += if connection.reached {
        " (reached"
    } else {
        " (NOT reached"
    };
    if let Some(ahead) = connection.clock_ahead_seconds {
        text += &format!(", clocks differ by {:.0} s", ahead.abs());
    }
    if let Some(until) = &connection.certificate_until {
        text += &format!(", the agent's certificate ends {until}");
    }
    text + ")"
}

fn stands_on(data: &Data) -> String {
    let mib = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), |bytes| (bytes >> 20).to_string());
    let mut text = format!(
        "{} MiB database, {} MiB blobs, {} MiB output, {} MiB repositories, {} MiB free",
        mib(data.database_bytes),
        data.blob_bytes >> 20,
        data.output_bytes >> 20,
        data.repository_bytes >> 20,
        mib(data.free_bytes)
    );
    if let Some(millis) = data.sync_millis {
        text += &format!(", durable after {millis:.1} ms");
    }
    if let Some(until) = &data.certificate_until {
        text += &format!(", certificate ends {until}");
    }
    text
}

/// How often mirrors were damaged, and the last time.
fn healed(mirrors: &[HealedMirror]) -> String {
    let Some(last) = mirrors.last() else {
        return String::new();
    };
    let kept = match &last.aside {
        Some(aside) => format!("set aside in {}", aside.display()),
        None => "nothing of it is kept".to_owned(),
    };
    format!(
        "\ndamaged mirrors, healed: {}; the last one at {}: {} ({}; {kept})\n",
        mirrors.len(),
        last.at,
        last.mirror.display(),
        last.what
    )
}

fn kept(disk: &Usage) -> Table {
    let kinds = [
        ("outbox", disk.outbox),
        ("mirrors", disk.mirrors),
        ("of these checkpoints", disk.checkpoints),
        ("worktrees", disk.worktrees),
        ("scratch folders", disk.scratch),
        ("contexts", disk.contexts),
    ];
    let size = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let rows = kinds.map(|(kind, bytes)| vec![kind.to_owned(), size(bytes)]);
    Table::of_words(&["the agent keeps", "size"], rows)
}

fn adapter_table(all: &[Adapter]) -> Table {
    let rows = all.iter().map(|adapter| {
        vec![
            adapter.name.clone(),
            adapter.version.clone(),
            adapter.access.clone().unwrap_or_default(),
            usable(adapter),
        ]
    });
    Table::of_words(&["adapter", "version", "access", "usable"], rows)
}

fn usable(adapter: &Adapter) -> String {
    adapter.unavailable.clone().unwrap_or_else(|| "yes".to_owned())
}

/// The adapters that are usable in another way with the environment of the daemon's start.
fn other_in_the_daemon(diagnosis: &Diagnosis) -> String {
    let here = |name: &str| {
        diagnosis
            .adapters
            .iter()
            .find(|adapter| adapter.name == name)
            .map(usable)
    };
    let daemon = diagnosis.daemon.iter().flat_map(|daemon| &daemon.adapters);
    let other = daemon.filter(|adapter| here(&adapter.name) != Some(usable(adapter)));
    let lines = other.map(|adapter| {
        format!(
            "\nwith the environment of the daemon's start, {}: {}\n",
            adapter.name,
            usable(adapter)
        )
    });
    lines.collect()
}

/// "T1: the kernel has no user namespaces".
fn tier(contained: &Containment) -> String {
    match contained.short_of.as_str() {
        "" => contained.tier.to_string(),
        short_of => format!("{}: {short_of}", contained.tier),
    }
}

fn words(diagnosis: &Diagnosis) -> String {
    let mut text = format!(
        "kage         {} ({})\nsqlite       {}\ngit          {}\ncontainment  {}\nprocesses    {}\nstate        {} ({})\ncoordinator  {}\n",
        diagnosis.version,
        diagnosis.system,
        diagnosis.sqlite,
        diagnosis.git.as_deref().unwrap_or("missing"),
        tier(&diagnosis.contained),
        diagnosis.containment,
        diagnosis.state_dir,
        diagnosis.free_bytes.map_or_else(
            || "free space unknown".to_owned(),
            |free| format!("{} MiB free", free >> 20)
        ),
        diagnosis.connection.as_ref().map_or_else(
            || "no coordinator runs here, and none is configured".to_owned(),
            reached
        ),
    );
    if let Some(daemon) = diagnosis.daemon.as_ref().filter(|daemon| !daemon.differs.is_empty()) {
        text += &format!(
            "daemon       started with another {}; a task gets what the shell has in which it is typed\n",
            daemon.differs.join(", ")
        );
    }
    if let Some(data) = &diagnosis.coordinator_data {
        text += &format!("data         {}\n", stands_on(data));
    }
    text += &view::laid_out(&kept(&diagnosis.agent_disk));
    for cache in &diagnosis.caches {
        text += &format!(
            "\ncache ~/{} ({}): {}\n",
            cache.path,
            in_units(cache.size.bytes),
            cache.sharing.words()
        );
    }
    text += &healed(&diagnosis.healed_mirrors);
    text.push('\n');
    if diagnosis.adapters.is_empty() {
        return text + &problems(diagnosis);
    }
    text += &view::laid_out(&adapter_table(&diagnosis.adapters));
    text += &other_in_the_daemon(diagnosis);
    text + &problems(diagnosis)
}

fn problems(diagnosis: &Diagnosis) -> String {
    let lines = diagnosis.problems.iter().map(|problem| format!("\nproblem: {problem}"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn what_was_found_fits_every_width() {
        let disk = Usage {
            outbox: 3 << 20,
            mirrors: 220 << 20,
            checkpoints: 7 << 20,
            ..Usage::default()
        };
        insta::assert_snapshot!("kept", everywhere(&kept(&disk)));
        let adapter = |name: &str, version: &str, unavailable: Option<&str>| Adapter {
            name: name.to_owned(),
            version: version.to_owned(),
            unavailable: unavailable.map(str::to_owned),
            access: unavailable.is_none().then(|| "ANTHROPIC_API_KEY".to_owned()),
        };
        let found = [
            adapter("claude-api", "", None),
            adapter(
                "codex",
                "0.171.0",
                Some("set OPENAI_API_KEY or log in with `codex login`"),
            ),
        ];
        insta::assert_snapshot!("adapters", everywhere(&adapter_table(&found)));
    }
}
