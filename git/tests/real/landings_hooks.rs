//! Hooks of a person that take part in a landing: which run, as what, and what they can do.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::landing::{Hook, Hooks, LandingError, Merged, Strategy, plan_apply, plan_merge};
use kage_git::{Mirror, UserRepo, Worktree};

use crate::sandbox::{Sandbox, fingerprint, message, write};

struct Story {
    sandbox: Sandbox,
    source: PathBuf,
    mirror: Mirror,
    base: Oid,
    result: Oid,
}

impl Story {
    /// `before` prepares the person's repository, which is then committed.
    async fn new(before: impl FnOnce(&Sandbox, &Path), session: impl FnOnce(&Path)) -> Self {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source", &[("text", "t\n")]);
        sandbox.git(&source, &["config", "user.name", "Ann"]);
        sandbox.git(&source, &["config", "user.email", "ann@example.com"]);
        before(&sandbox, &source);
        sandbox.git(&source, &["add", "-A"]);
        sandbox.git(
            &source,
            &["commit", "-q", "--no-verify", "--allow-empty", "-m", "begin"],
        );
        fs::remove_file(sandbox.path("log")).ok();
        let (mirror, base) = sandbox.mirror("m.git", &source).await;
        let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
        session(worktree.path());
        let result = worktree.commit_result("result\n").await.unwrap().unwrap().commit;
        Self {
            sandbox,
            source,
            mirror,
            base,
            result,
        }
    }

    async fn merge(&self, with_hooks: bool) -> Result<Merged, LandingError> {
        let repository = UserRepo::discover(&self.source).await.unwrap();
        let (base, result) = (&self.base, &self.result);
        let mut plan = plan_merge(&repository, &self.mirror, base, result, Strategy::Auto, &message()).await?;
        if with_hooks {
            plan = plan.with_hooks(Hooks::find(&repository).await.unwrap());
        }
        plan.execute().await
    }

    fn git(&self, args: &[&str]) -> String {
        self.sandbox.git(&self.source, args)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.sandbox.path("log")).unwrap_or_default()
    }
}

