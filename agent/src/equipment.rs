//! What attempts work with: an environment from which those of programs are made, the adapters, and the
//! programs in its PATH. An agent has that of its start. The daemon of a person's machine has others
//! too: a command that submits a task hands over what its shell has, by a list of names, and where that
//! differs from the start, the task's attempts work with it, and nobody else's do.
//!
//! ```text
//!   command: variables of its shell --differs--> kept under a random name, which the task has
//!                                   --same-----> nothing is kept
//!   either:  manifests, settings or programs changed --> adapters made anew, and announced
//! ```
//!
//! Values are in memory, and in a file of mode 0600 until the task is over, for another start of the
//! daemon.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kage_core::cause::chain;
use kage_core::fleet::AdapterInfo;
use kage_core::id::{AdapterName, Digest, TaskId};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::adapters::port::Registry;
use crate::adapters::{self, AdapterConfig};
use crate::ports::Blocking;
use crate::process::handed::{Handed, Values};
use crate::process::programs::Programs;
use crate::process::{AgentEnvironment, Secret};

/// How many shells' equipment is kept in memory; that of an older one is made again from its file.
const KEPT: usize = 32;
/// How long an announcement of adapters may take to reach the coordinator.
const ANNOUNCED: Duration = Duration::from_secs(5);

/// Makes the configuration of adapters anew, for an agent with this environment.
pub type MakeAdapterConfig = Arc<dyn Fn(AgentEnvironment) -> Result<AdapterConfig, String> + Send + Sync>;

/// What an attempt works with.
#[derive(Clone)]
pub(crate) struct Equipment {
    pub(crate) environment: AgentEnvironment,
    pub(crate) adapters: Registry,
    pub(crate) programs: Programs,
    /// Of what the adapters were made; `None`: nobody makes them anew.
    pub(crate) fingerprint: Option<Digest>,
}

impl Equipment {
    /// The values that may not be shown.
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        self.adapters.values().flat_map(|adapter| adapter.secrets()).collect()
    }
}

/// The adapters that the coordinator is told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) version: u64,
    pub(crate) adapters: Vec<AdapterInfo>,
}

/// Where the programs of PATH are recorded, and whose they cannot be.
#[derive(Debug, Clone)]
pub(crate) struct ProgramRecord {
    pub(crate) record: PathBuf,
    pub(crate) kept_out: Vec<PathBuf>,
}

/// What came of a shell that was handed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TakenShell {
    /// The names of variables that differ from the agent's start.
    pub(crate) differs: Vec<String>,
    /// The adapters that the task will have.
    pub(crate) adapters: Vec<AdapterInfo>,
}

/// The equipment of an agent, and of shells that were handed to it.
pub(crate) struct Equipments {
    known: Mutex<Known>,
    make: Option<MakeAdapterConfig>,
    shells: Handed,
    record: ProgramRecord,
    blocking: Blocking,
    announced: watch::Sender<Announcement>,
    /// The newest announcement that the coordinator has.
    reached: watch::Sender<u64>,
}

struct Known {
    start: Arc<Equipment>,
    /// The newest first.
    named: VecDeque<NamedEquipment>,
}

/// The equipment of a shell that was handed over.
struct NamedEquipment {
    /// The name that its task has.
    name: Digest,
    /// The task, once an attempt of it began.
    task: Option<TaskId>,
    equipment: Arc<Equipment>,
}

impl Equipments {
    pub(crate) fn new(
        start: Equipment,
        make: Option<MakeAdapterConfig>,
        shells: Handed,
        record: ProgramRecord,
        blocking: Blocking,
    ) -> Self {
        let adapters = start.adapters.values().map(|adapter| adapter.info()).collect();
        let known = Known {
            start: Arc::new(start),
            named: VecDeque::new(),
        };
        Self {
            known: Mutex::new(known),
            make,
            shells,
            record,
            blocking,
            announced: watch::Sender::new(Announcement { version: 0, adapters }),
            reached: watch::Sender::new(0),
        }
    }

