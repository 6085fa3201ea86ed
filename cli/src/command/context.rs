//! `kage context`: the shared base of a task's sessions, and how much sharing saved.

use anyhow::Context as _;
use kage_core::id::{Digest, ProjectId};
use kage_proto::blob;
use kage_proto::json::JsonMessage;
use kage_proto::status::ApiError;
use kage_proto::v1;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::connect::Access;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::tasks;
use crate::view;

#[derive(Debug, Serialize)]
struct ContextJson<'a> {
    digest: &'a str,
    /// As it was stored: numbers are not rounded.
    content: &'a RawValue,
}

#[derive(Debug, Serialize)]
struct StatsJson<'a> {
    digest: &'a str,
    #[serde(flatten)]
    stats: JsonMessage,
    /// Of the base: its bytes / 4, an estimate.
    tokens_estimated: u64,
    /// Of the prompt, which each session gets beside its context.
    prompt_bytes: u64,
    billed: Billed,
}

/// About how many tokens that many bytes are.
const fn tokens(bytes: u64) -> u64 {
    bytes / 4
}

/// The input of a task's sessions, in tokens, as their providers or programs reported it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Billed {
    input: u64,
    cache_write: u64,
    cache_read: u64,
}

impl Billed {
    fn of(sessions: &[v1::Session]) -> Self {
        let mut billed = Self::default();
        for usage in sessions.iter().filter_map(|session| session.usage) {
            let written = usage.cache_write_5m.saturating_add(usage.cache_write_1h);
            billed.input = billed.input.saturating_add(usage.input);
            billed.cache_write = billed.cache_write.saturating_add(written);
            billed.cache_read = billed.cache_read.saturating_add(usage.cache_read);
        }
        billed
    }

    fn words(self) -> String {
        format!(
            "input of this task's sessions: {} tokens at the full price, {} written to caches, {} read from caches\n",
            self.input, self.cache_write, self.cache_read
        )
    }
}

pub(super) async fn show(invocation: &Invocation, asked: Option<String>) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, asked).await?;
    let (project, digest) = base_of(&task)?;
    let request = v1::GetContextRequest {
        project: project.to_string(),
        digest: digest.to_string(),
    };
    let response = access
        .client
        .contexts()
        .get_context(request)
        .await
        .map_err(ApiError::from)?;
    let response = response.into_inner();
    let mut content = if response.content.is_empty() {
        download(&access, &project, &digest).await?
    } else {
        response.content.to_vec()
    };
    let json = ContextJson {
        digest: digest.as_str(),
        content: serde_json::from_slice(&content)?,
    };
    invocation.out.result("context", &json)?;
    content.push(b'\n');
    invocation.out.raw(&content)?;
    Ok(Exit::Done)
}

pub(super) async fn stats(invocation: &Invocation, asked: Option<String>) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, asked).await?;
    let billed = Billed::of(&task.sessions);
    let prompt = task.spec.as_ref().map_or(0, |spec| spec.prompt.len());
    let prompt_bytes = u64::try_from(prompt).unwrap_or(u64::MAX);
    let prompt_words = format!(
        "prompt: {prompt_bytes} bytes (about {} tokens), the same for all sessions\n",
        tokens(prompt_bytes)
    );
    if task.spec.as_ref().is_some_and(|spec| spec.context_base.is_empty()) {
        let nothing = v1::GetContextStatsResponse {
            sessions: u64::try_from(task.sessions.len()).unwrap_or(u64::MAX),
            ..v1::GetContextStatsResponse::default()
        };
        let json = StatsJson {
            digest: "",
            stats: JsonMessage::of(&nothing),
            tokens_estimated: 0,
            prompt_bytes,
            billed,
        };
        invocation.out.result("context_stats", &json)?;
        let words = "no base: the task has no context, and its sessions are told nothing but its prompt\n";
        invocation
            .out
            .text(&format!("{words}{prompt_words}{}", billed.words()))?;
        return Ok(Exit::Done);
    }
    let (project, digest) = base_of(&task)?;
    let request = v1::GetContextStatsRequest {
        project: project.to_string(),
        digest: digest.to_string(),
    };
    let response = access.client.contexts().get_context_stats(request).await;
    let stats = response.map_err(ApiError::from)?.into_inner();
    let json = StatsJson {
        digest: digest.as_str(),
        stats: JsonMessage::of(&stats),
        tokens_estimated: tokens(stats.size),
        prompt_bytes,
        billed,
    };
    invocation.out.result("context_stats", &json)?;
    let sent: u64 = stats.sent.iter().map(|s| s.bytes).sum();
    let mut text = format!(
        "base {}: {} bytes (about {} tokens), used by {} sessions whose deltas have {} bytes\nsent: {sent} bytes in all; one copy per session would be {} bytes\n",
        view::short_id(digest.as_str()),
        stats.size,
        tokens(stats.size),
        stats.sessions,
        stats.delta_bytes,
        stats.size.saturating_mul(stats.sessions),
    );
    for row in &stats.sent {
        let agent = view::printable(&row.agent);
        let about = tokens(row.bytes);
        text += &format!(
            "  {agent}: {} times, {} bytes (about {about} tokens)\n",
            row.times, row.bytes
        );
    }
    text += &prompt_words;
    text += &billed.words();
    invocation.out.text(&text)?;
    Ok(Exit::Done)
}

fn base_of(task: &v1::Task) -> anyhow::Result<(ProjectId, Digest)> {
    let spec = task
        .spec
        .as_ref()
        .context("the coordinator sent a task without a spec")?;
    if spec.context_base.is_empty() {
        let message = format!(
            "task {} has no context, no verify command and no instructions of its repository; `kage run --context \
             FILE` gives it a context",
            view::short_id(&task.id)
        );
        return Err(Refusal::not_found(message).into());
    }
    Ok((spec.project.parse()?, spec.context_base.parse()?))
}

pub(super) async fn download(access: &Access, project: &ProjectId, digest: &Digest) -> anyhow::Result<Vec<u8>> {
    let url = format!("{}{}", access.url, blob::blob_path(project, digest));
    let response = crate::http::client(access)?.get(url).send().await?.error_for_status()?;
    let bytes = response.bytes().await?.to_vec();
    anyhow::ensure!(
        Digest::of(&bytes) == *digest,
        "the coordinator sent bytes that do not match their digest"
    );
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_input_stand_apart() {
        let session = |input, write, read| v1::Session {
            usage: Some(v1::Usage {
                input,
                cache_write_5m: write,
                cache_write_1h: write,
                cache_read: read,
                output: 7,
                ..v1::Usage::default()
            }),
            ..v1::Session::default()
        };
        let billed = Billed::of(&[session(1, 2, 3), session(10, 20, 30), v1::Session::default()]);
        let expected = Billed {
            input: 11,
            cache_write: 44,
            cache_read: 33,
        };
        assert_eq!(billed, expected);
    }
}
