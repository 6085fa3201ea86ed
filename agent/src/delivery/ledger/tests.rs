use kage_core::event::{AttemptOutcome, EventBody};
use kage_core::id::AttemptToken;

use super::*;

fn key(n: u128) -> AttemptKey {
    AttemptKey {
        attempt: AttemptId::from_random(n),
        token: AttemptToken::from_random(n),
    }
}

fn event(seq: u64, body: EventBody) -> Stored {
    Stored::new(v1::Event {
        seq,
        at: None,
        body: Some(body.into()),
    })
}

fn activity(seq: u64) -> Stored {
    event(seq, EventBody::Activity(format!("{seq}")))
}

fn finished(seq: u64) -> Stored {
    event(seq, EventBody::Finished(AttemptOutcome::Claimed))
}

fn ledger(n: u128, stored: impl IntoIterator<Item = Stored>) -> Ledger {
    let mut ledger = Ledger::default();
    assert_eq!(ledger.apply(OutboxChange::Opened(key(n))), Progress::default());
    for stored in stored {
        assert_eq!(
            ledger.apply(OutboxChange::Committed(key(n).attempt, stored)),
            Progress::default()
        );
    }
    ledger
}

fn grew(n: u128, stream: OutputStream, length: u64) -> OutboxChange {
    OutboxChange::Grew {
        attempt: key(n).attempt,
        stream,
        length,
        added: length,
    }
}

