//! `task`: the whole path of a task as a person waits for it, from `kage run` to its end, on a
//! repository whose base moves by a commit before each run. A session edits another random file;
//! verify reads what it wrote. Beside it the same by hand: `git worktree add`, the program, a
//! commit, the check.
//!
//! A phase lasts from one event of the attempt to another, by the agent's clock, which is this
//! machine's. With several sessions the slowest one of each phase counts.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use kage_proto::client::Client;
use kage_proto::convert::time::Stamp;
use kage_proto::v1;

use crate::bench::figure::Figure;
use crate::bench::tree::{Tree, median_ms};
use crate::command::Person;
use crate::repo::Repo;
use crate::tasks::{Seen, read_all};

/// Edits the file that the prompt names, and says when it was done.
const EDITOR: &str = r#"
name = "editor"
command = "sh"
args = ["-c", "read -r _ file nonce <<END\n$(grep '^edit ')\nEND\necho $nonce > $file; date +%s%N"]
prompt = { pass = "stdin" }
"#;

/// The amount to measure.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub files: usize,
    /// Warm runs before those that count.
    pub warm: usize,
    /// Runs whose median counts.
    pub counted: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            files: 25_000,
            warm: 4,
            counted: 3,
        }
    }
}

struct Case {
    sessions: usize,
    /// Files of the base that change before each run.
    moved: usize,
    name: &'static str,
    cold: &'static str,
}

const CASES: &[Case] = &[
    Case {
        sessions: 1,
        moved: 1,
        name: "1 session",
        cold: "1 session, cold",
    },
    Case {
        sessions: 1,
        moved: 10,
        name: "1 session, 10 base files changed",
        cold: "1 session, 10 base files changed, cold",
    },
    Case {
        sessions: 3,
        moved: 1,
        name: "3 sessions",
        cold: "3 sessions, cold",
    },
];

const BY_HAND: &str = "git worktree add + program + verify by hand";

/// The parts of a run, in their order.
const PHASES: [&str; 7] = [
    "client",
    "workspace",
    "checkpoint",
    "result",
    "verify workspace",
    "verify",
    "report",
];

/// How long a run took, as a whole and in parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    total: Duration,
    phases: [Duration; PHASES.len()],
    /// Executions of verify: of each result and of the base.
    verified: usize,
}

/// Measures on the file system of temporary files.
///
/// # Errors
/// When a task does not end verified.
pub async fn run(size: Size) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for case in CASES {
        figures.extend(case.run(size).await?);
    }
    Ok(figures)
}

impl Case {
    async fn run(&self, size: Size) -> anyhow::Result<Vec<Figure>> {
        let mut bench = Bench::new(size.files)?;
        let mut runs = Vec::new();
        let mut by_hand = Vec::new();
        for number in 0..1 + size.warm + size.counted {
            bench.move_base(self.moved)?;
            runs.push(bench.task(self.sessions).await?);
            if number > size.warm {
                by_hand.push(bench.by_hand(self.sessions)?);
            }
        }
        let cold = runs[0];
        let counted = runs.split_off(1 + size.warm);
        let hand = median_ms(by_hand);
        let median = |part: &dyn Fn(&Run) -> Duration| median_ms(counted.iter().map(part).collect());
        let total = median(&|run| run.total);
        let mut figures = vec![
            Figure::new("task", self.cold, (ms(cold.total), "ms"), (BY_HAND, hand)),
            Figure::new("task", self.name, (total, "ms"), (BY_HAND, hand)),
        ];
        for (index, phase) in PHASES.into_iter().enumerate() {
            let part = median(&|run| run.phases[index]);
            let whole = format!("{}: total", self.name);
            figures.push(Figure::new("task", phase, (part, "ms"), (whole, total)));
        }
        let executions = counted.iter().map(|run| run.verified).sum::<usize>();
        figures.push(Figure::new(
            "task",
            "executions of verify",
            (executions as f64 / counted.len() as f64, "per task"),
            (format!("{}: sessions", self.name), self.sessions as f64),
        ));
        Ok(figures)
    }
}

