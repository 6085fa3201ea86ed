use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::*;

struct Fixture {
    outputs: Outputs,
    acks: mpsc::Sender<OutputAck>,
    received: mpsc::Receiver<OutputAck>,
}

const ATTEMPT: AttemptId = AttemptId::from_random(1);
const TASK: TaskId = TaskId::from_random(2);

fn fixture(root: &Path) -> Fixture {
    let (acks, received) = mpsc::channel(64);
    Fixture {
        outputs: Outputs::new(root.to_owned(), Arc::new(Topics::default()), Blocking::Threads),
        acks,
        received,
    }
}

impl Fixture {
    async fn append(&mut self, feed: &Feed, offset: u64, data: &'static [u8]) -> u64 {
        let stream = OutputStream::Stdout;
        feed.append(stream, offset, Bytes::from_static(data), &self.acks)
            .await
            .unwrap();
        self.received.recv().await.unwrap().length.unwrap()
    }
}

#[tokio::test]
async fn appends_by_offset() {
    let dir = tempfile::tempdir().unwrap();
    let mut f = fixture(dir.path());
    let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
    assert_eq!(f.append(&feed, 0, b"hello ").await, 6);
    assert_eq!(f.append(&feed, 0, b"hello ").await, 6, "a repeat counts again");
    assert_eq!(f.append(&feed, 3, b"lo world").await, 11, "an overlap adds its end");
    assert_eq!(f.append(&feed, 20, b"!").await, 11, "a gap adds nothing");
    let read = f.outputs.read(ATTEMPT, OutputStream::Stdout, 6, 100).await.unwrap();
    assert_eq!(&read[..], b"world");
    let none = f.outputs.read(ATTEMPT, OutputStream::Stderr, 0, 100).await.unwrap();
    assert!(none.is_empty());
}

#[tokio::test]
async fn goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = fixture(dir.path());
    let feed = first.outputs.feed(ATTEMPT, TASK).await.unwrap();
    first.append(&feed, 0, b"abc").await;
    drop(feed);
    first.outputs.close().await;
    let mut second = fixture(dir.path());
    assert_eq!(second.outputs.length(ATTEMPT, OutputStream::Stdout).await.unwrap(), 3);
    let feed = second.outputs.feed(ATTEMPT, TASK).await.unwrap();
    assert_eq!(second.append(&feed, 3, b"def").await, 6);
}

#[tokio::test]
async fn a_new_writer_waits_for_the_bytes_of_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut f = fixture(dir.path());
    for round in 0..50_u64 {
        let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
        let data = Bytes::from_static(b"0123456789");
        feed.append(OutputStream::Stdout, round * 10, data, &f.acks)
            .await
            .unwrap();
    }
    let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
    feed.settle().await.unwrap();
    assert_eq!(f.outputs.length(ATTEMPT, OutputStream::Stdout).await.unwrap(), 500);
    f.received.close();
}

#[tokio::test]
async fn an_error_is_told_and_does_not_stick() {
    let dir = tempfile::tempdir().unwrap();
    let mut f = fixture(dir.path());
    let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
    // A file where the folder belongs.
    let folder = dir.path().join(ATTEMPT.to_string());
    std::fs::write(&folder, b"").unwrap();
    feed.append(OutputStream::Stdout, 0, Bytes::from_static(b"x"), &f.acks)
        .await
        .unwrap();
    assert!(f.received.recv().await.unwrap().length.is_err());
    assert_eq!(feed.settle().await, Err(FeedClosed));
    std::fs::remove_file(&folder).unwrap();
    drop(feed);
    let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
    assert_eq!(f.append(&feed, 0, b"x").await, 1);
}

/// How long the disk of these tests takes for a write.
const DISK: Duration = Duration::from_millis(2);

fn slow(root: &Path) -> Fixture {
    let blocking = Blocking::InPlace(Arc::new(|| DISK));
    Fixture {
        outputs: Outputs::new(root.to_owned(), Arc::new(Topics::default()), blocking),
        ..fixture(root)
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_bytes_after_idleness_are_written_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut f = slow(dir.path());
    let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
    for round in 0..3 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        assert_eq!(f.append(&feed, round * 4, b"line").await, round * 4 + 4);
        // The clock only moves while the disk is waited for.
        assert!(start.elapsed() < 2 * DISK, "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_during_a_write_is_one_next_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut f = slow(dir.path());
    let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
    let lines: Vec<Bytes> = (0..=1000).map(|n| Bytes::from(format!("line {n}\n"))).collect();
    let mut offset = 0;
    for line in &lines {
        let stream = OutputStream::Stdout;
        feed.append(stream, offset, line.clone(), &f.acks).await.unwrap();
        if offset == 0 {
            // The first write began.
            tokio::task::yield_now().await;
        }
        offset += line.len() as u64;
    }
    let first = f.received.recv().await.unwrap().length.unwrap();
    let second = f.received.recv().await.unwrap().length.unwrap();
    assert_eq!((first, second), (lines[0].len() as u64, offset));
    drop(feed);
    f.outputs.close().await;
    assert!(f.received.try_recv().is_err(), "a third write");
    let written = std::fs::read(dir.path().join(ATTEMPT.to_string()).join("stdout")).unwrap();
    assert!(written == lines.concat());
}

#[tokio::test]
async fn what_gathered_for_a_disk_that_fails_is_told_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut f = fixture(dir.path());
    let feed = f.outputs.feed(ATTEMPT, TASK).await.unwrap();
    std::fs::write(dir.path().join(ATTEMPT.to_string()), b"").unwrap();
    let (acks, mut received) = mpsc::channel(4);
    let piece = Bytes::from_static(b"x");
    feed.append(OutputStream::Stdout, 0, piece.clone(), &f.acks)
        .await
        .unwrap();
    // Another connection of the same agent must not wait for an answer for ever. When the writer is
    // already gone it learns that at once.
    if feed.append(OutputStream::Stdout, 0, piece, &acks).await.is_ok() {
        assert!(received.recv().await.unwrap().length.is_err());
    }
    assert!(f.received.recv().await.unwrap().length.is_err());
}
