//! Values of variables that a client leaves for the agent of its own machine, so that the programs of
//! a task get what the person's shell has, and the coordinator never sees them. A file of mode 0600
//! for each task, in a private folder of the agent's state directory:
//!
//! ```text
//!   kage run: <random name>.new ──the task is stored, or its first attempt begins──▶ <task>
//! ```
//!
//! The first task that names a file has it; another one that names it as well gets nothing. A file
//! is removed when its task is over.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kage_core::id::{Digest, TaskId};
use kage_git::private::make_private;

/// The end of the names of files that no task has yet.
const NEW: &str = "new";

/// Values by the name of their variable.
pub type Values = BTreeMap<String, String>;

/// The values that were left for one agent.
#[derive(Debug, Clone)]
pub struct Handed {
    folder: PathBuf,
}

impl Handed {
    /// Those in the state directory of an agent.
    #[must_use]
    pub fn within(state: &Path) -> Self {
        Self {
            folder: state.join("handed"),
        }
    }

    /// Those of whole shells in the state directory of an agent: see [`crate::shell_socket`].
    #[must_use]
    pub fn shells_within(state: &Path) -> Self {
        Self {
            folder: state.join("shells"),
        }
    }

    fn new_file(&self, name: &Digest) -> PathBuf {
        self.folder.join(format!("{name}.{NEW}"))
    }

    fn file(&self, task: TaskId) -> PathBuf {
        self.folder.join(task.to_string())
    }

    /// Leaves values under a name that nobody else knows. Blocks.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn leave(&self, name: &Digest, values: &Values) -> io::Result<()> {
        make_private(&self.folder)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600);
        let text = serde_json::to_vec(values).map_err(io::Error::other)?;
        let mut file = file.open(self.new_file(name))?;
        file.write_all(&text)?;
        file.sync_all()
    }

    /// Takes back what no task has. Blocks.
    pub fn withdraw(&self, name: &Digest) {
        removed(&self.new_file(name));
    }

    /// Gives a task what was left under this name, unless it has it already. Blocks.
    pub fn claim(&self, name: &Digest, task: TaskId) {
        match fs::rename(self.new_file(name), self.file(task)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%task, %error, "values of variables are not kept for the task"),
        }
    }

    /// The values of a task whose client left them under this name. `None`: its client left none
    /// here, because it is a client of another machine's. Blocks.
    ///
    /// # Errors
    /// When they are here and cannot be read.
    pub fn values(&self, name: &Digest, task: TaskId) -> io::Result<Option<Values>> {
        if !self.folder.is_dir() {
            return Ok(None);
        }
        let file = self.file(task);
        if !file.exists() {
            self.claim(name, task);
        }
        match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::other),
            // The task is over, or somebody else's. What the agent was started with is not what the
            // person's shell has.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(Values::new())),
            Err(error) => Err(error),
        }
    }

    /// Removes the values of a task. Blocks.
    pub fn forget(&self, task: TaskId) {
        removed(&self.file(task));
    }

    /// The tasks that have values here. Blocks.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskId> {
        let names = self.entries().into_iter();
        names
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
            .collect()
    }

    /// True when nothing is left here. Blocks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// Removes what a client left and did not make a task with: files older than this. Blocks.
    pub fn drop_unclaimed(&self, age: Duration, now: SystemTime) {
        for path in self.entries() {
            let unclaimed = path.extension().is_some_and(|end| end == NEW);
            let written = fs::metadata(&path).and_then(|found| found.modified()).ok();
            let old = written.is_some_and(|written| now.duration_since(written).is_ok_and(|passed| passed > age));
            if unclaimed && old {
                removed(&path);
            }
        }
    }

    fn entries(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten();
        entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
    }
}

fn removed(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "values of variables were not removed"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn values() -> Values {
        Values::from([("DATABASE_URL".to_owned(), "postgres://secret".to_owned())])
    }

    #[test]
    fn one_task_gets_them_until_it_is_over() {
        let state = tempfile::tempdir().unwrap();
        let handed = Handed::within(state.path());
        let (name, task, other) = (Digest::of(b"1"), TaskId::from_random(1), TaskId::from_random(2));
        assert_eq!(handed.values(&name, task).unwrap(), None, "another machine's client");
        handed.leave(&name, &values()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&handed.folder), mode(&handed.new_file(&name))), (0o700, 0o600));
        assert!(handed.leave(&name, &values()).is_err(), "a name is used once");
        for _ in 0..2 {
            assert_eq!(handed.values(&name, task).unwrap(), Some(values()));
        }
        assert_eq!(handed.values(&name, other).unwrap(), Some(Values::new()));
        handed.claim(&name, other);
        assert_eq!(handed.tasks(), [task]);
        assert_eq!(mode(&handed.file(task)), 0o600);
        handed.forget(task);
        assert_eq!(handed.values(&name, task).unwrap(), Some(Values::new()));
        assert_eq!(handed.tasks(), []);
    }

    #[test]
    fn what_no_task_took_is_removed() {
        let state = tempfile::tempdir().unwrap();
        let handed = Handed::within(state.path());
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        handed.leave(&one, &values()).unwrap();
        handed.withdraw(&one);
        assert!(!handed.new_file(&one).exists());
        handed.leave(&two, &values()).unwrap();
        handed.drop_unclaimed(Duration::from_secs(60), SystemTime::now());
        assert!(handed.new_file(&two).exists());
        handed.claim(&two, TaskId::from_random(1));
        handed.leave(&one, &values()).unwrap();
        handed.drop_unclaimed(Duration::from_secs(60), SystemTime::now() + Duration::from_secs(3600));
        assert!(!handed.new_file(&one).exists());
        assert_eq!(handed.tasks(), [TaskId::from_random(1)]);
    }
}
