//! FleetService: the worker machines, for people.

use std::sync::Arc;
use std::time::Duration;

use kage_core::access::{Capabilities, JoinToken};
use kage_core::attempt::EndReason;
use kage_core::fleet::Agent;
use kage_core::id::{AgentId, Digest, TokenId};
use kage_core::task::Labels;
use kage_proto::convert::agent::{can, capabilities};
use kage_proto::convert::time::{duration, stamp};
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::fleet_service_server::FleetService;
use tonic::{Request, Response, Status};

use super::page::{OfAgent, page};
use super::{no_tls, not_repeatable, principal, request};
use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::duties::dispatch;
use crate::refusals::{read_error, store_error};
use crate::store::{CreateJoinToken, Ending, RevokeAgent, SetCordoned, SetDraining};
use crate::watch::view;

/// Shortest beginning of an agent's id that is looked up.
const MIN_PREFIX: usize = 4;
/// Most candidates that a message about an ambiguous text names.
const NAMED: usize = 5;
/// How long a join token is good that says nothing else.
const JOIN_TOKEN_LIFETIME: Duration = Duration::from_secs(10 * 60);
/// The longest time that a join token is good.
const MAX_JOIN_TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The most agents that one join token lets in; its row names each of them.
const MAX_JOIN_TOKEN_USES: u32 = 1000;

#[derive(Debug)]
pub(crate) struct Fleet(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl FleetService for Fleet {
    async fn list_agents(
        &self,
        message: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let mut agents = self.0.store.agents().await.map_err(read_error)?;
        agents.retain(|agent| view::works_for(&self.0, &caller, agent.id));
        let place = |agent: &Agent| OfAgent(agent.name.clone(), agent.id);
        let (agents, next_page_token) = page(agents, place, message.page_size, &message.page_token)?;
        let agents = agents.into_iter().map(|agent| view::agent(&self.0, agent));
        Ok(Response::new(v1::ListAgentsResponse {
            agents: agents.collect(),
            next_page_token,
        }))
    }

    async fn drain_agent(
        &self,
        message: Request<v1::DrainAgentRequest>,
    ) -> Result<Response<v1::DrainAgentResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let agent = self.managed(&caller, &message.agent).await?;
        let command = SetDraining {
            request: Some(request(&self.0, &caller, &message.request_id, &agent.id)?),
            agent: agent.id,
            draining: true,
            now: self.0.now(),
        };
        let agent = self.0.apply(command).await.map_err(store_error)?;
        Ok(Response::new(v1::DrainAgentResponse {
            agent: Some(view::agent(&self.0, agent)),
        }))
    }

    async fn cordon_agent(
        &self,
        message: Request<v1::CordonAgentRequest>,
    ) -> Result<Response<v1::CordonAgentResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let agent = self
            .set_cordoned(&caller, &message.request_id, &message.agent, true)
            .await?;
        Ok(Response::new(v1::CordonAgentResponse { agent: Some(agent) }))
    }

    async fn uncordon_agent(
        &self,
        message: Request<v1::UncordonAgentRequest>,
    ) -> Result<Response<v1::UncordonAgentResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let agent = self
            .set_cordoned(&caller, &message.request_id, &message.agent, false)
            .await?;
        Ok(Response::new(v1::UncordonAgentResponse { agent: Some(agent) }))
    }

    async fn create_join_token(
        &self,
        message: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let authority = self.0.authority.as_ref().ok_or_else(no_tls)?;
        let project = caller.project("project", &message.project)?;
        let labels: Labels = message.labels.into_iter().collect();
        let Terms { can: may, uses, life } = Terms::of(message.uses, message.life.map(duration), &message.can)?;
        let now = self.0.now();
        let id = TokenId::from_random(self.0.random());
        let secret = |id| self.0.secrets.of("join", id);
        let command = CreateJoinToken {
            request: request(
                &self.0,
                &caller,
                &message.request_id,
                &(&project, &labels, may, uses, life),
            )?,
            id,
            secret: Digest::of(secret(id).as_bytes()),
            project,
            labels,
            can: may,
            uses,
            expires_at: now + life,
            now,
        };
        let (id, stored) = self.0.apply(command).await.map_err(store_error)?;
        let secret = secret(id);
        if Digest::of(secret.as_bytes()) != stored.secret {
            return Err(not_repeatable().into());
        }
        let token = JoinToken {
            ca: authority.digest().clone(),
            id,
            secret,
        };
        Ok(Response::new(v1::CreateJoinTokenResponse {
            join_token: token.to_string(),
            expires_at: Some(stamp(stored.expires_at)),
            uses: stored.uses,
            can: can(stored.can),
        }))
    }

    async fn revoke_agent(
        &self,
        message: Request<v1::RevokeAgentRequest>,
    ) -> Result<Response<v1::RevokeAgentResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let agents = self.0.store.agents().await.map_err(read_error)?;
        let agent = match named(agents, &message.agent) {
            Ok(agent) => agent.id,
            // It may have joined and never connected: then it has no name yet.
            Err(error @ ApiError::NotFound { .. }) if message.agent.len() >= MIN_PREFIX => {
                match self.0.identities.agents_with_prefix(&message.agent).as_slice() {
                    [agent] => *agent,
                    [] | [_, ..] => return Err(error.into()),
                }
            }
            Err(error) => return Err(error.into()),
        };
        self.may_manage(&caller, agent)?;
        if self.0.identities.enrolled(agent).is_none() {
            return Err(ApiError::FailedPrecondition {
                message: format!(
                    "agent {} has no certificate: it shows the coordinator's own token, so there is nothing of its \
                     own to revoke",
                    message.agent
                ),
            }
            .into());
        }
        let command = RevokeAgent {
            request: request(&self.0, &caller, &message.request_id, &agent)?,
            agent,
            now: self.0.now(),
        };
        self.0.apply(command).await.map_err(store_error)?;
        self.0.settled().await;
        tracing::info!(%agent, "agent revoked");
        // Nobody waits for it to come back: what it ran is done by others now.
        let live = self.0.store.live_attempts(Some(agent)).await.map_err(read_error)?;
        let which = Ending::These(live.into_iter().map(|live| live.attempt).collect());
        dispatch::end(Arc::clone(&self.0), which, EndReason::AgentGone).await;
        Ok(Response::new(v1::RevokeAgentResponse {
            agent_id: agent.to_string(),
        }))
    }
}

