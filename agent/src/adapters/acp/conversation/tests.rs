//! Conversations with agents, as lines: recorded ones in short, and odd ones.

use kage_core::failure_table::{FailureTable, Speaker};
use kage_core::time::{LocalTime, Timestamp};
use kage_core::usage::UsageClass;

use super::*;
use crate::adapters::acp::permission::Decision;
use crate::adapters::hearing::Said;

struct Scene {
    conversation: Conversation,
    effects: Vec<Effect>,
}

fn plan() -> Plan {
    Plan {
        rule: AcpRule::default(),
        cwd: "/work".to_owned(),
        prompt: "fix it".to_owned(),
        resumed: None,
        mcp: None,
        model: None,
    }
}

impl Scene {
    fn of(plan: Plan) -> Self {
        let (conversation, effects) = Conversation::begin(plan);
        Self { conversation, effects }
    }

    /// A scene in which the prompt was sent.
    fn prompted(plan: Plan) -> Self {
        let mut scene = Self::of(plan);
        scene.answer(json!({"protocolVersion": 1, "agentCapabilities": {"loadSession": true}}));
        scene.answer(json!({"sessionId": "s-1"}));
        assert_eq!(scene.sent().last().unwrap()["method"], "session/prompt");
        scene
    }

    fn hear(&mut self, message: Value) {
        let judge = Judge {
            table: FailureTable::builtin(),
            speaker: Speaker::from("x"),
            heard: LocalTime::utc(Timestamp::from_millis(1_790_000_000_000)),
        };
        let incoming = rpc::read(message.to_string().as_bytes());
        self.effects.extend(self.conversation.hear(incoming, judge));
    }

    /// The answer to our last request.
    fn answer(&mut self, result: Value) {
        self.hear(json!({"jsonrpc": "2.0", "id": self.conversation.asked, "result": result}));
    }

    fn refuse(&mut self, error: Value) {
        self.hear(json!({"jsonrpc": "2.0", "id": self.conversation.asked, "error": error}));
    }

    fn update(&mut self, update: Value) {
        self.hear(json!({"method": "session/update", "params": {"sessionId": "s-1", "update": update}}));
    }

