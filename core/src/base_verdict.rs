//! Verdicts on bases that are kept for later tasks: what of a check must be the same, how long a
//! verdict holds, and which one a new task takes instead of running verify again. Whether the agent
//! that gave it is still trusted is for the caller to say.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::{Verdict, VerdictKind};
use crate::folder::Folder;
use crate::id::{AgentId, Digest, Oid, ProjectId};
use crate::task::{Task, VerifyPolicy};
use crate::time::Timestamp;

/// How long a verdict that passed is good for other tasks.
pub const PASSED_HOLDS: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a verdict that failed is: shorter, because what made it fail may have been the moment.
pub const FAILED_HOLDS: Duration = Duration::from_secs(60 * 60);

/// Everything that a task says about a check of its base, as a digest. The machine is not part of
/// it; see [`KeptVerdict::machine`]. Verdicts of tasks with an environment of their own are not kept:
/// nobody compares the values that are handed on to them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BaseKey(Digest);

impl BaseKey {
    /// The key of a check of this commit in a repository with these names and submodules: commands
    /// such as `git describe` read them.
    #[must_use]
    pub fn of(project: &ProjectId, base: &Oid, names: Option<&Oid>, policy: &VerifyPolicy) -> Self {
        // Named one by one, so that a new part of the policy has to be looked at here.
        let VerifyPolicy {
            setup,
            setup_folder,
            verify,
            verify_folder,
            protect,
            leave_named,
            // It says nothing about the base.
            check_verify: _,
            timeout,
        } = policy;
        let mut bytes = Vec::new();
        let mut part = |text: &[u8]| {
            bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
            bytes.extend_from_slice(text);
        };
        part(project.as_str().as_bytes());
        part(base.as_str().as_bytes());
        // No other part here is as long; without names it is the key of earlier versions.
        if let Some(names) = names {
            part(names.as_str().as_bytes());
        }
        for command in [setup, verify] {
            part(&[u8::from(command.is_some())]);
            part(command.as_deref().unwrap_or_default().as_bytes());
        }
        for folder in [setup_folder, verify_folder] {
            part(folder.as_ref().map_or("", Folder::as_str).as_bytes());
        }
        part(&[u8::from(*leave_named)]);
        part(&timeout.as_nanos().to_be_bytes());
        for pattern in protect {
            part(pattern.as_bytes());
        }
        Self(Digest::of(&bytes))
    }

    /// It as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// A verdict on a base that later tasks may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptVerdict {
    /// What was checked, and how.
    pub key: BaseKey,
    /// The machine that it was found on: the environment of its commands and its programs, as
    /// [`Verdict::machine`] has them.
    pub machine: Digest,
    /// The agent that found it.
    pub agent: AgentId,
    /// When it was stored.
    pub decided_at: Timestamp,
    /// The verdict.
    pub verdict: Verdict,
}

impl KeptVerdict {
    /// What is kept of a verdict; `None` when nothing is: it decided nothing, or its machine is not
    /// known.
    #[must_use]
    pub fn of(key: BaseKey, agent: AgentId, verdict: &Verdict, now: Timestamp) -> Option<Self> {
        holds_for(verdict.kind)?;
        Some(Self {
            key,
            machine: verdict.machine.clone()?,
            agent,
            decided_at: now,
            verdict: verdict.clone().without_output(),
        })
    }

    /// Makes it the verdict on a new task's base.
    pub fn take(&self, task: &mut Task) {
        task.baseline = Some(self.verdict.clone());
        task.baseline_kept_since = Some(self.decided_at);
    }

    /// True as long as other tasks may take it.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        holds_for(self.verdict.kind).is_some_and(|time| now < self.decided_at + time)
    }
}

/// How long a verdict is good for other tasks; `None`: for none of them.
const fn holds_for(kind: VerdictKind) -> Option<Duration> {
    match kind {
        VerdictKind::Passed => Some(PASSED_HOLDS),
        VerdictKind::Failed => Some(FAILED_HOLDS),
        VerdictKind::Errored => None,
    }
}

