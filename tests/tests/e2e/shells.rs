//! A task works with the environment of the shell in which it was submitted, whatever the shell was in
//! which the daemon of the machine was started.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kage_tests::command::{Person, Said, said};
use kage_tests::repo::Repo;
use kage_tests::wait::wait_for;

/// A key that stands nowhere but in a shell.
const CANARY: &str = "sk-canary-91c4e07d";

fn program(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The files below a folder that have the key in them.
fn files_with_the_key(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            files_with_the_key(&path, found);
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap_or_default();
            if content.windows(CANARY.len()).any(|part| part == CANARY.as_bytes()) {
                found.push(path);
            }
        }
    }
}

#[tokio::test]
async fn a_task_has_what_its_shell_has_although_the_daemon_was_started_without_it() {
    let person = Person::new();
    person.adapter("idle", "cat >/dev/null; echo 1 > one.txt");
    let repo = Repo::sample(&person.path("repo"));
    let first = person.kage(repo.path(), &["run", "make it", "--with", "idle"]).await;
    assert_eq!(first.code, 0, "{first:#?}");
    assert!(!first.err.contains("of this shell"), "nothing differs: {first:#?}");

    // Meanwhile the person installs a tool, puts it into PATH, writes an adapter for it, and exports its
    // key. The session plants a program of the tool's name in front of it.
    let (early, tools) = (person.outside("early"), person.path("tools"));
    fs::create_dir(&early).unwrap();
    program(&tools.join("my-tool"), "echo real");
    let split = CANARY.split_at(9);
    let script = format!(
        "cat >/dev/null; [ \"$MY_KEY\" = '{}''{}' ] || exit 3; echo \"key $MY_KEY\"; my-tool > made.txt; printf \
         '#!/bin/sh\\necho planted\\n' > {early:?}/my-tool; chmod +x {early:?}/my-tool",
        split.0, split.1
    );
    let manifest = format!(
        "name = \"late\"\ncommand = \"sh\"\nargs = [\"-c\", {script:?}]\n[env]\nrequire = [\"MY_KEY\"]\nsecret = \
         [\"MY_KEY\"]\n"
    );
    fs::write(person.path("config/kage/adapters/late.toml"), manifest).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([early, tools].into_iter().chain(std::env::split_paths(&path))).unwrap();
    let kage = async |arguments: &[&str]| -> Said {
        let mut command = person.command(repo.path(), arguments);
        said(command.env("PATH", &path).env("MY_KEY", CANARY).output().await.unwrap())
    };
    // The key is the adapter's alone.
    let verify = "ls | xargs cat | grep -qx real && [ \"$(my-tool)\" = real ] && [ -z \"$MY_KEY\" ]";
    let run = kage(&[
        "run", "use it", "--with", "late", "--verify", verify, "--format", "json",
    ])
    .await;
    assert_eq!(run.code, 0, "{run:#?}");
    let told = "of this shell, because the daemon was started with another: PATH, MY_KEY";
    assert!(run.err.contains(told), "{run:#?}");
    let task = run.json()["id"].as_str().unwrap().to_owned();
    let logs = person.kage(repo.path(), &["logs", &task]).await;
    assert!(logs.out.contains("key ***"), "{logs:#?}");

    // In one shell the key is there and in the other it is not; the daemon is judged too.
    let doctor = kage(&["doctor", "--format", "json"]).await.json();
    assert_eq!(
        doctor["daemon"]["differs"],
        serde_json::json!(["PATH", "MY_KEY"]),
        "{doctor:#}"
    );
    let late = |of: &serde_json::Value| {
        let adapters = of["adapters"].as_array().unwrap().clone();
        adapters.into_iter().find(|adapter| adapter["name"] == "late").unwrap()["unavailable"].clone()
    };
    assert_eq!(late(&doctor), serde_json::Value::Null);
    assert!(late(&doctor["daemon"]).to_string().contains("MY_KEY"), "{doctor:#}");

    let left = person.path("state/agent/shells");
    wait_for("the values are removed", async || {
        fs::read_dir(&left).unwrap().next().is_none().then_some(())
    })
    .await;
    // A task of a shell without the key does not get it, and is told so.
    let other = person.kage(repo.path(), &["run", "use it", "--with", "late"]).await;
    assert_ne!(other.code, 0, "{other:#?}");
    assert!(other.err.contains("set MY_KEY"), "{other:#?}");

    let mut found = Vec::new();
    files_with_the_key(&person.path(""), &mut found);
    assert_eq!(found, Vec::<PathBuf>::new());
}

/// What a shell hands over names programs that the agent runs, to ask them for their versions.
#[tokio::test]
async fn a_program_of_a_session_hands_nothing_over() {
    let person = Person::new();
    let ask = r#"import os, socket
ask = socket.socket(socket.AF_UNIX)
ask.settimeout(60)
ask.connect(os.environ['SOCKET'])
ask.sendall(b'{"compare":{"values":{"PATH":"/planted"}}}\n')
open('answer.txt', 'wb').write(b'<' + ask.makefile('rb').read() + b'>')
"#;
    let socket = person.path("state/agent/shell.sock");
    // In a process that its parent left, too.
    let script = format!(
        "cat >/dev/null; cat > ask.py <<'END'\n{ask}END\nexport SOCKET={}; (setsid python3 ask.py & ); \
         until [ -s answer.txt ]; do sleep 0.02; done; cat answer.txt",
        socket.display()
    );
    person.adapter("asker", &script);
    let repo = Repo::sample(&person.path("repo"));
    let run = person.kage(repo.path(), &["run", "ask", "--with", "asker"]).await;
    assert_eq!(run.code, 0, "{run:#?}");
    let logs = person.kage(repo.path(), &["logs"]).await;
    assert_eq!(logs.out.trim(), "<>", "{logs:#?}");
    // A person's own command gets an answer.
    let doctor = person.kage(repo.path(), &["doctor", "--format", "json"]).await.json();
    assert_eq!(doctor["daemon"]["differs"], serde_json::json!([]), "{doctor:#}");
}
