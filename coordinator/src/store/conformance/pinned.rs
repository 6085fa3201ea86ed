//! Earlier forms of databases: one committed file for each, in which the program of its time
//! recorded the same story. Every file is opened and used further. What is stored today must equal
//! what serde writes today, so that a changed name in core needs a migration.
//!
//! A new form: write a step in `sqlite/schema`, then the file of the new schema with
//! `KAGE_PINNED=.../pinned/schema-N.db cargo test -p kage-coordinator --lib write_the_database --
//! --ignored`, and add it to [`FORMS`]. A file that is there is never written again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kage_core::access::{Admittance, Capabilities, LetIn};
use kage_core::attempt::Attempt;
use kage_core::checkpoint::Checkpoint;
use kage_core::event::{AttemptOutcome, Event, EventBody, VerdictKind};
use kage_core::fleet::Agent;
use kage_core::id::{Digest, ProjectId, StoreId};
use kage_core::job::JobKind;
use kage_core::ledger::{CallRow, Reservation};
use kage_core::price::PriceTable;
use kage_core::session::Session;
use kage_core::task::TaskSpec;
use kage_core::usage::Provenance;
use rusqlite::{Connection, OpenFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fixture::{at, claimed, create, event, request, spec, started, task_id, told, verdict};
use super::invariants::{Seen, check};
use super::run;
use crate::store::rows::{AttemptNote, JobRow, TaskHead};
use crate::store::sqlite::KNOWN;
use crate::store::{CancelTask, Contents, Opening, RecordAgent, Store};

mod large;
mod story;

/// The schemas whose files are committed, the newest last.
const FORMS: [u32; 11] = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21];

pub(super) fn file(schema: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/conformance/pinned");
    folder.join(format!("schema-{schema}.db"))
}

#[test]
#[ignore = "writes the file of a new form"]
fn write_the_database() {
    // The long tier runs it, too, and has no file to write.
    let Ok(to) = std::env::var("KAGE_PINNED") else {
        return;
    };
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        let store = Store::open(&path).unwrap();
        story::play(&store).await;
        store.close().await;
        drop(store);
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode = DELETE; PRAGMA page_size = 512;")
            .unwrap();
        connection.execute("VACUUM INTO ?1", [to]).unwrap();
    });
}

/// Everything that can be asked about a store, as text, without the reasons of decisions: those are in
/// the words of the program that decided.
async fn told_of(store: &Store) -> String {
    let project = ProjectId::default();
    // Up to schema 16, programs did not store the adapter of an attempt.
    let mut live = store.live_attempts(None).await.unwrap();
    live.iter_mut().for_each(|live| live.adapter = None);
    let all = format!(
        "{:#?}",
        (
            check(store, &Seen::default()).await,
            store.queued_jobs().await.unwrap(),
            live,
            store.counts().await.unwrap(),
            (store.ended().await.unwrap(), store.in_files().await.unwrap()),
            store.agents().await.unwrap(),
            (store.enrolments().await.unwrap(), store.person_tokens().await.unwrap()),
            store.context_stats(&project, &Digest::of(b"context")).await.unwrap(),
        )
    );
    // Up to schema 15, programs said of a session that it goes on.
    let all = all.replace("\"goes on from checkpoint", "\"continues from checkpoint");
    let lines = all.lines().filter(|line| !line.trim_start().starts_with("reason: \""));
    without_new(lines).join("\n")
}

/// Without what earlier programs did not record: up to schema 18 the tiers that sessions worked in, up to schema 19
/// their warnings.
fn without_new<'t>(lines: impl Iterator<Item = &'t str>) -> Vec<&'t str> {
    let mut lines = lines;
    let mut kept = Vec::new();
    while let Some(line) = lines.next() {
        match line.trim() {
            "contained: None," | "warnings: []," => {}
            "warnings: [" => while lines.next().is_some_and(|inner| inner.trim() != "],") {},
            "contained: Some(" => while lines.next().is_some_and(|inner| inner.trim() != "),") {},
            _ => kept.push(line),
        }
    }
    kept
}

