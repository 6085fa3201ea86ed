//! How many git processes a task starts, of the client, the agent and the coordinator together, and
//! which. The git that Kage finds is a script which has the real one report its start and that of
//! everything it starts. A number here may sink, not rise: each process costs some milliseconds, and
//! most look at every file.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use kage_git::executable::{Executable, search_folders};
use kage_tests::command::{Person, Said};
use kage_tests::repo::{Repo, VERIFY};
use serde_json::Value;

/// A person whose git reports its starts.
struct Counted {
    person: Person,
    log: PathBuf,
}

/// A process of git.
#[derive(Debug)]
struct Started {
    /// Its command line, without the program.
    arguments: String,
    /// Kage started it, and not another git.
    directly: bool,
}

impl Counted {
    fn new() -> Self {
        let person = Person::new();
        let (bin, log) = (person.path("bin"), person.path("git-starts"));
        std::fs::create_dir(&bin).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let real = Executable::find("git".as_ref(), &search_folders(&path, &[])).unwrap();
        let git = bin.join("git");
        let script = format!(
            "#!/bin/sh\nGIT_TRACE2_EVENT={} exec {} \"$@\"\n",
            log.display(),
            real.path().display()
        );
        std::fs::write(&git, script).unwrap();
        std::fs::set_permissions(&git, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { person, log }
    }

    async fn kage(&self, repo: &Repo, arguments: &[&str]) -> Said {
        let path = std::env::var_os("PATH").unwrap();
        let folders = std::iter::once(self.person.path("bin")).chain(std::env::split_paths(&path));
        let mut command = self.person.command(repo.path(), arguments);
        command.env("PATH", std::env::join_paths(folders).unwrap());
        kage_tests::command::said(command.output().await.unwrap())
    }

    /// The processes since the last call.
    fn started(&self) -> Vec<Started> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        std::fs::write(&self.log, "").unwrap();
        let events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let starts = events.filter(|event| event["event"] == "start");
        let started = starts.map(|event| {
            let arguments = event["argv"].as_array().unwrap().iter().skip(1);
            let arguments: Vec<&str> = arguments.filter_map(Value::as_str).collect();
            Started {
                arguments: arguments.join(" "),
                directly: !event["sid"].as_str().unwrap().contains('/'),
            }
        });
        started.collect()
    }

    /// Runs a verified task of one session, on a daemon that is up. The processes that it started,
    /// until the daemon has ended: what the daemon does after a task counts.
    async fn task(&self, repo: &Repo) -> Vec<Started> {
        self.started();
        let run = ["run", "mend it", "--with", "mender", "--verify", VERIFY];
        let run = self.kage(repo, &run).await;
        assert_eq!(run.code, 0, "{run:#?}");
        let down = self.kage(repo, &["down"]).await;
        assert_eq!(down.code, 0, "{down:#?}");
        let mut looked = BTreeSet::new();
        let started = self.started().into_iter();
        started
            .filter(|process| !process.cares_for_disk())
            .filter(|process| !process.looks() || looked.insert(process.arguments.clone()))
            .collect()
    }
}

impl Started {
    /// Care of the disk, which a daemon takes at its start and every now and then.
    fn cares_for_disk(&self) -> bool {
        let of_disk = self.arguments.starts_with("rev-list") && self.arguments.contains("--disk-usage");
        of_disk || self.arguments.starts_with("for-each-ref")
    }

    /// Part of a look at what a session has changed. There is one at its end; how many there are
    /// before that is a matter of time.
    fn looks(&self) -> bool {
        self.arguments.contains("--numstat") || self.arguments.starts_with("ls-files --others")
    }
}

/// How many processes Kage may start, with those that git starts in turn, by the state in which the
/// task finds the person's files.
const LIMITS: [(&str, usize, usize); 2] = [("committed", 30, 44), ("uncommitted", 33, 47)];

#[tokio::test]
async fn a_task_of_one_session_starts_few_git_processes() {
    let counted = Counted::new();
    counted
        .person
        .adapter("mender", "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh");
    let repo = Repo::sample(&counted.person.path("repo"));
    // The first task of a repository makes mirrors and checkouts, which later ones find.
    counted.task(&repo).await;
    for (state, most, most_in_all) in LIMITS {
        let up = counted.kage(&repo, &["ls"]).await;
        assert_eq!(up.code, 0, "{up:#?}");
        repo.write("notes.txt", state);
        if state == "committed" {
            repo.commit(state);
        }
        let started = counted.task(&repo).await;
        let direct = started.iter().filter(|process| process.directly).count();
        println!("{state}: {direct} of Kage's, {} in all", started.len());
        for process in &started {
            let depth = if process.directly { "" } else { "    " };
            println!("  {depth}{}", process.arguments);
        }
        assert!(direct > 0, "git was not counted");
        assert!(direct <= most && started.len() <= most_in_all, "{state}: {started:#?}");
    }
}
