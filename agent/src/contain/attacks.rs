//! Ways out of a box, each tried by a program inside: reading what is the agent's, reaching its processes
//! and sockets, changing the machine. Every one leaves things as they are where it succeeds, so that it can
//! be tried outside too, where most have to succeed: an attack that fails everywhere proves nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kage_core::contain::Tier;
use nix::sched::CloneFlags;
use nix::sys::{ptrace, signal};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Resource, Rlimit};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::policy::Network;

/// How long a connection may take: those that are refused are so at once.
const CONNECTING: Duration = Duration::from_millis(300);

/// Where clouds give the keys of a machine to whoever asks.
const METADATA: &str = "169.254.169.254:80";

/// An address that no packet is sent to by the attack, and that a route is needed for.
const ELSEWHERE: &str = "192.0.2.1:9";

/// Sockets of services that would do everything for a caller.
const SERVICES: &[&str] = &[
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/podman/podman.sock",
    "/run/containerd/containerd.sock",
    "/run/dbus/system_bus_socket",
    "/run/systemd/private",
];

/// Where services have what is theirs.
const SERVICES_KEEP: &[&str] = &[
    "/var/log",
    "/var/spool",
    "/var/mail",
    "/var/backups",
    "/var/lib/private",
];

/// Disks and memory as files.
const RAW: &[&str] = &[
    "/dev/mem",
    "/dev/port",
    "/dev/kmsg",
    "/dev/vda",
    "/dev/sda",
    "/dev/nvme0n1",
    "/proc/kcore",
];

/// Switches of the kernel.
const SWITCHES: &[&str] = &[
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/drop_caches",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
];

/// Capabilities with which a process changes the machine.
const POWERS: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_BOOT)
    .union(CapabilitySet::SYS_TIME)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::MKNOD);

/// What an attack is aimed at. Everything in it was made for the attack, but for the agent's process and
/// its home folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Targets {
    /// Only attacks that this tier holds are tried.
    pub(crate) tier: Tier,
    pub(crate) network: Network,
    /// The attacker's own folder.
    pub(crate) own: PathBuf,
    /// A folder of the agent's that is laid out as its state is.
    pub(crate) state: PathBuf,
    /// The agent.
    pub(crate) process: i32,
    /// When it began, in the kernel's ticks: in a process namespace of its own another process may have its
    /// number, as where the agent is the first process of a container.
    pub(crate) began: u64,
    /// A socket with a path, of a service outside.
    pub(crate) socket: PathBuf,
    /// The name of an abstract one.
    pub(crate) abstract_socket: String,
    /// A port on loopback where somebody listens.
    pub(crate) port: u16,
    /// A file in shared memory.
    pub(crate) shared: PathBuf,
    /// The home folder of the agent's user.
    pub(crate) home: PathBuf,
    /// The folders of PATH.
    pub(crate) path: Vec<PathBuf>,
}

/// The name of the file in each folder of [`Targets::state`].
pub(crate) const CANARY: &str = "canary";

/// The folders there.
pub(crate) const FOLDERS: &[&str] = &["tls", "handed", "worktrees", "mirrors", "scratch", "adapters"];

/// How an attack went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attacked {
    pub(crate) name: String,
    /// The first reason when it failed; `None`: it got out.
    pub(crate) held: Option<String>,
}

type Attack = fn(&Targets) -> io::Result<()>;

