//! Tags and branches that go with a base, as text and in a commit beside it: which names are usable,
//! how they are written and read. `snapshot::names` chooses them in the person's repository,
//! `worktree::names` puts them into the session's.
//!
//! ```text
//! refs/kage/bases/<commit>        file `names`: the text below
//!   ├─ the first parent           the person's HEAD: a push finds out for all of its commits at once what
//!   │                             the other side has, and a commit with nothing of that would end it
//!   ├─ a parent                   file `tags`: objects of annotated tags, as git's cat-file --batch
//!   │                             prints them; a commit of its own, because the tags of a repository
//!   │                             seldom change and are then not sent again
//!   ├─ a parent                   what `submodules` says
//!   └─ a parent                   what `large` says
//!
//! on refs/heads/topic             the branch of HEAD; it has no commit, it is where the worktree is
//! <commit> refs/heads/main
//! <tag> refs/tags/v1 <commit>     an annotated tag, and the commit that it leads to
//! @ refs/remotes/origin/HEAD refs/remotes/origin/main
//! ```
//!
//! They are text and not references of the mirrors: tasks of one repository have different ones, a
//! name of theirs never meets one of Kage's or becomes a path of a mirror, and nothing else than a
//! base has to be sent, kept, fetched or healed.

use std::collections::BTreeMap;

use git2::{ObjectType, Oid as Id};
use kage_core::id::Oid;

use crate::mirror::is_reference;

/// The file with the text, and the one with the objects of tags.
pub(crate) const NAMES: &str = "names";
pub(crate) const TAGS: &str = "tags";

/// Annotated tags may be signed, and carry the notes of a release; one that is larger is left out.
pub(crate) const MAX_TAG_BYTES: u64 = 64 << 10;
/// All tag objects together.
pub(crate) const MAX_TAGS_BYTES: u64 = 4 << 20;
/// Tags, and other names. Every worktree gets all of them.
pub(crate) const MAX_TAGS: usize = 10_000;
pub(crate) const MAX_BRANCHES: usize = 500;
/// More is not a text of [`Names`].
const MAX_TEXT: usize = 8 << 20;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Commit(Oid),
    /// An annotated tag and its commit.
    Tag {
        tag: Oid,
        commit: Oid,
    },
    /// Another name, as `refs/remotes/origin/HEAD` does.
    Name(String),
}

/// The names that go with a base. All are usable, and none is a folder of another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names {
    on: Option<String>,
    targets: BTreeMap<String, Target>,
}

impl Names {
    /// The branch of HEAD.
    pub(crate) fn on(&self) -> Option<&str> {
        self.on.as_deref()
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = (&str, &Target)> {
        self.targets.iter().map(|(name, target)| (name.as_str(), target))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.on() == Some(name) || self.targets.contains_key(name)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.on.is_none() && self.targets.is_empty()
    }

    /// True if it is the branch of HEAD from now on.
    pub(crate) fn set_on(&mut self, branch: &str) -> bool {
        if !branch.starts_with("refs/heads/") || !self.has_room(branch) {
            return false;
        }
        self.targets.remove(branch);
        self.on = Some(branch.to_owned());
        true
    }

    /// Adds a name, unless it is not usable, or a file and a folder could not both have these names.
    pub(crate) fn add(&mut self, name: &str, target: Target) -> bool {
        let is_good = match &target {
            Target::Commit(_) => true,
            Target::Tag { .. } => name.starts_with("refs/tags/"),
            Target::Name(other) => is_head_of_remote(name) && other.starts_with("refs/remotes/") && is_usable(other),
        };
        if !is_good || self.on() == Some(name) || !self.has_room(name) {
            return false;
        }
        self.targets.insert(name.to_owned(), target);
        true
    }

    fn has_room(&self, name: &str) -> bool {
        let mut folders = name.match_indices('/').map(|(at, _)| &name[..at]);
        let inside = format!("{name}/");
        let next = self.targets.range(inside.clone()..).next();
        is_usable(name)
            && !folders.any(|folder| self.has(folder))
            && !next.is_some_and(|(next, _)| next.starts_with(&inside))
            && !self.on().is_some_and(|on| on.starts_with(&inside))
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        if let Some(branch) = &self.on {
            text += &format!("on {branch}\n");
        }
        for (name, target) in &self.targets {
            text += &match target {
                Target::Commit(commit) => format!("{commit} {name}\n"),
                Target::Tag { tag, commit } => format!("{tag} {name} {commit}\n"),
                Target::Name(other) => format!("@ {name} {other}\n"),
            };
        }
        text
    }

    /// Reads a text of anybody; what is not usable in it is left out.
    pub(crate) fn read(text: &[u8]) -> Self {
        let mut names = Self::default();
        let text = text.get(..MAX_TEXT).unwrap_or(text);
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let parts: Vec<&str> = line.split(' ').collect();
            let target = match parts.as_slice() {
                ["on", branch] => {
                    names.set_on(branch);
                    continue;
                }
                ["@", _, other] => Some(Target::Name((*other).to_owned())),
                [commit, _] => commit.parse().ok().map(Target::Commit),
                [tag, _, commit] => tag
                    .parse()
                    .ok()
                    .zip(commit.parse().ok())
                    .map(|(tag, commit)| Target::Tag { tag, commit }),
                _ => None,
            };
            if let (Some(target), Some(name)) = (target, parts.get(1)) {
                if names.targets.len() > MAX_TAGS + MAX_BRANCHES {
                    break;
                }
                names.add(name, target);
            }
        }
        names
    }
}

