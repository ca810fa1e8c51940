//! One rung in a thread of its own: scales and encodes pictures, and publishes them as the source was cut.
//!
//! The only writer of its rendition's window. A picture that is missing (left out because the encoder is behind, or not
//! to be decoded) makes the one before it last longer; a part without any is a gap. So segments, parts, numbers and times
//! are the source's, whatever happens here.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use ffmpeg_next::frame;
use tracing::{info, warn};

use super::config::Rung;
use super::encoder::{Encoded, Encoder, LadderPictureError, Look, Scaler};
use super::status::Shared;
use super::{Cut, CutOfPart, plan};
use crate::live::{Live, NewPart, Rendition};
use crate::mux::{MuxError, Muxer};
use crate::session::{SessionError, sample_entry, video_ticks};
use crate::window::Window;

/// So many segments in a row with too many pictures missing show that the machine can't keep up.
const BAD_SEGMENTS_MAX: usize = 3;
/// In words, for the operator.
const TOO_SLOW: &str = "the machine could not keep up with encoding it";

/// What a rung is told, in order.
pub(super) enum RungInput {
    Picture(RungPicture),
    Cut(Arc<Cut>),
}

/// A decoded picture of the source.
pub(super) struct RungPicture {
    pub(super) id: u64,
    pub(super) at_us: i64,
    /// Whether a segment begins with it or with one before it that is missing.
    pub(super) begins_segment: bool,
    pub(super) picture: Arc<frame::Video>,
}

/// Why a rung can't go on.
#[derive(Debug, thiserror::Error)]
enum RungError {
    #[error(transparent)]
    Picture(#[from] LadderPictureError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Mux(#[from] MuxError),
}

/// What makes media of pictures, for as long as they look alike.
struct Coding {
    encoder: Encoder,
    scaler: Scaler,
    muxer: Muxer,
}

/// See the module.
pub(super) struct RungWork {
    pub(super) live: Arc<Live>,
    pub(super) rendition: Arc<Rendition>,
    pub(super) shared: Arc<Shared>,
    /// Its place among the lanes.
    pub(super) lane: usize,
    pub(super) rung: Rung,
    coding: Option<Coding>,
    /// Pictures that are in no part yet.
    encoded: VecDeque<(u64, Encoded)>,
    judge: Judge,
}

impl RungWork {
    pub(super) fn new(
        live: Arc<Live>,
        rendition: Arc<Rendition>,
        shared: Arc<Shared>,
        lane: usize,
        rung: Rung,
    ) -> Self {
        let (coding, encoded, judge) = (None, VecDeque::new(), Judge::default());
        Self { live, rendition, shared, lane, rung, coding, encoded, judge }
    }

