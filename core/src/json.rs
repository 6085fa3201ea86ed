//! JSON values that print and compare exactly: numbers keep their text, keys are unique and sorted.
//! `parse` reads them, `pointer` names a place in a value; `context` owns what a context or a patch
//! may hold.

mod parse;
mod pointer;

use std::collections::BTreeMap;
use std::fmt;

pub use parse::{InvalidJson, MAX_DEPTH};
pub use pointer::{InvalidPointer, JsonPointer};

/// The members of an object, by key. Their order is that of the keys' UTF-8 bytes.
pub type Members = BTreeMap<String, Json>;

/// A JSON value. Its order is total and has no other meaning.
///
/// `Display` writes canonical text: sorted keys, no spaces, only the escapes that JSON
/// demands, numbers as they were read. The alternate form (`{:#}`) is indented for
/// reading.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Self>),
    /// An object.
    Object(Members),
}

/// A number as its text: `1`, `1.0` and `1e0` are three different values, and none is rounded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(String);

impl Number {
    /// The text that was read.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<i64> for Number {
    fn from(number: i64) -> Self {
        Self(number.to_string())
    }
}

impl Json {
    /// The length of the canonical text in bytes.
    #[must_use]
    pub fn canonical_len(&self) -> u64 {
        counted(|out| write_value(out, self, Layout::Canonical))
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layout = if f.alternate() {
            Layout::Indented(0)
        } else {
            Layout::Canonical
        };
        write_value(f, self, layout)
    }
}

/// The canonical text of an object with these members.
pub(crate) fn write_canonical_object(out: &mut dyn fmt::Write, members: &Members) -> fmt::Result {
    write_object(out, members, Layout::Canonical)
}

/// The length of the canonical text of a string.
pub(crate) fn canonical_string_len(text: &str) -> u64 {
    counted(|out| write_string(out, text))
}

#[derive(Clone, Copy)]
enum Layout {
    Canonical,
    /// The depth of the value.
    Indented(usize),
}

impl Layout {
    fn inner(self) -> Self {
        match self {
            Self::Canonical => Self::Canonical,
            Self::Indented(level) => Self::Indented(level + 1),
        }
    }

    fn new_line(self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self {
            Self::Canonical => Ok(()),
            Self::Indented(level) => write!(out, "\n{:1$}", "", 2 * level),
        }
    }
}

fn write_value(out: &mut dyn fmt::Write, value: &Json, layout: Layout) -> fmt::Result {
    match value {
        Json::Null => out.write_str("null"),
        Json::Bool(true) => out.write_str("true"),
        Json::Bool(false) => out.write_str("false"),
        Json::Number(number) => out.write_str(&number.0),
        Json::String(text) => write_string(out, text),
        Json::Array(elements) if elements.is_empty() => out.write_str("[]"),
        Json::Array(elements) => {
            for (i, element) in elements.iter().enumerate() {
                out.write_char(if i == 0 { '[' } else { ',' })?;
                layout.inner().new_line(out)?;
                write_value(out, element, layout.inner())?;
            }
            layout.new_line(out)?;
            out.write_char(']')
        }
        Json::Object(members) => write_object(out, members, layout),
    }
}

fn write_object(out: &mut dyn fmt::Write, members: &Members, layout: Layout) -> fmt::Result {
    if members.is_empty() {
        return out.write_str("{}");
    }
    for (i, (key, value)) in members.iter().enumerate() {
        out.write_char(if i == 0 { '{' } else { ',' })?;
        layout.inner().new_line(out)?;
        write_string(out, key)?;
        out.write_str(match layout {
            Layout::Canonical => ":",
            Layout::Indented(_) => ": ",
        })?;
        write_value(out, value, layout.inner())?;
    }
    layout.new_line(out)?;
    out.write_char('}')
}

fn write_string(out: &mut dyn fmt::Write, text: &str) -> fmt::Result {
    out.write_char('"')?;
    let mut written = 0;
    for (at, byte) in text.bytes().enumerate() {
        if !matches!(byte, b'"' | b'\\' | 0..=0x1f) {
            continue;
        }
        // Every escaped character is one ASCII byte, so `at` is always a character boundary.
        out.write_str(&text[written..at])?;
        written = at + 1;
        match byte {
            b'"' => out.write_str("\\\"")?,
            b'\\' => out.write_str("\\\\")?,
            0x08 => out.write_str("\\b")?,
            b'\t' => out.write_str("\\t")?,
            b'\n' => out.write_str("\\n")?,
            0x0c => out.write_str("\\f")?,
            b'\r' => out.write_str("\\r")?,
            control => write!(out, "\\u{control:04x}")?,
        }
    }
    out.write_str(&text[written..])?;
    out.write_char('"')
}

/// Counts the written bytes, so that a length can never differ from its text.
#[derive(Default)]
struct Counter(u64);

impl fmt::Write for Counter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len() as u64;
        Ok(())
    }
}

fn counted(write: impl FnOnce(&mut Counter) -> fmt::Result) -> u64 {
    let mut counter = Counter::default();
    write(&mut counter).expect("a counter takes everything");
    counter.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Json {
        Json::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn prints_canonically() {
        let cases = [
            ("{ }", "{}"),
            ("[ ]", "[]"),
            (
                " {\"b\" : 1, \"a\":[true , false,\tnull]}\n",
                r#"{"a":[true,false,null],"b":1}"#,
            ),
            (
                "[1.0, 1e0, 1, -0, 0.10, 1E+400, 123456789012345678901234567890]",
                "[1.0,1e0,1,-0,0.10,1E+400,123456789012345678901234567890]",
            ),
            (r#""\u0041\/\u00e9\ud83d\ude00""#, "\"A/é😀\""),
            (r#""\"\\\b\f\n\r\t\u0001\u001F""#, r#""\"\\\b\f\n\r\t\u0001\u001f""#),
            ("{\"é\":1,\"z\":2,\"\":3}", "{\"\":3,\"z\":2,\"é\":1}"),
        ];
        for (text, canonical) in cases {
            let value = parse(text);
            assert_eq!(value.to_string(), canonical);
            assert_eq!(value.canonical_len(), canonical.len() as u64, "{canonical}");
            assert_eq!(parse(canonical), value);
        }
    }

    #[test]
    fn prints_indented() {
        let value = parse(r#"{"b":[1,{"c":{}}],"a":"x"}"#);
        let expected = "{\n  \"a\": \"x\",\n  \"b\": [\n    1,\n    {\n      \"c\": {}\n    }\n  ]\n}";
        assert_eq!(format!("{value:#}"), expected);
        assert_eq!(parse(expected), value);
    }

    #[test]
    fn compares_numbers_by_their_text() {
        assert_ne!(parse("1"), parse("1.0"));
        assert_ne!(parse("0.1"), parse("0.10"));
        assert_eq!(parse(" 1e3 "), parse("1e3"));
    }
}
