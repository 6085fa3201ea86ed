//! What this machine brings to a check of a base, as a digest: system, environment of the commands,
//! and the programs in their PATH. A coordinator takes an earlier verdict only for a machine that
//! brings the same. A toolchain that changes behind a program that stays, as behind rustup's
//! `cargo`, is not noticed here.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use kage_core::id::Digest;

use super::environment::{AgentEnvironment, Environment, EnvironmentParts, Places};
use super::programs::Programs;

/// What it brings to commands with this environment, now. Blocking.
pub(crate) fn brought(environment: &Environment, programs: &Programs) -> Digest {
    let mut bytes = Vec::new();
    for part in [
        std::env::consts::OS,
        std::env::consts::ARCH,
        environment.digest().as_str(),
        programs.digest().as_str(),
    ] {
        bytes.extend_from_slice(part.as_bytes());
        bytes.push(0);
    }
    Digest::of(&bytes)
}

/// What it brings to a check while no program of PATH hides another one. Blocking.
///
/// # Errors
/// When there is no PATH for commands.
pub(crate) fn brought_by(agent: &AgentEnvironment, programs: &Programs) -> io::Result<Digest> {
    let nowhere = Path::new("/");
    let path = programs.path(&BTreeMap::new(), nowhere)?;
    let environment = Environment::of(&EnvironmentParts {
        agent,
        // The folders of an attempt do not count.
        places: &Places::within(nowhere),
        manifest: None,
        task: None,
        root: false,
        path: Some(&path),
        work: None,
    });
    Ok(brought(&environment, programs))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use kage_core::id::{SessionId, TaskId};

    use super::*;
    use crate::process::WorkNames;

    fn program(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn agent(path: &OsString, more: &[(&str, &str)]) -> AgentEnvironment {
        let path = [(OsString::from("PATH"), path.clone())];
        let more = more.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        path.into_iter().chain(more).collect()
    }

    /// What a check of a base finds in the folders of an attempt.
    fn checked(agent: &AgentEnvironment, programs: &Programs, scratch: &Path) -> Digest {
        fs::create_dir_all(scratch).unwrap();
        let path = programs.path(&programs.planted(), &scratch.join("programs")).unwrap();
        let environment = Environment::of(&EnvironmentParts {
            agent,
            places: &Places::within(scratch),
            manifest: None,
            task: None,
            root: false,
            path: Some(&path),
            work: Some(&WorkNames {
                task: TaskId::from_random(1),
                session: SessionId::from_random(2),
                base_context: None,
            }),
        });
        brought(&environment, programs)
    }

    #[test]
    fn a_check_finds_what_the_agent_said_until_a_program_changes() {
        let place = tempfile::tempdir().unwrap();
        let folder = |name: &str| -> PathBuf { place.path().join(name) };
        program(&folder("own/tool"), "1");
        program(&folder("system/cc"), "1");
        let path = std::env::join_paths(["own", "system"].map(folder)).unwrap();
        let programs = Programs::survey(&path, &[]);
        let said = brought_by(&agent(&path, &[]), &programs).unwrap();
        let finds = || checked(&agent(&path, &[]), &programs, &folder("attempt"));
        assert_eq!(finds(), said);
        assert_eq!(checked(&agent(&path, &[]), &programs, &folder("other")), said);
        let more = agent(&path, &[("RUSTUP_TOOLCHAIN", "nightly")]);
        assert_ne!(checked(&more, &programs, &folder("attempt")), said);

        // A file that is no program, then a new program, one that changed, and one that hides another.
        fs::write(folder("own/notes"), "no program").unwrap();
        assert_eq!(finds(), said);
        program(&folder("own/new"), "1");
        let with_new = finds();
        assert_ne!(with_new, said);
        program(&folder("system/cc"), "another");
        let with_other = finds();
        assert_ne!(with_other, with_new);
        fs::remove_file(folder("own/new")).unwrap();
        program(&folder("system/cc"), "1");
        program(&folder("own/cc"), "1");
        assert_ne!(finds(), brought_by(&agent(&path, &[]), &programs).unwrap());
    }
}
