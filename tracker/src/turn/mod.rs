//! A TURN server (RFC 8656) for viewers who can't reach each other directly: who may relay, to whom, how much.
//!
//! Pure: takes datagrams and the time, pushes [`Action`]s; sockets are in `../service/relay.rs`, STUN's wire format in
//! `rtc-stun`. Relayed transport addresses are UDP; clients come over UDP or TCP. Credentials are those of coturn's REST
//! scheme (`../service/ice.rs`).
//!
//! A relay is a way to reach others under somebody else's name, so it is narrow: it needs a credential that ends, sends
//! only to viewers and to other relayed addresses (never into the server's own network), and every number is limited.
//! What the protocol leaves open and nobody here needs is refused: reserved ports, TCP relaying, unfragmented sending.

mod message;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rtc_stun::attributes::{
    ATTR_CHANNEL_NUMBER, ATTR_DATA, ATTR_DONT_FRAGMENT, ATTR_EVEN_PORT, ATTR_LIFETIME,
    ATTR_MESSAGE_INTEGRITY, ATTR_NONCE, ATTR_REALM, ATTR_REQUESTED_ADDRESS_FAMILY, ATTR_REQUESTED_TRANSPORT,
    ATTR_RESERVATION_TOKEN, ATTR_USERNAME,
};
use rtc_stun::crypto::RTCCryptoProvider;
use rtc_stun::error_code::{
    CODE_ADDR_FAMILY_NOT_SUPPORTED, CODE_ALLOC_MISMATCH, CODE_ALLOC_QUOTA_REACHED, CODE_BAD_REQUEST,
    CODE_FORBIDDEN, CODE_INSUFFICIENT_CAPACITY, CODE_PEER_ADDR_FAMILY_MISMATCH, CODE_STALE_NONCE,
    CODE_UNAUTHORIZED, CODE_UNKNOWN_ATTRIBUTE, CODE_UNSUPPORTED_TRANS_PROTO, CODE_WRONG_CREDENTIALS,
    ErrorCode,
};
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    CLASS_INDICATION, CLASS_REQUEST, METHOD_ALLOCATE, METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION,
    METHOD_REFRESH, METHOD_SEND, Message, TransactionId, is_stun_message,
};

use crate::swarm::{Bucket, Rate};
pub(crate) use message::credential;
use message::{Nonces, channel_data, data_indication, failure, peers, success};

/// Named in challenges; clients repeat it.
pub(crate) const REALM: &str = "shoal";
/// Of an allocation that does not ask for another (RFC 8656, section 3.2), and the shortest.
const LIFETIME_MS: u64 = 600_000;
/// The longest: a viewer that is gone without a word holds a port for this time.
const LIFETIME_MAX_MS: u64 = 3_600_000;
/// Of a permission (RFC 8656, section 9).
const PERMISSION_MS: u64 = 300_000;
/// Of a channel (section 12).
const CHANNEL_MS: u64 = 600_000;
/// Peers of one allocation. A viewer makes an allocation for each neighbor, whose candidates are about ten.
const PERMISSIONS_MAX: usize = 32;
/// As for candidates: no viewer's WebRTC has a lower port.
const PEER_PORT_MIN: u16 = 1024;
/// Channels of one allocation.
const CHANNELS_MAX: usize = 32;
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

struct Allocation {
    client: Client,
    user: String,
    relayed: SocketAddr,
    /// The request that made it, whose repetition is answered the same way.
    transaction: TransactionId,
    expires_ms: u64,
    permissions: BTreeMap<IpAddr, u64>,
    channels: BTreeMap<u16, (SocketAddr, u64)>,
}

impl Allocation {
    /// Lets an address send and be sent to from now on.
    fn permit(&mut self, now_ms: u64, address: IpAddr) -> Result<(), ErrorCode> {
        self.permissions.retain(|_, until_ms| *until_ms > now_ms);
        if self.permissions.len() >= PERMISSIONS_MAX && !self.permissions.contains_key(&address) {
            return Err(CODE_INSUFFICIENT_CAPACITY);
        }
        self.permissions.insert(address, now_ms + PERMISSION_MS);
        Ok(())
    }

