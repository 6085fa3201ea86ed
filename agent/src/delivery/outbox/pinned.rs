//! The forms that outboxes had: one file for each, committed, in which the same story was told by
//! the program of its time. Every one is opened and goes on, and no event in it loses anything; and
//! what is stored today is what the newest file has, so that a field cannot change its form without
//! a file of its own.
//!
//! A new form: teach `kage_proto::stored` to read the one before, write the file of the new one
//! with `KAGE_PINNED=.../pinned/NAME.db cargo test -p kage-agent --lib write_the_outbox --
//! --ignored`, and add it to [`FORMS`]. A file that is there is never written again.

use std::path::PathBuf;

use kage_core::event::Event;
use rusqlite::{Connection, OpenFlags};

use super::tests::{Fixture, close, next};
use super::*;
use crate::delivery::output;
use story::{ACKNOWLEDGED, ACKNOWLEDGED_OUTPUT, at, events, key};

mod story;

/// The forms whose files are committed, by what times are in them; the newest last.
const FORMS: [&str; 2] = ["milliseconds", "timestamps"];

fn file(form: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/delivery/outbox/pinned");
    folder.join(format!("{form}.db"))
}

/// Posts the story, and waits until all of it is stored.
async fn tell(opened: &mut Opened) {
    let (mut posted, mut committed) = (0, 0);
    for (key, bodies) in events() {
        opened.outbox.open_attempt(key.clone()).await.unwrap();
        for (seq, body) in (1..).zip(bodies) {
            opened.outbox.post(key.attempt, at(seq), body).await.unwrap();
            posted += 1;
        }
    }
    while committed < posted {
        let changes = next(&mut opened.changes).await;
        let is_event = |change: &&OutboxChange| matches!(change, OutboxChange::Committed(..));
        committed += changes.iter().filter(is_event).count();
    }
    opened.settled.events(key(3).attempt, ACKNOWLEDGED);
    opened
        .settled
        .output(key(3).attempt, OutputStream::Stdout, ACKNOWLEDGED_OUTPUT);
}

/// The story as it is left: what is not acknowledged, as core has it.
fn left() -> Vec<(AttemptKey, Vec<Event>)> {
    let numbered = |(key, bodies): (AttemptKey, Vec<EventBody>)| {
        let events = (1..).zip(bodies).map(|(seq, body)| Event { seq, at: at(seq), body });
        let acknowledged = if key == story::key(3) { ACKNOWLEDGED } else { 0 };
        (key, events.filter(|event| event.seq > acknowledged).collect())
    };
    events().into_iter().map(numbered).collect()
}

#[tokio::test]
#[ignore = "writes the file of a new form"]
async fn write_the_outbox() {
    let fixture = Fixture::new();
    let mut opened = fixture.open(1 << 20);
    tell(&mut opened).await;
    close(opened).await;
    let connection = Connection::open(fixture.database()).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode = DELETE; PRAGMA page_size = 512;")
        .unwrap();
    let to = std::env::var("KAGE_PINNED").unwrap();
    connection.execute("VACUUM INTO ?1", [to]).unwrap();
}

#[tokio::test]
async fn an_outbox_of_every_form_is_opened_and_goes_on() {
    for form in FORMS {
        let fixture = Fixture::new();
        std::fs::copy(file(form), fixture.database()).unwrap();
        let third = key(3).attempt;
        std::fs::create_dir_all(fixture.output().join(third.to_string())).unwrap();
        let printed = output::path(&fixture.output(), third, OutputStream::Stdout);
        std::fs::write(printed, b"12345678").unwrap();

        let mut opened = fixture.open(1 << 20);
        let mut found: Vec<(AttemptKey, Vec<Event>)> = Vec::new();
        for leftover in &opened.leftovers {
            let output: &[_] = if leftover.key == key(3) {
                &[(OutputStream::Stdout, 8, ACKNOWLEDGED_OUTPUT)]
            } else {
                &[]
            };
            assert_eq!(leftover.output, output, "{form}");
            let events = leftover.events.iter();
            let events = events.map(|stored| Event::try_from(stored.event.clone()).unwrap());
            found.push((leftover.key.clone(), events.collect()));
        }
        let mut told = left();
        told.sort_by_key(|(key, _)| key.attempt.to_string());
        found.sort_by_key(|(key, _)| key.attempt.to_string());
        assert_eq!(found, told, "{form}");

        // It goes on: something is settled, and something is new.
        opened.settled.events(key(1).attempt, 4);
        opened.settled.forget(key(2).attempt);
        opened.settled.forget(third);
        let fourth = key(4);
        opened.outbox.open_attempt(fourth.clone()).await.unwrap();
        let body = EventBody::Activity("goes on".to_owned());
        opened.outbox.post(fourth.attempt, at(1), body).await.unwrap();
        while !matches!(
            next(&mut opened.changes).await.last(),
            Some(OutboxChange::Committed(..))
        ) {}
        close(opened).await;
        let opened = fixture.open(1 << 20);
        let numbers = |leftover: &Leftover| {
            let numbers = leftover.events.iter().map(|stored| stored.event.seq);
            (leftover.key.clone(), numbers.collect::<Vec<_>>())
        };
        let mut rest: Vec<_> = opened.leftovers.iter().map(numbers).collect();
        rest.sort_by_key(|(_, numbers)| numbers.len());
        assert_eq!(rest, [(fourth, vec![1]), (key(1), (5..=11).collect())], "{form}");
        close(opened).await;
    }
}

#[test]
fn what_is_stored_today_is_what_the_newest_file_has() {
    let newest = file(FORMS[FORMS.len() - 1]);
    let connection = Connection::open_with_flags(newest, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut reading = connection
        .prepare("SELECT event FROM event WHERE attempt = ?1 ORDER BY seq")
        .unwrap();
    for (key, events) in left() {
        let id = key.attempt.to_string();
        let rows = reading.query_map([id], |row| row.get::<_, Vec<u8>>(0)).unwrap();
        let stored: Vec<_> = rows.map(Result::unwrap).collect();
        let today: Vec<_> = events
            .into_iter()
            .map(|event| v1::Event::from(event).encode_to_vec())
            .collect();
        assert_eq!(stored, today);
    }
}
