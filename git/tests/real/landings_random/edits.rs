//! The files of random cases, and what is done to them.

use std::collections::BTreeMap;

use proptest::prelude::*;

pub(super) const PATHS: &[&str] = &["a", "b", "d/one", "d/two", "d/three", "e/f/g", "new", "n w"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum File {
    Text(Vec<u32>, bool),
    Link(String),
    /// A submodule at a commit that is nowhere.
    Module(u32),
}

pub(super) type Files = BTreeMap<String, File>;

#[derive(Debug, Clone)]
pub(super) enum Edit {
    Line(usize, u8, u32),
    Append(usize, u32),
    Add(usize, u32),
    Delete(usize),
    Rename(usize, usize),
    RenameFolder,
    Mode(usize),
    Link(usize),
    /// A line of a file that some do not have on the disk.
    Apart(usize, u32),
    /// The submodule, where there is one: another commit, or 0 for none.
    Module(u32),
}

impl Edit {
    /// Whether it is one of files that are on every disk.
    pub(super) const fn is_of_disk(&self) -> bool {
        !matches!(self, Self::Apart(..) | Self::Module(_))
    }
}

/// Paths that are no others' neighbours.
pub(super) const APART: &[&str] = &["s/one", "s/two"];
pub(super) const MODULE: &str = "sub";

pub(super) fn edit() -> impl Strategy<Value = Edit> {
    let path = || 0..PATHS.len();
    prop_oneof![
        6 => (path(), 0..12_u8, 0..4_u32).prop_map(|(path, line, to)| Edit::Line(path, line, 100 + to)),
        1 => (path(), 200..203_u32).prop_map(|(path, line)| Edit::Append(path, line)),
        2 => (path(), 0..3_u32).prop_map(|(path, from)| Edit::Add(path, from * 50)),
        2 => path().prop_map(Edit::Delete),
        2 => (path(), path()).prop_map(|(from, to)| Edit::Rename(from, to)),
        1 => Just(Edit::RenameFolder),
        1 => path().prop_map(Edit::Mode),
        1 => path().prop_map(Edit::Link),
        1 => (0..2_usize, 0..12_u32).prop_map(|(path, line)| Edit::Apart(path, line)),
        1 => (0..12_u32).prop_map(Edit::Module),
    ]
}

pub(super) fn start(has_module: bool) -> Files {
    let file = |(number, path): (usize, &&str)| {
        let first = u32::try_from(number).unwrap() * 1000;
        ((*path).to_owned(), File::Text((first..first + 12).collect(), false))
    };
    let mut files: Files = PATHS.iter().take(6).chain(APART).enumerate().map(file).collect();
    if has_module {
        files.insert(MODULE.to_owned(), File::Module(99));
    }
    files
}

/// Puts a file at a path, and removes files that exclude it.
fn put(files: &mut Files, path: &str, file: File) {
    let above = |one: &str, other: &str| one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
    files.retain(|other, _| !above(other, path) && !above(path, other));
    files.insert(path.to_owned(), file);
}

fn change(files: &mut Files, edit: &Edit) {
    match edit {
        Edit::Line(path, line, to) => {
            if let Some(File::Text(lines, _)) = files.get_mut(PATHS[*path])
                && let Some(line) = lines.get_mut(usize::from(*line))
            {
                *line = *to;
            }
        }
        Edit::Append(path, line) => {
            if let Some(File::Text(lines, _)) = files.get_mut(PATHS[*path]) {
                lines.push(*line);
            }
        }
        Edit::Add(path, from) => put(
            files,
            PATHS[*path],
            File::Text((9000 + from..9008 + from).collect(), false),
        ),
        Edit::Delete(path) => drop(files.remove(PATHS[*path])),
        Edit::Rename(from, to) => {
            if from != to
                && let Some(file) = files.remove(PATHS[*from])
            {
                put(files, PATHS[*to], file);
            }
        }
        Edit::RenameFolder => {
            let inside: Vec<String> = files.keys().filter(|path| path.starts_with("d/")).cloned().collect();
            for path in inside {
                let file = files.remove(&path).unwrap();
                files.insert(path.replace("d/", "moved/"), file);
            }
        }
        Edit::Mode(path) => {
            if let Some(File::Text(_, executable)) = files.get_mut(PATHS[*path]) {
                *executable = !*executable;
            }
        }
        Edit::Link(path) => put(files, PATHS[*path], File::Link("a".to_owned())),
        Edit::Apart(path, line) => {
            if let Some(File::Text(lines, _)) = files.get_mut(APART[*path]) {
                lines[usize::try_from(*line).unwrap()] = 100 + *line;
            }
        }
        Edit::Module(number) => {
            if files.remove(MODULE).is_some() && *number > 0 {
                files.insert(MODULE.to_owned(), File::Module(*number));
            }
        }
    }
}

pub(super) fn changed(files: &Files, edits: &[Edit]) -> Files {
    let mut files = files.clone();
    for edit in edits {
        change(&mut files, edit);
    }
    files
}

pub(super) fn bytes(file: &File) -> Vec<u8> {
    match file {
        File::Text(lines, _) => lines
            .iter()
            .flat_map(|line| format!("line {line}\n").into_bytes())
            .collect(),
        File::Link(to) => to.clone().into_bytes(),
        File::Module(_) => Vec::new(),
    }
}
