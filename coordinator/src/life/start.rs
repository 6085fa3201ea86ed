//! Start-up and shutdown, in phases: each takes the one before by value, so that nothing is served
//! before its requirements are there, and what was opened is closed in reverse.
//!
//! ```text
//!   check -> lock data dir, look whether its database is its own -> token, certificates
//!         -> open store, extend leases -> fill board, identities
//!         -> bind -> announce -> serve
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kage_core::id::StoreId;
use kage_core::time::Timestamp;
use kage_git::program;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::board::Board;
use crate::calls::{BudgetLines, CallTurns};
use crate::config::Config;
use crate::coordinator::following::Following;
use crate::coordinator::unsaved::Unsaved;
use crate::coordinator::{Coordinator, Fences};
use crate::data::authority::{self, Authority};
use crate::data::blobs::Blobs;
use crate::data::custody::{Beginning, Consent, Mark};
use crate::data::folder::DataDir;
use crate::data::quarantine::Quarantine;
use crate::data::repositories::Repositories;
use crate::data::secrets::Secrets;
use crate::data::standstill::Removals;
use crate::data::stored::StoredBytes;
use crate::delivery::results::StoredObjects;
use crate::door::auth::Door;
use crate::door::connections::{self, Served, Stopping};
use crate::door::identities::Identities;
use crate::door::lobby::{Caps, Lobby};
use crate::door::restraint::Restraint;
use crate::duties::saving;
use crate::duties::{dispatch, gaps, retention};
use crate::life::belonging::Custody;
use crate::life::failure::RunError;
use crate::life::files;
use crate::life::listeners;
use crate::life::server;
use crate::output::Outputs;
use crate::ports::{Blocking, Listener, Ports};
use crate::services::diff;
use crate::store::{ExtendAllLeases, Opening, Store};
use crate::telemetry;
use crate::topics::Topics;

/// Runs a coordinator until `shutdown` is cancelled and everything open has ended.
///
pub async fn run(config: Config, mut ports: Ports, shutdown: CancellationToken) -> Result<(), RunError> {
    config.check().map_err(RunError::Config)?;
    // A simulation runs no git, and a child process would not wait for simulated time.
    if let Blocking::Threads = ports.blocking {
        program::check().await.map_err(RunError::Git)?;
    }
    let held = Locked::open(&config, &ports)?;
    let (listen, on_ready) = (Arc::clone(&ports.listen), ports.on_ready.take());
    let filled = held.fill(&config, ports).await?;
    let listen_error = |source: std::io::Error| RunError::Listen {
        address: config.listen,
        listener: match source.kind() {
            std::io::ErrorKind::AddrInUse => listeners::of_port(config.listen.port()),
            _ => None,
        },
        source,
    };
    let listener = listen(config.listen).await.map_err(listen_error)?;
    let bound = listener.address().map_err(listen_error)?;
    let scheme = if config.speaks_tls() { "https" } else { "http" };
    let announced = filled.data.announce(scheme, bound).map_err(RunError::DataDir)?;
    tracing::info!(%bound, scheme, "coordinator ready");
    if let Some(on_ready) = on_ready {
        // The receiver may be gone.
        on_ready.send(bound).ok();
    }
    let result = filled.serve(listener, &config, shutdown).await;
    drop(announced);
    result
}

/// Another process holds the lock of the data folder.
struct Locked {
    data: DataDir,
    /// `None` where the store is not in the data directory.
    custody: Option<Custody>,
    token: String,
    authority: Option<Arc<Authority>>,
}

/// Everything needed before the first call is in memory.
struct Filled {
    data: DataDir,
    /// How long nothing is put aside.
    unswept_for: Duration,
    /// False in simulations: removing files there would not be reproducible.
    makes_room: bool,
    door: Door,
    coordinator: Arc<Coordinator>,
}

impl Locked {
    fn open(config: &Config, ports: &Ports) -> Result<Self, RunError> {
        let data = DataDir::open(&config.data_dir).map_err(RunError::DataDir)?;
        // First of all: a refused start must not create anything.
        let custody = match ports.store {
            Some(_) => None,
            None => {
                let consent = Consent {
                    adopt: config.adopt_data,
                    older: config.accept_older,
                };
                Some(Custody::of(&data, consent)?)
            }
        };
        data.forget_endpoint().map_err(RunError::DataDir)?;
        let token = data.token(&ports.random).map_err(RunError::DataDir)?;
        let authority = if config.speaks_tls() {
            let files = data.tls().map_err(RunError::DataDir)?;
            let names = authority::names(config.listen, &config.public_names);
            let authority = Authority::open(files, names, (ports.clock)()).map_err(RunError::Tls)?;
            Some(Arc::new(authority))
        } else {
            None
        };
        Ok(Self {
            data,
            custody,
            token,
            authority,
        })
    }

