//! Finds the damaged files of a mirror by reading all of them, and sets them aside. It owns the
//! definition of a sound mirror; `heal` restores missing objects.
//!
//! ```text
//! <mirror>/damaged/<time>/<path>   what was set aside; the newest few stay, for people
//! ```

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kage_core::id::Oid;
use kage_core::time::Timestamp;

use super::sound::{are_packed_refs, ends_with_checksum, entries, extension, is_oid};
use super::{CONFIG, HEAD, write_durably};
use crate::error::GitError;
use crate::loose::{is_sound, kind_of};

/// The folder of set-aside files in the mirror. It counts as part of the mirror's size, and is
/// deleted with it.
pub(super) const DAMAGED: &str = "damaged";

/// The most damaged mirrors that are kept; older ones are deleted.
const MOST_KEPT: usize = 3;

/// Folders that git expects in every repository.
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

/// Files that a mirror never has, and that would change where git looks for objects.
const STRANGE: [&str; 4] = [
    "shallow",
    "objects/info/alternates",
    "objects/info/http-alternates",
    "commondir",
];

/// Files that git computes from objects, and can compute again.
const DERIVED: [&str; 3] = [
    "objects/info/commit-graph",
    "objects/info/commit-graphs",
    "objects/pack/multi-pack-index",
];

/// The files that are set aside together.
#[derive(Debug)]
pub(super) struct Aside {
    mirror: PathBuf,
    folder: Option<PathBuf>,
    /// Set-aside paths, relative to the mirror.
    pub(super) parts: Vec<PathBuf>,
    /// Files that stayed with changed permissions.
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

    /// Moves a path there; a missing one is fine.
    pub(super) fn put(&mut self, path: &Path) -> Result<(), GitError> {
        let to = self.place(path)?;
        match fs::rename(path, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(GitError::io("set aside", path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Copies a path there, before it is replaced.
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

    /// Creates the files and folders that git needs, and sets aside wrong ones.
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
                    // Another process is writing it.
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

    /// Sets aside computed files, because some of their objects are missing now.
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

    /// Deletes all but the newest folders of set-aside files.
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

/// Damaged files of the object store, and packs whose content is not checked yet.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    pub(super) damaged: Vec<PathBuf>,
    /// The index files of packs.
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
            // The index is written last, so it never exists alone.
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

/// The targets of all readable references.
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
    // The index first: without it git ignores the pack.
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
            // Another repair in the same millisecond.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => return Err(GitError::io("create", &folder)(error)),
        }
    }
}
