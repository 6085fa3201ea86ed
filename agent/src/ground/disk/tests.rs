//! Real mirrors with checkpoints of attempts that are over, and of one that is not.

use kage_core::id::{AgentId, AttemptId, AttemptToken, Oid, ProjectId, SessionId};
use kage_git::{Auth, Origin};
use kage_proto::client::{Credentials, Dial};
use kage_proto::convert::agent::AttemptKey;
use tokio::sync::mpsc;

use super::*;
use crate::adapters::hearing::Hearing;
use crate::delivery::live::Stop;
use crate::ground::blobs::Blobs;
use crate::ground::workspace::{Checkout, Healer, ToldFiles};
use crate::identity::trust::Keyring;

struct Place {
    _state: tempfile::TempDir,
    paths: Paths,
    live: Live,
    uses: Uses,
    parking: Parking<Arc<dyn Workspace>>,
    pool: Pool,
}

impl Place {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let paths = Paths::at(state.path());
        Self {
            pool: Pool::new(paths.clone(), Arc::new(rand::random::<u128>)),
            paths,
            live: Live::default(),
            uses: Uses::default(),
            parking: Parking::default(),
            _state: state,
        }
    }

    async fn mirror(&self, name: &str) -> (Mirror, Oid) {
        let path = self.paths.mirrors().join("default").join(name);
        let mirror = Mirror::open_or_init(path).await.unwrap();
        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("a"), "1\n").unwrap();
        kage_git::creation::create(source.path(), "start").await.unwrap();
        let url = format!("file://{}", source.path().display());
        let fetched = mirror
            .fetch(&url, &kage_git::Auth::None, &["HEAD:refs/kage/bases/x"])
            .await;
        fetched.unwrap();
        let base = mirror.resolve("refs/kage/bases/x").await.unwrap().unwrap();
        (mirror, base)
    }

    /// Takes a checkpoint of some size as an attempt that then loses its worktree.
    async fn attempt(&self, n: u128, mirror: &Mirror, base: &Oid) -> String {
        let path = self.paths.worktree(AttemptId::from_random(n));
        let tree = Worktree::create(mirror, &path, base).await.unwrap();
        let bytes: Vec<u8> = (0..60_000_u32)
            .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(n as u32) >> 13) as u8)
            .collect();
        std::fs::write(path.join("big"), bytes).unwrap();
        tree.checkpoint(base, "c").await.unwrap();
        let name = Worktree::name(&path).unwrap();
        Worktree::remove(mirror, &path).await.unwrap();
        name
    }

    fn disk(&self, limits: Limits) -> Disk {
        Disk::new(
            self.paths.clone(),
            limits,
            self.live.clone(),
            self.uses.clone(),
            Checkouts {
                worktrees: Worktrees::default(),
                parking: self.parking.clone(),
                pool: self.pool.clone(),
            },
            Blocking::Threads,
        )
    }
}

#[tokio::test]
async fn the_oldest_checkpoints_go_first_and_undelivered_ones_stay() {
    let place = Place::new();
    let (mirror, base) = place.mirror("repo.git").await;
    let mut names = Vec::new();
    for n in 1..=3 {
        names.push(place.attempt(n, &mirror, &base).await);
    }
    // The oldest is not delivered.
    let key = AttemptKey {
        attempt: AttemptId::from_random(1),
        token: AttemptToken::from_random(1),
    };
    place
        .live
        .insert(key.clone(), Stop::default(), mpsc::channel(1).0, Hearing::default());
    let kept = async || -> BTreeSet<String> {
        let kept = mirror.kept().await.unwrap();
        kept.into_iter().map(|kept| kept.worktree).collect()
    };

    let enough = Limits::default();
    let mut disk = place.disk(enough);
    disk.look().await;
    assert_eq!(kept().await.len(), 3);
    let size = disk.sizes[&names[0]].1;
    let mut disk = place.disk(Limits {
        checkpoints: 2 * size + size / 2,
        ..enough
    });
    disk.look().await;
    assert_eq!(kept().await, BTreeSet::from([names[0].clone(), names[2].clone()]));
    let mut disk = place.disk(Limits {
        checkpoints: 0,
        ..enough
    });
    disk.look().await;
    assert_eq!(kept().await, BTreeSet::from([names[0].clone()]));
    place.live.remove(key.attempt);
    disk.look().await;
    assert_eq!(kept().await.len(), 0);
    let usage = Usage::of(place._state.path()).await;
    assert_eq!((usage.checkpoints, usage.worktrees > 0), (0, true));
    assert!(usage.mirrors > 0);
}

#[tokio::test]
async fn what_was_set_aside_of_damaged_mirrors_goes_before_mirrors_do() {
    let place = Place::new();
    let (mirror, _) = place.mirror("repo.git").await;
    let aside = mirror.path().join("damaged/2026-01-01T00:00:00.000Z");
    std::fs::create_dir_all(&aside).unwrap();
    let blocking = Blocking::default();
    let sound = bytes_in(&blocking, place.paths.mirrors()).await;
    std::fs::write(aside.join("pack"), vec![1; 1 << 20]).unwrap();
    let limits = Limits {
        mirrors: sound + (1 << 19),
        ..Limits::default()
    };
    place.disk(limits).look().await;
    assert!(mirror.path().join("HEAD").exists() && !aside.exists());
    let limits = Limits {
        mirrors: sound + (2 << 20),
        ..Limits::default()
    };
    std::fs::create_dir_all(&aside).unwrap();
    std::fs::write(aside.join("pack"), vec![1; 1 << 20]).unwrap();
    place.disk(limits).look().await;
    assert!(aside.exists(), "there is room for it");
}

