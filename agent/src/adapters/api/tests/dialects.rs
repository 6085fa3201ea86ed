//! The same stories in every dialect that has a strict scripted provider beside the Messages API.

use kage_core::usage::{Usage, UsageClass};
use kage_scripted::{Answer, ApiError, Block, Fault, Reply, Turn};
use serde_json::json;

use super::super::*;
use super::kind;
use super::scene::{SPOKEN, Scene, Spoken, reported};
use crate::adapters::port::Report;

fn write(path: &str) -> Block {
    Block::tool("write_file", json!({"path": path, "content": "caf\u{e9} \" \\ /"}))
}

/// Thinks, says something and calls two tools at once; then one more; then is done.
fn story() -> Vec<Turn> {
    let first = Reply::new([
        Block::Thinking("What a task, \"hm\".".to_owned()),
        Block::Text("Writing.".to_owned()),
        write("a"),
        Block::tool("read_file", json!({"path": "../secret"})),
    ]);
    let second = Reply::new([
        Block::Thinking("And on.".to_owned()),
        Block::tool("bash", json!({"command": "cat a"})),
    ]);
    vec![first.into(), second.into(), Turn::say("All done.")]
}

fn sum(usages: &[Usage]) -> Usage {
    let mut sum = Usage::default();
    usages.iter().for_each(|usage| sum += *usage);
    sum
}

#[tokio::test]
async fn a_session_works_and_its_tokens_are_those_of_the_ledger() {
    for spoken in SPOKEN {
        let scene = Scene::new(spoken, story()).await;
        let told = scene.go().await;
        let summary = "All done.".to_owned();
        assert_eq!(
            told.end,
            AdapterEnd::Done { summary },
            "{spoken:?} {:?}",
            scene.answers()
        );
        let written = std::fs::read_to_string(scene.tree().join("a")).unwrap();
        assert_eq!(written, "caf\u{e9} \" \\ /");
        let usages = reported(&told);
        assert_eq!(usages.len(), 3);
        assert_eq!(sum(&usages), scene.ledger(), "{spoken:?}");
        assert!(sum(&usages).cache_read > 0 && sum(&usages).reasoning > 0, "{usages:?}");
        // What a server of one's own takes for a model, no list of prices says.
        let priced_as = format!("{}/{}", spoken.adapter, spoken.model);
        let model = |event: &EventBody| matches!(event, EventBody::UsageRecorded { model, .. } if *model == priced_as);
        assert_eq!(told.events.iter().filter(|event| model(event)).count(), 3);
        let roles: Vec<_> = told
            .transcript
            .iter()
            .map(|line| line["role"].as_str().unwrap())
            .collect();
        assert_eq!(roles, ["user", "assistant", "user", "assistant", "user", "assistant"]);
        assert!(
            told.stdout
                .starts_with("Writing.\n> write_file a\n> read_file ../secret\n"),
            "{}",
            told.stdout
        );
        assert!(told.stdout.ends_with("All done.\n"), "{}", told.stdout);
        // The key is in the place where the provider looks for it, and nowhere else.
        for request in scene.server.requests() {
            assert!(!request.path.contains("sk-test") && !request.body.to_string().contains("sk-test"));
        }
    }
}

#[tokio::test]
async fn a_session_goes_on_from_a_checkpoint_with_the_same_request() {
    for spoken in SPOKEN {
        let mut turns = story();
        let refused = ApiError::invalid("no");
        turns[2] = turns[2].clone().after(Fault::Error(refused));
        let scene = Scene::new(spoken, turns).await;
        let first = scene.go().await;
        assert_eq!(kind(&first.end), Some(FailureKind::InvalidRequest), "{spoken:?}");
        let mut input = scene.input();
        input.beginning = Beginning::GoOn {
            said: first.lines.clone().into(),
            note: String::new(),
            instruction: String::new(),
        };
        let second = scene.run(input).await;
        assert!(
            matches!(second.end, AdapterEnd::Done { .. }),
            "{spoken:?} {:?}",
            second.end
        );
        let requests = scene.server.requests();
        assert_eq!((requests.len(), second.transcript.len()), (4, 1));
        assert_eq!(requests[3].body, requests[2].body);

        // With a call that nobody answered, and words of the next attempt.
        let cut = first.lines.iter().rposition(|byte| *byte == b'\n').unwrap();
        let cut = first.lines[..cut].iter().rposition(|byte| *byte == b'\n').unwrap();
        let mut input = scene.input();
        input.beginning = Beginning::GoOn {
            said: first.lines[..=cut].to_vec().into(),
            note: "Look first.".to_owned(),
            instruction: String::new(),
        };
        let third = scene.run(input).await;
        assert!(
            matches!(third.end, AdapterEnd::Done { .. }),
            "{spoken:?} {:?}",
            third.end
        );
        let last = scene.server.requests().pop().unwrap().body.to_string();
        assert!(
            last.contains("interrupted, outcome unknown") && last.contains("Look first."),
            "{last}"
        );
    }
}

