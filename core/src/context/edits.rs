//! Edits of a text: how one long value becomes another without repeating what they have in common.
//! `delta` owns where scripts stand in a context delta; this file reads, writes, finds and applies
//! them.
//!
//! A script is a JSON array that is read from left to right beside a cursor, which begins at the start
//! of the old text:
//!
//! ```text
//!   "text"      adds this text
//!   12          adds the next 12 bytes of the old text
//!   -6          moves the cursor 6 bytes on
//!   {"at":90}   moves the cursor to byte 90
//!   (the end)   adds the rest of the old text
//! ```
//! So `["gemini",-6]` makes `gemini.src` from `claude.src`. Bytes are those of UTF-8, and no position is
//! inside of a character.
//!
//! Finding a script takes time in proportion to the two texts and a bounded amount of memory, whatever
//! they are: the old text is looked up by windows of 8 bytes, of which at most 2^18 are listed and at
//! most 8 looked at.

use crate::json::{Json, Members, Number};

/// A step of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edit {
    Text(String),
    Copy(usize),
    Skip(usize),
    At(usize),
}

/// Why a script does not fit the text that it is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// It names bytes that the old text does not have.
    #[error("the edits go beyond the end of the base's value")]
    OutOfRange,
    /// It cuts a character.
    #[error("the edits cut a character of the base's value")]
    CutCharacter,
    /// The result is longer than a context may be.
    #[error("the edits make a value that is too long")]
    TooLong,
}

/// The script of this array; `None`: it is none.
pub(super) fn read(script: &[Json]) -> Option<Vec<Edit>> {
    let edit = |entry: &Json| match entry {
        Json::String(text) => Some(Edit::Text(text.clone())),
        Json::Number(number) => {
            let steps: i64 = number.as_str().parse().ok()?;
            let length = usize::try_from(steps.unsigned_abs())
                .ok()
                .filter(|length| *length > 0)?;
            Some(if steps > 0 {
                Edit::Copy(length)
            } else {
                Edit::Skip(length)
            })
        }
        Json::Object(members) if members.len() == 1 => match members.get("at") {
            Some(Json::Number(position)) => Some(Edit::At(position.as_str().parse().ok()?)),
            Some(_) | None => None,
        },
        Json::Object(_) | Json::Array(_) | Json::Null | Json::Bool(_) => None,
    };
    script.iter().map(edit).collect()
}

/// The array of a script.
pub(super) fn write(script: Vec<Edit>) -> Json {
    let number = |n: usize, sign: i64| Json::Number(Number::from(sign * i64::try_from(n).unwrap_or(i64::MAX)));
    let entry = |edit| match edit {
        Edit::Text(text) => Json::String(text),
        Edit::Copy(length) => number(length, 1),
        Edit::Skip(length) => number(length, -1),
        Edit::At(position) => Json::Object(Members::from([("at".to_owned(), number(position, 1))])),
    };
    Json::Array(script.into_iter().map(entry).collect())
}

/// The text that a script makes of an old one, of at most `room` bytes.
///
/// # Errors
/// When the script does not fit the old text.
pub(super) fn apply(old: &str, script: &[Edit], room: usize) -> Result<String, Misfit> {
    let mut made = String::new();
    let mut cursor = 0_usize;
    let mut add = |part: &str| {
        if part.len() > room - made.len() {
            return Err(Misfit::TooLong);
        }
        made.push_str(part);
        Ok(())
    };
    for edit in script {
        match edit {
            Edit::Text(text) => add(text)?,
            Edit::Copy(length) => {
                let end = cursor.checked_add(*length).ok_or(Misfit::OutOfRange)?;
                add(part(old, cursor, end)?)?;
                cursor = end;
            }
            Edit::Skip(length) => {
                cursor = cursor.checked_add(*length).ok_or(Misfit::OutOfRange)?;
            }
            Edit::At(position) => cursor = *position,
        }
    }
    add(part(old, cursor, old.len())?)?;
    Ok(made)
}

fn part(old: &str, from: usize, to: usize) -> Result<&str, Misfit> {
    if from > old.len() || to > old.len() {
        return Err(Misfit::OutOfRange);
    }
    old.get(from..to).ok_or(Misfit::CutCharacter)
}

/// How many bytes are looked up at once.
const WINDOW: usize = 8;
/// How many places of the old text with the same window are looked at.
const CANDIDATES: usize = 8;
/// How many windows of the old text are listed: further apart in longer texts.
const LISTED: usize = 1 << 18;
/// The bytes that a copy has to save beyond those of its own steps.
const WORTH: usize = 8;

