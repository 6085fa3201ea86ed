//! What must be true of files at the end of a world: a checkpoint that was told is stored whole and
//! is no half-done step, an attempt goes on from one that exists, a result that was told can be
//! fetched, and a verdict is about the tree that the session delivered, and right.

use std::collections::{BTreeMap, BTreeSet};

use kage_core::id::{Digest, Oid};
use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_proto::v1::finished::Outcome;
use kage_tests::history::{Final, FinalTask};

use crate::adapter::is_torn;
use crate::forge::{Forge, tree_of};

/// What is known of one session, on the way through its events.
#[derive(Default)]
struct SessionTrees {
    checkpoints: BTreeSet<String>,
    /// Commit and tree of the result of the running attempt.
    sent: Option<(String, String)>,
    /// The same, once it was claimed.
    delivered: Option<(String, String)>,
    /// What the last verify said that came to an answer, and of which commit.
    verdict: Option<(String, bool)>,
}

/// Everything that is wrong. `whole_steps`: adapters tell when their tools run.
pub(crate) fn check(end: &Final, forge: &Forge, whole_steps: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for task in &end.tasks {
        let id = &task.task.id;
        let mut accuse = |text: String| wrong.push(format!("{id}: {text}"));
        if let Some(base) = base(task) {
            of_task(task, &base, forge, whole_steps, &mut accuse);
        }
    }
    wrong
}

fn base(task: &FinalTask) -> Option<String> {
    let repository = task.task.spec.as_ref()?.repository.as_ref()?;
    Some(repository.base_commit.clone())
}

fn of_task(task: &FinalTask, base: &str, forge: &Forge, whole_steps: bool, accuse: &mut dyn FnMut(String)) {
    let mut sessions: BTreeMap<&str, SessionTrees> = BTreeMap::new();
    for event in &task.events {
        let known = sessions.entry(&event.session).or_default();
        let Some(body) = event.event.as_ref().and_then(|event| event.body.as_ref()) else {
            continue;
        };
        let name = format!(
            "{} attempt {} of {}",
            event.job().as_str_name(),
            event.attempt,
            event.session
        );
        let mut accuse = |text: String| accuse(format!("{name}: {text}"));
        match body {
            Body::CheckpointTaken(taken) => checkpoint(known, taken, base, forge, whole_steps, &mut accuse),
            Body::Resumed(resumed) if resumed.commit != base && !known.checkpoints.contains(&resumed.commit) => {
                accuse(format!("goes on from {}, which is no checkpoint", resumed.commit));
            }
            Body::ResultCommitted(v1::ResultCommitted {
                result: Some(result), ..
            }) => {
                let stored = oid(&result.commit).and_then(|commit| forge.taken(&commit));
                match stored.map(|commit| tree_of(&commit.files).to_string()) {
                    None => accuse(format!("result {} is lost", result.commit)),
                    Some(tree) if tree != result.tree => {
                        accuse(format!("result {} has tree {tree}, not {}", result.commit, result.tree));
                    }
                    Some(_) => {}
                }
                known.sent = Some((result.commit.clone(), result.tree.clone()));
            }
            Body::Finished(v1::Finished { outcome: Some(outcome) }) => match (event.job(), outcome) {
                (v1::JobKind::Session, Outcome::Claimed(_)) => {
                    known.delivered = known.sent.take();
                    known.verdict = None;
                    if known.delivered.is_none() {
                        accuse("claimed without a result".to_owned());
                    }
                }
                (v1::JobKind::Session, _) => known.sent = None,
                (v1::JobKind::Verify, Outcome::Verdict(verdict)) => {
                    let Some((commit, tree)) = known.delivered.clone() else {
                        return accuse("verifies what was not delivered".to_owned());
                    };
                    if let Some(passed) = verdict_of(verdict) {
                        judged(&event.session_id, &commit, &tree, passed, forge, &mut accuse);
                        known.verdict = Some((commit, passed));
                    }
                }
                (v1::JobKind::Baseline, Outcome::Verdict(verdict)) => {
                    let tree = oid(base)
                        .and_then(|base| forge.taken(&base))
                        .map(|base| tree_of(&base.files));
                    if let (Some(passed), Some(tree)) = (verdict_of(verdict), tree) {
                        judged(&event.session_id, base, &tree.to_string(), passed, forge, &mut accuse);
                    }
                }
                (v1::JobKind::Verify | v1::JobKind::Baseline | v1::JobKind::Unspecified, _) => {}
            },
            _ => {}
        }
    }
    for session in &task.task.sessions {
        let known = sessions.remove(session.name.as_str()).unwrap_or_default();
        at_the_end(task, session, &known, forge, &mut |text| {
            accuse(format!("{}: {text}", session.name))
        });
    }
}