/// Whether a name of a person's repository is taken: one that git itself would make, that no program
/// takes for an option, and that does not hide HEAD or an object id.
pub(crate) fn is_usable(name: &str) -> bool {
    let short = ["refs/tags/", "refs/heads/", "refs/remotes/"]
        .iter()
        .find_map(|kind| name.strip_prefix(kind));
    short.is_some_and(|short| {
        is_reference(name)
            && !short.split('/').any(|part| part.starts_with('-'))
            && short != "HEAD"
            && short.parse::<Oid>().is_err()
    })
}

/// `refs/remotes/<one name>/HEAD`.
pub(crate) fn is_head_of_remote(name: &str) -> bool {
    let remote = name
        .strip_prefix("refs/remotes/")
        .and_then(|rest| rest.strip_suffix("/HEAD"));
    remote.is_some_and(|remote| !remote.is_empty() && !remote.contains('/'))
}

/// The objects of annotated tags in what `git cat-file --batch` printed, by their ids, which are
/// computed anew. What is no tag is left out.
pub(crate) fn tag_objects(mut printed: &[u8]) -> BTreeMap<Oid, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut bytes = 0;
    while let Some(end) = printed.iter().position(|byte| *byte == b'\n') {
        let (head, rest) = printed.split_at(end);
        let head = std::str::from_utf8(head).unwrap_or_default();
        let mut words = head.split(' ');
        let (Some(id), Some(kind), Some(size)) = (words.next(), words.next(), words.next()) else {
            // "<id> missing"
            printed = &rest[1..];
            continue;
        };
        let content = size
            .parse::<usize>()
            .ok()
            .and_then(|size| Some((rest.get(1..=size)?, rest.get(size + 2..)?)));
        let Some((content, after)) = content else { break };
        printed = after;
        bytes += content.len() as u64;
        if bytes > MAX_TAGS_BYTES {
            break;
        }
        let computed = Id::hash_object(ObjectType::Tag, content).map(|id| id.to_string());
        if kind == "tag"
            && content.len() as u64 <= MAX_TAG_BYTES
            && let Ok(id) = id.parse::<Oid>()
            && computed.is_ok_and(|computed| computed == id.as_str())
        {
            found.insert(id, content.to_vec());
        }
    }
    found
}

/// The commit that a tag object leads to; `None` for a tag of anything else.
pub(crate) fn commit_of_tag(content: &[u8]) -> Option<Oid> {
    let mut lines = content.split(|byte| *byte == b'\n');
    let object = lines.next()?.strip_prefix(b"object ")?;
    (lines.next()? == b"type commit").then_some(())?;
    std::str::from_utf8(object).ok()?.parse().ok()
}

