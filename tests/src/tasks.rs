//! Tasks for stories: described in a few words, created, watched to their end.

use kage_proto::client::Client;
use kage_proto::convert::time::span;
use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;
use tonic::Streaming;

use crate::books;
use crate::cluster::Cluster;
use crate::repo::Repo;
use crate::wait::{DEADLINE, poll};

/// The name of the sample repository on the coordinator.
pub const REPOSITORY: &str = "sample";

/// Describes a task without a repository, a context or a verify command.
#[must_use]
pub fn task(prompt: &str) -> v1::TaskSpec {
    let limit = Some(span(DEADLINE));
    v1::TaskSpec {
        project: "default".to_owned(),
        prompt: prompt.to_owned(),
        policy: Some(v1::Policy {
            verify: Some(v1::VerifyPolicy {
                timeout: limit,
                ..v1::VerifyPolicy::default()
            }),
            timeout: limit,
            idle_timeout: limit,
            max_attempts: 1,
            ..v1::Policy::default()
        }),
        ..v1::TaskSpec::default()
    }
}

pub trait Describe: Sized {
    /// Adds a session, named like its model or, without one, like its adapter.
    #[must_use]
    fn session(self, name: &str, adapter: &str, model: &str) -> Self;

    /// Works on the current commit of a repository, which must have been pushed.
    #[must_use]
    fn on(self, repo: &Repo) -> Self;

    #[must_use]
    fn verified_by(self, command: &str) -> Self;

    #[must_use]
    fn policy(self, change: impl FnOnce(&mut v1::Policy)) -> Self;
}

impl Describe for v1::TaskSpec {
    fn session(mut self, name: &str, adapter: &str, model: &str) -> Self {
        self.assignments.push(v1::Assignment {
            name: name.to_owned(),
            adapter: adapter.to_owned(),
            model: model.to_owned(),
            ..v1::Assignment::default()
        });
        self
    }

    fn on(mut self, repo: &Repo) -> Self {
        self.repository = Some(v1::Repository {
            name: REPOSITORY.to_owned(),
            base_commit: repo.head(),
            ..v1::Repository::default()
        });
        self
    }

    fn verified_by(self, command: &str) -> Self {
        self.policy(|policy| {
            policy.verify.get_or_insert_default().verify = command.to_owned();
        })
    }

    fn policy(mut self, change: impl FnOnce(&mut v1::Policy)) -> Self {
        change(self.policy.get_or_insert_default());
        self
    }
}

impl Cluster {
    /// The configuration with which git talks to the coordinator.
    #[must_use]
    pub fn git_configuration(&self) -> Vec<(String, String)> {
        vec![(
            "http.extraHeader".to_owned(),
            format!("authorization: Bearer {}", self.token()),
        )]
    }

    /// The URL of the sample repository for git.
    #[must_use]
    pub fn git_url(&self) -> String {
        format!("{}/git/default/{REPOSITORY}", self.url())
    }

    /// A sample repository whose commit is on the coordinator as a base for tasks.
    #[must_use]
    pub fn sample(&self) -> Repo {
        let repo = Repo::sample(&self.repository_dir(REPOSITORY));
        self.push_base(&repo);
        repo
    }

    /// Pushes the current commit as a base for tasks.
    pub fn push_base(&self, repo: &Repo) {
        let head = repo.head();
        let configuration = self.git_configuration();
        let configuration: Vec<(&str, &str)> = configuration.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let refspec = format!("{head}:refs/kage/bases/{head}");
        repo.git_with(&["push", "--quiet", &self.git_url(), &refspec], &configuration);
    }

    /// Fetches a session's result into a repository and returns its commit.
    pub fn fetch_result(&self, repo: &Repo, session: &v1::Session) -> String {
        let configuration = self.git_configuration();
        let configuration: Vec<(&str, &str)> = configuration.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let refspec = format!("refs/kage/results/{}", session.id);
        repo.git_with(&["fetch", "--quiet", &self.git_url(), &refspec], &configuration);
        repo.git(&["rev-parse", "FETCH_HEAD"]).trim().to_owned()
    }

    /// Creates a task and returns its id.
    pub async fn create(&self, spec: v1::TaskSpec) -> String {
        create(&self.client(), spec).await
    }

    /// Watches a task from the beginning until it ends.
    pub async fn watch(&self, task: &str, output: &[v1::OutputStream]) -> Streaming<v1::WatchTaskResponse> {
        let request = v1::WatchTaskRequest {
            task_id: task.to_owned(),
            output: output.iter().map(|stream| i32::from(*stream)).collect(),
            follow: true,
            ..v1::WatchTaskRequest::default()
        };
        let response = self.client().tasks().watch_task(request).await;
        response.expect("a task can be watched").into_inner()
    }

