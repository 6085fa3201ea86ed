//! The file of a login: what is in it, and writing a new pair of tokens so that a reader and a crash
//! see the old file or the new one. Another program owns its form, so nothing else in it changes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kage_core::json::JsonPointer;
use kage_core::login::{AccessMark, LoginMarks};
use kage_core::time::Timestamp;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::rule::{LoginRule, Sharing, TimeUnit};
use super::text::{TextError, replaced, value};
use super::token::Token;

/// The largest file that is read; logins are a few thousand bytes.
const LARGEST: u64 = 1 << 20;

/// Why a login's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginFileError {
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("it has more than {LARGEST} bytes")]
    TooLarge,
    #[error("it is not a login's file")]
    Text(#[source] TextError),
    #[error("cannot write it")]
    Write(#[source] io::Error),
}

/// What a login's file holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    text: String,
    pub(super) access: Option<Token>,
    pub(super) refresh: Option<Token>,
    /// True when somebody can exchange the refresh token: the agent, or the program itself.
    renewable: bool,
    pub(super) until: Option<Timestamp>,
    pub(super) account: Option<String>,
    /// As a request names them.
    pub(super) scopes: Option<String>,
}

/// A pair of tokens that a server gave.
#[derive(Debug, Clone)]
pub(super) struct NewTokens {
    pub(super) access: Token,
    /// `None`: the one that was sent stays good.
    pub(super) refresh: Option<Token>,
    /// How long the access token lives.
    pub(super) life: Duration,
    pub(super) until: Timestamp,
}

impl Held {
    pub(super) fn marks(&self) -> LoginMarks {
        LoginMarks {
            access: self.access.as_ref().map(|token| AccessMark {
                mark: token.mark(),
                until: self.until,
            }),
            refresh: self.refresh.as_ref().filter(|_| self.renewable).map(Token::mark),
        }
    }

    /// Has these tokens, which the file should have.
    pub(super) fn take(&mut self, tokens: &NewTokens) {
        self.access = Some(tokens.access.clone());
        if tokens.refresh.is_some() {
            self.refresh.clone_from(&tokens.refresh);
        }
        self.until = Some(tokens.until);
    }

    pub(super) fn tokens(&self) -> Vec<Token> {
        self.access.iter().chain(&self.refresh).cloned().collect()
    }

    /// The file's text with other tokens.
    fn with(&self, rule: &LoginRule, tokens: &NewTokens) -> Result<String, TextError> {
        let mut text = replaced(&self.text, &rule.access, &Value::from(tokens.access.reveal()))?;
        if let (Some(place), Some(refresh)) = (&rule.refresh, &tokens.refresh) {
            text = replaced(&text, place, &Value::from(refresh.reveal()))?;
        }
        if let Some(place) = &rule.expires {
            let number = match rule.expires_unit {
                TimeUnit::Milliseconds => tokens.until.as_millis(),
                TimeUnit::Seconds => tokens.until.as_millis() / 1000,
            };
            text = replaced(&text, place, &Value::from(number))?;
        }
        Ok(text)
    }
}

/// Reads a login's file; a missing one is an empty login.
pub(super) fn read(path: &Path, rule: &LoginRule) -> Result<Held, LoginFileError> {
    let size = match fs::metadata(path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held::default()),
        Err(error) => return Err(LoginFileError::Read(error)),
    };
    if size > LARGEST {
        return Err(LoginFileError::TooLarge);
    }
    let text = fs::read_to_string(path).map_err(LoginFileError::Read)?;
    let at = |place: Option<&JsonPointer>| match place {
        Some(place) => value(&text, place),
        None => Ok(None),
    };
    let token = |found: Option<Value>| found.as_ref().and_then(Value::as_str).and_then(Token::new);
    let read = || {
        let access = token(at(Some(&rule.access))?);
        let until = match (at(rule.expires.as_ref())?.as_ref().and_then(number), &access) {
            (Some(time), _) => Some(Timestamp::from_millis(match rule.expires_unit {
                TimeUnit::Milliseconds => time,
                TimeUnit::Seconds => time.saturating_mul(1000),
            })),
            (None, Some(access)) => jwt_end(access),
            (None, None) => None,
        };
        Ok(Held {
            refresh: token(at(rule.refresh.as_ref())?),
            renewable: rule.server.is_some() || rule.sessions == Sharing::One,
            account: at(rule.account.as_ref())?.as_ref().and_then(Value::as_str).map(shown),
            scopes: at(rule.scopes.as_ref())?.as_ref().and_then(scopes),
            access,
            until,
            text: String::new(),
        })
    };
    let held = read().map_err(LoginFileError::Text)?;
    Ok(Held { text, ..held })
}

/// A name of a plan for people: short, and in letters.
fn shown(account: &str) -> String {
    account.chars().filter(|c| !c.is_control()).take(60).collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a time is positive"
)]
fn number(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_f64().filter(|time| *time >= 0.0).map(|time| time as u64))
}

fn scopes(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => String::new(),
    };
    (!text.is_empty()).then_some(text)
}

/// The end that a token has in it, when it is a JSON Web Token (RFC 7519).
fn jwt_end(token: &Token) -> Option<Timestamp> {
    let mut parts = token.reveal().split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    Some(Timestamp::from_millis(number(claims.get("exp")?)?.saturating_mul(1000)))
}

