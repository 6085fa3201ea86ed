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
