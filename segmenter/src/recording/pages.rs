//! Pages that were read lately: each request for stored media needs one, and most need the same few. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use super::layout::SegmentMeta;

/// So many pages are kept: half a minute each, of one rendition where one viewer is.
const PAGES_MAX: usize = 256;
/// What they may weigh together. A page of video with many blocks is some 50 kB.
const BYTES_MAX: usize = 8 << 20;

/// Pages by object, the one that was used last at the end.
#[derive(Debug, Default)]
pub(super) struct Pages {
    pages: VecDeque<Known>,
    bytes: usize,
}

#[derive(Debug)]
struct Known {
    name: String,
    segments: Arc<[SegmentMeta]>,
    bytes: usize,
}

impl Pages {
    /// The page's segments, if it is known up to segment `msn`: a page grows while its stream is live. What it says of a
    /// segment stays.
    pub(super) fn get(&mut self, name: &str, msn: u64) -> Option<Arc<[SegmentMeta]>> {
        let place = self.pages.iter().position(|known| known.name == name)?;
        let known = self.pages.remove(place)?;
        let segments = known.segments.clone();
        self.pages.push_back(known);
        segments.last().is_some_and(|last| last.msn >= msn).then_some(segments)
    }

    /// Keeps a page whose text had so many bytes; what is parsed weighs about as much.
    pub(super) fn put(&mut self, name: String, segments: Arc<[SegmentMeta]>, bytes: usize) {
        if let Some(place) = self.pages.iter().position(|known| known.name == name) {
            self.remove(place);
        }
        self.pages.push_back(Known { name, segments, bytes });
        self.bytes += bytes;
        while self.pages.len() > PAGES_MAX || self.bytes > BYTES_MAX {
            self.remove(0);
        }
    }

    fn remove(&mut self, place: usize) {
        let removed = self.pages.remove(place);
        self.bytes -= removed.map_or(0, |known| known.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::PartHead;

    fn page(msns: std::ops::Range<u64>) -> Arc<[SegmentMeta]> {
        let head = PartHead { date_time_ms: 0, is_discontinuity: false, init: 0 };
        msns.map(|msn| SegmentMeta { msn, head, parts: Vec::new() }).collect()
    }

    #[test]
    fn page_that_may_have_grown_is_not_relied_upon() {
        let mut pages = Pages::default();
        pages.put("page".to_owned(), page(0..3), 100);
        assert_eq!(pages.get("page", 2).unwrap().len(), 3);
        assert!(pages.get("page", 3).is_none());
        pages.put("page".to_owned(), page(0..4), 120);
        assert_eq!(pages.get("page", 3).unwrap().len(), 4);
        assert_eq!((pages.pages.len(), pages.bytes), (1, 120));
    }

    #[test]
    fn pages_are_bounded_in_number_and_bytes_and_the_used_ones_stay() {
        for bytes in [1, BYTES_MAX / 8] {
            let mut pages = Pages::default();
            for number in 0..2 * PAGES_MAX {
                pages.put(number.to_string(), page(0..1), bytes);
                assert!(pages.get("0", 0).is_some(), "after {number}");
                assert!(pages.pages.len() <= PAGES_MAX && pages.bytes <= BYTES_MAX);
                assert_eq!(pages.bytes, pages.pages.len() * bytes);
            }
            assert_eq!(pages.pages.len(), if bytes == 1 { PAGES_MAX } else { 8 });
        }
        let mut pages = Pages::default();
        pages.put("large".to_owned(), page(0..1), BYTES_MAX + 1);
        assert_eq!((pages.pages.len(), pages.bytes), (0, 0));
    }
}