/// Tag objects, as `git cat-file --batch` prints them.
pub(crate) fn print_tags(objects: &BTreeMap<Oid, Vec<u8>>) -> Vec<u8> {
    let print = |(id, content): (&Oid, &Vec<u8>)| {
        let head = format!("{id} tag {}\n", content.len());
        [head.as_bytes(), content, b"\n"].concat()
    };
    objects.iter().flat_map(print).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> Oid {
        digit.to_string().repeat(40).parse().unwrap()
    }

    #[test]
    fn names_are_read_as_they_were_written() {
        let mut names = Names::default();
        assert!(names.set_on("refs/heads/topic"));
        assert!(names.add("refs/heads/main", Target::Commit(id('1'))));
        assert!(names.add(
            "refs/tags/v1.0",
            Target::Tag {
                tag: id('2'),
                commit: id('1')
            }
        ));
        assert!(names.add("refs/remotes/origin/main", Target::Commit(id('1'))));
        let head = Target::Name("refs/remotes/origin/main".to_owned());
        assert!(names.add("refs/remotes/origin/HEAD", head));
        assert_eq!(Names::read(names.to_text().as_bytes()), names);
        assert_eq!(names.targets().count(), 4);
    }

    #[test]
    fn odd_names_are_left_out() {
        let one = Target::Commit(id('1'));
        for name in [
            "refs/tags/-x",
            "refs/heads/a/--upload-pack=x",
            "refs/heads/HEAD",
            "refs/tags/HEAD",
            "refs/tags/1111111111111111111111111111111111111111",
            "refs/tags/../../config",
            "refs/tags/a/.hidden",
            "refs/tags/a.lock",
            "refs/tags/a b",
            "refs/tags/a\u{1b}[2J",
            "refs/kage/bases/x",
            "refs/stash",
            "refs/tags/",
            "HEAD",
            "config",
            &format!("refs/tags/{}", "x".repeat(300)),
        ] {
            assert!(!Names::default().add(name, one.clone()), "{name}");
            let text = format!("{} {name}\non {name}\n", id('1'));
            assert!(Names::read(text.as_bytes()).is_empty(), "{name}");
        }
        for name in ["refs/tags/v1", "refs/tags/€", "refs/heads/a/b-c", "refs/tags/$(x)"] {
            assert!(Names::default().add(name, one.clone()), "{name}");
        }
    }

    #[test]
    fn a_name_that_is_a_folder_of_another_is_not_there_twice() {
        let one = Target::Commit(id('1'));
        let mut names = Names::default();
        assert!(names.add("refs/heads/a", one.clone()));
        assert!(!names.add("refs/heads/a/b", one.clone()) && !names.set_on("refs/heads/a/b"));
        assert!(names.add("refs/heads/c/d", one.clone()));
        assert!(!names.add("refs/heads/c", one.clone()) && !names.set_on("refs/heads/c"));
        assert!(names.set_on("refs/heads/e/f"));
        assert!(!names.add("refs/heads/e", one.clone()) && !names.add("refs/heads/e/f/g", one.clone()));
        // A name that only begins like another is one of its own.
        assert!(names.add("refs/heads/a-b", one.clone()) && names.add("refs/heads/e/f-g", one));
        let text = format!("{0} refs/tags/x/y\n{0} refs/tags/x\n", id('1'));
        assert_eq!(Names::read(text.as_bytes()).targets().count(), 1);
    }

    #[test]
    fn only_heads_of_remotes_are_other_names() {
        let to = |name: &str| Target::Name(name.to_owned());
        let mut names = Names::default();
        for (name, other) in [
            ("refs/heads/x", "refs/remotes/origin/main"),
            ("refs/remotes/origin/HEAD", "refs/heads/main"),
            ("refs/remotes/origin/HEAD", "refs/remotes/../../config"),
            ("refs/remotes/a/b/HEAD", "refs/remotes/a/b/main"),
        ] {
            assert!(!names.add(name, to(other)), "{name} {other}");
        }
        assert!(names.is_empty());
    }

    #[test]
    fn tags_are_what_their_ids_say() {
        let content = format!("object {}\ntype commit\ntag v1\n\nfirst\n", id('1'));
        let tag = Id::hash_object(ObjectType::Tag, content.as_bytes()).unwrap();
        let size = content.len();
        let printed = format!(
            "{tag} tag {size}\n{content}\n{} missing\n{} tag {size}\n{content}\n",
            id('3'),
            id('4')
        );
        let found = tag_objects(printed.as_bytes());
        assert_eq!(found.keys().map(Oid::as_str).collect::<Vec<_>>(), [tag.to_string()]);
        assert_eq!(commit_of_tag(content.as_bytes()), Some(id('1')));
        assert_eq!(commit_of_tag(content.replace("commit", "tree").as_bytes()), None);
        assert_eq!(tag_objects(&print_tags(&found)), found);
        for cut in 0..printed.len() {
            tag_objects(&printed.as_bytes()[..cut]);
        }
    }
}
