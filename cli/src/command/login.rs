//! `kage login`: keeps the address, token and CA of a coordinator on this machine, and says which is used.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use kage_core::id::ProjectId;
use kage_proto::client::{Credentials, PemFile};
use kage_proto::status::ApiError;
use kage_proto::v1;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::Serialize;

use crate::args::{Login, LoginCommand, LoginSubcommand};
use crate::connect;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::output::note;
use crate::settings::coordinators::{LOCAL, Logins, LoginsError};
use crate::table::{Cell, Column, Table};
use crate::terminal::Ink;

/// The port of coordinators, unless they are told another one.
const USUAL_PORT: u16 = 7443;

/// What is told of a login. Tokens are not.
#[derive(Debug, Serialize)]
struct LoginJson {
    name: String,
    /// Null: the coordinator of this machine.
    url: Option<String>,
    in_use: bool,
}

pub(super) async fn run(invocation: &Invocation, args: LoginCommand) -> anyhow::Result<Exit> {
    let logins = Logins::of_user().ok_or(LoginsError::NoHome)?;
    match args.command {
        None => login(invocation, &logins, args.login).await,
        Some(LoginSubcommand::Ls) => ls(invocation, &logins),
        Some(LoginSubcommand::Use { name }) => {
            logins.choose(&name)?;
            told(invocation, name, None)
        }
    }
}

fn told(invocation: &Invocation, name: String, url: Option<String>) -> anyhow::Result<Exit> {
    invocation.out.text(&match name.as_str() {
        LOCAL => "commands use the coordinator of this machine".to_owned(),
        name => format!("commands use the coordinator of {name}; `kage login use {LOCAL}` goes back to this machine's"),
    })?;
    if invocation.settings.coordinator.is_named_by_settings {
        note("the settings name a coordinator themselves, which comes first: config.toml or KAGE__COORDINATOR__URL");
    }
    let json = LoginJson {
        name,
        url,
        in_use: true,
    };
    invocation.out.result("login", &json)?;
    Ok(Exit::Done)
}

fn ls(invocation: &Invocation, logins: &Logins) -> anyhow::Result<Exit> {
    let asked = std::env::var("KAGE_LOGIN").ok().filter(|name| !name.is_empty());
    let chosen = asked.or_else(|| logins.chosen()).unwrap_or_else(|| LOCAL.to_owned());
    let kept = logins.all()?.into_iter().map(|(name, login)| (name, Some(login.url)));
    let all: Vec<_> = std::iter::once((LOCAL.to_owned(), None))
        .chain(kept)
        .map(|(name, url)| LoginJson {
            in_use: name == chosen,
            name,
            url,
        })
        .collect();
    invocation.out.document(&all)?;
    all.iter()
        .try_for_each(|login| invocation.out.happening("login", login))?;
    invocation.out.table(&table(&all))?;
    Ok(Exit::Done)
}

fn table(all: &[LoginJson]) -> Table {
    let mut table = Table::new([
        Column::words("login", 0),
        Column::words("used", 0),
        Column::words("coordinator", 0),
    ]);
    for login in all {
        let ink = if login.in_use { Ink::Strong } else { Ink::Plain };
        let url = login.url.as_deref().unwrap_or("this machine's");
        table.row(vec![
            Cell::new(ink, &login.name),
            if login.in_use { "*" } else { "" }.into(),
            url.into(),
        ]);
    }
    table
}

async fn login(invocation: &Invocation, logins: &Logins, args: Login) -> anyhow::Result<Exit> {
    let Some(url) = args.url else {
        return Err(
            Refusal::usage("name the coordinator: `kage login https://HOST:7443`, or see `kage login ls`").into(),
        );
    };
    let host = host(&url)?;
    let name = args.name.unwrap_or(host);
    logins.may_be_kept(&name, &url)?;
    let project = args.project.map(|project| project.parse::<ProjectId>()).transpose()?;
    let ca = match (&args.ca_file, &args.ca) {
        (Some(file), _) => Some(std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?),
        (None, Some(text)) => Some(BASE64.decode(text.trim()).map_err(|_| {
            Refusal::usage("--ca is not what `kage token create` prints; use --ca-file with a copy of tls/ca.pem")
        })?),
        (None, None) if url.starts_with("https:") => {
            return Err(Refusal::usage(
                "a coordinator speaks TLS with a CA of its own: --ca-file with a copy of tls/ca.pem of its data folder, \
                 or --ca as `kage token create` prints it",
            )
            .into());
        }
        (None, None) => None,
    };
    let token = token(args.token_file.as_deref())?;
    if token.is_empty() {
        return Err(Refusal::usage("there is no token; `kage token create` makes one").into());
    }
    greet(&url, &token, ca.as_deref()).await?;
    logins.keep(&name, &url, &token, ca.as_deref(), project)?;
    logins.choose(&name)?;
    told(invocation, name, Some(url))
}

