//! The WebTorrent tracker protocol: pairs peers that announce the same info hash.
//!
//! For players that are not ours: a site with p2p-media-loader, WebTorrent or PeerTube can move its tracker first and
//! its player later. No plans, no publications, only offers and answers passed on. Pure like `../swarm`: takes messages
//! and the time, pushes replies into the caller's `Vec`. Sockets are in `../service/announce.rs`.

pub mod message;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::swarm::{DescriptionFilter, Network, Relays};
use message::{
    Announce, Counts, Description, Event, Id, InMessage, Kind, OFFERS_MAX, Offer, OutMessage, Scrape, Unread,
};

/// Swarms that one scrape may ask for.
const SCRAPE_MAX: usize = 64;
/// Offers that one peer may have to answer; the oldest is forgotten beyond it.
const EXPECTED_MAX: usize = 64;
/// An answer that comes later finds nobody waiting: clients drop their offers after 50 s.
const ANSWER_WITHIN_MS: u64 = 60_000;
/// Peers are looked through for such that no longer announce this often.
const SWEEP_MS: u64 = 60_000;

/// One connection, as the caller numbers them.
pub type Connection = u64;

/// Limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Clients are asked to announce this often, in seconds.
    pub interval_s: u32,
    /// Swarms that one connection may be in.
    pub swarms_per_connection_max: usize,
    /// Bytes of one session description.
    pub description_bytes_max: usize,
    /// Whether candidates in descriptions are checked.
    pub check_candidates: bool,
}

/// What the registry wants sent.
pub type Replies<'a> = Vec<(Connection, OutMessage<'a>)>;

/// What the registry asks of its owner.
#[derive(Clone, Copy)]
pub struct Asks<'a> {
    /// Who has room for an offer now. One that would have to be dropped is better given to somebody else.
    pub has_room: &'a dyn Fn(Connection) -> bool,
    /// Whether these two may be told each other's addresses; both pay for it.
    pub may_meet: &'a dyn Fn(IpAddr, IpAddr) -> bool,
}

impl std::fmt::Debug for Asks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asks")
    }
}

/// All swarms of this protocol.
#[derive(Debug)]
pub struct Registry {
    settings: Settings,
    relays: Relays,
    swarms: BTreeMap<Id, Swarm>,
    /// The swarms of each connection, and its peer id there.
    connections: BTreeMap<Connection, BTreeMap<Id, Id>>,
    rng: StdRng,
    swept_ms: u64,
}

#[derive(Debug, Default)]
struct Swarm {
    peers: Vec<Peer>,
    index: BTreeMap<Id, usize>,
    complete: u32,
    downloaded: u32,
}

#[derive(Debug)]
struct Peer {
    id: Id,
    connection: Connection,
    address: IpAddr,
    is_complete: bool,
    announced_ms: u64,
    /// Oldest first.
    expected: VecDeque<Expected>,
}

/// An offer that was passed on to a peer.
#[derive(Clone, Copy, Debug)]
struct Expected {
    offer: Id,
    by: Id,
    until_ms: u64,
}

impl Registry {
    /// A registry without swarms.
    #[must_use]
    pub fn new(settings: Settings, seed: [u8; 32]) -> Self {
        Self {
            settings,
            relays: Relays::None,
            swarms: BTreeMap::new(),
            connections: BTreeMap::new(),
            rng: StdRng::from_seed(seed),
            swept_ms: 0,
        }
    }

    /// What clients may name as relays, from now on.
    pub fn set_relays(&mut self, relays: Relays) {
        self.relays = relays;
    }

    /// Swarms that have peers.
    #[must_use]
    pub fn swarms(&self) -> usize {
        self.swarms.len()
    }

