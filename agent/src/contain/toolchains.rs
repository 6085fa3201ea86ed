//! Finds what the programs in PATH need besides themselves: most version managers put a link or a script
//! into PATH, and the toolchain elsewhere in a home folder. What PATH names is looked at and links are
//! followed, so that nvm, pyenv, rustup, sdkman and virtual environments need no list of their own. A home
//! folder is never a result, nor what holds one; [`super::policy::mounts`] drops those.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::policy::Confinement;

/// Folders of a toolchain in which its programs are.
const PROGRAMS: &[&str] = &["bin", "sbin", "shims"];

/// Where many programs have their files side by side, beneath a home folder: the folder above is not one
/// toolchain's.
const SHARED: &[&str] = &[".local", "share", ".config", "lib", "opt"];

/// What in a home of cargo is needed and tells no secret.
const CARGO: &[&str] = &["bin", "registry", "git", "config", "config.toml", "env"];

/// What marks a home of cargo.
const CARGO_MARKS: &[&str] = &["registry", "credentials", "credentials.toml", ".package-cache"];

/// How many links of one folder of PATH are followed.
const MOST_LINKS: usize = 2000;

/// Files and folders that the programs of this box need to be there, with their real paths and, where PATH
/// has another, with that. Blocks.
pub(super) fn find(confinement: &Confinement) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    let own: Vec<_> = confinement.write.iter().collect();
    for tool in &confinement.tools {
        add_home(tool, &mut found);
    }
    for folder in &confinement.path {
        // Folders of the attempt are there anyway.
        if !folder.is_absolute() || !folder.is_dir() || own.iter().any(|own| folder.starts_with(own)) {
            continue;
        }
        add_folder(folder, confinement, &mut found);
    }
    found.into_iter().collect()
}

/// A toolchain's home, or a program.
fn add_home(tool: &Path, found: &mut BTreeSet<PathBuf>) {
    let Ok(real) = fs::canonicalize(tool) else {
        return;
    };
    if !real.is_dir() {
        found.insert(reach(&real));
        found.insert(tool.to_owned());
    } else if is_cargo(&real) {
        add_cargo(&real, found);
    } else {
        found.insert(tool.to_owned());
        found.insert(real);
    }
    // The program behind a virtual environment.
    if let Ok(python) = fs::canonicalize(tool.join("bin/python")) {
        found.insert(reach(&python));
    }
}

/// A folder of PATH, the toolchain that it is a part of, and where its links lead.
fn add_folder(folder: &Path, confinement: &Confinement, found: &mut BTreeSet<PathBuf>) {
    let Ok(real) = fs::canonicalize(folder) else {
        return;
    };
    found.insert(folder.to_owned());
    found.insert(real.clone());
    let is_persons = confinement.homes.iter().any(|home| real.starts_with(home));
    for (path, real) in [(folder, &real)] {
        if let Some(toolchain) = toolchain(real) {
            match is_cargo(toolchain) {
                true => add_cargo(toolchain, found),
                false => {
                    found.insert(toolchain.to_owned());
                    // The same by the name that PATH has.
                    found.extend(path.parent().map(Path::to_owned));
                }
            }
        }
    }
    // The system's links stay within the system, or within what has been found.
    if !is_persons
        && ["/usr", "/bin", "/sbin"].iter().any(|system| real.starts_with(system))
        && real != Path::new("/usr/local/bin")
    {
        return;
    }
    let entries = fs::read_dir(&real).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
    for link in links.take(MOST_LINKS) {
        if let Ok(target) = fs::canonicalize(link.path()) {
            found.insert(reach(&target));
        }
    }
}

/// The toolchain whose programs are in this folder.
fn toolchain(programs: &Path) -> Option<&Path> {
    let name = programs.file_name()?.to_str()?;
    let above = programs.parent()?;
    let is_shared = above
        .file_name()
        .and_then(|name| name.to_str())
        .is_none_or(|name| SHARED.contains(&name));
    (PROGRAMS.contains(&name) && !is_shared).then_some(above)
}

