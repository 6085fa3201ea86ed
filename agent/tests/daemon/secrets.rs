//! Secrets that a session writes to its files: its result is held on this machine, and nothing with
//! them reaches the coordinator, whatever the encoding.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use kage_agent::Limits;
use kage_core::failure::FailureKind;
use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_proto::v1::finished::Outcome;

use crate::agent::{Agent, SECRET, failure, kind, work};
use crate::checkpoints::{Source, bodies, git, result, taken};
use crate::coordinator::Served;

/// Everything that a pack puts into a repository, one object after the other.
fn unpacked(repository: &Path, pack: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pack).unwrap();
    let done = Command::new("git")
        .current_dir(repository)
        .args(["index-pack", "--stdin", "--fix-thin"])
        .stdin(File::open(file.path()).unwrap())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let all = Command::new("git")
        .current_dir(repository)
        .args(["cat-file", "--batch", "--batch-all-objects", "--buffer"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&all.stdout).into_owned()
}

fn leaks(text: &str) -> bool {
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    let reversed: String = SECRET.chars().rev().collect();
    [SECRET, &hex, &reversed].iter().any(|form| text.contains(form))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_with_a_secret_is_held_and_nothing_of_it_is_sent() {
    let served = Served::start().await;
    let source = Source::new(&served);
    let state = source.state().await;
    let agent = Agent::start(&served, state.path(), Limits::default());
    served.coordinator.connected(1).await;
    let ways = [
        ("content", "config.env"),
        ("hex", "dump.bin"),
        ("reversed", "notes"),
        ("name", "***"),
        ("folder", "***/x"),
    ];
    for (number, (how, path)) in (1..).zip(ways) {
        let attempt = served.coordinator.grant(number, work(&format!("spill {how}"))).await;
        let events = served.coordinator.finished(&attempt).await;
        let failed = failure(&events);
        assert_eq!(failed.kind, kind(FailureKind::SecretFound), "{how}: {failed:?}");
        let named = format!("secret of SCRIPTED_KEY in {path};");
        assert!(failed.message.contains(&named), "{how}: {failed:?}");
        let committed = bodies(&events).any(|body| matches!(body, Body::ResultCommitted(_)));
        assert!(!committed, "{how}: {events:?}");
        let warned = bodies(&events).any(|body| matches!(body, Body::Warning(text) if text.message.contains(&named)));
        assert!(warned, "{how}: {events:?}");
        assert!(!leaks(&format!("{events:?}")), "{how}: {events:?}");
        // The rest of its work is in checkpoints.
        let packs: Vec<_> = taken(&events).into_iter().filter_map(|taken| taken.pack).collect();
        assert!(!packs.is_empty(), "{how}");
        for pack in packs {
            let pack = served.coordinator.with(|kept| kept.blobs[pack.as_str()].clone());
            let objects = unpacked(source.folder(), &pack);
            assert!(objects.contains("done") && !leaks(&objects), "{how}");
        }
    }
    let attempt = served.coordinator.grant(9, work("spill honest")).await;
    let events = served.coordinator.finished(&attempt).await;
    let end = bodies(&events).last();
    let claimed = matches!(
        end,
        Some(Body::Finished(v1::Finished {
            outcome: Some(Outcome::Claimed(_))
        }))
    );
    assert!(claimed, "{end:?}");
    assert_eq!(result(&events).paths, ["config.env", "step0", "step1"]);
    git(source.folder(), &["fsck", "--strict", "--no-dangling"]);
    agent.end().await;
}
