//! Decoders of pushes at the edge, and of what goes along with a base, with the properties that hold
//! for any input: no panic, and only names of bases pass; only names that are usable together, tags
//! that are what their ids say, and paths without a way out. The tests below and the fuzz targets in
//! `fuzz/` call them.

use std::path::Component;

use kage_core::id::Oid;

use crate::names::{Names, is_usable, print_tags, tag_objects};
use crate::smart_http::allowed_references;
use crate::submodules;

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

/// The names, tag objects and submodules of a commit of names.
pub fn names(bytes: &[u8]) {
    let names = Names::read(bytes);
    assert_eq!(Names::read(names.to_text().as_bytes()), names);
    for (name, _) in names.targets() {
        assert!(is_usable(name) && names.on() != Some(name), "{name}");
    }
    let tags = tag_objects(bytes);
    assert_eq!(tag_objects(&print_tags(&tags)), tags);
    for (_, path) in submodules::read(bytes) {
        let mut parts = path.iter().flat_map(|path| path.components());
        assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{path:?}");
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
        fn whatever_names_a_base_brings_they_are_read_or_left_out(
            bytes: Vec<u8>,
            lines in prop::collection::vec(
                "(on |@ |[0-9a-f]{40} )?(refs/(heads|tags|remotes)/)?[a-c./\\-]{0,6}(HEAD)?( [0-9a-f]{40}| refs/remotes/[a/]{3})?",
                0..8,
            ),
            paths in prop::collection::vec("[0-9a-f]{38,40}\0[a./]{0,5}(\\.git)?\0", 0..4),
        ) {
            names(&bytes);
            names(lines.join("\n").as_bytes());
            names(paths.concat().as_bytes());
        }

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
