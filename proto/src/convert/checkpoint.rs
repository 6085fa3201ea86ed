//! Checkpoints, and the data for resuming one.

use kage_core::checkpoint::{
    Checkpoint, CheckpointReason, MAX_NOTE, Resume, Safety, TakenCheckpoint, TranscriptSegment, WorktreeChoice, parent,
};
use kage_core::session::Session;

use super::time::stamp;
use super::{InvalidField, enumerated, parse, parse_optional, unspecified};
use crate::v1;

impl From<CheckpointReason> for v1::CheckpointReason {
    fn from(reason: CheckpointReason) -> Self {
        match reason {
            CheckpointReason::Baseline => Self::Baseline,
            CheckpointReason::FilesChanged => Self::FilesChanged,
            CheckpointReason::BeforeRetry => Self::BeforeRetry,
            CheckpointReason::Requested => Self::Requested,
            CheckpointReason::BeforeRestore => Self::BeforeRestore,
            CheckpointReason::Final => Self::Final,
        }
    }
}

/// The reason of this number on the wire.
///
/// # Errors
/// When there is none; `field` names where the number was.
pub fn checkpoint_reason(field: &str, number: i32) -> Result<CheckpointReason, InvalidField> {
    Ok(match enumerated(field, number)? {
        v1::CheckpointReason::Unspecified => return Err(unspecified(field)),
        v1::CheckpointReason::Baseline => CheckpointReason::Baseline,
        v1::CheckpointReason::FilesChanged => CheckpointReason::FilesChanged,
        v1::CheckpointReason::BeforeRetry => CheckpointReason::BeforeRetry,
        v1::CheckpointReason::Requested => CheckpointReason::Requested,
        v1::CheckpointReason::BeforeRestore => CheckpointReason::BeforeRestore,
        v1::CheckpointReason::Final => CheckpointReason::Final,
    })
}

/// The reason of a checkpoint that an agent is asked for.
///
/// # Errors
/// When a caller cannot request this reason; `field` names the field of the number.
pub fn asked_reason(field: &str, number: i32) -> Result<CheckpointReason, InvalidField> {
    match enumerated(field, number)? {
        v1::CheckpointReason::Unspecified | v1::CheckpointReason::Requested => Ok(CheckpointReason::Requested),
        v1::CheckpointReason::BeforeRestore => Ok(CheckpointReason::BeforeRestore),
        v1::CheckpointReason::Baseline
        | v1::CheckpointReason::FilesChanged
        | v1::CheckpointReason::BeforeRetry
        | v1::CheckpointReason::Final => Err(InvalidField::new(field, "is none that is asked for")),
    }
}

/// A note that a person wrote, if it is not too long.
///
/// # Errors
/// When it is; `field` names where it was.
pub fn note(field: &str, text: String) -> Result<String, InvalidField> {
    if text.len() > MAX_NOTE {
        return Err(InvalidField::new(
            field,
            format_args!("has {} bytes; at most {MAX_NOTE} are taken", text.len()),
        ));
    }
    Ok(text)
}

impl From<Safety> for v1::Safety {
    fn from(safety: Safety) -> Self {
        match safety {
            Safety::Unknown => Self::Unknown,
            Safety::Safe => Self::Safe,
            Safety::Unsafe => Self::Unsafe,
        }
    }
}

/// A checkpoint of `session` as people see it; `all` are the session's checkpoints. The way
/// back does not exist.
#[must_use]
pub fn checkpoint(checkpoint: &Checkpoint, session: &Session, all: &[Checkpoint]) -> v1::Checkpoint {
    let taken = &checkpoint.taken;
    let resumptions = session.checkpoints.resumptions.iter();
    v1::Checkpoint {
        session_id: checkpoint.session.to_string(),
        session: session.name.to_string(),
        number: checkpoint.number,
        parent_number: parent(checkpoint, all).map_or(0, |parent| parent.number),
        attempt: checkpoint.attempt,
        adapter: checkpoint.adapter.to_string(),
        agent: checkpoint.agent.clone(),
        commit: taken.commit.to_string(),
        parent: taken.parent.to_string(),
        tree: taken.tree.to_string(),
        reason: v1::CheckpointReason::from(taken.reason).into(),
        note: taken.note.clone(),
        files_changed: taken.files_changed,
        position: checkpoint.position,
        calls: checkpoint.calls,
        safety: v1::Safety::from(checkpoint.safety).into(),
        taken_at: Some(stamp(checkpoint.taken_at)),
        stored_at: Some(stamp(checkpoint.stored_at)),
        head: session
            .checkpoints
            .head
            .as_ref()
            .is_some_and(|head| head.number == checkpoint.number),
        resumptions: resumptions
            .filter(|resumption| resumption.number == checkpoint.number)
            .map(Into::into)
            .collect(),
    }
}

