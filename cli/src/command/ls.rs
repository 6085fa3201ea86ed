//! `kage ls`: tasks, newest first, and with `--watch` as they change.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use kage_core::time::Timestamp;
use kage_proto::convert::time::time;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::watch_tasks_response::Item;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Format, Ls};
use crate::connect::Access;
use crate::exit::{Exit, Refusal};
use crate::hold::now;
use crate::invocation::Invocation;
use crate::listed::Wanted;
use crate::live::{self, Live};
use crate::output;
use crate::table::{Cell, Column, Shape, Table};
use crate::tasks;
use crate::terminal::{Ink, Screen};
use crate::view;

/// How many reports are asked for at a time.
const AT_ONCE: usize = 8;

const COLUMNS: [Column; 10] = [
    Column::words("task", 0),
    Column::words("state", 0),
    Column::words("repository", 5),
    Column::words("sessions", 4),
    Column::words("winner", 2),
    Column::words("adapters", 6),
    Column::words("money", 3),
    Column::words("created", 1),
    Column::words("now", 7),
    Column::long("prompt"),
];

pub(super) async fn run(invocation: &Invocation, args: &Ls) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let wanted = Wanted::of(&access, args, now()).await?;
    if args.watch && invocation.out.format() == Format::Json {
        return Err(Refusal::usage("one JSON document has an end, and --watch has none: use --format jsonl").into());
    }
    if args.watch {
        return watch(invocation, &access, args, wanted).await;
    }
    let out = &invocation.out;
    let tasks = wanted.newest(&access, args.limit as usize).await?;
    out.messages("task", &tasks)?;
    if !matches!(out.format(), Format::Human | Format::Tsv) {
        return Ok(Exit::Done);
    }
    if tasks.is_empty() {
        out.text(match wanted == Wanted::default() && args.limit > 0 {
            true => "no tasks yet; start one with `kage run`",
            false => "no such tasks",
        })?;
        if out.format() == Format::Human {
            return Ok(Exit::Done);
        }
    }
    let winners = winners(&access, &tasks).await?;
    out.table(&table(&tasks, &winners, now()))?;
    Ok(Exit::Done)
}

/// The names of the sessions that won, by the ids of their tasks.
type Winners = BTreeMap<String, String>;

/// Asks for the reports of those tasks that may have a winner.
async fn winners(access: &Access, tasks: &[v1::Task]) -> Result<Winners, ApiError> {
    let asked = tasks.iter().filter(|task| may_have_winner(task));
    let reports = stream::iter(asked)
        .map(|task| winner(access, task))
        .buffer_unordered(AT_ONCE);
    let found: Vec<_> = reports.collect().await;
    let named = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(named.into_iter().flatten().collect())
}

fn may_have_winner(task: &v1::Task) -> bool {
    task.selection.is_some() || task.state() == v1::TaskState::Succeeded
}

