//! `kage logs`: the output of sessions. In a pipe it is unchanged; with several sessions each line says whose
//! it is.

use std::collections::{BTreeMap, HashMap};

use kage_proto::v1;
use kage_proto::v1::watch_task_response::Item;
use serde::Serialize;

use crate::args::{Format, Logs};
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::output::{Output, note};
use crate::tasks;
use crate::terminal::{Ink, Painted};
use crate::transcript::{self, Lines};
use crate::view::{self, OfTaskJson};
use crate::watch::{Request, Watch};

/// Most characters of one warning.
const WARNING: usize = 600;

/// A piece of output: the message, with its text instead of its bytes if the text has all of them.
#[derive(Debug, Serialize)]
struct OutputJson<'a> {
    #[serde(flatten)]
    chunk: OfTaskJson<'a>,
    text: String,
}

impl<'a> OutputJson<'a> {
    fn of(task_id: &'a str, mut chunk: v1::OutputChunk) -> Self {
        let text = String::from_utf8_lossy(&chunk.data).into_owned();
        if text.as_bytes() == chunk.data {
            chunk.data.clear();
        }
        Self {
            chunk: OfTaskJson::of(task_id, &chunk),
            text,
        }
    }
}

/// Completes pieces that may end in the middle of a character: its first bytes are kept until the
/// rest arrives.
#[derive(Debug, Default)]
struct Texts {
    begun: HashMap<(String, i32, u32, i32), v1::OutputChunk>,
}

impl Texts {
    /// The piece with the bytes kept of the previous one, up to its last whole character.
    fn take(&mut self, mut chunk: v1::OutputChunk) -> Option<v1::OutputChunk> {
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
        (!chunk.data.is_empty()).then_some(chunk)
    }

    /// The remains of incomplete characters.
    fn finish(self) -> impl Iterator<Item = v1::OutputChunk> {
        self.begun.into_values()
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
    if invocation.out.format() == Format::Human {
        // They are in no output: what wrote it does not know why a host or a path was refused.
        let shown = task.sessions.iter();
        let shown = shown.filter(|session| args.session.as_ref().is_none_or(|name| *name == session.name));
        for session in shown {
            for warning in &session.warnings {
                note(&format!(
                    "{}: warning: {}",
                    session.name,
                    view::one_line(warning, WARNING)
                ));
            }
        }
    }
    let mut printed = Printed::new(invocation.out.clone(), (args.raw, args.transcript), &task, several);
    let mut watch = Watch::new(
        access.client,
        Request {
            task: task.id.clone(),
            output,
            session: args.session,
            follow: args.follow,
        },
    );
    let mut texts = Texts::default();
    let mut all = Vec::new();
    while let Some(item) = watch.next().await? {
        let Item::Output(chunk) = item else { continue };
        if (chunk.job() == v1::JobKind::Baseline) != args.base {
            continue;
        }
        match invocation.out.format() {
            Format::Human | Format::Tsv => printed.take(&chunk)?,
            Format::Json => all.extend(texts.take(chunk).map(|chunk| OutputJson::of(&task.id, chunk))),
            Format::Jsonl => {
                if let Some(chunk) = texts.take(chunk) {
                    invocation.out.happening("output", &OutputJson::of(&task.id, chunk))?;
                }
            }
        }
    }
    printed.finish()?;
    for chunk in texts.finish() {
        let last = OutputJson::of(&task.id, chunk);
        invocation.out.happening("output", &last)?;
        all.push(last);
    }
    invocation.out.document(&all)?;
    Ok(Exit::Done)
}

/// How output is printed for people.
#[derive(Debug)]
struct Printed {
    out: Output,
    manner: Manner,
    /// Columns of the names in front of lines; 0: none are there.
    names: usize,
    /// Lines that were begun, by their source.
    begun: BTreeMap<Source, Lines>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Bytes as they come.
    Bytes,
    /// Line by line.
    Lines,
    /// Each line is a message of a conversation.
    Conversation,
}

/// Session, job, attempt and stream of a piece.
type Source = (String, i32, u32, i32);

impl Printed {
    fn new(out: Output, raw_and_transcript: (bool, bool), task: &v1::Task, several: bool) -> Self {
        let manner = match raw_and_transcript {
            (true, _) => Manner::Bytes,
            (false, true) => Manner::Conversation,
            // A terminal gets whole characters, and a program in a pipe what was written.
            (false, false) if several || out.screen().is_terminal => Manner::Lines,
            (false, false) => Manner::Bytes,
        };
        let longest = task.sessions.iter().map(|session| session.name.chars().count()).max();
        Self {
            out,
            manner,
            names: if several {
                longest.unwrap_or_default() + "/verify".len()
            } else {
                0
            },
            begun: BTreeMap::new(),
        }
    }