/// A short script that makes `new` of `old`.
pub(super) fn find(old: &str, new: &str) -> Vec<Edit> {
    let (before, after) = (old.as_bytes(), new.as_bytes());
    let most = before.len().min(after.len());
    let mut prefix = common(before, after);
    while !new.is_char_boundary(prefix) || !old.is_char_boundary(prefix) {
        prefix -= 1;
    }
    let mut suffix = common_end(&before[prefix..], &after[prefix..]).min(most - prefix);
    while !new.is_char_boundary(new.len() - suffix) {
        suffix -= 1;
    }

    let mut script = Script::default();
    script.copy(0, prefix);
    let end = new.len() - suffix;
    let index = (end - prefix >= WINDOW).then(|| Index::of(before));
    // The text of `new` from `told` on is not in the script yet.
    let (mut at, mut told) = (prefix, prefix);
    while let Some(index) = &index
        && at + WINDOW <= end
    {
        let near = [script.cursor + (at - told), script.cursor];
        let found = near.into_iter().chain(index.places(&after[at..at + WINDOW]));
        let found = found
            .filter_map(|place| {
                let length = common(before.get(place..)?, &after[at..end]);
                let gain = length.checked_sub(WORTH + script.steps_to(place))?;
                Some((gain, place, length))
            })
            // The first of equals.
            .reduce(|best, other| if other.0 > best.0 { other } else { best });
        let Some((_, mut place, mut length)) = found else {
            at += 1;
            continue;
        };
        while at > told && place > 0 && before[place - 1] == after[at - 1] {
            (at, place, length) = (at - 1, place - 1, length + 1);
        }
        while !new.is_char_boundary(at) {
            (at, place, length) = (at + 1, place + 1, length - 1);
        }
        while !new.is_char_boundary(at + length) || !old.is_char_boundary(place + length) {
            length -= 1;
        }
        script.text(&new[told..at]);
        script.copy(place, length);
        at += length;
        told = at;
    }
    script.text(&new[told..end]);
    script.go(old.len() - suffix);
    script.edits
}

