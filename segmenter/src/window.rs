//! The live window of one rendition: which segments and parts exist, which are listed, and the playlist that says so.
//!
//! Pure: no clock, no sockets. `live` wraps it for sharing between the stream's worker, which adds, and the origin's
//! requests, which read.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use shoal_playlist::{
    Head, Hint, HintKind, Map, MediaPlaylist, OpenSegment, Part, RenditionReport, Segment, ServerControl,
};

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

/// A segment: complete, or the last one and in the making.
#[derive(Clone, Debug)]
pub(crate) struct SegmentEntry {
    pub(crate) msn: u64,
    pub(crate) parts: Vec<PartEntry>,
    date_time_ms: i64,
    is_discontinuity: bool,
    init: u32,
}

impl SegmentEntry {
    pub(crate) fn duration_us(&self) -> i64 {
        self.parts.iter().map(|part| part.duration_us).sum()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes.len()).sum()
    }

    fn is_gap(&self) -> bool {
        self.parts.iter().all(|part| part.is_gap)
    }
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
    bytes: usize,
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
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        let parts = self.open.as_ref().map_or(0, |open| open.parts.len() as u64);
        Progress { msn: self.msn, parts, is_ended: self.is_ended }
    }

    /// The media that is held, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The oldest segment that is held.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.complete.front().map(|oldest| oldest.msn)
    }

    /// The newest part: the number of its segment, complete or not, and its index there.
    pub(crate) fn last_part(&self) -> Option<(u64, u64)> {
        let newest = self.open.as_ref().or(self.complete.back())?;
        Some((newest.msn, newest.parts.len() as u64 - 1))
    }

    /// Adds a part to the open segment, or opens one with it. `date_time_ms` is the part's first sample's.
    pub(crate) fn add_part(&mut self, part: PartEntry, date_time_ms: i64) {
        let (msn, init) = (self.msn, self.init);
        let is_discontinuity = self.open.is_none() && std::mem::take(&mut self.next_is_discontinuity);
        self.bytes += part.bytes.len();
        self.open
            .get_or_insert_with(|| SegmentEntry {
                msn,
                parts: Vec::new(),
                date_time_ms,
                is_discontinuity,
                init,
            })
            .parts
            .push(part);
    }

    /// Completes the open segment; nothing happens where there is none.
    pub(crate) fn end_segment(&mut self) {
        if let Some(open) = self.open.take() {
            self.complete.push_back(open);
            self.msn += 1;
            self.evict();
        }
    }

    /// The next segment does not continue the one before.
    pub(crate) fn mark_discontinuity(&mut self) {
        self.end_segment();
        self.next_is_discontinuity = self.msn > 0;
    }

    /// The parts to come need another initialization section. Only after [`Self::mark_discontinuity`].
    pub(crate) fn set_init(&mut self, init: Bytes) {
        self.init += 1;
        self.inits.insert(self.init, init);
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

    /// Drops the oldest segment to save memory, if the playlist can do without; returns whether it did.
    pub(crate) fn shed(&mut self) -> bool {
        // Section 6.2.2: a live playlist lists at least three target durations.
        let rest: i64 = self.complete.iter().skip(1).map(SegmentEntry::duration_us).sum();
        let can = rest >= 3_000_000 * self.constants.target_duration_s as i64;
        if can {
            if self.complete.front().is_some_and(|oldest| oldest.msn >= self.listed_from) {
                self.unlist_oldest();
            }
            self.drop_oldest();
        }
        can
    }

    fn evict(&mut self) {
        while self.listed().skip(1).map(SegmentEntry::duration_us).sum::<i64>() >= self.constants.window_us {
            self.unlist_oldest();
        }
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
        let oldest = self.listed().next().map(|oldest| oldest.is_discontinuity);
        if let Some(is_discontinuity) = oldest {
            self.discontinuity_sequence += u64::from(is_discontinuity);
            self.listed_from += 1;
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(dropped) = self.complete.pop_front() {
            self.bytes -= dropped.bytes();
            let oldest_init =
                self.complete.front().or(self.open.as_ref()).map_or(self.init, |segment| segment.init);
            self.inits = self.inits.split_off(&oldest_init);
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

    /// A part.
    pub(crate) fn part(&self, msn: u64, part: u64) -> Option<&PartEntry> {
        let segment = self.segment(msn).or(self.open.as_ref().filter(|open| open.msn == msn))?;
        segment.parts.get(usize::try_from(part).ok()?)
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
            let is_inside = self.segment(msn).is_none_or(|segment| part < segment.parts.len() as u64);
            return is_inside || self.has(msn + 1, Some(0));
        }
        msn == self.msn && part < self.progress().parts
    }

    /// The playlist now. `reports` tell of the other renditions; `with_delta` leaves out what the client has.
    pub(crate) fn playlist(&self, reports: Vec<RenditionReport>, with_delta: bool) -> MediaPlaylist {
        let constants = &self.constants;
        let listed: Vec<_> = self.listed().collect();
        let open_us = self.open.as_ref().map_or(0, SegmentEntry::duration_us);
        let total_us = open_us + listed.iter().map(|segment| segment.duration_us()).sum::<i64>();
        let skipped = if with_delta && !self.is_ended { self.skippable(&listed, total_us) } else { 0 };

        let mut segments = Vec::with_capacity(listed.len() - skipped);
        let mut from_end_us = total_us;
        let mut init_before = None;
        for (index, segment) in listed.iter().enumerate() {
            let head = head(segment, init_before);
            init_before = Some(segment.init);
            // Parts are for clients at the live edge: section 6.2.2 wants them gone after three target durations.
            from_end_us -= segment.duration_us();
            let with_parts = !self.is_ended && from_end_us <= 3_000_000 * constants.target_duration_s as i64;
            if index >= skipped {
                segments.push(Segment {
                    head,
                    parts: if with_parts { parts(segment) } else { Vec::new() },
                    duration: segment.duration_us() as u64,
                    is_gap: segment.is_gap(),
                    uri: format!("seg-{}.m4s", segment.msn),
                });
            }
        }
        let open =
            self.open.as_ref().map(|open| OpenSegment { head: head(open, init_before), parts: parts(open) });
        let last_init = self.open.as_ref().map(|open| open.init).or(init_before);
        MediaPlaylist {
            // EXT-X-SKIP needs 9; EXT-X-MAP without I-frames needs 6. GAP needs 8.
            version: if skipped > 0 {
                9
            } else if listed.iter().any(|segment| segment.is_gap()) {
                8
            } else {
                6
            },
            target_duration_s: constants.target_duration_s,
            part_target: Some(constants.part_target_us as u64),
            server_control: Some(ServerControl {
                can_block_reload: true,
                can_skip_until: Some(constants.can_skip_until_us()),
                hold_back: Some(constants.hold_back_us()),
                part_hold_back: Some(constants.part_hold_back_us()),
            }),
            kind: None,
            has_independent_segments: false,
            media_sequence: self.listed_from,
            discontinuity_sequence: self.discontinuity_sequence,
            skipped: (skipped > 0).then_some(skipped as u64),
            segments,
            open,
            hints: if self.is_ended { Vec::new() } else { self.hints(last_init) },
            reports: if self.is_ended { Vec::new() } else { reports },
            is_ended: self.is_ended,
        }
    }

    fn hints(&self, last_init: Option<u32>) -> Vec<Hint> {
        let Progress { msn, parts, .. } = self.progress();
        let map = (last_init.is_some_and(|last| last != self.init))
            .then(|| Hint { kind: HintKind::Map, uri: format!("init-{}.mp4", self.init) });
        let part = Hint { kind: HintKind::Part, uri: format!("part-{msn}-{parts}.m4s") };
        map.into_iter().chain([part]).collect()
    }

    /// How many segments at the front lie before the skip boundary, counted from the end of the playlist.
    fn skippable(&self, listed: &[&SegmentEntry], total_us: i64) -> usize {
        let mut from_end_us = total_us;
        listed
            .iter()
            .take_while(|segment| {
                from_end_us -= segment.duration_us();
                from_end_us >= self.constants.can_skip_until_us() as i64
            })
            .count()
    }
}

fn head(segment: &SegmentEntry, init_before: Option<u32>) -> Head {
    Head {
        is_discontinuity: segment.is_discontinuity,
        map: (init_before != Some(segment.init)).then(|| Map { uri: format!("init-{}.mp4", segment.init) }),
        date_time_ms: Some(segment.date_time_ms),
    }
}

fn parts(segment: &SegmentEntry) -> Vec<Part> {
    let msn = segment.msn;
    let part = |(index, part): (usize, &PartEntry)| Part {
        uri: format!("part-{msn}-{index}.m4s"),
        duration: part.duration_us as u64,
        is_independent: part.is_independent,
        is_gap: part.is_gap,
    };
    segment.parts.iter().enumerate().map(part).collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use shoal_playlist::parse_media;

    use super::*;
    use crate::config::Config;

    fn window() -> Window {
        let config = Config { window_ms: 12_000, ..Config::default() };
        Window::new(config.constants(), Bytes::from_static(b"init"))
    }

    fn part(duration_us: i64) -> PartEntry {
        let bytes = Bytes::from_static(b"part");
        PartEntry { duration_us, record: bytes.clone(), bytes, is_independent: false, is_gap: false }
    }

    fn add_segments(window: &mut Window, count: usize) {
        for _ in 0..count {
            for _ in 0..4 {
                window.add_part(part(500_000), 0);
            }
            window.end_segment();
        }
    }

    #[test]
    fn window_slides_and_keeps_what_just_left_for_late_clients() {
        let mut window = window();
        add_segments(&mut window, 20);
        assert_eq!(window.listed_from, 14);
        assert!(window.segment(13).is_some() && window.segment(11).is_some());
        assert!(window.segment(10).is_none());
        assert_eq!(window.bytes(), 9 * 4 * 4);
    }

    #[test]
    fn request_past_the_end_of_a_segment_waits_for_the_next_ones_first_part() {
        let mut window = window();
        add_segments(&mut window, 1);
        assert!(window.has(0, Some(3)));
        assert!(!window.has(0, Some(4)));
        window.add_part(part(500_000), 0);
        assert!(window.has(0, Some(4)) && window.has(1, Some(0)));
        assert!(!window.has(1, None) && !window.has(1, Some(1)));
    }

    #[test]
    fn delta_with_the_copy_that_the_client_has_gives_the_whole() {
        let config = Config { window_ms: 60_000, ..Config::default() };
        let mut window = Window::new(config.constants(), Bytes::new());
        add_segments(&mut window, 30);
        let full = window.playlist(Vec::new(), false);
        let delta = window.playlist(Vec::new(), true);
        let skipped = delta.skipped.unwrap() as usize;
        assert_eq!(full.segments[skipped..], delta.segments);
        let rest: u64 = delta.segments.iter().map(|segment| segment.duration).sum();
        assert!(rest >= config.constants().can_skip_until_us(), "skipped beyond the boundary");
        assert_eq!(delta.version, 9);
    }

    #[test]
    fn next_part_with_another_map_is_announced() {
        let mut window = window();
        add_segments(&mut window, 2);
        window.mark_discontinuity();
        window.set_init(Bytes::from_static(b"other"));
        let hints = window.playlist(Vec::new(), false).hints;
        assert_eq!(hints[0], Hint { kind: HintKind::Map, uri: "init-1.mp4".to_owned() });
        window.add_part(part(500_000), 0);
        let playlist = window.playlist(Vec::new(), false);
        assert_eq!(playlist.hints.len(), 1);
        let head = playlist.open.unwrap().head;
        assert!(head.is_discontinuity && head.map == Some(Map { uri: "init-1.mp4".to_owned() }));
        add_segments(&mut window, 20);
        let playlist = window.playlist(Vec::new(), false);
        assert_eq!(playlist.discontinuity_sequence, 1);
        assert_eq!(playlist.segments[0].head.map, Some(Map { uri: "init-1.mp4".to_owned() }));
        assert!(window.init(0).is_none(), "an init that nothing needs is let go");
    }

    #[test]
    fn ended_playlist_promises_nothing() {
        let mut window = window();
        add_segments(&mut window, 3);
        window.end();
        let playlist = window.playlist(Vec::new(), true);
        assert!(playlist.is_ended && playlist.hints.is_empty() && playlist.skipped.is_none());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Part(i64),
        EndSegment,
        Discontinuity { with_init: bool },
        Shed,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (400_000i64..512_000).prop_map(Step::Part),
            2 => Just(Step::EndSegment),
            1 => any::<bool>().prop_map(|with_init| Step::Discontinuity { with_init }),
            1 => Just(Step::Shed),
        ]
    }

    proptest! {
        #[test]
        fn window_never_goes_backwards_and_constants_never_change(steps in vec(step(), 1..200)) {
            let mut window = window();
            let mut before = window.playlist(Vec::new(), false);
            let mut discontinuities = std::collections::BTreeMap::new();
            for step in steps {
                match step {
                    Step::Part(duration_us) => window.add_part(part(duration_us), 0),
                    Step::EndSegment => window.end_segment(),
                    Step::Discontinuity { with_init } => {
                        window.mark_discontinuity();
                        if with_init { window.set_init(Bytes::new()); }
                    }
                    Step::Shed => { window.shed(); }
                }
                let now = window.playlist(Vec::new(), false);
                prop_assert_eq!(parse_media(&now.render()), Ok(now.clone()));
                prop_assert_eq!(now.target_duration_s, before.target_duration_s);
                prop_assert_eq!(now.part_target, before.part_target);
                prop_assert_eq!(&now.server_control, &before.server_control);
                prop_assert!(now.media_sequence >= before.media_sequence);
                let last = |playlist: &MediaPlaylist| playlist.media_sequence + playlist.segments.len() as u64;
                prop_assert!(last(&now) >= last(&before));
                // A segment keeps its discontinuity sequence number while and after it is listed.
                let mut sequence = now.discontinuity_sequence;
                for (index, segment) in now.segments.iter().enumerate() {
                    sequence += u64::from(segment.head.is_discontinuity);
                    let known = *discontinuities.entry(now.media_sequence + index as u64).or_insert(sequence);
                    prop_assert_eq!(known, sequence);
                    for part in &segment.parts {
                        prop_assert!(part.uri.starts_with("part-"));
                    }
                }
                let held: usize = window.complete.iter().chain(&window.open).map(SegmentEntry::bytes).sum();
                prop_assert_eq!(held, window.bytes());
                before = now;
            }
        }
    }
}
