//! Records, their checks and what waits for them: placeholders, held blocks, pieces that the driver loaded before.

use std::sync::Arc;

use shoal_digest::{BlockDigest, PieceId, Record};

use super::{Held, Hunt, Loaded, Peer, Unchecked};
use crate::{
    Output, Span,
    bits::Bits,
    input::{CheckId, PeerId},
    piece::Piece,
    plan::Plan,
    record::SignedRecord,
    wire::Control,
};

/// Of each neighbor so many records can wait for their check: sixteen of each of four renditions, which a new neighbor is sent at
/// once. Who sends more loses them.
pub(super) const CHECKS_MAX: usize = 64;
/// Pieces that the driver loaded itself and whose record has not come; each keeps a few hundred bytes of digests.
const LOADED_MAX: usize = 32;
/// A piece that ends this long before the newest one is asked for by those who watch from further back.
const PAST_MS: u64 = 10_000;
/// Who has which blocks is remembered for so many pieces of a rendition: ten seconds and more.
pub(super) const KNOWN_PIECES: usize = 24;
/// Without a tracker, a record is asked for this long before it can be expected.
const HUNT_LEAD: Span = Span::from_ms(60);
/// Where it is not there yet it is asked for again after this time, doubled each time.
const HUNT_WAIT: Span = Span::from_ms(40);
const HUNT_WAIT_MAX: Span = Span::from_secs(2);
/// Without an answer it is asked for again after this time.
const HUNT_PATIENCE: Span = Span::from_secs(1);
/// A record that has not come by then won't: the tracker sends them at publication.
pub(super) const RECORD_WAIT_MAX: Span = Span::from_secs(10);

impl Peer {
    /// Has a record's signature checked, if it is news. What is known already need not be: a flood of true records costs a
    /// comparison each. Nor what is another publication's, whoever signed it.
    pub(super) fn accept_record_bytes(&mut self, bytes: &[u8], from: Option<PeerId>) {
        let claimed = Record::decode_unverified(bytes).ok();
        let is_ours = claimed.as_ref().is_some_and(|record| record.epoch == self.config.epoch);
        #[cfg(test)]
        let is_ours = is_ours || self.unsafe_mode.no_epoch;
        let Some(record) = claimed.filter(|_| is_ours) else { return self.refuse_record(from) };
        let mut is_known = self.pieces.get(&record.piece).is_some_and(|piece| is_same(piece, bytes));
        let mut waiting = 0;
        for unchecked in &self.unchecked {
            is_known |= unchecked.bytes == bytes;
            waiting += usize::from(unchecked.from == from);
        }
        if is_known {
            return;
        }
        let is_too_much = from.is_some() && waiting >= CHECKS_MAX;
        #[cfg(test)]
        let is_too_much = is_too_much && !self.unsafe_mode.no_record_limit;
        if is_too_much {
            self.stats.refused += 1;
            return;
        }
        self.next_check = self.next_check.wrapping_add(1);
        self.unchecked.push(Unchecked { check: self.next_check, bytes: bytes.to_vec(), from });
        let signed = Record::to_check(bytes);
        self.outputs.push(Output::CheckRecord { check: self.next_check, signed });
    }

    pub(super) fn accept_check(&mut self, check: CheckId, is_signed: bool) {
        let Some(at) = self.unchecked.iter().position(|waiting| waiting.check == check) else { return };
        let Unchecked { bytes, from, .. } = self.unchecked.remove(at);
        #[cfg(test)]
        let is_signed = is_signed || self.unsafe_mode.no_signatures;
        match SignedRecord::vouched(&bytes) {
            Ok(record) if is_signed => self.accept_record(&record, from),
            _ => self.refuse_record(from),
        }
    }

