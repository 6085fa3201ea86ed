//! Authentication: identifies the caller by the bearer token or the certificate of the connection,
//! and admits the calls that `access` allows. Every gRPC call and every HTTP request passes here,
//! whatever its path.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use kage_core::access::{Capabilities, Role};
use kage_core::id::{AgentId, Digest, ProjectId, TokenId};
use kage_core::task::Labels;
use kage_core::time::Timestamp;
use kage_proto::blob::AGENT_HEADER;
use kage_proto::convert;
use kage_proto::status::ApiError;
use tonic::Status;

use crate::door::access::{self, Answer};
use crate::door::bodies::{Bounded, Most, Right, UntilRevoked, Written};
use crate::door::identities::Identities;
use crate::door::json;
use crate::door::lobby::Guest;
use crate::door::restraint::Restraint;
use crate::ports::{Clock, OwnAgent};

/// Most bytes of a stranger's request: a public key, a token and some names.
pub(crate) const MOST_OF_STRANGER: usize = 16 << 10;
/// Most open calls of a stranger on one connection.
const CALLS_OF_STRANGER: usize = 8;

/// The owner of the connection's certificate, which was checked against the CA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) agent: AgentId,
    /// The end of the certificate: a connection may outlive it, its rights do not.
    pub(crate) until: Timestamp,
}

/// The caller.
#[derive(Debug, Clone)]
pub(crate) enum Principal {
    /// The holder of the coordinator's own token.
    Owner,
    Person {
        token: TokenId,
        role: Role,
        /// The only project the token is good for; `None` = all.
        project: Option<ProjectId>,
    },
    Agent {
        id: AgentId,
        project: ProjectId,
        labels: Labels,
        can: Capabilities,
    },
    /// The agent in the process of this coordinator.
    OwnAgent {
        id: AgentId,
    },
    Stranger,
}

impl Principal {
    pub(crate) const fn role(&self) -> Role {
        match self {
            Self::Owner => Role::Owner,
            Self::Person { role, .. } => *role,
            Self::Agent { .. } | Self::OwnAgent { .. } => Role::Agent,
            Self::Stranger => Role::Stranger,
        }
    }

    /// Under which name its request ids are kept.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Owner => "owner".to_owned(),
            Self::Person { token, .. } => format!("token:{token}"),
            Self::Agent { id, .. } | Self::OwnAgent { id } => format!("agent:{id}"),
            Self::Stranger => "stranger".to_owned(),
        }
    }

    /// The name under which it is limited; `None` = it is not.
    pub(crate) fn limited(&self) -> Option<String> {
        match self {
            Self::Owner | Self::OwnAgent { .. } | Self::Stranger => None,
            Self::Person { .. } | Self::Agent { .. } => Some(self.name()),
        }
    }

    /// True for whoever shows a token that was made for people.
    pub(crate) const fn is_person(&self) -> bool {
        match self {
            Self::Person { .. } => true,
            Self::Owner | Self::Agent { .. } | Self::OwnAgent { .. } | Self::Stranger => false,
        }
    }

    /// An agent speaks for itself; the owner's word counts for any.
    pub(crate) fn may_speak_for(&self, agent: AgentId) -> Result<(), ApiError> {
        match self {
            Self::Owner => Ok(()),
            Self::Agent { id, .. } | Self::OwnAgent { id } if *id == agent => Ok(()),
            Self::Agent { .. } | Self::OwnAgent { .. } | Self::Person { .. } | Self::Stranger => {
                Err(ApiError::PermissionDenied {
                    message: format!("the caller is not agent {agent}"),
                })
            }
        }
    }

    /// The agent of a call: known for agents that joined; others name it in [`AGENT_HEADER`].
    pub(crate) fn agent(&self, named: Option<&str>) -> Result<Option<AgentId>, ApiError> {
        match (self, named) {
            (_, Some(text)) => {
                let agent = convert::parse(AGENT_HEADER, text)?;
                self.may_speak_for(agent)?;
                Ok(Some(agent))
            }
            (Self::Agent { id, .. } | Self::OwnAgent { id }, None) => Ok(Some(*id)),
            (Self::Owner | Self::Person { .. } | Self::Stranger, None) => Ok(None),
        }
    }

    /// Agents have one project, and so do people with a token for one project.
    pub(crate) fn may_use(&self, project: &ProjectId) -> Result<(), ApiError> {
        let message = match self {
            Self::Agent { project: own, .. } if own != project => {
                format!("the agent joined for project {own}, not for {project}")
            }
            Self::Person { project: Some(own), .. } if own != project => {
                format!("the token is for project {own}, not for {project}")
            }
            Self::Owner | Self::Agent { .. } | Self::OwnAgent { .. } | Self::Person { .. } | Self::Stranger => {
                return Ok(());
            }
        };
        Err(ApiError::PermissionDenied { message })
    }

    /// The only project it may use; `None` = all.
    pub(crate) const fn bound_to(&self) -> Option<&ProjectId> {
        match self {
            Self::Agent { project, .. } => Some(project),
            Self::Person { project, .. } => project.as_ref(),
            Self::Owner | Self::OwnAgent { .. } | Self::Stranger => None,
        }
    }

    /// The project of a call: the named one, or else the caller's only project, or else the default
    /// project.
    pub(crate) fn project(&self, field: &str, name: &str) -> Result<ProjectId, ApiError> {
        let named = match (name, self.bound_to()) {
            ("", Some(own)) => own.clone(),
            _ => convert::task::project(field, name)?,
        };
        self.may_use(&named)?;
        Ok(named)
    }
}

