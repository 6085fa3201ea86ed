//! Turns a manifest and a session into a command: its arguments, its environment, and how it gets
//! prompt and base. Long texts are never passed as arguments.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;

use bytes::Bytes;
use kage_core::id::Digest;
use uuid::Uuid;

use super::manifest::files::{self, write_private};
use super::manifest::{BasePass, GatewayRule, LONG, Manifest, Pass, SessionRule, VARIABLE, fill};
use crate::adapters::mcp::McpServers;
use crate::adapters::metered::GatewayPass;
use crate::adapters::port::{Beginning, SessionInput, next_message};
use crate::adapters::session_file::beneath::Beneath;
use crate::adapters::session_file::{FilePlace, SessionFile, is_id};
use crate::logins::Login;
use crate::logins::rule::{TOKEN_PLACEHOLDER, TokenPass};
use crate::process::{
    AgentEnvironment, Command, Environment, EnvironmentParts, LoginVariable, ManifestVariables, Stdin,
};

/// The message for a program that resumes a session.
const GO_ON: &str = "The session was interrupted. The files are as they were after the last step that you \
know of; what you did after it is undone. Go on with the task.";

/// Where a gateway is.
const LOOPBACK: &str = "127.0.0.1";

/// What a command needs besides the session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) program: &'a Path,
    pub(super) agent: &'a AgentEnvironment,
    /// The login that lets it in, if that is what does.
    pub(super) login: Option<&'a Login>,
    /// The agent's variable that lets it in, if that is what does.
    pub(super) key: Option<&'a str>,
    pub(super) root: bool,
}

/// The agent's environment for a program whose calls go through a gateway: its address and its key in the place
/// of the provider's, and no other key.
pub(super) fn behind_gateway(
    agent: &AgentEnvironment,
    manifest: &Manifest,
    rule: &GatewayRule,
    pass: &GatewayPass,
) -> AgentEnvironment {
    let mut agent = agent.clone();
    for name in &manifest.env.secret {
        agent = agent.without(name);
    }
    agent = agent.with(&rule.base_url, &pass.address).with(&rule.key, &pass.key);
    // A proxy of the machine would look for the gateway on its own loopback address.
    for name in ["NO_PROXY", "no_proxy"] {
        let all = match agent.text(name) {
            Some(others) => format!("{others},{LOOPBACK}"),
            None => LOOPBACK.to_owned(),
        };
        agent = agent.with(name, &all);
    }
    agent
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

    let mut values = values(manifest, input, &cwd, place)?;
    match &input.beginning {
        Beginning::New => values.insert("new_session", session_id(input)?),
        Beginning::GoOn { said, .. } => {
            let id = old_session(manifest, input, said)?;
            input.conversation.told(&id);
            values.insert("conversation", id.clone());
            values.insert("old_session", id)
        }
    };
    if let Some(model) = input.model.as_ref().or(manifest.model.as_ref()) {
        let name = model.split_once('/').map_or(model.as_str(), |(_, name)| name);
        values.insert("model_name", name.to_owned());
        values.insert("model", model.clone());
    }

    let shared = &input.prompt.shared;
    let shared_json = serde_json::Value::from(shared.as_str()).to_string();
    let mut prompt = manifest.prompt.opening.clone();
    match manifest.base.pass {
        _ if shared.is_empty() => {}
        BasePass::File => {
            values.insert("base_file", write(scratch, "base.md", shared)?);
        }
        // As JSON it may be several times as long.
        BasePass::Arg if shared_json.len() <= LONG => {
            values.insert("base", shared.clone());
            values.insert("base_json", shared_json);
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
            if let Some(rule) = &manifest.session {
                write_session(
                    rule,
                    &environment(manifest, input, place, &values),
                    &values,
                    input,
                    said,
                )?;
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
        write_private(&fill(file, &values), &content, &values)?;
    }

    if let Some(mcp) = &input.mcp {
        values.insert("mcp_file", write(scratch, "mcp.json", &mcp.file())?);
    }
    let servers = input.mcp.as_ref().map_or_else(|| "{}".to_owned(), McpServers::object);
    values.insert("mcp_servers", servers);

    files::write(&manifest.folders, &manifest.files, &values)?;

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
fn values<'m>(
    manifest: &'m Manifest,
    input: &SessionInput,
    cwd: &Path,
    place: Place<'_>,
) -> io::Result<BTreeMap<&'m str, String>> {
    let worktree = utf8(cwd)?;
    let slug = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let mut values = BTreeMap::from([
        ("session_id", session_id(input)?),
        ("session_name", input.name.to_string()),
        ("worktree_slug", worktree.chars().map(slug).collect()),
        ("worktree_key", worktree_key(&worktree)),
        ("worktree", worktree),
        ("scratch", utf8(&input.scratch)?),
        ("home", utf8(&input.places.home)?),
        ("manifest_dir", utf8(manifest.source.parent().unwrap_or(Path::new("")))?),
    ]);
    if let Some(key) = place.key {
        values.insert("key", key.to_owned());
    }
    for name in manifest.variables() {
        if let Some(value) = name.strip_prefix(VARIABLE).and_then(|name| place.agent.text(name)) {
            values.insert(name, value.to_owned());
        }
    }
    Ok(values)
}

/// Digits of a digest in [`worktree_key`].
const KEY_DIGITS: usize = 12;
/// Characters of a name in [`worktree_key`].
const KEY_NAME: usize = 40;

/// A folder as Kimi Code names what it keeps of it: its name in plain letters, and the begin of its path's digest.
fn worktree_key(worktree: &str) -> String {
    let name = worktree.rsplit('/').next().unwrap_or_default().to_lowercase();
    let mut plain = String::new();
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' | '.' | '_' | '-' => plain.push(c),
            _ if plain.ends_with('-') => {}
            _ => plain.push('-'),
        }
    }
    let short: String = plain.trim_matches('-').chars().take(KEY_NAME).collect();
    let name = match short.trim_matches('-') {
        "" | "." | ".." => "workspace",
        name => name,
    };
    let digest = Digest::of(worktree.as_bytes()).to_string();
    format!("{name}_{}", &digest[..KEY_DIGITS])
}

