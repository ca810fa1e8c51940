//! When a piece's blocks are asked of neighbors, and when they are fetched from the origin.
//!
//! Each incomplete piece is looked at when something about it changed or when the earliest of its moments has come:
//! a block is later than expected, a pull is not answered, the last call for the origin. What a block's moments are is
//! in [`Moments`]. Who is asked is decided in `pulls.rs`; `fetches.rs` sees to the origin.

use shoal_digest::PieceId;

use super::{Peer, fetches::ORIGIN_FAULTS_MAX};
use crate::{
    Span, Time,
    bits::Bits,
    input::PeerId,
    map::Map,
    neighbor::Neighbor,
    origin::Purpose,
    piece::{Piece, Pull},
    plan::Plan,
    rng::mix,
    stripe_of,
};

/// Nobody can be asked now: look again after this. About a round trip, in which an announcement may come.
const RETRY: Span = Span::from_ms(80);
/// A pull needs at least this before the last call, or it is a wasted question.
const PULL_LEAD: Span = Span::from_ms(150);
/// After an outage, pieces are expected from the origin a little faster than they are played, this often in percent of
/// their duration. Everybody has fallen behind by as much, so that nobody needs them sooner; and uplinks carry little
/// more than the stream: at one and a half times its rate the trees broke down.
const CATCH_UP_PERCENT: u64 = 88;
/// Where everybody else's attempts fail too, each viewer tries for itself after this time, spread widely.
const LAST_RESORT_AFTER: Span = Span::from_secs(10);
const LAST_RESORT_SPREAD: Span = Span::from_secs(30);
/// With so much in its buffer a viewer goes by its deadlines again: two seconds, so that those who catch up with the others
/// first do not ask for what is on its way to all.
const RECOVERED_MS: u64 = 2_000;
/// The last of them may be late by this much before all is as usual.
const CATCH_UP_GRACE: Span = Span::from_secs(3);
/// Nothing further ahead of the playhead is obtained unasked: twice what players buffer.
const AHEAD_MAX_MS: u64 = 60_000;
/// Of what was published long ago a player can have this much before it. With less nobody is waited for: neighbors are
/// busy with places of their own, and a thin buffer would gain nothing.
const PAST_RESERVE: Span = Span::from_secs(8);
/// With more, neighbors get so long for a piece. Players ask for one segment after the other, and give up after 4 s.
const PAST_WAIT_MAX: Span = Span::from_secs(3);
/// When what happens to a piece's blocks.
#[derive(Clone, Copy, Debug)]
struct Moments {
    /// The local peer's turn to fetch what is late. Never where nobody waits.
    turn: Time,
    /// The last call for the origin: later, the fetch may not be done in time. Never where nobody waits.
    last_call: Time,
    /// Whether the local player needs the piece.
    is_needed: bool,
}

/// How the blocks of a piece are meant to come.
#[derive(Clone, Copy, Debug)]
enum Ways<'a> {
    /// Parents push them. A block comes typically so long after its record.
    Trees { plan: &'a Plan, typical: Span },
    /// There is no plan: one of the neighbors fetches them, the local peer from this moment on.
    Election { seed_at: Time },
}

impl Peer {
    /// Looks at all pieces in the next round, because something changed that concerns them all.
    pub(super) fn wake_pieces(&mut self) {
        let now = self.now;
        self.active.iter_mut().for_each(|(_, next)| *next = now);
    }

    pub(super) fn wake_piece(&mut self, id: PieceId) {
        let now = self.now;
        self.active.iter_mut().filter(|(active, _)| *active == id).for_each(|(_, next)| *next = now);
    }

