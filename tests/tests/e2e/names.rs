//! Tags and branches of the person's repository in sessions and checks, and a base that the
//! coordinator does not take.

use std::path::{Path, PathBuf};

use kage_tests::command::Person;
use kage_tests::repo::{Repo, SOLUTION};

#[tokio::test]
async fn sessions_and_verify_describe_the_commit_and_compare_it_with_main() {
    let person = Person::new();
    person.adapter(
        "maker",
        "cat >/dev/null; { git describe --tags; git rev-parse --abbrev-ref HEAD; git diff --name-only main...HEAD; } > \
         seen.txt && echo 'add() { echo $(($1 + $2)); }' > add.sh",
    );
    let repo = Repo::sample(&person.path("repo"));
    // Verify sees the result, which is one commit on top of the topic.
    let check = "sh test.sh && git describe --tags | grep -q \"^$1-2-g\" && \\\n\
                 [ \"$(git diff --name-only origin/main...HEAD | tr '\\n' ' ')\" = 'add.sh seen.txt topic.txt ' ]\n";
    repo.write("check.sh", check);
    repo.commit("a check");
    repo.git(&["tag", "--annotate", "--message", "the first", "v1.0"]);
    repo.git(&["switch", "--quiet", "--create", "topic"]);
    repo.write("topic.txt", "of the topic\n");
    repo.commit("topic");
    // `main` goes on without the topic.
    repo.git(&["switch", "--quiet", "main"]);
    repo.write("later.txt", "of others\n");
    repo.commit("later");
    repo.git(&["update-ref", "refs/remotes/origin/main", "main"]);
    repo.git(&["switch", "--quiet", "topic"]);
    let described = repo.git(&["describe", "--tags"]);
    // A checkout that is used again for the second task has the names of that.
    for (task, tag) in [(1, "v1.0"), (2, "v1.1")] {
        if task == 2 {
            repo.git(&["tag", "v1.1", "HEAD~1"]);
            repo.git(&["tag", "--delete", "v1.0"]);
        }
        let described = described.replace("v1.0", tag);
        let verify = format!("sh check.sh {tag}");
        let run = [
            "run", "make it", "--with", "maker", "--verify", &verify, "--apply", "--format", "json",
        ];
        let ran = person.kage(repo.path(), &run).await;
        assert_eq!(ran.code, 0, "{ran:#?}");
        let seen = std::fs::read_to_string(repo.path().join("seen.txt")).unwrap();
        assert_eq!(seen, format!("{described}topic\ntopic.txt\n"));
        assert_eq!(std::fs::read_to_string(repo.path().join("add.sh")).unwrap(), SOLUTION);
        repo.git(&["stash", "--quiet", "--include-untracked"]);
        repo.git(&["stash", "drop", "--quiet"]);
    }
}

/// The bare repositories below a folder.
fn bare_repositories(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.join("refs/kage/bases").is_dir() {
            found.push(path);
        } else if path.is_dir() {
            bare_repositories(&path, found);
        }
    }
}

#[tokio::test]
async fn a_base_that_is_not_taken_is_refused_with_the_reason_and_leaves_no_task() {
    let person = Person::new();
    person.adapter("maker", "cat >/dev/null; echo made > made.txt");
    let repo = Repo::sample(&person.path("repo"));
    let run = ["run", "make it", "--with", "maker"];
    let ran = person.kage(repo.path(), &run).await;
    assert_eq!(ran.code, 0, "{ran:#?}");
    let mut found = Vec::new();
    bare_repositories(&person.path("state/coordinator"), &mut found);
    let [bare] = found.as_slice() else { panic!("{found:?}") };
    let bare = Repo::at(bare);
    let before = bare.git(&["for-each-ref", "refs/kage/bases"]);

    repo.git(&["tag", "v1.0"]);
    repo.write("new.txt", "n\n");
    let head = repo.commit("new");
    let lock = bare.path().join(format!("refs/kage/bases/{head}.lock"));
    std::fs::write(&lock, "").unwrap();
    let ran = person.kage(repo.path(), &run).await;
    assert_eq!(ran.code, 2, "{ran:#?}");
    for words in [
        "the coordinator did not take the base",
        "cannot lock ref",
        "no task was made",
    ] {
        assert!(ran.err.contains(words), "{words}: {ran:#?}");
    }
    assert_eq!(bare.git(&["for-each-ref", "refs/kage/bases"]), before);
    let listed = person.kage(repo.path(), &["ls", "--format", "json"]).await;
    assert_eq!(listed.json().as_array().map(Vec::len), Some(1), "{listed:#?}");

    std::fs::remove_file(&lock).unwrap();
    let ran = person.kage(repo.path(), &run).await;
    assert_eq!(ran.code, 0, "{ran:#?}");
}
