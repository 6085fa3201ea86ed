//! How well an agent keeps programs apart from its machine: the tiers of containment, and what an
//! agent proved of them, and what a command's output tells of its box. What a tier is built of is the agent's.

use serde::{Deserialize, Serialize};

use crate::words::words;

mod refused;

pub use refused::{refusal, refused_paths};

words! {
    /// A tier of containment. Each holds what those before it hold.
    #[derive(PartialOrd, Ord, Default)]
    pub enum Tier: "a tier of containment" {
        /// Clean environment, own HOME and TMPDIR, an ended process tree, bounded output, masked keys.
        #[default]
        T0 = "T0",
        /// Programs write to places of their own only, and reach no process outside.
        T1 = "T1",
        /// All namespaces: the machine's state, sockets and homes are hidden, the network has a policy.
        T2 = "T2",
        /// Another kernel.
        T3 = "T3",
    }
}

impl Tier {
    /// True when it is the one that every agent has: to demand it is to demand nothing.
    #[must_use]
    pub const fn is_lowest(&self) -> bool {
        matches!(self, Self::T0)
    }
}

/// What an agent proved when it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Containment {
    /// The tier whose probes all failed to get out.
    pub tier: Tier,
    /// Why it is no higher one, in words for people; empty when it is the highest that was asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub short_of: String,
}

impl Containment {
    /// The containment of an agent that says nothing.
    pub const NOTHING: Self = Self {
        tier: Tier::T0,
        short_of: String::new(),
    };
}

/// In which tiers a session worked and its verify ran, in one sentence for people. `None` when no
/// agent was recorded with it.
#[must_use]
pub fn words(worked: Option<Tier>, checked: Option<Tier>) -> Option<String> {
    Some(match (worked?, checked) {
        (worked, None) => format!("worked in containment {worked}"),
        (worked, Some(checked)) if checked == worked => format!("worked and was checked in containment {worked}"),
        (worked, Some(checked)) => format!("worked in containment {worked}, was checked in {checked}"),
    })
}

/// The one tier in which all of these sessions worked and, where they were checked, were checked. `None`
/// when there is more than one, or when no agent was recorded with any of them.
#[must_use]
pub fn shared(sessions: impl IntoIterator<Item = (Option<Tier>, Option<Tier>)>) -> Option<Tier> {
    let known = sessions
        .into_iter()
        .filter_map(|(worked, checked)| Some([worked?, checked.or(worked)?]));
    let mut tiers = known.flatten();
    let first = tiers.next()?;
    tiers.all(|tier| tier == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_tier_holds_what_a_lower_one_holds() {
        assert!(Tier::ALL.is_sorted());
        assert!("T2".parse::<Tier>().is_ok_and(|tier| tier > Tier::T1));
        assert!("t4".parse::<Tier>().is_err());
        assert_eq!(Containment::default(), Containment::NOTHING);
        assert!(Tier::default().is_lowest() && !Tier::T1.is_lowest());
    }

    #[test]
    fn a_tier_is_shared_when_there_is_no_other_one() {
        use Tier::{T0, T1, T2};
        for (sessions, expected) in [
            (vec![], None),
            (vec![(None, None), (None, Some(T1))], None),
            (vec![(Some(T1), Some(T1)), (Some(T1), None), (None, Some(T2))], Some(T1)),
            (vec![(Some(T0), None)], Some(T0)),
            (vec![(Some(T1), Some(T2))], None),
            (vec![(Some(T1), Some(T1)), (Some(T2), None)], None),
        ] {
            assert_eq!(shared(sessions.clone()), expected, "{sessions:?}");
        }
    }

    #[test]
    fn an_agent_of_an_earlier_version_says_only_its_tier_or_nothing() {
        let stored = serde_json::to_string(&Containment::NOTHING).unwrap();
        assert_eq!(stored, r#"{"tier":"T0"}"#);
        assert_eq!(
            serde_json::from_str::<Containment>(&stored).unwrap(),
            Containment::NOTHING
        );
    }

    #[test]
    fn the_tiers_of_work_and_check_are_told_together() {
        let cases = [
            (None, Some(Tier::T2), None),
            (Some(Tier::T1), None, Some("worked in containment T1")),
            (
                Some(Tier::T2),
                Some(Tier::T2),
                Some("worked and was checked in containment T2"),
            ),
            (
                Some(Tier::T0),
                Some(Tier::T2),
                Some("worked in containment T0, was checked in T2"),
            ),
        ];
        for (worked, checked, told) in cases {
            assert_eq!(words(worked, checked).as_deref(), told, "{worked:?} {checked:?}");
        }
    }
}
