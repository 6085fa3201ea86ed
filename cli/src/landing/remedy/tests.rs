//! Every command that a refusal names is run here, in a repository in that state.

use std::process::{Command, Stdio};

use clap::Parser as _;
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::{Auth, Mirror, Worktree};
use kage_proto::v1;
use tempfile::TempDir;

use super::*;
use crate::args;
use crate::landing::{land, message, plan_into, plan_merge};

mod elsewhere;

const TASK: &str = "0123456789abcdef0123456789abcdef";
const LINES: &str = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";

/// A person's repository and a result.
struct Story {
    folder: TempDir,
    root: PathBuf,
    repository: UserRepo,
    fetched: FetchedResult,
}

fn sh(root: &Path, script: &str) -> bool {
    let done = Command::new("sh")
        .args(["-c", script])
        .current_dir(root)
        .env("GIT_AUTHOR_NAME", "Ann")
        .env("GIT_AUTHOR_EMAIL", "ann@example.com")
        .env("GIT_COMMITTER_NAME", "Ann")
        .env("GIT_COMMITTER_EMAIL", "ann@example.com")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    if !done.status.success() {
        eprintln!("{script}: {}", String::from_utf8_lossy(&done.stderr));
    }
    done.status.success()
}

impl Story {
    /// `before` the task, in the `session`, and `since`: scripts.
    async fn new(before: &str, session: &str, since: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(folder.path()).unwrap();
        let root = top.join("it's mine");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("text"), LINES).unwrap();
        fs::write(root.join("a b"), LINES).unwrap();
        let start = "git init -q -b main && git config user.name Ann && git config user.email ann@example.com \
                     && git add -A && git commit -qm start";
        assert!(sh(&root, start) && sh(&root, before));
        let repository = UserRepo::discover(&root).await.unwrap();
        let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await.unwrap();
        let mirror = Mirror::open_or_init(top.join("m.git")).await.unwrap();
        let url = format!("file://{}", mirror.path().display());
        snapshot.push(&url, &Auth::None, Receiver::New).await.unwrap();
        let worktree = Worktree::create(&mirror, top.join("w"), &snapshot.base).await.unwrap();
        assert!(sh(worktree.path(), session));
        let result = worktree.commit_result("result\n").await.unwrap().unwrap();
        assert!(sh(&root, since));
        let session = v1::Session {
            name: "w-1".to_owned(),
            ..v1::Session::default()
        };
        let fetched = FetchedResult {
            mirror,
            base: snapshot.base.clone(),
            commit: result.commit,
            session,
            task: TASK.to_owned(),
            flags: vec!["--unverified"],
            merge_flags: Vec::new(),
            only: Vec::new(),
            is_undo: false,
        };
        // Settings are read when it is found, and `since` may have changed them.
        let repository = UserRepo::discover(&root).await.unwrap();
        Self {
            folder,
            root,
            repository,
            fetched,
        }
    }

    async fn ask(&self, asked: Asked<'_>) -> anyhow::Result<()> {
        let hooks = self.fetched.merge_flags.contains(&"--hooks");
        self.ask_in(&self.repository, asked, hooks).await
    }

    async fn ask_in(&self, repository: &UserRepo, asked: Asked<'_>, hooks: bool) -> anyhow::Result<()> {
        let message = message(&v1::Task::default(), &self.fetched);
        match asked {
            Asked::Apply => land(repository, &self.fetched).await.map(drop),
            Asked::Merge(strategy) => {
                let mut plan = plan_merge(repository, &self.fetched, strategy, &message).await?;
                if hooks {
                    plan = plan.with_hooks(landing::Hooks::find(repository).await?);
                }
                told(repository, &self.fetched, asked, plan.execute().await).await?;
                Ok(())
            }
            Asked::Into(strategy, onto) => {
                let plan = plan_into(repository, &self.fetched, strategy, &message, onto).await?;
                told(repository, &self.fetched, asked, plan.execute().await).await?;
                Ok(())
            }
        }
    }

    /// Runs a command as a person would paste it.
    async fn run(&self, command: &str) -> anyhow::Result<()> {
        for step in command.split(" && ") {
            if let Some((diff, apply)) = step.split_once(" | ") {
                assert!(diff.starts_with("kage diff 01234567 --session w-1"), "{diff}");
                self.pipe(apply);
            } else if step.starts_with("kage ") {
                self.kage(step).await?;
            } else {
                anyhow::ensure!(sh(Path::new("/"), step) || sh(&self.root, step), "{step} failed");
            }
        }
        Ok(())
    }

    /// Does what the program itself makes of a command.
    async fn kage(&self, step: &str) -> anyhow::Result<()> {
        let words = Command::new("sh")
            .args(["-c", &format!("printf '%s\\n' {step}")])
            .output()?;
        let words = String::from_utf8(words.stdout)?;
        let cli = args::Cli::try_parse_from(words.lines())?;
        let onto;
        let (land, asked, hooks) = match cli.command {
            args::Command::Apply(apply) => (apply.land, Asked::Apply, false),
            args::Command::Merge(merge) => {
                let strategy = match merge.strategy {
                    args::Strategy::Auto => Strategy::Auto,
                    args::Strategy::Theirs => Strategy::Theirs,
                    args::Strategy::Manual => Strategy::Manual,
                };
                let asked = match merge.into {
                    Some(branch) => {
                        onto = Onto {
                            branch: landing::Branch::parse(&branch)?,
                            start: None,
                        };
                        Asked::Into(strategy, &onto)
                    }
                    None => Asked::Merge(strategy),
                };
                (merge.land, asked, merge.hooks)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(land.pick.task.as_deref(), Some("01234567"));
        assert_eq!(land.pick.session.as_deref(), Some("w-1"));
        assert!(land.unverified);
        assert_ne!(land.repo, Path::new("."), "{step} does not name the repository");
        let repository = UserRepo::discover(&land.repo).await?;
        self.ask_in(&repository, asked, hooks).await
    }

    fn pipe(&self, apply: &str) {
        let (base, result) = (&self.fetched.base, &self.fetched.commit);
        let patch = kage_git::diff::patch(self.fetched.mirror.path(), base, result).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", apply])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &patch).unwrap();
        assert!(child.wait().unwrap().success(), "{apply}");
    }
}

fn commands(message: &str) -> Vec<String> {
    message.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

const AUTO: Asked<'static> = Asked::Merge(Strategy::Auto);
const THEIRS: Asked<'static> = Asked::Merge(Strategy::Theirs);
const MANUAL: Asked<'static> = Asked::Merge(Strategy::Manual);

/// A state and what is asked in it: before, session, since; words of the refusal; how many
/// commands it names.
type Case = (
    &'static str,
    [&'static str; 3],
    &'static [Asked<'static>],
    &'static [&'static str],
    usize,
);

const CASES: &[Case] = &[
    (
        "both changed a line, committed",
        [
            "true",
            "sed -i s/5/five/ text",
            "sed -i s/5/FIVE/ text; git commit -qam mine",
        ],
        &[Asked::Apply, AUTO],
        &[
            "text: you and the result changed the same lines",
            "--strategy manual",
            "--strategy theirs",
        ],
        2,
    ),
    (
        "both changed a line, not committed",
        ["true", "sed -i s/5/five/ text", "sed -i s/5/FIVE/ text"],
        &[Asked::Apply, AUTO, MANUAL],
        &[
            "text: ",
            "add -f -- text",
            "commit -m 'work in progress' -- text",
            "--strategy manual",
        ],
        1,
    ),
    (
        "each changed a line of a path that needs quotes",
        ["true", "sed -i s/9/nine/ 'a b'", "sed -i s/1/one/ 'a b'"],
        &[AUTO],
        &["a b: it has uncommitted changes", "stash push -- 'a b'", "stash pop"],
        1,
    ),
    (
        "half done when it began, and changed elsewhere by the result",
        ["sed -i s/1/one/ text", "sed -i s/9/nine/ text", "true"],
        &[AUTO, THEIRS],
        &["text: it has uncommitted changes", "stash pop"],
        1,
    ),
    (
        "half done when it began, and changed there by the result",
        ["sed -i s/5/half/ text", "sed -i s/half/done/ text", "true"],
        &[AUTO],
        &["text: ", "kage apply", "--strategy manual"],
        2,
    ),
    (
        "untracked when it began, and changed by the result",
        ["echo mine >notes", "echo more >>notes", "true"],
        &[AUTO, THEIRS],
        &["notes: ", "kage apply", "--strategy manual"],
        2,
    ),
    (
        "staged",
        ["true", "sed -i s/9/nine/ text", "sed -i s/1/one/ text; git add text"],
        &[AUTO],
        &["text: it has staged changes", "stash push -- text"],
        1,
    ),
    (
        "added by both, untracked",
        ["true", "echo its >new", "echo mine >new; echo x >new.mine"],
        &[Asked::Apply, AUTO, THEIRS, MANUAL],
        &["new: ", "mv -- ", "new.mine2"],
        1,
    ),
    (
        "a file where the result has a folder",
        ["true", "mkdir new; echo its >new/deep", "echo mine >new"],
        &[Asked::Apply, AUTO],
        &["new/deep: something that is not a folder is above it", "mv -- "],
        1,
    ),
    (
        "a folder where the result has a file",
        ["true", "echo its >new", "mkdir new; echo mine >new/deep"],
        &[Asked::Apply, AUTO],
        &["new: a folder is there", "mv -- "],
        1,
    ),
    (
        "a file in a folder that becomes a file",
        [
            "mkdir d; echo 1 >d/one; git add -A; git commit -qm folder",
            "rm -r d; echo its >d",
            "echo mine >d/mine; mkdir d/empty",
        ],
        &[Asked::Apply, AUTO],
        &["d/mine: it is in a folder that becomes a file", "d/empty: ", "d.mine2"],
        1,
    ),
    (
        "some tracked, some not",
        [
            "true",
            "echo its >new; sed -i s/9/nine/ text",
            "echo mine >new; sed -i s/1/one/ text",
        ],
        &[AUTO],
        &[
            "new: something untracked is there",
            "text: it has uncommitted changes",
            "mv -- ",
        ],
        1,
    ),
    (
        "deleted and changed",
        ["true", "sed -i s/9/nine/ text", "rm text"],
        &[Asked::Apply, AUTO],
        &["text: ", "--strategy manual"],
        1,
    ),
    (
        "a pattern for a name",
        [
            "echo 1 >'[t]*'; git add -A; git commit -qm pattern",
            "echo 2 >'[t]*'",
            "echo 3 >'[t]*'; echo x >>text",
        ],
        &[Asked::Apply],
        &["[t]*: ", "':(literal)[t]*'"],
        1,
    ),
    (
        "detached",
        ["true", "echo its >new", "git checkout -q --detach"],
        &[AUTO],
        &["HEAD is not on a branch", "switch -c kage-01234567"],
        1,
    ),
    (
        "detached and half done",
        [
            "true",
            "sed -i s/9/nine/ text",
            "git checkout -q --detach; sed -i s/1/one/ text",
        ],
        &[AUTO],
        &["HEAD is not on a branch", "switch -c kage-01234567", "stash pop"],
        1,
    ),
    (
        "detached and both changed a line",
        [
            "true",
            "sed -i s/5/five/ text",
            "sed -i s/5/FIVE/ text; git commit -qam mine; git checkout -q --detach",
        ],
        &[Asked::Apply, AUTO],
        &["switch -c kage-01234567", "--strategy theirs"],
        2,
    ),
    (
        "no commit",
        ["true", "echo its >new", "git switch -q --orphan empty"],
        &[AUTO],
        &["the branch has no commit yet", "commit --allow-empty"],
        1,
    ),
    (
        "a merge in progress",
        [
            "true",
            "echo its >new",
            "git switch -q -c side; sed -i s/5/V/ text; git commit -qam side; git switch -q main; \
             sed -i s/5/FIVE/ text; git commit -qam main; git merge -q side; true",
        ],
        &[AUTO],
        &["a merge is in progress", "merge --abort"],
        1,
    ),
    (
        "a bisect in progress",
        [
            "true",
            "echo its >new",
            "git commit -q --allow-empty -m more; git bisect start -q HEAD HEAD^; true",
        ],
        &[AUTO],
        &["a bisect is in progress", "bisect reset"],
        1,
    ),
    (
        "conflicts of a stash",
        [
            "true",
            "sed -i s/9/nine/ text",
            "sed -i s/5/V/ text; git stash -q; sed -i s/5/FIVE/ text; git commit -qam mine; git stash pop -q; true",
        ],
        &[AUTO],
        &["text: it has conflicts that are not resolved", "reset --merge"],
        1,
    ),
    (
        "locked",
        ["true", "echo its >new", "touch .git/index.lock"],
        &[AUTO],
        &["another git is at work", "rm -- "],
        1,
    ),
    (
        "a filter of the person's",
        [
            "true",
            "echo its >new.bin",
            "echo '*.bin filter=up' >.gitattributes; git add -A; git commit -qm up; \
             git config filter.up.clean 'tr a-z A-Z'; git config filter.up.smudge 'tr A-Z a-z'",
        ],
        &[Asked::Apply, AUTO, THEIRS],
        &["new.bin: it goes through a filter program", "kage diff", "apply --3way"],
        1,
    ),
];

#[tokio::test]
async fn whatever_a_refusal_names_works() {
    for (name, [before, session, since], asked, words, count) in CASES {
        let story = Story::new(before, session, since).await;
        let place = |story: &Story| story.folder.path().to_str().unwrap().to_owned();
        let first = place(&story);
        let mut named = BTreeSet::new();
        for asked in *asked {
            let refused = story.ask(*asked).await.unwrap_err();
            let refused = refused
                .downcast::<Refusal>()
                .unwrap_or_else(|error| panic!("{name}: {error:#}"));
            let message = refused.message;
            for word in *words {
                assert!(message.contains(word), "{name}, {asked:?}: no {word:?} in {message}");
            }
            let commands = commands(&message);
            assert_eq!(commands.len(), *count, "{name}, {asked:?}: {message}");
            named.extend(commands);
        }
        // A refusal changes nothing, so that the first command finds the state as it was.
        let mut untouched = Some(story);
        for command in named {
            let story = match untouched.take() {
                Some(story) => story,
                None => Story::new(before, session, since).await,
            };
            let ran = story.run(&command.replace(&first, &place(&story))).await;
            assert!(ran.is_ok(), "{name}: {command}: {ran:?}");
        }
    }
}

#[test]
fn what_a_message_says_survives_being_committed_by_hand() {
    let task = v1::Task {
        id: TASK.to_owned(),
        spec: Some(v1::TaskSpec {
            prompt: "\n## Mend the *parser*\n# and its tests\u{7}\n".to_owned(),
            ..v1::TaskSpec::default()
        }),
        ..v1::Task::default()
    };
    let used = |model: &str| v1::ModelUsage {
        model: model.to_owned(),
        ..v1::ModelUsage::default()
    };
    let session = |models: &[&str]| v1::Session {
        name: "w-1".to_owned(),
        model: "asked-for".to_owned(),
        models: models.iter().copied().map(used).collect(),
        ..v1::Session::default()
    };
    let message = crate::landing::message_of(&task, &session(&["large", "", "large", "fast"]));
    assert_eq!(message.subject, "Mend the *parser*");
    assert_eq!(message.merge_subject, "Merge result of w-1: Mend the *parser*");
    let expected = format!(
        "Asked for:\n\n    ## Mend the *parser*\n    # and its tests\n\n\
         Kage-Task: {}\nKage-Session: w-1\nKage-Model: fast\nKage-Model: large\n",
        task.id
    );
    assert_eq!(message.body, expected);
    let unasked = crate::landing::message_of(&v1::Task::default(), &session(&[]));
    assert_eq!(unasked.subject, "Result of w-1");
    assert!(unasked.body.ends_with("\nKage-Model: asked-for\n"));
}
