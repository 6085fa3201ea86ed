//! `kage logs`: what the sessions wrote, as they wrote it.

use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;
use serde::Serialize;

use crate::args::{Format, Logs};
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::output::note;
use crate::tasks;
use crate::watch::{Request, Watch};

/// A piece of output. Bytes that are not UTF-8 are replaced; offsets count the real ones.
#[derive(Debug, Serialize)]
struct ChunkJson<'a> {
    session: &'a str,
    job: &'a str,
    attempt: u32,
    stream: &'static str,
    offset: u64,
    text: std::borrow::Cow<'a, str>,
}

pub(super) async fn run(invocation: &Invocation, args: Logs) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, args.task).await?;
    if let Some(name) = &args.session
        && !task.sessions.iter().any(|s| s.name == *name)
    {
        let names: Vec<_> = task.sessions.iter().map(|s| s.name.as_str()).collect();
        let message = format!("the task has no session {name:?}; it has {}", names.join(", "));
        return Err(Refusal::not_found(message).into());
    }
    let output = if args.transcript {
        vec![v1::OutputStream::Transcript]
    } else {
        vec![v1::OutputStream::Stdout, v1::OutputStream::Stderr]
    };
    let several = args.session.is_none() && task.sessions.len() > 1;
    let mut watch = Watch::new(
        access.client,
        Request {
            task: task.id,
            output,
            session: args.session,
            follow: args.follow,
        },
    );
    let mut source = String::new();
    while let Some(item) = watch.next().await? {
        let Item::Output(chunk) = item else { continue };
        match invocation.out.format() {
            Format::Human => {
                let this = format!("{} ({}, attempt {})", chunk.session, chunk.job, chunk.attempt);
                // Where output of several sources is mixed, say whose it is when it changes.
                if several && this != source {
                    note(&format!("==> {this} <=="));
                    source = this;
                }
                invocation.out.raw(&chunk.data)?;
            }
            Format::Json | Format::Jsonl => invocation.out.result(&ChunkJson {
                session: &chunk.session,
                job: &chunk.job,
                attempt: chunk.attempt,
                stream: stream(chunk.stream()),
                offset: chunk.offset,
                text: String::from_utf8_lossy(&chunk.data),
            })?,
        }
    }
    Ok(Exit::Done)
}

const fn stream(stream: v1::OutputStream) -> &'static str {
    match stream {
        v1::OutputStream::Unspecified => "unknown",
        v1::OutputStream::Stdout => "stdout",
        v1::OutputStream::Stderr => "stderr",
        v1::OutputStream::Transcript => "transcript",
    }
}