#[tokio::test]
async fn a_worktree_that_waits_keeps_its_checkpoints_and_goes_when_it_is_too_much() {
    let place = Place::new();
    let (mirror, base) = place.mirror("repo.git").await;
    let attempt = AttemptId::from_random(1);
    let path = place.paths.worktree(attempt);
    let tree = Worktree::create(&mirror, &path, &base).await.unwrap();
    tree.checkpoint(&base, "c").await.unwrap();
    let in_use = place.uses.of(mirror.path()).read_owned().await;
    let presence = place.parking.begin(SessionId::from_random(1), attempt);
    place.parking.leave(attempt);
    let origin = Origin {
        url: String::new(),
        auth: Auth::None,
    };
    let healer = Healer::new(mirror.path().to_owned(), origin, Vec::new(), Arc::new(|| 0));
    let keyring = Keyring::new(Credentials::default(), Dial::default()).unwrap();
    let checkout = Checkout {
        mirror: mirror.clone(),
        tree,
        healer,
        blobs: Blobs::new("http://nowhere", keyring, AgentId::from_random(1), Arc::new(|| 0)),
        project: ProjectId::default(),
        pool: place.pool.clone(),
        told: ToldFiles::default(),
        _use: in_use,
    };
    let parked = presence.park(Arc::new(checkout), &path);
    assert!(parked.is_ok());

    let mut limits = Limits {
        checkpoints: 0,
        ..Limits::default()
    };
    place.disk(limits).look().await;
    assert!(path.exists());
    assert_eq!(mirror.kept().await.unwrap().len(), 1);
    limits.worktrees = 0;
    place.disk(limits).look().await;
    assert!(!path.exists());
    assert_eq!(mirror.kept().await.unwrap(), []);
}

#[tokio::test]
async fn mirrors_go_when_all_else_is_too_little_but_none_in_use() {
    let place = Place::new();
    let (used, _) = place.mirror("used.git").await;
    let (idle, _) = place.mirror("idle.git").await;
    let in_use = place.uses.of(used.path()).read_owned().await;
    let none = Limits {
        mirrors: 0,
        ..Limits::default()
    };
    place.disk(none).look().await;
    assert!(used.path().exists() && !idle.path().exists());
    drop(in_use);
    place.disk(none).look().await;
    assert!(!used.path().exists());
}

#[tokio::test]
async fn a_mirror_that_is_damaged_does_not_keep_the_checkpoints_of_others() {
    let place = Place::new();
    let (mirror, base) = place.mirror("whole.git").await;
    place.attempt(1, &mirror, &base).await;
    // Earlier in the order of names, and impossible to repair.
    let damaged = place.paths.mirrors().join("default/damaged.git");
    std::fs::create_dir(&damaged).unwrap();
    std::fs::write(damaged.join("objects"), "").unwrap();
    let none = Limits {
        checkpoints: 0,
        ..Limits::default()
    };
    place.disk(none).look().await;
    assert_eq!(mirror.kept().await.unwrap(), []);
}

#[tokio::test]
async fn the_base_contexts_go_that_were_not_used_for_longest_but_none_in_use() {
    let place = Place::new();
    std::fs::create_dir_all(place.paths.contexts()).unwrap();
    let paths: Vec<PathBuf> = (0..3_u64)
        .map(|n| {
            let content = vec![b'x'; 4096 + usize::try_from(n).unwrap()];
            let path = place.paths.context(&kage_core::id::Digest::of(&content));
            std::fs::write(&path, content).unwrap();
            let file = std::fs::File::open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(n))
                .unwrap();
            path
        })
        .collect();
    let there = || paths.iter().map(|path| path.exists()).collect::<Vec<_>>();
    let size = std::fs::metadata(&paths[2]).unwrap().blocks() * 512;
    let _in_use = place.uses.of(&paths[0]).read_owned().await;
    for (contexts, left) in [
        (u64::MAX, [true; 3]),
        (2 * size, [true, false, true]),
        (0, [true, false, false]),
    ] {
        let limits = Limits {
            contexts,
            ..Limits::default()
        };
        place.disk(limits).look().await;
        assert_eq!(there(), left, "{contexts}");
    }
}

#[tokio::test]
async fn checkouts_that_wait_are_counted_and_go_before_work_is_refused() {
    let place = Place::new();
    let (mirror, base) = place.mirror("repo.git").await;
    let mut folders = Vec::new();
    for n in [1, 2] {
        let path = place.paths.worktree(AttemptId::from_random(n));
        let tree = place.pool.worktree(&mirror, &path, &base).await.unwrap();
        if n == 2 {
            place.pool.keep(&mirror, &tree).await;
        }
        folders.extend(place.pool.unmeasured());
    }
    let [folder] = folders.as_slice() else {
        panic!("one waits: {folders:?}")
    };
    let mut limits = Limits::default();
    let mut disk = place.disk(limits);
    disk.look().await;
    assert!(disk.worktrees.bytes() > place.pool.bytes() && place.pool.bytes() > 0);
    assert!(folder.exists());
    limits.worktrees = place.pool.bytes();
    place.disk(limits).look().await;
    assert!(!folder.exists(), "the worktree that is in use takes as much");
    assert!(place.paths.worktree(AttemptId::from_random(1)).exists());
}
