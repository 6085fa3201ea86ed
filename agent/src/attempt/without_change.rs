//! Verify once more, without what the result changes: a check that passes then says nothing about the
//! change. It owns the second run; what follows from it is core's.

use kage_core::event::{EventBody, WithoutChange};
use kage_core::id::Oid;
use kage_proto::convert::agent::VerifyWork;

use super::shell::{Ran, Shell};
use super::{Attempt, AttemptEnded};
use crate::ground::port::Workspace;

/// Takes the change out of a checkout in which verify passed, its tests apart, and runs verify again.
/// `None`: the task does not ask for it, or there is no change.
pub(super) async fn without_change(
    attempt: &Attempt,
    work: &VerifyWork,
    (workspace, base): (&dyn Workspace, &Oid),
    shell: &mut Shell<'_>,
) -> Result<Option<WithoutChange>, AttemptEnded> {
    let (Some(verify), true) = (&work.policy.verify, work.policy.check_verify) else {
        return Ok(None);
    };
    if work.commit == *base {
        return Ok(None);
    }
    let warnings = attempt.warnings();
    let taking = workspace.take_out(&warnings, base, &work.commit);
    let taken = attempt.unless_stopped(taking).await?;
    if taken.is_empty() {
        return Ok(Some(WithoutChange::NothingElse));
    }
    let text = format!("verify once more, without the change of {}", taken.join(", "));
    attempt.recording.post(EventBody::Activity(text)).await?;
    let Ok(folder) = attempt.enter(&shell.worktree, work.policy.verify_folder.as_ref()).await else {
        // The folder came with the change.
        return Ok(Some(WithoutChange::Failed));
    };
    Ok(Some(match shell.run(verify, folder).await {
        Ran::Ended(status) if status.success() => WithoutChange::Passed,
        Ran::Ended(_) => WithoutChange::Failed,
        Ran::Not(_) => WithoutChange::NotRun,
    }))
}
