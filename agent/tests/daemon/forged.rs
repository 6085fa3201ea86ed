//! Verify attempts on a machine whose mirror or kept checkout somebody wrote into: no verdict is made on
//! what is there. Each with the honest attempt beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_agent::Limits;
use kage_core::failure::FailureKind;
use kage_core::task::VerifyPolicy;
use kage_proto::convert::agent::{VerifyWork, WorkKind};
use kage_proto::v1;
use kage_proto::v1::event::Body;

use crate::agent::{Agent, failure, kind};
use crate::checkpoints::{Source, git};
use crate::coordinator::{DEADLINE, Served};
use crate::healing::{MIRROR, loose, pack, unpack, verdict};

/// Passes when `first` is as the base has it and nothing else is there.
fn check(source: &Source, protect: &[&str]) -> WorkKind {
    WorkKind::Verify(VerifyWork {
        left_alone: Vec::new(),
        commit: source.base.clone(),
        policy: VerifyPolicy {
            verify: Some("test \"$(cat first)\" = 1 && test \"$(ls)\" = first".to_owned()),
            protect: protect.iter().map(ToString::to_string).collect(),
            ..VerifyPolicy::default()
        },
    })
}

fn warnings(events: &[v1::Event]) -> Vec<String> {
    let told = events.iter().filter_map(|event| match &event.body {
        Some(Body::Warning(warning)) => Some(warning.message.clone()),
        _ => None,
    });
    told.collect()
}

fn passed() -> (i32, String) {
    (v1::VerdictKind::Passed.into(), "verify passed".to_owned())
}

