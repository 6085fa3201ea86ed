//! `kage checkpoint`: the coordinator's checkpoints of sessions, and restoring one. `graph` draws
//! the timeline. Notes and paths are shown, never run or interpreted.

use anyhow::Context as _;
use kage_proto::convert::checkpoint::checkpoint_reason;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::args::{CheckpointArg, CheckpointCreate, CheckpointRestore, Checkpoints};
use crate::connect::Access;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::table::Table;
use crate::tasks;
use crate::view;

mod graph;

pub(super) async fn ls(invocation: &Invocation, args: Checkpoints) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let listed = list(&access, args).await?;
    invocation.out.messages("checkpoint", &listed.checkpoints)?;
    if listed.checkpoints.is_empty() {
        invocation.out.text("no checkpoint was taken yet")?;
    } else {
        invocation.out.table(&table(&listed.checkpoints))?;
    }
    Ok(Exit::Done)
}

fn table(checkpoints: &[v1::Checkpoint]) -> Table {
    let header = [
        "session", "#", "id", "after", "try", "agent", "reason", "files", "calls", "safety", "note",
    ];
    Table::of_words(&header, checkpoints.iter().map(row))
}

pub(super) async fn graph(invocation: &Invocation, args: Checkpoints) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let listed = list(&access, args).await?;
    invocation.out.messages("checkpoint", &listed.checkpoints)?;
    let mut text = String::new();
    for session in &listed.sessions {
        let mine: Vec<_> = listed
            .checkpoints
            .iter()
            .filter(|c| c.session_id == session.id)
            .collect();
        text += &graph::draw(session, &mine);
    }
    invocation.out.text(&text)?;
    Ok(Exit::Done)
}

pub(super) async fn show(invocation: &Invocation, args: CheckpointArg) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task_id = tasks::find(&access, args.task).await?.id;
    let request = v1::GetCheckpointRequest {
        task_id,
        session: args.session.unwrap_or_default(),
        checkpoint: args.checkpoint,
    };
    let response = access.client.checkpoints().get_checkpoint(request).await;
    let response = response.map_err(ApiError::from)?.into_inner();
    invocation.out.message("checkpoint_changes", &response)?;
    let checkpoint = response.checkpoint.context("the coordinator sent no checkpoint")?;
    invocation.out.text(&details(&checkpoint))?;
    invocation.out.text(&paths(&response.changes))?;
    Ok(Exit::Done)
}

pub(super) async fn create(invocation: &Invocation, args: CheckpointCreate) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task_id = tasks::find(&access, args.task).await?.id;
    let request = v1::CreateCheckpointRequest {
        request_id: tasks::request_id(),
        task_id,
        session: args.session.unwrap_or_default(),
        note: args.note,
    };
    let response = access.client.checkpoints().create_checkpoint(request).await;
    let checkpoint = response.map_err(ApiError::from)?.into_inner().checkpoint;
    let checkpoint = checkpoint.context("the coordinator sent no checkpoint")?;
    invocation.out.message("checkpoint", &checkpoint)?;
    invocation.out.text(&format!(
        "checkpoint {} of {} ({})",
        checkpoint.number,
        checkpoint.session,
        view::short_id(&checkpoint.commit)
    ))?;
    Ok(Exit::Done)
}

pub(super) async fn restore(invocation: &Invocation, args: CheckpointRestore) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task_id = tasks::find(&access, args.which.task.clone()).await?.id;
    let request = v1::RestoreSessionRequest {
        request_id: tasks::request_id(),
        task_id,
        session: args.which.session.clone().unwrap_or_default(),
        checkpoint: args.which.checkpoint.clone(),
        dry_run: args.dry_run,
        discard: args.discard,
        complete: args.complete,
    };
    let response = access.client.checkpoints().restore_session(request).await;
    let response = response.map_err(ApiError::from)?.into_inner();
    invocation.out.message("restore", &response)?;
    let checkpoint = response.checkpoint.clone();
    let checkpoint = checkpoint.context("the coordinator sent no checkpoint")?;
    invocation.out.text(&told(&args, &checkpoint, &response))?;
    Ok(Exit::Done)
}

