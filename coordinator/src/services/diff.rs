//! TaskService.GetDiff: what a session changed, sent file by file. Comparing is blocking work that
//! has one file in memory; a client that does not read stops it, and after a while ends it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use kage_core::checkpoint::Checkpoint;
use kage_core::id::Oid;
use kage_git::diff::{self, DiffScope, FileLines, FileStatus, PathEntry};
use kage_proto::convert::{InvalidField, Wrong};
use kage_proto::status::ApiError;
use kage_proto::v1::get_diff_response::Item;
use kage_proto::{MAX_INLINE, v1};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::checkpoint::assembled;
use super::checkpoint::subject::Subject;
use super::find_task;
use crate::coordinator::Coordinator;
use crate::door::auth::Principal;
use crate::refusals::internal;

/// How many differences are computed at the same time; the others wait. Each holds a thread while
/// its client reads.
pub(crate) const AT_ONCE: usize = 4;
/// How long a client may read nothing before its difference ends: it keeps another from beginning.
const UNREAD: Duration = Duration::from_secs(60);
/// Responses that wait for the network.
const QUEUED_RESPONSES: usize = 16;

const FILE_BYTES: usize = 1 << 20;
const MAX_FILE_BYTES: usize = 16 << 20;
const TOTAL_BYTES: usize = 64 << 20;
const MAX_TOTAL_BYTES: usize = 1 << 30;
const MAX_PATHS: usize = 1000;
const MAX_PATH_BYTES: usize = 4096;

/// What a call of GetDiff is answered with.
pub(crate) type Responses = ReceiverStream<Result<v1::GetDiffResponse, Status>>;

/// Begins to compare what the request names.
pub(super) async fn begin(
    coordinator: &Arc<Coordinator>,
    caller: &Principal,
    message: &v1::GetDiffRequest,
) -> Result<Responses, ApiError> {
    let scope = scope(message)?;
    let task = find_task(coordinator, caller, &message.task_id).await?;
    let subject = Subject::of(coordinator, task, &message.session).await?;
    let (from, before) = side(&subject, "from", &message.from, "base")?;
    let (to, after) = side(&subject, "to", &message.to, "result")?;
    let needed: Vec<_> = before.into_iter().chain(after).collect();
    let mirror = assembled::repository(coordinator, &subject, &needed).await?;
    let permit = Arc::clone(&coordinator.comparing).acquire_owned().await;
    let permit = permit.map_err(|_| going())?;
    let (responses, stream) = mpsc::channel(QUEUED_RESPONSES);
    let header = v1::DiffHeader {
        session_id: subject.session.id.to_string(),
        session: subject.session.name.to_string(),
        from_commit: from.to_string(),
        to_commit: to.to_string(),
    };
    let mut sending = Sending {
        coordinator: Arc::clone(coordinator),
        runtime: Handle::current(),
        responses,
        totals: v1::DiffTotals::default(),
    };
    coordinator.tasks.spawn_blocking(move || {
        let _permit = permit;
        if sending.send(Item::Header(header)).is_break() {
            return;
        }
        let compared = diff::by_file(mirror.path(), &from, &to, &scope, |file| sending.file(file));
        match compared {
            Ok(ControlFlow::Break(())) => {}
            Ok(ControlFlow::Continue(())) => {
                let totals = Item::Totals(sending.totals);
                // Whoever does not take the last message has gone.
                let _gone = sending.send(totals);
            }
            Err(error) => sending.fail(internal("the commits cannot be compared", &error)),
        }
    });
    Ok(ReceiverStream::new(stream))
}

fn going() -> ApiError {
    ApiError::Unavailable {
        message: "the coordinator is shutting down".to_owned(),
        retry: Some(Duration::from_secs(1)),
    }
}

/// What is to be compared, and how much of it may be sent.
fn scope(message: &v1::GetDiffRequest) -> Result<DiffScope, ApiError> {
    let mut wrong = Wrong::default();
    if message.paths.len() > MAX_PATHS {
        wrong.add(InvalidField::new("paths", format_args!("are more than {MAX_PATHS}")));
    }
    let mut paths = Vec::new();
    for (n, path) in message.paths.iter().enumerate().take(MAX_PATHS) {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let problem = match path {
            [] => "is empty",
            [b'/', ..] => "begins with /: a path is within the repository",
            path if path.contains(&0) => "has a NUL",
            path if path.len() > MAX_PATH_BYTES => "is too long",
            path => {
                paths.push(path.to_vec());
                continue;
            }
        };
        wrong.add(InvalidField::new(format!("paths[{n}]"), problem));
    }
    let limit = |asked: u64, default: usize, most: usize| match usize::try_from(asked) {
        Ok(0) => default,
        Ok(asked) => asked.min(most),
        Err(_) => most,
    };
    let file_bytes = match message.files_only {
        true => 0,
        false => limit(message.max_file_bytes.into(), FILE_BYTES, MAX_FILE_BYTES),
    };
    Ok(wrong.none(DiffScope {
        paths,
        file_bytes,
        total_bytes: limit(message.max_total_bytes, TOTAL_BYTES, MAX_TOTAL_BYTES),
    })?)
}

