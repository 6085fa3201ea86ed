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
    assert_eq!(meant(&person, one.path()).await.unwrap(), newer);
    let moved = person.path("moved");
    assert_eq!(meant(&person, &moved).await.unwrap(), task, "its folder is another one");
    let named = person.kage(&moved, &["apply", &task, "--dry-run"]).await;
    assert_eq!(named.code, 0, "its base is there: {named:#?}");
}

#[tokio::test]
async fn subfolders_links_working_trees_and_clones_are_one_repository_and_the_nearest_task_is_meant() {
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
    let from_clone = person.kage(&clone, &["show", "--format", "json"]).await;
    assert_eq!(from_clone.json()["id"], task.as_str(), "{from_clone:#?}");
    assert!(from_clone.err.contains("from another clone"), "{from_clone:#?}");
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

/// How many objects the packs hold in all bare repositories below a folder, by repository.
fn stored(repo: &Repo, folder: &Path) -> Vec<(String, u32)> {
    let mut stored = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("HEAD").is_file() {
            continue;
        }
        let counted = repo.git(&["--git-dir", path.to_str().unwrap(), "count-objects", "-v"]);
        let packed = counted.lines().find_map(|line| line.strip_prefix("in-pack: "));
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        stored.push((name, packed.unwrap().parse().unwrap()));
    }
    stored
}

#[tokio::test]
async fn a_second_clone_sends_what_is_missing_and_both_land_what_either_ran() {
    let person = person();
    let first = Repo::sample(&person.path("first"));
    for number in 0..150 {
        first.git(&["commit", "-q", "--allow-empty", "-m", &number.to_string()]);
    }
    let path = person.path("second");
    first.git(&["clone", "-q", ".", path.to_str().unwrap()]);
    let second = Repo::at(&path);
    // The base of each is uncommitted work, which the other one does not have.
    first.write("mine.txt", "mine\n");
    second.write("theirs.txt", "theirs\n");
    let one = run(&person, &first).await;
    let places = ["coordinator/repos/default", "agent/mirrors/default"].map(|p| person.path("state").join(p));
    let before = places.each_ref().map(|place| stored(&first, place));
    let other = run(&person, &second).await;
    for (place, before) in places.iter().zip(before) {
        let after = stored(&first, place);
        let [(name, objects)] = &after[..] else {
            panic!("one repository in {place:?}: {after:?}");
        };
        assert!(name.starts_with("first-"), "{name}");
        assert_eq!(before[0].0, *name);
        assert!(before[0].1 > 150, "the whole history: {before:?}");
        assert!(objects - before[0].1 < 50, "only what is new: {before:?} {after:?}");
    }
    for (repo, own, foreign) in [(&first, &one, &other), (&second, &other, &one)] {
        assert_eq!(meant(&person, repo.path()).await.unwrap(), *own, "its own comes first");
        let landed = person.kage(repo.path(), &["apply", foreign]).await;
        assert_eq!(landed.code, 0, "its base is known here: {landed:#?}");
        assert!(repo.path().join("made.txt").exists());
    }

    // A commit that only the second clone has is no place for its result to stand on elsewhere.
    for repo in [&first, &second] {
        std::fs::remove_file(repo.path().join("made.txt")).unwrap();
    }
    second.commit("of the second clone only");
    let newest = run(&person, &second).await;
    assert_eq!(meant(&person, first.path()).await.unwrap(), one);
    let refusal = person.kage(first.path(), &["apply", &newest]).await;
    refused(
        &refusal,
        2,
        &["another clone of first-", "does not have the commit", "git fetch"],
    );
    first.git(&["fetch", "-q", path.to_str().unwrap(), "HEAD"]);
    let fetched = person.kage(first.path(), &["apply", &newest, "--dry-run"]).await;
    assert_eq!(fetched.code, 0, "{fetched:#?}");
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