/// How many bytes both begin with.
fn common(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// How many bytes both end with.
fn common_end(one: &[u8], other: &[u8]) -> usize {
    let pairs = one.iter().rev().zip(other.iter().rev());
    pairs.take_while(|(a, b)| a == b).count()
}

#[derive(Default)]
struct Script {
    edits: Vec<Edit>,
    cursor: usize,
}

impl Script {
    /// About how many bytes it takes to move the cursor there.
    fn steps_to(&self, place: usize) -> usize {
        match place.checked_sub(self.cursor) {
            Some(0) => 0,
            Some(_) => 6,
            None => 14,
        }
    }

    fn go(&mut self, place: usize) {
        match place.checked_sub(self.cursor) {
            Some(0) => {}
            Some(distance) => self.edits.push(Edit::Skip(distance)),
            None => self.edits.push(Edit::At(place)),
        }
        self.cursor = place;
    }

    fn copy(&mut self, place: usize, length: usize) {
        if length == 0 {
            return;
        }
        self.go(place);
        match self.edits.last_mut() {
            Some(Edit::Copy(before)) => *before += length,
            Some(Edit::Text(_) | Edit::Skip(_) | Edit::At(_)) | None => self.edits.push(Edit::Copy(length)),
        }
        self.cursor += length;
    }

    fn text(&mut self, text: &str) {
        if !text.is_empty() {
            self.edits.push(Edit::Text(text.to_owned()));
        }
    }
}

/// Where windows of a text are: chains of places with the same hash, the first place first.
struct Index {
    /// By hash: one more than the number of the first listed window, or 0.
    heads: Vec<u32>,
    /// By number of a window: the next one with its hash, like `heads`.
    next: Vec<u32>,
    /// How far listed windows are apart.
    step: usize,
}

impl Index {
    fn of(text: &[u8]) -> Self {
        let step = text.len() / LISTED + 1;
        let windows = (text.len() + 1).saturating_sub(WINDOW).div_ceil(step);
        let mut index = Self {
            heads: vec![0; windows.next_power_of_two().max(64)],
            next: vec![0; windows],
            step,
        };
        for number in (0..windows).rev() {
            let head = index.head(&text[number * step..number * step + WINDOW]);
            index.next[number] = index.heads[head];
            index.heads[head] = u32::try_from(number + 1).expect("at most 2^18 windows");
        }
        index
    }

    fn head(&self, window: &[u8]) -> usize {
        let bytes = <[u8; WINDOW]>::try_from(window).expect("a window");
        let mixed = u64::from_le_bytes(bytes).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bits = self.heads.len().trailing_zeros();
        usize::try_from(mixed >> (64 - bits)).expect("fewer bits than an index has")
    }

    /// Places whose windows may be this one.
    fn places(&self, window: &[u8]) -> impl Iterator<Item = usize> {
        let mut number = self.heads[self.head(window)];
        std::iter::from_fn(move || {
            let place = usize::try_from(number.checked_sub(1)?).ok()?;
            number = self.next[place];
            Some(place * self.step)
        })
        .take(CANDIDATES)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn script(old: &str, new: &str) -> String {
        let edits = find(old, new);
        assert_eq!(apply(old, &edits, usize::MAX).as_deref(), Ok(new));
        let script = write(edits.clone());
        let Json::Array(entries) = &script else {
            unreachable!("a script is an array")
        };
        assert_eq!(read(entries), Some(edits));
        script.to_string()
    }

    #[test]
    fn says_only_what_differs() {
        let words = |numbers: std::ops::Range<u32>| {
            numbers
                .map(|n| format!("rule {n:02} of the house; "))
                .collect::<String>()
        };
        let all = words(0..40);
        let cases = [
            ("", "", "[]".to_owned()),
            ("claude.srcsrcsrc", "gemini.srcsrcsrc", r#"["gemini",-6]"#.to_owned()),
            ("abc", "abcd", r#"[3,"d"]"#.to_owned()),
            ("abcd", "abc", "[3,-1]".to_owned()),
            ("abc", "", "[-3]".to_owned()),
            ("", "é", r#"["é"]"#.to_owned()),
            // Both characters begin with the same byte, or end with it.
            ("aèb", "aéb", r#"[1,"é",-2]"#.to_owned()),
            ("aéb", "aĩb", r#"[1,"ĩ",-2]"#.to_owned()),
            // A part that moved to the end, and one that was taken out in the middle.
            (
                &all,
                &format!("{}{}", words(20..40), words(0..20)),
                "[{\"at\":440},440,{\"at\":0},440,-440]".to_owned(),
            ),
            (
                &all,
                &format!("{}{}", words(0..10), words(15..40)),
                "[220,-110]".to_owned(),
            ),
        ];
        for (old, new, expected) in cases {
            let found = script(old, new);
            assert!(found.len() <= expected.len(), "{found} instead of {expected}");
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let applied = |script: &str, room| {
            let Json::Array(entries) = Json::parse(script.as_bytes()).unwrap() else {
                unreachable!()
            };
            apply("aéb", &read(&entries).unwrap(), room)
        };
        assert_eq!(applied("[]", 4).as_deref(), Ok("aéb"));
        assert_eq!(applied(r#"[{"at":3},1,{"at":0}]"#, 9).as_deref(), Ok("baéb"));
        assert_eq!(applied("[5]", 9), Err(Misfit::OutOfRange));
        assert_eq!(applied("[-5]", 9), Err(Misfit::OutOfRange));
        assert_eq!(
            applied("[-9223372036854775808,-9223372036854775808]", 9),
            Err(Misfit::OutOfRange)
        );
        assert_eq!(applied("[2]", 9), Err(Misfit::CutCharacter));
        assert_eq!(applied("[-2]", 9), Err(Misfit::CutCharacter));
        assert_eq!(applied(r#"["x"]"#, 4), Err(Misfit::TooLong));
        assert_eq!(applied(r#"[4,{"at":0},4,{"at":0}]"#, 11), Err(Misfit::TooLong));
    }

    #[test]
    fn knows_what_is_no_script() {
        for text in [
            "[0]",
            "[1.0]",
            "[null]",
            "[true]",
            "[[]]",
            r#"[{"at":-1}]"#,
            r#"[{"to":1}]"#,
            "[{}]",
            "[1e3]",
        ] {
            let Json::Array(entries) = Json::parse(text.as_bytes()).unwrap() else {
                unreachable!()
            };
            assert_eq!(read(&entries), None, "{text}");
        }
    }

    /// Texts that made a search that looks at everything take the square of their length.
    #[test]
    fn repetition_costs_no_more_than_its_length() {
        let same = "a".repeat(3 << 18);
        assert_eq!(script(&same, &same[1..]).len(), "[786431,-1]".len());
        let other = "ab".repeat(1 << 18) + &"ba".repeat(1 << 17);
        assert!(script(&same, &other).len() > 1 << 18);
        let long = "0123456789abcdef".repeat(1 << 14);
        let changed = long.replacen("f0", "-", 3);
        assert!(script(&long, &changed).len() < 80);
    }

    proptest! {
        #[test]
        fn a_script_makes_the_new_text(old in "[aé€😀 \"]{0,40}", parts in proptest::collection::vec((any::<prop::sample::Index>(), "[aé€😀]{0,9}"), 0..6)) {
            let mut new: Vec<char> = old.repeat(2).chars().collect();
            for (place, text) in parts {
                let place = place.index(new.len() + 1);
                new.splice(place..(place + text.len() / 2).min(new.len()), text.chars());
            }
            let new: String = new.into_iter().collect();
            script(&old, &new);
            script(&new, &old);
        }

        #[test]
        fn any_script_fits_or_is_refused(old in "[aé€]{0,9}", edits in proptest::collection::vec(0_usize..9, 0..6)) {
            let edits: Vec<Edit> = edits.iter().zip([1, 2, 3].iter().cycle()).map(|(n, kind)| match kind {
                1 => Edit::Copy(*n),
                2 => Edit::Skip(*n),
                _ => Edit::At(*n),
            }).collect();
            if let Ok(made) = apply(&old, &edits, 20) {
                prop_assert!(made.len() <= 20);
            }
        }
    }
}
