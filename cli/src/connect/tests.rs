use std::os::unix::fs::PermissionsExt as _;

use tokio::net::TcpListener;

use super::*;
use crate::args::Format;
use crate::exit::Exit;
use crate::output::Output;

/// A state directory in which a coordinator said that it listens at this port, and was killed.
fn left_behind(port: u16) -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::resolve(Some(dir.path())).unwrap();
    make_private(&state.coordinator()).unwrap();
    std::fs::write(state.endpoint(), format!("http://127.0.0.1:{port}\n")).unwrap();
    std::fs::write(state.token(), "token\n").unwrap();
    File::create(state.coordinator_lock()).unwrap();
    (dir, state)
}

/// What a coordinator holds as long as it runs.
fn alive(state: &StateDir) -> File {
    let lock = File::open(state.coordinator_lock()).unwrap();
    lock.try_lock().unwrap();
    lock
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Answers every call with this gRPC status.
async fn answer(listener: TcpListener, status: &'static str) {
    let answer = move || async move {
        let headers = [("content-type", "application/grpc"), ("grpc-status", status)];
        (headers, axum::body::Body::empty())
    };
    let router = axum::Router::new().fallback(answer);
    axum::serve(listener, router).await.unwrap();
}

#[tokio::test]
async fn none_runs_where_none_said_so_or_nothing_listens_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::resolve(Some(dir.path())).unwrap();
    assert!(running(&state).await.unwrap().is_none());
    let (listener, port) = listener().await;
    drop(listener);
    let (_dir, state) = left_behind(port);
    assert!(running(&state).await.unwrap().is_none());
    let _lock = alive(&state);
    assert!(running(&state).await.unwrap().is_none(), "it is only starting");
}

#[tokio::test]
async fn whoever_listens_where_a_killed_one_did_is_not_asked() {
    let (listener, port) = listener().await;
    let (_dir, state) = left_behind(port);
    let found = tokio::select! {
        _ = listener.accept() => panic!("a stranger was shown the token"),
        found = running(&state) => found,
    };
    assert!(found.unwrap().is_none());
    // Whatever is left of it: no command fails because of that.
    std::fs::remove_file(state.token()).unwrap();
    assert!(running(&state).await.unwrap().is_none());
    std::fs::write(state.endpoint(), "nonsense").unwrap();
    assert!(running(&state).await.unwrap().is_none());
}

#[tokio::test]
async fn nothing_is_started_or_made_where_nothing_was_run() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::resolve(Some(&dir.path().join("state"))).unwrap();
    let settings = Settings::default();
    let found = access(&settings, &state, WhenAbsent::StartAgain).await;
    assert!(matches!(found, Err(AccessError::Unused)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    // Data of a coordinator for others is not the daemon's to serve.
    make_private(&state.coordinator().join("tls")).unwrap();
    std::fs::write(state.database(), "").unwrap();
    std::fs::write(state.ca(), "").unwrap();
    let found = access(&settings, &state, WhenAbsent::StartAgain).await;
    assert!(matches!(found, Err(AccessError::ServerDown { .. })));
}

#[tokio::test]
async fn a_token_a_version_and_a_stranger_are_told_apart() {
    let cases = [
        ("16", Exit::Denied, "rejects the token in"),
        ("12", Exit::Unavailable, "has another version"),
        ("13", Exit::Unavailable, "does not answer like a coordinator"),
    ];
    for (status, exit, words) in cases {
        let (listener, port) = listener().await;
        let (_dir, state) = left_behind(port);
        let _lock = alive(&state);
        let found = tokio::select! {
            () = answer(listener, status) => panic!("the server ended"),
            found = running(&state) => found,
        };
        let error = anyhow::Error::from(found.err().unwrap());
        assert!(format!("{error:#}").contains(words), "{error:#}");
        assert_eq!(
            crate::exit::report(&error, &Output::new(Format::Human)),
            exit,
            "{error:#}"
        );
    }
}

#[tokio::test]
async fn what_is_no_coordinator_is_none() {
    let (listener, port) = listener().await;
    let (_dir, state) = left_behind(port);
    let _lock = alive(&state);
    // It reads what comes, says something, and hangs up.
    let rude = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 mail.example.org ready\r\n")
                .await
                .unwrap();
        }
    };
    let found = tokio::select! {
        () = rude => unreachable!("it goes on"),
        found = running(&state) => found,
    };
    let error = found.err().unwrap();
    assert!(matches!(error, AccessError::NoCoordinator { .. }), "{error:?}");
}

#[tokio::test]
async fn files_that_cannot_be_read_are_named() {
    let (_listener, port) = listener().await;
    let (_dir, state) = left_behind(port);
    let _lock = alive(&state);
    std::fs::remove_file(state.token()).unwrap();
    let error = running(&state).await.err().unwrap();
    assert!(
        matches!(&error, AccessError::Read { path, .. } if *path == state.token()),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_state_directory_is_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::resolve(Some(&dir.path().join("new"))).unwrap();
    let lock = state_lock(&state).unwrap();
    let mode = std::fs::metadata(state.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    drop(lock);
}
