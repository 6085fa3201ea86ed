//! The base of a task, taken from a person's repository: HEAD, plus a commit of uncommitted work on
//! top. It owns what is included and what is left out. The repository itself is only read: the
//! commit is made with a copy of the index, and its objects live in a temporary folder that borrows
//! the person's.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use git2::Repository;
use kage_core::cause::chain;
use kage_core::folder::Folder;
use kage_core::id::Oid;
use kage_core::left_out::shown;
pub use kage_core::left_out::{LeftOut, LeftOutReason};

use crate::command::Auth;
use crate::error::{GitError, blocking};
use crate::included::{self, IncludeError, Included};
use crate::large::FILTER;
use crate::left_out::by_path;
use crate::mirror;
use crate::objects::{id_of, oid_of};
use crate::patterns::Patterns;
use crate::shadow::Shadow;
use crate::user_repo::{UserRepo, UserShadow};

mod filters;
mod large;
mod scan;
mod submodules;
mod names;
mod tracked;

pub(crate) use filters::filters_of;
use filters::{AttributeFiles, Filters};
use large::FoundLarge;
pub use large::{MAX_ALL_LARGE_BYTES, MAX_LARGE_BYTES};
use scan::Scanned;
use submodules::{FoundSubmodule, FoundSubmodules};
use tracked::Tracked;

#[derive(Debug, Clone, Default)]
pub struct SnapshotOptions {
    /// Take only HEAD, without uncommitted work.
    pub committed: bool,
    /// Patterns of untracked files to take even when large or secret-looking; ignored ones are
    /// included beside the base.
    pub include: Vec<String>,
}

/// Larger untracked files are left out unless included by a pattern.
pub const MAX_UNTRACKED_BYTES: u64 = 5 << 20;

/// What a person should know about a snapshot that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// Sessions see the files of these submodules at their recorded commits.
    Submodules { paths: Vec<String> },
    /// Sessions see empty folders in place of these: their recorded commits are not on this machine.
    EmptySubmodules { paths: Vec<String> },
    /// Sessions see the pointers of Git LFS in place of these files: their contents are not on this machine.
    LargeFilePointers { paths: Vec<String> },
    /// The same, because the contents are larger than what is taken along. With their sizes in bytes.
    LargeFilesLeftOut { files: Vec<(String, u64)> },
    /// There is no file of these patterns to include.
    IncludesNothing { patterns: Vec<String> },
    /// Tags and branches that sessions do not see, because they are too many, too large, or tags of
    /// tags.
    NamesLeftOut { count: usize },
    /// Sessions see no tag and no branch.
    NoNames { why: String },
}

/// What is known of the repository that gets a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// Nothing is there so far.
    New,
    /// It has bases of the same history, maybe of other clones: commits on a branch that this one
    /// does not have, uncommitted work. Both sides find out what they have in common, which a push
    /// by itself does only for the tips that are shown.
    HasHistory,
}

/// A base, and the objects it needs.
#[derive(Debug)]
pub struct Snapshot {
    /// The commit that sessions start from.
    pub base: Oid,
    /// The branch tip under the base. Equal to `base` when nothing uncommitted was taken.
    pub head: Oid,
    /// Files that are not in the snapshot, or not as they are now, and ignored ones that were to go along
    /// and do not.
    pub left_out: Vec<LeftOut>,
    pub warnings: Vec<Warning>,
    /// Ignored files that go with it.
    pub included: Option<Included>,
    /// The commit with the tags, branches and submodules that go with it.
    pub names: Option<Oid>,
    store: UserShadow,
}

