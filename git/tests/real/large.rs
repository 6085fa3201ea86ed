//! Files behind Git LFS: in sessions and checks, in results, and landed. git-lfs is a stand-in.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kage_core::id::{Digest, Oid};
use kage_core::task::ResultRules;
use kage_git::landing::checkout::{ResultCheckout, check_out};
use kage_git::restore::RestoreOptions;
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions, Warning};
use kage_git::{Auth, Mirror, UserRepo, Worktree};

use crate::sandbox::{Sandbox, fingerprint, protecting, url, write};

const STEP: &str = env!("CARGO_BIN_EXE_kage-git-step");
pub(crate) const ATTRIBUTES: &str = "*.bin filter=lfs diff=lfs merge=lfs -text\n";

/// Sets git-lfs up for everything that the person does.
pub(crate) fn install(sandbox: &Sandbox, kinds: &[&str]) {
    let mut text = "[filter \"lfs\"]\n\trequired = true\n".to_owned();
    for kind in kinds {
        text += &format!("\t{kind} = \"'{STEP}' lfs {kind}\"\n");
    }
    write(&sandbox.path("home").join(".gitconfig"), text);
}

pub(crate) fn content(name: &str) -> String {
    format!("{name}\n").repeat(500)
}

pub(crate) fn pointer(content: &str) -> String {
    let digest = Digest::of(content.as_bytes());
    let size = content.len();
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n")
}

/// Where git-lfs keeps a content.
pub(crate) fn place(repository: &Path, content: &str) -> PathBuf {
    let digest = Digest::of(content.as_bytes());
    let digest = digest.as_str();
    let folder = repository.join(".git/lfs/objects");
    folder.join(&digest[..2]).join(&digest[2..4]).join(digest)
}

/// A repository with two files behind Git LFS.
fn project(sandbox: &Sandbox) -> PathBuf {
    install(sandbox, &["clean", "smudge", "process"]);
    let (one, two) = (content("one"), content("two"));
    let files = [
        (".gitattributes", ATTRIBUTES),
        ("a.bin", &one),
        ("d/b.bin", &two),
        ("text", "1\n2\n3\n"),
    ];
    let source = sandbox.repository("source", &files);
    fs::set_permissions(source.join("d/b.bin"), fs::Permissions::from_mode(0o755)).unwrap();
    sandbox.commit(&source, "a program");
    assert_eq!(sandbox.git(&source, &["show", "HEAD:a.bin"]) + "\n", pointer(&one));
    // This process has another HOME, and knows the filter by the repository alone.
    sandbox.git(&source, &["config", "filter.lfs.clean", "false"]);
    source
}

async fn snapshot(repository: &Path, options: &SnapshotOptions) -> Snapshot {
    let found = UserRepo::discover(repository).await.unwrap();
    Snapshot::take(&found, options).await.unwrap()
}

async fn sent(sandbox: &Sandbox, source: &Path) -> (Mirror, Oid, Oid) {
    let taken = snapshot(source, &SnapshotOptions::default()).await;
    assert_eq!(taken.warnings, []);
    let mirror = Mirror::open_or_init(sandbox.path("m.git")).await.unwrap();
    let there = url(mirror.path());
    taken.push(&there, &Auth::None, Receiver::New).await.unwrap();
    (mirror, taken.base.clone(), taken.names.clone().unwrap())
}

async fn worktree(sandbox: &Sandbox, mirror: &Mirror, name: &str, commit: &Oid, names: &Oid) -> Worktree {
    let worktree = Worktree::create(mirror, sandbox.path(name), commit).await.unwrap();
    worktree.give_names(names).await.unwrap();
    worktree.fill_large(names).await.unwrap();
    worktree
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap()
}

/// What a commit has at a path: its mode and content.
fn stored(sandbox: &Sandbox, repository: &Path, commit: &Oid, path: &str) -> (String, String) {
    let listed = sandbox.git(repository, &["ls-tree", commit.as_str(), path]);
    let text = sandbox.git(repository, &["show", &format!("{commit}:{path}")]);
    (listed.split(' ').next().unwrap().to_owned(), text + "\n")
}

