//! A TURN server (RFC 8656) for viewers who can't reach each other directly: who may relay, to whom, how much.
//!
//! Pure: takes datagrams and the time, pushes [`Action`]s; sockets are in `../service/relay.rs`, STUN's wire format in
//! `rtc-stun`. Relayed transport addresses are UDP; clients come over UDP or TCP. Credentials are those of coturn's REST
//! scheme (`../service/ice.rs`).
//!
//! A relay is a way to reach others under somebody else's name, so it is narrow: it needs a credential that ends, sends
//! only to viewers and to other relayed addresses (never into the server's own network), and every number is limited.
//! What the protocol leaves open and nobody here needs is refused: reserved ports, TCP relaying, unfragmented sending.
//!
//! Here is the server as its owner sees it; what it is asked is in `requests.rs`, what it relays in `traffic.rs`.

mod allocation;
mod message;
mod requests;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rtc_stun::crypto::RTCCryptoProvider;
use rtc_stun::message::{
    CLASS_INDICATION, CLASS_REQUEST, METHOD_REFRESH, METHOD_SEND, Message, is_stun_message,
};

use crate::swarm::{Bucket, Rate};
use allocation::Allocation;
pub(crate) use message::credential;
use message::{Nonces, failure};

/// Named in challenges; clients repeat it.
pub(crate) const REALM: &str = "shoal";
/// Errors answered in a second to all who show no credential that holds: nobody's address can be forged to have much
/// sent to it.
const CHALLENGES: Rate = Rate { per_hour: 500 * 3_600, burst: 1_000 };

/// How a client reaches the server: the same address on another transport is another client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Client {
    /// By datagrams.
    Udp(SocketAddr),
    /// By the TCP connection of this number.
    Tcp(u64, SocketAddr),
}

impl Client {
    fn address(self) -> SocketAddr {
        match self {
            Self::Udp(address) | Self::Tcp(_, address) => {
                SocketAddr::new(address.ip().to_canonical(), address.port())
            }
        }
    }
}

/// What the owner has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    ToClient(Client, Vec<u8>),
    /// From the relayed address of this allocation.
    ToPeer(u64, SocketAddr, Vec<u8>),
    /// The socket of this allocation is not needed any more.
    Close(u64),
}

/// What the server needs of the world while it handles a request.
pub(crate) trait World {
    /// Opens the socket of a new allocation and tells its address; none if there is none to be had.
    fn open(&mut self, allocation: u64, client: Client, is_ipv4: bool) -> Option<SocketAddr>;
    /// Whether packets may be sent to this address.
    fn may_reach(&self, address: IpAddr) -> bool;
}

/// Limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) allocations_max: usize,
    pub(crate) allocations_per_user_max: usize,
    /// Of one client address: a network of viewers behind one NAT, or somebody who joins again and again.
    pub(crate) allocations_per_address_max: usize,
    /// All relayed bytes, both ways.
    pub(crate) total_kbps: u32,
    /// Relayed bytes of one user, both ways.
    pub(crate) user_kbps: u32,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) allocations: u64,
    pub(crate) relayed_bytes: u64,
    /// Over a budget.
    pub(crate) dropped_bytes: u64,
    /// Requests refused for want of a credential that holds.
    pub(crate) unauthorised: u64,
    /// Requests and datagrams for peers that must not be reached.
    pub(crate) forbidden: u64,
    /// Requests over a quota.
    pub(crate) over_quota: u64,
}

struct User {
    allocations: usize,
    bucket: Bucket,
}

/// The server.
pub(crate) struct Turn {
    secret: String,
    limits: Limits,
    nonces: Nonces,
    crypto: Arc<dyn RTCCryptoProvider>,
    allocations: BTreeMap<u64, Allocation>,
    clients: BTreeMap<Client, u64>,
    /// Relayed addresses in use: viewers that are both relayed reach each other through two of them.
    relayed: BTreeSet<SocketAddr>,
    users: BTreeMap<String, User>,
    addresses: BTreeMap<IpAddr, usize>,
    total: Bucket,
    challenges: Bucket,
    next: u64,
    counters: Counters,
}

fn bytes_rate(kbps: u32) -> Rate {
    // A burst of half a second: two keyframes of a good stream.
    let per_s = u64::from(kbps) * 125;
    Rate { per_hour: per_s * 3_600, burst: u32::try_from(per_s / 2).unwrap_or(u32::MAX).max(3_000) }
}

