//! Tags and branches of a person's repository, in the worktrees of sessions and checks.

use std::path::{Path, PathBuf};

use kage_core::id::Oid;
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions, Warning};
use kage_git::{Auth, Mirror, Origin, UserRepo, Wanted, Worktree};

use crate::http::{Server, TOKEN};
use crate::sandbox::{Sandbox, fingerprint, write};

fn auth() -> Auth {
    Auth::Bearer(TOKEN.to_owned())
}

async fn snapshot(repository: &Path) -> Snapshot {
    let found = UserRepo::discover(repository).await.unwrap();
    Snapshot::take(&found, &SnapshotOptions::default()).await.unwrap()
}

/// A person's repository on the branch `topic`, which has a commit that `main` does not have, and
/// lacks what became of `main` and of `secret` since.
fn project(sandbox: &Sandbox) -> PathBuf {
    let source = sandbox.repository("source", &[("a", "1\n")]);
    let git = |args: &[&str]| sandbox.git(&source, args);
    git(&["tag", "v0.1"]);
    write(&source.join("a"), "2\n");
    sandbox.commit(&source, "two");
    git(&["tag", "-a", "-m", "the first release", "v1.0"]);
    git(&["branch", "done"]);
    git(&["switch", "-q", "-c", "topic"]);
    write(&source.join("topic"), "t\n");
    sandbox.commit(&source, "topic");
    git(&["update-ref", "refs/remotes/origin/topic", "HEAD"]);
    git(&["switch", "-q", "main"]);
    write(&source.join("b"), "what others did\n");
    sandbox.commit(&source, "later");
    git(&["tag", "v2.0"]);
    git(&["update-ref", "refs/remotes/origin/main", "main"]);
    git(&["symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/main"]);
    git(&["switch", "-q", "-c", "secret"]);
    write(&source.join("secret"), "s\n");
    sandbox.commit(&source, "secret");
    git(&["switch", "-q", "topic"]);
    source
}

/// The coordinator's repository and an agent's mirror.
struct Machines {
    there: Mirror,
    here: Mirror,
    server: Server,
}

impl Machines {
    async fn new(sandbox: &Sandbox) -> Self {
        let there = Mirror::open_or_init(sandbox.path("there.git")).await.unwrap();
        let here = Mirror::open_or_init(sandbox.path("here.git")).await.unwrap();
        let server = Server::start(there.clone()).await;
        Self { there, here, server }
    }

    /// Sends a base from the person to the agent. Returns it with its names.
    async fn send(&self, repository: &Path) -> (Oid, Oid) {
        let taken = snapshot(repository).await;
        assert_eq!(taken.warnings, []);
        taken.push(&self.server.url, &auth(), Receiver::New).await.unwrap();
        let (base, names) = (taken.base.clone(), taken.names.clone().unwrap());
        let wanted = [Wanted::base(&base), Wanted::base(&names)];
        self.here.fetch_missing(&self.origin(), &wanted).await.unwrap();
        (base, names)
    }

    fn origin(&self) -> Origin {
        Origin {
            url: self.server.url.clone(),
            auth: auth(),
        }
    }
}

