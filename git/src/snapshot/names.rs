//! The tags and branches that go with a base, chosen in the person's repository: what `git describe`
//! and `git diff main...HEAD` need, and nothing that the history of the base does not have.
//!
//! | name | where it is in a session |
//! |---|---|
//! | the branch of HEAD | HEAD is on it |
//! | a tag, a branch or a branch of a remote whose commit the base has | there |
//! | a branch that work is compared with and that went on without the base: the upstream of HEAD's, the default of a remote and its namesake, `main`, `master`, `trunk`, `develop` | where the base left it, which is what `A...B` looks for |
//! | any other | not there |

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use git2::{Commit, Repository, Signature, Time};
use kage_core::id::Oid;

use super::large::FoundLarge;
use super::submodules::FoundSubmodule;
use crate::command::parse_oid;
use crate::error::{GitError, blocking};
use crate::large::{LARGE, entry_of, to_text as large_to_text};
use crate::names::{
    MAX_BRANCHES, MAX_TAG_BYTES, MAX_TAGS, MAX_TAGS_BYTES, NAMES, Names, TAGS, Target, commit_of_tag,
    is_head_of_remote, print_tags, tag_objects,
};
use crate::objects::{id_of, mode, oid_of};
use crate::shadow::{IDENTITY, Shadow};
use crate::submodules::{SUBMODULES, entries_of, to_text};
use crate::user_repo::UserRepo;

/// Branches that went on without the base: finding out where it left each one costs a git process.
const MAX_LEFT: usize = 32;

/// The names of branches that work is compared with, by custom.
const COMPARED_WITH: [&str; 5] = ["main", "master", "trunk", "develop", "development"];

/// The names that go with a base.
#[derive(Debug, Default)]
pub(super) struct ListedNames {
    names: Names,
    /// The objects of annotated tags.
    tags: BTreeMap<Oid, Vec<u8>>,
    /// How many did not fit.
    pub(super) left_out: usize,
}

/// The names that go with `head`.
pub(super) async fn list(repository: &UserRepo, head: &Oid) -> Result<ListedNames, GitError> {
    let listed = Listed::of(repository, head).await?;
    let mut names = Names::default();
    for branch in listed.branches().filter(|branch| branch.is_head) {
        names.set_on(&branch.name);
    }
    let (tags, mut left_out) = add_tags(repository, &listed, &mut names).await?;
    left_out += add_branches(repository, head, &listed, &mut names).await?;
    Ok(ListedNames { names, tags, left_out })
}

/// Makes the commit with the names, the submodules and the large files. `None`: there is nothing of any. The same
/// ones have the same commit at the same HEAD, at any time.
pub(super) async fn keep(
    shadow: &Shadow,
    head: &Oid,
    listed: ListedNames,
    submodules: Vec<FoundSubmodule>,
    large: FoundLarge,
) -> Result<Option<Oid>, GitError> {
    let ListedNames { names, tags, .. } = listed;
    if names.is_empty() && submodules.is_empty() && large.files.is_empty() {
        return Ok(None);
    }
    let (git_dir, head) = (shadow.git_dir().to_owned(), id_of(head)?);
    let made = blocking("keeping the names of a repository", move || {
        commit(&git_dir, head, &names, &tags, (&submodules, &large))
    });
    oid_of(made.await?).map(Some)
}

/// A reference of the person's.
#[derive(Debug)]
struct Listing {
    name: String,
    target: Oid,
    /// The reference that it is another name of.
    symbolic: Option<String>,
    upstream: Option<String>,
    /// HEAD is on it.
    is_head: bool,
    /// Its commit is in the history of the base.
    merged: bool,
}

/// The references of the person's, those with a commit of the base first, and of these the newest.
#[derive(Debug)]
struct Listed(Vec<Listing>);

impl Listed {
    async fn of(repository: &UserRepo, head: &Oid) -> Result<Self, GitError> {
        let kinds = ["refs/tags/", "refs/heads/", "refs/remotes/"];
        // No field for which git would have to read an object: one that is missing would end the list.
        let list = repository
            .git("for-each-ref")
            .arg("--format=%(objectname) %(refname) %(symref) %(upstream) %(HEAD)");
        let listed = list.args(kinds).run().await?;
        let mut all: BTreeMap<String, Listing> = lines(&listed).filter_map(Listing::read).collect();
        if all.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let merged = repository.git("for-each-ref").arg(format!("--merged={head}"));
        let merged = merged.args(["--sort=-creatordate", "--format=%(refname)"]).args(kinds);
        let merged = merged.run().await?;
        let mut ordered = Vec::new();
        for name in lines(&merged) {
            if let Some(listing) = all.remove(name) {
                ordered.push(Listing {
                    merged: true,
                    ..listing
                });
            }
        }
        ordered.extend(all.into_values());
        Ok(Self(ordered))
    }