/// A person with a repository.
#[derive(Debug)]
pub(super) struct Bench {
    person: Person,
    repo: Repo,
    tree: Tree,
    /// Runs so far, by which each has a nonce of its own.
    runs: u32,
}

impl Bench {
    pub(super) fn new(files: usize) -> anyhow::Result<Self> {
        let person = Person::new();
        std::fs::write(person.path("config/kage/adapters/editor.toml"), EDITOR)?;
        let repo = Repo::empty(&person.path("repository"));
        let tree = Tree::generate(repo.path(), files, 1)?;
        repo.commit("generated");
        Ok(Self {
            person,
            repo,
            tree,
            runs: 0,
        })
    }

    /// Commits new content of some files, as a person's own work does between tasks.
    pub(super) fn move_base(&mut self, files: usize) -> anyhow::Result<()> {
        for (path, bytes) in self.tree.edit(files) {
            std::fs::write(self.repo.path().join(path), bytes)?;
        }
        self.repo.commit("moved");
        Ok(())
    }

    fn next_edit(&mut self) -> (String, String) {
        self.runs += 1;
        let file = self.tree.any().display().to_string();
        (file, format!("nonce-{}", self.runs))
    }

    /// Runs a task to its end, and reads how long its parts took.
    pub(super) async fn task(&mut self, sessions: usize) -> anyhow::Result<Run> {
        let (file, nonce) = self.next_edit();
        let prompt = format!("edit {file} {nonce}");
        let verify = format!("grep -qx {nonce} {file}");
        let repeat = sessions.to_string();
        let arguments = [
            "run", &prompt, "--with", "editor", "--repeat", &repeat, "--verify", &verify,
        ];
        let (began, start) = (SystemTime::now(), Instant::now());
        let said = self.person.kage(self.repo.path(), &arguments).await;
        let (ended, total) = (SystemTime::now(), start.elapsed());
        ensure!(said.code == 0, "kage run ended with {}: {}", said.code, said.err);
        let seen = self.newest().await?;
        let task = seen.task.as_ref().context("the watch begins with the task")?;
        ensure!(task.sessions.len() == sessions, "{} sessions", task.sessions.len());
        let created = at(task.created_at)?;
        let mut phases = [Duration::ZERO; PHASES.len()];
        let mut last = created;
        for session in &task.sessions {
            let marks = Marks::read(&seen, &session.id)?;
            let spans = [
                between(began, created),
                between(created, marks.working),
                between(marks.program_ended, marks.checkpoint),
                between(marks.checkpoint, marks.claimed),
                between(marks.claimed, marks.verifying),
                between(marks.verifying, marks.verified),
            ];
            for (phase, span) in phases.iter_mut().zip(spans) {
                *phase = (*phase).max(span);
            }
            last = last.max(marks.verified);
        }
        phases[PHASES.len() - 1] = between(last, ended);
        let verified = seen.events.iter().filter(|event| is_phase(event, v1::Phase::Verifying));
        Ok(Run {
            total,
            phases,
            verified: verified.count(),
        })
    }

    /// The newest task with all its events, as a client of the person's daemon sees it.
    async fn newest(&self) -> anyhow::Result<Seen> {
        let read = |name: &str| std::fs::read_to_string(self.person.path("state/coordinator").join(name));
        let client = Client::connect(read("endpoint")?.trim(), read("token")?.trim()).await?;
        let listed = client.tasks().list_tasks(v1::ListTasksRequest::default()).await?;
        let task = listed.into_inner().tasks.into_iter().next().context("a task was run")?;
        let request = v1::WatchTaskRequest {
            task_id: task.id,
            output: vec![v1::OutputStream::Stdout.into()],
            ..v1::WatchTaskRequest::default()
        };
        Ok(read_all(client.tasks().watch_task(request).await?.into_inner()).await)
    }

