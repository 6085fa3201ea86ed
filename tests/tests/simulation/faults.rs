//! The faults and their times: drawn from the seed before the world starts, caused between its
//! steps. Every fault is repaired at an appointed time.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use turmoil::Sim;

use crate::hosts::{Bell, COORDINATOR};
use crate::run::Plant;
use crate::world::{Dice, World, count};

/// Maximum of faults in one world, besides those of the store.
const FAULTS: u64 = 14;
/// The longest jump of a clock on which others depend, in milliseconds.
const JUMP: u64 = 20_000;
/// The longest jump of a clock that is only looked at.
const LONG_JUMP: u64 = 3_600_000;

/// Something to do between two steps.
#[derive(Debug, Clone)]
enum Act {
    /// Messages between the coordinator and a host are lost.
    Cut(String),
    /// Messages from one host to the other are lost.
    CutOneWay(String, String),
    /// Messages between the coordinator and a host wait.
    Hold(String),
    /// The link is as it was.
    Mend(String),
    Crash(String),
    /// A daemon is told to end.
    Ring(String),
    /// A daemon is started, and killed before if it runs.
    Start(String),
    /// A clock is off by so many milliseconds from now on.
    Jump(String, i64),
    /// The store begins or ceases to fail.
    Trouble(bool),
    /// A scripted agent sleeps, or wakes.
    Sleep(String, bool),
}

/// The faults of one world.
pub(crate) struct Plan {
    acts: Vec<(Duration, Act)>,
    /// When everything is whole again for good.
    pub(crate) healed: Duration,
    rots: Option<Dice>,
}

/// The hosts that can fail, and how.
pub(crate) struct Cast {
    /// Daemons by name; the coordinator is one.
    pub(crate) daemons: BTreeMap<String, Bell>,
    /// All callers of the coordinator.
    pub(crate) callers: Vec<String>,
    /// Scripted agents by name.
    pub(crate) scripted_agents: BTreeMap<String, watch::Sender<bool>>,
}

impl Plan {
    pub(crate) fn draw(world: &World, cast: &Cast, plant: Plant) -> Self {
        let dice = world.dice("faults");
        let healed = world.healed;
        let mut plan = Self {
            acts: Vec::new(),
            healed,
            rots: (plant == Plant::RottenSpool).then(|| world.dice("rot")),
        };
        let faults = dice.below(FAULTS + 1);
        for _ in 0..faults {
            let begin = dice.millis(500, u64::try_from(healed.as_millis()).unwrap());
            plan.fault(&dice, cast, begin);
        }
        if dice.chance(500) {
            plan.acts.push((Duration::from_secs(1), Act::Trouble(true)));
        }
        plan.heal(cast);
        plan.acts.sort_by_key(|(at, _)| *at);
        // Taken from the end.
        plan.acts.reverse();
        plan
    }

    fn fault(&mut self, dice: &Dice, cast: &Cast, begin: Duration) {
        let one_of = |names: &mut dyn Iterator<Item = &String>| {
            let names: Vec<_> = names.collect();
            names[usize::try_from(dice.below(names.len() as u64)).unwrap()].clone()
        };
        let caller = one_of(&mut cast.callers.iter());
        let daemon = one_of(&mut cast.daemons.keys());
        let end = begin + dice.millis(50, dice.pick(&[500, 3000, 15_000]));
        let (first, last) = match dice.below(100) {
            0..12 => (Act::Cut(caller.clone()), Some(Act::Mend(caller))),
            12..18 => (
                Act::CutOneWay(caller.clone(), COORDINATOR.to_owned()),
                Some(Act::Mend(caller)),
            ),
            18..24 => (
                Act::CutOneWay(COORDINATOR.to_owned(), caller.clone()),
                Some(Act::Mend(caller)),
            ),
            24..40 => (Act::Hold(caller.clone()), Some(Act::Mend(caller))),
            40..62 => (Act::Crash(daemon.clone()), Some(Act::Start(daemon))),
            62..72 => (Act::Ring(daemon.clone()), Some(Act::Start(daemon))),
            72..86 => {
                let most = if daemon == COORDINATOR { JUMP } else { LONG_JUMP };
                let by = i64::try_from(dice.below(2 * most)).unwrap() - i64::try_from(most).unwrap();
                (Act::Jump(daemon, by), None)
            }
            _ => {
                let agent = one_of(&mut cast.scripted_agents.keys());
                (Act::Sleep(agent.clone(), true), Some(Act::Sleep(agent, false)))
            }
        };
        self.acts.push((begin, first));
        self.acts.extend(last.map(|last| (end, last)));
    }

