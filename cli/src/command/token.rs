//! `kage token`: creates, lists and revokes tokens.

use std::time::Duration;

use kage_core::task::Labels;
use kage_core::time::in_words;
use kage_proto::client::Client;
use kage_proto::convert::agent::can;
use kage_proto::convert::time::span;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::args::{TokenCreate, TokenRole};
use crate::assignments;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::output::note;
use crate::tasks;
use crate::view;

/// How long a join token is good, if nothing else is asked for.
const JOIN_TOKEN_LIFE: Duration = Duration::from_secs(10 * 60);

pub(super) async fn create(invocation: &Invocation, args: TokenCreate) -> anyhow::Result<Exit> {
    let role = match args.role {
        TokenRole::Agent => return create_join_token(invocation, args).await,
        TokenRole::View => v1::Role::View,
        TokenRole::Submit => v1::Role::Submit,
        TokenRole::Admin => v1::Role::Admin,
    };
    let of_agents = [
        ("--label", !args.label.is_empty()),
        ("--uses", args.uses.is_some()),
        ("--ttl", args.ttl.is_some()),
        ("--can", args.can.is_some()),
    ];
    if let Some((flag, _)) = of_agents.into_iter().find(|(_, given)| *given) {
        return Err(Refusal::usage(format!("{flag} is for --role agent")).into());
    }
    let access = invocation.existing().await?;
    let request = v1::CreateTokenRequest {
        request_id: tasks::request_id(),
        role: role.into(),
        name: args.name,
        project: args.project.unwrap_or_default(),
    };
    let response = access.client.access().create_token(request).await;
    let response = response.map_err(ApiError::from)?.into_inner();
    invocation.out.message("new_token", &response)?;
    invocation.out.text(&response.bearer)?;
    let token = response.token.unwrap_or_default();
    note(&format!(
        "put it into a file that only you can read, and name that in coordinator.token_file; `kage token revoke {}` \
         takes it back",
        token.id
    ));
    Ok(Exit::Done)
}

async fn create_join_token(invocation: &Invocation, args: TokenCreate) -> anyhow::Result<Exit> {
    let labels: Labels = assignments::labels("--label", &args.label)?;
    let uses = args.uses.unwrap_or(1);
    let life = args.ttl.unwrap_or(JOIN_TOKEN_LIFE);
    let access = invocation.existing().await?;
    let request = v1::CreateJoinTokenRequest {
        request_id: tasks::request_id(),
        project: args.project.unwrap_or_default(),
        labels: labels.into_iter().collect(),
        uses,
        life: Some(span(life)),
        can: args.can.map(can).unwrap_or_default(),
    };
    let response = access.client.fleet().create_join_token(request).await;
    let response = response.map_err(ApiError::from)?.into_inner();
    invocation.out.message("join_token", &response)?;
    invocation.out.text(&response.join_token)?;
    let agents = match uses {
        1 => "one agent".to_owned(),
        uses => format!("{uses} agents"),
    };
    note(&format!(
        "good for {agents}, within {}: kage agent run --join TOKEN HOST:PORT; `kage token revoke {}` takes it back",
        in_words(life),
        response.join_token.split('.').nth(2).unwrap_or_default()
    ));
    Ok(Exit::Done)
}

pub(super) async fn ls(invocation: &Invocation) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let tokens = all(&access.client).await?;
    invocation.out.messages("token", &tokens)?;
    invocation.out.text(&view::table(
        &["token", "role", "name", "project", "state"],
        tokens.iter().map(|token| {
            let state = if token.revoked_at.is_none() { "good" } else { "revoked" };
            vec![
                token.id.clone(),
                role(token.role()).to_owned(),
                token.name.clone(),
                if token.project.is_empty() {
                    "all".to_owned()
                } else {
                    token.project.clone()
                },
                state.to_owned(),
            ]
        }),
    ))?;
    Ok(Exit::Done)
}

/// Fetches the tokens page by page.
async fn all(client: &Client) -> Result<Vec<v1::Token>, ApiError> {
    let mut tokens = Vec::new();
    let mut request = v1::ListTokensRequest::default();
    loop {
        let page = client.access().list_tokens(request).await?.into_inner();
        tokens.extend(page.tokens);
        if page.next_page_token.is_empty() {
            return Ok(tokens);
        }
        request = v1::ListTokensRequest {
            page_token: page.next_page_token,
            ..v1::ListTokensRequest::default()
        };
    }
}

pub(super) async fn revoke(invocation: &Invocation, token_id: String) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let request = v1::RevokeTokenRequest {
        request_id: tasks::request_id(),
        token_id,
    };
    let response = access.client.access().revoke_token(request).await;
    let token = response.map_err(ApiError::from)?.into_inner().token.unwrap_or_default();
    invocation.out.message("token", &token)?;
    invocation.out.text(&format!("token {} is revoked", token.id))?;
    Ok(Exit::Done)
}

const fn role(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Unspecified => "unknown",
        v1::Role::View => "view",
        v1::Role::Submit => "submit",
        v1::Role::Admin => "admin",
    }
}
