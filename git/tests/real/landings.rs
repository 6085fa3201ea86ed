//! Landing results: apply and merge.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kage_core::event::{ChangeKind, ResultCommit};
use kage_core::id::Oid;
use kage_git::landing::{LandedAs, LandingError, Merged, PlannedPath, Strategy, plan_apply, plan_merge};
use kage_git::{Mirror, UserRepo, Worktree, diff};

use crate::sandbox::{Sandbox, fingerprint, message, write};

const FILES: &[(&str, &str)] = &[
    ("text", "1\n2\n3\n4\n5\n6\n7\n8\n9\n"),
    ("gone", "g\n"),
    ("script", "#!/bin/sh\n"),
    ("other", "o\n"),
    ("folder/file", "f\n"),
];

/// A person's repository, and a result that a session made from its HEAD.
struct Story {
    sandbox: Sandbox,
    source: PathBuf,
    mirror: Mirror,
    base: Oid,
    result: ResultCommit,
}

impl Story {
    async fn new(session: impl FnOnce(&Path)) -> Self {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source", FILES);
        sandbox.git(&source, &["config", "user.name", "Ann"]);
        sandbox.git(&source, &["config", "user.email", "ann@example.com"]);
        let (mirror, base) = sandbox.mirror("m.git", &source).await;
        let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
        session(worktree.path());
        let result = worktree.commit_result("result\n").await.unwrap().unwrap();
        Self {
            sandbox,
            source,
            mirror,
            base,
            result,
        }
    }

    async fn plan(&self) -> Result<kage_git::landing::ApplyPlan, LandingError> {
        let repository = UserRepo::discover(&self.source).await.unwrap();
        plan_apply(&repository, &self.mirror, &self.base, &self.result.commit).await
    }

    async fn merge(&self, strategy: Strategy) -> Result<Merged, LandingError> {
        let repository = UserRepo::discover(&self.source).await.unwrap();
        let (base, result) = (&self.base, &self.result.commit);
        let plan = plan_merge(&repository, &self.mirror, base, result, strategy, &message()).await?;
        plan.execute().await
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.source.join(path)).unwrap()
    }

    fn git(&self, args: &[&str]) -> String {
        self.sandbox.git(&self.source, args)
    }

    /// The second parent of HEAD: the session's change on the base, and not its own commit.
    fn change(&self) -> String {
        let change = self.git(&["rev-parse", "HEAD^2"]);
        assert_ne!(change, self.result.commit.as_str());
        assert_eq!(self.git(&["log", "-1", "--format=%P", &change]), self.base.as_str());
        let tree = self.git(&["log", "-1", "--format=%T", &change]);
        assert_eq!(Some(tree), self.result.tree.as_ref().map(ToString::to_string));
        change
    }
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replace(from, to)).unwrap();
}

