//! A person's login: their sessions work by access tokens that end, a server rotates the refresh token,
//! and the person stays logged in.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use kage_tests::command::Person;
use kage_tests::repo::Repo;
use kage_tests::wait::wait_for;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A provider's token endpoint: a refresh token works once. What a provider accepts is in a file, so
/// that a shell script can be let in or not.
struct Provider {
    tokens: Arc<Mutex<Tokens>>,
    url: String,
    _serving: JoinSet<()>,
}

struct Tokens {
    number: u32,
    spent: BTreeSet<String>,
    reused: u32,
    /// The access token that is accepted.
    accepted: PathBuf,
}

impl Tokens {
    fn pair(&self) -> (String, String) {
        (
            format!("access-canary-{}", self.number),
            format!("refresh-canary-{}", self.number),
        )
    }

    fn accept(&self) {
        fs::write(&self.accepted, format!("{}\n", self.pair().0)).unwrap();
    }

    fn exchange(&mut self, sent: &str) -> (StatusCode, String) {
        self.reused += u32::from(self.spent.contains(sent));
        if self.pair().1 != sent {
            return (StatusCode::BAD_REQUEST, json!({"error": "invalid_grant"}).to_string());
        }
        self.spent.insert(sent.to_owned());
        self.number += 1;
        self.accept();
        let (access, refresh) = self.pair();
        let answer = json!({"access_token": access, "refresh_token": refresh, "expires_in": 28800});
        (StatusCode::OK, answer.to_string())
    }
}

impl Provider {
    async fn start(accepted: PathBuf) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let tokens = Tokens {
            number: 1,
            spent: BTreeSet::new(),
            reused: 0,
            accepted,
        };
        tokens.accept();
        let tokens = Arc::new(Mutex::new(tokens));
        let served = Arc::clone(&tokens);
        let answer = move |request: String| async move {
            let request: Value = serde_json::from_str(&request).unwrap();
            served
                .lock()
                .unwrap()
                .exchange(request["refresh_token"].as_str().unwrap())
        };
        let app = Router::new().route("/token", post(answer));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            tokens,
            url,
            _serving: serving,
        }
    }
}

/// The manifest of a program that is let in by a login.
fn manifest(person: &Person, url: &str, script: &str) {
    let text = format!(
        "name = 'coder'\ncommand = 'sh'\nargs = ['-c', {script:?}]\n\
         [login]\nfile = '~/.coder/auth.json'\nlog_in = 'run `coder login`'\naccess = '/access'\nrefresh = '/refresh'\n\
         expires = '/end'\naccount = '/plan'\n[login.pass]\nenv = 'CODER_TOKEN'\n\
         [login.server]\nurl = '{url}'\nclient = 'coder'\nrequest = 'json'\n\
         [login.locks]\nrefresh = ['{{folder}}/.refresh.lock']\n\
         [[failure]]\npattern = 'HTTP 401'\nkind = 'auth'\n"
    );
    fs::write(person.path("config/kage/adapters/coder.toml"), text).unwrap();
}

fn log_in(person: &Person) {
    let end = millis() + 8 * 3_600_000;
    let text = format!(
        "{{\"access\":\"access-canary-1\",\"refresh\":\"refresh-canary-1\",\"end\":{end},\"plan\":\"team\",\"mine\":1.0}}"
    );
    fs::create_dir_all(person.path(".coder")).unwrap();
    fs::write(person.path(".coder/auth.json"), text).unwrap();
}

/// Milliseconds since the epoch.
fn millis() -> u128 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()
}

/// The files below a folder that have these bytes in them.
fn files_with(folder: &Path, bytes: &[u8], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_with(&path, bytes, found),
            Ok(kind) if kind.is_file() => {
                let content = fs::read(&path).unwrap_or_default();
                if content.windows(bytes.len()).any(|part| part == bytes) {
                    found.push(path);
                }
            }
            Ok(_) | Err(_) => {}
        }
    }
}

