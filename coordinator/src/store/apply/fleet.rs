//! Agents: recorded when they connect, drained and cordoned.

use kage_core::fleet::Agent;

use super::{Command, earlier_reply, not_found, remember};
use crate::store::command::{RecordAgent, SetCordoned, SetDraining};
use crate::store::rows::{Failed, Rows};
use crate::store::unit::Key;

const DRAIN_AGENT: &str = "drain_agent";
const CORDON_AGENT: &str = "cordon_agent";

impl Command for RecordAgent {
    /// The agent as it is stored.
    type Outcome = Agent;

    fn reads(&self) -> Vec<Key> {
        vec![Key::Agent(self.agent.id)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Agent, Failed> {
        let known = rows.agent(self.agent.id)?;
        let boot = self.agent.boot;
        let agent = Agent {
            draining: known.as_ref().is_some_and(|known| known.draining && known.boot == boot),
            cordoned: known.as_ref().is_some_and(|known| known.cordoned),
            ..self.agent
        };
        rows.put_agent(&agent)?;
        Ok(agent)
    }
}

impl Command for SetDraining {
    /// The agent as it is now: a call that is repeated late changes nothing.
    type Outcome = Agent;

    fn reads(&self) -> Vec<Key> {
        let request = self.request.iter().map(|request| Key::request(DRAIN_AGENT, request));
        request.chain([Key::Agent(self.agent)]).collect()
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Agent, Failed> {
        let agent = rows.agent(self.agent)?.ok_or_else(|| not_found("agent", self.agent))?;
        if let Some(request) = &self.request
            && earlier_reply(rows, DRAIN_AGENT, request)?.is_some()
        {
            return Ok(agent);
        }
        let agent = Agent {
            draining: self.draining,
            ..agent
        };
        rows.put_agent(&agent)?;
        if let Some(request) = self.request {
            remember(rows, DRAIN_AGENT, request, String::new(), self.now)?;
        }
        Ok(agent)
    }
}

impl Command for SetCordoned {
    /// The agent as it is now: a call that is repeated late changes nothing.
    type Outcome = Agent;

    fn reads(&self) -> Vec<Key> {
        vec![Key::request(CORDON_AGENT, &self.request), Key::Agent(self.agent)]
    }

    fn apply(self, rows: &mut dyn Rows) -> Result<Agent, Failed> {
        let agent = rows.agent(self.agent)?.ok_or_else(|| not_found("agent", self.agent))?;
        if earlier_reply(rows, CORDON_AGENT, &self.request)?.is_some() {
            return Ok(agent);
        }
        let agent = Agent {
            cordoned: self.cordoned,
            ..agent
        };
        rows.put_agent(&agent)?;
        remember(rows, CORDON_AGENT, self.request, String::new(), self.now)?;
        Ok(agent)
    }
}