#[tokio::test]
async fn a_session_has_contents_and_an_unchanged_file_stays_a_pointer() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let before = fingerprint(&source);
    let (mirror, base, names) = sent(&sandbox, &source).await;
    assert_eq!(fingerprint(&source), before);
    let session = worktree(&sandbox, &mirror, "session", &base, &names).await;
    let top = session.path();
    assert_eq!(
        (read(top, "a.bin"), read(top, "d/b.bin")),
        (content("one"), content("two"))
    );
    assert!(fs::metadata(top.join("d/b.bin")).unwrap().permissions().mode() & 0o100 != 0);
    // No filter runs in a session: its git has another HOME.
    let status = || {
        sandbox.git(
            top,
            &[
                "-c",
                "filter.lfs.required=false",
                "-c",
                "filter.lfs.process=",
                "status",
                "--porcelain",
            ],
        )
    };
    assert_eq!(status(), "");
    assert_eq!(session.changes().await.unwrap(), []);
    assert_eq!(session.checkpoint(&base, "first").await.unwrap().files_changed, 0);
    assert!(session.commit_result("nothing\n").await.unwrap().is_none());
    // The same content in a new file.
    fs::remove_file(top.join("a.bin")).unwrap();
    write(&top.join("a.bin"), content("one"));
    assert_eq!(session.changes().await.unwrap(), []);
    assert_eq!(session.checkpoint(&base, "again").await.unwrap().files_changed, 0);
    assert!(session.commit_result("nothing\n").await.unwrap().is_none());
    fs::set_permissions(top.join("a.bin"), fs::Permissions::from_mode(0o755)).unwrap();
    write(&top.join("text"), "changed\n");
    let result = session.commit_result("a mode\n").await.unwrap().unwrap().commit;
    let kept = stored(&sandbox, mirror.path(), &result, "a.bin");
    assert_eq!(kept, ("100755".to_owned(), pointer(&content("one"))));
    assert_eq!(
        stored(&sandbox, mirror.path(), &result, "d/b.bin").1,
        pointer(&content("two"))
    );
}

#[tokio::test]
async fn a_changed_file_is_its_content_in_results_and_goes_back_to_what_it_was() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let (mirror, base, names) = sent(&sandbox, &source).await;
    let session = worktree(&sandbox, &mirror, "session", &base, &names).await;
    let top = session.path();
    let first = session.checkpoint(&base, "first").await.unwrap();
    write(&top.join("a.bin"), content("other"));
    fs::remove_file(top.join("d/b.bin")).unwrap();
    write(&top.join("new.bin"), content("new"));
    let second = session.checkpoint(&first.commit, "second").await.unwrap();
    let result = session.commit_result("result\n").await.unwrap().unwrap().commit;
    for commit in [&second.commit, &result] {
        assert_eq!(stored(&sandbox, mirror.path(), commit, "a.bin").1, content("other"));
        assert_eq!(stored(&sandbox, mirror.path(), commit, "new.bin").1, content("new"));
    }
    // Back, and forth, and back: nothing is kept aside, and files have their contents.
    for (to, a, b) in [
        (&first.commit, content("one"), Some(content("two"))),
        (&second.commit, content("other"), None),
        (&first.commit, content("one"), Some(content("two"))),
    ] {
        let restored = session.restore(to, &RestoreOptions::default()).await.unwrap();
        assert_eq!(restored.aside, []);
        assert_eq!(read(top, "a.bin"), a);
        assert_eq!(fs::read_to_string(top.join("d/b.bin")).ok(), b);
        assert_eq!(session.checkpoint(to, "same").await.unwrap().files_changed, 0);
    }
    // A check of the result has what is unchanged in it, and of a protected file the base's.
    let check = worktree(&sandbox, &mirror, "check", &result, &names).await;
    assert_eq!(read(check.path(), "a.bin"), content("other"));
    check.restore_paths(&base, &protecting(&["*.bin"])).await.unwrap();
    assert_eq!(
        read(check.path(), "a.bin"),
        pointer(&content("one")),
        "it was no pointer here"
    );
    let small = worktree(&sandbox, &mirror, "small", &base, &names).await;
    write(&small.path().join("a.bin"), "x");
    small.restore_paths(&base, &protecting(&["*.bin"])).await.unwrap();
    assert_eq!(read(small.path(), "a.bin"), content("one"));
}

