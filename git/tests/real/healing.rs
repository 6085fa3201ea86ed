//! Damaged mirrors: each kind of damage is recognised from the failing operation and healed in
//! place, and other users of the mirror are not disturbed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kage_core::id::Oid;
use kage_git::mirror::{discard_damaged, incidents};
use kage_git::{Auth, GitError, Mirror, Origin, Wanted, Worktree};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::sandbox::{Sandbox, url, write};

/// The state of the mirror when the damage is done.
struct Place<'a> {
    sandbox: &'a Sandbox,
    mirror: PathBuf,
    base: Oid,
}

impl Place<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.mirror.join(name)
    }

    /// The files of the base's pack with this extension.
    fn pack(&self, extension: &str) -> PathBuf {
        let found = fs::read_dir(self.at("objects/pack"))
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut found: Vec<_> = found
            .filter(|path| path.extension().is_some_and(|is| is == extension))
            .collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    /// Makes files of their own of all objects.
    fn unpack(&self) {
        let pack = self.pack("pack");
        let bytes = fs::read(&pack).unwrap();
        for extension in ["idx", "rev", "pack"] {
            fs::remove_file(pack.with_extension(extension)).ok();
        }
        self.sandbox
            .git_with_input(&self.mirror, &["unpack-objects", "-q"], &bytes);
    }

    /// The file of an object that `revision` of the base names, after unpacking.
    fn loose(&self, revision: &str) -> PathBuf {
        self.unpack();
        let id = self
            .sandbox
            .git(&self.mirror, &["rev-parse", &format!("{}{revision}", self.base)]);
        let file = self.at("objects").join(&id[..2]).join(&id[2..]);
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        file
    }

    fn base_ref(&self) -> PathBuf {
        self.at(&format!("refs/kage/bases/{}", self.base))
    }
}

/// Writes over a part of a file.
fn scribble(path: &Path, at: usize, bytes: &[u8]) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let mut content = fs::read(path).unwrap();
    content[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, content).unwrap();
}

fn cut(path: &Path, to: usize) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let content = fs::read(path).unwrap();
    fs::write(path, &content[..to]).unwrap();
}

/// Puts a folder with something in it in the place of a file.
fn folder_for(path: &Path) {
    fs::remove_file(path).ok();
    write(&path.join("inside"), "x");
}

/// Puts a file in the place of a folder.
fn file_for(path: &Path) {
    fs::remove_dir_all(path).ok();
    fs::write(path, "x").unwrap();
}

type Kind = (&'static str, Spares, fn(&Place<'_>));

/// What stays intact of the other session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spares {
    /// Its checkpoints, which exist nowhere else, and Kage's data about its worktree.
    All,
    /// Its worktree, but not its checkpoints.
    Worktree,
    Nothing,
}

