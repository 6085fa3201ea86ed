//! The merge of three trees, by git in a private git directory. It owns the question to git and the
//! meaning of its answer. The commits in the question exist only for it: the history of the trees
//! is irrelevant.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{Oid as Id, Repository, Signature, Time};
use kage_core::id::Oid;

use super::tree::Entry;
use crate::error::{GitError, blocking};
use crate::shadow::IDENTITY;
use crate::user_repo::UserShadow;

/// The trees of a three-way merge.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sides {
    pub(super) base: Id,
    pub(super) ours: Id,
    pub(super) theirs: Id,
}

/// The commits to merge.
#[derive(Debug, Clone)]
pub(super) struct Landed {
    pub(super) base: Oid,
    pub(super) head: Oid,
    pub(super) result: Oid,
    /// True if the history of HEAD contains the base. Then landing cannot bring anything new of
    /// that history into it.
    pub(super) base_in_history: bool,
}

/// A path that git could not merge.
#[derive(Debug, Clone, Default)]
pub(super) struct Conflict {
    /// The entries of base, ours and theirs. All are `None` when git reports only that the place is
    /// unknown, for example which of two folders a new file belongs to. The merged tree then has
    /// every file where its own side has it.
    pub(super) stages: [Option<Entry>; 3],
    pub(super) kind: ConflictKind,
}

impl Conflict {
    /// True if the path itself has more than one version.
    pub(super) fn has_stages(&self) -> bool {
        self.stages.iter().any(Option::is_some)
    }
}

/// Named as git names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ConflictKind {
    /// Both sides changed it, or one side changed and the other deleted it.
    #[default]
    Content,
    Binary,
    /// A folder on one side, a file on the other.
    Folder,
    /// A link on one side, a file on the other.
    Kind,
    Rename,
    /// The folder of the path was renamed.
    FolderRename,
}

/// Git's merge of the three trees.
#[derive(Debug)]
pub(super) struct TreeMerge {
    /// With conflict markers where there are conflicts.
    pub(super) tree: Id,
    pub(super) conflicts: BTreeMap<PathBuf, Conflict>,
}

/// Merges as `git merge` does, renames included. Conflict markers are called HEAD and result.
pub(super) async fn merge_trees(store: &UserShadow, sides: Sides) -> Result<TreeMerge, GitError> {
    let git_dir = store.shadow.git_dir().to_owned();
    blocking("preparing a merge", move || name_sides(&git_dir, sides)).await?;
    let (clean, output) = store
        .shadow
        .git("merge-tree")
        .args(["--write-tree", "-z", "HEAD", "result"])
        .config("merge.renames", "true")
        .run_to_answer()
        .await?;
    parse(clean, &output).ok_or_else(|| GitError::unexpected("merge-tree", &output))
}

/// Two commits on a common parent, with the names that conflict markers show.
fn name_sides(git_dir: &Path, sides: Sides) -> Result<(), GitError> {
    let commit = || {
        let repository = Repository::open_bare(git_dir)?;
        let who = Signature::new(IDENTITY.0, IDENTITY.1, &Time::new(0, 0))?;
        let commit = |tree: Id, parents: &[&git2::Commit<'_>]| {
            let made = repository.commit(None, &who, &who, "", &repository.find_tree(tree)?, parents)?;
            repository.find_commit(made)
        };
        let base = commit(sides.base, &[])?;
        let (ours, theirs) = (commit(sides.ours, &[&base])?, commit(sides.theirs, &[&base])?);
        Ok((ours.id(), theirs.id()))
    };
    let (ours, theirs) = commit().map_err(GitError::library("prepare a merge"))?;
    for (name, id) in [("HEAD", ours), ("refs/heads/result", theirs)] {
        let path = git_dir.join(name);
        fs::write(&path, format!("{id}\n")).map_err(GitError::io("write", &path))?;
    }
    Ok(())
}

/// Output: the tree; for each conflict `mode id stage TAB path`; an empty item; for each message
/// the number of its paths, the paths, its kind, and its text. Every item ends in NUL. Some
/// conflicts have only a message; git's exit code (`clean`) covers all.
fn parse(clean: bool, output: &[u8]) -> Option<TreeMerge> {
    let mut parts = output.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    let mut merge = TreeMerge {
        tree: id(parts.next()?)?,
        conflicts: BTreeMap::new(),
    };
    for part in parts.by_ref().take_while(|part| !part.is_empty()) {
        let (path, stage, entry) = parse_stage(part)?;
        let conflict = merge.conflicts.entry(path).or_default();
        *conflict.stages.get_mut(usize::from(stage).checked_sub(1)?)? = Some(entry);
    }
    while let Some(count) = parts.next() {
        let count: usize = std::str::from_utf8(count).ok()?.parse().ok()?;
        let paths: Vec<&[u8]> = parts.by_ref().take(count).collect();
        let (text, _) = (parts.next()?, parts.next()?);
        let paths: Vec<&Path> = paths
            .into_iter()
            .map(|path| Path::new(OsStr::from_bytes(path)))
            .collect();
        let kind = kind_of(text);
        if let Some(kind) = kind {
            for path in &paths {
                if let Some(conflict) = merge.conflicts.get_mut(*path) {
                    conflict.kind = kind;
                }
            }
        }
        if text.starts_with(b"CONFLICT") && !paths.iter().any(|path| merge.conflicts.contains_key(*path)) {
            let conflict = || Conflict {
                kind: kind.unwrap_or(ConflictKind::FolderRename),
                ..Conflict::default()
            };
            merge
                .conflicts
                .extend(paths.iter().map(|path| ((*path).to_owned(), conflict())));
        }
    }
    // A conflict that git reports and Kage cannot name must not count as merged.
    (clean || !merge.conflicts.is_empty()).then_some(merge)
}

