//! What clients ask for: who may ask at all, and allocations, permissions and channels for those who may.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rtc_stun::attributes::{
    ATTR_CHANNEL_NUMBER, ATTR_DONT_FRAGMENT, ATTR_EVEN_PORT, ATTR_LIFETIME, ATTR_MESSAGE_INTEGRITY,
    ATTR_NONCE, ATTR_REALM, ATTR_REQUESTED_ADDRESS_FAMILY, ATTR_REQUESTED_TRANSPORT, ATTR_RESERVATION_TOKEN,
    ATTR_USERNAME,
};
use rtc_stun::error_code::{
    CODE_ADDR_FAMILY_NOT_SUPPORTED, CODE_ALLOC_MISMATCH, CODE_ALLOC_QUOTA_REACHED, CODE_BAD_REQUEST,
    CODE_FORBIDDEN, CODE_INSUFFICIENT_CAPACITY, CODE_PEER_ADDR_FAMILY_MISMATCH, CODE_STALE_NONCE,
    CODE_UNAUTHORIZED, CODE_UNKNOWN_ATTRIBUTE, CODE_UNSUPPORTED_TRANS_PROTO, CODE_WRONG_CREDENTIALS,
    ErrorCode,
};
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    METHOD_ALLOCATE, METHOD_CHANNEL_BIND, METHOD_CREATE_PERMISSION, METHOD_REFRESH, Message,
};

use super::allocation::{Allocation, PERMISSIONS_MAX};
use super::message::{Granted, credential, failure, peers, success};
use super::{Client, REALM, Turn, World};

/// How long an allocation lasts that does not ask for another time (RFC 8656, section 3.2), and at least.
pub(super) const LIFETIME_MS: u64 = 600_000;
/// And at most: a viewer that is gone without a word holds a port for this time.
pub(super) const LIFETIME_MAX_MS: u64 = 3_600_000;
/// UDP's number, the only transport that is relayed.
const UDP: u8 = 17;

/// A request whose sender has shown a credential.
pub(super) struct Authorised {
    user: String,
    key: Vec<u8>,
}

impl Turn {
    /// Long-term credentials (RFC 8489, section 9.2) with coturn's REST scheme as the data base of users.
    pub(super) fn authorise(
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
    pub(super) fn handle_request(
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
    ) -> Result<Granted, ErrorCode> {
        let mapped = Some(client.address());
        if let Some(known) = self.of(client) {
            if known.transaction != request.transaction_id {
                return Err(CODE_ALLOC_MISMATCH);
            }
            let lifetime_s = (known.expires_ms.saturating_sub(now_ms) / 1_000) as u32;
            return Ok(Granted { relayed: Some(known.relayed), mapped, lifetime_s: Some(lifetime_s) });
        }
        let is_ipv4 = wants_ipv4(request)?;
        self.check_quotas(client, by)?;
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
        self.enter(now_ms, id, allocation);
        Ok(Granted { relayed: Some(relayed), mapped, lifetime_s: Some((lifetime_ms / 1_000) as u32) })
    }

    /// Whether the user, its address and the server have room for one more allocation.
    fn check_quotas(&mut self, client: Client, by: &Authorised) -> Result<(), ErrorCode> {
        let of_user = self.users.get(&by.user).map_or(0, |user| user.allocations);
        let of_address = self.addresses.get(&client.address().ip()).copied().unwrap_or(0);
        let code = if of_user >= self.limits.allocations_per_user_max
            || of_address >= self.limits.allocations_per_address_max
        {
            CODE_ALLOC_QUOTA_REACHED
        } else if self.allocations.len() >= self.limits.allocations_max {
            CODE_INSUFFICIENT_CAPACITY
        } else {
            return Ok(());
        };
        self.counters.over_quota += 1;
        Err(code)
    }

    fn refresh(
        &mut self,
        now_ms: u64,
        client: Client,
        request: &Message,
        by: &Authorised,
    ) -> Result<Granted, ErrorCode> {
        let allocation = self.owned(client, by)?;
        let lifetime_ms = match lifetime_ms(request) {
            // The client has done with it.
            Some(0) => 0,
            wanted => wanted.unwrap_or(LIFETIME_MS).clamp(LIFETIME_MS, LIFETIME_MAX_MS),
        };
        allocation.expires_ms = now_ms + lifetime_ms;
        Ok(Granted { lifetime_s: Some((lifetime_ms / 1_000) as u32), ..Granted::default() })
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

    fn permit(
        &mut self,
        now_ms: u64,
        client: Client,
        request: &Message,
        by: &Authorised,
        world: &dyn World,
    ) -> Result<Granted, ErrorCode> {
        let peers = peers(request);
        if peers.is_empty() || peers.len() > PERMISSIONS_MAX {
            return Err(CODE_BAD_REQUEST);
        }
        let allocation = self.reaching(client, by, &peers, world)?;
        for peer in peers {
            allocation.permit(now_ms, peer.ip())?;
        }
        Ok(Granted::default())
    }

    fn bind_channel(
        &mut self,
        now_ms: u64,
        client: Client,
        request: &Message,
        by: &Authorised,
        world: &dyn World,
    ) -> Result<Granted, ErrorCode> {
        let number = request.get(ATTR_CHANNEL_NUMBER).ok().filter(|value| value.len() >= 2);
        let number = number.map(|value| u16::from_be_bytes([value[0], value[1]])).ok_or(CODE_BAD_REQUEST)?;
        let [peer] = peers(request)[..] else { return Err(CODE_BAD_REQUEST) };
        if !(0x4000..=0x4fff).contains(&number) {
            return Err(CODE_BAD_REQUEST);
        }
        self.reaching(client, by, &[peer], world)?.bind(now_ms, number, peer)?;
        Ok(Granted::default())
    }
}

/// Which family of addresses an allocation is asked for in. Everything else that one may be asked for is refused.
fn wants_ipv4(request: &Message) -> Result<bool, ErrorCode> {
    let transport = request.get(ATTR_REQUESTED_TRANSPORT).map_err(|_| CODE_BAD_REQUEST)?;
    if transport.first() != Some(&UDP) {
        return Err(CODE_UNSUPPORTED_TRANS_PROTO);
    }
    if request.contains(ATTR_DONT_FRAGMENT) {
        return Err(CODE_UNKNOWN_ATTRIBUTE);
    }
    if request.contains(ATTR_EVEN_PORT) || request.contains(ATTR_RESERVATION_TOKEN) {
        return Err(CODE_INSUFFICIENT_CAPACITY);
    }
    match request.get(ATTR_REQUESTED_ADDRESS_FAMILY).ok().and_then(|value| value.first().copied()) {
        None | Some(1) => Ok(true),
        Some(2) => Ok(false),
        Some(_) => Err(CODE_ADDR_FAMILY_NOT_SUPPORTED),
    }
}

fn lifetime_ms(request: &Message) -> Option<u64> {
    let value = request.get(ATTR_LIFETIME).ok()?;
    let seconds = u32::from_be_bytes(value.get(..4)?.try_into().ok()?);
    Some(u64::from(seconds) * 1_000)
}
