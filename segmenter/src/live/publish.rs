//! What the stream's worker and its ladder do to a live stream: parts, gaps and ends of segments.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use shoal_digest::{PieceId, Record};

use super::{Live, Rendition};
use crate::events::{Event, Published};
use crate::pictures::{Offer, SOURCE_SIDE};
use crate::window::{PartEntry, Window};

/// What the worker knows of a part that it publishes.
#[derive(Debug)]
pub(crate) struct NewPart {
    pub(crate) bytes: Bytes,
    pub(crate) start_ms: i64,
    pub(crate) duration_us: i64,
    /// Whether it begins with a keyframe.
    pub(crate) is_independent: bool,
    /// Whether there is a keyframe anywhere in it.
    pub(crate) has_keyframe: bool,
    pub(crate) is_last: bool,
}

impl Live {
    /// Signs a part, makes it available, wakes those who wait for it and tells the tracker.
    pub(crate) fn publish(&self, rendition: &Rendition, part: NewPart) {
        let at = rendition.with_window(Window::progress);
        let piece = PieceId {
            rendition: rendition.number,
            msn: at.msn,
            // A segment of 10 s in parts of 200 ms has 50.
            part: u16::try_from(at.parts).expect("a segment has few parts"),
        };
        let duration_ms = u32::try_from((part.duration_us + 500) / 1000).unwrap_or(u32::MAX);
        let record = self.sign(piece, duration_ms, &part);
        let NewPart { bytes, start_ms, duration_us, is_independent, has_keyframe, is_last } = part;
        let length = bytes.len();
        self.counters.add_media(length);
        self.measure(rendition, length, duration_us, is_last);
        if piece.part == 0 && is_independent {
            self.offer_picture(rendition, piece.msn, start_ms, &bytes);
        }
        let entry = PartEntry {
            duration_us,
            bytes,
            record: record.clone(),
            is_independent: has_keyframe,
            is_gap: false,
        };
        self.add_part(rendition, entry, start_ms, is_last);
        self.emit(Event::Published(Arc::new(Published {
            stream: self.name.clone(),
            epoch: self.epoch,
            piece,
            uri: self.uri(rendition, piece),
            length: u32::try_from(length).unwrap_or(u32::MAX),
            duration_ms,
            is_last_in_segment: is_last,
            record,
        })));
        self.shed();
    }

    fn sign(&self, piece: PieceId, duration_ms: u32, part: &NewPart) -> Bytes {
        let start_ms = u64::try_from(part.start_ms).unwrap_or(0);
        let record = Record::of(
            self.epoch,
            piece,
            part.is_last,
            part.is_independent,
            start_ms,
            duration_ms,
            &part.bytes,
        );
        Bytes::from(record.sign(&self.shared.signing_key))
    }

    /// Counts a part for the bit rates of its rendition.
    fn measure(&self, rendition: &Rendition, length: usize, duration_us: i64, is_last: bool) {
        let mut description = rendition.description.lock();
        description.add_part(length, duration_us);
        if is_last {
            description.end_segment(self.constants.target_duration_s * 1_000_000);
        }
    }

    /// Where a piece is fetched, as playlists name it.
    fn uri(&self, rendition: &Rendition, piece: PieceId) -> String {
        let file = match self.constants.has_parts {
            true => format!("part-{}-{}.m4s", piece.msn, piece.part),
            false => format!("seg-{}.m4s", piece.msn),
        };
        format!("{}/{}/{file}", self.epoch_hex(), rendition.name)
    }

    /// A segment begins with this part, and it with a keyframe: it may become a picture.
    fn offer_picture(&self, rendition: &Rendition, msn: u64, date_ms: i64, part: &Bytes) {
        let Some(pictures) = &self.pictures else { return };
        if !rendition.description.lock().is_video() {
            return;
        }
        let offer = Offer::new(
            msn,
            date_ms,
            self.constants.segment_us,
            self.picture_source() == Some(rendition.number),
        );
        pictures.offer(offer, || {
            let init = rendition.with_window(|window| window.newest_init().cloned());
            Some((init?, part.clone()))
        });
    }

