use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use kage_core::event::{DiffStat, OutputStream};
use kage_core::id::AttemptToken;
use kage_core::time::Timestamp;
use kage_proto::convert::agent::AttemptKey;

use super::*;
use crate::adapters::port::Reporter;
use crate::delivery::outbox::{self, OutboxChange, OutboxWriter};
use crate::delivery::output;

/// How long the disk of these tests takes for a write.
const DISK: Duration = Duration::from_millis(10);
const ATTEMPT: AttemptId = AttemptId::from_random(1);

/// A recorder at work on a slow disk, on a clock that stands still meanwhile.
struct Fixture {
    folder: tempfile::TempDir,
    reporter: Option<Reporter>,
    changes: mpsc::Receiver<Vec<OutboxChange>>,
    writes: Arc<AtomicUsize>,
    recorder: tokio::task::JoinHandle<Result<(), OutboxClosed>>,
    _writer: OutboxWriter,
}

impl Fixture {
    async fn new(secrets: &[&str], output_cap: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output_dir = folder.path().join("output");
        let database = folder.path().join("outbox.db");
        let none = Blocking::InPlace(Arc::new(|| Duration::ZERO));
        let opened = outbox::open(&database, &output_dir, 1 << 20, 64 << 20, &none).unwrap();
        let token = AttemptToken::from_random(1);
        opened
            .outbox
            .open_attempt(AttemptKey {
                attempt: ATTEMPT,
                token,
            })
            .await
            .unwrap();
        let writes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&writes);
        let secrets: Vec<String> = secrets.iter().map(|&secret| secret.to_owned()).collect();
        let recording = Recording {
            attempt: ATTEMPT,
            outbox: opened.outbox,
            clock: Arc::new(|| Timestamp::from_millis(0)),
            blocking: Blocking::InPlace(Arc::new(move || {
                counted.fetch_add(1, Ordering::Relaxed);
                DISK
            })),
            masker: Masker::new(&secrets),
            output_dir,
            output_cap,
        };
        let (reporter, reports) = Reporter::channel(16);
        let recorder = tokio::spawn(recording.run(reports, watch::channel(Instant::now()).0));
        Self {
            folder,
            reporter: Some(reporter),
            changes: opened.changes,
            writes,
            recorder,
            _writer: opened.writer,
        }
    }

    async fn print(&self, stream: OutputStream, text: &str) {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        self.reporter.as_ref().unwrap().output(stream, bytes).await.unwrap();
    }

    /// The next length that delivery learns of, and its stream.
    async fn grew(&mut self) -> (OutputStream, u64) {
        loop {
            let changes = self.changes.recv().await.unwrap();
            for change in changes {
                if let OutboxChange::Grew { stream, length, .. } = change {
                    return (stream, length);
                }
            }
        }
    }

    /// Ends the streams; returns the changes that delivery received since.
    async fn finish(&mut self) -> Vec<OutboxChange> {
        self.reporter = None;
        (&mut self.recorder).await.unwrap().unwrap();
        let mut all = Vec::new();
        while let Ok(changes) = self.changes.try_recv() {
            all.extend(changes);
        }
        all
    }

    fn file(&self, stream: OutputStream) -> String {
        let path = output::path(&self.folder.path().join("output"), ATTEMPT, stream);
        String::from_utf8(std::fs::read(path).unwrap()).unwrap()
    }

    fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }
}

use OutputStream::{Stderr, Stdout, Transcript};

