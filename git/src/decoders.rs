//! Decoders of pushes at the edge, with the properties that hold for any input: no panic, and only
//! names of bases pass. The tests below and the fuzz target in `fuzz/` call it.

use kage_core::id::Oid;

use crate::smart_http::allowed_references;

pub fn push(bytes: &[u8]) {
    if let Ok(Some(references)) = allowed_references(bytes) {
        for reference in references {
            let commit = reference
                .strip_prefix("refs/kage/bases/")
                .expect("only bases are pushed");
            assert!(commit.parse::<Oid>().is_ok(), "{reference}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str) -> Vec<u8> {
        format!("{:04x}{text}", text.len() + 4).into_bytes()
    }

    proptest! {
        #[test]
        fn whatever_is_pushed_is_read_or_refused(
            bytes: Vec<u8>,
            new in "[0-9a-f]{40}",
            name in "(refs/kage/bases/)?[0-9a-f./\\-]{0,41}",
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            push(&bytes);
            let command = |name: &str| {
                let text = format!("{} {new} {name}\0 report-status", "0".repeat(40));
                [line(&text), b"0000".to_vec()].concat()
            };
            let base = command(&format!("refs/kage/bases/{new}"));
            prop_assert!(matches!(allowed_references(&base), Ok(Some(_))), "a base is let through");
            push(&command(&name));
            let mut changed = base;
            for (at, byte) in changes {
                let at = at.index(changed.len());
                changed[at] = byte;
            }
            push(&changed);
        }
    }
}
