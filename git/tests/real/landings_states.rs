//! Changes of a person between a task's start and its landing, as tables: what enters the history,
//! what does not, and what is refused with which message.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::landing::{LandedAs, LandingError, Merged, ObstacleKind, Strategy, plan_apply, plan_merge};
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::{Auth, Mirror, UserRepo, Worktree};

use crate::sandbox::{Sandbox, fingerprint, message, url, write};

mod folders;
mod person;
mod sparse;
mod submodules;

const LINES: &str = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n";

/// Changes of a session in its worktree, or of a person in theirs.
type Session = fn(&Path);

/// Changes of a person after the task began.
type Since = fn(&Story);

/// A person's repository, with a task that began with uncommitted work.
struct Story {
    sandbox: Sandbox,
    source: PathBuf,
    mirror: Mirror,
    base: Oid,
    result: Oid,
}

impl Story {
    async fn new(before: fn(&Sandbox, &Path), session: fn(&Path)) -> Self {
        let sandbox = Sandbox::new();
        let files = [
            ("text", LINES),
            ("other", "o\n"),
            ("gone", "g\n"),
            ("folder/file", LINES),
        ];
        let source = sandbox.repository("source", &files);
        for (key, value) in [("user.name", "Ann"), ("user.email", "ann@example.com")] {
            sandbox.git(&source, &["config", key, value]);
        }
        before(&sandbox, &source);
        let repository = UserRepo::discover(&source).await.unwrap();
        let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await.unwrap();
        let mirror = Mirror::open_or_init(sandbox.path("m.git")).await.unwrap();
        snapshot
            .push(&url(mirror.path()), &Auth::None, Receiver::New)
            .await
            .unwrap();
        let base = snapshot.base.clone();
        let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
        session(worktree.path());
        let result = worktree.commit_result("result\n").await.unwrap();
        let result = result.map_or_else(|| base.clone(), |it| it.commit);
        Self {
            sandbox,
            source,
            mirror,
            base,
            result,
        }
    }

    async fn merge_in(&self, folder: &Path, strategy: Strategy) -> Result<Merged, LandingError> {
        let repository = UserRepo::discover(folder).await.unwrap();
        let (base, result) = (&self.base, &self.result);
        let plan = plan_merge(&repository, &self.mirror, base, result, strategy, &message()).await?;
        plan.execute().await
    }

    async fn merge(&self, strategy: Strategy) -> Result<Merged, LandingError> {
        self.merge_in(&self.source, strategy).await
    }

    async fn apply(&self) -> Result<Vec<(String, LandedAs)>, LandingError> {
        let repository = UserRepo::discover(&self.source).await.unwrap();
        let plan = plan_apply(&repository, &self.mirror, &self.base, &self.result).await?;
        let paths = plan.paths().iter().map(|it| (it.shown(), it.landed_as)).collect();
        plan.execute().await?;
        Ok(paths)
    }

