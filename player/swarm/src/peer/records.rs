//! Records and what waits for them: placeholders, held blocks, pieces that the driver loaded before.

use std::sync::Arc;

use shoal_digest::{BlockDigest, PieceId};

use super::{Held, Loaded, Peer};
use crate::{
    Output, Span, Time,
    input::PeerId,
    piece::{self, Piece},
    plan::Plan,
    record::SignedRecord,
    wire::Control,
};

/// Pieces that the driver loaded itself and whose record has not come; each keeps a few hundred bytes of digests.
const LOADED_MAX: usize = 32;
/// A record that has not come by then won't: the tracker sends them at publication.
pub(super) const RECORD_WAIT_MAX: Span = Span::from_secs(10);

impl Peer {
    pub(super) fn accept_record_bytes(&mut self, bytes: &[u8], from: Option<PeerId>) {
        // What is known already need not be verified again: a flood of true records costs a comparison each.
        if self.pieces.values().rev().take(64).any(|piece| is_same(piece, bytes)) {
            return;
        }
        let record = SignedRecord::verify(bytes, &self.config.key);
        #[cfg(test)]
        let record = if self.unsafe_mode.no_signatures { SignedRecord::trust(bytes) } else { record };
        match record {
            Ok(record) => self.accept_record(&record, from),
            Err(_) => {
                self.stats.records_refused += 1;
                if let Some(peer) = from {
                    // The signature is the origin's or not; no honest peer passes a forged one on.
                    self.strike(peer);
                }
            }
        }
    }

    pub(super) fn accept_record(&mut self, signed: &Arc<SignedRecord>, from: Option<PeerId>) {
        let record = signed.record();
        let id = record.piece;
        let is_ours = record.epoch == self.config.epoch;
        #[cfg(test)]
        let is_ours = is_ours || self.unsafe_mode.no_epoch;
        if !is_ours {
            self.stats.records_refused += 1;
            return;
        }
        if let Some(known) = self.pieces.get(&id).and_then(|piece| piece.record.as_ref()) {
            // The first record stands: the origin never signs two for one piece.
            self.stats.records_refused += u64::from(known != signed);
            return;
        }
        if !self.make_room_for(id, record.start_ms) {
            self.stats.refused += 1;
            return;
        }
        self.stats.records += 1;
        self.learn_rate(record);
        self.newest_end_ms = self.newest_end_ms.max(record.start_ms + u64::from(record.duration_ms));

        let turn = self.turn(id);
        let piece = self.pieces.get_or_insert_with(id, || Piece::new(self.now));
        piece.record = Some(Arc::clone(signed));
        piece.since = self.now;
        piece.turn = turn;
        piece.blocks = vec![Default::default(); record.blocks.len()];
        self.active.push((id, self.now));

        self.relay(signed, from);
        if let Some(loaded) = self.loaded.remove(&id) {
            self.settle_loaded(id, loaded.length, &loaded.digests);
        }
        self.settle_held(id);
        self.mark_wanted(id);
        self.check_requests();
    }

    pub(super) fn record_failed(&mut self, piece: PieceId) {
        // The requests for it go on waiting for a relayed record until they give up.
        self.stats.fetches_failed +=
            u64::from(self.pieces.get(&piece).is_none_or(|piece| piece.record.is_none()));
    }

    /// Makes the piece known although its record is not; none where there is no room.
    pub(super) fn placeholder(&mut self, id: PieceId) -> Option<&mut Piece> {
        if !self.pieces.contains_key(&id) {
            // Placeholders never displace what the origin vouched for.
            if self.pieces.len() >= self.config.pieces_max {
                self.stats.refused += 1;
                return None;
            }
            self.pieces.insert(id, Piece::new(self.now));
        }
        self.pieces.get_mut(&id)
    }

    /// Evicts the oldest pieces until one more fits; says no if that one is the oldest.
    fn make_room_for(&mut self, id: PieceId, start_ms: u64) -> bool {
        while self.pieces.len() >= self.config.pieces_max && !self.pieces.contains_key(&id) {
            let oldest = self.pieces.iter().map(|(id, piece)| piece::age(*id, piece)).min();
            let Some((oldest_ms, oldest)) = oldest else { return false };
            if oldest_ms >= start_ms {
                return false;
            }
            self.evict(oldest);
        }
        true
    }

    fn learn_rate(&mut self, record: &shoal_digest::Record) {
        let sample = u64::from(record.length) * 8000 / u64::from(record.duration_ms.max(1));
        let rate = self.rates.get_or_insert_with(record.piece.rendition, || sample);
        // Parts with a keyframe are several times as long as the others: smooth over about two segments.
        *rate = (*rate * 15 + sample) / 16;
    }

    fn relay(&mut self, signed: &Arc<SignedRecord>, from: Option<PeerId>) {
        let wanting = self.neighbors.iter().filter(|(peer, neighbor)| {
            neighbor.has_greeted && neighbor.flags.wants_records && Some(**peer) != from
        });
        let wanting: Vec<PeerId> = wanting.map(|(peer, _)| *peer).collect();
        for peer in wanting {
            self.send(peer, &Control::Record(signed.bytes()));
        }
    }

