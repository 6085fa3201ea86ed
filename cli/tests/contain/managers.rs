//! Version managers and package managers in boxes, with the real tools where this machine has them: each as a
//! person has it, who named nothing in any setting but had it in PATH when the agent started.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kage_agent::contain::{AskedTier, BoxParts, Boxes, ContainSettings, Room};
use kage_agent::process::{AgentEnvironment, Environment, EnvironmentParts, Places};
use kage_core::contain::Tier;

use super::{Machine, TIERS, executable, free, run, skip, write};

/// The box of an attempt of an agent whose user has this home folder.
fn room(machine: &Machine, home: &Path, (tier, asked): (Tier, AskedTier)) -> Arc<Room> {
    let boxes = Boxes::prove(&BoxParts {
        state: &machine.state,
        own: &[],
        settings: &ContainSettings {
            tier: asked,
            ..ContainSettings::default()
        },
        home: Some(home.to_owned()),
        executable: &executable(),
    });
    assert_eq!(boxes.proved().tier, tier, "{}", boxes.proved().short_of);
    let own = vec![machine.worktree.clone(), machine.scratch.clone()];
    boxes.room(own, vec![machine.objects.clone()]).unwrap()
}

/// Runs a script in a box of each tier, in a worktree and a HOME that are empty, with the environment that an
/// agent makes of its own. Returns what was printed.
async fn in_each_tier(machine: &Machine, home: &Path, agent: &[(&str, &str)], script: &str) -> Vec<String> {
    let agent: AgentEnvironment = agent.iter().copied().collect();
    let mut all = Vec::new();
    for tier in TIERS {
        let mut command = machine.sh(&format!("set -e\n{script}"));
        command.env = Environment::of(&EnvironmentParts {
            agent: &agent,
            places: &Places::within(&machine.scratch),
            manifest: None,
            root: false,
            task: None,
            path: None,
            work: None,
        });
        let (ended, said) = run(Some(&room(machine, home, tier)), command, free()).await;
        let ended = ended.unwrap();
        assert!(ended.status.success(), "{} {}: {said}", tier.0, ended.status);
        all.push(said);
        for own in [machine.worktree.clone(), machine.scratch.clone()] {
            fs::remove_dir_all(&own).unwrap();
            fs::create_dir_all(own).unwrap();
        }
        for folder in ["home", "tmp"] {
            fs::create_dir(machine.scratch.join(folder)).unwrap();
        }
    }
    all
}

/// The home folder and the PATH of whoever runs the tests, if a program of that name is in it, below the home.
fn persons(program: &str) -> Option<(PathBuf, String)> {
    let home = fs::canonicalize(std::env::var_os("HOME")?).ok()?;
    let path = std::env::var("PATH").ok()?;
    let mut folders = std::env::split_paths(&path);
    folders
        .any(|folder| folder.starts_with(&home) && folder.join(program).exists())
        .then_some((home, path))
}

