//! Masking of secrets in everything that leaves an attempt: each known value, and what common
//! encodings make of it (`forms`), becomes `***`. Output comes in pieces, so the end of a piece that may be
//! the beginning of a secret is held back until the next piece decides. When none comes, an end of
//! a few bytes may be shown: the rest of the secret, should it follow, is masked all the same. A
//! longer end is most likely the secret, and stays until the stream is over.

use aho_corasick::{AhoCorasick, MatchKind};
use bytes::Bytes;

use super::forms::{SHORTEST, forms};

/// The text that replaces a secret.
pub(crate) const MASK: &str = "***";

/// The most bytes of a secret's beginning that may be shown when nothing follows them: at most half
/// of the shortest secret.
const RELEASED: usize = SHORTEST / 2;

/// The patterns of a set of secrets. `None` inside: there are no secrets.
#[derive(Debug, Clone)]
pub(crate) struct Masker(Option<Patterns>);

#[derive(Debug, Clone)]
struct Patterns {
    automaton: AhoCorasick,
    forms: Vec<Vec<u8>>,
    longest: usize,
}

impl Masker {
    pub(crate) fn new(secrets: &[String]) -> Self {
        Self::of(forms_of(secrets).collect())
    }

    /// Masks these secrets, too.
    pub(crate) fn and(&self, secrets: &[String]) -> Self {
        if secrets.is_empty() {
            return self.clone();
        }
        let known = self.0.iter().flat_map(|patterns| patterns.forms.iter().cloned());
        Self::of(known.chain(forms_of(secrets)).collect())
    }

    fn of(mut forms: Vec<Vec<u8>>) -> Self {
        forms.sort_unstable();
        forms.dedup();
        let longest = forms.iter().map(Vec::len).max().unwrap_or(0);
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&forms);
        match automaton {
            Ok(automaton) if longest > 0 => Self(Some(Patterns {
                automaton,
                forms,
                longest,
            })),
            Ok(_) => Self(None),
            Err(error) => {
                // Only sets of gigabytes are refused; nobody has so many keys.
                tracing::error!(%error, "secrets cannot be masked");
                Self(None)
            }
        }
    }

    pub(crate) fn text(&self, text: String) -> String {
        match &self.0 {
            Some(patterns) if patterns.automaton.is_match(&text) => {
                let masks = vec![MASK; patterns.forms.len()];
                patterns.automaton.replace_all(&text, &masks)
            }
            Some(_) | None => text,
        }
    }

    pub(crate) fn bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.0 {
            Some(patterns) if patterns.automaton.is_match(&bytes) => {
                let masks = vec![MASK; patterns.forms.len()];
                patterns.automaton.replace_all_bytes(&bytes, &masks)
            }
            Some(_) | None => bytes,
        }
    }

    pub(crate) fn stream(&self) -> StreamMasker {
        StreamMasker {
            masker: self.clone(),
            held: Vec::new(),
            shown: 0,
        }
    }
}

impl Patterns {
    /// Where the undecided end of `text` begins, at or after `from`: the first position from which
    /// the rest of the text is the beginning of a longer form.
    fn undecided(&self, text: &[u8], from: usize) -> usize {
        let first = text.len().saturating_sub(self.longest - 1).max(from);
        (first..text.len())
            .find(|&at| {
                let rest = &text[at..];
                self.forms
                    .iter()
                    .any(|form| form.len() > rest.len() && form.starts_with(rest))
            })
            .unwrap_or(text.len())
    }
}

/// Masks one stream, piece by piece.
#[derive(Debug)]
pub(crate) struct StreamMasker {
    masker: Masker,
    held: Vec<u8>,
    /// How many bytes of `held` were released. They are kept, because they still count as the
    /// beginning of a secret.
    shown: usize,
}

