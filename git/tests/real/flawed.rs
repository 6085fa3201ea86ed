//! Histories with objects that a check of git complains about, made by hand: flaws of old programs are
//! taken, from the person to the session's worktree; what somebody could be attacked with is refused
//! by name, and leaves nothing behind.

use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::{Auth, Mirror, UserRepo, Worktree};

use crate::http::{Server, TOKEN};
use crate::sandbox::Sandbox;

/// A repository whose history has a flaw, and whose files have none.
struct Flawed<'a> {
    sandbox: &'a Sandbox,
    path: PathBuf,
    /// The commit before the flaw.
    start: Oid,
}

impl<'a> Flawed<'a> {
    fn new(sandbox: &'a Sandbox, name: &str) -> Self {
        let path = sandbox.repository(name, &[("a", "a\n")]);
        let start = sandbox.head(&path);
        Self { sandbox, path, start }
    }

    fn object(&self, kind: &str, bytes: &[u8]) -> String {
        let arguments = ["hash-object", "-t", kind, "-w", "--stdin", "--literally"];
        let id = self.sandbox.git_with_input(&self.path, &arguments, bytes);
        String::from_utf8(id).unwrap().trim().to_owned()
    }

    /// A tree of these entries: mode, name, object.
    fn tree(&self, entries: &[(&str, &str, &str)]) -> String {
        let mut bytes = Vec::new();
        for (mode, name, id) in entries {
            bytes.extend_from_slice(format!("{mode} {name}\0").as_bytes());
            bytes.extend(
                (0..40)
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()),
            );
        }
        self.object("tree", &bytes)
    }

    /// Puts a commit with these lines after its parent into the history.
    fn commit(&self, tree: Option<&str>, lines: &[u8]) {
        let usual = self.sandbox.git(&self.path, &["rev-parse", "HEAD^{tree}"]);
        let tree = tree.unwrap_or(usual.trim());
        let mut bytes = format!("tree {tree}\nparent {}\n", self.start).into_bytes();
        bytes.extend_from_slice(lines);
        let flawed = self.object("commit", &bytes);
        // The files are those of the start again.
        let now = ["commit-tree", usual.trim(), "-p", &flawed, "-m", "now"];
        let now = self.sandbox.git(&self.path, &now);
        self.sandbox.git(&self.path, &["update-ref", "HEAD", now.trim()]);
    }

    /// What git's own check says.
    fn complaint(&self) -> String {
        self.sandbox.try_git(&self.path, &["fsck", "--strict"]).unwrap_err()
    }

    async fn snapshot(&self) -> Snapshot {
        let found = UserRepo::discover(&self.path).await.unwrap();
        Snapshot::take(&found, &SnapshotOptions::default()).await.unwrap()
    }
}

const GOOD: &[u8] = b"author A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nold\n";

