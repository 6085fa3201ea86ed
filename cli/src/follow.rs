//! Shows a running task, and handles Ctrl-C.

use std::io::IsTerminal as _;
use std::time::Duration;

use kage_proto::json::JsonMessage;
use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::connect::Access;
use crate::hold::{self, now};
use crate::live;
use crate::output::{Output, note};
use crate::progress::Progress;
use crate::sent_contexts;
use crate::tasks;
use crate::view::{self, OfTaskJson};
use crate::watch::{Request, Watch};

/// How following a task came to its end.
#[derive(Debug)]
pub enum Followed {
    Ended(v1::Task),
    /// The person left; the task continues.
    Detached,
    /// Everything left waits for longer than the person has patience.
    Held {
        /// The present state.
        task: v1::Task,
        /// What the session that continues first waits for.
        why: String,
    },
}

/// What a Ctrl-C means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// The task may be stopped: a person at a terminal is asked.
    Ask,
    /// This command ends, and the task goes on.
    Leave,
}

/// What comes next.
enum Beat {
    Item(Option<Item>),
    Interrupted,
}

/// Shows the task until it has ended, or is held for longer than `max_hold`.
///
/// # Errors
/// When the coordinator stays unreachable, or standard output is closed.
pub async fn follow(out: &Output, access: &Access, task: v1::Task, max_hold: Duration) -> anyhow::Result<Followed> {
    with(Progress::new(), Some(out), access, task, max_hold, OnInterrupt::Ask).await
}

/// The same with this progress; what happens is printed where it is wanted.
///
/// # Errors
/// As [`follow`].
pub async fn with(
    mut progress: Progress,
    out: Option<&Output>,
    access: &Access,
    task: v1::Task,
    max_hold: Duration,
    on_interrupt: OnInterrupt,
) -> anyhow::Result<Followed> {
    let request = Request {
        task: task.id.clone(),
        follow: true,
        ..Default::default()
    };
    let mut watch = Watch::new(access.client.clone(), request);
    let mut last = task;
    // One listener for the whole loop: it also notices a Ctrl-C while an item is printed.
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut ticks = tokio::time::interval(live::TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let beat = {
            let next = watch.next();
            tokio::pin!(next);
            loop {
                tokio::select! {
                    item = &mut next => break Beat::Item(item?),
                    _ = ticks.tick() => progress.tick(),
                    _ = interrupts.recv() => break Beat::Interrupted,
                }
            }
        };
        let item = match beat {
            Beat::Item(item) => item,
            Beat::Interrupted => {
                progress.clear();
                if on_interrupt == OnInterrupt::Leave {
                    let id = view::short_id(&last.id);
                    note(&format!("task {id} continues; `kage watch {id}` shows it again"));
                    return Ok(Followed::Detached);
                }
                if interrupt(access, &last, &mut interrupts).await? {
                    return Ok(Followed::Detached);
                }
                // A watch step that was cut short begins again at its cursor.
                continue;
            }
        };
        match item {
            Some(Item::Task(task)) => {
                let task = *task;
                progress.task(&task);
                out.map_or(Ok(()), |out| out.happening("task", &JsonMessage::of(&task)))?;
                if let Some(why) = hold::held(&task, now(), max_hold) {
                    progress.finish();
                    return Ok(Followed::Held { task, why });
                }
                last = task;
            }
            Some(Item::Event(event)) => {
                progress.event(&event);
                if is_warning(&event) {
                    bring_context_back(access, &last).await;
                }
                out.map_or(Ok(()), |out| out.happening("event", &OfTaskJson::of(&last.id, &*event)))?;
            }
            Some(Item::Output(_)) => {}
            None => break,
        }
    }
    progress.finish();
    Ok(Followed::Ended(last))
}

fn is_warning(event: &v1::SessionEvent) -> bool {
    let body = event.event.as_ref().and_then(|event| event.body.as_ref());
    matches!(body, Some(v1::event::Body::Warning(_)))
}

/// A warning may be that a session waits for the base context of its task.
async fn bring_context_back(access: &Access, task: &v1::Task) {
    let Some(spec) = &task.spec else { return };
    if let Err(error) = sent_contexts::bring_back(access, spec).await {
        note(&format!(
            "warning: the base context of the task could not be sent again: {error:#}"
        ));
    }
}

/// Asks whether the task should continue or stop. True: it continues without this command.
async fn interrupt(access: &Access, task: &v1::Task, interrupts: &mut Signal) -> anyhow::Result<bool> {
    let id = view::short_id(&task.id);
    if std::io::stdin().is_terminal() {
        note("\ninterrupted: [d]etach and let it go on, [s]top it, or anything else to keep watching?");
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map(|_| line)
        });
        let answer = tokio::select! {
            answer = answer => answer??,
            // A second Ctrl-C means it.
            _ = interrupts.recv() => "s".to_owned(),
        };
        match answer.trim().chars().next().map(|c| c.to_ascii_lowercase()) {
            Some('d') => {
                note(&format!(
                    "task {id} continues; `kage watch {id}` shows it again, `kage wait {id}` waits for it"
                ));
                return Ok(true);
            }
            Some('s') => {}
            Some(_) | None => return Ok(false),
        }
    }
    tasks::cancel(access, &task.id).await?;
    note(&format!("stopping task {id}"));
    Ok(false)
}
