//! Checkpoints of sessions in a real repository, and sessions that resume them on another agent.

use std::path::Path;
use std::process::Command;

use kage_agent::Limits;
use kage_agent::adapters::port::Resumes;
use kage_core::checkpoint::{CheckpointReason, Resume, TakenCheckpoint, WorktreeChoice};
use kage_core::id::{Digest, Oid};
use kage_core::rework::MAX_EXCERPT;
use kage_core::task::{RepositoryRef, VerifyPolicy};
use kage_git::{Auth, Mirror};
use kage_proto::convert::agent::{VerifyWork, WorkKind};
use kage_proto::v1;
use kage_proto::v1::connect_response::Message as ToAgent;
use kage_proto::v1::event::Body;

use crate::agent::{Agent, SECRET, failure, work};
use crate::coordinator::Served;

/// A repository with one commit, for offered work.
pub(crate) struct Source {
    folder: tempfile::TempDir,
    pub(crate) base: Oid,
}

impl Source {
    pub(crate) fn new(served: &Served) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("first"), "1\n").unwrap();
        git(folder.path(), &["init", "--quiet", "-b", "main"]);
        git(folder.path(), &["add", "-A"]);
        git(folder.path(), &["commit", "--quiet", "-m", "start"]);
        let base: Oid = git(folder.path(), &["rev-parse", "HEAD"]).parse().unwrap();
        let repository = RepositoryRef {
            name: "repo".parse().unwrap(),
            base: base.clone(),
            folder: None,
            names: None,
        };
        served.coordinator.with(|kept| kept.repository = Some(repository));
        Self { folder, base }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Lets the coordinator give the base to agents that fetch it.
    pub(crate) fn serve(&self, served: &Served) {
        let bare = self.folder.path().join("bare.git");
        git(self.folder.path(), &["clone", "--quiet", "--bare", ".", "bare.git"]);
        let reference = format!("refs/kage/bases/{}", self.base);
        git(&bare, &["update-ref", &reference, self.base.as_str()]);
        git(&bare, &["repack", "-adq"]);
        git(&bare, &["update-server-info"]);
        served.coordinator.with(|kept| kept.git = Some(bare));
    }

    /// A state folder of an agent that has the base already.
    pub(crate) async fn state(&self) -> tempfile::TempDir {
        let state = tempfile::tempdir().unwrap();
        let mirror = mirror(state.path()).await;
        let (url, base) = (format!("file://{}", self.folder.path().display()), &self.base);
        let refspec = format!("HEAD:refs/kage/bases/{base}");
        mirror.fetch(&url, &Auth::None, &[&refspec]).await.unwrap();
        state
    }
}

async fn mirror(state: &Path) -> Mirror {
    Mirror::open_or_init(state.join("mirrors/default/repo.git"))
        .await
        .unwrap()
}

pub(crate) fn git(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(folder).args(args).env_clear();
    command
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", folder);
    for who in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{who}_NAME"), "Ann")
            .env(format!("GIT_{who}_EMAIL"), "a@b");
    }
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

pub(crate) fn taken(events: &[v1::Event]) -> Vec<TakenCheckpoint> {
    let taken = events.iter().filter_map(|event| match &event.body {
        Some(Body::CheckpointTaken(taken)) => Some(taken.clone().try_into().unwrap()),
        _ => None,
    });
    taken.collect()
}

/// Waits for a checkpoint of an attempt and returns all until then.
pub(crate) async fn until(
    served: &Served,
    attempt: &str,
    found: impl Fn(&TakenCheckpoint) -> bool,
) -> Vec<TakenCheckpoint> {
    let check = |kept: &crate::coordinator::Kept| {
        let taken = taken(kept.events.get(attempt)?);
        taken.last().is_some_and(&found).then_some(taken)
    };
    served.coordinator.until("the checkpoint", check).await
}

/// The data with which a coordinator offers to resume these checkpoints.
fn resume(taken: &[TakenCheckpoint], note: &str, repeated_calls: u32) -> Resume {
    let last = taken.last().unwrap();
    let segments: Vec<_> = taken.iter().filter_map(|taken| taken.transcript.clone()).collect();
    Resume {
        commit: last.commit.clone(),
        tree: last.tree.clone(),
        number: 1,
        packs: taken.iter().filter_map(|taken| taken.pack.clone()).collect(),
        position: segments.last().map_or(0, |segment| segment.to),
        segments,
        repeated_calls,
        note: note.to_owned(),
        instruction: String::new(),
        instruction_known: false,
        instruction_anew: String::new(),
        worktree: WorktreeChoice::New,
    }
}