/// A place on the disk for the next content of a file, made before there is something to lose.
#[derive(Debug)]
pub(super) struct Reserved {
    file: NamedTempFile,
    /// The file itself, when the login's file is a link.
    target: PathBuf,
}

/// Makes room for the next content of a login's file, beside it.
pub(super) fn reserve(path: &Path, held: &Held) -> Result<Reserved, LoginFileError> {
    let make = || {
        let target = fs::canonicalize(path)?;
        let folder = target.parent().unwrap_or(&target).to_owned();
        // A temporary file is made with mode 0600.
        let mut file = NamedTempFile::with_prefix_in(".kage-login-", folder)?;
        // Tokens differ in length by a little.
        file.write_all(&vec![b' '; held.text.len() + 1024])?;
        file.as_file().sync_all()?;
        Ok(Reserved { file, target })
    };
    make().map_err(LoginFileError::Write)
}

impl Reserved {
    /// Puts tokens into the file. `now_held` is what it holds now: what the program changed in it
    /// meanwhile stays.
    pub(super) fn write(mut self, now_held: &Held, rule: &LoginRule, tokens: &NewTokens) -> Result<(), LoginFileError> {
        let text = now_held.with(rule, tokens).map_err(LoginFileError::Text)?;
        let mut write = || {
            use std::io::Seek as _;
            self.file.rewind()?;
            self.file.write_all(text.as_bytes())?;
            self.file.as_file().set_len(text.len() as u64)?;
            self.file.as_file().sync_all()
        };
        write().map_err(LoginFileError::Write)?;
        let folder = self.target.parent().unwrap_or(&self.target).to_owned();
        let placed = self.file.persist(&self.target).map_err(|error| error.error);
        placed
            .and_then(|_| File::open(folder)?.sync_all())
            .map_err(LoginFileError::Write)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn rule() -> LoginRule {
        toml::from_str(
            "file = '~/x'\nlog_in = 'l'\naccess = '/o/access'\nrefresh = '/o/refresh'\nexpires = '/o/end'\n\
             account = '/o/plan'\nscopes = '/o/scopes'\npass.env = 'T'",
        )
        .unwrap()
    }

    fn tokens(name: &str) -> NewTokens {
        NewTokens {
            access: Token::new(&format!("access-{name}")).unwrap(),
            refresh: Token::new(&format!("refresh-{name}")),
            life: Duration::from_secs(60),
            until: Timestamp::from_millis(9000),
        }
    }

    const TEXT: &str = "{\"o\": {\"access\": \"a-1\", \"refresh\":\"r-1\", \"end\": 7000, \"plan\": \"max\",\
                        \"scopes\": [\"x\", \"y\"], \"more\": 1.0}, \"other\":  true}\n";

    #[test]
    fn new_tokens_replace_the_file_behind_a_link_and_nothing_else_in_it() {
        let place = tempfile::tempdir().unwrap();
        let (real, link) = (place.path().join("real.json"), place.path().join("link.json"));
        fs::write(&real, TEXT).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o644)).unwrap();
        symlink("real.json", &link).unwrap();

        let held = read(&link, &rule()).unwrap();
        let (access, until) = (held.access.clone().unwrap(), held.until.unwrap().as_millis());
        assert_eq!((access.reveal(), until), ("a-1", 7000));
        assert_eq!(
            (held.account.as_deref(), held.scopes.as_deref()),
            (Some("max"), Some("x y"))
        );
        assert_eq!(held.tokens().len(), 2);
        let reserved = reserve(&link, &held).unwrap();

        // What the program writes meanwhile is not lost.
        let meanwhile = TEXT.replace("true", "false");
        fs::write(&real, &meanwhile).unwrap();
        let now = read(&link, &rule()).unwrap();
        reserved.write(&now, &rule(), &tokens("2")).unwrap();
        let expected = meanwhile
            .replace("a-1", "access-2")
            .replace("r-1", "refresh-2")
            .replace("7000", "9000");
        assert_eq!(fs::read_to_string(&real).unwrap(), expected);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_file_that_is_not_there_is_nobodys_login_and_one_that_is_no_login_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("x");
        assert_eq!(read(&file, &rule()).unwrap().marks(), LoginMarks::default());
        for (text, fine) in [
            ("{}", true),
            ("{\"o\": 1}", true),
            ("{\"o\": {\"access\": null}}", true),
            ("x", false),
        ] {
            fs::write(&file, text).unwrap();
            let marks = read(&file, &rule()).map(|held| held.marks());
            assert_eq!(marks.is_ok_and(|marks| marks == LoginMarks::default()), fine, "{text}");
        }
    }

    #[test]
    fn a_token_that_is_a_jwt_says_its_end_itself() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("x");
        let claims = URL_SAFE_NO_PAD.encode("{\"exp\": 5}");
        fs::write(&file, format!("{{\"o\": {{\"access\": \"h.{claims}.s\"}}}}")).unwrap();
        let held = read(&file, &rule()).unwrap();
        assert_eq!(held.until, Some(Timestamp::from_millis(5000)));
    }
}
