//! Files behind Git LFS in a landing. A result has their contents; what lands is what the person's `git add`
//! would store. So its tree is merged with pointers in it, and when a plan is carried out, the person's own
//! git-lfs stores the contents first, in a git directory of Kage's. What it kept there goes to where git-lfs
//! looks for it. Files on the disk get the contents.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::{Oid as Id, Repository};
use kage_core::id::Oid;

use super::files::Target;
use super::merge_tree::parse_stage;
use super::tree::{Entry, difference, entry_at, replaced, tree_of};
use super::{LandingError, Obstacle, ObstacleKind, shown};
use crate::command::GitCommand;
use crate::error::{GitError, blocking};
use crate::large::{FILTER, Pointer, stored_as};
use crate::objects::{mode, oid_of};
use crate::shadow::make_repository;
use crate::snapshot::filters_of;
use crate::staging::split;
use crate::user_repo::{UserRepo, UserShadow};

const ATTRIBUTES: &str = ".gitattributes";

/// The filter's name where it is run.
const OWN_FILTER: &str = "kage-lfs";

/// The contents that a result has, by the blobs of their pointers.
#[derive(Debug, Default)]
pub(super) struct LargeFiles {
    contents: BTreeMap<Id, LargeContent>,
}

#[derive(Debug, Clone)]
struct LargeContent {
    path: PathBuf,
    /// The blob with it.
    blob: Id,
    pointer: Pointer,
}

/// A changed file of a result that may be behind Git LFS.
struct Candidate {
    path: PathBuf,
    before: Option<Entry>,
    after: Entry,
}

impl LargeFiles {
    /// A commit with the files of `result`, in which those behind Git LFS are pointers, and what they were.
    /// Without such files it is `result` itself.
    pub(super) async fn of(
        repository: &UserRepo,
        store: &UserShadow,
        base: &Oid,
        result: &Oid,
    ) -> Result<(Oid, Self), LandingError> {
        let git_dir = store.shadow.git_dir().to_owned();
        let (from, to) = (base.clone(), result.clone());
        let more = [
            Some(git_dir.join("info/attributes")),
            repository.attributes_file().map(Path::to_owned),
        ];
        let found = blocking("looking for files of Git LFS", move || {
            candidates(&git_dir, &from, &to, &more).map_err(GitError::library("look for files of Git LFS"))
        });
        let (candidates, attributes) = found.await?;
        if candidates.is_empty() {
            return Ok((result.clone(), Self::default()));
        }
        // As the result has the attributes, which may be new, too.
        let index = store.folder.path().join("large-attributes");
        let git = |operation| store.shadow.git(operation).env("GIT_INDEX_FILE", &index);
        git("read-tree").arg("--empty").run().await?;
        let update = git("update-index").args(["--add", "-z", "--index-info"]);
        update.stdin(attributes).run().await?;
        let names: Vec<Vec<u8>> = candidates
            .iter()
            .map(|it| it.path.as_os_str().as_bytes().to_vec())
            .collect();
        let filters = filters_of(|operation| git(operation).arg("--cached"), &names).await?;
        let mut large = candidates;
        large.retain(|it| {
            filters
                .get(it.path.as_os_str().as_bytes())
                .is_some_and(|name| name == FILTER)
        });
        if large.is_empty() {
            return Ok((result.clone(), Self::default()));
        }
        let (git_dir, result, is_set_up) = (
            store.shadow.git_dir().to_owned(),
            result.clone(),
            repository.stores_large(),
        );
        blocking("making pointers of files", move || {
            with_pointers(&git_dir, &result, large, is_set_up)
        })
        .await
    }

