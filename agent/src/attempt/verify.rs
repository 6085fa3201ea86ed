//! A verify attempt: a clean worktree of a result, protected paths as in the base, then the setup
//! command, the protected paths once more (setup may run programs of the session), and the verify
//! command. The verdict is *failed* only when the verify command ran and returned a failure;
//! anything that kept it from running is *errored*.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use kage_core::cause::chain;
use kage_core::contain::Tier;
use kage_core::event::{AttemptOutcome, EventBody, MAX_RESTORED, Phase, Verdict, VerdictKind};
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::id::{Digest, Oid};
use kage_core::network::NetworkPolicy;
use kage_core::protect::Protection;
use kage_core::rework::excerpt;
use kage_core::task::TaskEnvironment;
use kage_core::test_counts::TestTally;
use kage_proto::convert::agent::VerifyWork;

use super::door::NetworkUse;
use super::shell::{Ran, Shell};
use super::without_change::without_change;
use super::{Attempt, AttemptEnded};
use crate::ground::port::Workspace;
use crate::ground::work_folder::NoFolder;
use crate::process::machine::brought;
use crate::process::programs::Planted;
use crate::process::{Environment, EnvironmentParts, Places, WorkNames};

/// How many planted programs one attempt warns of.
const PLANTED: usize = 10;
/// Exit codes of a shell when a command cannot be executed, or does not exist.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

struct Decided {
    kind: VerdictKind,
    exit_code: Option<i32>,
    message: String,
    /// What verify's output tells of its tests, if it ran to its end.
    tests: Option<TestTally>,
    /// The output for a session that reworks its result.
    output: String,
}

impl Decided {
    /// The result has something else in place of a folder in which a command runs.
    fn nowhere(error: &NoFolder) -> Self {
        let message = chain(error);
        match error {
            NoFolder::Taken { .. } => Self {
                kind: VerdictKind::Failed,
                exit_code: None,
                tests: None,
                output: message.clone(),
                message,
            },
            NoFolder::Io { .. } => Self::errored(None, message),
        }
    }

    const fn errored(exit_code: Option<i32>, message: String) -> Self {
        Self {
            kind: VerdictKind::Errored,
            exit_code,
            message,
            tests: None,
            output: String::new(),
        }
    }
}

/// Decides. `place` gets the workspace when no program can be left in it.
pub(super) async fn run(
    attempt: &Attempt,
    work: &VerifyWork,
    place: &mut Option<Arc<dyn Workspace>>,
) -> Result<AttemptOutcome, AttemptEnded> {
    attempt.phase(Phase::Preparing).await?;
    let Some(repository) = attempt.repository() else {
        let text = "a verify job without a repository cannot be run";
        return Err(Failure::new(FailureKind::InvalidRequest, text).into());
    };
    let base = &repository.base;
    let on = attempt.on(repository);
    let making = attempt
        .resources
        .ground
        .for_verify(&on, attempt.work.session, &work.commit);
    let workspace = attempt.unless_stopped(making).await?;
    let path = workspace.path().to_owned();
    let mut yardstick = Yardstick {
        attempt,
        work,
        workspace: &*workspace,
        base,
        restored: BTreeSet::new(),
        scratch: attempt.resources.paths.scratch(attempt.id),
        places: attempt.places().await?,
        planted: BTreeSet::new(),
    };
    yardstick.restore().await?;
    let environment = yardstick.environment().await?;
    let machine = yardstick.machine(&environment).await;
    let mut shell = Shell::new(attempt, path, environment, work.policy.timeout);
    let verdict = decide(attempt, work, &mut yardstick, &mut shell).await;
    let without_change = match &verdict {
        Ok(decided) if decided.kind == VerdictKind::Passed => {
            without_change(attempt, work, (&*workspace, base), &mut shell).await?
        }
        Ok(_) | Err(_) => None,
    };
    shell.finish().await?;
    if shell.alone {
        *place = Some(Arc::clone(&workspace));
    }
    let Decided {
        kind,
        exit_code,
        message,
        tests,
        output,
    } = verdict?;
    if attempt.stop.reason().is_some() {
        return Err(attempt.stopped().into());
    }
    Ok(AttemptOutcome::Verdict(Verdict {
        kind,
        exit_code,
        message: match kind {
            VerdictKind::Passed => message,
            VerdictKind::Failed | VerdictKind::Errored => attempt.with_missing(message),
        },
        duration: shell.began.elapsed(),
        agent: attempt.resources.name.clone(),
        environment: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        // The coordinator knows in which tier this agent started.
        contained: Tier::T0,
        machine,
        restored: yardstick.restored.into_iter().take(MAX_RESTORED).collect(),
        tests,
        without_change,
        output,
    }))
}

