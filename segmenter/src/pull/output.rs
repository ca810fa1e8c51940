//! One rendition as it leaves: pieces of an upstream become parts of a live window.

use std::sync::Arc;

use bytes::Bytes;
use shoal_playlist::lint::{Fragment, Init};

use crate::live::{Live, NewPart, Rendition};
use crate::window::Window;

/// See the module.
#[derive(Debug)]
pub(super) struct Output {
    live: Arc<Live>,
    rendition: Arc<Rendition>,
    /// The initialization section that the window has newest.
    init: Bytes,
    layout: Option<Init>,
    is_video: bool,
    /// The date of what comes next, in microseconds since the Unix epoch.
    next_us: i64,
    has_begun: bool,
    /// Nothing has come since it was taken up anew.
    is_resumed: bool,
}

impl Output {
    /// `date_us` is the date of the first piece where the upstream gives none.
    pub(super) fn new(live: Arc<Live>, number: usize, init: Bytes, date_us: i64) -> Self {
        let rendition = live.renditions[number].clone();
        let is_video = rendition.description().is_video();
        let layout = Init::read(&init);
        Self {
            live,
            rendition,
            init,
            layout,
            is_video,
            next_us: date_us,
            has_begun: false,
            is_resumed: false,
        }
    }

    /// Goes on behind what the rendition has, with other media.
    pub(super) fn resume(live: Arc<Live>, number: usize, init: Bytes, date_us: i64, end_us: i64) -> Self {
        let mut output = Self::new(live, number, init, date_us.max(end_us));
        let init = output.init.clone();
        output.live.change(&output.rendition, |window| window.begin_discontinuity(init));
        (output.has_begun, output.is_resumed) = (true, true);
        output
    }

    pub(super) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// The end of what was published.
    pub(super) fn end_us(&self) -> i64 {
        self.next_us
    }

    /// A segment begins.
    pub(super) fn begin(&mut self, is_discontinuity: bool, date_ms: Option<i64>) {
        self.end_segment();
        if is_discontinuity {
            self.live.change(&self.rendition, Window::mark_discontinuity);
        }
        if let Some(date_us) = date_ms.and_then(|date_ms| date_ms.checked_mul(1_000)) {
            // Section 4.4.4.6 lets dates jump at discontinuities only, and ours never go back.
            let may_jump = is_discontinuity || std::mem::take(&mut self.is_resumed);
            let goes_back = may_jump && self.has_begun && date_us < self.next_us;
            if !goes_back {
                self.next_us = date_us;
            }
        }
        self.has_begun = true;
    }

    /// The pieces to come need this initialization section.
    pub(super) fn set_init(&mut self, init: &Bytes, describe: impl FnOnce(&mut crate::live::Description)) {
        if *init == self.init {
            return;
        }
        self.end_segment();
        self.init = init.clone();
        self.layout = Init::read(init);
        self.rendition.describe(describe);
        let init = init.clone();
        self.live.change(&self.rendition, |window| window.set_init(init));
    }

    /// Publishes a piece; false where it is no media of this rendition.
    pub(super) fn piece(&mut self, bytes: Bytes, duration_us: i64, is_last: bool) -> bool {
        let Some(fragment) = self.layout.as_ref().and_then(|layout| Fragment::read(&bytes, layout)) else {
            return false;
        };
        if self.is_video {
            self.measure(&fragment, duration_us);
            let begins_segment = self.rendition.with_window(Window::progress).parts == 0;
            if begins_segment && !fragment.starts_with_keyframe() {
                self.live.has_dependent_segment();
            }
        }
        self.live.publish(
            &self.rendition,
            NewPart {
                bytes,
                start_ms: self.next_us.div_euclid(1_000),
                duration_us,
                is_independent: !self.is_video || fragment.starts_with_keyframe(),
                has_keyframe: !self.is_video || fragment.has_keyframe(),
                is_last,
            },
        );
        self.next_us = self.next_us.saturating_add(duration_us);
        true
    }

    /// Says that there is nothing.
    pub(super) fn gap(&mut self, duration_us: i64, is_last: bool) {
        self.live.publish_gap(&self.rendition, self.next_us.div_euclid(1_000), duration_us, is_last);
        self.next_us = self.next_us.saturating_add(duration_us);
    }

    /// How many bytes the segment in the making has.
    pub(super) fn open_bytes(&self) -> usize {
        self.rendition.with_window(Window::open_bytes)
    }

    pub(super) fn end_segment(&mut self) {
        if self.rendition.with_window(Window::progress).parts > 0 {
            self.live.end_segment(&self.rendition);
        }
    }

    /// The frame rate, where the upstream did not say it.
    fn measure(&self, fragment: &Fragment, duration_us: i64) {
        let rate = u64::from(fragment.samples()) * 1_000_000_000 / duration_us.max(1).unsigned_abs();
        self.rendition.describe(|description| {
            if description.frame_rate_milli == 0 {
                description.frame_rate_milli = rate;
            }
        });
    }
}