async fn winner(access: &Access, task: &v1::Task) -> Result<Option<(String, String)>, ApiError> {
    if let Some(selection) = &task.selection {
        return Ok(Some((task.id.clone(), selection.session.clone())));
    }
    let request = v1::GetReportRequest {
        task_id: task.id.clone(),
    };
    let report = match access.client.tasks().get_report(request).await.map_err(ApiError::from) {
        Ok(response) => response.into_inner().report.unwrap_or_default(),
        // It was removed since it was listed.
        Err(ApiError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let name = report.best.map(|best| best.session).filter(|name| !name.is_empty());
    Ok(name.map(|name| (task.id.clone(), name)))
}

fn table(tasks: &[v1::Task], winners: &Winners, now: Timestamp) -> Table {
    let mut table = Table::new(COLUMNS);
    for task in tasks {
        table.row(row(task, winners.get(&task.id).map_or("-", String::as_str), now));
    }
    table
}

fn row(task: &v1::Task, winner: &str, now: Timestamp) -> Vec<Cell> {
    let ended = task.sessions.iter().filter(|s| s.state().is_ended()).count();
    let mut sessions = format!("{ended}/{} ended", task.sessions.len());
    let unfinished = task.sessions.iter().filter(|session| session.is_unfinished).count();
    if unfinished > 0 {
        sessions += &format!(", {unfinished} unfinished");
    }
    let waits = task
        .sessions
        .iter()
        .map(|s| s.waiting.as_str())
        .find(|why| !why.is_empty());
    let ink = match task.state() {
        v1::TaskState::Succeeded => Ink::Good,
        v1::TaskState::Failed => Ink::Bad,
        v1::TaskState::Cancelled => Ink::Faint,
        v1::TaskState::Running | v1::TaskState::Unspecified => Ink::Plain,
    };
    let created = task.created_at.map(|at| view::ago(time(at), now));
    vec![
        Cell::new(Ink::Strong, view::short_id(&task.id)),
        Cell::new(ink, view::task_state(task.state())),
        view::repository(task).unwrap_or("-").into(),
        sessions.into(),
        winner.into(),
        adapters(task).into(),
        view::money_of(task.sessions.iter()).into(),
        created.unwrap_or_else(|| "-".to_owned()).into(),
        view::one_line(waits.unwrap_or("-"), 80).into(),
        view::one_line(&task.prompt_excerpt, 60).into(),
    ]
}

/// The adapters of a task, with how many sessions each has.
fn adapters(task: &v1::Task) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for session in &task.sessions {
        match counts.iter_mut().find(|(name, _)| *name == session.adapter) {
            Some((_, count)) => *count += 1,
            None => counts.push((&session.adapter, 1)),
        }
    }
    let words = counts.into_iter().map(|(name, count)| match count {
        1 => name.to_owned(),
        count => format!("{name} x{count}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// What is known of the watched tasks.
#[derive(Debug, Default)]
struct Watched {
    tasks: BTreeMap<String, v1::Task>,
    winners: Winners,
}

impl Watched {
    /// The newest first.
    fn newest(&self, limit: usize) -> Vec<v1::Task> {
        let mut tasks: Vec<_> = self.tasks.values().cloned().collect();
        tasks.sort_by_key(|task| std::cmp::Reverse(task.created_at.map(time)));
        tasks.truncate(limit);
        tasks
    }
}

/// On a terminal the list as it changes; elsewhere a line for each task that changed. It ends with Ctrl-C.
async fn watch(invocation: &Invocation, access: &Access, args: &Ls, wanted: Wanted) -> anyhow::Result<Exit> {
    let out = &invocation.out;
    let screen = Screen::stderr();
    let paints = out.format() == Format::Human && out.screen().is_terminal && screen.is_terminal;
    let mut live = Live::new();
    let mut known = Watched::default();
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut ticks = tokio::time::interval(live::TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stream = tasks::WatchAll::new(access, wanted.filter.clone());
    let mut is_told = false;
    loop {
        let item = {
            let next = stream.next();
            tokio::pin!(next);
            loop {
                tokio::select! {
                    item = &mut next => break item?,
                    _ = ticks.tick() => if paints && is_told {
                        live.show(&painted(&known, args.limit as usize, screen));
                    },
                    _ = interrupts.recv() => {
                        output::leave(&live.end());
                        return Ok(Exit::Interrupted);
                    }
                }
            }
        };
        match item {
            Item::Task(task) if wanted.takes(&task) => {
                let task = *task;
                if may_have_winner(&task)
                    && let Some((id, name)) = winner(access, &task).await?
                {
                    known.winners.insert(id, name);
                }
                out.happening("task", &kage_proto::json::JsonMessage::of(&task))?;
                if !paints && is_told {
                    line(out, &task, &known.winners)?;
                }
                known.tasks.insert(task.id.clone(), task);
            }
            Item::Gone(gone) => {
                known.tasks.remove(&gone.task_id);
            }
            Item::Reset(_) => known = Watched::default(),
            Item::CaughtUp(_) if !is_told => {
                is_told = true;
                if !paints {
                    for task in known.newest(args.limit as usize) {
                        line(out, &task, &known.winners)?;
                    }
                }
            }
            Item::Task(_) | Item::CaughtUp(_) | Item::Agent(_) | Item::Hold(_) => {}
        }
    }
}

/// A row by itself, with tabs between the columns: nobody knows how wide those of later rows are.
fn line(out: &output::Output, task: &v1::Task, winners: &Winners) -> std::io::Result<()> {
    let text = table(std::slice::from_ref(task), winners, now())
        .laid_out(Shape::Tabs)
        .text();
    let row = text.lines().nth(1).unwrap_or_default();
    out.row(row)
}

fn painted(known: &Watched, limit: usize, screen: Screen) -> Vec<String> {
    let width = screen.width().unwrap_or(80).saturating_sub(1);
    let rows = table(&known.newest(limit), &known.winners, now()).rows_for(width, screen.colours);
    match rows.is_empty() {
        true => vec!["no such tasks; Ctrl-C ends this".to_owned()],
        false => live::fitted(rows, screen),
    }
}

#[cfg(test)]
mod tests {
    use kage_proto::convert::time::stamp;

    use super::*;

    fn task(id: &str, state: v1::TaskState) -> v1::Task {
        let session = |adapter: &str, pico: i64| v1::Session {
            name: adapter.into(),
            adapter: adapter.into(),
            state: v1::SessionState::Verified.into(),
            money: vec![v1::Money {
                pico: Some(pico),
                currency: "USD".into(),
                provenance: v1::Provenance::Billed.into(),
            }],
            ..v1::Session::default()
        };
        v1::Task {
            id: format!("{id}89abcdef"),
            state: state.into(),
            sessions: vec![
                session("claude-api", 15_000_000_000),
                session("claude-api", 10_000_000_000),
                session("codex", 0),
            ],
            prompt_excerpt: "make the date parser accept ISO week dates\nand more".into(),
            created_at: Some(stamp(Timestamp::from_millis(1_000_000))),
            spec: Some(v1::TaskSpec {
                repository: Some(v1::Repository {
                    name: "shop-1a2b3c".into(),
                    ..v1::Repository::default()
                }),
                ..v1::TaskSpec::default()
            }),
            ..v1::Task::default()
        }
    }

    #[test]
    fn a_list_says_what_became_of_each_task_at_every_width() {
        let mut waits = task("0123cdef", v1::TaskState::Running);
        waits.sessions[0].state = v1::SessionState::Queued.into();
        waits.sessions[0].waiting = "waits for an agent with claude-api; none has it".into();
        let tasks = [task("89ab0123", v1::TaskState::Succeeded), waits];
        let winners = [(tasks[0].id.clone(), "codex".to_owned())].into();
        let listed = table(&tasks, &winners, Timestamp::from_millis(1_000_000 + 7_300_000));
        let at = |width| listed.laid_out(Shape::Terminal { width }).text();
        insta::assert_snapshot!(at(120), @r#"
        task      state      repository   sessions   winner  adapters              money    created
        89ab0123  succeeded  shop-1a2b3c  3/3 ended  codex   claude-api x2, codex  $0.0250  2 h ago
            make the date parser accept ISO week dates
        0123cdef  running    shop-1a2b3c  2/3 ended  -       claude-api x2, codex  $0.0250  2 h ago
            now: waits for an agent with claude-api; none has it
            make the date parser accept ISO week dates
        "#);
        insta::assert_snapshot!(at(80), @r#"
        task      state      repository   sessions   winner  money    created
        89ab0123  succeeded  shop-1a2b3c  3/3 ended  codex   $0.0250  2 h ago
            adapters: claude-api x2, codex
            make the date parser accept ISO week dates
        0123cdef  running    shop-1a2b3c  2/3 ended  -       $0.0250  2 h ago
            adapters: claude-api x2, codex
            now: waits for an agent with claude-api; none has it
            make the date parser accept ISO week dates
        "#);
        insta::assert_snapshot!(at(40), @r#"
        task      state      winner  created
        89ab0123  succeeded  codex   2 h ago
            repository: shop-1a2b3c
            sessions: 3/3 ended
            adapters: claude-api x2, codex
            money: $0.0250
            make the date parser accept ISO week
            dates
        0123cdef  running    -       2 h ago
            repository: shop-1a2b3c
            sessions: 2/3 ended
            adapters: claude-api x2, codex
            money: $0.0250
            now: waits for an agent with
            claude-api; none has it
            make the date parser accept ISO week
            dates
        "#);
        insta::assert_snapshot!(listed.laid_out(Shape::Plain).text(), @r#"
        task      state      repository   sessions   winner  adapters              money    created  now                                              prompt
        89ab0123  succeeded  shop-1a2b3c  3/3 ended  codex   claude-api x2, codex  $0.0250  2 h ago  -                                                make the date parser accept ISO week dates
        0123cdef  running    shop-1a2b3c  2/3 ended  -       claude-api x2, codex  $0.0250  2 h ago  waits for an agent with claude-api; none has it  make the date parser accept ISO week dates
        "#);
    }
}
