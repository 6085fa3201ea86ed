//! The one place that starts a `git` process. It owns the environment that makes git safe on
//! repositories of unknown origin: only a short list of variables is inherited, no system or user
//! configuration is read, and every setting that names a program is overridden through
//! `GIT_CONFIG_COUNT`, which (unlike `-c`) takes any name and never shows on a command line. It
//! does not know what the commands mean.
//!
//! Settings whose names a repository chooses (`filter.X.clean`, `diff.X.textconv`,
//! `merge.X.driver`) cannot be overridden without knowing X. Whatever touches files
//! therefore runs on a private git directory ([`crate::shadow`]) that has none.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Stdio;

use kage_core::id::Oid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::error::GitError;
use crate::executable::{Changed, Executable};

mod auth;
mod found;

mod neutral;

mod process;
mod typed;

pub use auth::{Auth, TlsAuth};
pub(crate) use found::found;
pub(crate) use neutral::ConfigFiles;
use neutral::{INHERITED, NEUTRAL, OF_CONFIG, OF_PERSON, TOLERATED_FLAWS};
pub(crate) use process::{Bounded, ProcessGroup, failure, read_bounded};
use process::{Done, NO_ROOM, no_room};

#[derive(Debug)]
pub(crate) enum GitInput {
    Nothing,
    Bytes(Vec<u8>),
    File(File),
}

const STDOUT_LIMIT: usize = 256 << 20;
const STDERR_LIMIT: usize = 64 << 10;

/// One run of git. Not `Debug`: its settings may hold a token.
pub(crate) struct GitCommand {
    operation: &'static str,
    command: Command,
    /// Why this machine's git cannot be run.
    unusable: Option<io::Error>,
    config: Vec<(String, String)>,
    input: GitInput,
    output: Option<File>,
}

impl GitCommand {
    /// `git <operation>`, without a repository so far.
    pub(crate) fn new(operation: &'static str) -> Self {
        Self::with_config(operation, ConfigFiles::None)
    }