    /// Lets the person's git-lfs store the contents, and puts what it kept where it looks for it.
    pub(super) async fn store(&self, repository: &UserRepo, store: &UserShadow) -> Result<(), LandingError> {
        if self.contents.is_empty() {
            return Ok(());
        }
        let (git_dir, files) = (store.folder.path().join("lfs.git"), store.folder.path().join("lfs"));
        let (objects, contents) = (store.shadow.git_dir().to_owned(), self.contents.clone());
        let places = (git_dir.clone(), files.clone());
        let names = blocking("writing files of Git LFS", move || write(&objects, &places, &contents)).await?;
        let git = |command: GitCommand| {
            command
                .git_dir(&git_dir)
                .env("GIT_WORK_TREE", &files)
                .env("GIT_INDEX_FILE", git_dir.join("index"))
                .current_dir(&files)
        };
        let run = git(repository.git_with_large_filter("update-index", OWN_FILTER))
            .config(&format!("filter.{OWN_FILTER}.required"), "true")
            .args(["--add", "-z", "--stdin"])
            .stdin(names)
            .run()
            .await;
        let first = || self.contents.values().next().map(|content| shown(&content.path));
        match run {
            Ok(_) => {}
            Err(GitError::Failed { stderr, .. }) => {
                let (path, said) = (first().unwrap_or_default(), stderr);
                return Err(LandingError::LargeFile { path, said });
            }
            Err(other) => return Err(other.into()),
        }
        let listed = git(GitCommand::new("ls-files")).args(["--stage", "-z"]).run().await?;
        let stored: HashMap<PathBuf, Id> = split(&listed)
            .filter_map(parse_stage)
            .map(|(path, _, entry)| (path, entry.id))
            .collect();
        for (number, (pointer, content)) in self.contents.iter().enumerate() {
            if stored.get(Path::new(&number.to_string())) != Some(pointer) {
                return Err(LandingError::LargeFile {
                    path: shown(&content.path),
                    said: "it made something else than a pointer to this content".to_owned(),
                });
            }
        }
        let kept = self.contents.values().map(|content| content.pointer.place());
        let (kept, [to, _]) = (kept.collect::<Vec<_>>(), repository.git_dirs());
        blocking("keeping files of Git LFS", move || {
            for place in kept {
                let (from, to) = (git_dir.join(&place), to.join(&place));
                keep(&from, &to).map_err(GitError::io("write", &to))?;
            }
            Ok::<_, LandingError>(())
        })
        .await
    }

    /// Replaces pointers that are about to be written by what they point to, as far as it is here.
    pub(super) async fn fill(
        &self,
        repository: &UserRepo,
        store: &UserShadow,
        wanted: &[(PathBuf, Entry)],
        files: &mut HashMap<PathBuf, Target>,
    ) -> Result<(), GitError> {
        // Without git-lfs the person has pointers in the files.
        if !repository.has_filter(FILTER) {
            return Ok(());
        }
        let mut written = std::mem::take(files);
        let (contents, wanted, git_dirs) = (self.contents.clone(), wanted.to_vec(), repository.git_dirs());
        let git_dir = store.shadow.git_dir().to_owned();
        *files = blocking("reading files of Git LFS", move || {
            let objects = Repository::open_bare(&git_dir).map_err(GitError::library("open a git directory"))?;
            for (path, entry) in wanted {
                let Some(Target::File { bytes, .. }) = written.get_mut(&path) else {
                    continue;
                };
                if let Some(content) = contents.get(&entry.id) {
                    let blob = objects.find_blob(content.blob);
                    *bytes = blob.map_err(GitError::library("read a file"))?.content().to_vec();
                } else if let Some(content) = Pointer::read(bytes).and_then(|pointer| kept(&git_dirs, &pointer)) {
                    *bytes = content;
                }
            }
            Ok::<_, GitError>(written)
        })
        .await?;
        Ok(())
    }
}

/// What git-lfs keeps of a pointer in one of these git directories.
pub(super) fn kept(git_dirs: &[PathBuf], pointer: &Pointer) -> Option<Vec<u8>> {
    if pointer.has_extensions {
        return None;
    }
    let mut contents = git_dirs
        .iter()
        .filter_map(|dir| fs::read(dir.join(pointer.place())).ok());
    contents.find(|content| pointer.is_of(content))
}

/// The changed files, and the files of attributes that may say something about them as lines of
/// `update-index --index-info`. None when no attribute speaks of Git LFS.
fn candidates(
    git_dir: &Path,
    base: &Oid,
    result: &Oid,
    more: &[Option<PathBuf>],
) -> Result<(Vec<Candidate>, Vec<u8>), git2::Error> {
    let repository = Repository::open_bare(git_dir)?;
    let (base, result) = (tree_of(&repository, base)?, tree_of(&repository, result)?);
    let (mut found, mut folders) = (Vec::new(), BTreeSet::new());
    for (path, change) in difference(&repository, base, result)? {
        if let Some(after) = change.after.filter(|after| after.is_file()) {
            folders.extend(path.ancestors().skip(1).map(Path::to_owned));
            let before = change.before;
            found.push(Candidate { path, before, after });
        }
    }
    let speaks = |text: &[u8]| text.windows(FILTER.len()).any(|word| word == FILTER.as_bytes());
    let mut any = more
        .iter()
        .flatten()
        .any(|file| fs::read(file).is_ok_and(|text| speaks(&text)));
    let mut lines = Vec::new();
    for folder in folders {
        let path = folder.join(ATTRIBUTES);
        let Some(entry) = entry_at(&repository, result, &path)?.filter(|entry| entry.is_file()) else {
            continue;
        };
        any |= speaks(repository.find_blob(entry.id)?.content());
        lines.extend_from_slice(format!("{:06o} {}\t", mode::FILE, entry.id).as_bytes());
        lines.extend_from_slice(&[path.as_os_str().as_bytes(), b"\0"].concat());
    }
    if !any {
        found.clear();
    }
    Ok((found, lines))
}

