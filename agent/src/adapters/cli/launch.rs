//! Turns a manifest and a session into a command: its arguments, its environment, and how it gets
//! prompt and base. Long texts are never passed as arguments.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use bytes::Bytes;
use uuid::Uuid;

use super::manifest::{BasePass, LONG, Manifest, Pass, fill};
use crate::adapters::port::{Beginning, SessionInput, next_message};
use crate::adapters::session_file::SessionFile;
use crate::logins::Login;
use crate::logins::rule::{TOKEN_PLACEHOLDER, TokenPass};
use crate::process::{
    AgentEnvironment, Command, Environment, EnvironmentParts, LoginVariable, ManifestVariables, Stdin,
};

/// The message for a program that resumes a session.
const GO_ON: &str = "The session was interrupted. The files are as they were after the last step that you \
know of; what you did after it is undone. Go on with the task.";

/// What a command needs besides the session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) program: &'a Path,
    pub(super) agent: &'a AgentEnvironment,
    /// The login that lets it in, if that is what does.
    pub(super) login: Option<&'a Login>,
    pub(super) root: bool,
}

/// Makes the session's folders and files, and the command to run.
///
/// Blocking: it writes files.
pub(super) fn command(manifest: &Manifest, input: &SessionInput, place: Place<'_>) -> io::Result<Command> {
    let scratch = &input.scratch;
    input.places.make()?;
    let cwd = match input.start() {
        Some(start) => start,
        None => {
            let work = scratch.join("work");
            std::fs::create_dir_all(&work)?;
            work
        }
    };

    let mut values = values(manifest, input, &cwd)?;
    match &input.beginning {
        Beginning::New => values.insert("new_session", session_id(input)?),
        Beginning::GoOn { .. } => values.insert("old_session", session_id(input)?),
    };
    if let Some(model) = input.model.as_ref().or(manifest.model.as_ref()) {
        values.insert("model", model.clone());
    }

    let shared = &input.prompt.shared;
    let mut prompt = manifest.prompt.opening.clone();
    match manifest.base.pass {
        _ if shared.is_empty() => {}
        BasePass::File => {
            values.insert("base_file", write(scratch, "base.md", shared)?);
        }
        BasePass::Arg if shared.len() <= LONG => {
            values.insert("base", shared.clone());
        }
        // The session has it.
        BasePass::Arg | BasePass::Prompt if input.beginning != Beginning::New => {}
        // Otherwise the shared opening would stand between the base and the start of the text.
        BasePass::Arg | BasePass::Prompt => prompt.insert_str(0, shared),
    }
    match &input.beginning {
        Beginning::New => prompt.push_str(&input.prompt.own),
        Beginning::GoOn {
            said,
            note,
            instruction,
        } => {
            if let Some(file) = session_file(manifest, input, place) {
                std::fs::create_dir_all(file.path.parent().unwrap_or(scratch))?;
                std::fs::write(&file.path, said)?;
            }
            // A session with an instruction was not interrupted.
            let begins = if instruction.is_empty() { GO_ON } else { "" };
            prompt.push_str(&next_message(&next_message(begins, note), instruction));
        }
    }

    let pass = place.login.and_then(|login| login.rule().pass.as_ref());
    if let (
        Some(TokenPass {
            file: Some(file),
            content,
            ..
        }),
        Some(lent),
    ) = (pass, &input.admission.lent)
    {
        let content = content.replace(TOKEN_PLACEHOLDER, lent.token.reveal());
        write_private(Path::new(&fill(file, &values)), &content)?;
    }

    let mut stdin = Stdin::Null;
    let pass = match manifest.prompt.pass {
        Pass::Arg if prompt.len() > LONG => manifest.prompt.long,
        usual => usual,
    };
    match pass {
        Pass::Arg => {
            values.insert("prompt", prompt);
        }
        Pass::Stdin => stdin = Stdin::Bytes(Bytes::from(prompt)),
        Pass::File => {
            values.insert("prompt_file", write(scratch, "prompt.md", &prompt)?);
        }
    }

    Ok(Command {
        program: place.program.into(),
        args: manifest.arguments(&values).into_iter().map(OsString::from).collect(),
        env: environment(manifest, input, place, &values),
        cwd,
        stdin,
    })
}

