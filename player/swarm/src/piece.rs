//! One piece: its record, which of its blocks are stored, and who else has which.

use std::sync::Arc;

use shoal_digest::Record;

use crate::{
    Span, Time,
    bits::Bits,
    input::{FetchId, PeerId},
    record::SignedRecord,
};

/// What the origin refuses is asked for again after this, then after twice as long.
const REFUSED_FIRST: Span = Span::from_ms(100);

/// A block that is being obtained.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Block {
    /// Who was asked, when, and until when the answer is awaited.
    pub(crate) pull: Option<Pull>,
    /// A fetch from the origin covers it.
    pub(crate) fetch: Option<FetchId>,
    pub(crate) pulls: u8,
}

/// A block asked of a neighbor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pull {
    pub(crate) from: PeerId,
    pub(crate) sent: Time,
    pub(crate) until: Time,
}

/// What a neighbor has of the piece, as far as is known.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) peer: PeerId,
    pub(crate) has: Bits,
    /// It does not have these, or did not send them. Holds until it says that it has them.
    pub(crate) refused: Bits,
    /// It asked for these when they were not here: it is told when they are.
    pub(crate) awaits: Bits,
}

/// A piece that was heard of.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) record: Option<Arc<SignedRecord>>,
    /// When the record came: the best guess at when the piece was published.
    pub(crate) since: Time,
    /// Stored and verified.
    pub(crate) stored: Bits,
    /// One for each block while the piece is incomplete and has a record; then empty.
    pub(crate) blocks: Vec<Block>,
    pub(crate) known: Vec<Known>,
    pub(crate) is_complete: bool,
    /// The player asked for it.
    pub(crate) is_wanted: bool,
    /// Out of the schedule: nothing is obtained or expected any more.
    pub(crate) is_retired: bool,
    /// Its record came long after it was published: no tree brings it, and nobody waits for it here.
    pub(crate) is_past: bool,
    /// Where in the spread of fallbacks this viewer stands for this piece: the highest goes first.
    pub(crate) turn: u16,
    /// No neighbor that gives stands before this viewer.
    pub(crate) is_first: bool,
    pub(crate) hops: u8,
    /// How often the origin refused it, or gave bytes that contradict the record.
    pub(crate) origin_faults: u8,
    /// The origin refused it: it is not asked again before this.
    pub(crate) refused_until: Time,
}

impl Piece {
    pub(crate) fn new(now: Time) -> Self {
        Self {
            record: None,
            since: now,
            stored: Bits::default(),
            blocks: Vec::new(),
            known: Vec::new(),
            is_complete: false,
            is_wanted: false,
            is_retired: false,
            is_past: false,
            turn: 0,
            is_first: false,
            hops: 0,
            origin_faults: 0,
            refused_until: Time::ZERO,
        }
    }

    pub(crate) fn record(&self) -> Option<&Record> {
        self.record.as_deref().map(SignedRecord::record)
    }

    /// The origin refuses it, which may be because a cache is a moment behind. All fetches that run then are one refusal.
    pub(crate) fn refused(&mut self, now: Time) {
        if now >= self.refused_until {
            self.refused_until = now + Span::from_us(REFUSED_FIRST.as_us() << self.origin_faults.min(4));
            self.origin_faults = self.origin_faults.saturating_add(1);
        }
    }

    pub(crate) fn known_mut(&mut self, peer: PeerId) -> &mut Known {
        let at = self.known.iter().position(|known| known.peer == peer);
        let at = at.unwrap_or_else(|| {
            self.known.push(Known {
                peer,
                has: Bits::default(),
                refused: Bits::default(),
                awaits: Bits::default(),
            });
            self.known.len() - 1
        });
        &mut self.known[at]
    }

    pub(crate) fn known(&self, peer: PeerId) -> Option<&Known> {
        self.known.iter().find(|known| known.peer == peer)
    }

    pub(crate) fn has(&self, peer: PeerId, block: u32) -> bool {
        self.known(peer).is_some_and(|known| known.has.contains(block))
    }

    /// Bytes in the piece store: room is made for the whole piece with its first block.
    pub(crate) fn store_bytes(&self) -> u64 {
        if self.stored.is_empty() { 0 } else { self.record().map_or(0, |record| u64::from(record.length)) }
    }

    /// Its blocks are to be obtained from now on.
    pub(crate) fn begin(&mut self, blocks: usize) {
        self.blocks.clear();
        for _ in 0..blocks {
            self.blocks.push(Block::default());
        }
    }

    /// The blocks that are being obtained and are not stored.
    pub(crate) fn missing(&self) -> Bits {
        let mut missing = Bits::below(self.blocks.len() as u32);
        missing.subtract(&self.stored);
        missing
    }
}