    /// Gives a peer a channel, and permits it (RFC 8656, section 12.2).
    fn bind(&mut self, now_ms: u64, number: u16, peer: SocketAddr) -> Result<(), ErrorCode> {
        self.channels.retain(|_, (_, until_ms)| *until_ms > now_ms);
        // Neither the number nor the peer may be bound otherwise.
        let is_other =
            |(known, (address, _)): (&u16, &(SocketAddr, u64))| (*known == number) != (*address == peer);
        if self.channels.iter().any(is_other) {
            return Err(CODE_BAD_REQUEST);
        }
        if self.channels.len() >= CHANNELS_MAX && !self.channels.contains_key(&number) {
            return Err(CODE_INSUFFICIENT_CAPACITY);
        }
        self.permit(now_ms, peer.ip())?;
        self.channels.insert(number, (peer, now_ms + CHANNEL_MS));
        Ok(())
    }

    fn permits(&self, now_ms: u64, address: IpAddr) -> bool {
        self.permissions.get(&address).is_some_and(|until_ms| *until_ms > now_ms)
    }
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

/// A request whose sender has shown a credential.
struct Authorised {
    user: String,
    key: Vec<u8>,
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

    /// Long-term credentials (RFC 8489, section 9.2) with coturn's REST scheme as the data base of users.
    fn authorise(
        &self,
        now_ms: u64,
        unix_s: u64,
        client: Client,
        request: &Message,
    ) -> Result<Authorised, ErrorCode> {
        let text = |attribute| {
            request
                .get(attribute)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or(CODE_BAD_REQUEST)
        };
        if !request.contains(ATTR_MESSAGE_INTEGRITY) {
            return Err(CODE_UNAUTHORIZED);
        }
        let (user, realm, nonce) = (text(ATTR_USERNAME)?, text(ATTR_REALM)?, text(ATTR_NONCE)?);
        if !self.nonces.is_good(now_ms, client.address(), &nonce) {
            return Err(CODE_STALE_NONCE);
        }
        let ends_s: u64 = user.split(':').next().and_then(|end| end.parse().ok()).ok_or(CODE_UNAUTHORIZED)?;
        // An allocation that lives may be refreshed when its credential has ended meanwhile: its stream goes on.
        let is_alive = self.of(client).is_some_and(|allocation| allocation.user == user);
        if realm != REALM || user.len() > 512 || (ends_s <= unix_s && !is_alive) {
            return Err(CODE_UNAUTHORIZED);
        }
        let crypto = self.crypto.crypto();
        let password = credential(&self.secret, &user);
        let key = MessageIntegrity::long_term_integrity_key(user.clone(), realm, password, crypto)
            .map_err(|_| CODE_UNAUTHORIZED)?;
        match MessageIntegrity::check(&mut request.clone(), &key, crypto) {
            Ok(()) => Ok(Authorised { user, key }),
            Err(_) => Err(CODE_UNAUTHORIZED),
        }
    }

    /// The answer, none if it could not be written.
    fn handle_request(
        &mut self,
        now_ms: u64,
        client: Client,
        request: &Message,
        by: &Authorised,
        world: &mut dyn World,
    ) -> Option<Vec<u8>> {
        let done = match request.typ.method {
            METHOD_ALLOCATE => self.allocate(now_ms, client, request, by, world),
            METHOD_REFRESH => self.refresh(now_ms, client, request, by),
            METHOD_CREATE_PERMISSION => self.permit(now_ms, client, request, by, world),
            METHOD_CHANNEL_BIND => self.bind_channel(now_ms, client, request, by, world),
            _ => Err(CODE_BAD_REQUEST),
        };
        let signing = (by.key.as_slice(), self.crypto.crypto());
        match done {
            Ok(granted) => success(request, &granted, signing),
            Err(code) => failure(request, code, None, Some(signing)),
        }
    }