impl From<TranscriptSegment> for v1::TranscriptSegment {
    fn from(segment: TranscriptSegment) -> Self {
        Self {
            blob: segment.blob.into(),
            from: segment.from,
            to: segment.to,
        }
    }
}

impl TryFrom<v1::TranscriptSegment> for TranscriptSegment {
    type Error = InvalidField;

    fn try_from(segment: v1::TranscriptSegment) -> Result<Self, InvalidField> {
        if segment.from > segment.to {
            return Err(InvalidField::new("from", "is larger than to"));
        }
        Ok(Self {
            blob: parse("blob", &segment.blob)?,
            from: segment.from,
            to: segment.to,
        })
    }
}

impl From<TakenCheckpoint> for v1::CheckpointTaken {
    fn from(taken: TakenCheckpoint) -> Self {
        Self {
            commit: taken.commit.into(),
            parent: taken.parent.into(),
            tree: taken.tree.into(),
            reason: v1::CheckpointReason::from(taken.reason).into(),
            note: taken.note,
            files_changed: taken.files_changed,
            pack: taken.pack.map(Into::into).unwrap_or_default(),
            transcript: taken.transcript.map(Into::into),
            calls: taken.calls,
            told: taken.told,
        }
    }
}

impl TryFrom<v1::CheckpointTaken> for TakenCheckpoint {
    type Error = InvalidField;

    fn try_from(taken: v1::CheckpointTaken) -> Result<Self, InvalidField> {
        let pack = parse_optional("pack", &taken.pack)?;
        if pack.is_none() && taken.commit != taken.parent {
            return Err(InvalidField::new("pack", "is missing"));
        }
        Ok(Self {
            commit: parse("commit", &taken.commit)?,
            parent: parse("parent", &taken.parent)?,
            tree: parse("tree", &taken.tree)?,
            reason: checkpoint_reason("reason", taken.reason)?,
            note: note("note", taken.note)?,
            files_changed: taken.files_changed,
            pack,
            transcript: taken
                .transcript
                .map(TranscriptSegment::try_from)
                .transpose()
                .map_err(|e| e.within("transcript"))?,
            calls: taken.calls,
            told: taken.told,
        })
    }
}

impl From<Resume> for v1::Resume {
    fn from(resume: Resume) -> Self {
        Self {
            commit: resume.commit.into(),
            tree: resume.tree.into(),
            number: resume.number,
            packs: resume.packs.into_iter().map(Into::into).collect(),
            segments: resume.segments.into_iter().map(Into::into).collect(),
            position: resume.position,
            repeated_calls: resume.repeated_calls,
            note: resume.note,
            instruction: resume.instruction,
            instruction_known: resume.instruction_known,
            instruction_anew: resume.instruction_anew,
            footing: v1::Footing::from(resume.worktree).into(),
        }
    }
}

impl From<WorktreeChoice> for v1::Footing {
    fn from(choice: WorktreeChoice) -> Self {
        match choice {
            WorktreeChoice::New => Self::Unspecified,
            WorktreeChoice::Previous => Self::Left,
            WorktreeChoice::PreviousCleaned => Self::LeftComplete,
        }
    }
}

/// An unknown choice becomes a new worktree, which is always possible.
fn worktree(number: i32) -> WorktreeChoice {
    match v1::Footing::try_from(number) {
        Ok(v1::Footing::Unspecified) | Err(_) => WorktreeChoice::New,
        Ok(v1::Footing::Left) => WorktreeChoice::Previous,
        Ok(v1::Footing::LeftComplete) => WorktreeChoice::PreviousCleaned,
    }
}

impl TryFrom<v1::Resume> for Resume {
    type Error = InvalidField;

    fn try_from(resume: v1::Resume) -> Result<Self, InvalidField> {
        let pack = |(i, pack): (usize, &String)| parse(&format!("packs[{i}]"), pack);
        let segment = |(i, segment): (usize, v1::TranscriptSegment)| {
            TranscriptSegment::try_from(segment).map_err(|e| e.within(format_args!("segments[{i}]")))
        };
        let segments: Vec<TranscriptSegment> = resume
            .segments
            .into_iter()
            .enumerate()
            .map(segment)
            .collect::<Result<_, _>>()?;
        let mut end = 0;
        for (i, segment) in segments.iter().enumerate() {
            if segment.from != end {
                return Err(InvalidField::new(format!("segments[{i}].from"), "leaves a gap"));
            }
            end = segment.to;
        }
        if end != resume.position {
            return Err(InvalidField::new("position", "is not the end of the segments"));
        }
        Ok(Self {
            commit: parse("commit", &resume.commit)?,
            tree: parse("tree", &resume.tree)?,
            number: resume.number,
            packs: resume.packs.iter().enumerate().map(pack).collect::<Result<_, _>>()?,
            segments,
            position: resume.position,
            repeated_calls: resume.repeated_calls,
            note: resume.note,
            instruction: resume.instruction,
            instruction_known: resume.instruction_known,
            instruction_anew: resume.instruction_anew,
            worktree: worktree(resume.footing),
        })
    }
}

