//! A person's own repository, found and described but never changed here. It owns which of the
//! person's settings are used: values that say what a file's bytes mean, never anything that names
//! a program.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use git2::Repository;
use kage_core::id::Oid;
use tempfile::TempDir;

use crate::command::{ConfigFiles, GitCommand, parse_oid};
use crate::error::{GitError, blocking};
use crate::objects::oid_of;
use crate::program::{self, ProgramError};
use crate::shadow::Shadow;
use crate::staging::{copy_index, split};

mod excludes;
mod lineage;

pub use excludes::{Excludes, UnusedExcludes};

/// The settings that are used, as git lists them.
const HONOURED: &[&str] = &[
    "core.autocrlf",
    "core.eol",
    "core.filemode",
    "core.symlinks",
    "core.ignorecase",
    "core.precomposeunicode",
];

/// The settings that name a program for signing, those of one kind together, and what git runs
/// without them.
const SIGNERS: &[(&[&str], &str)] = &[
    (&["gpg.program", "gpg.openpgp.program"], "gpg"),
    (&["gpg.x509.program"], "gpgsm"),
    (&["gpg.ssh.program"], "ssh-keygen"),
    (&["gpg.ssh.defaultkeycommand"], "false"),
];

#[derive(Debug, Clone)]
pub struct UserRepo {
    root: PathBuf,
    git_dir: PathBuf,
    common_dir: PathBuf,
    shallow: bool,
    settings: Settings,
}