    fn branches(&self) -> impl Iterator<Item = &Listing> {
        self.0.iter().filter(|listing| !listing.is_tag())
    }

    /// The branches that work is compared with.
    fn compared_with(&self, on: Option<&str>) -> BTreeSet<&str> {
        let mut wanted: BTreeSet<&str> = COMPARED_WITH.into();
        let defaults = self.branches().filter(|listing| is_head_of_remote(&listing.name));
        wanted.extend(defaults.filter_map(|listing| short(listing.symbolic.as_deref()?)));
        let named = self.branches().map(|listing| listing.name.as_str());
        let mut found: BTreeSet<&str> = named
            .filter(|name| short(name).is_some_and(|short| wanted.contains(short)))
            .collect();
        let current = self.branches().find(|listing| Some(listing.name.as_str()) == on);
        found.extend(current.and_then(|listing| listing.upstream.as_deref()));
        found
    }
}

impl Listing {
    fn read(line: &str) -> Option<(String, Self)> {
        let mut words = line.split(' ');
        let (target, name) = (words.next()?.parse().ok()?, words.next()?.to_owned());
        let mut more = words.map(|word| Some(word.to_owned()).filter(|word| !word.is_empty()));
        let listing = Self {
            name: name.clone(),
            target,
            symbolic: more.next().flatten(),
            upstream: more.next().flatten(),
            is_head: more.next().flatten().is_some_and(|mark| mark == "*"),
            merged: false,
        };
        Some((name, listing))
    }

    fn is_tag(&self) -> bool {
        self.name.starts_with("refs/tags/")
    }
}

/// The name of a branch without where it is.
fn short(name: &str) -> Option<&str> {
    let remote = || {
        name.strip_prefix("refs/remotes/")?
            .split_once('/')
            .map(|(_, short)| short)
    };
    name.strip_prefix("refs/heads/").or_else(remote)
}

/// The lines of what git printed that are text.
fn lines(printed: &[u8]) -> impl Iterator<Item = &str> {
    printed
        .split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
}

/// Adds the tags. Returns the objects of those that have one, and how many tags did not fit.
async fn add_tags(
    repository: &UserRepo,
    listed: &Listed,
    names: &mut Names,
) -> Result<(BTreeMap<Oid, Vec<u8>>, usize), GitError> {
    let tags: Vec<&Listing> = listed.0.iter().filter(|each| each.is_tag() && each.merged).collect();
    if tags.is_empty() {
        return Ok((BTreeMap::new(), 0));
    }
    let (taken, rest) = tags.split_at(tags.len().min(MAX_TAGS));
    let mut left_out = rest.len();
    let asked: String = taken.iter().map(|tag| format!("{}\n", tag.target)).collect();
    let sizes = repository
        .git("cat-file")
        .arg("--batch-check")
        .stdin(asked)
        .run()
        .await?;
    let (mut wanted, mut bytes) = (String::new(), 0);
    let mut kinds = BTreeMap::new();
    for line in lines(&sizes) {
        let words: Vec<&str> = line.split(' ').collect();
        let [id, kind, size] = words.as_slice() else { continue };
        let size: u64 = size.parse().unwrap_or(u64::MAX);
        if *kind == "tag" && size <= MAX_TAG_BYTES && bytes + size <= MAX_TAGS_BYTES && !kinds.contains_key(*id) {
            bytes += size;
            wanted += &format!("{id}\n");
        }
        kinds.insert((*id).to_owned(), (*kind).to_owned());
    }
    let objects = match wanted.is_empty() {
        true => BTreeMap::new(),
        false => tag_objects(&repository.git("cat-file").arg("--batch").stdin(wanted).run().await?),
    };
    let mut used = BTreeMap::new();
    for tag in taken {
        let target = match kinds.get(tag.target.as_str()).map(String::as_str) {
            Some("commit") => Some(Target::Commit(tag.target.clone())),
            Some("tag") => objects.get(&tag.target).and_then(|content| {
                let (tag, commit) = (tag.target.clone(), commit_of_tag(content)?);
                Some(Target::Tag { tag, commit })
            }),
            Some(_) | None => None,
        };
        let Some(target) = target else {
            left_out += 1;
            continue;
        };
        if names.add(&tag.name, target)
            && let Some((id, content)) = objects.get_key_value(&tag.target)
        {
            used.insert(id.clone(), content.clone());
        }
    }
    Ok((used, left_out))
}