    fn says(&mut self, text: &str) {
        self.update(json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}}));
    }

    fn tool(&mut self, id: &str, status: &str) {
        self.update(
            json!({"sessionUpdate": "tool_call_update", "toolCallId": id, "status": status,
            "title": "write", "kind": "edit", "locations": [{"path": "/work/a.rs"}]}),
        );
    }

    fn asks(&mut self, id: u64, call: &str) {
        self.hear(json!({"id": id, "method": "session/request_permission", "params": {
            "toolCall": {"toolCallId": call, "title": "rm -rf x", "kind": "execute"},
            "options": [{"optionId": "a", "kind": "allow_once"}, {"optionId": "r", "kind": "reject_once"}]}}));
    }

    /// Everything that was sent so far.
    fn sent(&self) -> Vec<Value> {
        let lines = self.effects.iter().filter_map(|effect| match effect {
            Effect::Send(line) => Some(serde_json::from_slice(line).unwrap()),
            _ => None,
        });
        lines.collect()
    }

    fn endings(&self) -> Vec<Ending> {
        let endings = self.effects.iter().filter_map(|effect| match effect {
            Effect::Over(ending) => Some(ending.clone()),
            _ => None,
        });
        endings.collect()
    }

    fn failed(&self) -> FailureKind {
        match self.endings().as_slice() {
            [Ending::Failed(failure)] => failure.kind,
            other => panic!("{other:?}"),
        }
    }

    fn log(&self) -> String {
        let output = self.effects.iter().filter_map(|effect| match effect {
            Effect::Tell(Report::Output(_, bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        });
        output.collect()
    }

    fn usage(&self) -> Vec<(Usage, Vec<(String, u64)>)> {
        let used = self.effects.iter().filter_map(|effect| match effect {
            Effect::Tell(Report::Event(EventBody::UsageRecorded { usage, tools, .. })) => {
                let tools = tools.as_ref().unwrap().iter();
                Some((*usage, tools.map(|(name, calls)| (name.to_owned(), calls)).collect()))
            }
            _ => None,
        });
        used.collect()
    }

    /// When tools began and ended.
    fn steps(&self) -> String {
        let steps = self.effects.iter().filter_map(|effect| match effect {
            Effect::ToolsBegin => Some('('),
            Effect::ToolsEnd => Some(')'),
            _ => None,
        });
        steps.collect()
    }
}

#[test]
fn a_session_is_made_prompted_and_ends_with_the_last_words() {
    let mut scene = Scene::of(plan());
    scene.answer(json!({"protocolVersion": 1}));
    scene.answer(json!({"sessionId": "s-1", "modes": null}));
    scene.says("I look");
    scene.says(" first.\nThen");
    scene.tool("t1", "in_progress");
    scene.tool("t1", "completed");
    scene.says("Done.");
    scene.answer(json!({"stopReason": "end_turn", "usage": {"inputTokens": 9, "outputTokens": 2}}));
    let methods: Vec<_> = scene.sent().iter().map(|line| line["method"].clone()).collect();
    assert_eq!(methods, ["initialize", "session/new", "session/prompt"]);
    assert_eq!(scene.sent()[1]["params"], json!({"cwd": "/work", "mcpServers": []}));
    let prompt = json!({"sessionId": "s-1", "prompt": [{"type": "text", "text": "fix it"}]});
    assert_eq!(scene.sent()[2]["params"], prompt);
    assert_eq!(scene.endings(), [Ending::Done("Done.".to_owned())]);
    assert_eq!(scene.log(), "I look first.\nThen\n> write /work/a.rs\nDone.\n");
    let usage = scene.usage();
    assert_eq!((usage.len(), usage[0].0.input, usage[0].0.output), (1, 9, 2));
    assert_eq!(usage[0].1, [("edit".to_owned(), 1)]);
    assert!(scene.effects.contains(&Effect::Conversation("s-1".to_owned())));
    assert_eq!(scene.steps(), "()");
    assert_eq!(scene.conversation.cut(), [], "everything was told");
}

#[test]
fn steps_are_from_the_first_tool_to_the_last_and_do_not_stay_open() {
    let mut scene = Scene::prompted(plan());
    for (id, status) in [
        ("a", "pending"),
        ("b", "in_progress"),
        ("a", "completed"),
        ("a", "completed"),
        ("b", "failed"),
    ] {
        scene.tool(id, status);
    }
    assert_eq!(scene.steps(), "()");
    scene.tool("c", "pending");
    scene.answer(json!({"stopReason": "end_turn"}));
    assert_eq!(scene.steps(), "()()");
}

#[test]
fn a_question_holds_the_tool_until_it_is_decided() {
    let mut scene = Scene::prompted(plan());
    scene.asks(7, "t1");
    scene.asks(8, "t2");
    let asked = scene
        .effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Ask(_)))
        .count();
    assert_eq!((asked, scene.steps().as_str()), (2, ""));
    let number = |n| {
        Effect::Ask(Question {
            number: n,
            about: "rm -rf x".to_owned(),
        })
    };
    assert!(scene.effects.contains(&number(1)) && scene.effects.contains(&number(2)));
    let allowed = scene.conversation.decided(1, Decision::Allow);
    assert_eq!(allowed[0], Effect::ToolsBegin, "before the agent hears of it");
    scene.effects.extend(allowed);
    scene.effects.extend(scene.conversation.decided(1, Decision::Deny));
    scene.effects.extend(scene.conversation.decided(2, Decision::Deny));
    let answers: Vec<_> = scene
        .sent()
        .into_iter()
        .filter(|line| line.get("result").is_some())
        .collect();
    let ids: Vec<_> = answers
        .iter()
        .map(|line| (line["id"].clone(), line["result"]["outcome"]["optionId"].clone()))
        .collect();
    assert_eq!(ids, [(json!(7), json!("a")), (json!(8), json!("r"))]);
    // Codex ends its turn then.
    scene.answer(json!({"stopReason": "cancelled"}));
    assert_eq!(scene.failed(), FailureKind::ModelRefused);
    assert_eq!(scene.steps(), "()");
}