/// The commit that a text names, and the checkpoint that it is.
fn side<'a>(
    subject: &'a Subject,
    field: &str,
    text: &str,
    default: &str,
) -> Result<(Oid, Option<&'a Checkpoint>), ApiError> {
    let base = subject.base()?;
    let (session, text) = (&subject.session, if text.is_empty() { default } else { text });
    let checkpoint = match text {
        "base" | "0" => return Ok((base.clone(), None)),
        "result" => {
            let result = session.state.result().ok_or_else(|| ApiError::NotFound {
                what: format!(
                    "a result of session {}, which is {} (with `{field}` = `head` its newest checkpoint is compared),",
                    session.name,
                    session.state.kind().as_str()
                ),
            })?;
            return Ok((result.commit.clone(), None));
        }
        "head" => match &session.checkpoints.head {
            None => return Ok((base.clone(), None)),
            Some(head) => subject.checkpoint(&head.number.to_string())?,
        },
        text => subject.checkpoint(text)?,
    };
    Ok((checkpoint.taken.commit.clone(), Some(checkpoint)))
}

/// The way from the thread that compares to the client.
struct Sending {
    coordinator: Arc<Coordinator>,
    runtime: Handle,
    responses: mpsc::Sender<Result<v1::GetDiffResponse, Status>>,
    totals: v1::DiffTotals,
}

impl Sending {
    fn file(&mut self, file: diff::FileDiff) -> ControlFlow<()> {
        let patch = file.patch;
        let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let entry = |side: Option<PathEntry>| side.map(|entry| (entry.mode, entry.id.into())).unwrap_or_default();
        let (old_mode, old_id) = entry(file.before);
        let (new_mode, new_id) = entry(file.after);
        let old_path = file.old_path.unwrap_or_default();
        let (additions, deletions) = match file.lines {
            FileLines::Counted { added, removed } => (Some(added), Some(removed)),
            FileLines::Binary | FileLines::TooLarge => (None, None),
        };
        self.totals.files += 1;
        self.totals.additions += additions.unwrap_or_default();
        self.totals.deletions += deletions.unwrap_or_default();
        self.totals.truncated += u64::from(file.truncated);
        self.send(Item::File(v1::FileDiff {
            display_path: shown(&file.path),
            path: file.path,
            old_display_path: shown(&old_path),
            old_path,
            status: match file.status {
                FileStatus::Added => v1::FileStatus::Added,
                FileStatus::Modified => v1::FileStatus::Modified,
                FileStatus::Deleted => v1::FileStatus::Deleted,
                FileStatus::Renamed => v1::FileStatus::Renamed,
            }
            .into(),
            old_mode,
            old_id,
            new_mode,
            new_id,
            additions,
            deletions,
            is_binary: file.lines == FileLines::Binary,
            is_too_large: file.lines == FileLines::TooLarge,
            patch_size: patch.len() as u64,
            is_truncated: file.truncated,
        }))?;
        for piece in patch.chunks(MAX_INLINE) {
            self.send(Item::Patch(piece.to_vec()))?;
        }
        ControlFlow::Continue(())
    }

    /// Waits for room. Breaks off when nobody reads any more, or the coordinator ends.
    fn send(&self, item: Item) -> ControlFlow<()> {
        let response = v1::GetDiffResponse { item: Some(item) };
        let sent = self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.coordinator.closing.cancelled() => None,
                sent = timeout(UNREAD, self.responses.send(Ok(response))) => Some(matches!(sent, Ok(Ok(())))),
            }
        });
        match sent {
            Some(true) => return ControlFlow::Continue(()),
            Some(false) => {}
            None => self.fail(going()),
        }
        ControlFlow::Break(())
    }

    /// Ends the stream with an error, when there is room; it lacks the totals in any case.
    fn fail(&self, error: ApiError) {
        self.responses.try_send(Err(error.into())).ok();
    }
}
