//! What of a mirror's files is damaged, found by reading all of them, and where that is set
//! aside. It owns what a sound mirror looks like; getting back what is missing is `heal`'s.
//!
//! ```text
//! <mirror>/damaged/<time>/<path>   what was set aside; the newest few stay, for people
//! ```

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::read::ZlibDecoder;
use kage_core::id::Oid;
use kage_core::time::Timestamp;
use sha1::{Digest as _, Sha1};

use super::{CONFIG, HEAD, write_durably};
use crate::error::GitError;

/// The folder of what was set aside, in the mirror: its bytes count, and go, with it.
pub(super) const DAMAGED: &str = "damaged";

/// How many of them stay.
const MOST_KEPT: usize = 3;

/// Folders that git needs.
const FOLDERS: [&str; 7] = [
    "objects",
    "objects/pack",
    "objects/info",
    "refs",
    "refs/heads",
    "refs/kage",
    "info",
];

/// Folders that are made when they are needed.
const LATER: [&str; 4] = [
    "checkouts",
    "refs/kage/bases",
    "refs/kage/results",
    "refs/kage/checkpoints",
];

/// What a mirror never has, and what would change where git looks for objects.
const STRANGE: [&str; 4] = [
    "shallow",
    "objects/info/alternates",
    "objects/info/http-alternates",
    "commondir",
];

/// What git computes from objects, and computes again.
const DERIVED: [&str; 3] = [
    "objects/info/commit-graph",
    "objects/info/commit-graphs",
    "objects/pack/multi-pack-index",
];

/// Bytes of the checksum at the end of git's own files.
const CHECKSUM: u64 = 20;

/// What is set aside in one go.
#[derive(Debug)]
pub(super) struct Aside {
    mirror: PathBuf,
    folder: Option<PathBuf>,
    /// What was set aside, relative to the mirror.
    pub(super) parts: Vec<PathBuf>,
    /// What was changed and could stay: permissions.
    pub(super) opened: Vec<PathBuf>,
}

impl Aside {
    pub(super) const fn new(mirror: PathBuf) -> Self {
        Self {
            mirror,
            folder: None,
            parts: Vec::new(),
            opened: Vec::new(),
        }
    }

