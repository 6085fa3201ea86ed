//! One world, from its seed to its violations.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kage_proto::v1;
use kage_tests::chaos::end;
use kage_tests::chaos::scripted_agent::ScriptedAgent;
use kage_tests::history::{Final, FinalTask, OUT_OF_ORDER, check};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

use crate::faults::{Cast, Plan};
use crate::hosts::{self, Bell, COORDINATOR};
use crate::world::{World, notice_panics, take_panics};
use crate::{checks, people, trees};

/// The step of simulated time.
const TICK: Duration = Duration::from_millis(20);
/// After so long without faults every task is over.
const CONVERGED: Duration = Duration::from_secs(240);
/// The most violations of one world that are printed.
const TOLD: usize = 10;

/// And each of it so far, in bytes.
const LONGEST: usize = 2000;

/// A defect that is planted, to see whether the checks find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Plant {
    Nothing,
    /// The store's disk sometimes reports success although nothing is stored.
    LyingStore,
    /// The output that agents spooled is changed after they crashed.
    RottenSpool,
    /// The coordinator's disk now and then loses a result that it was to keep.
    LostResult,
    /// Verify now and then runs in the files of the base.
    OtherFiles,
    /// A pack now and then has other files than its commit.
    WrongPack,
}

/// The result of a seed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) wrong: Vec<String>,
    /// The events of the run, in their order.
    pub(crate) trace: Vec<String>,
    pub(crate) figures: Figures,
}

/// Counts over one or many worlds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    simulated: Duration,
    tasks: u64,
    events: u64,
    crashes: u64,
    cuts: u64,
    jumps: u64,
    store_faults: u64,
    repeats: u64,
    checkpoints: u64,
    resumed: u64,
    judged: u64,
    /// Faults that were planted.
    pub(crate) planted: u64,
}

impl Outcome {
    /// The outcome of a world of which nothing else is known.
    pub(crate) fn broken(seed: u64, wrong: String) -> Self {
        Self {
            seed,
            wrong: vec![wrong],
            trace: Vec::new(),
            figures: Figures::default(),
        }
    }
}

impl Figures {
    /// Adds the figures of another world.
    pub(crate) fn add(&mut self, other: &Self) {
        self.simulated += other.simulated;
        self.tasks += other.tasks;
        self.events += other.events;
        self.crashes += other.crashes;
        self.cuts += other.cuts;
        self.jumps += other.jumps;
        self.store_faults += other.store_faults;
        self.repeats += other.repeats;
        self.checkpoints += other.checkpoints;
        self.resumed += other.resumed;
        self.judged += other.judged;
        self.planted += other.planted;
    }

    /// In words, for a run that took so long.
    pub(crate) fn words(&self, spent: Duration) -> String {
        let Self {
            simulated,
            tasks,
            events,
            crashes,
            cuts,
            jumps,
            store_faults,
            repeats,
            checkpoints,
            resumed,
            judged,
            planted: _,
        } = self;
        let ratio = simulated.as_secs_f64() / spent.as_secs_f64();
        format!(
            "{:.0} s simulated ({ratio:.0} times as fast), {tasks} tasks, {events} events; {crashes} crashes, \
             {cuts} cut or held links, {jumps} clock jumps, {store_faults} store errors, {repeats} repeated calls; {checkpoints} checkpoints, \
             {resumed} resumed, {judged} verified",
            simulated.as_secs_f64()
        )
    }
}

/// Prints the log of this process's daemons.
pub(crate) fn speak() {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("KAGE_LOG"))
        .with_writer(std::io::stderr)
        .without_time()
        .finish();
    // Another test may have done it.
    tracing::subscriber::set_global_default(subscriber).ok();
}

