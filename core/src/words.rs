//! The words of enums without data, each in one place: a variant stands beside the word that is
//! stored, sent and typed for it, and beside the words for people where those differ.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::Deserializer;
use serde::de::{self, Visitor};

use crate::id::InvalidId;

/// Defines an enum with its words: `ALL`, `as_str` and `FromStr` by the stored word, which serde writes
/// and reads as well, and `Display` in words for people.
///
/// ```text
/// words! {
///     /// What is known about a checkpoint's files.
///     pub enum Safety: "a word for how safe a checkpoint is" {
///         /// Verify did not run on these files.
///         Unknown = "unknown",
///         /// Verify was asked for.
///         Asked = "verify_asked" ("verify is asked for"),
///     }
/// }
/// ```
/// The text after the name says what a word that is none of them is not.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $expected:literal {
            $($(#[$attribute:meta])* $variant:ident = $word:literal $(($said:literal))?,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ::serde::Serialize)]
        pub enum $name {
            $($(#[$attribute])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every value, in the order of their definition.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// The word in rows and messages.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $crate::words::words!(@said $word $($said)?),)+
                })
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $name {
            fn deserialize<D: ::serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                $crate::words::read(from, $expected, &[$($word),+])
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::id::InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let found = Self::ALL.into_iter().find(|value| value.as_str() == text);
                found.ok_or_else(|| $crate::id::InvalidId {
                    text: text.chars().take(80).collect(),
                    expected: $expected,
                })
            }
        }
    };
    (@said $word:literal) => { $word };
    (@said $word:literal $said:literal) => { $said };
}

pub(crate) use words;

/// Reads a word. One that there is not is refused with those that there are.
pub(crate) fn read<'de, T, D>(from: D, expected: &'static str, words: &'static [&'static str]) -> Result<T, D::Error>
where
    T: FromStr<Err = InvalidId>,
    D: Deserializer<'de>,
{
    struct Word<T>(&'static str, &'static [&'static str], PhantomData<T>);
    impl<T: FromStr<Err = InvalidId>> Visitor<'_> for Word<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, word: &str) -> Result<T, E> {
            word.parse().map_err(|invalid| {
                let (last, others) = self.1.split_last().unwrap_or((&"", &[]));
                E::custom(format_args!("{invalid}; use {} or {last}", others.join(", ")))
            })
        }
    }
    from.deserialize_str(Word(expected, words, PhantomData))
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Display};
    use std::str::FromStr;

    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use crate::access::Role;
    use crate::attempt::EndReason;
    use crate::checkpoint::{CheckpointReason, Safety, WorktreeChoice};
    use crate::event::{ChangeKind, OutputStream, Phase, VerdictKind};
    use crate::failure::FailureKind;
    use crate::job::JobType;
    use crate::price::Effort;
    use crate::recovery::Confidence;
    use crate::session::SessionStateKind;
    use crate::task::TaskState;
    use crate::usage::Provenance;

    /// The stored words of an enum, each of which is what serde writes and what is read again.
    fn words<T>(all: &[T], word: fn(T) -> &'static str) -> String
    where
        T: Copy + Debug + Display + PartialEq + FromStr<Err: Debug> + Serialize + DeserializeOwned,
    {
        let words = all.iter().map(|value| {
            let text = word(*value);
            assert_eq!(text.parse::<T>().unwrap(), *value);
            assert_eq!(serde_json::to_string(value).unwrap(), format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<T>(&format!("\"{text}\"")).unwrap(), *value);
            assert!("no such word".parse::<T>().is_err() && !value.to_string().is_empty());
            text
        });
        words.collect::<Vec<_>>().join(" ")
    }

    /// Rows and programs have them: a word that changes needs a migration.
    #[test]
    fn stored_words_stay_what_they_were() {
        macro_rules! of {
            ($name:ident) => {
                words(&$name::ALL, $name::as_str)
            };
        }
        let cases = [
            (of!(Role), "owner admin submit view agent stranger"),
            (of!(Provenance), "billed reported estimated free unknown"),
            (of!(Effort), "low medium high xhigh max"),
            (
                of!(FailureKind),
                "rate_limited overloaded network timeout quota_exhausted auth token_expired invalid_request model_refused context_overflow \
                 context_unavailable corrupted_state logic_error turn_limit no_change result_too_large secret_found \
                 result_refused adapter_crash adapter_unavailable disk_full machine_busy setup_failed agent_lost budget_exceeded cancelled unknown",
            ),
            (of!(Confidence), "low medium high"),
            (
                of!(CheckpointReason),
                "baseline files_changed before_retry requested before_restore final",
            ),
            (of!(Safety), "unknown safe unsafe"),
            (of!(WorktreeChoice), "anew left left_complete"),
            (of!(Phase), "preparing setup working verifying uploading"),
            (of!(ChangeKind), "added modified deleted reverted"),
            (of!(VerdictKind), "passed failed errored"),
            (of!(OutputStream), "stdout stderr transcript"),
            (
                of!(SessionStateKind),
                "queued running claimed verifying verified rejected unverified failed cancelled saving",
            ),
            (of!(TaskState), "running succeeded failed cancelled"),
            (
                of!(EndReason),
                "finished agent_restarted agent_gone agent_silent restored superseded overdue stop_unanswered",
            ),
            (of!(JobType), "session verify baseline"),
        ];
        for (words, expected) in cases {
            assert_eq!(words, expected);
        }
    }

    #[test]
    fn people_read_other_words_where_there_are_some() {
        let said = |reason: CheckpointReason| (reason.as_str(), reason.to_string());
        assert_eq!(said(CheckpointReason::Requested), ("requested", "asked for".to_owned()));
        assert_eq!(said(CheckpointReason::Final), ("final", "final".to_owned()));
        assert_eq!(FailureKind::Auth.to_string(), "not authorised");
    }
}
