//! The base context of a task: there without any file of contexts, and brought back when the coordinator lost it
//! under a task that waits.

use std::path::{Path, PathBuf};

use kage_core::context::Context;
use kage_core::id::Digest;
use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::command::{Person, said};
use kage_tests::repo::Repo;
use kage_tests::tasks::{Describe as _, task};
use kage_tests::wait::wait_for;

/// The file of a base context in a coordinator's data.
fn file_of(data: &Path, digest: &str) -> PathBuf {
    data.join("blobs/default").join(&digest[..2]).join(digest)
}

/// Removes that file, as a failing disk does.
fn lose(data: &Path, digest: &str) {
    std::fs::remove_file(file_of(data, digest)).unwrap();
}

/// Sessions of a task without `--context` have a base, too; one that is lost while the task waits comes back from
/// the person who sent it.
#[tokio::test]
async fn a_base_needs_no_context_and_comes_back_from_the_person_who_sent_it() {
    let person = Person::new();
    let mut settings = std::fs::read_to_string(person.path("config/kage/config.toml")).unwrap();
    settings += "[agent]\nslots = 1\n";
    std::fs::write(person.path("config/kage/config.toml"), settings).unwrap();
    let gate = person.outside("gate");
    let held = format!("cat >/dev/null; while [ ! -e {gate:?} ]; do sleep 0.1; done; echo 1 > held.txt");
    person.adapter("holder", &held);
    person.adapter("teller", "cat > told.txt");
    let repo = Repo::sample(&person.path("repo"));
    repo.write("docs/rules.md", "Write short functions.\n");
    repo.write(
        "kage.toml",
        "[context]\nfiles = [\"docs/*.md\"]\n\n[run]\nverify = \"test -e add.sh\"\n",
    );
    repo.commit("rules for sessions");
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;

    let holder = kage(&["run", "hold the slot", "--with", "holder", "--detach"]).await;
    assert_eq!(holder.code, 0, "{holder:#?}");
    wait_for("the only slot is taken", async || {
        let listed = kage(&["agent", "ls", "--format", "json"]).await.json();
        (listed[0]["busy"].as_u64() == Some(1)).then_some(())
    })
    .await;
    // The agent has the base of the first task.
    repo.write("docs/more.md", "Name things well.\n");
    let run = ["run", "tell", "--with", "teller", "--detach", "--format", "json"];
    let task = kage(&run).await.json()["id"].as_str().unwrap().to_owned();
    let stats = kage(&["context", "stats", &task, "--format", "json"]).await.json();
    let digest = stats["digest"].as_str().unwrap().to_owned();
    assert_eq!(stats["prompt_bytes"], 4, "{stats:#}");
    assert!(stats["size"].as_u64() > Some(0), "{stats:#}");
    let shown = kage(&["context", "show", &task]).await;
    for part in [
        "docs/more.md",
        "docs/rules.md",
        "Write short functions.",
        "test -e add.sh",
    ] {
        assert!(shown.out.contains(part), "{part:?} is not in {shown:#?}");
    }

    let data = person.path("state/coordinator");
    lose(&data, &digest);
    let waiting = person.command(repo.path(), &["wait", &task]).output();
    let release = async { std::fs::write(&gate, "").unwrap() };
    let (waited, ()) = tokio::join!(waiting, release);
    let waited = said(waited.unwrap());
    assert_eq!(waited.code, 0, "{waited:#?}");
    assert!(waited.err.contains("it was sent again"), "{waited:#?}");
    assert!(file_of(&data, &digest).exists());
    let shown = kage(&["show", &task, "--format", "json"]).await;
    let restored = "the base context of this task was restored";
    assert!(shown.out.contains(restored), "{shown:#?}");
    let told = kage(&["diff", &task]).await;
    assert!(told.out.contains("Write short functions."), "{told:#?}");
    let stats = kage(&["context", "stats", &task]).await;
    assert!(stats.out.contains("1 times"), "{stats:#?}");
}

/// Another agent has a copy; and where nobody has one, the session fails and says why.
#[tokio::test]
async fn a_lost_base_comes_back_from_another_agent_or_fails_its_session() {
    let mut cluster = Cluster::start().await;
    let options = |seat: &str| {
        AgentOptions::named(&format!("agent-{seat}"))
            .label("seat", seat)
            .slots(4)
            .script("done", "cat >/dev/null\n")
    };
    let on = |prompt: &str, base: &Context, seat: &str| {
        let mut spec = task(prompt).session("one", SHELL, "done");
        spec.context_base = base.digest().to_string();
        let assignment = spec.assignments.last_mut().unwrap();
        assignment.requirements.insert("seat".to_owned(), seat.to_owned());
        spec
    };
    let kept = Context::parse(br#"{"a":"what the first agent has"}"#).unwrap();
    let gone = Context::parse(br#"{"a":"what nobody has"}"#).unwrap();
    for base in [&kept, &gone] {
        let put = v1::PutContextRequest {
            digest: base.digest().to_string(),
            content: base.canonical().into(),
            ..v1::PutContextRequest::default()
        };
        cluster.client().contexts().put_context(put).await.unwrap();
    }
    cluster.add_agent(options("1")).await;
    let first = cluster.create(on("first", &kept, "1")).await;
    assert_eq!(cluster.ended(&first).await.state(), v1::TaskState::Succeeded);

    let restored = cluster.create(on("second", &kept, "2")).await;
    let failed = cluster.create(on("third", &gone, "2")).await;
    for base in [&kept, &gone] {
        lose(&cluster.data_dir(), Digest::of(base.canonical().as_bytes()).as_str());
    }
    cluster.add_agent(options("2")).await;
    let ended = cluster.ended(&restored).await;
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");
    let warnings = ended.sessions[0].warnings.join("\n");
    assert!(
        warnings.contains("was restored: agent agent-1 had a copy"),
        "{warnings}"
    );
    let ended = cluster.ended(&failed).await;
    assert_eq!(ended.state(), v1::TaskState::Failed, "{ended:#?}");
    let failure = ended.sessions[0].failure.as_ref().unwrap();
    assert_eq!(failure.kind(), v1::FailureKind::ContextUnavailable, "{failure:?}");
}
