//! How urgent a task is to the person who asked for it. Placement decides what that means.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// From -10 to 10; higher goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct Priority(i8);

/// Why a text or a number is not a priority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a priority; it is low, normal, high, or a number from -10 to 10")]
pub struct InvalidPriority(String);

impl Priority {
    /// For work that can wait until nothing else is urgent.
    pub const LOW: Self = Self(-5);
    /// The default.
    pub const NORMAL: Self = Self(0);
    /// Before everything of normal priority.
    pub const HIGH: Self = Self(5);

    const LIMIT: i8 = 10;

    /// The number.
    #[must_use]
    pub const fn as_i32(self) -> i32 {
        self.0 as i32
    }
}

impl TryFrom<i32> for Priority {
    type Error = InvalidPriority;

    fn try_from(number: i32) -> Result<Self, InvalidPriority> {
        i8::try_from(number)
            .ok()
            .filter(|number| (-Self::LIMIT..=Self::LIMIT).contains(number))
            .map(Self)
            .ok_or_else(|| InvalidPriority(number.to_string()))
    }
}

impl From<Priority> for i32 {
    fn from(priority: Priority) -> Self {
        priority.as_i32()
    }
}

impl FromStr for Priority {
    type Err = InvalidPriority;

    fn from_str(text: &str) -> Result<Self, InvalidPriority> {
        match text {
            "low" => Ok(Self::LOW),
            "normal" => Ok(Self::NORMAL),
            "high" => Ok(Self::HIGH),
            number => number
                .parse::<i32>()
                .ok()
                .and_then(|number| Self::try_from(number).ok())
                .ok_or_else(|| InvalidPriority(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::LOW => f.write_str("low"),
            Self::NORMAL => f.write_str("normal"),
            Self::HIGH => f.write_str("high"),
            Self(number) => number.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_words_or_numbers_within_bounds() {
        for (text, number) in [
            ("low", -5),
            ("normal", 0),
            ("high", 5),
            ("-10", -10),
            ("10", 10),
            ("7", 7),
        ] {
            let priority: Priority = text.parse().unwrap();
            assert_eq!(priority.as_i32(), number, "{text}");
            assert_eq!(priority.to_string().parse(), Ok(priority));
        }
        for text in ["", "urgent", "11", "-11", "1.5", "999999999999"] {
            assert!(text.parse::<Priority>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Priority>("300").is_err());
        assert!(Priority::HIGH > Priority::NORMAL && Priority::NORMAL > Priority::LOW);
    }
}