/// `mode id stage TAB path`, as git lists an index.
pub(super) fn parse_stage(line: &[u8]) -> Option<(PathBuf, u8, Entry)> {
    let tab = line.iter().position(|byte| *byte == b'\t')?;
    let (numbers, path) = line.split_at(tab);
    let mut fields = numbers.split(|byte| *byte == b' ');
    let mode = std::str::from_utf8(fields.next()?).ok()?;
    let entry = Entry {
        mode: u32::from_str_radix(mode, 8).ok()?,
        id: id(fields.next()?)?,
    };
    let stage = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    Some((PathBuf::from(OsStr::from_bytes(path.get(1..)?)), stage, entry))
}

fn id(text: &[u8]) -> Option<Id> {
    Id::from_str(std::str::from_utf8(text).ok()?).ok()
}

/// `None` for messages that are no conflict, or add nothing to the stages.
fn kind_of(text: &[u8]) -> Option<ConflictKind> {
    Some(match text {
        b"CONFLICT (binary)" => ConflictKind::Binary,
        b"CONFLICT (file/directory)" => ConflictKind::Folder,
        b"CONFLICT (distinct modes)" => ConflictKind::Kind,
        text if text.starts_with(b"CONFLICT (rename") => ConflictKind::Rename,
        b"CONFLICT (file in way of directory rename)" => ConflictKind::FolderRename,
        text if text.starts_with(b"CONFLICT (directory") || text.starts_with(b"CONFLICT(directory") => {
            ConflictKind::FolderRename
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789012345678901234567890123456789";

    #[test]
    fn gits_answer_is_read() {
        let clean = parse(true, format!("{ID}\0").as_bytes()).unwrap();
        assert_eq!((clean.tree.to_string().as_str(), clean.conflicts.len()), (ID, 0));
        let text = format!(
            "{ID}\0100644 {ID} 1\ta b\0100755 {ID} 3\ta b\0120000 {ID} 2\tlink~HEAD\0\0\
             1\0a b\0CONFLICT (modify/delete)\0words\n\0\
             2\0link\0link~HEAD\0CONFLICT (file/directory)\0words\n\0\
             1\0other\0Auto-merging\0words\n\0"
        );
        let merge = parse(false, text.as_bytes()).unwrap();
        let shown: Vec<_> = merge.conflicts.iter().collect();
        let [(first, one), (second, two)] = shown.as_slice() else {
            panic!("{shown:?}");
        };
        assert_eq!((first.to_str(), second.to_str()), (Some("a b"), Some("link~HEAD")));
        let modes = |conflict: &Conflict| conflict.stages.map(|entry| entry.map(|entry| entry.mode));
        assert_eq!(modes(one), [Some(0o100_644), None, Some(0o100_755)]);
        assert_eq!(modes(two), [None, Some(0o120_000), None]);
        assert_eq!((one.kind, two.kind), (ConflictKind::Content, ConflictKind::Folder));
    }

    #[test]
    fn half_an_answer_is_none() {
        for text in [
            "",
            "x\0",
            ID,
            &format!("{ID}\0100644 {ID} 0\tx\0\0"),
            &format!("{ID}\0\0x\0"),
        ] {
            assert!(parse(true, text.as_bytes()).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_conflict_that_is_a_message_only_is_one() {
        let split = "1\0src\0CONFLICT(directory rename unclear split)\0words\n\0";
        let in_the_way = "2\0dst/new\0src/new\0CONFLICT (file in way of directory rename)\0words\n\0";
        let unheard_of = "1\0x\0CONFLICT (of next year)\0words\n\0";
        let other = format!("100644 {ID} 2\tother\0");
        for (stages, message, paths) in [
            ("", split, vec!["src"]),
            ("", in_the_way, vec!["dst/new", "src/new"]),
            ("", unheard_of, vec!["x"]),
            (&other, split, vec!["other", "src"]),
        ] {
            let merge = parse(false, format!("{ID}\0{stages}\0{message}").as_bytes()).unwrap();
            let found: Vec<_> = merge.conflicts.keys().filter_map(|path| path.to_str()).collect();
            assert_eq!(found, paths);
            for (path, conflict) in &merge.conflicts {
                let is_other = path == Path::new("other");
                assert_eq!(conflict.has_stages(), is_other);
                assert_eq!(conflict.kind == ConflictKind::FolderRename, !is_other);
            }
        }
        let auto = "1\0x\0Auto-merging\0words\n\0";
        assert!(
            parse(true, format!("{ID}\0\0{auto}").as_bytes())
                .unwrap()
                .conflicts
                .is_empty()
        );
        // git reports a conflict without a path.
        for text in [format!("{ID}\0"), format!("{ID}\0\0{auto}")] {
            assert!(parse(false, text.as_bytes()).is_none(), "{text:?}");
        }
    }
}