/// Whether verify passed, when it came to an answer.
fn verdict_of(verdict: &v1::Verdict) -> Option<bool> {
    match verdict.kind() {
        v1::VerdictKind::Passed => Some(true),
        v1::VerdictKind::Failed => Some(false),
        v1::VerdictKind::Errored | v1::VerdictKind::Unspecified => None,
    }
}

fn oid(text: &str) -> Option<Oid> {
    text.parse().ok()
}

fn checkpoint(
    known: &mut SessionTrees,
    taken: &v1::CheckpointTaken,
    base: &str,
    forge: &Forge,
    whole_steps: bool,
    accuse: &mut dyn FnMut(String),
) {
    let commit = &taken.commit;
    if taken.parent != base && !known.checkpoints.contains(&taken.parent) {
        accuse(format!("checkpoint {commit} follows {}, which is none", taken.parent));
    }
    if let Some(segment) = &taken.transcript
        && !segment.blob.parse().is_ok_and(|blob| forge.has_blob(&blob))
    {
        accuse(format!("the conversation of checkpoint {commit} is not stored"));
    }
    if commit != &taken.parent {
        let pack = taken.pack.parse::<Digest>().ok();
        match pack.and_then(|pack| forge.packed(&pack)) {
            Some((packed, files)) => {
                if packed.to_string() != *commit || tree_of(files).to_string() != taken.tree {
                    accuse(format!("the pack of checkpoint {commit} has something else in it"));
                }
                if whole_steps && !cut_short(taken.reason()) && is_torn(files) {
                    accuse(format!("checkpoint {commit} has a step half done: {files:?}"));
                }
            }
            None => accuse(format!("the pack of checkpoint {commit} is not stored")),
        }
    }
    known.checkpoints.insert(commit.clone());
}

/// Whether a checkpoint for this reason may be taken in the middle of a step.
fn cut_short(reason: v1::CheckpointReason) -> bool {
    matches!(
        reason,
        v1::CheckpointReason::BeforeRetry | v1::CheckpointReason::BeforeRestore
    )
}

/// A verdict is the word of a command that saw this tree of this session's, and is right about it.
fn judged(session: &str, commit: &str, tree: &str, passed: bool, forge: &Forge, accuse: &mut dyn FnMut(String)) {
    let mut seen = forge.judged.iter();
    if !seen.any(|judged| judged.session == session && judged.tree.to_string() == tree && judged.passed == passed) {
        accuse(format!("no command said passed = {passed} of {commit}"));
    }
    let files = oid(commit)
        .and_then(|commit| forge.taken(&commit))
        .map(|commit| &commit.files);
    if files.is_some_and(|files| crate::forge::is_good(files) != passed) {
        accuse(format!("passed = {passed} is wrong about {commit}"));
    }
}

fn at_the_end(
    task: &FinalTask,
    session: &v1::Session,
    known: &SessionTrees,
    forge: &Forge,
    accuse: &mut dyn FnMut(String),
) {
    let result = session.result.as_ref().map(|result| result.commit.as_str());
    let verdict = known
        .verdict
        .as_ref()
        .map(|(commit, passed)| (commit.as_str(), *passed));
    let state = session.state();
    let passed = verdict.is_some_and(|(_, passed)| passed);
    if state == v1::SessionState::Verified && (!passed || verdict.map(|(commit, _)| commit) != result) {
        accuse(format!("verified with result {result:?} after verdict {verdict:?}"));
    }
    if state == v1::SessionState::Rejected && passed {
        accuse(format!("rejected after verdict {verdict:?}"));
    }
    let delivered = known.delivered.as_ref().map(|(commit, _)| commit.as_str());
    let mut checkpoints = task.checkpoints.iter();
    let head = checkpoints.find(|checkpoint| checkpoint.session == session.name && checkpoint.number == session.head);
    if session.is_unfinished {
        // It has the files of the checkpoint with which the session ended.
        let stored = result.and_then(oid).and_then(|commit| forge.taken(&commit));
        let tree = stored.map(|commit| tree_of(&commit.files).to_string());
        let expected = head.map(|checkpoint| checkpoint.tree.clone());
        if tree.is_none() || tree != expected {
            accuse(format!(
                "its unfinished result {result:?} has tree {tree:?}, not {expected:?}"
            ));
        }
    } else if result.is_some() && result != delivered {
        accuse(format!("its result is {result:?}, and it delivered {delivered:?}"));
    }
    if session.head != 0 && head.is_none() {
        accuse(format!("its head {} is no checkpoint", session.head));
    }
}
