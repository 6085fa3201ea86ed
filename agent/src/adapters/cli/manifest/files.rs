//! Files and folders that a program wants to find: its configuration, in the session's own home instead
//! of the person's. They are below the session's folders, and nowhere else.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path};

use serde::Deserialize;

use super::{fill, is_complete};

/// The placeholders that a path begins with.
const TOPS: [&str; 2] = ["{home}/", "{scratch}/"];

/// A file to write before the program starts, for the agent's user alone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRule {
    /// Its place, below `{home}` or `{scratch}`.
    pub path: String,
    /// What is in it. A file is left out when one of its placeholders has no value.
    pub content: String,
}

/// Whether every place is a session's own.
pub(super) fn check<'p>(paths: impl IntoIterator<Item = &'p String>) -> Result<(), String> {
    for path in paths {
        let below = TOPS.iter().find_map(|top| path.strip_prefix(top));
        let names = |part: Component<'_>| matches!(part, Component::Normal(_));
        if !below.is_some_and(|below| !below.is_empty() && Path::new(below).components().all(names)) {
            return Err(format!("{path:?} is not below {{home}} or {{scratch}}"));
        }
    }
    Ok(())
}

/// Makes the folders and writes the files. Blocks.
pub(in crate::adapters::cli) fn write(
    folders: &[String],
    files: &[FileRule],
    values: &BTreeMap<&str, String>,
) -> io::Result<()> {
    for folder in folders {
        std::fs::create_dir_all(fill(folder, values))?;
    }
    for file in files {
        if is_complete(&file.path, values) && is_complete(&file.content, values) {
            write_private(Path::new(&fill(&file.path, values)), &fill(&file.content, values))?;
        }
    }
    Ok(())
}

/// Writes a file that only the agent's user can read.
pub(in crate::adapters::cli) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: &str) -> FileRule {
        FileRule {
            path: path.to_owned(),
            content: content.to_owned(),
        }
    }

    #[test]
    fn only_places_of_the_session_are_written() {
        for path in ["{home}/.x/config.json", "{scratch}/a"] {
            assert_eq!(check([&path.to_owned()]), Ok(()));
        }
        for path in [
            "/etc/passwd",
            "{worktree}/x",
            "{home}",
            "{home}/",
            "{home}/../x",
            "{scratch}/a/../../x",
            "{home}//x/..",
            "x",
        ] {
            assert!(check([&path.to_owned()]).is_err(), "{path}");
        }
    }

    #[test]
    fn a_file_without_all_its_values_is_left_out() {
        let place = tempfile::tempdir().unwrap();
        let home = place.path().display().to_string();
        let values = BTreeMap::from([("home", home.clone()), ("model", "m".to_owned())]);
        let files = [
            file("{home}/a/b.json", "{\"model\": \"{model}\"}"),
            file("{home}/c.json", "{base_file}"),
        ];
        write(&["{home}/empty".to_owned()], &files, &values).unwrap();
        let written = std::fs::read_to_string(place.path().join("a/b.json")).unwrap();
        assert_eq!(written, "{\"model\": \"m\"}");
        assert!(!place.path().join("c.json").exists() && place.path().join("empty").is_dir());
    }
}