/// The name of a login unless another is given: the host of the address, with its port if that is not the usual
/// one.
fn host(url: &str) -> Result<String, Refusal> {
    let parsed: tonic::transport::Uri = url
        .parse()
        .map_err(|_| Refusal::usage(format!("{url:?} is no address such as https://HOST:7443")))?;
    match (parsed.scheme_str(), parsed.host()) {
        (Some("http" | "https"), Some(host)) => {
            // An address of IPv6 has characters that no name has.
            let host = host.trim_matches(['[', ']']).replace(':', "_");
            Ok(match parsed.port_u16() {
                None | Some(USUAL_PORT) => host,
                Some(port) => format!("{host}-{port}"),
            })
        }
        _ => Err(Refusal::usage(format!(
            "{url:?} is no address such as https://HOST:7443"
        ))),
    }
}

/// Asks the coordinator who it is, with the token: a wrong one is not kept.
async fn greet(url: &str, token: &str, ca: Option<&[u8]>) -> anyhow::Result<()> {
    let mut credentials = Credentials::bearer(token);
    let mut file = tempfile::NamedTempFile::new()?;
    if let Some(ca) = ca {
        file.write_all(ca)?;
        credentials = credentials.trusting(PemFile::read(file.path())?);
    }
    let access = connect::connect(url, credentials).await?;
    let info = access
        .client
        .server()
        .get_server_info(v1::GetServerInfoRequest {})
        .await;
    let info = info.map_err(ApiError::from)?.into_inner();
    note(&format!("{url} is a coordinator of version {}", info.version));
    Ok(())
}

/// The token: of a file, typed without being shown, or from standard input.
fn token(file: Option<&Path>) -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    let text = match file {
        Some(path) if path != Path::new("-") => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        Some(_) | None if !stdin.is_terminal() => {
            let mut text = String::new();
            stdin.lock().read_to_string(&mut text)?;
            text
        }
        Some(_) | None => {
            note("paste the token (it is not shown), then Enter:");
            let before = tcgetattr(&stdin)?;
            let mut hidden = before.clone();
            hidden.local_modes.remove(LocalModes::ECHO);
            tcsetattr(&stdin, OptionalActions::Now, &hidden)?;
            let mut text = String::new();
            let read = stdin.lock().read_line(&mut text);
            tcsetattr(&stdin, OptionalActions::Now, &before)?;
            read?;
            text
        }
    };
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn logins_fit_every_width() {
        let login = |name: &str, url: Option<&str>, in_use| LoginJson {
            name: name.to_owned(),
            url: url.map(str::to_owned),
            in_use,
        };
        let logins = [
            login("local", None, false),
            login("hub.example", Some("https://hub.example:7443"), true),
        ];
        insta::assert_snapshot!(everywhere(&table(&logins)));
    }

    #[test]
    fn a_login_is_named_after_its_host_and_an_unusual_port() {
        for (url, name) in [
            ("https://hub.example:7443", "hub.example"),
            ("https://hub.example", "hub.example"),
            ("https://hub.example:8443", "hub.example-8443"),
            ("http://127.0.0.1:1234", "127.0.0.1-1234"),
            ("https://[fe80::1]:7443", "fe80__1"),
        ] {
            assert_eq!(host(url).unwrap(), name, "{url}");
        }
        for url in ["", "hub.example", "ftp://hub.example", "https://"] {
            assert!(host(url).is_err(), "{url}");
        }
    }
}