fn going_on(task: &str, resume: Resume) -> WorkKind {
    let WorkKind::Session(mut session) = work(task) else {
        unreachable!("it is a session")
    };
    session.resume = Some(Box::new(resume));
    WorkKind::Session(session)
}

pub(crate) fn bodies(events: &[v1::Event]) -> impl Iterator<Item = &Body> {
    events.iter().filter_map(|event| event.body.as_ref())
}

pub(crate) fn result(events: &[v1::Event]) -> v1::ResultCommit {
    let result = bodies(events).find_map(|body| match body {
        Body::ResultCommitted(committed) => committed.result.clone(),
        _ => None,
    });
    result.expect("there is a result")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_goes_on_at_another_agent() {
    let served = Served::start().await;
    let source = Source::new(&served);
    let state = source.state().await;
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let first = served.coordinator.grant(1, work("steps 3 wait")).await;
    let checkpoints = until(&served, &first, |taken| {
        taken.transcript.as_ref().is_some_and(|segment| segment.to == 7)
    });
    let checkpoints = checkpoints.await;
    let baseline = &checkpoints[0];
    assert_eq!(
        (
            baseline.reason,
            &baseline.commit,
            &baseline.pack,
            baseline.files_changed
        ),
        (CheckpointReason::Baseline, &source.base, &None, 0)
    );
    for pair in checkpoints.windows(2) {
        assert_eq!(
            (pair[1].reason, &pair[1].parent),
            (CheckpointReason::FilesChanged, &pair[0].commit)
        );
    }
    let last = checkpoints.last().unwrap();
    let segment = last.transcript.as_ref().unwrap();
    let said = served
        .coordinator
        .with(|kept| kept.blobs[segment.blob.as_str()].clone());
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.ends_with("call 2\nresult 2 ***\n") && !said.contains(SECRET),
        "{said}"
    );
    // It shuts down and gives back the session; a last checkpoint has all of it.
    agent.hand_back.cancel();
    let events = served.coordinator.finished(&first).await;
    assert_eq!(taken(&events).len(), checkpoints.len());
    agent.ended().await;

    let other = source.state().await;
    let agent = Agent::start(&served, other.path(), Limits::default());
    served.coordinator.connected(2).await;
    let moved = going_on("steps 5", resume(&checkpoints, "moved", 2));
    let second = served.coordinator.grant(2, moved).await;
    let events = served.coordinator.finished(&second).await;
    let resumed = bodies(&events).find_map(|body| match body {
        Body::Resumed(resumed) => Some(resumed.clone()),
        _ => None,
    });
    let resumed = resumed.unwrap();
    assert_eq!(
        (resumed.commit.as_str(), resumed.position, resumed.repeated_calls),
        (last.commit.as_str(), 7, 2)
    );
    let heard = bodies(&events).any(|body| {
        matches!(body, Body::Activity(told) if told.summary.starts_with("moved the task\ncall 0") && told.summary.ends_with("result 2 ***\n"))
    });
    assert!(heard, "{events:?}");
    // Together with the earlier part this is one conversation and one line of commits.
    let after = taken(&events);
    assert_eq!(
        (&after[0].parent, after[0].transcript.as_ref().unwrap().from),
        (&last.commit, 7)
    );
    assert_eq!(after.last().unwrap().transcript.as_ref().unwrap().to, 11);
    let result = result(&events);
    assert_eq!(result.paths, ["step0", "step1", "step2", "step3", "step4"]);
    let there = mirror(other.path()).await;
    let parent = git(there.path(), &["rev-parse", &format!("{}^", result.commit)]);
    assert_eq!(parent, source.base.as_str());
    assert_eq!(after.last().unwrap().tree.as_str(), result.tree);
    git(there.path(), &["fsck", "--strict", "--no-dangling"]);
    agent.end().await;
}

