//! `[context]` of `kage.toml` and of the person's settings: which fields of contexts have a place of their
//! own, and how large a context may be.

use kage_core::context::{MAX_CONTEXT_BYTES, Pins};
use kage_core::json::{InvalidPointer, JsonPointer};
use serde::Deserialize;

/// `[context]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContextSettings {
    /// Fields, as JSON pointers, that every session must have the same value of.
    pub base: Vec<String>,
    /// Fields, as JSON pointers, that stand in no base: those that differ from task to task.
    pub tail: Vec<String>,
    /// Files of the repository that all sessions are told, as patterns from the folder of this file.
    pub files: Vec<String>,
    /// The most KiB of one of them [default: 256].
    pub file_max_kib: Option<u32>,
    /// Whether sessions are told how results are checked [default: true].
    pub verify: Option<bool>,
    /// Whether sessions of APIs are told what AGENTS.md and CLAUDE.md say [default: true].
    pub instructions: Option<bool>,
    /// The most KiB of one context [default: 65536].
    pub max_kib: Option<u32>,
}

impl ContextSettings {
    /// These; where they say nothing, the others.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let either = |one: &Vec<String>, other: &Vec<String>| super::run::either(one.clone(), other.clone());
        Self {
            base: either(&self.base, &other.base),
            tail: either(&self.tail, &other.tail),
            files: either(&self.files, &other.files),
            file_max_kib: self.file_max_kib.or(other.file_max_kib),
            verify: self.verify.or(other.verify),
            instructions: self.instructions.or(other.instructions),
            max_kib: self.max_kib.or(other.max_kib),
        }
    }

    /// The fields with a place of their own.
    ///
    /// # Errors
    /// When one is not a JSON pointer.
    pub fn pins(&self) -> Result<Pins, InvalidPointer> {
        let read = |places: &[String]| -> Result<Vec<JsonPointer>, InvalidPointer> {
            places.iter().map(|place| place.parse()).collect()
        };
        Ok(Pins {
            base: read(&self.base)?,
            tail: read(&self.tail)?,
        })
    }

    /// The most bytes of a file of `files`.
    #[must_use]
    pub fn most_of_file(&self) -> u64 {
        self.file_max_kib.map_or(256 << 10, |kib| u64::from(kib) << 10)
    }

    /// The most bytes of one context.
    #[must_use]
    pub fn most_bytes(&self) -> usize {
        let kib = self.max_kib.and_then(|kib| usize::try_from(kib).ok());
        kib.map_or(MAX_CONTEXT_BYTES, |kib| (kib << 10).min(MAX_CONTEXT_BYTES))
    }
}
