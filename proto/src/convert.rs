//! Conversion between wire types and domain types, in both directions. This file holds
//! the error and the small rules that every conversion shares (an absent message, an
//! empty text); the conversions are in the folder, by subject.

use std::fmt::Display;
use std::str::FromStr;

pub mod agent;
pub mod call;
pub mod checkpoint;
pub mod contain;
pub mod cost;
pub mod event;
pub mod report;
pub mod result;
pub mod session;
pub mod task;
pub mod time;
pub mod value;

/// A field of a message that cannot be what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("{field}: {problem}")]
pub struct InvalidField {
    /// Its path within the message, as in `policy.verify.protect[2]`.
    pub field: String,
    /// The problem, for the person who wrote the value.
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

/// Everything that is wrong with a message that a person wrote. Reading continues with a stand-in
/// for an invalid value, so that all problems are found.
#[derive(Debug, Default)]
pub struct Wrong {
    /// The part of the message that is read now, as in `spec.policy.`.
    part: String,
    fields: Vec<InvalidField>,
}

/// Invalid fields of one message; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidFields(pub Vec<InvalidField>);

impl From<InvalidField> for InvalidFields {
    fn from(field: InvalidField) -> Self {
        Self(vec![field])
    }
}

impl Wrong {
    /// Reads a part of the message.
    pub fn within<T>(&mut self, part: impl Display, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.part.len();
        self.part += &format!("{part}.");
        let value = read(self);
        self.part.truncate(before);
        value
    }

    /// Remembers a field of the part that is read now.
    pub fn add(&mut self, field: InvalidField) {
        let field = InvalidField {
            field: format!("{}{}", self.part, field.field),
            problem: field.problem,
        };
        self.fields.push(field);
    }

    /// Remembers fields of the part that is read now.
    pub fn extend(&mut self, fields: InvalidFields) {
        for field in fields.0 {
            self.add(field);
        }
    }

    /// The read value, or a stand-in.
    pub fn or<T>(&mut self, read: Result<T, InvalidField>, stand_in: impl FnOnce() -> T) -> T {
        read.unwrap_or_else(|field| {
            self.add(field);
            stand_in()
        })
    }

    /// The read value, or the default of its type.
    pub fn or_default<T: Default>(&mut self, read: Result<T, InvalidField>) -> T {
        self.or(read, T::default)
    }

    /// The message, if nothing in it is wrong.
    ///
    /// # Errors
    /// With everything that is.
    pub fn none<T>(self, message: T) -> Result<T, InvalidFields> {
        if self.fields.is_empty() {
            Ok(message)
        } else {
            Err(InvalidFields(self.fields))
        }
    }

    /// The message, if nothing in it is wrong.
    ///
    /// # Errors
    /// With the first problem: enough for messages that programs write.
    pub fn first<T>(self, message: T) -> Result<T, InvalidField> {
        match self.fields.into_iter().next() {
            None => Ok(message),
            Some(field) => Err(field),
        }
    }
}

/// A text that parses as a `T`, as a stand-in for an invalid one.
pub(crate) fn stand_in<T: FromStr<Err: Display>>(text: &str) -> T {
    match text.parse() {
        Ok(value) => value,
        Err(problem) => unreachable!("{text:?} is not valid: {problem}"),
    }
}

/// Parses a text that must be there.
///
/// # Errors
/// When the text is not a `T`.
pub fn parse<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, InvalidField> {
    text.parse().map_err(|problem| InvalidField::new(field, problem))
}

/// Parses a text; empty means `None`.
///
/// # Errors
/// When the text is neither empty nor a `T`.
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
