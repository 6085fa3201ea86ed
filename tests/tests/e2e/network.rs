//! A separate network: a namespace per machine, each connected by a virtual cable to a switch in
//! another namespace. It is invisible outside, and its names contain this process's id. It is
//! removed when the value is dropped, also when a test fails; the next start removes leftovers of a
//! killed process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// All namespaces of all runs begin so; the process's id follows.
const PREFIX: &str = "kage-e2e-";
const CABLE: &str = "eth0";

pub(crate) struct Network {
    /// Machines by name, in the order of their addresses.
    machines: Vec<String>,
    switch: String,
}

/// Why there is no network.
pub(crate) type Reason = String;

impl Network {
    /// Joins machines, the first with the address 10.77.0.1, the second with 10.77.0.2.
    ///
    /// # Errors
    /// Fails where namespaces cannot be made: without root, or without iproute2.
    pub(crate) fn join(machines: &[&str]) -> Result<Self, Reason> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root may make network namespaces".to_owned());
        }
        sweep()?;
        let network = Self {
            machines: machines.iter().map(|name| (*name).to_owned()).collect(),
            switch: namespace("switch"),
        };
        // From here on, dropping it removes everything that exists already.
        ip(&["netns", "add", &network.switch])?;
        ip(&["-n", &network.switch, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", &network.switch, "link", "set", "bridge", "up"])?;
        for (index, machine) in machines.iter().enumerate() {
            let (own, port) = (namespace(machine), format!("port{index}"));
            let address = format!("{}/24", network.address(machine));
            ip(&["netns", "add", &own])?;
            let pair = [
                "link", "add", &port, "type", "veth", "peer", "name", CABLE, "netns", &own,
            ];
            ip(&[&["-n", &network.switch], pair.as_slice()].concat())?;
            ip(&["-n", &network.switch, "link", "set", &port, "master", "bridge", "up"])?;
            ip(&["-n", &own, "link", "set", "lo", "up"])?;
            ip(&["-n", &own, "address", "add", &address, "dev", CABLE])?;
            ip(&["-n", &own, "link", "set", CABLE, "up"])?;
            ip(&["-n", &own, "route", "add", "default", "dev", CABLE])?;
        }
        Ok(network)
    }

    pub(crate) fn address(&self, machine: &str) -> String {
        let index = self.machines.iter().position(|name| name == machine).unwrap();
        format!("10.77.0.{}", index + 1)
    }

    /// The command prefix that runs a program on a machine.
    pub(crate) fn inside(&self, machine: &str, program: &Path) -> (PathBuf, Vec<OsString>) {
        assert!(self.machines.iter().any(|name| name == machine), "no machine {machine}");
        let arguments = ["netns", "exec", &namespace(machine)].map(OsString::from);
        (
            PathBuf::from("ip"),
            arguments.into_iter().chain([program.into()]).collect(),
        )
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.machines.iter().map(|machine| namespace(machine)) {
            remove(&name);
        }
        remove(&self.switch);
    }
}

fn namespace(machine: &str) -> String {
    format!("{PREFIX}{}-{machine}", std::process::id())
}

/// Removes leftovers of processes that have ended.
fn sweep() -> Result<(), Reason> {
    for line in ip(&["netns", "list"])?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(name);
        }
    }
    Ok(())
}

fn remove(namespace: &str) {
    if Path::new("/var/run/netns").join(namespace).exists()
        && let Err(reason) = ip(&["netns", "delete", namespace])
    {
        eprintln!("{namespace} is left over: {reason}");
    }
}

fn ip(arguments: &[&str]) -> Result<String, Reason> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(|error| format!("ip cannot be run ({error}); install iproute2"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", arguments.join(" "), said.trim()))
}