fn by(author: &str) -> Vec<u8> {
    format!("author {author}\ncommitter A <a@b> 1 +0000\n\nold\n").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_honest_histories_are_taken() {
    let sandbox = Sandbox::new();
    let commits = [
        ("badDate", by("A <a@b> abc +0000")),
        ("badDateOverflow", by("A <a@b> 18446744073709551617 +0000")),
        ("badEmail", by("A <a<b@c> 1 +0000")),
        ("badName", by("A> <a@b> 1 +0000")),
        ("badTimezone", by("A <a@b> 1 +00000")),
        ("missingEmail", by("A a 1 +0000")),
        ("missingNameBeforeEmail", by("<a@b> 1 +0000")),
        ("missingSpaceBeforeDate", by("A <a@b>1 +0000")),
        ("missingSpaceBeforeEmail", by("A<a@b> 1 +0000")),
        ("multipleAuthors", by("A <a@b> 1 +0000\nauthor B <b@b> 1 +0000")),
        ("nulInCommit", [GOOD, b"x\0y\n"].concat()),
        ("zeroPaddedDate", by("A <a@b> 01 +0000")),
    ];
    let mut histories = Vec::new();
    for (flaw, lines) in commits {
        let flawed = Flawed::new(&sandbox, flaw);
        flawed.commit(None, &lines);
        histories.push((flaw, flawed));
    }
    for flaw in ["duplicateEntries", "zeroPaddedFilemode", "gitmodulesUrl"] {
        let flawed = Flawed::new(&sandbox, flaw);
        let blob = flawed.object("blob", b"x\n");
        let tree = match flaw {
            "duplicateEntries" => flawed.tree(&[("100644", "a", &blob), ("100644", "a", &blob)]),
            "zeroPaddedFilemode" => {
                let inner = flawed.tree(&[("100644", "a", &blob)]);
                flawed.tree(&[("040000", "folder", &inner)])
            }
            _ => {
                let modules = b"[submodule \"x\"]\n\tpath = x\n\turl = -u./payload\n";
                flawed.tree(&[("100644", ".gitmodules", &flawed.object("blob", modules))])
            }
        };
        flawed.commit(Some(&tree), GOOD);
        histories.push((flaw, flawed));
    }
    let auth = Auth::Bearer(TOKEN.to_owned());
    for (flaw, flawed) in histories {
        let complaint = flawed.complaint();
        assert!(complaint.contains(&format!(": {flaw}: ")), "{flaw}: {complaint}");
        let there = Mirror::open_or_init(sandbox.path(&format!("{flaw}.git")))
            .await
            .unwrap();
        let server = Server::start(there.clone()).await;
        let snapshot = flawed.snapshot().await;
        snapshot
            .push(&server.url, &auth, Receiver::New)
            .await
            .unwrap_or_else(|error| panic!("{flaw}: {error}"));
        // An agent fetches it, and a session's result comes back.
        let here = Mirror::open_or_init(sandbox.path(&format!("{flaw}-agent.git")))
            .await
            .unwrap();
        let spec = format!("refs/kage/bases/{0}:refs/kage/bases/{0}", snapshot.base);
        here.fetch(&server.url, &auth, &[&spec])
            .await
            .unwrap_or_else(|error| panic!("{flaw}: {error}"));
        let worktree = Worktree::create(&here, sandbox.path(&format!("{flaw}-w")), &snapshot.base)
            .await
            .unwrap();
        std::fs::write(worktree.path().join("a"), "b\n").unwrap();
        let result = worktree.commit_result("r\n").await.unwrap().unwrap().commit;
        let pack = here
            .thin_pack(&result, std::slice::from_ref(&snapshot.base))
            .await
            .unwrap();
        there
            .ingest_pack(pack.reopen().unwrap(), &result)
            .await
            .unwrap_or_else(|error| panic!("{flaw}: {error}"));
    }
}

/// Everything below the objects of a repository.
fn objects(mirror: &Path) -> Vec<PathBuf> {
    let files = crate::sandbox::fingerprint(&mirror.join("objects")).into_iter();
    files
        .filter(|(path, ..)| path.is_file())
        .map(|(path, ..)| path)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_attacks_somebody_is_refused_by_name_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let modules = |text: &str| format!("[submodule {text}\n").into_bytes();
    let cases: [(&str, &str, &str, Vec<u8>); 8] = [
        ("hasDotgit", "100644", ".git", b"gitdir: /elsewhere\n".to_vec()),
        ("hasDotgit", "100644", ".GIT", b"x".to_vec()),
        ("hasDot", "100644", ".", b"x".to_vec()),
        ("hasDotdot", "100644", "..", b"x".to_vec()),
        ("fullPathname", "100644", "../escape", b"x".to_vec()),
        ("gitmodulesSymlink", "120000", ".gitmodules", b"/elsewhere".to_vec()),
        (
            "gitmodulesName",
            "100644",
            ".gitmodules",
            modules("\"../x\"]\n\tpath = x\n\turl = y"),
        ),
        (
            "gitmodulesUpdate",
            "100644",
            ".gitmodules",
            modules("\"x\"]\n\tpath = x\n\turl = y\n\tupdate = !evil"),
        ),
    ];
    let there = Mirror::open_or_init(sandbox.path("there.git")).await.unwrap();
    let server = Server::start(there.clone()).await;
    let before = objects(there.path());
    for (number, (flaw, mode, name, content)) in cases.into_iter().enumerate() {
        let flawed = Flawed::new(&sandbox, &format!("source-{number}"));
        let entry = flawed.tree(&[(mode, name, &flawed.object("blob", &content))]);
        flawed.commit(Some(&entry), GOOD);
        let snapshot = flawed.snapshot().await;
        let auth = Auth::Bearer(TOKEN.to_owned());
        let error = snapshot.push(&server.url, &auth, Receiver::New).await.unwrap_err();
        let refused = error.refused_object().unwrap_or_else(|| panic!("{flaw}: {error}"));
        assert_eq!(refused.flaw, flaw, "{error}");
        let named = sandbox.git(&flawed.path, &["cat-file", "-t", refused.object.as_str()]);
        assert!(matches!(named.trim(), "tree" | "blob"), "{flaw}: {named}");
        assert!(!there.has_commit(&snapshot.base).await.unwrap(), "{flaw}");
        assert_eq!(objects(there.path()), before, "{flaw}");
        assert_eq!(there.refs_under("refs/").await.unwrap(), Vec::<String>::new(), "{flaw}");
    }
}

/// A result is new, so it has no old flaws: the address of a submodule is looked at as well.
#[tokio::test]
async fn a_result_with_a_bad_address_of_a_submodule_is_refused() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "a\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let (there, _) = sandbox.mirror("there.git", &source).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    let modules = "[submodule \"x\"]\n\tpath = x\n\turl = -u./evil\n";
    std::fs::write(worktree.path().join(".gitmodules"), modules).unwrap();
    let result = worktree.commit_result("r\n").await.unwrap().unwrap().commit;
    let pack = mirror.thin_pack(&result, &[base]).await.unwrap();
    let refused = there.ingest_pack(pack.reopen().unwrap(), &result).await.unwrap_err();
    assert!(refused.to_string().contains("gitmodulesUrl"), "{refused}");
    assert!(!there.has_commit(&result).await.unwrap());
}
