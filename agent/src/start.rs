//! Start-up and shutdown of an agent, in phases: each takes the one before by value, so that no
//! work is taken before the leftovers of an earlier start are being delivered.

mod containment;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kage_core::contain::Tier;
use kage_core::id::{BootId, Digest};
use kage_core::time::Timestamp;
use kage_git::program::{self, ProgramError};
use kage_proto::client::Dial;
use kage_proto::status::ApiError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapters::port::Registry;
use crate::attempt::Resources;
use crate::calls::{Connect, GateClient};
use crate::config::Config;
use crate::contain::Boxes;
use crate::control::connection::{self, Connection};
use crate::delivery::ledger::Ledger;
use crate::delivery::live::Live;
use crate::delivery::mask::Masker;
use crate::delivery::outbox::{self, Opened, OutboxError, OutboxWriter};
use crate::delivery::sender::{self, Backlog, Delivery};
use crate::equipment::{Equipment, Equipments, MakeAdapterConfig, ProgramRecord};
use crate::ground::blobs::Blobs;
use crate::ground::caches::Caches;
use crate::ground::contexts::Contexts;
use crate::ground::disk::{Checkouts, Disk, Worktrees};
use crate::ground::parking::Parking;
use crate::ground::pool::Pool;
use crate::ground::port::Ground;
use crate::ground::uses::Uses;
use crate::ground::workspace::MirrorGround;
use crate::identity::enrolment;
use crate::identity::renewal::Renewal;
use crate::identity::state::{StateDir, StateError};
use crate::identity::trust::Keyring;
use crate::ports::{Blocking, Clock, Random};
use crate::process::machine::brought_by;
use crate::process::programs::Programs;
use crate::process::{self, AgentEnvironment, Runner, Secret, Turns};

pub use containment::contained_at_last;
use containment::{boxes, record};

/// What an agent is given from outside.
#[derive(Clone)]
pub struct Ports {
    /// The adapters for sessions on this machine.
    pub adapters: Registry,
    pub runner: Runner,
    /// The environment from which those of programs are made.
    pub environment: AgentEnvironment,
    pub clock: Clock,
    pub random: Random,
    /// How it connects for calls. Bulk bytes and git use TCP in any case.
    pub dial: Dial,
    /// How it waits for its disk.
    pub blocking: Blocking,
    /// Makes adapters anew, where commands of this machine hand over the environment of their shell.
    pub make_adapters: Option<MakeAdapterConfig>,
    /// Replaces the mirrors and worktrees in the state folder.
    pub ground: Option<Arc<dyn Ground>>,
    /// Cancelled when running attempts are to be handed back at once (a second signal).
    pub hand_back: CancellationToken,
}

impl Ports {
    /// The machine's clock and randomness, and programs without a warden: only an executable that
    /// can become a warden (see [`crate::process::warden_main_if_asked`]) sets another runner.
    #[must_use]
    pub fn system(adapters: Registry) -> Self {
        Self {
            adapters,
            runner: Runner::default(),
            environment: AgentEnvironment::of_this_process(),
            clock: Arc::new(|| {
                let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
                Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }),
            random: Arc::new(rand::random::<u128>),
            dial: Dial::default(),
            blocking: Blocking::default(),
            make_adapters: None,
            ground: None,
            hand_back: CancellationToken::new(),
        }
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports")
            .field("adapters", &self.adapters.keys())
            .finish_non_exhaustive()
    }
}

/// How long the leftovers of an earlier start may delay Hello: they count only until the
/// coordinator knows of the restart.
const LEFTOVERS_FIRST: Duration = Duration::from_secs(3);
/// How long the last events may take to be delivered at the end. The rest stays in the outbox for
/// the next start.
const LAST_DELIVERY: Duration = Duration::from_secs(5);
/// How long killing the remaining programs of ended sessions may take at the end.
const LAST_KILLING: Duration = Duration::from_secs(15);

