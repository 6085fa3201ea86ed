//! The rules of a box as data, made of names alone: what Landlock allows ([`rules`]) and what is mounted
//! where ([`mounts`]). Nothing here looks at a disk; [`super::scene`] looks, `seal` and `bubblewrap`
//! carry out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kage_core::contain::Tier;
use serde::{Deserialize, Serialize};

/// What of the network the programs of a box have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// All that the machine has.
    #[default]
    Open,
    /// A loopback interface of its own, and nothing else. T2 only.
    None,
}

/// How the programs of a box that has no network of its own get to a door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoorWay {
    /// The socket at which the door takes boxes in.
    pub socket: PathBuf,
    /// The ports of the box that it serves.
    pub ports: Vec<u16>,
}

/// The rules of one box, for one program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    pub tier: Tier,
    pub network: Network,
    /// The way out of a box without a network.
    #[serde(default)]
    pub door: Option<DoorWay>,
    /// Folders beneath which programs write: the attempt's own.
    pub write: Vec<PathBuf>,
    /// Files and folders of the agent's that they may read.
    pub read: Vec<PathBuf>,
    /// Files and folders that they may not see, but for the above. Real paths.
    pub hidden: Vec<PathBuf>,
    /// Home folders of people. Not there in T2.
    pub homes: Vec<PathBuf>,
    /// The folders of PATH.
    pub path: Vec<PathBuf>,
    /// Homes of toolchains, from the agent's environment, and programs outside of PATH.
    pub tools: Vec<PathBuf>,
    /// The program that builds T2.
    pub bubblewrap: Option<PathBuf>,
}

/// What Landlock allows beneath a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allowed {
    /// Reading and executing.
    Read,
    /// Everything.
    Write,
    /// Reading, writing and control of a device, making nothing.
    Device,
}

/// An entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    pub path: PathBuf,
    /// A link says nothing about what may be read: its target has a path of its own.
    pub is_link: bool,
}

/// What is on the disk, as far as rules depend on it.
#[derive(Debug, Clone, Default)]
pub struct Scene {
    /// The entries of those folders that [`ways`] names.
    pub children: BTreeMap<PathBuf, Vec<Child>>,
    /// The entries of the root folder that are links, and where they lead.
    pub links: BTreeMap<PathBuf, PathBuf>,
    /// Which of the files and folders in [`MASKED`] and of the hidden ones are folders; those that are
    /// not there are not here.
    pub is_folder: BTreeMap<PathBuf, bool>,
    /// Toolchains that were found, and what else has to be there for them. Real paths.
    pub tools: Vec<PathBuf>,
}

/// Devices that every program may use.
const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
];

/// Devices that compute, for programs that need them. In T1 only.
const ACCELERATORS: &[&str] = &["/dev/dri", "/dev/kfd", "/dev/kvm", "/dev/fuse", "/dev/nvidia"];

/// Memory as files.
const SHARED_MEMORY: &str = "/dev/shm";

/// Entries of the root folder that are there in T2, read-only.
const SYSTEM: &[&str] = &[
    "bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt", "nix", "gnu", "sys",
];

/// What of `/var` is there in T2, read-only: what belongs to installed programs. Everything else in it is a
/// service's, or somebody's, by whatever name.
const OF_PROGRAMS: &[&str] = &[
    "/var/cache/fontconfig",
    "/var/cache/man",
    "/var/guix",
    "/var/lib/alternatives",
    "/var/lib/apt/lists",
    "/var/lib/aspell",
    "/var/lib/ca-certificates",
    "/var/lib/dpkg",
    "/var/lib/gems",
    "/var/lib/ghc",
    "/var/lib/ispell",
    "/var/lib/python",
    "/var/lib/rpm",
    "/var/lib/tex-common",
    "/var/lib/texmf",
    "/var/lib/xkb",
    "/var/usrlocal",
];

/// Folders that are empty and the box's own in T2.
const EMPTY: &[&str] = &["/tmp", "/run", "/home", "/root", "/var", "/var/tmp"];

/// Those into which everybody writes.
pub const TEMPORARY: &[&str] = &["/tmp", "/var/tmp"];

/// What T2 takes out of the system's folders: secrets.
pub const MASKED: &[&str] = &[
    "/etc/ssl/private",
    "/etc/kubernetes",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/sudoers",
    "/etc/ssh",
    "/etc/kage",
];

/// The folders whose entries have to be known: those on the way to what is hidden.
#[must_use]
pub fn ways(hidden: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut ways: BTreeSet<PathBuf> = [PathBuf::from("/")].into();
    for path in hidden {
        ways.extend(path.ancestors().skip(1).map(Path::to_owned));
    }
    ways
}