#[test]
fn the_database_of_every_form_is_opened_and_goes_on() {
    run(async {
        let mut first: Option<String> = None;
        for schema in FORMS {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("kage.db");
            std::fs::copy(file(schema), &path).unwrap();
            let store = Store::open(&path).unwrap();
            let all = told_of(&store).await;
            let same = first.get_or_insert_with(|| all.clone());
            let differs = same.lines().zip(all.lines()).find(|(first, this)| first != this);
            assert_eq!(differs, None, "schema {schema} tells another story");
            assert_eq!(same.len(), all.len());

            let before = check(&store, &Seen::default()).await;
            let jobs = store.queued_jobs().await.unwrap();
            let again = store.apply(create(2, spec(2, None), at(60_000))).await.unwrap();
            assert!(again.repeated, "requests are remembered");
            told(
                &store,
                5,
                2,
                vec![event(2, EventBody::Activity("goes on".to_owned())), claimed(3)],
            )
            .await;
            let verify = jobs.iter().find(|job| job.kind != JobKind::Session).unwrap();
            started(&store, verify, 70, 1, 2).await;
            told(&store, 70, 2, vec![verdict(1, VerdictKind::Passed)]).await;
            let cancel = CancelTask {
                request: request(71),
                task: task_id(6),
                now: at(50_000),
            };
            store.apply(cancel).await.unwrap();
            check(&store, &before).await;
        }
    });
}

/// What a session of the newest form before money was stored had used. The row of its model is that of
/// the table that it is opened with, at the session's start.
const USED: &str = r#"[{"model":"m","metered":true,"usage":{"input":3},"reported":null},
    {"model":"m","metered":false,"usage":{"input":3},"reported":7},
    {"model":"else","metered":true,"usage":{"input":3},"reported":null}]"#;

#[test]
fn what_a_file_of_an_earlier_form_names_is_read_and_the_file_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let newest = Store::contents(&file(FORMS[FORMS.len() - 1])).unwrap();
    assert!(newest.tasks > 0 && !newest.files.blobs.is_empty());
    for schema in FORMS {
        let path = dir.path().join(format!("{schema}.db"));
        std::fs::copy(file(schema), &path).unwrap();
        let before = std::fs::read(&path).unwrap();
        let named = Store::contents(&path).unwrap();
        let unstored = |contents: &Contents| Contents {
            id: None,
            opened: 0,
            position: 0,
            ..contents.clone()
        };
        assert_eq!(unstored(&named), unstored(&newest), "schema {schema}");
        assert_eq!(std::fs::read(&path).unwrap(), before, "schema {schema}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), FORMS.len());
}

#[test]
fn usage_that_was_stored_without_its_cost_is_priced_once() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        std::fs::copy(file(12), &path).unwrap();
        let connection = Connection::open(&path).unwrap();
        let set = "UPDATE sessions SET doc = json_set(doc, '$.usage', json(?1)) WHERE doc ->> '$.name' = 's0'";
        assert!(connection.execute(set, [USED]).unwrap() > 0);
        drop(connection);
        let table = |input: u32| {
            let row = |more: &str| format!("[[price]]\nmodel='m'\nprovider='p'\noutput='1'\ninput='{input}'\n{more}\n");
            PriceTable::parse(&(row("") + &row("from='2026-01-01'").replace(&format!("'{input}'"), "'9'"))).unwrap()
        };
        for prices in [table(2), table(5)] {
            let opening = Opening {
                fresh: StoreId::from_random(1),
                times: 0,
                position: 0,
                noted: dir.path().join("store-position"),
            };
            let (store, _) = Store::begin(&path, &opening, &prices).unwrap();
            let view = store.task(task_id(1)).await.unwrap().unwrap();
            let money: Vec<_> = (view.sessions[0].usage.iter())
                .map(|entry| (entry.money.provenance, entry.money.amount.map(|amount| amount.0)))
                .collect();
            assert_eq!(
                money,
                [
                    (Provenance::Billed, Some(6_000_000)),
                    (Provenance::Reported, Some(7)),
                    (Provenance::Unknown, None),
                ]
            );
            let price = view.sessions[0].usage[0].price.as_ref().unwrap();
            assert!(price.to_string().starts_with("m@always#"), "{price}");
            store.close().await;
        }
    });
}