fn hook(path: &Path, script: &str) {
    write(path, format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A line for the log that is beside the repository.
const SAYS: &str =
    "echo \"$(basename \"$0\") ${2-} $(git diff --cached --name-only | tr '\\n' ' ')$(cat new)\" >>../log";

fn adds(top: &Path) {
    write(&top.join("new"), "n\n");
}

#[tokio::test]
async fn the_hooks_of_a_commit_run_when_they_are_asked_to_and_see_the_commit() {
    let every = |_: &Sandbox, source: &Path| {
        for name in [
            "pre-commit",
            "prepare-commit-msg",
            "commit-msg",
            "post-commit",
            "pre-merge-commit",
        ] {
            hook(&source.join(".git/hooks").join(name), SAYS);
        }
    };
    let story = Story::new(every, adds).await;
    assert!(matches!(story.merge(true).await, Ok(Merged::Committed(_))));
    let expected = "pre-commit  new n\nprepare-commit-msg merge new n\ncommit-msg  new n\npost-commit  n\n";
    assert_eq!(story.log(), expected);
    assert_eq!(story.git(&["status", "--porcelain"]), "");

    let story = Story::new(every, adds).await;
    let repository = UserRepo::discover(&story.source).await.unwrap();
    let names: Vec<_> = Hooks::find(&repository)
        .await
        .unwrap()
        .of_commit()
        .iter()
        .map(|it| it.name())
        .collect();
    assert_eq!(names, ["pre-commit", "prepare-commit-msg", "commit-msg", "post-commit"]);
    assert!(matches!(story.merge(false).await, Ok(Merged::Committed(_))));
    assert_eq!(story.log(), "", "nobody asked for them");
}

#[tokio::test]
async fn a_hook_that_fails_stops_the_landing_and_nothing_is_changed() {
    for name in ["pre-commit", "prepare-commit-msg", "commit-msg"] {
        let fails = |_: &Sandbox, source: &Path| {
            hook(
                &source.join(".git/hooks").join(name),
                "[ -e new ] || exit 0; echo spoilt >new; exit 3",
            );
        };
        let story = Story::new(fails, |top| {
            adds(top);
            write(&top.join("text"), "changed\n");
        })
        .await;
        write(&story.source.join("mine"), "m\n");
        story.git(&["add", "mine"]);
        let rest = || {
            let mut all = fingerprint(&story.source);
            all.retain(|(path, _, _)| !path.starts_with(story.source.join(".git/objects")));
            all
        };
        let before = rest();
        let refused = story.merge(true).await;
        let Err(LandingError::HookFailed { hook, exit }) = refused else {
            panic!("{name}: {refused:?}");
        };
        assert_eq!((hook.name(), exit.as_str()), (name, "exit status: 3"));
        assert_eq!(rest(), before, "{name}");
        assert!(
            matches!(story.merge(false).await, Ok(Merged::Committed(_))),
            "without hooks it lands"
        );
    }
    // This one is told when it is too late.
    let fails = |_: &Sandbox, source: &Path| hook(&source.join(".git/hooks/post-commit"), "exit 1");
    let story = Story::new(fails, adds).await;
    assert!(matches!(story.merge(true).await, Ok(Merged::Committed(_))));
}

/// Tree, message and status are those of `git commit` with the same hooks.
#[tokio::test]
async fn what_hooks_change_is_committed_as_git_commits_it() {
    let scripts = [
        // A formatter that stages what it changes, one that does not, and one that adds a file.
        ("pre-commit", "echo tidy >>new; git add new"),
        ("pre-commit", "echo tidy >>new"),
        ("pre-commit", "echo made >made; git add made"),
        ("prepare-commit-msg", "echo \"Ticket: $2\" >>\"$1\""),
        ("commit-msg", "printf 'another subject  \\n\\n\\n\\nbody\\n' >\"$1\""),
    ];
    for (name, script) in scripts {
        let sets = |_: &Sandbox, source: &Path| hook(&source.join(".git/hooks").join(name), script);
        let story = Story::new(sets, adds).await;
        // As one commit on HEAD, so that git commit can make it too.
        story.git(&[
            "commit",
            "-q",
            "--no-verify",
            "--amend",
            "--allow-empty",
            "-m",
            "amended",
        ]);
        let oracle = story.sandbox.path("oracle");
        crate::sandbox::copy_folder(&story.source, &oracle);
        assert!(matches!(story.merge(true).await, Ok(Merged::Committed(_))));

        adds(&oracle);
        story.sandbox.git(&oracle, &["add", "new"]);
        let asked = "Change it\n\n  created new\n\nAsked for:\n";
        story
            .sandbox
            .git_with_input(&oracle, &["commit", "-q", "-F", "-"], asked.as_bytes());
        for question in [&["log", "-1", "--format=%T%n%B"][..], &["status", "--porcelain"]] {
            assert_eq!(
                story.git(question),
                story.sandbox.git(&oracle, question),
                "{name}: {script}"
            );
        }
    }
    let empties = |_: &Sandbox, source: &Path| hook(&source.join(".git/hooks/commit-msg"), ": >\"$1\"");
    let story = Story::new(empties, adds).await;
    let head = story.sandbox.head(&story.source);
    assert!(matches!(story.merge(true).await, Err(LandingError::NoMessage)));
    assert_eq!(
        (story.sandbox.head(&story.source), story.source.join("new").exists()),
        (head, false)
    );
}

/// Where the hooks are files of the project, the result's version of them never runs.
#[tokio::test]
async fn hooks_of_the_project_run_as_head_has_them() {
    type Setup = fn(&Sandbox, &Path);
    let cases: &[(&str, Setup, &str)] = &[
        (
            "in a folder of the project",
            |sandbox, source| {
                sandbox.git(source, &["config", "core.hooksPath", ".hooks"]);
                for name in ["pre-commit", "commit-msg", "post-commit"] {
                    hook(&source.join(".hooks").join(name), ". .hooks/said");
                }
                write(&source.join(".hooks/said"), "echo head >>../log\n");
            },
            ".hooks",
        ),
        (
            "beside stubs that git ignores",
            |sandbox, source| {
                sandbox.git(source, &["config", "core.hooksPath", ".husky/_"]);
                write(&source.join(".gitignore"), "_\n");
                for name in ["pre-commit", "commit-msg", "post-commit"] {
                    hook(
                        &source.join(".husky/_").join(name),
                        "sh -e \"$(dirname \"$(dirname \"$0\")\")/$(basename \"$0\")\"",
                    );
                    write(&source.join(".husky").join(name), "echo head >>../log\n");
                }
                write(&source.join(".husky/said"), "");
            },
            ".husky",
        ),
        (
            "behind links",
            |_, source| {
                for name in ["pre-commit", "commit-msg", "post-commit"] {
                    hook(&source.join("tools").join(name), "echo head >>../log");
                    std::os::unix::fs::symlink(
                        Path::new("../../tools").join(name),
                        source.join(".git/hooks").join(name),
                    )
                    .unwrap();
                }
            },
            "tools",
        ),
    ];
    for (name, setup, folder) in cases {
        let story = Story::new(setup, |top| {
            adds(top);
            for entry in fs::read_dir(top.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    hook(&path, "echo result >>../log; exit 1");
                }
            }
            // One that was not there.
            hook(
                &top.join(folder).join("prepare-commit-msg"),
                "echo result >>../log; exit 1",
            );
        })
        .await;
        let merged = story.merge(true).await;
        assert!(matches!(merged, Ok(Merged::Committed(_))), "{name}: {merged:?}");
        assert_eq!(story.log(), "head\n".repeat(3), "{name}");
        // And then they are as the result has them.
        assert_eq!(story.git(&["status", "--porcelain"]), "", "{name}");
        let there = fs::read_to_string(story.source.join(folder).join("pre-commit")).unwrap();
        assert!(there.contains("echo result"), "{name}");

        // The result in the working tree, by apply or by hand, is not HEAD.
        story.git(&["reset", "-q", "--hard", "HEAD^"]);
        fs::remove_file(story.sandbox.path("log")).unwrap();
        let repository = UserRepo::discover(&story.source).await.unwrap();
        let plan = plan_apply(&repository, &story.mirror, &story.base, &story.result).await;
        plan.unwrap().execute().await.unwrap();
        let refused = story.merge(true).await;
        let Err(LandingError::HooksDiffer { paths }) = refused else {
            panic!("{name}: {refused:?}");
        };
        let expected = format!("{folder}/pre-commit");
        assert!(paths.iter().any(|it| it.path == expected), "{name}: {paths:?}");
        assert_eq!(story.log(), "", "{name}");
        assert!(matches!(story.merge(false).await, Ok(Merged::Committed(_))), "{name}");
    }
}

#[tokio::test]
async fn a_hook_that_is_not_there_is_no_hook() {
    let disabled = |_: &Sandbox, source: &Path| {
        write(&source.join(".git/hooks/pre-commit"), "#!/bin/sh\nexit 1\n");
        hook(&source.join(".git/hooks/commit-msg.sample"), "exit 1");
        hook(&source.join(".git/hooks/pre-push"), "exit 1");
    };
    let story = Story::new(disabled, adds).await;
    let repository = UserRepo::discover(&story.source).await.unwrap();
    let hooks = Hooks::find(&repository).await.unwrap();
    assert_eq!((hooks.of_commit(), hooks.has(Hook::PrePush)), (Vec::new(), true));
    assert!(matches!(story.merge(true).await, Ok(Merged::Committed(_))));
}