/// Protects what decides about a result and must not change with it: the protected files, and the
/// programs that names mean.
struct Yardstick<'a> {
    attempt: &'a Attempt,
    work: &'a VerifyWork,
    workspace: &'a dyn Workspace,
    base: &'a Oid,
    /// The files that were restored so far.
    restored: BTreeSet<String>,
    scratch: PathBuf,
    places: Places,
    /// The planted programs that were found so far.
    planted: BTreeSet<PathBuf>,
}

impl Yardstick<'_> {
    /// Restores the protected files, and reports that.
    async fn restore(&mut self) -> Result<(), AttemptEnded> {
        let protection = Protection::new(&self.work.policy, self.work.left_alone.clone())
            .map_err(|invalid| Failure::new(FailureKind::InvalidRequest, chain(&invalid)))?;
        if protection.is_empty() || self.work.commit == *self.base {
            return Ok(());
        }
        let (warnings, recording) = (self.attempt.warnings(), &self.attempt.recording);
        let restoring = self.workspace.protect(&warnings, self.base, &protection);
        let restored = self.attempt.unless_stopped(restoring).await?;
        if !restored.is_empty() {
            let text = format!("protected, restored from the base: {}", restored.join(", "));
            recording.post(EventBody::Activity(text)).await?;
        }
        self.restored.extend(restored);
        Ok(())
    }

    /// The environment of the commands. No program in it hides one that existed when the agent
    /// started: a session may have planted it to make its result, or a later one, pass.
    async fn environment(&mut self) -> Result<Environment, AttemptEnded> {
        let attempt = self.attempt;
        let (programs, right) = (attempt.equipment.programs.clone(), self.scratch.join("programs"));
        let looking = attempt.resources.blocking.run(move || {
            let planted = programs.planted();
            programs.path(&planted, &right).map(|path| (path, planted))
        });
        let (path, planted) = looking
            .await
            .map_err(std::io::Error::other)
            .and_then(|looked| looked)
            .map_err(|error| {
                let text = format!("cannot make the PATH of verify: {error}");
                local_failure(FailureKind::CorruptedState, text)
            })?;
        self.found(planted).await?;
        Ok(Environment::of(&EnvironmentParts {
            agent: &attempt.equipment.environment,
            places: &self.places,
            manifest: None,
            root: false,
            task: Some(&attempt.variables),
            path: Some(&path),
            work: Some(&WorkNames {
                task: attempt.work.task,
                session: attempt.work.session,
                base_context: None,
            }),
        }))
    }

    /// What the machine brings to a check of the base, before its commands change anything.
    async fn machine(&self, environment: &Environment) -> Option<Digest> {
        // What the task's own environment brings is not a part of the machine.
        if self.work.commit != *self.base || self.attempt.work.environment != TaskEnvironment::default() {
            return None;
        }
        let (environment, programs) = (environment.clone(), self.attempt.equipment.programs.clone());
        let looking = self
            .attempt
            .resources
            .blocking
            .run(move || brought(&environment, &programs));
        // Without it the verdict is good for this task alone.
        let brought = looking.await.ok()?;
        // A base that passes with a network may fail without one.
        Some(match self.attempt.network_of(NetworkUse::Verify) {
            NetworkPolicy::Open => brought,
            less => Digest::of(format!("{brought} {less}").as_bytes()),
        })
    }

    /// A program that was put in front of another since the environment was made, as by a session
    /// that works beside this verify: what verify said may be that program's word.
    async fn planted_meanwhile(&mut self) -> Result<Option<Planted>, AttemptEnded> {
        let programs = self.attempt.equipment.programs.clone();
        let looking = self.attempt.resources.blocking.run(move || programs.planted());
        let planted = looking.await.map_err(|error| {
            let text = format!("cannot look at the programs of verify: {error}");
            local_failure(FailureKind::CorruptedState, text)
        })?;
        let new = planted.values().find(|planted| !self.planted.contains(&planted.path));
        let new = new.cloned();
        self.found(planted).await?;
        Ok(new)
    }

    /// Warns of the planted programs that are new.
    async fn found(&mut self, planted: BTreeMap<OsString, Planted>) -> Result<(), AttemptEnded> {
        for planted in planted.into_values() {
            if !self.planted.insert(planted.path.clone()) || self.planted.len() > PLANTED {
                continue;
            }
            let text = format!(
                "{} was not there when this agent was first started, and is not used in place of {}",
                planted.path.display(),
                planted.hides.display()
            );
            self.attempt.recording.post(EventBody::Warning(text)).await?;
        }
        Ok(())
    }
}

