//! The output of real runs, and the reports made of it.

use kage_core::usage::Unreported;

use super::*;

fn read(fixture: &str) -> (Run, Vec<Report>) {
    let mut stream = Run::default();
    let mut reports: Vec<Report> = fixture.lines().flat_map(|line| stream.line(line.as_bytes())).collect();
    reports.extend(stream.unreported());
    (stream, reports)
}

fn events(reports: &[Report]) -> Vec<&EventBody> {
    let mut events = Vec::new();
    for report in reports {
        match report {
            Report::Event(body) => events.push(body),
            Report::Output(..) | Report::Alive => {}
        }
    }
    events
}

fn stream_text(reports: &[Report], of: OutputStream) -> String {
    let mut text = Vec::new();
    for report in reports {
        if let Report::Output(stream, bytes) = report
            && *stream == of
        {
            text.extend_from_slice(bytes);
        }
    }
    String::from_utf8(text).unwrap()
}

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fixtures/claude/",
            $name,
            ".jsonl"
        ))
    };
}

#[test]
fn a_good_run_is_told_event_by_event() {
    let (stream, reports) = read(fixture!("success"));
    let usage = Usage {
        input: 2,
        cache_write_5m: 22310,
        cache_read: 22170,
        output: 37,
        ..Usage::default()
    };
    assert_eq!(
        events(&reports),
        [
            &EventBody::Activity("started with claude-sonnet-4-5".to_owned()),
            &EventBody::Activity("Write /repo/out.txt".to_owned()),
            &EventBody::Activity("Done: wrote the file as asked.".to_owned()),
            &EventBody::UsageRecorded {
                model: "claude-sonnet-4-5".to_owned(),
                usage,
                reported: Some(PicoUsd(90_874_500_000)),
                metered: false,
                tools: Some(["Write"].into_iter().collect()),
                call: None,
            },
        ]
    );
    assert_eq!(
        stream_text(&reports, OutputStream::Stdout),
        "> Write /repo/out.txt\nDone: wrote the file as asked.\n"
    );
    assert_eq!(stream_text(&reports, OutputStream::Transcript), fixture!("success"));
    let outcome = stream.outcome(LocalTime::utc(Timestamp::default()));
    assert_eq!(outcome, Outcome::Done("Done: wrote the file as asked.".to_owned()));
}

#[test]
fn every_bad_end_has_its_kind() {
    use FailureKind as K;
    let cases = [
        (fixture!("rate429"), K::RateLimited, "API Error: Request rejected (429)"),
        (fixture!("auth401"), K::Auth, "Invalid API key"),
        (
            fixture!("max_turns"),
            K::TurnLimit,
            "Reached maximum number of turns (2)",
        ),
        (fixture!("budget"), K::BudgetExceeded, "Reached maximum budget ($0.2)"),
        (fixture!("limit"), K::QuotaExhausted, "You've hit your 5-hour limit"),
        (fixture!("refused"), K::Network, "API Error: Connection refused"),
        (fixture!("too_long"), K::ContextOverflow, "Prompt is too long"),
    ];
    for (fixture, kind, words) in cases {
        let (stream, _) = read(fixture);
        let Outcome::Failed(failure) = stream.outcome(LocalTime::utc(Timestamp::default())) else {
            panic!("{words}");
        };
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.starts_with(words), "{failure}");
    }
}

#[test]
fn a_used_up_limit_says_when_it_starts_anew() {
    let (stream, _) = read(fixture!("limit"));
    let now = Timestamp::from_millis((1_795_343_054 - 600) * 1000);
    let Outcome::Failed(failure) = stream.outcome(LocalTime::utc(now)) else {
        panic!("not a failure");
    };
    assert_eq!(failure.retry_after, Some(Duration::from_secs(600)));
}

#[test]
fn retries_are_events_and_a_call_that_recovers_is_a_success() {
    let (stream, reports) = read(fixture!("cut"));
    let retried = EventBody::CallRetried {
        failure: Failure::new(FailureKind::Network, "the call was cut or got no answer (unknown)"),
        delay: Duration::from_millis(588),
        attempt: 1,
    };
    assert!(events(&reports).contains(&&retried));
    assert!(matches!(
        stream.outcome(LocalTime::utc(Timestamp::default())),
        Outcome::Done(_)
    ));

    let (_, reports) = read(fixture!("rate429"));
    let first = events(&reports).into_iter().find_map(|event| match event {
        EventBody::CallRetried {
            failure,
            delay,
            attempt,
        } => Some((failure.kind, *delay, *attempt)),
        _ => None,
    });
    assert_eq!(first, Some((FailureKind::RateLimited, Duration::from_millis(1026), 1)));
}

