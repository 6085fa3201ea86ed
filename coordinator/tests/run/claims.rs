//! What an agent made of calls says at the end of an attempt: results that it claims, and verdicts.

use std::time::Duration;

use kage_core::event::{AttemptOutcome, DiffStat, EventBody, ResultCommit, Verdict, VerdictKind};
use kage_core::id::{Digest, Oid};

/// A result of which nothing is said but its commit.
pub(crate) fn unsaid(commit: &Oid) -> ResultCommit {
    ResultCommit {
        diff: DiffStat::default(),
        paths: Vec::new(),
        ..said(commit, None)
    }
}

/// What an agent says of a commit: one line of `a.txt`, whatever it is.
pub(crate) fn said(commit: &Oid, tree: Option<Oid>) -> ResultCommit {
    ResultCommit {
        commit: commit.clone(),
        tree,
        diff: DiffStat {
            files: 1,
            added: 1,
            removed: 1,
        },
        paths: vec!["a.txt".into()],
        deleted: Vec::new(),
        large: Vec::new(),
        left_out: Vec::new(),
    }
}

pub(crate) fn claim(result: ResultCommit, pack: Digest) -> Vec<EventBody> {
    vec![
        EventBody::ResultCommitted { result, pack },
        EventBody::Finished(AttemptOutcome::Claimed),
    ]
}

pub(crate) fn passed() -> AttemptOutcome {
    AttemptOutcome::Verdict(Verdict {
        kind: VerdictKind::Passed,
        exit_code: Some(0),
        message: "passed".into(),
        duration: Duration::from_millis(5),
        agent: "fake-1".into(),
        environment: "linux".into(),
        contained: kage_core::contain::Tier::T0,
        machine: None,
        restored: Vec::new(),
        tests: None,
        without_change: None,
        output: String::new(),
    })
}
