//! An agent in this process whose adapter follows its prompt.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_agent::adapters::port::{Adapter, AdapterEnd, Beginning, Reporter, Resumes, SessionInput};
use kage_agent::process::Secret;
use kage_agent::{Config, Limits, Ports, Registry};
use kage_core::contain::Containment;
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::FailureKind;
use kage_core::fleet::AdapterInfo;
use kage_proto::client::Credentials;
use kage_proto::convert::agent::{PromptText, SessionWork, WorkKind};
use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_proto::v1::finished::Outcome;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::coordinator::{DEADLINE, Served};

pub(crate) const SECRET: &str = "key-0123456789";

/// The byte at this offset of the output of `print`.
pub(crate) fn byte(at: usize) -> u8 {
    u8::try_from(at.wrapping_mul(2_654_435_761) >> 7 & 0xff).unwrap()
}

pub(crate) fn work(task: &str) -> WorkKind {
    WorkKind::Session(SessionWork {
        name: "one".parse().unwrap(),
        adapter: "scripted".parse().unwrap(),
        model: None,
        prompt: PromptText::Inline(task.to_owned()),
        context_base: None,
        context_delta: None,
        overridden: Vec::new(),
        timeout: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
        resume: None,
        setup: None,
        setup_folder: None,
        instruction: String::new(),
        permissions: None,
        mcp: None,
        results: Default::default(),
    })
}

pub(crate) fn failure(events: &[v1::Event]) -> v1::Failure {
    match events.last().and_then(|event| event.body.clone()) {
        Some(Body::Finished(v1::Finished {
            outcome: Some(Outcome::Failure(failure)),
        })) => failure,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn kind(kind: FailureKind) -> i32 {
    v1::FailureKind::from(kind).into()
}

/// Puts the secret somewhere in the worktree.
fn spill(tree: &Path, how: &str) {
    let hex: String = SECRET.bytes().map(|byte| format!("{byte:02x}")).collect();
    let (name, text) = match how {
        "honest" => ("config.env", format!("KEY={}\n", &SECRET[..SECRET.len() - 1])),
        "content" => ("config.env", format!("KEY={SECRET}\n")),
        "hex" => ("dump.bin", format!("\0\u{1}{hex}\0")),
        "reversed" => ("notes", SECRET.chars().rev().collect()),
        "name" => (SECRET, "named\n".to_owned()),
        "folder" => (SECRET, String::new()),
        other => panic!("{other}"),
    };
    if how == "folder" {
        std::fs::create_dir_all(tree.join(name)).unwrap();
        std::fs::write(tree.join(name).join("x"), "inside\n").unwrap();
    } else {
        std::fs::write(tree.join(name), text).unwrap();
    }
}

/// An adapter that follows its prompt.
struct Scripted {
    resumes: Resumes,
}

impl Adapter for Scripted {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: "scripted".parse().unwrap(),
            version: "1".to_owned(),
            unavailable: None,
            resumes: self.resumes(),
            access: None,
            slots: 0,
            hears: false,
        }
    }

    fn secrets(&self) -> Vec<Secret> {
        vec![Secret::new("SCRIPTED_KEY", SECRET)]
    }

    fn resumes(&self) -> Resumes {
        self.resumes
    }

    fn tells_steps(&self) -> bool {
        self.resumes == Resumes::Position
    }

    fn uses_scratch(&self) -> bool {
        false
    }

    fn run(&self, mut input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        async move {
            let (_, task) = input.prompt.own.split_once("# Task\n\n").unwrap();
            let mut words = task.split([' ', '\n']);
            match words.next().unwrap() {
                "wait" => {
                    stop.cancelled().await;
                    return AdapterEnd::Stopped;
                }
                "panic" => panic!("scripted"),
                "print" => {
                    let bytes: usize = words.next().unwrap().parse().unwrap();
                    for start in (0..bytes).step_by(1000) {
                        let piece: Vec<u8> = (start..bytes.min(start + 1000)).map(byte).collect();
                        if reporter.output(OutputStream::Stdout, piece.into()).await.is_err() {
                            return AdapterEnd::Stopped;
                        }
                    }
                }
                "leak" => {
                    let (first, second) = SECRET.split_at(5);
                    for piece in ["the key is ", first, second, "!"] {
                        let piece = Bytes::from_static(piece.as_bytes());
                        reporter.output(OutputStream::Stderr, piece).await.unwrap();
                    }
                    let text = EventBody::Activity(format!("echo {SECRET}"));
                    reporter.event(text).await.unwrap();
                }
                "freeze" => {
                    input.frozen.wait_for(|frozen| *frozen).await.unwrap();
                    reporter.event(EventBody::Activity("frozen".to_owned())).await.unwrap();
                    input.frozen.wait_for(|frozen| !*frozen).await.unwrap();
                    reporter.event(EventBody::Activity("thawed".to_owned())).await.unwrap();
                }
                "nothing" => {}
                "prompt" => {
                    std::fs::write(input.worktree.unwrap().join("prompted"), "").unwrap();
                    reporter.event(EventBody::Activity(task.to_owned())).await.unwrap();
                }
                "write" => {
                    std::fs::write(input.worktree.unwrap().join("written"), "w\n").unwrap();
                    stop.cancelled().await;
                    return AdapterEnd::Stopped;
                }
                "list" => {
                    let tree = input.worktree.unwrap();
                    let entries = std::fs::read_dir(&tree).unwrap();
                    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
                    names.sort();
                    let names: Vec<_> = names.iter().map(|name| name.to_str().unwrap()).collect();
                    let told = format!("{} {}", tree.display(), names.join(" "));
                    reporter.event(EventBody::Activity(told)).await.unwrap();
                    if words.next() == Some("wait") {
                        stop.cancelled().await;
                        return AdapterEnd::Stopped;
                    }
                    std::fs::write(tree.join("listed"), "").unwrap();
                }
                "spill" => {
                    let (tree, steps) = (input.worktree.unwrap(), input.steps);
                    let how = words.next().unwrap();
                    for step in 0..2 {
                        steps.message(format!("call {step}"));
                        steps.tools_begin().await;
                        std::fs::write(tree.join(format!("step{step}")), "done").unwrap();
                        spill(&tree, how);
                        steps.message(format!("result {step}"));
                        steps.tools_ended();
                    }
                    // What it found is told before the attempt ends.
                    if words.next() == Some("wait") {
                        stop.cancelled().await;
                        return AdapterEnd::Stopped;
                    }
                }
                "stuck" => {
                    let (tree, steps) = (input.worktree.unwrap(), input.steps);
                    steps.message("the task");
                    steps.message("call");
                    steps.tools_begin().await;
                    std::fs::write(tree.join("half"), "done").unwrap();
                    reporter.event(EventBody::Activity("stuck".to_owned())).await.unwrap();
                    stop.cancelled().await;
                    return AdapterEnd::Stopped;
                }
                "steps" => {
                    let (tree, steps) = (input.worktree.unwrap(), input.steps);
                    let mut done = 0;
                    match input.beginning {
                        Beginning::New => steps.message("the task"),
                        Beginning::GoOn {
                            said,
                            note,
                            instruction,
                        } => {
                            done = said.iter().filter(|byte| **byte == b'\n').count() / 2;
                            let told = format!("{note}{instruction} {}", std::str::from_utf8(&said).unwrap());
                            reporter.event(EventBody::Activity(told)).await.unwrap();
                        }
                    }
                    let all: usize = words.next().unwrap().parse().unwrap();
                    for step in done..all {
                        steps.message(format!("call {step}"));
                        steps.tools_begin().await;
                        std::fs::write(tree.join(format!("step{step}")), "done").unwrap();
                        steps.message(format!("result {step} {SECRET}"));
                        steps.tools_ended();
                    }
                    if words.next() == Some("wait") {
                        stop.cancelled().await;
                        return AdapterEnd::Stopped;
                    }
                }
                other => panic!("{other}"),
            }
            AdapterEnd::Done { summary: String::new() }
        }
        .boxed()
    }
}

