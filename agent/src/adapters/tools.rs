//! The tools that an API adapter offers a model: files in the worktree, and a shell.
//!
//! It owns the descriptions of the tools and how calls are dispatched. Paths are resolved in
//! [`root`], never compared as text. The file tools are confined to the worktree, because they run
//! inside the agent; the shell is not confined by this crate.

mod files;
mod ignored;
pub(in crate::adapters) mod image;
mod list;
mod patch;
mod root;
mod search;
mod shell;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kage_core::folder::Folder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::adapters::port::Reporter;
use crate::process::{Control, Environment, Runner, Turns};
use image::Image;

pub(in crate::adapters) use files::text_file;
pub(in crate::adapters) use root::{Relative, Root};

#[derive(Debug, Clone)]
pub(crate) struct Toolbox {
    root: Arc<Root>,
    worktree: PathBuf,
    folder: PathBuf,
    cwd: shell::WorkingFolder,
    env: Environment,
    runner: Runner,
    turns: Turns,
}

/// The result of a call, for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolResult {
    /// Bounded text for the model.
    pub(crate) text: String,
    /// True when the call failed.
    pub(crate) is_error: bool,
    /// What it shows beside the text, for models that look at images.
    pub(crate) image: Option<Image>,
}

impl ToolResult {
    /// A call that was not made, in words for the model.
    pub(crate) fn refused(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            is_error: true,
            image: None,
        }
    }
}

/// What a call gave.
#[derive(Debug)]
struct Done {
    text: String,
    image: Option<Image>,
}

impl From<String> for Done {
    fn from(text: String) -> Self {
        Self { text, image: None }
    }
}

/// The reason for a failed call, for the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(in crate::adapters) struct Refused(String);

