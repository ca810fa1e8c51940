//! The ladder's first thread: decodes the source rendition once, and hands each picture to the rungs that have room.
//!
//! Pictures and cuts stay in order. A decoder may hold pictures back (most do not): the cuts behind them then wait
//! for them, but not for pictures that will never come.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use ffmpeg_next::frame;
use tracing::debug;

use super::encoder::{SourceDecoder, is_whole};
use super::rung::{RungInput, RungPicture};
use super::status::Shared;
use super::{Cut, Message, SourceFrame};
use crate::frame::TrackFormat;

/// Pictures that may wait for an encoder: a fifth of a second at 30 per second. Beyond, those that no part begins with
/// are left out, and beyond twice as many all.
const PICTURES_WAITING_MAX: usize = 6;
/// A picture that is not there when so many later frames were decoded does not come.
const FRAMES_HELD_MAX: u64 = 4;

/// See the module.
pub(super) struct Decoding {
    shared: Arc<Shared>,
    /// In the order of the lanes.
    rungs: Vec<mpsc::Sender<RungInput>>,
    decoder: Option<SourceDecoder>,
    /// Frames build on one that was lost.
    needs_keyframe: bool,
    /// Frames whose pictures have not come, oldest first.
    expected: VecDeque<SourceFrame>,
    /// One more than the last frame that is shown, and than the last that was heard of.
    shown: u64,
    known: u64,
    /// Cuts that wait for pictures.
    held: VecDeque<Arc<Cut>>,
    /// For each lane, whether a picture that begins a segment was left out: the next one stands for it.
    owed: Vec<bool>,
}

impl Decoding {
    pub(super) fn new(
        shared: Arc<Shared>,
        rungs: Vec<mpsc::Sender<RungInput>>,
        format: &TrackFormat,
    ) -> Self {
        let owed = vec![false; rungs.len()];
        let mut decoding = Self {
            shared,
            rungs,
            decoder: None,
            needs_keyframe: true,
            expected: VecDeque::new(),
            shown: 0,
            known: 0,
            held: VecDeque::new(),
            owed,
        };
        decoding.open(format);
        decoding
    }

    pub(super) fn run(mut self, inbox: &mpsc::Receiver<Message>) {
        while let Ok(message) = inbox.recv() {
            match message {
                Message::Frame(frame) => {
                    self.frame(frame);
                    self.shared.frames.fetch_sub(1, Ordering::AcqRel);
                }
                Message::Cut(cut) => self.cut(Arc::new(cut)),
            }
            self.shared.inputs.fetch_sub(1, Ordering::AcqRel);
        }
        self.drain();
        self.release(true);
    }

    fn open(&mut self, format: &TrackFormat) {
        self.needs_keyframe = true;
        self.expected.clear();
        self.decoder = match SourceDecoder::open(format) {
            Ok(decoder) => Some(decoder),
            Err(cause) => {
                self.end_all(&cause.to_string());
                None
            }
        };
    }

    fn end_all(&self, reason: &str) {
        (0..self.rungs.len()).for_each(|index| self.shared.end(index, reason));
    }

    fn frame(&mut self, mut frame: SourceFrame) {
        self.known = self.known.max(frame.id + 1);
        if self.shared.are_all_ended() {
            self.decoder = None;
        }
        let Some(decoder) = &mut self.decoder else { return };
        let data = std::mem::take(&mut frame.data);
        let is_keyframe = frame.is_keyframe;
        let id = frame.id;
        self.expected.push_back(frame);
        if self.needs_keyframe && !is_keyframe {
            return;
        }
        self.needs_keyframe = false;
        if let Err(cause) = decoder.send(i64::try_from(id).unwrap_or(i64::MAX), is_keyframe, &data) {
            debug!(%cause, "decoding for the ladder");
            self.needs_keyframe = true;
        }
        self.take_pictures();
        self.release(false);
    }

    fn take_pictures(&mut self) {
        while let Some(picture) = self.decoder.as_mut().and_then(SourceDecoder::receive) {
            self.picture(picture);
        }
    }

    fn picture(&mut self, picture: frame::Video) {
        let id = picture.pts().and_then(|pts| u64::try_from(pts).ok()).unwrap_or(0);
        let mut begins_segment = false;
        let mut of = None;
        while let Some(frame) = self.expected.pop_front_if(|frame| frame.id <= id) {
            begins_segment |= frame.begins_segment;
            of = (frame.id == id).then_some(frame);
        }
        let Some(mut of) = of else { return };
        of.begins_segment = begins_segment;
        self.shown = self.shown.max(id + 1);
        if is_whole(&picture) {
            self.hand_out(&of, &Arc::new(picture));
        } else {
            metrics::counter!("segmenter_ladder_broken_total").increment(1);
            self.owed.iter_mut().for_each(|owed| *owed |= begins_segment);
        }
    }

    fn hand_out(&mut self, of: &SourceFrame, picture: &Arc<frame::Video>) {
        for ((lane, rung), owed) in self.shared.lanes.iter().zip(&self.rungs).zip(&mut self.owed) {
            if lane.is_ended() {
                continue;
            }
            let begins_segment = of.begins_segment || *owed;
            let room = PICTURES_WAITING_MAX * if of.begins_part { 2 } else { 1 };
            if lane.pictures.load(Ordering::Acquire) >= room {
                *owed = begins_segment;
                metrics::counter!("segmenter_ladder_left_out_total").increment(1);
                continue;
            }
            *owed = false;
            lane.pictures.fetch_add(1, Ordering::AcqRel);
            lane.inputs.fetch_add(1, Ordering::AcqRel);
            let (id, at_us, picture) = (of.id, of.at_us, picture.clone());
            // Refused only by a thread that has panicked: what it had counted stays counted, and no more is sent.
            let _ = rung.send(RungInput::Picture(RungPicture { id, at_us, begins_segment, picture }));
        }
    }

