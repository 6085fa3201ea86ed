//! Tags and branches in a session's own repository, as the person's had them when the base was
//! taken. They are in `.git/packed-refs`, which git reads as references of its own and where a name
//! is text and never a path; HEAD is on the branch that the person was on. Objects of annotated tags
//! go into the mirror, whose objects the session borrows.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use git2::{ErrorCode, ObjectType, Repository};
use kage_core::id::Oid;

use super::Worktree;
use crate::error::{GitError, blocking};
use crate::mirror::FIRST_BESIDE;
use crate::names::{NAMES, Names, TAGS, Target, commit_of_tag, tag_objects};
use crate::objects::{Objects, Unflushed, id_of};

impl Worktree {
    /// Gives the session's repository, which was just made, the names of a commit of names. What is
    /// wrong with one of them leaves it out; a commit of anything else has none.
    ///
    /// # Errors
    /// When the commit is not in the mirror, or the file system refuses.
    pub async fn give_names(&self, commit: &Oid) -> Result<(), GitError> {
        let (mirror, own) = (self.mirror.path().to_owned(), self.path.join(".git"));
        let (at, commit) = (self.base.clone(), commit.clone());
        blocking("naming commits", move || {
            let (names, tags) = read(&mirror, &commit)?;
            let known = store(&mirror, &names, &tags)?;
            write(&own, &at, &known)
        })
        .await
    }
}

/// The names and the tag objects of a commit of names.
fn read(mirror: &Path, commit: &Oid) -> Result<(Names, BTreeMap<Oid, Vec<u8>>), GitError> {
    let repository = Repository::open_bare(mirror).map_err(GitError::library("open a mirror"))?;
    let file = |commit: &git2::Commit<'_>, name: &str| {
        let tree = commit.tree()?;
        match tree.get_name(name) {
            Some(entry) if entry.kind() == Some(ObjectType::Blob) => {
                repository.find_blob(entry.id()).map(|blob| blob.content().to_vec())
            }
            Some(_) | None => Ok(Vec::new()),
        }
    };
    let library = || GitError::library("read the names of a base");
    let commit = repository.find_commit(id_of(commit)?).map_err(library())?;
    let names = Names::read(&file(&commit, NAMES).map_err(library())?);
    let mut tags = Vec::new();
    for number in FIRST_BESIDE..commit.parent_count() {
        let below = commit.parent(number).map_err(library())?;
        tags.extend(file(&below, TAGS).map_err(library())?);
    }
    Ok((names, tag_objects(&tags)))
}

/// Puts the tag objects that are not there into the mirror. Returns the names whose commits it has:
/// git ends with an error at a reference to nothing.
fn store(mirror: &Path, names: &Names, tags: &BTreeMap<Oid, Vec<u8>>) -> Result<Names, GitError> {
    let mut objects = Objects::open(mirror, Unflushed::default())?;
    let mut known = Names::default();
    let mut missing = Vec::new();
    {
        let odb = objects.repository().odb().map_err(GitError::library("open a mirror"))?;
        let is_commit = |id: &Oid| {
            let header = odb.read_header(id_of(id)?);
            Ok::<_, GitError>(header.is_ok_and(|(_, kind)| kind == ObjectType::Commit))
        };
        if let Some(branch) = names.on() {
            known.set_on(branch);
        }
        for (name, target) in names.targets() {
            let is_known = match target {
                Target::Commit(commit) => is_commit(commit)?,
                Target::Tag { tag, commit } => match tags.get(tag) {
                    Some(content) if commit_of_tag(content).as_ref() == Some(commit) && is_commit(commit)? => {
                        match odb.read(id_of(tag)?) {
                            Ok(_) => {}
                            Err(error) if error.code() == ErrorCode::NotFound => missing.push(content.clone()),
                            Err(error) => return Err(GitError::library("read a tag")(error)),
                        }
                        true
                    }
                    Some(_) | None => false,
                },
                // Names are in order: it is added below, when the other one is.
                Target::Name(_) => false,
            };
            if is_known {
                known.add(name, target.clone());
            }
        }
    }
    for (name, target) in names.targets() {
        if let Target::Name(other) = target
            && known.has(other)
        {
            known.add(name, target.clone());
        }
    }
    if !missing.is_empty() {
        for content in missing {
            objects.write(ObjectType::Tag, content)?;
        }
        objects.flush([])?;
    }
    Ok(known)
}

/// Writes them into the session's repository, whose HEAD is at a commit.
fn write(own: &Path, at: &Oid, names: &Names) -> Result<(), GitError> {
    let put = |name: &str, text: String| {
        let path = own.join(name);
        let folder = path.parent().unwrap_or(own);
        fs::create_dir_all(folder).map_err(GitError::io("create", folder))?;
        fs::write(&path, text).map_err(GitError::io("create", &path))
    };
    let mut lines = BTreeMap::new();
    for (name, target) in names.targets() {
        match target {
            Target::Commit(commit) => drop(lines.insert(name, format!("{commit} {name}\n"))),
            Target::Tag { tag, commit } => drop(lines.insert(name, format!("{tag} {name}\n^{commit}\n"))),
            Target::Name(other) => put(name, format!("ref: {other}\n"))?,
        }
    }
    if let Some(branch) = names.on() {
        lines.insert(branch, format!("{at} {branch}\n"));
    }
    let mut text = "# pack-refs with: peeled fully-peeled sorted \n".to_owned();
    text.extend(lines.into_values());
    put("packed-refs", text)?;
    match names.on() {
        Some(branch) => put("HEAD", format!("ref: {branch}\n")),
        None => Ok(()),
    }
}