#[derive(Debug, Clone, Default)]
struct Settings {
    honoured: Vec<(String, String)>,
    excludes_file: Option<PathBuf>,
    /// The same, as the person set it outside of this repository.
    own_excludes_file: Option<PathBuf>,
    attributes_file: Option<PathBuf>,
    /// Names of configured filters that would change the stored content.
    filters: HashSet<String>,
    /// What the person set for the filter of Git LFS outside of this repository, in order.
    large_filter: Vec<(String, String)>,
    /// Other programs change contents before Git LFS stores them.
    extends_large: bool,
    partial: bool,
    /// Every commit is signed.
    signs: bool,
    /// Programs for signing, as the person set them outside of this repository.
    signers: Vec<(String, String)>,
    /// Commits are refused without a configured identity.
    wants_identity: bool,
    /// The URLs of remotes, with the remotes' names, in the order of the configuration.
    remotes: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    #[error("{} is not inside a git repository", path.display())]
    NotARepository {
        /// The start of the search.
        path: PathBuf,
    },
    /// A bare repository has no files to work on.
    #[error("{} is not in the files of a repository; run this in a checkout", path.display())]
    Bare { path: PathBuf },
    /// The configuration names another folder for the files.
    #[error("the repository's configuration puts its files in {}, which is another folder", root.display())]
    Elsewhere { root: PathBuf },
    /// All files of a person would become the base of a task.
    #[error("the repository is all of {}; run this in a project's own repository", root.display())]
    TooWide {
        /// The home folder, or the top of the file system.
        root: PathBuf,
    },
    /// git answers in lines, in which such a path cannot be told from two.
    #[error("the path {path:?} has a line break in it, which git cannot tell exactly; rename the folder")]
    LineBreak { path: PathBuf },
    /// Kage supports SHA-1 repositories only.
    #[error("the repository uses the object format {format}; only sha1 is supported")]
    ObjectFormat { format: String },
    /// This machine's git is not safe to use.
    #[error("git cannot be used here")]
    Program(#[from] ProgramError),
    #[error("could not inspect the repository")]
    Git(#[from] GitError),
}

/// A private git directory over a person's files; deleted when dropped.
#[derive(Debug)]
pub(crate) struct UserShadow {
    pub(crate) shadow: Shadow,
    pub(crate) folder: TempDir,
}

impl UserRepo {
    /// Finds the repository that contains `path`.
    ///
    /// # Errors
    /// When there is no usable repository, or git is too old.
    pub async fn discover(path: &Path) -> Result<Self, DiscoverError> {
        program::check().await?;
        let questions = [
            "--path-format=absolute",
            "--git-dir",
            "--git-common-dir",
            "--show-object-format",
            "--is-shallow-repository",
            "--show-toplevel",
        ];
        let asked = GitCommand::with_config("rev-parse", ConfigFiles::User)
            .current_dir(path)
            .args(questions)
            .run()
            .await;
        let answers = match asked {
            Ok(answers) => answers,
            Err(GitError::Failed { stderr, .. }) if stderr.contains("not a git repository") => {
                return Err(DiscoverError::NotARepository { path: path.to_owned() });
            }
            Err(GitError::Failed { stderr, .. }) if stderr.contains("work tree") => {
                return Err(DiscoverError::Bare { path: path.to_owned() });
            }
            Err(GitError::Spawn { .. }) if !path.is_dir() => {
                return Err(DiscoverError::NotARepository { path: path.to_owned() });
            }
            Err(error) => return Err(error.into()),
        };
        // The top folder comes last: only it may contain a line break.
        let text = answers.strip_suffix(b"\n").unwrap_or(&answers);
        let parts: Vec<&[u8]> = text.splitn(5, |byte| *byte == b'\n').collect();
        let [git_dir, common_dir, format, shallow, root] = parts.as_slice() else {
            return Err(GitError::unexpected("rev-parse", &answers).into());
        };
        if !matches!(*format, b"sha1" | b"sha256")
            && let Ok(path) = fs::canonicalize(path)
            && path.as_os_str().as_bytes().contains(&b'\n')
        {
            return Err(DiscoverError::LineBreak { path });
        }
        if *format != b"sha1" {
            let format = String::from_utf8_lossy(format).into_owned();
            return Err(DiscoverError::ObjectFormat { format });
        }
        let path_of = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let root = path_of(root);
        // `core.worktree` of a repository of unknown origin may name any folder.
        let nearest = fs::canonicalize(path).map_err(GitError::io("resolve", path))?;
        let mut above = nearest.ancestors();
        if above.find(|folder| fs::symlink_metadata(folder.join(".git")).is_ok()) != Some(root.as_path()) {
            return Err(DiscoverError::Elsewhere { root });
        }
        let home = std::env::home_dir().and_then(|home| fs::canonicalize(home).ok());
        if root.parent().is_none() || home.is_some_and(|home| home == root) {
            return Err(DiscoverError::TooWide { root });
        }
        Ok(Self {
            settings: Settings::read(&root).await?,
            root,
            git_dir: path_of(git_dir),
            common_dir: path_of(common_dir),
            shallow: *shallow == b"true",
        })
    }

    /// The top folder of its working tree, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder that stands for the repository with all its working trees: that of the main
    /// one or, where git keeps the repository elsewhere (bare, a submodule's, one with a separate
    /// git directory), the git directory. Absolute, without symbolic links.
    #[must_use]
    pub fn home(&self) -> &Path {
        match self.common_dir.parent() {
            Some(parent) if self.common_dir.file_name() == Some(OsStr::new(".git")) => parent,
            Some(_) | None => &self.common_dir,
        }
    }

    /// A short name of this working tree for people: that of the top folder. Not unique.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.root.file_name().unwrap_or(OsStr::new("root"));
        name.to_string_lossy().into_owned()
    }

    /// Whether the repository has a commit, reachable or not. Nothing is fetched for it.
    pub async fn has_commit(&self, commit: &Oid) -> Result<bool, GitError> {
        let name = format!("{commit}^{{commit}}");
        self.git("cat-file").args(["-e", name.as_str()]).run_to_status().await
    }

    /// The files of the working tree that git knows, and those that it does not ignore: paths from its top,
    /// sorted. One that was deleted may be among them.
    pub async fn files(&self) -> Result<Vec<PathBuf>, GitError> {
        let list = ["--cached", "--others", "--exclude-standard", "-z"];
        let output = self.git("ls-files").args(list).run().await?;
        let mut files: Vec<_> = split(&output)
            .map(|path| PathBuf::from(OsStr::from_bytes(path)))
            .collect();
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// The commit of HEAD; `None` before the first commit.
    pub async fn head(&self) -> Result<Option<Oid>, GitError> {
        let git_dir = self.git_dir.clone();
        let read = blocking("reading HEAD", move || {
            let repository = Repository::open(&git_dir).map_err(GitError::library("open a repository"))?;
            let head = repository.head().and_then(|head| head.peel_to_commit());
            head.map(|commit| commit.id()).map_err(GitError::library("read HEAD"))
        });
        if let Ok(id) = read.await {
            return oid_of(id).map(Some);
        }
        // Before the first commit, and in a repository of a kind that only git knows.
        let found = self
            .git("rev-parse")
            .args(["--quiet", "--verify", "--end-of-options", "HEAD^{commit}"])
            .run_or_no()
            .await?;
        found.map(|output| parse_oid("rev-parse", &output)).transpose()
    }

    /// The branch of HEAD, as a full reference name; `None` when HEAD is detached.
    pub async fn branch(&self) -> Result<Option<Vec<u8>>, GitError> {
        self.git("symbolic-ref").args(["--quiet", "HEAD"]).run_or_no().await
    }

    /// git on the real git directory, with its programs disabled. Only for commands that read no
    /// file through a filter.
    pub(crate) fn git(&self, operation: &'static str) -> GitCommand {
        GitCommand::new(operation)
            .git_dir(&self.git_dir)
            .env("GIT_WORK_TREE", &self.root)
            .current_dir(&self.root)
    }

    pub(crate) fn git_dir(&self) -> &Path {
        &self.git_dir
    }

    /// The folders that are the repository's: its working tree, and its git directories.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        [&self.root, &self.git_dir, &self.common_dir]
            .into_iter()
            .map(PathBuf::as_path)
    }

    /// The folders in which git keeps the repository and this working tree's part of it.
    pub(crate) fn git_dirs(&self) -> [PathBuf; 2] {
        [self.common_dir.clone(), self.git_dir.clone()]
    }

    pub(crate) fn is_shallow(&self) -> bool {
        self.shallow
    }

    pub(crate) fn is_partial(&self) -> bool {
        self.settings.partial
    }

    /// Whether the person's git would run a filter of that name on a file's content.
    pub(crate) fn has_filter(&self, name: &str) -> bool {
        self.settings.filters.contains(name)
    }

    /// Whether the person's git stores files behind Git LFS as git-lfs alone would.
    pub(crate) fn extends_large(&self) -> bool {
        self.settings.extends_large
    }

    /// Whether the person set outside of this repository which program stores files behind Git LFS.
    pub(crate) fn stores_large(&self) -> bool {
        let mut keys = self.settings.large_filter.iter().map(|(key, _)| key.as_str());
        keys.any(|key| matches!(key, "filter.lfs.clean" | "filter.lfs.process"))
    }

    /// git in the person's name with their filter of Git LFS, by the name `filter`, on a git directory of our
    /// own: a repository of unknown origin names no program, and its attributes no filter.
    pub(crate) fn git_with_large_filter(&self, operation: &'static str, filter: &str) -> GitCommand {
        let command = GitCommand::with_config(operation, ConfigFiles::Person);
        let settings = self.settings.large_filter.iter();
        settings.fold(command, |command, (key, value)| {
            let part = key.rsplit('.').next().unwrap_or_default();
            command.config(&format!("filter.{filter}.{part}"), value)
        })
    }

    /// The person's own file of attributes, which may not exist.
    pub(crate) fn attributes_file(&self) -> Option<&Path> {
        self.settings.attributes_file.as_deref()
    }

    /// Whether the executable bit means something here.
    pub(crate) fn trusts_mode(&self) -> bool {
        let mut settings = self.settings.honoured.iter().rev();
        settings
            .find(|(key, _)| key == "core.filemode")
            .is_none_or(|(_, value)| value != "false")
    }

    /// git in the person's name: with who they are by their configuration and environment, and the
    /// programs for signing that they chose. A repository of unknown origin may say that commits are
    /// signed, and with which key, but names no program.
    pub(crate) fn git_of_person(&self, operation: &'static str) -> GitCommand {
        let command = GitCommand::with_config(operation, ConfigFiles::Person)
            .git_dir(&self.git_dir)
            .env("GIT_WORK_TREE", &self.root)
            .current_dir(&self.root)
            // Messages are.
            .config("i18n.commitEncoding", "UTF-8");
        SIGNERS.iter().fold(command, |command, (keys, usual)| {
            let chosen = self.settings.signers.iter().rev();
            let chosen = chosen
                .filter(|(key, _)| keys.contains(&key.as_str()))
                .map(|(_, value)| value);
            let program = chosen.map(String::as_str).next().unwrap_or(usual);
            keys.iter().fold(command, |command, key| command.config(key, program))
        })
    }

    /// Whether the person's git signs every commit.
    pub(crate) fn signs_commits(&self) -> bool {
        self.settings.signs
    }

    /// Whether the person's git refuses a commit when nobody is configured.
    pub(crate) fn wants_identity(&self) -> bool {
        self.settings.wants_identity
    }

    /// A private git directory over the person's files, with a copy of their index. It can read
    /// their objects and those in `others`; what it writes is deleted with it.
    pub(crate) async fn shadow(&self, head: &Oid, others: &[PathBuf]) -> Result<UserShadow, GitError> {
        let (repository, head) = (self.clone(), head.clone());
        let mut alternates = vec![self.common_dir.join("objects")];
        alternates.extend_from_slice(others);
        blocking("making a private git directory", move || {
            let folder = tempfile::Builder::new()
                .prefix("kage-git-")
                .tempdir()
                .map_err(GitError::io("make a folder in", &std::env::temp_dir()))?;
            let git_dir = folder.path().join("git");
            let shadow = Shadow::new(&git_dir, &repository.root, None);
            shadow.make(&head, &repository.settings.to_config(), &alternates)?;
            copy_if_there(&repository.git_dir.join("index"), &shadow.index())?;
            // The other half of a split index has the same name prefix everywhere.
            let entries = fs::read_dir(&repository.git_dir).map_err(GitError::io("list", &repository.git_dir))?;
            for entry in entries {
                let name = entry.map_err(GitError::io("list", &repository.git_dir))?.file_name();
                if name.as_bytes().starts_with(b"sharedindex.") {
                    copy_if_there(&repository.git_dir.join(&name), &git_dir.join(&name))?;
                }
            }
            // `shallow` lists the commits at which a shallow clone's history ends; their parents
            // are not there.
            for name in ["info/exclude", "info/attributes", "shallow"] {
                copy_if_there(&repository.common_dir.join(name), &git_dir.join(name))?;
            }
            Ok(UserShadow { shadow, folder })
        })
        .await
    }
}

impl Settings {
    async fn read(root: &Path) -> Result<Self, GitError> {
        let listed = GitCommand::with_config("config", ConfigFiles::User)
            .current_dir(root)
            .args(["--list", "-z", "--show-scope"])
            .run()
            .await?;
        let mut settings = Self {
            excludes_file: in_config_home("ignore"),
            own_excludes_file: in_config_home("ignore"),
            attributes_file: in_config_home("attributes"),
            ..Self::default()
        };
        let mut parts = split(&listed);
        while let (Some(scope), Some(entry)) = (parts.next(), parts.next()) {
            let entry = String::from_utf8_lossy(entry);
            // A key without "=" is a boolean that is true.
            let (key, value) = entry.split_once('\n').unwrap_or((&entry, "true"));
            // Settings that this crate itself passes are not the person's.
            if scope != b"command" {
                settings.take(root, key, value);
            }
            if key == "core.excludesfile" && matches!(scope, b"system" | b"global") {
                settings.own_excludes_file = Some(expand(root, value));
            }
            if key.starts_with("filter.lfs.") && matches!(scope, b"system" | b"global") {
                settings.large_filter.push((key.to_owned(), value.to_owned()));
            }
            let is_signer = SIGNERS.iter().any(|(keys, _)| keys.contains(&key));
            if is_signer && matches!(scope, b"system" | b"global") {
                settings.signers.push((key.to_owned(), value.to_owned()));
            }
        }
        Ok(settings)
    }

