//! Standard output: the one place that prints results. Everything else goes to standard error.

use std::io::Write as _;

use serde::Serialize;

use crate::args::Format;

/// Where results go, and how they are printed.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
}

impl Output {
    #[must_use]
    pub const fn new(format: Format) -> Self {
        Self { format }
    }

    #[must_use]
    pub const fn format(self) -> Format {
        self.format
    }

    /// True when text for people is wanted.
    #[must_use]
    pub fn is_human(self) -> bool {
        self.format == Format::Human
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

    /// Prints the result of a command, when JSON of either kind is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn result(self, value: &impl Serialize) -> std::io::Result<()> {
        match self.format {
            Format::Human => Ok(()),
            Format::Json | Format::Jsonl => line(&serde_json::to_vec(value)?),
        }
    }

    /// Prints something that happened, when a line per happening is wanted.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn happening(self, value: &impl Serialize) -> std::io::Result<()> {
        match self.format {
            Format::Jsonl => line(&serde_json::to_vec(value)?),
            Format::Human | Format::Json => Ok(()),
        }
    }

    /// Writes bytes unchanged in every format: output of programs, patches.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn raw(self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }
}

fn line(bytes: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Prints a message to standard error.
pub fn note(text: &str) {
    // There is no reader when standard error is closed.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}
