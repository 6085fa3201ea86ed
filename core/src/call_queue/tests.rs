use std::num::NonZeroU32;

use proptest::prelude::*;

use super::*;
use crate::call::{LimitTold, OutputBounds, Prefix};

mod fleet;

const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn id(n: u128) -> CallId {
    CallId::from_random(n)
}

fn asked(n: u128, task: u128, prefix: Option<&str>) -> CallAsked {
    CallAsked {
        call: id(n),
        task: TaskId::from_random(task),
        session: SessionId::from_random(n),
        is_first: true,
        account: "anthropic/0123456789ab".parse().unwrap(),
        model: "m".to_owned(),
        prefix: prefix.map(|prefix| Digest::of(prefix.as_bytes())),
        input: 100,
    }
}

fn limit(limit: u64, remaining: u64, reset: u64) -> Option<LimitTold> {
    Some(LimitTold {
        limit: Some(limit),
        remaining,
        reset: Some(Duration::from_millis(reset)),
    })
}

fn requests(most: u64, remaining: u64, reset: u64) -> RateTold {
    RateTold {
        requests: limit(most, remaining, reset),
        ..RateTold::default()
    }
}

/// A queue that knows of its account that it has these limits.
fn knowing(told: &RateTold) -> CallQueue {
    let mut queue = CallQueue::default();
    assert_eq!(queue.ask(&asked(9_999, 99, None), START), CallTurn::Go);
    queue.started(id(9_999), told, START);
    let used = CallUsed {
        input: Some(100),
        output: Some(10),
    };
    queue.committed(id(9_999), used, &RateTold::default(), START);
    let _nobody = queue.woken();
    queue
}

fn open() -> CallQueue {
    knowing(&RateTold::default())
}

fn waits(turn: &CallTurn) -> (&str, Option<Timestamp>) {
    match turn {
        CallTurn::Wait { reason, until } => (reason, *until),
        CallTurn::Go | CallTurn::Held { .. } => panic!("it does not wait: {turn:?}"),
    }
}

#[test]
fn one_writes_and_all_others_go_when_its_answer_begins() {
    let mut queue = open();
    assert_eq!(queue.ask(&asked(1, 1, Some("p")), START), CallTurn::Go);
    for n in 2..=4 {
        let turn = queue.ask(&asked(n, 1, Some("p")), START);
        assert_eq!(waits(&turn).1, Some(START + seconds(30)));
    }
    // Another prefix, another model and a call without one wait for nobody.
    assert_eq!(queue.ask(&asked(5, 1, Some("other")), START), CallTurn::Go);
    let mut elsewhere = asked(6, 1, Some("p"));
    elsewhere.model = "n".to_owned();
    assert_eq!(queue.ask(&elsewhere, START), CallTurn::Go);
    assert_eq!(queue.ask(&asked(7, 1, None), START), CallTurn::Go);
    assert_eq!(queue.waiting(), 3);
    assert_eq!(queue.woken(), []);
    let later = START + seconds(2);
    queue.started(id(1), &RateTold::default(), later);
    assert_eq!(queue.woken(), [id(2), id(3), id(4)]);
    for n in 2..=4 {
        assert_eq!(queue.ask(&asked(n, 1, Some("p")), later), CallTurn::Go);
    }
    // It stays in the cache for a while; then one writes it again.
    assert_eq!(queue.ask(&asked(8, 2, Some("p")), later + seconds(299)), CallTurn::Go);
    assert_eq!(queue.ask(&asked(10, 2, Some("p")), later + seconds(301)), CallTurn::Go);
    let turn = queue.ask(&asked(11, 2, Some("p")), later + seconds(301));
    assert!(waits(&turn).0.contains("prompt cache"), "{turn:?}");
}

#[test]
fn when_the_first_fails_the_one_that_waited_longest_writes() {
    let mut queue = open();
    assert_eq!(queue.ask(&asked(1, 1, Some("p")), START), CallTurn::Go);
    for n in [5, 3, 4] {
        let _waits = queue.ask(&asked(n, 1, Some("p")), START + Duration::from_millis(10 - n as u64));
    }
    // 5 was asked for first, but nobody waits for it any more.
    queue.pause(id(5), START + seconds(1));
    queue.released(id(1), &RateTold::default(), START + seconds(1));
    assert_eq!(queue.woken(), [id(4)]);
    assert_eq!(queue.ask(&asked(4, 1, Some("p")), START + seconds(1)), CallTurn::Go);
    for n in [3, 5] {
        let _still = waits(&queue.ask(&asked(n, 1, Some("p")), START + seconds(1)));
    }
}

