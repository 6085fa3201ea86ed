//! A private git directory over files of another owner. Commands that look at files run on it
//! instead of on the `.git` that a session or a stranger could have written: it has no hooks, and
//! no filter, textconv or merge program is configured in it, so none can run. It owns its layout;
//! callers own the purpose.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;

use crate::command::GitCommand;
use crate::error::GitError;

/// The author of Kage's own commits.
pub(crate) const IDENTITY: (&str, &str) = ("Kage Bunshin", "kage@localhost");

#[derive(Debug, Clone)]
pub(crate) struct Shadow {
    git_dir: PathBuf,
    work_tree: PathBuf,
    objects: PathBuf,
    /// Whether the written objects stay after this process's use of it.
    lasting: bool,
}

impl Shadow {
    /// Describes one that exists, or that [`Shadow::make`] will make. New objects go to `objects`,
    /// or to its own object store.
    pub(crate) fn new(git_dir: &Path, work_tree: &Path, objects: Option<PathBuf>) -> Self {
        Self {
            git_dir: git_dir.to_owned(),
            work_tree: work_tree.to_owned(),
            lasting: objects.is_some(),
            objects: objects.unwrap_or_else(|| git_dir.join("objects")),
        }
    }

    /// Creates it. Its own object store borrows from `alternates`.
    pub(crate) fn make(&self, head: &Oid, config: &str, alternates: &[PathBuf]) -> Result<(), GitError> {
        make_repository(&self.git_dir, head, config, alternates)
    }

    pub(crate) fn git_dir(&self) -> &Path {
        &self.git_dir
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.git_dir.join("index")
    }

    pub(crate) fn git(&self, operation: &'static str) -> GitCommand {
        GitCommand::new(operation)
            .git_dir(&self.git_dir)
            .env("GIT_WORK_TREE", &self.work_tree)
            .env("GIT_OBJECT_DIRECTORY", &self.objects)
            .current_dir(&self.work_tree)
            .config("core.fsync", if self.lasting { "all" } else { "none" })
    }

    /// The same git directory over another folder.
    pub(crate) fn over(&self, work_tree: &Path) -> Self {
        Self {
            work_tree: work_tree.to_owned(),
            ..self.clone()
        }
    }

    /// Commits a tree with Kage's fixed identity.
    pub(crate) async fn commit_tree(&self, tree: &Oid, parents: &[&Oid], message: &str) -> Result<Oid, GitError> {
        let mut command = self.git("commit-tree");
        for parent in parents {
            command = command.args(["-p", parent.as_str()]);
        }
        command
            .arg(tree.as_str())
            .env("GIT_AUTHOR_NAME", IDENTITY.0)
            .env("GIT_AUTHOR_EMAIL", IDENTITY.1)
            .env("GIT_COMMITTER_NAME", IDENTITY.0)
            .env("GIT_COMMITTER_EMAIL", IDENTITY.1)
            .stdin(message)
            .run_for_oid()
            .await
    }
}

/// Creates a git directory with a detached HEAD and borrowed objects.
pub(crate) fn make_repository(
    git_dir: &Path,
    head: &Oid,
    config: &str,
    alternates: &[PathBuf],
) -> Result<(), GitError> {
    for folder in ["objects/info", "objects/pack", "refs/heads", "refs/tags", "info"] {
        let folder = git_dir.join(folder);
        fs::create_dir_all(&folder).map_err(GitError::io("create", &folder))?;
    }
    let mut borrowed = Vec::new();
    for path in alternates {
        borrowed.extend_from_slice(path.as_os_str().as_encoded_bytes());
        borrowed.push(b'\n');
    }
    for (name, bytes) in [
        ("objects/info/alternates", borrowed.as_slice()),
        ("config", config.as_bytes()),
        ("HEAD", format!("{head}\n").as_bytes()),
    ] {
        let path = git_dir.join(name);
        let mut file = fs::File::create(&path).map_err(GitError::io("create", &path))?;
        file.write_all(bytes).map_err(GitError::io("write", &path))?;
    }
    Ok(())
}