    /// The last things that are done.
    fn heal(&mut self, cast: &Cast) {
        let healed = self.healed;
        self.acts.retain(|(at, _)| *at < healed);
        let mut last = |act| self.acts.push((healed, act));
        last(Act::Trouble(false));
        for caller in &cast.callers {
            last(Act::Mend(caller.clone()));
        }
        for agent in cast.scripted_agents.keys() {
            last(Act::Sleep(agent.clone(), false));
        }
        for daemon in cast.daemons.keys() {
            last(Act::Jump(daemon.clone(), 0));
            last(Act::Start(daemon.clone()));
        }
    }

    /// Causes the faults that are due.
    pub(crate) fn carry_out(&mut self, sim: &mut Sim<'_>, world: &World, cast: &Cast) {
        let elapsed = sim.elapsed();
        while let Some((at, act)) = self.acts.pop_if(|(at, _)| *at <= elapsed) {
            self.act(sim, world, cast, &act, at >= self.healed);
        }
    }

    /// Breaks nothing more, and makes everything whole.
    pub(crate) fn end(&mut self, sim: &mut Sim<'_>, world: &World, cast: &Cast) {
        let mut left = std::mem::take(&mut self.acts);
        left.retain(|(at, _)| *at >= self.healed);
        while let Some((_, act)) = left.pop() {
            self.act(sim, world, cast, &act, true);
        }
    }

    fn act(&self, sim: &mut Sim<'_>, world: &World, cast: &Cast, act: &Act, healing: bool) {
        if !healing {
            world.log_at(sim.elapsed(), format_args!("fault: {act:?}"));
        }
        match act {
            Act::Cut(caller) => {
                count(&world.counts.cuts);
                sim.partition(caller.as_str(), COORDINATOR);
            }
            Act::CutOneWay(from, to) => {
                count(&world.counts.cuts);
                sim.partition_oneway(from.as_str(), to.as_str());
            }
            Act::Hold(caller) => {
                count(&world.counts.cuts);
                sim.hold(caller.as_str(), COORDINATOR);
            }
            Act::Mend(caller) => sim.release(caller.as_str(), COORDINATOR),
            Act::Crash(daemon) => {
                count(&world.counts.crashes);
                sim.crash(daemon.as_str());
                self.rot(world, daemon);
            }
            Act::Ring(daemon) => {
                if let Some(bell) = cast.daemons.get(daemon) {
                    bell.ring();
                }
            }
            Act::Start(daemon) => {
                let ends = cast.daemons.get(daemon).is_some_and(Bell::has_rung);
                // A daemon that runs when everything is repaired continues.
                if !healing || ends || !sim.is_host_running(daemon.as_str()) {
                    sim.bounce(daemon.as_str());
                }
            }
            Act::Jump(daemon, by) => {
                count(&world.counts.jumps);
                world.offset(daemon).store(*by, Ordering::Relaxed);
                if daemon == COORDINATOR && *by != 0 {
                    world.jumped.store(true, Ordering::Relaxed);
                }
            }
            Act::Trouble(trouble) => world.trouble.store(*trouble, Ordering::Relaxed),
            Act::Sleep(agent, asleep) => {
                if let Some(sender) = cast.scripted_agents.get(agent) {
                    sender.send_replace(*asleep);
                }
            }
        }
    }

    /// Where planted: changes a byte in each file that an agent had not delivered.
    fn rot(&self, world: &World, daemon: &str) {
        let Some(dice) = &self.rots else {
            return;
        };
        let attempts = std::fs::read_dir(world.dir(daemon).join("output"))
            .into_iter()
            .flatten();
        let files = attempts.flatten().flat_map(|attempt| std::fs::read_dir(attempt.path()));
        for file in files.flatten().flatten() {
            let mut bytes = std::fs::read(file.path()).unwrap();
            if bytes.is_empty() {
                continue;
            }
            let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
            bytes[at] ^= 1;
            std::fs::write(file.path(), bytes).unwrap();
            count(&world.counts.planted);
        }
    }
}