    fn of(&self, client: Client) -> Option<&Allocation> {
        self.allocations.get(self.clients.get(&client)?)
    }

    /// The client's allocation, if it is this user's.
    fn owned(&mut self, client: Client, by: &Authorised) -> Result<&mut Allocation, ErrorCode> {
        let id = self.clients.get(&client).ok_or(CODE_ALLOC_MISMATCH)?;
        let allocation = self.allocations.get_mut(id).ok_or(CODE_ALLOC_MISMATCH)?;
        if allocation.user == by.user { Ok(allocation) } else { Err(CODE_WRONG_CREDENTIALS) }
    }

    /// The same, if it may send to all these peers.
    fn reaching(
        &mut self,
        client: Client,
        by: &Authorised,
        peers: &[SocketAddr],
        world: &dyn World,
    ) -> Result<&mut Allocation, ErrorCode> {
        let relayed = self.owned(client, by)?.relayed;
        for peer in peers {
            self.check_peer(relayed, *peer, world)?;
        }
        self.owned(client, by)
    }

    fn allocate(
        &mut self,
        now_ms: u64,
        client: Client,
        request: &Message,
        by: &Authorised,
        world: &mut dyn World,
    ) -> Result<message::Granted, ErrorCode> {
        let mapped = Some(client.address());
        if let Some(known) = self.of(client) {
            if known.transaction != request.transaction_id {
                return Err(CODE_ALLOC_MISMATCH);
            }
            let lifetime_s = (known.expires_ms.saturating_sub(now_ms) / 1_000) as u32;
            return Ok(message::Granted {
                relayed: Some(known.relayed),
                mapped,
                lifetime_s: Some(lifetime_s),
            });
        }
        let transport = request.get(ATTR_REQUESTED_TRANSPORT).map_err(|_| CODE_BAD_REQUEST)?;
        if transport.first() != Some(&17) {
            return Err(CODE_UNSUPPORTED_TRANS_PROTO);
        }
        if request.contains(ATTR_DONT_FRAGMENT) {
            return Err(CODE_UNKNOWN_ATTRIBUTE);
        }
        if request.contains(ATTR_EVEN_PORT) || request.contains(ATTR_RESERVATION_TOKEN) {
            return Err(CODE_INSUFFICIENT_CAPACITY);
        }
        let is_ipv4 = match request.get(ATTR_REQUESTED_ADDRESS_FAMILY).ok().and_then(|v| v.first().copied()) {
            None | Some(1) => true,
            Some(2) => false,
            Some(_) => return Err(CODE_ADDR_FAMILY_NOT_SUPPORTED),
        };
        let of_user = self.users.get(&by.user).map_or(0, |user| user.allocations);
        let of_address = self.addresses.get(&client.address().ip()).copied().unwrap_or(0);
        if of_user >= self.limits.allocations_per_user_max
            || of_address >= self.limits.allocations_per_address_max
        {
            self.counters.over_quota += 1;
            return Err(CODE_ALLOC_QUOTA_REACHED);
        }
        if self.allocations.len() >= self.limits.allocations_max {
            self.counters.over_quota += 1;
            return Err(CODE_INSUFFICIENT_CAPACITY);
        }
        let id = self.next;
        let relayed = world.open(id, client, is_ipv4).ok_or(if is_ipv4 {
            CODE_INSUFFICIENT_CAPACITY
        } else {
            CODE_ADDR_FAMILY_NOT_SUPPORTED
        })?;
        self.next += 1;
        let lifetime_ms = lifetime_ms(request).unwrap_or(LIFETIME_MS).clamp(LIFETIME_MS, LIFETIME_MAX_MS);
        let allocation = Allocation {
            client,
            user: by.user.clone(),
            relayed,
            transaction: request.transaction_id,
            expires_ms: now_ms + lifetime_ms,
            permissions: BTreeMap::new(),
            channels: BTreeMap::new(),
        };
        self.allocations.insert(id, allocation);
        self.clients.insert(client, id);
        self.relayed.insert(relayed);
        let rate = bytes_rate(self.limits.user_kbps);
        let fresh = || User { allocations: 0, bucket: Bucket::full(rate, now_ms) };
        self.users.entry(by.user.clone()).or_insert_with(fresh).allocations += 1;
        *self.addresses.entry(client.address().ip()).or_default() += 1;
        self.counters.allocations += 1;
        Ok(message::Granted {
            relayed: Some(relayed),
            mapped,
            lifetime_s: Some((lifetime_ms / 1_000) as u32),
        })
    }

