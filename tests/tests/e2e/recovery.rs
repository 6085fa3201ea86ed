//! Failures do not end a session if waiting, another machine or another adapter helps.

use kage_proto::convert::time::time;
use kage_proto::v1;
use kage_scripted::{Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster, SHELL};
use kage_tests::command::{Person, said};
use kage_tests::repo::{Repo, SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, session, task};
use serde_json::json;

#[tokio::test]
async fn a_used_up_limit_is_waited_for_and_a_full_disk_is_left() {
    let mut cluster = Cluster::start().await;
    let runs = cluster.outside().join("runs");
    let script = format!(
        "echo >> '{runs}'\n\
         case $(wc -l < '{runs}') in\n\
         1) echo 'quota exceeded, resets in 1 s' >&2; exit 1 ;;\n\
         2) echo 'cannot write: No space left on device' >&2; exit 1 ;;\n\
         *) echo done ;;\n\
         esac\n",
        runs = runs.display()
    );
    for name in ["one", "two"] {
        cluster
            .add_agent(AgentOptions::named(name).script("flaky", script.as_str()))
            .await;
    }
    let spec = task("try").session("only", SHELL, "flaky");
    let id = cluster.create(spec.policy(|policy| policy.max_attempts = 2)).await;
    let ended = cluster.ended(&id).await;
    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");

    let only = session(&ended, "only");
    let told: Vec<_> = only.incidents.iter().map(|i| (i.attempt, i.action())).collect();
    let expected = [(1, v1::RecoveryAction::HoldUntil), (2, v1::RecoveryAction::MoveAgent)];
    assert_eq!(told, expected, "{:#?}", only.incidents);
    let held = &only.incidents[0];
    let [at, next] = [held.at, held.next_attempt_at].map(|at| time(at.unwrap()));
    let wait = next.since(at).as_millis();
    // A reset that soon is not believed: the first wait is two seconds.
    assert!(
        (2_000..=2_500).contains(&wait),
        "the first wait, and a quarter at most: {wait} ms"
    );
    assert_ne!(only.agent, only.incidents[1].agent, "another machine did it");
    assert_eq!(std::fs::read_to_string(&runs).unwrap().lines().count(), 3);

    let report = cluster.report(&id).await;
    for incident in &only.incidents {
        let history = &report.rows[0].history;
        assert!(history.contains(&incident.summary), "{history:#?}");
    }
}

#[tokio::test]
async fn a_session_whose_adapter_cannot_go_on_is_solved_by_one_it_falls_back_to() {
    let person = Person::new();
    // The first does half of the work before its login is refused; the second does nothing.
    person.adapter(
        "expired",
        "cat >/dev/null; echo 'the sign is wrong' > notes.txt; echo 'HTTP 401: unauthorized' >&2; exit 1",
    );
    person.adapter(
        "spent",
        "cat >/dev/null; echo 'quota exceeded, resets in 2 h' >&2; exit 1",
    );
    person.adapter(
        "successor",
        "cat >/dev/null; grep -q sign notes.txt && echo 'add() { echo $(($1 + $2)); }' > add.sh",
    );
    let repo = Repo::sample(&person.path("repo"));
    let run = [
        "run",
        "mend it",
        "--with",
        "expired",
        "--fallback",
        "spent,successor",
        "--verify",
        VERIFY,
        "--format",
        "json",
    ];
    let run = person.kage(repo.path(), &run).await;
    assert_eq!(run.code, 0, "{run:#?}");
    let report = run.json();
    let [row] = report["report"]["rows"].as_array().unwrap().as_slice() else {
        panic!("one session: {report:#}");
    };
    let session = &row["session"];
    assert_eq!(
        report["report"]["best"]["session"], "expired",
        "its name stays: {report:#}"
    );
    assert_eq!(
        (&session["adapter"], &session["state"], &session["attempts"]),
        (&"successor".into(), &"SESSION_STATE_VERIFIED".into(), &3.into()),
        "{report:#}"
    );
    let takes_over = ["spent takes over from expired", "successor takes over from spent"];
    let compared = person.kage(repo.path(), &["compare"]).await;
    for words in takes_over {
        let history = row["history"].as_array().unwrap().iter();
        let told = history
            .filter_map(|line| line.as_str())
            .filter(|line| line.contains(words));
        assert_eq!(told.count(), 1, "{words}: {report:#}");
        assert!(compared.out.contains(words), "{words}: {compared:#?}");
    }
    let shown = person.kage(repo.path(), &["show", "--format", "json"]).await.json();
    assert_eq!(shown["sessions"][0]["adapter"], "successor", "{shown:#}");
    let shown = person.kage(repo.path(), &["show"]).await;
    for attempt in [2, 3] {
        let words = format!("attempt {attempt} continued from checkpoint");
        assert!(shown.out.contains(&words), "{shown:#?}");
    }

    // The work of the first is part of the result.
    let diff = person.kage(repo.path(), &["diff"]).await;
    for line in ["+the sign is wrong", "+add() { echo $(($1 + $2)); }"] {
        assert!(diff.out.contains(line), "{diff:#?}");
    }
}