    fn take(&mut self, root: &Path, key: &str, value: &str) {
        match key {
            "core.excludesfile" => self.excludes_file = Some(expand(root, value)),
            "core.attributesfile" => self.attributes_file = Some(expand(root, value)),
            "commit.gpgsign" => self.signs = is_true(value),
            "user.useconfigonly" => self.wants_identity = is_true(value),
            "extensions.partialclone" => self.partial = true,
            key if key.starts_with("lfs.extension.") => self.extends_large = true,
            key if HONOURED.contains(&key) => self.honoured.push((key.to_owned(), value.to_owned())),
            key => {
                let filter = key.strip_prefix("filter.").and_then(|rest| rest.rsplit_once('.'));
                if let Some((name, "clean" | "smudge" | "process")) = filter {
                    self.filters.insert(name.to_owned());
                }
                match key.strip_prefix("remote.").and_then(|rest| rest.rsplit_once('.')) {
                    Some((name, "url")) => self.remotes.push((name.to_owned(), value.to_owned())),
                    Some((_, "promisor")) => self.partial |= value == "true",
                    Some(_) | None => {}
                }
            }
        }
    }

    /// The settings as the text of a configuration file.
    fn to_config(&self) -> String {
        let mut text = "[core]\n\trepositoryformatversion = 0\n\tbare = false\n".to_owned();
        let mut line = |key: &str, value: &str| {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            text.push_str(&format!("\t{key} = \"{escaped}\"\n"));
        };
        for (key, value) in &self.honoured {
            line(key.trim_start_matches("core."), value);
        }
        for (key, path) in [
            ("excludesFile", &self.excludes_file),
            ("attributesFile", &self.attributes_file),
        ] {
            if let Some(path) = path.as_ref().and_then(|path| path.to_str()) {
                line(key, path);
            }
        }
        text
    }
}

/// A boolean as git reads it; numbers but 0 are true.
fn is_true(value: &str) -> bool {
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => true,
        other => other.parse::<i64>().is_ok_and(|number| number != 0),
    }
}

/// Expands `~/x` and relative paths as git does.
fn expand(root: &Path, value: &str) -> PathBuf {
    match (value.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        (Some(_), None) | (None, _) => root.join(value),
    }
}

fn in_config_home(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("XDG_CONFIG_HOME").filter(|path| !path.is_empty());
    let folder = named
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".config")))?;
    Some(folder.join("git").join(name))
}

fn copy_if_there(from: &Path, to: &Path) -> Result<(), GitError> {
    match copy_index(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(GitError::io("copy", from)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