/// Says in words what was done, or would be done.
fn told(args: &CheckpointRestore, checkpoint: &v1::Checkpoint, response: &v1::RestoreSessionResponse) -> String {
    let calls = view::counted(response.repeated_calls as usize, "model call");
    let (session, number) = (&checkpoint.session, checkpoint.number);
    let mut text = if args.dry_run {
        format!("{session} would go back to checkpoint {number}, from its newest; {calls} would be made again\n")
    } else {
        format!("{session} goes back to checkpoint {number}; {calls} will be made again\n")
    };
    let runs = response.session.as_ref().map(v1::Session::state) == Some(v1::SessionState::Running);
    match &response.saved {
        Some(saved) => text += &format!("its changes until now are in checkpoint {}\n", saved.number),
        None if args.dry_run && runs && args.discard => {
            text += "it is running: its changes since its newest checkpoint would be lost\n";
        }
        None if args.dry_run && runs => {
            text +=
                "it is running: its changes since its newest checkpoint would first be kept in another checkpoint\n";
        }
        None => {}
    }
    if args.dry_run && args.complete {
        text += "ignored files created since then would also be moved aside; they are not listed\n";
    }
    text + &paths(&response.plan)
}

async fn list(access: &Access, args: Checkpoints) -> anyhow::Result<v1::ListCheckpointsResponse> {
    let task_id = tasks::find(access, args.task).await?.id;
    let mut request = v1::ListCheckpointsRequest {
        task_id,
        session: args.session.unwrap_or_default(),
        ..v1::ListCheckpointsRequest::default()
    };
    let mut checkpoints = Vec::new();
    loop {
        let page = access.client.checkpoints().list_checkpoints(request.clone()).await;
        let mut page = page.map_err(ApiError::from)?.into_inner();
        checkpoints.append(&mut page.checkpoints);
        if page.next_page_token.is_empty() {
            return Ok(v1::ListCheckpointsResponse { checkpoints, ..page });
        }
        request.page_token = page.next_page_token;
    }
}

fn row(checkpoint: &v1::Checkpoint) -> Vec<String> {
    let mark = if checkpoint.head { "*" } else { "" };
    vec![
        checkpoint.session.clone(),
        format!("{}{mark}", checkpoint.number),
        view::short_id(&checkpoint.commit).to_owned(),
        match checkpoint.parent_number {
            0 => "base".to_owned(),
            number => number.to_string(),
        },
        checkpoint.attempt.to_string(),
        view::printable(&checkpoint.agent),
        reason(checkpoint),
        checkpoint.files_changed.to_string(),
        checkpoint.calls.to_string(),
        view::safety(checkpoint.safety()).to_owned(),
        view::one_line(&checkpoint.note, 60),
    ]
}

fn reason(checkpoint: &v1::Checkpoint) -> String {
    checkpoint_reason("reason", checkpoint.reason).map_or_else(|_| "unknown".to_owned(), |reason| reason.to_string())
}

fn details(checkpoint: &v1::Checkpoint) -> String {
    let after = match checkpoint.parent_number {
        0 => format!("base {}", view::short_id(&checkpoint.parent)),
        number => format!("checkpoint {number}"),
    };
    let mut text = format!(
        "checkpoint {} of {}\ncommit: {}\nafter: {after}\ntaken: {} in attempt {} on {}\nconversation: position {}, after {}\nfiles: {}\n",
        checkpoint.number,
        checkpoint.session,
        checkpoint.commit,
        reason(checkpoint),
        checkpoint.attempt,
        view::printable(&checkpoint.agent),
        checkpoint.position,
        view::counted(checkpoint.calls as usize, "model call"),
        match checkpoint.safety() {
            v1::Safety::Safe => "verify passed on them",
            v1::Safety::Unsafe => "verify failed on them",
            v1::Safety::Unspecified | v1::Safety::Unknown => "verify did not run on them",
        },
    );
    if !checkpoint.note.is_empty() {
        text += &format!("note: {}\n", view::one_line(&checkpoint.note, 1000));
    }
    for resumption in &checkpoint.resumptions {
        text += &format!("{}\n", resumed(resumption));
    }
    text
}

/// "attempt 2 continued from here; 1 model call made again".
fn resumed(resumption: &v1::Resumption) -> String {
    let conversation = if resumption.position == 0 {
        " with a new conversation"
    } else {
        ""
    };
    format!(
        "attempt {} continued from here{conversation}; {} made again",
        resumption.attempt,
        view::counted(resumption.repeated_calls as usize, "model call")
    )
}

