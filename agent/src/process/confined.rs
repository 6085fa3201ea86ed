//! What a program's box has beyond its attempt's: what its environment names. Pure. A variable counts only
//! where the agent or the adapter set it: a task's variables come with a repository, and would else name
//! what its programs may read.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use kage_core::network::DOOR_PORT;

use super::environment::VariableSource;
use super::{Command, Environment};
use crate::contain::{Confinement, Network, Room};

/// Variables that name a toolchain's home, or files that programs need.
const TOOLS: &[&str] = &[
    "CARGO_HOME",
    "RUSTUP_HOME",
    "GOROOT",
    "JAVA_HOME",
    "NVM_DIR",
    "PYENV_ROOT",
    "SDKMAN_DIR",
    "VIRTUAL_ENV",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
];

/// The home of cargo, into which it writes.
const CARGO_HOME: &str = "CARGO_HOME";
/// Where go keeps packages, into which it writes; without it that is a folder in HOME.
const GOPATH: &str = "GOPATH";
/// The folder of cargo's home in an attempt's HOME.
const OWN_CARGO_HOME: &str = ".cargo";

/// A program's box, and its environment there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Confined {
    pub(super) confinement: Confinement,
    pub(super) env: Vec<(OsString, OsString)>,
    /// The home of cargo of a person, and the one that the program gets instead.
    pub(super) cargo: Option<(PathBuf, PathBuf)>,
}

/// Whether the agent itself, or what a person told it, set this.
const fn is_agents(source: VariableSource) -> bool {
    match source {
        VariableSource::Agent
        | VariableSource::AgentHome
        | VariableSource::Constant
        | VariableSource::Programs
        | VariableSource::ManifestNamed => true,
        VariableSource::Task
        | VariableSource::Places
        | VariableSource::Manifest
        | VariableSource::ManifestAsRoot
        | VariableSource::Login
        | VariableSource::Work
        | VariableSource::Door => false,
    }
}

fn agents<'e>(env: &'e Environment, name: &str) -> Option<&'e OsStr> {
    let variable = env.get(name)?;
    is_agents(variable.source).then_some(variable.value.as_os_str())
}

/// Whether a variable names a folder, going by its own name.
fn is_folder(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.ends_with("_DIR") || name.ends_with("_HOME")
}

