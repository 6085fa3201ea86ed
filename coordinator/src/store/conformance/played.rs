//! A store in memory with a simulated disk: each fault stores and reports what it should.

use std::sync::Arc;

use super::fixture::{at, create, spec, task_id};
use super::run;
use crate::store::{Fault, FeedNews, Store, StoreError, Visit};

#[test]
fn each_fault_stores_and_says_what_it_should() {
    let cases = [
        (None, true, "ok", "changes"),
        (Some(Fault::Refused), false, "no", "nothing"),
        (Some(Fault::Unstored), false, "unknown", "gap"),
        (Some(Fault::Unanswered), true, "unknown", "gap"),
        (Some(Fault::Lied), false, "ok", "changes"),
    ];
    for (fault, stored, said, told) in cases {
        let store = Store::in_memory_on(Arc::new(move |command| Visit {
            fault: fault.filter(|_| command.is_some()),
            ..Visit::default()
        }));
        run(async {
            let mut follower = store.changes();
            let answer = match store.apply(create(1, spec(2, None), at(1))).await {
                Ok(_) => "ok",
                Err(StoreError::Unknown { .. }) => "unknown",
                Err(_) => "no",
            };
            let found = store.task(task_id(1)).await.unwrap().is_some();
            let news = match follower.next() {
                None => "nothing",
                Some(FeedNews::Commit(_)) => "changes",
                Some(FeedNews::Gap) => "gap",
            };
            assert_eq!((answer, found, news), (said, stored, told), "{fault:?}");
            assert!(follower.next().is_none());
        });
    }
}

#[test]
fn a_read_that_fails_is_an_error() {
    let store = Store::in_memory_on(Arc::new(|_| Visit {
        fault: Some(Fault::Refused),
        ..Visit::default()
    }));
    run(async { assert!(store.task(task_id(1)).await.is_err()) });
}
