//! Which addresses a tenant's endpoint may have: global unicast ones, and nothing that leads back inside.
//!
//! Flow: an [`IpAddr`], from a URL or from the resolver, is looked up in two tables of refused ranges. For IPv6 only
//! `2000::/3` passes at all, less its special ranges, so a range that nobody has thought of is refused. The one exception
//! is NAT64 (`64:ff9b::/96`), judged by the IPv4 address inside, because on an IPv6-only network every IPv4 endpoint
//! resolves to it.
//!
//! Deliberately absent: names, ports and connecting. Who judges must also connect to the very address that was judged.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// What may be reached beside global unicast addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressPolicy {
    /// Lets `127.0.0.0/8` and `::1` through: for development and tests.
    pub loopback_allowed: bool,
}

/// An address that no endpoint may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRefused {
    pub addr: IpAddr,
    /// What it is, in words.
    pub range: &'static str,
}

impl fmt::Display for AddressRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not a public address ({}): use one that the internet can reach", self.addr, self.range)
    }
}

impl std::error::Error for AddressRefused {}

/// First address, prefix length, what the range is.
const V4_REFUSED: [(Ipv4Addr, u32, &str); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "this network"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "carrier-grade NAT"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "protocol assignments"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(255, 255, 255, 255), 32, "broadcast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

const V6_REFUSED: [(Ipv6Addr, u32, &str); 13] = [
    (Ipv6Addr::LOCALHOST, 128, "loopback"),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, "IPv4-mapped"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "local NAT64"),
    (Ipv6Addr::UNSPECIFIED, 8, "reserved"),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "protocol assignments, Teredo among them"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "documentation"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16, "segment routing"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "unique local"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "link-local"),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, "site-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "multicast"),
];

const GLOBAL_UNICAST: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0);
const NAT64: Ipv6Addr = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0);

/// Passes global unicast addresses, and loopback if `policy` says so.
///
/// # Errors
/// Names the address and the range that it is in.
pub fn judge(addr: IpAddr, policy: AddressPolicy) -> Result<(), AddressRefused> {
    // `is_loopback` is 127.0.0.0/8 and ::1 alone: a mapped or translated loopback address stays refused.
    if policy.loopback_allowed && addr.is_loopback() {
        return Ok(());
    }
    let refused = match addr {
        IpAddr::V4(v4) => v4_range(v4),
        IpAddr::V6(v6) => v6_range(v6),
    };
    refused.map_or(Ok(()), |range| Err(AddressRefused { addr, range }))
}

fn v4_range(addr: Ipv4Addr) -> Option<&'static str> {
    let within = |first: Ipv4Addr, prefix: u32| (addr.to_bits() ^ first.to_bits()).leading_zeros() >= prefix;
    V4_REFUSED.iter().find(|(first, prefix, _)| within(*first, *prefix)).map(|(_, _, range)| *range)
}