pub(crate) fn run(seed: u64, plant: Plant) -> Outcome {
    notice_panics();
    drop(take_panics());
    let world = World::new(seed, plant);
    let mut wrong = Vec::new();
    let (end, simulated) = {
        let mut stage = Stage::set(&world, plant);
        let end = stage.play(&world, &mut wrong);
        (end, stage.sim.elapsed())
    };
    wrong.extend(take_panics().into_iter().map(|panic| format!("panic: {panic}")));
    wrong.extend(world.take_accused());
    let mut trace = world.take_log();
    let history = world.record.history();
    trace.extend(history.entries.iter().map(|entry| format!("{entry:?}")));
    let events = end.tasks.iter().flat_map(|task| &task.events);
    trace.extend(events.map(|event| format!("{event:?}")));
    if wrong.is_empty() {
        let mut found = check(&history, &end);
        if world.jumped.load(Ordering::Relaxed) {
            // What happened later may have an earlier time then.
            found.retain(|violation| !violation.text.ends_with(OUT_OF_ORDER));
        }
        let found = found.into_iter();
        wrong.extend(found.map(|violation| format!("{}: {}", violation.invariant, violation.text)));
        wrong.extend(checks::check(&end, &world.emitted.lock().unwrap()));
        wrong.extend(trees::check(&end, &world.forge.lock().unwrap(), world.whole_steps));
    }
    wrong.truncate(TOLD);
    for text in &mut wrong {
        text.truncate(text.floor_char_boundary(LONGEST));
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counts = &world.counts;
    let figures = Figures {
        simulated,
        tasks: end.tasks.len() as u64,
        events: end.tasks.iter().map(|task| task.events.len() as u64).sum(),
        crashes: count(&counts.crashes),
        cuts: count(&counts.cuts),
        jumps: count(&counts.jumps),
        store_faults: count(&counts.store_faults) + count(&counts.read_faults),
        repeats: count(&counts.repeats),
        checkpoints: count(&counts.checkpoints),
        resumed: count(&counts.resumed),
        judged: count(&counts.judged),
        planted: count(&counts.planted),
    };
    Outcome {
        seed,
        wrong,
        trace,
        figures,
    }
}

/// A world with all its hosts.
struct Stage {
    sim: Sim<'static>,
    cast: Cast,
    plan: Plan,
    /// Cancelled to end the scripted agents.
    home: CancellationToken,
}

impl Stage {
    fn set(world: &Arc<World>, plant: Plant) -> Self {
        let dice = world.dice("cast");
        let mut sim = turmoil::Builder::new()
            .rng_seed(world.seed)
            .epoch(std::time::UNIX_EPOCH)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(60 * 60))
            .max_message_latency(Duration::from_millis(dice.pick(&[5, 50, 200])))
            .enable_random_order()
            .build();
        let store = hosts::store(world, plant);
        let mut cast = Cast {
            daemons: BTreeMap::new(),
            callers: Vec::new(),
            scripted_agents: BTreeMap::new(),
        };
        let (shared, bell) = (Arc::clone(world), Bell::default());
        cast.daemons.insert(COORDINATOR.to_owned(), bell.clone());
        sim.host(COORDINATOR, move || hosts::coordinator(&shared, &store, &bell));
        for n in 1..=1 + dice.below(3) {
            let (name, shared, bell) = (format!("agent-{n}"), Arc::clone(world), Bell::default());
            cast.daemons.insert(name.clone(), bell.clone());
            cast.callers.push(name.clone());
            sim.host(name.clone(), move || hosts::agent(&shared, &name, &bell));
        }
        let home = CancellationToken::new();
        for n in 1..=2 {
            let name = format!("scripted-{n}");
            let (sender, asleep) = watch::channel(false);
            cast.callers.push(name.clone());
            cast.scripted_agents.insert(name.clone(), sender);
            let (record, home, agent) = (world.record.clone(), home.clone(), name.clone());
            sim.client(name, async move {
                ScriptedAgent::new(&agent, hosts::client(), record)
                    .run(asleep, home)
                    .await;
                Ok(())
            });
        }
        for n in 1..=1 + dice.below(3) {
            let name = format!("person-{n}");
            cast.callers.push(name.clone());
            world.busy.fetch_add(1, Ordering::Relaxed);
            sim.client(name.clone(), people::day(Arc::clone(world), name));
        }
        let plan = Plan::draw(world, &cast, plant);
        Self { sim, cast, plan, home }
    }

    /// Runs until all people have seen the end of their tasks, and reads the final state.
    fn play(&mut self, world: &Arc<World>, wrong: &mut Vec<String>) -> Final {
        let limit = self.plan.healed + CONVERGED;
        while world.busy.load(Ordering::Relaxed) > 0 {
            if !self.step(wrong) {
                return Final::default();
            }
            if self.sim.elapsed() > limit {
                wrong.push(format!("tasks go on {CONVERGED:?} after the last fault"));
                return Final::default();
            }
            self.plan.carry_out(&mut self.sim, world, &self.cast);
        }
        self.plan.end(&mut self.sim, world, &self.cast);
        self.home.cancel();
        let read: Arc<Mutex<Option<Vec<FinalTask>>>> = Arc::default();
        let found = Arc::clone(&read);
        self.sim.client("reader", async move {
            let client = hosts::client();
            while client
                .tasks()
                .list_tasks(v1::ListTasksRequest::default())
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            *found.lock().unwrap() = Some(end::tasks(&client).await);
            Ok(())
        });
        loop {
            if let Some(tasks) = read.lock().unwrap().take() {
                return Final {
                    tasks,
                    ..Final::default()
                };
            }
            if !self.step(wrong) {
                return Final::default();
            }
            if self.sim.elapsed() > limit + CONVERGED {
                wrong.push("the end cannot be read".to_owned());
                return Final::default();
            }
        }
    }

    /// False when the world cannot continue.
    fn step(&mut self, wrong: &mut Vec<String>) -> bool {
        match self.sim.step() {
            Ok(_) => true,
            Err(error) => {
                wrong.push(format!("somebody failed: {error}"));
                false
            }
        }
    }
}
