//! What a person sees when something is wrong: the message, the exit code, and that nothing is
//! lost. Each test is a row of `docs/errors.md`; a test below compares the page with this file.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use kage_tests::command::{Person, Said, said};
use kage_tests::repo::{Repo, VERIFY};

/// A script that makes the sample's test pass.
const FIX: &str = "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh";

/// A person with an adapter that works, in a repository with something to do.
fn person() -> (Person, Repo) {
    let person = Person::new();
    person.adapter("fixer", FIX);
    let repo = Repo::sample(&person.path("repo"));
    (person, repo)
}

/// A person whose daemon the tests that run now share: those that say which task they mean,
/// and after which it is as it was.
fn shared(repository: &str) -> (Arc<Person>, Repo) {
    static SHARED: Mutex<Weak<Person>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap();
    let person = shared.upgrade().unwrap_or_else(|| {
        let person = Arc::new(Person::new());
        person.adapter("fixer", FIX);
        person.adapter("counter", "wc -c > add.sh");
        person.adapter(
            "spent",
            "cat >/dev/null; echo 'quota exceeded, resets in 2 h' >&2; exit 1",
        );
        *shared = Arc::downgrade(&person);
        person
    });
    drop(shared);
    let repo = Repo::sample(&person.path(repository));
    (person, repo)
}

/// The task that a command with `--format json` made.
fn made(said: &Said) -> String {
    said.json()["id"].as_str().unwrap().to_owned()
}

#[track_caller]
fn check(said: &Said, code: i32, words: &[&str]) {
    assert_eq!(said.code, code, "{said:#?}");
    for words in words {
        assert!(said.err.contains(words), "{words:?} is not in {said:#?}");
    }
}

async fn tasks(person: &Person, repo: &Repo) -> usize {
    let listed = person.kage(repo.path(), &["ls", "--format", "json"]).await;
    listed.json().as_array().unwrap().len()
}

#[tokio::test]
async fn an_unknown_adapter_is_refused_with_what_the_fleet_has() {
    let (person, repo) = person();
    let run = person.kage(repo.path(), &["run", "x", "--with", "codexx"]).await;
    check(
        &run,
        2,
        &[
            "no agent has the adapter codexx; the fleet has",
            "fixer",
            "--wait-for-agent",
        ],
    );
    assert_eq!(tasks(&person, &repo).await, 0, "nothing was stored");
}

#[tokio::test]
async fn an_adapter_that_is_not_set_up_says_what_it_lacks() {
    let (person, repo) = shared("not-set-up");
    let run = person.kage(repo.path(), &["run", "x", "--with", "claude-api"]).await;
    check(
        &run,
        2,
        &["the adapter claude-api does not work on", "ANTHROPIC_API_KEY"],
    );
}

#[tokio::test]
async fn a_task_that_no_agent_can_run_waits_only_when_asked_to() {
    let (person, repo) = shared("labels");
    let labels = ["run", "x", "--with", "fixer", "--agents", "gpu=true"];
    let run = person.kage(repo.path(), &labels).await;
    check(&run, 2, &["no agent with fixer carries gpu=true", "--wait-for-agent"]);
    let waiting = [&labels[..], &["--wait-for-agent", "-d", "--format", "json"]].concat();
    let waiting = person.kage(repo.path(), &waiting).await;
    check(&waiting, 0, &[]);
    let task = made(&waiting);
    let shown = person.kage(repo.path(), &["show", &task]).await;
    assert!(
        shown.out.contains("fixer: no agent with fixer carries gpu=true"),
        "{shown:#?}"
    );
    check(&person.kage(repo.path(), &["stop", &task]).await, 0, &[]);
}

#[tokio::test]
async fn a_repository_without_commits_says_how_to_make_one() {
    let person = Person::new();
    let repo = Repo::empty(&person.path("empty"));
    let run = person.kage(repo.path(), &["run", "x", "--with", "fixer"]).await;
    check(&run, 2, &["no commits yet", "git commit"]);
}

#[tokio::test]
async fn outside_a_repository_it_says_so() {
    let person = Person::new();
    let run = person
        .kage(&person.path("config"), &["run", "x", "--with", "fixer"])
        .await;
    check(&run, 2, &["not inside a git repository"]);
}