async fn decide(
    attempt: &Attempt,
    work: &VerifyWork,
    yardstick: &mut Yardstick<'_>,
    shell: &mut Shell<'_>,
) -> Result<Decided, AttemptEnded> {
    if let Some(setup) = &work.policy.setup {
        attempt.phase(Phase::Setup).await?;
        let folder = match attempt.enter(&shell.worktree, work.policy.setup_folder.as_ref()).await {
            Ok(folder) => folder,
            Err(error) => return Ok(Decided::nowhere(&error)),
        };
        match shell.run(setup, folder).await {
            Ran::Ended(status) if status.success() => {
                yardstick.restore().await?;
                shell.environment = yardstick.environment().await?;
            }
            Ran::Ended(status) => {
                shell.warn_of_refusals().await?;
                let text = shell.message(&format!("setup failed with {status}"));
                return Ok(Decided::errored(Some(status.shell_code()), text));
            }
            Ran::Not(why) => return Ok(Decided::errored(None, format!("setup: {why}"))),
        }
    }
    attempt.phase(Phase::Verifying).await?;
    let Some(verify) = &work.policy.verify else {
        return Ok(Decided::errored(None, "there is no verify command".to_owned()));
    };
    let folder = match attempt.enter(&shell.worktree, work.policy.verify_folder.as_ref()).await {
        Ok(folder) => folder,
        Err(error) => return Ok(Decided::nowhere(&error)),
    };
    shell.network = NetworkUse::Verify;
    let ran = shell.run(verify, folder).await;
    if let Some(planted) = yardstick.planted_meanwhile().await? {
        let text = format!(
            "{} was put in front of {} while verify ran, so its verdict does not count",
            planted.path.display(),
            planted.hides.display()
        );
        return Ok(Decided::errored(None, text));
    }
    if matches!(&ran, Ran::Ended(status) if !status.success()) {
        shell.warn_of_refusals().await?;
    }
    Ok(match ran {
        Ran::Ended(status) if status.success() => Decided {
            kind: VerdictKind::Passed,
            exit_code: Some(0),
            message: "verify passed".to_owned(),
            tests: Some(shell.tests()),
            output: String::new(),
        },
        // A tool that this machine lacks says nothing about the result.
        Ran::Ended(status) if matches!(status.shell_code(), NOT_EXECUTABLE | NOT_FOUND) => {
            let text = shell.message(&format!("verify could not be run here ({status})"));
            Decided::errored(Some(status.shell_code()), text)
        }
        Ran::Ended(status) => Decided {
            kind: VerdictKind::Failed,
            exit_code: Some(status.shell_code()),
            message: shell.message(&format!("verify failed with {status}")),
            tests: Some(shell.tests()),
            output: excerpt(&shell.wrote.text()),
        },
        Ran::Not(why) => Decided::errored(None, format!("verify: {why}")),
    })
}
