//! Listing a folder, without what git ignores.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, readlinkat};

use super::ignored::Ground;
use super::root::{Relative, Root, entries, open_entry};
use super::{List, Refused};

/// Maximum of entries in one answer.
const MAX_ENTRIES: usize = 1000;
/// Maximum depth of one call.
const MAX_DEPTH: usize = 20;

struct Listing {
    lines: Vec<String>,
    /// How many entries are left out because git ignores them.
    ignored: usize,
    cut: bool,
}

pub(super) fn list(root: &Root, call: &List) -> Result<String, Refused> {
    let path = Relative::parse(call.path.as_deref().unwrap_or("."))?;
    let (folder, ground) = Ground::open(root, &path)?;
    let mut listing = Listing {
        lines: Vec::new(),
        ignored: 0,
        cut: false,
    };
    let depth = call.depth.unwrap_or(1).clamp(1, MAX_DEPTH);
    let first = walk(&folder, &ground, Path::new(""), depth, &mut listing);
    first.map_err(|error| Refused::new(format!("{}: {error}", path.as_path().display())))?;
    if listing.lines.is_empty() && listing.ignored == 0 {
        return Ok("[the folder is empty]".to_owned());
    }
    if listing.cut {
        let note = format!("[cut after {MAX_ENTRIES} entries; list a folder below]");
        listing.lines.push(note);
    }
    if listing.ignored > 0 {
        let note = "that git ignores are not listed; a path that names one shows it";
        listing.lines.push(format!("[{} entries {note}]", listing.ignored));
    }
    Ok(listing.lines.join("\n"))
}

fn walk(folder: &OwnedFd, ground: &Ground, at: &Path, depth: usize, listing: &mut Listing) -> rustix::io::Result<()> {
    for (name, kind) in entries(folder)? {
        if ground.ignores(&name, kind == FileType::Directory) {
            listing.ignored += 1;
            continue;
        }
        if listing.lines.len() >= MAX_ENTRIES {
            listing.cut = true;
            return Ok(());
        }
        let path: PathBuf = at.join(&name);
        let shown = path.display();
        match kind {
            FileType::Directory => {
                listing.lines.push(format!("{shown}/"));
                if depth > 1 {
                    let below = open_entry(folder, &name, true)
                        .and_then(|fd| walk(&fd, &ground.enter(&name, &fd), &path, depth - 1, listing));
                    if let Err(error) = below {
                        listing.lines.push(format!("{shown}/ [{error}]"));
                    }
                }
            }
            FileType::Symlink => {
                let target = readlinkat(folder, &name, Vec::new());
                let target = target.map_or_else(|_| "?".to_owned(), |to| to.to_string_lossy().into_owned());
                listing.lines.push(format!("{shown} -> {target}"));
            }
            FileType::RegularFile => listing.lines.push(shown.to_string()),
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => listing.lines.push(format!("{shown} [not a regular file]")),
        }
    }
    Ok(())
}
