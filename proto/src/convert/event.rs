//! State events and output streams.

use kage_core::event::{AttemptOutcome, ChangeKind, Event, EventBody, FileChange, OutputStream, Phase};
use kage_core::usage::PicoUsd;

use super::time::{duration, span, stamp, time};
use super::{InvalidField, call, enumerated, parse, required, unspecified, value};
use crate::v1;
use crate::v1::event::Body;
use crate::v1::finished::Outcome;

impl From<Phase> for v1::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Preparing => Self::Preparing,
            Phase::Setup => Self::Setup,
            Phase::Working => Self::Working,
            Phase::Verifying => Self::Verifying,
            Phase::Uploading => Self::Uploading,
        }
    }
}

fn phase(number: i32) -> Result<Phase, InvalidField> {
    Ok(match enumerated("phase", number)? {
        v1::Phase::Unspecified => return Err(unspecified("phase")),
        v1::Phase::Preparing => Phase::Preparing,
        v1::Phase::Setup => Phase::Setup,
        v1::Phase::Working => Phase::Working,
        v1::Phase::Verifying => Phase::Verifying,
        v1::Phase::Uploading => Phase::Uploading,
    })
}

impl From<OutputStream> for v1::OutputStream {
    fn from(stream: OutputStream) -> Self {
        match stream {
            OutputStream::Stdout => Self::Stdout,
            OutputStream::Stderr => Self::Stderr,
            OutputStream::Transcript => Self::Transcript,
        }
    }
}

/// The stream of this number on the wire.
///
/// # Errors
/// When there is none; `field` names where the number was.
pub fn output_stream(field: &str, number: i32) -> Result<OutputStream, InvalidField> {
    Ok(match enumerated(field, number)? {
        v1::OutputStream::Unspecified => return Err(unspecified(field)),
        v1::OutputStream::Stdout => OutputStream::Stdout,
        v1::OutputStream::Stderr => OutputStream::Stderr,
        v1::OutputStream::Transcript => OutputStream::Transcript,
    })
}

impl From<ChangeKind> for v1::ChangeKind {
    fn from(kind: ChangeKind) -> Self {
        match kind {
            ChangeKind::Added => Self::Added,
            ChangeKind::Modified => Self::Modified,
            ChangeKind::Deleted => Self::Deleted,
            ChangeKind::Reverted => Self::Reverted,
        }
    }
}

impl From<FileChange> for v1::FileChange {
    fn from(change: FileChange) -> Self {
        Self {
            path: change.path,
            kind: v1::ChangeKind::from(change.kind).into(),
            added: change.added,
            removed: change.removed,
        }
    }
}

impl TryFrom<v1::FileChange> for FileChange {
    type Error = InvalidField;

    fn try_from(change: v1::FileChange) -> Result<Self, InvalidField> {
        let kind = match enumerated("kind", change.kind)? {
            v1::ChangeKind::Unspecified => return Err(unspecified("kind")),
            v1::ChangeKind::Added => ChangeKind::Added,
            v1::ChangeKind::Modified => ChangeKind::Modified,
            v1::ChangeKind::Deleted => ChangeKind::Deleted,
            v1::ChangeKind::Reverted => ChangeKind::Reverted,
        };
        Ok(Self {
            path: change.path,
            kind,
            added: change.added,
            removed: change.removed,
        })
    }
}

impl From<AttemptOutcome> for v1::Finished {
    fn from(outcome: AttemptOutcome) -> Self {
        Self {
            outcome: Some(match outcome {
                AttemptOutcome::Claimed => Outcome::Claimed(v1::Claimed {}),
                AttemptOutcome::Verdict(verdict) => Outcome::Verdict(verdict.into()),
                AttemptOutcome::Failed(failure) => Outcome::Failure(failure.into()),
            }),
        }
    }
}

impl TryFrom<v1::Finished> for AttemptOutcome {
    type Error = InvalidField;

    fn try_from(finished: v1::Finished) -> Result<Self, InvalidField> {
        Ok(match required("outcome", finished.outcome)? {
            Outcome::Claimed(v1::Claimed {}) => Self::Claimed,
            Outcome::Verdict(verdict) => {
                Self::Verdict(verdict.try_into().map_err(|e: InvalidField| e.within("verdict"))?)
            }
            Outcome::Failure(failure) => Self::Failed(failure.into()),
        })
    }
}