fn said(number: u32, text: &str) -> Said {
    Said {
        number,
        text: text.to_owned(),
    }
}

impl Scene {
    fn hears(&mut self, number: u32, text: &str) {
        let effects = self.conversation.said(said(number, text));
        self.effects.extend(effects);
    }

    /// The messages that the agent was told, by their numbers.
    fn told(&self) -> Vec<u32> {
        let told = self.effects.iter().filter_map(|effect| match effect {
            Effect::Told(number) => Some(*number),
            _ => None,
        });
        told.collect()
    }
}

#[test]
fn what_people_say_is_the_next_turn_and_is_told_when_the_agent_answers() {
    let mut scene = Scene::prompted(plan());
    scene.says("Working.");
    scene.hears(1, "one");
    scene.hears(2, "two");
    scene.answer(json!({"stopReason": "end_turn", "usage": {"inputTokens": 9, "outputTokens": 2}}));
    assert_eq!(
        (scene.endings(), scene.told()),
        (vec![], vec![]),
        "nobody has answered them"
    );
    let sent = scene.sent();
    let last = sent.last().unwrap();
    assert_eq!(last["method"], "session/prompt");
    let texts: Vec<_> = last["params"]["prompt"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| &block["text"])
        .collect();
    assert_eq!(texts, ["# Next instruction\n\none", "# Next instruction\n\ntwo"]);
    scene.says("Heard.");
    assert_eq!(scene.told(), [1, 2]);
    scene.hears(3, "three");
    scene.answer(json!({"stopReason": "end_turn", "usage": {"inputTokens": 5, "outputTokens": 1}}));
    scene.says("And that.");
    scene.answer(json!({"stopReason": "end_turn"}));
    assert_eq!(scene.told(), [1, 2, 3]);
    assert_eq!(scene.endings(), [Ending::Done("And that.".to_owned())]);
    assert_eq!(scene.usage().len(), 3, "each turn is counted");
    // A turn that comes to nothing was not told.
    for answer in [json!({"stopReason": "end_turn"}), json!({"stopReason": "refusal"})] {
        let mut scene = Scene::prompted(plan());
        scene.says("Working.");
        scene.hears(1, "one");
        scene.answer(json!({"stopReason": "end_turn"}));
        scene.answer(answer);
        assert_eq!((scene.told(), scene.endings().len()), (vec![], 1));
    }
    let mut scene = Scene::prompted(plan());
    scene.hears(1, "one");
    scene.says("Working.");
    scene.answer(json!({"stopReason": "max_tokens"}));
    assert_eq!(
        (scene.told(), scene.sent().len()),
        (vec![], 3),
        "a failed attempt tells nothing more"
    );
}

#[test]
fn an_agent_that_takes_it_hears_a_message_in_its_turn() {
    let steering = || {
        let mut scene = Scene::of(plan());
        scene.answer(json!({"protocolVersion": 1, "_meta": {"steering": {"supported": true}}}));
        scene.answer(json!({"sessionId": "s-1"}));
        scene.says("Working.");
        scene.hears(1, "one");
        let sent = scene.sent().pop().unwrap();
        assert_eq!(sent["method"], "_session/steering");
        assert_eq!(sent["params"]["prompt"][0]["text"], "# Next instruction\n\none");
        (scene, sent["id"].clone())
    };
    let done = || [Ending::Done("Working.".to_owned())];
    let (mut scene, id) = steering();
    scene.hear(json!({"id": id, "result": {"outcome": "injected"}}));
    assert_eq!(scene.told(), [1]);
    scene.answer(json!({"stopReason": "end_turn"}));
    assert_eq!(scene.endings(), done());
    // The turn is not over before it is known whether the message was in it.
    let (mut scene, id) = steering();
    scene.answer(json!({"stopReason": "end_turn"}));
    assert_eq!(scene.endings(), []);
    scene.hear(json!({"id": id, "result": {"outcome": "injected"}}));
    assert_eq!((scene.told(), scene.endings().as_slice()), (vec![1], done().as_slice()));
    // It came too late, or cannot be done: it is told in the next turn.
    for answer in [
        json!({"result": {"outcome": "promptRequired"}}),
        json!({"error": {"code": -32602, "message": "no"}}),
    ] {
        let (mut scene, id) = steering();
        let mut answer = answer;
        answer["id"] = id;
        scene.hear(answer);
        scene.answer(json!({"stopReason": "end_turn"}));
        assert_eq!((scene.told(), scene.endings()), (vec![], vec![]));
        assert_eq!(scene.sent().pop().unwrap()["method"], "session/prompt");
        scene.says("Heard.");
        scene.answer(json!({"stopReason": "end_turn"}));
        assert_eq!((scene.told(), scene.endings().len()), (vec![1], 1));
    }
}