    /// The same for each session with git alone, in worktrees that are kept.
    fn by_hand(&mut self, sessions: usize) -> anyhow::Result<Duration> {
        let (file, nonce) = self.next_edit();
        let start = Instant::now();
        for session in 0..sessions {
            let worktree = self.person.path(&format!("by-hand/{}-{session}", self.runs));
            let path = worktree.to_string_lossy();
            self.repo
                .git(&["worktree", "add", "--quiet", "--detach", &path, "HEAD"]);
            shell(&worktree, &format!("echo {nonce} > {file}"))?;
            self.repo
                .git(&["-C", &path, "commit", "--quiet", "--all", "--message", "by hand"]);
            shell(&worktree, &format!("grep -qx {nonce} {file}"))?;
        }
        Ok(start.elapsed())
    }
}

/// When a session's attempts reached what a phase begins or ends with.
struct Marks {
    working: SystemTime,
    program_ended: SystemTime,
    checkpoint: SystemTime,
    claimed: SystemTime,
    verifying: SystemTime,
    verified: SystemTime,
}

impl Marks {
    fn read(seen: &Seen, session: &str) -> anyhow::Result<Self> {
        let of = |job: v1::JobKind, wanted: &dyn Fn(&v1::SessionEvent) -> bool| {
            let mut events = seen.events.iter().rev();
            let found = events.find(|event| event.session_id == session && event.job() == job && wanted(event));
            let found = found.with_context(|| format!("session {session} has an event of each phase"))?;
            at(found.event.as_ref().and_then(|event| event.at))
        };
        let (work, verify) = (v1::JobKind::Session, v1::JobKind::Verify);
        let said = String::from_utf8_lossy(seen.stdout(&name_of(seen, session)?)).into_owned();
        Ok(Self {
            working: of(work, &|event| is_phase(event, v1::Phase::Working))?,
            program_ended: SystemTime::UNIX_EPOCH + Duration::from_nanos(said.trim().parse()?),
            checkpoint: of(work, &|event| {
                matches!(body(event), Some(v1::event::Body::CheckpointTaken(_)))
            })?,
            claimed: of(work, &|event| matches!(body(event), Some(v1::event::Body::Finished(_))))?,
            verifying: of(verify, &|event| is_phase(event, v1::Phase::Verifying))?,
            verified: of(verify, &|event| {
                matches!(body(event), Some(v1::event::Body::Finished(_)))
            })?,
        })
    }
}

fn name_of(seen: &Seen, session: &str) -> anyhow::Result<String> {
    let sessions = seen.task.iter().flat_map(|task| &task.sessions);
    let mut named = sessions.filter(|of| of.id == session).map(|of| of.name.clone());
    named.next().context("a session has a name")
}

fn body(event: &v1::SessionEvent) -> Option<&v1::event::Body> {
    event.event.as_ref()?.body.as_ref()
}

fn is_phase(event: &v1::SessionEvent, phase: v1::Phase) -> bool {
    matches!(body(event), Some(v1::event::Body::PhaseChanged(changed)) if changed.phase() == phase)
}

fn at(time: Option<Stamp>) -> anyhow::Result<SystemTime> {
    Ok(SystemTime::try_from(time.context("it has a time")?)?)
}

/// Zero when both are in the same millisecond and the clock's parts differ in it.
fn between(start: SystemTime, end: SystemTime) -> Duration {
    end.duration_since(start).unwrap_or_default()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn shell(folder: &Path, script: &str) -> anyhow::Result<()> {
    let status = Command::new("sh").args(["-c", script]).current_dir(folder).status()?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_phase_of_a_task_is_measured() {
        let size = Size {
            files: 60,
            warm: 0,
            counted: 1,
        };
        let figures = CASES[2].run(size).await.unwrap();
        assert_eq!(figures.len(), 2 + PHASES.len() + 1);
        let phases: f64 = figures[2..2 + PHASES.len()].iter().map(|figure| figure.value).sum();
        assert!(figures[1].value > 0.0 && phases > 0.0);
        let executions = figures.last().unwrap();
        assert!(executions.value >= executions.baseline_value, "each result is verified");
    }
}