    pub(crate) fn with_config(operation: &'static str, files: ConfigFiles) -> Self {
        let (found, path) = found();
        // A missing or changed git is reported when the command is started.
        let git = found.as_ref().map(Executable::to_run);
        let program = git.as_ref().and_then(|git| git.as_ref().ok());
        let mut command = Command::new(program.copied().unwrap_or(Path::new("git")));
        command.env_clear().env("PATH", path);
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", "http:https:file")
            .env("GIT_PROTOCOL_FROM_USER", "0")
            // No reference and no file of a repository may replace a commit's content.
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_GRAFT_FILE", "/dev/null")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("LC_ALL", "C");
        match files {
            // Without a HOME, ~/.netrc, ~/.config/git/ignore and attributes are not read either.
            ConfigFiles::None => {
                command
                    .env("HOME", "/dev/null")
                    .env("GIT_CONFIG_NOSYSTEM", "1")
                    .env("GIT_ATTR_NOSYSTEM", "1")
                    .env("GIT_CONFIG_GLOBAL", "/dev/null");
            }
            ConfigFiles::User | ConfigFiles::Person => {
                let who = if files == ConfigFiles::Person { OF_PERSON } else { &[] };
                for name in OF_CONFIG.iter().chain(who) {
                    if let Some(value) = std::env::var_os(name) {
                        command.env(name, value);
                    }
                }
            }
        }
        if files != ConfigFiles::Person {
            // A program that signs may ask at the terminal, which only the foreground can.
            command.process_group(0);
        }
        command.arg(operation).kill_on_drop(true);
        let mut config: Vec<(String, String)> = Vec::with_capacity(NEUTRAL.len() + 16);
        config.extend(NEUTRAL.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        for flaw in TOLERATED_FLAWS {
            config.push((format!("receive.fsck.{flaw}"), "ignore".into()));
            config.push((format!("fetch.fsck.{flaw}"), "ignore".into()));
        }
        Self {
            config,
            ..Self::of(operation, command, git)
        }
    }

    /// Without settings; `git` is the program as it was found.
    fn of(operation: &'static str, command: Command, git: Option<Result<&Path, Changed>>) -> Self {
        Self {
            operation,
            command,
            unusable: match git {
                Some(Ok(_)) => None,
                Some(Err(changed)) => Some(changed.into_io()),
                None => Some(io::Error::new(io::ErrorKind::NotFound, "git is in no folder of PATH")),
            },
            config: Vec::new(),
            input: GitInput::Nothing,
            output: None,
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets the git directory, independent of the current directory.
    pub(crate) fn git_dir(self, path: &Path) -> Self {
        self.env("GIT_DIR", path)
    }

    pub(crate) fn current_dir(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Adds a setting; a later one wins over an earlier one.
    pub(crate) fn config(mut self, key: &str, value: &str) -> Self {
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn auth(self, auth: &Auth) -> Self {
        let bearer =
            |command: Self, token: &str| command.config("http.extraHeader", &format!("Authorization: Bearer {token}"));
        match auth {
            Auth::None => self,
            Auth::Bearer(token) => bearer(self, token),
            Auth::Tls(tls) => {
                // A setting is text: a path that is not UTF-8 is altered, and git then reports that
                // it is missing.
                let path = |path: &Path| path.to_string_lossy().into_owned();
                let mut command = self.config("http.sslVerify", "true");
                if let Some(ca) = &tls.ca {
                    command = command.config("http.sslCAInfo", &path(ca));
                }
                if let Some((certificate, key)) = &tls.identity {
                    command = command
                        .config("http.sslCert", &path(certificate))
                        .config("http.sslKey", &path(key));
                }
                match &tls.token {
                    Some(token) => bearer(command, token),
                    None => command,
                }
            }
        }
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = GitInput::Bytes(bytes.into());
        self
    }

    pub(crate) fn stdin_file(mut self, file: File) -> Self {
        self.input = GitInput::File(file);
        self
    }

    /// Sends git's standard output to a file.
    pub(crate) fn stdout_file(mut self, file: File) -> Self {
        self.output = Some(file);
        self
    }

    /// Runs git to its end; every exit code but 0 is an error.
    pub(crate) async fn run(self) -> Result<Vec<u8>, GitError> {
        let operation = self.operation;
        let done = self.run_to_end().await?;
        if done.status.success() {
            Ok(done.stdout)
        } else {
            Err(done.failure(operation))
        }
    }

    /// As [`Self::run`], with what git complained about although it succeeded.
    pub(crate) async fn run_with_complaints(self) -> Result<(Vec<u8>, Vec<u8>), GitError> {
        let operation = self.operation;
        let done = self.run_to_end().await?;
        if done.status.success() {
            Ok((done.stdout, done.stderr))
        } else {
            Err(done.failure(operation))
        }
    }

    /// Runs git to its end; every exit code but 0 is an error, and so is any output on standard
    /// error.
    pub(crate) async fn run_quietly(self) -> Result<Vec<u8>, GitError> {
        let operation = self.operation;
        let done = self.run_to_end().await?;
        if done.status.success() && done.stderr.is_empty() {
            Ok(done.stdout)
        } else {
            Err(done.failure(operation))
        }
    }

    /// Runs git to its end; exit code 1 is the answer "no": `None`.
    pub(crate) async fn run_or_no(self) -> Result<Option<Vec<u8>>, GitError> {
        let (yes, output) = self.run_to_answer().await?;
        Ok(yes.then_some(output))
    }

    /// Runs git to its end; exit code 1 is an answer too. Returns whether the code was 0, and the
    /// output.
    pub(crate) async fn run_to_answer(self) -> Result<(bool, Vec<u8>), GitError> {
        let operation = self.operation;
        let done = self.run_to_end().await?;
        match done.status.code() {
            Some(code @ (0 | 1)) => Ok((code == 0, done.stdout)),
            Some(_) | None => Err(done.failure(operation)),
        }
    }

    /// Runs git to its end and returns whether the exit code was 0. A signal is an error.
    pub(crate) async fn run_to_status(self) -> Result<bool, GitError> {
        let operation = self.operation;
        let done = self.run_to_end().await?;
        match done.status.code() {
            Some(code) => Ok(code == 0),
            None => Err(done.failure(operation)),
        }
    }

    /// Runs git to its end and reads one object id.
    pub(crate) async fn run_for_oid(self) -> Result<Oid, GitError> {
        let operation = self.operation;
        parse_oid(operation, &self.run().await?)
    }

    async fn run_to_end(mut self) -> Result<Done, GitError> {
        let operation = self.operation;
        let failed = |source| GitError::Spawn { operation, source };
        let bytes = match std::mem::replace(&mut self.input, GitInput::Nothing) {
            GitInput::Nothing => {
                self.command.stdin(Stdio::null());
                None
            }
            GitInput::File(file) => {
                self.command.stdin(file);
                None
            }
            GitInput::Bytes(bytes) => {
                self.command.stdin(Stdio::piped());
                Some(bytes)
            }
        };
        match self.output.take() {
            Some(file) => self.command.stdout(file),
            None => self.command.stdout(Stdio::piped()),
        };
        self.command.stderr(Stdio::piped());
        let mut group = self.start_patiently().await?;
        let (stdin, stdout, stderr) = (
            group.child.stdin.take(),
            group.child.stdout.take(),
            group.child.stderr.take(),
        );
        let write = async {
            if let (Some(mut pipe), Some(bytes)) = (stdin, bytes) {
                match pipe.write_all(&bytes).await {
                    // git refused before it had read everything; its exit code tells.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                    other => other?,
                }
            }
            Ok::<_, io::Error>(())
        };
        let (_, stdout, stderr) = tokio::try_join!(
            write,
            read_bounded(stdout, STDOUT_LIMIT),
            read_bounded(stderr, STDERR_LIMIT)
        )
        .map_err(failed)?;
        let status = group.child.wait().await.map_err(failed)?;
        if stdout.cut {
            return Err(GitError::TooMuchOutput {
                operation,
                limit: STDOUT_LIMIT,
            });
        }
        Ok(Done {
            status,
            stdout: stdout.bytes,
            stderr: stderr.bytes,
        })
    }

    /// Starts git with all three streams as pipes.
    pub(crate) fn spawn_piped(mut self) -> Result<ProcessGroup, GitError> {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.start()
    }

    /// Starts git, also when the system cannot make another process just now: another program on
    /// the machine started too many, and is ended meanwhile.
    async fn start_patiently(&mut self) -> Result<ProcessGroup, GitError> {
        for _ in 0..NO_ROOM.0 {
            match self.start() {
                Err(GitError::Spawn { source, .. }) if no_room(&source) => tokio::time::sleep(NO_ROOM.1).await,
                started => return started,
            }
        }
        self.start()
    }

    fn start(&mut self) -> Result<ProcessGroup, GitError> {
        self.command.env("GIT_CONFIG_COUNT", self.config.len().to_string());
        for (number, (key, value)) in self.config.iter().enumerate() {
            self.command.env(format!("GIT_CONFIG_KEY_{number}"), key);
            self.command.env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        let started = match self.unusable.take() {
            Some(reason) => Err(reason),
            None => self.command.spawn(),
        };
        let child = started.map_err(|source| GitError::Spawn {
            operation: self.operation,
            source,
        })?;
        Ok(ProcessGroup { child })
    }
}

/// Reads an object id that git printed on a line of its own.
pub(crate) fn parse_oid(operation: &'static str, output: &[u8]) -> Result<Oid, GitError> {
    std::str::from_utf8(output)
        .ok()
        .and_then(|text| text.trim_end().parse().ok())
        .ok_or_else(|| GitError::unexpected(operation, output))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn only_a_machine_without_room_is_waited_for() {
        use rustix::io::Errno;

        let cases = [
            (Errno::AGAIN, true),
            (Errno::NOMEM, true),
            (Errno::NOENT, false),
            (Errno::ACCESS, false),
        ];
        for (errno, waits) in cases {
            assert_eq!(no_room(&errno.into()), waits, "{errno}");
        }
        assert!(!no_room(&io::Error::other("x")));
    }

    #[test]
    fn a_token_never_shows() {
        let auth = Auth::Bearer("hunter2".to_owned());
        let command = GitCommand::new("fetch").auth(&auth).arg("x");
        assert_eq!(format!("{auth:?}"), "Bearer(..)");
        let arguments: Vec<_> = command.command.as_std().get_args().collect();
        assert_eq!(arguments, ["fetch", "x"]);
    }

    #[test]
    fn tls_is_checked_with_the_ca_given_and_shows_the_certificate_given() {
        let auth = Auth::Tls(TlsAuth {
            token: Some("hunter2".to_owned()),
            ca: Some("/ca.pem".into()),
            identity: Some(("/own.pem".into(), "/own.key".into())),
        });
        assert!(!format!("{auth:?}").contains("hunter2"));
        let command = GitCommand::new("fetch").auth(&auth);
        let expected = [
            ("http.sslVerify", "true"),
            ("http.sslCAInfo", "/ca.pem"),
            ("http.sslCert", "/own.pem"),
            ("http.sslKey", "/own.key"),
            ("http.extraHeader", "Authorization: Bearer hunter2"),
        ];
        let last: Vec<_> = command.config.iter().rev().take(5).rev().collect();
        let last: Vec<_> = last.into_iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(last, expected);
    }

    #[tokio::test]
    async fn a_failure_says_what_git_said() {
        let failed = GitCommand::new("cat-file").arg("--nonsense").run().await;
        let Err(GitError::Failed {
            operation,
            exit,
            stderr,
        }) = failed
        else {
            panic!("{failed:?}");
        };
        assert_eq!((operation, exit.as_str()), ("cat-file", "exit status: 129"));
        assert!(stderr.contains("nonsense"), "{stderr}");
    }

    #[tokio::test]
    async fn dropping_a_running_git_kills_all_of_its_group() {
        let folder = tempfile::tempdir().unwrap();
        let folder_path = folder.path();
        GitCommand::new("init")
            .arg("--quiet")
            .current_dir(folder_path)
            .run()
            .await
            .unwrap();
        // An alias that is a shell command: a child of git that waits for its input.
        let mut group = GitCommand::new("wait-here")
            .current_dir(folder_path)
            .config("alias.wait-here", "!echo $$; cat; true")
            .spawn_piped()
            .unwrap();
        let mut stdout = group.child.stdout.take().unwrap();
        let mut pid = String::new();
        while !pid.ends_with('\n') {
            pid.push(char::from(stdout.read_u8().await.unwrap()));
        }
        let shell = format!("/proc/{}/stat", pid.trim());
        // A zombie that init has not collected yet is dead enough.
        let alive = || std::fs::read_to_string(&shell).is_ok_and(|stat| !stat.contains(") Z "));
        if !std::path::Path::new("/proc/self/stat").exists() {
            eprintln!("SKIPPED: no /proc");
            return;
        }
        assert!(alive());
        let stdin = group.child.stdin.take();
        drop(group);
        let deadline = Instant::now() + Duration::from_secs(10);
        while alive() {
            assert!(Instant::now() < deadline, "the shell outlived git");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(stdin);
    }
}
