//! The live window of one rendition: which segments and parts exist, which are listed, and the playlist that says so.
//!
//! Pure: no clock, no sockets. `live` wraps it for sharing between the stream's worker, which adds, and the origin's
//! requests, which read. Where there is a storage, the window may be longer than memory: [`Window::take_changes`] tells
//! what happened, [`Window::set_stored`] takes the word that it is kept, and media that is kept is let go from memory
//! once it is older than the memory's share. What the playlist says is in `window/playlist.rs`.

mod playlist;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::Constants;

/// A part that exists.
#[derive(Clone, Debug)]
pub(crate) struct PartEntry {
    pub(crate) duration_us: i64,
    /// `moof` and `mdat`; empty for a gap.
    pub(crate) bytes: Bytes,
    /// The signed digest record; empty for a gap.
    pub(crate) record: Bytes,
    /// Whether it contains a keyframe.
    pub(crate) is_independent: bool,
    pub(crate) is_gap: bool,
}

/// What a segment's first part settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartHead {
    /// The program date time of its first sample.
    pub(crate) date_time_ms: i64,
    /// Whether it does not continue the segment before.
    pub(crate) is_discontinuity: bool,
    /// The number of its initialization section.
    pub(crate) init: u32,
}

/// A segment: complete, or the last one and in the making.
#[derive(Clone, Debug)]
pub(crate) struct SegmentEntry {
    pub(crate) msn: u64,
    head: PartHead,
    /// Empty once its media is in the storage only.
    pub(crate) parts: Vec<PartEntry>,
    stored: Option<Stored>,
}

/// What is known of a segment whose media is in the storage only.
#[derive(Clone, Copy, Debug)]
struct Stored {
    duration_us: i64,
    bytes: u64,
}

impl SegmentEntry {
    pub(crate) fn duration_us(&self) -> i64 {
        self.stored
            .map_or_else(|| self.parts.iter().map(|part| part.duration_us).sum(), |stored| stored.duration_us)
    }

    /// Its media in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes.len()).sum()
    }

    /// The length of its media, if that is in the storage only.
    pub(crate) fn stored_bytes(&self) -> Option<u64> {
        self.stored.map(|stored| stored.bytes)
    }

    /// Whether it was taken over whole from another origin, so that it has no parts to list.
    fn is_whole(&self, part_target_us: i64) -> bool {
        matches!(&self.parts[..], [only] if only.duration_us > part_target_us)
    }

    fn is_gap(&self) -> bool {
        match self.stored {
            Some(stored) => stored.bytes == 0,
            None => self.parts.iter().all(|part| part.is_gap),
        }
    }
}

/// Something that happened to a window, for whoever keeps the media.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Parts may begin with this initialization section from now on.
    Init { number: u32, bytes: Bytes },
    /// A part was added.
    Part { msn: u64, index: u64, head: PartHead, part: PartEntry },
    /// A segment is complete.
    SegmentEnded { msn: u64 },
    /// A segment is not needed any more.
    Dropped { msn: u64 },
}

/// How far a rendition is: what a blocked request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Progress {
    /// The segment in the making; all before it are complete.
    pub(crate) msn: u64,
    /// How many parts it has.
    pub(crate) parts: u64,
    /// Whether nothing will be added.
    pub(crate) is_ended: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Window {
    constants: Constants,
    /// Complete segments, oldest first: the listed ones, and before them those that left the playlist a short time
    /// ago and can still be fetched.
    complete: VecDeque<SegmentEntry>,
    /// The segment in the making, from its first part on.
    open: Option<SegmentEntry>,
    /// The next segment's number while there is no open one; else the open one's.
    msn: u64,
    /// The first listed segment.
    listed_from: u64,
    discontinuity_sequence: u64,
    inits: BTreeMap<u32, Bytes>,
    /// The initialization section of the parts to come.
    init: u32,
    next_is_discontinuity: bool,
    is_ended: bool,
    /// The media in memory.
    bytes: usize,
    /// Segments before this one are kept in the storage.
    stored_to: u64,
    /// Segments before this one are in the storage only.
    memory_from: u64,
    /// What happened since [`Self::take_changes`]; none where nobody asks.
    changes: Option<Vec<Change>>,
    /// Whether media may be let go from memory and still be listed.
    has_storage: bool,
}

impl Window {
    pub(crate) fn new(constants: Constants, init: Bytes) -> Self {
        Self {
            constants,
            complete: VecDeque::new(),
            open: None,
            msn: 0,
            listed_from: 0,
            discontinuity_sequence: 0,
            inits: BTreeMap::from([(0, init)]),
            init: 0,
            next_is_discontinuity: false,
            is_ended: false,
            bytes: 0,
            stored_to: 0,
            memory_from: 0,
            changes: None,
            has_storage: false,
        }
    }

