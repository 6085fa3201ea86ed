//! A bare repository that Kage owns: the coordinator's, an agent's, or the command line's cache of
//! results. It owns references, incoming and outgoing packs, and durability: completed operations
//! survive a power cut. Results are stored elsewhere too (pack blobs and rows), so a mirror can
//! always be rebuilt; an agent heals its mirrors (`heal`).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kage_core::folder::Folder;
use kage_core::id::Oid;
use tempfile::NamedTempFile;

use crate::command::{Auth, GitCommand};
use crate::error::{GitError, blocking};
use crate::lock;
use pack_scan::{PackLimits, STREAMED};

mod growth;
pub(crate) mod pack_scan;
mod sound;

mod check;
mod damage;
mod heal;
mod incoming;
mod leftovers;
mod lookup;
mod sent;

pub(crate) use check::in_threads;
pub use heal::{Incident, Origin, Wanted, discard_damaged, incidents};
pub use incoming::Incoming;
use leftovers::InUse;

const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n\tfsync = all\n\
    [gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n[transfer]\n\tfsckObjects = true\n";

const HEAD: &str = "ref: refs/heads/none\n";

/// Bytes of a reference's name, which is a path below the repository's.
const MAX_REFERENCE_BYTES: usize = 1024;

/// Bytes between two slashes of it: a file's name, with room for git's `.lock`.
const MAX_PART_BYTES: usize = 240;

/// The first parent of a commit of names that has something of it; the one before is the person's HEAD.
pub(crate) const FIRST_BESIDE: usize = 1;

/// A bare repository of Kage's. While any process has one of these, unfinished work of others in
/// the mirror is not swept.
#[derive(Debug, Clone)]
pub struct Mirror {
    path: PathBuf,
    /// `None` for one that is only read.
    _in_use: Option<Arc<InUse>>,
}

impl PartialEq for Mirror {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Mirror {}

/// The state of a reference that an update requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Anything, or not there.
    Anything,
    Absent,
    /// At exactly this commit.
    At(Oid),
}

impl Mirror {
    /// Opens the repository at `path`. Creates it if it does not exist, and deletes leftovers of a
    /// crash if no other process has it open.
    ///
    /// # Errors
    /// When the file system refuses.
    pub async fn open_or_init(path: impl Into<PathBuf>) -> Result<Self, GitError> {
        let path = path.into();
        blocking("making a repository", move || {
            fs::create_dir_all(&path).map_err(GitError::io("create", &path))?;
            let path = fs::canonicalize(&path).map_err(GitError::io("resolve", &path))?;
            // HEAD is written last: an incomplete repository is created again.
            if !path.join("HEAD").exists() {
                for folder in ["objects/pack", "objects/info", "refs/heads", "refs/kage", "info"] {
                    let folder = path.join(folder);
                    fs::create_dir_all(&folder).map_err(GitError::io("create", &folder))?;
                }
                write_durably(&path.join("config"), CONFIG.as_bytes())?;
                write_durably(&path.join("HEAD"), HEAD.as_bytes())?;
                for folder in ["objects", "refs", ""] {
                    flush_folder(&path.join(folder))?;
                }
                flush_folder(path.parent().unwrap_or(&path))?;
            }
            let _in_use = Some(leftovers::enter(&path)?);
            Ok(Self { path, _in_use })
        })
        .await
    }

    /// Opens a repository that nobody changes, such as that of a backup, and writes nothing to it: also where
    /// nothing can be written.
    ///
    /// # Errors
    /// When the path cannot be resolved.
    pub async fn open_to_read(path: impl Into<PathBuf>) -> Result<Self, GitError> {
        let path = path.into();
        blocking("opening a repository", move || {
            let path = fs::canonicalize(&path).map_err(GitError::io("resolve", &path))?;
            Ok(Self { path, _in_use: None })
        })
        .await
    }

    /// Absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    pub(crate) fn git(&self, operation: &'static str) -> GitCommand {
        GitCommand::new(operation).git_dir(&self.path).current_dir(&self.path)
    }

    /// Fetches `refspecs` (`refs/kage/bases/X:refs/kage/bases/X`) from `url`. Fetches into one
    /// repository run one after the other, so common objects are sent once.
    ///
    /// # Errors
    /// When the remote refuses, cannot be reached or lacks a reference.
    pub async fn fetch(&self, url: &str, auth: &Auth, refspecs: &[&str]) -> Result<(), GitError> {
        let _lock = lock::acquire(&self.path).await?;
        self.fetch_locked(url, auth, refspecs).await
    }

    /// Fetches commits by their references, all at once, unless they are here: another attempt may
    /// have fetched them while this one waited for its turn.
    ///
    /// # Errors
    /// As [`Mirror::fetch`].
    pub async fn fetch_missing(&self, origin: &Origin, wanted: &[Wanted]) -> Result<(), GitError> {
        let _lock = lock::acquire(&self.path).await?;
        let mut refspecs = Vec::new();
        for wanted in self.missing(wanted).await? {
            refspecs.push(format!("+{0}:{0}", wanted.reference));
        }
        if refspecs.is_empty() {
            return Ok(());
        }
        let refspecs: Vec<&str> = refspecs.iter().map(String::as_str).collect();
        self.fetch_locked(&origin.url, &origin.auth, &refspecs).await
    }

    /// Those of the commits that are not here.
    ///
    /// # Errors
    /// As [`Mirror::has_commit`].
    pub async fn missing<'a>(&self, wanted: &'a [Wanted]) -> Result<Vec<&'a Wanted>, GitError> {
        let mut missing = Vec::new();
        for wanted in wanted {
            if !self.has_commit(&wanted.commit).await? {
                missing.push(wanted);
            }
        }
        Ok(missing)
    }

    async fn fetch_locked(&self, url: &str, auth: &Auth, refspecs: &[&str]) -> Result<(), GitError> {
        let mut command = self.git("fetch");
        // What was pushed may be fetched, and needs no more memory here.
        for (name, value) in PackLimits::of_push().settings() {
            command = command.config(name, &value);
        }
        command
            .auth(auth)
            .args([
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-recurse-submodules",
                "--no-auto-maintenance",
                "--end-of-options",
                url,
            ])
            .args(refspecs)
            .run()
            .await?;
        let targets = refspecs.iter().filter_map(|spec| spec.split_once(':'));
        let names = targets.map(|(_, name)| name.to_owned()).collect();
        self.flush(names).await
    }

    /// True if the commit is here and has this folder.
    ///
    /// # Errors
    /// When git cannot run.
    pub async fn has_folder(&self, commit: &Oid, folder: &Folder) -> Result<bool, GitError> {
        has_folder(self.git("ls-tree"), commit, folder).await
    }

    /// Points `name` at `new` if the present target is as expected. Durable when it returns.
    ///
    /// # Errors
    /// When the reference has another target, `new` is not here, or the name is invalid.
    pub async fn update_ref(&self, name: &str, new: &Oid, expected: &Expected) -> Result<(), GitError> {
        check_reference(name)?;
        let _lock = lock::acquire(&self.path).await?;
        let command = match expected {
            Expected::Anything => format!("update {name}\0{new}\0\0"),
            Expected::Absent => format!("create {name}\0{new}\0"),
            Expected::At(old) => format!("update {name}\0{new}\0{old}\0"),
        };
        self.git("update-ref")
            .args(["--no-deref", "-z", "--stdin"])
            .stdin(command)
            .run()
            .await?;
        self.flush(vec![name.to_owned()]).await
    }

    /// The names of the references below `prefix`, which ends with a slash.
    ///
    /// # Errors
    /// When git cannot run.
    pub async fn refs_under(&self, prefix: &str) -> Result<Vec<String>, GitError> {
        let listed = self
            .git("for-each-ref")
            .args(["--format=%(refname)", "--", prefix])
            .run()
            .await?;
        Ok(String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect())
    }

    /// Removes those of the references that exist. Their objects stay until git collects garbage.
    ///
    /// # Errors
    /// When a name is invalid, or git cannot run.
    pub async fn delete_refs(&self, names: &[String]) -> Result<(), GitError> {
        let mut commands = String::new();
        for name in names {
            check_reference(name)?;
            commands += &format!("delete {name}\0\0");
        }
        let _lock = lock::acquire(&self.path).await?;
        self.git("update-ref")
            .args(["--no-deref", "-z", "--stdin"])
            .stdin(commands)
            .run()
            .await?;
        Ok(())
    }

    /// Renames those of the references that exist, all or none; `to` gives the new names. Returns
    /// their number.
    ///
    /// # Errors
    /// When a name is invalid, or git cannot run.
    pub async fn rename_refs(&self, names: &[String], to: impl Fn(&str) -> String) -> Result<usize, GitError> {
        if names.is_empty() {
            return Ok(0);
        }
        let _lock = lock::acquire(&self.path).await?;
        let listed = self
            .git("for-each-ref")
            .args(["--format=%(objectname) %(refname)"])
            .run()
            .await?;
        let wanted: HashSet<&str> = names.iter().map(String::as_str).collect();
        let (mut commands, mut renamed) = (String::new(), Vec::new());
        for line in String::from_utf8_lossy(&listed).lines() {
            let Some((object, name)) = line.split_once(' ').filter(|(_, name)| wanted.contains(name)) else {
                continue;
            };
            let other = to(name);
            check_reference(&other)?;
            commands += &format!("update {other}\0{object}\0\0delete {name}\0{object}\0");
            renamed.push(other);
        }
        if renamed.is_empty() {
            return Ok(0);
        }
        self.git("update-ref")
            .args(["--no-deref", "-z", "--stdin"])
            .stdin(commands)
            .run()
            .await?;
        let count = renamed.len();
        self.flush(renamed).await?;
        Ok(count)
    }

    /// A pack with the objects of `want` that `have` lacks; its deltas may refer to objects of
    /// `have`.
    ///
    /// # Errors
    /// When one of the commits is not here.
    pub async fn thin_pack(&self, want: &Oid, have: &[Oid]) -> Result<NamedTempFile, GitError> {
        let pack = NamedTempFile::new_in(&self.path).map_err(GitError::io("make a file in", &self.path))?;
        let output = pack.reopen().map_err(GitError::io("open", pack.path()))?;
        let mut wanted = format!("{want}\n--not\n");
        for commit in have {
            wanted.push_str(commit.as_str());
            wanted.push('\n');
        }
        self.git("pack-objects")
            .args([
                "--revs",
                "--thin",
                "--stdout",
                "--quiet",
                "--delta-base-offset",
                "--no-reuse-delta",
                "--no-use-bitmap-index",
            ])
            // No delta that the other side would have to hold.
            .config("core.bigFileThreshold", &STREAMED.to_string())
            .stdin(wanted)
            .stdout_file(output)
            .run()
            .await?;
        Ok(pack)
    }

    /// Makes finished reference updates and packs survive a power cut: git flushes files,
    /// but not the folders that name them.
    pub(crate) async fn flush(&self, references: Vec<String>) -> Result<(), GitError> {
        let path = self.path.clone();
        blocking("flushing a repository", move || {
            let mut folders = vec![path.join("objects/pack"), path.join("objects")];
            for name in &references {
                let mut folder = Path::new(name).parent();
                while let Some(part) = folder.filter(|part| !part.as_os_str().is_empty()) {
                    folders.push(path.join(part));
                    folder = part.parent();
                }
            }
            folders.sort();
            folders.dedup();
            for folder in folders {
                match flush_folder(&folder) {
                    Err(GitError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            Ok(())
        })
        .await
    }
}

/// Whether a commit has a folder, which a submodule is not; `ls_tree` is git in a repository.
pub(crate) async fn has_folder(ls_tree: GitCommand, commit: &Oid, folder: &Folder) -> Result<bool, GitError> {
    let found = ls_tree
        .env("GIT_LITERAL_PATHSPECS", "1")
        .args(["-d", "-z", "--full-tree", commit.as_str(), "--", folder.as_str()])
        .run()
        .await?;
    Ok(found.starts_with(b"040000 tree"))
}

/// Whether it can be a reference. git accepts longer names than a file system, and leaves folders
/// behind when it fails.
pub(crate) fn is_reference(name: &str) -> bool {
    let fits = name.len() <= MAX_REFERENCE_BYTES && name.split('/').all(|part| part.len() <= MAX_PART_BYTES);
    fits && name.starts_with("refs/") && git2::Reference::is_valid_name(name)
}

fn check_reference(name: &str) -> Result<(), GitError> {
    if is_reference(name) {
        return Ok(());
    }
    let name = name.chars().take(100).collect();
    Err(GitError::ReferenceName { name })
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), GitError> {
    use io::Write as _;
    let mut file = File::create(path).map_err(GitError::io("create", path))?;
    file.write_all(bytes).map_err(GitError::io("write", path))?;
    file.sync_all().map_err(GitError::io("flush", path))
}

fn flush_folder(path: &Path) -> Result<(), GitError> {
    let folder = File::open(path).map_err(GitError::io("open", path))?;
    folder.sync_all().map_err(GitError::io("flush", path))
}
