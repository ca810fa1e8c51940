//! Blocks that arrive: judged, stored, passed on at once.

use shoal_digest::{BlockDigest, PieceId};

use super::{Held, Peer};
use crate::{
    Output, Span, Time,
    bits::Bits,
    input::{FetchId, PeerId},
    neighbor::Neighbor,
    output::DisconnectReason,
    piece::Piece,
    stripe_of,
    upload::{CHANNEL_BYTES_MAX, Upload},
    wire::{BlockHeader, Control, SetsBuilder},
};

/// A neighbor that sent this many more useless blocks than useful ones is flooding us. A parent that is late for a
/// whole second of several stripes stays below.
const USELESS_MAX: i32 = 200;
/// What the own player needs no more may still help a child that is a little further behind.
const CHILD_LAG: Span = Span::from_ms(500);

/// A push that could not leave for so long, because the child's line is full, is better dropped: what is behind it will be in
/// time, and a queue of blocks that are all just too late keeps the line full of what the child has from elsewhere by then.
const PUSH_PATIENCE: Span = Span::from_secs(2);

/// Where a stored block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Peer { peer: PeerId, is_answer: bool },
    Origin,
}

impl Peer {
    pub(super) fn accept_block(&mut self, peer: PeerId, header: &[u8], length: u32, digest: BlockDigest) {
        let now = self.now;
        let Some(neighbor) = self.neighbors.get_mut(&peer) else { return };
        neighbor.heard = now;
        let Ok(header) = BlockHeader::parse(header) else {
            self.stats.rejected_bytes += u64::from(length);
            self.strike(peer);
            return;
        };
        let BlockHeader { piece, block, is_answer, hops } = header;
        let arrived = Held { peer, piece, block, length, digest, is_answer, hops, since: now };
        let has_record = self.pieces.get(&piece).is_some_and(|piece| piece.record.is_some());
        #[cfg(test)]
        let has_record = has_record || self.unsafe_mode.no_holding;
        if has_record {
            self.judge_block(&arrived, None);
        } else {
            self.hold(arrived);
        }
    }

    /// Compares a block with the record and stores it or not; says which.
    pub(super) fn judge_block(&mut self, arrived: &Held, hold: Option<u32>) -> bool {
        let Held { peer, piece: id, block, length, digest, is_answer, hops, .. } = *arrived;
        #[cfg(test)]
        if self.unsafe_mode.no_holding && self.pieces.get(&id).is_none_or(|piece| piece.record.is_none()) {
            self.outputs.push(Output::Store { piece: id, block, piece_length: length, held: hold });
            return true;
        }
        let Some(piece) = self.pieces.get_mut(&id) else { return false };
        let Some(record) = piece.record() else { return false };
        let (piece_length, index) = (record.length, u32::from(block));
        let is_true = record.block_length(index) == Some(length) && record.blocks[block as usize] == digest;
        #[cfg(test)]
        let is_true = is_true || (self.unsafe_mode.no_digests && record.block_length(index).is_some());
        if !is_true {
            self.stats.rejected_bytes += u64::from(length);
            self.outputs.push(Output::Accuse { peer, piece: id });
            self.ban(peer);
            return false;
        }
        piece.known_mut(peer).has.insert(index);
        let is_useless = piece.stored.contains(index) || piece.is_retired;
        if is_useless {
            if piece.is_retired {
                self.stats.late_bytes += u64::from(length);
            } else {
                self.stats.duplicate_bytes += u64::from(length);
            }
        }
        if let Some(neighbor) = self.neighbors.get_mut(&peer) {
            neighbor.useless = (neighbor.useless + if is_useless { 1 } else { -1 }).max(-USELESS_MAX);
            if neighbor.useless > USELESS_MAX {
                self.part_from(peer, DisconnectReason::Malformed, true);
                return false;
            }
        }
        if is_useless {
            if !is_answer {
                self.note_push(peer, id, piece_length, index, true);
            }
            return false;
        }
        piece.hops = piece.hops.max(hops.saturating_add(1));
        self.stats.peer_bytes += u64::from(length);
        self.store_block(id, index, Source::Peer { peer, is_answer }, hold);
        true
    }

