//! Versions of programs: how one is found, and which ones work.

use serde::Deserialize;

/// How to find a program's version.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionRule {
    /// Arguments that make it print its version.
    pub args: Vec<String>,
    /// The oldest supported version, such as `2.1.0`.
    #[serde(default)]
    pub min: Option<Version>,
}

/// A version as numbers, compared from the left.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Version(Vec<u64>);

impl Version {
    /// The first thing in a text that looks like a version.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        text.split(|c: char| !c.is_ascii_digit() && c != '.')
            .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
            .and_then(|word| {
                let numbers = word.trim_end_matches('.').split('.').map(str::parse);
                numbers.collect::<Result<Vec<u64>, _>>().ok().map(Self)
            })
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::find(&text).ok_or_else(|| format!("{text:?} is not a version such as 2.1.0"))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}
