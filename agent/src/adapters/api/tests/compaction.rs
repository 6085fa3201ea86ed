//! A conversation that no longer fits is made shorter by the provider, where it does that for the model.

use kage_scripted::Turn;

use super::scene::{Scene, Spoken, reported};
use super::*;

const OF_CLAUDE: Spoken = Spoken::claude("claude-sonnet-4-6");

/// A window that three files and a half fill.
const PRICES: &str = "
    [[price]]
    model = 'claude-sonnet-4-6'
    provider = 'anthropic'
    input = '3'
    output = '15'
    context_window = 98000
    max_output = 4000
    compacts = true
";

#[tokio::test]
async fn a_conversation_that_is_too_long_is_made_shorter_and_the_summary_is_on_the_bill() {
    let read = |name: &str| Turn::call("read_file", json!({"path": name}));
    let turns = [
        read("a"),
        read("b"),
        read("c"),
        read("d"),
        Turn::call("write_file", json!({"path": "out", "content": "x"})),
        Turn::say("All done."),
    ];
    let scene = Scene::new(OF_CLAUDE, turns).await;
    for name in ["a", "b", "c", "d"] {
        std::fs::write(scene.tree().join(name), format!("{}\n", name.repeat(100)).repeat(900)).unwrap();
    }
    let mut adapter = scene.adapter();
    adapter.prices = PriceTable::builtin()
        .clone()
        .overlay(PriceTable::parse(PRICES).unwrap());
    let told = provider::told(&adapter, scene.input(), CancellationToken::new()).await;
    let summary = "All done.".to_owned();
    assert_eq!(told.end, AdapterEnd::Done { summary }, "{:?}", scene.answers());
    let requests = scene.server.requests();
    for request in &requests {
        assert_eq!(request.headers["anthropic-beta"], "compact-2026-01-12");
        let edits = &request.body["context_management"]["edits"];
        assert_eq!(edits[0]["trigger"], json!({"type": "input_tokens", "value": 73_500}));
    }
    // The summary goes back where the model said it.
    let blocks = |message: &Value| message["content"].as_array().cloned().unwrap_or_default();
    let last = requests.last().unwrap().body["messages"].as_array().unwrap().clone();
    let summaries = last
        .iter()
        .flat_map(blocks)
        .filter(|block| block["type"] == "compaction");
    assert_eq!(summaries.count(), 1);
    let all = reported(&told).iter().fold(Usage::default(), |mut sum, one| {
        sum += *one;
        sum
    });
    assert_eq!(all, scene.ledger());
    // One call was on the bill twice, and the one after it is short again.
    let inputs: Vec<u64> = reported(&told).iter().map(|one| one.total() - one.output).collect();
    let longest = inputs
        .iter()
        .position(|input| *input == *inputs.iter().max().unwrap())
        .unwrap();
    assert!(inputs[longest] > 73_500 && inputs[longest + 1] < 40_000, "{inputs:?}");
}

#[tokio::test]
async fn a_server_that_does_not_know_how_is_asked_without_it() {
    let words = "context_management: Extra inputs are not permitted";
    let refused = json!({"type": "error", "error": {"type": "invalid_request_error", "message": words}});
    let mut place = Place::new([Answer::Error(400, None, refused), says("Done.", "end_turn")]).await;
    place.settings = "headers = { anthropic-beta = 'mine-1' }";
    let mut input = place.input();
    input.model = Some("claude-sonnet-4-6".to_owned());
    let told = place.run(input, CancellationToken::new()).await;
    assert!(matches!(told.end, AdapterEnd::Done { .. }), "{:?}", told.end);
    let requests = place.requests();
    let beta: Vec<_> = requests.iter().map(|(headers, _)| &headers["anthropic-beta"]).collect();
    assert_eq!(beta, ["mine-1,compact-2026-01-12", "mine-1"]);
    let asks = |body: &Value| body.get("context_management").is_some();
    assert_eq!(
        requests.iter().map(|(_, body)| asks(body)).collect::<Vec<_>>(),
        [true, false]
    );
    let warned = |event: &EventBody| matches!(event, EventBody::Warning(text) if text.contains(words));
    assert_eq!(told.events.iter().filter(|event| warned(event)).count(), 1);
}
