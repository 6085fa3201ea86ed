//! Finding a coordinator: the one that settings name, or this machine's daemon, started
//! when there is none.
//!
//! The daemon is `kage up --background` of this very program. Two commands that need it
//! at once start one, because starting is done under a file lock. Whether one runs is what
//! the lock of its data says, which a killed one does not hold: the address and the token that
//! it left behind count for nothing then.

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

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the agent of a new daemon may take to join it.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
/// How long a coordinator that runs may answer nothing that makes sense: it may be ending.
const ENDING_LIMIT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

/// Where a coordinator is, and the right to use it.
#[derive(Clone)]
pub struct Access {
    /// `http://HOST:PORT` or `https://HOST:PORT`
    pub url: String,
    /// Who calls, and whom it trusts.
    pub credentials: Credentials,
    pub client: Client,
    /// The project of its tasks.
    pub project: ProjectId,
    pub machine: String,
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
    /// A coordinator listens here, and it is not the one of this state directory.
    #[error(
        "the coordinator at {url} rejects the token in {token}: it is not the coordinator that \
         wrote {endpoint}; if that one has ended, remove the file"
    )]
    OtherToken {
        url: String,
        /// The token file that was used.
        token: PathBuf,
        /// What says that it is there.
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
    /// What listens here answers nothing that makes sense.
    #[error(
        "the program that listens at {url} does not answer like a coordinator; if no coordinator runs here, remove {endpoint}"
    )]
    NoCoordinator {
        url: String,
        /// What says that one is there.
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
    /// The daemon did not come up.
    #[error("the daemon did not answer within {} s; its log is {log}", START_LIMIT.as_secs())]
    Silent { log: PathBuf },
    #[error("the daemon ended with {status}{said}; its log is {log}")]
    Died {
        status: std::process::ExitStatus,
        /// Its last words, after a colon; empty when it had none.
        said: String,
        log: PathBuf,
    },
}

/// What to do when no coordinator runs on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenAbsent {
    /// Start the daemon, and wait for its agent.
    Start,
    /// Start the daemon if something was run here before; else say that nothing was.
    StartAgain,
}

/// Connects to the coordinator that settings name, else to this machine's.
///
/// # Errors
/// See [`AccessError`].
pub async fn access(settings: &Settings, state: &StateDir, absent: WhenAbsent) -> Result<Access, AccessError> {
    let access = found(settings, state, absent).await?;
    Ok(Access {
        project: settings.coordinator.project.clone().unwrap_or_default(),
        machine: machine::id(state),
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

/// Whether there is something that a daemon would be started for. Data without its database is:
/// the coordinator says what is missing, and what to do.
fn may_start_again(state: &StateDir) -> Result<(), AccessError> {
    if !state.database().exists() && !state.store_mark().exists() {
        return Err(AccessError::Unused);
    }
    let dir = state.coordinator();
    let lives = running::is_held(&state.coordinator_lock()).map_err(AccessError::Spawn)?;
    // The daemon speaks no TLS: in its place it would keep this one from starting.
    if !lives && state.ca().exists() {
        return Err(AccessError::ServerDown { dir });
    }
    Ok(())
}

/// As [`running`]. One that is about to end, and does not answer as it should, has a moment for it.
async fn settled(state: &StateDir) -> Result<Option<Access>, AccessError> {
    let deadline = Instant::now() + ENDING_LIMIT;
    loop {
        match running(state).await {
            Err(AccessError::NoCoordinator { .. }) if Instant::now() < deadline => tokio::time::sleep(POLL).await,
            found => return found,
        }
    }
}

/// Waits for the first agent that a daemon ever had: it comes a moment after the coordinator,
/// and a task is refused while nobody can run it.
async fn first_agent(client: &Client) {
    let deadline = Instant::now() + AGENT_LIMIT;
    while Instant::now() < deadline {
        match client.fleet().list_agents(v1::ListAgentsRequest::default()).await {
            Ok(listed) if listed.get_ref().agents.is_empty() => tokio::time::sleep(POLL).await,
            // What the caller asks for next will say what is wrong.
            Ok(_) | Err(_) => return,
        }
    }
}

/// The coordinator that runs on this machine. `None` when none does, whatever a killed one left
/// behind.
///
/// # Errors
/// When its files cannot be read, or what listens there is not it, or of another version.
pub async fn running(state: &StateDir) -> Result<Option<Access>, AccessError> {
    let lock = state.coordinator_lock();
    let lives = || {
        running::is_held(&lock).map_err(|source| AccessError::Read {
            path: lock.clone(),
            source,
        })
    };
    // Another program may listen where a killed one did. It is not to see the token.
    if !lives()? {
        return Ok(None);
    }
    match announced(state).await {
        // It ended in the middle of the question.
        Err(_) if !lives()? => Ok(None),
        found => found,
    }
}

/// The coordinator that said where it is; `None` when none did, or nothing listens there yet.
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
        // It is one, and what the caller asks for next will say what is wrong.
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

async fn connect(url: &str, credentials: Credentials) -> Result<Access, AccessError> {
    // Paths are put behind it, and each begins with a slash.
    let url = url.trim_end_matches('/').to_owned();
    let client = Client::connect_as(&url, &credentials).await?;
    Ok(Access {
        url,
        credentials,
        client,
        project: ProjectId::default(),
        machine: String::new(),
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
    // Waits for whoever is starting it now; then it runs already.
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
        .await
        .map_err(|e| AccessError::Spawn(std::io::Error::other(e)))?
        .map_err(AccessError::Spawn)?;
    let deadline = Instant::now() + START_LIMIT;
    // What still ends has to be gone, and what a person has just started comes up by itself.
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
    // In a group of its own it does not get the Ctrl-C of the command that started it.
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

/// The file under whose lock a daemon is started, in a state directory that is there from now on.
fn state_lock(state: &StateDir) -> std::io::Result<LockFile> {
    make_private(state.path())?;
    LockFile::open(&state.start_lock())
}

/// What a daemon gave as its error, of what its log has since `before`.
fn last_words(log: &Path, before: u64) -> String {
    let Ok(text) = std::fs::read(log) else {
        return String::new();
    };
    let since = usize::try_from(before).ok().and_then(|before| text.get(before..));
    let text = String::from_utf8_lossy(since.unwrap_or_default()).into_owned();
    // An error may have several lines; a daemon that ended said nothing after it.
    let error = text.rfind("error: ").and_then(|at| text.get(at + "error: ".len()..));
    error.map_or_else(String::new, |error| format!(": {}", error.trim_end()))
}

#[cfg(test)]
mod tests;
