//! Makes results of the work of sessions that ended without a claim, and ends them with that. Which
//! ones is in the store ([`SessionState::Saving`]), so that another start of the coordinator goes
//! on; the list in memory follows the feed.

use std::sync::Arc;
use std::time::Duration;

use kage_core::cause::chain;
use kage_core::checkpoint::{BrokenChain, Work};
use kage_core::event::ResultCommit;
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::{Oid, SessionId, TaskId};
use kage_core::session::{Session, SessionState};
use kage_core::task::TaskState;
use tokio::task::JoinSet;

use crate::coordinator::Coordinator;
use crate::ports::{ResultNotTaken, UnclaimedWork};
use crate::store::{MAX_PAGE, ReadError, SaveWork, TaskFilter, TaskView};

/// How many are made at the same time; each starts a few gits, one after another.
const AT_ONCE: usize = 4;
/// How often it is tried while the disk or git refuses for reasons that pass.
const TRIES: u32 = 5;
/// The wait before a failed step is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Saves work until a shutdown begins.
pub(crate) async fn run(coordinator: Arc<Coordinator>) {
    let mut saving = JoinSet::new();
    {
        let coordinator = Arc::clone(&coordinator);
        saving.spawn(async move { find(&coordinator).await });
    }
    loop {
        while saving.len() < AT_ONCE
            && let Some((task, session)) = coordinator.unsaved.next()
        {
            let coordinator = Arc::clone(&coordinator);
            saving.spawn(async move { save(&coordinator, task, session).await });
        }
        tokio::select! {
            biased;
            () = coordinator.closing.cancelled() => return,
            Some(ended) = saving.join_next(), if !saving.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "saving unfinished work crashed; it is tried again at the next start");
                }
            }
            () = coordinator.unsaved.more() => {}
        }
    }
}

/// Looks for what was left to save, until the store can be read: by the process before, or in a gap
/// of the feed.
pub(crate) async fn find(coordinator: &Coordinator) {
    while let Err(error) = look(coordinator).await {
        tracing::error!(error = chain(&error), "cannot look for unfinished work");
        tokio::select! {
            biased;
            () = coordinator.closing.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn look(coordinator: &Coordinator) -> Result<(), ReadError> {
    for project in coordinator.store.projects().await? {
        let filter = TaskFilter {
            project: project.project,
            states: Some(vec![TaskState::Running]),
            ..TaskFilter::default()
        };
        let mut after = None;
        loop {
            let page = coordinator.store.tasks(&filter, after, MAX_PAGE).await?;
            let sessions = page.tasks.iter().flat_map(|view| &view.sessions);
            sessions.for_each(|session| coordinator.unsaved.note(session));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(())
}

/// Makes the result of a session that ended without a claim, if it still has to be made.
async fn save(coordinator: &Coordinator, task: TaskId, session: SessionId) {
    let mut tries = 0;
    loop {
        tries += 1;
        let view = match coordinator.store.task(task).await {
            Ok(view) => view,
            Err(error) => {
                tracing::error!(error = chain(&error), %task, "cannot read whose work is to be saved");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let Some(view) = view else { return };
        let found = view.sessions.iter().find(|found| found.id == session);
        let (Some(found), Some(head)) = (found, found.and_then(|found| found.checkpoints.head.as_ref())) else {
            return;
        };
        let SessionState::Saving { .. } = found.state else {
            return;
        };
        let of = head.commit.clone();
        let made = match made_of(coordinator, &view, found).await {
            Err(ResultNotTaken::Later(_)) if tries < TRIES => {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            Ok(made) => Ok(made),
            Err(why) => Err(why.to_string()),
        };
        if settled(coordinator, (task, session), of, made).await {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Ends the session; false when the store did not take it.
async fn settled(
    coordinator: &Coordinator,
    (task, session): (TaskId, SessionId),
    of: Oid,
    made: Result<Option<ResultCommit>, String>,
) -> bool {
    let command = SaveWork {
        task,
        session,
        of,
        made,
        now: coordinator.now(),
    };
    match coordinator.apply(command).await {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(error = chain(&error), %session, "the end of a session is not stored");
            false
        }
    }
}

async fn made_of(
    coordinator: &Coordinator,
    view: &TaskView,
    session: &Session,
) -> Result<Option<ResultCommit>, ResultNotTaken> {
    let spec = &view.task.spec;
    let Some(repository) = &spec.repository else {
        return Ok(None);
    };
    let all = coordinator.store.checkpoints(view.task.id, session.id).await;
    let all = all.map_err(|error| ResultNotTaken::Later(chain(&error)))?;
    let work = Work::of(session.checkpoints.head.as_ref(), &all, &repository.base);
    let broken =
        |error: BrokenChain| ResultNotTaken::Never(Failure::new(FailureKind::CorruptedState, error.to_string()));
    let Some(work) = work.map_err(broken)? else {
        return Ok(None);
    };
    let message = format!(
        "{}: unfinished work of session {} of task {}",
        session.adapter, session.name, view.task.id
    );
    let unclaimed = UnclaimedWork {
        project: &spec.project,
        repository,
        session: session.id,
        work: &work,
        message: &message,
        rules: &spec.policy.results,
    };
    coordinator.objects.save(unclaimed).await
}