/// Why an agent could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("git cannot be used here")]
    Git(#[source] ProgramError),
    #[error("cannot use the state directory")]
    State(#[source] StateError),
    #[error("cannot open the outbox")]
    Outbox(#[source] OutboxError),
    #[error("cannot make an HTTP client")]
    Http(#[source] reqwest::Error),
    /// The coordinator refused the agent's identity.
    #[error("the coordinator shut this agent out; {way_back}")]
    ShutOut {
        way_back: String,
        #[source]
        source: ApiError,
    },
    /// Another agent was connected with its identity until the end.
    #[error(
        "the coordinator refused this agent: {state_dir} is the state folder of an agent that is connected elsewhere"
    )]
    IdInUse {
        state_dir: PathBuf,
        #[source]
        source: ApiError,
    },
    /// Whoever started it wants programs contained better than they would be.
    #[error(
        "containment {asked} was asked for by name and cannot be had here: {short_of}; correct that, or set \
         tier = \"best\" in [agent.contain] to take what there is"
    )]
    Containment {
        asked: Tier,
        /// The reason, for people.
        short_of: String,
    },
    /// Programs may write to a folder in which something is that none may see.
    #[error(
        "[agent.contain] write = [\"{folder}\"] would open {hidden} to programs, which none may see; name a folder \
         without it"
    )]
    Writable {
        /// As it was named.
        folder: PathBuf,
        hidden: PathBuf,
    },
    /// A blocking part of the start was cut short: the runtime is shutting down.
    #[error("the start was interrupted")]
    Interrupted,
}

impl RunError {
    /// True when the person who started it can correct that: the folder, git, a copied identity, the box.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        match self {
            Self::Git(_) | Self::State(_) | Self::IdInUse { .. } | Self::Containment { .. } | Self::Writable { .. } => {
                true
            }
            Self::Outbox(_) | Self::Http(_) | Self::ShutOut { .. } | Self::Interrupted => false,
        }
    }
}

/// Runs an agent until `shutdown` is cancelled and its attempts are finished or handed back.
///
/// # Errors
/// When it cannot start, or the coordinator shut it out. Losing the coordinator is no error: the
/// agent reconnects, forever.
pub async fn run(config: Config, ports: Ports, shutdown: CancellationToken) -> Result<(), RunError> {
    // A simulation runs no git, and a child process would not wait for simulated time.
    if let Blocking::Threads = ports.blocking {
        program::check().await.map_err(RunError::Git)?;
        program::is_out_of_reach(&config.state_dir).map_err(RunError::Git)?;
    }
    let stored = Stored::open(&config, &ports).await?;
    let boxes = boxes(&config, &ports, stored.state.paths()).await?;
    let config = match config.contain.tier.candidates().is_empty() {
        true => config,
        false => Config {
            contained: boxes.proved().clone(),
            ..config
        },
    };
    if let Blocking::Threads = ports.blocking {
        record(&config.contained, stored.state.paths().containment());
    }
    let programs = programs(&config, &ports, stored.state.paths().programs()).await?;
    let delivering = stored.deliver(config, ports, programs, boxes)?;
    delivering.workspaces_swept().await;
    delivering.work(shutdown).await
}

/// The programs in PATH, before any session of this agent can change it.
async fn programs(config: &Config, ports: &Ports, record: PathBuf) -> Result<Programs, RunError> {
    match ports.blocking {
        Blocking::Threads => {}
        Blocking::InPlace(_) => return Ok(Programs::of_the_system()),
    }
    let (path, state) = (ports.environment.path().to_owned(), config.state_dir.clone());
    let surveying = ports.blocking.run(move || {
        let kept_out = [state];
        let programs = Programs::survey_since(&path, &kept_out, &record).unwrap_or_else(|error| {
            tracing::warn!(%error, record = %record.display(), "which programs were there before is not known");
            Programs::survey(&path, &kept_out)
        });
        for planted in programs.planted().into_values() {
            tracing::warn!(
                program = %planted.path.display(), hides = %planted.hides.display(), record = %record.display(),
                "a program appeared in front of another and verify does not run it; if you put it there, add its \
                 path to the record, and start again"
            );
        }
        programs
    });
    surveying.await.map_err(|_| RunError::Interrupted)
}

/// First phase: the state directory is locked and its content was read.
struct Stored {
    state: StateDir,
    opened: Opened,
}

