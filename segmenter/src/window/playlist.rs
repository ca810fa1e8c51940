//! What a window's playlist says. Pure, and reads only.

use shoal_playlist::{
    Head, Hint, HintKind, Map, MediaPlaylist, OpenSegment, Part, RenditionReport, Segment, ServerControl,
};

use super::{PartEntry, Progress, SegmentEntry, Window};

impl Window {
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
            init_before = Some(segment.head.init);
            // Parts are for clients at the live edge: section 6.2.2 wants them gone after three target durations.
            from_end_us -= segment.duration_us();
            let with_parts = constants.has_parts
                && !self.is_ended
                && from_end_us <= 3_000_000 * constants.target_duration_s as i64
                && !segment.is_whole(constants.part_target_us);
            if index >= skipped {
                segments.push(Segment {
                    head,
                    parts: if with_parts { parts(segment) } else { Vec::new() },
                    duration: segment.duration_us() as u64,
                    is_gap: segment.is_gap(),
                    byte_range: None,
                    uri: format!("seg-{}.m4s", segment.msn),
                });
            }
        }
        let open = self.open.as_ref().filter(|_| constants.has_parts);
        let open = open.map(|open| OpenSegment { head: head(open, init_before), parts: parts(open) });
        let last_init = self.open.as_ref().map(|open| open.head.init).or(init_before);
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
            part_target: constants.has_parts.then_some(constants.part_target_us as u64),
            server_control: Some(ServerControl {
                can_block_reload: true,
                can_skip_until: Some(constants.can_skip_until_us()),
                hold_back: Some(constants.hold_back_us()),
                part_hold_back: constants.has_parts.then_some(constants.part_hold_back_us()),
            }),
            kind: None,
            has_independent_segments: false,
            media_sequence: self.listed_from,
            discontinuity_sequence: self.discontinuity_sequence,
            skipped: (skipped > 0).then_some(skipped as u64),
            segments,
            open,
            hints: if self.is_ended || !constants.has_parts { Vec::new() } else { self.hints(last_init) },
            reports: if self.is_ended { Vec::new() } else { reports },
            is_ended: self.is_ended,
            encryption: None,
        }
    }

    fn hints(&self, last_init: Option<u32>) -> Vec<Hint> {
        let Progress { msn, parts, .. } = self.progress();
        let map = (last_init.is_some_and(|last| last != self.init)).then(|| Hint {
            kind: HintKind::Map,
            uri: format!("init-{}.mp4", self.init),
            start: None,
            length: None,
        });
        let part =
            Hint { kind: HintKind::Part, uri: format!("part-{msn}-{parts}.m4s"), start: None, length: None };
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
        is_discontinuity: segment.head.is_discontinuity,
        map: (init_before != Some(segment.head.init))
            .then(|| Map { uri: format!("init-{}.mp4", segment.head.init), byte_range: None }),
        date_time_ms: Some(segment.head.date_time_ms),
    }
}

fn parts(segment: &SegmentEntry) -> Vec<Part> {
    let msn = segment.msn;
    let part = |(index, part): (usize, &PartEntry)| Part {
        uri: format!("part-{msn}-{index}.m4s"),
        duration: part.duration_us as u64,
        is_independent: part.is_independent,
        is_gap: part.is_gap,
        byte_range: None,
    };
    segment.parts.iter().enumerate().map(part).collect()
}