    /// Notes of what the adapters of the start were made, so that they are made anew only when that
    /// changes.
    pub(crate) async fn note_start(&self) {
        let start = self.start();
        match self.fingerprint(&start.environment).await {
            Ok(fingerprint) => {
                let noted = Equipment {
                    fingerprint,
                    ..(*start).clone()
                };
                self.known().start = Arc::new(noted);
            }
            Err(problem) => tracing::warn!(problem, "the adapters cannot be made anew"),
        }
    }

    /// Makes the equipment of tasks that began before this start of the agent, so that the coordinator
    /// knows their adapters.
    pub(crate) async fn restore(&self) {
        let shells = self.shells.clone();
        let tasks = self.blocking.run(move || shells.tasks()).await.unwrap_or_default();
        if tasks.is_empty() {
            return;
        }
        for task in tasks {
            // Its file has the task's name by now; the one that it was left under is not known.
            let nobodys = Digest::of(task.to_string().as_bytes());
            if let Err(problem) = self.of_task(Some(&nobodys), task).await {
                tracing::warn!(%task, problem, "the shell of a task cannot be used");
            }
        }
        self.announce().await;
    }

    /// What the agent works with of its own.
    pub(crate) fn start(&self) -> Arc<Equipment> {
        Arc::clone(&self.known().start)
    }

    pub(crate) fn announced(&self) -> watch::Receiver<Announcement> {
        self.announced.subscribe()
    }

    /// The coordinator has the announcement of this version.
    pub(crate) fn reached(&self, version: u64) {
        self.reached.send_replace(version);
    }

    /// What the attempts of a task work with, whose client left the variables of its shell under this
    /// name, or did not.
    ///
    /// # Errors
    /// When they were left here and cannot be used.
    pub(crate) async fn of_task(&self, name: Option<&Digest>, task: TaskId) -> Result<Arc<Equipment>, String> {
        let Some(name) = name else {
            return Ok(self.start());
        };
        let named = self.named(name, task);
        let (shells, left) = (self.shells.clone(), name.clone());
        let reading = self.blocking.run(move || shells.values(&left, task));
        let values = reading.await.map_err(std::io::Error::other).and_then(|read| read);
        match (named, values) {
            (Some(named), _) => Ok(named),
            // A task of another machine's client, or one whose shell has nothing of its own.
            (None, Ok(None)) => Ok(self.start()),
            (None, Ok(Some(values))) if values.is_empty() => Ok(self.start()),
            (None, Ok(Some(values))) => {
                let (environment, _) = self.environment(&values).await?;
                let made = Arc::new(self.made(environment).await?);
                self.keep(name.clone(), Some(task), Arc::clone(&made));
                Ok(made)
            }
            (None, Err(error)) => Err(format!("the variables of the person's shell cannot be read: {error}")),
        }
    }

    /// Takes the variables of a shell for a task that will have this name; only where they differ from
    /// the agent's start is anything kept.
    ///
    /// # Errors
    /// When nothing can be made of them, in words.
    pub(crate) async fn take(&self, name: Digest, values: Values) -> Result<TakenShell, String> {
        let start = self.start();
        let (environment, differs) = self.environment(&values).await?;
        let equipment = if differs.is_empty() {
            self.refreshed(start).await?
        } else {
            let made = self.like_a_known_one(environment).await?;
            let (shells, left) = (self.shells.clone(), name.clone());
            let leaving = self.blocking.run(move || shells.leave(&left, &values));
            let left = leaving.await.map_err(std::io::Error::other).and_then(|left| left);
            left.map_err(|error| format!("the variables of the shell cannot be kept: {error}"))?;
            self.keep(name, None, Arc::clone(&made));
            made
        };
        self.announce().await;
        Ok(TakenShell {
            differs,
            adapters: equipment.adapters.values().map(|adapter| adapter.info()).collect(),
        })
    }

