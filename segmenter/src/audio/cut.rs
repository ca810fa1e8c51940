//! Where audio parts end: at the AAC frame (or Opus packet) nearest to where the video's parts end, so that both renditions have the
//! same segments and part numbers; by its own clock when there is no video.
//!
//! Pure, like `crate::cut`, and with the same promise: a part that is not its segment's last is followed by another.

use std::collections::VecDeque;

use super::{FRAME_SAMPLES, SoundFrame, samples};
use crate::config::Constants;

/// A finished audio part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AudioPart {
    pub(crate) frames: Vec<SoundFrame>,
    /// Whether the segment ends with it.
    pub(crate) is_last: bool,
}

/// Where a part of the video ends.
#[derive(Clone, Copy, Debug)]
struct Boundary {
    at: i64,
    is_last: bool,
}

#[derive(Debug)]
pub(crate) struct AudioCutter {
    frames: VecDeque<SoundFrame>,
    boundaries: VecDeque<Boundary>,
    /// The first sample of the part in the making.
    part_start: i64,
    /// As many samples fit into a part.
    samples_max: i64,
    /// A part that is not the last of its segment has at least as many.
    samples_min: i64,
    /// With more than this without a boundary, the video is stalled and audio goes on alone.
    patience: i64,
    own_clock: Option<OwnClock>,
}

/// Audio without video makes its own boundaries.
#[derive(Debug)]
struct OwnClock {
    part: i64,
    segment: i64,
    /// The end of the part in the making, and of its segment.
    part_end: i64,
    segment_end: i64,
}

impl AudioCutter {
    /// `leads` if there is no video to follow.
    pub(crate) fn new(constants: &Constants, start: i64, leads: bool) -> Self {
        let samples_max = samples(constants.part_target_us);
        let (part, segment) = (samples(constants.part_us), samples(constants.segment_us));
        Self {
            frames: VecDeque::new(),
            boundaries: VecDeque::new(),
            part_start: start,
            samples_max,
            samples_min: samples(constants.part_min_us()),
            // One second: more than the lateness of video behind audio that ingest's buffers can cause.
            patience: samples_max + super::SAMPLE_RATE,
            own_clock: leads.then_some(OwnClock {
                part,
                segment,
                part_end: start + part,
                segment_end: start + segment,
            }),
        }
    }

    /// The sample at which the part in the making begins.
    pub(crate) fn part_start(&self) -> i64 {
        self.part_start
    }

    pub(crate) fn push(&mut self, frame: SoundFrame) {
        let start = frame.start;
        self.frames.push_back(frame);
        let Some(clock) = &mut self.own_clock else { return };
        // The boundary is set one frame late: only then is it sure that another frame follows.
        while start > clock.part_end {
            let is_last = clock.part_end >= clock.segment_end;
            self.boundaries.push_back(Boundary { at: clock.part_end, is_last });
            if is_last {
                clock.segment_end += clock.segment;
            }
            clock.part_end += clock.part;
        }
    }

    /// A part of the video ends at sample `at`.
    pub(crate) fn push_boundary(&mut self, at: i64, is_last: bool) {
        self.boundaries.push_back(Boundary { at, is_last });
    }

    /// The next part that is complete.
    pub(crate) fn poll(&mut self) -> Option<AudioPart> {
        while let Some(&Boundary { at, is_last }) = self.boundaries.front() {
            // A frame belongs to the side on which its middle is; a segment's last part has at least one. The frame
            // that comes next is as long as the last one.
            let (produced_end, half) = match self.frames.back() {
                Some(last) => (last.end(), last.samples / 2),
                None => (self.part_start, FRAME_SAMPLES / 2),
            };
            let is_covered = produced_end + half >= at;
            let mut count = self.frames.iter().take_while(|frame| frame.is_before(at)).count();
            if is_last && is_covered {
                count = count.max(1);
            }
            let fitting = self.fitting();
            if count > fitting {
                return self.take(fitting, false);
            }
            if !is_covered || self.frames.len() < count {
                return None;
            }
            self.boundaries.pop_front();
            if is_last || self.samples_of(count) >= self.samples_min {
                return self.take(count, is_last);
            }
            // Too short to be a part of its own: it goes out with the next.
        }
        if self.samples_of(self.frames.len()) > self.patience {
            self.take(self.fitting(), false)
        } else {
            None
        }
    }

    /// How many frames fit into a part.
    fn fitting(&self) -> usize {
        let mut rest = self.samples_max;
        let fits = |frame: &&SoundFrame| {
            rest -= frame.samples;
            rest >= 0
        };
        // One that is longer than a part is no reason to stand still.
        self.frames.iter().take_while(fits).count().max(1)
    }

    fn samples_of(&self, count: usize) -> i64 {
        self.frames.iter().take(count).map(|frame| frame.samples).sum()
    }