    fn git(&self, args: &[&str]) -> String {
        self.sandbox.git(&self.source, args)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.source.join(path)).unwrap()
    }

    fn show(&self, path: &str) -> String {
        self.git(&["show", &format!("HEAD:{path}")]) + "\n"
    }

    /// Every object that a reference leads to.
    fn reachable(&self) -> String {
        self.git(&["rev-list", "--objects", "--all"])
    }

    fn packed(&self) -> String {
        let folder = self.source.join(".git/objects/pack");
        let mut text = String::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|it| it == "idx") {
                text += &self.git(&["verify-pack", "-v", path.to_str().unwrap()]);
            }
        }
        text
    }

    /// That neither the task's commits nor this content came in.
    fn keeps_out(&self, name: &str, private: &[&str]) {
        let (reachable, packed) = (self.reachable(), self.packed());
        let mut wanted = vec![self.base.to_string(), self.result.to_string()];
        for content in private {
            let id = self
                .sandbox
                .git_with_input(&self.source, &["hash-object", "--stdin"], content.as_bytes());
            wanted.push(String::from_utf8(id).unwrap().trim().to_owned());
        }
        for id in wanted {
            assert!(!reachable.contains(&id), "{name}: {id} is in the history");
            assert!(!packed.contains(&id), "{name}: {id} was sent");
        }
        self.git(&["fsck", "--strict"]);
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

const HALF_DONE: &str = "half done\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n";
const PRIVATE: &str = "call the lawyer\n";

/// One unfinished tracked file, and one private file.
fn unfinished(_: &Sandbox, top: &Path) {
    write(&top.join("text"), HALF_DONE);
    write(&top.join("notes"), PRIVATE);
}

fn adds(top: &Path) {
    write(&top.join("new"), "n\n");
}

#[tokio::test]
async fn uncommitted_work_never_comes_into_the_history_whatever_became_of_it() {
    let states: &[(&str, Since, &str)] = &[
        ("it is still there", |_| {}, "text notes"),
        ("stashed", |story| drop(story.git(&["stash", "push", "-q", "-u"])), ""),
        (
            "changed further",
            |story| {
                edit(&story.source.join("text"), "2\n", "more\n");
                write(&story.source.join("notes"), "call nobody\n");
            },
            "text notes",
        ),
        ("staged", |story| drop(story.git(&["add", "text"])), "text notes"),
        (
            "reset",
            |story| {
                story.git(&["reset", "-q", "--hard"]);
                fs::remove_file(story.source.join("notes")).unwrap();
            },
            "",
        ),
        (
            "on another branch",
            |story| {
                story.git(&["stash", "push", "-q", "-u"]);
                story.git(&["switch", "-q", "--orphan", "other"]);
                write(&story.source.join("text"), LINES);
                story.sandbox.commit(&story.source, "from nothing");
            },
            "",
        ),
    ];
    for (name, since, left) in states {
        let story = Story::new(unfinished, adds).await;
        since(&story);
        let head = story.sandbox.head(&story.source);
        let (index, status) = (story.git(&["diff", "--cached"]), story.git(&["status", "--porcelain"]));
        let merged = story.merge(Strategy::Auto).await;
        let Ok(Merged::Committed(commit)) = merged else {
            panic!("{name}: {merged:?}");
        };
        let said = story.git(&["log", "-1", "--format=%H|%P|%an|%s"]);
        assert_eq!(said, format!("{commit}|{head}|Ann|Change it"), "{name}");
        assert_eq!(
            story.git(&["diff", "--name-only", "HEAD^"]).lines().count(),
            1 + left.split(' ').filter(|it| *it == "text").count(),
            "{name}"
        );
        assert_eq!(story.show("new"), "n\n", "{name}");
        assert_eq!(story.git(&["diff", "--cached"]), index, "{name}");
        assert_eq!(story.git(&["status", "--porcelain"]), status, "{name}");
        if story.git(&["stash", "list"]).is_empty() {
            story.keeps_out(name, &[HALF_DONE, PRIVATE]);
        } else if *name == "stashed" {
            assert!(!story.packed().contains(story.base.as_str()), "{name}");
            story.git(&["stash", "pop", "-q"]);
            assert_eq!(
                (story.read("text"), story.read("notes")),
                (HALF_DONE.to_owned(), PRIVATE.to_owned())
            );
        }
        assert_eq!(
            story.merge(Strategy::Auto).await.unwrap(),
            Merged::AlreadyThere,
            "{name}"
        );
        assert_eq!(story.sandbox.head(&story.source), commit, "{name}");
    }
}

#[tokio::test]
async fn what_the_person_committed_meanwhile_is_merged_with() {
    let story = Story::new(unfinished, |top| {
        edit(&top.join("text"), "12\n", "twelve\n");
        write(&top.join("new"), "n\n");
    })
    .await;
    story.git(&["add", "text"]);
    story.git(&["commit", "-qm", "done after all"]);
    let head = story.sandbox.head(&story.source);
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    assert_eq!(story.git(&["log", "-1", "--format=%P"]), head.as_str());
    assert_eq!(story.show("text"), HALF_DONE.replace("12\n", "twelve\n"));
    story.keeps_out("committed", &[PRIVATE]);
}

#[tokio::test]
async fn a_path_that_is_half_done_is_named_and_fits_back_on_top() {
    let story = Story::new(unfinished, |top| edit(&top.join("text"), "12\n", "twelve\n")).await;
    let before = fingerprint(&story.source);
    let Err(LandingError::Dirty { paths, fits_back }) = story.merge(Strategy::Auto).await else {
        panic!("it must refuse");
    };
    let named: Vec<_> = paths.iter().map(|it| (it.path.as_str(), it.reason, &it.kind)).collect();
    assert_eq!(named, [("text", "it has uncommitted changes", &ObstacleKind::Edited)]);
    assert_eq!(fingerprint(&story.source), before);
    assert!(fits_back);
    story.git(&["stash", "push", "-q", "--", "text"]);
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    assert_eq!(
        story.show("text"),
        LINES.replace("12\n", "twelve\n"),
        "without the half-done line"
    );
    story.git(&["stash", "pop", "-q"]);
    assert_eq!(story.read("text"), HALF_DONE.replace("12\n", "twelve\n"));

    // The same, where the result changed the half-done line.
    let story = Story::new(unfinished, |top| edit(&top.join("text"), "2\n", "two\n")).await;
    let refused = story.merge(Strategy::Auto).await;
    assert!(
        matches!(&refused, Err(LandingError::Conflicts { conflicts }) if conflicts[0].path == "text"),
        "{refused:?}"
    );
    // apply knows what the result was made from.
    story.apply().await.unwrap();
    assert_eq!(
        story.read("text"),
        HALF_DONE.replace("2\n", "two\n").replace("1two\n", "12\n")
    );
}

#[tokio::test]
async fn what_no_commit_has_is_not_brought_in_by_force() {
    let reason = "the result's side of it holds what the task began with and no commit of yours has";
    // A private file that the session changed, or renamed; a half-done line beside its change.
    let sessions: &[(&str, Session, &str)] = &[
        (
            "changed",
            |top| write(&top.join("notes"), "call the lawyer\nand the bank\n"),
            "notes",
        ),
        (
            "renamed",
            |top| fs::rename(top.join("notes"), top.join("renamed")).unwrap(),
            "renamed",
        ),
        ("beside", |top| edit(&top.join("text"), "\n2\n", "\ntwo\n"), "text"),
    ];
    for (name, session, path) in sessions {
        let story = Story::new(unfinished, *session).await;
        story.git(&["reset", "-q", "--hard"]);
        fs::remove_file(story.source.join("notes")).unwrap();
        let before = fingerprint(&story.source);
        let auto = story.merge(Strategy::Auto).await;
        assert!(
            matches!(&auto, Err(LandingError::Conflicts { conflicts }) if conflicts.iter().any(|it| it.path == *path)),
            "{name}: {auto:?}"
        );
        let Err(LandingError::Conflicts { conflicts }) = story.merge(Strategy::Theirs).await else {
            panic!("{name}: it must refuse");
        };
        let named: Vec<_> = conflicts.iter().map(|it| (it.path.as_str(), it.reason)).collect();
        assert_eq!(named, [(*path, reason)], "{name}");
        assert_eq!(fingerprint(&story.source), before, "{name}");

        let head = story.sandbox.head(&story.source);
        assert_eq!(
            story.merge(Strategy::Manual).await.unwrap(),
            Merged::LeftConflicts,
            "{name}"
        );
        assert!(!story.source.join(".git/MERGE_HEAD").exists(), "{name}");
        // The person decides against it.
        story.git(&["checkout", "-q", "HEAD", "--", "."]);
        story.git(&["rm", "-q", "-f", "--ignore-unmatch", "--", "notes", "renamed"]);
        write(&story.source.join("text"), "resolved\n");
        story.git(&["add", "text"]);
        story.git(&["commit", "-q", "--no-edit"]);
        assert_eq!(
            story.git(&["log", "-1", "--format=%P|%s"]),
            format!("{head}|Change it"),
            "{name}"
        );
        assert!(!story.reachable().contains(story.base.as_str()), "{name}");
        story.git(&["fsck", "--strict"]);
    }
}

#[tokio::test]
async fn what_was_amended_away_stays_away() {
    const SECRET: &str = "secretpassword\n";
    let histories: &[(&str, Since)] = &[
        ("amended", |story| {
            story.git(&["rm", "-q", "secret"]);
            story.git(&["commit", "-q", "--amend", "--allow-empty", "-m", "without"]);
        }),
        ("rebased", |story| {
            story.git(&["reset", "-q", "--hard", "HEAD^"]);
            write(&story.source.join("mine"), "m\n");
            story.sandbox.commit(&story.source, "mine");
        }),
        ("squashed", |story| {
            story.git(&["rm", "-q", "secret"]);
            write(&story.source.join("mine"), "m\n");
            story.git(&["add", "mine"]);
            story.git(&["commit", "-q", "-m", "next"]);
            story.git(&["reset", "-q", "--soft", "HEAD~2"]);
            story.git(&["commit", "-q", "-m", "one for two"]);
        }),
    ];
    for (name, history) in histories {
        let story = Story::new(
            |sandbox, top| {
                write(&top.join("secret"), SECRET);
                sandbox.commit(top, "with a password");
            },
            |top| {
                adds(top);
                fs::rename(top.join("folder/file"), top.join("renamed")).unwrap();
            },
        )
        .await;
        history(&story);
        edit(&story.source.join("folder/file"), "2\n", "TWO\n");
        story.git(&["commit", "-qam", "edited"]);
        let head = story.sandbox.head(&story.source);
        assert!(
            matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))),
            "{name}"
        );
        assert_eq!(story.git(&["log", "-1", "--format=%P"]), head.as_str(), "{name}");
        assert_eq!(
            story.show("renamed"),
            LINES.replacen("2\n", "TWO\n", 1),
            "{name}: a rename is followed"
        );
        assert!(!story.source.join("secret").exists(), "{name}");
        story.keeps_out(name, &[SECRET]);
    }
}

