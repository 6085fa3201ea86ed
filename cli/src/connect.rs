//! Finds the coordinator: the one in the settings, or this machine's daemon, which is started if
//! necessary.
//!
//! The daemon is `kage up --background` of this same program. Starting it happens under a file
//! lock, so two commands that need it at once start only one. The lock of its data shows whether it
//! runs, because a killed daemon holds no lock; its old address and token are then ignored.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use kage_core::id::ProjectId;
use kage_git::lock_file::LockFile;
use kage_git::private::make_private;
use kage_proto::client::{Client, ConnectError, Credentials, PemFile};
use kage_proto::status::ApiError;
use kage_proto::v1;
use tokio::time::Instant;

use crate::in_use::{self, InUse};
use crate::machine;
use crate::running;
use crate::settings::Settings;
use crate::state::StateDir;

/// How long a daemon may take to answer.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the agent of a new daemon may take to join.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// How long a coordinator that runs may answer nothing that makes sense: it may be ending.
const ENDING_LIMIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

/// Where a coordinator is, and the right to use it.
#[derive(Clone)]
pub struct Access {
    /// `http://HOST:PORT` or `https://HOST:PORT`
    pub url: String,
    /// The caller's credentials, and the CA that it trusts.
    pub credentials: Credentials,
    pub client: Client,
    /// The project of its tasks.
    pub project: ProjectId,
    pub machine: String,
    /// Where copies of the contexts are that this machine sent.
    pub contexts: PathBuf,
    /// Keeps the daemon of this machine from ending meanwhile.
    _in_use: Option<Arc<InUse>>,
}

/// Why there is no coordinator to talk to.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file that should hold a token or an address cannot be read.
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("coordinator.url is set and coordinator.token_file is not; set it to a file that holds the token")]
    NoTokenFile,
    /// An https URL without a CA.
    #[error(
        "coordinator.url is https and coordinator.ca_file is not set; set it to a copy of the coordinator's \
         tls/ca.pem"
    )]
    NoCaFile,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator at this address is not the one of this state folder.
    #[error(
        "the coordinator at {url} rejects the token in {token}: it is not the coordinator that \
         wrote {endpoint}; if that one has ended, remove the file"
    )]
    OtherToken {
        url: String,
        /// The token file that was used.
        token: PathBuf,
        /// The file with the address.
        endpoint: PathBuf,
    },
    /// The coordinator that runs here is older or newer.
    #[error(
        "the coordinator at {url} has another version than this program; `kage down` stops it, and the next command \
         starts one of this version"
    )]
    OtherVersion {
        url: String,
        #[source]
        source: ApiError,
    },
    /// The program at this address does not answer as a coordinator.
    #[error(
        "the program that listens at {url} does not answer like a coordinator; if no coordinator runs here, remove {endpoint}"
    )]
    NoCoordinator {
        url: String,
        /// The file with the address.
        endpoint: PathBuf,
        #[source]
        source: ApiError,
    },
    /// There is nothing to look at or to change.
    #[error(
        "nothing was run on this machine yet; `kage run` is the start (`kage up` starts the daemon alone), or set \
         coordinator.url"
    )]
    Unused,
    /// The data is that of a coordinator for other machines, which is not the daemon.
    #[error(
        "the coordinator whose data is in {dir} does not run; start it with `kage coordinator`, as it was started \
         before"
    )]
    ServerDown { dir: PathBuf },
    /// The daemon could not be started.
    #[error("cannot start the daemon")]
    Spawn(#[source] std::io::Error),
    /// The daemon did not answer in time.
    #[error("the daemon did not answer within {} s; its log is {log}", START_LIMIT.as_secs())]
    Silent { log: PathBuf },
    #[error("the daemon ended with {status}{said}; its log is {log}")]
    Died {
        status: std::process::ExitStatus,
        /// Its last message, after a colon; empty when there is none.
        said: String,
        log: PathBuf,
    },
}

/// What to do if no coordinator runs on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenAbsent {
    /// Start the daemon, and wait for its agent.
    Start,
    /// Start the daemon if something was run here before; otherwise refuse.
    StartAgain,
}

/// Connects to the coordinator of the settings, or else to this machine's.
///
/// # Errors
/// See [`AccessError`].
pub async fn access(settings: &Settings, state: &StateDir, absent: WhenAbsent) -> Result<Access, AccessError> {
    let access = found(settings, state, absent).await?;
    Ok(Access {
        project: settings.coordinator.project.clone().unwrap_or_default(),
        machine: machine::id(state),
        contexts: state.contexts(),
        ..access
    })
}