/// Makes the commit.
fn with_pointers(
    git_dir: &Path,
    result: &Oid,
    large: Vec<Candidate>,
    is_set_up: bool,
) -> Result<(Oid, LargeFiles), LandingError> {
    let failed = |error| LandingError::from(GitError::library("make pointers of files")(error));
    let repository = Repository::open_bare(git_dir).map_err(failed)?;
    let read = |id| Ok::<_, git2::Error>(repository.find_blob(id)?.content().to_vec());
    let (mut files, mut entries, mut obstacles) = (LargeFiles::default(), Vec::new(), Vec::new());
    for Candidate { path, before, after } in large {
        let Some(pointer) = stored_as(&read(after.id).map_err(failed)?) else {
            continue;
        };
        if !is_set_up {
            // Where the content is stored already, git-lfs is not used.
            let before = before.map(|before| read(before.id)).transpose().map_err(failed)?;
            if before.is_none_or(|before| stored_as(&before).is_none()) {
                obstacles.push(Obstacle {
                    path: shown(&path),
                    reason: "Git LFS stores it, and git-lfs is not set up here",
                    kind: ObstacleKind::Large,
                });
            }
            continue;
        }
        let id = repository.blob(pointer.to_text().as_bytes()).map_err(failed)?;
        entries.push((path.clone(), Entry { id, ..after }));
        let blob = after.id;
        files.contents.insert(id, LargeContent { path, blob, pointer });
    }
    if !obstacles.is_empty() {
        return Err(LandingError::Unsupported { paths: obstacles });
    }
    if entries.is_empty() {
        return Ok((result.clone(), LargeFiles::default()));
    }
    let commit = || {
        let commit = repository.find_commit(Id::from_str(result.as_str())?)?;
        let entries = entries.iter().map(|(path, entry)| (path.as_path(), Some(*entry)));
        let tree = repository.find_tree(replaced(&repository, commit.tree_id(), entries)?)?;
        repository.commit(None, &commit.author(), &commit.committer(), "", &tree, &[])
    };
    Ok((oid_of(commit().map_err(failed)?)?, files))
}

/// Writes the contents as numbered files, all of them behind the filter. Returns their names.
fn write(
    objects: &Path,
    (git_dir, files): &(PathBuf, PathBuf),
    contents: &BTreeMap<Id, LargeContent>,
) -> Result<Vec<u8>, GitError> {
    let nobody = oid_of(Id::ZERO_SHA1)?;
    make_repository(
        git_dir,
        &nobody,
        "[core]\n\trepositoryformatversion = 0\n\tbare = false\n",
        &[],
    )?;
    fs::create_dir_all(files).map_err(GitError::io("create", files))?;
    let attributes = git_dir.join("info/attributes");
    let text = format!("* -text -ident -working-tree-encoding filter={OWN_FILTER}\n");
    fs::write(&attributes, text).map_err(GitError::io("write", &attributes))?;
    let repository = Repository::open_bare(objects).map_err(GitError::library("open a git directory"))?;
    let mut names = Vec::new();
    for (number, content) in contents.values().enumerate() {
        let blob = repository
            .find_blob(content.blob)
            .map_err(GitError::library("read a file"))?;
        let file = files.join(number.to_string());
        fs::write(&file, blob.content()).map_err(GitError::io("write", &file))?;
        names.extend_from_slice(format!("{number}\0").as_bytes());
    }
    Ok(names)
}

/// Puts a file into its place, whole or not at all, unless it is there.
fn keep(from: &Path, to: &Path) -> io::Result<()> {
    // git-lfs may keep everything elsewhere.
    if to.exists() || !from.exists() {
        return Ok(());
    }
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder)?;
    let part = folder.join(format!(".kage-{}", std::process::id()));
    let placed = fs::copy(from, &part)
        .and_then(|_| fs::File::open(&part)?.sync_all())
        .and_then(|()| fs::rename(&part, to));
    if placed.is_err() {
        fs::remove_file(&part).ok();
    }
    placed
}