#[tokio::test]
async fn the_session_made_many_commits_and_none_comes_along() {
    let story = Story::new(|_, _| {}, adds).await;
    write(&story.source.join("mine"), "m\n");
    let head = story.sandbox.commit(&story.source, "ahead");
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    let log = story.git(&["log", "--format=%s|%an", &format!("{}..HEAD", story.base)]);
    let mut log: Vec<_> = log.lines().collect();
    log.sort_unstable();
    assert_eq!(log, ["Change it|Ann", "Merge it|Ann", "ahead|Ann"]);
    assert_eq!(story.git(&["rev-parse", "HEAD^1"]), head.as_str());
    assert_eq!(story.git(&["rev-parse", "HEAD^2^"]), story.base.as_str());
    assert!(!story.reachable().contains(story.result.as_str()));
    let body = story.git(&["log", "-1", "--format=%b"]);
    assert_eq!(body, "  created new\n\nAsked for:");
}

#[tokio::test]
async fn landed_again_it_is_there_and_undone_it_comes_back() {
    let story = Story::new(|_, _| {}, adds).await;
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    for strategy in [Strategy::Auto, Strategy::Theirs, Strategy::Manual] {
        assert_eq!(story.merge(strategy).await.unwrap(), Merged::AlreadyThere);
    }
    story.git(&["revert", "--no-edit", "-m", "1", "HEAD"]);
    let head = story.sandbox.head(&story.source);
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    assert_eq!(story.git(&["log", "-1", "--format=%P|%s"]), format!("{head}|Change it"));

    // The person did the same by hand.
    let story = Story::new(|_, _| {}, adds).await;
    adds(&story.source);
    let head = story.sandbox.commit(&story.source, "by hand");
    assert_eq!(story.merge(Strategy::Auto).await.unwrap(), Merged::AlreadyThere);
    assert_eq!(story.sandbox.head(&story.source), head);

    // The result changes nothing.
    let story = Story::new(unfinished, |_| {}).await;
    assert_eq!(story.merge(Strategy::Auto).await.unwrap(), Merged::AlreadyThere);
    assert_eq!(story.apply().await.unwrap(), []);
}

