//! What an attempt's programs get because their task asks for it: values of variables, and files of
//! the home folder of the agent's user, copied into the HOME of the attempt.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use kage_core::id::TaskId;
use kage_core::task::TaskEnvironment;

use crate::process::handed::Handed;
use crate::process::{AgentEnvironment, TaskVariables};

/// The largest file that is copied; files of settings are much smaller.
const LARGEST: u64 = 1 << 20;

/// The variables of a task here: `pass` from what its client left, or else from the agent's own
/// environment. Blocks.
pub(super) fn variables(
    environment: &TaskEnvironment,
    task: TaskId,
    agent: &AgentEnvironment,
    handed: &Handed,
) -> io::Result<TaskVariables> {
    let left = match &environment.handed {
        Some(name) => handed.values(name, task)?,
        None => None,
    };
    let value = |name: &String| match &left {
        Some(left) => left.get(name).map(OsString::from),
        None => agent.get(name).map(OsString::from),
    };
    let (mut variables, names) = (TaskVariables::default(), environment.pass.iter());
    for name in names {
        match value(name) {
            Some(value) => drop(variables.passed.insert(name.clone(), value)),
            None => variables.missing.push(name.clone()),
        }
    }
    variables.set.clone_from(&environment.set);
    Ok(variables)
}

/// Copies a file of one home folder into another; says why not. Blocks.
pub(super) fn copy(path: &str, from: &Path, to: &Path) -> Result<(), String> {
    let said = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => format!("~/{path} is not there"),
        _ => format!("~/{path} cannot be copied: {error}"),
    };
    let home = fs::canonicalize(from).map_err(said)?;
    let file = fs::canonicalize(home.join(path)).map_err(said)?;
    let within = file.strip_prefix(&home).ok().and_then(Path::to_str);
    let within = within.ok_or_else(|| format!("~/{path} is a link out of the home folder, and is not copied"))?;
    if let Some(refused) = TaskEnvironment::refuses_file(within) {
        return Err(refused.to_string());
    }
    let found = fs::metadata(&file).map_err(said)?;
    if !found.is_file() {
        return Err(format!("~/{path} is not a file, and is not copied"));
    }
    if found.len() > LARGEST {
        return Err(format!("~/{path} has more than {LARGEST} bytes, and is not copied"));
    }
    let content = fs::read(&file).map_err(said)?;
    let copied = to.join(path);
    if let Some(parent) = copied.parent() {
        let mut folders = fs::DirBuilder::new();
        folders.recursive(true).mode(0o700).create(parent).map_err(said)?;
    }
    let mut options = fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(&copied);
    made.and_then(|mut made| made.write_all(&content)).map_err(said)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use kage_core::id::Digest;

    use super::*;

    fn environment(names: &[&str], handed: Option<Digest>) -> TaskEnvironment {
        TaskEnvironment {
            pass: names.iter().map(ToString::to_string).collect(),
            handed,
            ..TaskEnvironment::default()
        }
    }

    #[test]
    fn values_are_of_the_shell_on_its_own_machine_and_of_the_agent_elsewhere() {
        let state = tempfile::tempdir().unwrap();
        let (handed, task) = (Handed::within(state.path()), TaskId::from_random(1));
        let agent = AgentEnvironment::from_iter([("ONE", "of the agent"), ("TWO", "of the agent")]);
        let variables = |environment: &TaskEnvironment| variables(environment, task, &agent, &handed).unwrap();
        let name = Digest::of(b"1");
        let asked = environment(&["ONE", "THREE", "TWO"], Some(name.clone()));
        let elsewhere = variables(&asked);
        let value = |text: &str| Some(OsString::from(text));
        assert_eq!(elsewhere.passed.get("ONE").cloned(), value("of the agent"));
        assert_eq!(elsewhere.missing, ["THREE"]);

        let left = [("ONE".to_owned(), "of the shell".to_owned())].into();
        handed.leave(&name, &left).unwrap();
        let here = variables(&asked);
        assert_eq!(here.passed.get("ONE").cloned(), value("of the shell"));
        assert_eq!(
            here.missing,
            ["THREE", "TWO"],
            "the shell has none, whatever the agent has"
        );
        handed.forget(task);
        assert_eq!(variables(&asked).missing.len(), 3);
        assert_eq!(variables(&environment(&["ONE"], None)).missing.len(), 0);
    }

    #[test]
    fn files_of_the_home_are_copied_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        for folder in [from.join(".m2"), from.join(".ssh"), to.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(from.join(".m2/settings.xml"), "settings").unwrap();
        fs::write(from.join(".ssh/key"), "key").unwrap();
        fs::write(place.path().join("outside"), "secret").unwrap();
        symlink("../outside", from.join(".out")).unwrap();
        symlink(".ssh/key", from.join(".in")).unwrap();
        symlink(".m2/settings.xml", from.join(".linked")).unwrap();

        for fine in [".m2/settings.xml", ".linked"] {
            assert_eq!(copy(fine, &from, &to), Ok(()));
            assert_eq!(fs::read_to_string(to.join(fine)).unwrap(), "settings");
            assert!(!fs::symlink_metadata(to.join(fine)).unwrap().is_symlink());
        }
        for (path, why) in [
            (".npmrc", "~/.npmrc is not there"),
            (".out", "a link out of the home folder"),
            (".in", "holds logins or keys"),
            (".m2", "is not a file"),
        ] {
            let said = copy(path, &from, &to).unwrap_err();
            assert!(said.contains(why), "{said}");
            assert!(fs::symlink_metadata(to.join(path)).is_err() || path == ".m2");
        }
    }
}