#[tokio::test]
async fn eight_sessions_across_an_expiry_work_on_and_the_person_stays_logged_in() {
    let person = Person::new();
    let (accepted, go, begun) = (person.path("accepted"), person.path("go"), person.outside("begun"));
    let provider = Provider::start(accepted.clone()).await;
    fs::create_dir(&begun).unwrap();
    // It begins, waits until its token may have ended, and asks the provider. It says what it has.
    let script = format!(
        "cat >/dev/null; : > {}/$$; while [ ! -e {} ]; do sleep 0.05; done; echo \"it is $CODER_TOKEN\"; \
         grep -qx \"$CODER_TOKEN\" {} || {{ echo 'HTTP 401: the token has ended' >&2; exit 1; }}; echo \"${{#CODER_TOKEN}}\" > done.txt",
        begun.display(),
        go.display(),
        accepted.display()
    );
    manifest(&person, &provider.url, &script);
    let repo = Repo::sample(&person.path("repo"));

    // Nobody is logged in; then somebody is, while the daemon runs.
    let nobody = person.kage(repo.path(), &["run", "make it", "--with", "coder"]).await;
    assert!(
        nobody.code == 2 && nobody.err.contains("nobody is logged in: run `coder login`"),
        "{nobody:#?}"
    );
    log_in(&person);
    wait_for("the agent knows that somebody is logged in", async || {
        let agents = person.kage(repo.path(), &["agent", "ls"]).await;
        agents
            .out
            .contains("coder: logged in (team), token until ")
            .then_some(())
    })
    .await;

    let run = [
        "run",
        "make it",
        "--with",
        "coder",
        "--repeat",
        "8",
        "--max-attempts",
        "1",
        "--format",
        "json",
    ];
    let mut command = person.command(repo.path(), &run);
    let running = command.output();
    let expire = async {
        wait_for("sessions have begun", async || {
            fs::read_dir(&begun).unwrap().next().is_some().then_some(())
        })
        .await;
        // The provider ends the token before its time: the sessions that run are refused.
        fs::write(&accepted, "").unwrap();
        fs::write(&go, "").unwrap();
    };
    let (output, ()) = tokio::join!(running, expire);
    let run = kage_tests::command::said(output.unwrap());
    let shown = person.kage(repo.path(), &["show", "--format", "json"]).await;
    assert_eq!(run.code, 0, "{run:#?}\n{shown:#?}");
    let sessions = shown.json()["sessions"].as_array().unwrap().clone();
    let ended = sessions
        .iter()
        .filter(|session| session["state"] == "SESSION_STATE_UNVERIFIED");
    assert_eq!((ended.count(), sessions.len()), (8, 8), "{shown:#?}");
    assert!(shown.out.contains("TOKEN_EXPIRED"), "{shown:#?}");

    // The login works on: one refresh, and what is in the file is the newest.
    {
        let tokens = provider.tokens.lock().unwrap();
        assert_eq!((tokens.number, tokens.reused), (2, 0));
    }
    let file = fs::read_to_string(person.path(".coder/auth.json")).unwrap();
    assert!(
        file.contains("\"refresh-canary-2\"") && file.contains("\"mine\":1.0"),
        "{file}"
    );
    let doctor = person.kage(repo.path(), &["doctor"]).await;
    assert!(doctor.out.contains("logged in (team), token until "), "{doctor:#?}");

    // Nothing else has a token: no row, event, log, or output.
    let logs = person.kage(repo.path(), &["logs"]).await;
    assert!(logs.out.contains("it is ***"), "{logs:#?}");
    let mut found = Vec::new();
    files_with(&person.path(""), b"-canary-", &mut found);
    found.sort();
    assert_eq!(found, [person.path(".coder/auth.json"), accepted]);
    for said in [&run, &shown, &doctor, &logs] {
        assert!(
            !said.out.contains("-canary-") && !said.err.contains("-canary-"),
            "{said:#?}"
        );
    }
}
