//! Programs that people have, with the variables that programs behind a door get.

use std::path::Path;
use std::process::Stdio;

use axum::Router;
use axum::extract::{Request, State};
use http::StatusCode;
use tokio::process::Command;

use super::*;
use crate::process::Environment;

/// Serves the files of a folder.
async fn files(folder: &Path) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = |State(folder): State<std::path::PathBuf>, request: Request| async move {
        let path = folder.join(request.uri().path().trim_start_matches('/'));
        std::fs::read(path).map_err(|_| StatusCode::NOT_FOUND)
    };
    let app = Router::new().fallback(answer).with_state(folder.to_owned());
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

/// Runs a program with a home of its own and these variables, and says what it printed.
async fn run(program: &str, args: &[&str], home: &Path, behind: Option<SocketAddr>) -> (bool, String) {
    let path = std::env::var("PATH").unwrap_or_default();
    let own = [
        ("PATH", path.as_str()),
        ("HOME", home.to_str().unwrap()),
        ("GIT_TERMINAL_PROMPT", "0"),
    ];
    let mut environment = Environment::from_iter(own);
    if let Some(address) = behind {
        environment = environment.behind_door(address.port());
    }
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(environment.pairs())
        .current_dir(home);
    let output = soon(command.stdin(Stdio::null()).kill_on_drop(true).output())
        .await
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn git_clones_through_the_door_what_is_listed_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let git = async |args: &[&str]| {
        let (fine, text) = run("git", args, home.path(), None).await;
        assert!(fine, "git {args:?}: {text}");
    };
    git(&["init", "-q", "-b", "main", "origin"]).await;
    std::fs::write(home.path().join("origin/file"), "content of the file").unwrap();
    git(&["-C", "origin", "add", "file"]).await;
    let by = ["-c", "user.name=a", "-c", "user.email=a@example.com"];
    git(&[&["-C", "origin"][..], &by, &["commit", "-q", "-m", "one"]].concat()).await;
    git(&["-C", "origin", "update-server-info"]).await;
    let port = files(&home.path().join("origin")).await;

    let door = open(rules(&[&format!("git.test:{port}"), "127.0.0.1"]));
    let url = format!("http://git.test:{port}/.git");
    let (fine, text) = run(
        "git",
        &["clone", "-q", &url, "through"],
        home.path(),
        Some(door.address),
    )
    .await;
    assert!(fine, "{text}");
    let cloned = std::fs::read_to_string(home.path().join("through/file")).unwrap();
    assert_eq!(cloned, "content of the file");

    let url = format!("http://other.test:{port}/.git");
    let (fine, text) = run("git", &["clone", &url, "refused"], home.path(), Some(door.address)).await;
    assert!(!fine && text.contains("403"), "{text}");
    let url = "https://registry.example.com/a.git";
    let (fine, text) = run("git", &["clone", url, "refused"], home.path(), Some(door.address)).await;
    assert!(!fine && text.contains("403"), "{text}");
    let (traffic, told) = door.close().await;
    assert!(traffic.received > 19, "{traffic:?}");
    assert_eq!(told.len(), 2, "{told:?}");
}
