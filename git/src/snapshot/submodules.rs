//! The submodules of a base, as far as the person's machine has their recorded commits: found in
//! `.git/modules` or, where a submodule has a git directory of its own, in its folder. Only the files
//! of the recorded commits go along, with no history and nothing uncommitted.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use git2::{ObjectType, Repository};
use kage_core::id::Oid;

use crate::error::{GitError, blocking};
use crate::objects::id_of;
use crate::shadow::Shadow;
use crate::staging::split;
use crate::submodules::{MAX_COMMIT_BYTES, MAX_SUBMODULES, tree_of_commit};
use crate::user_repo::UserRepo;

/// Submodules of submodules of submodules.
const MAX_DEPTH: usize = 8;

/// A submodule with the files of its recorded commit.
#[derive(Debug)]
pub(super) struct FoundSubmodule {
    pub(super) path: String,
    pub(super) commit: Oid,
    pub(super) tree: Oid,
    /// The object of the commit.
    pub(super) content: Vec<u8>,
}

/// The submodules of a base, and the paths of those that this machine does not have.
#[derive(Debug, Default)]
pub(super) struct FoundSubmodules {
    pub(super) found: Vec<FoundSubmodule>,
    pub(super) missing: Vec<String>,
}

/// A tree in which submodules are looked for.
struct Within {
    /// Its path in the person's repository: empty, or ending with a slash.
    prefix: String,
    tree: Oid,
    /// Git directories that may have those of its submodules.
    git_dirs: Vec<PathBuf>,
    depth: usize,
}

/// Looks for the submodules of the base. From then on `shadow` reads the objects of those that were
/// found.
pub(super) async fn find(repository: &UserRepo, shadow: &Shadow, base: &Oid) -> Result<FoundSubmodules, GitError> {
    let mut all = FoundSubmodules::default();
    let allowed = repository
        .folders()
        .map(|folder| fs::canonicalize(folder).unwrap_or_default());
    let allowed: Vec<PathBuf> = allowed.filter(|folder| folder.is_absolute()).collect();
    let mut open = vec![Within {
        prefix: String::new(),
        tree: base.clone(),
        git_dirs: repository.folders().skip(1).map(Path::to_owned).collect(),
        depth: 0,
    }];
    while let Some(within) = open.pop() {
        let names = names_in(shadow, &within.tree).await;
        let mut inner = Vec::new();
        for (relative, commit) in gitlinks(shadow, &within.tree).await? {
            let path = format!("{}{relative}", within.prefix);
            if all.found.len() >= MAX_SUBMODULES || within.depth >= MAX_DEPTH {
                all.missing.push(path);
                continue;
            }
            let names = names.get(&relative).into_iter().flatten();
            let in_modules =
                names.flat_map(|name| within.git_dirs.iter().map(move |dir| dir.join("modules").join(name)));
            let mut places: Vec<PathBuf> = in_modules.collect();
            places.extend(own_git_dir(&repository.root().join(&path)));
            let (wanted, allowed) = (commit.clone(), allowed.clone());
            let looked = blocking("looking for a submodule", move || {
                Ok::<_, GitError>(places.into_iter().find_map(|place| look(&place, &allowed, &wanted)))
            });
            let Some((git_dir, tree, content)) = looked.await? else {
                all.missing.push(path);
                continue;
            };
            borrow(shadow, &git_dir.join("objects"))?;
            // The objects may be at a remote only.
            let walk = shadow.git("rev-list").args(["--objects", "--quiet", tree.as_str()]);
            if !walk.run_to_status().await? {
                all.missing.push(path);
                continue;
            }
            inner.push(Within {
                prefix: format!("{path}/"),
                tree: tree.clone(),
                git_dirs: vec![git_dir],
                depth: within.depth + 1,
            });
            all.found.push(FoundSubmodule {
                path,
                commit,
                tree,
                content,
            });
        }
        inner.reverse();
        open.extend(inner);
    }
    Ok(all)
}

/// The submodules of a tree: paths that are text, and the recorded commits.
async fn gitlinks(shadow: &Shadow, tree: &Oid) -> Result<Vec<(String, Oid)>, GitError> {
    let listed = shadow
        .git("ls-tree")
        .args(["-r", "-z", "--full-tree", tree.as_str()])
        .run()
        .await?;
    let read = |entry: &[u8]| {
        // "160000 commit ID TAB PATH"
        let (about, path) = std::str::from_utf8(entry).ok()?.split_once('\t')?;
        let commit = about.strip_prefix("160000 commit ")?.parse().ok()?;
        Some((path.to_owned(), commit))
    };
    Ok(split(&listed).filter_map(read).collect())
}

/// The names of submodules by their paths, as `.gitmodules` has them; none when it cannot be read.
async fn names_in(shadow: &Shadow, tree: &Oid) -> HashMap<String, Vec<String>> {
    let listed = shadow
        .git("config")
        .arg(format!("--blob={tree}:.gitmodules"))
        .args(["-z", "--get-regexp", "^submodule\\..*\\.path$"])
        .run()
        .await
        .unwrap_or_default();
    let mut names: HashMap<String, Vec<String>> = HashMap::new();
    for entry in split(&listed) {
        let entry = String::from_utf8_lossy(entry);
        if let Some((key, path)) = entry.split_once('\n')
            && let Some(name) = key.strip_prefix("submodule.").and_then(|key| key.strip_suffix(".path"))
            && is_name(name)
        {
            names.entry(path.to_owned()).or_default().push(name.to_owned());
        }
    }
    names
}

/// Whether the name of a submodule can be that of a folder below `modules`, as git wants it.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.split(['/', '\\']).all(|part| !matches!(part, "" | "." | ".."))
}

/// The git directory of a submodule that is checked out in `folder`.
fn own_git_dir(folder: &Path) -> Option<PathBuf> {
    let git = folder.join(".git");
    match fs::read_to_string(&git) {
        Ok(text) => Some(folder.join(text.strip_prefix("gitdir: ")?.trim_end_matches('\n'))),
        Err(_) => git.is_dir().then_some(git),
    }
}

/// The git directory at `place`, with the tree and the object of a commit, if it has that. A file of a
/// repository of unknown origin could name any directory: only those of this repository are read.
fn look(place: &Path, allowed: &[PathBuf], commit: &Oid) -> Option<(PathBuf, Oid, Vec<u8>)> {
    let place = fs::canonicalize(place).ok()?;
    if !allowed.iter().any(|folder| place.starts_with(folder)) {
        return None;
    }
    let repository = Repository::open_bare(&place).ok()?;
    let odb = repository.odb().ok()?;
    let object = odb.read(id_of(commit).ok()?).ok()?;
    let content = object.data().to_vec();
    if object.kind() != ObjectType::Commit || content.len() > MAX_COMMIT_BYTES {
        return None;
    }
    let tree = tree_of_commit(&content)?.parse().ok()?;
    Some((place, tree, content))
}

/// Lets a private git directory read other objects, too.
fn borrow(shadow: &Shadow, objects: &Path) -> Result<(), GitError> {
    let file = shadow.git_dir().join("objects/info/alternates");
    let failed = |error| GitError::io("write", &file)(error);
    let mut bytes = fs::read(&file).map_err(failed)?;
    bytes.extend_from_slice(objects.as_os_str().as_encoded_bytes());
    bytes.push(b'\n');
    fs::write(&file, bytes).map_err(failed)
}
