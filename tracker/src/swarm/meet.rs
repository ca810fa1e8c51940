//! Carries out what the planner wants: introductions within their limits, partings, plans; and takes the reports of
//! pairs that met or did not.

use shoal_tracker_protocol::{ErrorCode, PeerId, Signal, TrackerMessage};

use super::candidate::Ends;
use super::network::Network;
use super::output::Output;
use super::{Swarm, refuse, send};
use crate::plan;

/// A round trip longer than this is a fault of the measurement.
const RTT_MS_MAX: u32 = 10_000;

impl Swarm {
    /// Does what the planner's round wants, if a round is due.
    pub(super) fn carry_out(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        for wish in self.seeding.round(now_ms) {
            match wish {
                plan::Output::Introduce { offers, answers } => self.introduce(now_ms, offers, answers, out),
                plan::Output::Disconnect { a, b } => self.separate(a, b, out),
                plan::Output::Plan { viewer, rendition, stripes, places } => {
                    out.push(send(viewer, TrackerMessage::Plan { rendition, stripes, places }));
                }
            }
        }
    }

    /// Tells two viewers to meet, unless their limits forbid it; then the planner hears that the pair can't connect.
    fn introduce(&mut self, now_ms: u64, offers: PeerId, answers: PeerId, out: &mut Vec<Output>) {
        if self.pairs.is_connected(offers, answers) {
            return;
        }
        let (Some(one), Some(other)) = (self.members.get(&offers), self.members.get(&answers)) else {
            return;
        };
        let is_cross = one.network() != other.network();
        let have_quarrelled = one.accused.contains(&answers) || other.accused.contains(&offers);
        if have_quarrelled {
            self.seeding.lost(now_ms, offers, answers);
            return;
        }
        if is_cross && !(self.has_variety(offers, answers) && self.charge(now_ms, offers, answers)) {
            self.counters.introductions_withheld += 1;
            self.seeding.lost(now_ms, offers, answers);
            return;
        }
        self.counters.introductions += 1;
        self.counters.introductions_cross_network += u64::from(is_cross);
        self.pairs.introduce(offers, answers);
        out.push(send(answers, TrackerMessage::Introduce { peer: offers, offers: false }));
        out.push(send(offers, TrackerMessage::Introduce { peer: answers, offers: true }));
    }

    /// Whether neither of the two would have too many neighbors from the other's network. An attacker who owns a few
    /// networks, but many addresses in them, must not surround a viewer. Viewers of one network with each other are
    /// not counted: they are in each other's power anyway.
    fn has_variety(&self, one: PeerId, other: PeerId) -> bool {
        let network = |peer: PeerId| self.members.get(&peer).map(super::Member::network);
        let is_crowded = |of: PeerId, by: Option<Network>| {
            let from = self.pairs.peers(of).iter().filter(|peer| network(**peer) == by);
            by != Some(Network::Inside) && from.count() >= self.settings.neighbors_per_network_max as usize
        };
        !is_crowded(one, network(other)) && !is_crowded(other, network(one))
    }

    /// Takes one introduction from the accounts of both, or from none.
    fn charge(&mut self, now_ms: u64, one: PeerId, other: PeerId) -> bool {
        let rate = self.settings.introduction_rate();
        let accounts = |peer: PeerId| self.members.get(&peer).map(|member| member.accounts);
        let (Some(one), Some(other)) = (accounts(one), accounts(other)) else { return false };
        self.ledger.charge(rate, now_ms, one, other)
    }

    /// Ends a pair and tells both.
    pub(super) fn separate(&mut self, a: PeerId, b: PeerId, out: &mut Vec<Output>) {
        if self.pairs.remove(a, b) {
            self.tell_part(a, b, out);
            self.tell_part(b, a, out);
        }
    }

    /// Ends all pairs of a viewer and tells the others, not the viewer.
    pub(super) fn part_from_all(&mut self, peer: PeerId, out: &mut Vec<Output>) {
        for other in self.pairs.peers(peer).to_vec() {
            self.pairs.remove(peer, other);
            self.tell_part(other, peer, out);
        }
    }

    fn tell_part(&self, to: PeerId, peer: PeerId, out: &mut Vec<Output>) {
        if self.members.get(&to).is_some_and(super::Member::is_present) {
            out.push(send(to, TrackerMessage::Part { peer }));
        }
    }

    /// Tells the planner of the data channels that a viewer still has, after it came back or was let in again.
    pub(super) fn reopen(&mut self, now_ms: u64, peer: PeerId) {
        for other in self.pairs.peers(peer).to_vec() {
            let is_seeded = self.members.get(&other).is_some_and(|member| member.is_seeded);
            if is_seeded && self.pairs.is_connected(peer, other) {
                self.seeding.connected(now_ms, peer, other, 0);
            }
        }
    }