impl Turn {
    pub(crate) fn new(secret: String, limits: Limits, nonce_key: [u8; 32]) -> Self {
        Self {
            secret,
            limits,
            nonces: Nonces::new(nonce_key),
            crypto: rtc_stun::crypto::default_provider().expect("the workspace builds rtc with ring"),
            allocations: BTreeMap::new(),
            clients: BTreeMap::new(),
            relayed: BTreeSet::new(),
            users: BTreeMap::new(),
            addresses: BTreeMap::new(),
            total: Bucket::full(bytes_rate(limits.total_kbps), 0),
            challenges: Bucket::full(CHALLENGES, 0),
            next: 0,
            counters: Counters::default(),
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn allocations(&self) -> usize {
        self.allocations.len()
    }

    fn of(&self, client: Client) -> Option<&Allocation> {
        self.allocations.get(self.clients.get(&client)?)
    }

    fn is_own_host(&self, address: IpAddr) -> bool {
        let ports = SocketAddr::new(address, 0)..=SocketAddr::new(address, u16::MAX);
        self.relayed.range(ports).next().is_some()
    }

    /// A client sent something. `unix_s` is compared with the end of its credential.
    pub(crate) fn handle_client(
        &mut self,
        now_ms: u64,
        unix_s: u64,
        client: Client,
        bytes: &[u8],
        world: &mut dyn World,
        out: &mut Vec<Action>,
    ) {
        if bytes.first().is_some_and(|first| first & 0xc0 == 0x40) {
            self.handle_channel_data(now_ms, client, bytes, world, out);
            return;
        }
        let mut request = Message::new();
        if !is_stun_message(bytes) || request.unmarshal_binary(bytes).is_err() {
            return;
        }
        if request.typ.class == CLASS_INDICATION && request.typ.method == METHOD_SEND {
            self.handle_send(now_ms, client, &request, world, out);
        } else if request.typ.class == CLASS_REQUEST {
            let answer = match self.authorise(now_ms, unix_s, client, &request) {
                Ok(authorised) => self.handle_request(now_ms, client, &request, &authorised, world),
                Err(code) => {
                    self.counters.unauthorised += 1;
                    if !self.challenges.take(CHALLENGES, now_ms, 1) {
                        return;
                    }
                    let nonce = self.nonces.issue(now_ms, client.address());
                    failure(&request, code, Some(&nonce), None)
                }
            };
            out.extend(answer.map(|answer| Action::ToClient(client, answer)));
        }
        if request.typ.method == METHOD_REFRESH {
            // A deleted allocation's socket is closed after its last answer.
            self.close_expired(now_ms, out);
        }
    }

    /// A client's connection ended: its allocation goes with it.
    pub(crate) fn handle_gone(&mut self, now_ms: u64, client: Client, out: &mut Vec<Action>) {
        if let Some(allocation) = self.clients.get(&client).and_then(|id| self.allocations.get_mut(id)) {
            allocation.expires_ms = now_ms;
        }
        self.close_expired(now_ms, out);
    }

    /// To be called every second or so.
    pub(crate) fn handle_deadline(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        self.close_expired(now_ms, out);
        let rate = bytes_rate(self.limits.user_kbps);
        // An empty bucket is remembered when its allocations are gone: a new one must not fill it.
        self.users.retain(|_, user| user.allocations > 0 || !user.bucket.is_full(rate, now_ms));
    }

    /// Puts a new allocation into the books.
    fn enter(&mut self, now_ms: u64, id: u64, allocation: Allocation) {
        let rate = bytes_rate(self.limits.user_kbps);
        let fresh = || User { allocations: 0, bucket: Bucket::full(rate, now_ms) };
        self.users.entry(allocation.user.clone()).or_insert_with(fresh).allocations += 1;
        *self.addresses.entry(allocation.client.address().ip()).or_default() += 1;
        self.clients.insert(allocation.client, id);
        self.relayed.insert(allocation.relayed);
        self.allocations.insert(id, allocation);
        self.counters.allocations += 1;
    }

    fn close_expired(&mut self, now_ms: u64, out: &mut Vec<Action>) {
        let is_over = |(_, allocation): &(&u64, &Allocation)| allocation.expires_ms <= now_ms;
        let over: Vec<u64> = self.allocations.iter().filter(is_over).map(|(id, _)| *id).collect();
        for id in over {
            let Some(allocation) = self.allocations.remove(&id) else { continue };
            self.clients.remove(&allocation.client);
            self.relayed.remove(&allocation.relayed);
            if let Some(user) = self.users.get_mut(&allocation.user) {
                user.allocations -= 1;
            }
            let address = allocation.client.address().ip();
            if let Some(count) = self.addresses.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    self.addresses.remove(&address);
                }
            }
            out.push(Action::Close(id));
        }
    }
}

#[cfg(test)]
mod tests;
