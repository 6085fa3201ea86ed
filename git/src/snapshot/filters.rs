//! The filters that .gitattributes gives to paths. git is asked only when some file of attributes
//! speaks of a filter at all: it looks through all patterns for each path.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::command::GitCommand;
use crate::error::{GitError, blocking};
use crate::shadow::Shadow;
use crate::staging::{lines, split};

const NAME: &str = ".gitattributes";

/// The filter of each path that has one.
pub(super) type Filters = HashMap<Vec<u8>, String>;

/// The files that may give attributes to paths of a repository.
#[derive(Debug, Clone)]
pub(super) struct AttributeFiles {
    root: PathBuf,
    /// Those that are for all paths.
    common: Vec<PathBuf>,
}

impl AttributeFiles {
    /// Those that a private git directory over `root` reads. `own` is the person's own file.
    pub(super) fn new(root: &Path, shadow: &Shadow, own: Option<&Path>) -> Self {
        let mut common = vec![shadow.git_dir().join("info/attributes")];
        common.extend(own.map(Path::to_owned));
        Self {
            root: root.to_owned(),
            common,
        }
    }

    /// The filters of `paths`, which are in the index or on the disk.
    pub(super) async fn filters(
        &self,
        git: impl Fn(&'static str) -> GitCommand,
        paths: &[Vec<u8>],
    ) -> Result<Filters, GitError> {
        let (files, list) = (self.clone(), paths.to_vec());
        let any = blocking("reading attributes", move || {
            Ok::<_, GitError>(files.speak_of_filters(&list))
        });
        if any.await? {
            filters_of(git, paths).await
        } else {
            Ok(Filters::new())
        }
    }

    /// Whether a path may have a filter. Without the word no attribute and no macro names one.
    fn speak_of_filters(&self, paths: &[Vec<u8>]) -> bool {
        let mut folders: HashSet<&Path> = HashSet::new();
        for path in paths {
            let path = Path::new(OsStr::from_bytes(path));
            if path.file_name() == Some(OsStr::new(NAME)) && fs::symlink_metadata(self.root.join(path)).is_err() {
                // Only the index has it.
                return true;
            }
            for folder in path.ancestors().skip(1) {
                if !folders.insert(folder) {
                    break;
                }
            }
        }
        let within = folders.iter().map(|folder| self.root.join(folder).join(NAME));
        self.common
            .iter()
            .cloned()
            .chain(within)
            .any(|file| speaks_of_filters(&file))
    }
}

fn speaks_of_filters(file: &Path) -> bool {
    match fs::read(file) {
        Ok(text) => text.windows(b"filter".len()).any(|word| word == b"filter"),
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    }
}

/// The filter that .gitattributes names, for those paths that have one.
pub(crate) async fn filters_of(
    git: impl Fn(&'static str) -> GitCommand,
    paths: &[Vec<u8>],
) -> Result<Filters, GitError> {
    let output = git("check-attr")
        .args(["-z", "--stdin", "filter"])
        .stdin(lines(paths))
        .run()
        .await?;
    let mut filters = HashMap::new();
    let mut parts = split(&output);
    while let (Some(path), Some(_), Some(value)) = (parts.next(), parts.next(), parts.next()) {
        if !matches!(value, b"unspecified" | b"unset" | b"set") {
            filters.insert(path.to_owned(), String::from_utf8_lossy(value).into_owned());
        }
    }
    Ok(filters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_is_asked_only_when_a_file_that_counts_speaks_of_a_filter() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        fs::create_dir_all(top.join("git/info")).unwrap();
        fs::create_dir_all(top.join("files/one/deep")).unwrap();
        fs::create_dir_all(top.join("files/other")).unwrap();
        let shadow = Shadow::new(&top.join("git"), &top.join("files"), None);
        let own = top.join("own");
        let files = AttributeFiles::new(&top.join("files"), &shadow, Some(&own));
        let paths = [b"one/deep/a".to_vec(), b"b".to_vec()];
        assert!(!files.speak_of_filters(&paths));
        fs::write(top.join("files/.gitattributes"), "* text=auto\n").unwrap();
        fs::write(top.join("files/other/.gitattributes"), "* filter=x\n").unwrap();
        assert!(!files.speak_of_filters(&paths), "no path is in that folder");
        assert!(files.speak_of_filters(&[b"other/c".to_vec()]));
        assert!(
            files.speak_of_filters(&[b"gone/.gitattributes".to_vec()]),
            "only in the index"
        );
        for place in ["files/one/.gitattributes", "git/info/attributes", "own"] {
            fs::write(top.join(place), "[attr]big filter=lfs\n").unwrap();
            assert!(files.speak_of_filters(&paths), "{place}");
            fs::remove_file(top.join(place)).unwrap();
        }
    }
}
