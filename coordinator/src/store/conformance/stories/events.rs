//! What attempts deliver.

use std::collections::BTreeSet;
use std::sync::Arc;

use kage_core::attempt::StaleWriter;
use kage_core::event::{EventBody, InvalidBatch};
use kage_core::price::PriceTable;
use kage_core::session::SessionState;
use kage_core::usage::{Money, PicoUsd, Provenance, Usage};

use super::{begin, end, view};
use crate::store::conformance::fixture::{
    activity, append, at, attempt_id, claimed, event, started, task_id, token, told,
};
use crate::store::{AppendEvents, Appended, Store};

pub(in crate::store::conformance) async fn a_stale_token_is_refused(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let mut forged = append(1, 1, vec![activity(1)]);
    forged.claim.token_hash = token(attempt_id(2));
    let outcome = store.apply(forged).await.unwrap();
    assert_eq!(outcome, Appended::Stale(StaleWriter::WrongToken));
    let unknown = store.apply(append(7, 1, vec![activity(1)])).await.unwrap();
    assert_eq!(unknown, Appended::UnknownAttempt);
    assert_eq!(store.events(task_id(1), 0, 10).await.unwrap(), vec![]);
    end(&store).await;
}

pub(in crate::store::conformance) async fn another_agent_is_refused(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let outcome = store.apply(append(1, 2, vec![activity(1)])).await.unwrap();
    assert_eq!(outcome, Appended::Stale(StaleWriter::WrongAgent));
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_gap_is_named_and_a_repeat_is_acknowledged(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    told(&store, 1, 1, vec![activity(1), activity(2)]).await;
    let gap = store.apply(append(1, 1, vec![activity(4)])).await.unwrap();
    assert_eq!(gap, Appended::Gap { acked_seq: 2 });
    let repeat = store.apply(append(1, 1, vec![activity(1), activity(2)])).await.unwrap();
    assert_eq!(repeat, Appended::Acked { seq: 2 });
    // A batch that overlaps adds what is new.
    told(&store, 1, 1, vec![activity(2), activity(3)]).await;
    let events = store.events(task_id(1), 0, 10).await.unwrap();
    let seqs: Vec<_> = events.iter().map(|event| event.event.seq).collect();
    assert_eq!(seqs, [1, 2, 3]);
    end(&store).await;
}

pub(in crate::store::conformance) async fn nothing_is_taken_after_the_end(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    told(&store, 1, 1, vec![activity(1), claimed(2)]).await;
    let late = store.apply(append(1, 1, vec![activity(3)])).await.unwrap();
    assert_eq!(late, Appended::Stale(StaleWriter::Ended));
    // Its sender never heard that the end was stored.
    let repeat = store.apply(append(1, 1, vec![activity(1), claimed(2)])).await.unwrap();
    assert_eq!(repeat, Appended::Acked { seq: 2 });
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_batch_that_contradicts_itself_is_refused(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let cases = [
        (vec![], InvalidBatch::Empty),
        (vec![activity(1), activity(3)], InvalidBatch::NotConsecutive(3)),
        (vec![claimed(1), activity(2)], InvalidBatch::AfterEnd(2)),
    ];
    for (events, expected) in cases {
        let outcome = store.apply(append(1, 1, events)).await.unwrap();
        assert_eq!(outcome, Appended::Invalid(expected));
    }
    end(&store).await;
}

pub(in crate::store::conformance) async fn usage_keeps_the_price_of_when_it_was_accepted(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    for (seq, input) in [(1, 2), (2, 3), (2, 4)] {
        let row = format!("[[price]]\nmodel='m'\nprovider='p'\ninput='{input}'\noutput='9'");
        let body = EventBody::UsageRecorded {
            model: "m".to_owned(),
            usage: Usage {
                input: 10,
                ..Usage::default()
            },
            reported: None,
            metered: true,
            tools: None,
            call: None,
        };
        let append = AppendEvents {
            prices: Arc::new(PriceTable::parse(&row).unwrap()),
            ..append(1, 1, vec![event(seq, body)])
        };
        drop(store.apply(append).await.unwrap());
    }
    let session = view(&store).await.sessions.remove(0);
    let amounts: Vec<_> = session.usage.iter().map(|entry| entry.money.amount).collect();
    // The last event was a repeat.
    assert_eq!(amounts, [Some(PicoUsd(20_000_000)), Some(PicoUsd(30_000_000))]);
    let prices: BTreeSet<_> = session.usage.iter().map(|entry| entry.price.clone()).collect();
    assert_eq!(prices.len(), 2, "{prices:?}");
    let billed = Money {
        amount: Some(PicoUsd(50_000_000)),
        provenance: Provenance::Billed,
    };
    assert_eq!(session.costs().all, [billed]);
    end(&store).await;
}

pub(in crate::store::conformance) async fn usage_and_activity_add_up(store: Store) {
    let jobs = begin(&store, 1, None).await;
    started(&store, &jobs[0], 1, 1, 1).await;
    let used = |seq, input, pico| {
        let body = EventBody::UsageRecorded {
            model: "m".to_owned(),
            usage: Usage {
                input,
                ..Usage::default()
            },
            reported: Some(PicoUsd(pico)),
            metered: true,
            tools: None,
            call: None,
        };
        event(seq, body)
    };
    told(&store, 1, 1, vec![used(1, 10, 3), activity(2)]).await;
    told(&store, 1, 1, vec![used(3, 5, 4)]).await;
    // A repeat counts nothing twice.
    told(&store, 1, 1, vec![used(1, 10, 3), activity(2), used(3, 5, 4)]).await;
    let session = view(&store).await.sessions.remove(0);
    assert_eq!(session.total_usage().input, 15);
    assert_eq!(session.usage[0].reported, Some(PicoUsd(7)));
    assert_eq!(session.usage[0].money.provenance, Provenance::Unknown);
    assert_eq!(session.activity, Some(("step 2".to_owned(), at(10_001))));
    assert!(matches!(session.state, SessionState::Running { .. }));
    end(&store).await;
}
