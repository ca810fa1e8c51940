//! One clock for all tracks of a publisher: from RTP timestamps to the stream's timeline.
//!
//! A track starts on arrival time, so that nothing ever waits for a sender report: its timestamps are shifted
//! by an *offset* such that the packets that travelled fastest have the time of their arrival. Reports then give
//! the relation between the publisher's tracks: an offset's target becomes *sender offset* (timestamp to the
//! publisher's wall clock, from the report) + *delay* (the publisher's wall clock to ours, common to all
//! tracks, the minimum of what recent packets show). Offsets move towards their targets by at most 5 %, so
//! drifting clocks never accumulate and nobody sees or hears the correction. Only when an offset is wrong by
//! more than [`RESYNC_US`] it is set at once, and the segmenter told.

use std::collections::{BTreeMap, VecDeque};

use super::sequence::TimestampUnwrapper;

/// An error that slewing would take more than 10 s to correct.
pub const RESYNC_US: i64 = 500_000;
/// 1 ms in 20 ms of media: not noticed in pictures, and half a semitone nowhere, since audio is resampled by
/// far less than that over the times in question.
const SLEW_DIVISOR: i64 = 20;
/// The fastest packets of this long decide. Longer than a publisher's wi-fi is busy, short enough to follow
/// a drift of 200 ppm with an error of 2 ms.
const WINDOW_US: i64 = 10_000_000;
/// The window is kept as the minima of so many slices.
const SLICE_US: i64 = 1_000_000;

/// The minimum of the samples of the last [`WINDOW_US`].
#[derive(Debug, Default)]
struct Minimum {
    /// Start of the slice and its minimum, oldest first.
    slices: VecDeque<(i64, i64)>,
}

impl Minimum {
    fn add(&mut self, now_us: i64, sample: i64) {
        match self.slices.back_mut() {
            Some((start, minimum)) if now_us < *start + SLICE_US => *minimum = sample.min(*minimum),
            _ => self.slices.push_back((now_us, sample)),
        }
        while self.slices.front().is_some_and(|(start, _)| *start < now_us - WINDOW_US) {
            self.slices.pop_front();
        }
    }

    fn get(&self) -> Option<i64> {
        self.slices.iter().map(|(_, minimum)| *minimum).min()
    }

    fn clear(&mut self) {
        self.slices.clear();
    }

    /// Moves everything, after a step of the clock that the samples were taken against.
    fn shift(&mut self, by: i64) {
        self.slices.iter_mut().for_each(|(_, minimum)| *minimum += by);
    }

    /// Whether the samples cover the window.
    fn is_full(&self) -> bool {
        self.slices.len() as i64 >= WINDOW_US / SLICE_US
    }
}

#[derive(Debug)]
struct TrackClock {
    rate: i64,
    timestamps: TimestampUnwrapper,
    /// Stream time − media time; `None` before the first frame.
    offset: Option<i64>,
    /// Arrival − media time.
    own: Minimum,
    /// Publisher's wall clock − media time, and in which epoch of that clock.
    sender: Option<(u64, i64)>,
    /// Media time of the last frame.
    last_media: i64,
    last_pts: i64,
}

impl TrackClock {
    fn media_us(&self, extended: i64) -> i64 {
        // The product of a 32-bit timestamp's extension and 10^6 fits for 3,000 years.
        (i128::from(extended) * 1_000_000 / i128::from(self.rate)) as i64
    }
}

/// A frame's place on the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// In microseconds of the stream's timeline; never goes backwards within a track.
    pub pts_us: i64,
    /// Whether times before this don't lead up to it.
    pub is_discontinuous: bool,
}

/// See the module. Tracks are named by SSRC.
#[derive(Debug, Default)]
pub struct Clock {
    tracks: BTreeMap<u32, TrackClock>,
    /// Arrival − publisher's wall clock.
    delay: Minimum,
    /// The delay in use before it has samples: what keeps the first track with a report where it is.
    delay_guess: i64,
    /// Counts steps of the publisher's wall clock.
    epoch: u64,
}

impl Clock {
    /// Adds a track; `rate` is its timestamps' in Hz.
    pub fn add(&mut self, ssrc: u32, rate: u32) {
        self.tracks.entry(ssrc).or_insert(TrackClock {
            rate: i64::from(rate.max(1)),
            timestamps: TimestampUnwrapper::default(),
            offset: None,
            own: Minimum::default(),
            sender: None,
            last_media: 0,
            last_pts: i64::MIN,
        });
    }