impl StreamMasker {
    /// Takes a piece and returns the decided bytes.
    pub(crate) fn push(&mut self, piece: Bytes) -> Bytes {
        let Some(patterns) = &self.masker.0 else {
            return piece;
        };
        let text = if self.held.is_empty() {
            piece
        } else {
            self.held.extend_from_slice(&piece);
            std::mem::take(&mut self.held).into()
        };
        let shown = self.shown;
        let fresh = |from: usize, to: usize| text.slice(from.max(shown).min(to)..to);
        let mut end = patterns.undecided(&text, 0);
        let mut masked: Option<Vec<u8>> = None;
        let mut at = 0;
        for found in patterns.automaton.find_iter(&text) {
            // A match that begins in the undecided part may yet be a longer form.
            if found.start() >= end {
                break;
            }
            let out = masked.get_or_insert_with(|| Vec::with_capacity(text.len()));
            out.extend_from_slice(&fresh(at, found.start()));
            out.extend_from_slice(MASK.as_bytes());
            at = found.end();
            if at > end {
                end = patterns.undecided(&text, at);
            }
        }
        let out = match masked {
            None => fresh(0, end),
            Some(mut out) => {
                out.extend_from_slice(&fresh(at, end));
                out.into()
            }
        };
        self.held.extend_from_slice(&text[end..]);
        self.shown = shown.saturating_sub(end);
        out
    }

    /// True when [`StreamMasker::release`] has bytes.
    pub(crate) fn may_release(&self) -> bool {
        self.held.len() > self.shown && self.held.len() <= RELEASED
    }

    /// Releases the held-back bytes if they are few enough to be shown. They are still masked
    /// should the secret continue.
    pub(crate) fn release(&mut self) -> Bytes {
        if !self.may_release() {
            return Bytes::new();
        }
        let out = Bytes::copy_from_slice(&self.held[self.shown..]);
        self.shown = self.held.len();
        out
    }

    /// The held-back bytes at the end of the stream.
    pub(crate) fn finish(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held);
        let shown = std::mem::take(&mut self.shown);
        match &self.masker.0 {
            Some(patterns) if patterns.automaton.is_match(&held) => {
                let masks = vec![MASK; patterns.forms.len()];
                let masked = patterns.automaton.replace_all_bytes(&held, &masks);
                // A match extends beyond the shown bytes, which are fewer than any form has.
                let start = patterns.automaton.find(&held).map_or(0, |found| found.start());
                masked[shown.min(start)..].to_vec().into()
            }
            Some(_) | None => Bytes::from(held).split_off(shown),
        }
    }
}

