//! What verify did for the results of a task: the command, where it ran, on which commit, how it ended and
//! the end of what it said. The output is read from the coordinator, like that of `kage logs`.

use std::collections::{BTreeMap, VecDeque};

use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;

use crate::args::Format;
use crate::connect::Access;
use crate::output::Output;
use crate::view::{self, ComparedJson, Verification};
use crate::watch::{Request, Watch};

/// How many bytes of the output are told.
const EXCERPT: usize = 4 * 1024;

/// The verifications of the results that have a verdict, in the order of the sessions.
///
/// # Errors
/// When the coordinator cannot be reached.
pub(crate) async fn verifications(access: &Access, task: &v1::Task) -> anyhow::Result<Vec<Verification>> {
    let mut all: Vec<Verification> = task.sessions.iter().filter_map(|session| of(task, session)).collect();
    if all.is_empty() {
        return Ok(all);
    }
    let mut ends = ends(access, task).await?;
    for verification in &mut all {
        verification.excerpt = ends.remove(&verification.session).and_then(End::into_text);
    }
    Ok(all)
}

/// Prints a task with its comparison and verifications, when JSON of either kind is wanted.
///
/// # Errors
/// When standard output is closed. Without what verify said the rest is printed: it is the result of a task
/// that may have taken hours.
pub(crate) async fn compared(
    out: &Output,
    access: &Access,
    task: &v1::Task,
    report: &v1::Report,
) -> anyhow::Result<()> {
    if !matches!(out.format(), Format::Json | Format::Jsonl) {
        return Ok(());
    }
    let verifications = verifications(access, task).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the output of verify cannot be read");
        task.sessions.iter().filter_map(|session| of(task, session)).collect()
    });
    Ok(out.result("task", &ComparedJson::of(task, report, verifications))?)
}

fn of(task: &v1::Task, session: &v1::Session) -> Option<Verification> {
    let policy = task.spec.as_ref()?.policy.as_ref()?.verify.as_ref()?;
    let (verdict, result) = (session.verdict.as_ref()?, session.result.as_ref()?);
    let folder = match policy.verify_folder.as_str() {
        "" => ".",
        folder => folder,
    };
    Some(Verification {
        session: session.name.clone(),
        commit: result.commit.clone(),
        setup: Some(policy.setup.clone()).filter(|setup| !setup.is_empty()),
        command: policy.verify.clone(),
        folder: folder.to_owned(),
        verdict: view::verdict(verdict.kind()),
        exit_code: verdict.exit_code,
        message: verdict.message.clone(),
        excerpt: None,
        agent: verdict.agent.clone(),
        duration_ms: view::span_millis(verdict.duration),
    })
}

/// The end of what the last check of a session's result said.
#[derive(Debug, Default)]
struct End {
    attempt: u32,
    bytes: VecDeque<u8>,
}

impl End {
    fn take(&mut self, chunk: &v1::OutputChunk) {
        if chunk.attempt > self.attempt {
            self.attempt = chunk.attempt;
            self.bytes.clear();
        }
        if chunk.attempt < self.attempt {
            return;
        }
        self.bytes.extend(&chunk.data);
        let over = self.bytes.len().saturating_sub(EXCERPT);
        self.bytes.drain(..over);
    }

    fn into_text(self) -> Option<String> {
        let bytes = Vec::from(self.bytes);
        let cut = bytes.len() == EXCERPT;
        let text = String::from_utf8_lossy(&bytes);
        // A line that is cut says something else than it did.
        let text = match text.split_once('\n') {
            Some((_, rest)) if cut => rest.to_owned(),
            Some(_) | None => text.into_owned(),
        };
        (!text.is_empty()).then_some(text)
    }
}

async fn ends(access: &Access, task: &v1::Task) -> anyhow::Result<BTreeMap<String, End>> {
    let request = Request {
        task: task.id.clone(),
        output: vec![v1::OutputStream::Stdout, v1::OutputStream::Stderr],
        ..Request::default()
    };
    let mut watch = Watch::new(access.client.clone(), request);
    let mut ends: BTreeMap<String, End> = BTreeMap::new();
    while let Some(item) = watch.next().await? {
        if let Item::Output(chunk) = item
            && chunk.job() == v1::JobKind::Verify
        {
            ends.entry(chunk.session.clone()).or_default().take(&chunk);
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_the_end_of_the_last_attempt_from_a_whole_line_on() {
        let chunk = |attempt, data: String| v1::OutputChunk {
            attempt,
            data: data.into(),
            ..v1::OutputChunk::default()
        };
        let mut end = End::default();
        end.take(&chunk(1, "an earlier attempt\n".into()));
        end.take(&chunk(2, "one\n".into()));
        end.take(&chunk(2, "two\n".into()));
        end.take(&chunk(1, "late\n".into()));
        assert_eq!(end.into_text().as_deref(), Some("one\ntwo\n"));

        let mut long = End::default();
        for number in 0..2_000 {
            long.take(&chunk(1, format!("line {number}\n")));
        }
        let text = long.into_text().unwrap();
        assert!(
            text.len() <= EXCERPT && text.starts_with("line ") && text.ends_with("line 1999\n"),
            "{text}"
        );
        assert_eq!(End::default().into_text(), None);
    }
}