fn seqs(next: Next) -> Vec<u64> {
    match next {
        Next::Events(_, events) => events.iter().map(|event| event.seq).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn events_are_batched_acknowledged_and_forgotten() {
    let mut ledger = ledger(1, [activity(1), activity(2), finished(3)]);
    assert_eq!(seqs(ledger.next()), [1, 2, 3]);
    assert_eq!(ledger.next(), Next::Nothing);
    let progress = ledger.acked_events(key(1).attempt, 2);
    assert_eq!((progress.acked, progress.delivered), (Some(2), false));
    let progress = ledger.acked_events(key(1).attempt, 3);
    assert!(progress.delivered);
    assert!(ledger.is_empty());
}

#[test]
fn a_gap_is_sent_again() {
    let mut ledger = ledger(1, [activity(1), activity(2)]);
    assert_eq!(seqs(ledger.next()), [1, 2]);
    assert_eq!(ledger.acked_events(key(1).attempt, 0), Progress::default());
    assert_eq!(seqs(ledger.next()), [1, 2]);
}

#[test]
fn finished_waits_for_output_and_other_events_do_not() {
    let mut ledger = ledger(1, [activity(1), finished(2)]);
    assert_eq!(
        ledger.apply(grew(1, OutputStream::Stdout, 100_000)),
        Progress::default()
    );
    assert_eq!(seqs(ledger.next()), [1]);
    let mut sent = 0;
    loop {
        match ledger.next() {
            Next::Output { offset, length, .. } => {
                assert_eq!(offset, sent);
                sent += length as u64;
            }
            Next::Nothing => break,
            Next::Events(..) => panic!("finished overtook output"),
        }
    }
    assert_eq!(sent, 100_000);
    assert_eq!(
        ledger
            .acked_output(key(1).attempt, OutputStream::Stdout, 65_536)
            .output_bytes,
        65_536
    );
    assert_eq!(ledger.next(), Next::Nothing);
    assert!(
        !ledger
            .acked_output(key(1).attempt, OutputStream::Stdout, 100_000)
            .delivered
    );
    assert_eq!(seqs(ledger.next()), [2]);
    assert!(ledger.acked_events(key(1).attempt, 2).delivered);
}

#[test]
fn attempts_take_turns_and_events_go_first() {
    let mut ledger = Ledger::default();
    for n in [1, 2] {
        assert_eq!(ledger.apply(OutboxChange::Opened(key(n))), Progress::default());
        assert_eq!(
            ledger.apply(grew(n, OutputStream::Stdout, 200_000)),
            Progress::default()
        );
    }
    let turn = |ledger: &mut Ledger| match ledger.next() {
        Next::Output { key, .. } => key,
        other => panic!("{other:?}"),
    };
    assert_eq!(turn(&mut ledger), key(1));
    assert_eq!(turn(&mut ledger), key(2));
    assert_eq!(
        ledger.apply(OutboxChange::Committed(key(2).attempt, activity(1))),
        Progress::default()
    );
    assert_eq!(seqs(ledger.next()), [1]);
    assert_eq!(turn(&mut ledger), key(1));
}

#[test]
fn what_is_on_its_way_is_bounded() {
    let mut ledger = ledger(1, []);
    assert_eq!(
        ledger.apply(grew(1, OutputStream::Stdout, 3 * WINDOW)),
        Progress::default()
    );
    let mut sent = 0;
    while let Next::Output { length, .. } = ledger.next() {
        sent += length as u64;
    }
    assert_eq!(sent, WINDOW);
    assert_eq!(
        ledger.acked_output(key(1).attempt, OutputStream::Stdout, 1).acked,
        Some(1)
    );
    assert!(ledger.has_next());
    ledger.resend();
    assert!(matches!(ledger.next(), Next::Output { offset: 1, .. }));
}

#[test]
fn a_refused_attempt_gives_its_space_back() {
    let stored = activity(1);
    let size = u64::from(stored.size);
    let mut ledger = ledger(1, [stored]);
    assert_eq!(ledger.apply(grew(1, OutputStream::Stderr, 50)), Progress::default());
    let progress = ledger.drop_attempt(key(1).attempt);
    assert_eq!((progress.event_bytes, progress.output_bytes), (size, 50));
    let late = activity(2);
    let size = u64::from(late.size);
    assert_eq!(
        ledger.apply(OutboxChange::Committed(key(1).attempt, late)).event_bytes,
        size
    );
    assert_eq!(ledger.apply(grew(1, OutputStream::Stderr, 70)).output_bytes, 70);
    assert!(ledger.is_empty());
}

#[test]
fn leftovers_are_delivered_and_take_no_space() {
    let leftover = Leftover {
        key: key(1),
        events: vec![activity(4), finished(5)],
        output: vec![(OutputStream::Stdout, 10, 10)],
    };
    let mut ledger = Ledger::new(vec![leftover]);
    assert!(ledger.has_leftovers());
    assert_eq!(seqs(ledger.next()), [4, 5]);
    let progress = ledger.acked_events(key(1).attempt, 5);
    assert_eq!((progress.event_bytes, progress.delivered), (0, true));
    assert!(!ledger.has_leftovers());
}

fn output(next: Next) -> Option<(u64, usize)> {
    match next {
        Next::Output { offset, length, .. } => Some((offset, length)),
        Next::Nothing => None,
        Next::Events(..) => panic!("{next:?}"),
    }
}

/// Applies a change that frees no space.
fn apply(ledger: &mut Ledger, change: OutboxChange) {
    assert_eq!(ledger.apply(change), Progress::default());
}

#[test]
fn lines_gather_while_one_is_on_its_way() {
    let mut ledger = ledger(1, []);
    apply(&mut ledger, grew(1, OutputStream::Stdout, 10));
    assert_eq!(output(ledger.next()), Some((0, 10)));
    for length in 11..=1000 {
        apply(&mut ledger, grew(1, OutputStream::Stdout, length));
        assert!(!ledger.has_next());
        assert_eq!(output(ledger.next()), None);
    }
    // Another stream has a round trip of its own.
    apply(&mut ledger, grew(1, OutputStream::Stderr, 5));
    assert_eq!(output(ledger.next()), Some((0, 5)));
    let acked = ledger.acked_output(key(1).attempt, OutputStream::Stdout, 10);
    assert_eq!(acked.acked, Some(10));
    assert_eq!(output(ledger.next()), Some((10, 990)));
    assert_eq!(output(ledger.next()), None);
}

#[test]
fn a_full_batch_waits_for_nothing_nor_does_what_follows_it() {
    let batch = MAX_INLINE as u64;
    let mut ledger = ledger(1, []);
    apply(&mut ledger, grew(1, OutputStream::Stdout, 10));
    assert_eq!(output(ledger.next()), Some((0, 10)));
    apply(&mut ledger, grew(1, OutputStream::Stdout, 10 + batch - 1));
    assert_eq!(output(ledger.next()), None);
    apply(&mut ledger, grew(1, OutputStream::Stdout, 10 + batch));
    assert_eq!(output(ledger.next()), Some((10, MAX_INLINE)));
    assert_eq!(
        ledger.acked_output(key(1).attempt, OutputStream::Stdout, 10).acked,
        Some(10)
    );
    apply(&mut ledger, grew(1, OutputStream::Stdout, 30 + batch));
    assert_eq!(output(ledger.next()), Some((10 + batch, 20)));
}

#[test]
fn the_end_of_an_attempt_gathers_nothing() {
    let mut ledger = ledger(1, []);
    apply(&mut ledger, grew(1, OutputStream::Stdout, 10));
    assert_eq!(output(ledger.next()), Some((0, 10)));
    apply(&mut ledger, grew(1, OutputStream::Stdout, 20));
    assert_eq!(output(ledger.next()), None);
    apply(&mut ledger, OutboxChange::Committed(key(1).attempt, finished(1)));
    assert_eq!(output(ledger.next()), Some((10, 10)));
}

#[test]
fn what_gathered_is_sent_again_with_what_was_lost() {
    let mut ledger = ledger(1, []);
    for length in [10, 20] {
        apply(&mut ledger, grew(1, OutputStream::Stdout, length));
        assert_eq!(output(ledger.next()).is_some(), length == 10);
    }
    // The coordinator has nothing of it.
    assert_eq!(
        ledger.acked_output(key(1).attempt, OutputStream::Stdout, 0),
        Progress::default()
    );
    assert_eq!(output(ledger.next()), Some((0, 20)));
    ledger.resend();
    assert_eq!(output(ledger.next()), Some((0, 20)));
}