    /// Keeps a block aside until its record comes.
    pub(super) fn hold(&mut self, held: Held) {
        let Some(neighbor) = self.neighbors.get_mut(&held.peer) else { return };
        // A quarter of the room for each neighbor, so that one can't take all of it.
        if self.held.len() >= self.config.held_max || usize::from(neighbor.held) >= self.config.held_max / 4 {
            self.stats.held_refused += 1;
            self.stats.late_bytes += u64::from(held.length);
            return;
        }
        neighbor.held += 1;
        self.stats.held += 1;
        self.next_hold = self.next_hold.wrapping_add(1);
        self.held.insert(self.next_hold, held);
        self.outputs.push_back(Output::Hold { hold: self.next_hold });
    }

    /// Compares the blocks held for a piece with its record, now that there is one.
    fn settle_held(&mut self, id: PieceId) {
        let holds: Vec<_> =
            self.held.iter().filter(|(_, held)| held.piece == id).map(|(hold, _)| *hold).collect();
        for hold in holds {
            // Banning the sender of one drops its others.
            let Some(held) = self.held.remove(&hold) else { continue };
            if let Some(neighbor) = self.neighbors.get_mut(&held.peer) {
                neighbor.held = neighbor.held.saturating_sub(1);
            }
            if !self.judge_block(&held, Some(hold)) {
                self.outputs.push_back(Output::DropHeld { hold });
            }
        }
    }

    /// Drops blocks whose record did not come, and those of one neighbor.
    pub(super) fn drop_held(&mut self, goes: impl Fn(&Held, Time) -> bool) {
        let now = self.now;
        let holds: Vec<_> =
            self.held.iter().filter(|(_, held)| goes(held, now)).map(|(hold, _)| *hold).collect();
        for hold in holds {
            let Some(held) = self.held.remove(&hold) else { continue };
            if let Some(neighbor) = self.neighbors.get_mut(&held.peer) {
                neighbor.held = neighbor.held.saturating_sub(1);
            }
            self.stats.late_bytes += u64::from(held.length);
            self.outputs.push_back(Output::DropHeld { hold });
        }
    }

    pub(super) fn accept_loaded(&mut self, id: PieceId, length: u32, digests: &[BlockDigest], took: Span) {
        self.stats.origin_bytes += u64::from(length);
        self.origin.loaded(shoal_digest::block_count(length), took);
        let has_record = self.pieces.get(&id).is_some_and(|piece| piece.record.is_some());
        if has_record {
            self.settle_loaded(id, length, digests);
        } else if self.loaded.len() < LOADED_MAX && !self.loaded.contains_key(&id) {
            self.loaded.insert(id, Loaded { length, digests: digests.to_vec(), since: self.now });
        } else {
            self.stats.refused += 1;
            self.outputs.push_back(Output::DropLoaded { piece: id });
        }
    }

    fn settle_loaded(&mut self, id: PieceId, length: u32, digests: &[BlockDigest]) {
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        piece.is_loaded = true;
        let is_true =
            piece.record().is_some_and(|record| record.length == length && record.blocks == digests);
        if !is_true || piece.is_complete {
            self.stats.rejected_bytes += if is_true { 0 } else { u64::from(length) };
            self.stats.duplicate_bytes += if is_true { u64::from(length) } else { 0 };
            self.outputs.push_back(Output::DropLoaded { piece: id });
            return;
        }
        self.outputs.push_back(Output::KeepLoaded { piece: id });
        self.store_loaded(id);
    }

    /// Drops what was loaded and never vouched for.
    pub(super) fn drop_loaded(&mut self) {
        let now = self.now;
        let is_over = |loaded: &Loaded| now.since(loaded.since) > RECORD_WAIT_MAX;
        let over: Vec<_> =
            self.loaded.iter().filter(|(_, loaded)| is_over(loaded)).map(|(id, _)| *id).collect();
        for piece in over {
            self.loaded.remove(&piece);
            self.outputs.push_back(Output::DropLoaded { piece });
        }
    }

    pub(super) fn accept_plan(&mut self, rendition: u8, stripes: u8, places: &[crate::Place<'_>]) {
        let plan = self.plans.get_or_insert_with(rendition, || Plan::new(stripes));
        if plan.stripe_count() != stripes.max(1) {
            *plan = Plan::new(stripes);
        }
        let now = self.now;
        let mut unfostered = Vec::new();
        for place in places {
            unfostered.extend(plan.place(now, place).map(|foster| (foster, place.stripe)));
        }
        for (foster, stripe) in unfostered {
            if self.neighbors.contains_key(&foster) {
                self.send(
                    foster,
                    &Control::Subscribe { rendition, stripes: stripes.max(1), stripe, on: false },
                );
            }
        }
        self.update_flags();
        self.wake_pieces();
    }
}

fn is_same(piece: &Piece, bytes: &[u8]) -> bool {
    piece.record.as_ref().is_some_and(|record| record.bytes() == bytes)
}
