//! Path patterns as people write them for `--protect` and `--include`. A pattern without a slash
//! matches a name at any depth, one with a slash matches from the top; a pattern that matches a
//! folder matches everything in it; `.` and `/` are the top folder itself. `*` stays within a name,
//! `**` does not. Restoring protected paths and judging their risk must agree, so both use this
//! file.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::folder::Folder;

/// A pattern is not a glob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is not a path pattern")]
pub struct InvalidPattern {
    /// The pattern.
    pub pattern: String,
    /// The cause.
    #[source]
    pub source: globset::Error,
}

/// Compiled patterns.
#[derive(Debug, Clone)]
pub struct Patterns(GlobSet);

impl Patterns {
    /// Compiles patterns.
    ///
    /// # Errors
    /// Names the first malformed pattern.
    pub fn new(patterns: &[String]) -> Result<Self, InvalidPattern> {
        let mut set = GlobSetBuilder::new();
        // An empty text, as from an unset variable, names nothing.
        for pattern in patterns.iter().filter(|pattern| !pattern.is_empty()) {
            let wrong = |source| InvalidPattern {
                pattern: pattern.clone(),
                source,
            };
            let trimmed = pattern.strip_prefix("./").unwrap_or(pattern).trim_end_matches('/');
            let full = match trimmed.strip_prefix('/') {
                None if matches!(trimmed, "" | ".") => "**".to_owned(),
                Some(from_top) => from_top.to_owned(),
                None if trimmed.contains('/') => trimmed.to_owned(),
                None => format!("**/{trimmed}"),
            };
            let glob = GlobBuilder::new(&full).literal_separator(true).build().map_err(wrong)?;
            set.add(glob);
        }
        let whole = |source| InvalidPattern {
            pattern: patterns.join(" "),
            source,
        };
        set.build().map(Self).map_err(whole)
    }

    /// True when no path can match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the path, relative to the top, or a folder that contains it matches.
    #[must_use]
    pub fn matches(&self, path: &Path) -> bool {
        path.ancestors()
            .filter(|part| !part.as_os_str().is_empty())
            .any(|part| self.0.is_match(part))
    }
}

/// A pattern that was written in this folder, as a pattern from the repository's top: a name matches
/// at any depth below the folder, a path from the folder, and a leading `../` is the folder above.
/// `None` when it leads out of the repository.
#[must_use]
pub fn within(folder: Option<&Folder>, pattern: &str) -> Option<String> {
    let Some(folder) = folder.filter(|_| !pattern.is_empty()) else {
        let leads_out = pattern == ".." || pattern.trim_start_matches("./").starts_with("../");
        return (!leads_out).then(|| pattern.to_owned());
    };
    let mut names: Vec<String> = folder.names().map(globset::escape).collect();
    let mut rest = pattern.trim_end_matches('/');
    let anchored = rest.contains('/') || pattern.starts_with('/') || matches!(rest, "." | "..");
    rest = rest.trim_start_matches('/');
    loop {
        let (first, after) = rest.split_once('/').unwrap_or((rest, ""));
        match first {
            "." => {}
            ".." => drop(names.pop()?),
            _ => break,
        }
        rest = after;
    }
    if !anchored {
        names.push("**".to_owned());
    }
    names.extend((!rest.is_empty()).then(|| rest.to_owned()));
    Some(match names.as_slice() {
        [] => ".".to_owned(),
        names => format!("/{}", names.join("/")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_a_folder_match_below_it() {
        let web: Folder = "packages/[web]".parse().unwrap();
        for (pattern, path, expected) in [
            ("tests", "packages/[web]/tests/a.js", true),
            ("tests/", "packages/[web]/src/tests/a.js", true),
            ("*.lock", "packages/[web]/a.lock", true),
            ("*.lock", "a.lock", false),
            ("*.lock", "packages/w/a.lock", false),
            ("src/*.js", "packages/[web]/src/a.js", true),
            ("src/*.js", "packages/[web]/deep/src/a.js", false),
            ("src/*.js", "src/a.js", false),
            ("/src", "packages/[web]/src/a.js", true),
            ("/src", "packages/[web]/deep/src/a.js", false),
            ("./a", "packages/[web]/a", true),
            ("./a", "packages/[web]/b/a", false),
            (".", "packages/[web]/b/a", true),
            (".", "packages/b", false),
            ("/", "packages/[web]/b/a", true),
            ("..", "packages/b", true),
            ("..", "b", false),
            ("../../ci", "ci/run", true),
            ("../../ci", "packages/ci/run", false),
            ("../..", "b", true),
            ("", "packages/[web]/a", false),
        ] {
            let whole = within(Some(&web), pattern).unwrap();
            let patterns = Patterns::new(std::slice::from_ref(&whole)).unwrap();
            assert_eq!(
                patterns.matches(Path::new(path)),
                expected,
                "{pattern} ({whole}) on {path}"
            );
        }
        for pattern in ["../../..", "../../../x"] {
            assert_eq!(within(Some(&web), pattern), None, "{pattern}");
        }
        assert_eq!(within(None, "./tests/").as_deref(), Some("./tests/"));
        for pattern in ["..", "../x", "./../x"] {
            assert_eq!(within(None, pattern), None, "{pattern}");
        }
    }

    #[test]
    fn names_match_anywhere_and_paths_from_the_top() {
        for (pattern, path, expected) in [
            ("tests", "tests/a.rs", true),
            ("tests/", "deep/tests/a.rs", true),
            ("*.lock", "a/b/Cargo.lock", true),
            ("tests/*.rs", "tests/a.rs", true),
            ("tests/*.rs", "tests/deep/a.rs", false),
            ("tests/*.rs", "deep/tests/a.rs", false),
            ("tests/**", "tests/deep/a.rs", true),
            ("/tests", "deep/tests/a.rs", false),
            ("./a/b", "a/b", true),
            ("test", "tests/a.rs", false),
            (".", "a", true),
            ("./", "deep/tests/a.rs", true),
            ("/", "deep/a", true),
            ("", "a", false),
        ] {
            let patterns = Patterns::new(&[pattern.to_owned()]).unwrap();
            assert_eq!(patterns.matches(Path::new(path)), expected, "{pattern} on {path}");
        }
        assert!(!Patterns::new(&[]).unwrap().matches(Path::new("a")));
        assert!(Patterns::new(&["[".to_owned()]).is_err());
    }
}
