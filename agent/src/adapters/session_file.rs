//! The file in which a program keeps a session. Lines are only appended. It contains names of its
//! machine, which are replaced on the way to another machine.

pub mod beneath;

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Arc, OnceLock};

use aho_corasick::{AhoCorasick, MatchKind};

use beneath::Beneath;

/// The file in which a program keeps a session.
#[derive(Debug, Clone)]
pub struct SessionFile {
    pub place: FilePlace,
    /// Names that differ on another machine, as the file has them, and their neutral form.
    pub names: Vec<(String, String)>,
}

/// The id that a session's program gave its conversation, once the program told it. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Conversation(Arc<OnceLock<String>>);

/// The longest id of a conversation, in bytes.
const LONGEST: usize = 128;

/// Whether a program's word can be the id of a conversation: a part of a file's name, and no option.
pub(crate) fn is_id(word: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=LONGEST).contains(&word.len()) && !word.starts_with('-') && word.chars().all(is_name)
}

impl Conversation {
    /// Keeps the id that the program told first, if it can be one.
    pub fn told(&self, id: &str) {
        if is_id(id) {
            self.0.get_or_init(|| id.to_owned());
        }
    }

    #[must_use]
    pub fn id(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

/// Where a session file is.
#[derive(Debug, Clone)]
pub enum FilePlace {
    At(Beneath),
    /// The program chooses its name, mostly after the conversation's id.
    Named {
        folder: Beneath,
        /// Below the folder. `*` stands for any part of a name, `{conversation}` for the id; a pattern without
        /// it is of a folder that has no other such file.
        pattern: String,
        conversation: Conversation,
    },
}

/// The placeholder of the id in a pattern.
pub(crate) const CONVERSATION: &str = "{conversation}";

impl FilePlace {
    /// Opens the file; `None` while there is none, or it is not known. Blocks.
    pub(crate) fn open(&self) -> io::Result<Option<File>> {
        match self {
            Self::At(place) => place.open(),
            Self::Named {
                folder,
                pattern,
                conversation,
            } => {
                let pattern = match conversation.id() {
                    Some(id) => pattern.replace(CONVERSATION, id),
                    None if pattern.contains(CONVERSATION) => return Ok(None),
                    None => pattern.clone(),
                };
                Ok(folder.find(&pattern, fits))
            }
        }
    }
}

/// Whether a name fits a pattern, in which `*` stands for any part of it.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(name) = name.strip_prefix(begin) else {
        return false;
    };
    let mut ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
    ends.any(|at| fits(rest, &name[at..]))
}

impl SessionFile {
    /// The whole lines of the file, as they are kept elsewhere; `None`: there is no file. Blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn kept(&self) -> io::Result<Option<Vec<u8>>> {
        let Some(mut file) = self.place.open()? else {
            return Ok(None);
        };
        let mut lines = Vec::new();
        file.read_to_end(&mut lines)?;
        let whole = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        lines.truncate(whole);
        Ok(Some(self.portable(lines)))
    }

    /// Lines of the file as they are kept elsewhere.
    pub(crate) fn portable(&self, bytes: Vec<u8>) -> Vec<u8> {
        replace(bytes, self.names.iter().map(|(here, anywhere)| (here, anywhere)))
    }

    /// Kept lines as they are in the file.
    #[must_use]
    pub fn local(&self, bytes: Vec<u8>) -> Vec<u8> {
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
            place: FilePlace::At(Beneath::new("", "")),
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
    #[test]
    fn only_a_name_is_the_id_of_a_conversation_and_the_first_one_stays() {
        let conversation = Conversation::default();
        for wrong in ["", "../x", "a/b", "a b", "*", "-a", &"x".repeat(200)] {
            conversation.told(wrong);
            assert_eq!(conversation.id(), None, "{wrong}");
        }
        let shared = conversation.clone();
        shared.told("01a2-b_c");
        shared.told("another");
        assert_eq!(conversation.id(), Some("01a2-b_c"));
    }

    #[test]
    fn a_file_is_found_by_the_id_that_its_program_chose() {
        let folder = tempfile::tempdir().unwrap();
        let day = folder.path().join("sessions/2026/11/30");
        std::fs::create_dir_all(&day).unwrap();
        for name in ["rollout-1-aaa.jsonl", "rollout-2-bbb.jsonl", "rollout-3-bbb.txt"] {
            std::fs::write(day.join(name), name).unwrap();
        }
        let conversation = Conversation::default();
        let place = FilePlace::Named {
            folder: Beneath::new(folder.path(), ""),
            pattern: "sessions/*/*/*/rollout-*-{conversation}.jsonl".to_owned(),
            conversation: conversation.clone(),
        };
        let found = || {
            let file = place.open().unwrap()?;
            Some(io::read_to_string(file).unwrap())
        };
        assert_eq!(found(), None);
        conversation.told("bbb");
        assert_eq!(found(), Some("rollout-2-bbb.jsonl".to_owned()));
        std::fs::remove_file(day.join("rollout-2-bbb.jsonl")).unwrap();
        assert_eq!(found(), None);

        // A file without an id in its name is found without one.
        let alone = FilePlace::Named {
            folder: Beneath::new(folder.path(), ""),
            pattern: "sessions/*/*/*/*-aaa.jsonl".to_owned(),
            conversation: Conversation::default(),
        };
        assert_eq!(
            io::read_to_string(alone.open().unwrap().unwrap()).unwrap(),
            "rollout-1-aaa.jsonl"
        );

        for (pattern, name, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "ac", true),
            ("a*c", "acb", false),
            ("*-*x", "é-é-x", true),
            ("a", "ab", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
