//! The daemons as hosts of the simulated network: each is the `run` function of its crate, with
//! simulated ports, and starts again after a crash with the files that it left.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_agent::Registry;
use kage_agent::process::Runner;
use kage_coordinator::Timings;
use kage_coordinator::ports::Listener;
use kage_coordinator::store::{Fault, Store, Visit};
use kage_core::access::Capabilities;
use kage_proto::client::{Client, Credentials, Dial, Wire};
use tokio_util::sync::CancellationToken;
use turmoil::net::{TcpListener, TcpStream};

use crate::adapter::{SCRIPTED, Scripted};
use crate::commands::play;
use crate::forge::REPOSITORY;
use crate::ground::{SimulatedGround, SimulatedObjects};
use crate::run::Plant;
use crate::world::{Dice, World, count};

/// The coordinator's name in the network.
pub(crate) const COORDINATOR: &str = "coordinator";
pub(crate) const PORT: u16 = 7443;
/// Everybody's who is not an agent made of calls; agents of the owner show it as well.
const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// The wait of whoever starts daemons again that could not start.
const AGAIN: Duration = Duration::from_millis(500);

/// This coordinator's waits: short, so that a world sees their ends.
const TIMINGS: Timings = Timings {
    heartbeat: Duration::from_millis(1000),
    lease_ttl: Duration::from_secs(12),
    lost_after: Duration::from_secs(4),
    grace: Duration::from_secs(1),
    offer: Duration::from_secs(2),
    refusal: Duration::from_secs(4),
    max_detached: Duration::from_secs(20),
    agent_certificate: Duration::from_secs(24 * 60 * 60),
    drain: Duration::from_secs(1),
};

/// Tells a daemon to end, whichever of its starts runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bell(Arc<Mutex<CancellationToken>>);

impl Bell {
    pub(crate) fn ring(&self) {
        self.0.lock().unwrap().cancel();
    }

    /// True when the last start was told to end.
    pub(crate) fn has_rung(&self) -> bool {
        self.0.lock().unwrap().is_cancelled()
    }

    /// The token of the next start.
    fn hung_up(&self) -> CancellationToken {
        let mut token = self.0.lock().unwrap();
        *token = CancellationToken::new();
        token.clone()
    }
}

/// A connection to the coordinator by way of the simulated network.
pub(crate) fn dial() -> Dial {
    Dial::With(Arc::new(|_| {
        async {
            let stream = TcpStream::connect((COORDINATOR, PORT)).await?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        }
        .boxed()
    }))
}

/// An address that only this machine reaches, as far as daemons know.
fn url() -> String {
    format!("http://127.0.0.1:{PORT}")
}

/// A client that connects when it must.
pub(crate) fn client() -> Client {
    Client::connect_lazy_by(&dial(), &url(), &Credentials::bearer(TOKEN)).expect("address and token are good")
}

struct Door(TcpListener);

impl Listener for Door {
    fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Box<dyn Wire>, IpAddr)>> {
        let accepting = async {
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(stream) as Box<dyn Wire>, from.ip()))
        };
        accepting.boxed()
    }
}

/// How long a disk takes: mostly nothing to speak of.
pub(crate) fn disk(dice: &Dice) -> Duration {
    match dice.below(100) {
        0..70 => dice.millis(0, 1),
        70..97 => dice.millis(1, 15),
        _ => dice.millis(15, 300),
    }
}

/// The store, which survives the coordinator as a database does.
pub(crate) fn store(world: &Arc<World>, plant: Plant) -> Store {
    let dice = world.dice("store");
    let world = Arc::clone(world);
    Store::in_memory_on(Arc::new(move |command| {
        let trouble = world.trouble.load(Ordering::Relaxed);
        let lies =
            plant == Plant::LyingStore && command.is_some_and(|name| name.ends_with("AppendEvents")) && dice.chance(20);
        let fault = if lies {
            count(&world.counts.planted);
            Some(Fault::Lied)
        } else if trouble && dice.chance(15) {
            count(match command {
                Some(_) => &world.counts.store_faults,
                None => &world.counts.read_faults,
            });
            Some(dice.pick(&[Fault::Refused, Fault::Unstored, Fault::Unanswered]))
        } else {
            None
        };
        if let (Some(fault), Some(command)) = (fault, command) {
            let name = command.rsplit("::").next().unwrap_or(command);
            world.log(format_args!("store: {fault:?} {name}"));
        }
        Visit {
            before: disk(&dice),
            fault,
            after: disk(&dice),
        }
    }))
}