impl From<EventBody> for Body {
    fn from(body: EventBody) -> Self {
        match body {
            EventBody::PhaseChanged(phase) => Self::PhaseChanged(v1::PhaseChanged {
                phase: v1::Phase::from(phase).into(),
            }),
            EventBody::Activity(summary) => Self::Activity(v1::Activity { summary }),
            EventBody::UsageRecorded {
                model,
                usage,
                reported,
                metered,
                tools,
                call,
            } => Self::UsageRecorded(v1::UsageRecorded {
                model,
                usage: Some(usage.into()),
                reported_pico: reported.map(|amount| amount.0),
                metered,
                tools: tools.map(Into::into),
                call: call.map(Into::into),
            }),
            EventBody::CallRetried {
                failure,
                delay,
                attempt,
            } => Self::CallRetried(v1::CallRetried {
                failure: Some(failure.into()),
                delay: Some(span(delay)),
                attempt,
            }),
            EventBody::FilesChanged(files) => Self::FilesChanged(v1::FilesChanged {
                files: files.into_iter().map(Into::into).collect(),
            }),
            EventBody::OutputTruncated { stream, at } => Self::OutputTruncated(v1::OutputTruncated {
                stream: v1::OutputStream::from(stream).into(),
                at,
            }),
            EventBody::Warning(message) => Self::Warning(v1::Warning { message }),
            EventBody::ResultCommitted { result, pack } => Self::ResultCommitted(v1::ResultCommitted {
                result: Some(result.into()),
                pack: pack.into(),
            }),
            EventBody::CheckpointTaken(taken) => Self::CheckpointTaken(taken.into()),
            EventBody::Resumed {
                commit,
                position,
                repeated_calls,
            } => Self::Resumed(v1::Resumed {
                commit: commit.into(),
                position,
                repeated_calls,
            }),
            EventBody::MessageTold(number) => Self::MessageTold(v1::MessageTold { number }),
            EventBody::PermissionAsked { number, about, wait } => Self::PermissionAsked(v1::PermissionAsked {
                number,
                about,
                wait: Some(span(wait)),
            }),
            EventBody::PermissionDecided { number, allowed, by } => {
                Self::PermissionDecided(v1::PermissionDecided { number, allowed, by })
            }
            EventBody::Finished(outcome) => Self::Finished(outcome.into()),
        }
    }
}

impl TryFrom<Body> for EventBody {
    type Error = InvalidField;

    fn try_from(body: Body) -> Result<Self, InvalidField> {
        Ok(match body {
            Body::PhaseChanged(v1::PhaseChanged { phase: number }) => Self::PhaseChanged(phase(number)?),
            Body::Activity(v1::Activity { summary }) => Self::Activity(summary),
            // What cannot be is as good as nothing said: the event counts, its numbers do not.
            Body::UsageRecorded(recorded) => Self::UsageRecorded {
                model: recorded.model,
                usage: value::plausible(required("usage", recorded.usage)?.into()),
                reported: recorded.reported_pico.filter(|pico| *pico >= 0).map(PicoUsd),
                metered: recorded.metered,
                tools: recorded.tools.map(Into::into),
                call: recorded.call.and_then(call::call_ref),
            },
            Body::CallRetried(retried) => Self::CallRetried {
                failure: required("failure", retried.failure)?.into(),
                delay: duration(retried.delay.unwrap_or_default()),
                attempt: retried.attempt,
            },
            Body::FilesChanged(changed) => Self::FilesChanged(
                changed
                    .files
                    .into_iter()
                    .enumerate()
                    .map(|(i, file)| {
                        file.try_into()
                            .map_err(|e: InvalidField| e.within(format_args!("files[{i}]")))
                    })
                    .collect::<Result<_, _>>()?,
            ),
            Body::OutputTruncated(truncated) => Self::OutputTruncated {
                stream: output_stream("stream", truncated.stream)?,
                at: truncated.at,
            },
            Body::Warning(v1::Warning { message }) => Self::Warning(message),
            Body::ResultCommitted(committed) => Self::ResultCommitted {
                result: required("result", committed.result)?
                    .try_into()
                    .map_err(|e: InvalidField| e.within("result"))?,
                pack: parse("pack", &committed.pack)?,
            },
            Body::CheckpointTaken(taken) => Self::CheckpointTaken(taken.try_into()?),
            Body::Resumed(resumed) => Self::Resumed {
                commit: parse("commit", &resumed.commit)?,
                position: resumed.position,
                repeated_calls: resumed.repeated_calls,
            },
            Body::MessageTold(told) => Self::MessageTold(told.number),
            Body::PermissionAsked(asked) => Self::PermissionAsked {
                number: asked.number,
                about: asked.about,
                wait: duration(asked.wait.unwrap_or_default()),
            },
            Body::PermissionDecided(v1::PermissionDecided { number, allowed, by }) => {
                Self::PermissionDecided { number, allowed, by }
            }
            Body::Finished(finished) => Self::Finished(finished.try_into()?),
        })
    }
}

