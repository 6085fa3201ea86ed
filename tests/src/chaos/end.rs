//! The final state: every task read again through the public API, results fetched by git, programs
//! that still run on the machine, and errors in the daemons' logs.

use std::collections::BTreeMap;

use kage_proto::client::Client;
use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;

use super::clients::all_streams;
use crate::cluster::Cluster;
use crate::history::{Final, FinalTask, Listed, Said, stream_key};
use crate::process::processes_of;
use crate::repo::Repo;
use crate::tasks::REPOSITORY;
use crate::wait::wait_for;

/// Reads everything about every task.
pub async fn tasks(client: &Client) -> Vec<FinalTask> {
    let mut tasks = Vec::new();
    for task in listed(client).await.expect("tasks can be listed") {
        tasks.push(one(client, &task.id).await);
    }
    tasks
}

/// Every task, as in lists.
async fn listed(client: &Client) -> Result<Vec<v1::Task>, tonic::Status> {
    let mut tasks = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListTasksRequest {
            project: "default".to_owned(),
            page_size: 100,
            page_token,
            ..Default::default()
        };
        let page = client.tasks().list_tasks(request).await?.into_inner();
        tasks.extend(page.tasks);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(tasks);
        }
    }
}

async fn one(client: &Client, id: &str) -> FinalTask {
    let request = v1::WatchTaskRequest {
        task_id: id.to_owned(),
        output: all_streams(),
        ..v1::WatchTaskRequest::default()
    };
    let response = client.tasks().watch_task(request).await.expect("a task can be read");
    let mut responses = response.into_inner();
    let mut end = FinalTask {
        task: v1::Task::default(),
        events: Vec::new(),
        output: BTreeMap::new(),
        checkpoints: Vec::new(),
    };
    while let Some(response) = responses.message().await.expect("a task can be read to its end") {
        match response.item {
            // Its prompt may be shortened.
            Some(Item::Task(_)) | None => {}
            Some(Item::Event(event)) => end.events.push(*event),
            Some(Item::Output(chunk)) => {
                let bytes = end.output.entry(stream_key(id, &chunk)).or_default();
                assert_eq!(bytes.len() as u64, chunk.offset, "output without a gap or a repeat");
                bytes.extend_from_slice(&chunk.data);
            }
        }
    }
    let request = v1::GetTaskRequest {
        task_id: id.to_owned(),
        view: v1::TaskView::Full.into(),
    };
    let response = client.tasks().get_task(request).await.expect("a task can be read");
    end.task = response.into_inner().task.unwrap_or_default();
    let request = v1::ListCheckpointsRequest {
        task_id: id.to_owned(),
        session: String::new(),
        page_size: 500,
        page_token: String::new(),
    };
    let response = client.checkpoints().list_checkpoints(request).await;
    end.checkpoints = response.expect("checkpoints can be listed").into_inner().checkpoints;
    end
}

/// The listed checkpoints, each assembled from its packs by the coordinator.
async fn checkpoints(client: &Client, tasks: &[FinalTask]) -> Vec<Listed> {
    let mut listed = Vec::new();
    for task in tasks {
        for checkpoint in &task.checkpoints {
            let request = v1::GetCheckpointRequest {
                task_id: task.task.id.clone(),
                session: checkpoint.session.clone(),
                checkpoint: checkpoint.number.to_string(),
            };
            let got = client.checkpoints().get_checkpoint(request).await;
            listed.push(Listed {
                name: checkpoint.commit.clone(),
                missing: got.err().map(|status| status.message().to_owned()),
            });
        }
    }
    listed
}

impl Cluster {
    /// Reads the final state. `broken` lists the deliberate faults, see [`Final::broken`].
    pub async fn end(&self, broken: &[(&str, bool)]) -> Final {
        let tasks = tasks(&self.client()).await;
        let mut listed = self.results(&tasks);
        listed.extend(checkpoints(&self.client(), &tasks).await);
        let survivors = self.survivors().await;
        let said = self.said();
        Final {
            tasks,
            listed,
            survivors,
            said,
            broken: broken
                .iter()
                .map(|(words, must)| ((*words).to_owned(), *must))
                .collect(),
        }
    }

    /// The results that sessions list, each fetched into a repository of its own and checked.
    fn results(&self, tasks: &[FinalTask]) -> Vec<Listed> {
        let sessions = tasks.iter().flat_map(|task| &task.task.sessions);
        let results: Vec<_> = sessions
            .filter_map(|session| Some((session, session.result.as_ref()?)))
            .collect();
        if results.is_empty() {
            return Vec::new();
        }
        let scratch = Repo::empty(&self.repository_dir(&format!("results-of-{REPOSITORY}")));
        let configuration = self.git_configuration();
        let configuration: Vec<(&str, &str)> = configuration.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let fetch = |session: &v1::Session, commit: &str| {
            let refspec = format!("refs/kage/results/{}", session.id);
            scratch.try_git(&["fetch", "--quiet", &self.git_url(), &refspec], &configuration)?;
            let head = scratch.try_git(&["rev-parse", "FETCH_HEAD"], &[])?;
            if head.trim() != commit {
                return Err(format!("its ref is at {head}"));
            }
            scratch.try_git(&["rev-list", "--objects", "--quiet", commit], &[])
        };
        let listed = results.into_iter().map(|(session, result)| Listed {
            name: result.commit.clone(),
            missing: fetch(session, &result.commit).err(),
        });
        listed.collect()
    }

    /// Programs of the agents that still run although every task ended.
    async fn survivors(&self) -> Vec<String> {
        let agents = self.root().join("agents");
        let running = || {
            let found = processes_of(&agents).into_iter().filter_map(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                let daemon = line.contains(" agent run ") || line.is_empty();
                (!daemon).then(|| format!("{pid} {line}"))
            });
            found.collect::<Vec<_>>()
        };
        let mut last = Vec::new();
        crate::wait::poll(async || {
            last = running();
            last.is_empty().then_some(())
        })
        .await;
        last
    }

    /// Errors and panics in the daemons' logs.
    fn said(&self) -> Vec<Said> {
        let Ok(entries) = std::fs::read_dir(self.root().join("logs")) else {
            return Vec::new();
        };
        let mut said = Vec::new();
        for entry in entries.flatten() {
            let daemon = entry.file_name().to_string_lossy().into_owned();
            let log = plain(&self.log(&daemon));
            let trouble = log
                .lines()
                .filter(|line| line.contains("ERROR ") || line.contains("panicked at"));
            said.extend(trouble.map(|line| Said {
                daemon: daemon.clone(),
                line: line.to_owned(),
            }));
        }
        said
    }

    /// Waits until every task has ended.
    pub async fn settled(&self) {
        let client = self.client();
        wait_for("every task has ended", async || {
            let tasks = listed(&client).await.ok()?;
            let running = tasks.iter().any(|task| task.state() == v1::TaskState::Running);
            (!running).then_some(())
        })
        .await;
    }
}

/// A log without terminal colours.
fn plain(log: &str) -> String {
    let mut text = String::with_capacity(log.len());
    let mut rest = log;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        text.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    text.push_str(rest);
    text
}
