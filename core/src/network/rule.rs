//! An entry of `[network] allow`: a host that may be reached, and at which port. It owns how people write
//! it; the list decides.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::Deserialize;

use super::DOOR_PORT;
use super::address::AddressRange;
use super::destination::{Destination, DomainName, Host, InvalidDestination, read_port, split_port};

/// The ports of the web, which an entry without a port means.
const WEB: [u16; 2] = [80, 443];

/// A host that may be reached: `example.com`, `*.example.com`, `example.com:8443`, `10.0.0.5`, `10.0.0.0/8`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AllowRule {
    hosts: Hosts,
    port: Option<u16>,
    /// Whether its name may lead to addresses that are not public.
    anywhere: bool,
}

/// Which hosts an entry means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Only(DomainName),
    Below(DomainName),
    Addresses(AddressRange),
}

/// Why an entry of `[network] allow` cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    /// It is meant as a host, and written as an address of the web.
    #[error("{0:?} is an address of the web; write its host alone, such as \"example.com\"")]
    Url(String),
    /// It names everything.
    #[error("{0:?} means every host; the policy \"open\" is for that")]
    Everything(String),
    /// A star is not at the front.
    #[error("in {0:?} a star is not in front; write \"*.example.com\" for every host in example.com")]
    Star(String),
    /// It is not so many bits, or so few that it is most of the internet.
    #[error("{0:?} is no range of addresses; write one such as \"10.0.0.0/8\", of at least 8 bits and without a port")]
    Range(String),
    /// It cannot be opened in a box.
    #[error("port {0} of this machine cannot be forwarded; ports from 1024 on can, but for {DOOR_PORT}")]
    OwnPort(u16),
    /// It is no host.
    #[error("{text:?} is no host that programs could reach")]
    Host {
        /// The entry.
        text: String,
        /// What is wrong.
        #[source]
        source: InvalidDestination,
    },
}

impl AllowRule {
    /// What the owner of the agent set as the address of an adapter's provider: exactly this, wherever it is.
    #[must_use]
    pub fn of_provider(provider: Destination) -> Self {
        let hosts = match provider.host {
            Host::Name(name) => Hosts::Only(name),
            Host::Address(address) => Hosts::Addresses(AddressRange::only(address)),
        };
        Self {
            hosts,
            port: Some(provider.port),
            anywhere: true,
        }
    }

    /// Whether it means this host, at whatever port.
    pub(super) fn means(&self, host: &Host) -> bool {
        match (&self.hosts, host) {
            (Hosts::Only(name), Host::Name(asked)) => name == asked,
            (Hosts::Below(domain), Host::Name(asked)) => asked.is_below(domain),
            (Hosts::Addresses(range), Host::Address(asked)) => range.contains(*asked),
            (Hosts::Only(_) | Hosts::Below(_), Host::Address(_)) | (Hosts::Addresses(_), Host::Name(_)) => false,
        }
    }

    /// Whether it means this port.
    pub(super) fn has_port(&self, port: u16) -> bool {
        match self.port {
            Some(only) => port == only,
            None => WEB.contains(&port),
        }
    }

    /// Whether a host that is on the list may be at this address because of it.
    pub(super) fn leads_to(&self, to: &Destination, address: IpAddr) -> bool {
        match &self.hosts {
            // Without a port it is for names at whatever port they have.
            Hosts::Addresses(range) => range.contains(address) && self.port.is_none_or(|only| only == to.port),
            Hosts::Only(name) => {
                let asked = name.is_localhost() && self.means(&to.host);
                asked && self.has_port(to.port) && address.is_loopback()
            }
            Hosts::Below(_) => false,
        }
    }

    /// Whether its name may lead anywhere.
    pub(super) const fn is_anywhere(&self) -> bool {
        self.anywhere
    }

    /// The port of the machine itself that it names, if it can be opened in a box.
    pub(super) fn own_port(&self) -> Option<u16> {
        self.port.filter(|port| self.is_own() && can_be_opened(*port))
    }

    /// Whether it is the machine itself.
    fn is_own(&self) -> bool {
        match &self.hosts {
            Hosts::Only(name) => name.is_localhost(),
            Hosts::Addresses(range) => range.single().is_some_and(|address| address.is_loopback()),
            Hosts::Below(_) => false,
        }
    }
}

/// Whether a process without rights can listen at this port of its box, beside the door.
const fn can_be_opened(port: u16) -> bool {
    port >= 1024 && port != DOOR_PORT
}

impl FromStr for AllowRule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let entry = || text.to_owned();
        let of = |hosts, port| Self {
            hosts,
            port,
            anywhere: false,
        };
        if text.contains("://") {
            return Err(InvalidRule::Url(entry()));
        }
        if let Some((address, prefix)) = text.split_once('/') {
            // Digits only, as for a port.
            let prefix = Some(prefix).filter(|prefix| prefix.bytes().all(|digit| digit.is_ascii_digit()));
            let read = address.parse().ok().zip(prefix.and_then(|prefix| prefix.parse().ok()));
            let range = read.and_then(|(address, prefix)| AddressRange::new(address, prefix));
            let range = range.ok_or_else(|| match address.parse::<IpAddr>() {
                Ok(_) => InvalidRule::Range(entry()),
                Err(_) => InvalidRule::Url(entry()),
            });
            return Ok(of(Hosts::Addresses(range?), None));
        }
        // Without brackets it has no port: its last part would be taken for one.
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(of(Hosts::Addresses(AddressRange::only(address.into())), None));
        }
        let invalid = |source| InvalidRule::Host { text: entry(), source };
        let (host, port) = split_port(text);
        let port = port.map(read_port).transpose().map_err(invalid)?;
        if matches!(host, "*" | "*.") {
            return Err(InvalidRule::Everything(entry()));
        }
        let (below, host) = match host.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, host),
        };
        if host.contains('*') {
            return Err(InvalidRule::Star(entry()));
        }
        let hosts = match (Host::parse(host).map_err(invalid)?, below) {
            (Host::Name(name), false) => Hosts::Only(name),
            (Host::Name(name), true) => Hosts::Below(name),
            (Host::Address(address), false) => Hosts::Addresses(AddressRange::only(address)),
            (Host::Address(_), true) => return Err(InvalidRule::Star(entry())),
        };
        let rule = of(hosts, port);
        match port {
            Some(port) if rule.is_own() && !can_be_opened(port) => Err(InvalidRule::OwnPort(port)),
            Some(_) | None => Ok(rule),
        }
    }
}

impl TryFrom<String> for AllowRule {
    type Error = InvalidRule;

    fn try_from(text: String) -> Result<Self, InvalidRule> {
        text.parse()
    }
}

/// As people write it.
impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Only(name) => name.fmt(f)?,
            Hosts::Below(name) => write!(f, "*.{name}")?,
            Hosts::Addresses(range) => match (range.single(), self.port) {
                (Some(address), Some(_)) => Host::Address(address).fmt(f)?,
                _ => range.fmt(f)?,
            },
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}
