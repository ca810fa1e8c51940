//! Who gets in: how many connections, from where, how fast.
//!
//! Everything here is decided before anything is kept for a viewer; what a viewer may do once it is in is decided by its
//! swarm. A place is given back when its [`Place`] is dropped.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use axum::http::{HeaderMap, header};
use dashmap::DashMap;
use metrics::counter;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::swarm::{Bucket, Rate, canonical};
use crate::{Config, Error};

/// Entries of addresses without connections are dropped when there are this many, about a megabyte; and then at most so
/// often, since looking through them costs as much when all are connected.
const ADDRESSES_IDLE_MAX: usize = 16_384;
const SWEEP_INTERVAL_MS: u64 = 10_000;
/// Turns are promised so far ahead.
const TURN_MAX_MS: u32 = 8_000;
/// Those who have no turn, because their address joins too often or their stream is not live, come back after this time
/// to twice this time: not all at once.
const LATER_MS: u32 = 2_000;

/// When somebody without a turn is to come back, in milliseconds.
pub(super) fn later_ms() -> u32 {
    LATER_MS + u32::from(rand::random::<u16>()) % LATER_MS
}

/// Counts connections and joins.
#[derive(Debug)]
pub(crate) struct Gate {
    viewers_max: u32,
    per_address_max: u32,
    joins: Mutex<Joins>,
    joins_rate: Rate,
    address_rate: Rate,
    origins_allowed: Vec<String>,
    proxies: Proxies,
    connections: AtomicU32,
    /// Of these, clients of the WebTorrent protocol.
    announcing: AtomicU32,
    addresses: DashMap<IpAddr, Address>,
    swept_ms: AtomicU64,
    closing: CancellationToken,
    has_warned: AtomicBool,
}

/// What may join now, and when those refused are to come back.
#[derive(Debug)]
struct Joins {
    bucket: Bucket,
    /// In microseconds: up to then each join that the rate allows has been promised to somebody.
    promised_us: u64,
}

#[derive(Debug)]
struct Address {
    connections: u32,
    joins: Bucket,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// No room, or too many from this address.
    Full,
    /// The page's origin is not allowed.
    Origin,
    /// The tracker is about to stop.
    Draining,
}

/// One connection's place.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Arc<Gate>,
    /// The address under which it is counted; none for loopback.
    counted: Option<IpAddr>,
    announces: bool,
}

impl Gate {
    pub(crate) fn new(config: &Config, now_ms: u64) -> Result<Self, Error> {
        // A burst of a quarter of a second: the scheduler of a busy machine lets joins bunch up.
        let joins_rate = Rate::per_second(config.joins_per_s_max, config.joins_per_s_max.div_ceil(4).max(16));
        let per_min = config.joins_per_address_per_min_max;
        Ok(Self {
            viewers_max: config.viewers_max,
            per_address_max: config.viewers_per_address_max,
            joins: Mutex::new(Joins { bucket: Bucket::full(joins_rate, now_ms), promised_us: 0 }),
            joins_rate,
            address_rate: Rate { per_hour: u64::from(per_min) * 60, burst: per_min },
            origins_allowed: config.origins_allowed.clone(),
            proxies: Proxies::parse("trusted_proxies", &config.trusted_proxies)?,
            connections: AtomicU32::new(0),
            announcing: AtomicU32::new(0),
            addresses: DashMap::new(),
            swept_ms: AtomicU64::new(now_ms),
            closing: CancellationToken::new(),
            has_warned: AtomicBool::new(false),
        })
    }

    /// Connections of both protocols that are open.
    pub(crate) fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Of these, clients of the WebTorrent protocol.
    pub(crate) fn announcing(&self) -> u32 {
        self.announcing.load(Ordering::Relaxed)
    }

    /// And viewers.
    pub(crate) fn viewers(&self) -> u32 {
        self.connections().saturating_sub(self.announcing())
    }

