//! Many sessions on one repository, with all operations at the same time, as in an agent and a
//! coordinator: no operation fails, and nothing is lost.

use std::fs;
use std::sync::Arc;

use kage_git::restore::{Foreign, RestoreOptions};
use kage_git::{Auth, Expected, Mirror, Worktree};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::sandbox::{Sandbox, url, write};

const SESSIONS: usize = 16;
const ROUNDS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixteen_sessions_on_one_repository_do_everything_at_once() {
    let sandbox = Sandbox::new();
    let files: Vec<(String, String)> = (0..60)
        .map(|n| (format!("d{}/f{n}", n % 7), format!("{n}\n")))
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let source = sandbox.repository("source", &files);
    let (mirror, base) = sandbox.mirror("agent.git", &source).await;
    let (coordinator, _) = sandbox.mirror("coordinator.git", &source).await;
    let together = Arc::new(Barrier::new(SESSIONS));
    let mut sessions = JoinSet::new();
    for number in 0..SESSIONS {
        let (coordinator, base, together) = (coordinator.clone(), base.clone(), Arc::clone(&together));
        let (folder, url) = (sandbox.path(&format!("w{number}")), url(&source));
        // Half of them share one handle, the others opened the mirror themselves.
        let path = mirror.path().to_owned();
        let shared = (number % 2 == 0).then(|| mirror.clone());
        sessions.spawn(async move {
            let mirror = match shared {
                Some(mirror) => mirror,
                None => Mirror::open_or_init(path).await.unwrap(),
            };
            let mut results = Vec::new();
            for round in 0..ROUNDS {
                together.wait().await;
                let spec = format!("HEAD:refs/kage/bases/{number}-{round}");
                mirror.fetch(&url, &Auth::None, &[&spec]).await.unwrap();
                let path = folder.join(round.to_string());
                let worktree = Worktree::create(&mirror, &path, &base).await.unwrap();
                let first = worktree.checkpoint(&base, "first").await.unwrap();
                let own = format!("{number} {round}\n");
                write(&path.join("d1/own"), &own);
                write(&path.join("d1/f1"), &own);
                fs::remove_file(path.join("d2/f2")).unwrap();
                let second = worktree.checkpoint(&first.commit, "second").await.unwrap();
                assert_eq!(second.files_changed, 3);
                // Foreign, so that the restore has to save it first.
                write(&path.join("late"), &own);
                let saving = RestoreOptions {
                    foreign: Foreign::Save,
                    ..RestoreOptions::default()
                };
                let restored = worktree.restore(&first.commit, &saving).await.unwrap();
                assert!(!path.join("late").exists());
                worktree.restore(&restored.safety, &saving).await.unwrap();
                assert_eq!(fs::read_to_string(path.join("late")).unwrap(), own);
                let result = worktree.commit_result("result\n").await.unwrap().unwrap().commit;
                let pack = mirror.thin_pack(&result, std::slice::from_ref(&base)).await.unwrap();
                coordinator.ingest_pack(pack.reopen().unwrap(), &result).await.unwrap();
                let name = format!("refs/kage/results/{number}-{round}");
                coordinator.update_ref(&name, &result, &Expected::Absent).await.unwrap();
                Worktree::remove(&mirror, &path).await.unwrap();
                results.push((name, own, restored.safety));
            }
            results
        });
    }
    let done: Vec<_> = sessions.join_all().await.into_iter().flatten().collect();
    assert_eq!(done.len(), SESSIONS * ROUNDS);
    for repository in [&mirror, &coordinator] {
        sandbox.git(repository.path(), &["fsck", "--strict", "--no-dangling"]);
    }
    for (name, own, safety) in done {
        let there = sandbox.git(coordinator.path(), &["cat-file", "blob", &format!("{name}:late")]);
        assert_eq!(there, own.trim_end());
        // The worktree is gone, what it was is not.
        let there = sandbox.git(mirror.path(), &["cat-file", "blob", &format!("{safety}:d1/own")]);
        assert_eq!(there, own.trim_end());
    }
}