#[test]
fn a_silent_first_call_is_waited_for_for_its_lease_only() {
    let mut queue = open();
    assert_eq!(queue.ask(&asked(1, 1, Some("p")), START), CallTurn::Go);
    let turn = queue.ask(&asked(2, 1, Some("p")), START);
    let until = waits(&turn).1.unwrap();
    assert_eq!(queue.ask(&asked(2, 1, Some("p")), until), CallTurn::Go);
    assert_eq!(queue.ask(&asked(3, 1, Some("p")), until), CallTurn::Go);
}

#[test]
fn nobody_waits_for_ever_while_one_after_the_other_fails() {
    let mut queue = open();
    let mut now = START;
    let _first = queue.ask(&asked(1, 1, Some("p")), now);
    let _waits = queue.ask(&asked(1_000, 1, Some("p")), now);
    for n in 2.. {
        now = now + seconds(20);
        queue.released(id(n - 1), &RateTold::default(), now);
        let _leads = queue.ask(&asked(n, 1, Some("p")), now);
        if queue.ask(&asked(1_000, 1, Some("p")), now) == CallTurn::Go {
            break;
        }
        assert!(now.since(START) <= seconds(120), "{n}");
    }
}

#[test]
fn a_question_that_comes_again_has_the_same_answer() {
    let mut queue = open();
    for _ in 0..3 {
        assert_eq!(queue.ask(&asked(1, 1, Some("p")), START), CallTurn::Go);
        let _waits = waits(&queue.ask(&asked(2, 1, Some("p")), START));
    }
    queue.withdraw(id(1), START);
    assert_eq!(queue.ask(&asked(2, 1, Some("p")), START), CallTurn::Go);
}

#[test]
fn a_session_waits_for_a_cache_once_and_in_its_first_attempt() {
    let mut queue = open();
    let mut first = asked(1, 1, Some("p"));
    assert_eq!(queue.ask(&first, START), CallTurn::Go);
    // It repeats a call that was refused while another one writes.
    queue.released(first.call, &RateTold::default(), START);
    assert_eq!(queue.ask(&asked(2, 1, Some("p")), START), CallTurn::Go);
    first.call = id(3);
    assert_eq!(queue.ask(&first, START), CallTurn::Go);
    let later = CallAsked {
        is_first: false,
        ..asked(4, 1, Some("p"))
    };
    assert_eq!(queue.ask(&later, START), CallTurn::Go);
    // But others wait for it when it is the first to come.
    let later = CallAsked {
        is_first: false,
        ..asked(5, 1, Some("q"))
    };
    assert_eq!(queue.ask(&later, START), CallTurn::Go);
    let _waits = waits(&queue.ask(&asked(6, 1, Some("q")), START));
}

#[test]
fn a_call_that_a_lost_queue_let_go_leaves_no_place_behind() {
    let mut queue = knowing(&requests(60, 0, 60_000));
    let _waits = queue.ask(&asked(1, 1, Some("p")), START);
    let _waits = queue.ask(&asked(2, 1, Some("p")), START);
    let used = CallUsed {
        input: Some(1),
        output: Some(1),
    };
    // It waits here, and was made all the same.
    queue.committed(id(1), used, &RateTold::default(), START);
    assert_eq!((queue.waiting(), queue.woken()), (1, vec![id(2)]));
    let turn = queue.ask(&asked(2, 1, Some("p")), START);
    assert!(waits(&turn).1.is_some(), "it is the next: {turn:?}");
}

#[test]
fn short_prefixes_and_models_without_a_cache_wait_for_nobody() {
    let ask = |model: &str, tokens, free| Ask {
        account: "a/b".parse().unwrap(),
        model: model.to_owned(),
        free,
        prefix: Some(Prefix {
            digest: Digest::of(b"p"),
            tokens,
        }),
        input: 9,
        output: OutputBounds::of(NonZeroU32::MIN, false),
    };
    for (model, tokens, free, expected) in [
        ("claude-opus-5-5", 512, false, true),
        ("claude-opus-5-5", 511, false, false),
        ("claude-haiku-4-5", 4_096, false, true),
        ("claude-haiku-4-5", 4_095, false, false),
        ("deepseek-chat", 1_024, false, true),
        ("deepseek-chat", 1_023, false, false),
        ("gpt-5-pro", 90_000, false, false),
        ("nobody-knows", 90_000, false, false),
        ("claude-opus-5-5", 90_000, true, false),
    ] {
        let prefix = gated_prefix(&ask(model, tokens, free), PriceTable::builtin(), START);
        assert_eq!(prefix.is_some(), expected, "{model} {tokens} {free}");
    }
    let without = Ask {
        prefix: None,
        ..ask("claude-opus-5-5", 9_000, false)
    };
    assert_eq!(gated_prefix(&without, PriceTable::builtin(), START), None);
}