    fn cut(&mut self, cut: Arc<Cut>) {
        match &*cut {
            Cut::Part(part) => self.known = self.known.max(part.end_id()),
            // The media stops here.
            Cut::Align { .. } | Cut::Restart { .. } => {
                self.drain();
                self.release(true);
            }
            Cut::Gap { .. } | Cut::EndSegment => self.release(true),
        }
        if let Cut::Restart { format } = &*cut
            && !self.shared.are_all_ended()
        {
            self.open(format);
        }
        self.held.push_back(cut);
        self.release(false);
    }

    /// Lets pictures come out that the decoder holds back; nothing comes after them.
    fn drain(&mut self) {
        if let Some(decoder) = &mut self.decoder {
            decoder.drain();
        }
        self.take_pictures();
    }

    /// Passes on the cuts whose pictures are there or will not come; or all.
    fn release(&mut self, all: bool) {
        let is_blind = self.decoder.is_none();
        let (shown, known) = (self.shown, self.known);
        let can_go = |cut: &mut Arc<Cut>| match &**cut {
            Cut::Part(part) => {
                let end = part.end_id();
                all || is_blind || shown >= end || known >= end + FRAMES_HELD_MAX
            }
            _ => true,
        };
        while let Some(cut) = self.held.pop_front_if(can_go) {
            for (lane, rung) in self.shared.lanes.iter().zip(&self.rungs) {
                lane.inputs.fetch_add(1, Ordering::AcqRel);
                let _ = rung.send(RungInput::Cut(cut.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::CutOfPart;
    use super::super::encoder::tests::h264;
    use super::super::status::Lane;
    use super::*;
    use crate::transcode::Slots;

    /// A decoder for one rung that takes nothing, and 60 frames with parts of 15 and segments of 30.
    fn decoding() -> (Decoding, mpsc::Receiver<RungInput>, Vec<SourceFrame>) {
        let (format, pictures) = h264(64, 36, 60);
        let reservation = Slots::new(1).take(100).unwrap();
        let shared = Arc::new(Shared::new(Vec::new(), vec![Lane::new(36, reservation)], None));
        let (sender, rung) = mpsc::channel();
        let decoding = Decoding::new(shared, vec![sender], &format);
        let frame = |(id, encoded): (u64, (bool, Bytes))| SourceFrame {
            id,
            at_us: id.cast_signed() * 33_333,
            is_keyframe: encoded.0,
            begins_part: id % 15 == 0,
            begins_segment: id % 30 == 0,
            data: encoded.1,
        };
        (decoding, rung, (0..).zip(pictures).map(frame).collect())
    }

    fn part(first_id: u64, frames: usize) -> Arc<Cut> {
        let part = CutOfPart::new(vec![0; frames], 0, 0, false, 30_000);
        Arc::new(Cut::Part(CutOfPart { first_id, ..part }))
    }

    fn pictures(rung: &mpsc::Receiver<RungInput>) -> Vec<(u64, bool)> {
        let picture = |input| match input {
            RungInput::Picture(picture) => Some((picture.id, picture.begins_segment)),
            RungInput::Cut(_) => None,
        };
        rung.try_iter().filter_map(picture).collect()
    }

    fn cuts(rung: &mpsc::Receiver<RungInput>) -> usize {
        rung.try_iter().filter(|input| matches!(input, RungInput::Cut(_))).count()
    }

    #[test]
    fn busy_encoder_is_spared_pictures_that_no_part_begins_with() {
        let (mut decoding, rung, frames) = decoding();
        frames.into_iter().for_each(|frame| decoding.frame(frame));
        let expected = [0, 1, 2, 3, 4, 5, 15, 30, 45].map(|id| (id, id % 30 == 0));
        assert_eq!(pictures(&rung), expected);
    }

    #[test]
    fn picture_after_one_that_was_to_begin_a_segment_begins_it() {
        let (mut decoding, rung, frames) = decoding();
        let shared = decoding.shared.clone();
        for frame in frames {
            // No room at all around the second segment's start.
            let waiting = if (25..33).contains(&frame.id) { 2 * PICTURES_WAITING_MAX } else { 0 };
            shared.lanes[0].pictures.store(waiting, Ordering::Release);
            decoding.frame(frame);
        }
        let shown = pictures(&rung);
        assert_eq!(shown.iter().filter(|(_, begins)| *begins).collect::<Vec<_>>(), [&(0, true), &(33, true)]);
        assert_eq!(shown.len(), 60 - 8);
    }

    #[test]
    fn cut_follows_its_last_picture_at_once_and_does_not_wait_for_broken_ones() {
        let (mut decoding, rung, mut frames) = decoding();
        // The next segment begins with a keyframe, as it should.
        let again = h264(64, 36, 30).1;
        frames.iter_mut().skip(30).zip(again).for_each(|(frame, (is_keyframe, data))| {
            (frame.is_keyframe, frame.data) = (is_keyframe, data);
        });
        let mut came = Vec::new();
        for mut frame in frames {
            let id = frame.id;
            if (15..30).contains(&id) {
                frame.data = Bytes::from_static(b"no NAL unit");
            }
            decoding.frame(frame);
            if id % 15 == 14 {
                decoding.cut(part(id - 14, 15));
            }
            came.extend((0..cuts(&rung)).map(|_| id));
        }
        // The next picture shows that what was broken will not come.
        assert_eq!(came, [14, 30, 44, 59]);
    }
}