#[tokio::test]
async fn a_conversation_of_another_dialect_is_not_gone_on_with() {
    let (one, two) = (
        Scene::new(SPOKEN[0], story()).await,
        Scene::new(SPOKEN[1], story()).await,
    );
    let said = one.go().await;
    let mut input = two.input();
    input.beginning = Beginning::GoOn {
        said: said.lines.clone().into(),
        note: String::new(),
        instruction: String::new(),
    };
    assert_eq!(kind(&two.run(input).await.end), Some(FailureKind::CorruptedState));
}

fn error(status: u16, kind: &str, code: Option<&str>, message: &str) -> ApiError {
    let error = ApiError::new(status, kind, message);
    match code {
        Some(code) => error.with_code(code),
        None => error,
    }
}

#[tokio::test]
async fn passing_failures_are_retried_and_told() {
    for spoken in SPOKEN {
        let limited = Fault::Error(ApiError {
            retry_after: Some(Duration::from_secs(1)),
            ..error(
                429,
                "rate_limit_error",
                Some("rate_limit_exceeded"),
                "Rate limit reached",
            )
        });
        let busy = error(503, "server_error", Some("server_is_overloaded"), "busy");
        let turn = Turn::say("a rather long answer that comes in many pieces, because there is much to say")
            .after(limited)
            .after(Fault::Error(error(500, "server_error", None, "no")))
            .after(Fault::ErrorEvent {
                after_events: 2,
                error: busy,
            });
        let scene = Scene::new(spoken, [turn]).await;
        let told = scene.go().await;
        assert!(matches!(told.end, AdapterEnd::Done { .. }), "{spoken:?} {:?}", told.end);
        let retried: Vec<_> = told
            .events
            .iter()
            .filter_map(|event| match event {
                EventBody::CallRetried { failure, delay, .. } => Some((failure.kind, *delay)),
                _ => None,
            })
            .collect();
        let kinds: Vec<_> = retried.iter().map(|(kind, _)| *kind).collect();
        use FailureKind as K;
        assert_eq!(kinds, [K::RateLimited, K::Network, K::Overloaded], "{spoken:?}");
        assert!(retried[0].1 >= Duration::from_secs(1), "{spoken:?} {retried:?}");
        let requests = scene.server.requests();
        assert!(requests.iter().all(|request| request.body == requests[0].body));
    }
}

#[tokio::test]
async fn a_cut_stream_is_repeated_and_what_it_used_is_not_nothing() {
    for spoken in SPOKEN {
        let turn = Turn::say("a rather long answer that comes in many pieces, because there is much to say")
            .after(Fault::Cut { after_events: 7 });
        let turn = if spoken.adapter == "gemini-api" {
            Turn::say("a rather long answer that comes in many pieces, because there is much to say")
                .after(Fault::Cut { after_events: 2 })
        } else {
            turn
        };
        let scene = Scene::new(spoken, [turn]).await;
        let told = scene.go().await;
        assert!(matches!(told.end, AdapterEnd::Done { .. }), "{spoken:?} {:?}", told.end);
        assert!(told.stdout.contains(" [broken off]\n"), "{}", told.stdout);
        let usages = reported(&told);
        assert_eq!(usages.len(), 2, "{spoken:?}");
        assert!(usages[0].unreported.contains(UsageClass::Output), "{usages:?}");
        assert_eq!(usages[1], scene.ledger());
    }
}

