//! Frees disk space: tasks that ended long ago are dropped, and their files removed; other
//! unreferenced files are put in quarantine, and deleted a week later. `kage_core::retention`
//! decides which tasks go.
//!
//! ```text
//!   DropTask (rows, one transaction) ─▶ sweep: output ─▶ results' references ─▶ blobs
//!                                         └─ of no task that was dropped for good ─▶ quarantine ─▶ deleted
//! ```
//! The rows go first, so that no client sees a task whose files are half gone. A sweep compares the
//! files with the rows, so the next sweep completes whatever a crash interrupted. It lists files
//! before it reads rows, so files that appear meanwhile are not on the list. Files in quarantine
//! that rows name come back: the database was the wrong one. While a backup is made, nothing is removed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kage_core::event::EventBody;
use kage_core::id::{AttemptId, TaskId};
use kage_core::retention::{Ended, Limits, QUARANTINE, freed_early, is_large, room, too_many};
use kage_core::time::Timestamp;
use kage_git::{GitError, Mirror};
use tokio::time::Instant;

use crate::coordinator::{Coordinator, Released};
use crate::data::blobs::{BlobError, Listed, UNNAMED};
use crate::data::quarantine::{Aside, QuarantinedData};
use crate::data::repositories::{RESULTS, SWEPT, result_ref, session_of, swept_of};
use crate::store::{DropTask, InFiles, MAX_PAGE, ReadError, StoreError};