/// The data for authentication.
#[derive(Clone)]
pub(crate) struct Door {
    /// The hash of the owner's token. The token itself is not kept.
    owner: Digest,
    /// The agent in this process, and the hash of its token.
    own_agent: Option<(AgentId, Digest)>,
    identities: Arc<Identities>,
    restraint: Arc<Restraint>,
    clock: Clock,
}

/// An admitted caller, and the token that ends its right; `None` if the right cannot be revoked.
struct Admitted {
    principal: Principal,
    right: Option<Right>,
}

impl Door {
    pub(crate) fn new(
        token: &str,
        own_agent: Option<OwnAgent>,
        identities: Arc<Identities>,
        restraint: Arc<Restraint>,
        clock: Clock,
    ) -> Self {
        Self {
            owner: Digest::of(token.as_bytes()),
            own_agent: own_agent.map(|own| (own.id, Digest::of(own.token.as_bytes()))),
            identities,
            restraint,
            clock,
        }
    }

    /// Identifies the caller. A token takes precedence over the connection's certificate.
    fn recognise(&self, headers: &HeaderMap, peer: Option<Peer>) -> Result<Admitted, ApiError> {
        let denied = |message: &str| ApiError::PermissionDenied {
            message: message.to_owned(),
        };
        if let Some(header) = headers.get(AUTHORIZATION) {
            let hash = header.to_str().ok().and_then(bearer).ok_or(ApiError::Unauthenticated)?;
            if same(&hash, &self.owner) {
                return Ok(Admitted {
                    principal: Principal::Owner,
                    right: None,
                });
            }
            if let Some((id, token)) = &self.own_agent
                && same(&hash, token)
            {
                return Ok(Admitted {
                    principal: Principal::OwnAgent { id: *id },
                    right: None,
                });
            }
            let person = self.identities.holder(&hash).ok_or(ApiError::Unauthenticated)?;
            let right = Right {
                revoked: person.revoked,
                words: "the token was revoked",
            };
            if right.revoked.is_cancelled() {
                return Err(right.denial());
            }
            return Ok(Admitted {
                principal: Principal::Person {
                    token: person.token,
                    role: person.role,
                    project: person.project,
                },
                right: Some(right),
            });
        }
        let Some(peer) = peer else {
            return Ok(Admitted {
                principal: Principal::Stranger,
                right: None,
            });
        };
        let agent = self.identities.enrolled(peer.agent);
        let agent = agent.ok_or_else(|| denied("this coordinator does not know the agent of the certificate"))?;
        let right = Right {
            revoked: agent.revoked,
            words: "the agent was revoked",
        };
        if right.revoked.is_cancelled() {
            return Err(right.denial());
        }
        if peer.until <= (self.clock)() {
            return Err(denied("the agent's certificate has expired; it has to join again"));
        }
        Ok(Admitted {
            principal: Principal::Agent {
                id: agent.id,
                project: agent.project,
                labels: agent.labels,
                can: agent.can,
            },
            right: Some(right),
        })
    }

    fn admit(&self, request: &Request) -> Result<Admitted, ApiError> {
        let peer = request.extensions().get::<Peer>().copied();
        let admitted = self.recognise(request.headers(), peer)?;
        let role = admitted.principal.role();
        match access::may(role, request.method(), request.uri()) {
            Answer::Allowed => Ok(admitted),
            _ if role == Role::Stranger => Err(ApiError::Unauthenticated),
            Answer::Denied(route) => Err(ApiError::PermissionDenied {
                message: access::refusal(role, route),
            }),
            Answer::Unknown => Err(ApiError::Unimplemented {
                message: "there is no such call".to_owned(),
            }),
        }
    }
}

/// The digest of the token in a header.
fn bearer(header: &str) -> Option<Digest> {
    let (scheme, token) = header.split_once(' ')?;
    let bearer = scheme.eq_ignore_ascii_case("bearer");
    bearer.then(|| Digest::of(token.trim().as_bytes()))
}