impl Refused {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadFile {
    path: String,
    #[serde(default)]
    offset: Option<usize>,
    #[serde(default)]
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteFile {
    path: String,
    content: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EditFile {
    path: String,
    old: String,
    new: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchFile {
    path: String,
    patch: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    depth: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Search {
    pattern: String,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    glob: Option<String>,
    #[serde(default)]
    regex: bool,
    #[serde(default)]
    ignore_case: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bash {
    command: String,
    #[serde(default)]
    timeout_seconds: Option<u64>,
}

/// A valid call of a tool.
#[derive(Debug)]
enum Call {
    ReadFile(ReadFile),
    WriteFile(WriteFile),
    EditFile(EditFile),
    PatchFile(PatchFile),
    List(List),
    Search(Search),
    Bash(Bash),
}

fn input<T: DeserializeOwned>(text: &str) -> Result<T, Refused> {
    // For a call without arguments some models send an empty string.
    let text = if text.trim().is_empty() { "{}" } else { text };
    serde_json::from_str(text).map_err(|error| Refused::new(format!("the input does not fit the tool: {error}")))
}

impl Call {
    fn parse(name: &str, text: &str) -> Result<Self, Refused> {
        match name {
            "read_file" => input(text).map(Self::ReadFile),
            "write_file" => input(text).map(Self::WriteFile),
            "edit_file" => input(text).map(Self::EditFile),
            "patch_file" => input(text).map(Self::PatchFile),
            "list" => input(text).map(Self::List),
            "search" => input(text).map(Self::Search),
            "bash" => input(text).map(Self::Bash),
            other => Err(Refused::new(format!(
                "there is no tool {other:?}; there are read_file, write_file, edit_file, patch_file, list, search, bash"
            ))),
        }
    }
}

/// The description of a tool, for the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolDefinition {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    /// The JSON schema of its input.
    pub(crate) input: Value,
}

/// All tools, always in the same order.
#[must_use]
pub(crate) fn definitions() -> Vec<ToolDefinition> {
    let path = || json!({"type": "string", "description": "Relative to the working folder."});
    let tool = |name, description, properties: Value, required: &[&str]| ToolDefinition {
        name,
        description,
        input: json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        }),
    };
    vec![
        tool(
            "read_file",
            "Reads a text file, or shows an image (PNG, JPEG, GIF, WebP). Long files are cut; the last line then says \
             how to read on.",
            json!({
                "path": path(),
                "offset": {"type": "integer", "description": "First line to read, from 1."},
                "limit": {"type": "integer", "description": "How many lines to read."},
            }),
            &["path"],
        ),
        tool(
            "write_file",
            "Writes a whole file, making it and its folders when they are not there.",
            json!({"path": path(), "content": {"type": "string"}}),
            &["path", "content"],
        ),
        tool(
            "edit_file",
            "Replaces a text in a file. The text must occur exactly once, white space included.",
            json!({
                "path": path(),
                "old": {"type": "string", "description": "The text to replace."},
                "new": {"type": "string", "description": "What to put in its place."},
            }),
            &["path", "old", "new"],
        ),
        tool(
            "patch_file",
            "Changes several places of a file by a unified diff. Each hunk needs lines around the change that are in \
             the file exactly so; line numbers may be wrong. Nothing is changed unless all hunks fit.",
            json!({"path": path(), "patch": {"type": "string", "description": "Hunks that begin with @@ lines."}}),
            &["path", "patch"],
        ),
        tool(
            "list",
            "Lists a folder, without what git ignores. Folders end with '/', symbolic links show where they point.",
            json!({
                "path": path(),
                "depth": {"type": "integer", "description": "Levels of folders to go down; 1 unless said."},
            }),
            &[],
        ),
        tool(
            "search",
            "Searches the text files below a path, line by line, without what git ignores unless the path names it.",
            json!({
                "pattern": {"type": "string", "description": "A literal text, or a regular expression when regex is true."},
                "path": path(),
                "glob": {"type": "string", "description": "Only files whose path fits, such as **/*.rs."},
                "regex": {"type": "boolean"},
                "ignore_case": {"type": "boolean"},
            }),
            &["pattern"],
        ),
        tool(
            "bash",
            "Runs a command with sh and returns its output. The first one begins in the working folder, the next one \
             where the last one ended. What it leaves running is ended with it.",
            json!({
                "command": {"type": "string"},
                "timeout_seconds": {"type": "integer", "description": "60 unless said, 600 at most."},
            }),
            &["command"],
        ),
    ]
}

/// Describes a call in one line, for people.
#[must_use]
pub(crate) fn describe(name: &str, text: &str) -> String {
    let about = match Call::parse(name, text) {
        Ok(Call::ReadFile(ReadFile { path, .. }))
        | Ok(Call::WriteFile(WriteFile { path, .. }))
        | Ok(Call::EditFile(EditFile { path, .. }))
        | Ok(Call::PatchFile(PatchFile { path, .. })) => path,
        Ok(Call::List(List { path, .. })) => path.unwrap_or_else(|| ".".to_owned()),
        Ok(Call::Search(Search { pattern, .. })) => pattern,
        Ok(Call::Bash(Bash { command, .. })) => command,
        Err(_) => String::new(),
    };
    crate::process::excerpt::one_line(&format!("{name} {about}"), 200)
}

impl Toolbox {
    /// Tools for the files of this worktree. Paths count from `folder` in it, where commands run;
    /// `None`: from its top. `env` is the environment of the shell, whose commands run in `turns`.
    ///
    /// # Errors
    /// When the worktree cannot be opened.
    pub(crate) fn open(
        worktree: &Path,
        folder: Option<&Folder>,
        env: Environment,
        runner: Runner,
        turns: Turns,
    ) -> std::io::Result<Self> {
        let start = folder.map_or("", Folder::as_str);
        Ok(Self {
            root: Arc::new(Root::open(worktree, start)?),
            // Without a slash at its end when it is the top.
            worktree: worktree.to_owned(),
            cwd: shell::WorkingFolder::default(),
            folder: folder.map_or_else(|| worktree.to_owned(), |folder| worktree.join(folder.as_str())),
            env,
            runner,
            turns,
        })
    }

    /// Runs a call. `text` is its input as JSON. `reporter` learns when a command prints something.
    pub(crate) async fn call(&self, name: &str, text: &str, control: &Control, reporter: &Reporter) -> ToolResult {
        let outcome = match Call::parse(name, text) {
            Ok(Call::Bash(bash)) => shell::run(self, bash, control, reporter).await.map(Done::from),
            Ok(call) => {
                let root = Arc::clone(&self.root);
                let done = tokio::task::spawn_blocking(move || on_files(&root, call)).await;
                done.unwrap_or_else(|error| Err(Refused::new(format!("the tool broke: {error}"))))
            }
            Err(refused) => Err(refused),
        };
        match outcome {
            Ok(Done { text, image }) => ToolResult {
                text,
                is_error: false,
                image,
            },
            Err(Refused(text)) => ToolResult::refused(&text),
        }
    }
}

fn on_files(root: &Root, call: Call) -> Result<Done, Refused> {
    match call {
        Call::ReadFile(call) => files::read(root, &call),
        Call::WriteFile(call) => files::write(root, &call).map(Done::from),
        Call::EditFile(call) => files::edit(root, &call).map(Done::from),
        Call::PatchFile(call) => files::patch(root, &call).map(Done::from),
        Call::List(call) => list::list(root, &call).map(Done::from),
        Call::Search(call) => search::search(root, &call).map(Done::from),
        // Dispatched before: it waits instead of blocking a thread.
        Call::Bash(_) => Err(Refused::new("bash is not a file tool")),
    }
}

#[cfg(test)]
mod tests;
