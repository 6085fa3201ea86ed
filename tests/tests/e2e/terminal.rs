//! What a person sees at a terminal and what a script gets in a pipe, of tasks whose programs, files and
//! words are hostile to both. A pseudo-terminal is made by `script` of util-linux.

use std::process::Stdio;

use kage_tests::command::{Person, Said, said};
use kage_tests::repo::{Repo, VERIFY};
use kage_tests::wait::wait_for;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Clears the screen, sets the title, begins a colour and turns the direction of writing.
const HOSTILE: &str = r"\033[2J\033]0;title\007\033[31mred\342\200\256gnp";

/// Mends the sum, and says hostile things in its output, in a file and in a file's name.
fn hostile_fix() -> String {
    format!(
        "cat >/dev/null; echo 'add() {{ echo $(($1 + $2)); }}' > add.sh; printf '{HOSTILE}\\n'; \
         printf '{HOSTILE}\\n' > \"$(printf 'n\\033[2Jame')\""
    )
}

/// A command at a terminal of so many columns.
fn at_terminal(person: &Person, repo: &Repo, columns: u16, arguments: &[&str]) -> Command {
    let kage = kage_tests::programs::kage();
    let quoted: Vec<_> = std::iter::once(kage.to_str().unwrap())
        .chain(arguments.iter().copied())
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    let line = format!("stty cols {columns} rows 50; exec {}", quoted.join(" "));
    // The person's folders, without the program.
    let usual = person.command(repo.path(), &[]);
    let mut script = Command::new("script");
    script
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .current_dir(repo.path())
        .env_clear();
    for (name, value) in usual.as_std().get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    script
        .env("TERM", "xterm-256color")
        .env("PAGER", "cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    script
}

async fn on_terminal(person: &Person, repo: &Repo, columns: u16, arguments: &[&str]) -> Said {
    let mut child = at_terminal(person, repo, columns, arguments).spawn().unwrap();
    // `script` ends with its standard input, too.
    let _open = child.stdin.take();
    said(child.wait_with_output().await.unwrap())
}

/// What is left of a terminal's text without the colours that Kage itself uses.
fn without_colours(text: &str) -> String {
    [
        "\u{1b}[0m",
        "\u{1b}[1m",
        "\u{1b}[2m",
        "\u{1b}[31m",
        "\u{1b}[32m",
        "\u{1b}[33m",
    ]
    .iter()
    .fold(text.to_owned(), |text, code| text.replace(code, ""))
}

#[tokio::test]
async fn nothing_hostile_reaches_a_terminal_and_a_pipe_gets_every_byte() {
    let person = Person::new();
    person.adapter("hostile", &hostile_fix());
    let repo = Repo::sample(&person.path("repo"));
    let ran = person
        .kage(
            repo.path(),
            &["run", "mend\u{1b}[2J it", "--with", "hostile", "--verify", VERIFY],
        )
        .await;
    assert_eq!(ran.code, 0, "{ran:#?}");
    for arguments in [
        &["logs"][..],
        &["diff"],
        &["diff", "--name-only"],
        &["show"],
        &["compare"],
        &["ls"],
        &["show", "--format", "json"],
        &["apply", "--dry-run"],
    ] {
        let seen = on_terminal(&person, &repo, 80, arguments).await;
        assert_eq!(seen.code, 0, "{arguments:?}: {seen:#?}");
        let text = without_colours(&seen.out);
        let orders = |c: char| (c.is_control() && !matches!(c, '\n' | '\r' | '\t')) || c == '\u{202e}';
        assert!(!text.contains(orders), "{arguments:?}: {text:?}");
        let is_table = ["compare", "ls"].contains(&arguments[0]);
        for line in text.lines().filter(|_| is_table) {
            assert!(line.trim_end().chars().count() <= 80, "{arguments:?}: {line:?}");
        }
    }
    let raw = b"\x1b[2J\x1b]0;title\x07\x1b[31mred\xe2\x80\xaegnp\n";
    let piped = person.command(repo.path(), &["logs"]).output().await.unwrap();
    let has = |bytes: &[u8]| bytes.windows(raw.len()).any(|window| window == raw);
    assert!(has(&piped.stdout), "{piped:?}");
    let asked = on_terminal(&person, &repo, 80, &["logs", "--raw"]).await;
    assert!(asked.out.contains("\u{1b}[2J\u{1b}]0;title"), "{asked:#?}");
    let patch = person.command(repo.path(), &["diff"]).output().await.unwrap();
    assert!(patch.stdout.windows(4).any(|window| window == b"\x1b[2J"), "{patch:?}");
    let plain = on_terminal(&person, &repo, 80, &["compare", "--format", "tsv"]).await;
    assert!(plain.out.starts_with("#\tsession\tadapter\tstate"), "{plain:#?}");
    person.kage(repo.path(), &["down"]).await;
}

#[tokio::test]
async fn tasks_are_found_again_and_read_whole() {
    let person = Person::new();
    person.adapter(
        "fixer",
        "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh; echo mended",
    );
    person.adapter("idler", "cat >/dev/null; echo idle");
    let repo = Repo::sample(&person.path("repo"));
    let kage = async |arguments: &[&str]| person.kage(repo.path(), arguments).await;
    let prompt = "mend the sum\n\nand keep its name\n";
    let mended = kage(&["run", prompt, "--with", "fixer,idler", "--verify", VERIFY]).await;
    assert_eq!(mended.code, 0, "{mended:#?}");
    assert_eq!(
        mended.err.matches("mended").count() + mended.out.matches("mended").count(),
        1,
        "{mended:#?}"
    );
    let dash = kage(&["run", "- do nothing at all", "--with", "idler"]).await;
    assert_eq!(dash.code, 1, "{dash:#?}");

    // Filters, and columns of a pipe.
    let rows = async |arguments: &[&str]| {
        let listed = kage(&[&["ls", "--format", "tsv"], arguments].concat()).await;
        assert_eq!(listed.code, 0, "{listed:#?}");
        let rows: Vec<Vec<String>> = listed
            .out
            .lines()
            .skip(1)
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect();
        rows
    };
    let all = rows(&[]).await;
    assert_eq!(all.len(), 2, "{all:?}");
    let mine = rows(&[
        "--state",
        "succeeded",
        "--repo",
        ".",
        "--since",
        "1h30m",
        "--mine",
        "--search",
        "SUM fixer",
    ])
    .await;
    assert_eq!(mine.len(), 1, "{mine:?}");
    let row = &mine[0];
    assert_eq!(
        (row[1].as_str(), row[4].as_str(), row[5].as_str()),
        ("succeeded", "fixer", "fixer, idler")
    );
    assert!(row[7].ends_with(" ago") || row[7] == "now", "{row:?}");
    for nothing in [
        &["--state", "running"][..],
        &["--repo", "elsewhere"],
        &["--search", "sum codex"],
        &["--since", "0s"],
    ] {
        assert!(rows(nothing).await.is_empty(), "{nothing:?}");
    }
    let wrong = kage(&["ls", "--since", "someday"]).await;
    assert_eq!(wrong.code, 2, "{wrong:#?}");
    let piped = kage(&["ls"]).await;
    assert!(piped.out.starts_with("task") && !piped.out.contains('│'), "{piped:#?}");

    // The prompt, and what verify did.
    let task = mine[0][0].as_str();
    assert_eq!(kage(&["show", task, "--prompt"]).await.out, prompt);
    let shown = kage(&["show", task, "--format", "json"]).await.json();
    let verification = &shown["verifications"][0];
    assert_eq!(verification["command"], VERIFY, "{shown:#}");
    assert_eq!(verification["exit_code"], 0, "{shown:#}");
    assert_eq!(
        verification["commit"], shown["sessions"][0]["result"]["commit"],
        "{shown:#}"
    );
    assert_eq!(
        (&verification["folder"], &verification["verdict"]),
        (&".".into(), &"passed".into())
    );

    // Each line of several sessions says whose it is, on the same stream.
    let logs = kage(&["logs", task]).await;
    assert!(
        logs.out
            .lines()
            .any(|line| line.starts_with("fixer ") && line.ends_with("| mended")),
        "{logs:#?}"
    );
    assert!(
        logs.out
            .lines()
            .any(|line| line.starts_with("idler ") && line.ends_with("| idle")),
        "{logs:#?}"
    );
    assert_eq!(logs.err, "", "{logs:#?}");

    // What is watched when it is over is compared; its exit code is that of the task.
    let watched = kage(&["watch", task]).await;
    assert_eq!(watched.code, 0, "{watched:#?}");
    assert!(watched.out.contains("verified"), "{watched:#?}");
    let refused = kage(&["run", "x", "--with", "idler", "--format", "tsv"]).await;
    assert!(
        refused.code == 2 && refused.err.contains("ls, show, compare"),
        "{refused:#?}"
    );
    let nothing = kage(&["run", "--with", "idler"]).await;
    assert!(
        nothing.code == 2 && nothing.err.contains("say what is to be done"),
        "{nothing:#?}"
    );
    kage(&["down"]).await;
}

/// Ctrl-C at a terminal leaves a watched task running, and `kage rm` asks there.
#[tokio::test]
async fn a_person_leaves_a_watched_task_and_is_asked_before_one_is_removed() {
    let person = Person::new();
    person.adapter("sleeper", "cat >/dev/null; echo asleep; sleep 1000");
    let repo = Repo::sample(&person.path("repo"));
    let started = person
        .kage(repo.path(), &["run", "sleep", "--with", "sleeper", "-d"])
        .await;
    let task = started.out.trim().to_owned();
    let mut watching = at_terminal(&person, &repo, 80, &["watch", &task]).spawn().unwrap();
    let mut keys = watching.stdin.take().unwrap();
    let mut screen = watching.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains("running") {
        let read = tokio::time::timeout(std::time::Duration::from_secs(60), screen.read(&mut buffer));
        let read = read.await.expect("rows appear").unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..read]);
    }
    // What is typed between the rows and the Ctrl-C would move them.
    keys.write_all(b"typed\x03").await.unwrap();
    screen.read_to_end(&mut seen).await.unwrap();
    let ended = watching.wait().await.unwrap();
    let text = String::from_utf8_lossy(&seen).into_owned();
    assert_eq!(ended.code(), Some(130), "{text}");
    assert!(text.contains("continues; `kage watch"), "{text}");
    for echo in ["typed", "^C", "\x03"] {
        assert!(!text.contains(echo), "{echo:?} was shown among the rows: {text:?}");
    }
    let running = person
        .kage(repo.path(), &["ls", "--state", "running", "--format", "tsv"])
        .await;
    assert_eq!(running.out.lines().count(), 2, "{running:#?}");

    person.kage(repo.path(), &["stop", &task]).await;
    wait_for("the task is over", async || {
        let waited = person.kage(repo.path(), &["wait", &task]).await;
        (waited.code == 130).then_some(())
    })
    .await;
    let answered = async |answer: &[u8]| {
        let mut removing = at_terminal(&person, &repo, 80, &["rm", &task]).spawn().unwrap();
        let mut keys = removing.stdin.take().unwrap();
        keys.write_all(answer).await.unwrap();
        let ended = said(removing.wait_with_output().await.unwrap());
        drop(keys);
        ended
    };
    let kept = answered(b"n\n").await;
    assert!(kept.code == 130 && kept.out.contains("remove 1 task"), "{kept:#?}");
    assert_eq!(person.kage(repo.path(), &["show", &task]).await.code, 0);
    let gone = answered(b"y\n").await;
    assert_eq!(gone.code, 0, "{gone:#?}");
    assert_eq!(person.kage(repo.path(), &["show", &task]).await.code, 4);
    person.kage(repo.path(), &["down"]).await;
}