/// What was decided before this time is good for no task any more.
#[must_use]
pub fn useless_before(now: Timestamp) -> Timestamp {
    let longest = PASSED_HOLDS.max(FAILED_HOLDS);
    let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    Timestamp::from_millis(now.as_millis().saturating_sub(millis))
}

/// The verdict that a new task takes: the newest one that still holds and was found on a machine
/// which the check could be offered to now. `kept` are those of the task's key. `None`: verify
/// runs.
#[must_use]
pub fn usable(kept: impl IntoIterator<Item = KeptVerdict>, machines: &[Digest], now: Timestamp) -> Option<KeptVerdict> {
    let good = kept
        .into_iter()
        .filter(|kept| kept.holds(now) && machines.contains(&kept.machine));
    // Of two that were stored at once, always the same one.
    good.max_by(|a, b| (a.decided_at, &a.machine).cmp(&(b.decided_at, &b.machine)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

    fn machine(n: u8) -> Digest {
        Digest::of(&[n])
    }

    fn policy() -> VerifyPolicy {
        VerifyPolicy {
            setup: Some("make deps".to_owned()),
            verify: Some("make test".to_owned()),
            protect: vec!["tests/**".to_owned()],
            ..VerifyPolicy::default()
        }
    }

    fn oid(digit: &str) -> Oid {
        digit.repeat(40).parse().unwrap()
    }

    fn base() -> Oid {
        oid("b")
    }

    fn key() -> BaseKey {
        BaseKey::of(&ProjectId::default(), &base(), None, &policy())
    }

    fn verdict(kind: VerdictKind) -> Verdict {
        Verdict {
            kind,
            machine: Some(machine(1)),
            output: "what it wrote".to_owned(),
            ..Verdict::errored("it ran".to_owned())
        }
    }

    /// A verdict of this machine, so long ago.
    fn kept(kind: VerdictKind, on: u8, ago: Duration) -> KeptVerdict {
        let millis = NOW.as_millis() - u64::try_from(ago.as_millis()).unwrap();
        KeptVerdict {
            key: key(),
            machine: machine(on),
            agent: AgentId::from_random(1),
            decided_at: Timestamp::from_millis(millis),
            verdict: verdict(kind),
        }
    }

    #[test]
    fn every_part_of_a_check_is_in_its_key() {
        let of = |change: &dyn Fn(&mut VerifyPolicy)| {
            let mut policy = policy();
            change(&mut policy);
            BaseKey::of(&ProjectId::default(), &base(), None, &policy)
        };
        let others = [
            BaseKey::of(&"other".parse().unwrap(), &base(), None, &policy()),
            BaseKey::of(&ProjectId::default(), &oid("c"), None, &policy()),
            BaseKey::of(&ProjectId::default(), &base(), Some(&oid("c")), &policy()),
            BaseKey::of(&ProjectId::default(), &base(), Some(&oid("d")), &policy()),
            of(&|policy| policy.setup = None),
            of(&|policy| policy.setup = Some(String::new())),
            of(&|policy| policy.setup = Some("make dep".to_owned())),
            of(&|policy| policy.verify = Some("make tests".to_owned())),
            of(&|policy| (policy.setup, policy.verify) = (policy.verify.clone(), policy.setup.clone())),
            of(&|policy| policy.protect.clear()),
            of(&|policy| policy.protect.push("ci/**".to_owned())),
            of(&|policy| policy.protect = vec!["tests/".to_owned(), "**".to_owned()]),
            of(&|policy| policy.leave_named = true),
            of(&|policy| policy.setup_folder = Some("web".parse().unwrap())),
            of(&|policy| policy.verify_folder = Some("web".parse().unwrap())),
            of(&|policy| policy.timeout += Duration::from_millis(1)),
        ];
        assert_eq!(of(&|_| {}), key());
        for (n, other) in others.iter().enumerate() {
            assert_ne!(*other, key(), "{n}");
            assert!(!others[..n].contains(other), "{n}");
        }
    }

    #[test]
    fn a_decision_of_a_known_machine_is_kept_and_nothing_else() {
        let of = |verdict: &Verdict| KeptVerdict::of(key(), AgentId::from_random(1), verdict, NOW);
        for kind in [VerdictKind::Passed, VerdictKind::Failed] {
            let found = of(&verdict(kind)).unwrap();
            assert_eq!((found.machine, found.decided_at), (machine(1), NOW));
            assert_eq!(found.verdict, verdict(kind).without_output());
            let unknown = Verdict {
                machine: None,
                ..verdict(kind)
            };
            assert_eq!(of(&unknown), None);
        }
        assert_eq!(of(&verdict(VerdictKind::Errored)), None);
    }

    #[test]
    fn the_newest_that_holds_on_a_machine_that_is_here_is_taken() {
        use VerdictKind::{Errored, Failed, Passed};
        let secs = Duration::from_secs;
        let instant = Duration::from_millis(1);
        // What is kept: decision, machine and age; the machines that are here; which one is taken.
        type Case<'a> = (&'a [(VerdictKind, u8, Duration)], &'a [u8], Option<usize>);
        let cases: [Case<'_>; 12] = [
            (&[], &[1], None),
            (&[(Passed, 1, secs(0))], &[1], Some(0)),
            (&[(Passed, 1, secs(0))], &[], None),
            (&[(Passed, 1, secs(0))], &[2, 3], None),
            (&[(Passed, 1, PASSED_HOLDS - instant)], &[2, 1], Some(0)),
            (&[(Passed, 1, PASSED_HOLDS)], &[1], None),
            (&[(Failed, 1, FAILED_HOLDS - instant)], &[1], Some(0)),
            (&[(Failed, 1, FAILED_HOLDS)], &[1], None),
            (&[(Errored, 1, secs(0))], &[1], None),
            (&[(Passed, 1, secs(9)), (Failed, 2, secs(5))], &[1, 2], Some(1)),
            (&[(Passed, 1, secs(9)), (Failed, 2, secs(5))], &[1], Some(0)),
            (&[(Passed, 1, secs(5000)), (Failed, 2, secs(4000))], &[1, 2], Some(0)),
        ];
        for (all, here, expected) in cases {
            let all: Vec<_> = all.iter().map(|(kind, on, ago)| kept(*kind, *on, *ago)).collect();
            let here: Vec<_> = here.iter().copied().map(machine).collect();
            let taken = usable(all.clone(), &here, NOW);
            assert_eq!(taken, expected.map(|n| all[n].clone()), "{all:?} {here:?}");
        }
    }

    #[test]
    fn what_is_swept_was_good_for_nothing() {
        let oldest = useless_before(NOW);
        for kind in [VerdictKind::Passed, VerdictKind::Failed] {
            let mut kept = kept(kind, 1, Duration::ZERO);
            kept.decided_at = Timestamp::from_millis(oldest.as_millis() - 1);
            assert!(!kept.holds(NOW), "{kind:?}");
        }
        assert_eq!(useless_before(Timestamp::from_millis(5)), Timestamp::from_millis(0));
    }

    #[test]
    fn the_stored_form_stays() {
        let kept = kept(VerdictKind::Passed, 1, Duration::ZERO);
        let stored = serde_json::to_value(&kept).unwrap();
        let names: Vec<_> = stored.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["agent", "decided_at", "key", "machine", "verdict"]);
        assert_eq!(stored["key"], key().as_str());
        assert_eq!(stored["machine"], machine(1).as_str());
        assert_eq!(stored["decided_at"], NOW.as_millis());
        assert_eq!(stored["verdict"]["machine"], machine(1).as_str());
        assert_eq!(serde_json::from_value::<KeptVerdict>(stored).unwrap(), kept);
    }
}
