//! Many tasks on one stream: everything once, then what changes, and only that after a break.

use std::collections::BTreeMap;

use kage_core::event::AttemptOutcome;
use kage_proto::client::Client;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::watch_tasks_response::Item;
use tonic::Streaming;

use crate::cluster::{Cluster, FakeAgent, hello, soon, spec};

/// A client that keeps what it is told.
struct Watcher {
    stream: Streaming<v1::WatchTasksResponse>,
    cursor: String,
    tasks: BTreeMap<String, v1::Task>,
    /// Tasks that were sent, in order; "-ID" is one that is gone, "reset" the word to forget all.
    told: Vec<String>,
    agents: BTreeMap<String, v1::Agent>,
    holds: BTreeMap<String, v1::Hold>,
    caught_up: bool,
}

impl Watcher {
    async fn begin(client: &Client, request: v1::WatchTasksRequest) -> Result<Self, ApiError> {
        let cursor = request.cursor.clone();
        Ok(Self {
            stream: client.tasks().watch_tasks(request).await?.into_inner(),
            cursor,
            tasks: BTreeMap::new(),
            told: Vec::new(),
            agents: BTreeMap::new(),
            holds: BTreeMap::new(),
            caught_up: false,
        })
    }

    async fn next(&mut self) {
        let response = soon("an item", self.stream.message())
            .await
            .unwrap()
            .expect("it goes on");
        self.cursor = response.cursor;
        match response.item {
            Some(Item::Task(task)) => {
                assert_eq!(task.view(), v1::TaskView::Basic);
                self.told.push(task.id.clone());
                self.tasks.insert(task.id.clone(), *task);
            }
            Some(Item::Gone(gone)) => {
                self.told.push(format!("-{}", gone.task_id));
                self.tasks.remove(&gone.task_id);
            }
            Some(Item::Reset(_)) => {
                self.told.push("reset".to_owned());
                self.tasks.clear();
            }
            Some(Item::CaughtUp(_)) => self.caught_up = true,
            Some(Item::Agent(agent)) => drop(self.agents.insert(agent.name.clone(), *agent)),
            Some(Item::Hold(hold)) => drop(match hold.waiting.as_str() {
                "" => self.holds.remove(&hold.session_id),
                _ => self.holds.insert(hold.session_id.clone(), hold),
            }),
            None => {}
        }
    }

    async fn until(&mut self, is: impl Fn(&Self) -> bool) {
        while !is(self) {
            self.next().await;
        }
    }

    async fn caught_up(client: &Client, request: v1::WatchTasksRequest) -> Self {
        let mut watcher = Self::begin(client, request).await.unwrap();
        watcher.until(|watcher| watcher.caught_up).await;
        watcher
    }

    fn ids(&self) -> Vec<&str> {
        self.tasks.keys().map(String::as_str).collect()
    }
}

async fn cancel(client: &Client, task_id: &str) {
    let cancel = v1::CancelTaskRequest {
        task_id: task_id.to_owned(),
        ..Default::default()
    };
    client.tasks().cancel_task(cancel).await.unwrap();
}

async fn remove(client: &Client, task_id: &str) {
    let remove = v1::RemoveTaskRequest {
        task_id: task_id.to_owned(),
        ..Default::default()
    };
    client.tasks().remove_task(remove).await.unwrap();
}

