//! Conversion between wire types and domain types, in both directions. This file holds
//! the error and the small rules that every conversion shares (an absent message, an
//! empty text); the conversions are in the folder, by subject.

use std::fmt::Display;
use std::str::FromStr;

pub mod agent;
pub mod checkpoint;
pub mod event;
pub mod report;
pub mod result;
pub mod session;
pub mod task;
pub mod time;
pub mod value;

/// A field of a message that cannot be what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidField {
    /// Its path within the message, as in `policy.verify.protect[2]`.
    pub field: String,
    /// What is wrong, for the person who wrote it.
    pub problem: String,
}

impl InvalidField {
    /// A problem with this field.
    pub fn new(field: impl Into<String>, problem: impl Display) -> Self {
        Self {
            field: field.into(),
            problem: problem.to_string(),
        }
    }

    /// The same problem, seen from the message that contains the field.
    #[must_use]
    pub fn within(mut self, parent: impl Display) -> Self {
        self.field = format!("{parent}.{}", self.field);
        self
    }
}

/// Parses a text that must be there.
///
/// # Errors
/// When it is not what `T` wants.
pub fn parse<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, InvalidField> {
    text.parse().map_err(|problem| InvalidField::new(field, problem))
}

/// Parses a text of which the empty one means `None`.
///
/// # Errors
/// When it is neither empty nor what `T` wants.
pub fn parse_optional<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<Option<T>, InvalidField> {
    if text.is_empty() {
        Ok(None)
    } else {
        parse(field, text).map(Some)
    }
}

pub(crate) fn required<T>(field: &str, message: Option<T>) -> Result<T, InvalidField> {
    message.ok_or_else(|| InvalidField::new(field, "is missing"))
}

/// Decodes an enum's number and refuses the zero of every enum.
pub(crate) fn enumerated<T: TryFrom<i32>>(field: &str, number: i32) -> Result<T, InvalidField> {
    T::try_from(number).map_err(|_| InvalidField::new(field, format_args!("{number} is not a value of this enum")))
}

pub(crate) fn unspecified(field: &str) -> InvalidField {
    InvalidField::new(field, "is unspecified")
}

pub(crate) fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
