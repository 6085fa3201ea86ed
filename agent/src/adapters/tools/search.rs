//! Searching text files line by line, on several threads. It follows no symbolic link and skips binary
//! files and what git ignores. One thread goes through the folders and collects files in the order of
//! their names; each full batch is searched by all threads, so that answers are the same every time.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use globset::GlobMatcher;
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, Sink, SinkMatch};
use rustix::fs::{FileType, fstat};

use super::ignored::Ground;
use super::root::{Relative, Root, entries, open_entry};
use super::{Refused, Search};
use crate::process::excerpt::one_line;

const MAX_MATCHES: usize = 200;
/// Characters of a matching line that are shown.
const MAX_LINE: usize = 300;
/// Bytes of a line that are kept in memory; files with longer ones are skipped, and counted.
const MAX_LINE_READ: usize = 4 << 20;
const MAX_TIME: Duration = Duration::from_secs(20);
/// The deepest that a search goes: each level keeps a folder open.
const MAX_DEPTH: usize = 100;
/// Files of a batch: enough that starting threads costs little, and few enough for memory when every
/// file is full of matches.
const BATCH: usize = 512;
/// Folders that the files of a batch keep open.
const OPEN_FOLDERS: usize = 64;
/// Sessions share the machine, and the disk is the limit above a few.
const MAX_THREADS: usize = 4;

/// What is looked for, until when.
struct Wanted {
    matcher: RegexMatcher,
    glob: Option<GlobMatcher>,
    until: Instant,
}

/// A file that waits to be searched.
struct Candidate {
    folder: Arc<OwnedFd>,
    name: OsString,
    path: PathBuf,
}

/// What a file gave.
enum Found {
    Lines(Vec<String>),
    Unreadable,
    OutOfTime,
}

struct Searching<'a> {
    wanted: &'a Wanted,
    threads: usize,
    batch: Vec<Candidate>,
    /// Folders that the batch keeps open.
    folders: usize,
    lines: Vec<String>,
    skipped: usize,
    /// Folders that are nested too deep.
    too_deep: usize,
    ignored: bool,
    cut: Option<&'static str>,
}

pub(super) fn search(root: &Root, call: &Search) -> Result<String, Refused> {
    let wanted = Wanted::of(call)?;
    let mut searching = Searching {
        wanted: &wanted,
        threads: thread::available_parallelism().map_or(1, |threads| threads.get().min(MAX_THREADS)),
        batch: Vec::new(),
        folders: 0,
        lines: Vec::new(),
        skipped: 0,
        too_deep: 0,
        ignored: false,
        cut: None,
    };
    let path = Relative::parse(call.path.as_deref().unwrap_or("."))?;
    match Ground::open(root, &path) {
        Ok((folder, ground)) => {
            let at = if path.as_path() == Path::new(".") {
                PathBuf::new()
            } else {
                path.as_path().to_owned()
            };
            searching.folder(folder, &ground, &at, MAX_DEPTH);
            searching.search_batch();
        }
        Err(not_a_folder) => match root.file(&path) {
            Ok((file, _)) => {
                let found = wanted.in_file(&mut searcher(), file, path.as_path());
                searching.add(found);
            }
            Err(_) => return Err(not_a_folder),
        },
    }
    Ok(searching.answer())
}

fn searcher() -> Searcher {
    SearcherBuilder::new()
        .binary_detection(BinaryDetection::quit(0))
        .heap_limit(Some(MAX_LINE_READ))
        .build()
}

impl Wanted {
    fn of(call: &Search) -> Result<Self, Refused> {
        let matcher = RegexMatcherBuilder::new()
            .fixed_strings(!call.regex)
            .case_insensitive(call.ignore_case)
            .size_limit(1 << 20)
            .line_terminator(Some(b'\n'))
            .build(&call.pattern)
            .map_err(|error| Refused::new(format!("the pattern cannot be searched for, line by line: {error}")))?;
        let glob = match call.glob.as_deref().map(globset::Glob::new) {
            Some(Ok(glob)) => Some(glob.compile_matcher()),
            Some(Err(error)) => return Err(Refused::new(format!("the glob is wrong: {error}"))),
            None => None,
        };
        Ok(Self {
            matcher,
            glob,
            until: Instant::now() + MAX_TIME,
        })
    }

    fn is_late(&self) -> bool {
        Instant::now() > self.until
    }

    fn in_candidate(&self, searcher: &mut Searcher, candidate: &Candidate) -> Found {
        let Ok(file) = open_entry(&candidate.folder, &candidate.name, false) else {
            return Found::Unreadable;
        };
        // It may have become something else since it was listed.
        match fstat(&file) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                self.in_file(searcher, File::from(file), &candidate.path)
            }
            _ => Found::Unreadable,
        }
    }

    fn in_file(&self, searcher: &mut Searcher, file: File, path: &Path) -> Found {
        let mut matches = Matches {
            path,
            lines: Vec::new(),
            is_binary: false,
        };
        let bounded = Bounded {
            file,
            until: self.until,
        };
        match searcher.search_reader(&self.matcher, bounded, &mut matches) {
            Ok(()) if matches.is_binary => Found::Lines(Vec::new()),
            Ok(()) => Found::Lines(matches.lines),
            Err(_) if self.is_late() => Found::OutOfTime,
            Err(_) => Found::Unreadable,
        }
    }
}