/// What a program at this real path needs: its toolchain or, where there is none, its package or itself.
fn reach(program: &Path) -> PathBuf {
    let Some(folder) = program.parent() else {
        return program.to_owned();
    };
    if let Some(toolchain) = toolchain(folder)
        && !is_cargo(toolchain)
    {
        return toolchain.to_owned();
    }
    // A package of npm needs the packages beside it.
    let modules = program.ancestors().filter(|above| above.ends_with("node_modules"));
    if let Some(modules) = modules.last() {
        return modules.to_owned();
    }
    program.to_owned()
}

fn is_cargo(home: &Path) -> bool {
    home.ends_with(".cargo") || CARGO_MARKS.iter().any(|mark| home.join(mark).exists()) && home.join("bin").is_dir()
}

fn add_cargo(home: &Path, found: &mut BTreeSet<PathBuf>) {
    let parts = CARGO.iter().map(|part| home.join(part));
    found.extend(parts.filter(|part| part.exists()));
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use kage_core::contain::Tier;

    use super::*;
    use crate::contain::Network;

    /// A file with the folders above it.
    fn file(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn version_managers_are_found_by_what_path_names() {
        let place = tempfile::tempdir().unwrap();
        let home = fs::canonicalize(place.path()).unwrap().join("home");
        let at = |path: &str| home.join(path);
        for path in [
            ".nvm/versions/node/v20/bin/node",
            ".nvm/versions/node/v20/lib/node_modules/npm/bin/npm-cli.js",
            ".pyenv/shims/python",
            ".pyenv/versions/3.12/bin/python3.12",
            ".cargo/bin/rustup",
            ".cargo/registry/index/x",
            ".cargo/credentials.toml",
            ".rustup/toolchains/stable/bin/rustc",
            ".sdkman/candidates/java/17/bin/java",
            ".local/bin/plain",
            ".local/share/claude/versions/1.2.3",
            ".local/share/pipx/venvs/tool/bin/tool",
            "packages/node_modules/pkg/cli.js",
            "packages/node_modules/dependency/index.js",
            "project/venv/pyvenv.cfg",
            "project/venv/bin/activate",
        ] {
            file(&at(path));
        }
        symlink("17", at(".sdkman/candidates/java/current")).unwrap();
        symlink("../share/claude/versions/1.2.3", at(".local/bin/claude")).unwrap();
        symlink("../share/pipx/venvs/tool/bin/tool", at(".local/bin/tool")).unwrap();
        symlink("../../packages/node_modules/pkg/cli.js", at(".local/bin/cli")).unwrap();
        symlink(at(".pyenv/versions/3.12/bin/python3.12"), at("project/venv/bin/python")).unwrap();
        let path = [
            ".nvm/versions/node/v20/bin",
            ".pyenv/shims",
            ".cargo/bin",
            ".sdkman/candidates/java/current/bin",
            ".local/bin",
            "absent",
        ];
        let confinement = Confinement {
            tier: Tier::T2,
            network: Network::Open,
            door: None,
            write: Vec::new(),
            read: Vec::new(),
            hidden: Vec::new(),
            homes: vec![home.clone()],
            path: path.iter().map(|path| at(path)).collect(),
            tools: [".rustup", ".cargo", "project/venv"]
                .iter()
                .map(|path| at(path))
                .collect(),
            bubblewrap: None,
        };
        let found = find(&confinement);
        let there = |path: &str| found.iter().any(|found| at(path).starts_with(found));
        for path in [
            ".nvm/versions/node/v20/lib/node_modules/npm/bin/npm-cli.js",
            ".pyenv/shims/python",
            ".pyenv/versions/3.12/bin/python3.12",
            ".cargo/bin/rustup",
            ".cargo/registry/index/x",
            ".rustup/toolchains/stable/bin/rustc",
            ".sdkman/candidates/java/17/bin/java",
            ".sdkman/candidates/java/current/bin/java",
            ".local/bin/plain",
            ".local/share/claude/versions/1.2.3",
            ".local/share/pipx/venvs/tool/bin/tool",
            "packages/node_modules/dependency/index.js",
            "project/venv/bin/activate",
        ] {
            assert!(there(path), "{path}: {found:?}");
        }
        for path in [
            ".cargo/credentials.toml",
            ".local/share/keyrings",
            ".ssh/id",
            "project/notes",
        ] {
            assert!(!there(path), "{path}: {found:?}");
        }
    }
}