/// Adds the branches. Returns how many did not fit.
async fn add_branches(
    repository: &UserRepo,
    head: &Oid,
    listed: &Listed,
    names: &mut Names,
) -> Result<usize, GitError> {
    let on = names.on().map(str::to_owned);
    let compared = listed.compared_with(on.as_deref());
    let is_compared = |listing: &&Listing| compared.contains(listing.name.as_str());
    let mut room = MAX_BRANCHES;
    let wanders = listed.branches().filter(|each| !each.merged && each.symbolic.is_none());
    for branch in wanders.filter(is_compared).take(MAX_LEFT) {
        let tip = branch.target.as_str();
        let asked = repository
            .git("merge-base")
            .args(["--end-of-options", head.as_str(), tip])
            .run_or_no()
            .await;
        // Its commits may be missing, or it has nothing in common with the base.
        let Ok(Some(found)) = asked else { continue };
        let target = Target::Commit(parse_oid("merge-base", &found)?);
        room -= usize::from(names.add(&branch.name, target));
    }
    let (first, others): (Vec<&Listing>, Vec<&Listing>) = listed
        .branches()
        .filter(|each| each.merged && each.symbolic.is_none() && Some(each.name.as_str()) != on.as_deref())
        .partition(|each| is_compared(each));
    let mut left_out = 0;
    for branch in first.into_iter().chain(others) {
        if room == 0 {
            left_out += 1;
        } else {
            room -= usize::from(names.add(&branch.name, Target::Commit(branch.target.clone())));
        }
    }
    for default in listed.branches().filter(|each| is_head_of_remote(&each.name)) {
        let other = default.symbolic.as_deref().unwrap_or_default();
        if room > 0 && names.has(other) {
            room -= usize::from(names.add(&default.name, Target::Name(other.to_owned())));
        }
    }
    Ok(left_out)
}

/// Writes the names, and the objects of tags, the submodules and the large files into commits below them.
fn commit(
    git_dir: &Path,
    head: git2::Oid,
    names: &Names,
    tags: &BTreeMap<Oid, Vec<u8>>,
    (submodules, large): (&[FoundSubmodule], &FoundLarge),
) -> Result<git2::Oid, GitError> {
    let library = || GitError::library("keep the names of a repository");
    let repository = Repository::open_bare(git_dir).map_err(library())?;
    let (name, email) = IDENTITY;
    let nobody = Signature::new(name, email, &Time::new(0, 0)).map_err(library())?;
    let write = |content: &[u8]| repository.blob(content).map_err(library());
    let commit = |entries: Vec<(String, git2::Oid, u32)>, parents: &[&Commit<'_>]| {
        let make = || {
            let mut tree = repository.treebuilder(None)?;
            for (name, id, mode) in &entries {
                tree.insert(name, *id, mode.cast_signed())?;
            }
            let tree = repository.find_tree(tree.write()?)?;
            let message = "Names\n\nTaken by kage run beside the base of a task.\n";
            let made = repository.commit(None, &nobody, &nobody, message, &tree, parents)?;
            repository.find_commit(made)
        };
        make().map_err(library())
    };
    let file = |name: &str, content: &[u8]| Ok::<_, GitError>((name.to_owned(), write(content)?, mode::FILE));
    let mut below = Vec::new();
    if !tags.is_empty() {
        below.push(commit(vec![file(TAGS, &print_tags(tags))?], &[])?);
    }
    if !submodules.is_empty() {
        let text = to_text(submodules.iter().map(|each| (&each.commit, each.path.as_str())));
        let mut entries = vec![file(SUBMODULES, text.as_bytes())?];
        for (number, each) in submodules.iter().enumerate() {
            let (files, object) = entries_of(number);
            entries.push((files, id_of(&each.tree)?, mode::FOLDER));
            entries.push(file(&object, &each.content)?);
        }
        below.push(commit(entries, &[])?);
    }
    if !large.files.is_empty() {
        let text = large_to_text(large.files.iter().map(|(path, digest)| (digest, path.as_slice())));
        let mut entries = vec![file(LARGE, &text)?];
        let contents = large.contents.iter();
        entries.extend(contents.map(|(digest, blob)| (entry_of(digest), *blob, mode::FILE)));
        below.push(commit(entries, &[])?);
    }
    let head = repository.find_commit(head).map_err(library())?;
    let parents: Vec<&Commit<'_>> = [&head].into_iter().chain(&below).collect();
    Ok(commit(vec![file(NAMES, names.to_text().as_bytes())?], &parents)?.id())
}