impl From<Event> for v1::Event {
    fn from(event: Event) -> Self {
        Self {
            seq: event.seq,
            at: Some(stamp(event.at)),
            body: Some(event.body.into()),
        }
    }
}

impl TryFrom<v1::Event> for Event {
    type Error = InvalidField;

    fn try_from(event: v1::Event) -> Result<Self, InvalidField> {
        Ok(Self {
            seq: event.seq,
            at: time(event.at.unwrap_or_default()),
            body: required("body", event.body)?
                .try_into()
                .map_err(|e: InvalidField| e.within("body"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kage_core::call::{CallEnd, CallRef};
    use kage_core::checkpoint::{CheckpointReason, TakenCheckpoint};
    use kage_core::event::{DiffStat, LargeFile, ResultCommit, Verdict, VerdictKind};
    use kage_core::failure::{Failure, FailureKind};
    use kage_core::id::{CallId, Digest};
    use kage_core::left_out::{LeftOut, LeftOutReason};
    use kage_core::time::Timestamp;
    use kage_core::usage::{Unreported, Usage};

    use super::*;

    const LEFT_OUT: [LeftOutReason; 9] = [
        LeftOutReason::Large { size: 9 },
        LeftOutReason::SecretName,
        LeftOutReason::NestedRepository,
        LeftOutReason::NestedHistory,
        LeftOutReason::Unreadable,
        LeftOutReason::Name,
        LeftOutReason::LongPath,
        LeftOutReason::NotAFile,
        LeftOutReason::Link,
    ];

    fn bodies() -> Vec<EventBody> {
        let change = |kind| FileChange {
            path: "src/lib.rs".into(),
            kind,
            added: 3,
            removed: 4,
        };
        let failure = Failure::new(FailureKind::Overloaded, "busy");
        let mut bodies: Vec<_> = [
            Phase::Preparing,
            Phase::Setup,
            Phase::Working,
            Phase::Verifying,
            Phase::Uploading,
        ]
        .map(EventBody::PhaseChanged)
        .into();
        bodies.extend(OutputStream::ALL.map(|stream| EventBody::OutputTruncated { stream, at: 9 }));
        bodies.extend([
            EventBody::Activity("reads a file".into()),
            EventBody::UsageRecorded {
                model: "m".into(),
                usage: Usage {
                    input: 1,
                    cache_write_5m: 2,
                    cache_write_1h: 3,
                    cache_read: 4,
                    output: 5,
                    reasoning: 6,
                    unreported: Unreported::ALL,
                },
                reported: Some(PicoUsd(7)),
                metered: true,
                tools: Some(["bash", "edit", "bash"].into_iter().collect()),
                call: Some(CallRef {
                    id: CallId::from_random(5),
                    account: "openai/0123456789ab".parse().unwrap(),
                    end: CallEnd::Cut,
                    request: Some("req_1".to_owned()),
                }),
            },
            EventBody::CallRetried {
                failure: failure.clone(),
                delay: Duration::from_millis(250),
                attempt: 2,
            },
            EventBody::FilesChanged(
                [
                    ChangeKind::Added,
                    ChangeKind::Modified,
                    ChangeKind::Deleted,
                    ChangeKind::Reverted,
                ]
                .map(change)
                .into(),
            ),
            EventBody::Warning("careful".into()),
            EventBody::ResultCommitted {
                result: ResultCommit {
                    commit: "a".repeat(40).parse().unwrap(),
                    tree: Some("b".repeat(40).parse().unwrap()),
                    diff: DiffStat {
                        files: 1,
                        added: 2,
                        removed: 3,
                    },
                    paths: vec!["a".into()],
                    deleted: vec!["b".into()],
                    large: vec![LargeFile {
                        path: "a".into(),
                        bytes: 7,
                    }],
                    left_out: LEFT_OUT
                        .map(|reason| LeftOut {
                            path: "c".into(),
                            reason,
                        })
                        .into(),
                },
                pack: Digest::of(b"pack"),
            },
            EventBody::CheckpointTaken(TakenCheckpoint {
                commit: "a".repeat(40).parse().unwrap(),
                parent: "a".repeat(40).parse().unwrap(),
                tree: "b".repeat(40).parse().unwrap(),
                reason: CheckpointReason::Baseline,
                note: String::new(),
                files_changed: 0,
                pack: None,
                transcript: None,
                calls: None,
                told: 0,
            }),
            EventBody::Resumed {
                commit: "a".repeat(40).parse().unwrap(),
                position: 6,
                repeated_calls: 2,
            },
            EventBody::MessageTold(3),
            EventBody::PermissionAsked {
                number: 1,
                about: "run rm -rf /".into(),
                wait: Duration::from_millis(1500),
            },
            EventBody::PermissionDecided {
                number: 1,
                allowed: true,
                by: "by owner".into(),
            },
            EventBody::Finished(AttemptOutcome::Claimed),
            EventBody::Finished(AttemptOutcome::Failed(failure)),
            EventBody::Finished(AttemptOutcome::Verdict(Verdict {
                kind: VerdictKind::Failed,
                exit_code: Some(1),
                message: "no".into(),
                duration: Duration::from_millis(5),
                agent: "a1".into(),
                environment: "e".into(),
                contained: kage_core::contain::Tier::T0,
                machine: None,
                restored: Vec::new(),
                tests: None,
                without_change: None,
                output: String::new(),
            })),
        ]);
        bodies
    }

    #[test]
    fn every_event_survives_the_wire() {
        for (seq, body) in bodies().into_iter().enumerate() {
            let event = Event {
                seq: seq as u64,
                at: Timestamp::from_millis(123_456),
                body,
            };
            assert_eq!(Event::try_from(v1::Event::from(event.clone())), Ok(event));
        }
    }

    #[test]
    fn numbers_that_cannot_be_do_not_count() {
        let read = |input, output, reported_pico| {
            let recorded = v1::UsageRecorded {
                usage: Some(v1::Usage {
                    input,
                    output,
                    ..v1::Usage::default()
                }),
                reported_pico,
                ..v1::UsageRecorded::default()
            };
            match EventBody::try_from(Body::UsageRecorded(recorded)).unwrap() {
                EventBody::UsageRecorded { usage, reported, .. } => (usage, reported),
                other => panic!("{other:?}"),
            }
        };
        let most = 1_000_000_000_000_000;
        let (usage, reported) = read(most - 1, 1, Some(0));
        assert_eq!((usage.total(), reported), (most, Some(PicoUsd(0))));
        for (input, output) in [(most, 1), (u64::MAX, 0), (u64::MAX, u64::MAX)] {
            assert_eq!(read(input, output, Some(1)), (Usage::UNKNOWN, Some(PicoUsd(1))));
        }
        assert_eq!(read(1, 1, Some(-1)).1, None);
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        let wrong = v1::Event {
            seq: 1,
            at: None,
            body: Some(Body::FilesChanged(v1::FilesChanged {
                files: vec![v1::FileChange::default()],
            })),
        };
        let error = Event::try_from(wrong).unwrap_err();
        assert_eq!(error.to_string(), "body.files[0].kind: is unspecified");
        let empty = Event::try_from(v1::Event::default()).unwrap_err();
        assert_eq!(empty.to_string(), "body: is missing");
    }
}