    pub(super) fn accept_fetched_block(
        &mut self,
        fetch: FetchId,
        block: u16,
        length: u32,
        digest: BlockDigest,
    ) {
        let index = u32::from(block);
        let Some(running) = self.origin.fetches.get(&fetch) else { return };
        if !running.covers(index) {
            return;
        }
        let id = running.piece;
        self.origin.progressed(self.now, fetch);
        self.origin_may_be_back();
        self.stats.origin_bytes += u64::from(length);
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        let Some(record) = piece.record() else { return };
        let is_true = record.block_length(index) == Some(length) && record.blocks[block as usize] == digest;
        #[cfg(test)]
        let is_true = is_true || self.unsafe_mode.no_digests;
        if !is_true {
            // A cache in front of the origin lies or is broken. The next attempt goes around it.
            piece.origin_faults = piece.origin_faults.saturating_add(1);
            self.stats.rejected_bytes += u64::from(length);
            self.cancel_fetch(fetch);
            self.origin.failed(self.now, &mut self.rng);
            self.wake_piece(id);
            return;
        }
        if piece.stored.contains(index) || piece.is_retired {
            self.stats.duplicate_bytes += u64::from(length);
            return;
        }
        self.store_block(id, index, Source::Origin, None);
    }

    /// Takes a verified block in, passes it on, and stops what else was under way to get it.
    fn store_block(&mut self, id: PieceId, block: u32, source: Source, hold: Option<u32>) {
        let now = self.now;
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        let Some(piece_length) = piece.record().map(|record| record.length) else { return };
        let index = u16::try_from(block).expect("a piece has at most 4096 blocks");
        if piece.stored.is_empty() {
            self.make_store_room(piece_length);
        }
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        self.outputs.push(Output::Store { piece: id, block: index, piece_length, held: hold });
        let since = piece.since;
        let before = piece.store_bytes();
        piece.stored.insert(block);
        self.store_bytes += piece.store_bytes() - before;
        let state = piece.blocks.get_mut(block as usize).map(std::mem::take).unwrap_or_default();

        let sender = if let Source::Peer { peer, .. } = source { Some(peer) } else { None };
        if let Some(pull) = state.pull
            && let Some(neighbor) = self.neighbors.get_mut(&pull.from)
        {
            neighbor.asked = neighbor.asked.saturating_sub(1);
            if source == (Source::Peer { peer: pull.from, is_answer: true }) {
                neighbor.served(now.since(pull.sent));
                neighbor.unanswered = 0;
                self.starvation.note_answered();
            }
        }
        if let Source::Peer { is_answer, .. } = source {
            self.stats.pulled_blocks += u64::from(is_answer);
            self.stats.pushed_blocks += u64::from(!is_answer);
        }
        if let Some(fetch) = state.fetch {
            self.cancel_if_done(fetch);
        }
        let pusher = if let Source::Peer { is_answer: false, .. } = source { sender } else { None };
        if let Some(pusher) = pusher {
            self.note_push(pusher, id, piece_length, block, false);
        }
        let mut parent = None;
        if let Some(plan) = self.plans.get_mut(&id.rendition) {
            let stripe = stripe_of(id, piece_length, block, plan.stripe_count());
            let place = &mut plan.stripes[usize::from(stripe)];
            parent = place.source();
            if parent.is_some() && pusher == parent {
                place.arrived(now.since(since));
            } else if !self.glut.is_on(now) {
                place.missed(now);
            }
        }
        self.origin_may_be_back();
        // Whoever else was asked or would push it need not send it any more.
        let asked = state.pull.map(|pull| pull.from).filter(|peer| Some(*peer) != sender);
        let parent = parent.filter(|peer| Some(*peer) != sender && asked != Some(*peer));
        for peer in [asked, parent].into_iter().flatten() {
            self.send_cancel(peer, id, Some(block));
        }
        self.pass_on(id, block);
        self.note_fresh(id, block);
        self.finish_piece(id);
    }

    /// A neighbor pushed a block: that says something of the stripe's parent, also where the block was there already.
    fn note_push(&mut self, peer: PeerId, id: PieceId, piece_length: u32, block: u32, is_useless: bool) {
        let now = self.now;
        let Some(plan) = self.plans.get_mut(&id.rendition) else { return };
        let (rendition, stripes) = (id.rendition, plan.stripe_count());
        let stripe = stripe_of(id, piece_length, block, stripes);
        let place = &mut plan.stripes[usize::from(stripe)];
        let foster = place.pushed_by(now, peer);
        // Of others it is no sign of a full line: they can send what they like.
        let is_source = place.source() == Some(peer);
        #[cfg(test)]
        let is_source = is_source || self.unsafe_mode.any_push_counts;
        if is_source {
            self.glut.note(is_useless);
        }
        let Some(foster) = foster else { return };
        if self.neighbors.contains_key(&foster) {
            self.send(foster, &Control::Subscribe { rendition, stripes, stripe, on: false });
        }
    }

