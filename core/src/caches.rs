//! Download caches of package managers, which each attempt gets in a home folder of its own: which ones,
//! how, and what of them never comes along. It decides on what it is told; the agent looks and copies.

use serde::Serialize;

use crate::left_out::in_units;

/// The folders, below a home folder, in which package managers keep what they downloaded. What cargo keeps
/// is where `CARGO_HOME` says, which sessions are given.
pub const USUAL: &[&str] = &[
    ".npm/_cacache",
    ".cache/yarn",
    ".local/share/pnpm/store",
    ".cache/pip",
    ".cache/uv",
    ".m2/repository",
    ".gradle/caches/modules-2",
    "go/pkg/mod/cache/download",
    ".nuget/packages",
];

/// The most bytes that are copied where the file system cannot share them: every attempt waits for it.
pub const MOST_COPIED_BYTES: u64 = 64 << 20;

/// The most files of all caches together: each is made anew for every attempt.
pub const MOST_FILES: u64 = 50_000;

/// Names of files in which package managers keep who somebody is.
const CREDENTIALS: &[&str] = &[
    ".npmrc",
    ".yarnrc",
    ".yarnrc.yml",
    ".pypirc",
    ".netrc",
    ".git-credentials",
    ".env",
    "auth.json",
    "credentials",
    "credentials.toml",
    "credentials.json",
    "credentials.xml",
    "settings.xml",
    "settings-security.xml",
    "pip.conf",
    "pip.ini",
    "uv.toml",
    "gradle.properties",
    "nuget.config",
];

/// Endings of files with keys.
const KEYS: &[&str] = &[".pem", ".key", ".p12", ".pfx", ".jks", ".keystore"];

/// Whether a file of that name may say who somebody is, so that it is never copied.
#[must_use]
pub fn is_credential(name: &str) -> bool {
    // File systems that ignore case exist.
    let lower = name.to_lowercase();
    CREDENTIALS.contains(&lower.as_str())
        || KEYS.iter().any(|ending| lower.ends_with(ending))
        || lower.starts_with("id_rsa")
        || lower.starts_with("id_ed25519")
}

/// Which caches attempts get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheSettings {
    /// Folders below the home folder.
    pub share: Vec<String>,
    /// The most bytes of all of them that are copied where the file system cannot share them.
    pub most_copied: u64,
}

impl CacheSettings {
    /// Those of the package managers that are known.
    #[must_use]
    pub fn usual() -> Self {
        Self {
            share: USUAL.iter().map(|path| (*path).to_owned()).collect(),
            most_copied: MOST_COPIED_BYTES,
        }
    }
}

/// What a cache has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CacheSize {
    /// Of all files together.
    pub bytes: u64,
    /// How many there are.
    pub files: u64,
}

/// How attempts get a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheSharing {
    /// Its files share their content until one is written.
    CopiedOnWrite,
    /// The file system cannot do that, and the cache is small.
    Copied,
    /// The file system cannot do that, and so many bytes are not copied for every attempt.
    TooLarge {
        /// In bytes.
        most: u64,
    },
    /// Making so many files would take every attempt too long.
    TooManyFiles {
        /// The most that are made.
        most: u64,
    },
}

impl CacheSharing {
    /// Whether attempts get it.
    #[must_use]
    pub const fn is_given(self) -> bool {
        matches!(self, Self::CopiedOnWrite | Self::Copied)
    }

    /// The same for people.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::CopiedOnWrite => "copied on write for each attempt".to_owned(),
            Self::Copied => "copied for each attempt".to_owned(),
            Self::TooLarge { most } => format!(
                "not given: the file system of the state folder cannot copy it on write, and at most {} are copied",
                in_units(most)
            ),
            Self::TooManyFiles { most } => format!("not given: it has more than {most} files"),
        }
    }
}

/// How attempts get a cache. `can_clone`: its file system shares content between files, also with the
/// folders of attempts. `room`: bytes that may still be copied otherwise. `files`: how many may still be made.
#[must_use]
pub const fn sharing(size: CacheSize, can_clone: bool, (room, files): (u64, u64)) -> CacheSharing {
    if size.files > files {
        CacheSharing::TooManyFiles { most: files }
    } else if can_clone {
        CacheSharing::CopiedOnWrite
    } else if size.bytes <= room {
        CacheSharing::Copied
    } else {
        CacheSharing::TooLarge { most: room }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_caches_need_a_file_system_that_shares_content() {
        let size = |bytes, files| CacheSize { bytes, files };
        for (found, can_clone, room, expected) in [
            (size(1 << 40, 5), true, 0, CacheSharing::CopiedOnWrite),
            (size(5, 5), false, 5, CacheSharing::Copied),
            (size(6, 5), false, 5, CacheSharing::TooLarge { most: 5 }),
            (
                size(0, MOST_FILES + 1),
                true,
                5,
                CacheSharing::TooManyFiles { most: MOST_FILES },
            ),
            (size(0, MOST_FILES), true, 5, CacheSharing::CopiedOnWrite),
        ] {
            assert_eq!(sharing(found, can_clone, (room, MOST_FILES)), expected, "{found:?}");
            assert_eq!(expected.is_given(), !expected.words().starts_with("not given"));
        }
    }

    #[test]
    fn files_that_let_somebody_in_are_known_by_their_names() {
        for name in [
            ".npmrc",
            "Credentials.toml",
            "settings.xml",
            "pip.conf",
            "server.PEM",
            "id_rsa.old",
        ] {
            assert!(is_credential(name), "{name}");
        }
        for name in ["index-v5", "settings.gradle", "pom.xml", "pip", "monkey"] {
            assert!(!is_credential(name), "{name}");
        }
    }
}
