//! One granted attempt, from its grant to its last event. This file owns what every kind of attempt
//! shares: it is opened in the outbox, raced against the order to stop, ended by exactly one
//! `Finished`, and cleaned up. The folder has the work in between.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kage_core::cause::chain;
use kage_core::event::{AttemptOutcome, EventBody, Phase};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::folder::Folder;
use kage_core::id::AttemptId;
use kage_core::network::{AllowRule, NetworkSettings};
use kage_core::task::{RepositoryRef, ResultRules};
use kage_git::Secrets;
use kage_proto::convert::agent::{AttemptKey, Work, WorkKind};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;

use crate::adapters::hearing::Hearing;
use crate::adapters::metered::GatewayPass;
use crate::adapters::port::Admission;
use crate::adapters::steps::CheckpointRequest;
use crate::calls::{Gate, GateClient};
use crate::config::Limits;
use crate::contain::{Boxes, DoorWay};
use crate::delivery::forms;
use crate::delivery::live::{Live, Stop, StopReason};
use crate::delivery::mask::Masker;
use crate::delivery::outbox::{Outbox, OutboxClosed};
use crate::delivery::output;
use crate::delivery::recorder::Recording;
use crate::equipment::{Equipment, Equipments};
use crate::ground::caches::Caches;
use crate::ground::contexts::Contexts;
use crate::ground::disk::Worktrees;
use crate::ground::folders::remove_folder_now;
use crate::ground::parking::{Parking, Presence};
use crate::ground::port::{Ground, GroundAttempt, Warnings, Workspace};
use crate::ground::work_folder::{self, NoFolder};
use crate::identity::state::Paths;
use crate::ports::{Blocking, Clock};
use crate::process::{Places, Runner, Secret, TaskVariables, Turns};

mod transcript;
mod checkpoints;
mod changes;
mod surroundings;
mod door;
mod gateway;
mod shell;
mod resumed;
mod session_files;
mod watchdog;
mod session;
mod verify;
mod without_change;

/// A shorter value that looks like a word is not looked for in files.
const SHORT_WORD: usize = 12;

/// Shared by all attempts of an agent.
pub(crate) struct Resources {
    pub(crate) name: String,
    pub(crate) runner: Runner,
    /// In which programs of attempts run.
    pub(crate) boxes: Boxes,
    /// What of the network those have.
    pub(crate) network: NetworkSettings,
    /// What attempts work with.
    pub(crate) equipments: Arc<Equipments>,
    /// Of programs of sessions that take no slot of the agent.
    pub(crate) turns: Turns,
    /// What the calls of models of attempts go through.
    pub(crate) gate: GateClient,
    pub(crate) clock: Clock,
    pub(crate) blocking: Blocking,
    pub(crate) limits: Limits,
    pub(crate) caches: Caches,
    pub(crate) paths: Paths,
    pub(crate) outbox: Outbox,
    pub(crate) live: Live,
    pub(crate) masker: Masker,
    /// What the masker masks.
    pub(crate) secrets: Vec<Secret>,
    pub(crate) contexts: Contexts,
    pub(crate) ground: Arc<dyn Ground>,
    pub(crate) worktrees: Worktrees,
    pub(crate) parking: Parking<Arc<dyn Workspace>>,
}

pub(crate) struct Grant {
    pub(crate) key: AttemptKey,
    pub(crate) work: Work,
    pub(crate) stop: Stop,
    pub(crate) frozen: watch::Receiver<bool>,
    /// Checkpoints that people ask for. The buffer is small; further requests are refused.
    pub(crate) asks: mpsc::Receiver<CheckpointRequest>,
    /// What people say to its session.
    pub(crate) hearing: Hearing,
    /// Its slot, and what else it has for itself. Released before the end is reported, so that the
    /// coordinator never learns of a free slot before this agent has it.
    pub(crate) places: Vec<OwnedSemaphorePermit>,
}

struct Attempt {
    resources: Arc<Resources>,
    id: AttemptId,
    work: Work,
    stop: Stop,
    frozen: watch::Receiver<bool>,
    /// What people say to its session.
    hearing: Hearing,
    /// When its adapter, or what stands between it and its provider, last gave a sign of life.
    active: watch::Sender<Instant>,
    recording: Recording,
    /// What it works with.
    equipment: Arc<Equipment>,
    /// What its programs get because the task asks for it.
    variables: TaskVariables,
    /// What its calls of models go through.
    gate: Gate,
    /// What lets a session's program in at its provider.
    admission: Admission,
    /// What no file of its checkpoints and its result may have.
    sought: Secrets,
    /// What its program gets in the place of its provider, and where that is.
    gateway: Option<(GatewayPass, AllowRule)>,
    /// How its boxes get to its door, if it has one.
    door: Option<DoorWay>,
    /// The presence of a session's attempt: the session's later attempts wait until it is gone.
    presence: Option<Presence<Arc<dyn Workspace>>>,
}

