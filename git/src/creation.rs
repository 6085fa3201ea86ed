//! Makes a repository of a folder, for samples, with everything in one commit.

use std::path::Path;

use git2::{IndexAddOption, Repository, RepositoryInitOptions, Signature};

use crate::error::{GitError, blocking};

/// Makes a repository in `root`, with all its files in one commit on the branch `main`.
///
/// # Errors
/// When the folder is a repository already, or the file system refuses.
pub async fn create(root: &Path, message: &str) -> Result<(), GitError> {
    let (root, message) = (root.to_owned(), message.to_owned());
    blocking("making a repository", move || {
        commit_everything(&root, &message).map_err(|source| GitError::Library {
            action: "make a repository",
            source,
        })
    })
    .await
}

fn commit_everything(root: &Path, message: &str) -> Result<(), git2::Error> {
    let mut options = RepositoryInitOptions::new();
    options.initial_head("main").no_reinit(true).external_template(false);
    let repository = Repository::init_opts(root, &options)?;
    let mut index = repository.index()?;
    index.add_all(["*"], IndexAddOption::DEFAULT, None)?;
    index.write()?;
    let tree = repository.find_tree(index.write_tree()?)?;
    let author = Signature::now("Kage Bunshin", "kage@localhost")?;
    repository.commit(Some("HEAD"), &author, &author, message, &tree, &[])?;
    Ok(())
}
