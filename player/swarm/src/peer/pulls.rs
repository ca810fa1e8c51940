//! Asking neighbors for blocks: whom, in what order, and what happens when nobody answers.

use shoal_digest::PieceId;

use super::Peer;
use crate::{
    Span,
    bits::Bits,
    input::PeerId,
    piece::Pull,
    rng::mix,
    stripe_of,
    wire::{Control, SetsBuilder},
};

/// At most this many blocks are asked of one neighbor at a time: of the longest, half a second of a 4 Mbit/s uplink.
const ASKED_MAX: u16 = 16;
/// A block is asked for at most this often; then the origin has to give it.
const PULLS_MAX: u8 = 8;
/// As many neighbors that are only likely to have a block are asked for it. Each of them says when it has come, and with
/// 10,000 viewers two thirds of all questions were further guesses.
const GUESSES_MAX: u8 = 3;
/// A neighbor that is only likely to have a block costs, compared with one that said so, about a refusal's round trip.
const GUESS_COST: Span = Span::from_ms(120);

impl Peer {
    /// Asks neighbors for blocks; says whether somebody could be asked for each.
    pub(super) fn pull(&mut self, id: PieceId, blocks: &[u32]) -> bool {
        let mut asks: Vec<(PeerId, Bits)> = Vec::new();
        let mut found_all = true;
        for (_, _, block) in &self.rarest_first(id, blocks) {
            let Some(peer) = self.choose(id, *block) else {
                found_all = false;
                continue;
            };
            let Some(neighbor) = self.neighbors.get_mut(&peer) else { continue };
            neighbor.asked += 1;
            let until = self.now + neighbor.patience();
            let Some(piece) = self.pieces.get_mut(&id) else { continue };
            let state = &mut piece.blocks[*block as usize];
            state.pull = Some(Pull { from: peer, sent: self.now, until });
            state.pulls = state.pulls.saturating_add(1);
            self.stats.pulls += 1;
            match asks.iter_mut().find(|(asked, _)| *asked == peer) {
                Some((_, bits)) => {
                    bits.insert(*block);
                }
                None => {
                    let mut bits = Bits::default();
                    bits.insert(*block);
                    asks.push((peer, bits));
                }
            }
        }
        for (peer, bits) in &asks {
            let mut sets = SetsBuilder::default();
            sets.add(id, Some(bits));
            if let Some(sets) = sets.sets() {
                self.send(*peer, &Control::Request(sets));
            }
        }
        found_all
    }

    /// Orders blocks by how many neighbors are known to have them: a neighbor is asked for few at a time, and what only one
    /// has is gone when it leaves. Among equals each viewer has an order of its own, so that they can give to each other.
    /// The blocks come with what they were ordered by.
    fn rarest_first(&self, id: PieceId, blocks: &[u32]) -> Vec<(usize, u64, u32)> {
        let mut ordered: Vec<(usize, u64, u32)> = Vec::with_capacity(blocks.len());
        for block in blocks {
            let known = self.pieces.get(&id).map_or(&[][..], |piece| &piece.known);
            let mut holders = 0;
            for known in known {
                holders += usize::from(known.has.contains(*block));
            }
            let key = (holders, mix(u64::from(self.me) << 32 ^ u64::from(*block)), *block);
            // The library's sort is more code than this, and there are a few dozen at most.
            let at = ordered.partition_point(|other| *other < key);
            ordered.insert(at, key);
        }
        ordered
    }

    /// The neighbor that will likely deliver a block soonest.
    fn choose(&self, id: PieceId, block: u32) -> Option<PeerId> {
        let piece = self.pieces.get(&id)?;
        let pulls = piece.blocks.get(block as usize)?.pulls;
        if pulls >= PULLS_MAX {
            return None;
        }
        let length = piece.record()?.length;
        let plan = self.plans.get(&id.rendition);
        let stripe =
            plan.map(|plan| &plan.stripes[usize::from(stripe_of(id, length, block, plan.stripe_count()))]);
        // While nothing leaves the origin, nobody is likely to have what did not announce it, but for what left it before. Whom
        // nobody feeds would not hear when something does: the neighbors that he asks tell him.
        let has_left = !self.origin.is_down() || !piece.stored.is_empty();
        let stripe = stripe.filter(|stripe| (has_left || stripe.source().is_none()) && pulls < GUESSES_MAX);
        let mut best = None;
        for (peer, neighbor) in self.neighbors.iter() {
            if !neighbor.gives() || neighbor.asked >= ASKED_MAX || neighbor.busy_until > self.now {
                continue;
            }
            let known = piece.known(*peer);
            if known.is_some_and(|known| known.refused.contains(block)) {
                continue;
            }
            let wait = neighbor.service + Span::from_ms(10 * u64::from(neighbor.asked));
            let cost = if known.is_some_and(|known| known.has.contains(block)) {
                wait
            } else {
                let Some(stripe) = stripe else { continue };
                // A child gets the block from here, and the parent pushes it without being asked.
                let is_along_tree = stripe.children.contains(peer) || stripe.source() == Some(*peer);
                if is_along_tree && !piece.is_past && !self.glut.is_on(self.now) {
                    continue;
                }
                wait + wait + GUESS_COST
            };
            let tie = mix(u64::from(*peer) << 32 ^ u64::from(self.me) ^ u64::from(block) << 16 ^ id.msn << 5);
            let candidate = (cost, tie, *peer);
            if best.is_none_or(|best| candidate < best) {
                best = Some(candidate);
            }
        }
        best.map(|(_, _, peer)| peer)
    }

    /// A neighbor did not answer a pull in time.
    pub(super) fn pull_failed(&mut self, id: PieceId, block: u32) {
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        let Some(pull) = piece.blocks.get_mut(block as usize).and_then(|state| state.pull.take()) else {
            return;
        };
        piece.known_mut(pull.from).refused.insert(block);
        self.stats.pulls_timed_out += 1;
        if let Some(neighbor) = self.neighbors.get_mut(&pull.from) {
            neighbor.asked = neighbor.asked.saturating_sub(1);
            neighbor.failed();
        }
        self.note_unanswered(pull.from);
        self.send_cancel(pull.from, id, Some(block));
    }
}
