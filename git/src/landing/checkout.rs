//! A working tree of the person's repository with the files of a result in it, to try the result in.
//! Its HEAD is a commit of the person's own, detached, so that nothing of a session becomes a part of
//! their history; the index has that commit, and what the session changed shows as changed. No program of the
//! person's runs: no hook, and no filter. Files behind Git LFS have the contents that git-lfs keeps here.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;

use super::large::kept;
use crate::error::{GitError, blocking};
use crate::large::{FILTER, Pointer};
use crate::mirror::Mirror;
use crate::snapshot::filters_of;
use crate::staging::split;
use crate::user_repo::UserRepo;

/// What is asked for.
#[derive(Debug)]
pub struct ResultCheckout<'a> {
    /// Has the result.
    pub mirror: &'a Mirror,
    pub result: &'a Oid,
    /// The person's commit that is checked out beneath it.
    pub head: &'a Oid,
    /// Where: an absolute path, of nothing or of an empty folder.
    pub folder: &'a Path,
}

/// Why there is no such working tree. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    #[error("{} is there already", path.display())]
    Taken { path: PathBuf },
    /// It would be an untracked folder of the person's own files.
    #[error("{} is inside the files of the repository, which does not ignore it", path.display())]
    Inside { path: PathBuf },
    #[error("could not put the result into a working tree")]
    Git(#[from] GitError),
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedOut {
    /// Files that only a program of the person's could write as they are used.
    pub as_stored: usize,
}

/// Makes the working tree, all of it or nothing.
///
/// # Errors
/// When something is in the way, or git fails.
pub async fn check_out(repository: &UserRepo, asked: &ResultCheckout<'_>) -> Result<CheckedOut, CheckoutError> {
    refuse_taken(repository, asked.folder).await?;
    let mirror = asked.mirror.objects();
    let store = repository.shadow(asked.head, &[mirror]).await?;
    let here = store.shadow.over(asked.folder);
    let index = store.folder.path().join("checkout");
    let git = |operation| {
        here.git(operation)
            .env("GIT_INDEX_FILE", &index)
            .current_dir(store.folder.path())
    };
    git("read-tree").arg(asked.result.as_str()).run().await?;
    let listed = git("ls-files").args(["--cached", "-z"]).run().await?;
    let paths: Vec<Vec<u8>> = split(&listed).map(<[u8]>::to_vec).collect();
    repository
        .git("worktree")
        .args(["add", "--quiet", "--detach", "--no-checkout"])
        .arg(asked.folder)
        .arg(asked.head.as_str())
        .run()
        .await?;
    let filled = async {
        here.git("checkout-index")
            .args(["--all", "--quiet"])
            .env("GIT_INDEX_FILE", &index)
            .run()
            .await?;
        own_git(repository, asked.folder, "read-tree")?
            .arg(asked.head.as_str())
            .run()
            .await?;
        filters_of(|operation| here.git(operation).env("GIT_INDEX_FILE", &index), &paths).await
    };
    let filled = async {
        let mut filters = filled.await?;
        filters.retain(|_, filter| repository.has_filter(filter));
        let large = filters.extract_if(|_, filter| filter == FILTER).map(|(path, _)| path);
        let pointers = fill(asked.folder, large.collect(), repository.git_dirs()).await?;
        Ok::<_, GitError>(filters.len() + pointers)
    };
    match filled.await {
        Ok(as_stored) => Ok(CheckedOut { as_stored }),
        Err(error) => {
            let removed = repository.git("worktree").args(["remove", "--force"]).arg(asked.folder);
            if let Err(error) = removed.run().await {
                tracing::warn!(%error, folder = %asked.folder.display(), "half a working tree stays");
            }
            Err(error.into())
        }
    }
}

/// Writes what git-lfs keeps where pointers are. Returns how many stay pointers.
async fn fill(folder: &Path, paths: Vec<Vec<u8>>, git_dirs: [PathBuf; 2]) -> Result<usize, GitError> {
    let folder = folder.to_owned();
    blocking("writing files of Git LFS", move || {
        let mut left = 0;
        for path in paths {
            let full = folder.join(OsStr::from_bytes(&path));
            // It is as this process wrote it, or a link.
            let is_file = fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_file());
            let Some(pointer) = fs::read(&full)
                .ok()
                .filter(|_| is_file)
                .and_then(|text| Pointer::read(&text))
            else {
                continue;
            };
            match kept(&git_dirs, &pointer) {
                Some(content) => fs::write(&full, content).map_err(GitError::io("write", &full))?,
                None => left += 1,
            }
        }
        Ok::<_, GitError>(left)
    })
    .await
}

/// git on the working tree that was made.
fn own_git(
    repository: &UserRepo,
    folder: &Path,
    operation: &'static str,
) -> Result<crate::command::GitCommand, GitError> {
    let link = folder.join(".git");
    let text = fs::read_to_string(&link).map_err(GitError::io("read", &link))?;
    let git_dir = text.trim_end().strip_prefix("gitdir: ").unwrap_or_default();
    let git = repository.git(operation).git_dir(&folder.join(git_dir));
    Ok(git.env("GIT_WORK_TREE", folder).current_dir(folder))
}

async fn refuse_taken(repository: &UserRepo, folder: &Path) -> Result<(), CheckoutError> {
    let path = folder.to_owned();
    let is_free = blocking("looking at a folder", move || {
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(GitError::io("look at", &path)(error)),
            Ok(meta) if !meta.is_dir() => return Ok(false),
            Ok(_) => {}
        }
        let mut inside = fs::read_dir(&path).map_err(GitError::io("list", &path))?;
        Ok(inside.next().is_none())
    })
    .await?;
    if !is_free {
        return Err(CheckoutError::Taken {
            path: folder.to_owned(),
        });
    }
    let Ok(inside) = folder.strip_prefix(repository.root()) else {
        return Ok(());
    };
    let ignored = repository
        .git("check-ignore")
        .args(["--quiet", "--no-index", "--"])
        .arg(inside)
        .run_or_no()
        .await?;
    match ignored {
        Some(_) => Ok(()),
        None => Err(CheckoutError::Inside {
            path: folder.to_owned(),
        }),
    }
}