#[cfg(test)]
mod tests {
    use kage_core::id::{Digest, Oid};

    use super::*;

    fn oid(digit: &str) -> Oid {
        digit.repeat(40).parse().unwrap()
    }

    fn segment(from: u64, to: u64) -> TranscriptSegment {
        TranscriptSegment {
            blob: Digest::of(b"said"),
            from,
            to,
        }
    }

    #[test]
    fn what_is_taken_survives_the_wire() {
        for reason in CheckpointReason::ALL {
            let taken = TakenCheckpoint {
                commit: oid("a"),
                parent: oid("b"),
                tree: oid("c"),
                reason,
                note: "$(rm -rf /)\n".into(),
                files_changed: 3,
                pack: Some(Digest::of(b"pack")),
                transcript: Some(segment(2, 5)),
                calls: Some(6),
                told: 4,
            };
            assert_eq!(
                TakenCheckpoint::try_from(v1::CheckpointTaken::from(taken.clone())),
                Ok(taken)
            );
        }
    }

    #[test]
    fn only_two_reasons_are_asked_for() {
        let asked = |reason: v1::CheckpointReason| asked_reason("reason", reason.into()).ok();
        assert_eq!(
            asked(v1::CheckpointReason::Unspecified),
            Some(CheckpointReason::Requested)
        );
        for reason in CheckpointReason::ALL {
            let may_be = matches!(reason, CheckpointReason::Requested | CheckpointReason::BeforeRestore);
            assert_eq!(asked(reason.into()), may_be.then_some(reason));
        }
        assert!(asked_reason("reason", 99).is_err());
    }

    #[test]
    fn wrong_checkpoints_are_named() {
        let right = v1::CheckpointTaken {
            commit: "a".repeat(40),
            parent: "b".repeat(40),
            tree: "c".repeat(40),
            reason: v1::CheckpointReason::Final.into(),
            pack: Digest::of(b"pack").into(),
            ..Default::default()
        };
        type Change = fn(&mut v1::CheckpointTaken);
        let wrong: [(&str, Change); 6] = [
            ("commit", |taken| taken.commit.truncate(12)),
            ("tree", |taken| taken.tree.clear()),
            ("reason", |taken| taken.reason = 0),
            ("note", |taken| taken.note = "x".repeat(MAX_NOTE + 1)),
            ("pack", |taken| taken.pack.clear()),
            ("transcript.from", |taken| {
                taken.transcript = Some(v1::TranscriptSegment {
                    blob: Digest::of(b"said").into(),
                    from: 2,
                    to: 1,
                });
            }),
        ];
        for (field, change) in wrong {
            let mut taken = right.clone();
            change(&mut taken);
            assert_eq!(TakenCheckpoint::try_from(taken).unwrap_err().field, field);
        }
        assert!(TakenCheckpoint::try_from(right).is_ok());
    }

    #[test]
    fn a_conversation_without_gaps_survives_the_wire() {
        let resume = Resume {
            commit: oid("a"),
            tree: oid("b"),
            number: 4,
            packs: vec![Digest::of(b"one"), Digest::of(b"two")],
            segments: vec![segment(0, 2), segment(2, 7)],
            position: 7,
            repeated_calls: 1,
            note: "older files".into(),
            instruction: "fix it".into(),
            instruction_known: true,
            instruction_anew: "build it, then fix it".into(),
            worktree: WorktreeChoice::PreviousCleaned,
        };
        for worktree in WorktreeChoice::ALL {
            let resume = Resume {
                worktree,
                ..resume.clone()
            };
            assert_eq!(Resume::try_from(v1::Resume::from(resume.clone())), Ok(resume));
        }
        let mut unknown = v1::Resume::from(resume.clone());
        unknown.footing = 99;
        assert_eq!(
            Resume::try_from(unknown).map(|resume| resume.worktree),
            Ok(WorktreeChoice::New)
        );
        let mut gap = v1::Resume::from(resume.clone());
        gap.segments.remove(0);
        assert_eq!(Resume::try_from(gap).unwrap_err().field, "segments[0].from");
        let mut short = v1::Resume::from(resume);
        short.position = 6;
        assert_eq!(Resume::try_from(short).unwrap_err().field, "position");
    }
}