/// Every attack: its name, the lowest tier that holds it, and whether it needs a box without a network.
const ATTACKS: &[(&str, Tier, bool, Attack)] = &[
    ("read the agent's token", Tier::T1, false, |to| {
        read(&to.state.join(CANARY))
    }),
    ("read the agent's key", Tier::T1, false, |to| read(&to.secret("tls"))),
    ("read the values of another task", Tier::T1, false, |to| {
        read(&to.secret("handed"))
    }),
    ("read another session's files", Tier::T1, false, |to| {
        read(&to.secret("worktrees"))
    }),
    ("read another session's scratch folder", Tier::T1, false, |to| {
        read(&to.secret("scratch"))
    }),
    ("read another repository", Tier::T1, false, |to| {
        read(&to.secret("mirrors"))
    }),
    ("write the agent's database", Tier::T1, false, |to| {
        write(&to.state.join(CANARY))
    }),
    ("write another session's files", Tier::T1, false, |to| {
        write(&to.secret("worktrees"))
    }),
    ("write a repository", Tier::T1, false, |to| write(&to.secret("mirrors"))),
    ("write a manifest", Tier::T1, false, |to| write(&to.secret("adapters"))),
    ("make a file in the agent's folder", Tier::T1, false, |to| {
        make(&to.state)
    }),
    ("make a file in a repository", Tier::T1, false, |to| {
        make(&to.state.join("mirrors"))
    }),
    ("truncate the agent's database", Tier::T1, false, |to| {
        let file = to.state.join(CANARY);
        let length = fs::metadata(&file)?.len();
        nix::unistd::truncate(&file, i64::try_from(length).unwrap_or(0)).map_err(io::Error::from)
    }),
    ("move a file of the agent", Tier::T1, false, |to| {
        moved(&to.state.join(CANARY), &to.own.join("moved"))
    }),
    ("move a folder into the agent's", Tier::T1, false, |to| {
        let (own, there) = (to.own.join("folder"), to.state.join("folder"));
        fs::create_dir_all(&own)?;
        moved(&own, &there)
    }),
    ("read by a hard link", Tier::T1, false, |to| {
        let link = to.own.join("hard");
        fs::hard_link(to.state.join(CANARY), &link)?;
        read(&link)?;
        fs::remove_file(link)
    }),
    ("read by a link", Tier::T1, false, |to| {
        let link = to.own.join("soft");
        std::os::unix::fs::symlink(to.state.join(CANARY), &link)?;
        let read = read(&link);
        fs::remove_file(link)?;
        read
    }),
    ("read by the agent's root folder", Tier::T1, false, |to| {
        let file = to.state.join(CANARY);
        let file = file.strip_prefix("/").unwrap_or(&file);
        read(&to.of_agent("root").join(file))
    }),
    ("put a program into PATH", Tier::T1, false, |to| {
        any(to.path.iter().map(|folder| make(folder)))
    }),
    ("make a file in the home folder", Tier::T1, false, |to| make(&to.home)),
    ("make a file in /etc", Tier::T1, false, |_| make(Path::new("/etc"))),
    ("make a file in /usr", Tier::T1, false, |_| make(Path::new("/usr"))),
    ("make a control group", Tier::T1, false, |_| {
        any(
            ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"].map(|folder| {
                let group = Path::new(folder).join(unique());
                fs::create_dir(&group)?;
                fs::remove_dir(group)
            }),
        )
    }),
    ("open disks and memory", Tier::T1, false, |_| {
        any(RAW.iter().map(|path| File::open(path).map(drop)))
    }),
    ("switch something of the kernel", Tier::T1, false, |_| {
        any(SWITCHES.iter().map(|path| write(Path::new(path))))
    }),
    ("make a device", Tier::T1, false, |to| {
        let device = to.own.join("device");
        mknodat(
            CWD,
            &device,
            FileType::BlockDevice,
            Mode::from_raw_mode(0o600),
            makedev(1, 0),
        )?;
        fs::remove_file(device)
    }),
    ("read the agent's environment", Tier::T1, false, |to| {
        read(&to.of_agent("environ"))
    }),
    ("open the agent's memory", Tier::T1, false, |to| {
        File::open(to.of_agent("mem")).map(drop)
    }),
    ("see the agent's open files", Tier::T1, false, |to| {
        fs::read_link(to.of_agent("fd/0")).map(drop)
    }),
    ("see where the agent is", Tier::T1, false, |to| {
        fs::read_link(to.of_agent("cwd")).map(drop)
    }),
    ("take an open file of the agent", Tier::T1, false, |to| {
        let process = rustix::process::pidfd_open(to.agent()?, PidfdFlags::empty())?;
        rustix::process::pidfd_getfd(process, 0, PidfdGetfdFlags::empty())?;
        Ok(())
    }),
    ("trace the agent", Tier::T1, false, |to| {
        let process = nix::unistd::Pid::from_raw(to.process);
        ptrace::seize(process, ptrace::Options::empty())?;
        // Seized and running: the end of this process lets it go.
        Ok(())
    }),
    ("signal the agent", Tier::T1, false, |to| {
        Ok(rustix::process::test_kill_process(to.agent()?)?)
    }),
    // Landlock lets the call be, and no process gets the signal.
    ("signal everybody", Tier::T2, false, |_| {
        Ok(signal::kill(nix::unistd::Pid::from_raw(-1), None)?)
    }),
    ("connect to an abstract socket", Tier::T1, false, |to| {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&to.abstract_socket)?;
        UnixStream::connect_addr(&address).map(drop)
    }),
    ("listen to every packet", Tier::T1, false, |_| {
        rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, None)?;
        Ok(())
    }),
    ("mount", Tier::T1, false, |to| {
        rustix::mount::mount("none", &to.own, "tmpfs", MountFlags::empty(), None)?;
        Ok(rustix::mount::unmount(&to.own, UnmountFlags::DETACH)?)
    }),
    ("unmount", Tier::T1, false, |to| {
        match rustix::mount::unmount(&to.own, UnmountFlags::DETACH) {
            // It may, and there is nothing.
            Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }),
    ("change the root folder", Tier::T1, false, |_| {
        Ok(rustix::process::chroot("/")?)
    }),
    ("enter the agent's namespaces", Tier::T1, false, |to| {
        let file = File::open(to.of_agent("ns/mnt"))?;
        Ok(nix::sched::setns(file, CloneFlags::CLONE_NEWNS)?)
    }),
    ("have powers over the machine", Tier::T1, false, |_| {
        let has = rustix::thread::capabilities(None)?.permitted.intersects(POWERS);
        got(has, "no such capability")
    }),
    ("get new privileges", Tier::T1, false, |_| {
        got(!rustix::thread::no_new_privs()?, "none can be got")
    }),
    ("leave memory dumps", Tier::T1, false, |_| {
        let limit = Rlimit {
            current: Some(1),
            maximum: Some(1),
        };
        Ok(rustix::process::setrlimit(Resource::Core, limit)?)
    }),
    ("name the machine", Tier::T1, false, |_| {
        let name = rustix::system::uname();
        Ok(rustix::system::sethostname(name.nodename().to_bytes())?)
    }),
    ("make a mount namespace", Tier::T1, false, |_| {
        Ok(nix::sched::unshare(CloneFlags::CLONE_NEWNS)?)
    }),
    ("see the agent's process", Tier::T2, false, |to| {
        fs::metadata(to.of_agent("stat")).map(drop)
    }),
    ("see names of the agent's files", Tier::T2, false, |to| {
        fs::metadata(to.secret("worktrees")).map(drop)
    }),
    ("see the home folder", Tier::T2, false, |to| {
        let entries = fs::read_dir(&to.home)?.flatten();
        let names: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| !to.own.starts_with(path))
            .collect();
        // What toolchains need is there.
        got(
            names.iter().any(|path| path.join(".git").exists() || path.is_file()),
            "nothing of a person is there",
        )
    }),
    ("change modes of the agent's files", Tier::T2, false, |to| {
        let file = to.state.join(CANARY);
        let permissions = fs::metadata(&file)?.permissions();
        fs::set_permissions(file, permissions)
    }),
    ("read the passwords", Tier::T2, false, |_| {
        read(Path::new("/etc/shadow"))
    }),
    ("see what services keep", Tier::T2, false, |_| {
        any(SERVICES_KEEP.iter().map(|folder| fs::read_dir(folder).map(drop)))
    }),
    ("read shared memory", Tier::T2, false, |to| read(&to.shared)),
    ("connect to a socket with a path", Tier::T2, false, |to| {
        UnixStream::connect(&to.socket).map(drop)
    }),
    ("connect to a service of the machine", Tier::T2, false, |_| {
        any(SERVICES.iter().map(|path| UnixStream::connect(path).map(drop)))
    }),
    ("see what runs on the machine", Tier::T2, false, |_| {
        let entries = fs::read_dir("/run")?;
        // The resolver's file may be there.
        got(
            entries.flatten().any(|entry| entry.path().is_file()),
            "nothing is there",
        )
    }),
    ("talk to the machine below", Tier::T2, false, |_| {
        rustix::net::socket(AddressFamily::VSOCK, SocketType::STREAM, None)?;
        Ok(())
    }),
    ("call the kernel unfiltered", Tier::T2, false, |_| {
        let status = fs::read_to_string("/proc/self/status")?;
        let filters = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
        let filters: usize = filters.and_then(|number| number.trim().parse().ok()).unwrap_or(0);
        let due = super::syscalls::filters().map_or(usize::MAX, |filters| filters.len());
        got(filters < due, "calls are filtered")
    }),
    ("make a user namespace", Tier::T2, false, |_| {
        Ok(nix::sched::unshare(CloneFlags::CLONE_NEWUSER)?)
    }),
    ("connect to a port of the machine", Tier::T2, true, |to| {
        TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], to.port)), CONNECTING).map(drop)
    }),
    ("ask for the machine's keys", Tier::T2, true, |_| reach(METADATA)),
    ("reach another network", Tier::T2, true, |_| reach(ELSEWHERE)),
];

