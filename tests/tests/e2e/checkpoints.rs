//! A session outlives its machine: another agent restores its files and continues the conversation,
//! word for word.

use std::path::Path;

use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_scripted::{Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::command::{Person, said};
use kage_tests::repo::{Repo, SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, Seen, session, task, verdict};
use kage_tests::wait::wait_for;
use serde_json::{Value, json};

const MODEL: &str = "claude-sonnet-5-5";

/// The model's answers: two edits, a command that waits for a file `gate`, and an answer that never
/// comes.
fn script(gate: &Path) -> Script {
    let wait = format!("until [ -e '{}' ]; do sleep 0.05; done", gate.display());
    let mut last = Turn::say("I fixed the sign.");
    // The machine dies while the model thinks.
    last.faults.push(Fault::Hang);
    Script::new(
        "solver",
        Matcher::model(MODEL),
        [
            Turn::call(
                "write_file",
                json!({"path": "notes.txt", "content": "the sign is wrong\n"}),
            ),
            Turn::call("write_file", json!({"path": "add.sh", "content": SOLUTION})),
            Turn::call("bash", json!({ "command": wait })),
            last,
        ],
    )
}

/// The conversation of each request, as it was sent.
pub(crate) fn conversations(server: &ScriptedServer) -> Vec<Value> {
    let recorded = server.requests().into_iter();
    recorded.map(|request| request.body["messages"].clone()).collect()
}

/// Waits until the coordinator knows of three answers of the model.
async fn three_answers(cluster: &Cluster, id: &str) {
    let mut seen = Seen::default();
    let mut responses = cluster.watch(id, &[]).await;
    let answers = |seen: &Seen| {
        let bodies = seen
            .events
            .iter()
            .filter_map(|event| event.event.as_ref()?.body.as_ref());
        bodies.filter(|body| matches!(body, Body::UsageRecorded(_))).count()
    };
    while answers(&seen) < 3 {
        seen.add(responses.message().await.unwrap().expect("the task has not ended"));
    }
}

/// Waits for a checkpoint with the work up to the model's second answer; returns its number.
async fn two_steps_kept(cluster: &Cluster, id: &str) -> u32 {
    let client = cluster.client();
    wait_for("both edits are kept", async || {
        let request = v1::ListCheckpointsRequest {
            task_id: id.to_owned(),
            session: String::new(),
            page_size: 500,
            page_token: String::new(),
        };
        let listed = client.checkpoints().list_checkpoints(request).await.ok()?.into_inner();
        let kept = listed.checkpoints.iter().find(|checkpoint| checkpoint.calls == 2);
        kept.map(|checkpoint| checkpoint.number)
    })
    .await
}

/// Kills the agent `first` during a session, and adds another one. Returns the session, which has
/// passed, and how it continued.
pub(crate) async fn taken_over(
    cluster: &mut Cluster,
    second: AgentOptions,
    id: &str,
    name: &str,
) -> (v1::Session, v1::Resumption) {
    cluster.kill_agent("first");
    cluster.add_agent(second).await;
    let ended = cluster.ended(id).await;
    let solver = session(&ended, name).clone();
    assert_eq!(verdict(&solver), v1::VerdictKind::Passed, "{solver:#?}");
    assert_eq!((solver.agent.as_str(), solver.attempts), ("second", 2), "{solver:#?}");
    let [resumption] = solver.resumptions.as_slice() else {
        panic!("it went on once: {solver:#?}");
    };
    assert_eq!(resumption.attempt, 2, "{resumption:?}");
    let resumption = resumption.clone();
    (solver, resumption)
}

#[tokio::test]
async fn a_killed_agents_session_goes_on_elsewhere_with_its_files_and_words() {
    let mut cluster = Cluster::start().await;
    let gate = cluster.root().join("gate");
    let server = ScriptedServer::start(vec![script(&gate)]).await.unwrap();
    let agent = |name: &str| AgentOptions::named(name).anthropic(&server.url());
    cluster.add_agent(agent("first")).await;
    let repo = cluster.sample();
    let spec = task("make the test pass")
        .on(&repo)
        .verified_by(VERIFY)
        .session("solver", "claude-api", MODEL);
    let id = cluster.create(spec).await;
    let kept = two_steps_kept(&cluster, &id).await;
    std::fs::write(&gate, "").unwrap();
    wait_for("the last call is made", async || {
        (conversations(&server).len() == 4).then_some(())
    })
    .await;
    // An agent that dies loses what it had not reported.
    three_answers(&cluster, &id).await;

    let (solver, resumption) = taken_over(&mut cluster, agent("second"), &id, "solver").await;
    assert_eq!(resumption.checkpoint, kept, "{resumption:?}");
    assert_eq!(resumption.repeated_calls, 1, "only what followed the last edit");

    // The model was asked for the same again, and for nothing before that.
    let conversations = conversations(&server);
    assert_eq!(conversations.len(), 6, "{conversations:#?}");
    assert_eq!(conversations[4], conversations[2], "word for word");
    let until_then = |conversation: &Value| conversation.as_array().unwrap()[..5].to_vec();
    assert_eq!(until_then(&conversations[5]), until_then(&conversations[3]));

    // Files that only the first machine wrote are in the result.
    let commit = cluster.fetch_result(&repo, &solver);
    assert_eq!(
        repo.git(&["show", &format!("{commit}:notes.txt")]).trim(),
        "the sign is wrong"
    );
    let report = cluster.report(&id).await;
    let history = &report.rows[0].history;
    let words = format!("attempt 2 continued from checkpoint {kept}; 1 model call made again");
    assert!(history.contains(&words), "{history:#?}");
}

/// Writes into `$dir/seen.N` what run N found, and stops in the middle of its work.
const WORKER: &str = r#"
cat >/dev/null
echo >> "$dir/runs"
n=$(($(wc -l < "$dir/runs")))
{ ls; cat notes.txt; } > "$dir/seen.part" 2>/dev/null
mv "$dir/seen.part" "$dir/seen.$n"
[ "$n" = 3 ] && exit
if [ "$n" = 1 ]; then
    echo kept > notes.txt
    echo old > old.cache
    echo > "$dir/ready"
    until [ -e "$dir/go" ]; do sleep 0.1; done
    echo lost > notes.txt
    echo late > late.txt
    echo new > new.cache
    echo > "$dir/changed"
fi
sleep 1000
"#;

#[tokio::test]
async fn a_running_session_is_sent_back_in_its_worktree_and_nothing_is_lost() {
    let person = Person::new();
    let dir = person.outside("told");
    std::fs::create_dir(&dir).unwrap();
    person.adapter("worker", &format!("dir='{}'\n{WORKER}", dir.display()));
    let repo = Repo::sample(&person.path("repo"));
    let there = async |name: &str| wait_for(name, async || std::fs::read_to_string(dir.join(name)).ok()).await;
    let kage = async |arguments: &[&str]| {
        let arguments = [arguments, &["--format", "json"]].concat();
        let done = person.kage(repo.path(), &arguments).await;
        assert_eq!(done.code, 0, "{done:#?}");
        done.json()
    };
    let mut run = person.command(repo.path(), &["run", "work", "--with", "worker"]);
    let running = run.spawn().unwrap();
    there("ready").await;
    let asked = kage(&["checkpoint", "create"]).await;
    let number = asked["number"].to_string();
    std::fs::write(dir.join("go"), "").unwrap();
    there("changed").await;

    // What it did since is in one that was taken for this, and the ignored files are there.
    let restored = kage(&["checkpoint", "restore", &number]).await;
    let plan: Vec<_> = restored["plan"].as_array().unwrap().iter().collect();
    let paths: Vec<_> = plan
        .iter()
        .map(|path| (&path["display_path"], &path["action"]))
        .collect();
    assert_eq!(
        paths,
        [
            (&json!("late.txt"), &json!("PATH_ACTION_DELETE")),
            (&json!("notes.txt"), &json!("PATH_ACTION_REPLACE"))
        ]
    );
    let all = kage(&["checkpoint", "ls"]).await;
    let saved = all
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["number"] == restored["saved"]["number"]);
    assert_eq!(saved.unwrap()["reason"], "CHECKPOINT_REASON_BEFORE_RESTORE", "{all:#}");
    assert_eq!(
        there("seen.2").await,
        "add.sh\nnew.cache\nnotes.txt\nold.cache\ntest.sh\nkept\n"
    );

    // Complete: without newer files, ignored or not.
    kage(&["checkpoint", "restore", &number, "--complete"]).await;
    assert_eq!(there("seen.3").await, "add.sh\nnotes.txt\nold.cache\ntest.sh\nkept\n");
    let run = said(running.wait_with_output().await.unwrap());
    assert_eq!(run.code, 0, "{run:#?}");
    for done in ["(put back: 2, moved aside: 0)", "(put back: 0, moved aside: 1)"] {
        let words = format!("went back to checkpoint {number} in its worktree {done}");
        assert!(run.err.contains(&words), "{run:#?}");
    }
}