fn paths(changes: &[v1::PathPlan]) -> String {
    if changes.is_empty() {
        return "no path differs\n".to_owned();
    }
    let mut text = String::new();
    for change in changes {
        let path = view::printable(&String::from_utf8_lossy(&change.path));
        text += &format!("{:<8} {path}{}\n", action(change.action()), kind(change));
    }
    text
}

const fn action(action: v1::PathAction) -> &'static str {
    match action {
        v1::PathAction::Unspecified => "unknown",
        v1::PathAction::Create => "create",
        v1::PathAction::Replace => "replace",
        v1::PathAction::Delete => "delete",
    }
}

/// The kind of the path afterwards, unless it is a plain file as before.
fn kind(change: &v1::PathPlan) -> &'static str {
    if change.new_mode == change.old_mode {
        return "";
    }
    match change.new_mode {
        0o100_755 => " (executable)",
        0o120_000 => " (symbolic link)",
        0o160_000 => " (submodule)",
        0o100_644 if change.old_mode != 0 => " (plain file)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn checkpoints_fit_every_width() {
        let checkpoint = |number| v1::Checkpoint {
            session: "claude-api-1".to_owned(),
            number,
            parent_number: number - 1,
            commit: format!("{number}a2b3c4d5e6f"),
            attempt: 1,
            agent: "big-machine".to_owned(),
            ..v1::Checkpoint::default()
        };
        insta::assert_snapshot!(everywhere(&table(&[checkpoint(1), checkpoint(2)])));
    }

    #[test]
    fn what_becomes_of_the_latest_work_is_said() {
        let checkpoint = v1::Checkpoint {
            session: "one".to_owned(),
            number: 2,
            ..Default::default()
        };
        let told = |dry_run, discard, state: v1::SessionState, saved: Option<u32>| {
            let which = CheckpointArg {
                checkpoint: "2".to_owned(),
                task: None,
                session: None,
            };
            let args = CheckpointRestore {
                which,
                dry_run,
                discard,
                complete: discard,
            };
            let response = v1::RestoreSessionResponse {
                session: Some(v1::Session {
                    state: state.into(),
                    ..Default::default()
                }),
                saved: saved.map(|number| v1::Checkpoint {
                    number,
                    ..checkpoint.clone()
                }),
                repeated_calls: 1,
                ..Default::default()
            };
            told(&args, &checkpoint, &response)
        };
        insta::assert_snapshot!(told(true, false, v1::SessionState::Running, None), @r"
        one would go back to checkpoint 2, from its newest; 1 model call would be made again
        it is running: its changes since its newest checkpoint would first be kept in another checkpoint
        no path differs
        ");
        insta::assert_snapshot!(told(false, false, v1::SessionState::Queued, Some(3)), @r"
        one goes back to checkpoint 2; 1 model call will be made again
        its changes until now are in checkpoint 3
        no path differs
        ");
        insta::assert_snapshot!(told(true, true, v1::SessionState::Running, None), @r"
        one would go back to checkpoint 2, from its newest; 1 model call would be made again
        it is running: its changes since its newest checkpoint would be lost
        ignored files created since then would also be moved aside; they are not listed
        no path differs
        ");
        assert!(!told(true, false, v1::SessionState::Failed, None).contains("kept"));
    }

    #[test]
    fn every_path_says_what_it_becomes() {
        let plan = |path: &[u8], action: v1::PathAction, old_mode, new_mode| v1::PathPlan {
            path: path.to_vec(),
            action: action.into(),
            old_mode,
            new_mode,
            ..Default::default()
        };
        let changes = [
            plan(b"a.txt", v1::PathAction::Replace, 0o100_644, 0o100_644),
            plan(b"run.sh", v1::PathAction::Replace, 0o100_644, 0o100_755),
            plan(b"link", v1::PathAction::Create, 0, 0o120_000),
            plan(b"old\x1b[2J\xff", v1::PathAction::Delete, 0o100_644, 0),
        ];
        insta::assert_snapshot!(paths(&changes), @r"
        replace  a.txt
        replace  run.sh (executable)
        create   link (symbolic link)
        delete   old�[2J�
        ");
    }
}