    /// Takes in all blocks of a piece that the driver loaded and that matched its record.
    pub(super) fn store_loaded(&mut self, id: PieceId) {
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        let before = piece.store_bytes();
        let missing = piece.missing();
        let mut sources: Vec<PeerId> = Vec::new();
        let mut note = |source: Option<PeerId>| {
            if let Some(peer) = source
                && !sources.contains(&peer)
            {
                sources.push(peer);
            }
        };
        piece.blocks.iter().for_each(|block| note(block.pull.map(|pull| pull.from)));
        piece.stored.union(&missing);
        self.store_bytes += piece.store_bytes() - before;
        if let Some(plan) = self.plans.get(&id.rendition) {
            plan.stripes.iter().for_each(|stripe| note(stripe.source()));
        }
        for peer in sources {
            self.send_cancel(peer, id, None);
        }
        for block in missing.iter() {
            self.pass_on(id, block);
            self.note_fresh(id, block);
        }
        self.finish_piece(id);
    }

    /// Ends a piece that has all its blocks.
    fn finish_piece(&mut self, id: PieceId) {
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        let count = piece.record().map_or(u32::MAX, |record| shoal_digest::block_count(record.length));
        if piece.is_complete || piece.stored.count() < count {
            return;
        }
        piece.is_complete = true;
        self.stats.pieces += 1;
        self.deactivate(id);
        self.check_requests();
    }

    /// Ends the search for a piece's blocks: pulls, fetches and their states.
    pub(super) fn deactivate(&mut self, id: PieceId) {
        if let Some(at) = self.active.iter().position(|(active, _)| *active == id) {
            self.active.remove(at);
        }
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        for block in std::mem::take(&mut piece.blocks) {
            if let Some(neighbor) = block.pull.and_then(|pull| self.neighbors.get_mut(&pull.from)) {
                neighbor.asked = neighbor.asked.saturating_sub(1);
            }
        }
        for fetch in self.origin.fetches.keys_where(&|_, fetch| fetch.piece == id) {
            // The last block of a fetch ends the piece before the driver can say that the fetch is finished.
            if self.origin.fetches.get(&fetch).is_some_and(|fetch| fetch.received < fetch.count) {
                self.cancel_fetch(fetch);
            } else {
                self.origin.fetches.remove(&fetch);
            }
        }
    }

    /// Tells a neighbor that a block, or the whole piece, need not be sent any more.
    pub(super) fn send_cancel(&mut self, peer: PeerId, id: PieceId, block: Option<u32>) {
        if !self.neighbors.get(&peer).is_some_and(|neighbor| neighbor.has_greeted) {
            return;
        }
        let mut bits = Bits::default();
        if let Some(block) = block {
            bits.insert(block);
        }
        let mut sets = SetsBuilder::default();
        sets.add(id, block.map(|_| &bits));
        if let Some(sets) = sets.sets() {
            self.send(peer, &Control::Cancel(sets));
        }
    }

    /// Queues a stored block for the children of its stripe.
    fn pass_on(&mut self, id: PieceId, block: u32) {
        if !self.config.push || !self.may_upload() {
            return;
        }
        let Some(plan) = self.plans.get(&id.rendition) else { return };
        let Some(piece) = self.pieces.get(&id).filter(|piece| !piece.is_past) else { return };
        let Some(record) = piece.record() else { return };
        let stripe = &plan.stripes[usize::from(stripe_of(id, record.length, block, plan.stripe_count()))];
        let Some(bytes) = record.block_length(block) else { return };
        let until = self.useful_until(record.start_ms);
        // The strongest child gets all of a burst's blocks first: it passes them on while the others are served.
        let step = Span::of_bytes(u64::from(bytes), self.uploads.rate_bps().max(1));
        let mut rank = self.now;
        for child in &stripe.children {
            if !self.neighbors.get(child).is_some_and(Neighbor::takes_pushes) || piece.has(*child, block) {
                continue;
            }
            if self.uploads.len() >= self.config.upload_queue_max {
                self.stats.uploads_dropped += 1;
                continue;
            }
            let block = u16::try_from(block).expect("a piece has at most 4096 blocks");
            let upload =
                Upload { peer: *child, piece: id, block, hops: piece.hops, is_answer: false, bytes, until };
            self.uploads.push(rank, upload);
            rank += step;
        }
    }