#[tokio::test]
async fn lasting_failures_are_not_retried() {
    use FailureKind as K;
    let long = "Your input exceeds the context window of this model";
    let key = |spoken: Spoken| match spoken.adapter {
        "openai" => error(
            401,
            "invalid_request_error",
            Some("invalid_api_key"),
            "Incorrect API key provided",
        ),
        _ => error(
            400,
            "API_KEY_INVALID",
            None,
            "API key not valid. Please pass a valid API key.",
        ),
    };
    let spent = |spoken: Spoken| match spoken.adapter {
        "openai" => error(
            429,
            "insufficient_quota",
            Some("insufficient_quota"),
            "You exceeded your current quota",
        ),
        _ => error(
            429,
            "",
            Some("GenerateRequestsPerDayPerProjectPerModel-FreeTier"),
            "You exceeded your current quota",
        ),
    };
    let later = |_: Spoken| ApiError {
        retry_after: Some(Duration::from_secs(3600)),
        ..error(
            429,
            "rate_limit_error",
            Some("rate_limit_exceeded"),
            "Rate limit reached",
        )
    };
    type Made<'a> = &'a dyn Fn(Spoken) -> ApiError;
    let cases: [(Made<'_>, K); 5] = [
        (&key, K::Auth),
        (&spent, K::QuotaExhausted),
        (
            &|_| error(400, "invalid_request_error", Some("context_length_exceeded"), long),
            K::ContextOverflow,
        ),
        (
            &|_| error(404, "invalid_request_error", Some("model_not_found"), "no such model"),
            K::InvalidRequest,
        ),
        // Longer than a call may wait: recovery decides.
        (&later, K::RateLimited),
    ];
    for spoken in SPOKEN {
        for (made, expected) in &cases {
            let scene = Scene::new(spoken, [Turn::say("x").after(Fault::Error(made(spoken)))]).await;
            let told = scene.go().await;
            assert_eq!(kind(&told.end), Some(*expected), "{spoken:?} {:?}", told.end);
            assert_eq!(scene.server.requests().len(), 1, "{spoken:?}");
            if *expected == K::RateLimited {
                let AdapterEnd::Failed(failure) = told.end else {
                    panic!("not a failure")
                };
                assert_eq!(failure.retry_after, Some(Duration::from_secs(3600)), "{spoken:?}");
            }
        }
    }
}

#[tokio::test]
async fn refusals_and_limits_are_told_apart() {
    use FailureKind as K;
    let stopped = |blocks: Vec<Block>, reason: &str| {
        let mut reply = Reply::new(blocks);
        reply.stop_reason = Some(reason.to_owned());
        Turn::from(reply)
    };
    let text = |text: &str| vec![Block::Text(text.to_owned())];
    for (spoken, reason) in [
        (SPOKEN[0], "refusal"),
        (SPOKEN[0], "content_filter"),
        (SPOKEN[1], "SAFETY"),
        (SPOKEN[1], "blocked"),
    ] {
        let scene = Scene::new(spoken, [stopped(text("I will not."), reason)]).await;
        let told = scene.go().await;
        assert_eq!(kind(&told.end), Some(K::ModelRefused), "{reason} {:?}", told.end);
        assert_eq!(sum(&reported(&told)), scene.ledger(), "{reason}");
    }
    // What was cut goes on; a thought alone is not sent back.
    let thought = || vec![Block::Thinking("hm".repeat(50))];
    for (spoken, reason) in [(SPOKEN[0], "max_output_tokens"), (SPOKEN[1], "MAX_TOKENS")] {
        let scene = Scene::new(spoken, [stopped(text("I begin"), reason), Turn::say("End.")]).await;
        let told = scene.go().await;
        assert!(matches!(told.end, AdapterEnd::Done { .. }), "{spoken:?} {:?}", told.end);
        let scene = Scene::new(spoken, [stopped(thought(), reason)]).await;
        let told = scene.go().await;
        assert_eq!(kind(&told.end), Some(K::InvalidRequest), "{spoken:?} {:?}", told.end);
        assert_eq!(scene.server.requests().len(), 3);
        assert_eq!(sum(&reported(&told)), scene.ledger(), "{spoken:?}");
    }
    // Calls that the provider threw away are asked for again, a few times.
    let broken = || stopped(Vec::new(), "MALFORMED_FUNCTION_CALL");
    let scene = Scene::new(SPOKEN[1], [broken()]).await;
    let told = scene.go().await;
    assert_eq!(
        (kind(&told.end), scene.server.requests().len()),
        (Some(K::AdapterCrash), 3)
    );
}

#[tokio::test]
async fn a_provider_that_hangs_is_left_when_the_attempt_is_stopped() {
    for spoken in SPOKEN {
        let scene = Scene::new(spoken, [Turn::say("x").after(Fault::Hang)]).await;
        let (adapter, stop) = (scene.adapter(), CancellationToken::new());
        let (reporter, mut reports) = Reporter::channel(8);
        let stopping = async {
            while !matches!(scene.answers()[..], [Answer::Hang]) {
                tokio::task::yield_now().await;
            }
            stop.cancel();
            // Nothing is life meanwhile: the watchdog would have stopped it.
            let mut alive = 0;
            while let Some(report) = reports.recv().await {
                alive += usize::from(matches!(report, Report::Alive));
            }
            alive
        };
        let (end, alive) = tokio::join!(adapter.run(scene.input(), reporter, stop.clone()), stopping);
        assert_eq!((end, alive), (AdapterEnd::Stopped, 0), "{spoken:?}");
    }
}

#[tokio::test]
async fn an_image_that_is_read_is_shown_and_stays_in_the_conversation() {
    let read = || Turn::call("read_file", json!({"path": "logo.png"}));
    for spoken in SPOKEN {
        let scene = Scene::new(spoken, [read(), Turn::say("A logo.")]).await;
        std::fs::write(scene.tree().join("logo.png"), b"\x89PNG\r\n\x1a\n\x00rest").unwrap();
        let told = scene.go().await;
        assert!(
            matches!(told.end, AdapterEnd::Done { .. }),
            "{spoken:?} {:?}",
            scene.answers()
        );
        let requests = scene.server.requests();
        let (pointer, expected) = match spoken.adapter {
            "openai" => (
                "/input/2/output/1/image_url",
                "data:image/png;base64,iVBORw0KGgoAcmVzdA==",
            ),
            _ => ("/contents/2/parts/1/inlineData/data", "iVBORw0KGgoAcmVzdA=="),
        };
        let shown = requests[1].body.pointer(pointer).and_then(|shown| shown.as_str());
        assert_eq!(shown, Some(expected), "{}", requests[1].body);
        let mut input = scene.input();
        // All but the last line, which is the model's.
        let end = told.lines[..told.lines.len() - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .unwrap();
        input.beginning = Beginning::GoOn {
            said: told.lines[..=end].to_vec().into(),
            note: String::new(),
            instruction: String::new(),
        };
        scene.run(input).await;
        let requests = scene.server.requests();
        assert_eq!(requests[2].body, requests[1].body);
    }
}

#[tokio::test]
async fn an_image_that_is_refused_does_not_end_the_session() {
    let read = || Turn::call("read_file", json!({"path": "logo.png"}));
    for spoken in SPOKEN {
        let second = read().after(Fault::Error(ApiError::invalid("Unable to process input image")));
        let scene = Scene::new(spoken, [read(), second, Turn::say("A logo.")]).await;
        std::fs::write(scene.tree().join("logo.png"), b"\x89PNG\r\n\x1a\n\x00rest").unwrap();
        let told = scene.go().await;
        let done = matches!(told.end, AdapterEnd::Done { .. });
        assert!(done, "{spoken:?} {:?} {:?}", told.end, scene.answers());
        let bodies: Vec<String> = scene.server.requests().iter().map(|it| it.body.to_string()).collect();
        let shown: Vec<bool> = bodies.iter().map(|body| body.contains("iVBORw0KGgo")).collect();
        // Called again without it, and later ones are not shown either.
        assert_eq!(shown, [false, true, false, false], "{spoken:?}");
        assert_eq!(bodies[3].matches("(not shown)").count(), 2, "{spoken:?}");
        let warned = |event: &&EventBody| matches!(event, EventBody::Warning(words) if words.contains("input image"));
        assert_eq!(told.events.iter().filter(warned).count(), 1, "{spoken:?}");
    }
}

#[tokio::test]
async fn a_model_that_goes_round_in_circles_is_told_and_then_ended() {
    for spoken in SPOKEN {
        let call = || Turn::call("bash", json!({"command": "cat nothing"}));
        let scene = Scene::new(spoken, (0..20).map(|_| call())).await;
        let told = scene.go().await;
        let AdapterEnd::Failed(failure) = &told.end else {
            panic!("{spoken:?} {:?}", told.end)
        };
        assert_eq!(failure.kind, FailureKind::TurnLimit);
        assert!(failure.message.contains("again and again"), "{failure}");
        let requests = scene.server.requests();
        assert_eq!(requests.len(), 6, "{spoken:?}");
        assert!(!requests[2].body.to_string().contains("with sleep 30"));
        assert!(requests[3].body.to_string().contains("with sleep 30"));
        assert_eq!(told.transcript.len(), 14);
    }
}