    /// Lets nobody in from now on, and ends what has not joined.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Cancelled by [`Self::close`].
    pub(crate) fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// The address that a request comes from.
    pub(crate) fn address(&self, socket: SocketAddr, headers: &HeaderMap) -> IpAddr {
        let is_forwarded = headers.contains_key(FORWARDED);
        if is_forwarded && !self.proxies.trusts(canonical(socket.ip())) {
            counter!("tracker_forwarded_untrusted_total").increment(1);
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                warn!(
                    "a request has X-Forwarded-For but does not come from one of trusted_proxies: if a proxy is in \
                     front, list it there, or all viewers seem to be one (said once)"
                );
            }
        }
        self.proxies.client(socket.ip(), headers)
    }

    /// Whether a page of this origin may connect. Programs send no origin: they could send any.
    pub(crate) fn allows_origin(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN).filter(|_| !self.origins_allowed.is_empty()) else {
            return true;
        };
        self.origins_allowed.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes()))
    }

    /// Whether somebody with this address is connected. Loopback addresses are not known.
    pub(crate) fn has_viewer(&self, address: IpAddr) -> bool {
        let counted = counted_as(address).and_then(|address| self.addresses.get(&address));
        counted.is_some_and(|address| address.connections > 0)
    }

    /// Takes a place for a connection.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, now_ms: u64) -> Result<Place, Closed> {
        if self.closing.is_cancelled() {
            return Err(Closed::Draining);
        }
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.viewers_max {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return Err(Closed::Full);
        }
        let mut place = Place { gate: Arc::clone(self), counted: None, announces: false };
        if let Some(address) = counted_as(address) {
            self.sweep(now_ms);
            let fresh = || Address { connections: 0, joins: Bucket::full(self.address_rate, now_ms) };
            let mut entry = self.addresses.entry(address).or_insert_with(fresh);
            if entry.connections >= self.per_address_max {
                return Err(Closed::Full);
            }
            entry.connections += 1;
            drop(entry);
            place.counted = Some(address);
        }
        Ok(place)
    }

    /// Lets one more join now, of all and of this address; or tells after how many milliseconds to come back.
    ///
    /// Who is refused because of all the others is given a turn of his own, as the rate allows them: an audience that
    /// comes back at once, after a restart, is in again after `audience / rate`, and nobody has to try many times.
    pub(crate) fn may_join(&self, place: &Place, now_ms: u64) -> Result<(), u32> {
        if let Some(mut address) = place.counted.and_then(|address| self.addresses.get_mut(&address))
            && !address.joins.take(self.address_rate, now_ms, 1)
        {
            return Err(later_ms());
        }
        let mut joins = self.joins.lock();
        if joins.bucket.take(self.joins_rate, now_ms, 1) {
            return Ok(());
        }
        let turn_us = joins.promised_us.max(now_ms * 1_000) + 3_600_000_000 / self.joins_rate.per_hour.max(1);
        let wait_ms = u32::try_from((turn_us / 1_000).saturating_sub(now_ms)).unwrap_or(u32::MAX);
        if wait_ms > TURN_MAX_MS {
            // More ask than are worth a list: a flood does not push everybody's turn out of sight.
            return Err(TURN_MAX_MS + later_ms());
        }
        joins.promised_us = turn_us;
        Err(wait_ms.max(1))
    }

    fn sweep(&self, now_ms: u64) {
        let swept_ms = self.swept_ms.load(Ordering::Relaxed);
        let is_due = now_ms.saturating_sub(swept_ms) >= SWEEP_INTERVAL_MS
            && self.addresses.len() >= ADDRESSES_IDLE_MAX;
        // One of those who come at the same time.
        if is_due
            && self.swept_ms.compare_exchange(swept_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            let rate = self.address_rate;
            self.addresses
                .retain(|_, address| address.connections > 0 || !address.joins.is_full(rate, now_ms));
        }
    }
}

impl Place {
    /// The place is a WebTorrent client's: counted apart from viewers from now on.
    pub(crate) fn announces(&mut self) {
        if !std::mem::replace(&mut self.announces, true) {
            self.gate.announcing.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Cancelled when the tracker is about to stop.
    pub(crate) fn closing(&self) -> CancellationToken {
        self.gate.closing()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.announces {
            self.gate.announcing.fetch_sub(1, Ordering::Relaxed);
        }
        self.gate.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(mut address) = self.counted.and_then(|address| self.gate.addresses.get_mut(&address)) {
            address.connections = address.connections.saturating_sub(1);
        }
    }
}

/// The unit in which connections are counted: an address, with IPv6 a /64, since a host has all of it. Loopback is not
/// counted: a proxy on the same machine that was not configured would let in nobody.
fn counted_as(address: IpAddr) -> Option<IpAddr> {
    match canonical(address) {
        address if address.is_loopback() => None,
        IpAddr::V6(v6) => Some(IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into())),
        v4 => Some(v4),
    }
}

/// The header in which proxies say for whom they ask.
const FORWARDED: &str = "x-forwarded-for";

/// Networks: of proxies whose `X-Forwarded-For` is believed, or that may be relayed to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proxies {
    networks: Vec<(IpAddr, u8)>,
}