#[tokio::test]
async fn a_file_may_be_edited_and_moved_however_large_its_content_is() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let (mirror, base, names) = sent(&sandbox, &source).await;
    let mut session = worktree(&sandbox, &mirror, "session", &base, &names).await;
    let rules = ResultRules {
        max_file_bytes: content("one").len() as u64 - 1,
        ..ResultRules::default()
    };
    session.set_rules(rules).await.unwrap();
    let top = session.path().to_owned();
    write(&top.join("a.bin"), content("one") + "more\n");
    fs::rename(top.join("d/b.bin"), top.join("d/moved.bin")).unwrap();
    let checkpoint = session.checkpoint(&base, "moved").await.unwrap().commit;
    let result = session.commit_result("moved\n").await.unwrap().unwrap().commit;
    assert_eq!(session.left_out(), []);
    for commit in [&checkpoint, &result] {
        let edited = stored(&sandbox, mirror.path(), commit, "a.bin").1;
        assert_eq!(edited, content("one") + "more\n");
        let moved = stored(&sandbox, mirror.path(), commit, "d/moved.bin");
        assert_eq!(moved, ("100755".to_owned(), pointer(&content("two"))));
        let listed = sandbox.git(mirror.path(), &["ls-tree", "-r", "--name-only", commit.as_str()]);
        assert!(!listed.contains("d/b.bin"), "{listed}");
    }
}

#[tokio::test]
async fn protected_files_that_nobody_changed_are_not_touched() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let (mirror, base, names) = sent(&sandbox, &source).await;
    let check = worktree(&sandbox, &mirror, "check", &base, &names).await;
    let inode = || fs::metadata(check.path().join("a.bin")).unwrap().ino();
    let before = inode();
    let restored = check.restore_paths(&base, &protecting(&["*.bin"])).await.unwrap();
    assert_eq!((restored, inode()), (Vec::new(), before));
}

#[tokio::test]
async fn a_checkout_that_is_used_again_has_pointers_until_it_is_filled() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let (mirror, base, names) = sent(&sandbox, &source).await;
    let first = worktree(&sandbox, &mirror, "first", &base, &names).await;
    let aside = Worktree::set_aside(&mirror, first.path(), &base, &sandbox.path("aside")).await;
    let reused = Worktree::reuse(&mirror, &aside.unwrap(), sandbox.path("second"), &base).await;
    let reused = reused.unwrap().unwrap();
    assert_eq!(read(reused.path(), "a.bin"), pointer(&content("one")));
    reused.fill_large(&names).await.unwrap();
    assert_eq!(read(reused.path(), "a.bin"), content("one"));
    assert_eq!(reused.changes().await.unwrap(), []);
}

