//! Submodules of a person's repository, in the worktrees of sessions and checks.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions, Warning};
use kage_git::{Auth, Mirror, Origin, UserRepo, Wanted, Worktree};

use crate::sandbox::{Sandbox, fingerprint, protecting, url, write};

const ALLOW: [&str; 2] = ["-c", "protocol.file.allow=always"];

fn git(sandbox: &Sandbox, repository: &Path, args: &[&str]) -> String {
    sandbox.git(repository, &[&ALLOW[..], args].concat())
}

/// A repository with the submodule `vendor/part`, which has the submodule `deep`; both have an older
/// commit too.
pub(crate) fn project(sandbox: &Sandbox) -> PathBuf {
    let deep = sandbox.repository("deep", &[("old", "o\n")]);
    write(&deep.join("d"), "d\n");
    sandbox.commit(&deep, "deep");
    let part = sandbox.repository("part", &[("p", "1\n"), (".gitignore", "*.log\n")]);
    write(&part.join("p"), "2\n");
    write(&part.join("run.sh"), "#!/bin/sh\n");
    fs::set_permissions(part.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("p", part.join("link")).unwrap();
    git(sandbox, &part, &["submodule", "--quiet", "add", &url(&deep), "deep"]);
    sandbox.commit(&part, "part");
    let source = sandbox.repository("source", &[("a", "1\n")]);
    let add = [
        "submodule",
        "--quiet",
        "add",
        "--name",
        "the part",
        &url(&part),
        "vendor/part",
    ];
    git(sandbox, &source, &add);
    git(
        sandbox,
        &source,
        &["submodule", "--quiet", "update", "--init", "--recursive"],
    );
    sandbox.commit(&source, "with a submodule");
    source
}

async fn snapshot(repository: &Path) -> Snapshot {
    let found = UserRepo::discover(repository).await.unwrap();
    Snapshot::take(&found, &SnapshotOptions::default()).await.unwrap()
}

/// Sends a base to a mirror. Returns it with its names.
pub(crate) async fn send(sandbox: &Sandbox, repository: &Path) -> (Mirror, Oid, Oid) {
    let there = Mirror::open_or_init(sandbox.path("there.git")).await.unwrap();
    let taken = snapshot(repository).await;
    taken
        .push(&url(there.path()), &Auth::None, Receiver::HasHistory)
        .await
        .unwrap();
    let here = Mirror::open_or_init(sandbox.path("here.git")).await.unwrap();
    let (base, names) = (taken.base.clone(), taken.names.clone().unwrap());
    let origin = Origin {
        url: url(there.path()),
        auth: Auth::None,
    };
    let wanted = [Wanted::base(&base), Wanted::base(&names)];
    here.fetch_missing(&origin, &wanted).await.unwrap();
    (here, base, names)
}

async fn worktree(sandbox: &Sandbox, mirror: &Mirror, name: &str, commit: &Oid, names: &Oid) -> Worktree {
    let worktree = Worktree::create(mirror, sandbox.path(name), commit).await.unwrap();
    worktree.give_names(names).await.unwrap();
    worktree.fill_submodules(names).await.unwrap();
    worktree
}

/// The files below a folder, without those of git directories.
fn files(folder: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let all = fingerprint(folder).into_iter();
    let relative =
        all.map(|(path, mode, content)| (path.strip_prefix(folder).unwrap_or(&path).to_owned(), mode, content));
    relative
        .filter(|(path, ..)| !path.iter().any(|part| part == ".git") && !folder.join(path).is_dir())
        .collect()
}

#[tokio::test]
async fn a_session_and_a_check_have_the_files_of_submodules_at_their_commits() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    // What is not committed there stays there.
    let expected = files(&source);
    write(&source.join("vendor/part/p"), "not committed\n");
    let taken = snapshot(&source).await;
    let paths = ["vendor/part", "vendor/part/deep"].map(str::to_owned).to_vec();
    assert_eq!(taken.warnings, [Warning::Submodules { paths }]);
    let before = fingerprint(&source);
    let (mirror, base, names) = send(&sandbox, &source).await;
    assert_eq!(fingerprint(&source), before);
    sandbox.git(mirror.path(), &["fsck", "--strict"]);
    let old = sandbox.git(&source.join("vendor/part"), &["rev-parse", "HEAD~1"]);
    assert!(
        !mirror.has_commit(&old.parse().unwrap()).await.unwrap(),
        "no history is sent"
    );

    let session = worktree(&sandbox, &mirror, "w", &base, &names).await;
    let top = session.path();
    assert_eq!(files(top), expected);
    let status = git(&sandbox, top, &["submodule", "status", "--recursive"]);
    let there = git(&sandbox, &source, &["submodule", "status", "--recursive"]);
    let commits = |status: &str| -> Vec<String> { status.lines().map(|line| line[..41].to_owned()).collect() };
    assert_eq!(
        commits(&format!(" {}", status.trim_start())),
        commits(&format!(" {}", there.trim_start()))
    );
    assert_eq!(sandbox.git(top, &["status", "--porcelain", "--ignored"]), "");
    // There is nothing to fetch, and from nowhere.
    fs::rename(sandbox.path("part"), sandbox.path("moved")).unwrap();
    git(
        &sandbox,
        top,
        &["submodule", "--quiet", "update", "--init", "--recursive"],
    );
    assert_eq!(session.changes().await.unwrap(), []);
    assert_eq!(session.commit_result("r\n").await.unwrap(), None);

    // What a session does in a submodule is no part of a result, and no reason to refuse it.
    write(&top.join("a"), "2\n");
    write(&top.join("vendor/part/p"), "changed\n");
    write(&top.join("vendor/part/new/file"), "new\n");
    sandbox.commit(&top.join("vendor/part"), "its own");
    let taken = session.checkpoint(&base, "c").await.unwrap();
    let result = session.commit_result("r\n").await.unwrap().unwrap();
    for commit in [&taken.commit, &result.commit] {
        let changed = sandbox.git(mirror.path(), &["diff", "--name-only", base.as_str(), commit.as_str()]);
        assert_eq!(changed, "a");
    }
    let pack = mirror
        .thin_pack(&result.commit, std::slice::from_ref(&base))
        .await
        .unwrap();
    let there = Mirror::open_or_init(sandbox.path("there.git")).await.unwrap();
    there.ingest_pack(pack.reopen().unwrap(), &result.commit).await.unwrap();

    let check = worktree(&sandbox, &mirror, "v", &result.commit, &names).await;
    let mut checked = expected.clone();
    let changed = checked.iter_mut().find(|(path, ..)| path == Path::new("a")).unwrap();
    changed.2 = b"2\n".to_vec();
    assert_eq!(files(check.path()), checked);
    // A pattern that matches files of a submodule is about those of the base.
    let restored = check
        .restore_paths(&base, &protecting(&["**/*.sh", "**/d"]))
        .await
        .unwrap();
    assert_eq!(restored, Vec::<String>::new());
    assert_eq!(files(check.path()), checked);
}