    fn refresh(
        &mut self,
        now_ms: u64,
        client: Client,
        request: &Message,
        by: &Authorised,
    ) -> Result<message::Granted, ErrorCode> {
        let allocation = self.owned(client, by)?;
        let lifetime_ms = match lifetime_ms(request) {
            // The client has done with it.
            Some(0) => 0,
            wanted => wanted.unwrap_or(LIFETIME_MS).clamp(LIFETIME_MS, LIFETIME_MAX_MS),
        };
        allocation.expires_ms = now_ms + lifetime_ms;
        Ok(message::Granted { lifetime_s: Some((lifetime_ms / 1_000) as u32), ..message::Granted::default() })
    }

    /// Whether an allocation may send to a peer: another relayed address, or one that the world allows.
    fn check_peer(
        &mut self,
        relayed: SocketAddr,
        peer: SocketAddr,
        world: &dyn World,
    ) -> Result<(), ErrorCode> {
        if peer.is_ipv4() != relayed.is_ipv4() {
            return Err(CODE_PEER_ADDR_FAMILY_MISMATCH);
        }
        // A permission names an address without a port: which port of the relay's own host is meant is checked when
        // something is sent.
        let is_relay = self.is_own_host(peer.ip());
        if is_relay || world.may_reach(peer.ip()) {
            return Ok(());
        }
        self.counters.forbidden += 1;
        Err(CODE_FORBIDDEN)
    }

    fn is_own_host(&self, address: IpAddr) -> bool {
        let ports = SocketAddr::new(address, 0)..=SocketAddr::new(address, u16::MAX);
        self.relayed.range(ports).next().is_some()
    }

    fn permit(
        &mut self,
        now_ms: u64,
        client: Client,
        request: &Message,
        by: &Authorised,
        world: &dyn World,
    ) -> Result<message::Granted, ErrorCode> {
        let peers = peers(request);
        if peers.is_empty() || peers.len() > PERMISSIONS_MAX {
            return Err(CODE_BAD_REQUEST);
        }
        let allocation = self.reaching(client, by, &peers, world)?;
        for peer in peers {
            allocation.permit(now_ms, peer.ip())?;
        }
        Ok(message::Granted::default())
    }

    fn bind_channel(
        &mut self,
        now_ms: u64,
        client: Client,
        request: &Message,
        by: &Authorised,
        world: &dyn World,
    ) -> Result<message::Granted, ErrorCode> {
        let number = request.get(ATTR_CHANNEL_NUMBER).ok().filter(|value| value.len() >= 2);
        let number = number.map(|value| u16::from_be_bytes([value[0], value[1]])).ok_or(CODE_BAD_REQUEST)?;
        let [peer] = peers(request)[..] else { return Err(CODE_BAD_REQUEST) };
        if !(0x4000..=0x4fff).contains(&number) {
            return Err(CODE_BAD_REQUEST);
        }
        self.reaching(client, by, &[peer], world)?.bind(now_ms, number, peer)?;
        Ok(message::Granted::default())
    }

