//! A session's result, and the verdict of verify on it.

use kage_core::event::{LargeFile, MAX_ODD_FILES, MAX_RESTORED, ResultCommit, Verdict, VerdictKind, WithoutChange};
use kage_core::left_out::{LeftOut, LeftOutReason};
use kage_core::rework::excerpt;
use kage_core::test_counts::{MAX_SUITES, SuiteTally, TestTally};

use super::contain::{above_lowest, claimed};
use super::time::{duration, span};
use super::{InvalidField, enumerated, parse, parse_optional, required, unspecified};
use crate::v1;

impl From<ResultCommit> for v1::ResultCommit {
    fn from(result: ResultCommit) -> Self {
        Self {
            commit: result.commit.into(),
            tree: result.tree.map(Into::into).unwrap_or_default(),
            diff: Some(result.diff.into()),
            paths: result.paths,
            deleted: result.deleted,
            large: result.large.into_iter().map(Into::into).collect(),
            left_out: result.left_out.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::ResultCommit> for ResultCommit {
    type Error = InvalidField;

    fn try_from(result: v1::ResultCommit) -> Result<Self, InvalidField> {
        Ok(Self {
            commit: parse("commit", &result.commit)?,
            tree: parse_optional("tree", &result.tree)?,
            diff: required("diff", result.diff)?.into(),
            paths: result.paths,
            deleted: result.deleted,
            large: result.large.into_iter().take(MAX_ODD_FILES).map(Into::into).collect(),
            left_out: result
                .left_out
                .into_iter()
                .take(MAX_ODD_FILES)
                .map(Into::into)
                .collect(),
        })
    }
}

impl From<LargeFile> for v1::LargeFile {
    fn from(LargeFile { path, bytes }: LargeFile) -> Self {
        Self { path, bytes }
    }
}

impl From<v1::LargeFile> for LargeFile {
    fn from(v1::LargeFile { path, bytes }: v1::LargeFile) -> Self {
        Self { path, bytes }
    }
}

impl From<LeftOut> for v1::LeftOut {
    fn from(left_out: LeftOut) -> Self {
        let mut bytes = 0;
        let reason = match left_out.reason {
            LeftOutReason::Large { size } => {
                bytes = size;
                v1::LeftOutReason::Large
            }
            LeftOutReason::SecretName => v1::LeftOutReason::SecretName,
            LeftOutReason::NestedRepository => v1::LeftOutReason::NestedRepository,
            LeftOutReason::NestedHistory => v1::LeftOutReason::NestedHistory,
            LeftOutReason::Unreadable => v1::LeftOutReason::Unreadable,
            LeftOutReason::Name => v1::LeftOutReason::Name,
            LeftOutReason::LongPath => v1::LeftOutReason::LongPath,
            LeftOutReason::NotAFile => v1::LeftOutReason::NotAFile,
            LeftOutReason::Link => v1::LeftOutReason::Link,
        };
        Self {
            path: left_out.path,
            reason: reason.into(),
            bytes,
        }
    }
}

impl From<v1::LeftOut> for LeftOut {
    /// A reason that this build does not know is that it cannot be read: an agent may be newer.
    fn from(left_out: v1::LeftOut) -> Self {
        let reason = match left_out.reason() {
            v1::LeftOutReason::Large => LeftOutReason::Large { size: left_out.bytes },
            v1::LeftOutReason::SecretName => LeftOutReason::SecretName,
            v1::LeftOutReason::NestedRepository => LeftOutReason::NestedRepository,
            v1::LeftOutReason::NestedHistory => LeftOutReason::NestedHistory,
            v1::LeftOutReason::Name => LeftOutReason::Name,
            v1::LeftOutReason::LongPath => LeftOutReason::LongPath,
            v1::LeftOutReason::NotAFile => LeftOutReason::NotAFile,
            v1::LeftOutReason::Link => LeftOutReason::Link,
            v1::LeftOutReason::Unreadable | v1::LeftOutReason::Unspecified => LeftOutReason::Unreadable,
        };
        Self {
            path: left_out.path,
            reason,
        }
    }
}

impl From<VerdictKind> for v1::VerdictKind {
    fn from(kind: VerdictKind) -> Self {
        match kind {
            VerdictKind::Passed => Self::Passed,
            VerdictKind::Failed => Self::Failed,
            VerdictKind::Errored => Self::Errored,
        }
    }
}

impl From<WithoutChange> for v1::WithoutChange {
    fn from(said: WithoutChange) -> Self {
        match said {
            WithoutChange::Failed => Self::Failed,
            WithoutChange::Passed => Self::Passed,
            WithoutChange::NothingElse => Self::NothingElse,
            WithoutChange::NotRun => Self::NotRun,
        }
    }
}

impl From<Verdict> for v1::Verdict {
    fn from(verdict: Verdict) -> Self {
        Self {
            kind: v1::VerdictKind::from(verdict.kind).into(),
            exit_code: verdict.exit_code,
            message: verdict.message,
            duration: Some(span(verdict.duration)),
            agent: verdict.agent,
            environment: verdict.environment,
            // An agent leaves it at that, and its outbox keeps the form that it had.
            contained: above_lowest(verdict.contained),
            machine: verdict.machine.map(Into::into).unwrap_or_default(),
            restored: verdict.restored,
            tests: verdict.tests.map(Into::into),
            without_change: verdict
                .without_change
                .map_or(0, |said| v1::WithoutChange::from(said).into()),
            output: verdict.output,
        }
    }
}

impl TryFrom<v1::Verdict> for Verdict {
    type Error = InvalidField;

    fn try_from(verdict: v1::Verdict) -> Result<Self, InvalidField> {
        let kind = match enumerated("kind", verdict.kind)? {
            v1::VerdictKind::Unspecified => return Err(unspecified("kind")),
            v1::VerdictKind::Passed => VerdictKind::Passed,
            v1::VerdictKind::Failed => VerdictKind::Failed,
            v1::VerdictKind::Errored => VerdictKind::Errored,
        };
        Ok(Self {
            kind,
            exit_code: verdict.exit_code,
            message: verdict.message,
            duration: duration(verdict.duration.unwrap_or_default()),
            agent: verdict.agent,
            environment: verdict.environment,
            contained: claimed(verdict.contained).unwrap_or_default(),
            machine: parse_optional("machine", &verdict.machine)?,
            restored: verdict.restored.into_iter().take(MAX_RESTORED).collect(),
            tests: verdict.tests.map(Into::into),
            without_change: match enumerated("without_change", verdict.without_change)? {
                v1::WithoutChange::Unspecified => None,
                v1::WithoutChange::Failed => Some(WithoutChange::Failed),
                v1::WithoutChange::Passed => Some(WithoutChange::Passed),
                v1::WithoutChange::NothingElse => Some(WithoutChange::NothingElse),
                v1::WithoutChange::NotRun => Some(WithoutChange::NotRun),
            },
            output: excerpt(&verdict.output),
        })
    }
}

impl From<TestTally> for v1::TestTally {
    fn from(tally: TestTally) -> Self {
        let suites = tally.suites.into_iter().map(|suite| v1::SuiteTally {
            suite: suite.suite,
            passed: suite.passed,
            failed: suite.failed,
            skipped: suite.skipped,
        });
        Self {
            lines: tally.lines,
            suites: suites.collect(),
        }
    }
}

impl From<v1::TestTally> for TestTally {
    /// A suite that this build does not know is a name like every other: an agent may be newer.
    fn from(tally: v1::TestTally) -> Self {
        let suites = tally.suites.into_iter().take(MAX_SUITES).map(|mut suite| {
            suite.suite.truncate(suite.suite.floor_char_boundary(MAX_SUITE_NAME));
            SuiteTally {
                suite: suite.suite,
                passed: suite.passed,
                failed: suite.failed,
                skipped: suite.skipped,
            }
        });
        Self {
            lines: tally.lines,
            suites: suites.collect(),
        }
    }
}

/// The most bytes of the name of a suite.
const MAX_SUITE_NAME: usize = 40;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kage_core::id::Digest;
    use kage_core::rework::MAX_EXCERPT;

    use super::*;

    #[test]
    fn verdicts_survive_the_wire() {
        for (kind, exit_code) in [
            (VerdictKind::Passed, Some(0)),
            (VerdictKind::Failed, Some(101)),
            (VerdictKind::Errored, None),
        ] {
            let verdict = Verdict {
                kind,
                exit_code,
                message: "m".into(),
                duration: Duration::from_millis(77),
                agent: "a".into(),
                environment: "linux x86_64".into(),
                contained: kage_core::contain::Tier::T1,
                machine: exit_code.map(|_| Digest::of(b"machine")),
                restored: vec!["test.sh".into()],
                tests: exit_code.map(|_| TestTally {
                    lines: 7,
                    suites: vec![SuiteTally {
                        suite: "pytest".into(),
                        passed: 42,
                        failed: 2,
                        skipped: 1,
                    }],
                }),
                without_change: exit_code.map(|_| WithoutChange::NothingElse),
                output: "it wrote\n\tthis".into(),
            };
            assert_eq!(Verdict::try_from(v1::Verdict::from(verdict.clone())), Ok(verdict));
        }
        let many = v1::Verdict {
            kind: v1::VerdictKind::Passed.into(),
            restored: vec!["a".into(); MAX_RESTORED + 1],
            tests: Some(v1::TestTally {
                lines: u64::MAX,
                suites: vec![
                    v1::SuiteTally {
                        suite: "ü".repeat(99),
                        ..Default::default()
                    };
                    99
                ],
            }),
            output: "\u{1b}[31m".to_owned() + &"x".repeat(1 << 20),
            ..Default::default()
        };
        let many = Verdict::try_from(many).unwrap();
        assert_eq!(many.restored.len(), MAX_RESTORED);
        let suites = many.tests.unwrap().suites;
        assert_eq!((suites.len(), suites[0].suite.len()), (MAX_SUITES, MAX_SUITE_NAME));
        assert!(many.output.len() <= MAX_EXCERPT && many.output.starts_with('x'));
        assert_eq!(
            Verdict::try_from(v1::Verdict::default()).map_err(|e| e.field),
            Err("kind".to_owned())
        );
    }
}
