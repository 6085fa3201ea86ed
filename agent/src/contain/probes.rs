//! Proves a tier: builds a box of it as an attempt would have one, lets a program inside try to get out in
//! every way that `attacks` knows, and believes only what failed. One attack that succeeds, one box that
//! cannot be built, and the next lower tier is tried; why is kept for people.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kage_core::contain::{Containment, Tier};

use super::attacks::{self, Attacked, CANARY, FOLDERS, Targets, count};
use super::policy::{Confinement, Network};
use super::{BoxParts, Boxes, bubblewrap, entry};

/// How long one box may take with all attacks.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether it ended.
const LOOK: Duration = Duration::from_millis(2);
/// How many attacks that got out are named.
const NAMED: usize = 3;

/// Finds the highest tier of those that were asked for whose attacks all fail.
pub(super) fn prove(parts: &BoxParts<'_>) -> Boxes {
    let mut short_of = Vec::new();
    for tier in parts.settings.tier.candidates() {
        match try_tier(*tier, parts) {
            Ok(mut boxes) => {
                boxes.proved.short_of = short_of.join("; ");
                return boxes;
            }
            Err(why) => {
                tracing::warn!(%tier, why, "a tier of containment is not had here");
                short_of.push(format!("{tier}: {why}"));
            }
        }
    }
    Boxes::none(short_of.join("; "))
}

fn try_tier(tier: Tier, parts: &BoxParts<'_>) -> Result<Boxes, String> {
    let bubblewrap = match tier {
        Tier::T0 | Tier::T1 => None,
        Tier::T2 | Tier::T3 => Some(bubblewrap::find()?),
    };
    let real = |path: &PathBuf| fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let hidden = [parts.state.to_owned()].into_iter().chain(parts.own.iter().cloned());
    let boxes = Boxes {
        proved: Containment {
            tier,
            short_of: String::new(),
        },
        hidden: hidden.chain(parts.settings.hidden.iter().map(real)).collect(),
        shared: parts.settings.write.iter().map(real).collect(),
        home: parts.home.as_ref().map(real),
        bubblewrap,
        network: Network::Open,
    };
    let range = Range::make(parts).map_err(|error| format!("the probes cannot be prepared: {error}"))?;
    let networks: &[Network] = match tier {
        Tier::T0 | Tier::T1 => &[Network::Open],
        Tier::T2 | Tier::T3 => &[Network::Open, Network::None],
    };
    let mut tried = 0;
    for network in networks {
        let attacked = range.attack(&boxes, *network)?;
        tried += attacked.len();
        let mut out: Vec<_> = attacked
            .into_iter()
            .filter(|attacked| attacked.held.is_none())
            .map(|attacked| attacked.name)
            .collect();
        if !out.is_empty() {
            let number = out.len();
            out.truncate(NAMED);
            return Err(format!("{number} of the probes got out ({})", out.join(", ")));
        }
    }
    match tried == count(tier) {
        true => Ok(boxes),
        false => Err(format!("only {tried} of {} probes were tried", count(tier))),
    }
}

/// A place for attacks: what they are aimed at, and who listens.
struct Range<'a> {
    parts: &'a BoxParts<'a>,
    folder: tempfile::TempDir,
    shared: tempfile::NamedTempFile,
    socket_folder: tempfile::TempDir,
    _socket: UnixListener,
    _abstract_socket: UnixListener,
    abstract_name: String,
    port: TcpListener,
}

impl<'a> Range<'a> {
    fn make(parts: &'a BoxParts<'a>) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("probe-").tempdir_in(parts.state)?;
        fs::create_dir_all(folder.path().join("own/home"))?;
        let state = folder.path().join("state");
        for place in FOLDERS {
            fs::create_dir_all(state.join(place))?;
            fs::write(state.join(place).join(CANARY), "secret")?;
        }
        fs::write(state.join(CANARY), "secret")?;
        // Not where the state is hidden: a service of the machine.
        let socket_folder = tempfile::Builder::new().prefix("kage-probe-").tempdir_in("/tmp")?;
        let socket = UnixListener::bind(socket_folder.path().join("socket"))?;
        let abstract_name = format!("kage-probe-{}-{:x}", std::process::id(), rand::random::<u64>());
        let abstract_socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&abstract_name)?)?;
        let shared = tempfile::Builder::new().prefix("kage-probe-").tempfile_in("/dev/shm")?;
        shared.as_file().write_all(b"secret")?;
        Ok(Self {
            parts,
            folder,
            shared,
            socket_folder,
            _socket: socket,
            _abstract_socket: abstract_socket,
            abstract_name,
            port: TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
        })
    }

    fn targets(&self, tier: Tier, network: Network) -> io::Result<Targets> {
        let process = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        Ok(Targets {
            tier,
            network,
            own: self.folder.path().join("own"),
            state: self.folder.path().join("state"),
            process,
            began: attacks::began(process).ok_or(io::ErrorKind::NotFound)?,
            socket: self.socket_folder.path().join("socket"),
            abstract_socket: self.abstract_name.clone(),
            port: self.port.local_addr()?.port(),
            shared: self.shared.path().to_owned(),
            home: self.parts.home.clone().unwrap_or_else(|| "/root".into()),
            path: std::env::split_paths(&path)
                .filter(|folder| folder.is_absolute())
                .collect(),
        })
    }

    /// Lets a program in a box try to get out.
    fn attack(&self, boxes: &Boxes, network: Network) -> Result<Vec<Attacked>, String> {
        let tier = boxes.proved.tier;
        let targets = self.targets(tier, network).map_err(|error| error.to_string())?;
        let room = boxes.room(vec![targets.own.clone()], Vec::new());
        let confinement = Confinement {
            network,
            ..room.ok_or("there is no box in T0")?.confinement().clone()
        };
        let said = run(self.parts.executable, confinement, targets);
        said.map_err(|error| format!("its box cannot be built: {error}"))
    }
}

fn run(executable: &Path, confinement: Confinement, targets: Targets) -> io::Result<Vec<Attacked>> {
    let own = targets.own.clone();
    let entry::Launched { mut command, held, .. } = entry::attack(executable, confinement, targets)?;
    let mut output = tempfile::tempfile_in(&own)?;
    let mut errors = tempfile::tempfile_in(&own)?;
    let child = command
        .env_clear()
        .current_dir("/")
        .stdout(Stdio::from(output.try_clone()?))
        .stderr(Stdio::from(errors.try_clone()?))
        .spawn()?;
    drop(held);
    let success = ended(child)?;
    let (said, complained) = (text(&mut output)?, text(&mut errors)?);
    if !success {
        let last = complained.lines().rfind(|line| !line.trim().is_empty());
        return Err(io::Error::other(
            last.unwrap_or("the program inside was killed").to_owned(),
        ));
    }
    serde_json::from_str(&said).map_err(io::Error::other)
}

/// Waits for the end, not longer than is reasonable.
fn ended(mut child: Child) -> io::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOOK);
    }
}

fn text(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    io::Seek::rewind(file)?;
    file.read_to_string(&mut text)?;
    Ok(text)
}
