//! The proxy that the agent itself goes through, as `HTTPS_PROXY` and its like name it in the agent's own
//! environment. It resolves names, so addresses cannot be looked at before it connects.

use std::fmt;
use std::io;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kage_core::network::{AddressRange, Destination, DomainName, Host};
use tokio::net::TcpStream;
use url::Url;

use crate::process::AgentEnvironment;

/// How the agent gets out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upstream {
    https: Option<UpstreamProxy>,
    http: Option<UpstreamProxy>,
    without: Vec<Without>,
}

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct UpstreamProxy {
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
}

/// Without what lets the agent in.
impl fmt::Debug for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("UpstreamProxy");
        shown
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Without {
    Everything,
    Domain(DomainName, Option<u16>),
    Addresses(AddressRange),
}

/// Why the agent's proxy cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} of the agent is no address that begins with http://, so that programs cannot be let through it")]
pub struct InvalidUpstream {
    /// The name of the variable.
    pub variable: &'static str,
}

/// Why the agent's proxy makes no tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoTunnel {
    #[error("it cannot be reached")]
    Io(#[from] io::Error),
    #[error("it did not answer")]
    Http(#[from] hyper::Error),
    #[error("it answered {0}")]
    Answer(StatusCode),
}

impl NoTunnel {
    pub(super) fn is_late(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::TimedOut)
    }
}

/// The variables of each kind, the first that is set counts.
const HTTPS: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const HTTP: [&str; 4] = ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"];
const NO: [&str; 2] = ["NO_PROXY", "no_proxy"];

impl Upstream {
    /// That of an agent with this environment.
    ///
    /// # Errors
    /// When a proxy is none that is asked by HTTP.
    pub fn of(environment: &AgentEnvironment) -> Result<Self, InvalidUpstream> {
        let first = |names: &[&'static str]| {
            let mut set = names.iter().filter_map(|name| Some((*name, environment.text(name)?)));
            set.next()
        };
        let proxy = |names: &[&'static str]| match first(names) {
            Some((variable, text)) => UpstreamProxy::parse(text).ok_or(InvalidUpstream { variable }).map(Some),
            None => Ok(None),
        };
        let without = first(&NO).map_or("", |(_, text)| text);
        Ok(Self {
            https: proxy(&HTTPS)?,
            http: proxy(&HTTP)?,
            without: without
                .split(',')
                .filter_map(|entry| Without::parse(entry.trim()))
                .collect(),
        })
    }

    /// The proxy by which a tunnel to there is made.
    pub(super) fn tunnels_to(&self, to: &Destination) -> Option<&UpstreamProxy> {
        self.https.as_ref().filter(|_| !self.leaves_out(to))
    }

    /// The proxy by which requests without encryption go there.
    pub(super) fn plain_to(&self, to: &Destination) -> Option<&UpstreamProxy> {
        self.http.as_ref().filter(|_| !self.leaves_out(to))
    }

    fn leaves_out(&self, to: &Destination) -> bool {
        // Who asks for the machine itself means this one, not the proxy's.
        let own = match &to.host {
            Host::Name(name) => name.is_localhost(),
            Host::Address(address) => address.is_loopback(),
        };
        own || self.without.iter().any(|entry| entry.means(to))
    }
}

impl Without {
    /// What cannot be read is left out, as others do.
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, prefix)) = entry.split_once('/') {
            let range = AddressRange::new(address.parse().ok()?, prefix.parse().ok()?);
            return range.map(Self::Addresses);
        }
        if let Ok(address) = entry.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Some(Self::Addresses(AddressRange::only(address)));
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let host = host.strip_prefix('*').unwrap_or(host);
        match Host::parse(host.strip_prefix('.').unwrap_or(host)).ok()? {
            Host::Name(name) => Some(Self::Domain(name, port)),
            Host::Address(address) => Some(Self::Addresses(AddressRange::only(address))),
        }
    }

    fn means(&self, to: &Destination) -> bool {
        match (self, &to.host) {
            (Self::Everything, _) => true,
            (Self::Domain(domain, port), Host::Name(name)) => {
                (name == domain || name.is_below(domain)) && port.is_none_or(|port| port == to.port)
            }
            (Self::Addresses(range), Host::Address(address)) => range.contains(*address),
            (Self::Domain(..), Host::Address(_)) | (Self::Addresses(_), Host::Name(_)) => false,
        }
    }
}

impl UpstreamProxy {
    /// Reads `http://[USER:PASSWORD@]HOST[:PORT]`; the scheme may be left out, as many programs allow.
    fn parse(text: &str) -> Option<Self> {
        let text = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let url = Url::parse(&text).ok().filter(|url| url.scheme() == "http")?;
        let authorization = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => Some(basic(user, password.unwrap_or_default())?),
        };
        Some(Self {
            host: url.host_str()?.trim_matches(['[', ']']).to_owned(),
            port: url.port_or_known_default()?,
            authorization,
        })
    }

    pub(super) fn address(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// What lets the agent in.
    pub(super) const fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }
}

