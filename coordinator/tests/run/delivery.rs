//! Events and output from an agent to watchers.

use std::collections::BTreeMap;

use kage_core::event::{AttemptOutcome, EventBody};
use kage_proto::v1;
use kage_proto::v1::append_response::Result as Answer;
use kage_proto::v1::watch_task_response::Item;
use tonic::Streaming;

use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};

/// Everything a watcher was sent, in order.
#[derive(Debug, Default, Clone, PartialEq)]
struct Seen {
    states: Vec<v1::TaskState>,
    /// Session and number of each event.
    events: Vec<(String, u64)>,
    output: BTreeMap<String, Vec<u8>>,
    /// The cursor after each item, with the events and bytes that came until then.
    cursors: Vec<(String, usize, usize)>,
}

impl Seen {
    fn take(&mut self, response: v1::WatchTaskResponse) {
        match response.item.unwrap() {
            Item::Task(task) => self.states.push(task.state()),
            Item::Event(event) => self.events.push((event.session, event.event.unwrap().seq)),
            Item::Output(chunk) => {
                let output = self.output.entry(chunk.session).or_default();
                assert_eq!(chunk.offset, output.len() as u64, "no byte is repeated or skipped");
                output.extend_from_slice(&chunk.data);
            }
        }
        self.cursors.push((response.cursor, self.events.len(), self.bytes()));
    }

    fn bytes(&self) -> usize {
        self.output.values().map(Vec::len).sum()
    }

    async fn all(stream: &mut Streaming<v1::WatchTaskResponse>) -> Self {
        let mut seen = Self::default();
        while let Some(response) = soon("a watched item", stream.message()).await.unwrap() {
            seen.take(response);
        }
        seen
    }
}

fn note(text: &str) -> EventBody {
    EventBody::Activity(text.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_placed_worked_on_and_watched_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one", "two"])).await;
    assert_eq!(task.sessions[0].waiting, "no agent is connected");
    let mut watch = cluster.watch(&task.id, "", true).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 2)).await;
    let granted = [agent.take().await, agent.take().await];
    for (n, granted) in granted.iter().enumerate() {
        let key = &granted.key;
        let text = vec![b'a' + n as u8; 100_000];
        agent.send_events(key, 1, vec![note("begin"), note("go on")]).await;
        agent.send_output(key, 0, &text[..60_000]).await;
        agent.send_output(key, 60_000, &text[60_000..]).await;
        agent.send_output(key, 60_000, &text[60_000..]).await;
        agent.finish(key, 3, AttemptOutcome::Claimed).await;
    }
    let seen = Seen::all(&mut watch).await;
    assert_eq!(seen.states.first(), Some(&v1::TaskState::Running));
    assert_eq!(seen.states.last(), Some(&v1::TaskState::Succeeded));
    for (name, byte) in [
        ("one", granted_byte(&granted, "one")),
        ("two", granted_byte(&granted, "two")),
    ] {
        let events: Vec<_> = seen
            .events
            .iter()
            .filter(|(s, _)| s == name)
            .map(|(_, seq)| *seq)
            .collect();
        assert_eq!(events, [1, 2, 3]);
        assert_eq!(seen.output[name], vec![byte; 100_000]);
    }
    // From every position of the watcher, the rest is what it had not seen.
    for (cursor, events, bytes) in &seen.cursors {
        let mut stream = cluster.watch(&task.id, cursor, false).await;
        let (mut more_events, mut more_bytes) = (0, 0);
        while let Some(response) = soon("a resumed item", stream.message()).await.unwrap() {
            match response.item.unwrap() {
                Item::Task(task) => assert_eq!(task.state(), v1::TaskState::Succeeded),
                Item::Event(_) => more_events += 1,
                Item::Output(chunk) => more_bytes += chunk.data.len(),
            }
        }
        assert_eq!((events + more_events, bytes + more_bytes), (6, 200_000));
    }
    cluster.stop().await;
}

