//! A person steers sessions: says to one that is over what is missing, lets another adapter go on from its
//! files, and runs the task again.

use kage_tests::command::{Person, Said};
use kage_tests::repo::{Repo, VERIFY};
use serde_json::Value;

/// Mends the sum, and writes down every prompt that it got. Its conversation can be resumed.
const TALKER: &str = r#"
name = "talker"
command = "sh"
args = ["-c", '''
prompt=$(cat)
if [ -n "$STORE" ]; then mkdir -p "$STORE"; echo '{"turn":1}' >> "$STORE/$1.jsonl"; fi
echo 'add() { echo $(($1 + $2)); }' > add.sh
case "$prompt" in
*'break it'*) echo 'add() { echo $(($1 - $2)); }' > add.sh;;
*'give up'*) echo 'HTTP 401 unauthorized' >&2; exit 1;;
*'the notes'*) printf '%s\n' "$prompt" > notes.md;;
esac
''', "talker", ["{new_session}"], ["{old_session}"]]
prompt = { pass = "stdin" }
resume = "position"
session = { folder = "STORE", file = "{session_id}.jsonl" }
env.set.STORE = "{scratch}/store"
"#;

fn session<'a>(task: &'a Value, name: &str) -> &'a Value {
    let sessions = task["sessions"].as_array().unwrap();
    let found = sessions.iter().find(|session| session["name"] == name);
    found.unwrap_or_else(|| panic!("no {name}: {task:#}"))
}

fn done(said: &Said) -> Value {
    assert_eq!(said.code, 0, "{said:#?}");
    said.json()
}

async fn begun() -> (Person, Repo, String) {
    let person = Person::new();
    std::fs::write(person.path("config/kage/adapters/talker.toml"), TALKER).unwrap();
    person.adapter("scribe", "cat > told.md");
    let repo = Repo::sample(&person.path("repo"));
    let run = [
        "run",
        "mend the sum",
        "--with",
        "talker",
        "--verify",
        VERIFY,
        "--rework",
        "0",
        "--format",
        "json",
    ];
    let task = done(&person.kage(repo.path(), &run).await);
    assert_eq!(session(&task, "talker")["state"], "SESSION_STATE_VERIFIED", "{task:#}");
    let id = task["id"].as_str().unwrap().to_owned();
    (person, repo, id)
}