/// Why an attempt's work ended early.
enum AttemptEnded {
    Failed(Failure),
    /// The agent ends; events are not accepted any more.
    Closed,
}

impl From<OutboxClosed> for AttemptEnded {
    fn from(OutboxClosed: OutboxClosed) -> Self {
        Self::Closed
    }
}

impl From<Failure> for AttemptEnded {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Resources {
    fn recording(&self, attempt: AttemptId) -> Recording {
        Recording {
            attempt,
            outbox: self.outbox.clone(),
            clock: Arc::clone(&self.clock),
            blocking: self.blocking.clone(),
            masker: self.masker.clone(),
            output_dir: self.paths.output(),
            output_cap: self.limits.output_cap,
        }
    }

    /// What the attempts of this work's task work with.
    async fn equipment(&self, work: &Work) -> Result<Arc<Equipment>, Failure> {
        let found = self
            .equipments
            .of_task(work.environment.handed.as_ref(), work.task)
            .await;
        found.map_err(|problem| local_failure(FailureKind::CorruptedState, problem))
    }

    /// The variables that the task of this work asks for.
    async fn variables(&self, work: &Work, equipment: &Equipment) -> Result<TaskVariables, Failure> {
        let (environment, task) = (work.environment.clone(), work.task);
        if environment.is_empty() {
            return Ok(TaskVariables::default());
        }
        let (agent, handed) = (equipment.environment.clone(), self.paths.handed());
        let looking = self
            .blocking
            .run(move || surroundings::variables(&environment, task, &agent, &handed));
        let found = looking.await.map_err(std::io::Error::other).and_then(|found| found);
        found.map_err(|error| {
            let text = format!("cannot read the values of the task's variables: {error}");
            local_failure(FailureKind::CorruptedState, text)
        })
    }

    /// Ends an attempt whose own task panicked.
    pub(crate) async fn crashed(&self, attempt: AttemptId, why: &str) {
        let failure = Failure::new(FailureKind::AdapterCrash, format!("the attempt crashed: {why}"));
        let finished = EventBody::Finished(AttemptOutcome::Failed(failure));
        if let Err(error) = self.recording(attempt).post(finished).await {
            tracing::debug!(%attempt, %error, "crash is not reported");
        }
    }
}

pub(crate) async fn run(resources: Arc<Resources>, grant: Grant) {
    let id = grant.key.attempt;
    let gate = resources.gate.of(grant.key.clone());
    let presence = match &grant.work.kind {
        WorkKind::Session(_) => Some(resources.parking.begin(grant.work.session, id)),
        WorkKind::Verify(_) => None,
    };
    if resources.outbox.open_attempt(grant.key).await.is_err() {
        return;
    }
    let (equipment, unequipped) = match resources.equipment(&grant.work).await {
        Ok(equipment) => (equipment, None),
        Err(failure) => (resources.equipments.start(), Some(failure)),
    };
    let found = async {
        if let Some(failure) = unequipped {
            return Err(failure);
        }
        let variables = resources.variables(&grant.work, &equipment).await?;
        let admission = admitted(&equipment, &grant.work, &grant.stop).await?;
        Ok((variables, admission, gateway::open(&equipment, &grant.work)?))
    };
    let (variables, admission, gateway, refused) = match found.await {
        Ok((variables, admission, gateway)) => (variables, admission, gateway, None),
        Err(failure) => (TaskVariables::default(), Admission::default(), None, Some(failure)),
    };
    let mut recording = resources.recording(id);
    let mut secrets = [equipment.secrets(), variables.secrets(), admission.secrets()].concat();
    recording.masker = recording.masker.and(&Secret::values(&secrets));
    if let Some(gateway) = &gateway {
        // It is of no use to anybody else, and nothing that people read has to change with it.
        recording.masker = recording.masker.and(&[gateway.pass().key]);
    }
    let ordinary = variables.secrets();
    secrets.retain(|secret| !(secret.is_plain() && ordinary.contains(secret)));
    secrets.extend(resources.secrets.iter().cloned());
    // A server of one's own takes any key, such as its name, which files have for reasons of their own.
    secrets.retain(|secret| !(secret.is_plain() && secret.value.len() <= SHORT_WORD));
    let sought = forms::sought(&secrets);
    let mut attempt = Attempt {
        door: None,
        gateway: gateway.as_ref().map(|gateway| (gateway.pass(), gateway.rule())),
        gate,
        recording,
        equipment,
        variables,
        admission,
        presence,
        sought,
        id,
        work: grant.work,
        stop: grant.stop,
        frozen: grant.frozen,
        hearing: grant.hearing,
        active: watch::Sender::new(Instant::now()),
        resources,
    };
    let (door, refused) = match refused {
        Some(failure) => (None, Some(failure)),
        None => match attempt.open_door().await {
            Ok(door) => (door, None),
            Err(failure) => (None, Some(failure)),
        },
    };
    attempt.door = door.as_ref().map(|door| door.way.clone());
    let mut workspace = None;
    let work = async {
        match (refused, &attempt.work.kind) {
            (Some(failure), _) => Err(failure.into()),
            (None, WorkKind::Session(work)) => session::run(&attempt, work, grant.asks, &mut workspace).await,
            (None, WorkKind::Verify(work)) => verify::run(&attempt, work, &mut workspace).await,
        }
    };
    let work = async {
        match gateway {
            Some(gateway) => Box::pin(attempt.while_metered(gateway, work)).await,
            None => work.await,
        }
    };
    let worked = match door {
        Some(door) => Box::pin(attempt.while_served(door, work)).await,
        None => Box::pin(work).await,
    };
    drop(grant.places);
    attempt.gate.settled().await;
    let outcome = match worked {
        Ok(outcome) => outcome,
        Err(AttemptEnded::Failed(failure)) => AttemptOutcome::Failed(failure),
        Err(AttemptEnded::Closed) => return,
    };
    tracing::info!(outcome = outcome_name(&outcome), "attempt ended");
    if attempt.recording.post(EventBody::Finished(outcome)).await.is_err() {
        tracing::debug!("the end is not reported");
    }
    attempt.clean(workspace).await;
}

/// What lets the session of this work in at its provider.
async fn admitted(equipment: &Equipment, work: &Work, stop: &Stop) -> Result<Admission, Failure> {
    let WorkKind::Session(session) = &work.kind else {
        return Ok(Admission::default());
    };
    // A missing adapter is told when the session begins.
    let Some(adapter) = equipment.adapters.get(&session.adapter) else {
        return Ok(Admission::default());
    };
    let admitting = stop.token().run_until_cancelled(adapter.admit(session.timeout));
    admitting.await.unwrap_or_else(|| Err(stopped(stop)))
}

/// The failure that reports an ordered stop.
fn stopped(stop: &Stop) -> Failure {
    match stop.reason() {
        Some(reason) => reason.failure(),
        None => StopReason::Ordered(String::new()).failure(),
    }
}

const fn outcome_name(outcome: &AttemptOutcome) -> &'static str {
    match outcome {
        AttemptOutcome::Claimed => "claimed",
        AttemptOutcome::Verdict(_) => "verdict",
        AttemptOutcome::Failed(_) => "failed",
    }
}