/// A person on another machine logs in, and leaves again.
#[tokio::test]
async fn a_coordinator_that_was_logged_in_to_is_used_until_another_one_is() {
    let (owner, guest) = (Person::new(), Person::new());
    owner.adapter("sleeper", "cat >/dev/null; sleep 1000");
    let repo = Repo::sample(&owner.path("repo"));
    let started = owner
        .kage(repo.path(), &["run", "sleep", "--with", "sleeper", "-d"])
        .await;
    assert_eq!(started.code, 0, "{started:#?}");
    let url = std::fs::read_to_string(owner.path("state/coordinator/endpoint")).unwrap();
    let made = owner
        .kage(repo.path(), &["token", "create", "--role", "view", "--name", "ann"])
        .await;
    assert!(made.err.contains("kage login https://HOST:"), "{made:#?}");
    let folder = guest.path("");
    let token = guest.path("token");
    let login = async |token: &str| {
        std::fs::write(guest.path("token"), token).unwrap();
        let file = guest.path("token");
        let arguments = [
            "login",
            url.trim(),
            "--name",
            "team",
            "--token-file",
            file.to_str().unwrap(),
        ];
        guest.kage(&folder, &arguments).await
    };
    let refused = login("wrong").await;
    assert_eq!(refused.code, 5, "{refused:#?}");
    assert_eq!(guest.kage(&folder, &["ls"]).await.code, 8, "a wrong token is not kept");
    let welcome = login(&made.out).await;
    assert_eq!(welcome.code, 0, "{welcome:#?}");
    // What was typed is not needed any more.
    std::fs::remove_file(token).unwrap();
    let listed = guest.kage(&folder, &["ls", "--format", "json"]).await.json();
    assert_eq!(listed[0]["id"], started.out.trim(), "{listed:#}");
    let denied = guest.kage(&folder, &["stop", started.out.trim()]).await;
    assert!(
        denied.code == 5 && denied.err.contains("the role view may not cancel task"),
        "{denied:#?}"
    );
    let known = guest.kage(&folder, &["login", "ls", "--format", "tsv"]).await;
    assert!(known.out.contains("team\t*\t"), "{known:#?}");
    assert_eq!(guest.kage(&folder, &["login", "use", "local"]).await.code, 0);
    assert_eq!(
        guest.kage(&folder, &["ls"]).await.code,
        8,
        "nothing runs on this machine"
    );
    let mut once = guest.command(&folder, &["ls", "--format", "json"]);
    let once = said(once.env("KAGE_LOGIN", "team").output().await.unwrap());
    assert_eq!(once.json()[0]["id"], started.out.trim(), "{once:#?}");
    owner.kage(repo.path(), &["stop", started.out.trim()]).await;
    owner.kage(repo.path(), &["down", "--force"]).await;
}
