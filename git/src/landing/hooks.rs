//! The hooks of a person that take part in a commit or a push, and running them. They run only where
//! the person asks for it, and as HEAD has them: a file of the working tree that a hook is made of must
//! be as it is in HEAD, or ignored, and is written last when the result changes it. What a hook itself
//! runs - the project's own scripts and tools - is its own business, as in `git commit`.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{LandedAs, LandingError, Obstacle, ObstacleKind, PlannedPath, shown};
use crate::command::GitCommand;
use crate::error::{GitError, blocking};
use crate::executable::is_executable;
use crate::staging::split;
use crate::user_repo::{UserRepo, UserShadow};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    PreCommit,
    PrepareCommitMessage,
    CommitMessage,
    PostCommit,
    /// `git push` itself runs it.
    PrePush,
}

impl Hook {
    const ALL: [Self; 5] = [
        Self::PreCommit,
        Self::PrepareCommitMessage,
        Self::CommitMessage,
        Self::PostCommit,
        Self::PrePush,
    ];

    /// git's name of it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreCommit => "pre-commit",
            Self::PrepareCommitMessage => "prepare-commit-msg",
            Self::CommitMessage => "commit-msg",
            Self::PostCommit => "post-commit",
            Self::PrePush => "pre-push",
        }
    }
}

/// The hooks of a repository that would run.
#[derive(Debug, Clone)]
pub struct Hooks {
    root: PathBuf,
    folder: PathBuf,
    found: Vec<Hook>,
}

impl Hooks {
    /// Asks git where they are. Nothing of the repository runs.
    ///
    /// # Errors
    /// When git fails.
    pub async fn find(repository: &UserRepo) -> Result<Self, GitError> {
        let root = repository.root().to_owned();
        let answer = GitCommand::typed("rev-parse", &root)
            .args(["--path-format=absolute", "--git-path", "hooks"])
            .run()
            .await?;
        let text = String::from_utf8(answer).map_err(|error| GitError::unexpected("rev-parse", error.as_bytes()))?;
        let folder = PathBuf::from(text.strip_suffix('\n').unwrap_or(&text));
        let is_there = |hook: &Hook| is_executable(&folder.join(hook.name()));
        Ok(Self {
            root,
            found: Hook::ALL.into_iter().filter(is_there).collect(),
            folder,
        })
    }

    /// Those of a commit.
    #[must_use]
    pub fn of_commit(&self) -> Vec<Hook> {
        let found = self.found.iter().copied();
        found.filter(|hook| *hook != Hook::PrePush).collect()
    }

    #[must_use]
    pub fn has(&self, hook: Hook) -> bool {
        self.found.contains(&hook)
    }

    /// Whether a commit would run any.
    pub(super) fn is_asked(&self) -> bool {
        !self.of_commit().is_empty()
    }

    /// Runs one, if it is there, at the top of the working tree. What it says is for the person.
    pub(super) async fn run(&self, hook: Hook, index: &Path, arguments: &[&Path]) -> Result<(), LandingError> {
        if !self.has(hook) {
            return Ok(());
        }
        let mut command = GitCommand::typed("hook", &self.root)
            .args(["run", "--ignore-missing", hook.name(), "--"])
            .args(arguments)
            .env("GIT_INDEX_FILE", index)
            // As for every commit whose message is not edited.
            .env("GIT_EDITOR", ":");
        if let Some(folder) = self.folder.to_str() {
            command = command.config("core.hooksPath", folder);
        }
        match command.run_openly().await {
            Err(GitError::Failed { exit, .. }) => Err(LandingError::HookFailed { hook, exit }),
            other => Ok(other?),
        }
    }

    /// Runs post-commit, which can only fail without consequences.
    pub(super) async fn tell_committed(&self) {
        if !self.has(Hook::PostCommit) {
            return;
        }
        let command = GitCommand::typed("hook", &self.root).args(["run", "--ignore-missing", Hook::PostCommit.name()]);
        let command = match self.folder.to_str() {
            Some(folder) => command.config("core.hooksPath", folder),
            None => command,
        };
        if let Err(error) = command.env("GIT_EDITOR", ":").run_openly().await {
            tracing::warn!(%error, "the post-commit hook failed; the commit is made");
        }
    }

