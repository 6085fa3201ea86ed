//! Standard output and standard error: the one place that writes to them. Results go to standard output,
//! everything else to standard error, and what a terminal gets passes [`terminal`] here.
//! What each command prints as JSON, and how a line of `jsonl` is told by its `type`, is in `docs/json.md`.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum as _;
use kage_proto::json::JsonMessage;
use prost::{Message, Name};
use serde::Serialize;

use crate::args::Format;
use crate::pager;
use crate::table::{Shape, Table};
use crate::terminal::{self, Painted, Screen};

/// Where results go, and how they are printed.
#[derive(Debug, Clone)]
pub struct Output {
    format: Format,
    screen: Screen,
    sink: Sink,
}

#[derive(Debug, Clone)]
enum Sink {
    Stdout,
    Kept(Kept),
}

/// The results of a command that another program asked for within this process.
#[derive(Debug, Clone, Default)]
pub struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    /// What was printed so far.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
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
    pub fn new(format: Format) -> Self {
        Self {
            format,
            screen: Screen::stdout(),
            sink: Sink::Stdout,
        }
    }

    /// Keeps results instead of printing them.
    #[must_use]
    pub fn kept(format: Format) -> (Self, Kept) {
        let kept = Kept::default();
        let out = Self {
            format,
            screen: Screen::PIPE,
            sink: Sink::Kept(kept.clone()),
        };
        (out, kept)
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
    pub const fn format(&self) -> Format {
        self.format
    }

    /// What standard output goes to.
    #[must_use]
    pub const fn screen(&self) -> Screen {
        self.screen
    }

    /// Prints text with a line end, when text for people is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn text(&self, text: &str) -> std::io::Result<()> {
        self.painted(&Painted::from(text.to_owned()))
    }

    /// Prints text that may have colours, with a line end, when text for people is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn painted(&self, text: &Painted) -> std::io::Result<()> {
        match self.format {
            Format::Human => self.line(self.told(text).trim_end_matches('\n').as_bytes()),
            Format::Tsv | Format::Json | Format::Jsonl => Ok(()),
        }
    }

    /// Prints text for people that may be longer than a terminal: there a pager shows it.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn paged(&self, text: &Painted) -> std::io::Result<()> {
        if self.format != Format::Human || !self.screen.is_terminal {
            return self.painted(text);
        }
        let told = self.told(text);
        if pager::show(&told, self.screen) {
            return Ok(());
        }
        self.line(told.trim_end_matches('\n').as_bytes())
    }

    /// Prints a table, when rows are wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn table(&self, table: &Table) -> std::io::Result<()> {
        match self.format {
            Format::Human => self.painted(&table.laid_out(Shape::of(self.screen))),
            Format::Tsv => self.line(self.told(&table.laid_out(Shape::Tabs)).as_bytes()),
            Format::Json | Format::Jsonl => Ok(()),
        }
    }

    /// Prints a row by itself, when rows are wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn row(&self, row: &str) -> std::io::Result<()> {
        match self.format {
            Format::Human | Format::Tsv => self.line(self.told(&Painted::from(row.to_owned())).as_bytes()),
            Format::Json | Format::Jsonl => Ok(()),
        }
    }

    /// As standard output gets it.
    fn told(&self, text: &Painted) -> String {
        match self.screen.is_terminal {
            true => text.for_terminal(self.screen.colours),
            false => text.text(),
        }
    }

    /// Prints the result of a command, an object, when JSON of either kind is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn result(&self, kind: &str, value: &impl Serialize) -> std::io::Result<()> {
        self.document(value)?;
        self.happening(kind, value)
    }

    /// Prints a message that is the result of a command, when JSON of either kind is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn message<M: Message + Name>(&self, kind: &str, message: &M) -> std::io::Result<()> {
        self.result(kind, &JsonMessage::of(message))
    }

    /// Prints messages that are the result of a command: an array, or a line for each.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn messages<M: Message + Name>(&self, kind: &str, messages: &[M]) -> std::io::Result<()> {
        let messages: Vec<_> = messages.iter().map(JsonMessage::of).collect();
        self.document(&messages)?;
        messages.iter().try_for_each(|message| self.happening(kind, message))
    }

    /// Prints the result of a command when one document is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn document(&self, value: &impl Serialize) -> std::io::Result<()> {
        match self.format {
            Format::Json => self.json(value),
            Format::Human | Format::Tsv | Format::Jsonl => Ok(()),
        }
    }

    /// Prints something that happened, when a line per happening is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn happening(&self, kind: &str, value: &impl Serialize) -> std::io::Result<()> {
        match self.format {
            Format::Jsonl => self.typed(kind, value),
            Format::Human | Format::Tsv | Format::Json => Ok(()),
        }
    }

    /// Prints why there is no result, when JSON of either kind is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn error(&self, value: &impl Serialize) -> std::io::Result<()> {
        match self.format {
            Format::Human | Format::Tsv => Ok(()),
            Format::Json | Format::Jsonl => self.typed("error", value),
        }
    }

    /// Writes what a program wrote, when text for people is wanted: unchanged, but for what a terminal
    /// would act upon.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn raw(&self, bytes: &[u8]) -> std::io::Result<()> {
        if !self.screen.is_terminal {
            return self.unchanged(bytes);
        }
        match self.format {
            Format::Human => self.write(&[terminal::shown(&String::from_utf8_lossy(bytes)).as_bytes()]),
            Format::Tsv | Format::Json | Format::Jsonl => Ok(()),
        }
    }

    /// Writes bytes unchanged, also to a terminal, when text for people is wanted: somebody asked for that.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn unchanged(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self.format {
            Format::Human => self.write(&[bytes]),
            Format::Tsv | Format::Json | Format::Jsonl => Ok(()),
        }
    }

    fn typed(&self, kind: &str, value: &impl Serialize) -> std::io::Result<()> {
        self.json(&TypedJson { r#type: kind, value })
    }

    fn json(&self, value: &impl Serialize) -> std::io::Result<()> {
        let text = serde_json::to_string(value)?;
        match self.screen.is_terminal {
            true => self.line(terminal::shown_json(&text).as_bytes()),
            false => self.line(text.as_bytes()),
        }
    }

    fn line(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.write(&[bytes, b"\n"])
    }

    fn write(&self, parts: &[&[u8]]) -> std::io::Result<()> {
        match &self.sink {
            Sink::Stdout => write(parts),
            Sink::Kept(kept) => {
                let mut bytes = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
                parts.iter().for_each(|part| bytes.extend_from_slice(part));
                Ok(())
            }
        }
    }
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
    drop(writeln!(std::io::stderr().lock(), "{}", terminal::shown(text)));
}

/// Leaves lines on the terminal that were painted there before: they are as it may get them.
pub(crate) fn leave(lines: &[String]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    // As in `note`.
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

/// Standard error for the lines of the log: a file that it goes to has no colours either.
#[derive(Debug, Clone, Copy)]
pub struct Log;

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        std::io::stderr().lock().write_all(terminal::shown(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().lock().flush()
    }
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

    /// The files of the program, with their text.
    fn sources() -> Vec<(String, String)> {
        let mut files = Vec::new();
        let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => files.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap())),
                }
            }
        }
        files
    }

    #[test]
    fn nothing_else_writes_to_a_terminal() {
        let ways = [
            "std::io::stdout()",
            "std::io::stderr()",
            "io::stdout()",
            "print!(",
            "println!(",
        ];
        let files = sources();
        assert!(files.len() > 80, "{}", files.len());
        let others: Vec<_> = files
            .iter()
            // The one writes, the other asks what the streams are; tests say what they skip.
            .filter(|(path, _)| !["/output.rs", "/terminal.rs"].iter().any(|file| path.ends_with(file)))
            .filter(|(path, _)| !path.contains("/tests"))
            .map(|(path, text)| (path, text.split("#[cfg(test)]").next().unwrap_or_default()))
            .filter(|(_, text)| ways.iter().any(|way| text.contains(way)))
            .map(|(path, _)| path)
            .collect();
        assert!(others.is_empty(), "{others:?}");
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