/// The interval of sweeps. A person who drops a task causes one as well.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// How often to look whether the disk runs low.
const LOW_DISK: Duration = Duration::from_secs(60);
/// When to look again whether a backup that keeps everything is finished.
const AFTER_BACKUP: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
enum RetentionError {
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    #[error("a task cannot be dropped")]
    Drop(#[source] StoreError),
    #[error("output cannot be listed or removed")]
    Output(#[from] std::io::Error),
    #[error("blobs cannot be listed or removed")]
    Blobs(#[from] BlobError),
    #[error("references of results cannot be removed")]
    Git(#[from] GitError),
    #[error("it is not known whether a backup is being made")]
    Backup(#[source] std::io::Error),
}

/// Frees disk space at the start, at intervals, and when a task was dropped. For `unswept_for`
/// nothing is put aside: nothing has confirmed yet that the database is the right one.
pub(crate) async fn run(coordinator: Arc<Coordinator>, limits: Limits, unswept_for: Duration) {
    let unswept_until = Instant::now() + unswept_for;
    loop {
        let sweeps = unswept_until <= Instant::now();
        let pass = async {
            drop_old(&coordinator, limits).await?;
            match coordinator.removals.begin().map_err(RetentionError::Backup)? {
                None => Ok(AFTER_BACKUP),
                Some(_removing) => sweep(&coordinator, sweeps).await.map(|()| EVERY),
            }
        };
        let wait = tokio::select! {
            () = coordinator.closing.cancelled() => return,
            made = pass => made.unwrap_or_else(|error| {
                tracing::error!(error = &error as &dyn std::error::Error, "disk space cannot be freed");
                EVERY
            }),
        };
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = coordinator.closing.cancelled() => return,
                () = tokio::time::sleep_until(until) => break,
                () = coordinator.dropped.notified() => break,
                () = tokio::time::sleep(LOW_DISK) => {}
            }
            if let Err(error) = make_room(&coordinator).await {
                tracing::error!(error = &error as &dyn std::error::Error, "quarantine cannot be freed");
            }
        }
    }
}

/// Deletes what is in quarantine, oldest first, when the disk runs low.
async fn make_room(coordinator: &Coordinator) -> Result<(), RetentionError> {
    let quarantine = &coordinator.quarantine;
    let Some((free, room)) = quarantine.disk().await.map(|(free, total)| (free, room(total))) else {
        return Ok(());
    };
    if free >= room {
        return Ok(());
    }
    let Some(_removing) = coordinator.removals.begin().map_err(RetentionError::Backup)? else {
        return Ok(());
    };
    let batches = freed_early(free, room, &quarantine.sizes().await?);
    if batches.is_empty() {
        return Ok(());
    }
    let deleted = quarantine.delete_batches(batches).await?;
    let (files, bytes) = (deleted.files, deleted.bytes);
    tracing::warn!(
        files,
        bytes,
        free,
        room,
        "the disk runs low: files in quarantine were deleted before their week was over"
    );
    Ok(())
}

/// Drops the tasks that exceed the limits.
async fn drop_old(coordinator: &Coordinator, limits: Limits) -> Result<(), RetentionError> {
    let output: HashMap<_, _> = coordinator.outputs.list().await?.into_iter().collect();
    let blobs = coordinator.blobs.list().await?.into_iter();
    let blobs: HashMap<_, _> = blobs.map(|blob| ((blob.project, blob.digest), blob.bytes)).collect();
    let ended = coordinator.store.ended().await?.into_iter().map(|task| {
        let written = task.attempts.iter().filter_map(|attempt| output.get(attempt));
        let project = task.project;
        let kept = task.blobs.into_iter();
        let kept = kept.filter_map(|digest| blobs.get(&(project.clone(), digest)));
        Ended {
            task: task.task,
            at: task.ended_at,
            bytes: written.chain(kept).sum(),
        }
    });
    let ended: Vec<Ended> = ended.collect();
    for task in too_many(limits, &ended, coordinator.now()) {
        let left = left_by(coordinator, task).await?;
        let command = DropTask {
            request: None,
            task,
            now: coordinator.now(),
        };
        match coordinator.apply(command).await {
            Ok(()) => {
                tracing::info!(%task, "task dropped: it ended long ago, or space is needed");
                release(coordinator, left, FilesFate::Deleted);
            }
            // It is open again, or already dropped.
            Err(StoreError::TaskOpen { .. } | StoreError::NotFound { .. }) => {}
            Err(error) => return Err(RetentionError::Drop(error)),
        }
    }
    Ok(())
}

/// The files of a task; to be asked before its rows go.
pub(crate) async fn left_by(coordinator: &Coordinator, task: TaskId) -> Result<InFiles, ReadError> {
    let store = &coordinator.store;
    let mut left = InFiles::default();
    let Some(view) = store.task(task).await? else {
        return Ok(left);
    };
    // A base context may be that of other tasks too: what they name stays.
    let spec = &view.task.spec;
    let mut blobs = Vec::from_iter(spec.prompt_blob.iter().chain(&spec.context_base).cloned());
    for session in &view.sessions {
        left.sessions.insert(session.id);
        for checkpoint in store.checkpoints(task, session.id).await? {
            let segment = checkpoint.taken.transcript.map(|segment| segment.blob);
            blobs.extend(checkpoint.taken.pack.into_iter().chain(segment));
        }
    }
    let attempts = store.attempts_of(task).await?.into_iter();
    left.attempts.extend(attempts.map(|view| view.attempt.id));
    let mut after = 0;
    loop {
        let events = store.events(task, after, MAX_PAGE).await?;
        let Some(last) = events.last() else { break };
        after = last.pos;
        for told in events {
            if let EventBody::ResultCommitted { pack, .. } = told.event.body {
                blobs.push(pack);
            }
        }
    }
    let project = &view.task.spec.project;
    left.blobs.extend(blobs.into_iter().map(|blob| (project.clone(), blob)));
    Ok(left)
}

/// What becomes of the files of a dropped task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FilesFate {
    Deleted,
    /// They are kept in quarantine.
    PutAside,
}

/// Releases the files of a dropped task: the next sweep removes them.
pub(crate) fn release(coordinator: &Coordinator, left: InFiles, fate: FilesFate) {
    let mut released = coordinator.released();
    let released = match fate {
        FilesFate::Deleted => &mut released.deleted,
        FilesFate::PutAside => &mut released.put_aside,
    };
    released.attempts.extend(left.attempts);
    released.sessions.extend(left.sessions);
    released.blobs.extend(left.blobs);
}

/// The existing files, listed before the rows are.
struct StoredFiles {
    output: Vec<(AttemptId, u64)>,
    mirrors: Vec<(Mirror, Vec<String>)>,
    blobs: Vec<Listed>,
    aside: Vec<Aside>,
}

#[derive(Debug, Default)]
struct Swept {
    outputs: usize,
    results: usize,
    blobs: usize,
    bytes: u64,
}

impl Swept {
    const fn is_empty(&self) -> bool {
        self.outputs == 0 && self.results == 0 && self.blobs == 0
    }
}

/// Removes the files of dropped tasks, and puts other unreferenced files aside, if `sweeps` is set.
async fn sweep(coordinator: &Coordinator, sweeps: bool) -> Result<(), RetentionError> {
    // First: rows read below may still name files that are released meanwhile.
    let released = coordinator.released().clone();
    let mut mirrors = Vec::new();
    for mirror in coordinator.repositories.all().await? {
        let mut references = mirror.refs_under(RESULTS).await?;
        references.extend(mirror.refs_under(SWEPT).await?);
        mirrors.push((mirror, references));
    }
    let files = StoredFiles {
        output: coordinator.outputs.list().await?,
        mirrors,
        blobs: coordinator.blobs.list().await?,
        aside: coordinator.quarantine.list().await?,
    };
    let named = coordinator.store.in_files().await?;
    give_back(coordinator, &files, &named).await?;
    let (removed, aside) = put_away(coordinator, &files, &named, &released, sweeps).await?;
    tell(coordinator, &files, &removed, &aside);
    forget(coordinator, &files, &released);
    delete(coordinator, &files).await
}

/// Brings back files that rows name again.
async fn give_back(coordinator: &Coordinator, files: &StoredFiles, named: &InFiles) -> Result<(), RetentionError> {
    let wanted = |aside: &&Aside| match &aside.thing {
        QuarantinedData::Output(attempt) => named.attempts.contains(attempt),
        QuarantinedData::Blob(project, digest) => named.blobs.contains(&(project.clone(), digest.clone())),
    };
    let things: Vec<Aside> = files.aside.iter().filter(wanted).cloned().collect();
    let mut results = 0;
    for (mirror, references) in &files.mirrors {
        let there = |session| references.contains(&result_ref(session));
        let wanted = references.iter().filter(|name| {
            swept_of(name).is_some_and(|(_, session)| named.sessions.contains(&session) && !there(session))
        });
        let wanted: Vec<String> = wanted.cloned().collect();
        let home = |name: &str| swept_of(name).map_or_else(|| name.to_owned(), |(_, session)| result_ref(session));
        results += mirror.rename_refs(&wanted, home).await?;
    }
    if things.is_empty() && results == 0 {
        return Ok(());
    }
    let files = things.len();
    coordinator.quarantine.give_back(things).await?;
    tracing::warn!(
        files,
        results,
        "files that the database names came back from quarantine"
    );
    Ok(())
}

/// Deletes the files of tasks that were dropped for good, and puts other unreferenced files aside.
async fn put_away(
    coordinator: &Coordinator,
    files: &StoredFiles,
    named: &InFiles,
    released: &Released,
    sweeps: bool,
) -> Result<(Swept, Swept), RetentionError> {
    let (mut removed, mut aside) = (Swept::default(), Swept::default());
    let at = coordinator.now();
    let (mut gone, mut moved) = (Vec::new(), Vec::new());
    for (attempt, bytes) in &files.output {
        if named.attempts.contains(attempt) {
            continue;
        }
        if released.deleted.attempts.contains(attempt) {
            gone.push(*attempt);
            (removed.outputs, removed.bytes) = (removed.outputs + 1, removed.bytes + bytes);
        } else if sweeps || released.put_aside.attempts.contains(attempt) {
            moved.push((
                *attempt,
                coordinator.quarantine.place(at, &QuarantinedData::Output(*attempt)),
            ));
            (aside.outputs, aside.bytes) = (aside.outputs + 1, aside.bytes + bytes);
        }
    }
    coordinator.outputs.remove(gone).await?;
    coordinator.outputs.put_aside(moved).await?;
    for (mirror, references) in &files.mirrors {
        let orphans = references.iter().filter_map(|name| Some((name, session_of(name)?)));
        let orphans = orphans.filter(|(_, session)| !named.sessions.contains(session));
        let (gone, moved): (Vec<_>, Vec<_>) =
            orphans.partition(|(_, session)| released.deleted.sessions.contains(session));
        let names = |of: Vec<(&String, _)>| -> Vec<String> { of.into_iter().map(|(name, _)| name.clone()).collect() };
        let gone = names(gone);
        if !gone.is_empty() {
            mirror.delete_refs(&gone).await?;
            removed.results += gone.len();
        }
        let moved: Vec<_> = moved
            .into_iter()
            .filter(|(_, session)| sweeps || released.put_aside.sessions.contains(session))
            .collect();
        if !moved.is_empty() {
            coordinator.quarantine.begin(at).await?;
            let place = |name: &str| name.replacen(RESULTS, &format!("{SWEPT}{}/", at.as_millis()), 1);
            aside.results += mirror.rename_refs(&names(moved), place).await?;
        }
    }
    for blob in &files.blobs {
        let key = (blob.project.clone(), blob.digest.clone());
        if named.blobs.contains(&key) {
            continue;
        }
        let counted = if released.deleted.blobs.contains(&key) {
            let gone = coordinator.blobs.remove_unnamed(blob, UNNAMED, None).await?;
            gone.then_some(&mut removed)
        } else if sweeps || released.put_aside.blobs.contains(&key) {
            let thing = QuarantinedData::Blob(key.0, key.1);
            let place = coordinator.quarantine.place(at, &thing);
            let moved = coordinator.blobs.remove_unnamed(blob, UNNAMED, Some(place)).await?;
            moved.then_some(&mut aside)
        } else {
            None
        };
        if let Some(counted) = counted {
            (counted.blobs, counted.bytes) = (counted.blobs + 1, counted.bytes + blob.bytes);
        }
    }
    Ok((removed, aside))
}

fn tell(coordinator: &Coordinator, files: &StoredFiles, removed: &Swept, aside: &Swept) {
    if !removed.is_empty() {
        let Swept {
            outputs,
            results,
            blobs,
            bytes,
        } = removed;
        tracing::info!(
            outputs,
            results,
            blobs,
            bytes,
            "the files of dropped tasks were removed"
        );
    }
    if aside.is_empty() {
        return;
    }
    let Swept {
        outputs,
        results,
        blobs,
        bytes,
    } = aside;
    let path = coordinator.quarantine.path().display();
    let all = files.output.len() + files.blobs.len();
    if is_large(outputs + blobs, all) {
        tracing::warn!(
            outputs, results, blobs, bytes, of = all, %path,
            "many files are named by no row and were put aside for a week: is the database the right one?"
        );
    } else {
        tracing::info!(outputs, results, blobs, bytes, %path, "unreferenced files were put aside for a week");
    }
}

/// Forgets released files that are gone.
fn forget(coordinator: &Coordinator, files: &StoredFiles, released: &Released) {
    let mut left = coordinator.released();
    forget_some(&mut left.deleted, files, &released.deleted);
    forget_some(&mut left.put_aside, files, &released.put_aside);
}

fn forget_some(left: &mut InFiles, files: &StoredFiles, released: &InFiles) {
    // Files released meanwhile stay for the next sweep, and blobs until they are old enough.
    left.attempts.retain(|attempt| !released.attempts.contains(attempt));
    left.sessions.retain(|session| !released.sessions.contains(session));
    let there: HashSet<_> = files.blobs.iter().map(|blob| (&blob.project, &blob.digest)).collect();
    left.blobs.retain(|(project, digest)| {
        !released.blobs.contains(&(project.clone(), digest.clone())) || there.contains(&(project, digest))
    });
}

/// Deletes files whose time in quarantine is over.
async fn delete(coordinator: &Coordinator, files: &StoredFiles) -> Result<(), RetentionError> {
    let now = coordinator.now().as_millis();
    let most = u64::try_from(QUARANTINE.as_millis()).unwrap_or(u64::MAX);
    let before = Timestamp::from_millis(now.saturating_sub(most));
    let young = coordinator.quarantine.young().await?;
    let deleted = coordinator.quarantine.delete(before, young.clone()).await?;
    let is_old = |at: Timestamp| at < before && !young.contains(&at);
    let mut results = 0;
    for (mirror, references) in &files.mirrors {
        let old = references
            .iter()
            .filter(|name| swept_of(name).is_some_and(|(at, _)| is_old(at)));
        let old: Vec<String> = old.cloned().collect();
        if !old.is_empty() {
            results += old.len();
            mirror.delete_refs(&old).await?;
        }
    }
    if deleted.files > 0 || results > 0 {
        let (files, bytes) = (deleted.files, deleted.bytes);
        tracing::info!(files, bytes, results, "files put aside a week ago were deleted");
    }
    Ok(())
}
