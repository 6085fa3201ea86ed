//! Obstacles of a starting daemon: a port, a folder or an identity that another process uses. The
//! error names it and the process, and the exit code says that a person can change it.

use std::net::TcpListener;

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::command::{Person, Said};
use kage_tests::programs;
use kage_tests::tasks::{Describe, task};
use kage_tests::wait::wait_for;

#[track_caller]
fn check(said: &Said, words: &[&str]) {
    assert_eq!(said.code, 2, "{said:#?}");
    for words in words {
        assert!(said.err.contains(words), "{words:?} is not in {said:#?}");
    }
}

#[tokio::test]
async fn a_port_that_another_process_has_is_named_with_the_process() {
    let person = Person::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let own = format!("(process {})", std::process::id());
    let words = [address.as_str(), &own, "--listen"];
    let ended = person
        .kage(&person.path(""), &["coordinator", "--listen", &address])
        .await;
    check(&ended, &words);
    let data = person.path("data");
    let data_dir = ["coordinator", "--data-dir", data.to_str().unwrap()];
    let ended = person
        .kage(&person.path(""), &[&data_dir[..], &["--listen", &address]].concat())
        .await;
    check(&ended, &words);
}

#[tokio::test]
async fn a_folder_that_another_daemon_has_is_named_with_the_process() {
    let mut cluster = Cluster::start().await;
    cluster.add_agent(AgentOptions::named("agent")).await;
    let data = cluster.data_dir();
    let holder = format!("(process {})", cluster.coordinator_pid());
    let words = [data.to_str().unwrap(), &holder];
    let person = Person::new();
    let folder = person.path("");
    let data_dir = data.to_str().unwrap();
    let listen = ["--listen", "127.0.0.1:0"];
    let ended = person
        .kage(&folder, &["coordinator", "--data-dir", data_dir, listen[0], listen[1]])
        .await;
    check(&ended, &words);

    let (state, token) = (cluster.agent_dir("agent"), data.join("token"));
    let token = token.to_str().unwrap();
    let words = [state.to_str().unwrap(), "is in use by another agent (process "];
    let rest = ["--coordinator", cluster.url(), "--token-file", token];
    let arguments = ["agent", "run", "--state", state.to_str().unwrap()];
    let ended = person.kage(&folder, &[&arguments[..], &rest].concat()).await;
    check(&ended, &words);
}

#[tokio::test]
async fn up_says_which_process_has_the_folder_of_its_coordinator() {
    let person = Person::new();
    let folder = person.path("");
    let mut coordinator = person
        .command(&folder, &["coordinator", "--listen", "127.0.0.1:0"])
        .spawn()
        .unwrap();
    let endpoint = person.path("state/coordinator/endpoint");
    wait_for("the coordinator says where it listens", async || {
        endpoint.exists().then_some(())
    })
    .await;
    let holder = format!("(process {})", coordinator.id().unwrap());
    let ended = person.kage(&folder, &["up"]).await;
    check(&ended, &["is in use by another coordinator", &holder]);
    coordinator.kill().await.unwrap();
}

#[tokio::test]
async fn an_agent_on_a_copied_state_folder_is_not_let_in_and_ends_nothing() {
    let mut cluster = Cluster::start().await;
    let gate = cluster.root().join("gate");
    let script = format!(
        "cat >/dev/null\nuntil [ -e '{}' ]; do sleep 0.05; done\n",
        gate.display()
    );
    cluster
        .add_agent(AgentOptions::named("original").script("wait", script))
        .await;
    let id = cluster.create(task("wait").session("only", SHELL, "wait")).await;
    let client = cluster.client();
    let of_task = async || {
        let request = v1::GetTaskRequest {
            task_id: id.clone(),
            view: v1::TaskView::Full.into(),
        };
        client.tasks().get_task(request).await.ok()?.into_inner().task
    };
    wait_for("the session runs", async || {
        of_task().await.filter(|task| task.state() == v1::TaskState::Running)
    })
    .await;

    let (copy, log) = (cluster.outside().join("copy"), cluster.root().join("copy.log"));
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(cluster.agent_dir("original").join("agent-id"), copy.join("agent-id")).unwrap();
    let token = cluster.data_dir().join("token");
    let rest = [
        "--coordinator",
        cluster.url(),
        "--token-file",
        token.to_str().unwrap(),
        "--name",
        "clone",
    ];
    let mut clone = tokio::process::Command::new(programs::kage());
    clone
        .args(["agent", "run", "--state"])
        .arg(&copy)
        .args(rest)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .kill_on_drop(true);
    let mut clone = clone.spawn().unwrap();
    // It retries again and again, and is refused each time.
    let refusals = |least: usize| {
        let log = log.clone();
        async move {
            wait_for("refusals of the copy", async || {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                (said.matches("is connected already, as original").count() >= least).then_some(())
            })
            .await;
        }
    };
    refusals(2).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(clone.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(clone.wait().await.unwrap().code(), Some(2));
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("the coordinator refused this agent") && said.contains("remove this copy's state folder"),
        "{said}"
    );

    std::fs::write(&gate, "").unwrap();
    let task = wait_for("the end of the task", async || {
        of_task().await.filter(|task| task.state() == v1::TaskState::Succeeded)
    })
    .await;
    assert_eq!(
        (task.sessions[0].attempts, task.sessions[0].agent.as_str()),
        (1, "original")
    );
}
