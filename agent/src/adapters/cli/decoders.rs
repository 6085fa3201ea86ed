//! The readers of what programs print, for [`crate::decoders`].

use bytes::Bytes;
use kage_core::time::{LocalTime, Timestamp};

use super::claude_stream::ClaudeStream;
use super::lines::Lines;
use super::text_output::TextOutput;
use crate::adapters::port::Report;

/// What `claude` prints: all at once, and in pieces whose size the first byte says.
pub fn claude_stream(bytes: &[u8]) {
    let (size, bytes) = cut(bytes);
    let read = |size: usize| {
        let (mut lines, mut stream) = (Lines::new(1 << 16), ClaudeStream::default());
        let mut whole: Vec<_> = bytes.chunks(size).flat_map(|piece| lines.push(piece)).collect();
        whole.extend(lines.finish());
        for line in whole {
            if let super::lines::Line::Whole(line) = line {
                stream.line(&line);
            }
        }
        stream.unreported();
        stream.outcome(LocalTime::utc(Timestamp::from_millis(1_790_000_000_000)))
    };
    assert_eq!(read(size), read(bytes.len().max(1)));
}

/// What any other program prints: it is passed on as it is.
pub fn text_stream(bytes: &[u8]) {
    let (size, bytes) = cut(bytes);
    let read = |size: usize| {
        let mut output = TextOutput::new();
        let mut passed = Vec::new();
        for piece in bytes.chunks(size) {
            for report in output.chunk(Bytes::copy_from_slice(piece)) {
                if let Report::Output(_, bytes) = report {
                    passed.extend_from_slice(&bytes);
                }
            }
        }
        (passed, output.summary())
    };
    let (passed, summary) = read(size);
    assert_eq!(passed, bytes);
    assert_eq!(summary, read(bytes.len().max(1)).1);
}

fn cut(bytes: &[u8]) -> (usize, &[u8]) {
    match bytes.split_first() {
        Some((size, bytes)) => (usize::from(*size).max(1), bytes),
        None => (1, bytes),
    }
}
