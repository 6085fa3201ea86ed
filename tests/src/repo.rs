//! Sample repositories: real git, cut off from the configuration of the person who runs the tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The verify command of the sample project.
pub const VERIFY: &str = "sh test.sh";

/// A change that makes the sample project's test pass.
pub const SOLUTION: &str = "add() { echo $(($1 + $2)); }\n";

#[derive(Debug)]
pub struct Repo {
    path: PathBuf,
}

impl Repo {
    /// A project with a bug in `add.sh` that its test finds: `sh test.sh` fails.
    #[must_use]
    pub fn sample(path: &Path) -> Self {
        let repo = Self::empty(path);
        repo.write("add.sh", "add() { echo $(($1 - $2)); }\n");
        repo.write(
            "test.sh",
            ". ./add.sh\n\
             [ -f generated.cache ] && . ./generated.cache\n\
             [ \"$(add 2 3)\" = 5 ] || { echo \"add 2 3 is $(add 2 3)\"; exit 1; }\n",
        );
        repo.write(".gitignore", "*.cache\n");
        repo.commit("a project with a bug");
        repo
    }

    /// A repository without a commit.
    #[must_use]
    pub fn empty(path: &Path) -> Self {
        std::fs::create_dir_all(path).expect("the directory can be made");
        let repo = Self { path: path.to_owned() };
        repo.git(&["init", "--quiet", "--initial-branch=main"]);
        repo
    }

    /// A repository that is there already, such as a clone.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the working tree.
    pub fn write(&self, file: &str, content: &str) {
        let path = self.path.join(file);
        let parent = path.parent().expect("a file is in a directory");
        std::fs::create_dir_all(parent).expect("the directory can be made");
        std::fs::write(path, content).expect("the file can be written");
    }

    /// Commits the whole working tree and returns the commit.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", message]);
        self.head()
    }

    #[must_use]
    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Runs git here and returns its output.
    pub fn git(&self, arguments: &[&str]) -> String {
        self.git_with(arguments, &[])
    }

    /// Runs git with additional configuration, as values that no command line shows.
    pub fn git_with(&self, arguments: &[&str], configuration: &[(&str, &str)]) -> String {
        let output = self.try_git(arguments, configuration);
        output.unwrap_or_else(|error| panic!("git {arguments:?} failed: {error}"))
    }

    /// Runs git and returns its output, or its error output.
    pub fn try_git(&self, arguments: &[&str], configuration: &[(&str, &str)]) -> Result<String, String> {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(&self.path);
        hermetic(&mut command);
        command.env("GIT_CONFIG_COUNT", configuration.len().to_string());
        for (index, (key, value)) in configuration.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{index}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
        let output = command.output().expect("git starts");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

/// Cuts git off from the configuration and identity of the machine.
fn hermetic(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("GIT_") {
            command.env_remove(name);
        }
    }
    command
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "Test")
        .env("GIT_AUTHOR_EMAIL", "test@example.invalid")
        .env("GIT_COMMITTER_NAME", "Test")
        .env("GIT_COMMITTER_EMAIL", "test@example.invalid");
}
