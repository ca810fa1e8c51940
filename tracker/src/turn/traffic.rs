//! What is relayed: from clients to peers and back, as far as permissions and budgets go.

use std::net::SocketAddr;

use rtc_stun::attributes::ATTR_DATA;
use rtc_stun::message::Message;

use super::message::{channel_data, data_indication, peers};
use super::{Action, Client, Turn, World, bytes_rate};

/// As for candidates: no viewer's WebRTC has a lower port.
const PEER_PORT_MIN: u16 = 1024;

impl Turn {
    pub(super) fn handle_send(
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

    pub(super) fn handle_channel_data(
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
}