#[test]
fn a_turn_in_which_nothing_happened_is_no_success() {
    let mut scene = Scene::prompted(plan());
    scene.update(json!({"sessionUpdate": "agent_thought_chunk", "content": {"type": "text", "text": "hm"}}));
    scene.says(" \n");
    scene.answer(json!({"stopReason": "end_turn"}));
    assert_eq!(scene.endings(), [Ending::Nothing]);
    assert_eq!(scene.usage()[0].0.of(UsageClass::Input), None);
}

#[test]
fn every_other_reason_and_every_error_has_a_class() {
    for (result, kind) in [
        (json!({"stopReason": "refusal"}), FailureKind::ModelRefused),
        (json!({"stopReason": "max_tokens"}), FailureKind::ContextOverflow),
        (json!({"stopReason": "max_turn_requests"}), FailureKind::TurnLimit),
        (json!({"stopReason": "cancelled"}), FailureKind::AdapterCrash),
        (json!({}), FailureKind::AdapterCrash),
        (Value::Null, FailureKind::AdapterCrash),
    ] {
        let mut scene = Scene::prompted(plan());
        scene.says("something");
        scene.answer(result.clone());
        assert_eq!(scene.failed(), kind, "{result}");
    }
    let mut scene = Scene::prompted(plan());
    scene.refuse(json!({"code": -32603, "message": "Internal error", "data": {"errorKind": "rate_limit"}}));
    assert_eq!(scene.failed(), FailureKind::RateLimited);
    assert_eq!(scene.usage().len(), 1, "the calls of the turn are unknown, not none");
    for version in [json!(2), json!("1"), Value::Null] {
        let mut scene = Scene::of(plan());
        scene.answer(json!({"protocolVersion": version}));
        assert_eq!(scene.failed(), FailureKind::AdapterUnavailable);
    }
    let mut scene = Scene::of(plan());
    scene.answer(json!({"protocolVersion": 1}));
    scene.refuse(json!({"code": -32000, "message": "Authentication required"}));
    assert_eq!(scene.failed(), FailureKind::Auth);
    let mut scene = Scene::of(plan());
    scene.answer(json!({"protocolVersion": 1}));
    scene.answer(json!({"sessionId": ""}));
    assert_eq!(scene.failed(), FailureKind::AdapterCrash);
}

#[test]
fn a_conversation_is_loaded_and_its_past_is_not_told_again() {
    let resumed = || Plan {
        resumed: Some(Resumed {
            id: "old".to_owned(),
            anew: "everything".to_owned(),
        }),
        prompt: "go on".to_owned(),
        ..plan()
    };
    let prompt = |scene: &Scene| scene.sent().last().unwrap()["params"].clone();
    let text = |text: &str| json!([{"type": "text", "text": text}]);
    let mut scene = Scene::of(resumed());
    scene.answer(json!({"protocolVersion": 1, "agentCapabilities": {"loadSession": true}}));
    assert_eq!(scene.sent()[1]["method"], "session/load");
    scene.says("what I said before");
    scene.tool("old", "completed");
    scene.answer(json!({}));
    assert_eq!(prompt(&scene), json!({"sessionId": "old", "prompt": text("go on")}));
    assert_eq!((scene.log(), scene.steps()), (String::new(), String::new()));

    // It cannot, or it does not find it.
    let mut cannot = Scene::of(resumed());
    cannot.answer(json!({"protocolVersion": 1, "agentCapabilities": {"loadSession": false}}));
    let mut lost = Scene::of(resumed());
    lost.answer(json!({"protocolVersion": 1, "agentCapabilities": {"loadSession": true}}));
    lost.refuse(json!({"code": -32602, "message": "no such session"}));
    for scene in [&mut cannot, &mut lost] {
        scene.answer(json!({"sessionId": "new"}));
        assert_eq!(prompt(scene), json!({"sessionId": "new", "prompt": text("everything")}));
        let warned = |effect: &Effect| matches!(effect, Effect::Tell(Report::Event(EventBody::Warning(_))));
        assert!(scene.effects.iter().any(warned));
    }
}