    pub(super) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.opened.is_empty()
    }

    /// A place for `path`, which is in the mirror.
    fn place(&mut self, path: &Path) -> Result<PathBuf, GitError> {
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => self.folder.insert(new_folder(&self.mirror.join(DAMAGED))?).clone(),
        };
        let relative = path.strip_prefix(&self.mirror).unwrap_or(path);
        let to = folder.join(relative);
        let parent = to.parent().unwrap_or(&folder);
        fs::create_dir_all(parent).map_err(GitError::io("create", parent))?;
        self.parts.push(relative.to_owned());
        Ok(to)
    }

    /// Moves it there; gone already is fine.
    pub(super) fn put(&mut self, path: &Path) -> Result<(), GitError> {
        let to = self.place(path)?;
        match fs::rename(path, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(GitError::io("set aside", path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Keeps a copy of it there, before something else takes its place.
    pub(super) fn copy(&mut self, path: &Path) -> Result<(), GitError> {
        let to = self.place(path)?;
        fs::hard_link(path, &to)
            .or_else(|_| fs::copy(path, &to).map(drop))
            .map_err(GitError::io("set aside", path))
    }

    /// Lets its owner read it, and write and enter a folder.
    fn open(&mut self, path: &Path, meta: &Metadata) -> Result<(), GitError> {
        let needed = if meta.is_dir() { 0o700 } else { 0o400 };
        let mode = meta.permissions().mode();
        if mode & needed != needed {
            let permissions = Permissions::from_mode(mode & 0o7777 | needed);
            fs::set_permissions(path, permissions).map_err(GitError::io("change the permissions of", path))?;
            self.opened
                .push(path.strip_prefix(&self.mirror).unwrap_or(path).to_owned());
        }
        Ok(())
    }

    /// Makes the mirror itself a folder, and its lock files files.
    pub(super) fn repair_place(&mut self) -> Result<(), GitError> {
        let mirror = self.mirror.clone();
        let parent = mirror.parent().unwrap_or(&mirror);
        match kind_of(&mirror)? {
            Some(meta) if meta.is_dir() => self.open(&mirror, &meta)?,
            Some(_) => {
                let name = mirror.file_name().unwrap_or_default().to_string_lossy();
                let away = parent.join(format!(".{name}.damaged"));
                fs::rename(&mirror, &away).map_err(GitError::io("set aside", &mirror))?;
                fs::create_dir(&mirror).map_err(GitError::io("create", &mirror))?;
                let to = self.place(&mirror.join("mirror"))?;
                fs::rename(&away, &to).map_err(GitError::io("set aside", &mirror))?;
            }
            None => fs::create_dir_all(&mirror).map_err(GitError::io("create", &mirror))?,
        }
        for name in ["kage.lock", "users.lock", "used"] {
            let path = mirror.join(name);
            match kind_of(&path)? {
                Some(meta) if meta.is_file() => self.open(&path, &meta)?,
                Some(_) => self.put(&path)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Gives the mirror the files and folders that git needs, and sets aside those that are not
    /// what they must be.
    pub(super) fn repair_layout(&mut self) -> Result<(), GitError> {
        let mirror = self.mirror.clone();
        for name in FOLDERS.iter().chain(&LATER) {
            let path = mirror.join(name);
            match kind_of(&path)? {
                Some(meta) if meta.is_dir() => self.open(&path, &meta)?,
                found => {
                    if found.is_some() {
                        self.put(&path)?;
                    } else if !LATER.contains(name) {
                        self.parts.push(PathBuf::from(name));
                    }
                    if !LATER.contains(name) {
                        fs::create_dir_all(&path).map_err(GitError::io("create", &path))?;
                    }
                }
            }
        }
        for (name, content) in [("config", CONFIG), ("HEAD", HEAD)] {
            let path = mirror.join(name);
            let found = kind_of(&path)?;
            if let Some(meta) = found.as_ref().filter(|meta| meta.is_file()) {
                self.open(&path, meta)?;
                if fs::read(&path).is_ok_and(|bytes| bytes == content.as_bytes()) {
                    continue;
                }
            }
            if found.is_some() {
                self.put(&path)?;
            } else {
                self.parts.push(PathBuf::from(name));
            }
            write_durably(&path, content.as_bytes())?;
        }
        for name in STRANGE {
            let path = mirror.join(name);
            if kind_of(&path)?.is_some() {
                self.put(&path)?;
            }
        }
        let packed = mirror.join("packed-refs");
        if let Some(meta) = kind_of(&packed)? {
            if meta.is_file() {
                self.open(&packed, &meta)?;
            }
            if !fs::read(&packed).is_ok_and(|bytes| are_packed_refs(&bytes)) {
                self.put(&packed)?;
            }
        }
        self.repair_references(&mirror.join("refs"))
    }

    fn repair_references(&mut self, top: &Path) -> Result<(), GitError> {
        let mut folders = vec![top.to_owned()];
        while let Some(folder) = folders.pop() {
            for (path, meta) in entries(&folder)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if meta.is_dir() {
                    self.open(&path, &meta)?;
                    folders.push(path);
                } else if name.ends_with(".lock") || name.starts_with(".tmp") {
                    // Somebody is writing it.
                } else if meta.is_file() {
                    self.open(&path, &meta)?;
                    let content = fs::read(&path).unwrap_or_default();
                    let oid = content.strip_suffix(b"\n").map(is_oid);
                    if oid != Some(true) && path.exists() {
                        self.put(&path)?;
                    }
                } else {
                    self.put(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Sets aside what git computed from objects, of which some are gone now.
    pub(super) fn put_derived(&mut self) -> Result<(), GitError> {
        let mirror = self.mirror.clone();
        for name in DERIVED {
            let path = mirror.join(name);
            if kind_of(&path)?.is_some() {
                self.put(&path)?;
            }
        }
        for (path, _) in entries(&mirror.join("objects/pack"))? {
            if matches!(extension(&path), "bitmap") {
                self.put(&path)?;
            }
        }
        Ok(())
    }

    /// Deletes all but the newest folders of what was set aside.
    pub(super) fn prune(&self) -> Result<(), GitError> {
        let mut kept: Vec<PathBuf> = entries(&self.mirror.join(DAMAGED))?
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        // They are named by their time.
        kept.sort();
        let surplus = kept.len().saturating_sub(MOST_KEPT);
        for path in &kept[..surplus] {
            fs::remove_dir_all(path).map_err(GitError::io("delete", path))?;
        }
        Ok(())
    }
}

/// Files of the object store that are not what they should be, and packs whose content nobody
/// has looked at yet.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    pub(super) damaged: Vec<PathBuf>,
    /// Their indexes.
    pub(super) packs: Vec<PathBuf>,
}

/// Looks at every file of the object store; hashes objects that are files of their own.
pub(super) fn look_at_objects(aside: &mut Aside) -> Result<Suspects, GitError> {
    let objects = aside.mirror.join("objects");
    let mut suspects = Suspects::default();
    for (path, meta) in entries(&objects)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_fan = name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_fan {
            continue;
        }
        if !meta.is_dir() {
            suspects.damaged.push(path);
            continue;
        }
        aside.open(&path, &meta)?;
        for (path, meta) in entries(&path)? {
            let rest = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(id) = format!("{name}{rest}").parse::<Oid>() else {
                continue;
            };
            if meta.is_file() {
                aside.open(&path, &meta)?;
            }
            if !(meta.is_file() && is_sound(&path, &id)?) {
                suspects.damaged.push(path);
            }
        }
    }
    for (path, meta) in entries(&objects.join("pack"))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("tmp_") || name.starts_with(".tmp") {
            continue;
        }
        if !meta.is_file() {
            suspects.damaged.push(path);
            continue;
        }
        aside.open(&path, &meta)?;
        match extension(&path) {
            // The index comes last, so it is never alone.
            "idx" if path.with_extension("pack").is_file() => suspects.packs.push(path),
            "idx" => suspects.damaged.push(path),
            "rev" | "bitmap" | "" if !ends_with_checksum(&path)? => suspects.damaged.push(path),
            _ => {}
        }
    }
    for name in DERIVED {
        let path = aside.mirror.join(name);
        match kind_of(&path)? {
            Some(meta) if meta.is_dir() => {
                for (graph, _) in entries(&path)? {
                    if extension(&graph) == "graph" && !ends_with_checksum(&graph)? {
                        suspects.damaged.push(path.clone());
                        break;
                    }
                }
            }
            Some(_) if !ends_with_checksum(&path)? && !suspects.damaged.contains(&path) => suspects.damaged.push(path),
            Some(_) | None => {}
        }
    }
    Ok(suspects)
}

/// What all references that can be read point at.
pub(super) fn references(mirror: &Path) -> Result<Vec<(String, Oid)>, GitError> {
    let mut found = Vec::new();
    let mut folders = vec![mirror.join("refs")];
    while let Some(folder) = folders.pop() {
        for (path, meta) in entries(&folder)? {
            if meta.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(mirror).ok().and_then(Path::to_str);
            let id = fs::read_to_string(&path)
                .ok()
                .and_then(|text| text.trim_end().parse().ok());
            found.extend(name.map(str::to_owned).zip(id));
        }
    }
    let packed = fs::read_to_string(mirror.join("packed-refs")).unwrap_or_default();
    let line = |line: &str| {
        let (id, name) = line.split_once(' ')?;
        Some((name.to_owned(), id.parse().ok()?))
    };
    found.extend(packed.lines().filter_map(line));
    found.sort();
    found.dedup();
    Ok(found)
}

/// Everything that belongs to a pack.
pub(super) fn files_of_pack(index: &Path) -> Vec<PathBuf> {
    // The index first: without it nobody looks for the pack.
    ["idx", "rev", "bitmap", "mtimes", "pack"]
        .map(|extension| index.with_extension(extension))
        .into_iter()
        .filter(|path| path.exists())
        .collect()
}

fn new_folder(all: &Path) -> Result<PathBuf, GitError> {
    if kind_of(all)?.is_some_and(|meta| !meta.is_dir()) {
        fs::remove_file(all).map_err(GitError::io("delete", all))?;
    }
    fs::create_dir_all(all).map_err(GitError::io("create", all))?;
    loop {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let folder = all.join(now.to_string());
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            // Another one in the same millisecond.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => return Err(GitError::io("create", &folder)(error)),
        }
    }
}

/// What is at `path` itself; `None` when nothing is.
fn kind_of(path: &Path) -> Result<Option<Metadata>, GitError> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(GitError::io("look at", path)(error)),
    }
}

/// What is directly in a folder, links not followed; nothing when it is not there.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, Metadata)>, GitError> {
    let found = match fs::read_dir(folder) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(GitError::io("list", folder)(error)),
    };
    let mut all = Vec::new();
    for entry in found {
        let path = entry.map_err(GitError::io("list", folder))?.path();
        // It may be gone meanwhile.
        if let Some(meta) = kind_of(&path)? {
            all.push((path, meta));
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(all)
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or("")
}

fn is_oid(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| text.parse::<Oid>().is_ok())
}

/// Whether it is a file of packed references: a header, `id name` lines, `^id` lines.
fn are_packed_refs(bytes: &[u8]) -> bool {
    let is_line = |line: &[u8]| match line {
        [b'#', ..] => true,
        [b'^', id @ ..] => is_oid(id),
        line => {
            let mut parts = line.splitn(2, |byte| *byte == b' ');
            parts.next().is_some_and(is_oid) && parts.next().is_some_and(|name| name.starts_with(b"refs/"))
        }
    };
    bytes
        .strip_suffix(b"\n")
        .is_some_and(|all| all.split(|byte| *byte == b'\n').all(is_line))
}

/// An error of the machine, after which nothing is known of the file.
fn is_machines(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    error.kind() == io::ErrorKind::OutOfMemory
        || matches!(
            code,
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOMEM)
        )
}

/// Whether what was read says that it is sound; what cannot be read is not.
fn judged(path: &Path, read: io::Result<bool>) -> Result<bool, GitError> {
    match read {
        Ok(sound) => Ok(sound),
        Err(error) if is_machines(&error) => Err(GitError::io("read", path)(error)),
        // Gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(_) => Ok(false),
    }
}

/// Whether a file of one object holds the object that it is named after.
fn is_sound(path: &Path, id: &Oid) -> Result<bool, GitError> {
    judged(
        path,
        hash_of_loose(path).map(|hash| hash.as_deref() == Some(id.as_str())),
    )
}

/// The hash of what a file of one object holds; `None` when it is not one object.
fn hash_of_loose(path: &Path) -> io::Result<Option<String>> {
    let mut content = ZlibDecoder::new(File::open(path)?);
    let mut hasher = Sha1::new();
    let mut header = Vec::new();
    let mut stated: Option<u64> = None;
    let mut size = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = content.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let mut piece = &buffer[..count];
        hasher.update(piece);
        if stated.is_none() {
            let end = piece.iter().position(|byte| *byte == 0);
            header.extend_from_slice(&piece[..end.unwrap_or(count)]);
            let Some(end) = end else {
                if header.len() > 64 {
                    return Ok(None);
                }
                continue;
            };
            let text = std::str::from_utf8(&header).unwrap_or_default();
            let Some((_, length)) = text.split_once(' ') else {
                return Ok(None);
            };
            let Ok(length) = length.parse() else {
                return Ok(None);
            };
            stated = Some(length);
            piece = &piece[end + 1..];
        }
        size += piece.len() as u64;
    }
    let hash: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((stated == Some(size)).then_some(hash))
}

/// Whether a file of git's ends with the checksum of what is before.
fn ends_with_checksum(path: &Path) -> Result<bool, GitError> {
    let check = || {
        let mut file = File::open(path)?;
        let Some(length) = file.metadata()?.len().checked_sub(CHECKSUM) else {
            return Ok(false);
        };
        let mut hasher = Sha1::new();
        let mut content = (&mut file).take(length);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = content.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
        }
        let mut stated = Vec::new();
        file.read_to_end(&mut stated)?;
        Ok(hasher.finalize().as_slice() == stated)
    };
    judged(path, check())
}
