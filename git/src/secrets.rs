//! Looks for known values in the content and the paths of files, whatever a common encoding made of
//! them. It owns the search: in pieces, with little memory, for many values at once. Which values
//! those are and what encodings make of them is the caller's; what becomes of a file that has one is
//! decided where files are taken.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aho_corasick::{AhoCorasick, MatchKind};
use git2::Oid as Id;
use kage_core::left_out::shown;

/// What is read at once.
const PIECE: usize = 64 << 10;
/// What stands for a value in a path that is shown.
const MASK: &str = "***";

/// A value that is looked for.
#[derive(Clone)]
pub struct Sought {
    /// What people know it by.
    pub name: String,
    /// What encodings make of it.
    pub forms: Vec<Vec<u8>>,
    /// Those of the forms that encoders break into lines or groups: they are found also with white
    /// space between any two bytes.
    pub broken: Vec<Vec<u8>>,
}

/// A file with values that were looked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileWithSecret {
    /// Relative to the top, as people can read it, without any of the values.
    pub path: String,
    /// The names of the values.
    pub secrets: Vec<String>,
}

/// The values that are looked for; none by default. A clone shares them.
#[derive(Clone, Default)]
pub struct Secrets(Option<Arc<Patterns>>);

struct Patterns {
    names: Vec<String>,
    whole: Forms,
    broken: Forms,
    /// Those that the tree of a base has, once that was asked.
    of_base: Mutex<Option<(Id, FoundSecrets)>>,
}

/// Forms of values, and whose each of them is.
struct Forms {
    automaton: AhoCorasick,
    of: Vec<usize>,
    longest: usize,
}

/// Which of the values were found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FoundSecrets(BTreeSet<usize>);

impl FoundSecrets {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Without those that were there before.
    pub(crate) fn without(&self, before: &Self) -> Self {
        Self(self.0.difference(&before.0).copied().collect())
    }

    pub(crate) fn and(&mut self, more: &Self) {
        self.0.extend(&more.0);
    }
}

/// Without the values.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.as_ref().map(|patterns| patterns.names.as_slice());
        f.debug_tuple("Secrets").field(&names.unwrap_or_default()).finish()
    }
}

impl Secrets {
    /// Looks for these values. One without forms is never found.
    #[must_use]
    pub fn new(sought: &[Sought]) -> Self {
        let forms = |of: fn(&Sought) -> &Vec<Vec<u8>>| {
            let all = sought.iter().enumerate();
            Forms::new(all.flat_map(|(number, value)| of(value).iter().map(move |form| (number, form.as_slice()))))
        };
        let (Some(whole), Some(broken)) = (forms(|value| &value.forms), forms(|value| &value.broken)) else {
            return Self(None);
        };
        if whole.of.is_empty() && broken.of.is_empty() {
            return Self(None);
        }
        let names = sought.iter().map(|value| value.name.clone()).collect();
        let of_base = Mutex::default();
        Self(Some(Arc::new(Patterns {
            names,
            whole,
            broken,
            of_base,
        })))
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The names of the values in a text.
    #[must_use]
    pub fn names_in(&self, text: &[u8]) -> Vec<String> {
        self.file(b"", &self.in_bytes(text)).secrets
    }

    /// Those of the values that a tree has, if that was found out before.
    pub(crate) fn known_of(&self, tree: Id) -> Option<FoundSecrets> {
        let known = self.0.as_ref()?.of_base.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, found) = known.as_ref()?;
        (*of == tree).then(|| found.clone())
    }

    /// Remembers what a tree has, instead of another.
    pub(crate) fn remember(&self, tree: Id, found: &FoundSecrets) {
        if let Some(patterns) = &self.0 {
            let mut known = patterns.of_base.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Some((tree, found.clone()));
        }
    }

    pub(crate) fn in_bytes(&self, bytes: &[u8]) -> FoundSecrets {
        let Some(mut search) = self.0.as_deref().map(Search::new) else {
            return FoundSecrets::default();
        };
        for piece in bytes.chunks(PIECE) {
            search.push(piece);
        }
        search.found
    }