#[tokio::test]
async fn a_limit_of_turns_is_a_setting_and_goes_on_once_from_where_it_stopped() {
    let model = "claude-sonnet-5-5";
    let step = |n: u32| Turn::call("bash", json!({"command": format!("echo {n} >> steps.txt")}));
    let solve = Turn::call("write_file", json!({"path": "add.sh", "content": SOLUTION}));
    let scripts = vec![
        Script::new(
            "solved",
            Matcher::model(model),
            [step(1), step(2), solve, Turn::say("Done.")],
        ),
        Script::new("circles", Matcher::model("claude-haiku-5-5"), (1..=9).map(step)),
    ];
    let server = ScriptedServer::start(scripts).await.unwrap();
    let person = Person::new();
    std::fs::write(
        person.path("config/kage/config.toml"),
        "[adapter.claude-api]\nmax_turns = 2\n",
    )
    .unwrap();
    let repo = Repo::sample(&person.path("repo"));
    let run = |model: &str| {
        let with = format!("claude-api:{model}");
        let arguments = [
            "run", "mend it", "--with", &with, "--verify", VERIFY, "--rework", "2", "--format", "json",
        ];
        let mut command = person.command(repo.path(), &arguments);
        command
            .env("ANTHROPIC_API_KEY", "sk-test")
            .env("ANTHROPIC_BASE_URL", server.url());
        command
    };

    let solved = said(run(model).output().await.unwrap());
    assert_eq!(solved.code, 0, "{solved:#?}");
    let report = solved.json();
    let session = &report["sessions"][0];
    assert_eq!(
        (&session["state"], &session["attempts"]),
        (&"SESSION_STATE_VERIFIED".into(), &2.into()),
        "{report:#}"
    );
    assert_eq!(server.requests_of("solved").len(), 4, "no turn is made again");
    let diff = person.kage(repo.path(), &["diff"]).await;
    assert!(diff.out.contains("+1\n+2\n"), "{diff:#?}");

    let circles = said(run("claude-haiku-5-5").output().await.unwrap());
    assert_eq!(circles.code, 1, "{circles:#?}");
    let report = circles.json();
    let session = &report["sessions"][0];
    assert_eq!(
        (&session["state"], &session["attempts"]),
        (&"SESSION_STATE_FAILED".into(), &2.into()),
        "{report:#}"
    );
    assert_eq!(
        server.requests_of("circles").len(),
        4,
        "twice two turns, the second after the first"
    );
    let history = report["report"]["rows"][0]["history"].to_string();
    assert!(
        history.contains("turn limit: the model was not done after 2 turns"),
        "{history}"
    );
    assert!(history.contains("max_turns") && !history.contains("wrong"), "{history}");
}
