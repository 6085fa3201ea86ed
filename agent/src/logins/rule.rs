//! `[login]` of a manifest: where a program keeps its login, how it is refreshed and how a session's
//! program gets an access token. Data only.

use std::path::PathBuf;
use std::str::FromStr as _;

use kage_core::json::JsonPointer;
use serde::{Deserialize, Deserializer, de};

use crate::process::AgentEnvironment;

/// The placeholder for the token in the content of a file.
pub const TOKEN_PLACEHOLDER: &str = "{access_token}";

/// How a program keeps its login.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRule {
    /// The file, which is JSON. `~/` is the home folder of the agent's user.
    pub file: String,
    /// A variable of the agent's environment that names another folder for the file.
    #[serde(default)]
    pub folder: Option<String>,
    /// What a person does to log in, as an order: "start `claude` and use /login".
    pub log_in: String,
    /// Where in the file the access token is.
    #[serde(deserialize_with = "pointer")]
    pub access: JsonPointer,
    /// Where the refresh token is.
    #[serde(default, deserialize_with = "some_pointer")]
    pub refresh: Option<JsonPointer>,
    /// Where the end of the access token is. Without it, a token that is a JWT says it itself.
    #[serde(default, deserialize_with = "some_pointer")]
    pub expires: Option<JsonPointer>,
    /// The unit of that time, which counts from the Unix epoch.
    #[serde(default)]
    pub expires_unit: TimeUnit,
    /// Where the plan or the account is, for people.
    #[serde(default, deserialize_with = "some_pointer")]
    pub account: Option<JsonPointer>,
    /// Where the scopes are, a list or a text, which a refresh asks for again.
    #[serde(default, deserialize_with = "some_pointer")]
    pub scopes: Option<JsonPointer>,
    /// Whether sessions can share it.
    #[serde(default)]
    pub sessions: Sharing,
    /// How a session's program gets the access token.
    #[serde(default)]
    pub pass: Option<TokenPass>,
    /// The server that refreshes it.
    #[serde(default)]
    pub server: Option<TokenServer>,
    /// Folders that the program makes to lock its login.
    #[serde(default)]
    pub locks: LoginLocks,
}

/// The unit of a time in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeUnit {
    #[default]
    Milliseconds,
    Seconds,
}

/// Whether sessions can share a login.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// Each gets an access token.
    #[default]
    Many,
    /// The program accepts no access token but wants its file: one session at a time has the file's
    /// folder, by the variable `folder`, and the program refreshes it itself.
    One,
}

/// How a session's program gets the access token. One of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPass {
    /// In this variable of its environment.
    #[serde(default)]
    pub env: Option<String>,
    /// In this file, which may have the placeholders of arguments. Its folder is made.
    #[serde(default)]
    pub file: Option<String>,
    /// What the file has in it, with `{access_token}` where the token belongs.
    #[serde(default = "token_alone")]
    pub content: String,
}

/// An OAuth 2.0 token endpoint (RFC 6749, section 6).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenServer {
    pub url: String,
    /// The program's public client id.
    pub client: String,
    /// The secret that the program has in it for everybody to read, if its provider wants one.
    #[serde(default)]
    pub client_secret: Option<String>,
    #[serde(default)]
    pub request: RequestForm,
}

/// The form of a request's body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestForm {
    /// As the standard has it.
    #[default]
    Form,
    Json,
}

/// Folders that whoever refreshes or writes the login makes first and removes afterwards, as the
/// `proper-lockfile` package does. `{folder}` is the folder of the login file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoginLocks {
    /// Held during a refresh.
    pub refresh: Vec<String>,
    /// Held during a write only.
    pub write: Vec<String>,
}

fn token_alone() -> String {
    TOKEN_PLACEHOLDER.to_owned()
}

fn pointer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JsonPointer, D::Error> {
    let text = String::deserialize(deserializer)?;
    let pointer = JsonPointer::from_str(&text).map_err(de::Error::custom)?;
    match pointer.tokens() {
        [] => Err(de::Error::custom("the whole file is no value of a login")),
        [..] => Ok(pointer),
    }
}

