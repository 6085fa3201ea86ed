//! Where a program wants to connect to, as it wrote it in a request. There is one form of each host after
//! this file: a name in lower case and in ASCII without a dot at its end, or an address. Whatever can be
//! read in two ways is refused, so that what is decided about is what is connected to.

use std::fmt;
use std::net::IpAddr;

use url::Host as Parsed;

/// The longest text of a host and a port that is read.
const LONGEST: usize = 300;

/// A name of a host: lower case, ASCII, no dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

impl DomainName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is in the domain, and not the domain itself.
    #[must_use]
    pub fn is_below(&self, domain: &Self) -> bool {
        let above = self.0.strip_suffix(&domain.0);
        above.is_some_and(|labels| labels.len() > 1 && labels.ends_with('.'))
    }

    /// Whether it is the name of the machine itself.
    #[must_use]
    pub fn is_localhost(&self) -> bool {
        self.0 == "localhost"
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host, by its name or its address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// Names have to be resolved.
    Name(DomainName),
    /// Never a mapped one.
    Address(IpAddr),
}

/// As in an address of the web: IPv6 in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Why a text names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDestination {
    /// No host has so long a name.
    #[error("the name of the host is too long")]
    TooLong,
    /// Who somebody is, an escaped character, a space, a path.
    #[error("a name of a host cannot have {0:?} in it")]
    Character(char),
    /// A label is empty or too long, a number is no address, a name has no form in ASCII.
    #[error("{0:?} is no name of a host")]
    Name(String),
    /// Without one nothing can be connected to.
    #[error("the port is missing")]
    NoPort,
    /// Not between 1 and 65535.
    #[error("{0:?} is no port")]
    Port(String),
}

impl Host {
    /// Reads a host as requests and settings have it: IPv6 in brackets, numbers as systems read them, other
    /// alphabets as the name system has them.
    ///
    /// # Errors
    /// When it is no host, or could be read in two ways.
    pub fn parse(text: &str) -> Result<Self, InvalidDestination> {
        if text.len() > LONGEST {
            return Err(InvalidDestination::TooLong);
        }
        let wrong = |c: char| c.is_whitespace() || c.is_control() || "%@/\\?#,\"'<>^`{|}*".contains(c);
        if let Some(character) = text.chars().find(|c| wrong(*c)) {
            return Err(InvalidDestination::Character(character));
        }
        let no_host = || InvalidDestination::Name(text.to_owned());
        match Parsed::parse(text).map_err(|_| no_host())? {
            Parsed::Ipv4(address) => Ok(Self::Address(address.into())),
            Parsed::Ipv6(address) => Ok(Self::Address(IpAddr::from(address).to_canonical())),
            Parsed::Domain(name) => {
                let name = name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase();
                let fits = |label: &str| (1..=63).contains(&label.len());
                let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
                if name.len() > 253 || !name.split('.').all(fits) || !name.bytes().all(plain) {
                    return Err(no_host());
                }
                Ok(Self::Name(DomainName(name)))
            }
        }
    }
}

/// A host and a port of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The host.
    pub host: Host,
    /// The port; never 0.
    pub port: u16,
}

impl Destination {
    /// Reads `HOST:PORT`; `usual` is the port that may be left out.
    ///
    /// # Errors
    /// When it is no host and port, or could be read in two ways.
    pub fn parse(text: &str, usual: Option<u16>) -> Result<Self, InvalidDestination> {
        let (host, port) = split_port(text);
        let port = match port {
            Some(port) => read_port(port)?,
            None => usual.ok_or(InvalidDestination::NoPort)?,
        };
        let host = Host::parse(host)?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Host and port of `HOST:PORT`, where a port is.
pub(super) fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        // The colon is of an address in brackets.
        Some((_, after)) if after.contains(']') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

/// Digits only: other readers take a sign, or white space.
pub(super) fn read_port(text: &str) -> Result<u16, InvalidDestination> {
    let digits = !text.is_empty() && text.len() <= 5 && text.bytes().all(|digit| digit.is_ascii_digit());
    let port = digits.then(|| text.parse().ok()).flatten().filter(|port| *port != 0);
    port.ok_or_else(|| InvalidDestination::Port(text.to_owned()))
}
