//! Removes ICE candidates that would make the receiver send packets to somebody who did not ask for them.
//!
//! Pure. The rules are numbered in `protocol/PROTOCOL.md`, section 5, and each is enforced here by its number. What
//! else is checked about signaling (who may send it, how much) is in `signal.rs`.

use std::net::IpAddr;

use super::network::{canonical, is_inside, is_reserved, is_same_host_or_site, is_same_network};
use super::settings::Relays;

/// Ports below belong to services: a STUN check sent there reaches somebody's DNS server, not a viewer.
const PORT_MIN: u16 = 1024;

/// From where the tracker sees the two viewers, and what it knows of its operator's relays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<'a> {
    /// The viewer whose candidate it is.
    pub(super) sender: IpAddr,
    /// The viewer that would send packets to it.
    pub(super) receiver: IpAddr,
    /// The operator's TURN servers.
    pub(super) relays: &'a Relays,
    /// Whether only relay candidates pass.
    pub(super) relay_only: bool,
}

/// What is to be done with a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Pass on this text.
    Pass(String),
    /// Pass on this text if the sender has named fewer than the allowed number of addresses that can't be compared
    /// (rule 8).
    Uncertain(IpAddr, String),
    /// Drop it.
    Strip,
}

/// Judges one candidate line, with or without `a=`.
#[must_use]
pub(super) fn judge(line: &str, ends: &Ends<'_>) -> Verdict {
    match Candidate::parse(line) {
        Some(candidate) => candidate.judge(ends),
        None => Verdict::Strip,
    }
}

struct Candidate<'a> {
    foundation: &'a str,
    component: &'a str,
    priority: &'a str,
    address: &'a str,
    port: u16,
    kind: &'a str,
    /// Extensions after the type without `raddr` and `rport`.
    rest: Vec<(&'a str, &'a str)>,
}

impl<'a> Candidate<'a> {
    /// RFC 8839, section 5.1. Rule 1: anything but UDP and anything malformed is no candidate.
    fn parse(line: &'a str) -> Option<Self> {
        let line = line.strip_prefix("a=").unwrap_or(line).strip_prefix("candidate:")?;
        let mut words = line.split_ascii_whitespace();
        let foundation = words.next().filter(|word| word.len() <= 32)?;
        let component = words.next().filter(|word| matches!(*word, "1" | "2"))?;
        words.next().filter(|word| word.eq_ignore_ascii_case("udp"))?;
        let priority = words.next().filter(|word| word.parse::<u32>().is_ok())?;
        let address = words.next()?;
        let port = words.next()?.parse().ok()?;
        words.next().filter(|word| *word == "typ")?;
        let kind = words.next().filter(|word| matches!(*word, "host" | "srflx" | "prflx" | "relay"))?;
        let mut rest = Vec::new();
        while let Some(name) = words.next() {
            let value = words.next()?;
            if name != "raddr" && name != "rport" {
                rest.push((name, value));
            }
        }
        Some(Self { foundation, component, priority, address, port, kind, rest })
    }

    fn judge(&self, ends: &Ends<'_>) -> Verdict {
        if self.port < PORT_MIN || (ends.relay_only && self.kind != "relay") {
            return Verdict::Strip;
        }
        let near = is_same_network(ends.sender, ends.receiver);
        let Ok(address) = self.address.parse::<IpAddr>().map(canonical) else {
            // Rule 2. Any other name would make the receiver look it up, at a server of the sender's choice.
            return if near && is_mdns_name(self.address) {
                Verdict::Pass(self.render())
            } else {
                Verdict::Strip
            };
        };
        let pass = if is_reserved(address) {
            false // Rule 5.
        } else if address.is_loopback() {
            canonical(ends.sender).is_loopback() && canonical(ends.receiver).is_loopback() // Rule 3.
        } else if is_inside(address) {
            near // Rule 4.
        } else if self.kind == "relay" {
            match ends.relays {
                Relays::None => false, // Rule 6.
                Relays::At(relays) => relays.contains(&address),
                Relays::Unknown => return Verdict::Uncertain(address, self.render()), // Rule 8.
            }
        } else if is_inside(ends.sender) || is_same_host_or_site(address, ends.sender) {
            true // Rule 7: seen from inside, the sender's public address is not known.
        } else if address.is_ipv4() != canonical(ends.sender).is_ipv4() {
            return Verdict::Uncertain(address, self.render()); // Rule 8.
        } else {
            false // Rule 7.
        };
        if pass { Verdict::Pass(self.render()) } else { Verdict::Strip }
    }

