//! Landing where nothing is checked out, in a working tree of its own, or only in part.

use std::fs;
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::landing::checkout::{CheckoutError, ResultCheckout, check_out};
use kage_git::landing::push::{default_branch, push, remotes};
use kage_git::landing::{
    Branch, HeldBy, LandedAs, LandingError, Merged, Onto, Strategy, plan_apply_of, plan_merge_into,
};
use kage_git::{Mirror, UserRepo, Worktree};

use crate::sandbox::{Sandbox, copy_folder, fingerprint, message, url, write};

const LINES: &str = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";

struct Story {
    sandbox: Sandbox,
    source: PathBuf,
    mirror: Mirror,
    base: Oid,
    result: Oid,
}

impl Story {
    /// A result of HEAD on `main`.
    async fn new(session: impl FnOnce(&Path)) -> Self {
        let sandbox = Sandbox::new();
        let files = [
            ("text", LINES),
            ("src/one", "1\n"),
            ("src/two", "2\n"),
            ("other", "o\n"),
        ];
        let source = sandbox.repository("source", &files);
        sandbox.git(&source, &["config", "user.name", "Ann"]);
        sandbox.git(&source, &["config", "user.email", "ann@example.com"]);
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

    fn git(&self, args: &[&str]) -> String {
        self.sandbox.git(&self.source, args)
    }

    async fn repository(&self) -> UserRepo {
        UserRepo::discover(&self.source).await.unwrap()
    }

    async fn plan(&self, onto: Onto, strategy: Strategy) -> Result<kage_git::landing::IntoPlan, LandingError> {
        let (base, result) = (&self.base, &self.result);
        let repository = self.repository().await;
        plan_merge_into(&repository, &self.mirror, base, result, strategy, &message(), &onto).await
    }

    async fn merge_into(&self, branch: &str, strategy: Strategy) -> Result<Merged, LandingError> {
        self.plan(existing(branch), strategy).await?.execute().await
    }

    /// Everything but objects, and but the branch with its log.
    fn rest(&self, branch: &str) -> Vec<(PathBuf, u32, Vec<u8>)> {
        let mut all = fingerprint(&self.source);
        let moves = |path: &Path| {
            let path = path.strip_prefix(self.source.join(".git")).unwrap_or(Path::new(""));
            path.starts_with("objects") || path.ends_with(Path::new("refs/heads").join(branch))
        };
        all.retain(|(path, _, _)| !moves(path));
        all
    }
}

fn existing(branch: &str) -> Onto {
    Onto {
        branch: Branch::parse(branch).unwrap(),
        start: None,
    }
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replace(from, to)).unwrap();
}

fn changes(top: &Path) {
    replace(&top.join("text"), "9\n", "nine\n");
    write(&top.join("new"), "n\n");
    fs::remove_file(top.join("other")).unwrap();
}

/// Tree and parents of a merge into a branch are those that `git merge` makes in a clone.
#[tokio::test]
async fn a_branch_gets_the_commit_that_git_merge_makes() {
    type Since = fn(&Story);
    let cases: &[(&str, Since, Strategy, &[&str])] = &[
        ("as the task began", |_| {}, Strategy::Auto, &[]),
        (
            "went on elsewhere",
            |story| {
                replace(&story.source.join("text"), "1\n", "one\n");
                write(&story.source.join("ahead"), "a\n");
                story.sandbox.commit(&story.source, "ahead");
            },
            Strategy::Auto,
            &[],
        ),
        (
            "renamed",
            |story| {
                story.git(&["mv", "text", "moved"]);
                story.sandbox.commit(&story.source, "renamed");
            },
            Strategy::Manual,
            &[],
        ),
        (
            "changed the same line",
            |story| {
                replace(&story.source.join("text"), "9\n", "NINE\n");
                story.sandbox.commit(&story.source, "mine");
            },
            Strategy::Theirs,
            &["-X", "theirs"],
        ),
    ];
    for (name, since, strategy, flags) in cases {
        let story = Story::new(changes).await;
        story.git(&["switch", "-q", "-c", "release"]);
        since(&story);
        story.git(&["switch", "-q", "main"]);
        // Uncommitted work does not matter, whatever it is.
        write(&story.source.join("text"), "mine\n");
        write(&story.source.join("new"), "untracked\n");
        story.git(&["add", "text"]);
        let tip = story.git(&["rev-parse", "release"]);
        let before = story.rest("release");
        let merged = story.merge_into("release", *strategy).await.unwrap();
        let Merged::Committed(commit) = merged else {
            panic!("{name}: {merged:?}");
        };
        assert_eq!(story.rest("release"), before, "{name}");
        assert_eq!(story.git(&["rev-parse", "release"]), commit.as_str());
        story.git(&["fsck", "--strict", "--no-dangling"]);

        let clone = story.sandbox.path("clone");
        let (from, to) = (url(&story.source), clone.to_str().unwrap().to_owned());
        story.sandbox.git(&story.source, &["clone", "-q", &from, &to]);
        story.sandbox.git(&clone, &["switch", "-q", "-c", "oracle", &tip]);
        let change = format!("{commit}^2");
        let mut arguments = vec!["merge", "-q", "--no-ff", "-m", "by git"];
        arguments.extend(*flags);
        arguments.push(&change);
        story.sandbox.git(&clone, &arguments);
        let made = |commit: &str| story.sandbox.git(&clone, &["log", "-1", "--format=%T %P", commit]);
        assert_eq!(made(commit.as_str()), made("oracle"), "{name}");
        // Once is enough.
        assert_eq!(
            story.merge_into("refs/heads/release", *strategy).await.unwrap(),
            Merged::AlreadyThere
        );
    }
}

