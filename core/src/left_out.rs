//! Files that are not taken along: from a person's working tree into a base, or from a session's
//! worktree into its checkpoints and its result. Which ones, and why, as data and in words; who
//! looks at the files decides.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// A file or folder that is not taken along.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeftOut {
    /// Relative to the top, as [`shown`] shows it.
    pub path: String,
    /// Why.
    pub reason: LeftOutReason,
}

/// Why a file or folder is not taken along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum LeftOutReason {
    /// It is larger than the limit.
    Large {
        /// In bytes.
        size: u64,
    },
    /// Its name suggests a secret.
    SecretName,
    /// It is another repository, or in one.
    NestedRepository,
    /// It is the `.git` of another repository: the files beside it are taken, its history is not.
    NestedHistory,
    /// Its permissions do not allow to read it.
    Unreadable,
    /// git stores no file of that name, or other systems could not have it.
    Name,
    /// Its path is longer than systems take.
    LongPath,
    /// It is a pipe, a socket or a device.
    NotAFile,
    /// It is a symbolic link where only a file can go along.
    Link,
}

impl LeftOutReason {
    /// Why, as a clause: "git cannot store a file of that name".
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Large { size } => format!("it has {}", in_units(size)),
            Self::SecretName => "its name says that it may hold a secret".to_owned(),
            Self::NestedRepository => "it is in another repository".to_owned(),
            Self::NestedHistory => "it is another repository: its files go along, its history does not".to_owned(),
            Self::Unreadable => "its permissions do not allow to read it".to_owned(),
            Self::Name => "git cannot store a file of that name".to_owned(),
            Self::LongPath => "its path is too long".to_owned(),
            Self::NotAFile => "it is a pipe, a socket or a device".to_owned(),
            Self::Link => "it is a symbolic link".to_owned(),
        }
    }

    /// Whether a result may lack something because of it.
    #[must_use]
    pub const fn may_be_missed(self) -> bool {
        match self {
            Self::Large { .. } | Self::Unreadable | Self::Name | Self::LongPath | Self::Link => true,
            Self::SecretName | Self::NestedRepository | Self::NestedHistory | Self::NotAFile => false,
        }
    }
}

/// A path as people can read it, in one line: bytes that are not UTF-8 and control characters are
/// escaped.
#[must_use]
pub fn shown(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _written = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// A number of bytes for people: "52.4 MB".
#[must_use]
pub fn in_units(bytes: u64) -> String {
    let mut rest = bytes;
    let mut tenths = 0;
    for unit in ["bytes", "kB", "MB", "GB"] {
        if rest < 1000 {
            return match unit {
                "bytes" => format!("{rest} bytes"),
                unit => format!("{rest}.{tenths} {unit}"),
            };
        }
        tenths = rest % 1000 / 100;
        rest /= 1000;
    }
    format!("{rest}.{tenths} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_are_readable_and_stay_in_one_line() {
        let cases: [(&[u8], &str); 6] = [
            (b"src/a.rs", "src/a.rs"),
            ("d/\u{e9}\u{4f60} \"x\"".as_bytes(), "d/\u{e9}\u{4f60} \"x\""),
            (b"a\nb\tc", "a\\nb\\tc"),
            (b"caf\xe9", "caf\\xe9"),
            (b"\x1b[2J", "\\u{1b}[2J"),
            ("\u{9b}2J".as_bytes(), "\\u{9b}2J"),
        ];
        for (path, expected) in cases {
            assert_eq!(shown(path), expected);
        }
    }

    #[test]
    fn bytes_have_units() {
        for (bytes, expected) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.0 kB"),
            (52_428_800, "52.4 MB"),
            (2_199_023_255_552, "2.1 TB"),
            (u64::MAX, "18446744.0 TB"),
        ] {
            assert_eq!(in_units(bytes), expected);
        }
    }
}