/// The box of this program.
pub(super) fn confined(room: &Room, command: &Command) -> Confined {
    let mut confinement = room.confinement().clone();
    let env = match (confinement.door.is_some(), confinement.network) {
        (true, _) => &command.env.clone().behind_door(DOOR_PORT),
        (false, Network::None) => &command.env.clone().without_proxies(),
        (false, Network::Open) => &command.env,
    };
    let path = agents(env, "PATH").unwrap_or_default();
    confinement.path = std::env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .collect();
    let tools = TOOLS.iter().filter_map(|name| agents(env, name)).map(PathBuf::from);
    let program = Some(PathBuf::from(&command.program));
    confinement.tools = tools.chain(program).filter(|path| path.is_absolute()).collect();
    for (name, variable) in env.iter() {
        let path = Path::new(&variable.value);
        let is_hidden = confinement.hidden.iter().any(|hidden| path.starts_with(hidden));
        match variable.source {
            // A name of the agent's own files is no wish to lend them.
            VariableSource::ManifestNamed if is_hidden => {}
            // The program has to own its login there.
            VariableSource::Login if path.is_absolute() => confinement.write.push(path.to_owned()),
            // A program's own folder, as of its settings and logins, and files such as of credentials.
            VariableSource::ManifestNamed if path.is_absolute() => match is_folder(name) {
                true => confinement.write.push(path.to_owned()),
                false => confinement.read.push(path.to_owned()),
            },
            VariableSource::Work if name == "KAGE_BASE_CONTEXT" => confinement.read.push(path.to_owned()),
            VariableSource::Login
            | VariableSource::Work
            | VariableSource::Agent
            | VariableSource::AgentHome
            | VariableSource::Task
            | VariableSource::Constant
            | VariableSource::Places
            | VariableSource::Manifest
            | VariableSource::ManifestAsRoot
            | VariableSource::ManifestNamed
            | VariableSource::Programs
            | VariableSource::Door => {}
        }
    }
    let cargo = agents(env, CARGO_HOME).map(PathBuf::from).zip(env.get("HOME"));
    let cargo = cargo.map(|(from, home)| (from, Path::new(&home.value).join(OWN_CARGO_HOME)));
    let is_dropped = |name: &OsStr| name == GOPATH && agents(env, GOPATH).is_some();
    let variables = env.pairs().filter(|(name, _)| !is_dropped(name));
    let variables = variables.map(|(name, value)| match &cargo {
        Some((_, own)) if name == CARGO_HOME => (name.to_owned(), own.clone().into_os_string()),
        Some(_) | None => (name.to_owned(), value.to_owned()),
    });
    Confined {
        env: variables.collect(),
        confinement,
        cargo,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kage_core::contain::{Containment, Tier};

    use super::*;
    use crate::contain::Boxes;
    use crate::process::{
        AgentEnvironment, EnvironmentParts, LoginVariable, ManifestVariables, Places, Stdin, TaskVariables,
    };

    #[test]
    fn a_box_follows_from_what_the_agent_set_and_not_from_what_a_task_did() {
        let agent = AgentEnvironment::from_iter([
            ("PATH", "/home/me/.cargo/bin:relative:/usr/bin"),
            ("CARGO_HOME", "/home/me/.cargo"),
            ("GOPATH", "/home/me/go"),
            ("JAVA_HOME", "/home/me/java"),
            ("TOOL_CONFIG_DIR", "/home/me/.tool"),
            ("TOOL_CREDENTIALS", "/home/me/tool.json"),
            ("TOOL_KEY", "key"),
            ("https_proxy", "http://me:secret@proxy:3128"),
        ]);
        let places = Places {
            home: "/state/scratch/a/home".into(),
            tmp: "/tmp/a".into(),
        };
        let task = TaskVariables {
            set: BTreeMap::from([("JAVA_HOME".to_owned(), "/home/me/.ssh".to_owned())]),
            ..TaskVariables::default()
        };
        let manifest = ManifestVariables {
            login: Some(LoginVariable {
                name: "CLAUDE_CONFIG_DIR".to_owned(),
                value: "/home/me/.claude".into(),
            }),
            named: ["TOOL_CONFIG_DIR", "TOOL_CREDENTIALS", "TOOL_KEY"]
                .map(str::to_owned)
                .into(),
            ..ManifestVariables::default()
        };
        let env = Environment::of(&EnvironmentParts {
            agent: &agent,
            places: &places,
            manifest: Some(&manifest),
            root: false,
            task: Some(&task),
            path: None,
            work: None,
        });
        let command = Command {
            program: "/home/me/.local/bin/claude".into(),
            args: Vec::new(),
            env,
            cwd: "/".into(),
            stdin: Stdin::Null,
        };
        let room = Boxes::proved_for_tests(Containment {
            tier: Tier::T2,
            short_of: String::new(),
        })
        .room(vec!["/work".into()], Vec::new())
        .unwrap();
        let proxies = |room: &Room| {
            let env = confined(room, &command).env;
            env.iter().any(|(_, value)| value.to_string_lossy().contains("secret"))
        };
        assert!(proxies(&room) && !proxies(&room.on(Network::None)));
        let Confined {
            confinement,
            env,
            cargo,
        } = confined(&room, &command);
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(confinement.path, paths(&["/home/me/.cargo/bin", "/usr/bin"]));
        assert_eq!(
            confinement.tools,
            paths(&["/home/me/.cargo", "/home/me/.local/bin/claude"])
        );
        assert_eq!(
            confinement.write,
            paths(&["/work", "/home/me/.claude", "/home/me/.tool"])
        );
        assert_eq!(confinement.read, paths(&["/home/me/tool.json"]));
        let own = PathBuf::from("/state/scratch/a/home/.cargo");
        assert_eq!(cargo, Some(("/home/me/.cargo".into(), own.clone())));
        let value = |name: &str| {
            env.iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        assert_eq!(value("CARGO_HOME"), Some(own.into_os_string()));
        assert_eq!(
            (value("GOPATH"), value("JAVA_HOME")),
            (None, Some("/home/me/.ssh".into()))
        );
    }
}