#[tokio::test]
async fn applied_first_it_can_be_merged() {
    let story = Story::new(unfinished, |top| {
        adds(top);
        fs::remove_file(top.join("gone")).unwrap();
        fs::set_permissions(top.join("other"), fs::Permissions::from_mode(0o755)).unwrap();
    })
    .await;
    story.apply().await.unwrap();
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    assert_eq!(
        story.git(&["status", "--porcelain"]),
        "M text\n?? notes".replace("M text", " M text")
    );
    assert_eq!(story.read("new"), "n\n");
}

#[tokio::test]
async fn a_second_session_of_the_task_lands_on_top_of_the_first() {
    let story = Story::new(unfinished, |top| {
        edit(&top.join("folder/file"), "1\n", "one\n");
    })
    .await;
    let worktree = Worktree::create(&story.mirror, story.sandbox.path("w2"), &story.base)
        .await
        .unwrap();
    edit(&worktree.path().join("folder/file"), "12\n", "twelve\n");
    let second = worktree.commit_result("second\n").await.unwrap().unwrap().commit;
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    let story = Story {
        result: second,
        ..story
    };
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    let both = LINES.replacen("1\n", "one\n", 1).replace("12\n", "twelve\n");
    assert_eq!(
        (story.show("folder/file"), story.read("folder/file")),
        (both.clone(), both)
    );
    assert_eq!(story.git(&["rev-list", "--count", "HEAD"]), "3");
    story.keeps_out("both", &[HALF_DONE, PRIVATE]);
}