#[tokio::test]
async fn a_dirty_submodule_is_named_and_left_alone() {
    let (person, repo) = shared("submodule");
    let part = Repo::sample(&person.path("part"));
    let url = part.path().to_str().unwrap();
    let local = [("protocol.file.allow", "always")];
    repo.git_with(&["submodule", "--quiet", "add", url, "part"], &local);
    repo.commit("a part");
    repo.write("part/add.sh", "changed in the submodule\n");
    let run = person
        .kage(repo.path(), &["run", "x", "--with", "fixer", "--verify", VERIFY])
        .await;
    check(
        &run,
        0,
        &[
            "sessions see the submodules part at their recorded commits",
            "stays here",
        ],
    );
    let changed = std::fs::read_to_string(repo.path().join("part/add.sh")).unwrap();
    assert_eq!(changed, "changed in the submodule\n");
    // Its git directory is gone, and with it the recorded commit.
    repo.git(&["submodule", "deinit", "--quiet", "--force", "part"]);
    std::fs::remove_dir_all(repo.path().join(".git/modules/part")).unwrap();
    let run = person
        .kage(repo.path(), &["run", "x", "--with", "fixer", "--verify", VERIFY])
        .await;
    check(
        &run,
        0,
        &["empty folders in place of the submodules part", "git submodule update"],
    );
}

#[tokio::test]
async fn files_of_lfs_that_are_not_here_are_named() {
    let (person, repo) = shared("lfs");
    repo.write(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12\n",
        "0".repeat(64)
    );
    repo.write("data.bin", &pointer);
    repo.commit("a large file");
    let run = person
        .kage(repo.path(), &["run", "x", "--with", "fixer", "--verify", VERIFY])
        .await;
    check(
        &run,
        0,
        &["1 LFS file is a pointer in sessions", "data.bin", "git lfs pull"],
    );
}

#[tokio::test]
async fn a_changed_file_behind_git_crypt_stops_the_run_and_is_named() {
    let (person, repo) = shared("git-crypt");
    repo.write(".gitattributes", "secret filter=git-crypt diff=git-crypt\n");
    // Like git-crypt: the committed content differs from the working tree.
    repo.git(&["config", "filter.git-crypt.clean", "tr a-z n-za-m"]);
    repo.git(&["config", "filter.git-crypt.smudge", "tr a-z n-za-m"]);
    repo.write("secret", "the password\n");
    // A file as old as the index that knows it might have been changed since, for all git knows.
    let file = std::fs::File::options()
        .write(true)
        .open(repo.path().join("secret"))
        .unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    repo.commit("a secret");
    assert!(repo.git(&["show", "HEAD:secret"]).contains("cnffjbeq"));
    let sealed = person
        .kage(repo.path(), &["run", "x", "--with", "fixer", "--verify", VERIFY])
        .await;
    check(&sealed, 0, &[]);
    repo.write("secret", "another password\n");
    let arguments = ["run", "x", "--with", "fixer", "--verify", VERIFY];
    let plain = person.kage(repo.path(), &arguments).await;
    check(&plain, 2, &["secret", "git-crypt", "--committed"]);
    let committed = person
        .kage(repo.path(), &[&arguments[..], &["--committed"]].concat())
        .await;
    check(&committed, 0, &[]);
    assert_eq!(
        std::fs::read_to_string(repo.path().join("secret")).unwrap(),
        "another password\n"
    );
}

#[tokio::test]
async fn a_verify_command_that_does_not_exist_is_no_verdict_on_the_session() {
    let (person, repo) = shared("no-verify");
    let run = person
        .kage(
            repo.path(),
            &[
                "run",
                "x",
                "--with",
                "fixer",
                "--verify",
                "no-such-command",
                "--format",
                "json",
            ],
        )
        .await;
    assert_eq!(run.code, 1, "{run:#?}");
    let report = run.json();
    let session = &report["sessions"][0];
    assert_eq!(
        (&session["state"], &session["verdict"]["kind"]),
        (&"SESSION_STATE_UNVERIFIED".into(), &"VERDICT_KIND_ERRORED".into())
    );
    let shown = person.kage(repo.path(), &["show", &made(&run)]).await;
    assert!(shown.out.contains("no-such-command"), "{shown:#?}");
    // The work exists nevertheless.
    let diff = person
        .kage(repo.path(), &["diff", &made(&run), "--session", "fixer"])
        .await;
    assert!(diff.out.contains("+add() { echo $(($1 + $2)); }"), "{diff:#?}");
}