#[tokio::test]
async fn a_checkout_that_is_used_again_has_its_submodules_anew() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let (mirror, base, names) = send(&sandbox, &source).await;
    let session = worktree(&sandbox, &mirror, "w", &base, &names).await;
    let expected = files(session.path());
    write(&session.path().join("vendor/part/p"), "changed\n");
    write(&session.path().join("vendor/part/x.log"), "ignored there\n");
    let folder = sandbox.path("pool");
    let aside = Worktree::set_aside(&mirror, session.path(), &base, &folder)
        .await
        .unwrap();
    let reused = Worktree::reuse(&mirror, &aside, sandbox.path("w2"), &base).await;
    let reused = reused.unwrap().unwrap();
    let part = reused.path().join("vendor/part");
    assert_eq!(fs::read_dir(&part).unwrap().count(), 0, "as in a new checkout");
    reused.give_names(&names).await.unwrap();
    reused.fill_submodules(&names).await.unwrap();
    assert_eq!(files(reused.path()), expected);
    assert_eq!(sandbox.git(reused.path(), &["status", "--porcelain", "--ignored"]), "");
    // A session that goes on without the folder is not given it back.
    let other = Worktree::create(&mirror, sandbox.path("w3"), &base).await.unwrap();
    fs::remove_dir(other.path().join("vendor/part")).unwrap();
    symlink(sandbox.path("outside"), other.path().join("vendor/part")).unwrap();
    fs::create_dir(sandbox.path("outside")).unwrap();
    other.fill_submodules(&names).await.unwrap();
    assert_eq!(fs::read_dir(sandbox.path("outside")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_submodule_with_a_git_directory_of_its_own_goes_along() {
    let sandbox = Sandbox::new();
    let part = sandbox.repository("part", &[("p", "1\n")]);
    let source = sandbox.repository("source", &[("a", "1\n")]);
    git(&sandbox, &source, &["clone", "-q", &url(&part), "own"]);
    git(&sandbox, &source, &["-c", "advice.addEmbeddedRepo=false", "add", "own"]);
    sandbox.commit(&source, "with one");
    assert!(source.join("own/.git").is_dir() && !source.join(".git/modules").exists());
    let (mirror, base, names) = send(&sandbox, &source).await;
    let session = worktree(&sandbox, &mirror, "w", &base, &names).await;
    assert_eq!(fs::read(session.path().join("own/p")).unwrap(), b"1\n");
}

#[tokio::test]
async fn what_is_not_on_this_machine_is_told_and_other_repositories_are_not_read() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    // The submodule's file names another repository that has the commit.
    let elsewhere = sandbox.path("elsewhere");
    fs::rename(source.join(".git/modules/the part"), &elsewhere).unwrap();
    let link = format!("gitdir: {}\n", elsewhere.display());
    write(&source.join("vendor/part/.git"), &link);
    let config = format!(
        "[core]\n\trepositoryformatversion = 0\n\tworktree = {}\n",
        source.join("vendor/part").display()
    );
    write(&elsewhere.join("config"), config);
    let taken = snapshot(&source).await;
    let paths = vec!["vendor/part".to_owned()];
    assert_eq!(taken.warnings, [Warning::EmptySubmodules { paths }]);
    let (mirror, base, names) = send(&sandbox, &source).await;
    let session = worktree(&sandbox, &mirror, "w", &base, &names).await;
    assert_eq!(fs::read_dir(session.path().join("vendor/part")).unwrap().count(), 0);
    assert_eq!(session.changes().await.unwrap(), []);

    // A commit whose files are not all there is not on this machine either.
    fs::rename(&elsewhere, source.join(".git/modules/the part")).unwrap();
    let part = source.join(".git/modules/the part");
    let blob = sandbox.git(&part, &["--git-dir", ".", "rev-parse", "HEAD:p"]);
    let pack = fs::read_dir(part.join("objects/pack"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for file in pack.filter(|file| file.extension().is_some_and(|kind| kind == "pack")) {
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(file.with_extension("idx")).unwrap();
        fs::remove_file(&file).unwrap();
        sandbox.git_with_input(&part, &["--git-dir", ".", "unpack-objects", "-q"], &bytes);
    }
    fs::remove_file(part.join("objects").join(&blob[..2]).join(&blob[2..])).unwrap();
    let taken = snapshot(&source).await;
    assert!(
        taken
            .warnings
            .iter()
            .any(|warning| matches!(warning, Warning::EmptySubmodules { paths } if paths == &["vendor/part"])),
        "{:?}",
        taken.warnings
    );
}