    /// It is not the origin's, or not of this publication: no honest peer passes such on.
    fn refuse_record(&mut self, from: Option<PeerId>) {
        self.stats.records_refused += 1;
        if let Some(peer) = from {
            self.strike(peer);
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
        let end_ms = record.start_ms + u64::from(record.duration_ms);
        let is_past = self.config.is_recording || end_ms + PAST_MS < self.newest_end_ms;
        self.newest_end_ms = self.newest_end_ms.max(end_ms);

        let (turn, is_first) = self.turn(id);
        let since = self.leaves_origin(id.rendition, record.duration_ms);
        let piece = self.pieces.get_or_insert_with(id, || Piece::new(self.now));
        piece.record = Some(Arc::clone(signed));
        piece.since = since;
        (piece.turn, piece.is_first, piece.is_past) = (turn, is_first, is_past);
        piece.begin(record.blocks.len());
        for (peer, neighbor) in self.neighbors.iter() {
            if neighbor.has_in_range(id) {
                piece.known_mut(*peer).has.union(&Bits::below(record.blocks.len() as u32));
            }
        }
        self.active.push((id, self.now));

        // Who has what of a piece that everybody has played is of no use any more, and takes more room than all else.
        if let Some(old) = self.pieces.before(&id, KNOWN_PIECES).filter(|old| old.is_complete) {
            old.known = Vec::new();
        }
        if !self.has_tracker {
            self.hunt_after(id);
        }
        self.relay(signed, from);
        if let Some(loaded) = self.loaded.remove(&id) {
            self.settle_loaded(id, loaded.length, &loaded.digests);
        }
        self.settle_held(id);
        self.mark_wanted(id);
        self.check_requests();
    }

    pub(super) fn begin_hunts(&mut self) {
        for rendition in self.playing.clone() {
            let mut newest = None;
            for (id, piece) in self.pieces.iter() {
                if id.rendition == rendition && piece.record.is_some() {
                    newest = Some(*id);
                }
            }
            if let Some(newest) = newest {
                self.hunt_after(newest);
            }
        }
    }

    /// Without a tracker: the record after this one is looked for when it can be expected, instead of when the player asks
    /// for the piece: a player asks for one after the other, and half a second later all of a piece's time is over.
    fn hunt_after(&mut self, id: PieceId) {
        if !self.plays(id.rendition) || self.config.is_recording {
            return;
        }
        let Some(record) = self.pieces.get(&id).and_then(|piece| piece.record()) else { return };
        let next = if record.is_last_in_segment {
            PieceId { msn: id.msn.saturating_add(1), part: 0, ..id }
        } else {
            PieceId { part: id.part.saturating_add(1), ..id }
        };
        // A little early: whoever comes first sets the pace for all, and must not fall behind by the time it takes.
        let since = self.pieces.get(&id).map_or(self.now, |piece| piece.since);
        let at = since + Span::from_ms(u64::from(record.duration_ms)).saturating_sub(HUNT_LEAD);
        if self.hunts.get(&id.rendition).is_none_or(|hunt| hunt.piece < next) {
            self.hunts.insert(id.rendition, Hunt { piece: next, at, wait: HUNT_WAIT });
        }
    }

    /// Asks for the records that can be expected, where it is the local peer's part to do so.
    pub(super) fn hunt(&mut self) {
        for rendition in self.hunts.keys_where(&|_, hunt| hunt.at <= self.now) {
            let Some(hunt) = self.hunts.get_mut(&rendition) else { continue };
            hunt.at = self.now + HUNT_PATIENCE;
            let piece = hunt.piece;
            if self.seeds_without_tracker(piece) {
                self.outputs.push(Output::FetchRecord { piece, of_segment: false });
            }
        }
    }

    pub(super) fn record_failed(&mut self, piece: PieceId) {
        if let Some(hunt) = self.hunts.get_mut(&piece.rendition).filter(|hunt| hunt.piece == piece) {
            // Not published yet, or nothing is any more.
            hunt.at = self.now + hunt.wait;
            hunt.wait = (hunt.wait + hunt.wait).min(HUNT_WAIT_MAX);
        }
        // What was published long ago has all the records that it will ever have. Other requests go on waiting for a relayed
        // one until they give up.
        if self.is_past(piece) {
            self.end_requests_without_records(piece);
        }
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
        let is_asked_for = self.requests.iter().any(|request| request.covers(id));
        while self.pieces.len() >= self.config.pieces_max && !self.pieces.contains_key(&id) {
            let Some(oldest) = self.oldest(&|piece| !piece.is_wanted) else { return false };
            let oldest_ms =
                self.pieces.get(&oldest).and_then(Piece::record).map_or(0, |record| record.start_ms);
            if oldest_ms >= start_ms && !is_asked_for {
                return false;
            }
            self.evict(oldest);
        }
        true
    }

    /// The one of some pieces that is evicted next: what has no record, then what came first. Not the earliest in the program:
    /// to who goes back that is what was just fetched.
    pub(super) fn oldest(&self, is_meant: &dyn Fn(&Piece) -> bool) -> Option<PieceId> {
        let mut oldest = None;
        for (id, piece) in self.pieces.iter() {
            let since = piece.record.as_ref().map(|_| piece.since);
            if is_meant(piece) && oldest.is_none_or(|(_, earliest)| since < earliest) {
                oldest = Some((*id, since));
            }
        }
        oldest.map(|(id, _)| id)
    }

    fn learn_rate(&mut self, record: &Record) {
        let sample = u64::from(record.length) * 8000 / u64::from(record.duration_ms.max(1));
        let rate = self.rates.get_or_insert_with(record.piece.rendition, || sample);
        // Parts with a keyframe are several times as long as the others: smooth over about two segments.
        *rate = (*rate * 15 + sample) / 16;
    }

    fn relay(&mut self, signed: &Arc<SignedRecord>, from: Option<PeerId>) {
        self.send_to_all(&Control::Record(signed.bytes()), &|peer, neighbor| {
            neighbor.has_greeted && neighbor.flags.wants_records && Some(peer) != from
        });
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
        self.outputs.push(Output::Hold { hold: self.next_hold });
    }

    /// Compares the blocks held for a piece with its record, now that there is one.
    fn settle_held(&mut self, id: PieceId) {
        for hold in self.held.keys_where(&|_, held| held.piece == id) {
            // Banning the sender of one drops its others.
            let Some(held) = self.held.remove(&hold) else { continue };
            if let Some(neighbor) = self.neighbors.get_mut(&held.peer) {
                neighbor.held = neighbor.held.saturating_sub(1);
            }
            if !self.judge_block(&held, Some(hold)) {
                self.outputs.push(Output::DropHeld { hold });
            }
        }
    }

    /// Drops the blocks of one neighbor, or those of all whose record did not come.
    pub(super) fn drop_held(&mut self, of: Option<PeerId>) {
        let now = self.now;
        let is_over = |held: &Held| now.since(held.since) > RECORD_WAIT_MAX.percent(30);
        let goes = |held: &Held| of.map_or_else(|| is_over(held), |peer| held.peer == peer);
        for hold in self.held.keys_where(&|_, held| goes(held)) {
            let Some(held) = self.held.remove(&hold) else { continue };
            if let Some(neighbor) = self.neighbors.get_mut(&held.peer) {
                neighbor.held = neighbor.held.saturating_sub(1);
            }
            self.stats.late_bytes += u64::from(held.length);
            self.outputs.push(Output::DropHeld { hold });
        }
    }

    pub(super) fn accept_loaded(&mut self, id: PieceId, length: u32, digests: &[BlockDigest], took: Span) {
        self.stats.origin_bytes += u64::from(length);
        self.origin.loaded(shoal_digest::block_count(length), took);
        let has_record = self.pieces.get(&id).is_some_and(|piece| piece.record.is_some());
        if has_record {
            self.settle_loaded(id, length, digests);
        } else if self.loaded.len() < LOADED_MAX && self.loaded.remove(&id).is_none() {
            self.loaded.insert(id, Loaded { length, digests: digests.to_vec(), since: self.now });
        } else {
            // Also where it was loaded twice: which of the two the driver has kept, only the driver knows.
            self.stats.refused += 1;
            self.outputs.push(Output::DropLoaded { piece: id });
        }
    }

    fn settle_loaded(&mut self, id: PieceId, length: u32, digests: &[BlockDigest]) {
        let Some(piece) = self.pieces.get(&id) else { return };
        let Some(record) = piece.record() else { return };
        let is_true = record.length == length && record.blocks == digests;
        if is_true {
            self.player.was_given(record);
        }
        if !is_true || piece.is_complete {
            self.stats.rejected_bytes += if is_true { 0 } else { u64::from(length) };
            self.stats.duplicate_bytes += if is_true { u64::from(length) } else { 0 };
            self.outputs.push(Output::DropLoaded { piece: id });
            return;
        }
        let is_new = piece.stored.is_empty();
        if is_new {
            self.make_store_room(length);
        }
        self.outputs.push(Output::KeepLoaded { piece: id });
        self.store_loaded(id);
    }

    /// Drops what was loaded and never vouched for.
    pub(super) fn drop_loaded(&mut self) {
        let now = self.now;
        let is_over = |loaded: &Loaded| now.since(loaded.since) > RECORD_WAIT_MAX;
        for piece in self.loaded.keys_where(&|_, loaded| is_over(loaded)) {
            self.loaded.remove(&piece);
            self.outputs.push(Output::DropLoaded { piece });
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
            if let Some(foster) = plan.place(now, place) {
                unfostered.push((foster, place.stripe));
            }
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