    /// Whether the local player still needs a piece.
    pub(super) fn is_needed(&self, id: PieceId, piece: &Piece) -> bool {
        let Some(record) = piece.record() else { return false };
        if piece.is_complete || piece.is_retired || self.loads_plainly_until(id).is_some() {
            return false;
        }
        // Of what was published long ago only what the player asks for: it may never get to the rest, and everybody can send
        // the records of that.
        let may_come = self.player.has_started && self.plays(id.rendition) && self.player.lacks(record);
        // Nor does who watches from further back need what is published now: by the time it gets there, it asks.
        let is_far = record.start_ms > self.player.position_ms(self.now) + AHEAD_MAX_MS;
        piece.is_wanted || (may_come && !piece.is_past && !is_far)
    }

    fn moments(&self, id: PieceId, piece: &Piece) -> Moments {
        let is_needed = self.is_needed(id, piece);
        let start_ms = piece.record().map_or(0, |record| record.start_ms);
        let mut asked = Time::NEVER;
        for request in &self.requests {
            if piece.is_wanted && request.covers(id) {
                asked = asked.min(request.deadline.unwrap_or(Time::NEVER));
            }
        }
        // Nobody knows better than the player what it waits for: it may have been given all before it and play on only with
        // this, as hls.js does, which keeps audio back until the next piece of video.
        if piece.is_wanted && self.player.is_stalled {
            asked = self.now;
        }
        let mut played = self.player.reaches(self.now, start_ms).before(self.config.append_margin);
        if piece.is_past {
            played = played.before(PAST_RESERVE).min(piece.since + PAST_WAIT_MAX);
        }
        let deadline = if is_needed { asked.min(played) } else { Time::NEVER };
        if deadline == Time::NEVER {
            return Moments { turn: Time::NEVER, last_call: Time::NEVER, is_needed };
        }
        let missing =
            u32::try_from(piece.blocks.len()).unwrap_or(u32::MAX).saturating_sub(piece.stored.count());
        // Who is late at everything is late at this, too, and at what comes of it.
        let last_call =
            deadline.before(self.origin.estimate(missing) + self.starvation.expected_lateness(self.now));
        // Viewers share their deadlines: without a spread all of a broken tree's leaves would ask in the same moment, and
        // none could help another. Among neighbors one goes first and can serve the others.
        let room = last_call.since(piece.since).percent(50).min(self.config.fallback_spread);
        let early = Span::from_us(room.as_us() * u64::from(piece.turn) / 65_535);
        Moments { turn: last_call.before(early), last_call, is_needed }
    }

