//! What a coordinator is told at its start: parsed and checked once, before anything is opened.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use http::HeaderValue;
use kage_core::deadline::Patience;
use kage_core::price::{InvalidPrices, PriceTable};
use kage_core::retention::Limits;
use url::Url;

/// How a coordinator runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where everything it knows is kept. Held by an exclusive lock.
    pub data_dir: PathBuf,
    /// Take what is there and its database as belonging together, also when they do not say so.
    pub adopt_data: bool,
    /// Where it listens. Port 0 = any.
    pub listen: SocketAddr,
    /// Speak TLS on loopback too. On any other address nothing else is spoken.
    pub tls: bool,
    /// Names and addresses under which others reach it, besides those that it finds itself.
    pub public_names: Vec<String>,
    /// Pages of these origins may call it from a browser; none may by default.
    pub web_origins: Vec<Origin>,
    /// How much is kept of tasks that ended.
    pub retention: Limits,
    /// What tokens of models cost.
    pub prices: PriceTable,
    /// How long it waits for what.
    pub timings: Timings,
    /// How many connections it has, and how long one may do nothing.
    pub connections: ConnectionLimits,
    /// How long it waits for agents that are there and do not act.
    pub patience: Patience,
}

/// The built-in prices with those of a user's file over them, which replace every row of each
/// model that it names.
///
/// # Errors
/// When the file cannot be read or is no price table.
pub fn prices_with(path: &Path) -> Result<PriceTable, UnusablePrices> {
    let path = path.to_owned();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(UnusablePrices::Read { path, source }),
    };
    match PriceTable::parse(&text) {
        Ok(own) => Ok(PriceTable::builtin().clone().overlay(own)),
        Err(source) => Err(UnusablePrices::Invalid { path, source }),
    }
}

impl Config {
    /// The defaults over this directory, on any free loopback port.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            adopt_data: false,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: false,
            public_names: Vec::new(),
            web_origins: Vec::new(),
            retention: Limits::default(),
            prices: PriceTable::builtin().clone(),
            timings: Timings::default(),
            connections: ConnectionLimits::default(),
            patience: Patience::default(),
        }
    }

    /// True when connections are encrypted: always, unless only this machine can make them.
    #[must_use]
    pub fn speaks_tls(&self) -> bool {
        self.tls || !self.listen.ip().is_loopback()
    }

    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let timings = &self.timings;
        if timings.heartbeat.is_zero() || timings.lease_ttl <= timings.heartbeat {
            return Err(InvalidConfig::LeaseTooShort);
        }
        if timings.lost_after <= timings.heartbeat {
            return Err(InvalidConfig::LostTooSoon);
        }
        Ok(())
    }
}

/// Where a page in a browser comes from: `https://HOST[:PORT]`, as browsers write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl Origin {
    /// As it stands in a header.
    #[must_use]
    pub const fn header(&self) -> &HeaderValue {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let invalid = || InvalidOrigin(text.to_owned());
        let url = Url::parse(text).map_err(|_| invalid())?;
        // Browsers compare letter by letter: what is written otherwise would never match.
        if !matches!(url.scheme(), "http" | "https") || url.origin().ascii_serialization() != text {
            return Err(invalid());
        }
        HeaderValue::from_str(text).map(Self).map_err(|_| invalid())
    }
}

/// This is no origin of a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin: write https://HOST or https://HOST:PORT, in small letters and without a path")]
pub struct InvalidOrigin(String);

/// How long a coordinator waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// How often agents say that they are there.
    pub heartbeat: Duration,
    /// How long an agent may act without hearing from the coordinator.
    pub lease_ttl: Duration,
    /// After so long without a word from a connected agent its attempts end.
    pub lost_after: Duration,
    /// After so long without a connection an agent's attempts end.
    pub grace: Duration,
    /// After so long without an answer an offer is taken back.
    pub offer: Duration,
    /// So long a job is not offered again to an agent that refused it.
    pub refusal: Duration,
    /// After so long without a connection an agent kills what it froze.
    pub max_detached: Duration,
    /// How long the certificate of an agent is good.
    pub agent_certificate: Duration,
    /// How long open calls have to end at a shutdown.
    pub drain: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(60),
            lost_after: Duration::from_secs(20),
            grace: Duration::from_secs(5),
            offer: Duration::from_secs(5),
            refusal: Duration::from_secs(30),
            max_detached: Duration::from_secs(10 * 60),
            agent_certificate: Duration::from_secs(90 * 24 * 60 * 60),
            drain: Duration::from_secs(5),
        }
    }
}