#[test]
fn a_long_prompt_of_before_is_named_by_its_digest() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        std::fs::copy(file(13), &path).unwrap();
        let connection = Connection::open(&path).unwrap();
        let lengths = [65_536, 65_537];
        for (n, length) in (1..).zip(lengths) {
            let prompt = "ä".repeat(length / 2) + if length % 2 == 1 { "x" } else { "" };
            assert_eq!(prompt.len(), length);
            let set = "UPDATE specs SET spec = json_set(spec, '$.prompt', ?2) WHERE task = ?1";
            assert_eq!(connection.execute(set, (n, prompt)).unwrap(), 1);
        }
        drop(connection);
        let store = Store::open(&path).unwrap();
        let long = Digest::of(("ä".repeat(32_768) + "x").as_bytes());
        let short = Digest::of("ä".repeat(32_768).as_bytes());
        let files = store.in_files().await.unwrap();
        let named = |digest: &Digest| files.blobs.contains(&(ProjectId::default(), digest.clone()));
        assert_eq!((named(&long), named(&short)), (true, false));
        let blob = async |n| store.task(task_id(n)).await.unwrap().unwrap().task.spec.prompt_blob;
        assert_eq!((blob(1).await, blob(2).await), (None, Some(long)));
    });
}

#[test]
fn an_agent_that_an_earlier_version_knew_gets_what_lets_it_in_now() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kage.db");
        // The newest form that knew no capabilities.
        std::fs::copy(file(17), &path).unwrap();
        let store = Store::open(&path).unwrap();
        let known = store.agents().await.unwrap().remove(0);
        assert_eq!(known.admittance, Admittance::EARLIER);
        let run_only = Admittance {
            by: LetIn::OwnersToken,
            can: Capabilities::RUN,
        };
        for admittance in [
            run_only,
            Admittance {
                can: Capabilities::ALL,
                ..run_only
            },
        ] {
            // Anybody with the token may say that it is this agent.
            let agent = Agent {
                admittance,
                ..known.clone()
            };
            let stored = store.apply(RecordAgent { agent }).await.unwrap();
            assert_eq!(stored.admittance, admittance);
            assert_eq!(store.agents().await.unwrap()[0].admittance, admittance);
        }
        store.close().await;
    });
}

/// The rows of the newest form, read without the store.
fn newest() -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    Connection::open_with_flags(file(FORMS[FORMS.len() - 1]), flags).unwrap()
}

#[test]
fn the_newest_file_has_the_form_of_today() {
    let version: u32 = newest()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(version, KNOWN, "commit a file of the new schema, too");
    assert_eq!(FORMS[FORMS.len() - 1], version);
}

/// Whether everything that is stored is there when it is read and written again; more may be.
fn is_kept(stored: &Value, again: &Value) -> bool {
    match (stored, again) {
        (Value::Object(stored), Value::Object(again)) => stored
            .iter()
            .all(|(key, value)| again.get(key).is_some_and(|again| is_kept(value, again))),
        (Value::Array(stored), Value::Array(again)) => {
            stored.len() == again.len() && stored.iter().zip(again).all(|(stored, again)| is_kept(stored, again))
        }
        (stored, again) => stored == again,
    }
}