    /// Looks at one piece: starts pulls and fetches that are due and sets the time of the next look.
    pub(super) fn check_piece(&mut self, at: usize) {
        let id = self.active[at].0;
        let Some(piece) = self.pieces.get(&id) else {
            self.active.swap_remove(at);
            return;
        };
        let moments = self.moments(id, piece);
        let mut next = self.loads_plainly_until(id).unwrap_or(Time::NEVER);
        let mut seeds = Bits::default();
        let mut calls = Bits::default();
        let mut pulls: Vec<u32> = Vec::new();
        let mut expired: Vec<u32> = Vec::new();

        let ways = self.ways(id, piece);
        // What this origin does not have, or has wrong, neighbors may have.
        let may_fetch = piece.origin_faults < ORIGIN_FAULTS_MAX;
        let closed_until = self.origin.closed_until.max(piece.refused_until);
        for block in piece.missing().iter() {
            let state = &piece.blocks[block as usize];
            if let Some(fetch) = state.fetch.and_then(|fetch| self.origin.fetches.get(&fetch)) {
                next = next.min(fetch.progress + self.origin.patience());
                continue;
            }
            let (seed_at, late_at) = self.seeded_or_late(id, piece, block, moments.is_needed, &ways);
            if may_fetch && seed_at < Time::NEVER {
                let seed_at = seed_at.max(closed_until);
                if seed_at <= self.now {
                    seeds.insert(block);
                    continue;
                }
                next = next.min(seed_at);
            }
            if !moments.is_needed {
                continue;
            }
            let call_at = self.call_at(piece, block, moments, late_at).max(closed_until);
            if call_at > self.now {
                next = next.min(call_at);
            } else {
                calls.insert(block);
                if may_fetch {
                    continue;
                }
            }
            let is_expired = |pull: &Pull| pull.until <= self.now;
            #[cfg(test)]
            let is_expired = |pull: &Pull| is_expired(pull) && !self.unsafe_mode.no_pull_timeout;
            if let Some(pull) = state.pull {
                if !is_expired(&pull) {
                    next = next.min(pull.until);
                    continue;
                }
                expired.push(block);
            }
            let pull_at = late_at.min(moments.last_call.before(PULL_LEAD)).max(piece.since);
            if pull_at <= self.now {
                pulls.push(block);
            } else {
                next = next.min(pull_at);
            }
        }
        for block in expired {
            self.pull_failed(id, block);
        }
        let mut retry = false;
        if !pulls.is_empty() {
            retry = !self.pull(id, &pulls);
            // The new pulls' timeouts.
            let states = self.pieces.get(&id).map_or(&[][..], |piece| &piece.blocks);
            for block in &pulls {
                if let Some(pull) = states.get(*block as usize).and_then(|state| state.pull) {
                    next = next.min(pull.until);
                }
            }
        }
        let mut deferred = self.fetch(id, &seeds, Purpose::Seed);
        deferred |= self.fetch(id, &calls, Purpose::Deadline);
        if !seeds.is_empty() || !calls.is_empty() {
            next = next.min(self.now + self.origin.patience());
        }
        if retry || deferred {
            next = next.min(self.now + RETRY);
        }
        if let Some(entry) = self.active.iter_mut().find(|(active, _)| *active == id) {
            // A check that leaves something due would spin; what it could not do waits for a change or a retry.
            entry.1 = next.max(self.now + Span::from_ms(1));
        }
    }