fn v6_range(addr: Ipv6Addr) -> Option<&'static str> {
    let within = |first: Ipv6Addr, prefix: u32| (addr.to_bits() ^ first.to_bits()).leading_zeros() >= prefix;
    if within(NAT64, 96) {
        let [.., a, b, c, d] = addr.octets();
        return v4_range(Ipv4Addr::new(a, b, c, d));
    }
    let named = V6_REFUSED.iter().find(|(first, prefix, _)| within(*first, *prefix)).map(|(_, _, range)| *range);
    named.or_else(|| (!within(GLOBAL_UNICAST, 3)).then_some("not global unicast"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: AddressPolicy = AddressPolicy { loopback_allowed: false };
    const LENIENT: AddressPolicy = AddressPolicy { loopback_allowed: true };

    /// Neighbour before, first, last, neighbour after. A neighbour that is refused by another range is left empty.
    const V4_EDGES: [[&str; 4]; 16] = [
        ["", "0.0.0.0", "0.255.255.255", "1.0.0.0"],
        ["9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"],
        ["100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"],
        ["126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"],
        ["169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"],
        ["172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"],
        ["191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"],
        ["192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"],
        ["192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"],
        ["192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"],
        ["198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"],
        ["198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"],
        ["203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"],
        ["223.255.255.255", "224.0.0.0", "239.255.255.255", ""],
        ["", "240.0.0.0", "255.255.255.254", ""],
        ["", "255.255.255.255", "255.255.255.255", ""],
    ];

    const V6_EDGES: [[&str; 4]; 15] = [
        ["", "::", "ff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""],
        ["", "100::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"],
        ["2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"],
        [
            "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "2001:db9::",
        ],
        ["2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"],
        ["3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"],
        ["3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""],
        ["", "5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""],
        ["", "5f01::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""],
        ["", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""],
        ["", "fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""],
        ["", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""],
        ["", "fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""],
        ["", "ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""],
        ["", "64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", ""],
    ];

    fn refused(text: &str, policy: AddressPolicy) -> bool {
        judge(text.parse().unwrap(), policy).is_err()
    }

    #[test]
    fn every_special_range_is_refused_from_edge_to_edge_and_its_neighbours_pass() {
        for [before, first, last, after] in V4_EDGES.into_iter().chain(V6_EDGES) {
            assert!(refused(first, STRICT), "{first}");
            assert!(refused(last, STRICT), "{last}");
            for neighbour in [before, after].into_iter().filter(|text| !text.is_empty()) {
                assert!(!refused(neighbour, STRICT), "{neighbour}");
            }
        }
    }

    #[test]
    fn addresses_of_the_internet_pass() {
        for text in ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:830::200e"] {
            assert!(!refused(text, STRICT), "{text}");
        }
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_refused_even_a_public_one() {
        for text in ["::ffff:8.8.8.8", "::ffff:127.0.0.1", "::ffff:0:8.8.8.8", "::8.8.8.8", "2002:808:808::"] {
            assert!(refused(text, STRICT), "{text}");
            assert!(refused(text, LENIENT), "{text}");
        }
    }

    #[test]
    fn nat64_is_judged_by_the_ipv4_address_inside() {
        assert!(!refused("64:ff9b::8.8.8.8", STRICT));
        for [before, first, last, after] in V4_EDGES {
            assert!(refused(&format!("64:ff9b::{first}"), STRICT), "{first}");
            assert!(refused(&format!("64:ff9b::{last}"), STRICT), "{last}");
            for neighbour in [before, after].into_iter().filter(|text| !text.is_empty()) {
                assert!(!refused(&format!("64:ff9b::{neighbour}"), STRICT), "{neighbour}");
            }
        }
        for outside in ["64:ff9a:ffff:ffff:ffff:ffff:808:808", "64:ff9b::1:808:808", "64:ff9b:2::808:808"] {
            assert!(refused(outside, STRICT), "{outside}");
        }
    }

    #[test]
    fn allowing_loopback_lets_nothing_else_through() {
        for loopback in ["127.0.0.0", "127.0.0.1", "127.255.255.255", "::1"] {
            assert!(refused(loopback, STRICT) && !refused(loopback, LENIENT), "{loopback}");
        }
        for text in ["::2", "::", "0.0.0.0", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "::127.0.0.1"] {
            assert!(refused(text, LENIENT), "{text}");
        }
        for [_, first, last, _] in V4_EDGES.into_iter().chain(V6_EDGES) {
            for text in [first, last].into_iter().filter(|text| !text.starts_with("127.")) {
                assert!(refused(text, LENIENT), "{text}");
            }
        }
    }

    #[test]
    fn the_message_names_the_address_and_what_is_wrong_with_it() {
        let fault = judge("169.254.169.254".parse().unwrap(), STRICT).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "169.254.169.254 is not a public address (link-local): use one that the internet can reach"
        );
    }
}
