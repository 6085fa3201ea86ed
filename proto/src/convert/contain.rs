//! Tiers of containment on the wire: what is demanded must be known here, what is claimed need not be.

use kage_core::contain::{Containment, Tier};

use super::{InvalidField, enumerated};
use crate::v1;

/// The most bytes kept of why an agent has no higher tier.
const LONGEST_REASON: usize = 500;

impl From<Tier> for v1::ContainmentTier {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::T0 => Self::T0,
            Tier::T1 => Self::T1,
            Tier::T2 => Self::T2,
            Tier::T3 => Self::T3,
        }
    }
}

/// The number of a tier where the lowest one is not told: to demand it is to demand nothing.
pub(super) fn above_lowest(tier: Tier) -> i32 {
    match tier {
        Tier::T0 => v1::ContainmentTier::Unspecified.into(),
        Tier::T1 | Tier::T2 | Tier::T3 => v1::ContainmentTier::from(tier).into(),
    }
}

/// A tier that is demanded.
///
/// # Errors
/// When this build does not know it: nobody here could say who has it.
pub(super) fn demanded(field: &str, number: i32) -> Result<Tier, InvalidField> {
    Ok(known(enumerated(field, number)?).unwrap_or_default())
}

/// A tier that somebody says there was. One that this build does not know promises nothing.
#[must_use]
pub fn claimed(number: i32) -> Option<Tier> {
    match v1::ContainmentTier::try_from(number) {
        Ok(tier) => known(tier),
        Err(_) => Some(Tier::T0),
    }
}

const fn known(tier: v1::ContainmentTier) -> Option<Tier> {
    match tier {
        v1::ContainmentTier::Unspecified => None,
        v1::ContainmentTier::T0 => Some(Tier::T0),
        v1::ContainmentTier::T1 => Some(Tier::T1),
        v1::ContainmentTier::T2 => Some(Tier::T2),
        v1::ContainmentTier::T3 => Some(Tier::T3),
    }
}

impl From<Containment> for v1::Containment {
    fn from(containment: Containment) -> Self {
        Self {
            tier: v1::ContainmentTier::from(containment.tier).into(),
            short_of: containment.short_of,
        }
    }
}

impl From<v1::Containment> for Containment {
    fn from(containment: v1::Containment) -> Self {
        let mut short_of = containment.short_of;
        short_of.truncate(short_of.floor_char_boundary(LONGEST_REASON));
        Self {
            tier: claimed(containment.tier).unwrap_or_default(),
            short_of,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_survive_the_wire() {
        for tier in Tier::ALL {
            assert_eq!(demanded("contain", above_lowest(tier)), Ok(tier));
            assert_eq!(claimed(v1::ContainmentTier::from(tier).into()), Some(tier));
            let containment = Containment {
                tier,
                short_of: "no kernel".to_owned(),
            };
            assert_eq!(
                Containment::from(v1::Containment::from(containment.clone())),
                containment
            );
        }
    }

    #[test]
    fn what_is_not_known_is_no_claim_and_no_demand_that_can_be_met() {
        assert_eq!(claimed(99), Some(Tier::T0));
        assert_eq!(claimed(0), None);
        assert_eq!(demanded("contain", 0), Ok(Tier::T0));
        assert_eq!(demanded("contain", 99).unwrap_err().field, "contain");
        assert_eq!(Containment::from(v1::Containment::default()), Containment::NOTHING);
        let long = v1::Containment {
            tier: 0,
            short_of: "ü".repeat(1000),
        };
        assert_eq!(Containment::from(long).short_of.len(), LONGEST_REASON);
    }
}
