//! kill -9 of the coordinator and of agents, under load.

use std::collections::BTreeMap;
use std::time::Duration;

use kage_proto::v1;
use kage_tests::chaos::clients::Person;
use kage_tests::chaos::record::Record;
use kage_tests::chaos::scripted_agent::{SCRIPTED_AGENT, ScriptedAgent};
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::history::{Final, JobKey, StreamKey, What};
use kage_tests::tasks::{Describe, task};
use kage_tests::tier::Tier;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{PATIENT, ends_right, progress};

/// Lines that the script `print` prints.
const LINES: usize = 400;

pub(super) fn printed() -> Vec<u8> {
    (1..=LINES).flat_map(|line| format!("{line}\n").into_bytes()).collect()
}

/// A session on a scripted agent, one on a real agent.
fn spec(n: usize) -> v1::TaskSpec {
    match n % 3 {
        0 => task("print")
            .session("real", SHELL, "print")
            .session("made", SCRIPTED_AGENT, ""),
        _ => task("scripted agents")
            .session("made", SCRIPTED_AGENT, "")
            .session("too", SCRIPTED_AGENT, ""),
    }
}

pub(super) fn printing(name: &str) -> AgentOptions {
    AgentOptions::named(name).script("print", format!("cat >/dev/null; seq {LINES}"))
}

/// Every session that did not fail has its whole output, whatever happened.
pub(super) fn printed_whole(end: &Final) {
    let mut sessions = 0;
    for task in &end.tasks {
        let real = task.task.sessions.iter().filter(|session| session.name == "real");
        for session in real.filter(|session| session.failure.is_none()) {
            let last = |key: &&StreamKey| key.job.session == "real" && key.attempt == session.attempts;
            let key = task.output.keys().find(last);
            let bytes = key
                .and_then(|key| task.output.get(key))
                .expect("a program that printed has output");
            assert!(*bytes == printed(), "{} bytes of {}", bytes.len(), task.task.id);
            sessions += 1;
        }
    }
    assert!(sessions > 0, "real programs ran");
}

/// A restart is only a long disconnect: started work continues. Work that an agent never heard of
/// had not started, and is given to another one.
fn nothing_was_repeated(record: &Record, end: &Final) {
    let mut begun = BTreeMap::<JobKey, u32>::new();
    for entry in record.history().entries {
        if let What::Granted { job, .. } = entry.what {
            *begun.entry(job).or_default() += 1;
        }
    }
    for task in &end.tasks {
        for session in task.task.sessions.iter().filter(|session| session.name == "real") {
            let mut attempts: Vec<u32> = task
                .events
                .iter()
                .filter(|event| event.session == session.name)
                .map(|event| event.attempt)
                .collect();
            attempts.dedup();
            assert_eq!(attempts.len(), 1, "{session:#?}");
        }
    }
    let twice: Vec<_> = begun.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "begun more than once: {twice:?}");
}

/// People and two scripted agents, until they are told to stop.
pub(super) struct Load {
    people: JoinSet<Vec<v1::Task>>,
    scripted_agents: JoinSet<()>,
    /// Kept, so that no agent wakes or sleeps.
    _awake: watch::Sender<bool>,
    enough: CancellationToken,
    home: CancellationToken,
}

impl Load {
    pub(super) fn start(cluster: &Cluster, record: &Record, people: &[&str]) -> Self {
        Self::start_with(cluster, record, people, spec)
    }

    /// The same, with the tasks that people create.
    pub(super) fn start_with(
        cluster: &Cluster,
        record: &Record,
        people: &[&str],
        spec: fn(usize) -> v1::TaskSpec,
    ) -> Self {
        let (awake, asleep) = watch::channel(false);
        let mut load = Self {
            people: JoinSet::new(),
            scripted_agents: JoinSet::new(),
            _awake: awake,
            enough: CancellationToken::new(),
            home: CancellationToken::new(),
        };
        for name in people {
            let person = Person::new(name, cluster.client(), record.clone());
            let enough = load.enough.clone();
            load.people.spawn(async move { person.work(spec, enough).await });
        }
        for name in ["scripted-1", "scripted-2"] {
            let agent = ScriptedAgent::new(name, cluster.client(), record.clone());
            load.scripted_agents.spawn(agent.run(asleep.clone(), load.home.clone()));
        }
        load
    }

