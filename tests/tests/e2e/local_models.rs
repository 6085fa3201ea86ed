//! Servers of models of one's own: a race of chat completions and of Ollama's own API, under names that
//! the settings give. The best is found, tokens are what the servers counted, and what is free says so.

use kage_proto::v1;
use kage_scripted::{Answer, Block, Fault, Matcher, Reply, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, read_all, session, task, verdict};
use serde_json::json;

const CHAT: &str = "qwen4-coder";
const LOCAL: &str = "qwen4:8b";

fn scripts() -> Vec<Script> {
    let write = |content: &str| Block::tool("write_file", json!({"path": "add.sh", "content": content}));
    let longer = format!("# Adds two numbers.\n# It takes them as arguments.\n{SOLUTION}");
    vec![
        Script::new(
            "chat",
            Matcher::model(CHAT),
            [
                Reply::new([
                    Block::Text("Both at once.".to_owned()),
                    Block::tool("read_file", json!({"path": "add.sh"})),
                    write(SOLUTION),
                ])
                .into(),
                Turn::say("I fixed the sign.").after(Fault::overloaded()),
            ],
        ),
        Script::new(
            "local",
            Matcher::model(LOCAL),
            [
                Reply::new([Block::Thinking("The sign is wrong.".to_owned()), write(&longer)]).into(),
                Turn::say("I fixed it."),
            ],
        ),
    ]
}

#[tokio::test]
async fn servers_of_one_s_own_race_and_what_they_counted_is_told() {
    let server = ScriptedServer::start(scripts()).await.unwrap();
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent-1")
        .env("KAGE__ADAPTER__MY_VLLM__KIND", "openai-chat")
        .env("KAGE__ADAPTER__MY_VLLM__BASE_URL", format!("{}/v1", server.url()))
        .env("KAGE__ADAPTER__MY_VLLM__KEY_VARIABLE", "VLLM_KEY")
        .env("VLLM_KEY", "sk-vllm-scripted")
        .env("KAGE__ADAPTER__OLLAMA__BASE_URL", server.url());
    cluster.add_agent(options).await;

    let repo = cluster.sample();
    let spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .session("chat", "my-vllm", CHAT)
        .session("local", "ollama", LOCAL);
    let id = cluster.create(spec).await;
    let seen = read_all(cluster.watch(&id, &[]).await).await;
    let ended = seen.task.clone().unwrap();
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");

    let (chat, local) = (session(&ended, "chat"), session(&ended, "local"));
    for session in [chat, local] {
        assert_eq!(verdict(session), v1::VerdictKind::Passed, "{session:#?}");
    }
    assert_eq!((chat.call_retries, local.call_retries), (1, 0));
    let report = cluster.report(&id).await;
    assert_eq!(report.best.as_ref().unwrap().session, "chat", "{report:#?}");

    let counted = |script: &str| -> (u64, u64, u64) {
        let requests = server.requests_of(script).into_iter();
        let replies = requests.filter_map(|request| match request.answer {
            Answer::Reply(usage) => Some(usage),
            _ => None,
        });
        replies.fold((0, 0, 0), |sum, usage| {
            (sum.0 + usage.input, sum.1 + usage.cache_read, sum.2 + usage.output)
        })
    };
    for (session, script) in [(chat, "chat"), (local, "local")] {
        let usage = session.usage.unwrap();
        assert_eq!(
            (usage.input, usage.cache_read, usage.output),
            counted(script),
            "{script}"
        );
        assert!(usage.output > 0);
    }
    // Nobody knows what that server takes, and Ollama takes nothing.
    let money = |session: &v1::Session| -> Vec<(v1::Provenance, Option<i64>)> {
        session
            .money
            .iter()
            .map(|money| (money.provenance(), money.pico))
            .collect()
    };
    assert_eq!(money(chat), [(v1::Provenance::Unknown, None)]);
    assert_eq!(money(local), [(v1::Provenance::Free, Some(0))]);
    let result = cluster.fetch_result(&repo, chat);
    assert_eq!(repo.git(&["show", &format!("{result}:add.sh")]), SOLUTION);
}