#[test]
fn an_interrupted_run_has_no_outcome_and_keeps_the_usage_it_saw() {
    let whole = fixture!("success");
    let cut = &whole[..whole.find("\"type\":\"result\"").unwrap()];
    let cut = &cut[..cut.rfind('\n').unwrap()];
    let (stream, reports) = read(cut);
    assert_eq!(stream.outcome(LocalTime::utc(Timestamp::default())), Outcome::Missing);
    let Some(EventBody::UsageRecorded { usage, reported, .. }) = events(&reports).last() else {
        panic!("no usage");
    };
    assert_eq!((usage.input, usage.cache_write_5m, usage.cache_read), (2, 22310, 22170));
    assert_eq!(*reported, None);
    // Their messages tell of the output when it begins.
    assert!(usage.unreported.contains(UsageClass::Output) && !usage.unreported.contains(UsageClass::Input));

    // Before the first message nobody knows what was used, which is not nothing.
    let (_, reports) = read("{\"type\":\"system\",\"subtype\":\"init\"}");
    let Some(EventBody::UsageRecorded { usage, .. }) = events(&reports).last() else {
        panic!("no usage");
    };
    assert_eq!(*usage, Usage::UNKNOWN);
}

#[test]
fn totals_that_are_told_again_and_corrected_add_up_to_the_largest() {
    let line = |input: u64, cost: &str| {
        let tokens = format!(
            r#""inputTokens":{input},"outputTokens":1,"cacheReadInputTokens":0,"cacheCreationInputTokens":0,"thinkingTokens":0"#
        );
        format!(
            r#"{{"type":"result","subtype":"success","modelUsage":{{"m":{{{tokens},"costUSD":{cost},"costBasis":"list"}}}}}}"#
        )
    };
    let lines = [
        line(10, "0.5"),
        line(8, "0.25"),
        line(8, "0.75"),
        line(12, "0.75"),
        line(12, "0.75"),
    ];
    let (_, reports) = read(&lines.join("\n"));
    let told: Vec<_> = events(&reports)
        .into_iter()
        .filter_map(|event| match event {
            EventBody::UsageRecorded { usage, reported, .. } => Some((usage.input, usage.output, *reported)),
            _ => None,
        })
        .collect();
    let half = PicoUsd(500_000_000_000);
    let quarter = PicoUsd(250_000_000_000);
    assert_eq!(
        told,
        [(10, 1, Some(half)), (0, 0, Some(quarter)), (2, 0, Some(PicoUsd(0)))]
    );
}

#[test]
fn a_price_counts_when_it_is_the_list_price() {
    let told = |usage: &str| {
        let line = format!(
            r#"{{"type":"result","subtype":"success","modelUsage":{{"m":{{"inputTokens":5,"outputTokens":7,"costUSD":12.12{usage}}}}}}}"#
        );
        let (_, reports) = read(&line);
        let Some(EventBody::UsageRecorded { usage, reported, .. }) = events(&reports).pop() else {
            panic!("no usage");
        };
        (*usage, *reported)
    };
    let list = Some(PicoUsd(12_120_000_000_000));
    assert_eq!(told(r#","costBasis":"list""#).1, list);
    for basis in [
        r#","costBasis":"unknown""#,
        r#","costBasis":"custom""#,
        r#","costBasis":null"#,
        "",
    ] {
        assert_eq!(told(basis).1, None, "{basis}");
    }
    // What it does not tell is unknown, by class.
    let usage = told("").0;
    assert_eq!(
        UsageClass::ALL.map(|class| usage.of(class)),
        [Some(5), None, None, None, Some(7), None]
    );
    let all = r#","cacheReadInputTokens":0,"cacheCreationInputTokens":0,"thinkingTokens":0"#;
    assert_eq!(told(all).0.unreported, Unreported::default());
}

#[test]
fn parts_of_messages_are_not_kept() {
    let mut stream = Run::default();
    let part = br#"{"type":"stream_event","event":{"type":"content_block_delta","index":0,
        "delta":{"type":"thinking_delta","thinking":"hm"}},"session_id":"x","parent_tool_use_id":null}"#;
    assert!(stream.line(part).is_empty());
}

#[test]
fn nothing_that_a_program_prints_is_fatal() {
    let odd = [
        "",
        "plain words",
        "{",
        "null",
        "[]",
        "{\"type\":7}",
        "{\"type\":\"assistant\"}",
        "{\"type\":\"assistant\",\"message\":{\"content\":\"x\",\"usage\":3}}",
        "{\"type\":\"user\",\"message\":{\"content\":[7]}}",
        "{\"type\":\"system\",\"subtype\":\"api_retry\",\"error_status\":99999999}",
        "{\"type\":\"result\",\"modelUsage\":[]}",
        "{\"type\":\"result\",\"modelUsage\":{\"m\":{\"costUSD\":-1,\"inputTokens\":1}}}",
    ];
    let mut stream = Run::default();
    for line in odd {
        stream.line(line.as_bytes());
    }
    stream.line(b"\xff\xfe");
    assert!(matches!(
        stream.outcome(LocalTime::utc(Timestamp::default())),
        Outcome::Failed(_)
    ));
}