    /// Tells what happens from now on through [`Self::take_changes`]; `with_storage` if what is told will be kept and
    /// can be listed for longer than memory lasts. For a new window.
    pub(crate) fn watch_changes(&mut self, with_storage: bool) {
        let init = |(number, bytes): (&u32, &Bytes)| Change::Init { number: *number, bytes: bytes.clone() };
        self.changes = Some(self.inits.iter().map(init).collect());
        self.has_storage = with_storage;
    }

    /// What happened since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<Change> {
        self.changes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn tell(&mut self, change: Change) {
        if let Some(changes) = &mut self.changes {
            changes.push(change);
        }
    }

    /// All segments before `msn` are kept.
    pub(crate) fn set_stored(&mut self, msn: u64) {
        if msn > self.stored_to {
            self.stored_to = msn;
            self.forget_stored();
        }
    }

    /// Nothing is kept any more, and what was cannot be relied upon: the window shrinks to what is in memory.
    pub(crate) fn lose_storage(&mut self) {
        self.has_storage = false;
        self.changes = None;
        while self.complete.front().is_some_and(|oldest| oldest.msn < self.memory_from) {
            if self.complete.front().is_some_and(|oldest| oldest.msn >= self.listed_from) {
                self.unlist_oldest();
            }
            self.drop_oldest();
        }
        self.evict();
    }

    pub(crate) fn progress(&self) -> Progress {
        let parts = self.open.as_ref().map_or(0, |open| open.parts.len() as u64);
        Progress { msn: self.msn, parts, is_ended: self.is_ended }
    }

    /// The media that is held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The media of the segment in the making, in bytes.
    pub(crate) fn open_bytes(&self) -> usize {
        self.open.as_ref().map_or(0, SegmentEntry::bytes)
    }