/// The values of the placeholders.
fn values(manifest: &Manifest, input: &SessionInput, cwd: &Path) -> io::Result<BTreeMap<&'static str, String>> {
    let worktree = utf8(cwd)?;
    let slug = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    Ok(BTreeMap::from([
        ("session_id", session_id(input)?),
        ("session_name", input.name.to_string()),
        ("worktree_slug", worktree.chars().map(slug).collect()),
        ("worktree", worktree),
        ("scratch", utf8(&input.scratch)?),
        ("manifest_dir", utf8(manifest.source.parent().unwrap_or(Path::new("")))?),
    ]))
}

/// The attempt's id as a UUID with hyphens.
fn session_id(input: &SessionInput) -> io::Result<String> {
    let id = Uuid::parse_str(&input.attempt.to_string()).map_err(io::Error::other)?;
    Ok(id.to_string())
}

/// The program's session file; `None` when the manifest names none, or its path is not UTF-8.
pub(super) fn session_file(manifest: &Manifest, input: &SessionInput, place: Place<'_>) -> Option<SessionFile> {
    let rule = manifest.session.as_ref()?;
    let values = values(manifest, input, &input.start()?).ok()?;
    let env = environment(manifest, input, place, &values);
    let folder = &env.get(&rule.folder)?.value;
    let names = [
        ("worktree", "{kage:worktree}"),
        ("worktree_slug", "{kage:slug}"),
        ("scratch", "{kage:scratch}"),
        ("session_id", "{kage:session}"),
    ];
    let names = names.map(|(value, anywhere)| (in_json(&values[value]), anywhere.to_owned()));
    let tmp = in_json(input.places.tmp.to_str()?);
    let mut names = Vec::from(names);
    names.push((tmp, "{kage:tmp}".to_owned()));
    if input.folder.is_some() {
        let top = utf8(input.worktree.as_ref()?).ok()?;
        names.push((in_json(&top), "{kage:top}".to_owned()));
    }
    Some(SessionFile {
        path: Path::new(folder).join(fill(&rule.file, &values)),
        names,
    })
}

/// A text in the form that it has within a JSON string.
fn in_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn environment(
    manifest: &Manifest,
    input: &SessionInput,
    place: Place<'_>,
    values: &BTreeMap<&str, String>,
) -> Environment {
    let rule = &manifest.env;
    let filled = |texts: &BTreeMap<String, String>| {
        let filled = texts.iter().map(|(name, text)| (name.clone(), fill(text, values)));
        filled.collect()
    };
    // A session that is let in by a token does not need the folder in which the login is.
    let folder = place.login.and_then(|login| login.rule().folder.as_ref());
    let named = rule.inherit.iter().chain(&rule.secret).chain(&rule.require);
    let named = named.filter(|name| Some(*name) != folder);
    Environment::of(&EnvironmentParts {
        agent: place.agent,
        places: &input.places,
        manifest: Some(&ManifestVariables {
            set: filled(&rule.set),
            as_root: filled(&rule.as_root),
            named: named.cloned().collect(),
            login: place.login.and_then(|login| login_variable(login, input)),
        }),
        root: place.root,
        task: Some(&input.variables),
        path: None,
        work: Some(&input.work_names()),
    })
}

/// The variable by which the login lets the program in: an access token or, where the program has to own
/// its login, the login's folder.
fn login_variable(login: &Login, input: &SessionInput) -> Option<LoginVariable> {
    let rule = login.rule();
    if login.is_exclusive() {
        return Some(LoginVariable {
            name: rule.folder.clone()?,
            value: login.path().parent()?.into(),
        });
    }
    let lent = input.admission.lent.as_ref()?;
    Some(LoginVariable {
        name: rule.pass.as_ref()?.env.clone()?,
        value: lent.token.reveal().into(),
    })
}

/// Writes a file that only the agent's user can read.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
}

fn write(scratch: &Path, name: &str, text: &str) -> io::Result<String> {
    let path = scratch.join(name);
    std::fs::write(&path, text)?;
    utf8(&path)
}

fn utf8(path: &Path) -> io::Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other(format!("the path {} is not UTF-8", path.display())))
}