fn granted_byte(granted: &[crate::cluster::Granted], name: &str) -> u8 {
    let of = |g: &crate::cluster::Granted| match &g.work.kind {
        kage_proto::convert::agent::WorkKind::Session(work) => work.name.to_string(),
        kage_proto::convert::agent::WorkKind::Verify(_) => String::new(),
    };
    b'a' + granted.iter().position(|g| of(g) == name).unwrap() as u8
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = Cluster::start(dir.path()).await;
    let task = first.create(spec(&["one"])).await;
    let mut agent = FakeAgent::connect(&first, hello(1, 1)).await;
    let granted = agent.take().await;
    agent.send_events(&granted.key, 1, vec![note("begin")]).await;
    agent.acked(1).await;
    agent.send_output(&granted.key, 0, b"hello ").await;
    let Answer::AckedOutput(ack) = agent.answer().await else {
        panic!("output is acknowledged");
    };
    assert_eq!(ack.offset, 6);
    let mut watch = first.watch(&task.id, "", false).await;
    let before = Seen::all(&mut watch).await;
    assert_eq!(before.output["one"], b"hello ");
    first.stop().await;

    let second = Cluster::start(dir.path()).await;
    // The same start of the agent reconnects: its attempt continues.
    let mut hello = agent.hello.clone();
    hello.running = vec![granted.key.clone()];
    let mut agent = FakeAgent::connect(&second, hello).await;
    assert!(agent.welcome.stop.is_empty());
    agent.send_output(&granted.key, 0, b"hello world").await;
    agent
        .send_events(&granted.key, 1, vec![note("begin"), note("end")])
        .await;
    agent.acked(2).await;
    agent.finish(&granted.key, 3, AttemptOutcome::Claimed).await;
    let mut watch = second.watch(&task.id, &before.cursors.last().unwrap().0, true).await;
    let mut rest = Seen::default();
    rest.output.insert("one".into(), b"hello ".to_vec());
    while let Some(response) = soon("an item", watch.message()).await.unwrap() {
        rest.take(response);
    }
    assert_eq!(rest.output["one"], b"hello world");
    assert_eq!(rest.events, [("one".to_owned(), 2), ("one".to_owned(), 3)]);
    assert_eq!(rest.states.last(), Some(&v1::TaskState::Succeeded));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_without_authority_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut first = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let stale = first.take().await;
    first.send_output(&stale.key, 0, b"from the first").await;
    first.answer().await;
    // A new start of the same agent ends the attempts of the older one.
    let mut again = hello(1, 1);
    again.boot = kage_core::id::BootId::from_random(99);
    let mut second = FakeAgent::connect(&cluster, again).await;
    let fresh = second.take().await;
    assert_eq!(fresh.work.attempt, 2);
    first.send_output(&stale.key, 14, b", too late").await;
    assert_eq!(first.rejected().await, "the attempt has ended");
    first.send_events(&stale.key, 1, vec![note("too late")]).await;
    first.rejected().await;
    let mut forged = fresh.key.clone();
    forged.token = stale.key.token.clone();
    second.send_output(&forged, 0, b"forged").await;
    assert_eq!(second.rejected().await, "the token is not that of the attempt");
    second.send_events(&fresh.key, 2, vec![note("a gap before it")]).await;
    loop {
        if let Answer::AckedSeq(seq) = second.answer().await {
            assert_eq!(seq, 0, "the sender starts again after the last stored event");
            break;
        }
    }
    second.finish(&fresh.key, 1, AttemptOutcome::Claimed).await;
    let task = cluster.get(&task.id).await;
    assert_eq!((task.state(), task.sessions[0].attempts), (v1::TaskState::Succeeded, 2));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let mut slow = cluster.watch(&task.id, "", true).await;
    let block = vec![7_u8; 64 << 10];
    let blocks = 200_u64;
    for n in 0..blocks {
        agent.send_output(&granted.key, n * block.len() as u64, &block).await;
        while !matches!(agent.answer().await, Answer::AckedOutput(ack) if ack.offset == (n + 1) * block.len() as u64) {}
    }
    agent.finish(&granted.key, 1, AttemptOutcome::Claimed).await;
    let total = usize::try_from(blocks).unwrap() * block.len();
    let mut quick = cluster.watch(&task.id, "", true).await;
    assert_eq!(Seen::all(&mut quick).await.output["one"].len(), total);
    assert_eq!(Seen::all(&mut slow).await.output["one"].len(), total);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_end_is_taken_before_the_output_that_came_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let task = cluster.create(spec(&["one"])).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    // A file where the folder of its output belongs.
    let folder = dir.path().join("output").join(granted.key.attempt.to_string());
    std::fs::write(&folder, b"").unwrap();
    agent.send_output(&granted.key, 0, b"last words").await;
    let end = vec![EventBody::Finished(AttemptOutcome::Claimed)];
    agent.send_events(&granted.key, 1, end).await;
    assert!(agent.delivery_end().await.is_some(), "what was lost is to come again");
    assert_eq!(cluster.get(&task.id).await.state(), v1::TaskState::Running);

    std::fs::remove_file(&folder).unwrap();
    let mut hello = agent.hello.clone();
    hello.running = vec![granted.key.clone()];
    let mut agent = FakeAgent::connect(&cluster, hello).await;
    agent.send_output(&granted.key, 0, b"last words").await;
    agent.finish(&granted.key, 1, AttemptOutcome::Claimed).await;
    let seen = Seen::all(&mut cluster.watch(&task.id, "", true).await).await;
    assert_eq!(seen.output["one"], b"last words");
    cluster.stop().await;
}
