//! The resources of a process, as Linux counts them.

use std::time::Duration;

use anyhow::Context;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of resident memory.
    pub resident: u64,
    /// Processor time, including the kernel's.
    pub processor: Duration,
}

/// Measures a process; fails when it is gone, or this is not Linux.
pub fn of(pid: u32) -> anyhow::Result<Usage> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("{path} can be read"))
    };
    let ticks = rustix::param::clock_ticks_per_second();
    usage(&read("status")?, &read("stat")?, ticks).context("Linux says what a process uses")
}

fn usage(status: &str, stat: &str, ticks_per_second: u64) -> Option<Usage> {
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = resident.split_whitespace().next()?.parse().ok()?;
    // The name in brackets may contain anything; utime and stime are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Usage {
        resident: kib * 1024,
        processor: Duration::from_secs_f64((user + system) as f64 / ticks_per_second as f64),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        let status = "Name:\tkage bench\nVmPeak:\t  9 kB\nVmRSS:\t    1234 kB\n";
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 1 2 3";
        let expected = Usage {
            resident: 1234 * 1024,
            processor: Duration::from_secs(3),
        };
        assert_eq!(usage(status, stat, 100), Some(expected));
        assert_eq!(usage("", stat, 100), None);
        assert!(of(std::process::id()).unwrap().resident > 0);
    }
}