const KINDS: &[Kind] = &[
    ("a pack without its header", Spares::All, |p| {
        scribble(&p.pack("pack"), 0, &[0; 64])
    }),
    ("a pack with a wrong byte", Spares::All, |p| {
        let pack = p.pack("pack");
        let middle = fs::metadata(&pack).unwrap().len() as usize / 2;
        scribble(&pack, middle, b"\xaa\x55\xaa\x55");
    }),
    ("a pack without its end", Spares::All, |p| cut(&p.pack("pack"), 200)),
    ("an empty pack", Spares::All, |p| cut(&p.pack("pack"), 0)),
    ("an index without its pack", Spares::All, |p| {
        fs::remove_file(p.pack("pack")).unwrap()
    }),
    ("a pack without its index", Spares::All, |p| {
        fs::remove_file(p.pack("idx")).unwrap()
    }),
    ("no pack at all", Spares::All, |p| {
        fs::remove_file(p.pack("idx")).unwrap();
        fs::remove_file(p.pack("pack")).unwrap();
    }),
    ("an index of garbage", Spares::All, |p| {
        scribble(&p.pack("idx"), 0, b"garbage!")
    }),
    ("an index without its end", Spares::All, |p| cut(&p.pack("idx"), 1100)),
    ("an empty index", Spares::All, |p| cut(&p.pack("idx"), 0)),
    ("an index with other names", Spares::All, |p| {
        let index = p.pack("idx");
        scribble(&index, 8 + 1024 + 3, b"\xff\xff");
    }),
    ("a reverse index of garbage", Spares::All, |p| {
        let reverse = p.pack("idx").with_extension("rev");
        fs::remove_file(&reverse).ok();
        fs::write(&reverse, [7; 100]).unwrap();
    }),
    ("a folder for a pack", Spares::All, |p| folder_for(&p.pack("pack"))),
    ("a pack that nobody may read", Spares::All, |p| {
        fs::set_permissions(p.pack("pack"), Permissions::from_mode(0o0)).unwrap();
    }),
    ("an empty file", Spares::All, |p| cut(&p.loose(":sub/b"), 0)),
    ("a file of garbage", Spares::All, |p| {
        fs::write(p.loose(":sub/b"), "garbage").unwrap()
    }),
    ("a file without its end", Spares::All, |p| {
        let file = p.loose(":long");
        let half = fs::metadata(&file).unwrap().len() as usize / 2;
        cut(&file, half);
    }),
    ("a file with another sound object", Spares::All, |p| {
        let file = p.loose(":sub/b");
        let other = p.sandbox.git(&p.mirror, &["rev-parse", &format!("{}:a", p.base)]);
        fs::copy(p.at("objects").join(&other[..2]).join(&other[2..]), file).unwrap();
    }),
    ("a missing file", Spares::All, |p| {
        fs::remove_file(p.loose(":sub/b")).unwrap()
    }),
    ("a missing folder", Spares::All, |p| {
        fs::remove_file(p.loose(":sub")).unwrap()
    }),
    ("an empty tree file", Spares::All, |p| cut(&p.loose("^{tree}"), 0)),
    ("an empty commit", Spares::All, |p| cut(&p.loose(""), 0)),
    ("a commit without its past", Spares::All, |p| {
        fs::remove_file(p.loose("^")).unwrap()
    }),
    ("a folder for an object", Spares::All, |p| {
        folder_for(&p.loose(":sub/b"))
    }),
    ("a file for a folder of objects", Spares::Worktree, |p| {
        file_for(p.loose(":sub/b").parent().unwrap())
    }),
    ("packed references of garbage", Spares::All, |p| {
        p.sandbox.git(&p.mirror, &["pack-refs", "--all"]);
        fs::write(p.at("packed-refs"), "garbage\n").unwrap();
    }),
    ("packed references without their end", Spares::All, |p| {
        p.sandbox.git(&p.mirror, &["pack-refs", "--all"]);
        let length = fs::metadata(p.at("packed-refs")).unwrap().len() as usize;
        cut(&p.at("packed-refs"), length - 30);
    }),
    ("an empty reference", Spares::All, |p| {
        fs::write(p.base_ref(), "").unwrap()
    }),
    ("a reference of garbage", Spares::All, |p| {
        fs::write(p.base_ref(), "garbage\n").unwrap()
    }),
    ("a reference to nothing", Spares::All, |p| {
        fs::write(p.base_ref(), format!("{}\n", "1".repeat(40))).unwrap()
    }),
    ("a folder for a reference", Spares::All, |p| folder_for(&p.base_ref())),
    ("a file for the references of bases", Spares::All, |p| {
        file_for(&p.at("refs/kage/bases"))
    }),
    ("a file for references", Spares::Worktree, |p| file_for(&p.at("refs"))),
    ("no references", Spares::Worktree, |p| {
        fs::remove_dir_all(p.at("refs")).unwrap()
    }),
    ("no HEAD", Spares::All, |p| fs::remove_file(p.at("HEAD")).unwrap()),
    ("an empty HEAD", Spares::All, |p| cut(&p.at("HEAD"), 0)),
    ("a HEAD of garbage", Spares::All, |p| {
        fs::write(p.at("HEAD"), [0xff; 40]).unwrap()
    }),
    ("a folder for HEAD", Spares::All, |p| folder_for(&p.at("HEAD"))),
    ("no config", Spares::All, |p| fs::remove_file(p.at("config")).unwrap()),
    ("an empty config", Spares::All, |p| cut(&p.at("config"), 0)),
    ("a config of garbage", Spares::All, |p| {
        fs::write(p.at("config"), "[[[\0").unwrap()
    }),
    ("a folder for config", Spares::All, |p| folder_for(&p.at("config"))),
    ("a file for objects", Spares::Worktree, |p| file_for(&p.at("objects"))),
    ("no objects", Spares::Worktree, |p| {
        fs::remove_dir_all(p.at("objects")).unwrap()
    }),
    ("a file for packs", Spares::All, |p| file_for(&p.at("objects/pack"))),
    ("a folder that nobody may enter", Spares::All, |p| {
        fs::set_permissions(p.at("objects/pack"), Permissions::from_mode(0o0)).unwrap();
    }),
    ("a file for checkouts", Spares::Nothing, |p| {
        file_for(&p.at("checkouts"))
    }),
    ("a folder for Kage's lock", Spares::All, |p| {
        folder_for(&p.at("kage.lock"))
    }),
    ("a folder for the users' lock", Spares::All, |p| {
        folder_for(&p.at("users.lock"))
    }),
    ("history that is said to be cut", Spares::All, |p| {
        fs::write(p.at("shallow"), "garbage\n").unwrap()
    }),
    ("objects from elsewhere", Spares::All, |p| {
        fs::remove_file(p.pack("idx")).unwrap();
        fs::write(p.at("objects/info/alternates"), "/nowhere\n").unwrap();
    }),
    ("a commit graph of garbage", Spares::All, |p| {
        fs::write(p.at("objects/info/commit-graph"), [0xa5; 2000]).unwrap();
    }),
    ("a file for the mirror", Spares::Nothing, |p| file_for(&p.mirror)),
];

