//! Remotes whose address runs a program, and remotes that ask for a password.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::{Auth, Mirror, UserRepo};

use super::{Field, PLAIN, Trap};

/// An address, and the settings with which plain git follows it.
const ADDRESSES: &[(&str, &[(&str, &str)])] = &[
    ("ext::{stop} x", &[("protocol.ext.allow", "always")]),
    ("ssh://host/path", &[("core.sshCommand", "{stop}")]),
    ("host:path", &[("core.sshCommand", "{stop}")]),
    ("git://host/path", &[("core.gitProxy", "{stop}")]),
    (
        "evil://host/path",
        &[
            ("url.ext::{stop} .insteadOf", "evil://"),
            ("protocol.ext.allow", "always"),
        ],
    ),
];

#[tokio::test]
async fn no_address_runs_a_program() {
    let field = Field::new();
    for (number, (address, config)) in ADDRESSES.iter().enumerate() {
        let ground = field.ground(&number.to_string());
        let address = ground.fill(address);
        let mirror = Mirror::open_or_init(ground.folder.join("m.git")).await.unwrap();
        for (key, value) in *config {
            let (key, value) = (ground.fill(key), ground.fill(value));
            // Even if it is in the mirror's own configuration.
            for repository in [mirror.path(), &ground.repo()] {
                field.sandbox.git(repository, &["config", &key, &value]);
            }
        }
        let spec = "refs/heads/main:refs/kage/bases/main";
        let fetched = mirror.fetch(&address, &Auth::None, &[spec]).await;
        assert!(fetched.is_err(), "{address}: {fetched:?}");
        let repository = UserRepo::discover(&ground.repo()).await.unwrap();
        let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await.unwrap();
        let pushed = snapshot.push(&address, &Auth::None, Receiver::New).await;
        assert!(pushed.is_err(), "{address}: {pushed:?}");
        assert!(!ground.has_sprung(), "{address}: it ran");
        ground.walk(&[&["fetch", &address, spec]]);
        assert!(ground.has_sprung(), "{address}: plain git did not walk into it");
    }
}

/// A server that answers every request with a demand for credentials.
fn asking() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/r", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                // What is asked does not matter; it fits one read.
                if stream.read(&mut [0; 8192]).is_ok() {
                    let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\
                                  Content-Length: 0\r\nConnection: close\r\n\r\n";
                    stream.write_all(answer.as_bytes()).ok();
                }
            });
        }
    });
    url
}

const PASSWORDS: &[Trap] = &[
    Trap {
        name: "credential.helper",
        config: &[("credential.helper", "!{marker}")],
        ..PLAIN
    },
    Trap {
        name: "core.askPass",
        config: &[("core.askPass", "{stop}")],
        ..PLAIN
    },
];

#[tokio::test]
async fn no_program_is_asked_for_a_password() {
    let (field, url) = (Field::new(), asking());
    for (number, trap) in PASSWORDS.iter().enumerate() {
        let ground = field.ground(&number.to_string());
        ground.set(trap, &ground.repo());
        let repository = UserRepo::discover(&ground.repo()).await.unwrap();
        let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await.unwrap();
        for auth in [Auth::None, Auth::Bearer("wrong".to_owned())] {
            let pushed = snapshot.push(&url, &auth, Receiver::New).await;
            assert!(pushed.is_err(), "{}: {pushed:?}", trap.name);
        }
        let mirror = Mirror::open_or_init(ground.folder.join("m.git")).await.unwrap();
        ground.set(trap, &ground.repo());
        let fetched = mirror.fetch(&url, &Auth::None, &["a:b"]).await;
        assert!(fetched.is_err(), "{}: {fetched:?}", trap.name);
        assert!(!ground.has_sprung(), "{}: it ran", trap.name);
        ground.walk(&[&["push", &url, "HEAD:refs/heads/x"]]);
        assert!(ground.has_sprung(), "{}: plain git did not walk into it", trap.name);
    }
}
