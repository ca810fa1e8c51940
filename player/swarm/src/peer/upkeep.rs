//! What is done twice a second: neighbors that fall silent, rates, limits, lost parents, reports.

use shoal_digest::PieceId;

use super::Peer;
use crate::{
    Output, Span, Time, input::PeerId, output::DisconnectReason, plan::Plan, upload::CHANNEL_BYTES_MAX,
    wire::Control,
};

const UPKEEP_INTERVAL: Span = Span::from_ms(500);
/// A neighbor that blocks are expected of and that says nothing for this long is asked whether it is there.
const QUIET: Span = Span::from_ms(1000);
/// The same for others; keeps NAT bindings open too.
const QUIET_IDLE: Span = Span::from_secs(10);
/// Without an answer for this long, nothing more is expected of it. Background tabs run timers once a second, but handle
/// messages at once.
const SUSPECT_AFTER: Span = Span::from_ms(700);
/// Without an answer for this long, it is gone.
const GONE_AFTER: Span = Span::from_secs(4);
/// Who talks and takes nothing for so long is gone, too: a full channel that drains at less than 52 kbit/s is of no use to anybody,
/// and for as long as it waits the line looks as slow as that.
const STUCK_AFTER: Span = Span::from_secs(10);
/// A foster parent that pushes nothing for this long is no use.
const FOSTER_PATIENCE: Span = Span::from_secs(2);
/// With this much waiting in the upload queue, a child has to go.
const SHED_BACKLOG: Span = Span::from_ms(700);
/// After one was sent away, see first what that does.
const SHED_INTERVAL: Span = Span::from_ms(1500);
/// How much of an uplink that may be used whole is media; the rest are the headers of several protocols.
const GRANTED_MEDIA_PERCENT: u64 = 92;
/// How much of that is planned on. `cargo xtask sim lab` gives 1.6 copies on average over five seeds, 2.0 with 85 %, 2.1 with all.
const GRANTED_PLANNABLE_PERCENT: u64 = 66;
/// Who has had no neighbor for this long can have none, as far as anybody can tell: behind a firewall that lets no UDP through.
const LONELY_AFTER: Span = Span::from_secs(15);
/// Of the questions that one neighbor leaves unanswered so many count as a sign of starvation: a few liars are none.
const UNANSWERED_OF_ONE_MAX: u32 = 8;
/// Who waits for data for this long gives less.
const STALL_PATIENCE: Span = Span::from_secs(3);
/// A piece whose end lies this far behind the playhead is not obtained any more.
const RETIRE_AFTER_MS: u64 = 1500;

impl Peer {
    pub(super) fn upkeep(&mut self) {
        if self.upkeep_at == Time::ZERO {
            // Viewers that start together must not work in step.
            let phase = self.rng.below(UPKEEP_INTERVAL.as_us());
            self.upkeep_at = self.now + Span::from_us(phase);
            self.starvation.start(self.now);
            self.company_at = self.now;
            return;
        }
        if !self.neighbors.is_empty() {
            self.company_at = self.now;
        }
        let lateness = self.now.since(self.upkeep_at);
        if self.starvation.note_lateness(self.now, lateness, self.config.starved_above) {
            self.be_starved();
        }
        self.upkeep_at = self.now + UPKEEP_INTERVAL;
        self.glut.look(self.now, &mut self.rng);
        self.ask_silent_neighbors();
        self.retire_pieces();
        self.cancel_stalled_fetches();
        self.drop_held(None);
        self.drop_loaded();
        self.update_rate();
        self.shed();
        self.complain();
        self.find_fosters();
        if self.requests.iter().any(|request| request.record_fetched.is_none()) && !self.has_tracker {
            self.check_requests();
        }
        if self.reports.is_due(self.now) {
            let (stats, uplink) = (self.stats(), self.plannable_bps());
            let report = self.reports.make(self.now, &stats, uplink, &self.playing);
            self.outputs.push(Output::Report(report));
        }
    }

    /// A question to a neighbor was not answered in time.
    pub(super) fn note_unanswered(&mut self, peer: PeerId) {
        let Some(neighbor) = self.neighbors.get_mut(&peer) else { return };
        neighbor.unanswered += 1;
        let is_few = neighbor.unanswered <= UNANSWERED_OF_ONE_MAX;
        #[cfg(test)]
        let is_few = is_few || self.unsafe_mode.no_talk_limit;
        if !is_few {
            return;
        }
        // While the origin is away everybody waits for everybody.
        let is_common = self.origin.is_down() || self.now < self.origin.recovering_until;
        if !is_common && self.starvation.note_unanswered() {
            self.be_starved();
        }
    }

    fn be_starved(&mut self) {
        if self.starvation.begin(self.now, &mut self.rng) {
            self.stats.starved += 1;
            self.wake_pieces();
        }
    }

    /// Whether there have been no neighbors for so long that none are to be waited for.
    pub(super) fn is_lonely(&self) -> bool {
        self.now.since(self.company_at) > LONELY_AFTER
    }