/// What a join token is good for.
#[derive(Debug, PartialEq, Eq)]
struct Terms {
    can: Capabilities,
    uses: u32,
    life: Duration,
}

impl Terms {
    fn of(uses: u32, life: Option<Duration>, numbers: &[i32]) -> Result<Self, ApiError> {
        let can = match numbers {
            [] => Capabilities::ALL,
            some => capabilities("can", some)?,
        };
        let life = life.unwrap_or(JOIN_TOKEN_LIFETIME);
        if life.is_zero() || life > MAX_JOIN_TOKEN_LIFETIME {
            return Err(ApiError::invalid(
                "life",
                "must be more than nothing, and at most 30 days",
            ));
        }
        if uses > MAX_JOIN_TOKEN_USES {
            let problem = format_args!("must be at most {MAX_JOIN_TOKEN_USES}; make several tokens for more agents");
            return Err(ApiError::invalid("uses", problem));
        }
        Ok(Self {
            can,
            uses: uses.max(1),
            life,
        })
    }
}

impl Fleet {
    /// The agent that a caller names, if it is theirs to look after.
    async fn managed(&self, caller: &Principal, text: &str) -> Result<Agent, ApiError> {
        let agents = self.0.store.agents().await.map_err(read_error)?;
        let agent = named(agents, text)?;
        self.may_manage(caller, agent.id)?;
        Ok(agent)
    }

    /// A caller with one project manages the agents that joined for it.
    fn may_manage(&self, caller: &Principal, agent: AgentId) -> Result<(), ApiError> {
        match (caller.bound_to(), self.0.identities.enrolled(agent)) {
            (None, _) => Ok(()),
            (Some(own), Some(enrolled)) if enrolled.project == *own => Ok(()),
            (Some(own), Some(_) | None) => Err(ApiError::PermissionDenied {
                message: format!("the token is for project {own}, and agent {agent} is not of that project alone"),
            }),
        }
    }

    async fn set_cordoned(
        &self,
        caller: &Principal,
        request_id: &str,
        name: &str,
        cordoned: bool,
    ) -> Result<v1::Agent, ApiError> {
        let agent = self.managed(caller, name).await?;
        let command = SetCordoned {
            request: request(&self.0, caller, request_id, &(&agent.id, cordoned))?,
            agent: agent.id,
            cordoned,
            now: self.0.now(),
        };
        let agent = self.0.apply(command).await.map_err(store_error)?;
        Ok(view::agent(&self.0, agent))
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
        Err(several) => {
            let ids: Vec<_> = several.iter().take(NAMED).map(|agent| agent.id.short()).collect();
            let more = if several.len() > NAMED { " and others" } else { "" };
            Err(ApiError::invalid(
                "agent",
                format_args!(
                    "{text} names several agents: {}{more}; give the id of one",
                    ids.join(", ")
                ),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use kage_core::access::Admittance;
    use kage_core::id::BootId;
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
            cordoned: false,
            admittance: Admittance::EARLIER,
            machine: None,
            contained: kage_core::contain::Containment::NOTHING,
            seen_at: Timestamp::from_millis(1),
        }
    }

    #[test]
    fn the_terms_of_a_join_token_have_defaults_and_limits() {
        let life = |seconds| Some(Duration::from_secs(seconds));
        let usual = Terms::of(0, None, &[]).unwrap();
        assert_eq!(
            (usual.can, usual.uses, usual.life),
            (Capabilities::ALL, 1, JOIN_TOKEN_LIFETIME)
        );
        let run = Terms::of(50, life(86_400), &[v1::Capability::Run.into()]).unwrap();
        assert_eq!(
            (run.can, run.uses, run.life),
            (Capabilities::RUN, 50, Duration::from_secs(86_400))
        );
        let month = 30 * 24 * 60 * 60;
        assert!(Terms::of(1000, life(month), &[]).is_ok());
        for (uses, life, can) in [
            (1001, None, 1),
            (1, life(0), 1),
            (1, life(month + 1), 1),
            (1, None, 0),
            (1, None, 7),
        ] {
            let refused = Terms::of(uses, life, &[can]).unwrap_err();
            assert!(matches!(refused, ApiError::InvalidArgument { .. }), "{refused:?}");
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
        let error = named(fleet(), "twin").unwrap_err().to_string();
        assert!(
            error.contains("twin names several agents: cccc0000, dddd0000;"),
            "{error}"
        );
    }
}
