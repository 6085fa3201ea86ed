//! Files and folders that a program wants to find: its configuration, in the session's own home instead
//! of the person's. They are below the session's folders, and nowhere else.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path};

use serde::Deserialize;

use super::{fill, is_complete};
use crate::adapters::session_file::beneath::Beneath;

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
        place(Path::new(&fill(folder, values)), values).make()?;
    }
    for file in files {
        if is_complete(&file.path, values) && is_complete(&file.content, values) {
            write_private(&fill(&file.path, values), &fill(&file.content, values), values)?;
        }
    }
    Ok(())
}

/// Writes a file that only the agent's user can read, where no link of the session's leads elsewhere.
pub(in crate::adapters::cli) fn write_private(
    path: &str,
    text: &str,
    values: &BTreeMap<&str, String>,
) -> io::Result<()> {
    place(Path::new(path), values).write(text.as_bytes())
}

/// The place of a path among the session's folders. Elsewhere the folder counts that the manifest names.
pub(in crate::adapters::cli) fn place(path: &Path, values: &BTreeMap<&str, String>) -> Beneath {
    // The scratch folder has most of the others in it, which a session may have replaced.
    let roots = ["scratch", "home", "worktree"]
        .into_iter()
        .filter_map(|name| values.get(name));
    Beneath::one_of(roots.map(Path::new), path).unwrap_or_else(|| {
        let folder = path.parent().unwrap_or(Path::new(""));
        Beneath::new(folder, path.file_name().unwrap_or_default())
    })
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
    #[test]
    fn what_a_session_linked_elsewhere_stays_as_it_is() {
        let place = tempfile::tempdir().unwrap();
        let (scratch, other) = (place.path().join("scratch"), place.path().join("other"));
        std::fs::create_dir_all(scratch.join("home/.one")).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        std::fs::write(other.join("settings.json"), "mine").unwrap();
        std::os::unix::fs::symlink(other.join("settings.json"), scratch.join("home/.one/settings.json")).unwrap();
        std::os::unix::fs::symlink(&other, scratch.join("home/.two")).unwrap();
        let text = |path: std::path::PathBuf| path.display().to_string();
        let values = BTreeMap::from([("scratch", text(scratch.clone())), ("home", text(scratch.join("home")))]);
        write(&[], &[file("{home}/.one/settings.json", "new")], &values).unwrap();
        write(&[], &[file("{home}/.two/settings.json", "new")], &values).unwrap_err();
        write(&["{home}/.two/folder".to_owned()], &[], &values).unwrap_err();
        let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(scratch.join("home/.one/settings.json")), "new");
        assert_eq!(read(other.join("settings.json")), "mine");
        assert!(!other.join("folder").exists());
    }
}