/// Compares whole digests, so that the time reveals nothing about the token.
pub(crate) fn same(one: &Digest, other: &Digest) -> bool {
    let pairs = one.as_str().bytes().zip(other.as_str().bytes());
    pairs.fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// Lets a request in or answers it in the way its protocol understands.
pub(crate) async fn guard(State(door): State<Door>, request: Request, next: Next) -> Response {
    let written = Written::by(request.headers());
    let guest = request.extensions().get::<Arc<Guest>>().cloned();
    let Admitted { principal, right } = match door.admit(&request) {
        Ok(admitted) => admitted,
        Err(error) => {
            // A caller without a token has not guessed one.
            if error == ApiError::Unauthenticated
                && request.headers().contains_key(AUTHORIZATION)
                && let Some(guest) = &guest
                && let Err(instead) = door.restraint.wrong_token(guest.address()).await
            {
                return refuse(written, instead);
            }
            return refuse(written, error);
        }
    };
    if let Err(error) = door.restraint.call(principal.limited()) {
        return refuse(written, error);
    }
    let most = match (&principal, &guest) {
        (Principal::Stranger, guest) => {
            if guest.as_ref().is_some_and(|guest| guest.open() > CALLS_OF_STRANGER) {
                return refuse(written, too_many());
            }
            Some(Most {
                bytes: MOST_OF_STRANGER as u64,
                time: guest.as_ref().map_or(Duration::MAX, |guest| guest.stranger_request()),
            })
        }
        (Principal::Owner | Principal::Person { .. } | Principal::Agent { .. } | Principal::OwnAgent { .. }, guest) => {
            if let Some(guest) = guest {
                guest.is_known();
            }
            None
        }
    };
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(principal);
    if right.is_none() && most.is_none() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let (body, why) = Bounded::new(body, right.clone(), most);
    let response = next.run(Request::from_parts(parts, Body::new(body))).await;
    if let Some(why) = why.get() {
        return refuse(written, why.clone());
    }
    match right {
        None => response,
        Some(right) => {
            let (parts, body) = response.into_parts();
            let body = UntilRevoked::new(body, &parts.headers, right);
            Response::from_parts(parts, Body::new(body))
        }
    }
}

fn too_many() -> ApiError {
    ApiError::ResourceExhausted {
        message: format!("a connection may have {CALLS_OF_STRANGER} calls without a token or certificate open at once"),
        retry: None,
    }
}

fn refuse(written: Written, error: ApiError) -> Response {
    match written {
        Written::Grpc => return Status::from(error).into_http(),
        Written::Json => return json::failed(error),
        Written::Otherwise => {}
    }
    let text = format!("{error}\n");
    match error {
        ApiError::Unauthenticated => (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], text).into_response(),
        ApiError::Unimplemented { .. } => (StatusCode::NOT_FOUND, text).into_response(),
        ApiError::ResourceExhausted { .. } => (StatusCode::TOO_MANY_REQUESTS, text).into_response(),
        _ => (StatusCode::FORBIDDEN, text).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CallerLimits;
    use crate::store::{Enrolment, PersonToken};

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn headers(header: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(text) = header {
            headers.insert(AUTHORIZATION, text.parse().unwrap());
        }
        headers
    }

    fn door() -> (Door, Arc<Identities>) {
        let identities = Arc::new(Identities::default());
        let own = OwnAgent {
            id: AgentId::from_random(9),
            token: "own".to_owned(),
        };
        let restraint = Arc::new(Restraint::new(CallerLimits::default()));
        let door = Door::new(
            "secret",
            Some(own),
            Arc::clone(&identities),
            restraint,
            Arc::new(|| NOW),
        );
        (door, identities)
    }

    #[test]
    fn only_a_token_opens() {
        let (door, identities) = door();
        let mut token = PersonToken {
            id: TokenId::from_random(1),
            hash: Digest::of(b"person"),
            role: Role::Submit,
            name: "ci".to_owned(),
            project: None,
            created_at: NOW,
            revoked_at: None,
        };
        identities.person(&token);
        let cases = [
            (Some("Bearer secret"), Ok(Role::Owner)),
            (Some("bearer secret"), Ok(Role::Owner)),
            (Some("Bearer secret "), Ok(Role::Owner)),
            (Some("Bearer person"), Ok(Role::Submit)),
            (Some("Bearer own"), Ok(Role::Agent)),
            (Some("Bearer Secret"), Err("UNAUTHENTICATED")),
            (Some("Bearer secre"), Err("UNAUTHENTICATED")),
            (Some("Bearer "), Err("UNAUTHENTICATED")),
            (Some("Basic secret"), Err("UNAUTHENTICATED")),
            (Some("secret"), Err("UNAUTHENTICATED")),
            (None, Ok(Role::Stranger)),
        ];
        let role = |header| {
            let admitted = door.recognise(&headers(header), None);
            admitted.map(|a| a.principal.role()).map_err(|error| error.reason())
        };
        for (header, expected) in cases {
            assert_eq!(role(header), expected, "{header:?}");
        }
        token.revoked_at = Some(NOW);
        identities.person(&token);
        assert_eq!(role(Some("Bearer person")), Err("PERMISSION_DENIED"));
    }

    #[test]
    fn a_certificate_is_good_while_it_lasts_and_its_agent_is_in() {
        let (door, identities) = door();
        let agent = AgentId::from_random(1);
        let peer = |until| Some(Peer { agent, until });
        let role = |peer| {
            let admitted = door.recognise(&headers(None), peer);
            admitted.map(|a| a.principal.role()).map_err(|error| error.to_string())
        };
        let later = Timestamp::from_millis(NOW.as_millis() + 1);
        assert!(role(peer(later)).unwrap_err().contains("does not know"));
        let joined = |revoked_at| Enrolment {
            agent,
            project: ProjectId::default(),
            labels: Labels::new(),
            can: Capabilities::ALL,
            enrolled_at: NOW,
            revoked_at,
        };
        identities.agent(&joined(None));
        assert_eq!(role(peer(later)), Ok(Role::Agent));
        assert!(role(peer(NOW)).unwrap_err().contains("expired"));
        // A caller with a token is identified by the token.
        let shown = door.recognise(&headers(Some("Bearer wrong")), peer(later));
        assert!(matches!(shown.err(), Some(ApiError::Unauthenticated)));
        identities.agent(&joined(Some(NOW)));
        assert!(role(peer(later)).unwrap_err().contains("revoked"));
    }

    #[test]
    fn an_agent_speaks_for_itself_and_its_project() {
        let (one, other) = (AgentId::from_random(1), AgentId::from_random(2));
        let agent = Principal::Agent {
            id: one,
            project: ProjectId::default(),
            labels: Labels::new(),
            can: Capabilities::ALL,
        };
        let own = Principal::OwnAgent { id: one };
        assert!(own.may_speak_for(one).is_ok() && own.may_speak_for(other).is_err());
        assert_eq!(own.agent(None).unwrap(), Some(one));
        assert!(agent.may_speak_for(one).is_ok() && agent.may_speak_for(other).is_err());
        assert!(Principal::Owner.may_speak_for(other).is_ok());
        assert!(Principal::Stranger.may_speak_for(one).is_err());
        let (mine, others) = (one.to_string(), other.to_string());
        assert_eq!(agent.agent(None).unwrap(), Some(one));
        assert_eq!(agent.agent(Some(&mine)).unwrap(), Some(one));
        assert!(agent.agent(Some(&others)).is_err());
        assert_eq!(Principal::Owner.agent(Some(&others)).unwrap(), Some(other));
        assert_eq!(Principal::Owner.agent(None).unwrap(), None);
        for nonsense in ["", "me"] {
            let refused = Principal::Owner.agent(Some(nonsense)).unwrap_err();
            assert!(matches!(refused, ApiError::InvalidArgument { .. }), "{refused:?}");
        }
        let elsewhere: ProjectId = "elsewhere".parse().unwrap();
        assert!(agent.may_use(&ProjectId::default()).is_ok() && agent.may_use(&elsewhere).is_err());
        assert!(Principal::Owner.may_use(&elsewhere).is_ok());
    }

    #[test]
    fn a_token_of_a_project_is_good_for_that_project_only() {
        let person = |project: Option<&str>| Principal::Person {
            token: TokenId::from_random(1),
            role: Role::Submit,
            project: project.map(|name| name.parse().unwrap()),
        };
        let said = |caller: &Principal, name: &str| {
            let project = caller.project("project", name);
            project
                .map(|project| project.to_string())
                .map_err(|error| error.reason())
        };
        let cases = [
            (person(None), "", Ok("default")),
            (person(None), "mine", Ok("mine")),
            (person(Some("mine")), "", Ok("mine")),
            (person(Some("mine")), "mine", Ok("mine")),
            (person(Some("mine")), "default", Err("PERMISSION_DENIED")),
            (person(Some("mine")), "No Name", Err("INVALID_ARGUMENT")),
            (Principal::Owner, "mine", Ok("mine")),
        ];
        for (caller, name, expected) in cases {
            assert_eq!(said(&caller, name), expected.map(str::to_owned), "{caller:?} {name:?}");
        }
    }
}
