//! A running session whose files the benchmark edits, and whose checkpoints it requests as a person
//! does. The reply comes when the coordinator has stored the row: pack and blobs are durable there
//! by then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use kage_proto::client::Client;
use kage_proto::convert::time::span;
use kage_proto::v1;

use crate::cluster::{AgentOptions, Cluster};
use crate::repo::Repo;
use crate::tasks::{Describe, create, task};
use crate::wait::wait_for;

const ADAPTER: &str = "bench-held";

/// Longer than any benchmark.
const LONG: Duration = Duration::from_secs(3600);

/// A session that does nothing but keep its worktree.
#[derive(Debug)]
pub struct Held {
    // Keeps the system running.
    _cluster: Cluster,
    client: Client,
    task: String,
    worktree: PathBuf,
    asked: u32,
}

impl Held {
    /// Starts a session on the current commit of `repo`.
    pub async fn start(mut cluster: Cluster, repo: &Repo) -> anyhow::Result<Self> {
        let place = cluster.outside().join("held-worktree");
        let manifest = format!(
            "name = \"{ADAPTER}\"\ncommand = \"sh\"\nargs = [\"-c\", 'pwd > \"{0}.new\" && mv \"{0}.new\" \"{0}\" && exec sleep 100000']\n",
            place.display()
        );
        cluster
            .add_agent(AgentOptions::named("holder").slots(1).manifest(ADAPTER, manifest))
            .await;
        cluster.push_base(repo);
        let client = cluster.client();
        let spec = task("wait").on(repo).session("held", ADAPTER, "").policy(|policy| {
            policy.timeout = Some(span(LONG));
            policy.idle_timeout = Some(span(LONG));
        });
        let task = create(&client, spec).await;
        let worktree = wait_for("the session says where it works", async || {
            std::fs::read_to_string(&place).ok()
        })
        .await;
        Ok(Self {
            _cluster: cluster,
            client,
            task,
            worktree: PathBuf::from(worktree.trim_end()),
            asked: 0,
        })
    }

    #[must_use]
    pub fn worktree(&self) -> &Path {
        &self.worktree
    }

    /// Requests a checkpoint and waits until it is stored.
    pub async fn checkpoint(&mut self) -> anyhow::Result<v1::Checkpoint> {
        self.asked += 1;
        let request = v1::CreateCheckpointRequest {
            request_id: format!("held-{}", self.asked),
            task_id: self.task.clone(),
            ..v1::CreateCheckpointRequest::default()
        };
        let reply = self.client.checkpoints().create_checkpoint(request).await?;
        reply.into_inner().checkpoint.context("the reply has the checkpoint")
    }
}