/// The operations of an attempt on a mirror, including verify's check of the objects.
async fn work(path: &Path, origin: &Origin, base: &Oid, tree: &Path) -> Result<Worktree, GitError> {
    let mirror = Mirror::open_or_init(path).await?;
    let name = format!("refs/kage/bases/{base}");
    if !mirror.has_commit(base).await? {
        mirror
            .fetch(&origin.url, &origin.auth, &[&format!("+{name}:{name}")])
            .await?;
    }
    mirror.check_files_of(std::slice::from_ref(base)).await?;
    let tree = Worktree::create(&mirror, tree, base).await?;
    write(&tree.path().join("new"), "new\n");
    let taken = tree.checkpoint(base, "new").await?;
    mirror.thin_pack(&taken.commit, std::slice::from_ref(base)).await?;
    Ok(tree)
}

async fn heals(name: &str, spares: Spares, damage: fn(&Place<'_>)) {
    let sandbox = Sandbox::new();
    let long: String = (0..20_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_string())
        .collect();
    let repository = sandbox.repository("origin", &[("a", "1\n"), ("sub/b", "2\n"), ("long", &long)]);
    write(&repository.join("sub/deep/c"), "3\n");
    sandbox.commit(&repository, "next");
    let (mirror, base) = sandbox.mirror("m.git", &repository).await;
    // The coordinator's references have the same names.
    sandbox.git(
        &repository,
        &["update-ref", &format!("refs/kage/bases/{base}"), base.as_str()],
    );
    let path = mirror.path().to_owned();
    let origin = Origin {
        url: url(&repository),
        auth: Auth::None,
    };
    let other = Worktree::create(&mirror, sandbox.path("other"), &base).await.unwrap();
    write(&other.path().join("a"), "changed\n");
    let first = other.checkpoint(&base, "first").await.unwrap();
    drop(mirror);

    let place = Place {
        sandbox: &sandbox,
        mirror: path.clone(),
        base: base.clone(),
    };
    damage(&place);
    if let Err(error) = work(&path, &origin, &base, &sandbox.path("w1")).await {
        assert!(error.suggests_damage(&path), "{name}: {error:?}");
    }
    let wanted = [Wanted::base(&base)];
    let healed = Mirror::heal(&path, &origin, &wanted).await;
    let healed = healed.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    let found = healed.is_some();
    if let Some(incident) = healed {
        assert!(!incident.what.is_empty(), "{name}");
        assert!(incident.aside.as_ref().is_none_or(|aside| aside.is_dir()), "{name}");
        assert_eq!(incidents(&path).last(), Some(&incident), "{name}");
    }
    let again = Mirror::heal(&path, &origin, &wanted).await.unwrap();
    assert_eq!(again, None, "{name}: it is sound after it was healed");
    let tree = work(&path, &origin, &base, &sandbox.path("w2")).await;
    let tree = tree.unwrap_or_else(|error| panic!("{name} (found: {found}): {error:?}"));
    assert_eq!(fs::read_to_string(tree.path().join("sub/b")).unwrap(), "2\n", "{name}");
    sandbox.git(&path, &["fsck", "--strict", "--no-dangling"]);

    if spares == Spares::Nothing {
        return;
    }
    // The session's own repository still borrows the mirror's objects.
    sandbox.git(other.path(), &["fsck", "--no-dangling"]);
    assert_eq!(sandbox.git(other.path(), &["status", "--short"]), " M a", "{name}");
    let result = other.commit_result("result").await;
    let result = result.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    assert!(result.is_some(), "{name}");
    if spares == Spares::All {
        write(&other.path().join("a"), "changed again\n");
        let next = other.checkpoint(&first.commit, "next").await;
        next.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_damage_is_recognised_and_healed_in_place() {
    // Most of the time is waiting for the disk.
    let turns = Arc::new(Semaphore::new(4));
    let mut running = JoinSet::new();
    for (name, spares, damage) in KINDS {
        let turns = Arc::clone(&turns);
        running.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            heals(name, *spares, *damage).await;
        });
    }
    let mut failed = Vec::new();
    while let Some(healed) = running.join_next().await {
        failed.extend(healed.err());
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn a_sound_object_under_the_name_of_another_is_found_before_it_is_verified() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("origin", &[("a", "1\n"), ("sub/b", "2\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &repository).await;
    mirror.check_files_of(std::slice::from_ref(&base)).await.unwrap();
    let place = Place {
        sandbox: &sandbox,
        mirror: mirror.path().to_owned(),
        base: base.clone(),
    };
    let file = place.loose(":sub/b");
    let other = sandbox.git(mirror.path(), &["rev-parse", &format!("{base}:a")]);
    fs::copy(place.at("objects").join(&other[..2]).join(&other[2..]), file).unwrap();
    // A checkout takes it as it is.
    let tree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    assert_eq!(fs::read_to_string(tree.path().join("sub/b")).unwrap(), "1\n");
    let found = mirror.check_files_of(std::slice::from_ref(&base)).await.unwrap_err();
    assert!(found.suggests_damage(mirror.path()), "{found:?}");
}

#[tokio::test]
async fn a_sound_mirror_is_left_as_it_is() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("origin", &[("a", "1\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &repository).await;
    let origin = Origin {
        url: url(&repository),
        auth: Auth::None,
    };
    let before = crate::sandbox::fingerprint(mirror.path());
    let healed = Mirror::heal(mirror.path(), &origin, &[Wanted::base(&base)])
        .await
        .unwrap();
    assert_eq!(healed, None);
    assert!(before == crate::sandbox::fingerprint(mirror.path()));
}

#[tokio::test]
async fn nothing_is_taken_away_when_nothing_can_be_fetched() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("origin", &[("a", "1\n"), ("b", "2\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &repository).await;
    let origin = Origin {
        url: url(&sandbox.path("nowhere")),
        auth: Auth::None,
    };
    let place = Place {
        sandbox: &sandbox,
        mirror: mirror.path().to_owned(),
        base: base.clone(),
    };
    fs::write(place.loose(":b"), "garbage").unwrap();
    let failed = Mirror::heal(mirror.path(), &origin, &[Wanted::base(&base)]).await;
    assert!(
        matches!(failed, Err(GitError::Failed { operation: "fetch", .. })),
        "{failed:?}"
    );
    assert!(!mirror.path().join("damaged").exists());
    assert_eq!(incidents(mirror.path()), []);
}

#[tokio::test]
async fn what_is_set_aside_is_bounded_and_can_be_discarded() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("origin", &[("a", "1\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &repository).await;
    sandbox.git(
        &repository,
        &["update-ref", &format!("refs/kage/bases/{base}"), base.as_str()],
    );
    let origin = Origin {
        url: url(&repository),
        auth: Auth::None,
    };
    for _ in 0..6 {
        fs::write(mirror.path().join("HEAD"), "garbage").unwrap();
        let healed = Mirror::heal(mirror.path(), &origin, &[Wanted::base(&base)])
            .await
            .unwrap();
        let aside = healed.unwrap().aside.unwrap();
        assert_eq!(fs::read_to_string(aside.join("HEAD")).unwrap(), "garbage");
    }
    let kept = fs::read_dir(mirror.path().join("damaged")).unwrap().count();
    let told = incidents(mirror.path());
    assert_eq!((kept, told.len()), (3, 6));
    assert!(told.iter().is_sorted_by_key(|incident| incident.at));
    discard_damaged(mirror.path()).unwrap();
    discard_damaged(mirror.path()).unwrap();
    assert!(!mirror.path().join("damaged").exists());
    assert_eq!(incidents(mirror.path()).len(), 6);
}