    fn ask_silent_neighbors(&mut self) {
        let now = self.now;
        let mut gone = Vec::new();
        let mut asked = Vec::new();
        let mut has_suspects = false;
        for (peer, neighbor) in self.neighbors.iter_mut() {
            let is_stuck =
                neighbor.buffered >= CHANNEL_BYTES_MAX && now.since(neighbor.drained_at) >= STUCK_AFTER;
            #[cfg(test)]
            let is_stuck = is_stuck && !self.unsafe_mode.no_stuck_limit;
            if is_stuck {
                gone.push(*peer);
                continue;
            }
            if let Some((sent, _)) = neighbor.ping {
                if neighbor.heard > sent {
                    // It is there; the pong itself only measures.
                    neighbor.ping = None;
                } else if now.since(sent) >= GONE_AFTER {
                    gone.push(*peer);
                } else if now.since(sent) >= SUSPECT_AFTER + neighbor.rtt + neighbor.rtt
                    && !neighbor.is_suspect
                {
                    neighbor.is_suspect = true;
                    has_suspects = true;
                }
                continue;
            }
            let feeds = |plan: &Plan| plan.stripes.iter().any(|stripe| stripe.source() == Some(*peer));
            let is_source = self.plans.values().any(feeds);
            let quiet =
                if is_source || neighbor.asked > 0 || !neighbor.has_greeted { QUIET } else { QUIET_IDLE };
            if now.since(neighbor.heard) >= quiet {
                self.next_nonce = self.next_nonce.wrapping_add(1);
                neighbor.ping = Some((now, self.next_nonce));
                asked.push((*peer, self.next_nonce));
            }
        }
        for (peer, nonce) in asked {
            self.send(peer, &Control::Ping { nonce });
        }
        for peer in gone {
            self.part_from(peer, DisconnectReason::Silent, false);
        }
        if has_suspects {
            self.wake_pieces();
        }
    }

    fn retire_pieces(&mut self) {
        let position_ms = self.player.position_ms(self.now);
        let is_over = |id: &PieceId| {
            let Some(piece) = self.pieces.get(id) else { return true };
            let Some(record) = piece.record() else { return true };
            let end_ms = record.start_ms + u64::from(record.duration_ms);
            let passed = self.player.has_started && end_ms + RETIRE_AFTER_MS < position_ms;
            // A driver that never tells a playhead must not make pieces pile up.
            let forgotten = self.now.since(piece.since) > Span::from_secs(60);
            !piece.is_wanted && (passed || forgotten)
        };
        let mut over = Vec::new();
        for (id, _) in &self.active {
            if is_over(id) {
                over.push(*id);
            }
        }
        for id in over {
            self.deactivate(id);
            if let Some(piece) = self.pieces.get_mut(&id) {
                piece.is_retired = true;
            }
        }
    }

    /// Evicts the oldest pieces until the store has room for a new one: before its first block comes, so that a driver never has
    /// to keep more than the limit.
    pub(super) fn make_store_room(&mut self, piece_length: u32) {
        while self.store_bytes + u64::from(piece_length) > self.config.store_bytes_max {
            let oldest = self.oldest(&|piece| !piece.stored.is_empty() && !piece.is_wanted);
            let Some(oldest) = oldest else { return };
            self.evict(oldest);
        }
    }

    pub(super) fn evict(&mut self, id: PieceId) {
        self.deactivate(id);
        let Some(piece) = self.pieces.remove(&id) else { return };
        if !piece.stored.is_empty() {
            self.store_bytes -= piece.store_bytes();
            self.stats.evicted += 1;
            self.outputs.push(Output::Evict { piece: id });
        }
    }

    /// Sets the upload rate: what the line, the stream and the viewer's own playback allow.
    pub(super) fn update_rate(&mut self) {
        let usable = self.usable_bps();
        // A viewer whose playback waits and waits needs its line. Not at once: in a small swarm its children would wait
        // next, and all for each other. And where the origin was away everybody does.
        let is_common = self.origin.is_down() || self.now < self.origin.recovering_until;
        let is_short = self.player.stalled_for(self.now) > STALL_PATIENCE && !is_common;
        let rate = if is_short { usable / 4 } else { usable };
        self.reports.note_uplink(self.plannable_bps());
        self.uploads.set_rate(self.now, rate);
        self.update_flags();
    }

    pub(super) fn usable_bps(&self) -> u64 {
        if !self.may_upload() {
            return 0;
        }
        if let Some(granted) = self.config.uplink_granted_bps {
            // Its owner has said how much it is to give.
            return granted / 100 * GRANTED_MEDIA_PERCENT;
        }
        let measured = self.uploads.uplink_bps();
        let uplink = if measured == 0 { self.config.uplink_initial_bps } else { measured };
        let line = uplink.saturating_mul(self.config.upload_uplink_percent) / 100;
        let mut stream = 0;
        for rendition in &self.playing {
            stream += self.rates.get(rendition).copied().unwrap_or(0);
        }
        if stream == 0 { line } else { line.min(stream.saturating_mul(self.upload_ratio_percent) / 100) }
    }