#[test]
fn a_cancelled_turn_is_told_to_the_agent_once() {
    let mut scene = Scene::prompted(plan());
    scene.asks(1, "t");
    let effects = scene.conversation.cancel();
    scene.effects.extend(effects);
    assert_eq!(scene.conversation.cancel(), []);
    let sent = scene.sent();
    assert_eq!(sent[sent.len() - 2]["result"]["outcome"]["outcome"], "cancelled");
    assert_eq!(
        sent.last().unwrap(),
        &json!({"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": "s-1"}})
    );
    scene.asks(2, "u");
    assert_eq!(
        scene.sent().last().unwrap()["result"]["outcome"]["outcome"],
        "cancelled"
    );
    scene.answer(json!({"stopReason": "cancelled"}));
    assert_eq!(scene.endings(), [Ending::Cancelled]);

    let mut early = Scene::of(plan());
    early.effects.extend(early.conversation.cancel());
    assert_eq!(early.endings(), [Ending::Cancelled]);
    early.answer(json!({"protocolVersion": 1}));
    assert_eq!(early.sent().len(), 1, "nothing follows");
}

#[test]
fn only_what_was_offered_is_done_for_an_agent() {
    let call = |method: &str| json!({"id": "q", "method": method, "params": {"path": "/work/a"}});
    let mut scene = Scene::prompted(plan());
    for method in [
        "fs/read_text_file",
        "terminal/create",
        "craft/drainMidTurnQueue",
        "session/other",
    ] {
        scene.hear(call(method));
        assert_eq!(scene.sent().last().unwrap()["error"]["code"], -32601, "{method}");
    }
    let mut served = Scene::prompted(Plan {
        rule: AcpRule {
            serve: vec![Service::Files],
            ..AcpRule::default()
        },
        ..plan()
    });
    assert_eq!(
        served.sent()[0]["params"]["clientCapabilities"]["fs"]["writeTextFile"],
        true
    );
    assert_eq!(served.sent()[0]["params"]["clientCapabilities"]["terminal"], false);
    served.hear(call("fs/write_text_file"));
    assert!(matches!(served.effects.last(), Some(Effect::Serve(_, call)) if call.method == "fs/write_text_file"));
    served.hear(call("terminal/create"));
    assert_eq!(served.sent().last().unwrap()["error"]["code"], -32601);
}

#[test]
fn a_model_is_asked_for_before_the_prompt() {
    let with_model = || Plan {
        model: Some("b".to_owned()),
        ..plan()
    };
    let opened = json!({"sessionId": "s", "models": {"currentModelId": "a", "availableModels": [{"modelId": "b"}]}});
    let mut scene = Scene::of(with_model());
    scene.answer(json!({"protocolVersion": 1}));
    scene.answer(opened);
    assert_eq!(scene.sent()[2]["method"], "session/set_model");
    scene.answer(json!({}));
    assert_eq!(scene.sent()[3]["method"], "session/prompt");
    let mut scene = Scene::of(with_model());
    scene.answer(json!({"protocolVersion": 1}));
    scene.answer(json!({"sessionId": "s", "models": {"availableModels": [{"modelId": "c"}]}}));
    assert_eq!(scene.failed(), FailureKind::InvalidRequest);
}