/// How many connections a coordinator has at once, and how long one may do nothing. A stranger is
/// whoever has shown neither a certificate nor a token on a connection yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections in all; never more than half of the files that the process may open.
    pub all: usize,
    /// Connections of strangers; never more than half of all.
    pub strangers: usize,
    /// Connections of strangers from one IPv4 address, or one /64 of IPv6.
    pub strangers_per_address: usize,
    /// How long a stranger may take from connecting to the whole head of a request, TLS included,
    /// and how long it may ask nothing afterwards.
    pub first_request: Duration,
    /// How long one request of a stranger may take.
    pub stranger_request: Duration,
    /// How long a connection of somebody who is known may have no call open.
    pub idle: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            // Thousands of agents have three each; one costs some 10 KiB.
            all: 16_384,
            // Whoever is honest is a stranger for one round trip.
            strangers: 1024,
            // An office or a cloud network behind one address, all coming back at once.
            strangers_per_address: 256,
            first_request: Duration::from_secs(10),
            // Enrol is the only one: some hundred bytes.
            stranger_request: Duration::from_secs(10),
            // Clients make a new connection when they need one.
            idle: Duration::from_secs(15 * 60),
        }
    }
}

/// Why a user's prices cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UnusablePrices {
    /// The file cannot be read.
    #[error("the price file {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is no price table.
    #[error("the price file {path} cannot be used")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: InvalidPrices,
    },
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// A lease would run out between two heartbeats.
    #[error("the lease ttl must be longer than the heartbeat interval, which must be more than zero")]
    LeaseTooShort,
    /// Every agent would be lost between two heartbeats.
    #[error("lost_after must be longer than the heartbeat interval")]
    LostTooSoon,
}

#[cfg(test)]
mod tests {
    use kage_core::time::Timestamp;

    use super::*;

    #[test]
    fn a_users_prices_lie_over_the_built_in_ones_and_must_be_right() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prices.toml");
        let missing = prices_with(&file).unwrap_err();
        assert!(
            matches!(&missing, UnusablePrices::Read { path, .. } if *path == file),
            "{missing:?}"
        );

        let row = "[[price]]\nmodel = 'claude-opus-5-5'\nprovider = 'us'\ninput = '1'\noutput = '2.5'\n";
        std::fs::write(&file, row).unwrap();
        let prices = prices_with(&file).unwrap();
        let now = Timestamp::from_millis(0);
        let own = prices.find("claude-opus-5-5", now).unwrap();
        assert_eq!((own.provider.as_str(), own.source.as_str()), ("us", "user"));
        let other = prices.find("claude-sonnet-5-5", now);
        assert_eq!(other, PriceTable::builtin().find("claude-sonnet-5-5", now));

        std::fs::write(&file, row.replace("'2.5'", "'2,5'")).unwrap();
        let wrong = anyhow::Error::from(prices_with(&file).unwrap_err());
        let said = format!("{wrong:#}");
        assert!(
            said.contains("output of claude-opus-5-5 is \"2,5\", not a decimal number"),
            "{said}"
        );
    }

    #[test]
    fn nothing_but_loopback_goes_without_tls() {
        let cases = [
            ("127.0.0.1:1", false, false),
            ("[::1]:1", false, false),
            ("127.0.0.1:1", true, true),
            ("0.0.0.0:1", false, true),
            ("[::]:1", false, true),
            ("10.0.0.1:1", false, true),
        ];
        for (listen, tls, expected) in cases {
            let config = Config {
                listen: listen.parse().unwrap(),
                tls,
                ..Config::new("/nowhere")
            };
            assert_eq!(config.speaks_tls(), expected, "{listen}");
        }
    }

    #[test]
    fn an_origin_is_written_as_browsers_write_it() {
        for good in ["https://kage.example", "http://localhost:5173", "https://[::1]:8443"] {
            let origin: Origin = good.parse().unwrap();
            assert_eq!(origin.header(), good);
        }
        for bad in [
            "*",
            "null",
            "",
            "kage.example",
            "https://kage.example/",
            "https://Kage.example",
            "https://kage.example:443",
            "https://kage.example/page",
            "file:///tmp",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn refuses_what_cannot_work() {
        let good = Config::new("/nowhere");
        assert_eq!(good.check(), Ok(()));
        let mut short = good.clone();
        short.timings.lease_ttl = short.timings.heartbeat;
        assert_eq!(short.check(), Err(InvalidConfig::LeaseTooShort));
        let mut soon = good;
        soon.timings.lost_after = soon.timings.heartbeat;
        assert_eq!(soon.check(), Err(InvalidConfig::LostTooSoon));
    }
}
