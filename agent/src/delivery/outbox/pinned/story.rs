//! What the outboxes of all forms hold: every kind of event and of end, in three attempts of which
//! the coordinator has acknowledged the beginning of one. It is told the same way by every version.

use std::time::Duration;

use kage_core::checkpoint::{CheckpointReason, TakenCheckpoint, TranscriptSegment};
use kage_core::event::{
    AttemptOutcome, ChangeKind, DiffStat, EventBody, FileChange, OutputStream, Phase, ResultCommit, Verdict,
    VerdictKind,
};
use kage_core::failure::{Failure, FailureKind};
use kage_core::id::{AttemptId, AttemptToken, Digest, Oid};
use kage_core::time::Timestamp;
use kage_core::usage::{PicoUsd, Usage};
use kage_proto::convert::agent::AttemptKey;

pub(super) fn key(n: u128) -> AttemptKey {
    AttemptKey {
        attempt: AttemptId::from_random(n),
        token: AttemptToken::from_random(n),
    }
}

/// When an event happened: a time with milliseconds.
pub(super) fn at(seq: u64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_123 + seq)
}

/// The last event of attempt 3 that the coordinator acknowledged.
pub(super) const ACKNOWLEDGED: u64 = 1;
/// How much of its output it acknowledged.
pub(super) const ACKNOWLEDGED_OUTPUT: u64 = 5;

fn commit(digit: char) -> Oid {
    std::iter::repeat_n(digit, 40).collect::<String>().parse().unwrap()
}

fn limited() -> Failure {
    Failure {
        retry_after: Some(Duration::from_millis(90_500)),
        ..Failure::new(FailureKind::QuotaExhausted, "come back later")
    }
}

/// The events of each attempt.
pub(super) fn events() -> [(AttemptKey, Vec<EventBody>); 3] {
    let result = ResultCommit {
        commit: commit('c'),
        tree: Some(commit('d')),
        diff: DiffStat {
            files: 2,
            added: 3,
            removed: 4,
        },
        paths: vec!["gone".to_owned(), "src/main.rs".to_owned()],
        deleted: vec!["gone".to_owned()],
        large: Vec::new(),
        left_out: Vec::new(),
    };
    let taken = TakenCheckpoint {
        commit: commit('b'),
        parent: commit('a'),
        tree: commit('d'),
        reason: CheckpointReason::Requested,
        note: "before lunch".to_owned(),
        files_changed: 1,
        pack: Some(Digest::of(b"pack")),
        transcript: Some(TranscriptSegment {
            blob: Digest::of(b"transcript"),
            from: 3,
            to: 9,
        }),
        calls: Some(7),
        told: 0,
    };
    let change = FileChange {
        path: "src/main.rs".to_owned(),
        kind: ChangeKind::Modified,
        added: 3,
        removed: 1,
    };
    let usage = Usage {
        input: 1,
        cache_write_5m: 2,
        cache_write_1h: 3,
        cache_read: 4,
        output: 6,
        reasoning: 5,
        ..Usage::default()
    };
    let session = vec![
        EventBody::PhaseChanged(Phase::Preparing),
        EventBody::Resumed {
            commit: commit('a'),
            position: 3,
            repeated_calls: 2,
        },
        EventBody::Activity("reads the code".to_owned()),
        EventBody::UsageRecorded {
            model: "a-model".to_owned(),
            usage,
            reported: Some(PicoUsd(1234)),
            metered: true,
            tools: None,
            call: None,
        },
        EventBody::CallRetried {
            failure: limited(),
            delay: Duration::from_millis(1500),
            attempt: 2,
        },
        EventBody::FilesChanged(vec![change]),
        EventBody::OutputTruncated {
            stream: OutputStream::Stderr,
            at: 4096,
        },
        EventBody::Warning("a file is odd".to_owned()),
        EventBody::CheckpointTaken(taken),
        EventBody::ResultCommitted {
            result,
            pack: Digest::of(b"result"),
        },
        EventBody::Finished(AttemptOutcome::Claimed),
    ];
    let verify = vec![EventBody::Finished(AttemptOutcome::Verdict(Verdict {
        kind: VerdictKind::Failed,
        exit_code: Some(2),
        message: "verify failed".to_owned(),
        duration: Duration::from_millis(61_250),
        agent: "a-machine".to_owned(),
        environment: "linux x86_64".to_owned(),
        contained: kage_core::contain::Tier::T0,
        machine: None,
        restored: vec!["test.sh".to_owned()],
        tests: None,
        without_change: None,
        output: "1 of 2".to_owned(),
    }))];
    let failed = vec![
        EventBody::PhaseChanged(Phase::Working),
        EventBody::Finished(AttemptOutcome::Failed(limited())),
    ];
    [(key(1), session), (key(2), verify), (key(3), failed)]
}
