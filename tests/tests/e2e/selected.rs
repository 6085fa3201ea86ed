//! A person chooses between two results that passed.

use kage_tests::command::Person;
use kage_tests::repo::{Repo, VERIFY};
use serde_json::Value;

const SMALL: &str = "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh";

fn best(report: &Value) -> &Value {
    &report["report"]["best"]
}

#[tokio::test]
async fn what_was_selected_is_what_lands() {
    let person = Person::new();
    person.adapter("small", SMALL);
    person.adapter("large", &format!("{SMALL}; echo 'how it adds' > notes.txt"));
    let repo = Repo::sample(&person.path("repo"));
    let kage = async |arguments: &[&str]| {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--format", "json"]);
        let done = person.kage(repo.path(), &arguments).await;
        assert_eq!(done.code, 0, "{done:#?}");
        done.json()
    };
    let arguments = [
        "run",
        "mend the sum",
        "--with",
        "small",
        "--with",
        "large",
        "--verify",
        VERIFY,
    ];
    let report = kage(&arguments).await;
    assert_eq!(best(&report)["reason"], "BEST_REASON_VERIFIED", "{report:#}");
    assert_eq!(best(&report)["session"], "small", "{report:#}");
    let task = report["id"].as_str().unwrap();

    let unknown = person.kage(repo.path(), &["select", task, "--session", "none"]).await;
    assert!(
        unknown.code != 0 && unknown.err.contains("session none"),
        "{unknown:#?}"
    );
    kage(&["select", task, "--session", "large"]).await;
    let report = kage(&["compare", task]).await;
    assert_eq!(best(&report)["reason"], "BEST_REASON_SELECTED", "{report:#}");
    assert_eq!(best(&report)["session"], "large", "{report:#}");
    let first = &report["report"]["rows"][0]["session"]["name"];
    assert_eq!(first, "small", "the order stays: {report:#}");
    kage(&["apply", task]).await;
    assert!(repo.path().join("notes.txt").exists());

    kage(&["select", task, "--clear"]).await;
    let report = kage(&["compare", task]).await;
    assert_eq!(best(&report)["session"], "small", "{report:#}");
}
