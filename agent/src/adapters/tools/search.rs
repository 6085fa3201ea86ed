//! Searching text files line by line. It follows no symbolic link and skips binary files.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use globset::GlobMatcher;
use regex::bytes::{Regex, RegexBuilder};
use rustix::fs::FileType;

use super::files::is_binary;
use super::root::{Relative, Root, entries, open_entry};
use super::{Refused, Search};
use crate::process::excerpt::one_line;

const MAX_MATCHES: usize = 200;
/// Characters of a matching line that are shown.
const MAX_LINE: usize = 300;
/// Larger files are skipped, and counted.
const MAX_FILE: u64 = 4 << 20;
const MAX_TIME: Duration = Duration::from_secs(20);
/// The deepest that a search goes: each level keeps a folder open.
const MAX_DEPTH: usize = 100;

struct Searching {
    regex: Regex,
    glob: Option<GlobMatcher>,
    lines: Vec<String>,
    until: Instant,
    skipped: usize,
    /// Folders that are nested too deep.
    too_deep: usize,
    cut: Option<&'static str>,
}

pub(super) fn search(root: &Root, call: &Search) -> Result<String, Refused> {
    let pattern = if call.regex {
        call.pattern.clone()
    } else {
        regex::escape(&call.pattern)
    };
    let regex = RegexBuilder::new(&pattern)
        .case_insensitive(call.ignore_case)
        .size_limit(1 << 20)
        .build()
        .map_err(|error| Refused::new(format!("the pattern is not a regular expression: {error}")))?;
    let glob = match call.glob.as_deref().map(globset::Glob::new) {
        Some(Ok(glob)) => Some(glob.compile_matcher()),
        Some(Err(error)) => return Err(Refused::new(format!("the glob is wrong: {error}"))),
        None => None,
    };
    let mut searching = Searching {
        regex,
        glob,
        lines: Vec::new(),
        until: Instant::now() + MAX_TIME,
        skipped: 0,
        too_deep: 0,
        cut: None,
    };
    let path = Relative::parse(call.path.as_deref().unwrap_or("."))?;
    match root.folder(&path) {
        Ok(folder) => {
            let at = if path.as_path() == Path::new(".") {
                PathBuf::new()
            } else {
                path.as_path().to_owned()
            };
            searching.folder(&folder, &at, MAX_DEPTH);
        }
        Err(not_a_folder) => match root.file(&path) {
            Ok((file, _)) => searching.file(file, path.as_path()),
            Err(_) => return Err(not_a_folder),
        },
    }
    Ok(searching.answer())
}

impl Searching {
    fn folder(&mut self, folder: &OwnedFd, at: &Path, depth: usize) {
        // Unreadable folders have no matches; a search is not an audit.
        for (name, kind) in entries(folder).unwrap_or_default() {
            if self.is_over() {
                return;
            }
            let path = at.join(&name);
            match kind {
                FileType::Directory if depth == 0 => self.too_deep += 1,
                FileType::Directory => {
                    if let Ok(below) = open_entry(folder, &name, true) {
                        self.folder(&below, &path, depth - 1);
                    }
                }
                FileType::RegularFile => {
                    if self.glob.as_ref().is_none_or(|glob| glob.is_match(&path))
                        && let Ok(file) = open_entry(folder, &name, false)
                    {
                        self.file(File::from(file), &path);
                    }
                }
                FileType::Symlink
                | FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown => {}
            }
        }
    }

    /// True when enough was found, or looked at for long enough.
    fn is_over(&mut self) -> bool {
        if self.cut.is_none() && Instant::now() > self.until {
            self.cut = Some("time");
        }
        self.cut.is_some()
    }

    fn file(&mut self, file: File, path: &Path) {
        let mut bytes = Vec::new();
        if file.take(MAX_FILE + 1).read_to_end(&mut bytes).is_err() || bytes.len() as u64 > MAX_FILE {
            self.skipped += 1;
            return;
        }
        if is_binary(&bytes) {
            return;
        }
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if !self.regex.is_match(line) {
                continue;
            }
            if self.lines.len() >= MAX_MATCHES {
                self.cut = Some("number of matches");
                return;
            }
            let shown = one_line(&String::from_utf8_lossy(line), MAX_LINE);
            self.lines.push(format!("{}:{}: {shown}", path.display(), index + 1));
        }
    }

    fn answer(mut self) -> String {
        if self.lines.is_empty() {
            self.lines.push("[no match]".to_owned());
        }
        if let Some(limit) = self.cut {
            self.lines
                .push(format!("[cut: the limit on {limit} is reached; narrow the search]"));
        }
        if self.skipped > 0 {
            self.lines.push(format!(
                "[{} files are too large or unreadable and were skipped]",
                self.skipped
            ));
        }
        if self.too_deep > 0 {
            let note = "folders are nested too deep and were skipped; search below them";
            self.lines.push(format!("[{} {note}]", self.too_deep));
        }
        self.lines.join("\n")
    }
}
