//! What an IP address tells: whether it is inside a private network, and which addresses are near each other.
//!
//! Pure. Addresses stay in memory and never reach a log line or a message. Used by `candidate.rs` (what may be passed
//! on), `meet.rs` (near first, but nobody surrounded by one network) and `evidence.rs` (independent witnesses).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that count as one place: an IPv4 /24 or an IPv6 /48, and all inside addresses together.
///
/// A /24 and a /48 are the smallest units that are routed apart, and what one customer or one rack usually gets: to
/// own many of them costs money, to own many addresses in one does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// Loopback, private, shared, link-local: see [`is_inside`].
    Inside,
    /// The first 24 bits.
    V4([u8; 3]),
    /// The first 48 bits.
    V6([u8; 6]),
}

impl Network {
    /// The network of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match canonical(address) {
            address if is_inside(address) => Self::Inside,
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }
}

/// An IPv4 address in IPv6 clothes (`::ffff:a.b.c.d`, what a dual-stack socket reports) is the IPv4 address.
#[must_use]
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Whether an address is loopback, private (RFC 1918), shared (RFC 6598), link-local or unique local.
#[must_use]
pub fn is_inside(address: IpAddr) -> bool {
    match canonical(address) {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local() || is_shared(v4),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Whether an address can belong to nobody's host: never a place to send packets to.
#[must_use]
pub(super) fn is_reserved(address: IpAddr) -> bool {
    match canonical(address) {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 192 && b == 0 && v4.octets()[2] == 0)
                || (a == 198 && (b == 18 || b == 19))
        }
        IpAddr::V6(v6) => {
            let [first, second, ..] = v6.segments();
            v6.is_unspecified() || v6.is_multicast() || (first == 0x2001 && second == 0x0db8) || embeds_v4(v6)
        }
    }
}

/// Whether two viewers may reach each other's inside addresses: the same public address means the same NAT, and two
/// inside addresses mean that the tracker itself stands in their network.
#[must_use]
pub(super) fn is_same_network(one: IpAddr, other: IpAddr) -> bool {
    let (one, other) = (canonical(one), canonical(other));
    (is_inside(one) && is_inside(other)) || is_same_host_or_site(one, other)
}

/// Equal, or of the same IPv6 /64: a host has many addresses in its /64 (RFC 8981).
#[must_use]
pub(super) fn is_same_host_or_site(one: IpAddr, other: IpAddr) -> bool {
    match (canonical(one), canonical(other)) {
        (IpAddr::V4(one), IpAddr::V4(other)) => one == other,
        (IpAddr::V6(one), IpAddr::V6(other)) => one.segments()[..4] == other.segments()[..4],
        _ => false,
    }
}

/// 100.64.0.0/10, between a carrier and its customers.
fn is_shared(v4: Ipv4Addr) -> bool {
    let [a, b, ..] = v4.octets();
    a == 100 && b & 0xc0 == 64
}

/// Ways to write an IPv4 address as an IPv6 one that a dual-stack host may send to: NAT64, 6to4 and the long-dead
/// IPv4-compatible form. They would carry a private IPv4 address past the checks.
fn embeds_v4(v6: Ipv6Addr) -> bool {
    let segments = v6.segments();
    segments[..2] == [0x64, 0xff9b]
        || segments[0] == 0x2002
        || (segments[..6] == [0; 6] && !v6.is_loopback() && !v6.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn private_shared_and_mapped_addresses_are_inside() {
        for inside in
            ["127.0.0.1", "10.1.2.3", "192.168.0.9", "100.64.0.1", "169.254.1.1", "::1", "fd00::1", "fe80::1"]
        {
            assert!(is_inside(ip(inside)), "{inside}");
        }
        assert!(is_inside(ip("::ffff:10.0.0.1")));
        for outside in ["100.128.0.1", "8.8.8.8", "2a01::1", "::ffff:8.8.8.8"] {
            assert!(!is_inside(ip(outside)), "{outside}");
        }
    }

    #[test]
    fn nobody_is_sent_to_reserved_addresses() {
        let reserved = [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::",
            "ff02::1",
            "2001:db8::1",
        ];
        for address in reserved {
            assert!(is_reserved(ip(address)), "{address}");
        }
        for embedded in ["64:ff9b::a00:1", "2002:0a00:0001::1", "::10.0.0.1"] {
            assert!(is_reserved(ip(embedded)), "{embedded}");
        }
        assert!(!is_reserved(ip("::1")) && !is_reserved(ip("203.0.112.7")));
    }

    #[test]
    fn networks_are_units_that_cost_money_to_own() {
        assert_eq!(Network::of(ip("5.6.7.8")), Network::of(ip("5.6.7.200")));
        assert_ne!(Network::of(ip("5.6.7.8")), Network::of(ip("5.6.8.8")));
        assert_eq!(Network::of(ip("2a01:4f8:1::1")), Network::of(ip("2a01:4f8:1:ffff::2")));
        assert_eq!(Network::of(ip("::ffff:127.0.0.1")), Network::Inside);
    }

    #[test]
    fn same_network_means_same_nat_or_both_inside() {
        assert!(is_same_network(ip("5.6.7.8"), ip("5.6.7.8")));
        assert!(!is_same_network(ip("5.6.7.8"), ip("5.6.7.9")));
        assert!(is_same_network(ip("10.0.0.1"), ip("192.168.1.1")));
        assert!(!is_same_network(ip("10.0.0.1"), ip("5.6.7.8")));
        assert!(is_same_network(ip("2a01::1"), ip("2a01::2")));
    }
}
