//! What a session leaves besides its work: junk that the person's git ignores, a core, a pipe. The
//! result has the work, and says what it leaves out.

use kage_tests::command::Person;
use kage_tests::repo::{Repo, VERIFY};

#[tokio::test]
async fn junk_of_the_person_and_large_files_are_in_no_result_and_are_told() {
    let person = Person::new();
    person.adapter(
        "messy",
        "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh; mkdir -p .idea sub; echo x > .idea/workspace.xml; \
         echo x > sub/.DS_Store; echo x > notes.scratch; truncate -s 2T core; mkfifo pipe; echo x > 'git~1'; \
         head -c 6000000 /dev/zero > asset.bin",
    );
    let repo = Repo::sample(&person.path("repo"));
    std::fs::write(person.path(".gitconfig"), "[core]\n\texcludesFile = ~/ignored\n").unwrap();
    std::fs::write(person.path("ignored"), "# mine\n.idea/\n.DS_Store\n").unwrap();
    std::fs::write(repo.path().join(".git/info/exclude"), "*.scratch\n").unwrap();
    let run = [
        "run",
        "mend the sum",
        "--with",
        "messy",
        "--verify",
        VERIFY,
        "--format",
        "json",
    ];
    let run = person.kage(repo.path(), &run).await;
    assert_eq!(run.code, 0, "{run:#?}");
    let row = run.json()["report"]["rows"][0].clone();
    assert_eq!(row["risk"], "RISK_LOW", "{row:#}");
    let flags: Vec<_> = row["flags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|flag| flag.as_str().unwrap())
        .collect();
    assert_eq!(
        flags,
        [
            "has large files: asset.bin (6.0 MB)",
            "leaves out what the session's worktree had: core (it has 2.1 TB), git~1 (git cannot store a file of that \
             name)",
        ]
    );
    let shown = person.kage(repo.path(), &["show", "--format", "json"]).await.json();
    assert_eq!(
        shown["sessions"][0]["result"]["paths"],
        serde_json::json!(["add.sh", "asset.bin"])
    );
}
