//! Heals a mirror that was damaged by a bad disk, a power cut or another program. A mirror is a
//! cache, so damaged files are set aside and missing objects are fetched again.
//!
//! The mirror and its sound files stay where they are. Worktrees of other attempts borrow its
//! objects by its path, it contains Kage's own git directories of them, and some objects exist
//! nowhere else: checkpoints that are not delivered yet. Moving the whole mirror away would break
//! all of them. For the same reason the order is
//!
//! ```text
//! look at all files ─▶ fetch what is needed, whole, into a repository of its own
//!   ─▶ move its packs in ─▶ set aside what is damaged ─▶ drop references to what is gone
//! ```
//!
//! so that an available object is present at every moment. Needed are the commits that the caller
//! wants, and the bases of the worktrees in use. Only damaged objects that exist nowhere else are
//! lost.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kage_core::id::Oid;
use kage_core::time::Timestamp;
use tempfile::TempDir;

use super::damage::{Aside, DAMAGED, Suspects, files_of_pack, look_at_objects, references};
use super::incoming::move_packs;
use super::{CONFIG, HEAD, Mirror, flush_folder};
use crate::command::{Auth, GitCommand};
use crate::error::{GitError, blocking};
use crate::lock;

/// The healed incidents with their times, one per line, the newest last.
const JOURNAL: &str = "healed";

/// The most incidents that are kept; older ones are deleted.
const MOST_INCIDENTS: usize = 20;

/// The longest reason that is noted.
const MOST_REASON: usize = 300;

/// Where a mirror gets its objects from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub url: String,
    pub auth: Auth,
}

/// A commit that a mirror must have, and its reference at the origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub reference: String,
    pub commit: Oid,
}

impl Wanted {
    /// The base of a task, by its commit.
    #[must_use]
    pub fn base(commit: &Oid) -> Self {
        Self {
            reference: format!("refs/kage/bases/{commit}"),
            commit: commit.clone(),
        }
    }
}

/// A damaged mirror that was fetched again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incident {
    pub at: Timestamp,
    /// Where the damaged parts are, as long as there is room; `None` = they were missing.
    pub aside: Option<PathBuf>,
    pub what: String,
}

impl Mirror {
    /// Sets aside the damaged files of the mirror at `path`, and fetches what is missing of
    /// `wanted`. `None`: everything was sound and complete.
    ///
    /// # Errors
    /// When the origin cannot be reached or lacks something, or the file system refuses.
    pub async fn heal(path: &Path, origin: &Origin, wanted: &[Wanted]) -> Result<Option<Incident>, GitError> {
        let mut aside = Aside::new(path.to_owned());
        let mut aside = blocking("healing a repository", move || {
            aside.repair_place()?;
            Ok::<_, GitError>(aside)
        })
        .await?;
        let _lock = lock::acquire(path).await?;
        let (aside_back, suspects) = blocking("healing a repository", move || {
            aside.repair_layout()?;
            let suspects = look_at_objects(&mut aside)?;
            Ok::<_, GitError>((aside, suspects))
        })
        .await?;
        aside = aside_back;
        let mirror = Self::open_or_init(path).await?;
        let damaged = mirror.damaged(suspects).await?;
        let mut needed = wanted.to_vec();
        needed.extend(mirror.in_use(wanted).await?);
        if damaged.is_empty() {
            let mut incomplete = Vec::new();
            for each in needed {
                if !mirror.is_complete(&each.commit).await? {
                    incomplete.push(each);
                }
            }
            needed = incomplete;
        }
        let dangling = mirror.dangling().await?;
        if damaged.is_empty() && needed.is_empty() && dangling.is_empty() && aside.is_empty() {
            return Ok(None);
        }
        let what = describe(&aside, &damaged, &dangling, needed.len(), path);
        let fresh = mirror.fetch_afresh(origin, wanted, &needed).await?;
        let place = path.to_owned();
        let mut aside = blocking("healing a repository", move || {
            if let Some(fresh) = fresh {
                install(
                    &fresh.path().join("objects/pack"),
                    &place.join("objects/pack"),
                    &mut aside,
                )?;
            }
            let replaced = aside.parts.clone();
            for file in &damaged {
                let relative = file.strip_prefix(&place).unwrap_or(file);
                if !replaced.iter().any(|part| part == relative) {
                    aside.put(file)?;
                }
            }
            if !damaged.is_empty() {
                aside.put_derived()?;
            }
            aside.prune()?;
            Ok::<_, GitError>(aside)
        })
        .await?;
        mirror.drop_broken_references(dangling).await?;
        for each in &needed {
            mirror.point(each).await?;
        }
        mirror.flush(Vec::new()).await?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let incident = Incident {
            at: Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            aside: aside.folder().map(Path::to_owned),
            what,
        };
        aside.parts.clear();
        let (place, noted) = (path.to_owned(), incident.clone());
        blocking("healing a repository", move || note(&place, &noted)).await?;
        Ok(Some(incident))
    }