    /// How a piece's blocks are meant to come.
    fn ways(&self, id: PieceId, piece: &Piece) -> Ways<'_> {
        match self.plans.get(&id.rendition) {
            Some(plan) => Ways::Trees { plan, typical: typical_delay(plan) },
            None => Ways::Election { seed_at: self.seed_time(id, piece) },
        }
    }

    /// When the local peer brings a missing block into the swarm (never, where that is for others to do), and from when on
    /// the block is late.
    fn seeded_or_late(
        &self,
        id: PieceId,
        piece: &Piece,
        block: u32,
        is_needed: bool,
        ways: &Ways<'_>,
    ) -> (Time, Time) {
        if piece.is_past {
            // Many neighbors have had it for long, and no tree will bring it.
            return (Time::NEVER, piece.since);
        }
        match *ways {
            Ways::Trees { plan, typical } => {
                let length = piece.record().map_or(0, |record| record.length);
                let stripe = &plan.stripes[usize::from(stripe_of(id, length, block, plan.stripe_count()))];
                let seeds = stripe.is_root && (is_needed || piece.since >= stripe.root_since);
                if seeds {
                    return (piece.since, piece.since + self.origin.patience());
                }
                let is_glut = self.glut.is_on(self.now);
                let is_alive =
                    |source| self.neighbors.get(&source).is_some_and(|neighbor| !neighbor.is_suspect);
                let is_fed = !is_glut && stripe.source().is_some_and(is_alive);
                let starved = (self.starvation.is_on(self.now) || is_glut) && !self.origin.is_down();
                if !is_fed && is_needed && (starved || !self.is_sharing_on || self.is_lonely()) {
                    // Questions and answers would be late, too, or there is nobody to ask, by the operator's will or by that of
                    // the network: what a plain player does is the best that can be done.
                    return (piece.since, piece.since + self.origin.patience());
                }
                // What nobody will push is asked for when others can be expected to have it.
                let wait = if is_fed { stripe.expected() + self.config.pull_margin } else { typical };
                (Time::NEVER, piece.since + wait)
            }
            Ways::Election { seed_at } => {
                // Without trees one neighbor asks first, and the others ask it in turn: otherwise all would ask the
                // one who has it from the origin, whose uplink feeds two.
                let asks_first = self.asks_first(id, piece, block);
                let margin = if asks_first { Span::ZERO } else { self.config.pull_margin };
                (seed_at, piece.since + margin)
            }
        }
    }

    /// When a block that is late is to be fetched, where the local peer is not its root.
    fn call_at(&self, piece: &Piece, block: u32, moments: Moments, late_at: Time) -> Time {
        // Nobody's turn comes before a block is late and somebody was asked for it: it may well be on its way.
        let ready_at = late_at + PULL_LEAD;
        let wait = self.config.fallback_spread.as_us() * u64::from(u16::MAX - piece.turn) / 65_535;
        let in_turn = ready_at + Span::from_us(wait);
        if self.origin.is_down() {
            // Roots go on asking, and one among neighbors in case the roots can't. Everybody else would only be part of
            // the storm when the origin returns; what it sends then comes along the trees.
            let is_alone = !self.neighbors.values().any(Neighbor::gives);
            if (piece.is_first && piece.is_wanted) || is_alone {
                moments.last_call
            } else {
                let lot = mix(u64::from(self.me)) % LAST_RESORT_SPREAD.as_us();
                self.origin.closed_until + LAST_RESORT_AFTER + Span::from_us(lot)
            }
        } else if self.now < self.origin.recovering_until && self.player.buffer_ms(self.now) < RECOVERED_MS {
            // Everybody waits for the same pieces, and all deadlines are over. Who is fed gets them sooner from the swarm
            // than from an origin that everybody asks.
            in_turn
        } else if piece.is_past && !piece.known.iter().any(|known| known.has.contains(block)) {
            // No tree brings it and nobody has said that he has it: to wait for the last call would gain nothing and keep the
            // player's buffer thin. One after the other, so that who watches the same place can take it from the first.
            let at = if piece.is_first { ready_at } else { in_turn };
            at.min(moments.last_call)
        } else {
            moments.turn.max(ready_at).min(moments.last_call)
        }
    }

    /// When a piece whose record just came can be expected to leave the origin: at once, except while the swarm is
    /// catching up after an outage.
    pub(super) fn leaves_origin(&mut self, rendition: u8, duration_ms: u32) -> Time {
        let now = self.now;
        let Some(next) = self.catching_up.get_mut(&rendition) else { return now };
        let since = now.max(*next);
        if since > now {
            *next = since + catch_up(duration_ms);
            self.origin.recovering_until = *next + CATCH_UP_GRACE;
        } else {
            self.catching_up.remove(&rendition);
        }
        since
    }

    /// Something came after the origin had failed: it is back. What was missed leaves it one piece after the other, a
    /// little faster than it is played: everybody needs the first one, and nobody the last one yet.
    pub(super) fn origin_may_be_back(&mut self) {
        if !self.origin.is_down() {
            return;
        }
        self.origin.is_back();
        self.catching_up = Map::new();
        for (id, _) in &self.active {
            let Some(piece) = self.pieces.get_mut(id) else { continue };
            let Some(duration_ms) = piece.record().map(|record| record.duration_ms) else { continue };
            let next = self.catching_up.get_or_insert_with(id.rendition, || self.now);
            piece.since = piece.since.max(*next);
            // What nobody had then may well be had now.
            piece.blocks.iter_mut().for_each(|block| block.pulls = 0);
            piece.known.iter_mut().for_each(|known| known.refused = Bits::default());
            *next = piece.since + catch_up(duration_ms);
            self.origin.recovering_until = self.origin.recovering_until.max(*next + CATCH_UP_GRACE);
        }
        self.wake_pieces();
    }

    /// The local peer's turn, should a piece have to be fetched for its deadline: by rendezvous hash among the neighbors, so
    /// that each knows without a word whose turn comes before its own.
    pub(super) fn turn(&mut self, id: PieceId) -> (u16, bool) {
        let (count, better) = self.standing(id);
        if count == 1 {
            // Whom would it help to go first? Meanwhile neighbors may come.
            return (0, true);
        }
        let slot = 65_536 / count;
        let turn = (count - 1 - better) * slot + self.rng.below(slot);
        (u16::try_from(turn).unwrap_or(u16::MAX), better == 0)
    }

    /// How many peers could bring a piece into the swarm, with the local one, and how many of them stand before it.
    fn standing(&self, id: PieceId) -> (u64, u64) {
        let mine = rendezvous(id, self.me, self.uplink_class());
        let (mut count, mut better) = (1, 0);
        for (peer, neighbor) in self.neighbors.iter() {
            if neighbor.gives() {
                count += 1;
                better += u64::from(rendezvous(id, *peer, neighbor.uplink_class) > mine);
            }
        }
        (count, better)
    }

    /// Without a plan: whether the local peer stands first, by rendezvous hash, among those neighbors that lack a block.
    fn asks_first(&self, id: PieceId, piece: &Piece, block: u32) -> bool {
        let lot = |peer: PeerId| {
            mix(id.msn << 24 ^ u64::from(id.part) << 12 ^ u64::from(block) ^ u64::from(peer) << 32)
        };
        let mine = lot(self.me);
        for (peer, neighbor) in self.neighbors.iter() {
            if neighbor.gives() && !piece.has(*peer, block) && lot(*peer) > mine {
                return false;
            }
        }
        true
    }

    /// Without a plan: when the local peer brings a piece into the swarm. Neighbors agree by rendezvous hash, weighted by
    /// uplink; each further one steps in later.
    fn seed_time(&self, id: PieceId, piece: &Piece) -> Time {
        if (self.has_tracker && !self.is_lonely()) || !self.plays(id.rendition) {
            // A plan is on its way, and until then only deadlines count; or this is for those who play it.
            return Time::NEVER;
        }
        let (_, rank) = self.standing(id);
        // As a backup, only if nobody has anything of it.
        if rank > 0 && piece.known.iter().any(|known| !known.has.is_empty()) {
            return Time::NEVER;
        }
        let step = self.origin.p95() + self.config.pull_margin;
        piece.since + Span::from_us(step.as_us() * rank)
    }

    /// Without a tracker: whether the local peer is among those that bring a piece into the swarm.
    pub(super) fn seeds_without_tracker(&self, id: PieceId) -> bool {
        if let Some(plan) = self.plans.get(&id.rendition) {
            return plan.stripes.iter().any(|stripe| stripe.is_root);
        }
        self.standing(id).1 == 0
    }
}

fn catch_up(duration_ms: u32) -> Span {
    Span::from_ms(u64::from(duration_ms)).percent(CATCH_UP_PERCENT)
}

/// How long after their records blocks typically come, over the stripes that somebody pushes.
fn typical_delay(plan: &Plan) -> Span {
    let mut longest = None;
    for stripe in &plan.stripes {
        if stripe.source().is_some() {
            longest = longest.max(Some(stripe.expected()));
        }
    }
    longest.unwrap_or(Span::from_ms(100))
}

/// A peer's lot for a piece: the highest one seeds it. A peer with twice the uplink has about twice the chance.
fn rendezvous(id: PieceId, peer: PeerId, uplink_class: u8) -> u64 {
    // One draw for each doubling above 256 kbit/s would be too flat, one for each 256 kbit/s too many: classes are
    // logarithmic, so draws double up to 16.
    let draws = 1_u64 << uplink_class.saturating_sub(9).min(4);
    let piece = id.msn << 24 ^ u64::from(id.part) << 8 ^ u64::from(id.rendition);
    (0..draws).fold(0, |lot, draw| lot.max(mix(mix(piece ^ draw << 56) ^ u64::from(peer))))
}
