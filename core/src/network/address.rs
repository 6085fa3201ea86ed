//! What an address is: public, or of a kind that a name does not lead to unless the address is named too.
//! An address in which another one is packed (mapped, NAT64, 6to4, Teredo) is what the packed one is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::words::words;

words! {
    /// What an address is that is not public.
    pub enum AddressKind: "a kind of address" {
        /// This machine.
        Loopback = "loopback" ("an address of the machine itself"),
        /// No address of anything; systems take it for this machine.
        Unspecified = "unspecified" ("no address of a host"),
        /// Of one wire; where clouds tell machines their secrets.
        LinkLocal = "link_local" ("a link-local address"),
        /// Of an organisation's own network.
        Private = "private" ("a private address"),
        /// Of a provider's own network (100.64.0.0/10).
        Shared = "shared" ("an address of a provider's own network"),
        /// Of many machines at once.
        Multicast = "multicast" ("a multicast address"),
        /// For documents, measurements, or the future.
        Reserved = "reserved" ("a reserved address"),
    }
}

impl AddressKind {
    /// The kind of an address; `None` for a public one.
    #[must_use]
    pub fn of(address: IpAddr) -> Option<Self> {
        match address.to_canonical() {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }
}

/// Of IPv4, by the registry of special addresses; the first range that an address is in counts.
const V4: &[(Ipv4Addr, u8, AddressKind)] = &[
    (Ipv4Addr::UNSPECIFIED, 8, AddressKind::Unspecified),
    (Ipv4Addr::new(127, 0, 0, 0), 8, AddressKind::Loopback),
    (Ipv4Addr::new(169, 254, 0, 0), 16, AddressKind::LinkLocal),
    (Ipv4Addr::new(10, 0, 0, 0), 8, AddressKind::Private),
    (Ipv4Addr::new(172, 16, 0, 0), 12, AddressKind::Private),
    (Ipv4Addr::new(192, 168, 0, 0), 16, AddressKind::Private),
    (Ipv4Addr::new(100, 64, 0, 0), 10, AddressKind::Shared),
    (Ipv4Addr::new(224, 0, 0, 0), 4, AddressKind::Multicast),
    (Ipv4Addr::new(240, 0, 0, 0), 4, AddressKind::Reserved),
    (Ipv4Addr::new(192, 0, 0, 0), 24, AddressKind::Reserved),
    (Ipv4Addr::new(192, 0, 2, 0), 24, AddressKind::Reserved),
    (Ipv4Addr::new(198, 18, 0, 0), 15, AddressKind::Reserved),
    (Ipv4Addr::new(198, 51, 100, 0), 24, AddressKind::Reserved),
    (Ipv4Addr::new(203, 0, 113, 0), 24, AddressKind::Reserved),
];

/// Of IPv6, likewise. What packs an address of IPv4 is looked at before.
const V6: &[(Ipv6Addr, u8, AddressKind)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, AddressKind::Unspecified),
    (Ipv6Addr::LOCALHOST, 128, AddressKind::Loopback),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, AddressKind::LinkLocal),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, AddressKind::Private),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, AddressKind::Private),
    // NAT64 of an organisation: what is behind it is the organisation's affair.
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, AddressKind::Private),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, AddressKind::Multicast),
];

/// The only range of IPv6 that is given out to networks.
const GLOBAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const DOCUMENTS: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

fn of_v4(address: Ipv4Addr) -> Option<AddressKind> {
    let found = V4.iter().find(|(range, prefix, _)| within_v4(address, *range, *prefix));
    found.map(|(.., kind)| *kind)
}

fn of_v6(address: Ipv6Addr) -> Option<AddressKind> {
    let found = V6.iter().find(|(range, prefix, _)| within_v6(address, *range, *prefix));
    if let Some((.., kind)) = found {
        return Some(*kind);
    }
    if let Some(packed) = packed(address) {
        return of_v4(packed);
    }
    let reserved = DOCUMENTS
        .iter()
        .any(|(range, prefix)| within_v6(address, *range, *prefix))
        || !within_v6(address, GLOBAL.0, GLOBAL.1);
    reserved.then_some(AddressKind::Reserved)
}

/// The address of IPv4 that a router or tunnel makes of one of IPv6.
fn packed(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        // Compatible, mapped, translated (RFC 2765), NAT64.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        // 6to4.
        | [0x2002, high, low, ..] => Some(of(high, low)),
        // Teredo has the client's address inverted at its end.
        [0x2001, 0, .., high, low] => Some(of(!high, !low)),
        // ISATAP.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => Some(of(high, low)),
        _ => None,
    }
}

fn within_v4(address: Ipv4Addr, range: Ipv4Addr, prefix: u8) -> bool {
    let apart = address.to_bits() ^ range.to_bits();
    apart.leading_zeros() >= u32::from(prefix)
}

fn within_v6(address: Ipv6Addr, range: Ipv6Addr, prefix: u8) -> bool {
    let apart = address.to_bits() ^ range.to_bits();
    apart.leading_zeros() >= u32::from(prefix)
}

/// Addresses with a common beginning, such as `10.0.0.0/8`; a single one has all its bits in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    address: IpAddr,
    prefix: u8,
}

impl AddressRange {
    /// The addresses that have the first `prefix` bits of this one. `None` when it has not so many, or when
    /// there are so few that the range is most of the internet.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let (fewest, most) = match address {
            IpAddr::V4(_) => (8, 32),
            IpAddr::V6(_) => (7, 128),
        };
        (fewest..=most).contains(&prefix).then_some(Self { address, prefix })
    }

    /// This address alone.
    #[must_use]
    pub fn only(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        Self { address, prefix }
    }

    /// Whether an address, mapped or not, is one of these.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(range), IpAddr::V4(address)) => within_v4(address, range, self.prefix),
            (IpAddr::V6(range), IpAddr::V6(address)) => within_v6(address, range, self.prefix),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// The address, when it is only one.
    #[must_use]
    pub fn single(&self) -> Option<IpAddr> {
        (*self == Self::only(self.address)).then_some(self.address)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(address) => address.fmt(f),
            None => write!(f, "{}/{}", self.address, self.prefix),
        }
    }
}