/// Names of files that usually hold a secret; patterns as in `.gitignore`.
const SECRET_NAMES: &[&str] = &[
    ".env",
    ".env.*",
    ".envrc",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.keystore",
    "*.kdbx",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".pgpass",
    ".htpasswd",
    ".git-credentials",
    "credentials.json",
    "service-account*.json",
    "secrets.*",
    ".aws",
    ".ssh",
    ".gnupg",
    ".kube",
];

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The repository has no commit to start from.
    #[error("the repository has no commits yet; make one first: git add -A && git commit -m 'start'")]
    NoCommits,
    /// The history is cut off, so it cannot be sent.
    #[error("the repository is a shallow clone; run `git fetch --unshallow` first")]
    Shallow,
    /// Some objects are only at a remote.
    #[error("the repository is a partial clone, which is not supported; use a full clone")]
    Partial,
    /// A merge with conflicts is not finished.
    #[error("these paths have unresolved conflicts: {}", paths.join(", "))]
    Unmerged { paths: Vec<String> },
    /// Only the filter program could tell the content to store, and it is not run.
    #[error(
        "{path} has uncommitted changes and goes through the filter {filter:?}, which is not run; commit it, or use --committed"
    )]
    FilteredPath {
        path: String,
        /// The filter's name in .gitattributes.
        filter: String,
    },
    #[error(transparent)]
    Include(#[from] IncludeError),
    #[error("could not take a snapshot of the repository")]
    Git(#[from] GitError),
}

impl Snapshot {
    /// Takes a snapshot; refused when it cannot be complete. Nothing in the repository changes.
    /// Submodules go along where this machine has their recorded commits, and files behind Git LFS where it
    /// has their contents; a warning names the others.
    pub async fn take(repository: &UserRepo, options: &SnapshotOptions) -> Result<Self, SnapshotError> {
        if repository.is_shallow() {
            return Err(SnapshotError::Shallow);
        }
        if repository.is_partial() {
            return Err(SnapshotError::Partial);
        }
        let head = repository.head().await?.ok_or(SnapshotError::NoCommits)?;
        let store = repository.shadow(&head, &[]).await?;
        let git = |operation| store.shadow.git(operation);
        if options.committed || !store.shadow.index().exists() {
            git("read-tree").args(["--end-of-options", head.as_str()]).run().await?;
        }
        let attributes = AttributeFiles::new(repository.root(), &store.shadow, repository.attributes_file());
        let tracked = Tracked::of(&store.shadow).await?;
        let filters = attributes
            .filters(|operation| store.shadow.git(operation), &tracked.paths)
            .await?;
        let has_submodules = tracked.has_submodules;
        let mut snapshot = Self {
            base: head.clone(),
            head,
            left_out: Vec::new(),
            warnings: Vec::new(),
            included: None,
            names: None,
            store,
        };
        let mut filters = filters;
        if !options.committed {
            let new = snapshot
                .take_uncommitted(repository, options, &filters, &attributes)
                .await?;
            filters.extend(new);
        }
        let chosen = included::choose(
            &snapshot.store.shadow,
            repository.root(),
            &snapshot.head,
            &options.include,
        );
        let chosen = chosen.await?;
        snapshot.included = chosen.included;
        snapshot.left_out.extend(chosen.left_out);
        if !chosen.unmatched.is_empty() {
            let patterns = chosen.unmatched;
            snapshot.warnings.push(Warning::IncludesNothing { patterns });
        }
        let submodules = match has_submodules {
            true => snapshot.take_submodules(repository).await?,
            false => Vec::new(),
        };
        let large = snapshot.take_large(repository, &filters, &options.include).await?;
        snapshot.take_names(repository, submodules, large).await?;
        Ok(snapshot)
    }

    /// The contents of files behind Git LFS that this machine has.
    async fn take_large(
        &mut self,
        repository: &UserRepo,
        filters: &Filters,
        include: &[String],
    ) -> Result<FoundLarge, GitError> {
        let mut found = large::find(repository, &self.store.shadow, &self.base, filters, include).await?;
        let (paths, files) = (std::mem::take(&mut found.missing), std::mem::take(&mut found.too_large));
        if !paths.is_empty() {
            self.warnings.push(Warning::LargeFilePointers { paths });
        }
        if !files.is_empty() {
            self.warnings.push(Warning::LargeFilesLeftOut { files });
        }
        Ok(found)
    }

    /// The submodules of the base that this machine has.
    async fn take_submodules(&mut self, repository: &UserRepo) -> Result<Vec<FoundSubmodule>, GitError> {
        let FoundSubmodules { found, missing } = submodules::find(repository, &self.store.shadow, &self.base).await?;
        if !found.is_empty() {
            let paths = found.iter().map(|submodule| submodule.path.clone()).collect();
            self.warnings.push(Warning::Submodules { paths });
        }
        if !missing.is_empty() {
            self.warnings.push(Warning::EmptySubmodules { paths: missing });
        }
        Ok(found)
    }

    /// A repository with names that cannot be read has files that can be worked on.
    async fn take_names(
        &mut self,
        repository: &UserRepo,
        submodules: Vec<FoundSubmodule>,
        large: FoundLarge,
    ) -> Result<(), GitError> {
        let shadow = &self.store.shadow;
        let listed = match names::list(repository, &self.head).await {
            Ok(listed) => listed,
            Err(error) => {
                self.warnings.push(Warning::NoNames { why: chain(&error) });
                names::ListedNames::default()
            }
        };
        if listed.left_out > 0 {
            let count = listed.left_out;
            self.warnings.push(Warning::NamesLeftOut { count });
        }
        self.names = names::keep(shadow, &self.head, listed, submodules, large).await?;
        Ok(())
    }

    async fn take_uncommitted(
        &mut self,
        repository: &UserRepo,
        options: &SnapshotOptions,
        filters: &Filters,
        attributes: &AttributeFiles,
    ) -> Result<Filters, SnapshotError> {
        let shadow = self.store.shadow.clone();
        let git = |operation| shadow.git(operation);
        let Scanned {
            unmerged,
            mut changes,
            staged,
            closed,
        } = Scanned::of(&shadow).await?;
        if !unmerged.is_empty() {
            let paths: BTreeSet<String> = unmerged.iter().map(|path| shown(path)).collect();
            return Err(SnapshotError::Unmerged {
                paths: paths.into_iter().collect(),
            });
        }
        for folder in &closed {
            self.leave_out(folder, LeftOutReason::Unreadable);
        }
        let mut readable = Vec::new();
        for path in changes.modified {
            if is_unreadable(repository.root(), &path) {
                // The base has it as the index does.
                self.leave_out(&path, LeftOutReason::Unreadable);
            } else {
                readable.push(path);
            }
        }
        changes.modified = readable;
        changes.untracked = self.choose_untracked(repository.root(), &changes.untracked, options)?;
        let new_filters = attributes.filters(git, &changes.untracked).await?;
        let mut large = Vec::new();
        for (paths, filters) in [(&mut changes.modified, filters), (&mut changes.untracked, &new_filters)] {
            let only_its_program_knows = |name: &String| name != FILTER || repository.extends_large();
            let is_run = |path: &Vec<u8>| filters.get(path).filter(|name| repository.has_filter(name));
            if let Some((path, filter)) = paths
                .iter()
                .find_map(|path| Some((path, is_run(path).filter(|name| only_its_program_knows(name))?)))
            {
                return Err(SnapshotError::FilteredPath {
                    path: shown(path),
                    filter: filter.clone(),
                });
            }
            // What git-lfs makes of a file is known without it. A link is none.
            let is_large = |path: &Vec<u8>| {
                let full = repository.root().join(OsStr::from_bytes(path));
                is_run(path).is_some() && fs::symlink_metadata(full).is_ok_and(|meta| meta.is_file())
            };
            large.extend(paths.extract_if(.., |path| is_large(path)));
        }
        let staged = large::stage(repository, &shadow, large).await? || staged;
        if !staged && changes.is_empty() {
            return Ok(new_filters);
        }
        changes.stage(repository.root(), git).await?;
        let tree = git("write-tree").run_for_oid().await?;
        let committed = tree_of(&shadow, &self.head).await?;
        if tree != committed {
            let message = "Uncommitted work\n\nTaken by kage run as the base of a task.\n";
            self.base = shadow.commit_tree(&tree, &[&self.head], message).await?;
        }
        Ok(new_filters)
    }

    fn leave_out(&mut self, path: &[u8], reason: LeftOutReason) {
        let path = shown(path);
        self.left_out.push(LeftOut { path, reason });
    }

    /// The untracked files to include; the others are listed as left out.
    fn choose_untracked(
        &mut self,
        root: &Path,
        untracked: &[Vec<u8>],
        options: &SnapshotOptions,
    ) -> Result<Vec<Vec<u8>>, GitError> {
        let wanted = Patterns::new(&options.include)?;
        let names: Vec<String> = SECRET_NAMES.iter().map(|name| (*name).to_owned()).collect();
        let secret = Patterns::new(&names)?;
        let mut taken = Vec::new();
        for path in untracked {
            let relative = Path::new(OsStr::from_bytes(path));
            // It vanished since it was listed.
            let Ok(meta) = fs::symlink_metadata(root.join(relative)) else {
                continue;
            };
            let reason = if meta.is_dir() {
                Some(LeftOutReason::NestedRepository)
            } else if let Some(reason) = by_path(relative) {
                Some(reason)
            } else if is_unreadable(root, path) {
                Some(LeftOutReason::Unreadable)
            } else if wanted.matches(relative) {
                None
            } else if secret.matches(relative) && !is_example(relative) {
                Some(LeftOutReason::SecretName)
            } else if meta.len() > MAX_UNTRACKED_BYTES {
                Some(LeftOutReason::Large { size: meta.len() })
            } else {
                None
            };
            match reason {
                None => taken.push(path.to_owned()),
                Some(reason) => self.leave_out(path, reason),
            }
        }
        Ok(taken)
    }

    /// True if the base has this folder.
    ///
    /// # Errors
    /// When git cannot run.
    pub async fn has_folder(&self, folder: &Folder) -> Result<bool, GitError> {
        mirror::has_folder(self.store.shadow.git("ls-tree"), &self.base, folder).await
    }

    /// Sends the base to `url` as `refs/kage/bases/<base>`, and what goes with it likewise. Does
    /// nothing for what is there already.
    ///
    /// # Errors
    /// When the other side cannot be reached or refuses; [`GitError::refused_object`] and
    /// [`GitError::refused_push`] say why then. It has got all or nothing.
    pub async fn push(&self, url: &str, auth: &Auth, receiver: Receiver) -> Result<(), GitError> {
        let included = self.included.as_ref().map(|included| &included.commit);
        let commits: BTreeSet<&Oid> = [Some(&self.base), included, self.names.as_ref()]
            .into_iter()
            .flatten()
            .collect();
        let name = |commit: &Oid| format!("refs/kage/bases/{commit}");
        let negotiate = match receiver {
            Receiver::New => "false",
            Receiver::HasHistory => "true",
        };
        let git = |operation| {
            let command = self.store.shadow.git(operation).auth(auth);
            command.config("push.negotiate", negotiate)
        };
        let mut left: Vec<&Oid> = commits.into_iter().collect();
        while !left.is_empty() {
            let pushed = git("push")
                .args([
                    "--quiet",
                    "--no-verify",
                    "--no-follow-tags",
                    "--atomic",
                    "--end-of-options",
                    url,
                ])
                .args(left.iter().map(|commit| format!("{commit}:{}", name(commit))))
                .run()
                .await;
            let Err(error) = pushed else {
                return Ok(());
            };
            // Another client may have sent some of it at the same time.
            let there = git("ls-remote")
                .args(["--end-of-options", url])
                .args(left.iter().map(|commit| name(commit)))
                .run()
                .await
                .unwrap_or_default();
            let there = String::from_utf8_lossy(&there);
            let before = left.len();
            left.retain(|commit| !there.lines().any(|line| line == format!("{commit}\t{}", name(commit))));
            if left.len() == before {
                return Err(error);
            }
        }
        Ok(())
    }
}

async fn tree_of(shadow: &Shadow, commit: &Oid) -> Result<Oid, GitError> {
    let (git_dir, id) = (shadow.git_dir().to_owned(), id_of(commit)?);
    let read = blocking("reading a commit", move || {
        let tree = Repository::open_bare(&git_dir).and_then(|repository| Ok(repository.find_commit(id)?.tree_id()));
        tree.map_err(GitError::library("read a commit"))
    });
    oid_of(read.await?)
}

/// `.env.example` and the like are meant to be shared.
fn is_example(path: &Path) -> bool {
    let ending = path.extension().and_then(OsStr::to_str);
    ending.is_some_and(|ending| matches!(ending, "example" | "sample" | "template" | "dist"))
}

/// True if a file is there whose content this user may not read.
fn is_unreadable(root: &Path, path: &[u8]) -> bool {
    let full = root.join(OsStr::from_bytes(path));
    let is_file = fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_file());
    is_file && fs::File::open(&full).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}
