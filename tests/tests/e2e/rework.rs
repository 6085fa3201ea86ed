//! A result that fails verify, although verify fails on the base as well: its session gets the
//! output of verify and continues, as often as it may.

use kage_proto::v1;
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::repo::VERIFY;
use kage_tests::tasks::{Describe, session, task};

/// Takes the sum for a product, until it gets the output of verify.
const LEARN: &str = "\
prompt=$(cat)
if [ -n \"$STORE\" ]; then mkdir -p \"$STORE\"; echo '{\"turn\":1}' >> \"$STORE/$1.jsonl\"; fi
case \"$prompt\" in
*'Verify failed'*) echo 'add() { echo $(($1 + $2)); }' > add.sh; printf '%s\\n' \"$prompt\" > heard.md;;
*) echo 'add() { echo $(($1 * $2)); }' > add.sh;;
esac
";

/// A program that can resume its session.
const LEARNER: &str = r#"
name = "learner"
command = "sh"
args = ["{manifest_dir}/learn.sh", ["{new_session}"], ["{old_session}"]]
prompt = { pass = "stdin" }
resume = "position"
session = { folder = "STORE", file = "{session_id}.jsonl" }
env.set.STORE = "{scratch}/store"
"#;

async fn ended(change: impl FnOnce(&mut v1::Policy)) -> (Cluster, v1::Task) {
    let mut cluster = Cluster::start().await;
    let options = AgentOptions::named("agent")
        .slots(2)
        .script("learn", LEARN)
        .manifest("learner", LEARNER);
    cluster.add_agent(options).await;
    let repo = cluster.sample();
    let spec = task("mend the sum")
        .on(&repo)
        .verified_by(VERIFY)
        .policy(change)
        .session("talks", "learner", "")
        .session("mute", SHELL, "learn");
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;
    (cluster, ended)
}

/// The messages to the session, as it recorded them.
fn heard(cluster: &Cluster, session: &v1::Session) -> String {
    let repo = kage_tests::repo::Repo::empty(&cluster.root().join(&session.name));
    let commit = cluster.fetch_result(&repo, session);
    repo.git(&["show", &format!("{commit}:heard.md")])
}

#[tokio::test]
async fn a_rejected_session_is_told_what_verify_said_where_its_conversation_goes_on() {
    let (cluster, ended) = ended(|_| {}).await;
    let talks = session(&ended, "talks");
    assert_eq!(talks.state(), v1::SessionState::Verified, "{talks:#?}");
    assert_eq!((talks.attempts, talks.reworks), (2, 1));
    let [incident] = &talks.incidents[..] else {
        panic!("{:#?}", talks.incidents)
    };
    assert_eq!(incident.action(), v1::RecoveryAction::Rework);
    let from = talks.resumptions[0].checkpoint;
    let told = format!("continues from checkpoint {from} with verify's output");
    assert!(
        incident.summary.contains("verify failed with exit code 1"),
        "{incident:?}"
    );
    assert!(incident.summary.contains(&told), "{incident:?}");
    assert!(
        talks.resumptions[0].position > 0,
        "it is the same conversation: {talks:#?}"
    );
    let heard = heard(&cluster, talks);
    assert!(
        !heard.contains("mend the sum") && !heard.contains("interrupted"),
        "{heard}"
    );
    for part in ["sh test.sh", "exit code 1", "```text\nadd 2 3 is 6\n```"] {
        assert!(heard.contains(part), "{part}: {heard}");
    }

    let mute = session(&ended, "mute");
    assert_eq!(mute.state(), v1::SessionState::Rejected, "{mute:#?}");
    assert_eq!((mute.attempts, mute.reworks), (1, 0));
    let report = cluster.report(&ended.id).await;
    assert_eq!(report.best.as_ref().unwrap().session, "talks", "{report:#?}");
    assert!(
        report.rows[0].history.iter().any(|line| line.contains(&told)),
        "{report:#?}"
    );
}

#[tokio::test]
async fn a_new_conversation_is_told_as_much_when_somebody_asks_for_it() {
    let (cluster, ended) = ended(|policy| policy.max_reworks = Some(1)).await;
    let mute = session(&ended, "mute");
    assert_eq!(mute.state(), v1::SessionState::Verified, "{mute:#?}");
    assert_eq!((mute.reworks, mute.resumptions[0].position), (1, 0));
    let heard = heard(&cluster, mute);
    for part in ["mend the sum", "- add.sh", "# Verify failed", "add 2 3 is 6"] {
        assert!(heard.contains(part), "{part}: {heard}");
    }
}

#[tokio::test]
async fn nobody_works_on_who_may_not() {
    let (_cluster, ended) = ended(|policy| policy.max_reworks = Some(0)).await;
    assert_eq!(ended.state(), v1::TaskState::Failed);
    for session in &ended.sessions {
        assert_eq!(session.state(), v1::SessionState::Rejected, "{session:#?}");
        assert_eq!((session.attempts, session.reworks), (1, 0));
    }
}