#[tokio::test]
async fn a_prompt_of_ten_megabytes_is_taken_and_one_above_the_limit_is_not() {
    let (person, repo) = shared("prompt");
    let file = person.path("long-prompt");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "all work and no play\n".repeat(500_000)).unwrap();
    let arguments = ["run", "--prompt-file", path, "--with", "counter", "--format", "json"];
    let run = person.kage(repo.path(), &arguments).await;
    check(&run, 0, &[]);
    let diff = person.kage(repo.path(), &["diff", &made(&run)]).await;
    let count = diff
        .out
        .lines()
        .find_map(|line| line.strip_prefix('+')?.trim().parse::<usize>().ok());
    assert!(
        count.is_some_and(|bytes| bytes >= 10_500_000),
        "all of it arrived: {diff:#?}"
    );

    std::fs::write(&file, "x".repeat((16 << 20) + 1)).unwrap();
    let run = person.kage(repo.path(), &arguments).await;
    check(&run, 2, &["the prompt has 16777217 bytes; the limit is 16777216"]);
    std::fs::write(&file, b"\xff\xfe").unwrap();
    let run = person.kage(repo.path(), &arguments).await;
    check(&run, 2, &["cannot read the prompt", "UTF-8"]);
}

#[tokio::test]
async fn an_invalid_manifest_is_named_with_its_fault() {
    let (person, repo) = person();
    std::fs::write(
        person.path("config/kage/adapters/mine.toml"),
        "name = \"mine\"\nargs = []\n",
    )
    .unwrap();
    for arguments in [&["run", "x", "--with", "mine"][..], &["up"]] {
        let said = person.kage(repo.path(), arguments).await;
        check(&said, 2, &["mine.toml", "command"]);
    }
}

/// Runs with settings of a coordinator elsewhere.
async fn elsewhere(person: &Person, repo: &Repo, url: &str, token: &Path, arguments: &[&str]) -> Said {
    let mut command = person.command(repo.path(), arguments);
    command
        .env("KAGE__COORDINATOR__URL", url)
        .env("KAGE__COORDINATOR__TOKEN_FILE", token);
    said(command.output().await.unwrap())
}

#[tokio::test]
async fn a_wrong_token_is_denied_and_says_where_right_ones_are() {
    let (person, repo) = shared("token");
    check(
        &person.kage(repo.path(), &["run", "x", "--with", "fixer", "-d"]).await,
        0,
        &[],
    );
    let url = std::fs::read_to_string(person.path("state/coordinator/endpoint")).unwrap();
    let token = person.path("wrong");
    std::fs::write(&token, "not a token\n").unwrap();
    let said = elsewhere(&person, &repo, url.trim(), &token, &["ls"]).await;
    check(&said, 5, &["the bearer token is missing or wrong", "kage token create"]);
    let said = elsewhere(&person, &repo, url.trim(), &person.path("none"), &["ls"]).await;
    check(&said, 2, &["cannot read", "none"]);
}

#[tokio::test]
async fn an_unreachable_coordinator_is_named() {
    let (person, repo) = person();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let token = person.path("token");
    std::fs::write(&token, "token\n").unwrap();
    let said = elsewhere(&person, &repo, &format!("http://{free}"), &token, &["ls"]).await;
    check(&said, 8, &[&free.to_string()]);
    // Nothing runs on this machine, and a command that only looks starts nothing.
    check(&person.kage(repo.path(), &["ls"]).await, 8, &["kage up"]);
}

/// A gRPC server that knows none of the calls.
async fn of_another_version(listener: tokio::net::TcpListener) {
    let answer = || async {
        let headers = [("content-type", "application/grpc"), ("grpc-status", "12")];
        (headers, axum::body::Body::empty())
    };
    let router = axum::Router::new().fallback(answer);
    axum::serve(listener, router).await.unwrap();
}

#[tokio::test]
async fn a_coordinator_of_another_version_is_told_from_a_broken_one() {
    let (person, repo) = person();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let token = person.path("token");
    std::fs::write(&token, "token\n").unwrap();
    tokio::select! {
        () = of_another_version(listener) => panic!("the server ended"),
        said = elsewhere(&person, &repo, &url, &token, &["ls"]) => {
            check(&said, 8, &["the coordinator has another version than this program"]);
        }
    }
}

