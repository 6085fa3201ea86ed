//! What is read of files that users write and of what programs print, with what must hold
//! whatever it is: nothing panics, memory is bounded, and how the bytes were cut into pieces
//! makes no difference. The tests below and the fuzz targets in `fuzz/` call these.

use std::path::Path;

use crate::adapters::cli::manifest::Manifest;

pub use crate::adapters::cli::decoders::{claude_stream, event_stream, text_stream};

/// An adapter's manifest.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(manifest) = Manifest::parse(text, Path::new("/adapters/some.toml")) {
        drop(manifest.arguments(&Default::default()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any bytes, and a few that are understood with some of them changed.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let good = prop::sample::select(vec![
            include_bytes!("../data/claude-code.toml").to_vec(),
            include_bytes!("../fixtures/claude/success.jsonl").to_vec(),
            include_bytes!("../fixtures/claude/limit.jsonl").to_vec(),
            include_bytes!("../fixtures/programs/codex-rate429then.stdout").to_vec(),
            include_bytes!("../fixtures/programs/gemini-toolfail.stdout").to_vec(),
            include_bytes!("../fixtures/programs/opencode-success.stdout").to_vec(),
            include_bytes!("../fixtures/programs/qwen-success.stdout").to_vec(),
            b"one\r\n\ntwo\xff\n\x1b[31mthree".to_vec(),
        ]);
        let changed = (
            good,
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        );
        prop_oneof![
            any::<Vec<u8>>(),
            changed.prop_map(|(mut bytes, changes)| {
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                bytes
            }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_written_or_printed_is_read_or_refused(bytes in bytes()) {
            manifest(&bytes);
            claude_stream(&bytes);
            event_stream(&bytes);
            text_stream(&bytes);
        }
    }
}