    /// The files and folders of the working tree that the hooks are made of, from its top, when all of
    /// them are as HEAD has them.
    pub(super) async fn unchanged_parts(
        &self,
        repository: &UserRepo,
        store: &UserShadow,
        landing: &[PlannedPath],
    ) -> Result<Vec<PathBuf>, LandingError> {
        let (hooks, git_dirs) = (self.clone(), repository.git_dirs());
        let parts = blocking("looking at hooks", move || hooks.parts(&git_dirs)).await?;
        if parts.is_empty() {
            return Ok(parts);
        }
        let status = store
            .shadow
            .git("status")
            .args(["--porcelain=v1", "-z", "--untracked-files=all", "--no-renames"])
            .args(["--ignore-submodules=all", "--"])
            .args(&parts)
            .env("GIT_LITERAL_PATHSPECS", "1")
            .run()
            .await?;
        // Each is two letters, a space and the path.
        let differing = split(&status).filter_map(|line| line.get(3..));
        let mut paths: Vec<String> = differing
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect();
        // An ignored file that the result brings, and that is here already.
        let is_part = |path: &Path| parts.iter().any(|part| path.starts_with(part));
        let brought = landing
            .iter()
            .filter(|it| it.landed_as == LandedAs::Created && is_part(&it.path));
        let here = brought.filter(|it| fs::symlink_metadata(self.root.join(&it.path)).is_ok());
        paths.extend(here.map(|it| shown(&it.path)));
        if paths.is_empty() {
            return Ok(parts);
        }
        paths.sort();
        paths.dedup();
        let obstacle = |path| Obstacle {
            path,
            reason: "your hooks are made of it, and it is not as HEAD has it",
            kind: ObstacleKind::Edited,
        };
        Err(LandingError::HooksDiffer {
            paths: paths.into_iter().map(obstacle).collect(),
        })
    }

    fn parts(&self, git_dirs: &[PathBuf]) -> Result<Vec<PathBuf>, GitError> {
        let root = fs::canonicalize(&self.root).map_err(GitError::io("resolve", &self.root))?;
        let in_tree = |path: &Path| {
            let real = fs::canonicalize(path).ok()?;
            let is_gits = git_dirs.iter().any(|git_dir| real.starts_with(git_dir));
            let inside = real.strip_prefix(&root).ok().filter(|_| !is_gits)?;
            Some(inside.to_owned())
        };
        let mut parts = Vec::new();
        match in_tree(&self.folder) {
            Some(inside) if inside.as_os_str().is_empty() => {
                parts.extend(self.found.iter().map(|hook| PathBuf::from(hook.name())));
            }
            Some(inside) => {
                // Hooks in a folder `_` are made by a program, and run those of the same name beside it.
                let made = inside.file_name().is_some_and(|name| name == "_");
                let beside = inside.parent().filter(|above| made && !above.as_os_str().is_empty());
                parts.push(beside.map_or_else(|| inside.clone(), Path::to_owned));
            }
            None => {}
        }
        parts.extend(
            self.folder
                .strip_prefix(&self.root)
                .ok()
                .and_then(|path| first_link(&self.root, path)),
        );
        // A hook may be a link to a file of the project.
        parts.extend(
            self.found
                .iter()
                .filter_map(|hook| in_tree(&self.folder.join(hook.name()))),
        );
        parts.sort();
        parts.dedup();
        Ok(parts)
    }
}

/// The first part of a path that is a symbolic link.
fn first_link(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut so_far = PathBuf::new();
    for part in path.components() {
        if let Component::Normal(name) = part {
            so_far.push(name);
        }
        if fs::symlink_metadata(root.join(&so_far)).is_ok_and(|meta| meta.is_symlink()) {
            return Some(so_far);
        }
    }
    None
}