/// The checkout that the agent kept, once it is there.
async fn kept(state: &Path) -> PathBuf {
    let pool = state.join("pool/default/repo.git");
    let looking = async {
        loop {
            let mut entries = std::fs::read_dir(&pool).into_iter().flatten().flatten();
            if let Some(found) = entries.find(|entry| entry.path().join("index").is_file()) {
                return found.path();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looking)
        .await
        .expect("a checkout is kept")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_checkout_that_was_written_into_is_made_anew() {
    let served = Served::start().await;
    let source = Source::new(&served);
    source.serve(&served);
    let state = source.state().await;
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    type Forge = fn(&Path, &Path);
    let kinds: [(&str, Option<Forge>); 4] = [
        ("a new checkout", None),
        ("a kept one", None),
        (
            "a file that git does not look at",
            Some(|kept, mirror| {
                std::fs::write(kept.join("files/first"), "9\n").unwrap();
                let skipping = std::process::Command::new("git")
                    .current_dir(kept.join("files"))
                    .env("GIT_DIR", mirror)
                    .env("GIT_WORK_TREE", kept.join("files"))
                    .env("GIT_INDEX_FILE", kept.join("index"))
                    .args(["update-index", "--skip-worktree", "first"])
                    .status();
                assert!(skipping.unwrap().success());
            }),
        ),
        (
            "a new file",
            Some(|kept, _| std::fs::write(kept.join("files/sitecustomize.py"), "").unwrap()),
        ),
    ];
    for (number, (name, forge)) in (1..).zip(kinds) {
        if number > 1 {
            let kept = kept(state.path()).await;
            if let Some(forge) = forge {
                forge(&kept, &state.path().join(MIRROR));
            }
        }
        let attempt = served.coordinator.grant(number, check(&source, &[])).await;
        let events = served.coordinator.finished(&attempt).await;
        assert_eq!(verdict(&events), passed(), "{name}: {events:#?}");
        let told = warnings(&events);
        let is_told = told.iter().any(|text| text.contains("not as its commit has it"));
        assert_eq!(is_told, forge.is_some(), "{name}: {told:?}");
    }
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_and_a_packed_file_under_another_name_are_found_before_the_verdict() {
    let served = Served::start().await;
    let source = Source::new(&served);
    source.serve(&served);
    type Forge = fn(&Path, &Source);
    let kinds: [(&str, bool, Forge); 3] = [
        ("nothing", false, |_, _| {}),
        ("a folder", true, |mirror, source| {
            unpack(mirror, &source.base);
            let (wrong, right) = wrong(mirror, source);
            std::fs::remove_file(loose(mirror, &right)).unwrap();
            std::fs::copy(loose(mirror, &wrong), loose(mirror, &right)).unwrap();
        }),
        ("a pack", true, |mirror, source| {
            let file = unpack(mirror, &source.base);
            std::fs::write(mirror.join("wrong"), "9\n").unwrap();
            let wrong = git(mirror, &["hash-object", "-w", "wrong"]);
            std::fs::remove_file(&file).unwrap();
            std::fs::copy(loose(mirror, &wrong), &file).unwrap();
            // The packer believes the names of files, and its own checksums are right.
            let objects = mirror.join("objects/pack/pack");
            let all = git(mirror, &["rev-list", "--objects", source.base.as_str()]);
            let ids: Vec<&str> = all.lines().filter_map(|line| line.split(' ').next()).collect();
            std::fs::write(mirror.join("ids"), ids.join("\n") + "\n").unwrap();
            let packing = std::process::Command::new("git")
                .current_dir(mirror)
                .args(["pack-objects", "-q", objects.to_str().unwrap()])
                .stdin(std::fs::File::open(mirror.join("ids")).unwrap())
                .stdout(std::process::Stdio::null())
                .status();
            assert!(packing.unwrap().success());
            for id in ids {
                std::fs::remove_file(loose(mirror, id)).unwrap();
            }
            assert!(pack(mirror).is_file());
        }),
    ];
    for (number, (name, is_forged, forge)) in (1..).zip(kinds) {
        let state = source.state().await;
        forge(&state.path().join(MIRROR), &source);
        let agent = Agent::start(&served, state.path(), Limits::default());
        served.coordinator.connected(number).await;
        let attempt = served
            .coordinator
            .grant(number as u128, check(&source, &["first"]))
            .await;
        let events = served.coordinator.finished(&attempt).await;
        assert_eq!(verdict(&events), passed(), "{name}: {events:#?}");
        let told = warnings(&events);
        let is_healed = told.iter().any(|text| text.contains("was damaged"));
        assert_eq!(is_healed, is_forged, "{name}: {told:?}");
        agent.end().await;
    }
}

/// A folder in the mirror with another `first`, and the one of the base.
fn wrong(mirror: &Path, source: &Source) -> (String, String) {
    std::fs::write(mirror.join("wrong"), "9\n").unwrap();
    let file = git(mirror, &["hash-object", "-w", "wrong"]);
    std::fs::write(mirror.join("entries"), format!("100644 blob {file}\tfirst\n")).unwrap();
    let making = std::process::Command::new("git")
        .current_dir(mirror)
        .args(["mktree"])
        .stdin(std::fs::File::open(mirror.join("entries")).unwrap())
        .output()
        .unwrap();
    assert!(making.status.success());
    let folder = String::from_utf8(making.stdout).unwrap().trim().to_owned();
    let right = git(mirror, &["rev-parse", &format!("{}^{{tree}}", source.base)]);
    (folder, right)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_objects_there_is_no_verdict() {
    let served = Served::start().await;
    let source = Source::new(&served);
    // Nobody gives the base: what is forged cannot be replaced.
    let state = source.state().await;
    let mirror = state.path().join(MIRROR);
    let file = unpack(&mirror, &source.base);
    std::fs::write(mirror.join("wrong"), "9\n").unwrap();
    let wrong = git(&mirror, &["hash-object", "-w", "wrong"]);
    std::fs::remove_file(&file).unwrap();
    std::fs::copy(loose(&mirror, &wrong), &file).unwrap();
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let attempt = served.coordinator.grant(1, check(&source, &[])).await;
    let failed = failure(&served.coordinator.finished(&attempt).await);
    assert_eq!(failed.kind, kind(FailureKind::CorruptedState), "{failed:?}");
    agent.end().await;
}
