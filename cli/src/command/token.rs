//! `kage token`: creates, lists and revokes tokens.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use kage_core::access::Capabilities;
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
use crate::table::Table;
use crate::tasks;

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
    let ca = access.credentials.ca.as_ref();
    let ca = ca.map_or_else(String::new, |ca| format!(" --ca {}", BASE64.encode(ca.content())));
    note(&format!(
        "on the other machine: kage login {}{ca} (it asks for the token); `kage token revoke {}` takes it back",
        from_elsewhere(&access.url),
        token.id
    ));
    Ok(Exit::Done)
}

/// The address of the coordinator as another machine has it; a person has to say it when this one uses loopback.
fn from_elsewhere(url: &str) -> String {
    let authority = url.rsplit("//").next().unwrap_or_default();
    let is_loopback = ["127.", "localhost", "[::1]"]
        .iter()
        .any(|name| authority.starts_with(name));
    match (is_loopback, authority.rsplit_once(':')) {
        (true, Some((_, port))) => format!("https://HOST:{port}"),
        _ => url.to_owned(),
    }
}

/// What was asked of a join token by name.
#[derive(Debug, Clone, Copy, Default)]
struct AskedTerms {
    uses: Option<u32>,
    life: Option<Duration>,
    can: Option<Capabilities>,
}

impl AskedTerms {
    /// The flags that the coordinator did not take: one of an older version reads past them, and says nothing of
    /// them in its answer.
    fn not_taken(self, answer: &v1::CreateJoinTokenResponse) -> Vec<&'static str> {
        let older = answer.uses == 0;
        let other_can = |wanted: Capabilities| {
            let told: BTreeSet<_> = answer.can.iter().copied().collect();
            told != can(wanted).into_iter().collect()
        };
        let all = [
            ("--uses", self.uses.is_some_and(|uses| uses != answer.uses)),
            ("--ttl", self.life.is_some() && older),
            ("--can", self.can.is_some_and(other_can)),
        ];
        all.into_iter()
            .filter_map(|(flag, lost)| lost.then_some(flag))
            .collect()
    }
}

/// Takes back a token that is good for something else than was asked for. It was shown to nobody.
async fn refuse_other_terms(client: &Client, flags: &[&str], token_id: &str) -> Refusal {
    let request = v1::RevokeTokenRequest {
        request_id: tasks::request_id(),
        token_id: token_id.to_owned(),
    };
    // An older coordinator may not know how. Nobody knows the token's secret, and it expires soon.
    client.access().revoke_token(request).await.ok();
    Refusal::usage(format!(
        "this coordinator is of an older version, which does not know {}: an agent that joins could do everything; \
         update the coordinator, or leave the flags out. No token was made",
        flags.join(" and ")
    ))
}

async fn create_join_token(invocation: &Invocation, args: TokenCreate) -> anyhow::Result<Exit> {
    let labels: Labels = assignments::labels("--label", &args.label)?;
    let asked = AskedTerms {
        uses: args.uses,
        life: args.ttl,
        can: args.can,
    };
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
    let token_id = response.join_token.split('.').nth(2).unwrap_or_default().to_owned();
    let not_taken = asked.not_taken(&response);
    if !not_taken.is_empty() {
        return Err(refuse_other_terms(&access.client, &not_taken, &token_id).await.into());
    }
    invocation.out.message("join_token", &response)?;
    invocation.out.text(&response.join_token)?;
    let agents = match uses {
        1 => "one agent".to_owned(),
        uses => format!("{uses} agents"),
    };
    note(&format!(
        "good for {agents}, within {}: kage agent run --join {} {}; `kage token revoke {token_id}` takes it \
         back",
        in_words(life),
        response.join_token,
        from_elsewhere(&access.url)
            .trim_start_matches("https://")
            .trim_start_matches("http://"),
    ));
    Ok(Exit::Done)
}

pub(super) async fn ls(invocation: &Invocation) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let tokens = all(&access.client).await?;
    invocation.out.messages("token", &tokens)?;
    invocation.out.table(&table(&tokens))?;
    Ok(Exit::Done)
}

fn table(tokens: &[v1::Token]) -> Table {
    let rows = tokens.iter().map(|token| {
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
    });
    Table::of_words(&["token", "role", "name", "project", "state"], rows)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn tokens_fit_every_width() {
        let token = |id: &str, role: v1::Role, name: &str, project: &str| v1::Token {
            id: id.to_owned(),
            role: role.into(),
            name: name.to_owned(),
            project: project.to_owned(),
            ..v1::Token::default()
        };
        let revoked = v1::Token {
            revoked_at: Some(kage_proto::convert::time::stamp(
                kage_core::time::Timestamp::from_millis(1),
            )),
            ..token("89abcdef89abcdef", v1::Role::Submit, "bob", "")
        };
        let tokens = [token("0123456701234567", v1::Role::Admin, "alice", "shop"), revoked];
        insta::assert_snapshot!(everywhere(&table(&tokens)));
    }

    #[test]
    fn what_an_older_coordinator_did_not_take_is_named() {
        let older = v1::CreateJoinTokenResponse {
            join_token: "kage1.a.b.c".to_owned(),
            ..v1::CreateJoinTokenResponse::default()
        };
        let answer = |uses, may| v1::CreateJoinTokenResponse {
            uses,
            can: can(may),
            ..older.clone()
        };
        let asked = AskedTerms {
            uses: Some(50),
            life: Some(JOIN_TOKEN_LIFE),
            can: Some(Capabilities::RUN),
        };
        assert_eq!(asked.not_taken(&older), ["--uses", "--ttl", "--can"]);
        assert!(asked.not_taken(&answer(50, Capabilities::RUN)).is_empty());
        assert_eq!(asked.not_taken(&answer(50, Capabilities::ALL)), ["--can"]);
        assert_eq!(asked.not_taken(&answer(1, Capabilities::RUN)), ["--uses"]);
        // Its usual token is what was asked for.
        assert!(AskedTerms::default().not_taken(&older).is_empty());
    }
}