pub(crate) struct Agent {
    shutdown: CancellationToken,
    pub(crate) hand_back: CancellationToken,
    running: JoinHandle<Result<(), kage_agent::RunError>>,
}

impl Agent {
    pub(crate) fn start(served: &Served, state: &Path, limits: Limits) -> Self {
        Self::start_with(served, state, limits, Resumes::Position)
    }

    pub(crate) fn start_with(served: &Served, state: &Path, limits: Limits, resumes: Resumes) -> Self {
        Self::start_contained(served, state, limits, resumes, Containment::NOTHING)
    }

    /// One whose probes found this containment.
    pub(crate) fn start_contained(
        served: &Served,
        state: &Path,
        limits: Limits,
        resumes: Resumes,
        contained: Containment,
    ) -> Self {
        let adapter: Arc<dyn Adapter> = Arc::new(Scripted { resumes });
        let ports = Ports::system(Registry::from([("scripted".parse().unwrap(), adapter)]));
        let config = Config {
            caches: kage_core::caches::CacheSettings::default(),
            contain: kage_agent::contain::ContainSettings {
                tier: kage_agent::contain::AskedTier::T0,
                ..Default::default()
            },
            contained,
            network: Default::default(),
            state_dir: state.to_owned(),
            coordinator_url: format!("http://{}", served.address),
            credentials: Credentials::bearer("token"),
            name: "tester".to_owned(),
            slots: 2,
            labels: [("os".to_owned(), "test".to_owned())].into(),
            limits,
        };
        let shutdown = CancellationToken::new();
        Self {
            hand_back: ports.hand_back.clone(),
            running: tokio::spawn(kage_agent::run(config, ports, shutdown.clone())),
            shutdown,
        }
    }

    pub(crate) fn shutdown(&self) {
        self.shutdown.cancel();
    }

    pub(crate) async fn end(self) {
        self.shutdown();
        self.ended().await;
    }

    pub(crate) async fn ended(self) {
        self.outcome().await.unwrap();
    }

    pub(crate) async fn outcome(self) -> Result<(), kage_agent::RunError> {
        let ended = tokio::time::timeout(DEADLINE, self.running).await;
        ended.expect("the agent ends").unwrap()
    }
}