async fn found(settings: &Settings, state: &StateDir, absent: WhenAbsent) -> Result<Access, AccessError> {
    if let Some(url) = &settings.coordinator.url {
        let file = settings
            .coordinator
            .token_file
            .clone()
            .ok_or(AccessError::NoTokenFile)?;
        let mut credentials = Credentials::bearer(&read(file)?);
        if let Some(file) = &settings.coordinator.ca_file {
            credentials = credentials.trusting(read_ca(file.clone())?);
        } else if url.starts_with("https:") {
            return Err(AccessError::NoCaFile);
        }
        return connect(url, credentials).await;
    }
    match absent {
        WhenAbsent::Start => make_private(state.path()).map_err(AccessError::Spawn)?,
        WhenAbsent::StartAgain => may_start_again(state)?,
    }
    let in_use = in_use::share(state, START_LIMIT).await.map_err(AccessError::Spawn)?;
    let in_use = in_use.ok_or_else(|| AccessError::Silent {
        log: state.daemon_log(),
    })?;
    let access = match settled(state).await? {
        Some(access) => access,
        None => start(state).await?,
    };
    match absent {
        WhenAbsent::Start => first_agent(&access.client).await,
        WhenAbsent::StartAgain => {}
    }
    Ok(Access {
        _in_use: Some(Arc::new(in_use)),
        ..access
    })
}

/// True if there is data to start a daemon for. Data without its database counts too: the
/// coordinator reports what is missing and what to do.
fn may_start_again(state: &StateDir) -> Result<(), AccessError> {
    if !state.database().exists() && !state.store_mark().exists() {
        return Err(AccessError::Unused);
    }
    let dir = state.coordinator();
    let lives = running::is_held(&state.coordinator_lock()).map_err(AccessError::Spawn)?;
    // The daemon has no TLS; in place of this coordinator it would keep the other from starting.
    if !lives && state.ca().exists() {
        return Err(AccessError::ServerDown { dir });
    }
    Ok(())
}

/// Like [`running`]. A daemon that is about to end, and does not answer properly, gets a moment.
async fn settled(state: &StateDir) -> Result<Option<Access>, AccessError> {
    let deadline = Instant::now() + ENDING_LIMIT;
    loop {
        match running(state).await {
            Err(AccessError::NoCoordinator { .. }) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
            found => return found,
        }
    }
}

/// Waits for the first agent of a new store: it joins a moment after the coordinator starts, and a
/// task is refused while no agent can run it.
async fn first_agent(client: &Client) {
    let deadline = Instant::now() + AGENT_LIMIT;
    while Instant::now() < deadline {
        match client.fleet().list_agents(v1::ListAgentsRequest::default()).await {
            Ok(listed) if listed.get_ref().agents.is_empty() => tokio::time::sleep(POLL).await,
            // The caller's next request reports the problem.
            Ok(_) | Err(_) => return,
        }
    }
}

/// The coordinator that runs on this machine. `None` when none runs, even if a killed one left its
/// files.
///
/// # Errors
/// When its files cannot be read, another program listens there, or it has another version.
pub async fn running(state: &StateDir) -> Result<Option<Access>, AccessError> {
    let lock = state.coordinator_lock();
    let lives = || {
        running::is_held(&lock).map_err(|source| AccessError::Read {
            path: lock.clone(),
            source,
        })
    };
    // Another program may listen at the old address, and must not see the token.
    if !lives()? {
        return Ok(None);
    }
    match announced(state).await {
        // It ended in the middle of the question.
        Err(_) if !lives()? => Ok(None),
        found => found,
    }
}

/// The coordinator of the address file; `None` when there is no file, or nothing listens there yet.
async fn announced(state: &StateDir) -> Result<Option<Access>, AccessError> {
    let Some(url) = read_if_there(state.endpoint())? else {
        return Ok(None);
    };
    let mut credentials = Credentials::bearer(&read(state.token())?);
    if url.starts_with("https:") {
        credentials = credentials.trusting(read_ca(state.ca())?);
    }
    let access = match connect(&url, credentials).await {
        Ok(access) => access,
        Err(AccessError::Connect(ConnectError::Unreachable { .. })) => return Ok(None),
        Err(error) => return Err(error),
    };
    greet(state, &access).await?;
    Ok(Some(access))
}

