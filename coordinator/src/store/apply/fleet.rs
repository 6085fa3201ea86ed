//! Agents: recorded when they connect, drained and cordoned.

use kage_core::fleet::Agent;

use super::{Command, earlier_reply, not_found, remember};
use crate::store::command::{RecordAgent, SetCordoned, SetDraining};
use crate::store::rows::{Failed, Rows};

impl Command for RecordAgent {
    type Outcome = ();

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        let known = rows.agent(self.agent.id)?;
        let boot = self.agent.boot;
        rows.put_agent(&Agent {
            draining: known.as_ref().is_some_and(|known| known.draining && known.boot == boot),
            cordoned: known.is_some_and(|known| known.cordoned),
            ..self.agent
        })
    }
}

impl Command for SetDraining {
    type Outcome = ();

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if let Some(request) = &self.request
            && earlier_reply(rows, "drain_agent", request)?.is_some()
        {
            return Ok(());
        }
        let agent = rows.agent(self.agent)?.ok_or_else(|| not_found("agent", self.agent))?;
        rows.put_agent(&Agent {
            draining: self.draining,
            ..agent
        })?;
        match self.request {
            Some(request) => remember(rows, "drain_agent", request, String::new(), self.now),
            None => Ok(()),
        }
    }
}

impl Command for SetCordoned {
    type Outcome = ();

    fn apply(self, rows: &mut dyn Rows) -> Result<(), Failed> {
        if earlier_reply(rows, "cordon_agent", &self.request)?.is_some() {
            return Ok(());
        }
        let agent = rows.agent(self.agent)?.ok_or_else(|| not_found("agent", self.agent))?;
        rows.put_agent(&Agent {
            cordoned: self.cordoned,
            ..agent
        })?;
        remember(rows, "cordon_agent", self.request, String::new(), self.now)
    }
}