    /// Drops the frames that lie behind sample `at`.
    pub(crate) fn cut_off(&mut self, at: i64) {
        self.frames.retain(|frame| frame.is_before(at));
    }

    /// Ends the segment with what there is.
    pub(crate) fn finish(&mut self) -> Vec<AudioPart> {
        self.boundaries.clear();
        let mut parts = Vec::new();
        while !self.frames.is_empty() {
            let count = self.frames.len().min(self.fitting());
            parts.extend(self.take(count, count == self.frames.len()));
        }
        parts
    }

    fn take(&mut self, count: usize, is_last: bool) -> Option<AudioPart> {
        let frames: Vec<_> = self.frames.drain(..count).collect();
        self.part_start = frames.last()?.end();
        Some(AudioPart { frames, is_last })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn cutter(leads: bool) -> AudioCutter {
        AudioCutter::new(&Config::default().constants(), 0, leads)
    }

    fn push(cutter: &mut AudioCutter, from: i64, count: i64) {
        for index in from..from + count {
            cutter.push(SoundFrame {
                start: index * FRAME_SAMPLES,
                samples: FRAME_SAMPLES,
                data: Bytes::new(),
            });
        }
    }

    fn drain(cutter: &mut AudioCutter) -> Vec<AudioPart> {
        std::iter::from_fn(|| cutter.poll()).collect()
    }

    #[test]
    fn audio_alone_has_four_parts_in_two_seconds() {
        let mut cutter = cutter(true);
        push(&mut cutter, 0, 1_000);
        let parts = drain(&mut cutter);
        let lengths: Vec<_> = parts.iter().map(|part| part.frames.len()).collect();
        assert!(lengths.iter().all(|length| (23..=24).contains(length)), "{lengths:?}");
        let lasts: Vec<_> = parts.iter().map(|part| part.is_last).take(8).collect();
        assert_eq!(lasts, [false, false, false, true, false, false, false, true]);
    }

    #[test]
    fn audio_waits_for_the_boundary_of_the_video() {
        let mut cutter = cutter(false);
        push(&mut cutter, 0, 40);
        assert!(cutter.poll().is_none());
        cutter.push_boundary(24_000, false);
        assert_eq!(drain(&mut cutter)[0].frames.len(), 23);
    }

    #[test]
    fn audio_goes_on_when_the_video_stalls() {
        let mut cutter = cutter(false);
        push(&mut cutter, 0, 200);
        let parts = drain(&mut cutter);
        assert!(parts.len() > 4);
        assert!(parts.iter().all(|part| part.frames.len() == 24 && !part.is_last));
        // The video comes back and ends its segment earlier than the audio went.
        cutter.push_boundary(48_000, true);
        let last = drain(&mut cutter);
        assert!(last[0].is_last && last[0].frames.len() == 1);
    }

    #[test]
    fn opus_packets_of_a_usual_length_make_parts_of_a_legal_length() {
        for length in [480, 960, 1_920, 2_880] {
            let mut cutter = cutter(false);
            let (mut next, mut lasts) = (0, 0);
            for part in 1..=16i64 {
                cutter.push_boundary(part * 24_000, part % 4 == 0);
                while next < part * 24_000 + 4 * length {
                    cutter.push(SoundFrame { start: next, samples: length, data: Bytes::new() });
                    next += length;
                }
                for part in drain(&mut cutter) {
                    let samples: i64 = part.frames.iter().map(|frame| frame.samples).sum();
                    assert!(samples <= 24_576 && (part.is_last || samples * 100 >= 24_576 * 85), "{samples}");
                    lasts += i64::from(part.is_last);
                }
            }
            assert_eq!(lasts, 4, "packets of {length} samples");
        }
    }

    proptest! {
        #[test]
        fn parts_keep_the_rules_for_any_boundaries(steps in vec((1_000i64..24_576, 0u8..5, 0i64..60), 1..100)) {
            let mut cutter = cutter(false);
            let (mut at, mut pushed, mut next) = (0, 0, 0);
            let mut is_open = false;
            for (length, kind, frames) in steps {
                at += length;
                cutter.push_boundary(at, kind == 0);
                push(&mut cutter, pushed, frames);
                pushed += frames;
                for part in drain(&mut cutter) {
                    let count = part.frames.len();
                    prop_assert!((1..=24).contains(&count));
                    prop_assert!(part.is_last || count >= 21);
                    for frame in &part.frames {
                        prop_assert_eq!(frame.start, next);
                        next += FRAME_SAMPLES;
                    }
                    is_open = !part.is_last;
                }
            }
            // What was promised to follow does follow.
            let rest = cutter.finish();
            prop_assert!(!is_open || !rest.is_empty() || pushed * FRAME_SAMPLES == next);
        }
    }
}