    async fn fill(self, config: &Config, ports: Ports) -> Result<Filled, RunError> {
        telemetry::install();
        let Self {
            data,
            custody,
            token,
            authority,
        } = self;
        let Ports { clock, random, .. } = ports;
        // No agent could reach us while we were away: that is not their silence.
        let now = clock();
        let mut unswept_for = Duration::ZERO;
        let store = match ports.store {
            Some(store) => store,
            None => {
                let beginning = custody.as_ref().map_or(Beginning::Usual, |custody| custody.beginning);
                let before = custody.as_ref().and_then(|custody| custody.mark);
                let opening = Opening {
                    fresh: StoreId::from_random(random()),
                    times: before.map_or(0, |mark| mark.opened),
                    position: custody.map_or(0, |custody| custody.acknowledged),
                    noted: data.position(),
                };
                let (store, opened) =
                    Store::begin(&data.database(), &opening, &config.prices).map_err(RunError::Open)?;
                let mark = Mark::next(opened, before, beginning, now);
                unswept_for = mark.unswept_for(now);
                data.opened(mark).map_err(RunError::DataDir)?;
                store
            }
        };
        let lease_until = now + config.timings.lease_ttl;
        store
            .apply(ExtendAllLeases { lease_until, now })
            .await
            .map_err(RunError::Store)?;
        if let Some(on_open) = ports.on_open {
            // The receiver may be gone.
            on_open.send(store.clone()).ok();
        }
        let makes_room = matches!(ports.blocking, Blocking::Threads);
        // Before the store is read: what is committed from here on is told.
        let following = Following::new(&store);
        let board = fill_board(&store, config, now).await?;
        let identities = Arc::new(fill_identities(&store).await?);
        let restraint = Arc::new(Restraint::new(config.callers));
        let door = Door::new(
            &token,
            ports.own_agent,
            Arc::clone(&identities),
            Arc::clone(&restraint),
            Arc::clone(&clock),
        );
        let topics = Arc::new(Topics::default());
        let blobs = Arc::new(Blobs::open(&data.blobs())?);
        let repositories = Arc::new(Repositories::new(data.repositories()));
        let objects = ports.objects.unwrap_or_else(|| {
            Arc::new(StoredObjects {
                repositories: Arc::clone(&repositories),
                blobs: Arc::clone(&blobs),
            })
        });
        let turns = CallTurns::new(clock());
        let coordinator = Arc::new(Coordinator {
            store,
            following,
            blobs,
            repositories,
            objects,
            outputs: Outputs::new(data.output(), Arc::clone(&topics), ports.blocking),
            quarantine: Quarantine::new(data.quarantine(), data.output(), data.blobs()),
            removals: Removals::of(&config.data_dir),
            topics,
            run: random(),
            fences: Arc::new(Fences::default()),
            prices: Arc::new(config.prices.clone()),
            budgets: config.budgets.clone(),
            timings: config.timings,
            patience: config.patience,
            token_agents: config.token_agents,
            stored: StoredBytes::new([data.blobs(), data.repositories()], config.callers.project_bytes),
            identities,
            restraint,
            callers: config.callers,
            secrets: Secrets::new(&token),
            authority,
            clock,
            random,
            placeable: Notify::new(),
            dropped: Notify::new(),
            turns,
            budget_lines: BudgetLines::default(),
            unsaved: Unsaved::default(),
            comparing: Arc::new(Semaphore::new(diff::AT_ONCE)),
            released: Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            board: Mutex::new(board),
        });
        Ok(Filled {
            data,
            unswept_for,
            makes_room,
            door,
            coordinator,
        })
    }
}

async fn fill_identities(store: &Store) -> Result<Identities, RunError> {
    let identities = Identities::default();
    for token in store.person_tokens().await.map_err(RunError::Read)? {
        identities.person(&token);
    }
    for enrolment in store.enrolments().await.map_err(RunError::Read)? {
        identities.agent(&enrolment);
    }
    Ok(identities)
}

