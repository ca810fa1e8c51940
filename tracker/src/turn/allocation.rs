//! One relayed address: whose it is, until when, and who may reach it and be reached from it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use rtc_stun::error_code::{CODE_BAD_REQUEST, CODE_INSUFFICIENT_CAPACITY, ErrorCode};
use rtc_stun::message::TransactionId;

use super::Client;

/// How long a permission holds (RFC 8656, section 9).
pub(super) const PERMISSION_MS: u64 = 300_000;
/// How long a channel does (section 12).
pub(super) const CHANNEL_MS: u64 = 600_000;
/// Peers of one allocation. A viewer makes an allocation for each neighbor, whose candidates are about ten.
pub(super) const PERMISSIONS_MAX: usize = 32;
/// Channels of one allocation.
pub(super) const CHANNELS_MAX: usize = 32;

/// A client's allocation.
pub(super) struct Allocation {
    pub(super) client: Client,
    pub(super) user: String,
    pub(super) relayed: SocketAddr,
    /// The request that made it, whose repetition is answered the same way.
    pub(super) transaction: TransactionId,
    pub(super) expires_ms: u64,
    pub(super) permissions: BTreeMap<IpAddr, u64>,
    pub(super) channels: BTreeMap<u16, (SocketAddr, u64)>,
}

impl Allocation {
    /// Lets an address send and be sent to from now on.
    pub(super) fn permit(&mut self, now_ms: u64, address: IpAddr) -> Result<(), ErrorCode> {
        self.permissions.retain(|_, until_ms| *until_ms > now_ms);
        if self.permissions.len() >= PERMISSIONS_MAX && !self.permissions.contains_key(&address) {
            return Err(CODE_INSUFFICIENT_CAPACITY);
        }
        self.permissions.insert(address, now_ms + PERMISSION_MS);
        Ok(())
    }

    /// Gives a peer a channel, and permits it (RFC 8656, section 12.2).
    pub(super) fn bind(&mut self, now_ms: u64, number: u16, peer: SocketAddr) -> Result<(), ErrorCode> {
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

    pub(super) fn permits(&self, now_ms: u64, address: IpAddr) -> bool {
        self.permissions.get(&address).is_some_and(|until_ms| *until_ms > now_ms)
    }
}
