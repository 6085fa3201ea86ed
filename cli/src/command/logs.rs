//! `kage logs`: the output of sessions, unchanged.

use std::collections::HashMap;

use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;
use serde::Serialize;

use crate::args::{Format, Logs};
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::output::note;
use crate::tasks;
use crate::watch::{Request, Watch};

/// A piece of output. Bytes that are not UTF-8 are replaced; offsets count the original bytes.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ChunkJson {
    session: String,
    job: &'static str,
    attempt: u32,
    stream: &'static str,
    offset: u64,
    text: String,
}

/// Decodes pieces that may end in the middle of a character: its first bytes are kept until the
/// rest arrives.
#[derive(Debug, Default)]
struct Texts {
    begun: HashMap<(String, i32, u32, i32), v1::OutputChunk>,
}

impl Texts {
    /// The text of a piece, with the bytes kept of the previous one.
    fn take(&mut self, mut chunk: v1::OutputChunk) -> Option<ChunkJson> {
        let source = (chunk.session.clone(), chunk.job, chunk.attempt, chunk.stream);
        if let Some(begun) = self.begun.remove(&source) {
            chunk.offset = begun.offset;
            chunk.data = [begun.data, chunk.data].concat().into();
        }
        let rest = chunk.data.split_off(begun_at(&chunk.data));
        if !rest.is_empty() {
            let begun = v1::OutputChunk {
                offset: chunk.offset + chunk.data.len() as u64,
                data: rest,
                ..chunk.clone()
            };
            self.begun.insert(source, begun);
        }
        (!chunk.data.is_empty()).then(|| json(chunk))
    }

    /// The remains of incomplete characters.
    fn finish(self) -> impl Iterator<Item = ChunkJson> {
        self.begun.into_values().map(json)
    }
}

/// The start of an incomplete last character, or else the length.
fn begun_at(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    let begun = bytes[tail..].iter().rposition(|byte| byte & 0xc0 != 0x80);
    match begun.map(|at| tail + at) {
        Some(at) if matches!(std::str::from_utf8(&bytes[at..]), Err(error) if error.error_len().is_none()) => at,
        Some(_) | None => bytes.len(),
    }
}

fn json(chunk: v1::OutputChunk) -> ChunkJson {
    ChunkJson {
        stream: stream(chunk.stream()),
        job: chunk.job().as_str(),
        text: String::from_utf8_lossy(&chunk.data).into_owned(),
        session: chunk.session,
        attempt: chunk.attempt,
        offset: chunk.offset,
    }
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
    let mut texts = Texts::default();
    while let Some(item) = watch.next().await? {
        let Item::Output(chunk) = item else { continue };
        if (chunk.job() == v1::JobKind::Baseline) != args.base {
            continue;
        }
        match invocation.out.format() {
            Format::Human => {
                let this = format!(
                    "{} ({}, attempt {})",
                    chunk.session,
                    chunk.job().as_str(),
                    chunk.attempt
                );
                // With several sources, name the source whenever it changes.
                if several && this != source {
                    note(&format!("==> {this} <=="));
                    source = this;
                }
                invocation.out.raw(&chunk.data)?;
            }
            Format::Json | Format::Jsonl => {
                if let Some(text) = texts.take(chunk) {
                    invocation.out.result(&text)?;
                }
            }
        }
    }
    for text in texts.finish() {
        invocation.out.result(&text)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offset: u64, data: &'static [u8]) -> v1::OutputChunk {
        v1::OutputChunk {
            session: "one".into(),
            stream: v1::OutputStream::Stdout.into(),
            offset,
            data: data.into(),
            ..v1::OutputChunk::default()
        }
    }

    #[test]
    fn characters_survive_the_borders_of_pieces() {
        let text = "aé→𝄞z".as_bytes();
        for cut in 0..text.len() {
            let mut texts = Texts::default();
            let pieces = [chunk(0, &text[..cut]), chunk(cut as u64, &text[cut..])];
            let told: Vec<_> = pieces.into_iter().filter_map(|piece| texts.take(piece)).collect();
            assert_eq!(told.iter().map(|json| json.text.as_str()).collect::<String>(), "aé→𝄞z");
            let mut offset = 0;
            for json in &told {
                assert_eq!(json.offset, offset, "cut at {cut}");
                offset += json.text.len() as u64;
            }
            assert_eq!(texts.finish().count(), 0);
        }
    }

    #[test]
    fn what_is_no_text_is_replaced_and_not_kept() {
        let mut texts = Texts::default();
        assert_eq!(texts.take(chunk(0, b"\xff\x80a")).unwrap().text, "\u{fffd}\u{fffd}a");
        assert!(texts.take(chunk(3, b"\xe2\x86")).is_none());
        let last: Vec<_> = texts.finish().collect();
        assert_eq!((last[0].offset, last[0].text.as_str()), (3, "\u{fffd}"));
    }
}
