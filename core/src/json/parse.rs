//! Reads JSON strictly: no duplicate key, bounded nesting, no rounded number. The grammar is
//! `serde_json`'s; values are taken level by level as raw text, so that numbers can be kept without
//! changing `serde_json` for every other user of it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Json, JsonPointer, Members, Number};

/// The deepest nesting of arrays and objects.
pub const MAX_DEPTH: usize = 128;

/// Why bytes are refused as a JSON value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJson {
    /// It is not JSON, or not UTF-8.
    #[error("not JSON{}: {problem}", in_place(.path))]
    Syntax {
        /// The wrong value; empty for the text as a whole.
        path: JsonPointer,
        /// What is wrong, and where.
        problem: String,
    },
    /// An object has a key twice.
    #[error("duplicate key {0}")]
    DuplicateKey(JsonPointer),
    /// Arrays and objects are nested deeper than [`MAX_DEPTH`].
    #[error("nested more than {MAX_DEPTH} levels deep at {0}")]
    TooDeep(JsonPointer),
}

fn in_place(path: &JsonPointer) -> String {
    if path.tokens().is_empty() {
        String::new()
    } else {
        format!(" at {path}")
    }
}

impl Json {
    /// Reads one JSON value and nothing after it.
    ///
    /// # Errors
    /// When the bytes are not JSON, have a duplicate key, or are nested too deeply.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidJson> {
        let mut reader = Reader { path: Vec::new() };
        let raw: &RawValue = serde_json::from_slice(bytes).map_err(|e| reader.syntax(&e))?;
        reader.value(raw)
    }
}

struct Reader {
    /// The path of the value that is being read.
    path: Vec<String>,
}

impl Reader {
    fn value(&mut self, raw: &RawValue) -> Result<Json, InvalidJson> {
        let text = raw.get();
        match text.as_bytes().first() {
            Some(b'{') => self.object(text).map(Json::Object),
            Some(b'[') => self.array(text).map(Json::Array),
            Some(b'"') => self.leaf(text).map(Json::String),
            Some(b'n') => self.leaf(text).map(|()| Json::Null),
            Some(b't' | b'f') => self.leaf(text).map(Json::Bool),
            // The raw value is known to follow the grammar: the remaining case is a number.
            Some(_) | None => Ok(Json::Number(Number(text.to_owned()))),
        }
    }

    fn object(&mut self, text: &str) -> Result<Members, InvalidJson> {
        self.check_depth()?;
        let entries: Entries<'_> = self.leaf(text)?;
        let mut members = Members::new();
        for (key, raw) in entries.0 {
            self.path.push(key.clone());
            if members.contains_key(&key) {
                return Err(InvalidJson::DuplicateKey(self.here()));
            }
            members.insert(key, self.value(raw)?);
            self.path.pop();
        }
        Ok(members)
    }

    fn array(&mut self, text: &str) -> Result<Vec<Json>, InvalidJson> {
        self.check_depth()?;
        let raws: Vec<&RawValue> = self.leaf(text)?;
        let mut elements = Vec::with_capacity(raws.len());
        for (index, raw) in raws.into_iter().enumerate() {
            self.path.push(index.to_string());
            elements.push(self.value(raw)?);
            self.path.pop();
        }
        Ok(elements)
    }

    fn leaf<'a, T: Deserialize<'a>>(&self, text: &'a str) -> Result<T, InvalidJson> {
        serde_json::from_str(text).map_err(|e| self.syntax(&e))
    }

    fn check_depth(&self) -> Result<(), InvalidJson> {
        if self.path.len() < MAX_DEPTH {
            Ok(())
        } else {
            Err(InvalidJson::TooDeep(self.here()))
        }
    }

    fn syntax(&self, error: &serde_json::Error) -> InvalidJson {
        InvalidJson::Syntax {
            path: self.here(),
            problem: error.to_string(),
        }
    }

    fn here(&self) -> JsonPointer {
        JsonPointer::from(self.path.clone())
    }
}

/// The members of an object in the order of the text, duplicates included.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;

        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(EntriesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> InvalidJson {
        Json::parse(text.as_bytes()).unwrap_err()
    }

    fn pointer(text: &str) -> JsonPointer {
        text.parse().unwrap()
    }

    #[test]
    fn names_a_duplicate_key() {
        let cases = [
            (r#"{"a":1,"b":2,"a":3}"#, "/a"),
            (r#"{"a":1,"\u0061":1}"#, "/a"),
            (r#"{"x":[0,{"a/b":{"~":1,"~":2}}]}"#, "/x/1/a~1b/~0"),
            (r#"{"":0,"":0}"#, "/"),
        ];
        for (text, path) in cases {
            assert_eq!(refusal(text), InvalidJson::DuplicateKey(pointer(path)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_json() {
        let cases: [&[u8]; 14] = [
            b"",
            b" ",
            b"{",
            b"{} {}",
            b"[1,]",
            b"{a:1}",
            b"01",
            b"+1",
            b".5",
            b"NaN",
            b"'a'",
            b"tru",
            b"\"\t\"",
            b"\"\xff\"",
        ];
        for bytes in cases {
            let refused = Json::parse(bytes);
            assert!(
                matches!(refused, Err(InvalidJson::Syntax { .. })),
                "{bytes:?}: {refused:?}"
            );
        }
        let InvalidJson::Syntax { path, .. } = refusal(r#"{"a":["\ud800"]}"#) else {
            panic!("a lone surrogate is no character")
        };
        assert_eq!(path, pointer("/a/0"));
    }

    #[test]
    fn limits_the_depth() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(Json::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        let InvalidJson::TooDeep(path) = refusal(&nested(MAX_DEPTH + 1)) else {
            panic!("one level too many")
        };
        assert_eq!(path.tokens().len(), MAX_DEPTH);
        assert!(matches!(refusal(&nested(100_000)), InvalidJson::TooDeep(_)));
    }
}