#[tokio::test]
async fn what_this_machine_does_not_have_is_named_and_stays_a_pointer() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    // One is gone, one is damaged, one is in the working file alone, one is too large.
    let huge = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n",
        "0".repeat(64),
        1_u64 << 40
    );
    write(&source.join("c.bin"), content("three"));
    write(&source.join("huge.bin"), &huge);
    sandbox.git(&source, &["config", "--unset", "filter.lfs.clean"]);
    sandbox.commit(&source, "more");
    fs::remove_file(place(&source, &content("one"))).unwrap();
    fs::write(place(&source, &content("two")), content("bad")).unwrap();
    fs::remove_file(place(&source, &content("three"))).unwrap();
    write(&source.join("a.bin"), pointer(&content("one")));
    write(&source.join("d/b.bin"), pointer(&content("two")));
    sandbox.git(&source, &["update-index", "-q", "--refresh"]);
    let options = SnapshotOptions {
        committed: true,
        ..SnapshotOptions::default()
    };
    let taken = snapshot(&source, &options).await;
    let (paths, files) = (
        ["a.bin", "d/b.bin"].map(str::to_owned).to_vec(),
        vec![("huge.bin".to_owned(), 1 << 40)],
    );
    let expected = [
        Warning::LargeFilePointers { paths },
        Warning::LargeFilesLeftOut { files },
    ];
    assert_eq!(taken.warnings, expected);
    let mirror = Mirror::open_or_init(sandbox.path("m.git")).await.unwrap();
    let there = url(mirror.path());
    taken.push(&there, &Auth::None, Receiver::New).await.unwrap();
    let session = worktree(&sandbox, &mirror, "session", &taken.base, taken.names.as_ref().unwrap()).await;
    assert_eq!(read(session.path(), "a.bin"), pointer(&content("one")));
    assert_eq!(read(session.path(), "c.bin"), content("three"));
    assert_eq!(read(session.path(), "huge.bin"), huge);
}

#[tokio::test]
async fn uncommitted_work_behind_lfs_goes_along_as_git_add_would_store_it() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    write(&source.join("a.bin"), content("mine"));
    write(&source.join("new.bin"), content("new"));
    write(&source.join("empty.bin"), "");
    // A new time, and nothing else.
    write(&source.join("d/b.bin"), content("two"));
    let before = fingerprint(&source);
    let (mirror, base, names) = sent(&sandbox, &source).await;
    assert_eq!(fingerprint(&source), before);
    for (path, expected) in [
        ("a.bin", pointer(&content("mine"))),
        ("new.bin", pointer(&content("new"))),
    ] {
        assert_eq!(stored(&sandbox, mirror.path(), &base, path).1, expected);
    }
    let differs = sandbox.git(
        mirror.path(),
        &["diff", "--name-only", &format!("{base}^"), base.as_str()],
    );
    assert_eq!(differs, "a.bin\nempty.bin\nnew.bin");
    let session = worktree(&sandbox, &mirror, "session", &base, &names).await;
    assert_eq!(
        (read(session.path(), "a.bin"), read(session.path(), "new.bin")),
        (content("mine"), content("new"))
    );
}

