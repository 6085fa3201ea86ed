//! A store in memory with a simulated disk: each fault stores and reports what it should.

use std::sync::Arc;

use super::fixture::{at, create, spec, task_id};
use super::run;
use crate::store::{Fault, Store, StoreError, Visit};

#[test]
fn each_fault_stores_and_says_what_it_should() {
    let cases = [
        (None, true, "ok"),
        (Some(Fault::Refused), false, "no"),
        (Some(Fault::Unstored), false, "unknown"),
        (Some(Fault::Unanswered), true, "unknown"),
        (Some(Fault::Lied), false, "ok"),
    ];
    for (fault, stored, said) in cases {
        let store = Store::in_memory_on(Arc::new(move |command| Visit {
            fault: fault.filter(|_| command.is_some()),
            ..Visit::default()
        }));
        run(async {
            let told = match store.apply(create(1, spec(2, None), at(1))).await {
                Ok(_) => "ok",
                Err(StoreError::Unknown { .. }) => "unknown",
                Err(_) => "no",
            };
            let found = store.task(task_id(1)).await.unwrap().is_some();
            assert_eq!((told, found), (said, stored), "{fault:?}");
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
