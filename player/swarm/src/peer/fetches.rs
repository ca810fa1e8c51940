//! Fetches from the origin: begun, ended, cancelled, given up.

use shoal_digest::{PieceId, block_bytes};

use super::Peer;
use crate::{Output, bits::Bits, input::FetchId, origin::Purpose};

/// The origin may refuse a piece or contradict its record this often before the player is sent to plain HTTP.
pub(super) const ORIGIN_FAULTS_MAX: u8 = 3;

impl Peer {
    /// Fetches blocks from the origin, neighboring ones in one range. Says whether some have to wait for a running fetch
    /// to end.
    pub(super) fn fetch(&mut self, id: PieceId, blocks: &Bits, purpose: Purpose) -> bool {
        if blocks.is_empty() {
            return false;
        }
        let Some(piece) = self.pieces.get(&id) else { return false };
        let Some(length) = piece.record().map(|record| record.length) else { return false };
        let is_retry = piece.origin_faults > 0;
        if piece.origin_faults >= ORIGIN_FAULTS_MAX {
            // The bytes that the record describes can't be had from this origin. Peers may still have them.
            self.check_requests();
            return false;
        }
        let mut done = 0;
        for first in blocks.iter() {
            if first < done {
                continue;
            }
            // One block shows whether the origin answers.
            let is_doubted = self.origin.is_doubted();
            if self.origin.fetches.len() >= if is_doubted { 1 } else { self.config.fetches_max } {
                return true;
            }
            let mut count = 1;
            while !is_doubted && blocks.contains(first + count) {
                count += 1;
            }
            done = first + count;
            let fetch = self.origin.start(self.now, id, first, count);
            match purpose {
                Purpose::Seed => self.stats.seed_fetches += 1,
                Purpose::Deadline => self.stats.deadline_fetches += 1,
            }
            let offset = first * block_bytes(length);
            let bytes = (count * block_bytes(length)).min(length - offset);
            let is_whole = bytes == length;
            let output = Output::Fetch {
                fetch,
                piece: id,
                piece_length: length,
                offset,
                length: bytes,
                is_whole,
                is_retry,
            };
            self.outputs.push(output);
            let Some(piece) = self.pieces.get_mut(&id) else { return false };
            for block in first..first + count {
                piece.blocks[block as usize].fetch = Some(fetch);
            }
        }
        false
    }

    /// A fetch ended: with all its bytes, or with a status.
    pub(super) fn end_fetch(&mut self, fetch: FetchId, failure: Option<u16>) {
        let Some(ended) = self.origin.fetches.remove(&fetch) else { return };
        if failure.is_some() || ended.received < ended.count {
            self.stats.fetches_failed += 1;
            // A refusal is about this piece, and not about the origin.
            let is_refused = matches!(failure, Some(400..=499)) && !matches!(failure, Some(408 | 429));
            match self.pieces.get_mut(&ended.piece).filter(|_| is_refused) {
                Some(piece) => piece.refused(self.now),
                None => self.origin.failed(self.now, &mut self.rng),
            }
        }
        self.release_fetch(fetch, ended.piece);
    }

    pub(super) fn cancel_fetch(&mut self, fetch: FetchId) {
        let Some(cancelled) = self.origin.fetches.remove(&fetch) else { return };
        self.stats.fetches_cancelled += 1;
        self.outputs.push(Output::CancelFetch { fetch });
        self.release_fetch(fetch, cancelled.piece);
    }

    /// Cancels a fetch whose blocks have all come, from wherever.
    pub(super) fn cancel_if_done(&mut self, fetch: FetchId) {
        let Some(running) = self.origin.fetches.get(&fetch) else { return };
        if running.received >= running.count {
            return;
        }
        let Some(piece) = self.pieces.get(&running.piece) else { return };
        if (running.first..running.first + running.count).all(|block| piece.stored.contains(block)) {
            self.cancel_fetch(fetch);
        }
    }

    fn release_fetch(&mut self, fetch: FetchId, id: PieceId) {
        let Some(piece) = self.pieces.get_mut(&id) else { return };
        for block in &mut piece.blocks {
            if block.fetch == Some(fetch) {
                block.fetch = None;
            }
        }
        // A fetch that waited for a free place may start now.
        self.wake_pieces();
    }

    /// Cancels fetches that give nothing any more.
    pub(super) fn cancel_stalled_fetches(&mut self) {
        let (now, patience) = (self.now, self.origin.patience());
        for fetch in self.origin.fetches.keys_where(&|_, fetch| now.since(fetch.progress) >= patience) {
            self.stats.fetches_failed += 1;
            self.origin.stalled(now, fetch);
            self.origin.failed(now, &mut self.rng);
            self.cancel_fetch(fetch);
        }
    }
}