/// The names in a repository, with what each stands for.
fn names_in(sandbox: &Sandbox, repository: &Path) -> Vec<String> {
    let listed = sandbox.git(repository, &["for-each-ref", "--format=%(refname) %(objectname)"]);
    listed.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_describes_and_compares_as_the_person_does() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let machines = Machines::new(&sandbox).await;
    let before = fingerprint(&source);
    let (base, names) = machines.send(&source).await;
    assert_eq!(fingerprint(&source), before, "the person's repository stays as it is");
    let worktree = Worktree::create(&machines.here, sandbox.path("w"), &base)
        .await
        .unwrap();
    worktree.give_names(&names).await.unwrap();
    for question in [
        &["describe"][..],
        &["describe", "--tags"],
        &["describe", "--tags", "--match", "v0*"],
        &["diff", "main...HEAD"],
        &["diff", "origin/main...HEAD"],
        &["diff", "origin/HEAD...topic"],
        &["log", "--format=%H", "main..HEAD"],
        &["merge-base", "HEAD", "origin/main"],
        &["rev-parse", "--abbrev-ref", "HEAD"],
        &["rev-parse", "v1.0", "v0.1^{commit}", "done", "topic", "origin/topic"],
        &["symbolic-ref", "refs/remotes/origin/HEAD"],
        &["cat-file", "-p", "v1.0"],
        &["tag", "--list", "--format=%(contents)", "v1.0"],
        &["status", "--porcelain"],
    ] {
        let expected = sandbox.git(&source, question);
        assert_eq!(sandbox.git(worktree.path(), question), expected, "{question:?}");
    }
    assert!(sandbox.git(worktree.path(), &["describe"]).starts_with("v1.0-1-g"));

    // `main` is where the base left it: what it became is not sent, nor is any of `secret`.
    let of = |name: &str| sandbox.git(&source, &["rev-parse", name]);
    let expected = [
        format!("refs/heads/done {}", of("done")),
        format!("refs/heads/main {}", of("done")),
        format!("refs/heads/topic {base}"),
        format!("refs/remotes/origin/HEAD {}", of("done")),
        format!("refs/remotes/origin/main {}", of("done")),
        format!("refs/remotes/origin/topic {base}"),
        format!("refs/tags/v0.1 {}", of("v0.1")),
        format!("refs/tags/v1.0 {}", of("v1.0")),
    ];
    assert_eq!(names_in(&sandbox, worktree.path()), expected);
    for unsent in ["main", "secret"] {
        let commit = of(unsent).parse().unwrap();
        for mirror in [&machines.there, &machines.here] {
            assert!(!mirror.has_commit(&commit).await.unwrap(), "{unsent}");
        }
    }
    for mirror in [&machines.there, &machines.here] {
        let names = [&base, &names].map(|commit| format!("refs/kage/bases/{commit}"));
        let mut found = mirror.refs_under("refs/").await.unwrap();
        found.sort();
        let mut expected = names.to_vec();
        expected.sort();
        assert_eq!(found, expected);
        sandbox.git(mirror.path(), &["fsck", "--strict"]);
    }

    // What a session makes is as it was without names.
    sandbox.git(worktree.path(), &["commit", "-q", "--allow-empty", "-m", "its own"]);
    write(&worktree.path().join("new"), "n\n");
    let result = worktree.commit_result("r\n").await.unwrap().unwrap().commit;
    let raw = sandbox.git(machines.here.path(), &["rev-list", "--parents", "-n1", result.as_str()]);
    assert_eq!(raw, format!("{result} {base}"));
    let pack = machines
        .here
        .thin_pack(&result, std::slice::from_ref(&base))
        .await
        .unwrap();
    let plain = Mirror::open_or_init(sandbox.path("plain.git")).await.unwrap();
    let spec = format!("+refs/kage/bases/{base}:refs/kage/bases/{base}");
    plain.fetch(&machines.server.url, &auth(), &[&spec]).await.unwrap();
    plain.ingest_pack(pack.reopen().unwrap(), &result).await.unwrap();

    // A check of the result has the same names; its branch is where the result is.
    let check = Worktree::create(&machines.here, sandbox.path("v"), &result)
        .await
        .unwrap();
    check.give_names(&names).await.unwrap();
    assert_eq!(
        sandbox.git(check.path(), &["diff", "--name-only", "main...HEAD"]),
        "new\ntopic"
    );
    assert!(sandbox.git(check.path(), &["describe"]).starts_with("v1.0-2-g"));
    assert_eq!(sandbox.git(check.path(), &["rev-parse", "topic"]), result.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_of_their_task_also_in_a_checkout_that_is_used_again() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let machines = Machines::new(&sandbox).await;
    let (base, names) = machines.send(&source).await;
    let (again, same) = machines.send(&source).await;
    assert_eq!((&again, &same), (&base, &names), "the same names are the same commit");
    sandbox.git(&source, &["tag", "-f", "v0.1", "HEAD"]);
    sandbox.git(&source, &["tag", "-f", "-a", "-m", "moved", "v1.0", "HEAD"]);
    sandbox.git(&source, &["switch", "-q", "--detach"]);
    let (base_of_second, moved) = machines.send(&source).await;
    assert_eq!(base_of_second, base);
    assert_ne!(moved, names);

    let old = Worktree::create(&machines.here, sandbox.path("w"), &base)
        .await
        .unwrap();
    old.give_names(&names).await.unwrap();
    let first = names_in(&sandbox, old.path());
    sandbox.git(old.path(), &["tag", "of-the-session"]);
    sandbox.git(old.path(), &["branch", "-f", "main", "HEAD"]);
    let folder = sandbox.path("pool");
    let aside = Worktree::set_aside(&machines.here, old.path(), &base, &folder)
        .await
        .unwrap();
    let reused = Worktree::reuse(&machines.here, &aside, sandbox.path("w2"), &base).await;
    let reused = reused.unwrap().unwrap();
    assert_eq!(names_in(&sandbox, reused.path()), Vec::<String>::new());
    reused.give_names(&moved).await.unwrap();
    let fresh = Worktree::create(&machines.here, sandbox.path("w3"), &base)
        .await
        .unwrap();
    fresh.give_names(&moved).await.unwrap();
    for worktree in [&reused, &fresh] {
        let git = |args: &[&str]| sandbox.git(worktree.path(), args);
        assert_eq!(git(&["describe"]), "v1.0");
        assert_eq!(git(&["rev-parse", "v0.1"]), base.as_str());
        assert_eq!(
            git(&["rev-parse", "--abbrev-ref", "HEAD"]),
            "HEAD",
            "detached, as the person's"
        );
        assert_eq!(names_in(&sandbox, worktree.path()), names_in(&sandbox, fresh.path()));
    }
    assert_ne!(names_in(&sandbox, reused.path()), first);
    // The first task still has its own.
    let other = Worktree::create(&machines.here, sandbox.path("w4"), &base)
        .await
        .unwrap();
    other.give_names(&names).await.unwrap();
    assert_eq!(names_in(&sandbox, other.path()), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn uncommitted_work_is_ahead_of_the_names() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let machines = Machines::new(&sandbox).await;
    write(&source.join("a"), "not committed\n");
    let (base, names) = machines.send(&source).await;
    let worktree = Worktree::create(&machines.here, sandbox.path("w"), &base)
        .await
        .unwrap();
    worktree.give_names(&names).await.unwrap();
    let git = |args: &[&str]| sandbox.git(worktree.path(), args);
    assert_eq!(git(&["rev-parse", "topic"]), base.as_str());
    assert_eq!(git(&["diff", "--name-only", "origin/topic...HEAD"]), "a");
    assert_eq!(git(&["diff", "--name-only", "main...HEAD"]), "a\ntopic");
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_references_of_a_person_do_no_harm() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let git = |args: &[&str]| sandbox.git(&source, args);
    for name in [
        "refs/heads/-x",
        "refs/tags/HEAD",
        "refs/tags/a/-u",
        "refs/odd/x",
        "refs/tags/$(x);y",
    ] {
        git(&["update-ref", name, "HEAD"]);
    }
    // Of a file, of a tag, of nothing, and of what is no reference.
    let blob = git(&["rev-parse", "HEAD:a"]);
    git(&["tag", "of-a-file", &blob]);
    git(&["tag", "-a", "-m", "t", "of-a-tag", "v1.0"]);
    write(
        &source.join(".git/refs/tags/of-nothing"),
        format!("{}\n", "7".repeat(40)),
    );
    write(&source.join(".git/refs/heads/garbage"), "garbage\n");
    write(&source.join(".git/refs/heads/circle"), "ref: refs/heads/circle\n");
    let taken = snapshot(&source).await;
    assert_eq!(taken.warnings, [Warning::NamesLeftOut { count: 1 }], "the tag of a tag");
    let machines = Machines::new(&sandbox).await;
    taken.push(&machines.server.url, &auth(), Receiver::New).await.unwrap();
    let wanted = [Wanted::base(&taken.base), Wanted::base(taken.names.as_ref().unwrap())];
    machines.here.fetch_missing(&machines.origin(), &wanted).await.unwrap();
    let worktree = Worktree::create(&machines.here, sandbox.path("w"), &taken.base)
        .await
        .unwrap();
    worktree.give_names(taken.names.as_ref().unwrap()).await.unwrap();
    let found = names_in(&sandbox, worktree.path());
    let tags: Vec<_> = found.iter().filter(|name| name.starts_with("refs/tags/")).collect();
    assert_eq!(tags.len(), 3, "v0.1, v1.0 and $(x);y: {tags:?}");
    assert!(sandbox.git(worktree.path(), &["describe"]).starts_with("v1.0-1-g"));
}

/// A commit of names that somebody made by hand.
async fn forged(sandbox: &Sandbox, mirror: &Mirror, text: &str) -> Oid {
    let source = sandbox.repository(&format!("forged-{}", text.len()), &[("names", text)]);
    let commit = sandbox.head(&source);
    let spec = format!("HEAD:refs/kage/bases/{commit}");
    mirror
        .fetch(&crate::sandbox::url(&source), &Auth::None, &[&spec])
        .await
        .unwrap();
    commit
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_names_stay_in_the_session_and_name_what_is_there() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("a", "1\n")]);
    let (mirror, base) = sandbox.mirror("m.git", &source).await;
    let nothing = "8".repeat(40);
    let tree = sandbox.git(&source, &["rev-parse", "HEAD^{tree}"]);
    let text = format!(
        "on refs/heads/../../x\n{base} refs/heads/good\n{nothing} refs/heads/of-nothing\n{tree} refs/heads/of-a-tree\n\
         {nothing} refs/tags/t {base}\n@ refs/remotes/../../../out/HEAD refs/heads/good\n{base} refs/heads/good/inner\n\
         @ refs/remotes/o/HEAD refs/remotes/o/none\n{base} ../../x\nnonsense\n\n{base} config\n"
    );
    let names = forged(&sandbox, &mirror, &text).await;
    let worktree = Worktree::create(&mirror, sandbox.path("w"), &base).await.unwrap();
    let around = |path: &str| fingerprint(&sandbox.path(path)).len();
    let before = (around("m.git"), around("source"));
    worktree.give_names(&names).await.unwrap();
    assert_eq!(names_in(&sandbox, worktree.path()), [format!("refs/heads/good {base}")]);
    assert_eq!((around("m.git"), around("source")), before);
    assert!(!sandbox.path("out").exists() && !sandbox.path("x").exists());
    assert_eq!(sandbox.git(worktree.path(), &["rev-parse", "HEAD"]), base.as_str());
    // Any other commit has no names, and one that is not there is an error.
    let plain = Worktree::create(&mirror, sandbox.path("plain"), &base).await.unwrap();
    plain.give_names(&base).await.unwrap();
    assert_eq!(names_in(&sandbox, plain.path()), Vec::<String>::new());
    assert!(plain.give_names(&nothing.parse().unwrap()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healed_mirror_has_the_names_again() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let machines = Machines::new(&sandbox).await;
    let (base, names) = machines.send(&source).await;
    let worktree = Worktree::create(&machines.here, sandbox.path("w"), &base)
        .await
        .unwrap();
    worktree.give_names(&names).await.unwrap();
    let expected = names_in(&sandbox, worktree.path());
    Worktree::remove(&machines.here, worktree.path()).await.unwrap();
    // The object of the tag is lost, and the one of the names is damaged.
    let tag = sandbox.git(&source, &["rev-parse", "v1.0"]);
    let loose = |id: &str| machines.here.path().join("objects").join(&id[..2]).join(&id[2..]);
    std::fs::remove_file(loose(&tag)).unwrap();
    let packs = machines.here.path().join("objects/pack");
    for entry in std::fs::read_dir(&packs).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let wanted = [Wanted::base(&base), Wanted::base(&names)];
    Mirror::heal(machines.here.path(), &machines.origin(), &wanted)
        .await
        .unwrap();
    let worktree = Worktree::create(&machines.here, sandbox.path("w2"), &base)
        .await
        .unwrap();
    worktree.give_names(&names).await.unwrap();
    assert_eq!(names_in(&sandbox, worktree.path()), expected);
    assert!(sandbox.git(worktree.path(), &["describe"]).starts_with("v1.0-1-g"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_is_not_taken_says_why_and_leaves_no_reference() {
    let sandbox = Sandbox::new();
    let source = project(&sandbox);
    let machines = Machines::new(&sandbox).await;
    let taken = snapshot(&source).await;
    // Another process of the coordinator's seems to write the reference.
    let lock = machines
        .there
        .path()
        .join(format!("refs/kage/bases/{}.lock", taken.base));
    write(&lock, "");
    let error = taken
        .push(&machines.server.url, &auth(), Receiver::New)
        .await
        .unwrap_err();
    let refused = error.refused_push().unwrap_or_else(|| panic!("{error}"));
    assert!(!refused.by_machine && !refused.reason.is_empty(), "{refused:?}");
    assert!(
        refused.words.iter().any(|line| line.contains("cannot lock ref")),
        "{refused:?}"
    );
    assert_eq!(machines.there.refs_under("refs/").await.unwrap(), Vec::<String>::new());
    for entry in std::fs::read_dir(machines.there.path().join("objects")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.contains("incoming"), "no quarantine is left: {name}");
    }

    // What somebody else has sent meanwhile is no reason to refuse.
    std::fs::remove_file(&lock).unwrap();
    taken.push(&machines.server.url, &auth(), Receiver::New).await.unwrap();
    let names = format!("refs/kage/bases/{}", taken.names.as_ref().unwrap());
    let there = machines.there.resolve(&names).await.unwrap();
    assert_eq!(there, taken.names);
    machines.there.delete_refs(std::slice::from_ref(&names)).await.unwrap();
    taken
        .push(&machines.server.url, &auth(), Receiver::HasHistory)
        .await
        .unwrap();
    assert_eq!(machines.there.resolve(&names).await.unwrap(), taken.names);
}
