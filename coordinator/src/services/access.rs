//! AccessService: the bearer tokens of people and their programs.

use std::sync::Arc;

use kage_core::access::Role;
use kage_core::id::{Digest, TokenId};
use kage_proto::convert::parse;
use kage_proto::convert::time::stamp;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::access_service_server::AccessService;
use tonic::{Request, Response, Status};

use super::page::{OfToken, page};
use super::{principal, request};
use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::refusals::{read_error, store_error};
use crate::store::{CreatePersonToken, PersonToken, RevokeJoinToken, RevokePersonToken};

const MAX_NAME: usize = 200;

#[derive(Debug)]
pub(crate) struct Access(pub(crate) Arc<Coordinator>);

#[tonic::async_trait]
impl AccessService for Access {
    async fn create_token(
        &self,
        message: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let role = match message.role() {
            v1::Role::Admin => Role::Admin,
            v1::Role::Submit => Role::Submit,
            v1::Role::View => Role::View,
            v1::Role::Unspecified => {
                return Err(ApiError::invalid("role", "must be view, submit or admin").into());
            }
        };
        if message.name.len() > MAX_NAME {
            return Err(ApiError::invalid("name", format_args!("has more than {MAX_NAME} bytes")).into());
        }
        let project = match (message.project.as_str(), caller.bound_to()) {
            ("", None) => None,
            // A caller cannot give more rights than it has.
            (name, _) => Some(caller.project("project", name)?),
        };
        let id = TokenId::from_random(self.0.random());
        let token = self
            .0
            .apply(CreatePersonToken {
                request: request(&self.0, &caller, &message.request_id, &(role, &message.name, &project))?,
                id,
                hash: Digest::of(self.bearer(id).as_bytes()),
                role,
                name: message.name,
                project,
                now: self.0.now(),
            })
            .await
            .map_err(store_error)?;
        let bearer = self.bearer(token.id);
        if Digest::of(bearer.as_bytes()) != token.hash {
            return Err(super::not_repeatable().into());
        }
        self.0.settled().await;
        Ok(Response::new(v1::CreateTokenResponse {
            token: Some(view(&token)),
            bearer,
        }))
    }

    async fn list_tokens(
        &self,
        message: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let mut tokens = self.0.store.person_tokens().await.map_err(read_error)?;
        tokens.retain(|token| concerns(&caller, token));
        let place = |token: &PersonToken| OfToken(token.created_at, token.id);
        let (tokens, next_page_token) = page(tokens, place, message.page_size, &message.page_token)?;
        Ok(Response::new(v1::ListTokensResponse {
            tokens: tokens.iter().map(view).collect(),
            next_page_token,
        }))
    }

    async fn revoke_token(
        &self,
        message: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let caller = principal(&message);
        let message = message.into_inner();
        let id: TokenId = parse("token_id", &message.token_id).map_err(ApiError::from)?;
        if let Some(token) = self.revoke_join_token(&caller, &message.request_id, id).await? {
            return Ok(Response::new(v1::RevokeTokenResponse { token: Some(token) }));
        }
        if caller.bound_to().is_some() {
            let tokens = self.0.store.person_tokens().await.map_err(read_error)?;
            if !tokens.iter().any(|token| token.id == id && concerns(&caller, token)) {
                return Err(ApiError::NotFound {
                    what: format!("token {id}"),
                }
                .into());
            }
        }
        let command = RevokePersonToken {
            request: request(&self.0, &caller, &message.request_id, &id)?,
            id,
            now: self.0.now(),
        };
        let token = self.0.apply(command).await.map_err(store_error)?;
        self.0.settled().await;
        Ok(Response::new(v1::RevokeTokenResponse {
            token: Some(view(&token)),
        }))
    }
}

impl Access {
    /// Takes back the join token with this id; `None` when it is no join token that the caller manages.
    async fn revoke_join_token(
        &self,
        caller: &Principal,
        request_id: &str,
        id: TokenId,
    ) -> Result<Option<v1::Token>, ApiError> {
        let stored = self.0.store.join_token(id).await.map_err(read_error)?;
        if stored.is_none_or(|stored| caller.may_use(&stored.project).is_err()) {
            return Ok(None);
        }
        let command = RevokeJoinToken {
            request: request(&self.0, caller, request_id, &id)?,
            id,
            now: self.0.now(),
        };
        let row = self.0.apply(command).await.map_err(store_error)?;
        Ok(Some(v1::Token {
            id: id.to_string(),
            revoked_at: Some(stamp(row.expires_at)),
            project: row.project.to_string(),
            ..v1::Token::default()
        }))
    }

    fn bearer(&self, id: TokenId) -> String {
        format!("kage-{id}-{}", self.0.secrets.of("person", id))
    }
}

/// A caller with one project manages the tokens of that project.
fn concerns(caller: &Principal, token: &PersonToken) -> bool {
    caller.bound_to().is_none_or(|own| token.project.as_ref() == Some(own))
}

fn view(token: &PersonToken) -> v1::Token {
    let role = match token.role {
        Role::Admin => v1::Role::Admin,
        Role::Submit => v1::Role::Submit,
        Role::View => v1::Role::View,
        // No person's token has one of these roles.
        Role::Owner | Role::Agent | Role::Stranger => v1::Role::Unspecified,
    };
    v1::Token {
        id: token.id.to_string(),
        role: role.into(),
        name: token.name.clone(),
        created_at: Some(stamp(token.created_at)),
        revoked_at: token.revoked_at.map(stamp),
        project: token.project.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}