    fn take(&mut self, chunk: &v1::OutputChunk) -> std::io::Result<()> {
        if self.manner == Manner::Bytes {
            return self.out.unchanged(&chunk.data);
        }
        let source = (chunk.session.clone(), chunk.job, chunk.attempt, chunk.stream);
        let lines = self.begun.entry(source.clone()).or_default().take(&chunk.data);
        lines.iter().try_for_each(|line| self.line(&source, line))
    }

    fn finish(&mut self) -> std::io::Result<()> {
        for (source, lines) in std::mem::take(&mut self.begun) {
            if let Some(line) = lines.finish() {
                self.line(&source, &line)?;
            }
        }
        Ok(())
    }

    fn line(&self, source: &Source, line: &[u8]) -> std::io::Result<()> {
        if self.manner == Manner::Lines && !self.out.screen().is_terminal {
            return self
                .out
                .unchanged(&[self.name(source).as_bytes(), line, b"\n"].concat());
        }
        let text = match self.manner {
            Manner::Conversation => transcript::told(line),
            // What draws over its own line, as bars do, drew several.
            Manner::Lines | Manner::Bytes => {
                let text = String::from_utf8_lossy(line).replace("\r\n", "\n");
                Painted::from(text.trim_end_matches('\r').replace('\r', "\n") + "\n")
            }
        };
        let name = self.name(source);
        let mut told = Painted::default();
        for line in text.lines() {
            told.push(Ink::Faint, name.clone());
            for (ink, words) in line {
                told.push(ink, words);
            }
            told.push(Ink::Plain, "\n");
        }
        match told.is_empty() {
            true => Ok(()),
            false => self.out.painted(&told),
        }
    }

    /// What stands in front of a line: whose it is, and of which job.
    fn name(&self, (session, job, attempt, _): &Source) -> String {
        if self.names == 0 {
            return String::new();
        }
        let job = match v1::JobKind::try_from(*job) {
            Ok(v1::JobKind::Verify) => "/verify",
            Ok(v1::JobKind::Baseline) => "/base",
            Ok(v1::JobKind::Session | v1::JobKind::Unspecified) | Err(_) => "",
        };
        let again = if *attempt > 1 {
            format!("#{attempt}")
        } else {
            String::new()
        };
        let name = format!("{}{job}{again}", view::printable(session));
        format!("{name:width$} | ", width = self.names)
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
            let whole: Vec<_> = told.iter().map(|chunk| str::from_utf8(&chunk.data).unwrap()).collect();
            assert_eq!(whole.concat(), "aé→𝄞z");
            let mut offset = 0;
            for chunk in &told {
                assert_eq!(chunk.offset, offset, "cut at {cut}");
                offset += chunk.data.len() as u64;
            }
            assert_eq!(texts.finish().count(), 0);
        }
    }

    #[test]
    fn what_is_no_text_is_replaced_and_has_its_bytes() {
        let json = |chunk| serde_json::to_value(OutputJson::of("0123", chunk)).unwrap();
        let mut texts = Texts::default();
        let replaced = json(texts.take(chunk(0, b"\xff\x80a")).unwrap());
        assert_eq!(
            replaced,
            serde_json::json!({
                "task_id": "0123", "session": "one", "stream": "OUTPUT_STREAM_STDOUT", "data": "/4Bh",
                "text": "\u{fffd}\u{fffd}a",
            })
        );
        assert!(texts.take(chunk(3, b"\xe2\x86")).is_none());
        let last: Vec<_> = texts.finish().map(json).collect();
        assert_eq!((&last[0]["offset"], &last[0]["text"]), (&3.into(), &"\u{fffd}".into()));
        let whole = json(chunk(7, b"a\n"));
        assert_eq!((whole.get("data"), &whole["text"]), (None, &"a\n".into()));
    }
}
