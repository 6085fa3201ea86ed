//! Which task a command means: the newest of the place where it is typed, never one of another
//! repository; and where results may be landed.

use std::path::Path;

use kage_tests::command::{Person, Said, said};
use kage_tests::repo::Repo;

/// A person with an adapter that makes a file.
fn person() -> Person {
    let person = Person::new();
    person.adapter("maker", "cat >/dev/null; echo made > made.txt");
    person
}

/// Runs a task to its end, and returns its id.
async fn run(person: &Person, repo: &Repo) -> String {
    let run = ["run", "make it", "--with", "maker", "--format", "json"];
    let run = person.kage(repo.path(), &run).await;
    assert_eq!(run.code, 0, "{run:#?}");
    run.json()["id"].as_str().unwrap().to_owned()
}

/// The task that a command means when none is named.
async fn meant(person: &Person, folder: &Path) -> Result<String, Said> {
    let shown = person.kage(folder, &["show", "--format", "json"]).await;
    match shown.code {
        0 => Ok(shown.json()["id"].as_str().unwrap().to_owned()),
        _ => Err(shown),
    }
}

#[track_caller]
fn refused(said: &Said, code: i32, words: &[&str]) {
    assert_eq!(said.code, code, "{said:#?}");
    for words in words {
        assert!(said.err.contains(words), "{words:?} is not in {said:#?}");
    }
}

#[tokio::test]
async fn a_task_is_of_its_repository_and_lands_nowhere_else() {
    let person = person();
    let (one, other) = (Repo::sample(&person.path("one")), Repo::empty(&person.path("other")));
    other.write("other.txt", "other\n");
    other.commit("another project");
    let task = run(&person, &one).await;

    // Nothing was run in the other one: no command takes a task of the first.
    for command in [
        &["apply"][..],
        &["apply", "--dry-run"],
        &["merge"],
        &["merge", "--dry-run"],
        &["stop"],
        &["diff"],
        &["show"],
        &["compare"],
        &["wait"],
        &["logs"],
        &["explain"],
        &["checkpoint", "ls"],
        &["checkpoint", "graph"],
        &["checkpoint", "show", "1"],
        &["checkpoint", "create"],
        &["checkpoint", "restore", "1"],
        &["context", "show"],
        &["context", "stats"],
    ] {
        let answer = person.kage(other.path(), command).await;
        let words = [
            "no task of this repository, other-",
            "is of one-",
            "kage run",
            "kage ls",
        ];
        refused(&answer, 4, &words);
        let outside = person.kage(&person.path("config"), command).await;
        refused(&outside, 2, &["not inside a git repository", "kage ls"]);
    }
    // Named, it is looked at from anywhere, and landed where it belongs.
    assert_eq!(person.kage(other.path(), &["show", &task]).await.code, 0);
    for command in ["apply", "merge"] {
        for more in [&[][..], &["--dry-run"]] {
            let landing = [&[command, &task[..8]], more].concat();
            let landing = person.kage(other.path(), &landing).await;
            refused(&landing, 2, &["of the repository one-", "this is other-", "--repo"]);
        }
    }
    assert_eq!(other.git(&["status", "--porcelain"]), "");

    let newer = run(&person, &other).await;
    assert_eq!(meant(&person, one.path()).await.unwrap(), task);
    assert_eq!(meant(&person, other.path()).await.unwrap(), newer);
    let listed = person.kage(other.path(), &["ls", "--format", "json"]).await.json();
    let names = [0, 1].map(|n| listed[n]["spec"]["repository"]["name"].as_str().unwrap().to_owned());
    assert!(
        names[0].starts_with("other-") && names[1].starts_with("one-"),
        "{names:?}"
    );
    let table = person.kage(one.path(), &["ls"]).await;
    assert!(names.iter().all(|name| table.out.contains(name)), "{table:#?}");

    let applied = person.kage(one.path(), &["apply"]).await;
    assert_eq!(applied.code, 0, "{applied:#?}");
    assert_eq!(one.git(&["status", "--porcelain"]), "?? made.txt\n");
    assert_eq!(other.git(&["status", "--porcelain"]), "");

    // Another repository is now at the path of the first.
    std::fs::rename(one.path(), person.path("moved")).unwrap();
    std::fs::rename(other.path(), one.path()).unwrap();
    let swapped = meant(&person, one.path()).await.unwrap_err();
    refused(&swapped, 4, &["no task of this repository"]);
    let moved = person.path("moved");
    assert!(meant(&person, &moved).await.is_err(), "its folder is another one");
    let named = person.kage(&moved, &["apply", &task, "--dry-run"]).await;
    assert_eq!(named.code, 0, "its base is there: {named:#?}");
}