/// Makes sure that it is this state directory's coordinator, and understands this program.
async fn greet(state: &StateDir, access: &Access) -> Result<(), AccessError> {
    let request = v1::ListTasksRequest {
        page_size: 1,
        ..v1::ListTasksRequest::default()
    };
    let Err(status) = access.client.tasks().list_tasks(request).await else {
        return Ok(());
    };
    let url = access.url.clone();
    match ApiError::from(status) {
        ApiError::Unauthenticated => Err(AccessError::OtherToken {
            url,
            token: state.token(),
            endpoint: state.endpoint(),
        }),
        source @ (ApiError::Unimplemented { .. } | ApiError::OtherProtocol { .. }) => {
            Err(AccessError::OtherVersion { url, source })
        }
        source @ (ApiError::Internal { .. } | ApiError::Unavailable { .. }) => Err(AccessError::NoCoordinator {
            url,
            endpoint: state.endpoint(),
            source,
        }),
        // It is a coordinator; the caller's next request reports the problem.
        ApiError::InvalidArgument { .. }
        | ApiError::Conflict { .. }
        | ApiError::FailedPrecondition { .. }
        | ApiError::NoAgent { .. }
        | ApiError::AgentIdInUse { .. }
        | ApiError::NotFound { .. }
        | ApiError::PermissionDenied { .. }
        | ApiError::JoinRefused(_)
        | ApiError::ResourceExhausted { .. } => Ok(()),
    }
}

/// Connects to a coordinator as this caller.
///
/// # Errors
/// When it cannot be reached, or the address or the CA cannot be used.
pub async fn connect(url: &str, credentials: Credentials) -> Result<Access, AccessError> {
    // Paths are put behind it, and each begins with a slash.
    let url = url.trim_end_matches('/').to_owned();
    let client = Client::connect_as(&url, &credentials).await?;
    Ok(Access {
        url,
        credentials,
        client,
        project: ProjectId::default(),
        machine: String::new(),
        contexts: PathBuf::new(),
        _in_use: None,
    })
}

fn read_ca(path: PathBuf) -> Result<PemFile, AccessError> {
    PemFile::read(&path).map_err(|source| AccessError::Read { path, source })
}

fn read(path: PathBuf) -> Result<String, AccessError> {
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(source) => Err(AccessError::Read { path, source }),
    }
}

fn read_if_there(path: PathBuf) -> Result<Option<String>, AccessError> {
    match read(path) {
        Ok(text) => Ok(Some(text)),
        Err(AccessError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn start(state: &StateDir) -> Result<Access, AccessError> {
    let lock = state_lock(state).map_err(AccessError::Spawn)?;
    // Waits while another command starts it; then it runs already.
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
        .await
        .map_err(|e| AccessError::Spawn(std::io::Error::other(e)))?
        .map_err(AccessError::Spawn)?;
    let deadline = Instant::now() + START_LIMIT;
    // Wait for the end of an ending daemon, and for a coordinator that was just started.
    loop {
        if let Some(access) = settled(state).await? {
            return Ok(access);
        }
        let held = [state.daemon_lock(), state.coordinator_lock()].map(|lock| running::is_held(&lock));
        if let [Ok(false), Ok(false)] = held {
            break;
        }
        if Instant::now() >= deadline {
            return Err(AccessError::Silent {
                log: state.daemon_log(),
            });
        }
        tokio::time::sleep(POLL).await;
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(state.daemon_log())
        .map_err(AccessError::Spawn)?;
    let before = log.metadata().map_err(AccessError::Spawn)?.len();
    let program = std::env::current_exe().map_err(AccessError::Spawn)?;
    let mut daemon = std::process::Command::new(program);
    daemon
        .args(["up", "--background", "--state-dir"])
        .arg(state.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    // In its own group it does not get the Ctrl-C of the command that started it.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut daemon, 0);
    let mut daemon = daemon.spawn().map_err(AccessError::Spawn)?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(access) = settled(state).await? {
            drop(lock);
            return Ok(access);
        }
        if let Some(status) = daemon.try_wait().map_err(AccessError::Spawn)? {
            let log = state.daemon_log();
            let said = last_words(&log, before);
            return Err(AccessError::Died { status, said, log });
        }
        if Instant::now() >= deadline {
            return Err(AccessError::Silent {
                log: state.daemon_log(),
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The file whose lock guards the start of a daemon. Creates the state folder.
fn state_lock(state: &StateDir) -> std::io::Result<LockFile> {
    make_private(state.path())?;
    LockFile::open(&state.start_lock())
}

/// The error of a daemon, from the part of its log after `before`.
fn last_words(log: &Path, before: u64) -> String {
    let Ok(text) = std::fs::read(log) else {
        return String::new();
    };
    let since = usize::try_from(before).ok().and_then(|before| text.get(before..));
    let text = String::from_utf8_lossy(since.unwrap_or_default()).into_owned();
    // An error may have several lines; it is the last text of a daemon that ended.
    let error = text.rfind("error: ").and_then(|at| text.get(at + "error: ".len()..));
    error.map_or_else(String::new, |error| format!(": {}", error.trim_end()))
}

#[cfg(test)]
mod tests;
