//! The cases: what kind of repository a person has, what happened in it before, during and after the
//! session, and what the session changed.

use proptest::collection::vec;
use proptest::prelude::*;

use super::edits::{Edit, PATHS, edit};

/// What happened to the person's uncommitted work after the task began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    Kept,
    Committed,
    Gone,
}

/// What kind of repository the person has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Plain,
    /// Its index is in two files.
    Split,
    /// Some files are not on the disk.
    Sparse,
    /// Its history is cut off.
    Shallow,
    /// A working tree that `git worktree add` made.
    Linked,
    /// It has a submodule, which is not checked out.
    Module,
}

pub(super) fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        3 => Just(Shape::Plain),
        1 => Just(Shape::Split),
        1 => Just(Shape::Sparse),
        1 => Just(Shape::Shallow),
        1 => Just(Shape::Linked),
        1 => Just(Shape::Module),
    ]
}

#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) shape: Shape,
    pub(super) uncommitted: Vec<Edit>,
    pub(super) session: Vec<Edit>,
    pub(super) since: Since,
    /// Commits after the base.
    pub(super) mine: Vec<Edit>,
    /// The base's last commit is replaced by them.
    pub(super) amended: bool,
    /// Uncommitted work when it lands.
    pub(super) dirty: Vec<Edit>,
    /// Paths of which the index has what is on the disk.
    pub(super) staged: Vec<usize>,
    /// Paths that git is told to ignore.
    pub(super) ignored: Vec<usize>,
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let since = prop_oneof![Just(Since::Kept), Just(Since::Committed), Just(Since::Gone)];
    let few = |most| prop_oneof![Just(Vec::new()), vec(edit(), 0..most)];
    let paths = || vec(0..PATHS.len(), 0..3);
    let of_session = vec(edit(), 0..5);
    (
        shape(),
        few(4),
        of_session,
        since,
        few(4),
        any::<bool>(),
        few(3),
        paths(),
        paths(),
    )
        .prop_map(
            |(shape, mut uncommitted, session, since, mine, amended, mut dirty, staged, ignored)| {
                uncommitted.retain(Edit::is_of_disk);
                dirty.retain(Edit::is_of_disk);
                Case {
                    shape,
                    uncommitted,
                    session,
                    since,
                    mine,
                    amended,
                    dirty,
                    staged,
                    ignored,
                }
            },
        )
}

/// Cases in which Kage and git once differed.
pub(super) fn found_before() -> [Case; 3] {
    let plain = || Case {
        shape: Shape::Plain,
        uncommitted: Vec::new(),
        session: Vec::new(),
        since: Since::Kept,
        mine: Vec::new(),
        amended: false,
        dirty: Vec::new(),
        staged: Vec::new(),
        ignored: Vec::new(),
    };
    [
        // The person committed a link, and renamed its folder; the session deleted it.
        Case {
            uncommitted: vec![Edit::Link(2)],
            session: vec![Edit::Rename(0, 2), Edit::Rename(2, 0)],
            since: Since::Committed,
            mine: vec![Edit::RenameFolder],
            ..plain()
        },
        // A stash of one path has what is staged for another, which does not fit back.
        Case {
            session: vec![Edit::RenameFolder],
            dirty: vec![Edit::Rename(4, 2)],
            staged: vec![4],
            ..plain()
        },
        // To git, a file that was renamed to an ignored one is gone.
        Case {
            session: vec![Edit::Delete(1)],
            dirty: vec![Edit::Rename(1, 6)],
            ignored: vec![6],
            ..plain()
        },
    ]
}