#[tokio::test]
async fn renames_are_followed_on_either_side_and_in_files_as_in_commits() {
    let session_renames: Session = |top| fs::rename(top.join("folder/file"), top.join("renamed")).unwrap();
    let person_edits: Session = |top| edit(&top.join("folder/file"), "2\n", "TWO\n");
    let session_edits: Session = |top| edit(&top.join("folder/file"), "2\n", "TWO\n");
    let merged = LINES.replacen("2\n", "TWO\n", 1);
    for (session, person) in [(session_renames, person_edits), (session_edits, session_renames)] {
        for commits in [false, true] {
            let story = Story::new(|_, _| {}, session).await;
            person(&story.source);
            if commits {
                story.sandbox.commit(&story.source, "mine");
                assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
                assert_eq!(story.git(&["status", "--porcelain"]), "");
            } else {
                let paths = story.apply().await.unwrap();
                assert!(paths.contains(&("renamed".to_owned(), LandedAs::Merged)), "{paths:?}");
            }
            assert_eq!(story.read("renamed"), merged);
            assert!(!story.source.join("folder/file").exists());
        }
    }
}

#[tokio::test]
async fn untracked_files_in_the_way_are_named_unless_they_are_the_same() {
    let story = Story::new(|_, _| {}, adds).await;
    write(&story.source.join("new"), "mine\n");
    let before = fingerprint(&story.source);
    let Err(LandingError::Dirty { paths, fits_back }) = story.merge(Strategy::Auto).await else {
        panic!("it must refuse");
    };
    let at = ObstacleKind::Untracked { at: "new".to_owned() };
    assert_eq!(
        (paths[0].reason, &paths[0].kind, fits_back),
        ("something untracked is there", &at, false)
    );
    let Err(LandingError::Conflicts { conflicts }) = story.apply().await else {
        panic!("it must refuse");
    };
    assert_eq!(
        (conflicts[0].reason, &conflicts[0].kind),
        ("you and the result added it with different content", &at)
    );
    assert_eq!(fingerprint(&story.source), before);

    write(&story.source.join("new"), "n\n");
    assert_eq!(story.apply().await.unwrap(), [("new".to_owned(), LandedAs::Unchanged)]);
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    assert_eq!(story.git(&["status", "--porcelain"]), "");

    // A folder, and a file where a folder is to be.
    let story = Story::new(|_, _| {}, |top| write(&top.join("new/deep"), "n\n")).await;
    write(&story.source.join("new"), "mine\n");
    for refused in [
        story.merge(Strategy::Auto).await.map(drop),
        story.apply().await.map(drop),
    ] {
        let paths = match refused {
            Err(LandingError::Dirty { paths, .. }) => paths,
            Err(LandingError::Conflicts { conflicts }) => conflicts,
            other => panic!("{other:?}"),
        };
        assert_eq!((paths[0].path.as_str(), &paths[0].kind), ("new/deep", &at));
    }
}