impl Stored {
    async fn open(config: &Config, ports: &Ports) -> Result<Self, RunError> {
        let (root, random, limits) = (config.state_dir.clone(), Arc::clone(&ports.random), config.limits);
        let blocking = ports.blocking.clone();
        let opening = ports.blocking.run(move || {
            let state = StateDir::open(&root, &random).map_err(RunError::State)?;
            let paths = state.paths();
            let opened = outbox::open(
                &paths.outbox(),
                &paths.output(),
                limits.undelivered_events,
                limits.undelivered_output,
                &blocking,
            )
            .map_err(RunError::Outbox)?;
            Ok(Self { state, opened })
        });
        opening.await.map_err(|_| RunError::Interrupted)?
    }

    /// Starts to deliver what an earlier start left.
    fn deliver(self, config: Config, ports: Ports, programs: Programs, boxes: Boxes) -> Result<Delivering, RunError> {
        let paths = self.state.paths();
        let agent = self.state.agent();
        let keyring = Keyring::new(config.credentials.clone(), ports.dial.clone()).map_err(RunError::Http)?;
        let random = Arc::clone(&ports.random);
        let blobs = Blobs::new(&config.coordinator_url, keyring.clone(), agent, random);
        let live = Live::default();
        let secrets: Vec<_> = ports
            .adapters
            .values()
            .flat_map(|adapter| adapter.secrets())
            .chain(
                config
                    .credentials
                    .token
                    .iter()
                    .map(|token| Secret::new("the agent's token", token)),
            )
            .collect();
        let (delivery, backlog) = Delivery::new(sender::DeliveryParts {
            ledger: Ledger::new(self.opened.leftovers),
            changes: self.opened.changes,
            settled: self.opened.settled,
            outbox: self.opened.outbox.clone(),
            live: live.clone(),
            output_dir: paths.output(),
            agent,
            coordinator_url: config.coordinator_url.clone(),
            keyring: keyring.clone(),
            random: Arc::clone(&ports.random),
            blocking: ports.blocking.clone(),
        });
        let tasks = TaskTracker::new();
        let end_delivery = CancellationToken::new();
        tasks.spawn(delivery.run(end_delivery.clone()));
        let renewal = Renewal {
            files: enrolment::files::CredentialFiles::of(&config.state_dir),
            keyring: keyring.clone(),
            coordinator_url: config.coordinator_url.clone(),
            clock: Arc::clone(&ports.clock),
            check: config.limits.certificate_check,
        };
        tasks.spawn(renewal.run(end_delivery.clone()));
        let (uses, worktrees, parking) = (Uses::default(), Worktrees::default(), Parking::default());
        let pool = Pool::new(paths.clone(), Arc::clone(&ports.random));
        let disk = Disk::new(
            paths.clone(),
            config.limits,
            live.clone(),
            uses.clone(),
            Checkouts {
                worktrees: worktrees.clone(),
                parking: parking.clone(),
                pool: pool.clone(),
            },
            ports.blocking.clone(),
        );
        let contexts = Contexts::new(paths.clone(), blobs.clone(), uses.clone());
        let ground = ports.ground.clone().unwrap_or_else(|| {
            Arc::new(MirrorGround::new(
                paths.clone(),
                &config.coordinator_url,
                &config.credentials,
                blobs,
                uses,
                pool,
                Arc::clone(&ports.random),
            ))
        });
        let connect: Connect = {
            let (keyring, url) = (keyring.clone(), config.coordinator_url.clone());
            Arc::new(move || keyring.connect_lazy(&url))
        };
        let random = Arc::clone(&ports.random);
        let gate = GateClient::new(connect, random, end_delivery.clone());
        let resources = Arc::new(Resources {
            gate,
            name: config.name.clone(),
            runner: ports.runner.clone(),
            boxes,
            network: config.network.clone(),
            equipments: Arc::new(Equipments::new(
                Equipment {
                    environment: ports.environment.clone(),
                    adapters: ports.adapters.clone(),
                    programs,
                    fingerprint: None,
                },
                ports.make_adapters.clone(),
                paths.shells(),
                ProgramRecord {
                    record: paths.programs(),
                    kept_out: vec![config.state_dir.clone()],
                },
                ports.blocking.clone(),
            )),
            turns: Turns::new(config.slots),
            clock: Arc::clone(&ports.clock),
            blocking: ports.blocking.clone(),
            limits: config.limits,
            caches: Caches::new(config.caches.clone()),
            outbox: self.opened.outbox,
            live,
            masker: Masker::new(&Secret::values(&secrets)),
            secrets,
            contexts,
            ground,
            paths,
            worktrees,
            parking,
        });
        Ok(Delivering {
            disk,
            state: self.state,
            config,
            ports,
            keyring,
            resources,
            backlog,
            tasks,
            end_delivery,
            writer: self.opened.writer,
        })
    }
}

