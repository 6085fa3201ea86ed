//! Context for an attempt that resumes a checkpoint: the conversation so far, in its adapter's
//! form, or, for a new conversation, a summary of the work done. The workspace owns the files.

use bytes::Bytes;
use kage_core::checkpoint::Resume;
use kage_core::event::EventBody;

use super::transcript::Mark;
use super::{Attempt, AttemptEnded};
use crate::adapters::port::{Adapter, Beginning, SessionInput};
use crate::ground::port::Workspace;

/// Limit of paths in the summary for a new conversation.
const PATHS: usize = 40;

/// The start of an attempt's conversation.
#[derive(Debug, Default)]
pub(super) struct Begun {
    pub(super) beginning: Beginning,
    /// The position of its conversation.
    pub(super) mark: Mark,
}

/// Fetches the conversation so far, if the adapter can continue it. When it is not available, the
/// attempt starts a new conversation and says so.
pub(super) async fn begin(
    attempt: &Attempt,
    adapter: &dyn Adapter,
    input: &SessionInput,
    resume: &Resume,
) -> Result<Begun, AttemptEnded> {
    if resume.position == 0 || !adapter.resumes().can(resume.repeated_calls) {
        return Ok(Begun::default());
    }
    let mut said = Vec::new();
    for segment in &resume.segments {
        let fetched = attempt.resources.ground.get(&attempt.work.project, &segment.blob);
        match attempt.stop.token().run_until_cancelled(fetched).await {
            None => return Err(attempt.stopped().into()),
            Some(Ok(bytes)) => said.extend_from_slice(&bytes),
            Some(Err(failure)) => return lost(attempt, &failure.message).await,
        }
    }
    let lines = said.iter().filter(|byte| **byte == b'\n').count() as u64;
    if lines != resume.position {
        let why = format!("it has {lines} messages instead of {}", resume.position);
        return lost(attempt, &why).await;
    }
    let said = match adapter.session_file(input) {
        Some(file) => file.local(said),
        None => said,
    };
    Ok(Begun {
        mark: Mark {
            position: resume.position,
            offset: said.len() as u64,
        },
        beginning: Beginning::GoOn {
            said: Bytes::from(said),
            note: resume.note.clone(),
            instruction: match resume.instruction_known {
                true => String::new(),
                false => resume.instruction.clone(),
            },
        },
    })
}

async fn lost(attempt: &Attempt, why: &str) -> Result<Begun, AttemptEnded> {
    let text = format!("the checkpoint's conversation is not available ({why}): starting a new one");
    attempt.recording.post(EventBody::Warning(text)).await?;
    Ok(Begun::default())
}

/// Summarises the work done so far for a new conversation.
pub(super) async fn summary(workspace: &dyn Workspace, resume: &Resume) -> String {
    let paths = workspace.paths_since_base(&resume.commit).await;
    let instruction = match resume.instruction_anew.as_str() {
        "" => &resume.instruction,
        anew => anew,
    };
    summary_of(&paths, &resume.note, instruction)
}

fn summary_of(paths: &[String], note: &str, instruction: &str) -> String {
    if paths.is_empty() && note.is_empty() && instruction.is_empty() {
        return String::new();
    }
    let mut text = "\n\n# What was done before\n\nSomebody worked on this task before you".to_owned();
    text.push_str(if instruction.is_empty() {
        " and was interrupted."
    } else {
        "."
    });
    if !paths.is_empty() {
        text.push_str(" The files are as they were left. These differ from the beginning:\n");
        for path in paths.iter().take(PATHS) {
            text.push_str(&format!("\n- {path}"));
        }
        if let Some(more) = paths.len().checked_sub(PATHS).filter(|more| *more > 0) {
            text.push_str(&format!("\n- and {more} more"));
        }
        text.push_str("\n\nLook at them first, and go on from there.");
    }
    if !note.is_empty() {
        text.push_str(&format!("\n\n{note}"));
    }
    if !instruction.is_empty() {
        text.push_str(&format!("\n\n{instruction}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_short_and_says_what_there_is() {
        assert_eq!(summary_of(&[], "", ""), "");
        let paths: Vec<String> = (0..50).map(|n| format!("f{n}")).collect();
        let text = summary_of(&paths, "older files", "");
        assert!(text.contains("- f39\n- and 10 more") && !text.contains("f40") && text.ends_with("older files"));
        assert!(text.contains("was interrupted"));
        assert!(!summary_of(&[], "older files", "").contains("differ"));
        let text = summary_of(&paths, "", "# Verify failed");
        assert!(text.ends_with("\n\n# Verify failed") && !text.contains("interrupted"));
    }
}
