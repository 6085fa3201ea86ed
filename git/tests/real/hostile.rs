//! Repositories that try to run programs when git looks at them. Every case first shows
//! that plain git does run the program (a trap that cannot spring proves nothing), then
//! that a snapshot, an apply and a merge do not.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kage_git::landing::{Strategy, plan_apply, plan_merge};
use kage_git::snapshot::{Snapshot, SnapshotOptions};
use kage_git::{UserRepo, Worktree};

use crate::sandbox::{Sandbox, write};

struct Trap {
    name: &'static str,
    /// Sets the trap; `{marker}` is a program that leaves a mark and passes its input on.
    config: &'static [(&'static str, &'static str)],
    hook: Option<&'static str>,
    attributes: &'static str,
    /// Plain git walks into it.
    control: &'static [&'static [&'static str]],
}

const TRAPS: &[Trap] = &[
    Trap {
        name: "fsmonitor",
        config: &[("core.fsmonitor", "{marker}")],
        hook: None,
        attributes: "",
        control: &[&["status"]],
    },
    Trap {
        name: "hooks path",
        config: &[("core.hooksPath", "{hooks}")],
        hook: Some("post-index-change"),
        attributes: "",
        control: &[&["add", "-A"]],
    },
    Trap {
        name: "reference hook",
        config: &[("core.hooksPath", "{hooks}")],
        hook: Some("reference-transaction"),
        attributes: "",
        control: &[&["update-ref", "refs/heads/other", "HEAD"]],
    },
    Trap {
        name: "clean filter",
        config: &[("filter.evil.clean", "{marker}")],
        hook: None,
        attributes: "other filter=evil\n",
        control: &[&["add", "other"]],
    },
    Trap {
        name: "filter process",
        config: &[
            ("filter.evil=x.process", "{marker}"),
            ("filter.evil=x.clean", "{marker}"),
        ],
        hook: None,
        attributes: "other filter=evil=x\n",
        control: &[&["add", "other"]],
    },
    Trap {
        name: "textconv",
        config: &[("diff.evil.textconv", "{marker}")],
        hook: None,
        attributes: "text diff=evil\n",
        control: &[&["diff"]],
    },
    Trap {
        name: "external diff",
        config: &[("diff.external", "{marker}")],
        hook: None,
        attributes: "",
        control: &[&["diff"]],
    },
    Trap {
        name: "diff driver",
        config: &[("diff.evil.command", "{marker}")],
        hook: None,
        attributes: "text diff=evil\n",
        control: &[&["diff"]],
    },
    Trap {
        name: "merge driver",
        config: &[("merge.evil.driver", "{marker}")],
        hook: None,
        attributes: "text merge=evil\n",
        control: &[&["stash", "-q"], &["merge-tree", "--write-tree", "HEAD", "side"]],
    },
    Trap {
        name: "signing",
        config: &[("commit.gpgSign", "true"), ("gpg.program", "{marker}")],
        hook: None,
        attributes: "",
        control: &[&["commit", "-q", "-m", "signed", "--allow-empty"]],
    },
];

/// A repository with a trap, uncommitted work, and a branch `side` that changed the same file.
fn trapped(sandbox: &Sandbox, name: &str, trap: &Trap, mark: &Path) -> std::path::PathBuf {
    let source = sandbox.repository(name, &[("text", "1\n2\n3\n"), ("other", "o\n")]);
    write(&source.join(".gitattributes"), trap.attributes);
    sandbox.commit(&source, "attributes");
    sandbox.git(&source, &["checkout", "-q", "-b", "side"]);
    write(&source.join("text"), "1\n2\nthree\n");
    sandbox.commit(&source, "side");
    sandbox.git(&source, &["checkout", "-q", "main"]);
    write(&source.join("text"), "one\n2\n3\n");
    sandbox.commit(&source, "main");
    write(&source.join("text"), "one\nand two\n3\n");

    let marker = sandbox.path(&format!("{name}-marker"));
    write(&marker, format!("#!/bin/sh\ntouch '{}'\ncat\n", mark.display()));
    fs::set_permissions(&marker, fs::Permissions::from_mode(0o755)).unwrap();
    let hooks = sandbox.path(&format!("{name}-hooks"));
    fs::create_dir(&hooks).unwrap();
    if let Some(hook) = trap.hook {
        fs::copy(&marker, hooks.join(hook)).unwrap();
    }
    for (key, value) in trap.config {
        let value = value
            .replace("{marker}", marker.to_str().unwrap())
            .replace("{hooks}", hooks.to_str().unwrap());
        sandbox.git(&source, &["config", key, &value]);
    }
    source
}

#[tokio::test]
async fn no_trap_springs_under_us_and_every_trap_springs_under_plain_git() {
    for trap in TRAPS {
        let sandbox = Sandbox::new();
        let control_mark = sandbox.path("control-mark");
        let control = trapped(&sandbox, "control", trap, &control_mark);
        write(&control.join("other"), "changed\n");
        for args in trap.control {
            // Some fail because of what the program prints; it ran, which is the point.
            drop(sandbox.try_git(&control, args));
        }
        assert!(
            control_mark.exists(),
            "{}: plain git did not walk into the trap",
            trap.name
        );

        let mark = sandbox.path("mark");
        let source = trapped(&sandbox, "source", trap, &mark);
        fs::remove_file(&mark).ok();
        let repository = UserRepo::discover(&source).await.unwrap();
        let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await.unwrap();
        let mirror = kage_git::Mirror::open_or_init(sandbox.path("m.git")).await.unwrap();
        snapshot
            .push(&crate::sandbox::url(mirror.path()), &kage_git::Auth::None)
            .await
            .unwrap();
        let worktree = Worktree::create(&mirror, sandbox.path("w"), &snapshot.base)
            .await
            .unwrap();
        write(&worktree.path().join("text"), "one\nand two\nand three\n");
        write(&worktree.path().join("new"), "n\n");
        worktree.changes().await.unwrap();
        let result = worktree.commit_result("r\n").await.unwrap().unwrap().commit;
        let plan = plan_apply(&repository, &mirror, &snapshot.base, &result).await.unwrap();
        plan.execute().await.unwrap();

        // For the merge the tree is clean again, without plain git's help.
        write(&source.join("text"), "one\n2\n3\n");
        fs::remove_file(source.join("new")).unwrap();
        let plan = plan_merge(&repository, &mirror, &result, Strategy::Auto, "m\n")
            .await
            .unwrap();
        plan.execute().await.unwrap();
        assert!(!mark.exists(), "{}: it ran", trap.name);
    }
}

#[tokio::test]
async fn a_session_cannot_set_a_trap_in_its_own_repository() {
    for trap in TRAPS {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source", &[("text", "1\n"), ("other", "o\n")]);
        let (mirror, base) = sandbox.mirror("m.git", &source).await;
        let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
        let (mark, marker) = (sandbox.path("mark"), sandbox.path("marker"));
        write(&marker, format!("#!/bin/sh\ntouch '{}'\ncat\n", mark.display()));
        fs::set_permissions(&marker, fs::Permissions::from_mode(0o755)).unwrap();
        write(&worktree.path().join(".gitattributes"), trap.attributes);
        let hooks = worktree.path().join(".git/hooks");
        fs::create_dir_all(&hooks).unwrap();
        if let Some(hook) = trap.hook {
            fs::copy(&marker, hooks.join(hook)).unwrap();
        }
        for (key, value) in trap.config {
            let value = value
                .replace("{marker}", marker.to_str().unwrap())
                .replace("{hooks}", hooks.to_str().unwrap());
            sandbox.git(worktree.path(), &["config", key, &value]);
        }
        fs::remove_file(&mark).ok();
        write(&worktree.path().join("text"), "2\n");
        write(&worktree.path().join("other"), "p\n");
        worktree.changes().await.unwrap();
        worktree.commit_result("r\n").await.unwrap().unwrap();
        worktree.restore_paths(&base, &["other".to_owned()]).await.unwrap();
        assert!(!mark.exists(), "{}: it ran", trap.name);
    }
}