/// The id of the conversation that goes on: the one in its file, where the program chose it.
fn old_session(manifest: &Manifest, input: &SessionInput, said: &[u8]) -> io::Result<String> {
    let Some(pointer) = manifest.session.as_ref().and_then(|rule| rule.id.as_ref()) else {
        return session_id(input);
    };
    told_id(&pointer.to_string(), said)
}

/// The id in the first line of a session file. The file comes from a program: the id becomes a part of paths.
fn told_id(pointer: &str, said: &[u8]) -> io::Result<String> {
    let first = said.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let first: serde_json::Value = serde_json::from_slice(first).map_err(io::Error::other)?;
    let id = first.pointer(pointer).and_then(serde_json::Value::as_str);
    id.filter(|id| is_id(id))
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other(format!("the session file has no id at {pointer}")))
}

/// Puts the conversation so far where the program looks for it.
fn write_session(
    rule: &SessionRule,
    env: &Environment,
    values: &BTreeMap<&str, String>,
    input: &SessionInput,
    said: &[u8],
) -> io::Result<()> {
    let Some(folder) = env.get(&rule.folder) else {
        return Ok(());
    };
    let folder = Path::new(&folder.value);
    if !folder.starts_with(&input.scratch) {
        std::fs::create_dir_all(folder)?;
    }
    session_folder(folder, input).join(fill(&rule.file, values)).write(said)
}

/// The folder of a program's sessions. Outside of the session's folders it is a person's, whose links count.
fn session_folder(folder: &Path, input: &SessionInput) -> Beneath {
    Beneath::one_of([input.scratch.as_path()], folder).unwrap_or_else(|| Beneath::new(folder, ""))
}

/// The attempt's id as a UUID with hyphens, of the version for random ones: programs check that.
fn session_id(input: &SessionInput) -> io::Result<String> {
    let id = Uuid::parse_str(&input.attempt.to_string()).map_err(io::Error::other)?;
    Ok(uuid::Builder::from_random_bytes(id.into_bytes())
        .into_uuid()
        .to_string())
}

/// The file in which the program counts tokens, if it does so in one.
pub(super) fn usage_file(manifest: &Manifest, input: &SessionInput, cwd: &Path, place: Place<'_>) -> Option<FilePlace> {
    let rule = manifest.usage.as_ref()?;
    let values = values(manifest, input, cwd, place).ok()?;
    let Some((top, pattern)) = rule.file.split_once('/').filter(|_| rule.file.contains('*')) else {
        return Some(FilePlace::At(files::place(
            Path::new(&fill(&rule.file, &values)),
            &values,
        )));
    };
    Some(FilePlace::Named {
        folder: files::place(Path::new(&fill(top, &values)), &values),
        pattern: fill(pattern, &values),
        conversation: input.conversation.clone(),
    })
}

/// The program's session file; `None` when the manifest names none, or its path is not UTF-8.
pub(super) fn session_file(manifest: &Manifest, input: &SessionInput, place: Place<'_>) -> Option<SessionFile> {
    let rule = manifest.session.as_ref()?;
    let values = values(manifest, input, &input.start()?, place).ok()?;
    let env = environment(manifest, input, place, &values);
    let folder = &env.get(&rule.folder)?.value;
    let names = [
        ("worktree", "{kage:worktree}"),
        ("worktree_slug", "{kage:slug}"),
        ("worktree_key", "{kage:key}"),
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
    let folder = session_folder(Path::new(folder), input);
    Some(SessionFile {
        place: match &rule.find {
            Some(pattern) => FilePlace::Named {
                folder,
                pattern: pattern.clone(),
                conversation: input.conversation.clone(),
            },
            None => FilePlace::At(folder.join(fill(&rule.file, &values))),
        },
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

fn write(scratch: &Path, name: &str, text: &str) -> io::Result<String> {
    let place = Beneath::new(scratch, name);
    place.write(text.as_bytes())?;
    utf8(&place.path())
}

fn utf8(path: &Path) -> io::Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other(format!("the path {} is not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_worktree_is_the_one_of_kimi() {
        // Recorded with 2.1.0.
        assert_eq!(worktree_key("/tmp/x/kimi/repo"), "repo_3217c14d9e81");
        for (path, name) in [
            ("/a/My Repo!", "my-repo"),
            ("/a/...", "..."),
            ("/a/..", "workspace"),
            ("/a/é", "workspace"),
        ] {
            assert_eq!(worktree_key(path).rsplit_once('_').unwrap().0, name, "{path}");
        }
    }

    #[test]
    fn the_id_in_a_session_file_is_a_part_of_a_name() {
        let told = |id: &str| {
            told_id(
                "/payload/id",
                format!("{{\"payload\":{{\"id\":\"{id}\"}}}}\nrest").as_bytes(),
            )
        };
        assert_eq!(told("0199-ab_C").unwrap(), "0199-ab_C");
        for wrong in ["../../x", "a/b", "", "--option", ".", &"a".repeat(200)] {
            assert!(told(wrong).is_err(), "{wrong}");
        }
        assert!(told_id("/id", b"{}\n").is_err());
    }
}
