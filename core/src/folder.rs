//! A folder of a repository, below its top: where sessions work and commands run. As text it is
//! relative, with `/` between names, and names no place outside of the repository and nothing of
//! git's own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest path of a folder, in bytes.
pub const MAX_FOLDER_BYTES: usize = 4096;

/// A folder below the top of a repository. The top itself is `None` wherever one may be named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Folder(String);

/// Why a text names no folder of a repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a folder of a repository (relative to its top, like packages/web, without '.', '..', '.git' and \
     control characters, up to {MAX_FOLDER_BYTES} bytes)"
)]
pub struct InvalidFolder {
    /// The beginning of the text.
    pub text: String,
}

impl Folder {
    /// Its path, relative to the repository's top.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names of the path, from the top.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The path from this folder to a file, whose path is relative to the repository's top.
    #[must_use]
    pub fn path_to(&self, file: &str) -> String {
        let below = file.strip_prefix(self.as_str()).and_then(|rest| rest.strip_prefix('/'));
        below.map_or_else(|| format!("{}/{file}", self.to_top()), str::to_owned)
    }

    /// The path from this folder to the repository's top: `../..`.
    #[must_use]
    pub fn to_top(&self) -> String {
        self.names().map(|_| "..").collect::<Vec<_>>().join("/")
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Folder {
    type Err = InvalidFolder;

    fn from_str(text: &str) -> Result<Self, InvalidFolder> {
        let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.eq_ignore_ascii_case(".git");
        let fits = text.len() <= MAX_FOLDER_BYTES && !text.contains(char::is_control);
        if fits && text.split('/').all(is_name) {
            return Ok(Self(text.to_owned()));
        }
        Err(InvalidFolder {
            text: text.chars().take(120).collect(),
        })
    }
}

impl From<Folder> for String {
    fn from(folder: Folder) -> Self {
        folder.0
    }
}

impl TryFrom<String> for Folder {
    type Error = InvalidFolder;

    fn try_from(text: String) -> Result<Self, InvalidFolder> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_places_below_the_top_only() {
        for text in [
            "",
            ".",
            "/",
            "/packages",
            "packages/",
            "a//b",
            "a/./b",
            "a/../b",
            "..",
            ".git",
            "a/.GIT/b",
            "a\nb",
            &"x/".repeat(3000),
        ] {
            assert!(text.parse::<Folder>().is_err(), "{text:?}");
        }
        for (text, to_top) in [("packages/web", "../.."), ("a b", ".."), ("ü/..x/.github", "../../..")] {
            let folder: Folder = text.parse().unwrap();
            assert_eq!((folder.as_str(), folder.to_top().as_str()), (text, to_top));
        }
        let web: Folder = "packages/web".parse().unwrap();
        assert_eq!(web.path_to("packages/web/src/a"), "src/a");
        assert_eq!(web.path_to("packages/web2/a"), "../../packages/web2/a");
    }
}
