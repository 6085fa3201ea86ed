//! Sessions that wait for a network do not wait for programs, and a session may have a time limit of its
//! own.

use kage_scripted::{Matcher, Script, ScriptedServer, Turn};
use kage_tests::command::{Person, said};
use kage_tests::repo::Repo;
use kage_tests::wait::wait_for;
use serde_json::json;

#[tokio::test]
async fn a_session_of_an_api_needs_no_slot_of_the_agent_and_one_session_has_less_time() {
    let model = "claude-sonnet-5-5";
    let turns = [
        Turn::call("bash", json!({"command": "echo done > done.txt"})),
        Turn::say("Done."),
    ];
    let scripts = vec![Script::new("quick", Matcher::model(model), turns)];
    let server = ScriptedServer::start(scripts).await.unwrap();
    let person = Person::new();
    let settings = "[agent]\nslots = 1\n[adapter.claude-api]\nslots = 7\nkey_file = 'key'\n";
    let settings = settings.replace("'key'", &format!("{:?}", person.path("key")));
    std::fs::write(person.path("key"), "sk-test").unwrap();
    std::fs::write(person.path("config/kage/config.toml"), settings).unwrap();
    let gate = person.path("gate");
    let held = format!("cat >/dev/null; while [ ! -e {gate:?} ]; do sleep 0.1; done; echo 1 > held.txt");
    person.adapter("holder", &held);
    person.adapter("sleeper", "cat >/dev/null; sleep 60");
    let repo = Repo::sample(&person.path("repo"));
    let kage = async |arguments: &[&str]| {
        let mut command = person.command(repo.path(), arguments);
        said(command.env("ANTHROPIC_BASE_URL", server.url()).output().await.unwrap())
    };

    let holder = kage(&["run", "hold the slot", "--with", "holder", "--detach"]).await;
    assert_eq!(holder.code, 0, "{holder:#?}");
    let slots = async || {
        let listed = kage(&["agent", "ls", "--format", "json"]).await.json();
        let agent = listed[0].clone();
        let mut adapters = agent["adapters"].as_array().unwrap().iter();
        let api = adapters
            .find(|adapter| adapter["name"] == "claude-api")
            .unwrap()
            .clone();
        [&agent["busy"], &agent["slots"], &api["busy"], &api["slots"]].map(|n| n.as_u64().unwrap_or_default())
    };
    wait_for("the only slot is taken", async || (slots().await[0] == 1).then_some(())).await;
    let with = format!("claude-api:{model}");
    let quick = kage(&["run", "be quick", "--with", &with, "--format", "json"]).await;
    assert_eq!(quick.code, 0, "{quick:#?}");
    assert_eq!(slots().await, [1, 1, 0, 7]);
    let listed = kage(&["agent", "ls"]).await;
    assert!(listed.out.contains("1/1 claude-api 0/7"), "{listed:#?}");
    std::fs::write(&gate, "").unwrap();

    let late = [
        "run",
        "sleep",
        "--with",
        "sleeper@1s",
        "--max-attempts",
        "1",
        "--format",
        "json",
    ];
    let late = kage(&late).await;
    assert_eq!(late.code, 1, "{late:#?}");
    let report = late.json();
    assert_eq!(report["sessions"][0]["state"], "SESSION_STATE_FAILED", "{report:#}");
    assert!(
        report["report"]["rows"][0].to_string().contains("TIMEOUT"),
        "{report:#}"
    );
}
