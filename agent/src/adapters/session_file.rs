//! The file in which a program keeps a session. Lines are only appended. It contains names of its
//! machine, which are replaced on the way to another machine.

use std::path::PathBuf;

use aho_corasick::{AhoCorasick, MatchKind};

/// The file in which a program keeps a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFile {
    pub path: PathBuf,
    /// Names that differ on another machine, as the file has them, and their neutral form.
    pub names: Vec<(String, String)>,
}

impl SessionFile {
    /// Lines of the file as they are kept elsewhere.
    pub(crate) fn portable(&self, bytes: Vec<u8>) -> Vec<u8> {
        replace(bytes, self.names.iter().map(|(here, anywhere)| (here, anywhere)))
    }

    /// Kept lines as they are in the file.
    pub(crate) fn local(&self, bytes: Vec<u8>) -> Vec<u8> {
        replace(bytes, self.names.iter().map(|(here, anywhere)| (anywhere, here)))
    }
}

fn replace<'n>(bytes: Vec<u8>, names: impl Iterator<Item = (&'n String, &'n String)>) -> Vec<u8> {
    let (from, to): (Vec<_>, Vec<_>) = names.filter(|(from, _)| !from.is_empty()).unzip();
    // A path may be the beginning of another.
    let automaton = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(from);
    match automaton {
        Ok(automaton) => automaton.replace_all_bytes(&bytes, &to),
        Err(error) => {
            // Only sets of gigabytes are refused, and these are a few paths.
            tracing::error!(%error, "names cannot be replaced");
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_change_on_the_way_and_back() {
        let file = |root: &str| SessionFile {
            path: PathBuf::new(),
            names: vec![
                (format!("{root}/scratch/1"), "{scratch}".to_owned()),
                (format!("{root}/scratch/1/work"), "{worktree}".to_owned()),
            ],
        };
        let line = br#"{"cwd":"/a/scratch/1/work/src","home":"/a/scratch/1/home","x":"\xff"}"#;
        let moved = file("/a").portable(line.to_vec());
        assert_eq!(moved, br#"{"cwd":"{worktree}/src","home":"{scratch}/home","x":"\xff"}"#);
        let there = file("/bb").local(moved);
        assert_eq!(
            there,
            br#"{"cwd":"/bb/scratch/1/work/src","home":"/bb/scratch/1/home","x":"\xff"}"#
        );
    }
}
