//! A description of the machine that figures were measured on.

use std::fmt;
use std::path::Path;

/// The properties of a machine that matter for figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub processor: String,
    /// Processors that this process may use.
    pub processors: usize,
    pub memory_mib: u64,
    pub kernel: String,
    /// The file system of the state directories.
    pub file_system: String,
}

impl Machine {
    /// Describes this machine. Unavailable facts are reported as unknown.
    #[must_use]
    pub fn this(state: &Path) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or_default();
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown processor".to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory / 1024,
            kernel: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            file_system: file_system(&read("/proc/self/mounts"), state),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processors ({}), {} MiB of memory, {}, state on {}",
            self.processors, self.processor, self.memory_mib, self.kernel, self.file_system
        )
    }
}

/// Type and device of the mount that holds a path: the longest mount point that is a prefix.
fn file_system(mounts: &str, path: &Path) -> String {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            path.starts_with(point).then_some((point.len(), device, kind))
        })
        .max_by_key(|(length, ..)| *length)
        .map_or_else(
            || "an unknown file system".to_owned(),
            |(_, device, kind)| format!("{kind} ({device})"),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_is_taken() {
        let mounts = "/dev/vda / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n";
        assert_eq!(file_system(mounts, Path::new("/tmp/x")), "tmpfs (tmpfs)");
        assert_eq!(file_system(mounts, Path::new("/var")), "ext4 (/dev/vda)");
    }
}