/// The documents in a column; each must equal what serde writes today.
fn documents<T: Serialize + DeserializeOwned>(connection: &Connection, column: &str, table: &str) -> Vec<T> {
    let mut statement = connection.prepare(&format!("SELECT {column} FROM {table}")).unwrap();
    let texts = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let values = texts.map(|text| {
        let text = text.unwrap();
        let value: T = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{table} as they are stored cannot be read ({error}): write a migration\n{text}")
        });
        let (stored, again) = (
            serde_json::from_str(&text).unwrap(),
            serde_json::to_value(&value).unwrap(),
        );
        assert!(
            is_kept(&stored, &again),
            "{table} would lose something that is stored: write a migration\n{stored:#}\n{again:#}"
        );
        value
    });
    let values: Vec<T> = values.collect();
    assert!(!values.is_empty(), "there is one of {table}");
    values
}

#[test]
fn what_is_stored_is_what_serde_writes_today() {
    let newest = newest();
    documents::<TaskHead>(&newest, "doc", "tasks");
    documents::<TaskSpec>(&newest, "spec", "specs");
    documents::<JobRow>(&newest, "doc", "jobs");
    documents::<Attempt>(&newest, "doc", "attempts");
    documents::<AttemptNote>(&newest, "note", "attempts");
    documents::<Checkpoint>(&newest, "doc", "checkpoints");
    documents::<CallRow>(&newest, "doc", "calls");
    documents::<Reservation>(&newest, "doc", "reservations");
    let sessions = documents::<Session>(&newest, "doc", "sessions");
    let stands: BTreeSet<_> = sessions.iter().map(|session| session.state.kind().as_str()).collect();
    assert!(stands.len() >= 6, "sessions stand in many places: {stands:?}");
    let events = documents::<Event>(&newest, "event", "events");
    let kinds: BTreeSet<_> = events.iter().filter_map(|event| kind(&event.body)).collect();
    assert_eq!(kinds, BTreeSet::from(KINDS), "there is an event of each kind");
}

const KINDS: [&str; 12] = [
    "phase",
    "activity",
    "usage",
    "retry",
    "files",
    "truncated",
    "warning",
    "result",
    "checkpoint",
    "resumed",
    "claimed or failed",
    "verdict",
];

/// One of [`KINDS`], which the story of the files tells, or `None`: its text is in [`TEXTS`]. An event kind that is
/// added here needs a new form, so that programs of before refuse the file.
const fn kind(body: &EventBody) -> Option<&'static str> {
    Some(match body {
        EventBody::PhaseChanged(_) => "phase",
        EventBody::Activity(_) => "activity",
        EventBody::UsageRecorded { .. } => "usage",
        EventBody::CallRetried { .. } => "retry",
        EventBody::FilesChanged(_) => "files",
        EventBody::OutputTruncated { .. } => "truncated",
        EventBody::Warning(_) => "warning",
        EventBody::ResultCommitted { .. } => "result",
        EventBody::CheckpointTaken(_) => "checkpoint",
        EventBody::Resumed { .. } => "resumed",
        EventBody::Finished(AttemptOutcome::Claimed | AttemptOutcome::Failed(_)) => "claimed or failed",
        EventBody::Finished(AttemptOutcome::Verdict(_)) => "verdict",
        EventBody::MessageTold(_) | EventBody::PermissionAsked { .. } | EventBody::PermissionDecided { .. } => {
            return None;
        }
    })
}

/// Events that the story does not tell, as they are stored.
const TEXTS: [&str; 3] = [
    r#"{"seq":1,"at":7,"body":{"message_told":2}}"#,
    r#"{"seq":2,"at":7,"body":{"permission_asked":{"number":1,"about":"run x","wait":{"secs":600,"nanos":0}}}}"#,
    r#"{"seq":3,"at":7,"body":{"permission_decided":{"number":1,"allowed":false,"by":"by owner"}}}"#,
];

#[test]
fn events_that_the_story_does_not_tell_are_stored_in_one_form() {
    for stored in TEXTS {
        let event: Event = serde_json::from_str(stored).unwrap();
        assert_eq!(kind(&event.body), None);
        assert_eq!(serde_json::to_string(&event).unwrap(), stored);
    }
}
