//! Path patterns as people write them for `--protect` and `--include`. A pattern without a slash
//! matches a name at any depth, one with a slash matches from the top; a pattern that matches a
//! folder matches everything in it; `.` and `/` are the top folder itself. `*` stays within a name,
//! `**` does not. Restoring protected paths and judging their risk must agree, so both use this
//! file.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

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

#[cfg(test)]
mod tests {
    use super::*;

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
