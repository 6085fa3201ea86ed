//! Hooks of every kind that plain git would run in place of our operations.

use super::{Field, PLAIN, Trap};
use crate::http::Server;
use crate::sandbox::{copy_program, write};

const fn hook(name: &'static str, control: &'static [&'static [&'static str]]) -> Trap {
    Trap {
        name,
        hook: Some(name),
        control,
        ..PLAIN
    }
}

/// Without uncommitted work, most of these begin.
const CLEAN: &[&str] = &["checkout", "-q", "-f", "main"];
const MAIL: &[&str] = &["format-patch", "-q", "-1", "side", "-o", "{folder}"];

const HOOKS: &[Trap] = &[
    hook("post-index-change", &[&["add", "-A"]]),
    hook("reference-transaction", &[&["update-ref", "refs/heads/x", "HEAD"]]),
    hook("pre-commit", &[&["commit", "-q", "--allow-empty", "-m", "x"]]),
    hook("prepare-commit-msg", &[&["commit", "-q", "--allow-empty", "-m", "x"]]),
    hook("commit-msg", &[&["commit", "-q", "--allow-empty", "-m", "x"]]),
    hook("post-commit", &[&["commit", "-q", "--allow-empty", "-m", "x"]]),
    hook("post-rewrite", &[&["commit", "-q", "--amend", "-m", "x"]]),
    hook("post-checkout", &[&["checkout", "-q", "-f", "side"]]),
    hook("pre-merge-commit", &[CLEAN, &["merge", "-q", "--no-edit", "side"]]),
    hook("post-merge", &[CLEAN, &["merge", "-q", "--no-edit", "side"]]),
    hook("pre-rebase", &[CLEAN, &["rebase", "-q", "side"]]),
    hook(
        "applypatch-msg",
        &[CLEAN, MAIL, &["am", "-3", "{folder}/0001-side.patch"]],
    ),
    hook(
        "pre-applypatch",
        &[CLEAN, MAIL, &["am", "-3", "{folder}/0001-side.patch"]],
    ),
    hook(
        "post-applypatch",
        &[CLEAN, MAIL, &["am", "-3", "{folder}/0001-side.patch"]],
    ),
    hook(
        "pre-push",
        &[
            &["init", "-q", "--bare", "{folder}/o.git"],
            &["push", "-q", "{folder}/o.git", "HEAD:refs/heads/x"],
        ],
    ),
    hook("pre-receive", &[&["push", "-q", "{repo}", "HEAD:refs/heads/x"]]),
    hook("update", &[&["push", "-q", "{repo}", "HEAD:refs/heads/x"]]),
    hook("post-receive", &[&["push", "-q", "{repo}", "HEAD:refs/heads/x"]]),
    hook("post-update", &[&["push", "-q", "{repo}", "HEAD:refs/heads/x"]]),
    Trap {
        config: &[("receive.procReceiveRefs", "refs")],
        ..hook("proc-receive", &[&["push", "-q", "{repo}", "HEAD:refs/for/x"]])
    },
    Trap {
        config: &[("receive.denyCurrentBranch", "updateInstead")],
        ..hook(
            "push-to-checkout",
            &[CLEAN, &["push", "-q", "{repo}", "side:main", "-f"]],
        )
    },
    Trap {
        config: &[("gc.autoPackLimit", "1")],
        ..hook(
            "pre-auto-gc",
            &[
                &["repack", "-q"],
                &["commit", "-q", "--allow-empty", "-m", "x"],
                &["repack", "-q"],
                &["gc", "--auto", "--no-detach"],
            ],
        )
    },
    Trap {
        name: "core.hooksPath",
        config: &[("core.hooksPath", "{hooks}")],
        hook: Some("post-index-change"),
        control: &[&["add", "-A"]],
        ..PLAIN
    },
];

#[tokio::test]
async fn no_hook_of_any_kind_runs() {
    Field::new().pass_by(HOOKS).await;
}

/// A process that can write to a mirror can do anything; still, none of its hooks runs for a push.
#[tokio::test(flavor = "multi_thread")]
async fn no_hook_of_a_mirror_runs_when_it_is_pushed_to() {
    let field = Field::new();
    for name in [
        "pre-receive",
        "update",
        "post-receive",
        "post-update",
        "reference-transaction",
    ] {
        let ground = field.ground(name);
        let head = field.sandbox.head(&ground.repo());
        let mirror = kage_git::Mirror::open_or_init(ground.folder.join("m.git"))
            .await
            .unwrap();
        let hook = mirror.path().join("hooks").join(name);
        write(&hook, "");
        copy_program(&ground.folder.join("marker"), &hook);
        let server = Server::start(mirror.clone()).await;
        let pushed = server
            .git(
                &field.sandbox,
                ground.repo(),
                &["push", "-q", &server.url, &format!("HEAD:refs/kage/bases/{head}")],
            )
            .await;
        assert!(pushed.is_ok(), "{name}: {pushed:?}");
        assert!(!ground.has_sprung(), "{name}: it ran");
        let target = mirror.path().to_str().unwrap();
        field
            .sandbox
            .try_git(&ground.repo(), &["push", "-q", target, "HEAD:refs/heads/x"])
            .ok();
        assert!(ground.has_sprung(), "{name}: plain git did not walk into it");
    }
}