    /// Until when others can be expected to need a piece that starts at this program date time, and to wait for it.
    pub(super) fn useful_until(&self, start_ms: u64) -> Time {
        let reached = self.player.reaches(self.now, start_ms);
        let patience = self.now + PUSH_PATIENCE;
        if reached == Time::NEVER { patience } else { patience.min(reached + CHILD_LAG) }
    }

    /// Notes a block for the next announcement, and tells those that asked for it in vain.
    fn note_fresh(&mut self, id: PieceId, block: u32) {
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        let waiting = piece.known.iter_mut().filter(|known| known.awaits.contains(block));
        let mut told = Vec::new();
        for known in waiting {
            known.awaits.remove(block);
            if !known.has.contains(block) {
                told.push(known.peer);
            }
        }
        if !told.is_empty() {
            let mut bits = Bits::default();
            bits.insert(block);
            let mut sets = SetsBuilder::default();
            sets.add(id, Some(&bits));
            if let Some(sets) = sets.sets() {
                for peer in told {
                    self.send(peer, &Control::Have(sets));
                }
            }
        }
        if !self.neighbors.values().any(|neighbor| neighbor.flags.wants_haves) {
            return;
        }
        match self.fresh.iter_mut().find(|(piece, _)| *piece == id) {
            Some((_, bits)) => {
                bits.insert(block);
            }
            None => {
                let mut bits = Bits::default();
                bits.insert(block);
                self.fresh.push((id, bits));
            }
        }
        // Long enough to gather a burst's blocks in one message, short against a block's time on a path.
        self.announce_at = self.announce_at.min(self.now + Span::from_ms(20));
    }

    pub(super) fn is_channel_open(&self, peer: PeerId) -> bool {
        // A vanished receiver's uploads are let through, to be dropped.
        self.neighbors.get(&peer).is_none_or(|neighbor| neighbor.buffered < CHANNEL_BYTES_MAX)
    }

    /// Sends what the rate allows.
    pub(super) fn pump_uploads(&mut self) {
        loop {
            let neighbors = &self.neighbors;
            let is_open = |peer: PeerId| neighbors.get(&peer).is_none_or(|n| n.buffered < CHANNEL_BYTES_MAX);
            let Some(upload) = self.uploads.next(self.now, is_open) else { return };
            self.send_block(&upload);
        }
    }

    fn send_block(&mut self, upload: &Upload) {
        let Upload { peer, piece: id, block, hops, is_answer, bytes, until } = *upload;
        let Some(neighbor) = self.neighbors.get_mut(&peer) else { return };
        if is_answer {
            neighbor.answers_queued = neighbor.answers_queued.saturating_sub(1);
        }
        let index = u32::from(block);
        let can_send = |piece: &&mut Piece| piece.stored.contains(index);
        let Some(piece) = self.pieces.get_mut(&id).filter(can_send) else { return };
        if until <= self.now {
            self.stats.uploads_dropped += 1;
            return;
        }
        let known = piece.known_mut(peer);
        if known.has.contains(index) && !is_answer {
            return;
        }
        known.has.insert(index);
        if neighbor.buffered == 0 {
            neighbor.drained_at = self.now;
        }
        neighbor.buffered += bytes;
        self.uploads.sent(self.now, bytes);
        self.stats.sent_bytes += u64::from(bytes);
        let header = BlockHeader { piece: id, block, is_answer, hops }.to_bytes();
        self.outputs.push(Output::SendBlock { peer, header, piece: id, block });
    }

    pub(super) fn accept_send_queue(&mut self, peer: PeerId, buffered: u32) {
        let Some(neighbor) = self.neighbors.get_mut(&peer) else { return };
        if buffered < neighbor.buffered {
            neighbor.drained_at = self.now;
        }
        neighbor.buffered = buffered;
        self.uploads.drained(self.now, self.buffered());
    }

    /// What waits in all neighbors' channels, in bytes.
    pub(super) fn buffered(&self) -> u64 {
        let mut bytes = 0;
        for neighbor in self.neighbors.values() {
            bytes += u64::from(neighbor.buffered);
        }
        bytes
    }
}