    /// Lets all work finish.
    pub(super) async fn finish(mut self) -> Vec<v1::Task> {
        self.enough.cancel();
        let tasks = std::mem::take(&mut self.people).join_all().await.concat();
        self.home.cancel();
        self.scripted_agents.join_all().await;
        tasks
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_again_and_again_loses_nothing_and_repeats_nothing() {
    let kills = Tier::now().pick(5, 100, 1000);
    let mut cluster = Cluster::start_with(PATIENT.programs()).await;
    cluster.add_agent(printing("agent")).await;
    let record = Record::default();
    let load = Load::start(&cluster, &record, &["ann", "bob", "cem"]);
    for _ in 0..kills {
        let lines = 20 + rand::random::<u8>() as usize;
        progress(&record, lines, Duration::from_secs(3)).await;
        cluster.crash_coordinator().await;
    }
    let tasks = load.finish().await;
    let end = ends_right(&cluster, &record, &[]).await;
    printed_whole(&end);
    assert!(tasks.len() > kills / 2, "there was load: {} tasks", tasks.len());
    for task in &end.tasks {
        assert_eq!(task.task.state(), v1::TaskState::Succeeded, "{:#?}", task.task);
    }
    nothing_was_repeated(&record, &end);
    eprintln!(
        "{kills} kills, {} tasks, {} lines of history",
        end.tasks.len(),
        record.len()
    );
}

/// Output of a session with its own name, slow enough to be killed in between.
const SLOW: &str =
    "cat >/dev/null; i=1; while [ $i -le 120 ]; do echo \"$i of a program's output\"; i=$((i+1)); sleep 0.01; done";

fn slowly() -> Vec<u8> {
    (1..=120)
        .flat_map(|i| format!("{i} of a program's output\n").into_bytes())
        .collect()
}

/// The bytes that an agent has spooled for its single attempt.
fn spooled(cluster: &Cluster, agent: &str) -> Vec<u8> {
    let output = cluster.agent_dir(agent).join("output");
    let folders = std::fs::read_dir(&output).unwrap().flatten();
    let files: Vec<_> = folders
        .map(|folder| folder.path().join("stdout"))
        .filter(|file| file.exists())
        .collect();
    match files.as_slice() {
        [] => Vec::new(),
        [file] => std::fs::read(file).unwrap(),
        more => panic!("{more:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_mid_output_delivers_every_byte_that_it_spooled() {
    let rounds = Tier::now().pick(1, 7, 70);
    let names = ["one", "two", "three"];
    let mut cluster = Cluster::start_with(PATIENT.programs()).await;
    for name in names {
        let options = AgentOptions::named(name).label("seat", name).slots(1);
        cluster.add_agent(options.script("slow", SLOW)).await;
    }
    let record = Record::default();
    let mut expected = BTreeMap::new();
    for _ in 0..rounds {
        let mut watching = JoinSet::new();
        let mut ids = Vec::new();
        for name in names {
            let person = Person::new(name, cluster.client(), record.clone());
            let mut spec = task("slow").session("only", SHELL, "slow");
            spec.assignments[0]
                .requirements
                .insert("seat".to_owned(), name.to_owned());
            let id = person.create(spec).await.unwrap();
            ids.push(id.clone());
            watching.spawn(async move { person.watch(&id).await });
        }
        progress(&record, 20 + rand::random::<u8>() as usize % 50, Duration::from_secs(3)).await;
        let mut killed = Vec::new();
        for (name, id) in names.iter().zip(ids) {
            let launch = cluster.kill_agent(name);
            expected.insert(id, spooled(&cluster, name));
            killed.push(launch);
        }
        for launch in killed {
            cluster.revive_agent(&launch).await;
        }
        for task in watching.join_all().await {
            assert_eq!(task.state(), v1::TaskState::Succeeded, "{task:#?}");
        }
    }
    let end = ends_right(&cluster, &record, &[]).await;
    let mut cut = 0;
    for task in &end.tasks {
        let of = |attempt| {
            let key = StreamKey {
                job: JobKey {
                    task: task.task.id.clone(),
                    session: "only".to_owned(),
                    job: "session".to_owned(),
                },
                attempt,
                stream: v1::OutputStream::Stdout.into(),
            };
            task.output.get(&key).cloned().unwrap_or_default()
        };
        let last = task.task.sessions[0].attempts;
        assert!(of(last) == slowly(), "the last attempt printed all");
        // An attempt that had ended, or not started, when its agent was killed spooled nothing.
        let spool = &expected[&task.task.id];
        if last > 1 && !spool.is_empty() {
            assert!(of(1) == *spool, "{} of {} spooled bytes", of(1).len(), spool.len());
            cut += 1;
        }
    }
    assert!(cut > 0, "programs were killed while they printed");
    eprintln!("{} kills, {cut} of them while a program printed", rounds * names.len());
}
