//! What the daemon of this machine is told of the shell in which a command is typed: the variables that
//! every program and every adapter gets, and the values of those that a person passes to a task's
//! programs. They are left for its agent, and never sent to the coordinator.

use kage_agent::adapters::variables;
use kage_agent::process::AgentEnvironment;
use kage_agent::process::handed::{Handed, Values};
use kage_agent::shell_socket::{ShellAnswer, ShellSocket};
use kage_core::id::Digest;
use kage_core::task::TaskEnvironment;
use kage_proto::v1;

use crate::adapters;
use crate::args::AgentOptions;
use crate::exit::Refusal;
use crate::invocation::Invocation;
use crate::output::note;

/// The variables of this shell that the daemon of this machine is told, with their values.
fn of_this_shell(invocation: &Invocation) -> anyhow::Result<Values> {
    let (settings, state) = (&invocation.settings, &invocation.state);
    let environment = AgentEnvironment::of_this_process();
    let config = adapters::config(settings, state, &AgentOptions::default(), &state.agent(), environment)?;
    Ok(config.agent.handed_over(&variables(&config)?))
}

/// How this shell differs from the daemon's start. `None`: the daemon does not run, or has another
/// environment in no way that it could tell.
///
/// # Errors
/// When the adapters' manifests cannot be read, or the daemon does not answer.
pub(crate) async fn compared(invocation: &Invocation) -> anyhow::Result<Option<ShellAnswer>> {
    let socket = ShellSocket::within(&invocation.state.agent());
    Ok(socket.compare(of_this_shell(invocation)?).await?)
}

/// What was left for the agent of this machine, until the task is over.
#[derive(Debug)]
pub(crate) struct LeftValues {
    handed: Handed,
    shells: Handed,
    name: Digest,
    /// True when the task works with the environment of this shell.
    shell: bool,
}

impl LeftValues {
    /// Hands this shell's environment to the daemon, and says how it differs. The call that stores the
    /// task names it, so that the repeated call is the same.
    ///
    /// # Errors
    /// When the daemon can make nothing of it, or does not answer.
    pub(crate) async fn hand_over(invocation: &Invocation, request_id: &str) -> anyhow::Result<Self> {
        let name = Digest::of(format!("values of request {request_id}").as_bytes());
        let state = invocation.state.agent();
        // The call may have been made before and come to nothing.
        for left in [Handed::within(&state), Handed::shells_within(&state)] {
            left.withdraw(&name);
        }
        Self::hand_over_as(invocation, name).await
    }

    async fn hand_over_as(invocation: &Invocation, name: Digest) -> anyhow::Result<Self> {
        let state = invocation.state.agent();
        let socket = ShellSocket::within(&state);
        let answer = socket.take(name.clone(), of_this_shell(invocation)?).await?;
        let answer = answer.unwrap_or_default();
        if let Some(problem) = answer.problem {
            return Err(Refusal::usage(problem).into());
        }
        let shell = !answer.differs.is_empty();
        if shell {
            note(&format!(
                "of this shell, because the daemon was started with another: {}",
                answer.differs.join(", ")
            ));
        }
        Ok(Self {
            handed: Handed::within(&state),
            shells: Handed::shells_within(&state),
            name,
            shell,
        })
    }

    /// Leaves the values of the variables that the task passes, names what was left in its environment,
    /// and says what has no value.
    ///
    /// # Errors
    /// When a value is no text, or they cannot be written.
    pub(crate) fn leave(&self, environment: &mut TaskEnvironment) -> anyhow::Result<()> {
        let values = present(environment.pass.iter().map(String::as_str))?;
        if !environment.pass.is_empty() {
            self.handed.leave(&self.name, &values)?;
        }
        if self.shell || !environment.pass.is_empty() {
            environment.handed = Some(self.name.clone());
        }
        Ok(())
    }

    /// Hands over and leaves the same once more for a task that is over and goes on, because it was removed
    /// at its end. `None`: the task has nothing of the shell it was submitted in, or has it still.
    ///
    /// # Errors
    /// As [`Self::hand_over`] and [`Self::leave`].
    pub(crate) async fn leave_again(invocation: &Invocation, task: &v1::Task) -> anyhow::Result<Option<Self>> {
        let environment = task.spec.as_ref().and_then(|spec| spec.environment.as_ref());
        let Some((environment, name)) = environment.and_then(|of| Some((of, of.handed.parse::<Digest>().ok()?))) else {
            return Ok(None);
        };
        let state = invocation.state.agent();
        let all = [Handed::within(&state), Handed::shells_within(&state)];
        if all
            .iter()
            .any(|left| left.tasks().iter().any(|has| has.to_string() == task.id))
        {
            return Ok(None);
        }
        // Another call may have left some and come to nothing.
        for left in &all {
            left.withdraw(&name);
        }
        let left = Self::hand_over_as(invocation, name).await?;
        let values = present(environment.pass.iter().map(String::as_str))?;
        if !environment.pass.is_empty() {
            left.handed.leave(&left.name, &values)?;
        }
        Ok(Some(left))
    }

    /// They are the task's own from now on; without a task they are nobody's. The daemon removes them
    /// when the task is over.
    pub(crate) fn settle(&self, task: Option<&v1::Task>) {
        for left in [&self.handed, &self.shells] {
            match task.and_then(|task| task.id.parse().ok()) {
                Some(task) => left.claim(&self.name, task),
                None => left.withdraw(&self.name),
            }
        }
    }
}

/// The values that these variables have in this shell. Says which have none.
fn present<'a>(names: impl Iterator<Item = &'a str>) -> anyhow::Result<Values> {
    let (mut values, mut unset) = (Values::new(), Vec::new());
    for name in names {
        match std::env::var(name) {
            Ok(value) => drop(values.insert(name.to_owned(), value)),
            Err(std::env::VarError::NotPresent) => unset.push(name),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Refusal::usage(format!("the value of {name} is not UTF-8, and cannot be passed")).into());
            }
        }
    }
    if !unset.is_empty() {
        note(&format!(
            "not set in this shell, so programs do not get it: {}",
            unset.join(", ")
        ));
    }
    Ok(values)
}