    /// What a shell with these variables would differ in, and the adapters of the agent's start.
    ///
    /// # Errors
    /// When the manifests cannot be read, in words.
    pub(crate) async fn compare(&self, values: &Values) -> Result<TakenShell, String> {
        let (_, differs) = self.environment(values).await?;
        let start = self.refreshed(self.start()).await?;
        let adapters = start.adapters.values().map(|adapter| adapter.info()).collect();
        Ok(TakenShell { differs, adapters })
    }

    /// The agent's environment with the variables of a shell, and the names of those that differ.
    async fn environment(&self, values: &Values) -> Result<(AgentEnvironment, Vec<String>), String> {
        let (make, start, values) = (self.make()?, self.start(), values.clone());
        let reading = self.blocking.run(move || {
            let config = make(start.environment.clone())?;
            let named = adapters::variables(&config).map_err(|error| chain(&error))?;
            Ok(start.environment.as_in(&values, &named))
        });
        reading.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// The start's equipment, made anew if its adapters would come out different now.
    async fn refreshed(&self, start: Arc<Equipment>) -> Result<Arc<Equipment>, String> {
        let now = self.fingerprint(&start.environment).await?;
        if now == start.fingerprint {
            return Ok(start);
        }
        let adapters = self.adapters(start.environment.clone()).await?;
        let anew = Arc::new(Equipment {
            adapters,
            fingerprint: now,
            ..(*start).clone()
        });
        self.known().start = Arc::clone(&anew);
        Ok(anew)
    }

    /// Equipment with this environment: one that is known, if it would come out the same.
    async fn like_a_known_one(&self, environment: AgentEnvironment) -> Result<Arc<Equipment>, String> {
        let now = self.fingerprint(&environment).await?;
        let like =
            |known: &&NamedEquipment| known.equipment.environment == environment && known.equipment.fingerprint == now;
        let found = self
            .known()
            .named
            .iter()
            .find(like)
            .map(|known| Arc::clone(&known.equipment));
        match found {
            Some(known) => Ok(known),
            None => self.made(environment).await.map(Arc::new),
        }
    }

    async fn made(&self, environment: AgentEnvironment) -> Result<Equipment, String> {
        let fingerprint = self.fingerprint(&environment).await?;
        let adapters = self.adapters(environment.clone()).await?;
        let (path, record) = (environment.path().to_owned(), self.record.clone());
        let surveying = self.blocking.run(move || {
            // Folders that are new in PATH were put there by the person; in the others, what sessions
            // put in the way since does not count.
            Programs::survey_since(&path, &record.kept_out, &record.record)
        });
        let programs = surveying.await.map_err(std::io::Error::other).and_then(|found| found);
        Ok(Equipment {
            programs: programs.map_err(|error| format!("the programs in PATH cannot be listed: {error}"))?,
            environment,
            adapters,
            fingerprint,
        })
    }

    async fn adapters(&self, environment: AgentEnvironment) -> Result<Registry, String> {
        let make = self.make()?;
        let config = self.blocking.run(move || make(environment)).await;
        let config = config.unwrap_or_else(|error| Err(error.to_string()))?;
        adapters::load(config).await.map_err(|error| chain(&error))
    }

    async fn fingerprint(&self, environment: &AgentEnvironment) -> Result<Option<Digest>, String> {
        let (make, environment) = (self.make()?, environment.clone());
        let looking = self.blocking.run(move || {
            let config = make(environment)?;
            adapters::fingerprint(&config).map(Some).map_err(|error| chain(&error))
        });
        looking.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn make(&self) -> Result<MakeAdapterConfig, String> {
        let make = self.make.clone();
        make.ok_or_else(|| "this agent works with the environment of its own start".to_owned())
    }

    fn named(&self, name: &Digest, task: TaskId) -> Option<Arc<Equipment>> {
        let mut known = self.known();
        let found = known
            .named
            .iter_mut()
            .find(|known| known.name == *name || known.task == Some(task))?;
        found.task = Some(task);
        Some(Arc::clone(&found.equipment))
    }

    fn keep(&self, name: Digest, task: Option<TaskId>, equipment: Arc<Equipment>) {
        let mut known = self.known();
        known.named.push_front(NamedEquipment { name, task, equipment });
        known.named.truncate(KEPT);
    }

    /// Forgets the equipment of tasks that are over: their files are gone.
    async fn forget_ended(&self) {
        let shells = self.shells.clone();
        let looking = self.blocking.run(move || (shells.tasks(), shells.is_empty()));
        let Ok((tasks, is_empty)) = looking.await else {
            return;
        };
        let is_needed = |named: &NamedEquipment| match named.task {
            Some(task) => tasks.contains(&task),
            None => !is_empty,
        };
        self.known().named.retain(is_needed);
    }

    /// Each adapter, as it is now.
    pub(crate) fn infos(&self) -> Vec<AdapterInfo> {
        let known = self.known();
        let named = known.named.iter().map(|named| &named.equipment);
        announced(named.chain([&known.start]).map(|equipment| &equipment.adapters))
    }

    /// Announces the adapters anew when one became usable, or is not any more: a person logged in or out.
    pub(crate) fn look_again(&self) {
        let usable = |infos: &[AdapterInfo]| {
            let usable = infos.iter().map(|info| (info.name.clone(), info.unavailable.is_none()));
            usable.collect::<Vec<_>>()
        };
        let adapters = self.infos();
        self.announced.send_if_modified(|announcement| {
            let changed = usable(&announcement.adapters) != usable(&adapters);
            if changed {
                tracing::info!("other adapters can be used now");
                announcement.version += 1;
                announcement.adapters = adapters;
            }
            changed
        });
    }

    /// What a session of this task needs for itself of an adapter, if it needs any.
    ///
    /// # Errors
    /// When another session has it, in words.
    pub(crate) fn reserve(
        &self,
        name: Option<&Digest>,
        task: TaskId,
        adapter: &AdapterName,
    ) -> Result<Option<OwnedSemaphorePermit>, String> {
        let named = name.and_then(|name| self.named(name, task));
        let equipment = named.unwrap_or_else(|| self.start());
        let adapter = equipment.adapters.get(adapter);
        adapter.map_or(Ok(None), |adapter| adapter.reserve())
    }

    /// Waits until what adapters write of their own, as a login, is written.
    pub(crate) async fn settled(&self) {
        let all: Vec<_> = {
            let known = self.known();
            let named = known.named.iter().map(|named| &named.equipment);
            let adapters = named
                .chain([&known.start])
                .flat_map(|equipment| equipment.adapters.values());
            adapters.cloned().collect()
        };
        for adapter in all {
            adapter.settled().await;
        }
    }

    /// Tells the coordinator of the adapters, if it does not know them so, and waits until it knows. An
    /// adapter is usable if it is for any task that has not ended: who is given an attempt looks again.
    async fn announce(&self) {
        self.forget_ended().await;
        let adapters = self.infos();
        let changed = self.announced.send_if_modified(|announcement| {
            let changed = announcement.adapters != adapters;
            if changed {
                announcement.version += 1;
                announcement.adapters = adapters;
            }
            changed
        });
        if !changed {
            return;
        }
        let version = self.announced.borrow().version;
        let mut reached = self.reached.subscribe();
        let reaching = reached.wait_for(|reached| *reached >= version);
        if tokio::time::timeout(ANNOUNCED, reaching).await.is_err() {
            tracing::warn!("the coordinator was not told of the adapters in time");
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Equipments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Equipments").finish_non_exhaustive()
    }
}

/// Each adapter once, in the order of its names: as the first registry has it, or as the first one has
/// it in which it can be used.
fn announced<'r>(registries: impl Iterator<Item = &'r Registry>) -> Vec<AdapterInfo> {
    let mut all = BTreeMap::new();
    for (name, adapter) in registries.flatten() {
        let info = adapter.info();
        let better = |known: &AdapterInfo| known.unavailable.is_some() && info.unavailable.is_none();
        match all.get_mut(name) {
            None => drop(all.insert(name.clone(), info)),
            Some(known) if better(known) => *known = info,
            Some(_) => {}
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests;