#[tokio::test]
async fn a_task_that_is_held_on_a_used_up_limit_ends_the_command_and_goes_on() {
    let (person, repo) = shared("held");
    let run = person
        .kage(
            repo.path(),
            &["run", "x", "--with", "spent", "--max-hold", "1m", "--format", "json"],
        )
        .await;
    check(&run, 7, &["is held: spent: held until", "kage wait"]);
    let task = made(&run);
    let wait = person.kage(repo.path(), &["wait", &task]).await;
    check(&wait, 7, &["is held"]);
    let patient = person
        .kage(repo.path(), &["wait", &task, "--max-hold", "24h", "--timeout", "1s"])
        .await;
    check(&patient, 3, &["it continues"]);
    let shown = person
        .kage(repo.path(), &["show", &task, "--format", "json"])
        .await
        .json();
    assert_eq!(
        (&shown["state"], &shown["sessions"][0]["attempts"]),
        (&"TASK_STATE_RUNNING".into(), &1.into())
    );
    check(&person.kage(repo.path(), &["stop", &task]).await, 0, &[]);
}

#[tokio::test]
async fn what_was_typed_wrong_is_named() {
    let (person, repo) = shared("typed");
    let file = person.path("context.json");
    std::fs::write(&file, "{\"a\": null}").unwrap();
    let context = file.to_str().unwrap();
    let cases: [(&[&str], &str); 7] = [
        (&["run", "x", "--with", "Not A Name"], "--with"),
        (&["run", "x", "--with", "fixer:"], "no model after the colon"),
        (&["run", "x", "--with", "fixer", "--agents", "gpu"], "KEY=VALUE"),
        (
            &["run", "x", "--with", "fixer", "--priority", "urgent"],
            "low, normal, high",
        ),
        (&["run", " ", "--with", "fixer"], "the prompt is empty"),
        (
            &["run", "x", "--with", "fixer", "--protect", "a["],
            "not a path pattern",
        ),
        (&["run", "x", "--with", "fixer", "--context", context], "/a"),
    ];
    for (arguments, words) in cases {
        check(&person.kage(repo.path(), arguments).await, 2, &[words]);
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let (person, repo) = shared("not-there");
    check(
        &person.kage(repo.path(), &["run", "x", "--with", "fixer", "-d"]).await,
        0,
        &[],
    );
    for arguments in [&["show", "abcdef"][..], &["agent", "cordon", "nobody"]] {
        check(&person.kage(repo.path(), arguments).await, 4, &["was not found"]);
    }
}

#[tokio::test]
async fn a_cordoned_agent_is_why_a_task_waits() {
    let (person, repo) = person();
    check(
        &person.kage(repo.path(), &["run", "x", "--with", "fixer"]).await,
        0,
        &[],
    );
    let agents = person
        .kage(repo.path(), &["agent", "ls", "--format", "json"])
        .await
        .json();
    let name = agents[0]["name"].as_str().unwrap().to_owned();
    check(&person.kage(repo.path(), &["agent", "cordon", &name]).await, 0, &[]);
    check(
        &person.kage(repo.path(), &["run", "x", "--with", "fixer", "-d"]).await,
        0,
        &[],
    );
    let why = format!("only {name} has it, and is cordoned");
    let shown = person.kage(repo.path(), &["show"]).await;
    assert!(shown.out.contains(&why), "{shown:#?}");
    check(&person.kage(repo.path(), &["agent", "uncordon", &name]).await, 0, &[]);
    check(&person.kage(repo.path(), &["wait"]).await, 0, &[]);
}

#[tokio::test]
async fn data_without_its_database_is_refused_and_says_what_to_do() {
    let person = Person::new();
    person.adapter("fixer", "cat >/dev/null; echo fixed >fixed.txt");
    let repo = Repo::sample(&person.path("repo"));
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;
    let run = ["run", "fix it", "--with", "fixer"];
    let done = kage(&run).await;
    assert_eq!(done.code, 0, "{done:#?}");
    assert_eq!(kage(&["down"]).await.code, 0);

    let data = person.path("state/coordinator");
    let database = data.join("kage.db");
    let aside = person.path("kage.db");
    std::fs::rename(&database, &aside).unwrap();
    // The daemon of a command, and one started by a person.
    for arguments in [&run[..], &["ls"], &["up"], &["coordinator", "--listen", "127.0.0.1:0"]] {
        let refused = kage(arguments).await;
        assert_eq!(refused.code, 2, "{refused:#?}");
        let folder = format!("{} has ", data.display());
        for said in [
            &folder,
            "its database kage.db is missing",
            "nothing was changed",
            "--adopt-data",
        ] {
            assert!(refused.err.contains(said), "{said}: {refused:#?}");
        }
        assert!(!database.exists());
    }
    std::fs::rename(&aside, &database).unwrap();
    let listed = kage(&["ls", "--format", "json"]).await;
    assert_eq!(listed.json().as_array().unwrap().len(), 1, "{listed:#?}");
    let again = kage(&run).await;
    assert_eq!(again.code, 0, "{again:#?}");
    let listed = kage(&["ls", "--format", "json"]).await.json();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed:#}");
}

/// The tests of this file, by their attribute.
fn tests_here() -> BTreeSet<String> {
    let code = include_str!("errors.rs");
    let marked = code.split("#[tokio::test]\nasync fn ").skip(1);
    marked
        .filter_map(|rest| Some(rest.split_once('(')?.0.to_owned()))
        .collect()
}

#[test]
fn the_page_of_errors_and_its_tests_are_the_same() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let page = std::fs::read_to_string(root.join("docs/errors.md")).unwrap();
    let mut named = BTreeSet::new();
    for row in page
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains(".rs: "))
    {
        let test = row.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        let (file, name) = test.split_once(": ").unwrap();
        let code = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(code.contains(&format!("fn {name}(")), "{file} has no test {name}");
        if file.ends_with("e2e/errors.rs") {
            named.insert(name.to_owned());
        }
    }
    assert_eq!(named, tests_here(), "each test is a row, and each row a test");
    for code in [0, 1, 2, 3, 4, 5, 7, 8, 70, 130] {
        assert!(
            page.contains(&format!("\n| {code} |")),
            "exit code {code} is not explained"
        );
    }
}

