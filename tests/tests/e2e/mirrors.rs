//! An agent whose mirror is damaged between two tasks: the second task runs like the first.

use std::path::{Path, PathBuf};

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, session, task, verdict};

/// The packs below a folder.
fn packs(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|is| is == "pack") {
                found.push(path);
            }
        }
    }
    found
}

#[tokio::test]
async fn a_damaged_mirror_costs_no_attempt() {
    let mut cluster = Cluster::start().await;
    let solve = format!("cat >/dev/null; cat > add.sh <<'END'\n{SOLUTION}END\n");
    let options = AgentOptions::named("agent").slots(2).script("solve", solve);
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    for round in 0..2 {
        let spec = task("make the test pass").on(&repo).verified_by(VERIFY);
        let id = cluster.create(spec.session("one", SHELL, "solve")).await;
        let ended = cluster.ended(&id).await;
        let one = session(&ended, "one");
        assert_eq!(verdict(one), v1::VerdictKind::Passed, "{round}: {ended:#?}");
        assert_eq!(one.attempts, 1, "{round}: {ended:#?}");
        let mirrors = cluster.agent_dir("agent").join("mirrors");
        let damaged = packs(&mirrors)
            .iter()
            .any(|pack| pack.iter().any(|part| part == "damaged"));
        assert_eq!(damaged, round == 1, "what was damaged is set aside");
        for pack in packs(&mirrors) {
            let mut bytes = std::fs::read(&pack).unwrap();
            bytes[..64].fill(0);
            std::fs::remove_file(&pack).unwrap();
            std::fs::write(&pack, bytes).unwrap();
        }
    }
}