/// A file that is read until the time is over.
struct Bounded {
    file: File,
    until: Instant,
}

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if Instant::now() > self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.file.read(into)
    }
}

/// The lines of a file that fit, as they are shown.
struct Matches<'a> {
    path: &'a Path,
    lines: Vec<String>,
    is_binary: bool,
}

impl Sink for Matches<'_> {
    type Error = io::Error;

    fn matched(&mut self, _searcher: &Searcher, found: &SinkMatch<'_>) -> io::Result<bool> {
        let line = String::from_utf8_lossy(found.bytes());
        let shown = one_line(line.trim_end_matches(['\r', '\n']), MAX_LINE);
        let number = found.line_number().unwrap_or_default();
        self.lines.push(format!("{}:{number}: {shown}", self.path.display()));
        // One more than is shown, so that the answer says that there are more.
        Ok(self.lines.len() <= MAX_MATCHES)
    }

    fn binary_data(&mut self, _searcher: &Searcher, _offset: u64) -> io::Result<bool> {
        self.is_binary = true;
        Ok(false)
    }
}

impl Searching<'_> {
    fn folder(&mut self, folder: OwnedFd, ground: &Ground, at: &Path, depth: usize) {
        let folder = Arc::new(folder);
        let mut is_kept = false;
        // Unreadable folders have no matches; a search is not an audit.
        for (name, kind) in entries(&folder).unwrap_or_default() {
            if self.is_over() {
                return;
            }
            if ground.ignores(&name, kind == FileType::Directory) {
                self.ignored = true;
                continue;
            }
            let path = at.join(&name);
            match kind {
                FileType::Directory if depth == 0 => self.too_deep += 1,
                FileType::Directory => {
                    if let Ok(below) = open_entry(&folder, &name, true) {
                        let ground = ground.enter(&name, &below);
                        self.folder(below, &ground, &path, depth - 1);
                    }
                    // Its batch may be gone.
                    is_kept = false;
                }
                FileType::RegularFile => {
                    if self.wanted.glob.as_ref().is_none_or(|glob| glob.is_match(&path)) {
                        self.folders += usize::from(!is_kept);
                        is_kept = true;
                        let folder = Arc::clone(&folder);
                        self.batch.push(Candidate { folder, name, path });
                        if self.batch.len() >= BATCH || self.folders >= OPEN_FOLDERS {
                            self.search_batch();
                            is_kept = false;
                        }
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
        if self.cut.is_none() && self.wanted.is_late() {
            self.cut = Some("time");
        }
        self.cut.is_some()
    }

    /// Searches the files that wait, and adds what they gave in their order.
    fn search_batch(&mut self) {
        let (batch, wanted) = (std::mem::take(&mut self.batch), self.wanted);
        self.folders = 0;
        let next = AtomicUsize::new(0);
        let work = || {
            let mut searcher = searcher();
            let mut found = Vec::new();
            while let Some((at, candidate)) = {
                let at = next.fetch_add(1, Ordering::Relaxed);
                batch.get(at).map(|candidate| (at, candidate))
            } {
                found.push((at, wanted.in_candidate(&mut searcher, candidate)));
            }
            found
        };
        let threads = self.threads.min(batch.len());
        let mut found: Vec<(usize, Found)> = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let joined = others
                .into_iter()
                .flat_map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            own.into_iter().chain(joined).collect()
        });
        found.sort_unstable_by_key(|(at, _)| *at);
        for (_, found) in found {
            if self.cut.is_some() {
                return;
            }
            self.add(found);
        }
    }

    fn add(&mut self, found: Found) {
        match found {
            Found::Unreadable => self.skipped += 1,
            Found::OutOfTime => self.cut = Some("time"),
            Found::Lines(lines) => {
                let room = MAX_MATCHES - self.lines.len();
                if lines.len() > room {
                    self.cut = Some("number of matches");
                }
                self.lines.extend(lines.into_iter().take(room));
            }
        }
    }

    fn answer(mut self) -> String {
        if self.lines.is_empty() {
            self.lines.push("[no match]".to_owned());
            if self.ignored {
                let note = "what git ignores was not searched; a path that names it searches it";
                self.lines.push(format!("[{note}]"));
            }
        }
        if let Some(limit) = self.cut {
            self.lines
                .push(format!("[cut: the limit on {limit} is reached; narrow the search]"));
        }
        if self.skipped > 0 {
            self.lines.push(format!(
                "[{} files are unreadable or have too long lines and were skipped]",
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