    pub(super) fn handle_connected(
        &mut self,
        now_ms: u64,
        from: PeerId,
        to: PeerId,
        rtt_ms: u32,
        out: &mut Vec<Output>,
    ) {
        if !self.pairs.contains(from, to) && !self.recognise(from, to) {
            let is_claim = self.members.get(&from).is_some_and(|member| member.has_resumed);
            if !is_claim {
                out.push(not_introduced(from));
            }
            return;
        }
        let is_news = self.pairs.connected(from, to);
        if is_news {
            let across = (self.members.get(&from), self.members.get(&to));
            let is_across = matches!(across, (Some(one), Some(other)) if one.is_across(other));
            self.counters.connections += 1;
            self.counters.connections_cross_network += u64::from(is_across);
        }
        // One side's word is not enough: a viewer could make itself the parent of others that never heard of it.
        if self.pairs.is_connected(from, to) {
            self.seeding.connected(now_ms, from, to, rtt_ms.min(RTT_MS_MAX));
        }
    }

    /// A pair that the tracker does not know, because it was restarted, counts when both have come back and name each
    /// other.
    fn recognise(&mut self, from: PeerId, to: PeerId) -> bool {
        let claims_max = self.settings.neighbors_max as usize;
        let is_mutual = self.members.get(&to).is_some_and(|other| other.claims.contains(&from));
        let Some(member) = self.members.get_mut(&from).filter(|member| member.has_resumed) else {
            return false;
        };
        if is_mutual {
            self.pairs.introduce(from, to);
            self.pairs.connected(to, from);
            if let Some(other) = self.members.get_mut(&to) {
                other.claims.retain(|peer| *peer != from);
            }
        } else if member.claims.len() < claims_max && !member.claims.contains(&to) {
            member.claims.push(to);
        }
        is_mutual
    }

    pub(super) fn handle_lost(
        &mut self,
        now_ms: u64,
        from: PeerId,
        to: PeerId,
        was_connected: bool,
        out: &mut Vec<Output>,
    ) {
        // Late news of a pair that has parted already is no offence.
        if !self.pairs.contains(from, to) {
            return;
        }
        self.counters.unreachable += u64::from(!was_connected);
        self.pairs.remove(from, to);
        self.tell_part(to, from, out);
        self.seeding.lost(now_ms, from, to);
    }

    pub(super) fn handle_signal(&mut self, from: PeerId, to: PeerId, data: Signal, out: &mut Vec<Output>) {
        let receiver = self.members.get(&to).map(|member| (member.address, member.is_present()));
        let Some(sender) = self.members.get_mut(&from) else { return };
        let Some((receiver, is_present)) = receiver else {
            self.counters.signals_refused += 1;
            out.push(not_introduced(from));
            return;
        };
        let ends = Ends {
            sender: sender.address,
            receiver,
            relays: &self.settings.relays,
            relay_only: self.settings.relay_only,
        };
        if let (Some(bound), Signal::Offer { sdp } | Signal::Answer { sdp }) = (&sender.fingerprint, &data)
            && !has_only_fingerprint(sdp, bound)
        {
            // The token was made for one viewer's key: whoever copied it can't prove to hold that key.
            self.counters.signals_refused += 1;
            out.push(refuse(from, ErrorCode::Refused, "not the certificate that the token names", false));
            return;
        }
        match self.pairs.check(from, to, data, &ends, &mut sender.unverified, &self.settings) {
            Ok(checked) => {
                self.counters.candidates_stripped += u64::from(checked.stripped);
                if let Some(data) = checked.data.filter(|_| is_present) {
                    self.counters.signals += 1;
                    out.push(send(to, TrackerMessage::Signal { from, data }));
                }
            }
            Err(refused) => {
                self.counters.signals_refused += 1;
                out.push(refuse(from, refused.code, refused.why, false));
            }
        }
    }
}

/// Whether a description has fingerprints, and all are this one.
fn has_only_fingerprint(sdp: &str, bound: &str) -> bool {
    let mut fingerprints =
        sdp.lines().filter_map(|line| line.trim().strip_prefix("a=fingerprint:")).peekable();
    fingerprints.peek().is_some()
        && fingerprints.all(|fingerprint| {
            let mut words = fingerprint.split_ascii_whitespace();
            words.next().is_some_and(|algorithm| algorithm.eq_ignore_ascii_case("sha-256"))
                && words.next().is_some_and(|value| value.eq_ignore_ascii_case(bound))
        })
}

fn not_introduced(to: PeerId) -> Output {
    refuse(to, ErrorCode::NotIntroduced, "this peer was not introduced", false)
}