    /// The rendition that pictures are made of: the smallest that is good enough, or else the largest.
    fn picture_source(&self) -> Option<u8> {
        let sizes = self.renditions.iter().filter_map(|rendition| {
            let (width, height) = rendition.description.lock().resolution?;
            Some((width.max(height), rendition.number))
        });
        // Those too small come behind all others, largest first.
        let rank = |(side, _): &(u32, u8)| if *side >= SOURCE_SIDE { *side } else { u32::MAX - *side };
        sizes.min_by_key(rank).map(|(_, number)| number)
    }

    /// Adds a part that has no media.
    pub(crate) fn publish_gap(&self, rendition: &Rendition, start_ms: i64, duration_us: i64, is_last: bool) {
        let entry = PartEntry {
            duration_us,
            bytes: Bytes::new(),
            record: Bytes::new(),
            is_independent: false,
            is_gap: true,
        };
        if is_last {
            rendition.description.lock().end_open_segment();
        }
        self.add_part(rendition, entry, start_ms, is_last);
    }

    fn add_part(&self, rendition: &Rendition, entry: PartEntry, start_ms: i64, is_last: bool) {
        self.change(rendition, |window| {
            window.add_part(entry, start_ms);
            if is_last {
                window.end_segment();
            }
        });
    }

    /// Ends a rendition's segment behind the parts that it has; nothing where it has none.
    pub(crate) fn end_segment(&self, rendition: &Rendition) {
        rendition.description.lock().end_open_segment();
        self.change(rendition, Window::end_segment);
    }

    /// Ends all open segments, and brings renditions that are behind to the same media sequence number, which is
    /// returned, with gaps that reach to `until_ms` and are not longer than `gap_us`. Their date is that of the end of the
    /// rendition, as `end_ms` gives it by rendition number. A ladder is not touched: it does the same in its own time.
    pub(crate) fn align(&self, gap_us: i64, until_ms: i64, end_ms: impl Fn(u8) -> i64) -> u64 {
        for rendition in self.own_renditions() {
            self.end_segment(rendition);
        }
        let msn = |rendition: &Arc<Rendition>| rendition.with_window(Window::progress).msn;
        let newest = self.own_renditions().map(msn).max().unwrap_or(0);
        for rendition in self.own_renditions() {
            let behind = newest - msn(rendition);
            let from_ms = end_ms(rendition.number);
            let missing_us = until_ms.saturating_sub(from_ms).saturating_mul(1000);
            let gap_us = (missing_us / behind.max(1) as i64).clamp(1_000, gap_us);
            for index in 0..behind {
                tracing::warn!(rendition = rendition.name, "a segment is missing");
                let start_ms = from_ms + index as i64 * gap_us / 1000;
                self.publish_gap(rendition, start_ms, gap_us, true);
            }
        }
        newest
    }

    /// Changes a rendition's window and wakes those who wait for it.
    pub(crate) fn change(&self, rendition: &Rendition, change: impl FnOnce(&mut Window)) {
        let (progress, changes) = {
            let mut window = rendition.window.lock();
            // Under the lock, so that whoever sees the change renders it: a text of the revision before would be kept by
            // a CDN under a URL that asked for more. And first, so that a text of the new revision waits for the change.
            self.revision.fetch_add(1, Ordering::AcqRel);
            change(&mut window);
            if let Some(recorder) = &self.recorder {
                match recorder.stored_to(rendition.number) {
                    Some(msn) => window.set_stored(msn),
                    None => window.lose_storage(),
                }
            }
            (window.progress(), window.take_changes())
        };
        rendition.progress.send_replace(progress);
        if let (Some(recorder), false) = (&self.recorder, changes.is_empty()) {
            recorder.take(rendition.number, changes, || rendition.description());
        }
    }

    /// Lets the oldest media go while the stream holds more than its limit.
    fn shed(&self) {
        while self.held_bytes() > self.bytes_max {
            // The rendition with the oldest media first, so that the windows stay alike.
            let oldest = self
                .renditions
                .iter()
                .min_by_key(|rendition| rendition.with_window(|window| window.oldest().unwrap_or(u64::MAX)));
            let mut has_shed = false;
            if let Some(rendition) = oldest {
                self.change(rendition, |window| has_shed = window.shed());
            }
            if !has_shed {
                metrics::counter!("segmenter_over_limit_total", "stream" => self.name.to_string())
                    .increment(1);
                return;
            }
        }
    }
}
