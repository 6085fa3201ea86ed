//! What the standard streams are, and the one form in which text reaches them when a person reads it:
//! nothing that a program, a model or a file name says is a control sequence there, and what Kage itself
//! colours is a value until the last moment. No printing.

use std::borrow::Cow;
use std::io::IsTerminal as _;

use rustix::fd::AsFd;

/// In place of a character that a terminal would act upon.
const HIDDEN: char = '\u{fffd}';

/// What a stream of this process goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    /// A person reads it as it is written.
    pub is_terminal: bool,
    /// Columns and lines; `None` elsewhere, and of a terminal that does not tell.
    pub size: Option<(u16, u16)>,
    /// True when text may have colours.
    pub colours: bool,
}

impl Screen {
    /// A pipe, a file, or nothing.
    pub const PIPE: Self = Self {
        is_terminal: false,
        size: None,
        colours: false,
    };

    /// Where standard output goes.
    #[must_use]
    pub fn stdout() -> Self {
        Self::of(std::io::stdout())
    }

    /// Where standard error goes.
    #[must_use]
    pub fn stderr() -> Self {
        Self::of(std::io::stderr())
    }

    fn of(stream: impl AsFd) -> Self {
        if !stream.as_fd().is_terminal() {
            return Self::PIPE;
        }
        let size = rustix::termios::tcgetwinsize(stream).ok();
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            is_terminal: true,
            size: size
                .filter(|size| size.ws_col > 0)
                .map(|size| (size.ws_col, size.ws_row)),
            // https://no-color.org
            colours: set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb"),
        }
    }

    /// Columns that a line may have; `None` when lines may be long.
    #[must_use]
    pub fn width(self) -> Option<usize> {
        self.is_terminal
            .then(|| self.size.map_or(80, |(columns, _)| usize::from(columns)))
    }
}

/// What a piece of text is, which a terminal shows by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ink {
    #[default]
    Plain,
    Strong,
    Faint,
    Good,
    Bad,
    Notice,
}

impl Ink {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "\u{1b}[1m",
            Self::Faint => "\u{1b}[2m",
            Self::Good => "\u{1b}[32m",
            Self::Bad => "\u{1b}[31m",
            Self::Notice => "\u{1b}[33m",
        }
    }
}

/// Text with colours, which are no part of its characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Painted(Vec<(Ink, String)>);

impl Painted {
    /// Adds text.
    pub fn push(&mut self, ink: Ink, text: impl Into<String>) {
        let text = text.into();
        match self.0.last_mut() {
            Some((last, before)) if *last == ink => before.push_str(&text),
            Some(_) | None => self.0.push((ink, text)),
        }
    }

    /// True without text.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, text)| text.is_empty())
    }

    /// The pieces of each line, without line ends; a last line end begins no further line.
    #[must_use]
    pub fn lines(&self) -> Vec<Vec<(Ink, &str)>> {
        let mut lines = vec![Vec::new()];
        for (ink, text) in &self.0 {
            for (at, piece) in text.split('\n').enumerate() {
                if at > 0 {
                    lines.push(Vec::new());
                }
                if let (Some(line), false) = (lines.last_mut(), piece.is_empty()) {
                    line.push((*ink, piece));
                }
            }
        }
        if lines.last().is_some_and(Vec::is_empty) {
            lines.pop();
        }
        lines
    }

    /// The characters alone.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.iter().map(|(_, text)| text.as_str()).collect()
    }

    /// As a terminal gets it: whatever the text has, its only control sequences are those of its colours.
    #[must_use]
    pub fn for_terminal(&self, colours: bool) -> String {
        let mut out = String::new();
        for (ink, text) in &self.0 {
            let code = if colours { ink.code() } else { "" };
            // A colour that goes on over a line's end would colour the next line of another program.
            for (at, line) in shown(text).split('\n').enumerate() {
                if at > 0 {
                    out.push('\n');
                }
                match (line, code) {
                    ("", _) | (_, "") => out.push_str(line),
                    (line, code) => {
                        out.push_str(code);
                        out.push_str(line);
                        out.push_str("\u{1b}[0m");
                    }
                }
            }
        }
        out
    }
}