impl Proxies {
    /// Reads addresses with or without a prefix length.
    pub(crate) fn parse(key: &str, texts: &[String]) -> Result<Self, Error> {
        let parse = |text: &String| {
            let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
            let address: IpAddr = address.parse().ok()?;
            let whole = if address.is_ipv4() { 32 } else { 128 };
            let prefix = if prefix.is_empty() { whole } else { prefix.parse().ok()? };
            (prefix <= whole).then_some((address, prefix))
        };
        let bad =
            |text: &String| Error::Config(format!("{key}: {text} is no address or network like 10.0.0.0/8"));
        let networks =
            texts.iter().map(|text| parse(text).ok_or_else(|| bad(text))).collect::<Result<_, _>>()?;
        Ok(Self { networks })
    }

    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|(network, prefix)| match (address, *network) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(*prefix)).unwrap_or(0);
                a.to_bits() & mask == b.to_bits() & mask
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(*prefix)).unwrap_or(0);
                a.to_bits() & mask == b.to_bits() & mask
            }
            _ => false,
        })
    }

    /// The last address in the chain that no trusted proxy has: everything before it may be invented.
    fn client(&self, socket: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = canonical(socket);
        let chain: Vec<&str> = headers
            .get_all(FORWARDED)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .collect();
        for hop in chain.iter().rev() {
            if !self.trusts(client) {
                break;
            }
            match hop.trim().parse() {
                Ok(address) => client = canonical(address),
                Err(_) => break,
            }
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn gate(config: &Config) -> Arc<Gate> {
        Arc::new(Gate::new(config, 0).unwrap())
    }

    #[test]
    fn places_are_limited_in_all_and_for_each_address_and_come_back() {
        let gate = gate(&Config { viewers_max: 3, viewers_per_address_max: 2, ..Config::default() });
        let first = gate.enter(ip("5.6.7.8"), 0).unwrap();
        let _second = gate.enter(ip("5.6.7.8"), 0).unwrap();
        assert_eq!(gate.enter(ip("5.6.7.8"), 0).unwrap_err(), Closed::Full);
        assert_eq!(gate.viewers(), 2, "a refused connection takes no place");
        let third = gate.enter(ip("5.6.7.9"), 0).unwrap();
        assert_eq!(gate.enter(ip("127.0.0.1"), 0).unwrap_err(), Closed::Full);
        drop(first);
        drop(third);
        let _again = gate.enter(ip("5.6.7.8"), 0).unwrap();
        gate.close();
        assert_eq!(gate.enter(ip("5.6.7.7"), 0).unwrap_err(), Closed::Draining);
    }

    #[test]
    fn webtorrent_clients_take_places_but_are_no_viewers() {
        let gate = gate(&Config { viewers_max: 2, ..Config::default() });
        let _viewer = gate.enter(ip("5.6.7.8"), 0).unwrap();
        let mut client = gate.enter(ip("5.6.7.9"), 0).unwrap();
        client.announces();
        client.announces();
        assert_eq!((gate.connections(), gate.viewers(), gate.announcing()), (2, 1, 1));
        assert_eq!(gate.enter(ip("5.6.7.9"), 0).unwrap_err(), Closed::Full);
        drop(client);
        assert_eq!((gate.connections(), gate.viewers(), gate.announcing()), (1, 1, 0));
    }

    #[test]
    fn addresses_are_swept_by_time_and_not_with_each_connection() {
        let gate = gate(&Config { viewers_max: 100_000, ..Config::default() });
        let at = |number: usize| IpAddr::V4(u32::try_from(number).unwrap().into());
        let hold = |from: usize, to: usize, now_ms| -> Vec<Place> {
            (from..to).map(|number| gate.enter(at(0x0505_0000 + number), now_ms).unwrap()).collect()
        };
        drop(hold(0, ADDRESSES_IDLE_MAX + 10, 0));
        let held = hold(20_000, 20_001, SWEEP_INTERVAL_MS - 1);
        assert_eq!(gate.addresses.len(), ADDRESSES_IDLE_MAX + 11, "not yet");
        drop(hold(20_001, 20_002, SWEEP_INTERVAL_MS));
        assert_eq!(gate.addresses.len(), 2, "who is connected stays");
        drop(hold(0, ADDRESSES_IDLE_MAX + 10, SWEEP_INTERVAL_MS + 1));
        assert!(gate.addresses.len() > ADDRESSES_IDLE_MAX, "not again so soon");
        drop(held);
    }

    #[test]
    fn a_whole_ipv6_site_is_one_address_and_loopback_is_not_counted() {
        let gate = gate(&Config { viewers_per_address_max: 1, ..Config::default() });
        let _first = gate.enter(ip("2a01:1:2:3::1"), 0).unwrap();
        assert!(gate.enter(ip("2a01:1:2:3:ffff::2"), 0).is_err());
        assert!(gate.enter(ip("2a01:1:2:4::1"), 0).is_ok());
        let _many: Vec<Place> = (0..10).map(|_| gate.enter(ip("::ffff:127.0.0.1"), 0).unwrap()).collect();
    }

    #[test]
    fn joins_are_limited_for_each_address_even_when_it_reconnects() {
        let gate = gate(&Config { joins_per_address_per_min_max: 5, ..Config::default() });
        let joins = |now_ms| {
            (0..20)
                .filter(|_| {
                    let place = gate.enter(ip("5.6.7.8"), now_ms).unwrap();
                    gate.may_join(&place, now_ms).is_ok()
                })
                .count()
        };
        assert_eq!(joins(0), 5);
        assert_eq!(joins(12_000), 1);
    }

    #[test]
    fn an_audience_that_comes_at_once_is_in_as_soon_as_the_rate_allows() {
        let gate = gate(&Config { joins_per_s_max: 100, ..Config::default() });
        let mut turns: std::collections::BTreeMap<u64, usize> = [(0, 500)].into();
        let (mut tries, mut last_ms, mut joined) = (0, 0, 0);
        while let Some((now_ms, count)) = turns.pop_first() {
            for _ in 0..count {
                let place = gate.enter(ip("127.0.0.1"), now_ms).unwrap();
                tries += 1;
                match gate.may_join(&place, now_ms) {
                    Ok(()) => (joined, last_ms) = (joined + 1, now_ms),
                    Err(wait_ms) => *turns.entry(now_ms + u64::from(wait_ms)).or_default() += 1,
                }
            }
        }
        assert_eq!(joined, 500);
        assert!((4_000..5_500).contains(&last_ms), "500 viewers, 100 a second: {last_ms} ms");
        assert!(tries <= 1_000, "each asks twice at most: {tries}");
    }

    #[test]
    fn a_flood_of_joins_does_not_push_turns_out_of_sight() {
        let gate = gate(&Config { joins_per_s_max: 1, ..Config::default() });
        let waits: Vec<u32> = (0..1_000)
            .filter_map(|_| gate.may_join(&gate.enter(ip("127.0.0.1"), 0).unwrap(), 0).err())
            .collect();
        let longest = waits.iter().max().copied().unwrap_or(0);
        assert!((TURN_MAX_MS..TURN_MAX_MS + 2 * LATER_MS).contains(&longest), "{longest} ms");
    }

    #[test]
    fn forwarded_addresses_are_believed_only_from_trusted_proxies() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "1.1.1.1, 9.9.9.9, 10.0.0.2".parse().unwrap());
        let none = Proxies::default();
        assert_eq!(none.client(ip("10.0.0.1"), &headers), ip("10.0.0.1"));
        let ours = Proxies::parse("", &["10.0.0.0/8".into()]).unwrap();
        assert_eq!(ours.client(ip("10.0.0.1"), &headers), ip("9.9.9.9"), "1.1.1.1 is what the client claims");
        assert_eq!(ours.client(ip("8.8.8.8"), &headers), ip("8.8.8.8"));
        assert!(Proxies::parse("", &["10.0.0.0/33".into()]).is_err());
        assert!(Proxies::parse("", &["::/0".into()]).unwrap().trusts(ip("2a01::1")));
    }

    #[test]
    fn a_proxy_that_is_not_listed_is_noticed() {
        let address = |gate: &Gate, headers: &HeaderMap| {
            gate.address("10.0.0.1:9".parse().unwrap(), headers);
            gate.has_warned.load(Ordering::Relaxed)
        };
        let mut headers = HeaderMap::new();
        let unlisted = gate(&Config::default());
        assert!(!address(&unlisted, &headers), "who forwards nothing is a client");
        headers.insert(FORWARDED, "5.6.7.8".parse().unwrap());
        let listed = gate(&Config { trusted_proxies: vec!["10.0.0.0/8".into()], ..Config::default() });
        assert!(!address(&listed, &headers) && address(&unlisted, &headers));
    }

    #[test]
    fn only_listed_origins_may_connect_when_there_is_a_list() {
        let gate = gate(&Config { origins_allowed: vec!["https://a.example".into()], ..Config::default() });
        let mut headers = HeaderMap::new();
        assert!(gate.allows_origin(&headers));
        headers.insert(header::ORIGIN, "https://a.example".parse().unwrap());
        assert!(gate.allows_origin(&headers));
        headers.insert(header::ORIGIN, "https://a.example.evil.example".parse().unwrap());
        assert!(!gate.allows_origin(&headers));
    }
}