    /// The oldest segment in memory.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.complete.front().map(|oldest| oldest.msn.max(self.memory_from))
    }

    /// The newest part: the number of its segment, complete or not, and its index there.
    pub(crate) fn last_part(&self) -> Option<(u64, u64)> {
        let newest = self.open.as_ref().or(self.complete.back())?;
        Some((newest.msn, (newest.parts.len() as u64).saturating_sub(1)))
    }

    /// Adds a part to the open segment, or opens one with it. `date_time_ms` is the part's first sample's.
    pub(crate) fn add_part(&mut self, part: PartEntry, date_time_ms: i64) {
        let (msn, init) = (self.msn, self.init);
        let is_discontinuity = self.open.is_none() && std::mem::take(&mut self.next_is_discontinuity);
        self.bytes += part.bytes.len();
        let open = self.open.get_or_insert_with(|| {
            let head = PartHead { date_time_ms, is_discontinuity, init };
            SegmentEntry { msn, head, parts: Vec::new(), stored: None }
        });
        let (index, head) = (open.parts.len() as u64, open.head);
        open.parts.push(part.clone());
        self.tell(Change::Part { msn, index, head, part });
    }

    /// Completes the open segment; nothing happens where there is none.
    pub(crate) fn end_segment(&mut self) {
        if let Some(open) = self.open.take() {
            self.complete.push_back(open);
            self.tell(Change::SegmentEnded { msn: self.msn });
            self.msn += 1;
            self.evict();
        }
    }

    /// The next segment does not continue the one before.
    pub(crate) fn mark_discontinuity(&mut self) {
        self.end_segment();
        self.next_is_discontinuity = self.msn > 0;
    }

    /// The parts to come need another initialization section. Only between segments.
    pub(crate) fn set_init(&mut self, init: Bytes) {
        self.init += 1;
        self.inits.insert(self.init, init.clone());
        self.tell(Change::Init { number: self.init, bytes: init });
    }

    /// The parts to come do not continue those before and begin with the initialization section `init`.
    pub(crate) fn begin_discontinuity(&mut self, init: Bytes) {
        self.mark_discontinuity();
        self.set_init(init);
    }

    /// Nothing will be added.
    pub(crate) fn end(&mut self) {
        self.end_segment();
        self.is_ended = true;
    }

    /// Drops the oldest segment's media to save memory, if the playlist can do without; returns whether it did. The
    /// segment leaves the playlist too, unless it is kept.
    pub(crate) fn shed(&mut self) -> bool {
        // Section 6.2.2: a live playlist lists at least three target durations.
        let held = self.complete.iter().filter(|segment| segment.msn >= self.memory_from);
        let rest: i64 = held.skip(1).map(SegmentEntry::duration_us).sum();
        let can = rest >= 3_000_000 * self.constants.target_duration_s as i64;
        if can && self.has_storage && self.memory_from < self.stored_to {
            self.forget_oldest();
        } else if can {
            if self.complete.front().is_some_and(|oldest| oldest.msn >= self.listed_from) {
                self.unlist_oldest();
            }
            self.drop_oldest();
        }
        can
    }

    /// Lets go of media that is kept and older than the memory's share of the window.
    fn forget_stored(&mut self) {
        if !self.has_storage {
            return;
        }
        let held = self.complete.iter().filter(|segment| segment.msn >= self.memory_from);
        let mut held_us: i64 = held.map(SegmentEntry::duration_us).sum();
        while self.memory_from < self.stored_to {
            let oldest = self.segment(self.memory_from);
            held_us -= oldest.map_or(0, SegmentEntry::duration_us);
            if oldest.is_some() && held_us < self.constants.window_us {
                return;
            }
            self.forget_oldest();
        }
    }

    /// Lets go of the media of the oldest segment in memory.
    fn forget_oldest(&mut self) {
        let index = self.complete.front().and_then(|first| self.memory_from.checked_sub(first.msn));
        self.memory_from += 1;
        let index = index.and_then(|index| usize::try_from(index).ok());
        if let Some(segment) = index.and_then(|index| self.complete.get_mut(index)) {
            let bytes = segment.bytes();
            segment.stored = Some(Stored { duration_us: segment.duration_us(), bytes: bytes as u64 });
            segment.parts = Vec::new();
            self.bytes -= bytes;
        }
    }

    fn evict(&mut self) {
        let window_us = if self.has_storage { self.constants.dvr_us } else { self.constants.window_us };
        while self.listed().skip(1).map(SegmentEntry::duration_us).sum::<i64>() >= window_us {
            self.unlist_oldest();
        }
        self.forget_stored();
        // A client may act on a playlist that it read a while ago.
        let keep_us = 3_000_000 * self.constants.target_duration_s as i64;
        while self.complete.front().is_some_and(|oldest| oldest.msn < self.listed_from)
            && self
                .complete
                .iter()
                .skip(1)
                .take_while(|s| s.msn < self.listed_from)
                .map(SegmentEntry::duration_us)
                .sum::<i64>()
                >= keep_us
        {
            self.drop_oldest();
        }
    }

    fn unlist_oldest(&mut self) {
        let oldest = self.listed().next().map(|oldest| oldest.head.is_discontinuity);
        if let Some(is_discontinuity) = oldest {
            self.discontinuity_sequence += u64::from(is_discontinuity);
            self.listed_from += 1;
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(dropped) = self.complete.pop_front() {
            self.bytes -= dropped.bytes();
            let oldest_init =
                self.complete.front().or(self.open.as_ref()).map_or(self.init, |segment| segment.head.init);
            self.inits = self.inits.split_off(&oldest_init);
            self.memory_from = self.memory_from.max(dropped.msn + 1);
            self.tell(Change::Dropped { msn: dropped.msn });
        }
    }

    /// The complete segments that the playlist lists.
    pub(crate) fn listed(&self) -> impl Iterator<Item = &SegmentEntry> {
        self.complete.iter().filter(|segment| segment.msn >= self.listed_from)
    }

    /// A complete segment's parts, listed or not long gone.
    pub(crate) fn segment(&self, msn: u64) -> Option<&SegmentEntry> {
        let first = self.complete.front()?.msn;
        self.complete.get(usize::try_from(msn.checked_sub(first)?).ok()?)
    }

    /// A part in memory.
    pub(crate) fn part(&self, msn: u64, part: u64) -> Option<&PartEntry> {
        let segment = self.segment(msn).or(self.open.as_ref().filter(|open| open.msn == msn))?;
        segment.parts.get(usize::try_from(part).ok()?)
    }

    /// The initialization section of the parts to come.
    pub(crate) fn newest_init(&self) -> Option<&Bytes> {
        self.inits.get(&self.init)
    }

    /// An initialization section.
    pub(crate) fn init(&self, number: u32) -> Option<&Bytes> {
        self.inits.get(&number)
    }

    /// Whether the playlist has what a blocked request asks for: segment `msn`, or its part `part`. A part past the
    /// end of a complete segment is the next segment's first.
    pub(crate) fn has(&self, msn: u64, part: Option<u64>) -> bool {
        let Some(part) = part else { return msn < self.msn };
        if msn < self.msn {
            // A segment without its parts is so old that the next one has some.
            let is_inside = self
                .segment(msn)
                .is_none_or(|segment| segment.stored.is_some() || part < segment.parts.len() as u64);
            return is_inside || self.has(msn + 1, Some(0));
        }
        msn == self.msn && part < self.progress().parts
    }
}

#[cfg(test)]
mod tests;
