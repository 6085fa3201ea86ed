//! Submodules in a worktree: each is a repository of its own, with its files at the recorded commit,
//! as `git submodule update` leaves it. Its git directory is in the session's, without a history and
//! without a remote.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use git2::{ObjectType, Repository, Tree};
use kage_core::id::Oid;
use rustix::fs::{Dir, Mode, OFlags};

use super::{KAGE_CONFIG, Worktree};
use crate::beneath::{Beneath, Parent};
use crate::error::{GitError, blocking};
use crate::mirror::FIRST_BESIDE;
use crate::objects::{id_of, mode, oid_of};
use crate::shadow::{IDENTITY, Shadow, make_repository};
use crate::staging::lines;
use crate::submodules::{SUBMODULES, entries_of, filled, filled_file, has_parent, read, tree_of_commit};

/// A submodule whose git directory is made.
struct Ready {
    path: PathBuf,
    git_dir: PathBuf,
    tree: Oid,
}

impl Worktree {
    /// Fills the folders of submodules, which are empty, with their files, as far as a commit of names
    /// has them. From then on no checkpoint and no result of this worktree looks into them.
    ///
    /// # Errors
    /// When the commit is not in the mirror, or git or the file system fails.
    pub async fn fill_submodules(&self, commit: &Oid) -> Result<(), GitError> {
        let (mirror, root, base) = (self.mirror.path().to_owned(), self.path.clone(), self.base.clone());
        let (objects, commit) = (self.mirror.objects(), commit.clone());
        let all = blocking("filling submodules", move || known(&mirror, &base, &commit)).await?;
        let mut filled = Vec::new();
        let mut git_dirs = HashMap::from([(PathBuf::new(), root.join(".git"))]);
        for (number, submodule) in all.into_iter().enumerate() {
            let (place, borrowed) = (root.clone(), objects.clone());
            let made = blocking("filling submodules", move || make(&place, number, submodule, borrowed));
            let Some(ready) = made.await? else { continue };
            let folder = root.join(&ready.path);
            let shadow = Shadow::new(&ready.git_dir, &folder, Some(objects.clone()));
            let read = shadow.git("read-tree");
            let read = read.args(["--reset", "-u", "--end-of-options", ready.tree.as_str()]);
            read.run().await?;
            let link = folder.join(".git");
            let text = format!("gitdir: {}\n", ready.git_dir.display());
            fs::write(&link, text).map_err(GitError::io("create", &link))?;
            let mut around = ready.path.ancestors().skip(1);
            let around = around.find_map(|above| Some((above, git_dirs.get(above)?)));
            if let Some((above, git_dir)) = around {
                activate(git_dir, ready.path.strip_prefix(above).unwrap_or(&ready.path))?;
            }
            git_dirs.insert(ready.path.clone(), ready.git_dir);
            filled.push(ready.path.into_os_string().into_encoded_bytes());
        }
        if filled.is_empty() {
            return Ok(());
        }
        let file = filled_file(&self.shadow);
        fs::write(&file, lines(&filled)).map_err(GitError::io("write", &file))
    }
}

/// A submodule whose folder has its files.
#[derive(Debug)]
pub(super) struct Filled {
    /// Relative to the worktree.
    pub(super) path: PathBuf,
    pub(super) git_dir: PathBuf,
    pub(super) tree: Oid,
}

/// The submodules of a commit of names that have their files in the worktree.
pub(super) async fn filled_at(worktree: &Worktree, commit: &Oid) -> Result<Vec<Filled>, GitError> {
    let (mirror, root, base) = (
        worktree.mirror.path().to_owned(),
        worktree.path.clone(),
        worktree.base.clone(),
    );
    let (shadow, commit) = (worktree.shadow.clone(), commit.clone());
    blocking("reading submodules", move || {
        let filled = filled(&shadow)?;
        let all = known(&mirror, &base, &commit)?.into_iter().enumerate();
        Ok(all
            .filter(|(_, sent)| filled.contains(&sent.path))
            .map(|(number, sent)| Filled {
                git_dir: git_dir_of(&root, number),
                path: sent.path,
                tree: sent.tree,
            })
            .collect())
    })
    .await
}

fn git_dir_of(root: &Path, number: usize) -> PathBuf {
    root.join(".git/modules").join(number.to_string())
}

/// A submodule as it was sent.
struct Sent {
    path: PathBuf,
    commit: Oid,
    tree: Oid,
    content: Vec<u8>,
}