    /// Reads to the end, with memory for a few pieces.
    pub(crate) fn in_content(&self, mut content: impl Read) -> io::Result<FoundSecrets> {
        let Some(mut search) = self.0.as_deref().map(Search::new) else {
            return Ok(FoundSecrets::default());
        };
        let mut piece = vec![0; PIECE];
        loop {
            match content.read(&mut piece) {
                Ok(0) => return Ok(search.found),
                Ok(read) => search.push(piece.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The file at a path as people are told of it.
    pub(crate) fn file(&self, path: &[u8], found: &FoundSecrets) -> FileWithSecret {
        let names = self.0.as_ref().map(|patterns| patterns.names.as_slice());
        let name = |number: &usize| names.unwrap_or_default().get(*number).cloned();
        let names: BTreeSet<String> = found.0.iter().filter_map(name).collect();
        FileWithSecret {
            path: shown(&self.masked(path)),
            secrets: names.into_iter().collect(),
        }
    }

    /// A path as it may be told. One that has a value in parts is not told at all.
    #[must_use]
    pub fn told(&self, path: String) -> String {
        if self.in_bytes(path.as_bytes()).is_empty() {
            return path;
        }
        let masked = self.masked(path.as_bytes());
        match self.in_bytes(&masked).is_empty() {
            true => String::from_utf8_lossy(&masked).into_owned(),
            false => MASK.to_owned(),
        }
    }

    /// A path without the values.
    fn masked(&self, path: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        let Some(patterns) = &self.0 else {
            return path.to_vec();
        };
        let mut spans: Vec<(usize, usize)> = patterns
            .whole
            .automaton
            .find_overlapping_iter(path)
            .map(|found| (found.start(), found.end()))
            .collect();
        spans.sort_unstable();
        for (start, end) in spans {
            if start >= at {
                out.extend_from_slice(path.get(at..start).unwrap_or_default());
                out.extend_from_slice(MASK.as_bytes());
            }
            at = at.max(end);
        }
        out.extend_from_slice(path.get(at..).unwrap_or_default());
        out
    }
}

impl Forms {
    /// `None`: they are too many for any automaton.
    fn new<'a>(forms: impl Iterator<Item = (usize, &'a [u8])>) -> Option<Self> {
        let (of, forms): (Vec<usize>, Vec<&[u8]>) = forms.filter(|(_, form)| !form.is_empty()).unzip();
        // Forms of two values may overlap, and each of them counts.
        let automaton = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&forms);
        match automaton {
            Ok(automaton) => Some(Self {
                automaton,
                longest: forms.iter().map(|form| form.len()).max().unwrap_or(0),
                of,
            }),
            Err(error) => {
                // Only sets of gigabytes are refused; nobody has so many keys.
                tracing::error!(%error, "secrets cannot be looked for");
                None
            }
        }
    }
}

/// A search through one file.
struct Search<'a> {
    patterns: &'a Patterns,
    /// What is searched next, beginning with the end of the piece before.
    whole: Vec<u8>,
    broken: Vec<u8>,
    found: FoundSecrets,
}

impl<'a> Search<'a> {
    const fn new(patterns: &'a Patterns) -> Self {
        Self {
            patterns,
            whole: Vec::new(),
            broken: Vec::new(),
            found: FoundSecrets(BTreeSet::new()),
        }
    }

    fn push(&mut self, piece: &[u8]) {
        let Patterns { whole, broken, .. } = self.patterns;
        self.whole.extend_from_slice(piece);
        whole.search(&mut self.whole, &mut self.found);
        if broken.longest > 0 {
            self.broken
                .extend(piece.iter().filter(|byte| !byte.is_ascii_whitespace()));
            broken.search(&mut self.broken, &mut self.found);
        }
    }
}

impl Forms {
    /// Searches a text and leaves of it what may be the beginning of a form.
    fn search(&self, text: &mut Vec<u8>, found: &mut FoundSecrets) {
        if self.longest == 0 {
            text.clear();
            return;
        }
        for form in self.automaton.find_overlapping_iter(text.as_slice()) {
            if let Some(number) = self.of.get(form.pattern().as_usize()) {
                found.0.insert(*number);
            }
        }
        let kept = text.len().min(self.longest - 1);
        text.drain(..text.len() - kept);
    }
}

/// The bytes of a path.
pub(crate) fn bytes_of(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt as _;
    path.as_os_str().as_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secrets(values: &[(&str, &str)]) -> Secrets {
        let sought = values.iter().map(|(name, value)| Sought {
            name: (*name).to_owned(),
            forms: vec![value.as_bytes().to_vec()],
            broken: vec![value.to_uppercase().into_bytes()],
        });
        Secrets::new(&sought.collect::<Vec<_>>())
    }

    #[test]
    fn values_are_found_wherever_they_are_and_only_as_they_may_be() {
        let both = secrets(&[("ONE", "first-key"), ("TWO", "key-second")]);
        for (text, expected) in [
            ("nothing", &[][..]),
            ("a first-key b", &["ONE"]),
            ("first-key-second", &["ONE", "TWO"]),
            ("first\n-key", &[]),
            ("FIRST\n  -KE\r\nY", &["ONE"]),
            ("first-ke", &[]),
        ] {
            assert_eq!(both.names_in(text.as_bytes()), expected, "{text}");
        }
        assert!(Secrets::new(&[]).is_empty());
        assert!(Secrets::default().in_bytes(b"first-key").is_empty());
        let shown = format!("{both:?}");
        assert!(shown.contains("ONE") && !shown.contains("first"), "{shown}");
    }

    #[test]
    fn a_path_is_told_without_the_value() {
        let both = secrets(&[("ONE", "first-key"), ("TWO", "key-second")]);
        let path = b"d/first-key-second/x\xff";
        let file = both.file(path, &both.in_bytes(path));
        assert_eq!(
            (file.path.as_str(), file.secrets.join(" ").as_str()),
            ("d/***/x\\xff", "ONE TWO")
        );
    }

    proptest! {
        #[test]
        fn where_pieces_end_makes_no_difference(
            before in 0_usize..200,
            gap in 0_usize..3,
            cuts in prop::collection::vec(1_usize..40, 1..20),
            there in any::<bool>(),
        ) {
            struct Pieces<'a>(&'a [u8], std::iter::Cycle<std::vec::IntoIter<usize>>);
            impl Read for Pieces<'_> {
                fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                    let most = self.1.next().unwrap_or(1).min(into.len());
                    self.0.read(&mut into[..most])
                }
            }
            let sought = secrets(&[("ONE", "first-key")]);
            let value = if there { "FIRST-KEY" } else { "FIRST-KEX" };
            let mut text = vec![b'F'; before];
            for byte in value.bytes() {
                text.push(byte);
                text.extend(std::iter::repeat_n(b'\n', gap));
            }
            let found = sought.in_content(Pieces(&text, cuts.into_iter().cycle())).unwrap();
            prop_assert_eq!(!found.is_empty(), there);
            prop_assert_eq!(found, sought.in_bytes(&text));
        }
    }
}
