//! Seals this process, for good and for all that it becomes: Landlock, capabilities, limits, filters of
//! system calls. It carries out what [`super::policy`] and [`super::syscalls`] say, and fails where the
//! kernel lacks something of it: half a seal is none.

use std::io;

use kage_core::contain::Tier;
use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::policy::{Allowed, Confinement, Scene, rules};
use super::syscalls;

/// The version of Landlock that a seal needs: the first that keeps signals and abstract sockets in.
const NEEDED: ABI = ABI::V6;

/// What root keeps in T1: what builds and package managers do with files and users of their own.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// How many processes and threads a box of T2 has at most. Its user namespace counts its own alone, so no
/// neighbour is short of any. It does not bind boxes of root, which the kernel lets have as many as it likes.
const PROCESSES: u64 = 4096;

/// Why a process could not be sealed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    /// A rule cannot be made.
    #[error("Landlock cannot be used: {0}; it needs Linux 6.12 or newer, with Landlock switched on")]
    Landlock(String),
    #[error("system calls cannot be filtered: {0}")]
    Filter(String),
    #[error("{what}")]
    System {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Seals the calling thread, which has to be the only one.
pub(super) fn seal(confinement: &Confinement, scene: &Scene) -> Result<(), SealError> {
    let system = |what| {
        move |source: rustix::io::Errno| SealError::System {
            what,
            source: source.into(),
        }
    };
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).map_err(system("memory dumps cannot be switched off"))?;
    rustix::thread::set_no_new_privs(true).map_err(system("new privileges cannot be refused"))?;
    if geteuid().is_root() {
        drop_capabilities(confinement.tier).map_err(system("capabilities cannot be given up"))?;
    }
    restrict(confinement, scene)?;
    if confinement.tier >= Tier::T2 {
        limit_processes().map_err(system("the number of processes cannot be limited"))?;
        for filter in syscalls::filters().map_err(SealError::Filter)? {
            seccompiler::apply_filter(&filter).map_err(|error| SealError::Filter(error.to_string()))?;
        }
    }
    Ok(())
}

/// Lowers the limit, where it is not lower already.
fn limit_processes() -> rustix::io::Result<()> {
    let now = getrlimit(Resource::Nproc);
    let lower = |limit: Option<u64>| Some(limit.map_or(PROCESSES, |limit| limit.min(PROCESSES)));
    setrlimit(
        Resource::Nproc,
        Rlimit {
            current: lower(now.current),
            maximum: lower(now.maximum),
        },
    )
}

/// Leaves root the capabilities of an owner of files. In T2 bubblewrap has taken all.
fn drop_capabilities(tier: Tier) -> rustix::io::Result<()> {
    let kept = match tier {
        Tier::T0 | Tier::T1 => KEPT,
        Tier::T2 | Tier::T3 => CapabilitySet::empty(),
    };
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // The kernel does not know the numbers above its last one.
        if !kept.contains(one) && rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // Without the right to give up there is nothing to give up: a user namespace took all.
                Ok(()) | Err(rustix::io::Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let now = rustix::thread::capabilities(None)?;
    let kept = now.permitted & kept;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Applies the rules for files, signals and abstract sockets.
fn restrict(confinement: &Confinement, scene: &Scene) -> Result<(), SealError> {
    let failed = |error: &dyn std::fmt::Display| SealError::Landlock(error.to_string());
    // Names of files are no secret here: a rule for reading a folder's entries would hold for all beneath.
    let handled = AccessFs::from_all(NEEDED) & !AccessFs::ReadDir;
    let rulesets = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(handled)
        .and_then(|rules| rules.scope(Scope::from_all(NEEDED)))
        .and_then(Ruleset::create);
    let mut ruleset = rulesets.map_err(|error| failed(&error))?;
    for (path, allowed) in rules(confinement, scene) {
        // What is not there cannot be reached, and what is made in its place later has no rule.
        let Ok(beneath) = PathFd::new(&path) else {
            continue;
        };
        let Ok(found) = std::fs::metadata(&path) else {
            continue;
        };
        let mut access = access(allowed, handled);
        if !found.is_dir() {
            access &= AccessFs::from_file(NEEDED);
        }
        let rule = PathBeneath::new(beneath, access);
        ruleset = ruleset.add_rule(rule).map_err(|error| failed(&error))?;
    }
    let status = ruleset.restrict_self().map_err(|error| failed(&error))?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::NotEnforced => {
            Err(SealError::Landlock("the kernel enforces only a part".to_owned()))
        }
    }
}

fn access(allowed: Allowed, handled: BitFlags<AccessFs>) -> BitFlags<AccessFs> {
    let read = AccessFs::Execute | AccessFs::ReadFile;
    match allowed {
        Allowed::Read => read,
        // Nobody needs a device of one's own making.
        Allowed::Write => handled & !(AccessFs::MakeChar | AccessFs::MakeBlock),
        Allowed::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
    }
}
