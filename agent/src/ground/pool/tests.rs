use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use kage_git::Auth;
use tempfile::TempDir;

use super::*;

struct Setting {
    folder: TempDir,
    mirror: Mirror,
    base: Oid,
    pool: Pool,
}

impl Setting {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "of the base\n").unwrap();
        git(&source, &["init", "--quiet"]);
        git(&source, &["add", "."]);
        git(&source, &["commit", "--quiet", "--message", "base"]);
        let base: Oid = git(&source, &["rev-parse", "HEAD"]).parse().unwrap();
        let state = folder.path().join("state");
        let path = state.join("mirrors/project/name.git");
        fs::create_dir_all(&path).unwrap();
        let mirror = Mirror::open_or_init(&path).await.unwrap();
        let spec = format!("HEAD:refs/kage/bases/{base}");
        let url = format!("file://{}", source.display());
        mirror.fetch(&url, &Auth::None, &[&spec]).await.unwrap();
        let pool = Pool::new(Paths::at(&state), Arc::new(rand::random::<u128>));
        Self {
            folder,
            mirror,
            base,
            pool,
        }
    }

    async fn worktree(&self, name: &str) -> Worktree {
        let path = self.folder.path().join("state/worktrees").join(name);
        self.pool.worktree(&self.mirror, &path, &self.base).await.unwrap()
    }
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=Ann", "-c", "user.email=ann@example.com"]);
    let output = command.args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn inode(worktree: &Worktree) -> u64 {
    fs::metadata(worktree.path().join("file")).unwrap().ino()
}

#[tokio::test]
async fn a_finished_worktree_becomes_the_next_one_also_after_a_restart() {
    let mut setting = Setting::new().await;
    let first = setting.worktree("1").await;
    let beside = setting.worktree("2").await;
    let (used, other) = (inode(&first), inode(&beside));
    assert_ne!(used, other, "nobody shares one");
    fs::write(first.path().join("left"), "by a session").unwrap();
    setting.pool.keep(&setting.mirror, &first).await;
    assert!(!first.path().exists());
    let second = setting.worktree("3").await;
    assert_eq!(inode(&second), used);
    assert!(!second.path().join("left").exists());

    setting.pool.keep(&setting.mirror, &second).await;
    setting.pool.keep(&setting.mirror, &beside).await;
    let half_done = setting.folder.path().join("state/pool/project/name.git/half");
    fs::create_dir_all(half_done.join("files")).unwrap();
    let paths = Paths::at(&setting.folder.path().join("state"));
    setting.pool = Pool::new(paths, Arc::new(rand::random::<u128>));
    setting.pool.recover();
    assert_eq!(setting.pool.discarded(), [half_done]);
    let mut again = [inode(&setting.worktree("4").await), inode(&setting.worktree("5").await)];
    again.sort_unstable();
    let mut both = [used, other];
    both.sort_unstable();
    assert_eq!(again, both);
}

#[tokio::test]
async fn the_oldest_goes_first_and_what_nobody_uses_goes_some_time() {
    let setting = Setting::new().await;
    let pool = &setting.pool;
    let (one, two) = (setting.worktree("1").await, setting.worktree("2").await);
    pool.keep(&setting.mirror, &one).await;
    pool.keep(&setting.mirror, &two).await;
    let folders = pool.unmeasured();
    pool.measured(&folders[0], 10);
    pool.measured(&folders[1], 100);
    assert_eq!((pool.bytes(), pool.unmeasured().len()), (110, 0));
    assert!(pool.discard_oldest());
    assert_eq!((pool.bytes(), pool.discarded()), (100, vec![folders[0].clone()]));
    pool.discard_unused(SystemTime::now());
    assert_eq!(pool.bytes(), 100);
    pool.discard_unused(SystemTime::now() + UNUSED);
    assert_eq!((pool.bytes(), pool.discarded()), (0, vec![folders[1].clone()]));
    assert!(!pool.discard_oldest());
}

#[tokio::test]
async fn an_attempt_that_is_stopped_meanwhile_leaves_no_checkout_behind() {
    let setting = Setting::new().await;
    let worktree = setting.worktree("1").await;
    setting.pool.keep(&setting.mirror, &worktree).await;
    let folder = setting.pool.unmeasured().remove(0);
    let taken = setting.pool.take(&setting.mirror, &setting.base);
    assert!(taken.is_some() && setting.pool.unmeasured().is_empty());
    drop(taken);
    assert_eq!(setting.pool.discarded(), [folder]);
}
