//! What people build with, in boxes of each tier.

use std::fs;
use std::path::Path;

use kage_agent::contain::AskedTier;
use kage_agent::process::{AgentEnvironment, Environment, EnvironmentParts, Places};
use kage_core::contain::Tier;

use super::{Machine, TIERS, free, run, skip, write};

/// The environment of a session of an agent whose own has these variables.
fn environment(machine: &Machine, agent: &[(&str, &str)]) -> Environment {
    let agent: AgentEnvironment = agent.iter().copied().collect();
    Environment::of(&EnvironmentParts {
        agent: &agent,
        places: &Places::within(&machine.scratch),
        manifest: None,
        root: false,
        task: None,
        path: None,
        work: None,
    })
}

#[tokio::test]
async fn git_works_in_a_worktree_that_borrows_its_objects() {
    let machine = Machine::new();
    let git = |folder: &Path, arguments: &[&str]| {
        let status = std::process::Command::new("git")
            .args(["-c", "user.name=x", "-c", "user.email=x@x"])
            .args(arguments)
            .current_dir(folder)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("HOME", &machine.home)
            .status()
            .unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    let source = machine.home.join("source");
    fs::create_dir_all(&source).unwrap();
    git(&source, &["init", "-q"]);
    fs::write(source.join("file"), "text\n").unwrap();
    git(&source, &["add", "file"]);
    git(&source, &["commit", "-qm", "the base"]);
    let mirror = machine.state.join("mirrors/p/r.git");
    fs::remove_dir_all(&mirror).unwrap();
    git(
        &machine.home,
        &["clone", "-q", "--bare", "source", mirror.to_str().unwrap()],
    );
    git(
        &machine.state,
        &["clone", "-q", "--shared", mirror.to_str().unwrap(), "worktrees/own"],
    );
    let script = "set -e
        git log --format=%s; git status --porcelain
        echo more >> file; git add file; git -c user.name=x -c user.email=x@x commit -qm mine
        git gc -q; git fsck; git log --format=%s
        ! git -C \"$STATE/mirrors/p/r.git\" log 2>/dev/null";
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        let (ended, said) = run(Some(&room), machine.sh(script), free()).await;
        assert!(ended.unwrap().status.success(), "{tier}: {said}");
        assert!(
            said.starts_with("the base\n") || said.contains("mine"),
            "{tier}: {said}"
        );
    }
}

#[tokio::test]
async fn a_home_of_cargo_is_used_and_not_written() {
    let machine = Machine::new();
    let cargo_home = machine.home.join(".cargo");
    write(&cargo_home.join("config.toml"), "[net]\noffline = true\n");
    write(&cargo_home.join("registry/cache/x/a-1.crate"), "a");
    write(&cargo_home.join("credentials.toml"), "token");
    let agent = [("PATH", super::PATH), ("CARGO_HOME", cargo_home.to_str().unwrap())];
    let script = "set -e
        cat \"$CARGO_HOME/config.toml\" \"$CARGO_HOME/registry/cache/x/a-1.crate\"
        : > \"$CARGO_HOME/.package-cache\"; : > \"$CARGO_HOME/registry/cache/x/b-1.crate\"
        ! cat \"$CARGO_HOME/credentials.toml\" 2>/dev/null
        if echo x 2>/dev/null >> \"$CARGO_HOME/registry/cache/x/a-1.crate\"; then exit 1; fi";
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        let mut command = machine.sh(script);
        command.env = environment(&machine, &agent);
        let (ended, said) = run(Some(&room), command, free()).await;
        assert!(ended.unwrap().status.success(), "{tier}: {said}");
    }
    assert!(!cargo_home.join("registry/cache/x/b-1.crate").exists());
    assert_eq!(
        fs::read_to_string(cargo_home.join("registry/cache/x/a-1.crate")).unwrap(),
        "a"
    );
}

#[tokio::test]
async fn programs_of_version_managers_run() {
    let machine = Machine::new();
    let tool = |path: &str, text: &str| {
        let path = machine.home.join(path);
        write(&path, text);
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    // As nvm, pyenv, sdkman, pipx and npm lay theirs out.
    tool(
        ".nvm/versions/node/v20/bin/fake-node",
        "#!/bin/sh\ncat \"$(dirname \"$0\")/../lib/data\"\n",
    );
    tool(".nvm/versions/node/v20/lib/data", "node");
    tool(
        ".pyenv/shims/fake-python",
        "#!/bin/sh\nexec \"$(dirname \"$0\")/../versions/3/bin/real\"\n",
    );
    tool(".pyenv/versions/3/bin/real", "#!/bin/sh\necho python\n");
    tool(".sdkman/candidates/java/17/bin/fake-java", "#!/bin/sh\necho java\n");
    tool(".local/share/tool/versions/1", "#!/bin/sh\necho tool\n");
    let link = |to: &str, at: &str| {
        let at = machine.home.join(at);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, at).unwrap();
    };
    link("17", ".sdkman/candidates/java/current");
    link("../share/tool/versions/1", ".local/bin/fake-tool");
    let folders = [
        ".nvm/versions/node/v20/bin",
        ".pyenv/shims",
        ".sdkman/candidates/java/current/bin",
        ".local/bin",
    ];
    let folders = folders.map(|folder| machine.home.join(folder).to_str().unwrap().to_owned());
    let path = format!("{}:{}", folders.join(":"), super::PATH);
    for (tier, asked) in TIERS {
        let room = machine.room(tier, asked);
        let script = "fake-node; echo; fake-python; fake-java; fake-tool";
        let mut command = machine.sh(script);
        command.env = environment(&machine, &[("PATH", &path)]);
        let (ended, said) = run(Some(&room), command, free()).await;
        assert!(ended.unwrap().status.success(), "{tier}: {said}");
        assert_eq!(said, "node\npython\njava\ntool\n", "{tier}");
    }
}

#[tokio::test]
async fn leaks_are_still_found() {
    let machine = Machine::new();
    let source = "#include <stdlib.h>\nint main(void) { volatile char *p = malloc(7); p = 0; return 0; }\n";
    write(&machine.worktree.join("leak.c"), source);
    let compiled = std::process::Command::new("cc")
        .args(["-fsanitize=address", "-o", "leak", "leak.c"])
        .current_dir(&machine.worktree)
        .output();
    if !compiled.is_ok_and(|compiled| compiled.status.success()) {
        return skip("contain", "no compiler has an address sanitizer");
    }
    let (_, outside) = run(None, machine.sh("./leak"), free()).await;
    if !outside.contains("7 byte(s) leaked") {
        return skip("contain", "outside of a box no leak is found either");
    }
    let room = machine.room(Tier::T2, AskedTier::T2);
    let (ended, said) = run(Some(&room), machine.sh("./leak"), free()).await;
    assert!(!ended.unwrap().status.success(), "{said}");
    assert!(said.contains("7 byte(s) leaked"), "{said}");
}
