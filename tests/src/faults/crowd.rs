//! A machine with little room: an agent, with everything that it starts, that may have so many processes and so
//! much memory. As root by a control group; otherwise by limits that each process inherits, of which that of
//! processes counts all that the user has.

use std::path::{Path, PathBuf};

use crate::cluster::Programs;

/// The limits. Control groups are removed when it is dropped, after the cluster.
#[derive(Debug)]
pub struct Crowd {
    /// Of the control groups that an agent enters.
    groups: Vec<PathBuf>,
    /// Of a user who may make none.
    inherited: Vec<String>,
}

impl Crowd {
    /// An agent and its children have at most so many processes and MiB. `None`: this machine has no means
    /// for that.
    #[must_use]
    pub fn new(processes: u32, mebibytes: u64) -> Option<Self> {
        if rustix::process::geteuid().is_root() {
            let groups = groups(processes, mebibytes << 20)?;
            return Some(Self {
                groups,
                inherited: Vec::new(),
            });
        }
        let more = processes + running();
        Some(Self {
            groups: Vec::new(),
            // Programs reserve more than they use.
            inherited: vec![format!("--nproc={more}"), format!("--as={}", mebibytes << 23)],
        })
    }

    /// The same programs, with agents that have these limits.
    #[must_use]
    pub fn agents(&self, programs: &Programs) -> Programs {
        let mut programs = programs.clone();
        let (program, arguments) = programs.agent;
        let mut limited: Vec<std::ffi::OsString> = Vec::new();
        let first = if self.groups.is_empty() {
            limited.extend(self.inherited.iter().map(Into::into));
            "prlimit"
        } else {
            let enter: String = (self.groups.iter())
                .map(|group| format!("echo $$ > '{}/cgroup.procs' && ", group.display()))
                .collect();
            limited.extend(["-c".into(), format!("{enter}exec \"$0\" \"$@\"").into()]);
            "sh"
        };
        limited.push(program.into());
        limited.extend(arguments);
        programs.agent = (first.into(), limited);
        programs
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for group in &self.groups {
            // One in which a process is left stays, and is empty soon.
            let _left = std::fs::remove_dir(group);
        }
    }
}

/// Control groups with these limits: one in each hierarchy of version 1, or one of version 2.
fn groups(processes: u32, bytes: u64) -> Option<Vec<PathBuf>> {
    let top = Path::new("/sys/fs/cgroup");
    let name = format!("kage-test-{:08x}", rand::random::<u32>());
    let of = |root: PathBuf, limits: &[(&str, String)]| {
        let group = root.join(&name);
        std::fs::create_dir(&group).ok()?;
        for (file, value) in limits {
            if std::fs::write(group.join(file), value).is_err() {
                let _unused = std::fs::remove_dir(&group);
                return None;
            }
        }
        Some(group)
    };
    if top.join("pids/cgroup.procs").exists() {
        let pids = of(top.join("pids"), &[("pids.max", processes.to_string())])?;
        let memory = of(top.join("memory"), &[("memory.limit_in_bytes", bytes.to_string())]);
        return Some(std::iter::once(pids).chain(memory).collect());
    }
    // It may be on already, or not be ours to switch on.
    let _told = std::fs::write(top.join("cgroup.subtree_control"), "+pids +memory");
    let both = [
        ("pids.max", processes.to_string()),
        ("memory.max", bytes.to_string()),
        ("memory.swap.max", "0".to_owned()),
    ];
    of(top.to_owned(), &both).map(|group| vec![group])
}

/// The processes and threads of this user.
fn running() -> u32 {
    let own = rustix::process::getuid().as_raw();
    let is_own = |path: &Path| {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(path).is_ok_and(|meta| meta.uid() == own)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let tasks = processes.filter(|process| is_own(&process.path())).map(|process| {
        let tasks = std::fs::read_dir(process.path().join("task"));
        tasks.into_iter().flatten().count()
    });
    u32::try_from(tasks.sum::<usize>()).unwrap_or(u32::MAX / 2)
}