    /// A client sent something.
    pub fn handle_message<'a>(
        &mut self,
        now_ms: u64,
        connection: Connection,
        address: IpAddr,
        message: InMessage<'a>,
        asks: Asks<'_>,
        out: &mut Replies<'a>,
    ) {
        self.sweep(now_ms);
        match message {
            InMessage::Scrape(scrape) => self.scrape(connection, &scrape, out),
            InMessage::Announce(announce) => {
                let info_hash = announce.info_hash;
                let result = self.announce(now_ms, connection, address, announce, asks, out);
                if let Err(reason) = result {
                    out.push((connection, OutMessage::Failed { reason, info_hash: Some(info_hash) }));
                }
            }
        }
    }

    /// A connection ended.
    pub fn handle_closed(&mut self, connection: Connection) {
        for (info_hash, peer) in self.connections.remove(&connection).unwrap_or_default() {
            self.remove(info_hash, peer);
        }
    }

    fn announce<'a>(
        &mut self,
        now_ms: u64,
        connection: Connection,
        address: IpAddr,
        announce: Announce<'a>,
        asks: Asks<'_>,
        out: &mut Replies<'a>,
    ) -> Result<(), &'static str> {
        let Announce { info_hash, peer_id, .. } = announce;
        // A socket must not speak for another peer: ids are visible to everybody in the swarm.
        let owner = self.owner(info_hash, peer_id);
        if owner.is_some_and(|owner| owner != connection) {
            return Err("this peer id is another connection's");
        }
        let joined = self.connections.entry(connection).or_default();
        if joined.get(&info_hash).is_some_and(|known| *known != peer_id) {
            return Err("this connection has another peer id in this swarm");
        }
        if announce.event == Some(Event::Stopped) {
            joined.remove(&info_hash);
            self.remove(info_hash, peer_id);
            return Ok(());
        }
        if !joined.contains_key(&info_hash) && joined.len() >= self.settings.swarms_per_connection_max {
            return Err("too many swarms for one connection");
        }
        joined.insert(info_hash, peer_id);
        let swarm = self.swarms.entry(info_hash).or_default();
        let has_completed = announce.event == Some(Event::Completed);
        let is_complete = has_completed || announce.has_all;
        swarm.downloaded = swarm.downloaded.saturating_add(has_completed.into());
        swarm.update(now_ms, peer_id, connection, address, is_complete);
        if let (Some(answer), Some(to), Some(offer_id)) =
            (announce.answer, announce.to_peer_id, announce.offer_id)
        {
            return self.answer(now_ms, info_hash, peer_id, to, offer_id, &answer, out);
        }
        let swarm = &self.swarms[&info_hash];
        out.push((
            connection,
            OutMessage::Announced {
                action: "announce",
                interval: self.settings.interval_s,
                info_hash,
                complete: swarm.complete,
                incomplete: swarm.incomplete(),
            },
        ));
        let wanted = announce.numwant.map_or(OFFERS_MAX, |numwant| numwant as usize);
        let offers = &announce.offers[..wanted.min(announce.offers.len())];
        self.pass_offers(now_ms, info_hash, peer_id, offers, asks, out);
        Ok(())
    }

    fn owner(&self, info_hash: Id, peer: Id) -> Option<Connection> {
        let swarm = self.swarms.get(&info_hash)?;
        swarm.index.get(&peer).map(|at| swarm.peers[*at].connection)
    }

    /// Gives each offer to another peer of the swarm, chosen at random among those who have room for it.
    fn pass_offers<'a>(
        &mut self,
        now_ms: u64,
        info_hash: Id,
        from: Id,
        offers: &[Unread<'a, Offer<'a>>],
        asks: Asks<'_>,
        out: &mut Replies<'a>,
    ) {
        let Some(swarm) = self.swarms.get_mut(&info_hash) else { return };
        let Some(&at) = swarm.index.get(&from) else { return };
        let may_have = |at: usize| (asks.has_room)(swarm.peers[at].connection);
        let receivers = choose(&mut self.rng, swarm.peers.len(), at, offers.len(), may_have);
        let sender = swarm.peers[at].address;
        for (offer, receiver) in offers.iter().zip(receivers) {
            let Some(Offer { offer, offer_id }) = offer.read() else { continue };
            if offer.kind != Kind::Offer || offer.sdp.len() > self.settings.description_bytes_max {
                continue;
            }
            let peer = &mut swarm.peers[receiver];
            // Those of one network know each other's address.
            if Network::of(sender) != Network::of(peer.address) && !(asks.may_meet)(sender, peer.address) {
                continue;
            }
            peer.forget_expired(now_ms);
            if peer.expected.len() >= EXPECTED_MAX {
                peer.expected.pop_front();
            }
            let until_ms = now_ms + ANSWER_WITHIN_MS;
            peer.expected.push_back(Expected { offer: offer_id, by: from, until_ms });
            let offer = filter(&self.settings, &self.relays, offer, sender, peer.address);
            let message =
                OutMessage::Offered { action: "announce", offer, offer_id, peer_id: from, info_hash };
            out.push((peer.connection, message));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the message")]
    fn answer<'a>(
        &mut self,
        now_ms: u64,
        info_hash: Id,
        from: Id,
        to: Id,
        offer_id: Id,
        answer: &Unread<'a, Description<'a>>,
        out: &mut Replies<'a>,
    ) -> Result<(), &'static str> {
        let answer = answer.read().ok_or("not an answer")?;
        if answer.kind != Kind::Answer || answer.sdp.len() > self.settings.description_bytes_max {
            return Err("not an answer");
        }
        let swarm = self.swarms.get_mut(&info_hash).ok_or("no such swarm")?;
        let at = *swarm.index.get(&from).ok_or("announce first")?;
        let sender = swarm.peers[at].address;
        // Only to an offer that was passed on to the sender: nobody gets descriptions that he did not ask for.
        let is_it = |expected: &Expected| {
            expected.offer == offer_id && expected.by == to && expected.until_ms > now_ms
        };
        let expected = &mut swarm.peers[at].expected;
        let position = expected.iter().position(is_it).ok_or("no such offer was passed to you")?;
        expected.remove(position);
        // The peer that offered may have gone meanwhile, which is nobody's fault.
        if let Some(receiver) = swarm.index.get(&to).map(|at| &swarm.peers[*at]) {
            let answer = filter(&self.settings, &self.relays, answer, sender, receiver.address);
            let message =
                OutMessage::Answered { action: "announce", answer, offer_id, peer_id: from, info_hash };
            out.push((receiver.connection, message));
        }
        Ok(())
    }

    fn scrape(&self, connection: Connection, scrape: &Scrape, out: &mut Replies<'_>) {
        let known = scrape.info_hash.iter().take(SCRAPE_MAX).filter_map(|info_hash| {
            let swarm = self.swarms.get(info_hash)?;
            let (complete, incomplete, downloaded) = (swarm.complete, swarm.incomplete(), swarm.downloaded);
            Some(((*info_hash).into(), Counts { complete, incomplete, downloaded }))
        });
        out.push((connection, OutMessage::Scraped { action: "scrape", files: known.collect() }));
    }

    fn remove(&mut self, info_hash: Id, peer: Id) {
        if let Some(swarm) = self.swarms.get_mut(&info_hash) {
            swarm.remove(peer);
            if swarm.peers.is_empty() {
                self.swarms.remove(&info_hash);
            }
        }
    }

    /// Drops peers that have not announced for three intervals.
    fn sweep(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.swept_ms) < SWEEP_MS {
            return;
        }
        self.swept_ms = now_ms;
        let oldest_ms = now_ms.saturating_sub(3_000 * u64::from(self.settings.interval_s));
        for swarm in self.swarms.values_mut() {
            let gone: Vec<(Id, Connection)> = swarm
                .peers
                .iter()
                .filter(|peer| peer.announced_ms < oldest_ms)
                .map(|peer| (peer.id, peer.connection))
                .collect();
            for (peer, _) in gone {
                swarm.remove(peer);
            }
        }
        self.swarms.retain(|_, swarm| !swarm.peers.is_empty());
        let swarms = &self.swarms;
        for joined in self.connections.values_mut() {
            joined.retain(|info_hash, peer| {
                swarms.get(info_hash).is_some_and(|swarm| swarm.index.contains_key(peer))
            });
        }
        self.connections.retain(|_, joined| !joined.is_empty());
    }
}