/// Replaces the server's certificate long before it ends.
async fn renew_certificate(coordinator: Arc<Coordinator>, authority: Arc<Authority>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(authority::RENEWAL_CHECK) => {}
            () = coordinator.closing.cancelled() => return,
        }
        let (authority, now) = (Arc::clone(&authority), coordinator.now());
        match tokio::task::spawn_blocking(move || authority.renew(now)).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => tracing::info!("the server's certificate was renewed"),
            Ok(Err(error)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot renew the server's certificate"
                );
            }
            Err(error) => tracing::error!(%error, "the renewal of the server's certificate was cut off"),
        }
    }
}

async fn fill_board(store: &Store, config: &Config, clock: Timestamp) -> Result<Board, RunError> {
    let mut board = Board::new(config.timings).waiting_for_stops(config.patience.stop_answer);
    for job in store.queued_jobs().await.map_err(RunError::Read)? {
        board.enqueue(job);
    }
    let mut running: HashMap<_, Vec<_>> = HashMap::new();
    let live = store.live_attempts(None).await.map_err(RunError::Read)?;
    for live in &live {
        running.entry(live.agent).or_default().push(live.clone());
    }
    let now = Instant::now();
    for agent in store.agents().await.map_err(RunError::Read)? {
        let attempts = running.remove(&agent.id).unwrap_or_default();
        board.expect(agent, attempts, now);
    }
    for enrolment in store.enrolments().await.map_err(RunError::Read)? {
        board.scope(enrolment.agent, Some(enrolment.project));
        if enrolment.revoked_at.is_some() {
            board.shut_out(enrolment.agent);
        }
    }
    board.resume(&live, clock, now);
    for (agent, attempt) in gaps::stopped(&live) {
        board.stop(agent, attempt, now);
    }
    Ok(board)
}

impl Filled {
    async fn serve(
        self,
        listener: Box<dyn Listener>,
        config: &Config,
        shutdown: CancellationToken,
    ) -> Result<(), RunError> {
        let Self {
            data,
            unswept_for,
            makes_room,
            door,
            coordinator,
        } = self;
        let router = server::router(&coordinator, door, &config.web_origins).await?;
        let stopping = Stopping {
            gracefully: CancellationToken::new(),
            now: CancellationToken::new(),
        };
        coordinator.tasks.spawn(dispatch::run(Arc::clone(&coordinator)));
        coordinator.tasks.spawn(gaps::run(Arc::clone(&coordinator)));
        coordinator.tasks.spawn(saving::run(Arc::clone(&coordinator)));
        if makes_room {
            let making_room = retention::run(Arc::clone(&coordinator), config.retention, unswept_for);
            coordinator.tasks.spawn(making_room);
        }
        let tls = match &coordinator.authority {
            None => None,
            Some(authority) => {
                let renewal = renew_certificate(Arc::clone(&coordinator), Arc::clone(authority));
                coordinator.tasks.spawn(renewal);
                let config = authority.server_config().map_err(RunError::Tls)?;
                Some(TlsAcceptor::from(Arc::new(config)))
            }
        };
        let identities = Arc::clone(&coordinator.identities);
        let files = if makes_room { files::raise_limit() } else { None };
        let caps = Caps::of(&config.connections, files);
        tracing::debug!(?caps, "places for connections");
        let served = Served {
            router,
            tls,
            identities,
            lobby: Lobby::new(config.connections, caps),
        };
        let server = connections::serve(listener, served, stopping.clone());
        tokio::pin!(server);
        let mut lost = false;
        let ending = async {
            tokio::select! {
                biased;
                () = coordinator.store.lost() => true,
                () = shutdown.cancelled() => false,
            }
        };
        tokio::select! {
            biased;
            is_lost = ending => {
                tracing::info!("shutting down");
                lost = is_lost;
                // Endless streams end now; calls are finished. Agents are not told to drain: to
                // them this is a disconnect.
                coordinator.closing.cancel();
                stopping.gracefully.cancel();
                if tokio::time::timeout(coordinator.timings.drain, &mut server).await.is_err() {
                    tracing::warn!("calls were still open; dropped");
                    stopping.now.cancel();
                    server.await;
                }
            }
            () = &mut server => {}
        }
        coordinator.tasks.close();
        coordinator.tasks.wait().await;
        coordinator.outputs.close().await;
        if !lost {
            data.closing();
        }
        coordinator.store.close().await;
        match lost {
            true => Err(RunError::Lost { path: data.database() }),
            false => Ok(()),
        }
    }
}