#[tokio::test]
async fn a_conflict_is_refused_and_nothing_is_written() {
    let story = Story::new(changes).await;
    story.git(&["switch", "-q", "-c", "release"]);
    replace(&story.source.join("text"), "9\n", "NINE\n");
    story.sandbox.commit(&story.source, "mine");
    story.git(&["switch", "-q", "main"]);
    let before = fingerprint(&story.source);
    for strategy in [Strategy::Auto, Strategy::Manual] {
        let refused = story.merge_into("release", strategy).await;
        let Err(LandingError::Conflicts { conflicts }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(conflicts[0].path, "text");
    }
    assert_eq!(fingerprint(&story.source), before);
}

#[tokio::test]
async fn a_branch_is_made_with_one_commit_where_it_is_to_begin() {
    let story = Story::new(changes).await;
    write(&story.source.join("ahead"), "a\n");
    story.sandbox.commit(&story.source, "ahead");
    let before = story.rest("kage/it");
    let onto = |start: &Oid| Onto {
        branch: Branch::parse("kage/it").unwrap(),
        start: Some(start.clone()),
    };
    let plan = story.plan(onto(&story.base), Strategy::Auto).await.unwrap();
    let late = story.plan(onto(&story.base), Strategy::Auto).await.unwrap();
    assert_eq!(plan.tip(), None);
    assert!(matches!(plan.execute().await, Ok(Merged::Committed(_))));
    let made = story.git(&["log", "--format=%T %P %s", "-1", "kage/it"]);
    let tree = story.sandbox.git(
        story.mirror.path(),
        &["log", "-1", "--format=%T", story.result.as_str()],
    );
    assert_eq!(made, format!("{tree} {} Change it", story.base));
    let mut after = story.rest("kage/it");
    after.retain(|(path, _, _)| !path.ends_with("kage"));
    assert_eq!(after, before);

    let refused = late.execute().await;
    assert!(
        matches!(refused, Err(LandingError::ChangedMeanwhile { .. })),
        "{refused:?}"
    );
    let refused = story.merge_into("kage/i", Strategy::Auto).await;
    let Err(LandingError::NoBranch { branch, others }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(
        (branch.as_str(), others),
        ("kage/i", vec!["kage/it".to_owned(), "main".to_owned()])
    );
}

#[tokio::test]
async fn a_branch_that_files_belong_to_is_left_alone() {
    type Setup = fn(&Story);
    let cases: &[(Setup, HeldBy, &str)] = &[
        (
            |story| drop(story.git(&["switch", "-q", "-c", "x"])),
            HeldBy::CheckedOut,
            "source",
        ),
        (
            |story| drop(story.git(&["worktree", "add", "-q", "-b", "x", "../other"])),
            HeldBy::CheckedOut,
            "other",
        ),
        (
            |story| {
                story.git(&["worktree", "add", "-q", "-b", "x", "../other"]);
                fs::remove_dir_all(story.sandbox.path("other")).unwrap();
            },
            HeldBy::Gone,
            "other",
        ),
        (
            |story| {
                story.git(&["worktree", "add", "-q", "-b", "x", "../other"]);
                let other = story.sandbox.path("other");
                write(&other.join("text"), "a\n");
                story.sandbox.commit(&other, "a");
                write(&story.source.join("text"), "b\n");
                story.sandbox.commit(&story.source, "b");
                assert!(story.sandbox.try_git(&other, &["rebase", "-q", "main"]).is_err());
            },
            HeldBy::Rebase,
            "other",
        ),
        (
            |story| {
                story.git(&["switch", "-q", "-c", "x"]);
                story.sandbox.commit(&story.source, "more");
                story.sandbox.commit(&story.source, "and more");
                story.git(&["bisect", "start", "HEAD", "HEAD~2"]);
            },
            HeldBy::Bisect,
            "source",
        ),
        (
            |story| {
                story.git(&["branch", "real"]);
                story.git(&["symbolic-ref", "refs/heads/x", "refs/heads/real"]);
                story.git(&["switch", "-q", "real"]);
            },
            HeldBy::CheckedOut,
            "source",
        ),
    ];
    for (setup, by, place) in cases {
        let story = Story::new(changes).await;
        setup(&story);
        let before = fingerprint(&story.source);
        let refused = story.merge_into("x", Strategy::Auto).await;
        let Err(LandingError::Held { held, .. }) = refused else {
            panic!("{by:?}: {refused:?}");
        };
        assert_eq!((held.by, held.at), (*by, story.sandbox.path(place)));
        assert_eq!(fingerprint(&story.source), before);
    }
    // Checked out after the plan.
    let story = Story::new(changes).await;
    story.git(&["branch", "x"]);
    let plan = story.plan(existing("x"), Strategy::Auto).await.unwrap();
    story.git(&["switch", "-q", "x"]);
    let refused = plan.execute().await;
    assert!(matches!(refused, Err(LandingError::Held { .. })), "{refused:?}");
    assert_eq!(story.git(&["rev-parse", "x"]), story.base.as_str());
}

#[tokio::test]
async fn only_the_wanted_paths_are_applied_and_git_agrees() {
    let session = |top: &Path| {
        changes(top);
        write(&top.join("src/one"), "one\n");
        write(&top.join("src/deep/three"), "3\n");
        fs::remove_file(top.join("src/two")).unwrap();
    };
    for only in [
        &["src"][..],
        &["src/deep", "text"],
        &["src/two", "other"],
        &["sr", "new"],
    ] {
        let story = Story::new(session).await;
        replace(&story.source.join("text"), "1\n", "one\n");
        let oracle = story.sandbox.path("oracle");
        copy_folder(&story.source, &oracle);
        let paths: Vec<PathBuf> = only.iter().map(PathBuf::from).collect();
        let repository = story.repository().await;
        let plan = plan_apply_of(&repository, &story.mirror, &story.base, &story.result, &paths).await;
        plan.unwrap().execute().await.unwrap();
        let mirror = story.mirror.path();
        let mut diff = vec!["diff", "--binary", story.base.as_str(), story.result.as_str(), "--"];
        diff.extend(only);
        let patch = story.sandbox.git_with_input(mirror, &diff, b"");
        story.sandbox.git_with_input(&oracle, &["apply"], &patch);
        let files = |top: &Path| {
            let all = fingerprint(top)
                .into_iter()
                .map(|(path, mode, content)| (path.strip_prefix(top).unwrap().to_owned(), mode, content));
            all.filter(|(path, _, _)| !path.starts_with(".git")).collect::<Vec<_>>()
        };
        assert_eq!(files(&story.source), files(&oracle), "{only:?}");
    }
}

#[tokio::test]
async fn a_change_that_was_applied_is_taken_out_again_by_the_way_back() {
    let story = Story::new(changes).await;
    replace(&story.source.join("text"), "1\n", "one\n");
    let before = fingerprint(&story.source);
    let repository = story.repository().await;
    let (base, result) = (&story.base, &story.result);
    for (from, to) in [(base, result), (result, base)] {
        let plan = plan_apply_of(&repository, &story.mirror, from, to, &[]).await.unwrap();
        let there = plan.paths().iter().any(|it| it.landed_as == LandedAs::Unchanged);
        assert!(!there);
        plan.execute().await.unwrap();
    }
    let names = |all: &[(PathBuf, u32, Vec<u8>)]| all.to_vec();
    assert_eq!(names(&fingerprint(&story.source)), names(&before));
}

#[tokio::test]
async fn a_result_gets_a_working_tree_of_its_own() {
    let story = Story::new(changes).await;
    let hook = story.source.join(".git/hooks/post-checkout");
    write(&hook, "#!/bin/sh\ntouch ran\n");
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    write(&story.source.join("text"), "mine\n");
    let refs = story.git(&["show-ref", "--head"]);
    let folder = story.sandbox.path("to try");
    let repository = story.repository().await;
    let asked = |folder: &'static str| (story.sandbox.path(folder), &story);
    let check_out_at = async |folder: &Path| {
        let asked = ResultCheckout {
            mirror: &story.mirror,
            result: &story.result,
            head: &story.base,
            folder,
        };
        check_out(&repository, &asked).await
    };
    let made = check_out_at(&folder).await.unwrap();
    assert_eq!(made.as_stored, 0);
    let status = story.sandbox.git(
        &folder,
        &["status", "--porcelain=v2", "--branch", "--untracked-files=all"],
    );
    assert!(status.contains(&format!("branch.oid {}", story.base)), "{status}");
    assert!(status.contains("branch.head (detached)"), "{status}");
    let changed: Vec<&str> = status
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit(' ').next().unwrap())
        .collect();
    assert_eq!(changed, ["other", "text", "new"]);
    // Exactly the files of the result.
    story.sandbox.git(&folder, &["add", "-A"]);
    let tree = story.sandbox.git(
        story.mirror.path(),
        &["log", "-1", "--format=%T", story.result.as_str()],
    );
    assert_eq!(story.sandbox.git(&folder, &["write-tree"]), tree);
    assert_eq!(story.git(&["show-ref", "--head"]), refs);
    assert_eq!(fs::read_to_string(story.source.join("text")).unwrap(), "mine\n");
    assert!(!folder.join("ran").exists() && !story.source.join("ran").exists());

    let taken = check_out_at(&folder).await;
    assert!(matches!(taken, Err(CheckoutError::Taken { .. })), "{taken:?}");
    let (inside, _) = asked("source/inside");
    let refused = check_out_at(&inside).await;
    assert!(matches!(refused, Err(CheckoutError::Inside { .. })), "{refused:?}");
    write(&story.source.join(".gitignore"), "/inside\n");
    check_out_at(&inside).await.unwrap();
    for folder in [&inside, &folder] {
        story.git(&["worktree", "remove", "--force", folder.to_str().unwrap()]);
        assert!(!folder.exists());
    }
    fs::remove_file(story.source.join(".gitignore")).unwrap();
    assert_eq!(
        story
            .git(&["worktree", "list", "--porcelain"])
            .matches("worktree ")
            .count(),
        1
    );
}

#[tokio::test]
async fn a_branch_goes_where_git_push_would_send_it() {
    let story = Story::new(changes).await;
    let repository = story.repository().await;
    let branch = Branch::parse("x").unwrap();
    assert_eq!(remotes(&repository, &branch).await.unwrap(), (None, None));
    for name in ["origin", "mine", "upstream"] {
        let bare = story.sandbox.path(name);
        story.sandbox.git(
            &story.source,
            &["init", "-q", "--bare", "-b", "main", bare.to_str().unwrap()],
        );
        story.git(&["remote", "add", name, bare.to_str().unwrap()]);
    }
    let chosen = async || {
        let (push, upstream) = remotes(&repository, &branch).await.unwrap();
        (push.unwrap().name, upstream.map(|it| it.name))
    };
    assert_eq!(chosen().await, ("origin".to_owned(), Some("upstream".to_owned())));
    story.git(&["config", "branch.x.remote", "upstream"]);
    assert_eq!(chosen().await, ("upstream".to_owned(), None));
    story.git(&["config", "remote.pushDefault", "mine"]);
    assert_eq!(chosen().await.0, "mine");

    story.git(&["branch", "x"]);
    let hook = story.source.join(".git/hooks/pre-push");
    write(&hook, "#!/bin/sh\nexit 1\n");
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let remote = remotes(&repository, &branch).await.unwrap().0.unwrap();
    assert!(
        push(&repository, &remote, &branch, true, true).await.is_err(),
        "the hook was asked"
    );
    push(&repository, &remote, &branch, true, false).await.unwrap();
    assert_eq!(
        story.sandbox.git(&story.sandbox.path("mine"), &["rev-parse", "x"]),
        story.base.as_str()
    );
    assert_eq!(story.git(&["config", "branch.x.remote"]), "mine");
    story.git(&["push", "-q", "--no-verify", "mine", "main:trunk", "main"]);
    assert_eq!(
        default_branch(&repository, &remote).await.unwrap().unwrap().name,
        "main"
    );
    story.git(&["symbolic-ref", "refs/remotes/mine/HEAD", "refs/remotes/mine/trunk"]);
    let first = default_branch(&repository, &remote).await.unwrap().unwrap();
    assert_eq!((first.name.as_str(), &first.tip), ("trunk", &story.base));
}