/// What Landlock allows: nothing else is possible.
#[must_use]
pub fn rules(confinement: &Confinement, scene: &Scene) -> Vec<(PathBuf, Allowed)> {
    let mut rules = Vec::new();
    match confinement.tier {
        // What is not mounted needs no rule, and what is mounted may be read.
        Tier::T2 | Tier::T3 => rules.push((PathBuf::from("/"), Allowed::Read)),
        Tier::T0 | Tier::T1 => {
            let root = Path::new("/");
            readable(root, &confinement.hidden, scene, &mut rules);
            let devices = scene.children.get(Path::new("/dev")).into_iter().flatten();
            let accelerators = devices.filter(|child| {
                let name = child.path.to_string_lossy();
                ACCELERATORS.iter().any(|known| name.starts_with(known))
            });
            rules.extend(accelerators.map(|child| (child.path.clone(), Allowed::Device)));
        }
    }
    rules.extend(DEVICES.iter().map(|path| (PathBuf::from(path), Allowed::Device)));
    rules.push((SHARED_MEMORY.into(), Allowed::Write));
    if confinement.tier >= Tier::T2 {
        // They are the box's own.
        rules.extend(TEMPORARY.iter().map(|path| (PathBuf::from(path), Allowed::Write)));
    }
    for path in &confinement.read {
        // What is hidden stays so, also in a folder that is lent.
        let within = confinement.hidden.iter();
        let within = within.filter(|hidden| hidden.starts_with(path)).cloned();
        match within.collect::<Vec<_>>() {
            none if none.is_empty() || confinement.tier >= Tier::T2 => rules.push((path.clone(), Allowed::Read)),
            within if within.contains(path) => {}
            within => readable(path, &within, scene, &mut rules),
        }
    }
    rules.extend(confinement.write.iter().map(|path| (path.clone(), Allowed::Write)));
    rules
}

/// Everything in a folder but what is hidden, as few rules as possible. Devices have rules of their own: a
/// disk is as readable as the files on it.
fn readable(folder: &Path, hidden: &[PathBuf], scene: &Scene, rules: &mut Vec<(PathBuf, Allowed)>) {
    for child in scene.children.get(folder).into_iter().flatten() {
        let path = &child.path;
        if child.is_link || path == Path::new("/dev") || hidden.iter().any(|hidden| path.starts_with(hidden)) {
            continue;
        }
        match hidden.iter().any(|hidden| hidden.starts_with(path)) {
            true => readable(path, hidden, scene, rules),
            false => rules.push((path.clone(), Allowed::Read)),
        }
    }
}

/// What is at a place of a box of T2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// The same file or folder of the machine, not writable.
    ReadOnly,
    /// The same file or folder of the machine.
    Writable,
    /// An empty folder in memory.
    Empty,
    /// An empty file.
    Nothing,
    Link(PathBuf),
    Processes,
    Devices,
}

/// What is mounted, in the order in which it is: what is further down comes later.
#[must_use]
pub fn mounts(confinement: &Confinement, scene: &Scene) -> BTreeMap<PathBuf, Mount> {
    let mut mounts = BTreeMap::new();
    for child in scene.children.get(Path::new("/")).into_iter().flatten() {
        let name = child.path.file_name().and_then(|name| name.to_str());
        if !name.is_some_and(|name| SYSTEM.contains(&name)) {
            continue;
        }
        let mount = match scene.links.get(&child.path) {
            Some(target) => Mount::Link(target.clone()),
            None => Mount::ReadOnly,
        };
        mounts.insert(child.path.clone(), mount);
    }
    let homes = || confinement.homes.iter().filter(|home| home.parent().is_some());
    mounts.insert("/proc".into(), Mount::Processes);
    mounts.insert("/dev".into(), Mount::Devices);
    mounts.extend(EMPTY.iter().map(|path| (PathBuf::from(path), Mount::Empty)));
    mounts.insert("/var/run".into(), Mount::Link("/run".into()));
    mounts.extend(OF_PROGRAMS.iter().map(|path| (PathBuf::from(path), Mount::ReadOnly)));
    mounts.extend(homes().map(|home| (home.clone(), Mount::Empty)));
    let hides = |path: &Path| {
        let mut secret = homes().chain(&confinement.hidden);
        secret.any(|secret| secret.starts_with(path))
    };
    for tool in scene.tools.iter().filter(|tool| !hides(tool)) {
        // What is in view already needs no mount of its own.
        if !in_view(&mounts, tool) {
            mounts.insert(tool.clone(), Mount::ReadOnly);
        }
    }
    let masked = MASKED
        .iter()
        .map(PathBuf::from)
        .chain(confinement.hidden.iter().cloned());
    for path in masked {
        let Some(is_folder) = scene.is_folder.get(&path) else {
            continue;
        };
        match is_folder {
            // Also where nothing of it is in view: what is lent beneath it makes the folders above.
            true if in_view(&mounts, &path) || confinement.hidden.contains(&path) => {
                mounts.insert(path, Mount::Empty);
            }
            false if in_view(&mounts, &path) => {
                mounts.insert(path, Mount::Nothing);
            }
            true | false => {}
        }
    }
    mounts.extend(confinement.read.iter().map(|path| (path.clone(), Mount::ReadOnly)));
    mounts.extend(confinement.write.iter().map(|path| (path.clone(), Mount::Writable)));
    // What is lent may have something in it that is hidden.
    for path in confinement
        .hidden
        .iter()
        .filter(|path| !confinement.write.contains(path))
    {
        if let Some(is_folder) = scene.is_folder.get(path)
            && in_view(&mounts, path)
        {
            let mask = if *is_folder { Mount::Empty } else { Mount::Nothing };
            mounts.insert(path.clone(), mask);
        }
    }
    // Who may connect is not a matter of writing.
    let doors = confinement.door.iter();
    mounts.extend(doors.map(|door| (door.socket.clone(), Mount::ReadOnly)));
    mounts
}

/// Whether a path of the machine can be seen in a box with these mounts.
fn in_view(mounts: &BTreeMap<PathBuf, Mount>, path: &Path) -> bool {
    let nearest = path.ancestors().find_map(|above| mounts.get(above));
    matches!(nearest, Some(Mount::ReadOnly | Mount::Writable))
}

#[cfg(test)]
mod tests;