#[tokio::test(start_paused = true)]
async fn a_line_after_idleness_is_written_without_waiting() {
    let mut fixture = Fixture::new(&[], 1 << 20).await;
    for round in 1..=3 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        fixture.print(Stdout, "line\n").await;
        assert_eq!(fixture.grew().await, (Stdout, 5 * round));
        // The clock only moves while the disk is waited for.
        assert!(start.elapsed() < 2 * DISK, "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_during_a_write_is_one_next_write() {
    let mut fixture = Fixture::new(&[], 1 << 20).await;
    let lines: Vec<String> = (0..=1000).map(|n| format!("line {n}\n")).collect();
    fixture.print(Stdout, &lines[0]).await;
    while fixture.writes() == 0 {
        tokio::task::yield_now().await;
    }
    for line in &lines[1..] {
        fixture.print(Stdout, line).await;
    }
    let whole = lines.concat();
    assert_eq!(fixture.grew().await, (Stdout, lines[0].len() as u64));
    assert_eq!(fixture.grew().await, (Stdout, whole.len() as u64));
    assert_eq!(fixture.finish().await, []);
    assert_eq!((fixture.writes(), fixture.file(Stdout)), (2, whole));
}

#[tokio::test(start_paused = true)]
async fn streams_keep_their_bytes_and_their_order() {
    let mut fixture = Fixture::new(&[], 8 << 20).await;
    let mut expected = [const { String::new() }; 3];
    // More than may gather during a write, of lines and of pieces larger than a batch.
    for n in 0..3000 {
        let (at, stream) = [(0, Stdout), (1, Stderr), (2, Transcript)][n % 3];
        let text = if n % 500 == 0 {
            "0123456789".repeat(10_000)
        } else {
            format!("{n} {}\n", "x".repeat(n % 97))
        };
        fixture.print(stream, &text).await;
        expected[at].push_str(&text);
    }
    fixture.finish().await;
    for (stream, expected) in [Stdout, Stderr, Transcript].into_iter().zip(expected) {
        assert!(fixture.file(stream) == expected, "{stream:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_gathers_during_a_write_than_may() {
    let fixture = Fixture::new(&[], 64 << 20).await;
    let piece = "x".repeat(64 << 10);
    let mut pieces = 0;
    // The disk has not ended its first write when the next piece is refused.
    let start = Instant::now();
    while start.elapsed() < DISK / 2 {
        let print = fixture.print(Stdout, &piece);
        if tokio::time::timeout(DISK / 2, print).await.is_ok() {
            pieces += 1;
        }
    }
    assert!((4..64).contains(&pieces), "{pieces}");
}

#[tokio::test(start_paused = true)]
async fn a_secret_over_the_border_of_two_writes_is_masked() {
    let mut fixture = Fixture::new(&["secret-key"], 1 << 20).await;
    fixture.print(Stdout, "a secret").await;
    assert_eq!(fixture.grew().await, (Stdout, 2));
    fixture.print(Stdout, "-ke").await;
    tokio::time::sleep(10 * HOLD).await;
    fixture.print(Stdout, "y!\n").await;
    assert_eq!(fixture.grew().await, (Stdout, 7));
    fixture.finish().await;
    assert_eq!(fixture.file(Stdout), "a ***!\n");
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_ends_like_a_secret_begins_is_shown_after_a_while() {
    let mut fixture = Fixture::new(&["secret-key"], 1 << 20).await;
    fixture.print(Stderr, "Whose?").await;
    fixture.print(Stdout, "Name? s").await;
    assert_eq!(fixture.grew().await, (Stdout, 6));
    assert_eq!(fixture.grew().await, (Stderr, 6));
    assert_eq!(fixture.grew().await, (Stdout, 7));
    fixture.print(Stdout, "ecret-key, s").await;
    assert_eq!(fixture.grew().await, (Stdout, 12));
    fixture.finish().await;
    assert_eq!(fixture.file(Stdout), "Name? s***, s");
}

#[tokio::test(start_paused = true)]
async fn the_cap_is_told_after_the_bytes_before_it() {
    let mut fixture = Fixture::new(&[], 12).await;
    for _ in 0..5 {
        fixture.print(Stdout, "12345").await;
    }
    let changes = fixture.finish().await;
    let told = changes.into_iter().filter_map(|change| match change {
        OutboxChange::Grew { length, .. } => Some(length),
        OutboxChange::Committed(_, stored) => {
            let truncated = EventBody::try_from(stored.event.body.unwrap()).unwrap();
            assert_eq!(truncated, EventBody::OutputTruncated { stream: Stdout, at: 12 });
            Some(u64::MAX)
        }
        OutboxChange::Opened(_) => None,
    });
    let told: Vec<u64> = told.collect();
    assert_eq!(told[told.len() - 2..], [12, u64::MAX], "{told:?}");
    assert_eq!(fixture.file(Stdout), "123451234512");
}

#[test]
fn a_list_of_paths_that_is_too_long_ends_early_and_the_count_says_so() {
    let paths: Vec<String> = (0..100).map(|n| format!("{n:03}{}", "x".repeat(1021))).collect();
    let mut result = ResultCommit {
        commit: "a".repeat(40).parse().unwrap(),
        tree: None,
        diff: DiffStat {
            files: 100,
            added: 0,
            removed: 0,
        },
        deleted: vec![paths[0].clone(), paths[99].clone()],
        large: Vec::new(),
        left_out: Vec::new(),
        paths,
    };
    listed(&mut result);
    assert_eq!((result.paths.len(), result.diff.files), (64, 100));
    assert_eq!(result.deleted, result.paths[..1]);
    let all = result.clone();
    listed(&mut result);
    assert_eq!(result, all);
}

#[tokio::test]
async fn space_comes_back_when_a_recorder_is_dropped_that_cannot_write() {
    const SPACE: u32 = 1000;
    let folder = tempfile::tempdir().unwrap();
    // A file, where the folder of the output should be.
    let output_dir = folder.path().join("output");
    let database = folder.path().join("outbox.db");
    let blocking = Blocking::default();
    let mut opened = outbox::open(&database, &output_dir, 1 << 20, SPACE.into(), &blocking).unwrap();
    std::fs::remove_dir_all(&output_dir).ok();
    std::fs::write(&output_dir, "").unwrap();
    let attempt = AttemptId::from_random(1);
    let key = AttemptKey {
        attempt,
        token: AttemptToken::from_random(1),
    };
    opened.outbox.open_attempt(key).await.unwrap();
    let recording = Recording {
        attempt,
        outbox: opened.outbox.clone(),
        clock: Arc::new(|| Timestamp::from_millis(0)),
        blocking,
        masker: Masker::new(&[]),
        output_dir,
        output_cap: 1 << 20,
    };
    let (reporter, reports) = Reporter::channel(1);
    let output = Bytes::from(vec![b'x'; SPACE as usize]);
    reporter.output(OutputStream::Stdout, output).await.unwrap();
    let warned = async {
        loop {
            let changes = opened.changes.recv().await.unwrap();
            if changes
                .iter()
                .any(|change| matches!(change, OutboxChange::Committed(..)))
            {
                return;
            }
        }
    };
    tokio::select! {
        ended = recording.run(reports, watch::channel(Instant::now()).0) => panic!("{ended:?}"),
        () = warned => {}
    }
    assert!(opened.outbox.output_space().try_take(SPACE));
}

#[test]
fn names_are_cut_between_characters() {
    assert_eq!(cut("ää".to_owned(), 3), "ä…");
    assert_eq!(cut("ää".to_owned(), 4), "ää");
}
