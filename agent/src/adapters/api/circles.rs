//! Finds a model that goes round in circles: the same calls with the same results, again and again.
//! Pure; the session says what was called and how long it took.
//!
//! ```text
//!   new step ─▶ fine ── a circle ─▶ the model is told ── the same circle once more ─▶ the attempt ends
//!                 ▲                        │
//!                 └──── something new ─────┘
//! ```
//!
//! Whoever waits for something sees the same many times. So a step that took long is a wait and counts
//! neither way, and the model is told how to wait before anything ends.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::turn::ToolAnswer;

/// Steps of one circle at most.
const LONGEST: usize = 3;
/// How often a single step is made, with the same result, until it is a circle.
const SAME: usize = 4;
/// The same, when it fails each time.
const SAME_FAILURE: usize = 3;
/// How often a circle of several steps is made.
const ROUNDS: usize = 3;
/// From here on a step is a wait.
const WAIT: Duration = Duration::from_secs(5);

/// What the model is told.
const TOLD: &str = "You have made the same calls with the same results several times. Do something else, or say that \
                    you are done. If you wait for something, wait in the command, with sleep 30 for example.";

/// One answer's calls and their results.
#[derive(Debug, Default)]
pub(super) struct Step {
    hasher: DefaultHasher,
    failed: bool,
}

impl Step {
    /// Adds a call.
    pub(super) fn add(&mut self, name: &str, input: Option<&str>, answer: &ToolAnswer) {
        (name, input, answer.text.as_str(), answer.is_error).hash(&mut self.hasher);
        self.failed |= answer.is_error;
    }
}

/// What a step means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Circle {
    None,
    /// The model is to be told this.
    Told(&'static str),
    /// It was told, and goes on all the same.
    Again,
}

#[derive(Debug, Default)]
pub(super) struct Circles {
    /// The last steps, with whether they failed.
    steps: VecDeque<(u64, bool)>,
    seen: HashSet<u64>,
    told: bool,
}

impl Circles {
    /// Takes a step that took so long.
    pub(super) fn after(&mut self, step: &Step, took: Duration) -> Circle {
        if took >= WAIT {
            return Circle::None;
        }
        let step = (step.hasher.finish(), step.failed);
        if self.seen.insert(step.0) {
            self.told = false;
        }
        self.steps.push_back(step);
        if self.steps.len() > LONGEST * ROUNDS {
            self.steps.pop_front();
        }
        if !(1..=LONGEST).any(|length| self.is_circle(length)) {
            return Circle::None;
        }
        // It has as much time once more.
        self.steps.clear();
        if std::mem::replace(&mut self.told, true) {
            Circle::Again
        } else {
            Circle::Told(TOLD)
        }
    }

    /// Whether the last steps are a circle of this length.
    fn is_circle(&self, length: usize) -> bool {
        let rounds = match (length, self.steps.back()) {
            (1, Some((_, true))) => SAME_FAILURE,
            (1, _) => SAME,
            _ => ROUNDS,
        };
        let Some(begin) = self.steps.len().checked_sub(length * rounds) else {
            return false;
        };
        (begin + length..self.steps.len()).all(|at| self.steps[at] == self.steps[at - length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    /// One step for each letter: a capital one fails; `+` is a wait.
    fn verdicts(story: &str) -> Vec<Circle> {
        let mut circles = Circles::default();
        let verdict = |letter: char| {
            let mut step = Step::default();
            let answer = ToolAnswer {
                id: "any".to_owned(),
                text: letter.to_string(),
                is_error: letter.is_uppercase(),
                image: None,
            };
            step.add("bash", Some("{}"), &answer);
            circles.after(&step, if letter == '+' { WAIT } else { SHORT })
        };
        story.chars().map(verdict).collect()
    }

    /// After how many steps the model is told, and after how many the attempt ends.
    fn when(story: &str) -> (Option<usize>, Option<usize>) {
        let verdicts = verdicts(story);
        let first = |wanted| verdicts.iter().position(|verdict| *verdict == wanted).map(|at| at + 1);
        (first(Circle::Told(TOLD)), first(Circle::Again))
    }

    #[test]
    fn circles_are_found() {
        for (story, told, ends) in [
            ("aaaaaaaaaaaa", 4, 8),
            ("AAAAAAAAAAAA", 3, 6),
            ("abababababababab", 6, 12),
            ("ABABABABABABABAB", 6, 12),
            ("abcabcabcabcabcabcabc", 9, 18),
            ("xyzaaaaaaaaaaa", 7, 11),
            ("aabbaaaaaaaaaaa", 8, 12),
            // Waits between do not hide it.
            ("a+a+a+a+a+a+a+a+", 7, 15),
            // Nor does a change of the circle to one that was there before.
            ("abaaaaabbbbb", 6, 11),
        ] {
            assert_eq!(when(story), (Some(told), Some(ends)), "{story}");
        }
    }

    #[test]
    fn honest_work_and_polling_are_not() {
        for story in [
            "abcdefghijklmnopqrstuvwxyz",
            "aaabaaacaaad",
            "AABAACAAD",
            "ababcababd",
            "++++++++++++++++++++",
            "a+++++++++b+++++++++c",
            "abcabdabeabf",
        ] {
            assert_eq!(when(story), (None, None), "{story}");
        }
        // Who is told and then waits, or does something new, goes on.
        assert_eq!(when("aaaa+++++++++++b"), (Some(4), None));
        assert_eq!(when("aaaabaaaacaaaad"), (Some(4), None));
    }
}