#[test]
fn what_is_read_from_a_cache_counts_where_its_provider_counts_it() {
    let usage = Usage {
        input: 5,
        cache_write_5m: 7,
        cache_read: 1_000,
        output: 3,
        ..Usage::default()
    };
    for (model, input) in [("claude-opus-5-5", 12), ("gpt-5", 1_012), ("nobody-knows", 1_012)] {
        let used = CallUsed::of(&usage, model, PriceTable::builtin(), START);
        assert_eq!((used.input, used.output), (Some(input), Some(3)), "{model}");
    }
    let unknown = CallUsed::of(&Usage::UNKNOWN, "gpt-5", PriceTable::builtin(), START);
    assert_eq!((unknown.input, unknown.output), (None, None));
}

#[test]
fn the_first_call_of_an_account_finds_out_about_its_limits() {
    let mut queue = CallQueue::default();
    assert_eq!(queue.ask(&asked(1, 1, None), START), CallTurn::Go);
    let turn = queue.ask(&asked(2, 1, None), START);
    assert!(waits(&turn).0.contains("finds out"), "{turn:?}");
    // A silent one is not waited for for long, and one that was refused tells nothing.
    assert_eq!(waits(&turn).1, Some(START + seconds(5)));
    queue.released(id(1), &RateTold::default(), START + seconds(1));
    assert_eq!(queue.woken(), [id(2)]);
    assert_eq!(queue.ask(&asked(2, 1, None), START + seconds(1)), CallTurn::Go);
    let _waits = waits(&queue.ask(&asked(3, 1, None), START + seconds(1)));
    queue.started(id(2), &RateTold::default(), START + seconds(2));
    for n in 3..40 {
        assert_eq!(queue.ask(&asked(n, 1, None), START + seconds(2)), CallTurn::Go);
    }
}

#[test]
fn nobody_calls_before_the_time_that_the_provider_asked_for() {
    let mut queue = open();
    assert_eq!(queue.ask(&asked(1, 1, None), START), CallTurn::Go);
    let told = RateTold {
        retry_after: Some(seconds(7)),
        ..RateTold::default()
    };
    queue.released(id(1), &told, START);
    let turn = queue.ask(&asked(2, 2, None), START);
    let (reason, until) = waits(&turn);
    assert!(reason.contains("asked that nobody calls"), "{reason}");
    let until = until.unwrap();
    assert!(until >= START + seconds(7));
    // An earlier time does not replace it.
    let _waits = queue.ask(&asked(3, 2, None), START + seconds(6));
    assert_eq!(queue.ask(&asked(2, 2, None), until), CallTurn::Go);
    // Another account is not held.
    let mut other = asked(4, 2, None);
    other.account = "openai/0123456789ab".parse().unwrap();
    assert_eq!(queue.ask(&other, START), CallTurn::Go);
}

#[test]
fn nobody_waits_for_an_account_that_is_held_for_long() {
    let mut queue = open();
    let _go = queue.ask(&asked(1, 1, Some("p")), START);
    let _waits = queue.ask(&asked(2, 1, Some("p")), START);
    let told = RateTold {
        retry_after: Some(seconds(3_600)),
        ..RateTold::default()
    };
    queue.released(id(1), &told, START);
    let CallTurn::Held { reason, wait } = queue.ask(&asked(2, 1, Some("p")), START) else {
        panic!("it waits");
    };
    assert!(reason.contains("asked that nobody calls"), "{reason}");
    assert!((seconds(3_600)..seconds(3_601)).contains(&wait), "{wait:?}");
    assert_eq!(queue.waiting(), 0);
    let later = START + seconds(3_550);
    let _waits = waits(&queue.ask(&asked(2, 1, Some("p")), later));
}

