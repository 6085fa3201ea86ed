//! Caches of a home folder that is made here.

use std::os::unix::fs::{MetadataExt as _, symlink};

use super::*;

/// A home folder with caches, below a folder of its own.
fn home(top: &Path) -> PathBuf {
    let home = top.join("home");
    for (path, content) in [
        (".npm/_cacache/content/ab", "a package"),
        (".npm/_cacache/.npmrc", "a token"),
        (".npm/.npmrc", "a token"),
        (".cache/pip/http/one", "0123456789"),
        (".cache/pip/pip.conf", "a password"),
        (".cache/pip/wheels/certifi/cacert.pem", "a part of a package"),
        (".ssh/id_rsa", "a key"),
    ] {
        let file = home.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    fs::set_permissions(home.join(".npm/_cacache/content/ab"), fs::Permissions::from_mode(0o444)).unwrap();
    symlink("/etc", home.join(".npm/_cacache/link")).unwrap();
    symlink("../../etc", home.join(".m2")).unwrap();
    home
}

fn give(home: &Path, to: &Path, settings: &CacheSettings) {
    copy_all(home, to, &look(home, to, settings), &CancellationToken::new());
}

fn settings(share: &[&str], most_copied: u64) -> CacheSettings {
    CacheSettings {
        share: share.iter().map(ToString::to_string).collect(),
        most_copied,
    }
}

#[test]
fn an_attempt_gets_a_copy_of_its_own_without_logins() {
    let top = tempfile::tempdir().unwrap();
    let (home, to) = (home(top.path()), top.path().join("to"));
    fs::create_dir(&to).unwrap();
    let all = settings(
        &["~/.npm/", ".npm/_cacache", ".cache/pip", ".ssh", "../x", ".m2", ".none"],
        1000,
    );
    let found = look(&home, &to, &all);
    let paths: Vec<&str> = found.iter().map(|cache| cache.path.as_str()).collect();
    assert_eq!(paths, [".npm", ".npm/_cacache", ".cache/pip"]);
    let expected = match can_clone(&home.join(".cache/pip/http/one"), &to) {
        true => CacheSharing::CopiedOnWrite,
        false => CacheSharing::Copied,
    };
    assert!(found.iter().all(|cache| cache.sharing == expected), "{found:?}");
    give(&home, &to, &settings(&["~/.npm/", ".cache/pip", ".ssh"], 1000));
    let package = ".npm/_cacache/content/ab";
    assert_eq!(fs::read_to_string(to.join(package)).unwrap(), "a package");
    assert_eq!(
        fs::metadata(to.join(package)).unwrap().permissions().mode() & 0o777,
        0o444
    );
    let times = [&home, &to].map(|top| fs::metadata(top.join(package)).unwrap().modified().unwrap());
    assert_eq!(times[0], times[1]);
    for absent in [
        ".npm/.npmrc",
        ".npm/_cacache/.npmrc",
        ".npm/_cacache/link",
        ".cache/pip/pip.conf",
        ".ssh",
    ] {
        assert!(fs::symlink_metadata(to.join(absent)).is_err(), "{absent}");
    }
    assert!(to.join(".cache/pip/wheels/certifi/cacert.pem").exists());
    // Once more nothing changes, and nothing that was there is removed.
    fs::write(to.join(".cache/pip/own"), "the task's").unwrap();
    give(&home, &to, &settings(&["~/.npm/", ".npm/_cacache", ".cache/pip"], 1000));
    assert!(to.join(".cache/pip/own").exists() && to.join(package).exists());
    // Writing into one is not writing into the other.
    let (one, other) = (home.join(".cache/pip/http/one"), to.join(".cache/pip/http/one"));
    assert_ne!(fs::metadata(&one).unwrap().ino(), fs::metadata(&other).unwrap().ino());
    fs::write(&other, "changed").unwrap();
    assert_eq!(fs::read_to_string(&one).unwrap(), "0123456789");
}

#[test]
fn what_is_too_large_for_a_plain_copy_is_not_given() {
    let top = tempfile::tempdir().unwrap();
    let (home, to) = (home(top.path()), top.path().join("to"));
    fs::create_dir(&to).unwrap();
    if can_clone(&home.join(".cache/pip/http/one"), &to) {
        eprintln!("SKIPPED: this file system shares content");
        return;
    }
    // Together they are too large.
    let both = settings(&[".cache/pip", ".npm/_cacache"], 31);
    let sharing: Vec<_> = look(&home, &to, &both).into_iter().map(|cache| cache.sharing).collect();
    assert_eq!(sharing, [CacheSharing::Copied, CacheSharing::TooLarge { most: 2 }]);
    give(&home, &to, &both);
    assert!(to.join(".cache/pip/http/one").exists() && !to.join(".npm").exists());
}

#[tokio::test(start_paused = true)]
async fn attempts_that_begin_together_look_once() {
    let top = tempfile::tempdir().unwrap();
    let (home, to) = (home(top.path()), top.path().join("to"));
    fs::create_dir(&to).unwrap();
    let caches = Caches::new(settings(&[".cache/pip"], 1000));
    let (blocking, go_on) = (Blocking::default(), CancellationToken::new());
    let found = async || caches.found(&blocking, &home, &to, &go_on).await.unwrap().unwrap();
    let first = found().await;
    fs::write(home.join(".cache/pip/http/two"), "more").unwrap();
    assert!(Arc::ptr_eq(&first, &found().await));
    tokio::time::advance(FOUND_COUNTS).await;
    let later = found().await;
    assert_eq!(later[0].size.files, first[0].size.files + 1);
}

#[tokio::test]
async fn a_stopped_attempt_neither_looks_nor_copies_further() {
    let top = tempfile::tempdir().unwrap();
    let (home, to) = (home(top.path()), top.path().join("to"));
    fs::create_dir(&to).unwrap();
    let caches = Caches::new(settings(&[".cache/pip"], 1000));
    let (blocking, stop) = (Blocking::default(), CancellationToken::new());
    stop.cancel();
    assert!(look_until(&home, &to, &caches.settings, &stop).is_none());
    copy_all(&home, &to, &look(&home, &to, &caches.settings), &stop);
    let copied = |path: &str| to.join(path).exists();
    assert!(!copied(".cache/pip/http/one"));
    // What it did not find counts for nobody.
    caches.give(&blocking, &home, &to, &stop).await.unwrap();
    assert!(!copied(".cache/pip/http/one"));
    caches
        .give(&blocking, &home, &to, &CancellationToken::new())
        .await
        .unwrap();
    assert!(copied(".cache/pip/http/one"));
}