    /// The line without `a=`. The related address is only for diagnosis, and tells the receiver the sender's
    /// address behind its NAT: replaced.
    fn render(&self) -> String {
        let Self { foundation, component, priority, address, port, kind, rest } = self;
        let mut out =
            format!("candidate:{foundation} {component} udp {priority} {address} {port} typ {kind}");
        if *kind != "host" {
            out.push_str(" raddr 0.0.0.0 rport 0");
        }
        for (name, value) in rest {
            out.push(' ');
            out.push_str(name);
            out.push(' ');
            out.push_str(value);
        }
        out
    }
}

/// `<uuid>.local`, as browsers make them (draft-ietf-mmusic-mdns-ice-candidates).
fn is_mdns_name(name: &str) -> bool {
    name.strip_suffix(".local").is_some_and(|uuid| {
        uuid.len() == 36
            && uuid.char_indices().all(|(at, letter)| match at {
                8 | 13 | 18 | 23 => letter == '-',
                _ => letter.is_ascii_hexdigit(),
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "6e3f0a6c-53a5-4b2c-9d6e-0f1e2d3c4b5a.local";

    fn passes(sender: &str, receiver: &str, address: &str, kind: &str) -> bool {
        let ends = Ends {
            sender: sender.parse().unwrap(),
            receiver: receiver.parse().unwrap(),
            relays: &Relays::None,
            relay_only: false,
        };
        let line = format!("candidate:1 1 udp 2122260223 {address} 50123 typ {kind} generation 0");
        matches!(judge(&line, &ends), Verdict::Pass(_))
    }

    #[test]
    fn each_rule_holds_in_a_table() {
        let (home, cafe, lan, lan2, host) = ("5.6.7.8", "9.8.7.6", "192.168.1.2", "192.168.1.3", "127.0.0.1");
        #[rustfmt::skip]
        let table = [
            // sender, receiver, candidate, type, passes
            (home, cafe, home, "srflx", true),
            (home, cafe, home, "host", true),
            (home, cafe, cafe, "srflx", false),           // 7: somebody else's address
            (home, cafe, "1.2.3.4", "srflx", false),      // 7
            (home, cafe, "192.168.1.2", "host", false),   // 4: the receiver's own network would be scanned
            (home, home, "192.168.1.2", "host", true),    // 4: behind the same NAT
            (home, cafe, "127.0.0.1", "host", false),     // 3
            (home, home, "127.0.0.1", "host", false),     // 3
            (host, host, "127.0.0.1", "host", true),      // 3: one machine
            (host, host, "192.168.1.2", "host", true),    // 4
            (host, host, "10.0.0.2", "host", true),       // 4
            (lan, lan2, "127.0.0.1", "host", false),      // 3
            (lan, lan2, lan, "host", true),               // 4: the tracker is in the viewers' network
            (lan, host, lan, "host", true),               // 4: one viewer on the tracker's machine
            (lan, home, lan, "host", false),              // 4
            (lan, home, "5.5.5.5", "srflx", true),        // 7: public address of a viewer inside is not known
            (home, home, UUID, "host", true),             // 2
            (lan, lan2, UUID, "host", true),              // 2
            (home, cafe, UUID, "host", false),            // 2
            (home, home, "victim.example", "host", false),// 2
            (home, home, "x.local", "host", false),       // 2
            (home, cafe, "224.0.0.1", "host", false),     // 5
            (home, home, "0.0.0.0", "host", false),       // 5
            (lan, home, "224.0.0.1", "srflx", false),     // 5: also from inside, where 7 lets any address pass
            (lan, home, "240.0.0.1", "srflx", false),     // 5
            (lan, home, "ff02::1", "srflx", false),       // 5
            (home, cafe, "::ffff:192.168.1.2", "host", false), // 4: in IPv6 clothes
            (home, cafe, "::ffff:5.6.7.8", "host", true),
            ("2a01::1", "2a02::1", "2a01::99", "host", true),  // 7: another address in the sender's /64
            ("2a01::1", "2a02::1", "2a03::1", "host", false),  // 7
            (home, cafe, "1.2.3.4", "relay", false),      // 6: there is no relay
            (home, cafe, "2a01::1", "relay", false),      // 6
            (lan, home, "5.5.5.5", "relay", false),       // 6
        ];
        for (sender, receiver, address, kind, expected) in table {
            let found = passes(sender, receiver, address, kind);
            assert_eq!(found, expected, "{sender} to {receiver}: {address} typ {kind}");
        }
    }

    #[test]
    fn tcp_low_ports_and_nonsense_are_stripped() {
        let home: IpAddr = "5.6.7.8".parse().unwrap();
        let ends = Ends { sender: home, receiver: home, relays: &Relays::None, relay_only: false };
        for line in [
            "candidate:1 1 tcp 1 5.6.7.8 9 typ host tcptype active",
            "candidate:1 1 udp 1 5.6.7.8 53 typ host",
            "candidate:1 1 udp 1 5.6.7.8 70000 typ host",
            "candidate:1 1 udp 1 5.6.7.8 5000 typ hostess",
            "candidate:1 1 udp 1 5.6.7.8 5000 typ host dangling",
            "candidate:1 1 udp x 5.6.7.8 5000 typ host",
            "candidate",
            "",
        ] {
            assert_eq!(judge(line, &ends), Verdict::Strip, "{line}");
        }
    }

    #[test]
    fn an_address_of_the_other_family_is_uncertain() {
        let (home, cafe) = ("5.6.7.8".parse().unwrap(), "9.8.7.6".parse().unwrap());
        let ends = Ends { sender: home, receiver: cafe, relays: &Relays::None, relay_only: false };
        let verdict = judge("candidate:1 1 udp 1 2a01::1 5000 typ host", &ends);
        assert!(
            matches!(verdict, Verdict::Uncertain(address, _) if address == "2a01::1".parse::<IpAddr>().unwrap())
        );
    }

    #[test]
    fn relays_whose_addresses_are_not_known_are_uncertain() {
        let (home, cafe) = ("5.6.7.8".parse().unwrap(), "9.8.7.6".parse().unwrap());
        let ends = Ends { sender: home, receiver: cafe, relays: &Relays::Unknown, relay_only: false };
        let verdict = judge("candidate:1 1 udp 1 1.2.3.4 5000 typ relay", &ends);
        assert!(matches!(verdict, Verdict::Uncertain(..)), "{verdict:?}");
    }

    #[test]
    fn related_addresses_are_blanked() {
        let home: IpAddr = "5.6.7.8".parse().unwrap();
        let ends = Ends {
            sender: home,
            receiver: "9.8.7.6".parse().unwrap(),
            relays: &Relays::None,
            relay_only: false,
        };
        let line = "candidate:1 1 udp 1 5.6.7.8 5000 typ srflx raddr 192.168.1.2 rport 5000 ufrag ab";
        let expected = "candidate:1 1 udp 1 5.6.7.8 5000 typ srflx raddr 0.0.0.0 rport 0 ufrag ab";
        assert_eq!(judge(line, &ends), Verdict::Pass(expected.into()));
    }

    #[test]
    fn relay_only_passes_nothing_but_known_relays() {
        let relays = Relays::At(vec!["7.7.7.7".parse().unwrap()]);
        let home = "5.6.7.8".parse().unwrap();
        let ends =
            Ends { sender: home, receiver: "9.8.7.6".parse().unwrap(), relays: &relays, relay_only: true };
        let passes = |line: &str| matches!(judge(line, &ends), Verdict::Pass(_));
        assert!(passes("candidate:1 1 udp 1 7.7.7.7 5000 typ relay raddr 5.6.7.8 rport 9"));
        assert!(!passes("candidate:1 1 udp 1 8.8.8.8 5000 typ relay"));
        assert!(!passes("candidate:1 1 udp 1 5.6.7.8 5000 typ srflx"));
    }
}
