//! Links between agents and their coordinator that are cut, silent, slow and lossy.

use std::time::{Duration, Instant};

use kage_proto::v1;
use kage_tests::chaos::clients::Person;
use kage_tests::chaos::record::Record;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::faults::link::{Link, Weather};
use kage_tests::tasks::{Describe, task};
use kage_tests::tier::Tier;
use tokio::task::JoinSet;

use super::{IMPATIENT, PATIENT, ends_right, progress};

/// A script that prints so many lines, one every twenty milliseconds.
fn lines(count: usize) -> String {
    format!("cat >/dev/null; i=1; while [ $i -le {count} ]; do echo \"line $i\"; i=$((i+1)); sleep 0.02; done")
}

fn printed(count: usize) -> Vec<u8> {
    (1..=count).flat_map(|i| format!("line {i}\n").into_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_link_is_a_long_disconnect() {
    let tier = Tier::now();
    let (cuts, length) = (tier.pick(2, 4, 20), Duration::from_secs(tier.pick(1, 3, 60)));
    let waits = kage_tests::chaos::Waits {
        lost_after: length * 3,
        grace: length * 3,
        lease_ttl: length * 6,
        ..PATIENT
    };
    let mut cluster = Cluster::start_with(waits.programs()).await;
    let link = Link::to(cluster.url()).await;
    let mut options = AgentOptions::named("far").script("lines", lines(100));
    options.coordinator_url = Some(link.url());
    cluster.add_agent(options).await;
    let record = Record::default();
    for cut in 0..cuts {
        let person = Person::new("ann", cluster.client(), record.clone());
        let id = person
            .create(task("print").session("only", SHELL, "lines"))
            .await
            .unwrap();
        let watching = tokio::spawn(async move { person.watch(&id).await });
        progress(&record, 10, Duration::from_secs(5)).await;
        link.set(if cut % 2 == 0 { Weather::Cut } else { Weather::Silent });
        tokio::time::sleep(length).await;
        link.set(Weather::Fair);
        watching.await.unwrap();
    }
    let end = ends_right(&cluster, &record, &[]).await;
    for task in &end.tasks {
        assert_eq!(task.task.state(), v1::TaskState::Succeeded, "{:#?}", task.task);
        assert_eq!(task.task.sessions[0].attempts, 1, "{:#?}", task.task);
        assert_eq!(task.output.values().next(), Some(&printed(100)), "all of it, once");
    }
    eprintln!("{cuts} cuts of {length:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_behind_a_link_that_stays_silent_is_done_elsewhere_and_counts_once() {
    let cuts = Tier::now().pick(1, 5, 100);
    let mut cluster = Cluster::start_with(IMPATIENT.programs()).await;
    let link = Link::to(cluster.url()).await;
    let mut far = AgentOptions::named("far").script("lines", lines(60));
    far.coordinator_url = Some(link.url());
    cluster.add_agent(far).await;
    let record = Record::default();
    for cut in 0..cuts {
        cluster.connected("far").await;
        if cut > 0 {
            cordoned(&cluster, "near", true).await;
        }
        let person = Person::new("ann", cluster.client(), record.clone());
        let id = person
            .create(task("print").session("only", SHELL, "lines"))
            .await
            .unwrap();
        let running = |task: &v1::Task| {
            let session = &task.sessions[0];
            session.agent == "far" && session.state() == v1::SessionState::Running
        };
        cluster.until(&id, "runs far away", running).await;
        link.set(if cut % 2 == 0 { Weather::Silent } else { Weather::Cut });
        if cut == 0 {
            let near = AgentOptions::named("near").script("lines", lines(60)).slots(8);
            cluster.add_agent(near).await;
        } else {
            cordoned(&cluster, "near", false).await;
        }
        let moved = |task: &v1::Task| task.sessions[0].agent == "near" || task.state() != v1::TaskState::Running;
        cluster.until(&id, "is done near", moved).await;
        link.set(Weather::Fair);
        person.watch(&id).await;
    }
    let end = ends_right(&cluster, &record, &[]).await;
    for task in &end.tasks {
        assert_eq!(task.task.state(), v1::TaskState::Succeeded, "{:#?}", task.task);
        let last = task.task.sessions[0].attempts;
        assert!(last >= 2, "it began far away: {:#?}", task.task);
        let bytes = task
            .output
            .iter()
            .find(|(key, _)| key.attempt == last)
            .map(|(_, bytes)| bytes);
        assert_eq!(bytes, Some(&printed(60)));
    }
}

async fn cordoned(cluster: &Cluster, agent: &str, cordoned: bool) {
    let mut fleet = cluster.client().fleet();
    let (agent, request_id) = (agent.to_owned(), format!("{:032x}", rand::random::<u128>()));
    let done = if cordoned {
        let request = v1::CordonAgentRequest { agent, request_id };
        fleet.cordon_agent(request).await.map(drop)
    } else {
        let request = v1::UncordonAgentRequest { agent, request_id };
        fleet.uncordon_agent(request).await.map(drop)
    };
    done.unwrap();
}

/// The negative test: a slow and lossy link makes an agent slow, not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_and_lossy_link_makes_nobody_lost() {
    let tier = Tier::now();
    let (agents, length) = (tier.pick(2, 6, 20), Duration::from_secs(tier.pick(4, 20, 600)));
    // A quarter of the waits that coordinators have by default.
    let waits = kage_tests::chaos::Waits {
        heartbeat: Duration::from_millis(1250),
        lease_ttl: Duration::from_secs(15),
        lost_after: Duration::from_secs(5),
        grace: Duration::from_secs(5),
    };
    let mut cluster = Cluster::start_with(waits.programs()).await;
    let link = Link::to(cluster.url()).await;
    for n in 0..agents {
        let mut options = AgentOptions::named(&format!("far-{n}"))
            .slots(1)
            .script("lines", lines(100));
        options.coordinator_url = Some(link.url());
        cluster.add_agent(options).await;
    }
    link.set(Weather::Bad {
        delay: Duration::from_millis(200),
        jitter: Duration::from_millis(100),
        bytes_per_second: 256_000 / 8,
        loss: 10,
    });
    let record = Record::default();
    let begun = Instant::now();
    let mut people = JoinSet::new();
    for n in 0..agents {
        let person = Person::new(&format!("person-{n}"), cluster.client(), record.clone());
        people.spawn(async move {
            while begun.elapsed() < length {
                let spec = task("print").session("only", SHELL, "lines");
                let id = person.create(spec).await.expect("a task is not refused");
                person.watch(&id).await;
            }
        });
    }
    people.join_all().await;
    let end = ends_right(&cluster, &record, &[]).await;
    for task in &end.tasks {
        assert_eq!(task.task.state(), v1::TaskState::Succeeded, "{:#?}", task.task);
        let lost = task
            .task
            .sessions
            .iter()
            .flat_map(|session| &session.incidents)
            .find(|incident| {
                let failure = incident.failure.as_ref();
                failure.is_some_and(|failure| failure.kind() == v1::FailureKind::AgentLost)
            });
        assert_eq!(lost, None, "a slow agent is not a lost one");
        assert_eq!(task.output.values().next_back(), Some(&printed(100)));
    }
    eprintln!(
        "{agents} agents for {length:?}: {} sessions, nobody lost",
        end.tasks.len()
    );
}
