//! The values in this shell of the variables that a person passes to a task's programs, which are left
//! for the agent of this machine.

use std::path::Path;

use kage_agent::process::handed::{Handed, Values};
use kage_core::id::Digest;
use kage_core::task::TaskEnvironment;
use kage_proto::v1;

use crate::exit::Refusal;
use crate::output::note;

/// The values in this shell of the variables that a task passes, left for the agent of this machine
/// until the task is over.
#[derive(Debug)]
pub(crate) struct LeftValues {
    handed: Handed,
    name: Digest,
}

impl LeftValues {
    /// Leaves them, names them in the environment, and says what has no value.
    ///
    /// # Errors
    /// When a value is no text, or they cannot be written.
    pub(crate) fn leave(environment: &mut TaskEnvironment, agent_state: &Path) -> anyhow::Result<Self> {
        let values = present(environment.pass.iter().map(String::as_str))?;
        let (handed, name) = (Handed::within(agent_state), Digest::from_raw(rand::random()));
        handed.leave(&name, &values)?;
        environment.handed = Some(name.clone());
        Ok(Self { handed, name })
    }

    /// Leaves them once more for a task that is over and goes on, because they were removed at its end.
    /// `None`: the task passes none, or has them.
    ///
    /// # Errors
    /// As [`Self::leave`].
    pub(crate) fn leave_again(task: &v1::Task, agent_state: &Path) -> anyhow::Result<Option<Self>> {
        let environment = task.spec.as_ref().and_then(|spec| spec.environment.as_ref());
        let Some((environment, name)) = environment.and_then(|of| Some((of, of.handed.parse::<Digest>().ok()?))) else {
            return Ok(None);
        };
        let handed = Handed::within(agent_state);
        if handed.tasks().iter().any(|has| has.to_string() == task.id) {
            return Ok(None);
        }
        let values = present(environment.pass.iter().map(String::as_str))?;
        // Another call may have left some and come to nothing.
        handed.withdraw(&name);
        handed.leave(&name, &values)?;
        Ok(Some(Self { handed, name }))
    }

    /// They are the task's own from now on; without a task they are nobody's. The daemon removes them
    /// when the task is over.
    pub(crate) fn settle(&self, task: Option<&v1::Task>) {
        match task.and_then(|task| task.id.parse().ok()) {
            Some(task) => self.handed.claim(&self.name, task),
            None => self.handed.withdraw(&self.name),
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