fn everything(top: &Path) {
    replace(&top.join("text"), "9\n", "nine\n");
    fs::remove_file(top.join("gone")).unwrap();
    fs::set_permissions(top.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    write(&top.join("new/deep"), "n\n");
    write(&top.join("binary"), b"\0\x01");
    symlink("text", top.join("link")).unwrap();
    fs::remove_dir_all(top.join("folder")).unwrap();
    write(&top.join("folder"), "a file now\n");
}

#[tokio::test]
async fn apply_merges_into_edited_files_and_touches_nothing_else() {
    let story = Story::new(everything).await;
    replace(&story.source.join("text"), "1\n", "one\n");
    write(&story.source.join("other"), "mine\n");
    write(&story.source.join("untracked"), "mine\n");
    let git_dir = fingerprint(&story.source.join(".git"));
    let before = fingerprint(&story.source);
    let plan = story.plan().await.unwrap();
    assert_eq!(fingerprint(&story.source), before, "a plan changes nothing");
    let paths: Vec<_> = plan
        .paths()
        .iter()
        .map(|it| (it.path.to_str().unwrap(), it.landed_as))
        .collect();
    let expected = [
        ("binary", LandedAs::Created),
        ("folder", LandedAs::Created),
        ("folder/file", LandedAs::Deleted),
        ("gone", LandedAs::Deleted),
        ("link", LandedAs::Created),
        ("new/deep", LandedAs::Created),
        ("script", LandedAs::Updated),
        ("text", LandedAs::Merged),
    ];
    assert_eq!(paths, expected);
    plan.execute().await.unwrap();

    assert_eq!(story.read("text"), "one\n2\n3\n4\n5\n6\n7\n8\nnine\n");
    assert_eq!(story.read("folder"), "a file now\n");
    assert_eq!(story.read("new/deep"), "n\n");
    assert_eq!(
        (story.read("other").as_str(), story.read("untracked").as_str()),
        ("mine\n", "mine\n")
    );
    assert!(!story.source.join("gone").exists());
    assert_eq!(fs::read_link(story.source.join("link")).unwrap(), Path::new("text"));
    assert_eq!(
        fs::metadata(story.source.join("script")).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert_eq!(fingerprint(&story.source.join(".git")), git_dir);

    let again = story.plan().await.unwrap();
    let merged: Vec<_> = again
        .paths()
        .iter()
        .filter(|it| it.landed_as != LandedAs::Unchanged)
        .collect();
    assert_eq!(merged, Vec::<&PlannedPath>::new(), "the text has both changes already");
}

#[tokio::test]
async fn apply_refuses_conflicts_and_changes_nothing() {
    let story = Story::new(everything).await;
    replace(&story.source.join("text"), "9\n", "NINE\n");
    write(&story.source.join("gone"), "edited\n");
    write(&story.source.join("binary"), b"\0other");
    let outside = story.sandbox.path("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, story.source.join("new")).unwrap();
    let before = fingerprint(&story.source);
    let Err(LandingError::Conflicts { conflicts }) = story.plan().await else {
        panic!("it must refuse");
    };
    let paths: Vec<_> = conflicts.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, ["binary", "gone", "new/deep", "text"]);
    assert_eq!(fingerprint(&story.source), before);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn apply_stops_when_a_file_changed_after_the_plan() {
    let story = Story::new(everything).await;
    let plan = story.plan().await.unwrap();
    write(&story.source.join("script"), "changed meanwhile\n");
    let before = fingerprint(&story.source);
    let refused = plan.execute().await;
    assert!(
        matches!(&refused, Err(LandingError::ChangedMeanwhile { path }) if path == "script"),
        "{refused:?}"
    );
    assert_eq!(fingerprint(&story.source), before);

    // An untracked file keeps its folder from becoming a file: everything is undone.
    let story = Story::new(everything).await;
    let plan = story.plan().await.unwrap();
    write(&story.source.join("folder/mine"), "mine\n");
    let before = fingerprint(&story.source);
    assert!(plan.execute().await.is_err());
    assert_eq!(fingerprint(&story.source), before);
    // The next plan knows it.
    let Err(LandingError::Conflicts { conflicts }) = story.plan().await else {
        panic!("it must refuse");
    };
    let shown: Vec<_> = conflicts.iter().map(|it| (it.path.as_str(), it.reason)).collect();
    assert_eq!(shown, [("folder/mine", "it is in a folder that becomes a file")]);
}

#[tokio::test]
async fn apply_writes_the_persons_line_endings() {
    let story = Story::new(|top| write(&top.join("text"), "new\nlines\n")).await;
    story.git(&["config", "core.autocrlf", "true"]);
    let crlf = story.read("text").replace('\n', "\r\n");
    write(&story.source.join("text"), crlf);
    story.plan().await.unwrap().execute().await.unwrap();
    assert_eq!(story.read("text"), "new\r\nlines\r\n");
}

#[tokio::test]
async fn a_clean_merge_is_a_commit_by_the_person() {
    let story = Story::new(everything).await;
    replace(&story.source.join("text"), "1\n", "one\n");
    let head = story.sandbox.commit(&story.source, "mine");
    write(&story.source.join("other"), "dirty but untouched\n");
    let Merged::Committed(commit) = story.merge(Strategy::Auto).await.unwrap() else {
        panic!("it is clean");
    };
    assert_eq!(story.sandbox.head(&story.source), commit);
    assert_eq!(story.git(&["symbolic-ref", "HEAD"]), "refs/heads/main");
    let expected = format!("{head} {}|Ann|Merge it", story.change());
    assert_eq!(story.git(&["log", "-1", "--format=%P|%an|%s"]), expected);
    assert_eq!(story.read("text"), "one\n2\n3\n4\n5\n6\n7\n8\nnine\n");
    assert_eq!(
        story.git(&["status", "--porcelain"]),
        "M other".to_owned().replace("M o", " M o")
    );
    story.git(&["fsck", "--strict"]);
    assert_eq!(story.merge(Strategy::Auto).await.unwrap(), Merged::AlreadyThere);
}

fn edits(top: &Path) {
    replace(&top.join("text"), "9\n", "nine\n");
    replace(&top.join("gone"), "g\n", "kept after all\n");
    write(&top.join("new"), "n\n");
}

async fn conflicting() -> Story {
    let story = Story::new(edits).await;
    replace(&story.source.join("text"), "9\n", "NINE\n");
    fs::remove_file(story.source.join("gone")).unwrap();
    story.sandbox.commit(&story.source, "mine");
    story
}

#[tokio::test]
async fn auto_refuses_a_conflict_and_theirs_takes_the_sessions_side() {
    let story = conflicting().await;
    let before = fingerprint(&story.source);
    let Err(LandingError::Conflicts { conflicts }) = story.merge(Strategy::Auto).await else {
        panic!("it must refuse");
    };
    let paths: Vec<_> = conflicts.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, ["gone", "text"]);
    assert_eq!(fingerprint(&story.source), before);

    assert!(matches!(
        story.merge(Strategy::Theirs).await.unwrap(),
        Merged::Committed(_)
    ));
    assert_eq!(story.read("text"), "1\n2\n3\n4\n5\n6\n7\n8\nnine\n");
    assert_eq!(story.read("gone"), "kept after all\n");
    assert_eq!(story.git(&["status", "--porcelain"]), "");
}

#[tokio::test]
async fn manual_leaves_the_conflict_to_the_person() {
    let story = conflicting().await;
    let head = story.sandbox.head(&story.source);
    assert_eq!(story.merge(Strategy::Manual).await.unwrap(), Merged::LeftConflicts);
    assert_eq!(story.sandbox.head(&story.source), head);
    let text = story.read("text");
    assert!(
        text.contains("<<<<<<< HEAD\nNINE\n=======\nnine\n>>>>>>> result\n"),
        "{text}"
    );
    assert_eq!(story.git(&["status", "--porcelain"]), "DU gone\nA  new\nUU text");
    let again = story.merge(Strategy::Manual).await;
    assert!(
        matches!(again, Err(LandingError::InProgress { operation: "merge" })),
        "{again:?}"
    );

    write(&story.source.join("text"), "resolved\n");
    story.git(&["add", "-A"]);
    story.git(&["commit", "-q", "--no-edit"]);
    let parents = story.git(&["log", "-1", "--format=%P"]);
    assert_eq!(parents, format!("{head} {}", story.change()));
    story.git(&["fsck", "--strict"]);
}

#[tokio::test]
async fn conflicts_that_cannot_be_left_leave_nothing_behind() {
    let story = conflicting().await;
    let objects = story.source.join(".git/objects");
    let look = || {
        let mut files = fingerprint(&story.source);
        files.retain(|(path, _, _)| !path.starts_with(&objects));
        files
    };
    // Where the last file that says that a merge is in progress is written first.
    let taken = story.source.join(".git/MERGE_HEAD.kage");
    fs::create_dir(&taken).unwrap();
    for message in [None, Some("of something else\n")] {
        if let Some(message) = message {
            write(&story.source.join(".git/MERGE_MSG"), message);
        }
        let before = look();
        assert!(story.merge(Strategy::Manual).await.is_err());
        assert_eq!(look(), before);
    }
    fs::remove_dir(&taken).unwrap();
    assert_eq!(story.merge(Strategy::Manual).await.unwrap(), Merged::LeftConflicts);
}

#[tokio::test]
async fn merge_refuses_dirty_paths_and_a_detached_head() {
    let story = Story::new(edits).await;
    replace(&story.source.join("text"), "1\n", "one\n");
    write(&story.source.join("new"), "mine\n");
    write(&story.source.join("gone"), "staged\n");
    story.git(&["add", "gone"]);
    let before = fingerprint(&story.source);
    let Err(LandingError::Dirty { paths, .. }) = story.merge(Strategy::Theirs).await else {
        panic!("it must refuse");
    };
    let shown: Vec<_> = paths.iter().map(|it| (it.path.as_str(), it.reason)).collect();
    let expected = [
        ("gone", "it has staged changes"),
        ("new", "something untracked is there"),
        ("text", "it has uncommitted changes"),
    ];
    assert_eq!(shown, expected);
    assert_eq!(fingerprint(&story.source), before);
    story.git(&["checkout", "-q", "--detach"]);
    let refused = story.merge(Strategy::Auto).await;
    assert!(matches!(refused, Err(LandingError::NotOnABranch)), "{refused:?}");
}

#[tokio::test]
async fn merge_takes_the_index_before_it_touches_a_file() {
    let story = Story::new(edits).await;
    let inode = || fs::metadata(story.source.join("text")).unwrap().ino();
    let before = (inode(), fingerprint(&story.source));
    // A `git add` that runs.
    let lock = story.source.join(".git/index.lock");
    write(&lock, "");
    assert!(story.merge(Strategy::Auto).await.is_err());
    fs::remove_file(&lock).unwrap();
    // Objects that nothing names may be there.
    let without_objects = |files: Vec<(PathBuf, u32, Vec<u8>)>| -> Vec<_> {
        let objects = story.source.join(".git/objects");
        files
            .into_iter()
            .filter(|(path, _, _)| !path.starts_with(&objects))
            .collect()
    };
    let after = (inode(), fingerprint(&story.source));
    assert_eq!(
        (after.0, without_objects(after.1)),
        (before.0, without_objects(before.1)),
        "not even written and put back"
    );
}

#[tokio::test]
async fn a_merge_that_fails_at_its_end_leaves_no_index_where_there_was_none() {
    let story = Story::new(|top| write(&top.join("new"), "n\n")).await;
    let index = story.source.join(".git/index");
    fs::remove_file(&index).unwrap();
    let lock = story.source.join(".git/refs/heads/main.lock");
    write(&lock, "");
    assert!(story.merge(Strategy::Auto).await.is_err());
    assert!(!index.exists() && !story.source.join(".git/index.lock").exists());
    assert!(!story.source.join("new").exists());
    fs::remove_file(&lock).unwrap();
    let merged = story.merge(Strategy::Auto).await.unwrap();
    assert!(matches!(merged, Merged::Committed(_)), "{merged:?}");
}

#[tokio::test]
async fn a_repository_with_a_split_index_is_whole_after_a_merge() {
    // So many new entries that git would begin a new shared half.
    let story = Story::new(|top| {
        for name in ["n1", "n2", "n3", "n4"] {
            write(&top.join(name), "n\n");
        }
    })
    .await;
    story.git(&["config", "core.splitIndex", "true"]);
    story.git(&["update-index", "--split-index"]);
    let merged = story.merge(Strategy::Auto).await.unwrap();
    assert!(matches!(merged, Merged::Committed(_)), "{merged:?}");
    assert_eq!(story.git(&["status", "--porcelain"]), "");
}

#[tokio::test]
async fn the_patch_is_one_that_git_applies() {
    let story = Story::new(everything).await;
    let difference = diff::between(story.mirror.path(), &story.base, &story.result.commit).unwrap();
    let described = difference.describe(story.result.commit.clone());
    // The author of a result's commit knows its tree, a comparison does not.
    let expected = ResultCommit {
        tree: None,
        ..story.result.clone()
    };
    assert_eq!(described, expected);
    let patch = diff::patch(story.mirror.path(), &story.base, &story.result.commit).unwrap();
    story
        .sandbox
        .git_with_input(&story.source, &["apply", "--index"], &patch);
    let tree = story.git(&["write-tree"]);
    let name = format!("{}^{{tree}}", story.result.commit);
    assert_eq!(tree, story.sandbox.git(story.mirror.path(), &["rev-parse", &name]));
}

#[tokio::test]
async fn a_file_that_becomes_a_link_is_one_change() {
    let story = Story::new(|top| {
        fs::remove_file(top.join("text")).unwrap();
        symlink("other", top.join("text")).unwrap();
    })
    .await;
    let difference = diff::between(story.mirror.path(), &story.base, &story.result.commit).unwrap();
    let files: Vec<_> = difference.files.iter().map(|it| (it.path.as_str(), it.kind)).collect();
    assert_eq!(files, [("text", ChangeKind::Modified)]);
    assert_eq!((difference.stat.files, difference.stat.removed), (1, 9));
    assert_eq!(story.result.deleted, Vec::<String>::new());
}
