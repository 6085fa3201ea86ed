//! A coordinator's configuration: parsed and checked once, before anything is opened.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use http::HeaderValue;
use kage_core::access::Capabilities;
use kage_core::budget::BudgetRule;
use kage_core::deadline::Patience;
use kage_core::price::{InvalidPrices, PriceTable};
use kage_core::retention::Limits;
use url::Url;

#[derive(Debug, Clone)]
pub struct Config {
    /// Where all its data is kept. Held by an exclusive lock.
    pub data_dir: PathBuf,
    /// Accept the folder's content and its database as belonging together, even if nothing in them
    /// says so.
    pub adopt_data: bool,
    /// Accept a database that ends before what was acknowledged.
    pub accept_older: bool,
    /// Port 0: any free port.
    pub listen: SocketAddr,
    /// Use TLS on loopback too. Any other address always uses TLS.
    pub tls: bool,
    /// Names and addresses under which others reach it, besides those that it finds itself.
    pub public_names: Vec<String>,
    /// Origins of browser pages that may call it; none by default.
    pub web_origins: Vec<Origin>,
    /// How much data of ended tasks is kept.
    pub retention: Limits,
    pub prices: PriceTable,
    /// What each person and each project may spend in a period.
    pub budgets: Vec<BudgetRule>,
    pub timings: Timings,
    /// Numbers of connections, and how long one may be idle.
    pub connections: ConnectionLimits,
    /// What one caller may take.
    pub callers: CallerLimits,
    /// How long it waits for connected agents that do not act.
    pub patience: Patience,
    /// What agents may be given to do that show the owner's token. Whoever can read the token's file can
    /// be such an agent, so their word on a result is not taken unless this says so.
    pub token_agents: Capabilities,
}

/// The built-in prices merged with a user's file, which replaces every row of each model that it
/// names.
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
            accept_older: false,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: false,
            public_names: Vec::new(),
            web_origins: Vec::new(),
            retention: Limits::default(),
            prices: PriceTable::builtin().clone(),
            budgets: Vec::new(),
            timings: Timings::default(),
            connections: ConnectionLimits::default(),
            callers: CallerLimits::default(),
            patience: Patience::default(),
            token_agents: Capabilities::RUN,
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

/// The origin of a page in a browser: `https://HOST[:PORT]`, as browsers write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl Origin {
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
        // Browsers compare letter by letter: another spelling would never match.
        if !matches!(url.scheme(), "http" | "https") || url.origin().ascii_serialization() != text {
            return Err(invalid());
        }
        HeaderValue::from_str(text).map(Self).map_err(|_| invalid())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an origin: write https://HOST or https://HOST:PORT, in small letters and without a path")]
pub struct InvalidOrigin(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    pub heartbeat: Duration,
    /// How long an agent may act without an answer from the coordinator.
    pub lease_ttl: Duration,
    /// A connected agent that is silent for this long is lost, and its attempts end.
    pub lost_after: Duration,
    /// A disconnected agent's attempts end after this time.
    pub grace: Duration,
    /// An unanswered offer is withdrawn after this time.
    pub offer: Duration,
    /// How long a job is not offered again to an agent that refused it.
    pub refusal: Duration,
    /// After this time without a connection an agent kills its frozen attempts.
    pub max_detached: Duration,
    /// Validity of an agent's certificate.
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

/// Limits of connections. A stranger is a client that has shown neither a certificate nor a token
/// on a connection yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections in all; never more than half of the files that the process may open.
    pub all: usize,
    /// Connections of strangers; never more than half of all.
    pub strangers: usize,
    /// Connections of strangers from one IPv4 address, or one /64 of IPv6.
    pub strangers_per_address: usize,
    /// How long a stranger may take from connecting to the whole head of a request, including TLS,
    /// and how long it may be idle afterwards.
    pub first_request: Duration,
    /// How long one request of a stranger may take.
    pub stranger_request: Duration,
    /// How long a known client's connection may have no open call.
    pub idle: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            // Thousands of agents have three each; one costs some 10 KiB.
            all: 16_384,
            // An honest client is a stranger for one round trip.
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

/// What one caller may take of the coordinator. The owner's token is not limited. 0 = no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallerLimits {
    /// Wrong tokens and join secrets from one IPv4 address, or one /64 of IPv6, that are answered at
    /// once. More are answered late, and then not at all.
    pub wrong_tokens_per_minute: u32,
    /// Calls of one token or agent, on average; ten times as many at once.
    pub calls_per_second: u32,
    /// Watches that one token may have open.
    pub watches: u32,
    /// Bytes that wait for the networks of all watchers together.
    pub watch_bytes: u64,
    /// Bytes of blobs, contexts and pushes that one token or agent may send in an hour.
    pub upload_per_hour: u64,
    /// Bytes that one project may have in blobs and repositories before it gets no more.
    pub project_bytes: u64,
    /// Sessions of one project that may wait for an agent before it gets no new task.
    pub waiting_sessions: u32,
    /// Bytes of each stream of output of one attempt.
    pub output: u64,
}

impl Default for CallerLimits {
    fn default() -> Self {
        Self {
            // A person mistypes a few; a fleet with an old token behind one address is told soon enough.
            wrong_tokens_per_minute: 60,
            // An agent with 32 sessions makes some ten calls in a second at most.
            calls_per_second: 200,
            // One that does not read holds half a MiB, and is cut after a minute.
            watches: 100,
            // Some hundred that read slowly at once.
            watch_bytes: 128 << 20,
            // Twice the largest push.
            upload_per_hour: 64 << 30,
            // How large disks and repositories are is different everywhere.
            project_bytes: 0,
            // A hundred tasks of a thousand sessions.
            waiting_sessions: 100_000,
            // Agents stop at a quarter of it by themselves.
            output: 1 << 30,
        }
    }
}

/// Why a user's prices cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UnusablePrices {
    #[error("the price file {path} cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It is not a price table.
    #[error("the price file {path} cannot be used")]
    Invalid {
        path: PathBuf,
        #[source]
        source: InvalidPrices,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    /// A lease would expire between two heartbeats.
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
