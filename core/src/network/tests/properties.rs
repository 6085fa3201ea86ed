//! What holds for every address and every name, against the ranges written down once more.

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

/// The ranges once more, written down as the standard library has them or by comparing numbers.
fn is_special(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let number = address.to_bits();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_documentation()
        || a == 0
        || (0x6440_0000..=0x647f_ffff).contains(&number)
        || (0xc612_0000..=0xc613_ffff).contains(&number)
        || (a, b, c) == (192, 0, 0)
        || a >= 240
}

fn v4() -> impl Strategy<Value = Ipv4Addr> {
    // Half of them at the edges of ranges.
    let edge = (0..14_usize, any::<bool>(), 0..2_u32).prop_map(|(which, end, off)| {
        let starts = [
            0_u32,
            0x7f00_0000,
            0xa9fe_0000,
            0x0a00_0000,
            0xac10_0000,
            0xc0a8_0000,
            0x6440_0000,
            0xe000_0000,
            0xf000_0000,
            0xc000_0000,
            0xc000_0200,
            0xc612_0000,
            0xc633_6400,
            0xcb00_7100,
        ];
        let bits = [8, 8, 16, 8, 12, 16, 10, 4, 4, 24, 24, 15, 24, 24];
        let size = 1_u64 << (32 - bits[which]);
        let past = u64::from(starts[which]) + if end { size - 1 + u64::from(off) } else { 0 };
        let number = if end { past } else { past.wrapping_sub(u64::from(off)) };
        Ipv4Addr::from_bits(u32::try_from(number & 0xffff_ffff).unwrap())
    });
    prop_oneof![edge, any::<u32>().prop_map(Ipv4Addr::from_bits)]
}

proptest! {
    #[test]
    fn an_address_is_special_in_every_form_or_in_none(address in v4()) {
        let [a, b, c, d] = address.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let forms = [
            IpAddr::V4(address),
            address.to_ipv6_mapped().into(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into(),
            Ipv6Addr::new(0x2001, 0, 1, 2, 3, 4, !high, !low).into(),
        ];
        for form in forms {
            prop_assert_eq!(AddressKind::of(form).is_some(), is_special(address), "{}", form);
        }
    }

    #[test]
    fn nothing_special_is_ever_connected_to_for_a_name(
        bits in prop::collection::vec(prop_oneof![
            v4().prop_map(IpAddr::from),
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
            any::<u64>().prop_map(|bits| Ipv6Addr::from_bits(u128::from(bits)).into()),
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits >> 8 | 0xfe << 120).into()),
        ], 0..6),
    ) {
        let rules = list(&["example.com", "*.example.org", "localhost:5432"]);
        if let Ok(fine) = decide(NetworkPolicy::Gateway, &rules, &to("example.com:443"), &bits) {
            for address in fine {
                prop_assert_eq!(AddressKind::of(address), None);
                prop_assert!(bits.iter().any(|one| one.to_canonical() == address));
            }
        }
    }

    #[test]
    fn reading_a_host_never_panics_and_has_one_form(text in "\\PC{0,40}|[a-zA-Z0-9.:%@\\[\\]-]{0,40}") {
        if let Ok(read) = Destination::parse(&text, Some(443)) {
            let shown = read.to_string();
            prop_assert_eq!(Destination::parse(&shown, None), Ok(read), "{}", shown);
        }
        if let Ok(rule) = text.parse::<AllowRule>() {
            prop_assert_eq!(rule.to_string().parse::<AllowRule>(), Ok(rule));
        }
    }

    #[test]
    fn what_no_rule_means_is_not_reached(
        host in "[a-c]{1,2}(\\.[a-c]{1,2}){0,3}",
        rules in prop::collection::vec("(\\*\\.)?[a-c]{1,2}(\\.[a-c]{1,2}){0,2}", 0..4),
    ) {
        let allowed: AllowList = rules.iter().map(|rule| rule.parse::<AllowRule>().unwrap()).collect();
        let asked = to(&format!("{host}:443"));
        // By labels, from the end.
        let labels: Vec<_> = host.split('.').rev().collect();
        let means = |rule: &String| match rule.strip_prefix("*.") {
            Some(domain) => {
                let domain: Vec<_> = domain.split('.').rev().collect();
                labels.len() > domain.len() && labels.starts_with(&domain)
            }
            None => *rule == host,
        };
        prop_assert_eq!(allowed.named(&asked).is_ok(), rules.iter().any(means));
    }
}
