//! Turns a manifest and a session into a command: where the prompt and the base go, what
//! the arguments and the environment are. Long texts are never arguments.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use uuid::Uuid;

use crate::adapter::SessionInput;
use crate::adapters::manifest::{BasePass, LONG, Manifest, Pass, fill};
use crate::adapters::name_session;
use crate::process::{Command, Environment, Stdin};

/// Where a command is made from, beside the session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) program: &'a Path,
    pub(super) snapshot: &'a BTreeMap<OsString, OsString>,
    pub(super) root: bool,
}

/// Makes the session's folders and files, and the command to run.
///
/// Blocking: it writes files.
pub(super) fn command(manifest: &Manifest, input: &SessionInput, place: Place<'_>) -> io::Result<Command> {
    let scratch = &input.scratch;
    for folder in ["home", "tmp"] {
        std::fs::create_dir_all(scratch.join(folder))?;
    }
    let cwd = match &input.worktree {
        Some(worktree) => worktree.clone(),
        None => {
            let work = scratch.join("work");
            std::fs::create_dir_all(&work)?;
            work
        }
    };

    let mut values = BTreeMap::from([
        (
            "session_id",
            Uuid::parse_str(&input.attempt.to_string())
                .map_err(io::Error::other)?
                .to_string(),
        ),
        ("session_name", input.name.to_string()),
        ("worktree", utf8(&cwd)?),
        ("scratch", utf8(scratch)?),
        ("manifest_dir", utf8(manifest.source.parent().unwrap_or(Path::new("")))?),
    ]);
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
        // A shared opening would otherwise stand between the base and its own beginning.
        BasePass::Arg | BasePass::Prompt => prompt.insert_str(0, shared),
    }
    prompt.push_str(&input.prompt.own);

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

fn environment(
    manifest: &Manifest,
    input: &SessionInput,
    place: Place<'_>,
    values: &BTreeMap<&str, String>,
) -> BTreeMap<OsString, OsString> {
    let mut env = Environment::for_session(place.snapshot, &input.scratch);
    let rule = &manifest.env;
    for (name, value) in &rule.set {
        env.set(name, fill(value, values));
    }
    if place.root {
        for (name, value) in &rule.as_root {
            env.set(name, fill(value, values));
        }
    }
    let inherited = rule.inherit.iter().chain(&rule.secret).chain(&rule.require);
    env.inherit(place.snapshot, inherited.map(String::as_str));
    name_session(&mut env, input);
    env.into_map()
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

/// Finds a program as a shell would, in the PATH of this environment.
pub(super) fn find_program(name: &str, snapshot: &BTreeMap<OsString, OsString>) -> Option<PathBuf> {
    let executable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        path.metadata()
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| executable(path));
    }
    let path = snapshot.get(&OsString::from("PATH"))?;
    std::env::split_paths(path)
        .map(|folder| folder.join(name))
        .find(|path| executable(path))
}
