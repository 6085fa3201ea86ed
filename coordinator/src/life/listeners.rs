//! The process that listens at a port of this machine, for error messages. Unknown where the system
//! does not report it (not Linux, or another user's process).

use std::fmt;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// The name of its executable.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// The state of a listening socket, in the tables of the kernel.
const LISTENS: &str = "0A";

/// The process that listens at a TCP port, whatever the address.
pub(crate) fn of_port(port: u16) -> Option<Process> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let sockets: Vec<_> = tables.iter().flat_map(|table| listening(table, port)).collect();
    if sockets.is_empty() {
        return None;
    }
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        has_one_of(&process.path(), &sockets).then(|| {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            Process {
                pid,
                name: name.trim().to_owned(),
            }
        })
    })
}

/// The sockets of one table that listen at a port, in the form in which a process's open files name
/// them.
fn listening(table: &str, port: u16) -> impl Iterator<Item = String> {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace();
        let (_, there) = fields.nth(1)?.rsplit_once(':')?;
        let (state, inode) = (fields.nth(1)?, fields.nth(5)?);
        let is_it = state == LISTENS && u16::from_str_radix(there, 16) == Ok(port);
        is_it.then(|| format!("socket:[{inode}]"))
    })
}

fn has_one_of(process: &Path, sockets: &[String]) -> bool {
    // Open files of other users' processes are not shown.
    let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    open.filter_map(|file| std::fs::read_link(file.path()).ok())
        .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

// Other systems do not report it.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_listener_of_this_process_is_found_and_a_connection_is_none() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else {
                // A machine may have no IPv6.
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let found = of_port(port).unwrap();
            assert_eq!(found.pid, std::process::id());
            assert!(!found.name.is_empty());
            let connection = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert_eq!(of_port(connection.local_addr().unwrap().port()), None);
        }
    }
}