/// The coordinator until it ends; it is started again when it cannot start.
pub(crate) fn coordinator(
    world: &Arc<World>,
    store: &Store,
    bell: &Bell,
) -> impl Future<Output = turmoil::Result> + use<> {
    let (world, store, shutdown) = (Arc::clone(world), store.clone(), bell.hung_up());
    let dice = fresh_dice(&world, COORDINATOR);
    async move {
        let dir = world.dir(COORDINATOR);
        own_token(&dir)?;
        loop {
            world.log("coordinator starts");
            let mut config = kage_coordinator::Config::new(&dir);
            config.listen = SocketAddr::from(([127, 0, 0, 1], PORT));
            config.timings = TIMINGS;
            config.token_agents = Capabilities::ALL;
            let (ids, waits) = (dice.clone(), dice.clone());
            let objects = SimulatedObjects {
                world: Arc::clone(&world),
                dice: dice.clone(),
            };
            let ports = kage_coordinator::Ports {
                clock: world.clock(COORDINATOR),
                random: Arc::new(move || ids.bits()),
                listen: Arc::new(|_| {
                    async {
                        let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
                        Ok(Box::new(Door(listener)) as Box<dyn Listener>)
                    }
                    .boxed()
                }),
                store: Some(store.clone()),
                objects: Some(Arc::new(objects)),
                blocking: kage_coordinator::Blocking::InPlace(Arc::new(move || disk(&waits))),
                ..kage_coordinator::Ports::system()
            };
            match kage_coordinator::run(config, ports, shutdown.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => world.log(format_args!("coordinator: {error}")),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// The randomness of one start: different from earlier starts, or ids would repeat.
fn fresh_dice(world: &World, host: &str) -> Dice {
    let start = world.counts.starts.fetch_add(1, Ordering::Relaxed);
    world.dice(&format!("{host}, start {start}"))
}

/// The owner's token as a coordinator finds it.
fn own_token(dir: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;

    std::fs::create_dir_all(dir)?;
    let file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(dir.join("token"))?;
    io::Write::write_all(&mut &file, TOKEN.as_bytes())
}

/// What an agent can do, and how much at a time.
pub(crate) struct Crew {
    pub(crate) slots: u32,
    pub(crate) adapters: Registry,
}

/// An agent with the scripted adapter.
pub(crate) fn agent(world: &Arc<World>, name: &str, bell: &Bell) -> impl Future<Output = turmoil::Result> + use<> {
    let scripted = Arc::new(Scripted(Arc::clone(world)));
    let crew = Crew {
        slots: 2,
        adapters: Registry::from([(SCRIPTED.parse().expect("it is a name"), scripted as _)]),
    };
    agent_with(world, name, bell, crew)
}

/// An agent until it ends; it is started again when it cannot start.
pub(crate) fn agent_with(
    world: &Arc<World>,
    name: &str,
    bell: &Bell,
    crew: Crew,
) -> impl Future<Output = turmoil::Result> + use<> {
    let (world, name, shutdown) = (Arc::clone(world), name.to_owned(), bell.hung_up());
    let dice = fresh_dice(&world, &name);
    async move {
        loop {
            world.log(format_args!("{name} starts"));
            let labels = [("ground".to_owned(), REPOSITORY.to_owned())].into();
            let config = kage_agent::Config {
                caches: kage_core::caches::CacheSettings::default(),
                contain: kage_agent::contain::ContainSettings {
                    tier: kage_agent::contain::AskedTier::T0,
                    ..Default::default()
                },
                contained: kage_core::contain::Containment::NOTHING,
                network: Default::default(),
                state_dir: world.dir(&name),
                coordinator_url: url(),
                credentials: Credentials::bearer(TOKEN),
                name: name.clone(),
                slots: crew.slots,
                labels,
                limits: kage_agent::Limits {
                    drain: Duration::from_secs(2),
                    stop_grace: Duration::from_secs(2),
                    ..kage_agent::Limits::default()
                },
            };
            let (ids, waits) = (dice.clone(), dice.clone());
            let ground = SimulatedGround {
                world: Arc::clone(&world),
                host: name.clone(),
                dice: dice.clone(),
            };
            let ports = kage_agent::Ports {
                make_adapters: None,
                clock: world.clock(&name),
                random: Arc::new(move || ids.bits()),
                dial: dial(),
                ground: Some(Arc::new(ground)),
                runner: Runner::Played(play(&world, &dice)),
                blocking: kage_agent::Blocking::InPlace(Arc::new(move || disk(&waits))),
                ..kage_agent::Ports::system(crew.adapters.clone())
            };
            match kage_agent::run(config, ports, shutdown.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => world.log(format_args!("{name}: {error}")),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
