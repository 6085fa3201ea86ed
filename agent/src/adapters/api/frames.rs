//! The frames of an answer's body: events of a stream (SSE), or lines of JSON. It cuts bytes and
//! understands none: what a frame says is the dialect's business.

use bytes::{Buf, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use sse_stream::SseStream;

/// How a dialect frames an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// Server-sent events; a frame is the data of one.
    Events,
    /// A JSON value on each line.
    Lines,
}

/// A frame: its data, or `None` for one that has none, such as a comment.
type Read = Result<Option<String>, String>;

/// The frames of a body.
pub(super) enum Frames<'a, S> {
    Events(BoxStream<'a, Read>),
    Lines {
        bytes: S,
        /// Bytes of a line that is not complete.
        begun: BytesMut,
    },
}

impl<'a, S, B, E> Frames<'a, S>
where
    S: Stream<Item = Result<B, E>> + Unpin + Send + 'a,
    B: Buf + Send + 'a,
    E: std::error::Error + Send + Sync + 'static,
{
    pub(super) fn new(framing: Framing, bytes: S) -> Self {
        match framing {
            Framing::Events => {
                let events = SseStream::from_bytes_stream(bytes);
                let frames = events.map(|event| event.map(|event| event.data).map_err(|error| error.to_string()));
                Self::Events(frames.boxed())
            }
            Framing::Lines => Self::Lines {
                bytes,
                begun: BytesMut::new(),
            },
        }
    }

    /// The next frame; `None` at the end. An error is in words for people.
    pub(super) async fn next(&mut self) -> Option<Read> {
        let (bytes, begun) = match self {
            Self::Events(frames) => return frames.next().await,
            Self::Lines { bytes, begun } => (bytes, begun),
        };
        loop {
            if let Some(end) = begun.iter().position(|byte| *byte == b'\n') {
                let line = begun.split_to(end + 1);
                return Some(Ok(line_of(&line)));
            }
            if begun.len() > super::answer::MAX_ANSWER {
                begun.clear();
                return Some(Err("a line of it is longer than any should be".to_owned()));
            }
            match bytes.next().await {
                Some(Ok(mut more)) => {
                    while more.has_remaining() {
                        let chunk = more.chunk();
                        let taken = chunk.len();
                        begun.extend_from_slice(chunk);
                        more.advance(taken);
                    }
                }
                Some(Err(error)) => return Some(Err(error.to_string())),
                // The last line may have no end.
                None if begun.is_empty() => return None,
                None => {
                    let line = begun.split();
                    return Some(Ok(line_of(&line)));
                }
            }
        }
    }
}

fn line_of(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line);
    let line = line.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

/// What the body of an answer begins like, whatever its headers say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// Frames, as the dialect has them.
    Frames,
    /// One JSON value, where frames were expected.
    Json,
    /// A web page.
    Page,
}

/// The opening of a body that begins with these bytes; `None` when there is only white space so far.
pub(super) fn opening(framing: Framing, head: &[u8]) -> Option<Opening> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let first = head.iter().find(|byte| !byte.is_ascii_whitespace())?;
    Some(match (first, framing) {
        (b'<', _) => Opening::Page,
        (b'{' | b'[', Framing::Events) => Opening::Json,
        _ => Opening::Frames,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn frames(framing: Framing, parts: Vec<Vec<u8>>) -> Vec<Read> {
        let parts = parts.into_iter().map(|part| Ok::<_, Infallible>(Bytes::from(part)));
        let mut frames = Frames::new(framing, futures_util::stream::iter(parts));
        let mut all = Vec::new();
        let reading = async {
            while let Some(frame) = frames.next().await {
                all.push(frame);
            }
        };
        futures_util::FutureExt::now_or_never(reading).expect("everything is there");
        all
    }

    #[test]
    fn lines_are_frames_wherever_the_bytes_were_cut() {
        let text = "{\"a\":\"\u{e9}\"}\r\n\n{\"b\":1}\n  \n{\"c\":2}".as_bytes();
        let said =
            |frames: Vec<Read>| -> Vec<String> { frames.into_iter().filter_map(|frame| frame.unwrap()).collect() };
        for at in 0..=text.len() {
            let parts = vec![text[..at].to_vec(), text[at..].to_vec()];
            let expected = ["{\"a\":\"\u{e9}\"}", "{\"b\":1}", "{\"c\":2}"];
            assert_eq!(said(frames(Framing::Lines, parts)), expected, "cut at {at}");
        }
    }

    #[test]
    fn what_a_body_is_shows_in_its_first_byte() {
        use Framing::{Events, Lines};
        for (framing, head, expected) in [
            (Events, "", None),
            (Events, "\n \r\n", None),
            (Events, "data: {}", Some(Opening::Frames)),
            (Events, ": a comment", Some(Opening::Frames)),
            (Events, " {\"error\":1}", Some(Opening::Json)),
            (Events, "[{}]", Some(Opening::Json)),
            (Events, "\u{feff}<!doctype html>", Some(Opening::Page)),
            (Lines, "{\"a\":1}", Some(Opening::Frames)),
            (Lines, "\n<html>", Some(Opening::Page)),
        ] {
            assert_eq!(opening(framing, head.as_bytes()), expected, "{head:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange_for_lines(parts in prop::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let all = frames(Framing::Lines, parts.clone());
            let whole = frames(Framing::Lines, vec![parts.concat()]);
            prop_assert_eq!(all, whole);
        }
    }
}