    /// All damaged files: those found by reading, and the packs that git finds damaged.
    async fn damaged(&self, suspects: Suspects) -> Result<Vec<PathBuf>, GitError> {
        let mut damaged = suspects.damaged;
        for index in suspects.packs {
            match self.git("verify-pack").arg("--").arg(&index).run().await {
                Ok(_) => {}
                Err(error) if error.is_transient() => return Err(error),
                Err(_) => damaged.extend(files_of_pack(&index)),
            }
        }
        damaged.sort();
        damaged.dedup();
        Ok(damaged)
    }

    /// Whether the commit and all that it leads to is here.
    async fn is_complete(&self, commit: &Oid) -> Result<bool, GitError> {
        let walk = self
            .git("rev-list")
            .args(["--objects", "--quiet", "--end-of-options", commit.as_str()]);
        match walk.run().await {
            Ok(_) => Ok(true),
            Err(error) if error.is_transient() => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// The bases of existing worktrees, except `wanted`.
    async fn in_use(&self, wanted: &[Wanted]) -> Result<Vec<Wanted>, GitError> {
        let path = self.path.clone();
        let mut heads = blocking("healing a repository", move || Ok::<_, GitError>(heads(&path))).await?;
        heads.retain(|head| wanted.iter().all(|each| each.commit != *head));
        let mut needed = Vec::new();
        for head in heads {
            needed.push(Wanted::base(&head));
        }
        Ok(needed)
    }

    /// A new repository with all of `needed` that the origin has; it must have `wanted`. `None`:
    /// nothing is needed.
    async fn fetch_afresh(
        &self,
        origin: &Origin,
        wanted: &[Wanted],
        needed: &[Wanted],
    ) -> Result<Option<TempDir>, GitError> {
        if needed.is_empty() {
            return Ok(None);
        }
        let objects = self.objects();
        let fresh = blocking("healing a repository", move || {
            // A name that is swept after a crash.
            let fresh = tempfile::Builder::new()
                .prefix("incoming-")
                .tempdir_in(&objects)
                .map_err(GitError::io("make a folder in", &objects))?;
            for folder in ["objects/pack", "objects/info", "refs"] {
                let folder = fresh.path().join(folder);
                fs::create_dir_all(&folder).map_err(GitError::io("create", &folder))?;
            }
            for (name, content) in [("config", CONFIG), ("HEAD", HEAD)] {
                let path = fresh.path().join(name);
                fs::write(&path, content).map_err(GitError::io("create", &path))?;
            }
            Ok::<_, GitError>(fresh)
        })
        .await?;
        for each in needed {
            let name = &each.reference;
            let fetched = GitCommand::new("fetch")
                .git_dir(fresh.path())
                .current_dir(fresh.path())
                .auth(&origin.auth)
                .args([
                    "--quiet",
                    "--no-tags",
                    "--no-write-fetch-head",
                    "--no-recurse-submodules",
                    "--no-auto-maintenance",
                    "--end-of-options",
                    &origin.url,
                ])
                .arg(format!("+{name}:{name}"))
                .run()
                .await;
            if let Err(error) = fetched {
                if wanted.contains(each) {
                    return Err(error);
                }
                tracing::debug!(%error, name, "a worktree's commit is not fetched anew");
            }
        }
        Ok(Some(fresh))
    }

    /// References to objects that are not here at all.
    async fn dangling(&self) -> Result<Vec<(String, Oid)>, GitError> {
        let path = self.path.clone();
        let mut all = blocking("healing a repository", move || references(&path)).await?;
        let ids: String = all.iter().map(|(_, id)| format!("{id}\n")).collect();
        let checked = self.git("cat-file").arg("--batch-check").stdin(ids).run().await;
        let checked = match checked {
            Ok(checked) => String::from_utf8_lossy(&checked).into_owned(),
            Err(error) if error.is_transient() => return Err(error),
            // Unreadable references count as damaged, and are found as such.
            Err(_) => return Ok(Vec::new()),
        };
        let mut lines = checked.lines();
        all.retain(|_| lines.next().is_some_and(|line| line.ends_with(" missing")));
        Ok(all)
    }

    /// Deletes references to missing or incomplete commits, because a reference vouches for its
    /// objects.
    async fn drop_broken_references(&self, dangling: Vec<(String, Oid)>) -> Result<(), GitError> {
        let all = self.git("rev-list").args(["--objects", "--quiet", "--all"]).run().await;
        match all {
            Ok(_) if dangling.is_empty() => return Ok(()),
            Err(error) if error.is_transient() => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let path = self.path.clone();
        let all = blocking("healing a repository", move || references(&path)).await?;
        let mut commands = String::new();
        for (name, id) in all {
            if !self.is_complete(&id).await? {
                commands += &format!("delete {name}\0\0");
            }
        }
        let deleting = self.git("update-ref").args(["--no-deref", "-z", "--stdin"]);
        deleting.stdin(commands).run().await.map(drop)
    }

    /// Points a reference at the commit that was fetched for it, if it is here.
    async fn point(&self, each: &Wanted) -> Result<(), GitError> {
        if !self.has_commit(&each.commit).await? {
            return Ok(());
        }
        let command = format!("update {}\0{}\0\0", each.reference, each.commit);
        let updating = self.git("update-ref").args(["--no-deref", "-z", "--stdin"]);
        updating.stdin(command).run().await.map(drop)
    }
}

/// When the mirror at `path` was healed, as far as is noted. Blocks.
#[must_use]
pub fn incidents(path: &Path) -> Vec<Incident> {
    let noted = fs::read_to_string(path.join(JOURNAL)).unwrap_or_default();
    let read = |line: &str| {
        let mut parts = line.splitn(3, '\t');
        let at = Timestamp::from_millis(parts.next()?.parse().ok()?);
        let aside = parts.next()?;
        Some(Incident {
            at,
            aside: (!aside.is_empty()).then(|| path.join(DAMAGED).join(aside)),
            what: parts.next()?.to_owned(),
        })
    };
    noted.lines().filter_map(read).collect()
}

/// Deletes the set-aside files of the mirror at `path`. Blocks.
///
/// # Errors
/// When the file system refuses.
pub fn discard_damaged(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path.join(DAMAGED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn note(path: &Path, incident: &Incident) -> Result<(), GitError> {
    let journal = path.join(JOURNAL);
    let mut lines: Vec<String> = fs::read_to_string(&journal)
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect();
    let folder = incident.aside.as_deref().and_then(Path::file_name).unwrap_or_default();
    let at = incident.at.as_millis();
    lines.push(format!("{at}\t{}\t{}", folder.to_string_lossy(), incident.what));
    let first = lines.len().saturating_sub(MOST_INCIDENTS);
    let text = lines[first..].join("\n") + "\n";
    fs::write(&journal, text).map_err(GitError::io("write", &journal))
}

/// The damage in one line.
fn describe(
    aside: &Aside,
    damaged: &[PathBuf],
    dangling: &[(String, Oid)],
    incomplete: usize,
    mirror: &Path,
) -> String {
    let mut parts: Vec<String> = aside.parts.iter().map(|part| part.display().to_string()).collect();
    let files = damaged.iter().map(|file| file.strip_prefix(mirror).unwrap_or(file));
    parts.extend(files.map(|file| file.display().to_string()));
    parts.extend(dangling.iter().map(|(name, _)| name.clone()));
    let mut text = if !parts.is_empty() {
        let more = parts.len().saturating_sub(3);
        let shown = parts.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        format!("damaged: {shown}{more}")
    } else if !aside.opened.is_empty() {
        format!("permissions of {} files or folders were wrong", aside.opened.len())
    } else {
        format!("objects of {incomplete} commits were missing")
    };
    text.retain(|c| !c.is_control());
    text.truncate(text.floor_char_boundary(MOST_REASON));
    text
}

/// The bases of existing worktrees.
fn heads(mirror: &Path) -> Vec<Oid> {
    let checkouts = fs::read_dir(mirror.join("checkouts")).into_iter().flatten().flatten();
    let mut heads: Vec<Oid> = checkouts
        .filter_map(|checkout| fs::read_to_string(checkout.path().join("HEAD")).ok())
        .filter_map(|head| head.trim().parse().ok())
        .collect();
    heads.sort();
    heads.dedup();
    heads
}

/// Moves fresh packs into the mirror. A damaged pack of the same name is copied aside before it is
/// replaced.
fn install(from: &Path, to: &Path, aside: &mut Aside) -> Result<(), GitError> {
    for entry in fs::read_dir(from).map_err(GitError::io("list", from))? {
        let name = entry.map_err(GitError::io("list", from))?.file_name();
        let taken = to.join(&name);
        if taken.is_dir() {
            aside.put(&taken)?;
        } else if taken.exists() {
            aside.copy(&taken)?;
        }
    }
    move_packs(from, to)?;
    flush_folder(to)
}
