//! Finding a coordinator: the one that settings name, or this machine's daemon, started
//! when there is none.
//!
//! The daemon is `kage up --background` of this very program. Two commands that need it
//! at once start one, because starting is done under a file lock.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kage_core::id::ProjectId;
use kage_proto::client::{Client, ConnectError, Credentials, PemFile};
use kage_proto::v1;
use tokio::time::Instant;

use crate::settings::Settings;
use crate::state::StateDir;

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the agent of a new daemon may take to join it.
const AGENT_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Where a coordinator is, and the right to use it.
#[derive(Clone)]
pub struct Access {
    /// `http://HOST:PORT` or `https://HOST:PORT`
    pub url: String,
    /// Who calls, and whom it trusts.
    pub credentials: Credentials,
    /// A connection to it.
    pub client: Client,
    /// Whose tasks these are.
    pub project: ProjectId,
}

/// Why there is no coordinator to talk to.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file that should hold a token or an address cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A URL without a token.
    #[error("coordinator.url is set and coordinator.token_file is not; set it to a file that holds the token")]
    NoTokenFile,
    /// An https URL without a CA.
    #[error(
        "coordinator.url is https and coordinator.ca_file is not set; set it to a copy of the coordinator's \
         tls/ca.pem"
    )]
    NoCaFile,
    /// It does not answer.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Nothing runs here, and this command does not start anything.
    #[error("no coordinator runs on this machine; start one with `kage up`, or set coordinator.url")]
    NotRunning,
    /// The daemon could not be started.
    #[error("cannot start the daemon")]
    Spawn(#[source] std::io::Error),
    /// The daemon did not come up.
    #[error("the daemon did not answer within {} s; its log is {log}", START_LIMIT.as_secs())]
    Silent {
        /// Where it says why.
        log: PathBuf,
    },
    /// The daemon ended at once.
    #[error("the daemon ended with {status}{said}; its log is {log}")]
    Died {
        /// How.
        status: std::process::ExitStatus,
        /// Its last words, after a colon; empty when it had none.
        said: String,
        /// Where it says why.
        log: PathBuf,
    },
}

/// What to do when no coordinator runs on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenAbsent {
    /// Start the daemon.
    Start,
    /// Say so.
    Fail,
}

/// Connects to the coordinator that settings name, else to this machine's.
///
/// # Errors
/// See [`AccessError`].
pub async fn access(settings: &Settings, state: &StateDir, absent: WhenAbsent) -> Result<Access, AccessError> {
    let access = found(settings, state, absent).await?;
    Ok(Access {
        project: settings.coordinator.project.clone().unwrap_or_default(),
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
    let access = match (running(state).await, absent) {
        (Some(access), _) => access,
        (None, WhenAbsent::Start) => start(state).await?,
        (None, WhenAbsent::Fail) => return Err(AccessError::NotRunning),
    };
    if absent == WhenAbsent::Start {
        first_agent(&access.client).await;
    }
    Ok(access)
}

/// Waits for the first agent that a daemon ever had: it comes a moment after the coordinator,
/// and a task is refused while nobody can run it.
async fn first_agent(client: &Client) {
    let deadline = Instant::now() + AGENT_LIMIT;
    while Instant::now() < deadline {
        match client.fleet().list_agents(v1::ListAgentsRequest {}).await {
            Ok(listed) if listed.get_ref().agents.is_empty() => tokio::time::sleep(POLL).await,
            // What the caller asks for next will say what is wrong.
            Ok(_) | Err(_) => return,
        }
    }
}

/// The coordinator that runs on this machine, if one does and answers.
pub async fn running(state: &StateDir) -> Option<Access> {
    let url = std::fs::read_to_string(state.endpoint()).ok()?;
    let token = std::fs::read_to_string(state.token()).ok()?;
    let mut credentials = Credentials::bearer(&token);
    if url.starts_with("https:") {
        credentials = credentials.trusting(PemFile::read(state.ca()).ok()?);
    }
    connect(url.trim(), credentials).await.ok()
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

async fn start(state: &StateDir) -> Result<Access, AccessError> {
    std::fs::create_dir_all(state.path()).map_err(AccessError::Spawn)?;
    let lock = File::create(state.start_lock()).map_err(AccessError::Spawn)?;
    // Waits for whoever is starting it now; then it runs already.
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
        .await
        .map_err(|e| AccessError::Spawn(std::io::Error::other(e)))?
        .map_err(AccessError::Spawn)?;
    if let Some(access) = running(state).await {
        return Ok(access);
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
        if let Some(access) = running(state).await {
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
