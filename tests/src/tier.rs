//! How much a run of the tests may take: the same programs repeat a fault a few times, as often as
//! CI has time for, or as often as a release needs.

/// One of the tiers of `scripts/test`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// A few minutes on a machine in use.
    Quick,
    /// The tier of CI.
    Default,
    Long,
}

impl Tier {
    /// The tier of `scripts/test`; a lone `cargo test` has the default one.
    #[must_use]
    pub fn now() -> Self {
        match std::env::var("KAGE_TIER").as_deref() {
            Ok("quick") => Self::Quick,
            Err(_) | Ok("default") => Self::Default,
            Ok("long") => Self::Long,
            Ok(other) => panic!("KAGE_TIER={other} is no tier"),
        }
    }

    #[must_use]
    pub fn pick<T>(self, quick: T, default: T, long: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Default => default,
            Self::Long => long,
        }
    }
}