impl Attempt {
    /// Runs `work` unless the attempt has to stop.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, AttemptEnded> {
        match self.stop.token().run_until_cancelled(work).await {
            Some(done) => done.map_err(AttemptEnded::Failed),
            None => Err(self.stopped().into()),
        }
    }

    /// The failure that reports an ordered stop.
    fn stopped(&self) -> Failure {
        stopped(&self.stop)
    }

    async fn phase(&self, phase: Phase) -> Result<(), OutboxClosed> {
        self.recording.post(EventBody::PhaseChanged(phase)).await
    }

    fn repository(&self) -> Option<&RepositoryRef> {
        self.work.repository.as_ref()
    }

    /// What a ground has to know of the attempt, whose task has this repository.
    fn on(&self, repository: &RepositoryRef) -> GroundAttempt {
        GroundAttempt {
            attempt: self.id,
            project: self.work.project.clone(),
            repository: repository.clone(),
            files: self.work.environment.files.clone(),
            results: match &self.work.kind {
                WorkKind::Session(work) => work.results.clone(),
                // Verify commits nothing.
                WorkKind::Verify(_) => ResultRules::default(),
            },
            warnings: self.warnings(),
        }
    }

    /// The folder of a worktree in which its programs start.
    async fn enter(&self, worktree: &Path, folder: Option<&Folder>) -> Result<PathBuf, NoFolder> {
        let Some(folder) = folder else {
            return Ok(worktree.to_owned());
        };
        let (worktree, path, folder) = (worktree.to_owned(), folder.to_string(), folder.clone());
        let entering = self
            .resources
            .blocking
            .run(move || work_folder::enter(&worktree, Some(&folder)));
        entering.await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(NoFolder::Io { path, source })
        })
    }

    fn warnings(&self) -> Warnings {
        Warnings::new(self.recording.clone())
    }

    /// A sentence about a program's end, with the variables that it did not get.
    fn with_missing(&self, message: String) -> String {
        if self.variables.missing.is_empty() {
            return message;
        }
        let names = self.variables.missing.join(", ");
        format!("not set here: {names}; {message}")
    }

    /// Copies what the task wants of the home folder, and says what cannot be.
    async fn furnish(&self, places: &Places) -> Result<(), AttemptEnded> {
        let mut unsaid = Vec::new();
        if !self.variables.missing.is_empty() {
            let names = self.variables.missing.join(", ");
            unsaid.push(format!(
                "variables that the task passes and that are not set here: {names}"
            ));
        }
        let files = self.work.environment.home.clone();
        if !files.is_empty() {
            let (from, to) = (
                self.equipment.environment.get("HOME").map(PathBuf::from),
                places.home.clone(),
            );
            let copying = self.resources.blocking.run(move || {
                let from = from.unwrap_or_default();
                let copied = files.iter().map(|path| surroundings::copy(path, &from, &to));
                copied.filter_map(Result::err).collect::<Vec<_>>()
            });
            match copying.await {
                Ok(refused) => unsaid.extend(refused),
                Err(error) => unsaid.push(format!("the home folder was not copied from: {error}")),
            }
        }
        self.give_caches(places).await;
        for text in unsaid {
            self.recording.post(EventBody::Warning(text)).await?;
        }
        Ok(())
    }

    /// Copies the caches of package managers.
    async fn give_caches(&self, places: &Places) {
        let Some(from) = self.equipment.environment.get("HOME").map(PathBuf::from) else {
            return;
        };
        let Resources { caches, blocking, .. } = &*self.resources;
        let giving = caches.give(blocking, &from, &places.home, self.stop.token());
        if let Err(error) = giving.await {
            tracing::warn!(%error, "caches are not copied");
        }
    }

    /// Creates HOME, in the scratch folder, and TMPDIR, which is there only where it cannot be where
    /// its path is short.
    async fn places(&self) -> Result<Places, AttemptEnded> {
        let places = self.made_places().await?;
        self.furnish(&places).await?;
        Ok(places)
    }

    async fn made_places(&self) -> Result<Places, Failure> {
        let scratch = self.resources.paths.scratch(self.id);
        let (mut places, short, id) = (Places::within(&scratch), self.resources.paths.short_tmp(), self.id);
        let making = self.resources.blocking.run(move || {
            match short.make(id) {
                Ok(tmp) => places.tmp = tmp,
                Err(error) => tracing::warn!(error = chain(&error), "TMPDIR has a long path"),
            }
            places.make().map(|()| places)
        });
        match making.await.map_err(std::io::Error::other).and_then(|made| made) {
            Ok(places) => Ok(places),
            Err(error) => {
                let message = format!("cannot make the folders in {}: {error}", scratch.display());
                Err(local_failure(FailureKind::CorruptedState, message))
            }
        }
    }

    /// Removes the attempt's files, unless the session's next attempt continues in its worktree.
    /// The coordinator has the result by now.
    async fn clean(self, workspace: Option<Arc<dyn Workspace>>) {
        if let (None, Some(repository)) = (&workspace, self.repository()) {
            let (project, name) = (&self.work.project, &repository.name);
            self.resources.ground.remove(self.id, project, name).await;
        }
        let scratch = match &self.work.kind {
            WorkKind::Session(work) => {
                let adapter = self.equipment.adapters.get(&work.adapter);
                adapter.is_some_and(|adapter| adapter.uses_scratch())
            }
            WorkKind::Verify(_) => true,
        };
        if scratch {
            let (scratch, id) = (self.resources.paths.scratch(self.id), self.id);
            let short = self.resources.paths.short_tmp();
            let removing = self.resources.blocking.run(move || {
                remove_folder_now(&scratch);
                short.remove(id);
            });
            if removing.await.is_err() {
                tracing::debug!("the agent ends; the next start removes the folder");
            }
        }
        // A refused attempt was forgotten, with its files, while it still wrote.
        if self.stop.reason().is_some() && !self.resources.live.contains(self.id) {
            let (dir, id) = (self.resources.paths.output(), self.id);
            let removed = self.resources.blocking.run(move || output::remove(&dir, id)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(%error, "output was not removed");
            }
        }
        // Last, since the next attempt of the session may wait for it.
        if let Some(workspace) = workspace {
            let path = workspace.path().to_owned();
            let usable = self.presence.as_ref().is_none_or(Presence::is_usable);
            let parked = match self.presence {
                Some(presence) => presence.park(workspace, &path),
                None => Err(workspace),
            };
            match parked {
                Ok(()) => {}
                Err(unwanted) if usable => unwanted.retire().await,
                Err(unwanted) => unwanted.remove().await,
            }
        }
    }
}

/// How long a stopped program may outlive its grace period before it is abandoned.
const ABANDON: Duration = Duration::from_secs(30);
