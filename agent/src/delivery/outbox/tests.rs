use std::path::PathBuf;
use std::time::Duration;

use kage_core::event::AttemptOutcome;
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::AttemptToken;

use super::*;
use crate::delivery::output;

fn key(n: u128) -> AttemptKey {
    AttemptKey {
        attempt: AttemptId::from_random(n),
        token: AttemptToken::from_random(n),
    }
}

fn finished() -> EventBody {
    EventBody::Finished(AttemptOutcome::Failed(Failure::new(FailureKind::Cancelled, "x")))
}

pub(super) struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn database(&self) -> PathBuf {
        self.dir.path().join("outbox.db")
    }

    pub(super) fn output(&self) -> PathBuf {
        self.dir.path().join("output")
    }

    pub(super) fn open(&self, event_bytes: u32) -> Opened {
        open(
            &self.database(),
            &self.output(),
            event_bytes,
            1 << 20,
            &Blocking::Threads,
        )
        .unwrap()
    }
}

pub(super) async fn next(changes: &mut mpsc::Receiver<Vec<OutboxChange>>) -> Vec<OutboxChange> {
    tokio::time::timeout(Duration::from_secs(20), changes.recv())
        .await
        .unwrap()
        .unwrap()
}

pub(super) async fn close(opened: Opened) {
    drop((opened.outbox, opened.changes));
    opened.writer.join().await;
}

#[tokio::test]
async fn numbers_events_and_keeps_what_is_not_acknowledged() {
    let fixture = Fixture::new();
    let mut first = fixture.open(1 << 20);
    first.outbox.open_attempt(key(1)).await.unwrap();
    for body in [
        EventBody::Activity("a".into()),
        EventBody::Activity("b".into()),
        finished(),
    ] {
        first
            .outbox
            .post(key(1).attempt, Timestamp::from_millis(7), body)
            .await
            .unwrap();
    }
    // Nothing is accepted after the last event.
    first
        .outbox
        .post(key(1).attempt, Timestamp::from_millis(8), finished())
        .await
        .unwrap();
    assert_eq!(next(&mut first.changes).await, [OutboxChange::Opened(key(1))]);
    let mut seqs = Vec::new();
    while seqs.len() < 3 {
        for change in next(&mut first.changes).await {
            let OutboxChange::Committed(attempt, stored) = change else {
                panic!("{change:?}")
            };
            assert_eq!(attempt, key(1).attempt);
            seqs.push(stored.event.seq);
        }
    }
    assert_eq!(seqs, [1, 2, 3]);
    first.settled.events(key(1).attempt, 1);
    std::fs::create_dir_all(fixture.output().join(key(1).attempt.to_string())).unwrap();
    std::fs::write(
        output::path(&fixture.output(), key(1).attempt, OutputStream::Stdout),
        b"12345",
    )
    .unwrap();
    first.settled.output(key(1).attempt, OutputStream::Stdout, 3);
    close(first).await;

    let second = fixture.open(1 << 20);
    let [leftover] = second.leftovers.as_slice() else {
        panic!("{:?}", second.leftovers)
    };
    assert_eq!(leftover.key, key(1));
    assert_eq!(leftover.events.iter().map(|e| e.event.seq).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(leftover.output, [(OutputStream::Stdout, 5, 3)]);
    second.settled.forget(key(1).attempt);
    close(second).await;

    let third = fixture.open(1 << 20);
    assert_eq!(third.leftovers, []);
    assert!(!fixture.output().join(key(1).attempt.to_string()).exists());
    close(third).await;
}

#[tokio::test]
async fn many_attempts_share_commits() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(1 << 20);
    const ATTEMPTS: u128 = 200;
    // Everything is queued before delivery reads, so that the writer finds a full queue.
    for n in 1..=ATTEMPTS {
        opened.outbox.open_attempt(key(n)).await.unwrap();
        opened
            .outbox
            .post(key(n).attempt, Timestamp::default(), finished())
            .await
            .unwrap();
    }
    let (mut events, mut groups) = (0, 0);
    while events < ATTEMPTS as usize {
        let committed = next(&mut opened.changes)
            .await
            .iter()
            .filter(|change| matches!(change, OutboxChange::Committed(..)))
            .count();
        events += committed;
        groups += usize::from(committed > 0);
    }
    assert_eq!(events, ATTEMPTS as usize);
    assert!(groups < ATTEMPTS as usize, "{groups} commits for {events} events");
    close(opened).await;
}

#[tokio::test]
async fn waits_for_space_and_loses_nothing() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(64);
    opened.outbox.open_attempt(key(1)).await.unwrap();
    let outbox = opened.outbox.clone();
    let mut poster = tokio::spawn(async move {
        for _ in 0..2 {
            let body = EventBody::Activity("x".repeat(40));
            outbox.post(key(1).attempt, Timestamp::default(), body).await.unwrap();
        }
    });
    assert_eq!(next(&mut opened.changes).await, [OutboxChange::Opened(key(1))]);
    let Some(OutboxChange::Committed(_, first)) = next(&mut opened.changes).await.pop() else {
        panic!("no event")
    };
    let second = tokio::time::timeout(Duration::from_millis(50), &mut poster).await;
    assert!(second.is_err(), "the second event must wait for space");
    opened.outbox.event_space().give(first.size);
    let Some(OutboxChange::Committed(_, second)) = next(&mut opened.changes).await.pop() else {
        panic!("no event")
    };
    assert_eq!((first.event.seq, second.event.seq), (1, 2));
    poster.await.unwrap();
    close(opened).await;
}

#[tokio::test]
async fn a_post_that_is_given_up_takes_no_space() {
    // No writer reads the commands: the second finds no place.
    let (commands, _nobody) = mpsc::channel(1);
    let outbox = Outbox {
        commands,
        changes: mpsc::channel(1).0,
        events: Space::new(1000),
        output: Space::new(1000),
        hindrances: Hindrances::default(),
    };
    let attempt = AttemptId::from_random(1);
    let text = || EventBody::Activity("x".repeat(100));
    outbox.post(attempt, Timestamp::from_millis(0), text()).await.unwrap();
    let left = outbox.events.bytes.available_permits();
    let second = outbox.post(attempt, Timestamp::from_millis(0), text());
    assert!(tokio::time::timeout(Duration::from_millis(20), second).await.is_err());
    assert_eq!(outbox.events.bytes.available_permits(), left);
}