fn sorted<'a>(ids: &[&'a str]) -> Vec<&'a str> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_come_as_they_are_then_as_they_change_and_go_on_after_a_break() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let (client, running) = (&cluster.client, v1::TaskState::Running);
    let open = |cursor: &str| v1::WatchTasksRequest {
        filter: Some(v1::TaskFilter {
            states: vec![running.into()],
            ..Default::default()
        }),
        cursor: cursor.to_owned(),
        ..Default::default()
    };
    let [first, second, over] = [
        cluster.create(spec(&["one"])).await.id,
        cluster.create(spec(&["one"])).await.id,
        cluster.create(spec(&["one"])).await.id,
    ];
    cancel(client, &over).await;
    let mut watcher = Watcher::caught_up(client, open("")).await;
    assert_eq!(watcher.told, ["reset", &second, &first], "as a list, newest first");
    assert!(!watcher.cursor.is_empty());

    let third = cluster.create(spec(&["one"])).await.id;
    watcher.until(|watcher| watcher.told.contains(&third)).await;
    cancel(client, &first).await;
    let gone = format!("-{first}");
    watcher.until(|watcher| watcher.told.contains(&gone)).await;
    assert_eq!(watcher.ids(), sorted(&[&second, &third]));
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    watcher
        .until(|watcher| {
            let task = watcher.tasks.get(&granted.work.task.to_string());
            task.is_some_and(|task| task.sessions[0].state() == v1::SessionState::Running)
        })
        .await;

    // A break, in which one ends, one comes, and one is left alone.
    let cursor = watcher.cursor.clone();
    drop(watcher);
    agent.finish(&granted.key, 1, AttemptOutcome::Claimed).await;
    let (ended, left) = if granted.work.task.to_string() == second {
        (&second, &third)
    } else {
        (&third, &second)
    };
    let fourth = cluster.create(spec(&["two"])).await.id;
    remove(client, &over).await;
    let mut watcher = Watcher::caught_up(client, open(&cursor)).await;
    assert!(watcher.told.contains(&format!("-{ended}")) && watcher.told.contains(&fourth));
    assert!(!watcher.told.iter().any(|told| told == "reset"), "{:?}", watcher.told);
    // What did not change is known all the same: its end is told.
    cancel(client, left).await;
    let gone = format!("-{left}");
    watcher.until(|watcher| watcher.told.contains(&gone)).await;

    // Nothing more: then nothing is sent again.
    let again = Watcher::caught_up(client, open(&watcher.cursor)).await;
    assert_eq!(again.told, Vec::<String>::new());

    // A cursor is good for its filter; anything else is none.
    let cursor = watcher.cursor.clone();
    for wrong in [
        v1::WatchTasksRequest {
            cursor: cursor.clone(),
            ..Default::default()
        },
        open("nonsense"),
    ] {
        let refused = Watcher::begin(client, wrong).await.err().expect("it is refused");
        assert!(refused.to_string().starts_with("cursor: "), "{refused}");
    }
    drop((watcher, again, agent));

    // Another run of the coordinator knows nothing of the positions of this one.
    cluster.stop().await;
    let cluster = Cluster::start(dir.path()).await;
    let watcher = Watcher::caught_up(&cluster.client, open(&cursor)).await;
    assert_eq!(watcher.told, ["reset", fourth.as_str()]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_and_what_waits_come_on_the_same_stream() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let client = &cluster.client;
    let task = cluster.create(spec(&["one", "two"])).await;
    let request = v1::WatchTasksRequest {
        agents: true,
        holds: true,
        ..Default::default()
    };
    let mut watcher = Watcher::caught_up(client, request).await;
    watcher.until(|watcher| watcher.holds.len() == 2).await;
    let hold = &watcher.holds[&task.sessions[0].id];
    assert_eq!(
        (&hold.task_id, hold.session.as_str(), hold.until),
        (&task.id, "one", None)
    );
    assert_eq!(hold.waiting, "no agent is connected");

    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let is = |watcher: &Watcher, state: v1::AgentState, busy: u32| {
        let agent = watcher.agents.get("fake-1");
        agent.is_some_and(|agent| (agent.state(), agent.busy) == (state, busy))
    };
    let granted = agent.take().await;
    let connected = v1::AgentState::Connected;
    watcher
        .until(|watcher| is(watcher, connected, 1) && watcher.holds.len() == 1)
        .await;
    assert_eq!(granted.work.attempt, 1);
    cancel(client, &task.id).await;
    watcher.until(|watcher| watcher.holds.is_empty()).await;
    drop(agent);
    let gone = v1::AgentState::Disconnected;
    watcher.until(|watcher| watcher.agents["fake-1"].state() == gone).await;
    cluster.stop().await;
}