#[tokio::test]
async fn an_old_flawed_history_is_taken_and_a_dangerous_one_is_refused() {
    let person = Person::new();
    person.adapter("fixer", "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh");
    let repo = Repo::sample(&person.path("repo"));
    let object = |kind: &str, bytes: &[u8]| {
        let file = person.path("object");
        std::fs::write(&file, bytes).unwrap();
        let made = repo.git(&["hash-object", "-t", kind, "-w", "--literally", file.to_str().unwrap()]);
        made.trim().to_owned()
    };
    // The files stay as they are; the commit is one of the past.
    let into_history = |flawed: &str| {
        let now = repo.git(&["commit-tree", "HEAD^{tree}", "-p", flawed, "-m", "now"]);
        repo.git(&["update-ref", "HEAD", now.trim()]);
    };
    let tree = repo.git(&["rev-parse", "HEAD^{tree}"]);
    let old = format!(
        "tree {}\nparent {}\nauthor A <a@b> 1 +0000\nauthor B<b@b> 1 +0000\ncommitter A <a@b> never +0000\n\nold\n",
        tree.trim(),
        repo.head()
    );
    into_history(&object("commit", old.as_bytes()));
    let run = ["run", "mend add.sh", "--with", "fixer", "--verify", "sh test.sh"];
    let ran = person.kage(repo.path(), &run).await;
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.out.contains("verified"), "{ran:#?}");

    let blob = object("blob", b"gitdir: /elsewhere\n");
    let raw = (0..40)
        .step_by(2)
        .map(|at| u8::from_str_radix(&blob[at..at + 2], 16).unwrap());
    let evil = object(
        "tree",
        &[b"100644 .git\0".as_slice(), &raw.collect::<Vec<_>>()].concat(),
    );
    let commit = repo.git(&["commit-tree", &evil, "-p", "HEAD", "-m", "evil"]);
    into_history(commit.trim());
    let ran = person.kage(repo.path(), &run).await;
    assert_eq!(ran.code, 2, "{ran:#?}");
    let named = format!("{evil} (hasDotgit: ");
    assert!(
        ran.err.contains(&named) && ran.err.contains("rewrite the history"),
        "{ran:#?}"
    );
}