impl Targets {
    fn secret(&self, folder: &str) -> PathBuf {
        self.state.join(folder).join(CANARY)
    }

    fn of_agent(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}", self.process)).join(file)
    }

    fn agent(&self) -> io::Result<Pid> {
        Pid::from_raw(self.process).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// The number of attacks that this tier has to hold.
pub(crate) fn count(tier: Tier) -> usize {
    ATTACKS.iter().filter(|(_, held_by, _, _)| *held_by <= tier).count()
}

/// Tries everything that the tier has to hold, one after the other.
pub(crate) fn run(targets: &Targets) -> Vec<Attacked> {
    let due = ATTACKS
        .iter()
        .filter(|(_, held_by, alone, _)| *held_by <= targets.tier && *alone == (targets.network == Network::None));
    let tried = due.map(|(name, _, _, attack)| Attacked {
        name: (*name).to_owned(),
        held: match attack(targets) {
            Ok(()) if name.contains("the agent") && targets.number_is_of_another() => {
                Some("another process has the agent's number".to_owned())
            }
            Ok(()) => None,
            Err(error) => Some(error.to_string()),
        },
    });
    tried.collect()
}

impl Targets {
    /// True when it is seen that the agent's number is another process's here.
    fn number_is_of_another(&self) -> bool {
        began(self.process).is_some_and(|began| began != self.began)
    }
}

/// When a process began, as `/proc/PID/stat` has it (proc_pid_stat(5), field 22).
pub(crate) fn began(process: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

fn read(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0; 16]).map(drop)
}

/// Opens it for writing, and writes nothing.
fn write(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(path).map(drop)
}

/// Makes a file in a folder, and removes it.
fn make(folder: &Path) -> io::Result<()> {
    let path = folder.join(unique());
    OpenOptions::new().write(true).create_new(true).open(&path)?;
    fs::remove_file(path)
}

/// Moves a file or folder, and moves it back.
fn moved(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    fs::rename(to, from)
}

/// A name that nobody has.
fn unique() -> String {
    format!(".kage-attack-{}", std::process::id())
}

/// Whether a packet could be sent there. None is.
fn reach(address: &str) -> io::Result<()> {
    UdpSocket::bind("0.0.0.0:0")?.connect(address)
}

fn got(got: bool, held: &'static str) -> io::Result<()> {
    match got {
        true => Ok(()),
        false => Err(io::Error::other(held)),
    }
}

/// The first success or the last failure.
fn any(tries: impl IntoIterator<Item = io::Result<()>>) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for tried in tries {
        match tried {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