    /// What the planner may count on. Where all of a line may be used nothing is left for the pieces with keyframes, which
    /// are several times as long as the others, nor for answers and headers: blocks would queue up, and be late.
    pub(super) fn plannable_bps(&self) -> u64 {
        if self.starvation.is_on(self.now) {
            // Those that it has it goes on feeding until they have got another parent.
            return 0;
        }
        let usable = self.usable_bps();
        if self.config.uplink_granted_bps.is_some() {
            usable / 100 * GRANTED_PLANNABLE_PERCENT
        } else {
            usable
        }
    }

    /// Sends a child away when the upload queue only grows.
    fn shed(&mut self) {
        if self.uploads.backlog() < SHED_BACKLOG || self.now.since(self.shed_at) < SHED_INTERVAL {
            return;
        }
        // The weakest child of the stripe with the most: it has the fewest descendants.
        let mut most = (1, None);
        for (rendition, plan) in self.plans.iter() {
            for (stripe, place) in (0_u8..).zip(&plan.stripes) {
                if place.children.len() >= most.0 {
                    most = (place.children.len(), Some((*rendition, stripe)));
                }
            }
        }
        let Some((rendition, stripe)) = most.1 else { return };
        let Some(plan) = self.plans.get_mut(&rendition) else { return };
        let place = &mut plan.stripes[usize::from(stripe)];
        let Some(child) = place.children.last().copied() else { return };
        place.remove_child(child);
        let stripes = plan.stripe_count();
        self.shed_at = self.now;
        self.stats.shed += 1;
        let dropped = self.uploads.remove(&mut |upload| {
            let record = self.pieces.get(&upload.piece).and_then(|piece| piece.record());
            let its = record.is_some_and(|record| {
                crate::stripe_of(upload.piece, record.length, u32::from(upload.block), stripes) == stripe
            });
            upload.peer == child && upload.piece.rendition == rendition && its && !upload.is_answer
        });
        self.stats.uploads_dropped += dropped as u64;
        if self.neighbors.contains_key(&child) {
            self.send(child, &Control::Shed { rendition, stripe });
        }
        // The planner should know soon that less can be planned on.
        self.reports.hurry(self.now);
    }

    /// Tells the tracker of parents that are there and push nothing.
    fn complain(&mut self) {
        let (now, has_tracker) = (self.now, self.has_tracker);
        for rendition in &self.playing {
            let Some(plan) = self.plans.get_mut(rendition) else { continue };
            for (stripe, place) in (0_u8..).zip(&mut plan.stripes) {
                if let Some(peer) = place.silent_parent(now, !has_tracker)
                    && has_tracker
                {
                    self.stats.complaints += 1;
                    self.outputs.push(Output::Complain { peer, rendition: *rendition, stripe });
                }
            }
        }
    }

    /// Finds somebody who pushes the stripes that nobody pushes any more, until the tracker has repaired the tree.
    fn find_fosters(&mut self) {
        let now = self.now;
        if !self.player.has_started || self.starvation.is_on(self.now) || self.glut.is_on(self.now) {
            return;
        }
        let mut changes = Vec::new();
        for (rendition, plan) in self.plans.iter() {
            let is_played = self.plays(*rendition);
            for (stripe, place) in (0_u8..).zip(&plan.stripes) {
                if !is_played && place.foster.is_some() {
                    changes.push((*rendition, plan.stripe_count(), stripe, None));
                }
                if place.is_root || !is_played {
                    continue;
                }
                let is_alive =
                    |peer: PeerId| self.neighbors.get(&peer).is_some_and(|neighbor| !neighbor.is_suspect);
                if place.parent.is_some_and(is_alive) {
                    continue;
                }
                let quiet = now.since(place.arrived_at.max(place.foster_since)) > FOSTER_PATIENCE;
                if place.foster.is_some_and(is_alive) && !quiet {
                    continue;
                }
                let mut best = (0, None);
                for (peer, neighbor) in self.neighbors.iter() {
                    if neighbor.gives() && place.foster != Some(*peer) && !place.children.contains(peer) {
                        // Strong ones more likely, but not everybody the same one.
                        let lot = self.lot(*peer ^ u32::from(stripe) << 24) % 9;
                        let merit = u64::from(neighbor.uplink_class) * 2 + lot;
                        if merit >= best.0 {
                            best = (merit, Some(*peer));
                        }
                    }
                }
                changes.push((*rendition, plan.stripe_count(), stripe, best.1));
            }
        }
        for (rendition, stripes, stripe, foster) in changes {
            let Some(plan) = self.plans.get_mut(&rendition) else { continue };
            let place = &mut plan.stripes[usize::from(stripe)];
            let former = std::mem::replace(&mut place.foster, foster);
            place.foster_since = now;
            if let Some(former) = former.filter(|former| self.neighbors.contains_key(former)) {
                self.send(former, &Control::Subscribe { rendition, stripes, stripe, on: false });
            }
            if let Some(foster) = foster {
                self.send(foster, &Control::Subscribe { rendition, stripes, stripe, on: true });
            }
        }
    }
}
