//! Folders that only their owner may enter: the state of coordinators, agents and people, with
//! tokens, keys and the work of others.

use std::io;
use std::path::Path;

/// Creates a folder with mode 0700, and its missing parents. An existing folder keeps its mode.
#[cfg(unix)]
pub fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Creates a folder and its missing parents.
#[cfg(not(unix))]
pub fn make_private(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn new_folders_are_their_owners_and_old_ones_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let deep = dir.path().join("state/agent");
        make_private(&deep).unwrap();
        assert_eq!((mode(&deep), mode(&dir.path().join("state"))), (0o700, 0o700));
        std::fs::set_permissions(&deep, std::fs::Permissions::from_mode(0o750)).unwrap();
        make_private(&deep).unwrap();
        assert_eq!(mode(&deep), 0o750);
        std::fs::write(deep.join("file"), "").unwrap();
        assert!(make_private(&deep.join("file")).is_err());
    }
}
