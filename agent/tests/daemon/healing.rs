//! Attempts with a damaged mirror: it is healed, and they continue as if it had been sound.

use std::path::{Path, PathBuf};

use kage_agent::Limits;
use kage_agent::ground::disk::HealedMirror;
use kage_core::checkpoint::CheckpointReason;
use kage_core::failure::FailureKind;
use kage_core::id::Oid;
use kage_core::task::VerifyPolicy;
use kage_proto::convert::agent::{VerifyWork, WorkKind};
use kage_proto::v1;
use kage_proto::v1::connect_response::Message as ToAgent;
use kage_proto::v1::event::Body;
use kage_proto::v1::finished::Outcome;

use crate::agent::{Agent, failure, kind, work};
use crate::checkpoints::{Source, git, result, until};
use crate::coordinator::Served;

pub(crate) const MIRROR: &str = "mirrors/default/repo.git";

pub(crate) fn pack(mirror: &Path) -> PathBuf {
    let entries = std::fs::read_dir(mirror.join("objects/pack")).unwrap();
    let mut packs = entries.map(|entry| entry.unwrap().path());
    packs
        .find(|path| path.extension().is_some_and(|is| is == "pack"))
        .unwrap()
}

/// Writes over the beginning of the base's pack.
fn zero_pack(mirror: &Path) {
    let pack = pack(mirror);
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[..64].fill(0);
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, bytes).unwrap();
}

/// Unpacks all objects into files; returns the path of the object of the file `first`.
pub(crate) fn unpack(mirror: &Path, base: &Oid) -> PathBuf {
    let packed = pack(mirror);
    let outside = mirror.join("outside");
    std::fs::rename(&packed, &outside).unwrap();
    std::fs::remove_file(packed.with_extension("idx")).unwrap();
    std::fs::remove_file(packed.with_extension("rev")).ok();
    let unpacked = std::process::Command::new("git")
        .current_dir(mirror)
        .args(["unpack-objects", "-q"])
        .stdin(std::fs::File::open(&outside).unwrap())
        .status();
    assert!(unpacked.unwrap().success());
    loose(mirror, &git(mirror, &["rev-parse", &format!("{base}:first")]))
}

pub(crate) fn loose(mirror: &Path, id: &str) -> PathBuf {
    mirror.join("objects").join(&id[..2]).join(&id[2..])
}

/// Replaces the object of `first` by another sound object; only its hash differs.
fn swap_file(mirror: &Path, base: &Oid) {
    let right = unpack(mirror, base);
    std::fs::write(mirror.join("wrong"), "wrong\n").unwrap();
    let wrong = git(mirror, &["hash-object", "-w", "wrong"]);
    std::fs::remove_file(&right).unwrap();
    std::fs::copy(loose(mirror, &wrong), right).unwrap();
}

fn told(events: &[v1::Event]) -> Vec<String> {
    let told = events.iter().filter_map(|event| match &event.body {
        Some(Body::Warning(warning)) if warning.message.contains("was damaged") => Some(warning.message.clone()),
        _ => None,
    });
    told.collect()
}

pub(crate) fn verdict(events: &[v1::Event]) -> (i32, String) {
    match events.last().and_then(|event| event.body.clone()) {
        Some(Body::Finished(v1::Finished {
            outcome: Some(Outcome::Verdict(verdict)),
        })) => (verdict.kind, verdict.message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_begins_in_a_damaged_mirror() {
    let served = Served::start().await;
    let source = Source::new(&served);
    source.serve(&served);
    let state = source.state().await;
    let mirror = state.path().join(MIRROR);
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;

    type Damage = fn(&Path);
    let kinds: [(&str, Damage); 5] = [
        ("a pack", zero_pack),
        ("an empty HEAD", |mirror| {
            std::fs::write(mirror.join("HEAD"), "").unwrap()
        }),
        ("a file for the objects", |mirror| {
            std::fs::remove_dir_all(mirror.join("objects")).unwrap();
            std::fs::write(mirror.join("objects"), "").unwrap();
        }),
        ("a config of garbage", |mirror| {
            std::fs::write(mirror.join("config"), "[[").unwrap()
        }),
        ("a file for the mirror", |mirror| {
            std::fs::remove_dir_all(mirror).unwrap();
            std::fs::write(mirror, "").unwrap();
        }),
    ];
    for (n, (name, damage)) in (1..).zip(kinds) {
        damage(&mirror);
        let attempt = served.coordinator.grant(n, work("steps 1")).await;
        let events = served.coordinator.finished(&attempt).await;
        assert_eq!(result(&events).paths, ["step0"], "{name}: {events:#?}");
        assert_eq!(told(&events).len(), 1, "{name}: {events:#?}");
    }
    // The last damage removed the notes about the others, too.
    let healed = HealedMirror::all(state.path());
    assert_eq!(healed.len(), 1);
    assert!(
        healed[0].aside.as_ref().is_some_and(|aside| aside.is_dir()),
        "{healed:?}"
    );
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_is_not_run_on_what_another_object_holds() {
    let served = Served::start().await;
    let source = Source::new(&served);
    source.serve(&served);
    let state = source.state().await;
    let mirror = state.path().join(MIRROR);
    swap_file(&mirror, &source.base);
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let verify = WorkKind::Verify(VerifyWork {
        left_alone: Vec::new(),
        commit: source.base.clone(),
        policy: VerifyPolicy {
            verify: Some("cat first; test \"$(cat first)\" = 1".to_owned()),
            protect: vec!["first".to_owned()],
            ..VerifyPolicy::default()
        },
    });
    let attempt = served.coordinator.grant(1, verify).await;
    let events = served.coordinator.finished(&attempt).await;
    let passed = v1::VerdictKind::Passed.into();
    assert_eq!(verdict(&events), (passed, "verify passed".to_owned()));
    assert_eq!(told(&events).len(), 1, "{events:#?}");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_at_work_goes_on_when_its_mirror_is_damaged() {
    let served = Served::start().await;
    let source = Source::new(&served);
    source.serve(&served);
    let state = source.state().await;
    let mirror = state.path().join(MIRROR);
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let first = served.coordinator.grant(1, work("stuck")).await;
    until(&served, &first, |taken| taken.reason == CheckpointReason::Baseline).await;
    zero_pack(&mirror);
    // Another attempt finds the damage while the first one borrows objects of healed parts.
    let second = served.coordinator.grant(2, work("steps 1")).await;
    let events = served.coordinator.finished(&second).await;
    assert_eq!(
        (result(&events).paths.len(), told(&events).len()),
        (1, 1),
        "{events:#?}"
    );
    served.coordinator.say(ToAgent::TakeCheckpoint(v1::TakeCheckpoint {
        attempt_id: first.clone(),
        note: String::new(),
        reason: v1::CheckpointReason::BeforeRestore.into(),
    }));
    until(&served, &first, |taken| taken.reason == CheckpointReason::BeforeRestore).await;
    agent.hand_back.cancel();
    agent.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_cannot_be_healed_is_a_corrupted_state() {
    let served = Served::start().await;
    let source = Source::new(&served);
    let state = source.state().await;
    let file = unpack(&state.path().join(MIRROR), &source.base);
    std::fs::remove_file(file).unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, work("steps 1")).await;
    let failed = failure(&served.coordinator.finished(&attempt).await);
    assert_eq!(failed.kind, kind(FailureKind::CorruptedState), "{failed:?}");
    assert_eq!(HealedMirror::all(state.path()), []);
    agent.end().await;
}
