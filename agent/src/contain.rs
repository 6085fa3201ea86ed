//! The box in which programs of sessions, set-up and verify run. This file owns what callers name:
//! what a person asks for ([`ContainSettings`]), what an agent has ([`Boxes`]), and the box of one
//! attempt ([`Room`]). The folder has how a box is built; [`crate::process`] starts programs in it.
//!
//! ```text
//! T1: warden --> `kage __contain` (Landlock, capabilities, limits; then it becomes the program)
//! T2: warden --> bwrap (namespaces, mounts) --> `kage __contain` (seccomp, Landlock) --> the program
//! ```
//!
//! The rules are data ([`policy`]), made of names alone; carrying them out is thin. What a kernel
//! lacks is never left out silently: the probes decide which tier an agent has ([`probes`]).

pub mod policy;
#[cfg(target_os = "linux")]
mod scene;
#[cfg(target_os = "linux")]
mod toolchains;
#[cfg(target_os = "linux")]
mod cargo;
#[cfg(target_os = "linux")]
mod bubblewrap;
#[cfg(target_os = "linux")]
mod syscalls;
#[cfg(target_os = "linux")]
mod seal;
#[cfg(target_os = "linux")]
mod entry;
#[cfg(target_os = "linux")]
mod attacks;
#[cfg(target_os = "linux")]
mod probes;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kage_core::contain::{Containment, Tier};

pub use policy::{Confinement, DoorWay, Network};

#[cfg(target_os = "linux")]
pub(crate) use entry::{Answer, Launch, Launched, launch};

/// The hidden first argument that makes this executable seal itself and become a program.
pub const CONTAIN_ARGUMENT: &str = "__contain";

/// What is said of a box that could not be built.
pub(crate) const NOT_BUILT: &str = "its box could not be built; its error output says why";

/// Which tier a person asks for. T3 is not this program's to build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum AskedTier {
    /// T1 where its probes all fail here, and T0 elsewhere.
    #[default]
    #[serde(rename = "usual")]
    Usual,
    T0,
    T1,
    T2,
    /// The highest whose probes all fail here.
    #[serde(rename = "best")]
    Best,
}

impl AskedTier {
    /// The tiers to try, the highest first, above T0.
    #[must_use]
    pub const fn candidates(self) -> &'static [Tier] {
        match self {
            Self::T0 => &[],
            Self::Usual | Self::T1 => &[Tier::T1],
            Self::T2 => &[Tier::T2],
            Self::Best => &[Tier::T2, Tier::T1],
        }
    }

    /// The tier below which nothing is to run; `None`: who asked takes what there is.
    #[must_use]
    pub const fn named(self) -> Option<Tier> {
        match self {
            Self::T0 | Self::Usual | Self::Best => None,
            Self::T1 => Some(Tier::T1),
            Self::T2 => Some(Tier::T2),
        }
    }
}

/// What an agent is told about containment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainSettings {
    /// The tier to have.
    pub tier: AskedTier,
    /// Folders to which programs may write in every tier, besides their attempt's own.
    pub write: Vec<PathBuf>,
    /// Files and folders besides the agent's state that no program may read: of the coordinator of this
    /// machine, of tokens, of settings.
    pub hidden: Vec<PathBuf>,
}

/// How the programs of an agent's attempts are contained, as it was proved.
#[derive(Debug, Clone, Default)]
pub struct Boxes {
    proved: Containment,
    /// What no program may see.
    hidden: Vec<PathBuf>,
    /// Where programs may write besides their attempt's own folders.
    shared: Vec<PathBuf>,
    /// The home folder of the agent's user.
    home: Option<PathBuf>,
    bubblewrap: Option<PathBuf>,
    network: Network,
}

/// What an agent knows of its machine when it builds boxes.
#[derive(Debug, Clone)]
pub struct BoxParts<'a> {
    /// Its state folder, with its real path.
    pub state: &'a Path,
    /// Further folders of its own, such as that of all TMPDIRs.
    pub own: &'a [PathBuf],
    pub settings: &'a ContainSettings,
    /// The home folder of the agent's user.
    pub home: Option<PathBuf>,
    /// The executable that becomes a warden and seals boxes.
    pub executable: &'a Path,
}