#[tokio::test]
async fn without_a_branch_or_a_commit_only_files_can_be_changed() {
    let story = Story::new(|_, _| {}, adds).await;
    story.git(&["checkout", "-q", "--detach"]);
    assert!(matches!(
        story.merge(Strategy::Auto).await,
        Err(LandingError::NotOnABranch)
    ));
    story.git(&["switch", "-q", "--orphan", "unborn"]);
    assert!(matches!(
        story.merge(Strategy::Auto).await,
        Err(LandingError::NoCommits)
    ));
    story.apply().await.unwrap();
    assert_eq!(story.read("new"), "n\n");
    for (file, operation) in [("BISECT_LOG", "bisect"), ("rebase-apply/applying", "am")] {
        write(&story.source.join(".git").join(file), "");
        let refused = story.merge(Strategy::Auto).await;
        assert!(
            matches!(&refused, Err(LandingError::InProgress { operation: found }) if *found == operation),
            "{refused:?}"
        );
        fs::remove_file(story.source.join(".git").join(file)).unwrap();
    }
}

#[tokio::test]
async fn it_lands_in_a_clone_that_is_cut_off_after_the_base() {
    let story = Story::new(|_, _| {}, adds).await;
    for number in ["1", "2"] {
        write(&story.source.join("other"), number);
        story.sandbox.commit(&story.source, number);
    }
    let shallow = story.sandbox.path("shallow");
    let from = url(&story.source);
    story.git(&["clone", "-q", "--depth", "1", &from, shallow.to_str().unwrap()]);
    let head = story.sandbox.head(&shallow);
    assert!(matches!(
        story.merge_in(&shallow, Strategy::Auto).await,
        Ok(Merged::Committed(_))
    ));
    let git = |args: &[&str]| story.sandbox.git(&shallow, args);
    assert_eq!(git(&["log", "-1", "--format=%P"]), head.as_str());
    assert_eq!(git(&["status", "--porcelain"]), "");
    git(&["fsck", "--strict"]);
}

#[tokio::test]
async fn what_git_takes_for_unchanged_is_read_all_the_same() {
    // The person told git to ignore changes of the file.
    let story = Story::new(|_, _| {}, |top| write(&top.join("other"), "changed\n")).await;
    story.git(&["update-index", "--assume-unchanged", "other"]);
    write(&story.source.join("other"), "mine\n");
    assert!(matches!(
        story.merge(Strategy::Auto).await,
        Err(LandingError::Dirty { .. })
    ));
    assert!(matches!(story.apply().await, Err(LandingError::Conflicts { .. })));
    assert_eq!(story.read("other"), "mine\n");

    // git converts no line endings of a file that was committed with them.
    let story = Story::new(
        |sandbox, top| {
            write(&top.join("crlf"), "1\r\n2\r\n3\r\n");
            sandbox.commit(top, "crlf");
            sandbox.git(top, &["config", "core.autocrlf", "input"]);
        },
        |top| write(&top.join("crlf"), "1\r\n2\r\nthree\r\n"),
    )
    .await;
    assert_eq!(story.git(&["status", "--porcelain"]), "");
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    assert_eq!(story.git(&["status", "--porcelain"]), "");
    assert_eq!(story.read("crlf").lines().last(), Some("three"));
}

#[tokio::test]
async fn kinds_of_entries_land_as_they_are_or_are_named() {
    let story = Story::new(unfinished, |top| {
        fs::set_permissions(top.join("other"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("text", top.join("link")).unwrap();
        fs::remove_file(top.join("gone")).unwrap();
        fs::remove_dir_all(top.join("folder")).unwrap();
        write(&top.join("folder"), "a file now\n");
    })
    .await;
    write(&story.source.join("elsewhere"), "staged\n");
    story.git(&["add", "elsewhere"]);
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    let listed = story.git(&["ls-tree", "-r", "HEAD", "--format=%(objectmode) %(path)"]);
    assert_eq!(listed, "100644 folder\n120000 link\n100755 other\n100644 text");
    assert_eq!(story.git(&["status", "--porcelain"]), "A  elsewhere\n M text\n?? notes");
    story.keeps_out("kinds", &[HALF_DONE, PRIVATE]);
}