#[test]
fn a_limit_that_is_used_up_holds_until_its_reset() {
    // All of 50 comes back at once in 10 s: this is no even minute.
    let mut queue = knowing(&requests(50, 0, 10_000));
    let turn = queue.ask(&asked(1, 1, None), START);
    let (reason, until) = waits(&turn);
    assert!(reason.contains("rate limit of requests"), "{reason}");
    assert!(reason.contains(" is used up until "), "{reason}");
    assert_eq!(until, Some(START + seconds(10)));
    let _still = waits(&queue.ask(&asked(1, 1, None), START + Duration::from_millis(9_999)));
    assert_eq!(queue.ask(&asked(1, 1, None), START + seconds(10)), CallTurn::Go);
    // And evenly over a minute: one in 1.2 s, and one that is kept back.
    let mut queue = knowing(&requests(50, 0, 60_000));
    let turn = queue.ask(&asked(1, 1, None), START);
    let (reason, until) = waits(&turn);
    assert!(reason.ends_with("is used up, and fills again"), "{reason}");
    assert_eq!(until, Some(START + Duration::from_millis(2_400)));
    assert_eq!(queue.ask(&asked(1, 1, None), until.unwrap()), CallTurn::Go);
}

#[test]
fn what_is_told_counts_except_for_what_is_on_its_way() {
    let mut queue = knowing(&requests(1_000, 100, 54_000));
    for n in 1..=50 {
        assert_eq!(queue.ask(&asked(n, 1, None), START), CallTurn::Go);
    }
    // 49 may not have been counted in this yet, so that 51 are left for certain: with the 20 kept back, 31 go.
    queue.started(id(1), &requests(1_000, 99, 54_060), START);
    let more = (51..).take_while(|n| queue.ask(&asked(*n, 1, None), START) == CallTurn::Go);
    assert_eq!(more.count(), 30);
    // The limit was made smaller.
    let mut queue = knowing(&requests(1_000, 500, 30_000));
    assert_eq!(queue.ask(&asked(1, 1, None), START), CallTurn::Go);
    queue.started(id(1), &requests(100, 3, 58_200), START);
    let went = (2..).take_while(|n| queue.ask(&asked(*n, 1, None), START) == CallTurn::Go);
    assert_eq!(went.count(), 1);
}

#[test]
fn odd_limits_hold_nobody_for_ever() {
    let odd = |limit, remaining, reset: Option<u64>| RateTold {
        requests: Some(LimitTold {
            limit,
            remaining,
            reset: reset.map(Duration::from_millis),
        }),
        ..RateTold::default()
    };
    for told in [
        odd(None, 0, None),
        odd(Some(0), 0, None),
        odd(Some(0), 0, Some(0)),
        odd(None, 0, Some(3_000)),
        odd(Some(5), 900, Some(3_000)),
        odd(Some(u64::MAX), u64::MAX, Some(0)),
        odd(Some(u64::MAX), 0, None),
        odd(Some(1), 0, None),
    ] {
        let mut queue = knowing(&told);
        let mut now = START;
        let mut looks = 0;
        while let CallTurn::Wait { until, .. } = queue.ask(&asked(1, 1, None), now) {
            now = until.unwrap().max(now + Duration::from_millis(1));
            looks += 1;
            assert!(looks < 5 && now.since(START) <= seconds(61), "{told:?}");
        }
    }
    // What is larger than a limit goes when all of it is free.
    let mut queue = knowing(&RateTold {
        input: limit(50, 0, 60_000),
        ..RateTold::default()
    });
    let turn = queue.ask(&asked(1, 1, None), START);
    assert_eq!(waits(&turn).1, Some(START + seconds(60)));
    assert_eq!(queue.ask(&asked(1, 1, None), START + seconds(60)), CallTurn::Go);
}

#[test]
fn tasks_take_turns_however_many_calls_they_ask_for() {
    let mut queue = knowing(&requests(60, 0, 60_000));
    let mut now = START;
    for n in 0..90 {
        let _waits = queue.ask(&asked(n, 1, None), now);
    }
    for n in 90..100 {
        let _waits = queue.ask(&asked(n, 2, None), now);
    }
    let mut went = Vec::new();
    while went.len() < 20 {
        now = now + Duration::from_millis(1_000);
        for n in 0..100 {
            if !went.contains(&n) && queue.ask(&asked(n, if n < 90 { 1 } else { 2 }, None), now) == CallTurn::Go {
                went.push(n);
            }
        }
    }
    let of_two = went.iter().filter(|n| **n >= 90).count();
    assert_eq!(of_two, 10, "{went:?}");
    let of_one: Vec<_> = went.iter().filter(|n| **n < 90).copied().collect();
    assert!(of_one.is_sorted(), "first come, first served: {of_one:?}");
}

