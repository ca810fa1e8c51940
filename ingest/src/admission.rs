//! How many requests each address may make: a limit for everybody at once would let any stranger lock out all
//! publishers.
//!
//! Requests for a session that exists count for that session ([`crate::server`]), because whoever knows its URL is its
//! publisher. Behind a proxy everybody who has no session yet shares the proxy's address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use parking_lot::Mutex;

/// Addresses that are remembered. With more, the one that has used the least of its share is forgotten.
const ADDRESSES_MAX: usize = 4096;

/// A rate, and what may come at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_s: f64,
    pub(crate) burst: f64,
}

/// What is left of a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, filled: now }
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.tokens = self.tokens_at(rate, now);
        self.filled = now;
        let is_admitted = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(is_admitted));
        is_admitted
    }

    fn tokens_at(&self, rate: Rate, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        (self.tokens + elapsed * rate.per_s).min(rate.burst)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Admission {
    rate: Rate,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Admission {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// Whether one more request of this address is worked on. Those whose address isn't known share one.
    pub(crate) fn admit(&self, address: Option<IpAddr>, now: Instant) -> bool {
        let (rate, mut buckets) = (self.rate, self.buckets.lock());
        let key = network_of(address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        if buckets.len() >= ADDRESSES_MAX && !buckets.contains_key(&key) {
            // Who has its full share again is like somebody who never came.
            buckets.retain(|_, bucket| bucket.tokens_at(rate, now) < rate.burst);
        }
        if buckets.len() >= ADDRESSES_MAX && !buckets.contains_key(&key) {
            let by_tokens = |(_, one): &(&IpAddr, &Bucket), (_, other): &(&IpAddr, &Bucket)| {
                one.tokens_at(rate, now).total_cmp(&other.tokens_at(rate, now))
            };
            let spared = buckets.iter().max_by(by_tokens).map(|(address, _)| *address);
            spared.map(|address| buckets.remove(&address));
        }
        buckets.entry(key).or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
    }
}

/// Who has one IPv6 address has 2^64 of them.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RATE: Rate = Rate { per_s: 1.0, burst: 2.0 };

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn each_address_has_its_own_share_which_comes_back_with_time() {
        let (admission, now) = (Admission::new(RATE), Instant::now());
        let [one, other] = [ip("192.0.2.1"), ip("192.0.2.2")];
        assert!(admission.admit(one, now) && admission.admit(one, now));
        assert!(!admission.admit(one, now));
        assert!(admission.admit(other, now), "another's requests cost nothing");
        assert!(admission.admit(one, now + Duration::from_secs(1)));
        assert!(!admission.admit(one, now + Duration::from_secs(1)));
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_a_mapped_ipv4_address_is_itself() {
        let (admission, now) = (Admission::new(RATE), Instant::now());
        assert!(admission.admit(ip("2001:db8:0:1::1"), now) && admission.admit(ip("2001:db8:0:1:5::2"), now));
        assert!(!admission.admit(ip("2001:db8:0:1::3"), now));
        assert!(admission.admit(ip("2001:db8:0:2::1"), now));
        assert!(admission.admit(ip("192.0.2.1"), now) && admission.admit(ip("::ffff:192.0.2.1"), now));
        assert!(!admission.admit(ip("192.0.2.1"), now));
        assert!(admission.admit(ip("::ffff:192.0.2.2"), now), "not all of IPv4 is one network");
    }

    #[test]
    fn addresses_are_bounded_and_who_has_asked_too_much_is_not_forgotten_for_others() {
        let (admission, now) = (Admission::new(RATE), Instant::now());
        let greedy = ip("192.0.2.1");
        while admission.admit(greedy, now) {}
        for number in 0..3 * ADDRESSES_MAX as u32 {
            assert!(admission.admit(Some(Ipv4Addr::from_bits(0x0a00_0000 + number).into()), now));
        }
        assert!(admission.buckets.lock().len() <= ADDRESSES_MAX);
        assert!(!admission.admit(greedy, now));
    }
}
