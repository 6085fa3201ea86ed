//! The README's commands work in their order, for a person on whose machine nothing ran yet, with the
//! real `claude` program and a scripted provider. The program reads the files that the README and the
//! pages for users show.

use kage_scripted::{Matcher, Script, ScriptedServer, Turn};
use kage_tests::command::{Person, Said, said};
use kage_tests::programs;
use kage_tests::repo::Repo;
use serde_json::json;

/// The README, whose commands come first, and the pages that show files.
const PAGES: &str = concat!(
    include_str!("../../../README.md"),
    include_str!("../../../docs/adapters.md"),
    include_str!("../../../docs/recovery.md"),
    include_str!("../../../docs/settings.md"),
);

fn blocks(kind: &str) -> Vec<&'static str> {
    let begins = PAGES.split(&format!("```{kind}\n")).skip(1).collect::<Vec<_>>();
    begins
        .into_iter()
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// The block of a kind that has these words.
fn block(kind: &str, words: &str) -> &'static str {
    let found = blocks(kind).into_iter().find(|block| block.contains(words));
    found.unwrap_or_else(|| panic!("no page has a {kind} block with {words:?}"))
}

fn executable(person: &Person, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = person.path("bin").join(name);
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn the_commands_of_the_readme_do_what_it_says() {
    let Some(claude) = programs::claude() else {
        return programs::skip("readme", "claude is not installed; ./scripts/test installs it");
    };
    let solve = "echo 'iso_week() { echo \"$1\"; }' > dates.sh";
    let server = ScriptedServer::start(vec![
        Script::new(
            "api",
            // The program may take the same model; its requests are not those of the built-in loop.
            Matcher {
                model: Some("claude-opus-5-5".to_owned()),
                ..Matcher::marker("working alone on one task in a git worktree")
            },
            [
                Turn::call("bash", json!({"command": solve})),
                Turn::say("It takes week dates now."),
            ],
        ),
        Script::new(
            "program",
            Matcher::any(),
            [
                Turn::call("Bash", json!({"command": solve, "description": "take week dates"})),
                Turn::say("It takes week dates now."),
            ],
        ),
    ])
    .await
    .unwrap();

    let person = Person::new();
    std::fs::create_dir(person.path("bin")).unwrap();
    std::os::unix::fs::symlink(programs::kage(), person.path("bin/kage")).unwrap();
    // The project's own command; its content does not matter to Kage.
    executable(&person, "cargo", "#!/bin/sh\nexec sh tests/dates.sh\n");
    let repo = Repo::empty(&person.path("repo"));
    repo.write("dates.sh", "iso_week() { return 1; }\n");
    repo.write("tests/dates.sh", ". ./dates.sh\niso_week 2026-W48-7\n");
    repo.commit("a date parser without week dates");

    let text = block("sh", "kage run");
    let (set_up, commands): (Vec<_>, Vec<_>) = text.lines().partition(|line| {
        ["cargo install ", "export ", "cd "]
            .iter()
            .any(|begin| line.starts_with(begin))
    });
    assert_eq!(set_up.len(), 3, "{set_up:?}");
    assert!(commands[0].starts_with("kage run"), "{commands:?}");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [person.path("bin"), claude.parent().unwrap().to_owned()];
    let path = std::env::join_paths(folders.into_iter().chain(std::env::split_paths(&path))).unwrap();
    let shell = async |script: &str| -> Said {
        let mut shell = tokio::process::Command::new("sh");
        shell
            .args(["-e", "-c", script])
            .current_dir(repo.path())
            .env_clear()
            .env("PATH", &path)
            .env("HOME", person.path(""))
            .env("XDG_CONFIG_HOME", person.path("config"))
            .env("KAGE_STATE_DIR", person.path("state"))
            .env("ANTHROPIC_API_KEY", "sk-ant-scripted")
            .env("ANTHROPIC_BASE_URL", server.url())
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        said(shell.output().await.unwrap())
    };
    assert_ne!(shell("cargo test").await.code, 0, "the project's test fails before");
    let done = shell(&commands.join("\n")).await;
    assert_eq!(done.code, 0, "{done:#?}");
    for session in ["claude-code-1", "claude-code-2", "claude-api-1", "claude-api-2"] {
        assert!(done.out.contains(session), "{session} is not in {done:#?}");
    }
    let compared = shell("kage compare --format json").await.json();
    let sessions = compared["sessions"].as_array().unwrap();
    let passed = sessions
        .iter()
        .filter(|session| session["verdict"]["kind"] == "VERDICT_KIND_PASSED")
        .count();
    assert_eq!(passed, 4, "{compared:#}");
    let after = shell("cargo test").await;
    assert_eq!((after.code, after.out.as_str()), (0, "2026-W48-7\n"), "{after:#?}");
    shell("kage down").await;
}

#[tokio::test]
async fn the_files_of_the_pages_for_users_are_read() {
    let person = Person::new();
    let folder = person.path("");
    assert_eq!(blocks("toml").len(), 11, "each of them is read here");
    let manifest = block("toml", "command = \"my-tool\"");
    std::fs::write(person.path("config/kage/adapters/my-tool.toml"), manifest).unwrap();
    // The further keys of a program that can resume a session.
    let mut going_on: toml::Table = manifest.parse().unwrap();
    let mut more: toml::Table = block("toml", "[session]").parse().unwrap();
    let arguments = [&going_on["args"], &more["args"]].map(|args| args.as_array().unwrap().clone());
    more.insert("args".to_owned(), arguments.concat().into());
    going_on.extend(more);
    let login: toml::Table = block("toml", "[login]").parse().unwrap();
    going_on.extend(login);
    // A program that chooses the ids of conversations itself.
    let mut telling = going_on.clone();
    telling.extend(block("toml", "sessions/moved-").parse::<toml::Table>().unwrap());
    let resume = vec![toml::Value::from(vec!["resume", "{old_session}"])];
    telling.insert("args".to_owned(), [arguments[0].clone(), resume].concat().into());
    telling.insert("parser".to_owned(), "codex-json".into());
    telling.insert("name".to_owned(), "my-tool-tells".into());
    let telling = toml::to_string(&telling).unwrap();
    std::fs::write(person.path("config/kage/adapters/my-tool-tells.toml"), telling).unwrap();
    going_on.insert("name".to_owned(), "my-tool-again".into());
    let going_on = toml::to_string(&going_on).unwrap();
    std::fs::write(person.path("config/kage/adapters/my-tool-again.toml"), going_on).unwrap();
    let talking = block("toml", "name = \"my-agent\"");
    std::fs::write(person.path("config/kage/adapters/my-agent.toml"), talking).unwrap();
    std::fs::write(person.path("config/kage/failures.toml"), block("toml", "[[rule]]")).unwrap();
    let seen = person.kage(&folder, &["doctor", "--format", "json"]).await;
    let adapters = seen.json()["adapters"].clone();
    for name in ["my-tool", "my-tool-again", "my-tool-tells", "my-agent"] {
        let mut adapters = adapters.as_array().unwrap().iter();
        assert!(
            adapters.any(|adapter| adapter["name"] == name),
            "{name} is not in {seen:#?}"
        );
    }
    let explained = person
        .kage(&folder, &["explain", "try me tomorrow", "--adapter", "my-tool"])
        .await;
    assert!(explained.code == 0 && explained.out.contains("quota"), "{explained:#?}");

    let settings = [
        block("toml", "[agent.disk]"),
        block("toml", "max_hold"),
        block("toml", "[adapter.openrouter]"),
        block("toml", "[home]"),
    ]
    .join("\n");
    std::fs::write(person.path("config/kage/config.toml"), settings).unwrap();
    let read = person.kage(&folder, &["explain", "overloaded"]).await;
    assert_eq!(read.code, 0, "{read:#?}");
    // An agent that is talked to, by two lines of its own.
    let goose = block("toml", "[adapter.goose]");
    std::fs::write(person.path("config/kage/config.toml"), goose).unwrap();
    let listed = person.kage(&folder, &["adapter", "ls", "--format", "json"]).await;
    let adapters = listed.json()["adapters"].clone();
    let mut adapters = adapters.as_array().unwrap().iter();
    assert!(adapters.any(|adapter| adapter["name"] == "goose"), "{listed:#?}");
}