/// Second phase: the leftovers of an earlier start are being delivered.
struct Delivering {
    state: StateDir,
    config: Config,
    ports: Ports,
    keyring: Keyring,
    resources: Arc<Resources>,
    disk: Disk,
    backlog: tokio::sync::watch::Receiver<Backlog>,
    tasks: TaskTracker,
    end_delivery: CancellationToken,
    writer: OutboxWriter,
}

impl Delivering {
    async fn workspaces_swept(&self) {
        self.resources.ground.sweep().await;
    }

    /// What the machine brings to a check of a base.
    async fn machine(&self) -> Option<Digest> {
        let own = self.resources.equipments.start();
        let looking = self
            .ports
            .blocking
            .run(move || brought_by(&own.environment, &own.programs));
        match looking.await {
            Ok(Ok(machine)) => Some(machine),
            Ok(Err(error)) => {
                tracing::warn!(%error, "verify has no PATH here, so no earlier verdict fits this machine");
                None
            }
            Err(_) => None,
        }
    }

    /// Last phase: takes work until it is told to end, then delivers the rest.
    async fn work(mut self, shutdown: CancellationToken) -> Result<(), RunError> {
        let delivered = self.backlog.wait_for(|backlog| !backlog.leftovers);
        let first = async { drop(tokio::time::timeout(LEFTOVERS_FIRST, delivered).await) };
        shutdown.run_until_cancelled(first).await;
        tracing::info!(agent = %self.state.agent(), name = %self.config.name, "agent started");
        let machine = self.machine().await;
        let (way_back, state_dir) = (way_back(&self.config), self.config.state_dir.clone());
        self.tasks.spawn(self.disk.keep(self.end_delivery.clone()));
        if self.ports.make_adapters.is_some() {
            let (resources, end) = (Arc::clone(&self.resources), self.end_delivery.clone());
            let socket = self.resources.paths.shell_socket();
            self.tasks.spawn(async move {
                resources.equipments.note_start().await;
                resources.equipments.restore().await;
                socket.serve(&resources.equipments, end).await;
            });
        }
        let ended = Connection::new(connection::ControlParts {
            resources: Arc::clone(&self.resources),
            agent: self.state.agent(),
            boot: BootId::from_random((self.ports.random)()),
            slots: self.config.slots,
            labels: self.config.labels,
            machine,
            contained: self.config.contained,
            coordinator_url: self.config.coordinator_url,
            keyring: self.keyring,
            random: self.ports.random,
            shutdown,
            hand_back: self.ports.hand_back.clone(),
        })
        .run()
        .await;
        if ended.is_ok() {
            // Delivery learns of an event when it is on the disk.
            let (outbox, backlog) = (&self.resources.outbox, &mut self.backlog);
            let rest = async {
                outbox.told().await;
                drop(backlog.wait_for(|backlog| !backlog.any).await);
            };
            drop(tokio::time::timeout(LAST_DELIVERY, rest).await);
        }
        while let Some(left) = self.resources.parking.oldest() {
            left.retire().await;
        }
        self.resources.equipments.settled().await;
        self.end_delivery.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // The outbox ends when its last handle is gone.
        drop(self.resources);
        self.writer.join().await;
        process::settle(LAST_KILLING).await;
        tracing::info!("agent ended");
        ended.map_err(|source| {
            if matches!(source, ApiError::AgentIdInUse { .. }) {
                RunError::IdInUse { state_dir, source }
            } else {
                RunError::ShutOut { way_back, source }
            }
        })
    }
}

/// How to get back in after the coordinator shut the agent out.
fn way_back(config: &Config) -> String {
    if config.credentials.identity.is_none() {
        return "give it a token that is good there".to_owned();
    }
    format!(
        "to join anew, remove {} and run `kage agent run --join TOKEN HOST:PORT` with a token of `kage token create \
         --role agent`",
        config.state_dir.join("tls").display()
    )
}
