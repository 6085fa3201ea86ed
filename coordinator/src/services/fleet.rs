//! FleetService: the worker machines, for people.

use std::sync::Arc;

use kage_core::fleet::Agent;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::fleet_service_server::FleetService;
use tonic::{Request, Response, Status};

use super::{read_error, request, store_error};
use crate::coordinator::Coordinator;
use crate::store::SetDraining;
use crate::view;

/// Shortest beginning of an agent's id that is looked up.
const MIN_PREFIX: usize = 4;

#[derive(Debug)]
pub(crate) struct Fleet(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl FleetService for Fleet {
    async fn list_agents(
        &self,
        _message: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let agents = self.0.store.agents().await.map_err(read_error)?;
        let agents = agents.into_iter().map(|agent| view::agent(&self.0, agent));
        Ok(Response::new(v1::ListAgentsResponse {
            agents: agents.collect(),
        }))
    }

    async fn drain_agent(
        &self,
        message: Request<v1::DrainAgentRequest>,
    ) -> Result<Response<v1::DrainAgentResponse>, Status> {
        let message = message.into_inner();
        let agents = self.0.store.agents().await.map_err(read_error)?;
        let agent = named(agents, &message.agent)?;
        let command = SetDraining {
            request: Some(request(&message.request_id, &agent.id)?),
            agent: agent.id,
            draining: true,
            now: self.0.now(),
        };
        self.0.store.apply(command).await.map_err(store_error)?;
        {
            let mut board = self.0.board();
            board.set_draining(agent.id, true);
            board.tell(agent.id, drain_message());
        }
        let agent = Agent {
            draining: true,
            ..agent
        };
        Ok(Response::new(v1::DrainAgentResponse {
            agent: Some(view::agent(&self.0, agent)),
        }))
    }
}

/// The message that asks an agent to take no more work.
pub(crate) fn drain_message() -> v1::ConnectResponse {
    v1::ConnectResponse {
        message: Some(v1::connect_response::Message::Drain(v1::Drain {})),
    }
}

/// An id or a name is taken as it is; a beginning of an id must be one agent's only.
fn named(agents: Vec<Agent>, text: &str) -> Result<Agent, ApiError> {
    let mut by_name = Vec::new();
    let mut by_prefix = Vec::new();
    for agent in agents {
        let id = agent.id.to_string();
        if id == text {
            return Ok(agent);
        }
        if agent.name == text {
            by_name.push(agent);
        } else if text.len() >= MIN_PREFIX && id.starts_with(text) {
            by_prefix.push(agent);
        }
    }
    let found = if by_name.is_empty() { by_prefix } else { by_name };
    match <[Agent; 1]>::try_from(found) {
        Ok([agent]) => Ok(agent),
        Err(none) if none.is_empty() => Err(ApiError::NotFound {
            what: format!("agent {text}"),
        }),
        Err(_) => Err(ApiError::invalid(
            "agent",
            format_args!("{text} names several agents; give an id"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use kage_core::id::{AgentId, BootId};
    use kage_core::time::Timestamp;

    use super::*;

    fn agent(id: u128, name: &str) -> Agent {
        Agent {
            id: AgentId::from_random(id),
            name: name.to_owned(),
            boot: BootId::from_random(1),
            labels: Default::default(),
            adapters: Vec::new(),
            slots: 1,
            pid: 1,
            version: String::new(),
            draining: false,
            seen_at: Timestamp::from_millis(1),
        }
    }

    #[test]
    fn agents_are_named_by_id_name_or_prefix() {
        let fleet = || {
            vec![
                agent(0xaaaa_0000_0000_0000_0000_0000_0000_0001, "one"),
                agent(0xaaaa_bbbb_0000_0000_0000_0000_0000_0002, "two"),
                agent(0xcccc_0000_0000_0000_0000_0000_0000_0003, "twin"),
                agent(0xdddd_0000_0000_0000_0000_0000_0000_0004, "twin"),
            ]
        };
        let cases = [
            ("one", Ok("one")),
            ("aaaabbbb", Ok("two")),
            ("cccc0000000000000000000000000003", Ok("twin")),
            ("aaaa", Err("INVALID_ARGUMENT")),
            ("aaa", Err("NOT_FOUND")),
            ("twin", Err("INVALID_ARGUMENT")),
            ("", Err("NOT_FOUND")),
        ];
        for (text, expected) in cases {
            let found = named(fleet(), text);
            let found = found.as_ref().map(|a| a.name.as_str()).map_err(ApiError::reason);
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
