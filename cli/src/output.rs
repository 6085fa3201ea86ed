//! Standard output: the one place that prints results. Everything else goes to standard error.
//! What each command prints as JSON, and how a line of `jsonl` is told by its `type`, is in `docs/json.md`.

use std::io::Write as _;

use clap::ValueEnum as _;
use kage_proto::json::JsonMessage;
use prost::{Message, Name};
use serde::Serialize;

use crate::args::Format;

/// Where results go, and how they are printed.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

/// A JSON object that says what it is.
#[derive(Serialize)]
struct TypedJson<'a, T> {
    r#type: &'a str,
    #[serde(flatten)]
    value: &'a T,
}

impl Output {
    #[must_use]
    pub const fn new(format: Format) -> Self {
        Self { format }
    }

    /// The format of a command line that cannot be parsed.
    pub fn asked_for(arguments: impl Iterator<Item = String>) -> Self {
        let read = arguments.take_while(|argument| argument != "--");
        let words: Vec<String> = read
            .flat_map(|a| a.split('=').map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let mut pairs = words.windows(2).filter(|pair| pair[0] == "--format");
        let format = pairs.find_map(|pair| Format::from_str(&pair[1], false).ok());
        Self::new(format.unwrap_or(Format::Human))
    }

    #[must_use]
    pub const fn format(self) -> Format {
        self.format
    }

    /// Prints text as it is, with a line end, when text for people is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn text(self, text: &str) -> std::io::Result<()> {
        match self.format {
            Format::Human => line(text.trim_end_matches('\n').as_bytes()),
            Format::Json | Format::Jsonl => Ok(()),
        }
    }

    /// Prints the result of a command, an object, when JSON of either kind is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn result(self, kind: &str, value: &impl Serialize) -> std::io::Result<()> {
        self.document(value)?;
        self.happening(kind, value)
    }

    /// Prints a message that is the result of a command, when JSON of either kind is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn message<M: Message + Name>(self, kind: &str, message: &M) -> std::io::Result<()> {
        self.result(kind, &JsonMessage::of(message))
    }

    /// Prints messages that are the result of a command: an array, or a line for each.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn messages<M: Message + Name>(self, kind: &str, messages: &[M]) -> std::io::Result<()> {
        let messages: Vec<_> = messages.iter().map(JsonMessage::of).collect();
        self.document(&messages)?;
        messages.iter().try_for_each(|message| self.happening(kind, message))
    }

    /// Prints the result of a command when one document is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn document(self, value: &impl Serialize) -> std::io::Result<()> {
        match self.format {
            Format::Json => line(&serde_json::to_vec(value)?),
            Format::Human | Format::Jsonl => Ok(()),
        }
    }

    /// Prints something that happened, when a line per happening is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn happening(self, kind: &str, value: &impl Serialize) -> std::io::Result<()> {
        match self.format {
            Format::Jsonl => typed(kind, value),
            Format::Human | Format::Json => Ok(()),
        }
    }

    /// Prints why there is no result, when JSON of either kind is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn error(self, value: &impl Serialize) -> std::io::Result<()> {
        match self.format {
            Format::Human => Ok(()),
            Format::Json | Format::Jsonl => typed("error", value),
        }
    }

    /// Writes bytes unchanged, when text for people is wanted: output of programs, patches.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn raw(self, bytes: &[u8]) -> std::io::Result<()> {
        match self.format {
            Format::Human => write(&[bytes]),
            Format::Json | Format::Jsonl => Ok(()),
        }
    }
}

fn typed(kind: &str, value: &impl Serialize) -> std::io::Result<()> {
    line(&serde_json::to_vec(&TypedJson { r#type: kind, value })?)
}

fn line(bytes: &[u8]) -> std::io::Result<()> {
    write(&[bytes, b"\n"])
}

fn write(parts: &[&[u8]]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    for part in parts {
        out.write_all(part)?;
    }
    out.flush()
}

/// Prints a message to standard error.
pub fn note(text: &str) {
    // There is no reader when standard error is closed.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use kage_proto::v1;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn arguments_that_cannot_be_read_still_say_how_to_answer() {
        let format = |line: &str| Output::asked_for(line.split(' ').map(str::to_owned)).format();
        assert_eq!(format("kage ls --format json --nonsense"), Format::Json);
        assert_eq!(format("kage --format=jsonl ls --nonsense"), Format::Jsonl);
        assert_eq!(format("kage ls --format yaml"), Format::Human);
        assert_eq!(format("kage run -- --format json"), Format::Human);
    }

    /// Every command as it is typed, without `kage`.
    fn commands(of: &clap::Command, before: &str) -> Vec<String> {
        let mut all = Vec::new();
        for command in of.get_subcommands() {
            let name = format!("{before}{}", command.get_name());
            match command.has_subcommands() {
                true => all.extend(commands(command, &format!("{name} "))),
                false => all.push(name),
            }
        }
        all
    }

    #[test]
    fn the_page_about_json_has_every_command() {
        let page = include_str!("../../docs/json.md");
        let all = commands(&Cli::command(), "");
        assert!(all.len() > 25, "{all:?}");
        let rows: String = page.lines().filter(|line| line.starts_with("| `")).collect();
        for command in all {
            assert!(
                rows.contains(&format!("`{command}`")),
                "docs/json.md does not have {command}"
            );
        }
    }

    #[test]
    fn a_line_says_first_what_it_is() {
        let task = v1::Task {
            id: "0123".into(),
            prompt_size: 1 << 53,
            ..v1::Task::default()
        };
        let typed = TypedJson {
            r#type: "task",
            value: &JsonMessage::of(&task),
        };
        assert_eq!(
            serde_json::to_string(&typed).unwrap(),
            r#"{"type":"task","id":"0123","prompt_size":9007199254740992}"#
        );
    }
}
