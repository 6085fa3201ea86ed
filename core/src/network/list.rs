//! The decision: whether a host is on the list, and which of its addresses may be connected to. A name that
//! is on the list leads only to public addresses, unless an address is on the list too: who answers for a
//! name could otherwise lead programs to the machine itself, or to what trusts everybody in its network.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::AddressKind;
use super::destination::{Destination, Host};
use super::rule::AllowRule;
use super::{MOST_FORWARDS, NetworkPolicy};

/// What may be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList(Vec<AllowRule>);

impl FromIterator<AllowRule> for AllowList {
    fn from_iter<T: IntoIterator<Item = AllowRule>>(rules: T) -> Self {
        Self(rules.into_iter().collect())
    }
}

/// Why a program may not connect there. The words name the host and the setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its policy is `none`.
    #[error("{0} cannot be reached: programs have no network here, by the policy \"none\" in [network]")]
    NoNetwork(Destination),
    /// The host is not on the list.
    #[error("{} is not on the list of this agent: [network] allow = [\"{}\"]", .0.host, entry(.0))]
    NotListed(Destination),
    /// The host is on the list, at another port.
    #[error("{0} is not on the list of this agent, only other ports of it: [network] allow = [\"{0}\"]")]
    OtherPort(Destination),
    /// The name leads to no address that is public or on the list.
    #[error("{} leads to {address}, {kind}, which is not on the list of this agent: [network] allow = [\"{address}\"]", .to.host)]
    Address {
        /// What was asked for.
        to: Destination,
        /// One of its addresses.
        address: IpAddr,
        /// What that is.
        kind: AddressKind,
    },
}

impl Refused {
    /// What was asked for.
    #[must_use]
    pub const fn destination(&self) -> &Destination {
        match self {
            Self::NoNetwork(to) | Self::NotListed(to) | Self::OtherPort(to) | Self::Address { to, .. } => to,
        }
    }
}

/// What to write into the list.
fn entry(to: &Destination) -> String {
    match to.port {
        80 | 443 => to.host.to_string(),
        _ => to.to_string(),
    }
}

impl AllowList {
    /// Whether a host may be reached, before its name is resolved.
    ///
    /// # Errors
    /// When it is not on the list.
    pub fn named(&self, to: &Destination) -> Result<(), Refused> {
        if self.rules_for(to).next().is_some() {
            return Ok(());
        }
        match self.0.iter().any(|rule| rule.means(&to.host)) {
            true => Err(Refused::OtherPort(to.clone())),
            false => Err(Refused::NotListed(to.clone())),
        }
    }

    /// The addresses that may be connected to, of those of a host that is on the list. What is connected to
    /// is one of them: a name that is resolved once more may lead elsewhere.
    ///
    /// # Errors
    /// When there is none.
    pub fn addresses(&self, to: &Destination, resolved: &[IpAddr]) -> Result<Vec<IpAddr>, Refused> {
        let (mut fine, mut refused) = (Vec::new(), None);
        for address in resolved.iter().map(IpAddr::to_canonical) {
            match AddressKind::of(address) {
                Some(kind) if !self.leads_to(to, address) => {
                    refused.get_or_insert(Refused::Address {
                        to: to.clone(),
                        address,
                        kind,
                    });
                }
                Some(_) | None => fine.push(address),
            }
        }
        match refused {
            Some(refused) if fine.is_empty() => Err(refused),
            Some(_) | None => Ok(fine),
        }
    }

    /// The ports of the machine itself that programs may reach, which are forwarded; at most [`MOST_FORWARDS`].
    /// First those of providers, without which a session can do nothing, then the lowest.
    #[must_use]
    pub fn forwards(&self) -> BTreeSet<u16> {
        let ports = |of_provider| -> BTreeSet<u16> {
            let rules = self.0.iter().filter(|rule| rule.is_anywhere() == of_provider);
            rules.filter_map(AllowRule::own_port).collect()
        };
        let first = ports(true);
        let others = ports(false).into_iter().filter(|port| !first.contains(port));
        first.iter().copied().chain(others).take(MOST_FORWARDS).collect()
    }

    fn rules_for<'a>(&'a self, to: &'a Destination) -> impl Iterator<Item = &'a AllowRule> {
        let mut rules = self.0.iter();
        std::iter::from_fn(move || rules.find(|rule| rule.means(&to.host) && rule.has_port(to.port)))
    }

    fn leads_to(&self, to: &Destination, address: IpAddr) -> bool {
        self.rules_for(to).any(AllowRule::is_anywhere) || self.0.iter().any(|rule| rule.leads_to(to, address))
    }
}

/// Whether programs with this policy may connect, and to which addresses. `resolved` are those of the host:
/// what its name was resolved to, or itself.
///
/// # Errors
/// When they may not.
pub fn decide(
    policy: NetworkPolicy,
    list: &AllowList,
    to: &Destination,
    resolved: &[IpAddr],
) -> Result<Vec<IpAddr>, Refused> {
    match policy {
        NetworkPolicy::None => Err(Refused::NoNetwork(to.clone())),
        NetworkPolicy::Open => Ok(resolved.to_vec()),
        NetworkPolicy::Gateway => {
            list.named(to)?;
            list.addresses(to, resolved)
        }
    }
}

impl Destination {
    /// The addresses that need nobody to be asked for: of an address itself, and of this machine.
    #[must_use]
    pub fn known_addresses(&self) -> Option<Vec<IpAddr>> {
        match &self.host {
            Host::Address(address) => Some(vec![*address]),
            Host::Name(name) if name.is_localhost() => {
                Some(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
            }
            Host::Name(_) => None,
        }
    }
}