#[tokio::test]
async fn a_session_that_is_over_goes_on_with_what_a_person_says() {
    let (person, repo, id) = begun().await;
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;
    let first = done(&kage(&["show", "--format", "json"]).await);
    let first = session(&first, "talker")["result"]["commit"].clone();

    let sent = kage(&["send", "talker", "and now\nthe notes\x1b[0m", "--format", "json"]).await;
    assert!(
        sent.err.contains("the session goes on, and its task is open again"),
        "{sent:#?}"
    );
    let task = done(&sent);
    let talker = session(&task, "talker");
    assert_eq!(talker["state"], "SESSION_STATE_VERIFIED", "{task:#}");
    assert_ne!(talker["result"]["commit"], first, "a new result");
    let message = &talker["messages"][0];
    assert_eq!(
        (&message["state"], &message["sent_by"]),
        (&"MESSAGE_STATE_FOLLOWED".into(), &"owner".into())
    );
    assert_ne!(
        talker["resumptions"][0]["position"],
        Value::Null,
        "the same conversation: {task:#}"
    );
    // The model got the words as they are, and nothing of the task again.
    let patch = kage(&["diff", "--session", "talker"]).await;
    assert!(patch.out.contains("+# Next instruction"), "{patch:#?}");
    assert!(patch.out.contains("+the notes\x1b[0m"), "{patch:#?}");
    assert!(
        !patch.out.contains("mend the sum") && patch.out.contains("add.sh"),
        "{patch:#?}"
    );
    for command in [&["show"][..], &["explain"], &["compare"]] {
        let told = kage(command).await;
        assert!(told.out.contains("message 1 from owner: \"and now"), "{told:#?}");
    }

    // It fails verify: the person is told, and says what to do. Words may come from a file.
    let broken = kage(&["send", &id, "break it"]).await;
    assert_eq!(broken.code, 1, "{broken:#?}");
    std::fs::write(person.path("words.md"), "now write the notes").unwrap();
    let words = person.path("words.md");
    let mended = kage(&[
        "send",
        &id,
        "--prompt-file",
        words.to_str().unwrap(),
        "--format",
        "json",
    ])
    .await;
    assert_eq!(
        session(&done(&mended), "talker")["state"],
        "SESSION_STATE_VERIFIED",
        "{mended:#?}"
    );
    let patch = kage(&["diff"]).await;
    assert!(patch.out.contains("+What was done so far was checked"), "{patch:#?}");

    // One that comes to nothing leaves the result that there was.
    let failed = kage(&["send", "talker", "give up"]).await;
    assert_eq!(failed.code, 1, "{failed:#?}");
    assert!(
        failed.err.contains("came to no result with what you said"),
        "{failed:#?}"
    );
    assert!(
        failed.err.contains("it has the result that it had before"),
        "{failed:#?}"
    );
    let still = done(&kage(&["show", "--format", "json"]).await);
    assert_eq!(
        session(&still, "talker")["state"],
        "SESSION_STATE_VERIFIED",
        "{still:#}"
    );

    let empty = kage(&["send", "talker", " "]).await;
    assert_eq!(empty.code, 2, "{empty:#?}");
    let unknown = kage(&["send", "nobody", "hello"]).await;
    assert_eq!(unknown.code, 4, "{unknown:#?}");
    assert!(unknown.err.contains("it has talker"), "{unknown:#?}");
}

#[tokio::test]
async fn another_adapter_goes_on_from_the_files_and_the_task_runs_again() {
    let (person, repo, id) = begun().await;
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;
    let forked = kage(&[
        "fork",
        "talker",
        "write a summary",
        "--with",
        "scribe",
        "--format",
        "json",
    ])
    .await;
    let task = done(&forked);
    let (talker, scribe) = (session(&task, "talker"), session(&task, "scribe"));
    assert_eq!(talker["state"], "SESSION_STATE_VERIFIED", "{task:#}");
    assert_eq!(scribe["state"], "SESSION_STATE_VERIFIED", "{task:#}");
    assert_eq!(scribe["fork"]["session"], "talker", "{task:#}");
    // Its change is against the task's base: it has the other one's, too.
    let patch = kage(&["diff", &id, "--session", "scribe"]).await;
    for part in [
        "add.sh",
        "+mend the sum",
        "+- add.sh",
        "+# Next instruction",
        "+write a summary",
    ] {
        assert!(patch.out.contains(part), "{part}: {patch:#?}");
    }

    // The same task on the same base, with another session, although the files are others by now.
    repo.write("later.txt", "later\n");
    repo.commit("later");
    let again = kage(&[
        "run", "--again", &id, "--with", "talker", "--repeat", "2", "--format", "json",
    ])
    .await;
    assert!(
        again.err.contains("is run again on its base") && again.err.contains("--present"),
        "{again:#?}"
    );
    let other = done(&again);
    assert_eq!(other["sessions"].as_array().unwrap().len(), 2, "{other:#}");
    for part in ["prompt_excerpt", "state"] {
        assert_eq!(other[part], task[part], "{part}");
    }
    for part in ["repository", "policy"] {
        assert_eq!(other["spec"][part], task["spec"][part], "{part}");
    }
    let present = kage(&["run", "--again", &id, "--present", "--format", "json"]).await;
    let present = done(&present);
    assert_ne!(present["spec"]["repository"], task["spec"]["repository"]);
    assert_eq!(
        present["sessions"].as_array().unwrap().len(),
        1,
        "the fork is none of its sessions"
    );
    let odd = kage(&["run", "--again", &id, "--verify", "true"]).await;
    assert_eq!(odd.code, 2, "{odd:#?}");
}