impl Swarm {
    fn incomplete(&self) -> u32 {
        u32::try_from(self.peers.len()).unwrap_or(u32::MAX) - self.complete
    }

    fn update(&mut self, now_ms: u64, id: Id, connection: Connection, address: IpAddr, is_complete: bool) {
        if let Some(peer) = self.index.get(&id).and_then(|at| self.peers.get_mut(*at)) {
            // An announce with an answer carries no `left`: a seeder stays one.
            let becomes = is_complete && !peer.is_complete;
            peer.is_complete |= is_complete;
            peer.announced_ms = now_ms;
            self.complete += u32::from(becomes);
        } else {
            self.index.insert(id, self.peers.len());
            self.complete += u32::from(is_complete);
            let expected = VecDeque::new();
            self.peers.push(Peer { id, connection, address, is_complete, announced_ms: now_ms, expected });
        }
    }

    fn remove(&mut self, id: Id) {
        let Some(at) = self.index.remove(&id) else { return };
        let peer = self.peers.swap_remove(at);
        self.complete -= u32::from(peer.is_complete);
        if let Some(moved) = self.peers.get(at) {
            self.index.insert(moved.id, at);
        }
    }
}

impl Peer {
    fn forget_expired(&mut self, now_ms: u64) {
        while self.expected.front().is_some_and(|oldest| oldest.until_ms <= now_ms) {
            self.expected.pop_front();
        }
    }
}

/// Up to `count` different numbers below `all`, none of them `except`, each of which `may_be` chosen.
fn choose(
    rng: &mut StdRng,
    all: usize,
    except: usize,
    count: usize,
    may_be: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let count = count.min(all.saturating_sub(1));
    let may_be = |at: usize| at != except && may_be(at);
    if count * 2 >= all {
        // Nearly everybody: walk round from somewhere.
        let start = rng.random_range(0..all.max(1));
        return (0..all).map(|step| (start + step) % all).filter(|at| may_be(*at)).take(count).collect();
    }
    let mut chosen: Vec<usize> = Vec::with_capacity(count);
    // Where most may not be, some are found or none: looking through all would be work that grows with the swarm.
    let mut misses = 0;
    while chosen.len() < count && misses < 4 * count {
        let at = rng.random_range(0..all);
        if !chosen.contains(&at) {
            if may_be(at) {
                chosen.push(at);
            } else {
                misses += 1;
            }
        }
    }
    chosen
}

fn filter<'a>(
    settings: &Settings,
    relays: &Relays,
    description: Description<'a>,
    sender: IpAddr,
    receiver: IpAddr,
) -> Description<'a> {
    if !settings.check_candidates {
        return description;
    }
    let Description { kind, sdp } = description;
    Description { kind, sdp: DescriptionFilter { sender, receiver, relays }.apply(sdp) }
}

#[cfg(test)]
mod tests;
