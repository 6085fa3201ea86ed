use super::*;

#[test]
fn only_what_the_machine_did_may_pass() {
    let failed = |exit: &str, stderr: &str| GitError::Failed {
        operation: "index-pack",
        exit: exit.to_owned(),
        stderr: stderr.to_owned(),
    };
    let full = failed("exit status: 128", "fatal: write error: No space left on device");
    assert!(full.is_transient());
    assert!(failed("signal: 9 (SIGKILL)", "").is_transient());
    assert!(GitError::io("create", Path::new("x"))(io::Error::other("x")).is_transient());
    assert!(!failed("exit status: 128", "fatal: pack is corrupted (SHA1 mismatch)").is_transient());
    assert!(!GitError::unexpected("rev-parse", b"?").is_transient());
}

#[test]
fn damage_here_is_told_from_damage_there_and_from_the_machine() {
    let failed = |stderr: &str| GitError::Failed {
        operation: "fetch",
        exit: "exit status: 128".to_owned(),
        stderr: stderr.to_owned(),
    };
    for (stderr, here, there) in [
        (
            "error: object file objects/ab/cd is empty\nfatal: loose object abcd is corrupt",
            true,
            false,
        ),
        ("fatal: mmap failed: No such device", true, false),
        (
            "remote: fatal: unresolved deltas left after unpacking\nerror: remote unpack failed: index-pack abnormal exit",
            false,
            true,
        ),
        (
            "remote: repository r of project p is damaged: restore it\nfatal: unable to access 'http://x/'",
            false,
            true,
        ),
        (" ! [remote rejected] a -> b (missing necessary objects)", false, true),
        (
            "fatal: unable to access 'http://x/': Could not resolve host: x",
            false,
            false,
        ),
        (
            "fatal: could not read Username for 'https://x': terminal prompts disabled",
            false,
            false,
        ),
        ("fatal: write error: No space left on device", false, false),
        (
            "remote: error: unable to write file: No space left on device",
            false,
            false,
        ),
        ("fatal: couldn't find remote ref refs/kage/bases/1", false, false),
        (
            "error: RPC failed; curl 56 Recv failure: Connection reset by peer",
            false,
            false,
        ),
    ] {
        let error = failed(stderr);
        let found = (error.suggests_damage(Path::new("/m")), error.suggests_damage_there());
        assert_eq!(found, (here, there), "{stderr}");
    }
    let missing = |path| GitError::io("open", Path::new(path))(io::Error::from(io::ErrorKind::NotFound));
    assert!(missing("/m/kage.lock").suggests_damage(Path::new("/m")));
    assert!(!missing("/elsewhere").suggests_damage(Path::new("/m")));
    let full = GitError::io("write", Path::new("/m/config"))(io::Error::from(io::ErrorKind::StorageFull));
    assert!(!full.suggests_damage(Path::new("/m")));
}

#[test]
fn a_file_of_a_session_that_cannot_be_read_is_no_damage_of_the_mirror() {
    let session = "error: open(\"secret\"): Permission denied\nfatal: Unable to process path secret";
    let worktree = "error: unable to create file a/b: Not a directory";
    let own = "error: unable to create temporary file: /m/objects/ab: Permission denied";
    let damage = "error: object file /m/objects/ab/cd is empty";
    for (operation, stderr, suggests) in [
        ("update-index", session, false),
        ("diff-files", session, false),
        ("checkout-index", worktree, false),
        ("update-index", own, true),
        ("update-index", damage, true),
        ("fetch", session, true),
        ("fetch", own, true),
    ] {
        let error = GitError::Failed {
            operation,
            exit: "exit status: 128".to_owned(),
            stderr: stderr.to_owned(),
        };
        assert_eq!(
            error.suggests_damage(Path::new("/m")),
            suggests,
            "{operation}: {stderr}"
        );
    }
}

#[tokio::test]
async fn a_fetch_tells_who_was_not_there_from_what_was_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let mirror = crate::Mirror::open_or_init(folder.path().join("to.git")).await.unwrap();
    crate::Mirror::open_or_init(folder.path().join("from.git"))
        .await
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    // A server that accepts a connection and stays silent.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    for (url, problem) in [
        (format!("http://{closed}/x.git"), FetchProblem::Away),
        (format!("http://{silent}/x.git"), FetchProblem::BrokenOff),
        (
            format!("file://{}/from.git", folder.path().display()),
            FetchProblem::NoReference,
        ),
        (
            format!("file://{}/none.git", folder.path().display()),
            FetchProblem::Other,
        ),
    ] {
        let fetched = mirror.fetch(&url, &crate::Auth::None, &["refs/a:refs/a"]).await;
        let error = fetched.unwrap_err();
        assert_eq!(error.fetch_problem(), problem, "{error}");
    }
}

#[test]
fn a_push_that_is_refused_has_the_reason_of_the_reference_and_what_was_printed() {
    let failed = |stderr: &str| GitError::Failed {
        operation: "push",
        exit: "exit status: 1".to_owned(),
        stderr: stderr.to_owned(),
    };
    let told = |reason: &str, words: &[&str], by_machine| {
        Some(RefusedPush {
            reason: reason.to_owned(),
            words: words.iter().map(|line| (*line).to_owned()).collect(),
            by_machine,
        })
    };
    for (stderr, expected) in [
        (
            "remote: error: cannot run :: No such file\nremote: error: cannot lock ref 'refs/kage/bases/1': Unable to \
             create '/data/r.git/refs/1.lock': File exists.\nremote: \nremote: Another git process\nTo http://x/\n ! [remote rejected] 1 -> \
             refs/kage/bases/1 (failed to update ref)\nerror: failed to push some refs to 'http://x/'",
            told(
                "failed to update ref",
                &["cannot lock ref 'refs/kage/bases/1': Unable to create '1.lock': File exists."],
                false,
            ),
        ),
        // Trimmed, as an error of git is.
        (
            "! [remote rejected] 1 -> refs/kage/bases/1 (shallow update not allowed)",
            told("shallow update not allowed", &[], false),
        ),
        (
            "remote: fatal: write error: No space left on device        \nerror: remote unpack failed: unpack-objects \
             abnormal exit\n ! [remote rejected] 1 -> refs/kage/bases/1 (unpacker error)",
            told("unpacker error", &["write error: No space left on device"], true),
        ),
        // The other side's repository is damaged, which is said elsewhere.
        (
            "remote: fatal: unresolved deltas left after unpacking\n ! [remote rejected] 1 -> refs/x (unpacker error)",
            None,
        ),
        ("fatal: unable to access 'http://x/': Could not resolve host: x", None),
        ("remote: nobody said (anything)", None),
    ] {
        assert_eq!(failed(stderr).refused_push(), expected, "{stderr}");
    }
}

#[test]
fn an_object_is_named_whoever_refused_it() {
    let object = "3".repeat(40);
    for from in ["remote: error: ", "error: ", "fatal: "] {
        let error = GitError::Failed {
            operation: "index-pack",
            exit: "exit status: 128".to_owned(),
            stderr: format!("{from}object {object}: hasDotgit: contains '.git'\nfatal: fsck error in packed object"),
        };
        let refused = error.refused_object().unwrap();
        assert_eq!(
            (refused.object.as_str(), refused.flaw.as_str()),
            (object.as_str(), "hasDotgit")
        );
        assert_eq!(refused.words, "contains '.git'");
    }
}