    /// Removes a track.
    pub fn remove(&mut self, ssrc: u32) {
        self.tracks.remove(&ssrc);
    }

    /// Takes a sender report: at `ntp_us` of the publisher's wall clock, its timestamps said `timestamp`.
    pub fn report(&mut self, ssrc: u32, ntp_us: i64, timestamp: u32) {
        let (epoch, delay, has_delay) = (self.epoch, self.delay(), self.delay.get().is_some());
        let is_first = self.tracks.values().all(|track| track.sender.is_none());
        let Some(track) = self.tracks.get_mut(&ssrc) else { return };
        // Before any frame there is nothing that the timestamp could be near to.
        let Some(offset) = track.offset else { return };
        let sender = ntp_us - track.media_us(track.timestamps.near(timestamp));
        if is_first && !has_delay {
            self.delay_guess = offset - sender;
        } else if let Some((known_epoch, known)) = track.sender {
            let step = sender - known;
            if known_epoch == epoch && step.abs() > RESYNC_US {
                // The publisher's wall clock was set, or its timestamps jumped. If the frames still arrive when
                // they should, it was the clock: take the step out of the delay, and wait for the other tracks'
                // reports.
                let expected = sender + delay;
                let is_clock = track.own.get().is_some_and(|own| (own - expected).abs() > RESYNC_US / 2);
                if is_clock {
                    self.epoch += 1;
                    self.delay.shift(-step);
                    self.delay_guess -= step;
                }
            }
        }
        track.sender = Some((self.epoch, sender));
    }

    /// The time of a frame that arrived at `arrival_us` of the timeline.
    pub fn stamp(&mut self, ssrc: u32, timestamp: u32, arrival_us: i64) -> Option<Stamp> {
        let (epoch, delay) = (self.epoch, self.delay());
        let track = self.tracks.get_mut(&ssrc)?;
        let extended = track.timestamps.unwrap(timestamp);
        let media = track.media_us(extended);
        let sample = arrival_us - media;
        let Some(offset) = track.offset else {
            track.offset = Some(sample);
            track.own.add(arrival_us, sample);
            track.last_media = media;
            track.last_pts = arrival_us;
            return Some(Stamp { pts_us: arrival_us, is_discontinuous: false });
        };
        // A frame can't arrive before it was taken: its timestamps jumped forward. The other direction is lateness
        // unless it lasts, or a whole jump back.
        let is_early = offset - sample > RESYNC_US;
        let is_jump_back = track.last_media - media > RESYNC_US;
        track.own.add(arrival_us, sample);
        let own = track.own.get().unwrap_or(sample);
        let is_late_for_long = track.own.is_full() && own - offset > RESYNC_US;
        if is_early || is_jump_back || is_late_for_long {
            track.own.clear();
            track.own.add(arrival_us, sample);
            track.sender = None;
            return Some(self.resync(ssrc, media, sample));
        }
        let target = match track.sender {
            Some((known, sender)) if known == epoch => {
                self.delay.add(arrival_us, sample - sender);
                sender + self.delay.get().unwrap_or(delay)
            }
            _ => own,
        };
        let step = ((media - track.last_media).abs() / SLEW_DIVISOR).max(1);
        let error = target - offset;
        if error.abs() > RESYNC_US {
            return Some(self.resync(ssrc, media, target));
        }
        let offset = offset + error.clamp(-step, step);
        track.offset = Some(offset);
        track.last_media = media;
        let pts_us = (media + offset).max(track.last_pts.saturating_add(1));
        track.last_pts = pts_us;
        Some(Stamp { pts_us, is_discontinuous: false })
    }

    /// The timeline never goes back, not even at a discontinuity.
    fn resync(&mut self, ssrc: u32, media: i64, offset: i64) -> Stamp {
        let latest = self.tracks.values().map(|track| track.last_pts).max().unwrap_or(i64::MIN);
        let track = self.tracks.get_mut(&ssrc).expect("the caller found it");
        let pts_us = (media + offset).max(latest.saturating_add(1));
        track.offset = Some(pts_us - media);
        track.last_media = media;
        track.last_pts = pts_us;
        Stamp { pts_us, is_discontinuous: true }
    }

    fn delay(&self) -> i64 {
        self.delay.get().unwrap_or(self.delay_guess)
    }
}