#[tokio::test]
async fn subfolders_links_and_working_trees_are_one_repository_and_a_clone_is_another() {
    let person = person();
    let repo = Repo::sample(&person.path("repo"));
    repo.write("deep/er/file", "deep\n");
    repo.commit("a folder");
    let linked = person.path("linked");
    repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().unwrap()]);
    let clone = person.path("clone");
    repo.git(&["clone", "-q", ".", clone.to_str().unwrap()]);
    let link = person.path("link");
    std::os::unix::fs::symlink(repo.path(), &link).unwrap();

    let task = run(&person, &repo).await;
    for folder in [
        repo.path().to_owned(),
        repo.path().join("deep/er"),
        link.join("deep"),
        linked.clone(),
        linked.join("deep"),
    ] {
        assert_eq!(meant(&person, &folder).await.unwrap(), task, "{folder:?}");
    }
    refused(
        &meant(&person, &clone).await.unwrap_err(),
        4,
        &["no task of this repository"],
    );
    let elsewhere = ["apply", "--dry-run", "--repo", repo.path().to_str().unwrap()];
    let elsewhere = person.kage(&person.path("config"), &elsewhere).await;
    assert_eq!(
        elsewhere.code, 0,
        "the newest of the folder that was named: {elsewhere:#?}"
    );

    // A working tree's own task comes before a newer one of its repository.
    let run_linked = ["run", "make it", "--with", "maker", "--format", "json"];
    let side = person.kage(&linked, &run_linked).await.json();
    let side = side["id"].as_str().unwrap();
    assert_eq!(meant(&person, &linked).await.unwrap(), side);
    assert_eq!(meant(&person, repo.path()).await.unwrap(), task);
    let listed = person.kage(repo.path(), &["ls", "--format", "json"]).await.json();
    let of = |n: usize| &listed[n]["spec"]["repository"]["name"];
    assert!(of(0).is_string() && of(0) == of(1), "{listed:#}");
    for folder in [&clone, &linked] {
        let applied = person.kage(folder, &["apply", &task]).await;
        assert_eq!(applied.code, 0, "its base is known there: {applied:#?}");
        assert!(folder.join("made.txt").exists());
    }
}

#[tokio::test]
async fn ones_own_task_comes_before_a_newer_one_of_somebody_else() {
    let person = person();
    let repo = Repo::sample(&person.path("repo"));
    let own = run(&person, &repo).await;
    let create = ["token", "create", "--role", "submit", "--name", "bob"];
    let token = person.kage(repo.path(), &create).await;
    assert_eq!(token.code, 0, "{token:#?}");
    std::fs::write(person.path("token"), token.out.trim()).unwrap();
    let url = std::fs::read_to_string(person.path("state/coordinator/endpoint")).unwrap();
    let bob = async |arguments: &[&str]| {
        let mut command = person.command(repo.path(), arguments);
        command
            .env("KAGE_STATE_DIR", person.path("bob"))
            .env("KAGE__COORDINATOR__URL", url.trim())
            .env("KAGE__COORDINATOR__TOKEN_FILE", person.path("token"));
        said(command.output().await.unwrap())
    };
    let shown = bob(&["show", "--format", "json"]).await;
    assert_eq!(shown.json()["id"], own.as_str(), "{shown:#?}");
    assert!(shown.err.contains("somebody else's"), "{shown:#?}");
    let ran = bob(&["run", "make it", "--with", "maker", "--format", "json"]).await;
    assert_eq!(ran.code, 0, "{ran:#?}");
    let his = ran.json()["id"].as_str().unwrap().to_owned();

    assert_eq!(bob(&["show", "--format", "json"]).await.json()["id"], his.as_str());
    assert_eq!(meant(&person, repo.path()).await.unwrap(), own);
    let listed = person.kage(repo.path(), &["ls", "--format", "json"]).await.json();
    assert_eq!(listed[1]["created_by"], "owner", "{listed:#}");
    assert!(
        listed[0]["created_by"].as_str().unwrap().starts_with("token:"),
        "{listed:#}"
    );
    assert!(
        !person.path("bob").join("coordinator").exists(),
        "nothing is started for him"
    );
}
