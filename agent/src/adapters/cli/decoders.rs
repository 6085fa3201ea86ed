//! The readers of what programs print, for [`crate::decoders`].

use kage_core::event::OutputStream;

use super::formats::{formats_of_events, in_any_pieces};

/// What `claude` prints: all at once, and in pieces whose size the first byte says.
pub fn claude_stream(bytes: &[u8]) {
    let (size, bytes) = cut(bytes);
    in_any_pieces("claude-stream-json", bytes, size);
}

/// What programs with events print, for each of their readers.
pub fn event_stream(bytes: &[u8]) {
    let (size, bytes) = cut(bytes);
    for format in formats_of_events() {
        in_any_pieces(format, bytes, size);
    }
}

/// What any other program prints: it is passed on as it is.
pub fn text_stream(bytes: &[u8]) {
    let (size, bytes) = cut(bytes);
    let mut passed = in_any_pieces("text", bytes, size);
    assert_eq!(passed.remove(&OutputStream::Stdout).unwrap_or_default(), bytes);
}

fn cut(bytes: &[u8]) -> (usize, &[u8]) {
    match bytes.split_first() {
        Some((size, bytes)) => (usize::from(*size), bytes),
        None => (1, bytes),
    }
}