impl Boxes {
    /// Finds the highest tier that was asked for and whose probes all fail, by trying. Blocks for as long
    /// as a few programs take to start.
    #[must_use]
    pub fn prove(parts: &BoxParts<'_>) -> Self {
        #[cfg(target_os = "linux")]
        {
            probes::prove(parts)
        }
        #[cfg(not(target_os = "linux"))]
        {
            let short_of = match parts.settings.tier.candidates().first() {
                Some(_) => "containment needs Linux".to_owned(),
                None => String::new(),
            };
            Self::none(short_of)
        }
    }

    /// No box, for this reason.
    #[must_use]
    pub fn none(short_of: impl Into<String>) -> Self {
        Self {
            proved: Containment {
                tier: Tier::T0,
                short_of: short_of.into(),
            },
            ..Self::default()
        }
    }

    /// The same, and a further reason why they are of no higher tier.
    #[must_use]
    pub(crate) fn and_short_of(mut self, why: &str) -> Self {
        let rest = std::mem::take(&mut self.proved.short_of);
        self.proved.short_of = match rest.is_empty() {
            true => why.to_owned(),
            false => format!("{why}; {rest}"),
        };
        self
    }

    /// What was proved.
    #[must_use]
    pub const fn proved(&self) -> &Containment {
        &self.proved
    }

    /// Boxes of this tier, for tests of what follows from it.
    #[cfg(test)]
    pub(crate) fn proved_for_tests(proved: Containment) -> Self {
        Self {
            proved,
            ..Self::default()
        }
    }

    /// The box of an attempt: what is its own, and what of the agent's it may read. `None` in T0.
    #[must_use]
    pub fn room(&self, own: Vec<PathBuf>, lent: Vec<PathBuf>) -> Option<Arc<Room>> {
        let write = own.into_iter().chain(self.shared.iter().cloned()).collect();
        (self.proved.tier > Tier::T0).then(|| {
            Arc::new(Room {
                confinement: Confinement {
                    tier: self.proved.tier,
                    network: self.network,
                    door: None,
                    write,
                    read: lent,
                    hidden: self.hidden.clone(),
                    homes: self.home.iter().cloned().collect(),
                    path: Vec::new(),
                    tools: Vec::new(),
                    bubblewrap: self.bubblewrap.clone(),
                },
            })
        })
    }
}

/// The box of one attempt. Programs share it only in what is on the disk: each has namespaces of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    confinement: Confinement,
}

impl Room {
    /// The same box, in which this may be read too.
    #[must_use]
    pub fn lending(&self, path: impl Into<PathBuf>) -> Arc<Self> {
        let mut more = self.clone();
        more.confinement.read.push(path.into());
        Arc::new(more)
    }

    /// The same box, with this of the network. Only T2 keeps anything of it out.
    #[must_use]
    pub fn on(&self, network: Network) -> Arc<Self> {
        let mut other = self.clone();
        other.confinement.network = network;
        Arc::new(other)
    }

    /// The same box without a network, but for this door. T2 only.
    #[must_use]
    pub fn behind(&self, door: DoorWay) -> Arc<Self> {
        let mut other = self.clone();
        other.confinement.network = Network::None;
        other.confinement.door = Some(door);
        Arc::new(other)
    }

    /// The rules of this box, without what follows from a program's environment.
    #[must_use]
    pub const fn confinement(&self) -> &Confinement {
        &self.confinement
    }
}

/// Seals this process and becomes a program if the command line says so, and then never returns.
pub(crate) fn contain_main_if_asked() {
    #[cfg(target_os = "linux")]
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == CONTAIN_ARGUMENT)
    {
        std::process::exit(entry::main());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_asked_for_by_name_and_tried_from_the_top() {
        let asked = |text: &str| serde_json::from_value::<AskedTier>(text.into()).unwrap();
        for (text, tried) in [
            ("best", &[Tier::T2, Tier::T1][..]),
            ("T2", &[Tier::T2]),
            ("T1", &[Tier::T1]),
            ("usual", &[Tier::T1]),
            ("T0", &[]),
        ] {
            assert_eq!(asked(text).candidates(), tried, "{text}");
            let named = text.parse().ok().filter(|tier: &Tier| !tier.is_lowest());
            assert_eq!(asked(text).named(), named, "{text}");
        }
        assert!(serde_json::from_value::<AskedTier>("t9".into()).is_err());
        assert_eq!(AskedTier::default(), AskedTier::Usual);
        assert_eq!(Boxes::none("why").room(Vec::new(), Vec::new()), None);
    }
}