    /// Works until nothing more comes; the first pictures are for `encoder`.
    pub(super) fn run(mut self, encoder: Encoder, inbox: &mpsc::Receiver<RungInput>) {
        let shared = self.shared.clone();
        let Some(lane) = shared.lanes.get(self.lane) else { return };
        let opened = coding(encoder).map(|(coding, ..)| self.coding = Some(coding));
        self.survive(opened);
        while let Ok(input) = inbox.recv() {
            if lane.is_ended() {
                self.give_up();
            }
            match input {
                RungInput::Picture(picture) => {
                    lane.pictures.fetch_sub(1, Ordering::AcqRel);
                    if !lane.is_ended() {
                        let done = self.picture(&picture);
                        self.survive(done);
                    }
                }
                RungInput::Cut(cut) => {
                    let is_open = lane.is_open.lock();
                    if *is_open {
                        let done = self.cut(&cut);
                        self.survive(done);
                    }
                }
            }
            lane.inputs.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The multivariant playlist goes on naming the rendition, because the numbers of all others follow from its place. What
    /// was not measured of it is what was meant.
    fn give_up(&mut self) {
        if self.coding.take().is_none() && self.rendition.is_given_up() {
            return;
        }
        self.encoded.clear();
        self.rendition.describe(|description| {
            if !description.is_measured() {
                let limit = plan::bits_per_second(self.rung, description.resolution.unwrap_or_default());
                description.peak_bps = description.peak_bps.max(limit.into());
                description.frame_rate_milli = description.frame_rate_milli.max(30_000);
            }
        });
        self.rendition.give_up();
    }

    fn survive(&mut self, result: Result<(), RungError>) {
        if let Err(cause) = result {
            warn!(rendition = self.rendition.name, %cause, "a rung of the ladder fails");
            self.shared.end(self.lane, &cause.to_string());
        }
    }

    fn picture(&mut self, picture: &RungPicture) -> Result<(), RungError> {
        let shown = &picture.picture;
        let coding = match &mut self.coding {
            Some(coding) => coding,
            // Another initialization section is possible between segments only.
            None if !picture.begins_segment => return Ok(()),
            slot => {
                let look = Look::of(shown);
                let size = plan::fit((look.width, look.height), self.rung.height);
                let rate = plan::bits_per_second(self.rung, size);
                let (coding, init, new) = coding(Encoder::open(look, size, rate, picture.at_us)?)?;
                info!(rendition = self.rendition.name, width = size.0, height = size.1, "encoding anew");
                self.rendition.describe(|description| {
                    description.codecs = new.codecs;
                    description.resolution = new.resolution;
                });
                self.live.change(&self.rendition, |window| window.set_init(init));
                slot.insert(coding)
            }
        };
        let begun = Instant::now();
        let scaled = coding.scaler.scale(shown)?;
        let encoded = coding.encoder.encode(scaled, picture.at_us, picture.begins_segment)?;
        metrics::histogram!("segmenter_ladder_ms").record(begun.elapsed().as_secs_f64() * 1000.0);
        self.encoded.push_back((picture.id, encoded));
        Ok(())
    }

    fn cut(&mut self, cut: &Cut) -> Result<(), RungError> {
        match cut {
            Cut::Part(part) => self.part(part)?,
            Cut::Gap { start_ms, duration_us, is_last } => {
                self.live.publish_gap(&self.rendition, *start_ms, *duration_us, *is_last);
            }
            Cut::EndSegment => self.live.end_segment(&self.rendition),
            Cut::Align { msn, start_ms, gap_us } => {
                self.live.end_segment(&self.rendition);
                let behind = msn.saturating_sub(self.rendition.with_window(Window::progress).msn);
                for index in 0..behind {
                    let at_ms = start_ms + index.cast_signed() * gap_us / 1000;
                    self.live.publish_gap(&self.rendition, at_ms, *gap_us, true);
                }
            }
            Cut::Restart { .. } => {
                self.coding = None;
                self.encoded.clear();
                self.live.change(&self.rendition, Window::mark_discontinuity);
            }
        }
        Ok(())
    }

    fn part(&mut self, part: &CutOfPart) -> Result<(), RungError> {
        while self.encoded.pop_front_if(|(id, _)| *id < part.first_id).is_some() {}
        let mut pictures = Vec::new();
        while let Some((id, encoded)) = self.encoded.pop_front_if(|(id, _)| *id < part.end_id()) {
            let index = usize::try_from(id - part.first_id).unwrap_or(usize::MAX);
            // The first one stands for those that are missing before it.
            let start_us =
                if pictures.is_empty() { part.starts_us.first() } else { part.starts_us.get(index) };
            pictures.push((start_us.copied().unwrap_or(part.end_us), encoded));
        }
        self.judge.part(part.starts_us.len(), pictures.len());
        let start_us = part.starts_us.first().copied().unwrap_or(part.end_us);
        match &mut self.coding {
            Some(coding) if !pictures.is_empty() => {
                let ends = pictures.iter().skip(1).map(|(start_us, _)| *start_us).chain([part.end_us]);
                for ((start_us, encoded), end_us) in pictures.iter().zip(ends.collect::<Vec<_>>()) {
                    let start = video_ticks(*start_us);
                    let duration = video_ticks(end_us) - start;
                    coding.muxer.write(start, duration, encoded.is_keyframe, &encoded.data)?;
                }
                let bytes = coding.muxer.flush()?;
                self.rendition.describe(|description| description.frame_rate_milli = part.frame_rate_milli);
                let new = NewPart {
                    bytes,
                    start_ms: part.start_ms,
                    duration_us: part.end_us - start_us,
                    is_independent: pictures.first().is_some_and(|(_, encoded)| encoded.is_keyframe),
                    has_keyframe: pictures.iter().any(|(_, encoded)| encoded.is_keyframe),
                    is_last: part.is_last,
                };
                self.live.publish(&self.rendition, new);
            }
            _ => {
                let duration_us = part.end_us - start_us;
                self.live.publish_gap(&self.rendition, part.start_ms, duration_us, part.is_last);
            }
        }
        if part.is_last && self.judge.is_segment_bad() {
            self.note_bad_segment();
        } else if part.is_last
            && let Some(lane) = self.shared.lanes.get(self.lane)
        {
            lane.bad_segments.store(0, Ordering::Release);
        }
        Ok(())
    }

    fn note_bad_segment(&self) {
        let Some(lane) = self.shared.lanes.get(self.lane).filter(|lane| !lane.is_ended()) else { return };
        if lane.bad_segments.fetch_add(1, Ordering::AcqRel) + 1 >= BAD_SEGMENTS_MAX {
            self.shared.end_largest(TOO_SLOW);
        }
    }
}

/// Counts what is missing.
#[derive(Debug, Default)]
struct Judge {
    expected: usize,
    came: usize,
}

impl Judge {
    fn part(&mut self, expected: usize, came: usize) {
        self.expected += expected;
        self.came += came;
    }

    /// Whether more than a quarter of the segment's pictures is missing: what remains is no more a moving picture. The
    /// next segment begins.
    fn is_segment_bad(&mut self) -> bool {
        let Self { expected, came } = std::mem::take(self);
        came * 4 < expected * 3
    }
}

/// What is needed for pictures of this encoder, with its initialization section and what there is to be said of it.
fn coding(encoder: Encoder) -> Result<(Coding, bytes::Bytes, crate::live::Description), RungError> {
    let (entry, description) = sample_entry(crate::frame::TrackId(0), encoder.format())?;
    let (muxer, init) = Muxer::open(&entry)?;
    let size = description.resolution.unwrap_or_default();
    Ok((Coding { encoder, scaler: Scaler::new(size), muxer }, init, description))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_is_bad_when_more_than_a_quarter_is_missing() {
        let mut judge = Judge::default();
        judge.part(15, 15);
        judge.part(45, 30);
        assert!(!judge.is_segment_bad(), "a quarter");
        judge.part(60, 44);
        assert!(judge.is_segment_bad());
        assert!(!judge.is_segment_bad(), "what was counted is forgotten");
    }
}