/// Every form of the secrets that are long enough.
fn forms_of(secrets: &[String]) -> impl Iterator<Item = Vec<u8>> {
    secrets.iter().flat_map(|secret| forms(secret).texts)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;

    use super::*;

    /// Leftmost-longest replacement, byte by byte.
    fn naive(text: &[u8], forms: &[Vec<u8>]) -> Vec<u8> {
        let (mut out, mut at) = (Vec::new(), 0);
        while at < text.len() {
            let longest = forms.iter().filter(|f| text[at..].starts_with(f)).map(Vec::len).max();
            match longest {
                Some(length) => {
                    out.extend_from_slice(MASK.as_bytes());
                    at += length;
                }
                None => {
                    out.push(text[at]);
                    at += 1;
                }
            }
        }
        out
    }

    #[test]
    fn masks_what_encodings_make_of_a_secret() {
        let secret = "sk-\"a/b+c=42";
        let masker = Masker::new(&[secret.to_owned()]);
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        for text in [
            secret.to_owned(),
            serde_json::to_string(secret).unwrap(),
            "sk-%22a%2Fb%2Bc%3D42".to_owned(),
            base64(secret),
            base64(&format!("user:{secret}")),
            base64(&format!("me:{secret}!")),
        ] {
            assert!(masker.text(text.clone()).contains(MASK), "{text}");
        }
        assert_eq!(masker.text("nothing".into()), "nothing");
    }

    #[test]
    fn more_secrets_are_masked_besides_those_before() {
        let masker = Masker::new(&["first-key".to_owned()]);
        let both = masker.and(&["second-key".to_owned(), "short".to_owned()]);
        assert_eq!(both.text("first-key second-key short".into()), "*** *** short");
        assert_eq!(masker.text("second-key".into()), "second-key");
        assert_eq!(
            Masker::new(&[])
                .and(&["second-key".to_owned()])
                .text("second-key".into()),
            MASK
        );
    }

    #[test]
    fn holds_back_only_what_may_be_a_secret() {
        let mut stream = Masker::new(&["secret-key".into()]).stream();
        assert_eq!(stream.push(Bytes::from_static(b"hello\n")), "hello\n");
        assert_eq!(stream.push(Bytes::from_static(b"a secret")), "a ");
        assert_eq!(stream.push(Bytes::from_static(b"-key!")), "***!");
        assert_eq!(stream.push(Bytes::from_static(b"sec")), "");
        assert_eq!(stream.finish(), "sec");
    }

    #[test]
    fn a_short_beginning_is_shown_when_nothing_follows_and_the_rest_of_a_secret_is_masked() {
        let mut stream = Masker::new(&["secret-key".into()]).stream();
        assert_eq!(stream.push(Bytes::from_static(b"Name? s")), "Name? ");
        assert!(stream.may_release());
        assert_eq!(stream.release(), "s");
        assert!(!stream.may_release());
        assert_eq!(stream.release(), "");
        assert_eq!(stream.push(Bytes::from_static(b"ec")), "");
        assert_eq!(stream.release(), "ec");
        assert_eq!(stream.push(Bytes::from_static(b"ret")), "");
        // Six bytes of a secret are no accident.
        assert!(!stream.may_release());
        assert_eq!(stream.push(Bytes::from_static(b"-key, s")), "***, ");
        assert_eq!(stream.release(), "s");
        assert_eq!(stream.push(Bytes::from_static(b"ome s")), "ome ");
        assert_eq!(stream.release(), "s");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn the_end_of_a_stream_does_not_repeat_what_was_shown() {
        let mut stream = Masker::new(&["secret".into(), "secret-key".into()]).stream();
        assert_eq!(stream.push(Bytes::from_static(b"s")), "");
        assert_eq!(stream.release(), "s");
        assert_eq!(stream.push(Bytes::from_static(b"ecret-k")), "");
        assert_eq!(stream.finish(), "***-k");
        assert_eq!(stream.push(Bytes::from_static(b"se")), "");
        assert_eq!(stream.release(), "se");
        assert_eq!(stream.push(Bytes::from_static(b"cre")), "");
        assert_eq!(stream.finish(), "cre");
    }

    /// `released` without the shown beginnings of secrets before their masks.
    fn without_beginnings(released: &str, expected: &str) -> Option<String> {
        let (mut rest, mut out) = (released, String::new());
        for part in expected.split_inclusive(MASK) {
            let plain = part.strip_suffix(MASK).unwrap_or(part);
            rest = rest.strip_prefix(plain)?;
            out.push_str(plain);
            if plain.len() < part.len() {
                let at = rest.find(MASK)?;
                if at > RELEASED {
                    return None;
                }
                rest = &rest[at + MASK.len()..];
                out.push_str(MASK);
            }
        }
        rest.is_empty().then_some(out)
    }

    proptest! {
        #[test]
        fn what_is_released_between_pieces_shows_no_more_than_a_beginning(
            secrets in prop::collection::vec("[ab]{6,9}", 1..4),
            text in "[abc]{0,80}",
            cuts in prop::collection::vec((0_usize..80, any::<bool>()), 0..12),
        ) {
            let masker = Masker::new(&secrets);
            let mut cuts: Vec<_> = cuts.into_iter().map(|(cut, release)| (cut.min(text.len()), release)).collect();
            cuts.extend([(0, false), (text.len(), true)]);
            cuts.sort_unstable();
            let mut stream = masker.stream();
            let mut out = Vec::new();
            for pair in cuts.windows(2) {
                out.extend_from_slice(&stream.push(Bytes::copy_from_slice(&text.as_bytes()[pair[0].0..pair[1].0])));
                if pair[1].1 {
                    out.extend_from_slice(&stream.release());
                }
            }
            out.extend_from_slice(&stream.finish());
            let forms = &masker.0.as_ref().unwrap().forms;
            let expected = String::from_utf8(naive(text.as_bytes(), forms)).unwrap();
            let out = String::from_utf8(out).unwrap();
            prop_assert_eq!(without_beginnings(&out, &expected), Some(expected.clone()), "{}", out);
        }

        #[test]
        fn pieces_are_masked_like_the_whole(
            secrets in prop::collection::vec("[ab]{6,9}", 1..4),
            text in "[abc]{0,80}",
            cuts in prop::collection::vec(0_usize..80, 0..12),
        ) {
            let masker = Masker::new(&secrets);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut stream = masker.stream();
            let mut out = Vec::new();
            for pair in cuts.windows(2) {
                out.extend_from_slice(&stream.push(Bytes::copy_from_slice(&text.as_bytes()[pair[0]..pair[1]])));
            }
            out.extend_from_slice(&stream.finish());
            let forms = &masker.0.as_ref().unwrap().forms;
            prop_assert_eq!(String::from_utf8(out).unwrap(), String::from_utf8(naive(text.as_bytes(), forms)).unwrap());
        }
    }
}
