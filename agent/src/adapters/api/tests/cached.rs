//! The prompt cache of the Messages API, against a provider that keeps its documented rules: each call of a
//! conversation reads what the one before it sent.

use kage_scripted::{Answer, Block, CallUsage, Reply, Turn};
use serde_json::json;

use super::scene::{Scene, Spoken};

const CLAUDE: Spoken = Spoken {
    adapter: "claude-api",
    model: "claude-sonnet-5-5",
    key: "ANTHROPIC_API_KEY",
    url: "ANTHROPIC_BASE_URL",
    below: "",
};

/// The tokens of a prompt, whatever they cost.
fn prompt(call: &CallUsage) -> u64 {
    call.input + call.cache_read + call.cache_write_5m + call.cache_write_1h
}

#[tokio::test]
async fn a_growing_conversation_is_read_from_the_cache_however_many_tools_a_turn_calls() {
    // The provider looks back 20 blocks from a breakpoint. A call and its result are two.
    let turn = |calls: usize| {
        let calls = (0..calls).map(|call| Block::tool("bash", json!({"command": format!("echo {call}")})));
        Turn::from(Reply::new(calls))
    };
    let scene = Scene::new(CLAUDE, [turn(1), turn(30), turn(45), turn(2), Turn::say("done")]).await;
    scene.go().await;
    let calls: Vec<CallUsage> = scene
        .answers()
        .into_iter()
        .map(|answer| match answer {
            Answer::Reply(usage) => usage,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(calls.len(), 5);
    assert_eq!(calls[0].cache_read, 0);
    for (before, call) in calls.iter().zip(&calls[1..]) {
        assert_eq!(call.cache_read, prompt(before), "{calls:#?}");
        // The end of the conversation is written, for the next call.
        assert_eq!((call.input, call.cache_write_1h), (0, 0), "{calls:#?}");
    }
}
