//! Which results of high risk need a person's consent to land, and which land without.

use kage_tests::command::Person;
use kage_tests::repo::{Repo, VERIFY};

/// Makes the test pass, and does nothing else.
const CHEAT: &str = "cat >/dev/null; echo 'exit 0' > test.sh";

fn prepared() -> (Person, Repo) {
    let person = Person::new();
    person.adapter("cheat", CHEAT);
    let repo = Repo::sample(&person.path("repo"));
    (person, repo)
}

#[tokio::test]
async fn a_test_that_a_session_emptied_proves_nothing_and_is_not_landed() {
    let (person, repo) = prepared();
    let arguments = [
        "run",
        "mend the sum",
        "--with",
        "cheat",
        "--verify",
        VERIFY,
        "--apply",
        "--format",
        "json",
    ];
    let run = person.kage(repo.path(), &arguments).await;
    assert_eq!(run.code, 1, "{run:#?}");
    let report = run.json();
    assert_eq!(report["sessions"][0]["state"], "SESSION_STATE_REJECTED", "{report:#}");
    assert_eq!(report["sessions"][0]["verdict"]["restored"][0], "test.sh", "{report:#}");
    assert_eq!(
        report["report"]["best"]["reason"], "BEST_REASON_NO_RESULT",
        "{report:#}"
    );
    assert!(
        run.err.contains("verify ran with the base's version of test.sh"),
        "{run:#?}"
    );
    assert_eq!(repo.git(&["status", "--porcelain"]), "");
}

#[tokio::test]
async fn a_result_of_high_risk_lands_when_somebody_says_so() {
    let (person, repo) = prepared();
    let mut arguments = vec![
        "run",
        "mend the sum",
        "--with",
        "cheat",
        "--verify",
        VERIFY,
        "--no-protect",
        "--apply",
        "--format",
        "json",
    ];
    let run = person.kage(repo.path(), &arguments).await;
    assert_eq!(run.code, 1, "{run:#?}");
    let report = run.json();
    let best = &report["report"]["best"];
    assert_eq!(best.get("session"), None, "{report:#}");
    assert_eq!(best["reason"], "BEST_REASON_HIGH_RISK", "{report:#}");
    assert_eq!(best["candidate"], "cheat", "{report:#}");
    let task = &report["id"].as_str().unwrap()[..8];
    let by_name = format!("`kage apply {task} --session cheat`");
    for said in [by_name.as_str(), "--accept-risk`", "test.sh"] {
        assert!(run.err.contains(said), "{said}: {run:#?}");
    }
    assert_eq!(repo.git(&["status", "--porcelain"]), "");
    assert_eq!(person.kage(repo.path(), &["wait", task]).await.code, 1);

    for command in ["apply", "merge", "diff"] {
        let refused = person.kage(repo.path(), &[command, task]).await;
        assert_eq!(refused.code, 2, "{refused:#?}");
        assert!(
            refused.err.contains("high risk") && refused.err.contains("test.sh"),
            "{refused:#?}"
        );
        let named = person.kage(repo.path(), &[command, task, "--session", "cheat"]).await;
        assert_eq!(named.code, 0, "{named:#?}");
        repo.git(&["reset", "--quiet", "--hard", "HEAD~0"]);
        if command == "merge" {
            repo.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
        }
    }
    for command in ["apply", "merge"] {
        let accepted = person
            .kage(repo.path(), &[command, task, "--accept-risk", "--dry-run"])
            .await;
        assert_eq!(accepted.code, 0, "{accepted:#?}");
        assert!(accepted.out.contains("test.sh"), "{accepted:#?}");
    }
    // The same with one command.
    arguments.push("--accept-risk");
    let run = person.kage(repo.path(), &arguments).await;
    assert_eq!(run.code, 0, "{run:#?}");
    assert_eq!(repo.git(&["status", "--porcelain"]).trim(), "M test.sh");
}

#[tokio::test]
async fn checks_that_a_result_has_written_are_told_as_its_words() {
    let (person, repo) = prepared();
    person.adapter(
        "sly",
        "cat >/dev/null; printf '[run]\\nverify = \"true\"\\n' > kage.toml",
    );
    repo.write("kage.toml", "[run]\nverify = \"sh other.sh\"\n");
    repo.write("other.sh", "exit 0\n");
    repo.commit("its checks");
    let run = person
        .kage(repo.path(), &["run", "mend the sum", "--with", "sly", "--apply"])
        .await;
    assert_eq!(run.code, 1, "it does not land by itself: {run:#?}");
    assert!(
        run.err.contains("kage.toml, from which the next run takes its checks"),
        "{run:#?}"
    );
    let whose = "kage.toml is as the session sly of task";
    assert!(!run.err.contains(whose), "{run:#?}");

    let applied = person.kage(repo.path(), &["apply", "--accept-risk"]).await;
    assert_eq!(applied.code, 0, "{applied:#?}");
    repo.commit("taken, by a person");
    person.adapter("next", "cat >/dev/null; echo more > notes.txt");
    let run = person
        .kage(repo.path(), &["run", "mend the sum", "--with", "next"])
        .await;
    assert!(run.err.contains(whose), "{run:#?}");
    assert!(run.err.contains("kage.toml says: verify `true`"), "{run:#?}");
}

#[tokio::test]
async fn what_verify_did_not_see_does_not_land_by_itself_and_is_named_when_it_lands() {
    let (person, repo) = prepared();
    person.adapter(
        "both",
        &format!("{CHEAT}; echo 'add() {{ echo $(($1 + $2)); }}' > add.sh"),
    );
    let mut arguments = vec![
        "run",
        "mend the sum",
        "--with",
        "both",
        "--verify",
        VERIFY,
        "--apply",
        "--format",
        "json",
    ];
    let run = person.kage(repo.path(), &arguments).await;
    assert_eq!(run.code, 1, "the base's test passes on it, and nothing lands: {run:#?}");
    let report = run.json();
    assert_eq!(report["report"]["best"]["session"], "both", "{report:#}");
    let task = &report["id"].as_str().unwrap()[..8];
    for said in [
        "nothing was landed",
        "test.sh",
        "--accept-risk",
        &format!("`kage apply {task}`"),
    ] {
        assert!(run.err.contains(said), "{said}: {run:#?}");
    }
    assert_eq!(repo.git(&["status", "--porcelain"]), "");

    let unchecked = "verify ran with the base's version of these";
    let applied = person.kage(repo.path(), &["apply", task]).await;
    assert_eq!(applied.code, 0, "{applied:#?}");
    assert!(applied.err.contains(unchecked), "{applied:#?}");
    assert_eq!(
        repo.git(&["status", "--porcelain"]).lines().count(),
        2,
        "both changes landed"
    );

    repo.git(&["reset", "--quiet", "--hard"]);
    arguments.push("--accept-risk");
    let run = person.kage(repo.path(), &arguments).await;
    assert_eq!(run.code, 0, "{run:#?}");
    assert!(run.err.contains(unchecked), "{run:#?}");
    assert_eq!(
        repo.git(&["status", "--porcelain"]).lines().count(),
        2,
        "both changes landed"
    );
}
