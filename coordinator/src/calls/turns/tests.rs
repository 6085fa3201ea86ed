use kage_core::id::{Digest, SessionId, TaskId};

use super::*;

const HOLD: Duration = Duration::from_secs(5);

fn asked(n: u128, prefix: bool) -> CallAsked {
    CallAsked {
        call: CallId::from_random(n),
        task: TaskId::from_random(1),
        session: SessionId::from_random(n),
        is_first: true,
        account: "anthropic/0123456789ab".parse().unwrap(),
        model: "m".to_owned(),
        prefix: prefix.then(|| Digest::of(b"prefix")),
        input: 10,
    }
}

fn turns() -> Arc<CallTurns> {
    Arc::new(CallTurns::new(Timestamp::from_millis(1_790_000_000_000)))
}

async fn ask(turns: &CallTurns, n: u128, prefix: bool) -> CallTurn {
    turns.turn(&asked(n, prefix), Instant::now() + HOLD).await
}

/// An account of which is known that it has no limits.
async fn open_account(turns: &CallTurns) {
    assert_eq!(ask(turns, 1000, false).await, CallTurn::Go);
    turns.started(CallId::from_random(1000), &RateTold::default());
}

#[tokio::test(start_paused = true)]
async fn others_go_when_the_answer_of_the_first_begins() {
    let turns = turns();
    open_account(&turns).await;
    assert_eq!(ask(&turns, 1, true).await, CallTurn::Go);
    let begun = Instant::now();
    let waiting: Vec<_> = (2..6)
        .map(|n| {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move { ask(&turns, n, true).await })
        })
        .collect();
    // The question of a call without a prefix is answered meanwhile.
    assert_eq!(ask(&turns, 7, false).await, CallTurn::Go);
    tokio::time::sleep(Duration::from_secs(2)).await;
    turns.started(CallId::from_random(1), &RateTold::default());
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), CallTurn::Go);
    }
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_question_is_answered_after_its_time_and_keeps_its_place() {
    let turns = turns();
    open_account(&turns).await;
    assert_eq!(ask(&turns, 1, true).await, CallTurn::Go);
    for _ in 0..5 {
        let begun = Instant::now();
        let CallTurn::Wait { reason, .. } = ask(&turns, 2, true).await else {
            panic!("it goes");
        };
        assert!(reason.contains("prompt cache"), "{reason}");
        assert_eq!(begun.elapsed(), HOLD);
    }
    // The first call is silent, and nobody waits for it any longer.
    let begun = Instant::now();
    assert_eq!(ask(&turns, 2, true).await, CallTurn::Go);
    assert!(begun.elapsed() <= HOLD);
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_waiting_leaves_its_turn_to_the_next() {
    let turns = turns();
    open_account(&turns).await;
    let held = RateTold {
        retry_after: Some(Duration::from_secs(3)),
        ..RateTold::default()
    };
    assert_eq!(ask(&turns, 1, false).await, CallTurn::Go);
    turns.released(CallId::from_random(1), &held);
    let begun = Instant::now();
    let first = {
        let turns = Arc::clone(&turns);
        tokio::spawn(async move { ask(&turns, 2, false).await })
    };
    tokio::task::yield_now().await;
    let second = {
        let turns = Arc::clone(&turns);
        tokio::spawn(async move { ask(&turns, 3, false).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    first.abort();
    assert_eq!(second.await.unwrap(), CallTurn::Go);
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(3), "{waited:?}");
    assert!(waited < Duration::from_secs(4), "{waited:?}");
}