    fn handle_send(
        &mut self,
        now_ms: u64,
        client: Client,
        indication: &Message,
        world: &dyn World,
        out: &mut Vec<Action>,
    ) {
        let (Some(&id), [peer]) = (self.clients.get(&client), &peers(indication)[..]) else { return };
        let Ok(data) = indication.get(ATTR_DATA) else { return };
        if self.allocations[&id].permits(now_ms, peer.ip()) {
            self.send(now_ms, id, *peer, data, world, out);
        }
    }

    fn handle_channel_data(
        &mut self,
        now_ms: u64,
        client: Client,
        bytes: &[u8],
        world: &dyn World,
        out: &mut Vec<Action>,
    ) {
        let [a, b, c, d, rest @ ..] = bytes else { return };
        let (number, length) = (u16::from_be_bytes([*a, *b]), usize::from(u16::from_be_bytes([*c, *d])));
        let (Some(&id), Some(data)) = (self.clients.get(&client), rest.get(..length)) else { return };
        let bound = self.allocations[&id].channels.get(&number);
        if let Some((peer, _)) = bound.copied().filter(|(_, until_ms)| *until_ms > now_ms) {
            self.send(now_ms, id, peer, data.to_vec(), world, out);
        }
    }

    fn send(
        &mut self,
        now_ms: u64,
        id: u64,
        peer: SocketAddr,
        data: Vec<u8>,
        world: &dyn World,
        out: &mut Vec<Action>,
    ) {
        // Of the relay's own host only relayed addresses: not its services. And what was allowed when the permission was
        // given may be a viewer that has gone.
        let may_reach = if self.is_own_host(peer.ip()) {
            self.relayed.contains(&peer)
        } else {
            // The ports below belong to services of the viewer's machine or router.
            peer.port() >= PEER_PORT_MIN && world.may_reach(peer.ip())
        };
        if !may_reach {
            self.counters.forbidden += 1;
        } else if self.charge(now_ms, id, data.len()) {
            out.push(Action::ToPeer(id, peer, data));
        }
    }

    /// Something came to a relayed address.
    pub(crate) fn handle_peer(
        &mut self,
        now_ms: u64,
        id: u64,
        from: SocketAddr,
        data: &[u8],
        out: &mut Vec<Action>,
    ) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let Some(allocation) = self.allocations.get(&id) else { return };
        let client = allocation.client;
        let channel = allocation
            .channels
            .iter()
            .find(|(_, (peer, until_ms))| *peer == from && *until_ms > now_ms)
            .map(|(number, _)| *number);
        if (channel.is_none() && !allocation.permits(now_ms, from.ip()))
            || !self.charge(now_ms, id, data.len())
        {
            return;
        }
        match channel {
            Some(number) => out.push(Action::ToClient(client, channel_data(number, data))),
            None => out.extend(data_indication(from, data).map(|bytes| Action::ToClient(client, bytes))),
        }
    }

    /// Takes bytes from the budgets of all and of the user.
    fn charge(&mut self, now_ms: u64, id: u64, bytes: usize) -> bool {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let (total, user_rate) = (bytes_rate(self.limits.total_kbps), bytes_rate(self.limits.user_kbps));
        let user = self.allocations.get(&id).and_then(|allocation| self.users.get_mut(&allocation.user));
        let is_paid = user.is_some_and(|user| {
            let has_paid = user.bucket.take(user_rate, now_ms, bytes);
            let is_paid = has_paid && self.total.take(total, now_ms, bytes);
            if has_paid && !is_paid {
                user.bucket.give_back(user_rate, bytes);
            }
            is_paid
        });
        let counter =
            if is_paid { &mut self.counters.relayed_bytes } else { &mut self.counters.dropped_bytes };
        *counter += u64::from(bytes);
        is_paid
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

fn lifetime_ms(request: &Message) -> Option<u64> {
    let value = request.get(ATTR_LIFETIME).ok()?;
    let seconds = u32::from_be_bytes(value.get(..4)?.try_into().ok()?);
    Some(u64::from(seconds) * 1_000)
}

#[cfg(test)]
mod tests;