    /// Waits until a task has ended. What its sessions cost is then what the ledger says.
    pub async fn ended(&self, task: &str) -> v1::Task {
        let ended = self
            .until(task, "has ended", |task| task.state() != v1::TaskState::Running)
            .await;
        books::agree(&self.client(), task).await;
        ended
    }

    /// Waits until a task is as wanted; the panic at the deadline shows its state.
    pub async fn until(&self, task: &str, what: &str, wanted: impl Fn(&v1::Task) -> bool) -> v1::Task {
        let client = self.client();
        let mut last = None;
        let waited = poll(async || {
            let request = v1::GetTaskRequest {
                task_id: task.to_owned(),
                view: v1::TaskView::Full.into(),
            };
            let now = client.tasks().get_task(request).await.ok()?.into_inner().task?;
            last = Some(now.clone());
            wanted(&now).then_some(now)
        })
        .await;
        waited.unwrap_or_else(|| panic!("task {task} never {what}: {last:#?}"))
    }

    pub async fn report(&self, task: &str) -> v1::Report {
        let request = v1::GetReportRequest {
            task_id: task.to_owned(),
        };
        let response = self.client().tasks().get_report(request).await;
        let response = response.expect("a task has a report").into_inner();
        let report = response.report.expect("a response has a report");
        assert!(!report.provisional, "the report of a task that has ended is final");
        report
    }
}

/// Creates a task and returns its id.
pub async fn create(client: &Client, spec: v1::TaskSpec) -> String {
    let request = v1::CreateTaskRequest {
        request_id: format!("{:032x}", rand::random::<u128>()),
        spec: Some(spec),
        // Tests state that a task waits, even before an agent is connected.
        wait_for_agent: true,
        origin: None,
    };
    let response = client.tasks().create_task(request).await;
    let response = response.unwrap_or_else(|status| panic!("the task is refused: {status:?}"));
    response.into_inner().task.expect("a response has a task").id
}

/// Everything that a watcher saw of a task.
#[derive(Debug, Default)]
pub struct Seen {
    /// In the order in which they came.
    pub events: Vec<v1::SessionEvent>,
    /// Output by session, job and stream, joined.
    pub output: Vec<(String, v1::JobKind, i32, Vec<u8>)>,
    /// The last state.
    pub task: Option<v1::Task>,
    /// The cursor from which a watch resumes.
    pub cursor: String,
}

impl Seen {
    /// Adds a response. Panics when output does not continue where it stopped: a gap or a repeat.
    pub fn add(&mut self, response: v1::WatchTaskResponse) {
        self.cursor = response.cursor;
        match response.item {
            Some(Item::Task(task)) => self.task = Some(*task),
            Some(Item::Event(event)) => self.events.push(*event),
            Some(Item::Output(chunk)) => {
                let key = |entry: &&mut (String, v1::JobKind, i32, Vec<u8>)| {
                    entry.0 == chunk.session && entry.1 == chunk.job() && entry.2 == chunk.stream
                };
                let entry = match self.output.iter_mut().find(key) {
                    Some(entry) => entry,
                    None => {
                        self.output
                            .push((chunk.session.clone(), chunk.job(), chunk.stream, Vec::new()));
                        self.output.last_mut().expect("it was just pushed")
                    }
                };
                assert_eq!(entry.3.len() as u64, chunk.offset, "output without a gap or repeat");
                entry.3.extend_from_slice(&chunk.data);
            }
            None => {}
        }
    }

    /// The output of a session's adapter.
    #[must_use]
    pub fn stdout(&self, session: &str) -> &[u8] {
        self.output_of(session, v1::JobKind::Session, v1::OutputStream::Stdout)
    }

    #[must_use]
    pub fn output_of(&self, session: &str, job: v1::JobKind, stream: v1::OutputStream) -> &[u8] {
        self.output
            .iter()
            .find(|(name, of, kind, _)| name == session && *of == job && *kind == i32::from(stream))
            .map_or(&[], |(.., bytes)| bytes)
    }
}

/// Reads a stream until the coordinator ends it. Panics when it breaks, or does not end in time.
pub async fn read_all(mut stream: Streaming<v1::WatchTaskResponse>) -> Seen {
    let mut seen = Seen::default();
    let reading = async {
        while let Some(response) = stream.message().await.expect("the stream does not break") {
            seen.add(response);
        }
    };
    tokio::time::timeout(DEADLINE, reading)
        .await
        .expect("the stream ends with its task");
    seen
}

/// The session of a task with a name.
#[must_use]
pub fn session<'a>(task: &'a v1::Task, name: &str) -> &'a v1::Session {
    let session = task.sessions.iter().find(|session| session.name == name);
    session.unwrap_or_else(|| panic!("no session {name} in {task:#?}"))
}

/// The kind of a session's verdict.
#[must_use]
pub fn verdict(session: &v1::Session) -> v1::VerdictKind {
    session
        .verdict
        .as_ref()
        .map_or(v1::VerdictKind::Unspecified, v1::Verdict::kind)
}
