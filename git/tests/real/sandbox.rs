//! A temporary folder with a HOME, and plain git in it.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kage_core::id::Oid;
use kage_core::protect::Protection;
use kage_core::task::VerifyPolicy;
use kage_git::landing::LandingMessage;
use kage_git::{Auth, Mirror};
use tempfile::TempDir;

/// A folder that goes away with the test.
pub(crate) struct Sandbox {
    folder: TempDir,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        // Without a dot, so that its path can be a part of a reference's name.
        let folder = tempfile::Builder::new().prefix("kage-git-").tempdir().unwrap();
        fs::create_dir(folder.path().join("home")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.folder.path()).unwrap().join(name)
    }

    fn plain(&self, folder: &Path, args: &[&str]) -> Command {
        let mut command = self.program("git", folder);
        command.args(args);
        command
    }

    /// A program with the environment of a person who has only a HOME.
    pub(crate) fn program(&self, name: &str, folder: &Path) -> Command {
        let mut command = Command::new(name);
        command
            .current_dir(folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.path("home"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ann");
            command.env(format!("GIT_{who}_EMAIL"), "ann@example.com");
        }
        command
    }

    /// Plain git, which must succeed; its trimmed output.
    pub(crate) fn git(&self, folder: &Path, args: &[&str]) -> String {
        let done = self.plain(folder, args).output().unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "git {args:?}: {stderr}");
        String::from_utf8_lossy(&done.stdout).trim_end().to_owned()
    }

    /// Runs plain git; a failure is returned.
    pub(crate) fn try_git(&self, folder: &Path, args: &[&str]) -> Result<String, String> {
        let done = self.plain(folder, args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if done.status.success() {
            Ok(text(&done.stdout))
        } else {
            Err(text(&done.stderr))
        }
    }

    /// Plain git with something on its standard input.
    pub(crate) fn git_with_input(&self, folder: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = self
            .plain(folder, args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "git {args:?}");
        done.stdout
    }

    /// A repository with these files in one commit on `main`.
    pub(crate) fn repository(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        self.git(&path, &["init", "--quiet", "-b", "main"]);
        for (file, content) in files {
            write(&path.join(file), content);
        }
        self.commit(&path, "start");
        path
    }

    /// Commits everything.
    pub(crate) fn commit(&self, repository: &Path, message: &str) -> Oid {
        self.git(repository, &["add", "-A"]);
        self.git(repository, &["commit", "--quiet", "--allow-empty", "-m", message]);
        self.head(repository)
    }

    pub(crate) fn head(&self, repository: &Path) -> Oid {
        self.git(repository, &["rev-parse", "HEAD"]).parse().unwrap()
    }

    /// A mirror that has the repository's HEAD as a base.
    pub(crate) async fn mirror(&self, name: &str, repository: &Path) -> (Mirror, Oid) {
        let mirror = Mirror::open_or_init(self.path(name)).await.unwrap();
        let head = self.head(repository);
        let spec = format!("HEAD:refs/kage/bases/{head}");
        mirror.fetch(&url(repository), &Auth::None, &[&spec]).await.unwrap();
        (mirror, head)
    }
}

pub(crate) fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A protection that takes files matching these patterns from the base.
pub(crate) fn protecting(globs: &[&str]) -> Protection {
    let policy = VerifyPolicy {
        protect: globs.iter().map(ToString::to_string).collect(),
        ..VerifyPolicy::default()
    };
    Protection::new(&policy, Vec::new()).unwrap()
}

/// The message of a landing's commits.
pub(crate) fn message() -> LandingMessage {
    LandingMessage {
        subject: "Change it".to_owned(),
        merge_subject: "Merge it".to_owned(),
        body: "Asked for:\n".to_owned(),
    }
}

/// Writes a file and the folders it needs. A program is written by a process of its own: one that another
/// test starts meanwhile would have the file open for writing, and the system runs no such file.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let content = content.as_ref();
    if !content.starts_with(b"#!") {
        fs::write(path, content).unwrap();
        return;
    }
    let mut writing = Command::new("sh")
        .args(["-c", "exec cat > \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    writing.stdin.take().unwrap().write_all(content).unwrap();
    assert!(writing.wait().unwrap().success(), "{}", path.display());
}

/// Copies a program, likewise.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-p").args([from, to]).status().unwrap();
    assert!(copied.success(), "{}", to.display());
}

/// Waits until the clock has left this second.
pub(crate) async fn next_second(second: i64) {
    let now = || {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap();
        i64::try_from(since.as_secs()).unwrap()
    };
    while now() <= second {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Every file below a folder with its kind, mode and content: equal = nothing was touched.
pub(crate) fn fingerprint(folder: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::MetadataExt as _;
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(here) = folders.pop() {
        for entry in fs::read_dir(&here).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_symlink() {
                fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else if meta.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            files.push((path, meta.mode(), content));
        }
    }
    files.sort();
    files
}

/// A copy of a folder with links as links; `to` does not exist yet.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_folder(&from, &to);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}
