//! The origin of a task: the working tree that its base was taken from. The client sends it when it
//! creates the task, and uses it to ask for "the newest task here"; to everybody else the two ids
//! say nothing. No paths, no machine's name.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::id::{Digest, Oid, RepositoryId, WorktreeId};

/// The origin of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskOrigin {
    /// The clone, the same for all its working trees.
    pub repository: RepositoryId,
    /// The working tree.
    pub worktree: WorktreeId,
    /// The commit of the person's own history that equals the base, or that the base builds on when
    /// it holds uncommitted work.
    pub head: Option<Oid>,
}

impl TaskOrigin {
    /// The origin of a working tree. `machine` identifies the machine, `home` stands for the
    /// repository with all its working trees, `root` is the top of this one; both are paths without
    /// symbolic links.
    #[must_use]
    pub fn of(machine: &str, home: &Path, root: &Path, head: Option<Oid>) -> Self {
        Self {
            repository: RepositoryId::of(identity("repository", machine, home)),
            worktree: WorktreeId::of(identity("worktree", machine, root)),
            head,
        }
    }

    /// Whether both are working trees of one clone.
    #[must_use]
    pub fn is_same_repository(&self, other: &Self) -> bool {
        self.repository == other.repository
    }
}

/// A digest of all three. The lengths keep their borders unambiguous.
fn identity(what: &str, machine: &str, path: &Path) -> Digest {
    let path = path.as_os_str().as_encoded_bytes();
    let mut bytes = format!("kage {what} {} {machine} ", machine.len()).into_bytes();
    bytes.extend_from_slice(path);
    Digest::of(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(machine: &str, home: &str, root: &str) -> TaskOrigin {
        TaskOrigin::of(machine, Path::new(home), Path::new(root), None)
    }

    #[test]
    fn working_trees_of_a_repository_share_it_and_differ() {
        let main = origin("m", "/a/project", "/a/project");
        let linked = origin("m", "/a/project", "/a/linked");
        assert!(main.is_same_repository(&linked));
        assert_ne!(main.worktree, linked.worktree);
        assert_eq!(main, origin("m", "/a/project", "/a/project"));
        for other in [
            origin("m", "/b/project", "/b/project"),
            origin("n", "/a/project", "/a/project"),
            origin("m /a", "/project", "/project"),
        ] {
            assert!(!main.is_same_repository(&other), "{other:?}");
            assert_ne!(main.worktree, other.worktree, "{other:?}");
        }
        // The path cannot be read off.
        assert!(!format!("{main:?}").contains("project"));
    }
}
