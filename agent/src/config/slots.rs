//! The default number of sessions that a machine runs at once: as many as its cores and its memory
//! have room for.

use std::path::{Path, PathBuf};

/// Memory for one session: a coding tool, and the build that it starts.
const MEMORY_OF_A_SESSION: u64 = 2 << 30;

#[must_use]
pub fn of_this_machine() -> u32 {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    by(cores, memory(Path::new("/")))
}

/// Half the cores, since a session waits for its model most of the time but builds with all of
/// them; at least two if memory allows; never less than one.
fn by(cores: usize, memory: Option<u64>) -> u32 {
    let by_cores = u32::try_from(cores / 2).unwrap_or(u32::MAX).max(2);
    let by_memory = memory.map_or(u32::MAX, |bytes| {
        u32::try_from(bytes / MEMORY_OF_A_SESSION).unwrap_or(u32::MAX)
    });
    by_cores.min(by_memory).max(1)
}

/// The memory that processes like this one can use, in bytes: the machine's, or the lowest limit of
/// the cgroups above. `None` where the system does not say.
fn memory(root: &Path) -> Option<u64> {
    let table = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = table.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let total = total.checked_mul(1024)?;
    let limits = limits(root);
    Some(limits.into_iter().chain([total]).min().unwrap_or(total))
}

/// The limits of the cgroups (version 2) that contain this process.
fn limits(root: &Path) -> Vec<u64> {
    let own = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return Vec::new();
    };
    let group = PathBuf::from(path);
    let groups = group.ancestors().map(|group| root.join("sys/fs/cgroup").join(group));
    groups
        .filter_map(|group| std::fs::read_to_string(group.join("memory.max")).ok())
        .filter_map(|limit| limit.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_what_cores_and_memory_have_room_for() {
        let gib = |n: u64| Some(n << 30);
        let cases = [
            (1, gib(16), 2),
            (4, gib(16), 2),
            (16, gib(64), 8),
            (16, gib(8), 4),
            (64, gib(1), 1),
            (2, gib(3), 1),
            (12, None, 6),
        ];
        for (cores, memory, expected) in cases {
            assert_eq!(by(cores, memory), expected, "{cores} cores, {memory:?}");
        }
        assert!(of_this_machine() >= 1);
    }

    #[test]
    fn a_cgroup_may_allow_less_than_the_machine_has() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(memory(root.path()), None);
        write("proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");
        assert_eq!(memory(root.path()), Some(16 << 20));
        write("proc/self/cgroup", "0::/kage.slice/agent.service\n");
        write("sys/fs/cgroup/kage.slice/agent.service/memory.max", "max\n");
        assert_eq!(memory(root.path()), Some(16 << 20));
        write("sys/fs/cgroup/kage.slice/memory.max", "4194304\n");
        assert_eq!(memory(root.path()), Some(4 << 20));
    }
}