fn link(to: impl AsRef<Path>, at: &Path) {
    fs::create_dir_all(at.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(to, at).unwrap();
}

fn program(path: &Path, text: &str) {
    write(path, text);
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// PATH with these folders of a home folder first.
fn path_with(home: &Path, folders: &[&str]) -> String {
    let own = folders.iter().map(|folder| home.join(folder).display().to_string());
    own.chain([super::PATH.to_owned()]).collect::<Vec<_>>().join(":")
}

/// Where a program of this machine is, with its links followed.
fn installed(program: &str) -> Option<PathBuf> {
    let found = std::env::split_paths(super::PATH).map(|folder| folder.join(program));
    found.filter_map(|path| fs::canonicalize(path).ok()).next()
}

#[tokio::test]
async fn rustup_builds_a_package() {
    let Some((home, path)) = persons("rustup") else {
        return skip("contain", "rustup is not in PATH");
    };
    let machine = Machine::new();
    // As in the shell of a person who set neither RUSTUP_HOME nor CARGO_HOME.
    let agent = [("PATH", path.as_str()), ("HOME", home.to_str().unwrap())];
    let script = "rustup show active-toolchain; cargo init -q --vcs none --name boxed .
        cargo run -q --offline; cargo test -q --offline >/dev/null";
    for said in in_each_tier(&machine, &home, &agent, script).await {
        assert!(said.ends_with("Hello, world!\n"), "{said}");
    }
}

#[tokio::test]
async fn pyenv_runs_its_version_and_makes_a_virtual_environment() {
    let Some((home, path)) = persons("pyenv") else {
        return skip("contain", "pyenv is not in PATH");
    };
    let machine = Machine::new();
    let agent = [("PATH", path.as_str()), ("HOME", home.to_str().unwrap())];
    let script = "pyenv version-name; python3 -c 'import ssl, sqlite3, sys; print(sys.prefix)'
        python3 -m venv own; own/bin/python -m pip --version >/dev/null; own/bin/python -c 'import sys; print(sys.prefix)'";
    for said in in_each_tier(&machine, &home, &agent, script).await {
        let versions = home.join(".pyenv/versions");
        assert!(said.contains(versions.to_str().unwrap()), "{said}");
        assert!(said.ends_with("/own\n"), "{said}");
    }
}

#[tokio::test]
async fn a_virtual_environment_of_the_person_has_its_packages() {
    let machine = Machine::new();
    let home = machine.home.clone();
    let made = std::process::Command::new("python3")
        .args(["-m", "venv", "--without-pip", "work/venv"])
        .current_dir(&home)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        return skip("contain", "python3 makes no virtual environments here");
    }
    let packages = fs::read_dir(home.join("work/venv/lib"))
        .unwrap()
        .flatten()
        .next()
        .unwrap();
    write(&packages.path().join("site-packages/boxed.py"), "print('imported')\n");
    write(&home.join("work/notes"), super::SECRET);
    let venv = home.join("work/venv");
    let path = path_with(&home, &["work/venv/bin"]);
    // Activated, and only in PATH.
    let activated = [("PATH", path.as_str()), ("VIRTUAL_ENV", venv.to_str().unwrap())];
    for agent in [&activated[..], &activated[..1]] {
        let script = "python -c 'import boxed, sys; print(sys.prefix)'";
        for said in in_each_tier(&machine, &home, agent, script).await {
            assert_eq!(said, format!("imported\n{}\n", venv.display()));
        }
    }
}

#[tokio::test]
async fn node_of_nvm_runs_npm_scripts_and_global_packages() {
    let (Some(node), Some(npm)) = (installed("node"), installed("npm")) else {
        return skip("contain", "node or npm is not installed");
    };
    let machine = Machine::new();
    let version = machine.home.join(".nvm/versions/node/v22.1.0");
    fs::create_dir_all(version.join("bin")).unwrap();
    // A program finds its version by its own real path, so it is a file.
    if fs::hard_link(&node, version.join("bin/node")).is_err() {
        fs::copy(&node, version.join("bin/node")).unwrap();
    }
    let package = npm.ancestors().find(|above| above.ends_with("npm")).unwrap().to_owned();
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .arg(&package)
        .arg({
            fs::create_dir_all(version.join("lib/node_modules")).unwrap();
            version.join("lib/node_modules/npm")
        })
        .status();
    assert!(copied.unwrap().success());
    link("../lib/node_modules/npm/bin/npm-cli.js", &version.join("bin/npm"));
    program(
        &version.join("lib/node_modules/said/cli.js"),
        "#!/usr/bin/env node\nconsole.log(require('dependency'))\n",
    );
    write(
        &version.join("lib/node_modules/dependency/index.js"),
        "module.exports = 'required'\n",
    );
    link("../lib/node_modules/said/cli.js", &version.join("bin/said"));
    let path = path_with(&machine.home, &[".nvm/versions/node/v22.1.0/bin"]);
    let script = r#"node -p process.execPath; said
        echo '{"name":"own","version":"1.0.0","scripts":{"test":"node -p 6*7"}}' > package.json
        npm test --silent; npm prefix -g; npm config get cache"#;
    let agent = [("PATH", path.as_str())];
    for said in in_each_tier(&machine, &machine.home, &agent, script).await {
        let own = version.display();
        let cache = machine.scratch.join("home/.npm");
        assert_eq!(
            said,
            format!("{own}/bin/node\nrequired\n42\n{own}\n{}\n", cache.display())
        );
    }
}

#[tokio::test]
async fn java_of_sdkman_compiles_and_runs() {
    let Some(javac) = installed("javac") else {
        return skip("contain", "no JDK is installed");
    };
    let machine = Machine::new();
    let candidate = machine.home.join(".sdkman/candidates/java/17.0.1");
    let jdk = javac.parent().and_then(Path::parent).unwrap();
    for part in ["lib", "conf"] {
        link(jdk.join(part), &candidate.join(part));
    }
    // A program finds its version by its own real path, so these are files.
    fs::create_dir(candidate.join("bin")).unwrap();
    for name in ["java", "javac"] {
        fs::copy(jdk.join("bin").join(name), candidate.join("bin").join(name)).unwrap();
    }
    link("17.0.1", &machine.home.join(".sdkman/candidates/java/current"));
    program(
        &machine.home.join(".sdkman/candidates/maven/3.9/bin/fake-mvn"),
        "#!/bin/sh\n\"$JAVA_HOME/bin/java\" -version 2>/dev/null; cat \"$(dirname \"$0\")/../conf/settings\"\n",
    );
    write(
        &machine.home.join(".sdkman/candidates/maven/3.9/conf/settings"),
        "settings\n",
    );
    link("3.9", &machine.home.join(".sdkman/candidates/maven/current"));
    let folders = [
        ".sdkman/candidates/java/current/bin",
        ".sdkman/candidates/maven/current/bin",
    ];
    let path = path_with(&machine.home, &folders);
    let java_home = machine.home.join(".sdkman/candidates/java/current");
    let agent = [("PATH", path.as_str()), ("JAVA_HOME", java_home.to_str().unwrap())];
    let script = r#"command -v javac
        echo 'class Own { public static void main(String[] a) { System.out.println("compiled"); } }' > Own.java
        javac Own.java; java -cp . Own; fake-mvn"#;
    for said in in_each_tier(&machine, &machine.home, &agent, script).await {
        assert_eq!(said, format!("{}/bin/javac\ncompiled\nsettings\n", java_home.display()));
    }
}

/// What package managers do with a cache in HOME and a project in a worktree, which are two mounts of a box: a
/// file is linked where it can be and else copied, and moved with the same fall back.
#[tokio::test]
async fn caches_in_home_are_used_from_the_worktree() {
    let machine = Machine::new();
    let script = r#"
        # pnpm: a store by content, out of which packages are linked.
        store=$HOME/.local/share/pnpm/store/v3/files/00; mkdir -p "$store" node_modules/a
        echo package > "$store/abc"
        ln "$store/abc" node_modules/a/index.js 2>/dev/null || cp "$store/abc" node_modules/a/index.js
        # Go: modules that nobody may write, folders included; removing them needs the modes first.
        mod=$HOME/go/pkg/mod/example.com/m@v1.0.0; mkdir -p "$mod" "$HOME/go/pkg/mod/cache/download"
        echo module > "$mod/go.mod"; chmod -R a-w "$HOME/go/pkg/mod"
        cat "$mod/go.mod"; chmod -R u+w "$HOME/go/pkg/mod"; rm -r "$HOME/go"
        # Maven: a repository with locks and markers that each build writes.
        m2=$HOME/.m2/repository/org/a/1; mkdir -p "$m2"
        echo jar > a.jar; mv a.jar "$m2/a-1.jar"; : > "$m2/_remote.repositories"; cat "$m2/a-1.jar"
        cat node_modules/a/index.js"#;
    for said in in_each_tier(&machine, &machine.home, &[("PATH", super::PATH)], script).await {
        assert_eq!(said, "module\njar\npackage\n");
    }
}

#[tokio::test]
async fn a_folder_that_is_named_may_be_written_and_nothing_beside_it() {
    let machine = Machine::new();
    let shared = machine.home.join("cache/shared");
    fs::create_dir_all(&shared).unwrap();
    for (tier, asked) in TIERS {
        let boxes = Boxes::prove(&BoxParts {
            state: &machine.state,
            own: &[],
            settings: &ContainSettings {
                tier: asked,
                write: vec![shared.clone()],
                ..ContainSettings::default()
            },
            home: Some(machine.home.clone()),
            executable: &executable(),
        });
        assert_eq!(boxes.proved().tier, tier, "{}", boxes.proved().short_of);
        let own = vec![machine.worktree.clone(), machine.scratch.clone()];
        let room = boxes.room(own, Vec::new()).unwrap();
        let script = format!(
            "echo {tier} > {0}/own && ! echo x 2>/dev/null > {0}/../beside && ! cat $PERSON/../state/outbox.db",
            shared.display()
        );
        let (ended, said) = run(Some(&room), machine.sh(&script), free()).await;
        assert!(ended.unwrap().status.success(), "{tier}: {said}");
        assert_eq!(fs::read_to_string(shared.join("own")).unwrap(), format!("{tier}\n"));
        assert!(!shared.join("../beside").exists());
    }
}

#[test]
fn a_folder_with_programs_of_path_that_may_be_written_is_no_tier() {
    let machine = Machine::new();
    let home = machine.home.clone();
    let boxes = Boxes::prove(&BoxParts {
        state: &machine.state,
        own: &[],
        settings: &ContainSettings {
            tier: AskedTier::Usual,
            write: vec![home.clone()],
            ..ContainSettings::default()
        },
        home: Some(home),
        executable: &executable(),
    });
    let proved = boxes.proved();
    assert_eq!(proved.tier, Tier::T0);
    assert!(
        proved.short_of.contains("T1: ") && proved.short_of.contains("home folder"),
        "{}",
        proved.short_of
    );
}
