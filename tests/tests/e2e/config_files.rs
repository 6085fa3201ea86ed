//! A coordinator and an agent with configuration files, and flags that add to them.

use kage_tests::command::{Person, said};
use kage_tests::wait::wait_for;

#[tokio::test]
async fn daemons_take_their_files_and_flags_win() {
    let person = Person::new();
    let folder = person.path("");
    let data = person.path("data");
    let text = |name: &str| person.path(name).to_str().unwrap().to_owned();
    std::fs::write(
        person.path("coordinator.toml"),
        format!("data_dir = {data:?}\nlisten = '0.0.0.0:1'\nheartbeat = '500ms'\n"),
    )
    .unwrap();
    let with_file = ["coordinator", "--config", &text("coordinator.toml")];
    let mut coordinator = person
        .command(&folder, &[&with_file[..], &["--listen", "127.0.0.1:0"]].concat())
        .spawn()
        .unwrap();
    let url = wait_for("the coordinator says where it listens", async || {
        std::fs::read_to_string(data.join("endpoint")).ok()
    })
    .await;
    // Loopback, from the flag. At other addresses it would use TLS.
    let url = url.trim();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");

    let token = data.join("token");
    let agent_file = format!(
        "coordinator = {url:?}\ntoken_file = {token:?}\nname = 'of-the-file'\nslots = 3\nlabel = ['zone=north']\n\
         [disk]\nmirrors_mib = 100\n"
    );
    std::fs::write(person.path("agent.toml"), agent_file).unwrap();
    let with_file = ["agent", "run", "--config", &text("agent.toml")];
    let mut agent = person
        .command(&folder, &[&with_file[..], &["--name", "of-the-flag"]].concat())
        .spawn()
        .unwrap();
    let list = async || {
        let mut command = person.command(&folder, &["agent", "ls", "--format", "json"]);
        command
            .env("KAGE__COORDINATOR__URL", url)
            .env("KAGE__COORDINATOR__TOKEN_FILE", &token);
        let listed = said(command.output().await.unwrap()).json();
        listed.as_array()?.first().cloned()
    };
    let listed = wait_for("the agent is connected", list).await;
    assert_eq!(
        (&listed["name"], &listed["slots"], &listed["labels"]["zone"]),
        (&"of-the-flag".into(), &3.into(), &"north".into()),
        "{listed}"
    );
    agent.kill().await.unwrap();
    coordinator.kill().await.unwrap();
}

#[tokio::test]
async fn a_key_that_there_is_not_starts_nothing() {
    let person = Person::new();
    let folder = person.path("");
    let file = person.path("wrong.toml");
    for (command, key, nearest) in [
        (&["coordinator"][..], "public_names = []", "public_name"),
        (&["agent", "run"], "labels = []", "label"),
    ] {
        std::fs::write(&file, key).unwrap();
        let arguments = [command, &["--config", file.to_str().unwrap()]].concat();
        let ended = person.kage(&folder, &arguments).await;
        assert_eq!(ended.code, 2, "{ended:#?}");
        let hint = format!("(did you mean `{nearest}`?)");
        assert!(ended.err.contains(&hint) && ended.err.contains("line 1"), "{ended:#?}");
    }
    assert!(!person.path("state").exists());
}