#[test]
fn messages_that_make_no_sense_change_nothing() {
    let mut scene = Scene::prompted(plan());
    let before = scene.effects.len();
    for odd in [
        json!({"id": 999, "result": {"stopReason": "end_turn"}}),
        json!({"id": 1, "result": {}}),
        json!({"method": "session/update"}),
        json!({"method": "session/update", "params": {"update": {"sessionUpdate": "new_in_2027"}}}),
        json!({"method": "session/update", "params": {"update": {"sessionUpdate": "tool_call"}}}),
        json!({"method": "session/update", "params": {"update": {"sessionUpdate": "plan", "entries": 5}}}),
        json!({"method": "session/update", "params": {"update": {"sessionUpdate": "agent_message_chunk", "content": {"type": "image"}}}}),
        json!({"method": "$/progress", "params": {}}),
    ] {
        scene.hear(odd.clone());
        assert_eq!(scene.effects.len(), before, "{odd}");
    }
    // A question about nothing, with nothing to choose, is still answered.
    scene.hear(json!({"id": 5, "method": "session/request_permission", "params": {}}));
    scene.effects.extend(scene.conversation.decided(1, Decision::Allow));
    assert_eq!(
        scene.sent().last().unwrap()["result"]["outcome"]["outcome"],
        "cancelled"
    );
    for call in 0..3 * MAX_CALLS {
        scene.tool(&call.to_string(), "completed");
    }
    assert!(scene.conversation.calls.len() <= MAX_CALLS);
    let told = scene.conversation.cut();
    assert!(
        told.iter()
            .any(|effect| matches!(effect, Effect::Tell(Report::Event(EventBody::UsageRecorded { .. }))))
    );
}

proptest::proptest! {
    /// Whatever an agent says in whatever order, steps begin and end in turns, and a conversation is over once.
    #[test]
    fn any_messages_in_any_order_keep_the_steps_and_the_end(
        heard in proptest::collection::vec((0_usize..13, 0_u32..4), 0..60),
    ) {
        let mut scene = Scene::of(Plan { rule: AcpRule { serve: vec![Service::Files], ..AcpRule::default() }, ..plan() });
        for (what, which) in heard {
            let id = which.to_string();
            match what {
                0 => scene.answer(json!({"protocolVersion": 1, "sessionId": "s-1"})),
                1 => scene.answer(json!({"stopReason": "end_turn", "sessionId": id})),
                2 => scene.refuse(json!({"code": -32603, "message": id})),
                3 => scene.tool(&id, "in_progress"),
                4 => scene.tool(&id, "completed"),
                5 => scene.tool(&id, "failed"),
                6 => scene.says(&id),
                7 => scene.asks(which.into(), &id),
                11 => {
                    let effects = scene.conversation.said(said(which, &id));
                    scene.effects.extend(effects);
                }
                8 => {
                    let effects = scene.conversation.decided(which, Decision::Allow);
                    scene.effects.extend(effects);
                }
                9 => {
                    let effects = scene.conversation.decided(which, Decision::Deny);
                    scene.effects.extend(effects);
                }
                10 if which == 0 => {
                    let effects = scene.conversation.cancel();
                    scene.effects.extend(effects);
                }
                _ => scene.hear(json!({"id": id, "method": "fs/read_text_file", "params": {"path": id}})),
            }
        }
        let effects = scene.conversation.cut();
        scene.effects.extend(effects);
        let steps = scene.steps();
        proptest::prop_assert!(steps.replace("()", "").is_empty(), "{}", steps);
        proptest::prop_assert!(scene.endings().len() <= 1);
        // Every request of the agent's is answered, or is being served.
        let asked = scene.effects.iter().filter(|effect| matches!(effect, Effect::Serve(..))).count();
        let prompts = scene.sent().iter().filter(|line| line["method"] == "session/prompt").count();
        proptest::prop_assert!(asked == 0 || prompts >= 1);
        proptest::prop_assert_eq!(scene.usage().len(), prompts, "each turn's usage is told once");
    }
}