/// The header of a user and a password, which are as they stand in an address.
fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    let plain = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let escaped = after.get(..2).filter(|_| *first == b'%');
            let decoded = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
            bytes.push(decoded.unwrap_or(*first));
            rest = if decoded.is_some() { &after[2..] } else { after };
        }
        bytes
    };
    let both = [plain(user), plain(password)].join(&b':');
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(both))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Asks the agent's proxy for a tunnel.
pub(super) async fn ask(
    stream: TcpStream,
    to: &Destination,
    proxy: &UpstreamProxy,
) -> Result<TokioIo<Upgraded>, NoTunnel> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let target = to.to_string();
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(&target)
        .header(HOST, &target);
    if let Some(authorization) = proxy.authorization() {
        request = request.header(PROXY_AUTHORIZATION, authorization);
    }
    // A destination is a valid target of a request.
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let asking = async {
        let answer = sender.send_request(request).await?;
        if !answer.status().is_success() {
            return Err(NoTunnel::Answer(answer.status()));
        }
        Ok(hyper::upgrade::on(answer).await?)
    };
    let connection = connection.with_upgrades();
    tokio::pin!(asking, connection);
    // The connection ends with the tunnel made, or by an error that the request has too.
    let (mut open, mut connection) = (true, connection);
    loop {
        tokio::select! {
            asked = &mut asking => return asked.map(TokioIo::new),
            ended = &mut connection, if open => {
                open = false;
                if let Err(error) = ended {
                    tracing::debug!(%error, "the agent's proxy broke the connection");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(variables: &[(&str, &str)]) -> Result<Upstream, InvalidUpstream> {
        Upstream::of(&AgentEnvironment::from_iter(variables.iter().copied()))
    }

    fn to(text: &str) -> Destination {
        Destination::parse(text, None).unwrap()
    }

    #[test]
    fn the_proxy_of_the_agent_is_read_from_its_environment() {
        assert_eq!(upstream(&[]), Ok(Upstream::default()));
        let some = upstream(&[
            ("HTTPS_PROXY", "http://me:p%40ss@proxy.corp:3128/"),
            ("http_proxy", "proxy.corp"),
        ]);
        let some = some.unwrap();
        let tunnel = some.tunnels_to(&to("example.com:443")).unwrap();
        assert_eq!(tunnel.address(), ("proxy.corp", 3128));
        let expected = format!("Basic {}", BASE64_STANDARD.encode("me:p@ss"));
        assert_eq!(tunnel.authorization().unwrap(), &expected);
        assert_eq!(
            some.plain_to(&to("example.com:80")).unwrap().address(),
            ("proxy.corp", 80)
        );
        assert!(!format!("{some:?}").contains(&BASE64_STANDARD.encode("me:p@ss")));

        let all = upstream(&[("ALL_PROXY", "http://[::1]:8080")]).unwrap();
        assert_eq!(all.plain_to(&to("example.com:80")).unwrap().address(), ("::1", 8080));
        for wrong in ["socks5://proxy:1080", "https://proxy", "http://", "http://a b"] {
            let refused = upstream(&[("HTTPS_PROXY", wrong)]);
            assert_eq!(
                refused,
                Err(InvalidUpstream {
                    variable: "HTTPS_PROXY"
                }),
                "{wrong}"
            );
        }
    }

    #[test]
    fn no_proxy_leaves_out_hosts_as_others_read_it() {
        let no = "corp, .example.org,*.example.net,10.0.0.0/8,192.168.1.1,host.test:8080,,:";
        let some = upstream(&[("HTTPS_PROXY", "http://proxy"), ("NO_PROXY", no)]).unwrap();
        for (asked, goes) in [
            ("example.com:443", true),
            ("a.corp:443", false),
            ("corp:443", false),
            ("acorp:443", true),
            ("example.org:443", false),
            ("a.example.org:443", false),
            ("a.example.net:443", false),
            ("10.1.2.3:443", false),
            ("192.168.1.1:443", false),
            ("192.168.1.2:443", true),
            ("host.test:8080", false),
            ("host.test:443", true),
            ("localhost:5432", false),
            ("127.0.0.1:80", false),
        ] {
            assert_eq!(some.tunnels_to(&to(asked)).is_some(), goes, "{asked}");
        }
        let nothing = upstream(&[("HTTPS_PROXY", "http://proxy"), ("no_proxy", "*")]).unwrap();
        assert!(nothing.tunnels_to(&to("example.com:443")).is_none());
    }
}
