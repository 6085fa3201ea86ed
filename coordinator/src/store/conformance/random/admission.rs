//! Random steps of admission: join tokens created and presented, right or wrong, agents and people
//! admitted and revoked.

use std::time::Duration;

use kage_core::access::{Capabilities, Role};
use kage_core::id::{Digest, TokenId};
use kage_core::task::Labels;
use kage_core::time::Timestamp;
use proptest::prelude::*;

use super::super::fixture::{agent_id, request};
use super::Pair;
use crate::store::{
    CreateJoinToken, CreatePersonToken, EnrolAgent, Request, RevokeAgent, RevokeJoinToken, RevokePersonToken,
    SetCordoned,
};

/// One step. Numbers are small, so that steps concern the same rows.
#[derive(Debug, Clone)]
pub(super) enum Admit {
    JoinToken {
        token: u128,
        request: u128,
        elsewhere: bool,
        uses: u32,
    },
    Enrol {
        token: u128,
        /// The secret of another token, when it is another number.
        secret: u128,
        key: u128,
        project: Option<bool>,
    },
    RevokeAgent {
        token: u128,
        key: u128,
        request: u128,
    },
    PersonToken {
        token: u128,
        request: u128,
        role: Role,
        project: Option<bool>,
    },
    RevokeJoinToken {
        token: u128,
        request: u128,
    },
    RevokePerson {
        token: u128,
        request: u128,
    },
    Cordon {
        agent: u128,
        request: u128,
        cordoned: bool,
    },
}

pub(super) fn admit() -> impl Strategy<Value = Admit> {
    let roles = prop::sample::select(vec![Role::View, Role::Submit, Role::Admin]);
    let project = || prop::option::of(any::<bool>());
    prop_oneof![
        3 => (1..4u128, 1..9u128, any::<bool>(), 1..3u32)
            .prop_map(|(token, request, elsewhere, uses)| Admit::JoinToken { token, request, elsewhere, uses }),
        4 => (1..4u128, 0..12u128, 1..4u128, project()).prop_map(|(token, other, key, project)| Admit::Enrol {
            token,
            secret: if other == 0 { token + 1 } else { token },
            key,
            project,
        }),
        1 => (1..4u128, 1..4u128, 1..4u128)
            .prop_map(|(token, key, request)| Admit::RevokeAgent { token, key, request }),
        2 => (1..4u128, 1..5u128, roles, project())
            .prop_map(|(token, request, role, project)| Admit::PersonToken { token, request, role, project }),
        1 => (1..4u128, 1..4u128).prop_map(|(token, request)| Admit::RevokeJoinToken { token, request }),
        1 => (1..4u128, 1..4u128).prop_map(|(token, request)| Admit::RevokePerson { token, request }),
        1 => (1..4u128, 1..4u128, any::<bool>())
            .prop_map(|(agent, request, cordoned)| Admit::Cordon { agent, request, cordoned }),
    ]
}

fn token_id(n: u128) -> TokenId {
    TokenId::from_random(n)
}

fn secret(n: u128) -> Digest {
    Digest::of(format!("secret {n}").as_bytes())
}

/// The same number with other words is another payload.
fn asking(n: u128, payload: &str) -> Request {
    Request {
        payload: Digest::of(payload.as_bytes()),
        ..request(n)
    }
}

fn project(elsewhere: bool) -> kage_core::id::ProjectId {
    let name = if elsewhere { "elsewhere" } else { "default" };
    name.parse().unwrap()
}

impl Pair {
    pub(super) async fn admit(&mut self, step: Admit) {
        let now = self.now;
        match step {
            Admit::JoinToken {
                token,
                request,
                elsewhere,
                uses,
            } => {
                let command = CreateJoinToken {
                    request: asking(request, &format!("{elsewhere} {uses}")),
                    id: token_id(token),
                    secret: secret(token),
                    project: project(elsewhere),
                    labels: Labels::from([("n".to_owned(), token.to_string())]),
                    can: if elsewhere {
                        Capabilities::RUN
                    } else {
                        Capabilities::ALL
                    },
                    uses,
                    expires_at: now + Duration::from_secs(60),
                    now,
                };
                self.apply(command).await;
            }
            Admit::Enrol {
                token,
                secret: shown,
                key,
                project: wanted,
            } => {
                let command = EnrolAgent {
                    token: token_id(token),
                    secret: secret(shown),
                    project: wanted.map(project),
                    key: Digest::of(&key.to_be_bytes()),
                    agent: agent_id(joining(token, key)),
                    now,
                };
                let outcome = self.apply(command).await;
                assert!(outcome.is_some(), "a refusal to join is an outcome, no error");
            }
            Admit::RevokeAgent { token, key, request } => {
                let agent = agent_id(joining(token, key));
                let command = RevokeAgent {
                    request: asking(request, &agent.to_string()),
                    agent,
                    now,
                };
                self.apply(command).await;
            }
            Admit::PersonToken {
                token,
                request,
                role,
                project: bound,
            } => {
                let command = CreatePersonToken {
                    request: asking(request, &format!("{role} {bound:?}")),
                    id: token_id(token),
                    hash: secret(token),
                    role,
                    name: format!("token {token}"),
                    project: bound.map(project),
                    now,
                };
                self.apply(command).await;
            }
            Admit::RevokeJoinToken { token, request } => {
                let command = RevokeJoinToken {
                    request: asking(request, &token.to_string()),
                    id: token_id(token),
                    now,
                };
                self.apply(command).await;
            }
            Admit::RevokePerson { token, request } => {
                let command = RevokePersonToken {
                    request: asking(request, &token.to_string()),
                    id: token_id(token),
                    now,
                };
                self.apply(command).await;
            }
            Admit::Cordon {
                agent,
                request,
                cordoned,
            } => {
                let command = SetCordoned {
                    request: asking(request, &format!("{agent} {cordoned}")),
                    agent: agent_id(agent),
                    cordoned,
                    now,
                };
                self.apply(command).await;
            }
        }
    }

    /// Compares the admitted callers of both. A revoked one never returns.
    pub(super) async fn compare_admitted(&mut self) {
        let (a, b) = (&self.sqlite, &self.memory);
        let enrolments = a.enrolments().await.unwrap();
        assert_eq!(enrolments, b.enrolments().await.unwrap());
        let tokens = a.person_tokens().await.unwrap();
        assert_eq!(tokens, b.person_tokens().await.unwrap());
        for (agent, at) in &self.shut_out {
            let still = enrolments.iter().find(|enrolment| enrolment.agent == *agent);
            let still = still.and_then(|enrolment| enrolment.revoked_at);
            assert!(still.is_some_and(|revoked| revoked >= *at), "{agent} came back");
        }
        let out = enrolments.iter().filter_map(|one| Some((one.agent, one.revoked_at?)));
        self.shut_out = out.collect();
    }
}

/// The fresh id that belongs to a key; it counts only at the first use of the token.
fn joining(token: u128, key: u128) -> u128 {
    100 * token + key
}

pub(super) type ShutOut = Vec<(kage_core::id::AgentId, Timestamp)>;