/// Those submodules of a commit of names that the base has at these commits.
fn known(mirror: &Path, base: &Oid, commit: &Oid) -> Result<Vec<Sent>, GitError> {
    let library = || GitError::library("read the submodules of a base");
    let repository = Repository::open_bare(mirror).map_err(library())?;
    let named = repository.find_commit(id_of(commit)?).map_err(library())?;
    let mut sent = None;
    for parent in named.parents().skip(FIRST_BESIDE) {
        let tree = parent.tree().map_err(library())?;
        if tree.get_name(SUBMODULES).is_some() {
            sent = Some(tree);
        }
    }
    let Some(sent) = sent else { return Ok(Vec::new()) };
    let content = |name: &str| {
        let entry = sent
            .get_name(name)
            .filter(|entry| entry.kind() == Some(ObjectType::Blob));
        let blob = entry.and_then(|entry| repository.find_blob(entry.id()).ok());
        blob.map(|blob| blob.content().to_vec())
    };
    let base = repository.find_commit(id_of(base)?).and_then(|base| base.tree());
    let mut trees: HashMap<PathBuf, Tree<'_>> = HashMap::from([(PathBuf::new(), base.map_err(library())?)]);
    let mut all = Vec::new();
    for (number, (commit, path)) in read(&content(SUBMODULES).unwrap_or_default()).into_iter().enumerate() {
        let (files, object) = entries_of(number);
        let (Some(path), Some(content), Some(files)) = (path, content(&object), sent.get_name(&files)) else {
            continue;
        };
        let hashed = git2::Oid::hash_object(ObjectType::Commit, &content).map_err(library())?;
        let is_of_commit = tree_of_commit(&content) == Some(files.id().to_string().as_str());
        // The base, or the submodule that this one is in, has it at this commit.
        let around = path
            .ancestors()
            .skip(1)
            .find_map(|above| Some((above, trees.get(above)?)));
        let recorded = around.and_then(|(above, tree)| tree.get_path(path.strip_prefix(above).ok()?).ok());
        let is_recorded = recorded
            .is_some_and(|entry| u32::try_from(entry.filemode()) == Ok(mode::SUBMODULE) && entry.id() == hashed);
        if hashed.to_string() != commit.as_str() || !is_of_commit || !is_recorded {
            continue;
        }
        let tree = repository.find_tree(files.id()).map_err(library())?;
        all.push(Sent {
            path: path.clone(),
            commit,
            tree: oid_of(files.id())?,
            content,
        });
        trees.insert(path, tree);
    }
    Ok(all)
}

/// Tells the repository that a submodule is in that it is one of those that are checked out.
fn activate(git_dir: &Path, path: &Path) -> Result<(), GitError> {
    let config = git_dir.join("config");
    let failed = |error| GitError::io("write", &config)(error);
    let line = format!("[submodule]\n\tactive = \":(top,literal){}\"\n", quoted(path));
    let mut file = fs::File::options().append(true).open(&config).map_err(failed)?;
    file.write_all(line.as_bytes()).map_err(failed)
}

/// A path in a value of a configuration file.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Makes the git directory of a submodule. `None`: its folder is not there or not empty, or a link is
/// on the way to it.
fn make(root: &Path, number: usize, sent: Sent, objects: PathBuf) -> Result<Option<Ready>, GitError> {
    let full = root.join(&sent.path);
    let failed = |error: std::io::Error| GitError::io("open", &full)(error);
    let beneath = Beneath::open(root).map_err(failed)?;
    let Parent::Open(parent, name) = beneath.parent(&sent.path, false).map_err(failed)? else {
        return Ok(None);
    };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let Ok(folder) = rustix::fs::openat(&parent, name, flags, Mode::empty()) else {
        return Ok(None);
    };
    let entries = Dir::read_from(&folder).map_err(|error| failed(error.into()))?;
    let mut entries = entries.filter(|entry| {
        let name = entry.as_ref().map(|entry| entry.file_name().to_bytes().to_vec());
        !name.is_ok_and(|name| name == b"." || name == b"..")
    });
    if entries.next().is_some() {
        return Ok(None);
    }
    let git_dir = git_dir_of(root, number);
    let (name, email) = IDENTITY;
    let work_tree = quoted(&full);
    let config = format!(
        "{KAGE_CONFIG}\tworktree = \"{work_tree}\"\n[user]\n\tname = {name}\n\temail = {email}\n[gc]\n\tauto = 0\n"
    );
    make_repository(&git_dir, &sent.commit, &config, &[objects])?;
    // Its parents are not there.
    if has_parent(&sent.content) {
        let shallow = git_dir.join("shallow");
        fs::write(&shallow, format!("{}\n", sent.commit)).map_err(GitError::io("create", &shallow))?;
    }
    let written =
        Repository::open(&git_dir).and_then(|repository| repository.odb()?.write(ObjectType::Commit, &sent.content));
    written.map_err(GitError::library("write the commit of a submodule"))?;
    Ok(Some(Ready {
        path: sent.path,
        git_dir,
        tree: sent.tree,
    }))
}