/// Lands as the person, whose git-lfs is set up in their HOME.
pub(crate) fn land(
    sandbox: &Sandbox,
    how: &str,
    source: &Path,
    mirror: &Mirror,
    base: &Oid,
    result: &Oid,
) -> Result<String, String> {
    let mut program = sandbox.program(STEP, source);
    program.args(["land", how]).arg(source).arg(mirror.path());
    let done = program.args([base.as_str(), result.as_str()]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if done.status.success() {
        Ok(text(&done.stdout))
    } else {
        Err(text(&done.stderr))
    }
}

/// A result that changes a file behind Git LFS, makes one, deletes one and changes a text.
async fn result(sandbox: &Sandbox, mirror: &Mirror, base: &Oid, names: &Oid) -> Oid {
    let session = worktree(sandbox, mirror, "session", base, names).await;
    write(&session.path().join("a.bin"), content("other"));
    write(&session.path().join("e/new.bin"), content("new"));
    fs::remove_file(session.path().join("d/b.bin")).unwrap();
    write(&session.path().join("text"), "1\n2\nthree\n");
    session.commit_result("result\n").await.unwrap().unwrap().commit
}

#[tokio::test]
async fn a_result_lands_as_the_persons_git_add_would_store_it() {
    for kinds in [&["clean", "smudge", "process"][..], &["clean", "smudge"]] {
        let sandbox = Sandbox::new();
        let source = project(&sandbox);
        let (mirror, base, names) = sent(&sandbox, &source).await;
        let result = result(&sandbox, &mirror, &base, &names).await;
        sandbox.git(&source, &["config", "--unset", "filter.lfs.clean"]);
        install(&sandbox, kinds);
        sandbox.git(&source, &["branch", "other"]);
        let land = |how: &str| land(&sandbox, how, &source, &mirror, &base, &result);
        // Into a branch without files, then into the files alone, then on the branch.
        land("into:other").unwrap();
        assert_eq!(sandbox.git(&source, &["status", "--porcelain"]), "");
        assert_eq!(land("apply").unwrap(), "Applied");
        assert_eq!(read(&source, "a.bin"), content("other"));
        let status = sandbox.git(&source, &["status", "--porcelain"]);
        assert_eq!(status, " M a.bin\n D d/b.bin\n M text\n?? e/");
        assert_eq!(land("apply").unwrap(), "Applied", "again");
        sandbox.git(&source, &["add", "-A"]);
        sandbox.git(&source, &["commit", "-qm", "by the person"]);
        assert_eq!(land("merge").unwrap(), "AlreadyThere", "no circle");
        let by_git = sandbox.git(&source, &["rev-parse", "HEAD^{tree}"]);
        sandbox.git(&source, &["reset", "-q", "--hard", base.as_str()]);
        fs::remove_dir_all(source.join(".git/lfs/objects")).unwrap();
        assert!(land("merge").unwrap().starts_with("Committed"));
        for branch in ["HEAD", "other"] {
            assert_eq!(
                sandbox.git(&source, &["rev-parse", &format!("{branch}^{{tree}}")]),
                by_git
            );
        }
        let head = sandbox.head(&source);
        assert_eq!(stored(&sandbox, &source, &head, "a.bin").1, pointer(&content("other")));
        assert_eq!(
            stored(&sandbox, &source, &head, "e/new.bin").1,
            pointer(&content("new"))
        );
        assert_eq!(
            (read(&source, "a.bin"), read(&source, "e/new.bin")),
            (content("other"), content("new"))
        );
        for content in [content("other"), content("new")] {
            assert_eq!(fs::read_to_string(place(&source, &content)).unwrap(), content);
        }
        assert_eq!(sandbox.git(&source, &["status", "--porcelain"]), "");
        let objects = sandbox.git(&source, &["rev-list", "--objects", "--all"]);
        let plain = git2::Oid::hash_object(git2::ObjectType::Blob, content("other").as_bytes()).unwrap();
        assert!(!objects.contains(&plain.to_string()), "a content is in the history");
        sandbox.git(&source, &["fsck", "--strict"]);
    }
}

#[tokio::test]
async fn new_attributes_of_a_result_count_for_its_files() {
    let sandbox = Sandbox::new();
    install(&sandbox, &["clean", "smudge"]);
    let source = sandbox.repository("source", &[("text", "1\n"), ("d/old.dat", "old\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let session = Worktree::create(&mirror, sandbox.path("session"), &base).await.unwrap();
    write(&session.path().join("d/.gitattributes"), "*.dat filter=lfs -text\n");
    write(&session.path().join("d/new.dat"), content("new"));
    write(&session.path().join("other.dat"), content("other"));
    let result = session.commit_result("result\n").await.unwrap().unwrap().commit;
    land(&sandbox, "merge", &source, &mirror, &base, &result).unwrap();
    let head = sandbox.head(&source);
    assert_eq!(
        stored(&sandbox, &source, &head, "d/new.dat").1,
        pointer(&content("new"))
    );
    assert_eq!(stored(&sandbox, &source, &head, "other.dat").1, content("other"));
}

#[tokio::test]
async fn work_and_conflicts_behind_lfs_are_seen_as_such() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let (mirror, base, names) = sent(&sandbox, &source).await;
    let result = result(&sandbox, &mirror, &base, &names).await;
    sandbox.git(&source, &["config", "--unset", "filter.lfs.clean"]);
    let land = |how: &str| land(&sandbox, how, &source, &mirror, &base, &result);
    // Uncommitted, then committed.
    write(&source.join("a.bin"), content("mine"));
    let before = fingerprint(&source);
    for (how, refused) in [("merge", "Dirty"), ("apply", "Conflicts")] {
        let said = land(how).unwrap_err();
        assert!(
            said.contains(refused) && said.contains("a.bin") && !said.contains("text"),
            "{said}"
        );
    }
    assert_eq!(fingerprint(&source), before);
    sandbox.commit(&source, "mine");
    let said = land("merge").unwrap_err();
    assert!(said.contains("Conflicts") && said.contains("a.bin"), "{said}");
    // One side, whole.
    assert!(land("theirs").unwrap().starts_with("Committed"));
    let head = sandbox.head(&source);
    assert_eq!(stored(&sandbox, &source, &head, "a.bin").1, pointer(&content("other")));
    assert_eq!(read(&source, "a.bin"), content("other"));
    assert_eq!(sandbox.git(&source, &["status", "--porcelain"]), "");
}

#[tokio::test]
async fn without_git_lfs_its_files_are_refused_by_name_and_others_land() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let (mirror, base, names) = sent(&sandbox, &source).await;
    let result = result(&sandbox, &mirror, &base, &names).await;
    let session = worktree(&sandbox, &mirror, "plain", &base, &names).await;
    write(&session.path().join("text"), "only this\n");
    let plain = session.commit_result("result\n").await.unwrap().unwrap().commit;
    // The repository alone names a program, which is not run.
    fs::remove_file(sandbox.path("home/.gitconfig")).unwrap();
    let marker = sandbox.path("ran");
    sandbox.git(
        &source,
        &["config", "filter.lfs.clean", &format!("touch {}", marker.display())],
    );
    let before = fingerprint(&source);
    for how in ["merge", "apply"] {
        let said = land(&sandbox, how, &source, &mirror, &base, &result).unwrap_err();
        let named = said.contains("Unsupported") && said.contains("a.bin") && said.contains("e/new.bin");
        assert!(
            named && said.contains("git-lfs is not set up") && !said.contains("text\""),
            "{said}"
        );
    }
    assert_eq!(fingerprint(&source), before);
    assert!(!marker.exists());
    // Set up, and the program is missing.
    sandbox.git(&source, &["config", "--unset", "filter.lfs.clean"]);
    write(
        &sandbox.path("home/.gitconfig"),
        "[filter \"lfs\"]\n\tclean = no-such-program\n",
    );
    let said = land(&sandbox, "merge", &source, &mirror, &base, &result).unwrap_err();
    assert!(said.contains("LargeFile") && said.contains("no-such-program"), "{said}");
    assert!(
        land(&sandbox, "merge", &source, &mirror, &base, &plain)
            .unwrap()
            .starts_with("Committed")
    );
    sandbox.git(&source, &["reset", "-q", "--soft", base.as_str()]);
    sandbox.git(
        &source,
        &["-c", "filter.lfs.clean=", "checkout", "-q", "-f", "HEAD", "--", "text"],
    );
    install(&sandbox, &["clean", "smudge"]);
    assert!(
        land(&sandbox, "merge", &source, &mirror, &base, &result)
            .unwrap()
            .starts_with("Committed")
    );
}

#[tokio::test]
async fn a_checked_out_result_has_the_contents_that_are_here() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let (mirror, base, names) = sent(&sandbox, &source).await;
    let result = result(&sandbox, &mirror, &base, &names).await;
    let session = worktree(&sandbox, &mirror, "plain", &base, &names).await;
    write(&session.path().join("text"), "only this\n");
    let plain = session.commit_result("result\n").await.unwrap().unwrap().commit;
    fs::remove_file(place(&source, &content("two"))).unwrap();
    let repository = UserRepo::discover(&source).await.unwrap();
    for (name, result, a, pointers) in [("one", &result, "other", 0), ("two", &plain, "one", 1)] {
        let folder = sandbox.path(name);
        let asked = ResultCheckout {
            mirror: &mirror,
            result,
            head: &base,
            folder: &folder,
        };
        let made = check_out(&repository, &asked).await.unwrap();
        assert_eq!(made.as_stored, pointers);
        assert_eq!(read(&folder, "a.bin"), content(a));
    }
    assert_eq!(read(&sandbox.path("two"), "d/b.bin"), pointer(&content("two")));
}