/// The messages to the adapter of a session that continues with `resume`.
async fn heard(served: &Served, number: u128, task: &str, resume: Resume) -> String {
    let attempt = served.coordinator.grant(number, going_on(task, resume)).await;
    let events = served.coordinator.finished(&attempt).await;
    let told = bodies(&events).find_map(|body| match body {
        Body::Activity(told) => Some(told.summary.clone()),
        _ => None,
    });
    told.unwrap_or_else(|| panic!("{events:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_works_on_is_told_what_verify_said_once() {
    for resumes in [Resumes::Position, Resumes::None] {
        let served = Served::start().await;
        let source = Source::new(&served);
        let state = source.state().await;
        let agent = Agent::start_with(&served, state.path(), Limits::default(), resumes);
        served.coordinator.connected(1).await;
        let first = served.coordinator.grant(1, work("steps 2")).await;
        let checkpoints = taken(&served.coordinator.finished(&first).await);
        let told = |known| Resume {
            instruction: "# Verify failed\n\nFix it.".to_owned(),
            instruction_known: known,
            instruction_anew: String::new(),
            ..resume(&checkpoints, "", 0)
        };
        let talks = resumes == Resumes::Position;
        let task = if talks { "steps 3" } else { "prompt" };
        let new = heard(&served, 2, task, told(false)).await;
        let known = heard(&served, 3, task, told(true)).await;
        if talks {
            assert!(new.starts_with("# Verify failed\n\nFix it. the task\n"), "{new}");
            assert!(!known.contains("Verify failed"), "the conversation has it: {known}");
        } else {
            // Each of them begins a new conversation, which knows of nothing.
            for told in [new, known] {
                assert!(
                    told.contains("- step1\n") && told.ends_with("\n\n# Verify failed\n\nFix it."),
                    "{told}"
                );
            }
        }
        agent.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_has_both_ends_of_what_verify_wrote_without_secrets() {
    let served = Served::start().await;
    let source = Source::new(&served);
    let state = source.state().await;
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let (begin, end) = SECRET.split_at(5);
    // The secret lies across the place where the middle is left out.
    let noise = "head -c 4024 /dev/zero | tr '\\0' x";
    let verify = format!(
        "printf first; {noise}; printf {begin}; sleep 0.1; printf '{end}'; printf '\\033[31m%050000d' 0; echo last >&2; \
         exit 3"
    );
    let check = |verify: &str| {
        WorkKind::Verify(VerifyWork {
            commit: source.base.clone(),
            policy: VerifyPolicy {
                verify: Some(verify.to_owned()),
                ..VerifyPolicy::default()
            },
            left_alone: Vec::new(),
        })
    };
    let verdict = async |number, verify: &str| {
        let attempt = served.coordinator.grant(number, check(verify)).await;
        let events = served.coordinator.finished(&attempt).await;
        match bodies(&events).last() {
            Some(Body::Finished(v1::Finished {
                outcome: Some(v1::finished::Outcome::Verdict(verdict)),
            })) => verdict.clone(),
            other => panic!("{other:?}"),
        }
    };
    let failed = verdict(1, &verify).await;
    assert_eq!((failed.kind(), failed.exit_code), (v1::VerdictKind::Failed, Some(3)));
    let output = &failed.output;
    assert!(
        output.starts_with("firstxxx") && output.trim_end().ends_with("last"),
        "{output}"
    );
    assert!(
        output.contains("x***\n[... ") && output.contains(" bytes left out ...]"),
        "{output}"
    );
    assert!(!output.contains(begin) && !output.contains('\u{1b}'), "{output}");
    assert!(output.len() <= MAX_EXCERPT, "{}", output.len());
    for verify in ["echo fine", "echo lost; exit 127"] {
        assert_eq!(verdict(2, verify).await.output, "", "{verify}");
    }
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_setup_runs_does_not_change_what_verify_measures_by() {
    let served = Served::start().await;
    let source = Source::new(&served);
    let state = source.state().await;
    let folder = source.folder.path();
    // The session's, and run by setup.
    std::fs::write(folder.join("prepare"), "echo 2 > first; echo 2 > new; touch ready\n").unwrap();
    git(folder, &["add", "prepare"]);
    git(folder, &["commit", "--quiet", "-m", "result"]);
    let result: Oid = git(folder, &["rev-parse", "HEAD"]).parse().unwrap();
    let (url, refspec) = (format!("file://{}", folder.display()), "HEAD:refs/heads/result");
    mirror(state.path())
        .await
        .fetch(&url, &Auth::None, &[refspec])
        .await
        .unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let check = WorkKind::Verify(VerifyWork {
        commit: result,
        policy: VerifyPolicy {
            setup: Some("sh prepare".to_owned()),
            verify: Some("test -e ready && test ! -e new && test \"$(cat first)\" = 1".to_owned()),
            protect: vec!["first".to_owned(), "new".to_owned()],
            leave_named: true,
            ..VerifyPolicy::default()
        },
        left_alone: Vec::new(),
    });
    let attempt = served.coordinator.grant(1, check).await;
    let events = served.coordinator.finished(&attempt).await;
    let verdict = match bodies(&events).last() {
        Some(Body::Finished(v1::Finished {
            outcome: Some(v1::finished::Outcome::Verdict(verdict)),
        })) => verdict.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(verdict.kind(), v1::VerdictKind::Passed, "{verdict:?}");
    assert_eq!(verdict.restored, ["first", "new"]);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_go_on_is_told_what_was_done() {
    let served = Served::start().await;
    let source = Source::new(&served);
    let state = source.state().await;
    let agent = Agent::start_with(&served, state.path(), Limits::default(), Resumes::Latest);
    served.coordinator.connected(1).await;
    let first = served.coordinator.grant(1, work("write")).await;
    // The adapter reports no steps: files are saved when they have stopped changing.
    let checkpoints = until(&served, &first, |taken| taken.files_changed == 1).await;
    served.coordinator.say(ToAgent::TakeCheckpoint(v1::TakeCheckpoint {
        attempt_id: first.clone(),
        note: "$(look)".to_owned(),
        reason: 0,
    }));
    let asked = until(&served, &first, |taken| taken.reason == CheckpointReason::Requested).await;
    let last = asked.last().unwrap();
    assert_eq!((last.note.as_str(), last.files_changed), ("$(look)", 0));
    assert_eq!(
        (&last.parent, &last.tree),
        (&checkpoints[1].commit, &checkpoints[1].tree)
    );
    served.coordinator.say(ToAgent::Stop(v1::Stop {
        attempt_id: first.clone(),
        reason: "restored".to_owned(),
        keep_worktree: false,
    }));
    failure(&served.coordinator.finished(&first).await);

    // After a rollback it starts a new conversation, with the files of the checkpoint.
    let mut back = resume(&checkpoints, "Verify failed.", 3);
    back.segments.clear();
    let second = served.coordinator.grant(2, going_on("prompt", back.clone())).await;
    let events = served.coordinator.finished(&second).await;
    let prompt = bodies(&events).find_map(|body| match body {
        Body::Activity(told) => Some(told.summary.clone()),
        _ => None,
    });
    let prompt = prompt.unwrap();
    assert!(
        prompt.contains("- written\n") && prompt.ends_with("Verify failed."),
        "{prompt}"
    );
    assert_eq!(result(&events).paths, ["prompted", "written"]);

    // A checkpoint that cannot be put together cannot be resumed.
    let mut broken = back;
    broken.tree = source.base.clone();
    let third = served.coordinator.grant(3, going_on("prompt", broken)).await;
    let told = failure(&served.coordinator.finished(&third).await);
    assert!(told.message.contains("has the tree"), "{told:?}");
    agent.end().await;
}

/// The adapter's report: its folder, and the names in it.
fn listed(events: &[v1::Event]) -> Option<(String, String)> {
    bodies(events).find_map(|body| match body {
        Body::Activity(told) if told.summary.starts_with('/') => {
            let (place, names) = told.summary.split_once(' ')?;
            Some((place.to_owned(), names.to_owned()))
        }
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_sent_back_goes_on_in_its_worktree() {
    let served = Served::start().await;
    let source = Source::new(&served);
    let session = kage_core::id::SessionId::from_random(7);
    served.coordinator.with(|kept| kept.session = Some(session));
    let state = source.state().await;
    let agent = Agent::start_with(&served, state.path(), Limits::default(), Resumes::Latest);
    served.coordinator.connected(1).await;
    let first = served.coordinator.grant(1, work("write")).await;
    let written = until(&served, &first, |taken| taken.files_changed == 1).await;
    let tree = state.path().join("worktrees").join(&first);
    std::fs::write(tree.join(".gitignore"), "*.o\n").unwrap();
    std::fs::write(tree.join("old.o"), "old").unwrap();
    served.coordinator.say(ToAgent::TakeCheckpoint(v1::TakeCheckpoint {
        attempt_id: first.clone(),
        note: String::new(),
        reason: 0,
    }));
    let checkpoints = until(&served, &first, |taken| taken.reason == CheckpointReason::Requested).await;
    assert!(checkpoints.len() > written.len());
    std::fs::write(tree.join("new.o"), "new").unwrap();
    std::fs::write(tree.join("later"), "later").unwrap();
    std::fs::write(tree.join("written"), "otherwise").unwrap();

    let stop = |attempt: &str| {
        served.coordinator.say(ToAgent::Stop(v1::Stop {
            attempt_id: attempt.to_owned(),
            reason: "restored".to_owned(),
            keep_worktree: true,
        }));
    };
    let back = |task: &str, worktree| {
        let mut resume = resume(&checkpoints, "", 0);
        resume.segments.clear();
        resume.worktree = worktree;
        going_on(task, resume)
    };
    // The next attempt arrives before the first has ended.
    stop(&first);
    let second = served
        .coordinator
        .grant(2, back("list wait", WorktreeChoice::Previous))
        .await;
    let seen = served
        .coordinator
        .until("the list", |kept| listed(kept.events.get(&second)?));
    let (place, names) = seen.await;
    assert_eq!(names, ".git .gitignore first new.o old.o written");
    assert!(place.ends_with(&first), "{place}");
    assert_eq!(std::fs::read_to_string(tree.join("written")).unwrap(), "w\n");
    let told = served.coordinator.with(|kept| {
        let mut bodies = bodies(&kept.events[&second]);
        bodies.any(|body| matches!(body, Body::Activity(told) if told.summary.starts_with("went back to checkpoint 1")))
    });
    assert!(told);

    stop(&second);
    let third = served
        .coordinator
        .grant(3, back("list", WorktreeChoice::PreviousCleaned))
        .await;
    let events = served.coordinator.finished(&third).await;
    let (place, names) = listed(&events).unwrap();
    assert_eq!(names, ".git .gitignore first old.o written");
    assert!(place.ends_with(&first), "{place}");
    assert_eq!(result(&events).paths, [".gitignore", "listed", "written"]);

    // No attempt left a worktree now: a new one is made.
    let fourth = served
        .coordinator
        .grant(4, back("list", WorktreeChoice::Previous))
        .await;
    let (place, names) = listed(&served.coordinator.finished(&fourth).await).unwrap();
    assert_eq!(names, ".git .gitignore first written");
    assert!(place.ends_with(&fourth), "{place}");
    agent.end().await;
    assert_eq!(std::fs::read_dir(state.path().join("worktrees")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_restore_half_done_work_is_kept_without_waiting_for_its_end() {
    let served = Served::start().await;
    let source = Source::new(&served);
    let state = source.state().await;
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work("stuck")).await;
    let stuck = |kept: &crate::coordinator::Kept| {
        let mut bodies = bodies(kept.events.get(&attempt)?);
        bodies
            .any(|body| matches!(body, Body::Activity(told) if told.summary == "stuck"))
            .then_some(())
    };
    served.coordinator.until("its tool runs", stuck).await;
    let order = |reason: v1::CheckpointReason| {
        ToAgent::TakeCheckpoint(v1::TakeCheckpoint {
            attempt_id: attempt.clone(),
            note: "joined".to_owned(),
            reason: reason.into(),
        })
    };
    // The first waits for the tool's end, the second is not asked for, the third does not wait.
    for reason in [
        v1::CheckpointReason::Requested,
        v1::CheckpointReason::Final,
        v1::CheckpointReason::BeforeRestore,
    ] {
        served.coordinator.say(order(reason));
    }
    let taken = until(&served, &attempt, |taken| taken.reason != CheckpointReason::Baseline).await;
    let last = taken.last().unwrap();
    assert_eq!(
        (last.reason, last.note.as_str(), last.files_changed),
        (CheckpointReason::BeforeRestore, "joined", 1)
    );
    let said = last.transcript.as_ref().unwrap();
    assert_eq!((said.from, said.to), (0, 2), "the call whose tool runs is its place");
    agent.hand_back.cancel();
    agent.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_fails_is_told_and_stops_nothing() {
    let served = Served::start().await;
    let source = Source::new(&served);
    served.coordinator.with(|kept| kept.refuse_blobs = 1);
    let state = source.state().await;
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work("steps 2")).await;
    let events = served.coordinator.finished(&attempt).await;
    let warned = bodies(&events).any(|body| {
        matches!(body, Body::Warning(warning) if warning.message.starts_with("no checkpoint: a checkpoint could not be sent"))
    });
    assert!(warned, "{events:?}");
    // The next checkpoint follows one that the coordinator knows.
    let taken = taken(&events);
    let last = taken.last().unwrap();
    assert_eq!((&last.parent, last.files_changed), (&source.base, 2));
    assert_eq!(last.transcript.as_ref().unwrap().from, 0);
    assert_eq!(result(&events).paths, ["step0", "step1"]);
    agent.end().await;
    assert!(
        served
            .coordinator
            .with(|kept| kept.blobs.contains_key(last.pack.as_ref().map_or("", Digest::as_str)))
    );
}