impl From<String> for Painted {
    fn from(text: String) -> Self {
        Self(vec![(Ink::Plain, text)])
    }
}

/// Text as a terminal may get it. Colours that it has are left out; every other character that moves the
/// cursor, talks to the terminal or turns the direction of writing is replaced. Line ends and tabs stay.
#[must_use]
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(after) = after_colour(rest) {
            rest = after;
            continue;
        }
        rest = &rest[character.len_utf8()..];
        match character {
            '\r' if rest.starts_with('\n') => {}
            other if is_hidden(other) => out.push(HIDDEN),
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}

/// A JSON document as a terminal may get it: it is the same document.
#[must_use]
pub fn shown_json(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if is_hidden(character) {
            // Outside of its texts a document has no such character.
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

/// True for what a terminal acts upon, or shows in another order or not at all.
fn is_hidden(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        // Marks, embeddings, overrides and isolates of direction; separators; notes between lines; tags.
        '\u{61c}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{206f}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' => true,
        other => other.is_control(),
    }
}

/// What follows a sequence that only sets colours, if the text begins with one.
fn after_colour(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    parameters
        .trim_start_matches(|c: char| c.is_ascii_digit() || c == ';' || c == ':')
        .strip_prefix('m')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_terminal_gets_text_and_no_orders() {
        for (said, told) in [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\u{1b}[31;1mred\u{1b}[0m", "red"),
            ("\u{1b}[2Jgone", "\u{fffd}[2Jgone"),
            ("\u{1b}]0;title\u{7}", "\u{fffd}]0;title\u{fffd}"),
            ("\u{9b}2J", "\u{fffd}2J"),
            ("a\r\nb\rc", "a\nb\u{fffd}c"),
            ("\u{1b}\u{1b}[0m[2J", "\u{fffd}[2J"),
            ("user\u{202e}gpj.exe", "user\u{fffd}gpj.exe"),
            ("é→𝄞👩‍💻", "é→𝄞👩‍💻"),
            ("\u{1b}[", "\u{fffd}["),
        ] {
            assert_eq!(shown(said), told, "{said:?}");
        }
        let mut red = Painted::default();
        red.push(Ink::Bad, "a\u{1b}[2J\nb");
        assert_eq!(
            red.for_terminal(true),
            "\u{1b}[31ma\u{fffd}[2J\u{1b}[0m\n\u{1b}[31mb\u{1b}[0m"
        );
        assert_eq!(red.for_terminal(false), "a\u{fffd}[2J\nb");
    }

    /// Text with more of what is dangerous than chance would have.
    fn hostile() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("\u{1b}[".to_owned()),
            Just("\u{1b}[31m".to_owned()),
            Just("\u{1b}]8;;http://x\u{1b}\\".to_owned()),
            Just("2J".to_owned()),
            Just("\u{9d}".to_owned()),
            Just("\r".to_owned()),
            Just("\u{202e}".to_owned()),
            Just("\u{2067}".to_owned()),
            any::<char>().prop_map(String::from),
            "[a-z \n\"\\\\]{0,6}",
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn nothing_that_is_said_reaches_a_terminal_as_an_order(text in hostile(), colours: bool) {
            let told = shown(&text);
            prop_assert!(!told.chars().any(is_hidden), "{told:?}");
            prop_assert_eq!(shown(&told), told.as_ref(), "what is shown is shown as it is");

            let mut painted = Painted::default();
            painted.push(Ink::Notice, text.clone());
            painted.push(Ink::Plain, text);
            let mut rest = painted.for_terminal(colours);
            for code in [Ink::Notice.code(), "\u{1b}[0m"] {
                rest = rest.replace(code, "");
            }
            prop_assert!(!rest.chars().any(is_hidden), "{rest:?}");
        }

        #[test]
        fn a_document_is_the_same_one_on_a_terminal(text in hostile()) {
            let document = serde_json::to_string(&serde_json::json!({ &text: [&text] })).unwrap();
            let told = shown_json(&document);
            prop_assert!(!told.chars().any(is_hidden), "{told:?}");
            let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            prop_assert_eq!(read(&told), read(&document));
        }
    }
}
