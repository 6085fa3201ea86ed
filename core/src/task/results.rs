//! What of a session's files becomes a part of its checkpoints and its result, besides what
//! `.gitignore` files say: the person's own excludes, and limits of size.

use serde::{Deserialize, Serialize};

/// The longest text of patterns, in bytes: it is part of every offer.
pub const MAX_EXCLUDES_BYTES: usize = 32 << 10;

/// The rules of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResultRules {
    /// Patterns as of a `.gitignore` at the top, one a line: what the person's git ignores by files that
    /// are not in the repository. A file that the base has is never ignored.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub excludes: String,
    /// A larger file is left out. One that the base has may become twice as large as it is there.
    pub max_file_bytes: u64,
    /// All files together that the base does not have; above it there is no checkpoint and no result.
    pub max_new_bytes: u64,
    /// How many files that the base does not have.
    pub max_new_files: u64,
}

impl Default for ResultRules {
    fn default() -> Self {
        Self {
            excludes: String::new(),
            // What GitHub takes by its web page; its git takes up to 100 MiB and warns from 50 MiB on. A
            // session's own larger file is hardly ever meant for the history: a core, a database, a model.
            max_file_bytes: 25 << 20,
            max_new_bytes: 200 << 20,
            // Dependencies that no .gitignore names reach this; a person's change hardly does.
            max_new_files: 20_000,
        }
    }
}

impl ResultRules {
    /// The most bytes of a file; `in_base`: the size that the base's file at its path has.
    #[must_use]
    pub fn most(&self, in_base: Option<u64>) -> u64 {
        let grown = in_base.map_or(0, |size| size.saturating_mul(2));
        grown.max(self.max_file_bytes)
    }

    /// Whether files that the base does not have are too much together.
    #[must_use]
    pub const fn is_too_much(&self, files: u64, bytes: u64) -> bool {
        files > self.max_new_files || bytes > self.max_new_bytes
    }

    /// True when nothing was said.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The patterns of several files of excludes as one text, the ones that count least first: comments,
/// empty lines and byte order marks are not a part of it.
#[must_use]
pub fn joined_excludes<'a>(files: impl IntoIterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for file in files {
        let lines = file.strip_prefix('\u{feff}').unwrap_or(file).lines();
        for line in lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_base_may_double() {
        let rules = ResultRules {
            max_file_bytes: 10,
            ..ResultRules::default()
        };
        for (in_base, most) in [
            (None, 10),
            (Some(0), 10),
            (Some(5), 10),
            (Some(6), 12),
            (Some(u64::MAX), u64::MAX),
        ] {
            assert_eq!(rules.most(in_base), most, "{in_base:?}");
        }
    }

    #[test]
    fn excludes_lose_only_what_git_does_not_read() {
        let global = "\u{feff}# mine\r\n.idea/\r\n\n*.log\n";
        let own = "\\#kept\n!keep.log\n   \nname\\ \n";
        assert_eq!(
            joined_excludes([global, own]),
            ".idea/\n*.log\n\\#kept\n!keep.log\nname\\ \n"
        );
        assert_eq!(joined_excludes([]), "");
    }
}