fn some_pointer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<JsonPointer>, D::Error> {
    pointer(deserializer).map(Some)
}

impl LoginRule {
    /// What is wrong with it, if anything is.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn check(&self) -> Result<(), String> {
        match (self.sessions, &self.pass) {
            (Sharing::One, _) if self.folder.is_none() => {
                Err("[login] sessions = \"one\" needs `folder`, the variable that names the file's folder".to_owned())
            }
            (Sharing::One, Some(_)) => Err("[login.pass] makes no sense with sessions = \"one\"".to_owned()),
            (Sharing::One, None) if self.server.is_some() => {
                Err("[login.server] makes no sense with sessions = \"one\": the program refreshes its login".to_owned())
            }
            (Sharing::One, None) => Ok(()),
            (Sharing::Many, None) => Err("[login] needs [login.pass], or sessions = \"one\"".to_owned()),
            (Sharing::Many, Some(pass)) => match (&pass.env, &pass.file) {
                (Some(_), None) => Ok(()),
                (None, Some(_)) if pass.content.contains(TOKEN_PLACEHOLDER) => Ok(()),
                (None, Some(_)) => Err(format!("[login.pass] content has no {TOKEN_PLACEHOLDER}")),
                (Some(_), Some(_)) | (None, None) => Err("[login.pass] needs `env` or `file`".to_owned()),
            },
        }
    }

    /// The file of this agent's user. `None` without a home folder.
    #[must_use]
    pub fn path(&self, agent: &AgentEnvironment) -> Option<PathBuf> {
        let usual = PathBuf::from(&self.file);
        if let Some(folder) = self.folder.as_ref().and_then(|name| agent.text(name)) {
            return Some(PathBuf::from(folder).join(usual.file_name()?));
        }
        match self.file.strip_prefix("~/") {
            Some(below) => Some(PathBuf::from(agent.get("HOME")?).join(below)),
            None => Some(usual),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "file = '~/.x/auth.json'\nfolder = 'X_HOME'\nlog_in = 'run `x login`'\naccess = '/a'\n";

    fn rule(more: &str) -> Result<LoginRule, String> {
        let rule: LoginRule = toml::from_str(&format!("{RULE}{more}")).map_err(|error| error.to_string())?;
        rule.check().map(|()| rule)
    }

    #[test]
    fn the_file_is_in_the_home_or_where_the_programs_variable_says() {
        let rule = rule("pass.env = 'X_TOKEN'").unwrap();
        let path = |variables: &[(&str, &str)]| rule.path(&variables.iter().copied().collect());
        assert_eq!(path(&[("HOME", "/home/me")]), Some("/home/me/.x/auth.json".into()));
        assert_eq!(
            path(&[("HOME", "/home/me"), ("X_HOME", "/else")]),
            Some("/else/auth.json".into())
        );
        assert_eq!(path(&[]), None);
    }

    #[test]
    fn a_rule_that_gives_no_token_is_refused() {
        assert!(rule("sessions = 'one'").is_ok());
        assert!(rule("pass.file = '{scratch}/x'").is_ok());
        for (more, why) in [
            ("", "needs [login.pass]"),
            ("pass.file = 'x'\npass.content = 'y'", "has no {access_token}"),
            ("pass.env = 'A'\npass.file = 'x'", "needs `env` or `file`"),
            ("sessions = 'one'\npass.env = 'A'", "makes no sense"),
            (
                "sessions = 'one'\nserver = { url = 'http://x', client = 'c' }",
                "makes no sense",
            ),
            ("pass.env = 'A'\nrefresh = 'r'", "not a JSON pointer"),
            ("pass.env = 'A'\nrefresh = ''", "no value"),
            ("pass.env = 'A'\nunknown = 1", "unknown field"),
        ] {
            let problem = rule(more).unwrap_err();
            assert!(problem.contains(why), "{more}: {problem}");
        }
    }
}