#[test]
fn what_nobody_asks_about_is_passed_over_and_then_forgotten() {
    let mut queue = knowing(&requests(60, 0, 60_000));
    let _waits = queue.ask(&asked(1, 1, None), START);
    let _waits = queue.ask(&asked(2, 1, None), START);
    queue.pause(id(1), START);
    assert_eq!(queue.woken().last(), Some(&id(2)));
    let soon = START + seconds(2);
    assert_eq!(queue.ask(&asked(2, 1, None), soon), CallTurn::Go);
    // It has kept its place.
    let _waits = queue.ask(&asked(3, 1, None), soon);
    let turn = queue.ask(&asked(1, 1, None), soon);
    assert!(waits(&turn).1.is_some(), "it is the next: {turn:?}");
    queue.pause(id(1), soon);
    queue.pause(id(3), soon);
    let _sweeps = queue.ask(&asked(4, 1, None), soon + seconds(10));
    assert_eq!(queue.waiting(), 0);
}

/// What happens to a gate.
#[derive(Debug, Clone, Copy)]
enum Step {
    Ask(u8),
    Start(u8),
    Fail(u8),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..8).prop_map(Step::Ask),
        1 => (0_u8..8).prop_map(Step::Start),
        1 => (0_u8..8).prop_map(Step::Fail),
        1 => (0_u16..40_000).prop_map(Step::Pass),
    ]
}

/// The gate as it would be said: from all that happened, without a state of its own.
#[derive(Debug, Default)]
struct Said {
    /// Since when each call is asked for, and when it went.
    calls: BTreeMap<u8, (Timestamp, Option<Timestamp>)>,
    /// Those that went once.
    passed: Vec<u8>,
    writes: Option<u8>,
    cached: Option<Timestamp>,
}

impl Said {
    /// Nobody waits for an answer for longer than 30 seconds, whatever becomes of it later.
    fn lapse(&mut self, now: Timestamp) {
        let sent = self.writes.and_then(|by| self.calls.get(&by)?.1);
        if let Some(at) = sent.filter(|at| now.since(*at) >= seconds(30)) {
            (self.writes, self.cached) = (None, Some(at + seconds(30)));
        }
    }

    fn goes(&mut self, n: u8, now: Timestamp) -> bool {
        self.lapse(now);
        let (since, went) = *self.calls.entry(n).or_insert((now, None));
        if went.is_some() {
            return true;
        }
        let sent = self.writes.and_then(|by| self.calls.get(&by)?.1);
        let is_cached = self.cached.is_some_and(|at| now.since(at) < seconds(300));
        let goes = match (is_cached, sent) {
            (true, _) => true,
            (false, Some(_)) => now.since(since) >= seconds(120) || self.passed.contains(&n),
            (false, None) => {
                self.writes = Some(n);
                true
            }
        };
        if goes {
            self.calls.insert(n, (since, Some(now)));
            self.passed.push(n);
        }
        goes
    }
}

proptest! {
    #[test]
    fn the_gate_is_what_it_is_said_to_be(steps in prop::collection::vec(step(), 1..80)) {
        let mut queue = open();
        let mut said = Said::default();
        let mut now = START;
        for step in steps {
            match step {
                Step::Pass(millis) => now = now + Duration::from_millis(millis.into()),
                Step::Ask(n) => {
                    let turn = queue.ask(&asked(n.into(), 1, Some("p")), now);
                    prop_assert_eq!(turn == CallTurn::Go, said.goes(n, now), "{:?} at {}", turn, now);
                    if let CallTurn::Wait { until, .. } = turn {
                        prop_assert!(until.is_some_and(|until| until > now && until <= now + seconds(120)));
                    }
                }
                Step::Start(n) => {
                    queue.started(id(n.into()), &RateTold::default(), now);
                    if said.calls.get(&n).is_some_and(|call| call.1.is_some()) {
                        (said.writes, said.cached) = (None, Some(now));
                    }
                }
                Step::Fail(n) => {
                    queue.released(id(n.into()), &RateTold::default(), now);
                    said.lapse(now);
                    said.calls.remove(&n);
                    if said.writes == Some(n) {
                        said.writes = None;
                    }
                }
            }
        }
    }
}
