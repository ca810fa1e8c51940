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
        self.add_after(ssrc, rate, None);
    }

    /// Adds a track that continues another, whose last frame had this time.
    pub fn add_after(&mut self, ssrc: u32, rate: u32, last_us: Option<i64>) {
        self.tracks.entry(ssrc).or_insert(TrackClock {
            rate: i64::from(rate.max(1)),
            timestamps: TimestampUnwrapper::default(),
            offset: None,
            own: Minimum::default(),
            sender: None,
            last_media: 0,
            last_pts: last_us.unwrap_or(i64::MIN),
        });
    }

    /// Removes a track; gives the time of its last frame.
    pub fn remove(&mut self, ssrc: u32) -> Option<i64> {
        self.tracks.remove(&ssrc).map(|track| track.last_pts)
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
            // What it continues may have been ahead of its arrivals.
            let pts_us = arrival_us.max(track.last_pts.saturating_add(1));
            track.offset = Some(pts_us - media);
            track.own.add(arrival_us, sample);
            track.last_media = media;
            track.last_pts = pts_us;
            return Some(Stamp { pts_us, is_discontinuous: false });
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

#[cfg(test)]
mod tests {
    use super::*;

    const AUDIO: u32 = 1;
    const VIDEO: u32 = 2;

    /// A publisher with one crystal for each of sound, pictures and its wall clock, behind a network with jitter.
    struct Source {
        clock: Clock,
        audio_ppm: i64,
        video_ppm: i64,
        wall_ppm: i64,
        has_reports: bool,
        /// Added to arrivals from some time on: the network's route changes.
        delay_us: i64,
        random: u64,
        /// True capture time and given time of the last frame of each track.
        last: [(i64, i64); 2],
        discontinuities: usize,
        /// The largest difference between what happened at the same time, after the first 10 s.
        skew_max_us: i64,
        steps: Vec<(i64, i64)>,
    }

    fn drifted(us: i64, ppm: i64) -> i64 {
        us + us * ppm / 1_000_000
    }

    impl Source {
        fn new() -> Self {
            let mut clock = Clock::default();
            clock.add(AUDIO, 48_000);
            clock.add(VIDEO, 90_000);
            Self {
                clock,
                audio_ppm: 0,
                video_ppm: 0,
                wall_ppm: 0,
                has_reports: true,
                delay_us: 30_000,
                random: 88_172_645_463_325_252,
                last: [(0, 0); 2],
                discontinuities: 0,
                skew_max_us: 0,
                steps: Vec::new(),
            }
        }

        fn jitter(&mut self) -> i64 {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            (self.random % 15_000) as i64
        }

        fn timestamp(&self, ssrc: u32, us: i64) -> u32 {
            let (ppm, rate) = if ssrc == AUDIO { (self.audio_ppm, 48) } else { (self.video_ppm, 90) };
            // Unrelated beginnings, close to the wrap.
            (drifted(us, ppm) * rate / 1000 + 4_294_000_000 + i64::from(ssrc) * 500_000) as u32
        }

        fn frame(&mut self, ssrc: u32, us: i64) {
            // Pictures are larger and take longer to encode: what is captured together doesn't arrive together.
            let encoding = if ssrc == VIDEO { 40_000 } else { 5_000 };
            let arrival = us + self.delay_us + encoding + self.jitter();
            let stamp = self.clock.stamp(ssrc, self.timestamp(ssrc, us), arrival).unwrap();
            let index = ssrc as usize - 1;
            let before = self.last[index];
            assert!(stamp.pts_us > before.1 || before.1 == 0, "time goes backwards");
            self.discontinuities += usize::from(stamp.is_discontinuous);
            if before.1 != 0 && !stamp.is_discontinuous {
                self.steps.push((us - before.0, stamp.pts_us - before.1));
            }
            self.last[index] = (us, stamp.pts_us);
            let skew = (self.last[0].1 - self.last[0].0) - (self.last[1].1 - self.last[1].0);
            if us > 10_000_000 {
                self.skew_max_us = self.skew_max_us.max(skew.abs());
            }
        }

        fn run(&mut self, from_s: i64, to_s: i64) {
            for ms in from_s * 1000..to_s * 1000 {
                let us = ms * 1000;
                if ms % 20 == 0 {
                    self.frame(AUDIO, us);
                }
                if ms % 33 == 0 {
                    self.frame(VIDEO, us);
                }
                if self.has_reports && ms % 1000 == 700 {
                    let wall = 3_900_000_000_000_000 + drifted(us, self.wall_ppm);
                    for ssrc in [AUDIO, VIDEO] {
                        self.clock.report(ssrc, wall, self.timestamp(ssrc, us));
                    }
                }
            }
        }

        /// How far the given times have moved from the receiver's own clock.
        fn lag_us(&self) -> i64 {
            self.last[0].1 - self.last[0].0
        }
    }

    #[test]
    fn sound_and_pictures_stay_together_for_half_an_hour_of_drift() {
        for (audio, video, wall) in
            [(0, 0, 0), (200, 200, 200), (-200, -200, -200), (200, -200, 0), (-200, 200, 100)]
        {
            let mut source = Source::new();
            (source.audio_ppm, source.video_ppm, source.wall_ppm) = (audio, video, wall);
            source.run(0, 1800);
            assert!(source.skew_max_us < 45_000, "{audio} {video} {wall}: {} us", source.skew_max_us);
            assert_eq!(source.discontinuities, 0);
            // 200 ppm over half an hour are 360 ms, which must not pile up.
            assert!((0..80_000).contains(&source.lag_us()), "{audio} {video} {wall}: {} us", source.lag_us());
        }
    }

    #[test]
    fn without_reports_drift_does_not_accumulate_either() {
        for ppm in [200, -200] {
            let mut source = Source::new();
            (source.audio_ppm, source.video_ppm, source.has_reports) = (ppm, ppm, false);
            source.run(0, 1800);
            assert_eq!(source.discontinuities, 0);
            assert!((0..80_000).contains(&source.lag_us()), "{ppm}: {} us", source.lag_us());
        }
    }

    #[test]
    fn nothing_waits_for_a_report_and_reports_bring_the_tracks_together_within_five_seconds() {
        let mut source = Source::new();
        source.has_reports = false;
        source.run(0, 1);
        assert!(source.last[0].1 > 0 && source.last[1].1 > 0, "frames before any report have times");
        let skew = |source: &Source| {
            ((source.last[0].1 - source.last[0].0) - (source.last[1].1 - source.last[1].0)).abs()
        };
        assert!(skew(&source) > 20_000, "arrival alone can't tell: {}", skew(&source));
        source.has_reports = true;
        source.run(1, 6);
        assert!(skew(&source) < 5_000, "{}", skew(&source));
    }

    #[test]
    fn corrections_are_slewed_by_at_most_a_twentieth() {
        let mut source = Source::new();
        source.run(0, 20);
        // A route that is 200 ms longer must not be heard.
        source.delay_us += 200_000;
        source.run(20, 60);
        assert_eq!(source.discontinuities, 0);
        for (true_step, given_step) in &source.steps {
            let error = (true_step - given_step).abs();
            assert!(error <= true_step / 20 + 100, "a step of {true_step} us became {given_step} us");
        }
        assert!((200_000..290_000).contains(&source.lag_us()), "{}", source.lag_us());
    }

    #[test]
    fn a_step_of_the_publishers_wall_clock_is_not_heard() {
        let mut source = Source::new();
        source.run(0, 20);
        let before = source.lag_us();
        // An hour forward, as at the end of summer time on a machine that was wrong.
        for step in [3_600_000_000, -7_200_000_000i64] {
            for ssrc in [AUDIO, VIDEO] {
                let at = 20_000_000;
                source.clock.report(ssrc, 3_900_000_000_000_000 + at + step, source.timestamp(ssrc, at));
            }
        }
        source.has_reports = false;
        source.run(20, 30);
        assert_eq!(source.discontinuities, 0);
        assert!((source.lag_us() - before).abs() < 20_000, "{before} {}", source.lag_us());
        assert!(source.skew_max_us < 45_000, "{}", source.skew_max_us);
    }

    #[test]
    fn timestamps_that_jump_cause_one_discontinuity_and_never_go_back() {
        for jump in [90_000 * 60, -90_000 * 60, 90_000 * 5000, -90_000i64 * 5000] {
            let mut clock = Clock::default();
            clock.add(VIDEO, 90_000);
            let (mut last, mut discontinuities) = (i64::MIN, 0);
            for frame in 0..900i64 {
                let shift = if frame >= 300 { jump } else { 0 };
                let timestamp = (frame * 3000 + shift + 1_000_000_000) as u32;
                let arrival = frame * 33_333;
                let stamp = clock.stamp(VIDEO, timestamp, arrival).unwrap();
                assert!(stamp.pts_us > last, "{jump}: frame {frame}");
                last = stamp.pts_us;
                discontinuities += usize::from(stamp.is_discontinuous);
                assert!(
                    (stamp.pts_us - arrival).abs() < 50_000,
                    "{jump}: frame {frame} at {}",
                    stamp.pts_us - arrival
                );
            }
            assert_eq!(discontinuities, 1, "{jump}");
        }
    }

    #[test]
    fn a_pause_is_no_discontinuity() {
        let mut source = Source::new();
        source.run(0, 10);
        source.run(70, 80);
        assert_eq!(source.discontinuities, 0);
        assert!(source.skew_max_us < 45_000, "{}", source.skew_max_us);
    }

    #[test]
    fn a_late_burst_after_a_stall_is_no_discontinuity() {
        let mut clock = Clock::default();
        clock.add(VIDEO, 90_000);
        for frame in 0..600i64 {
            // From 5 s to 7 s nothing gets through; then all of it comes at once.
            let captured = frame * 33_333;
            let arrival = if (5_000_000..7_000_000).contains(&captured) { 7_000_000 } else { captured };
            let stamp = clock.stamp(VIDEO, (frame * 3000) as u32, arrival).unwrap();
            assert!(!stamp.is_discontinuous);
            assert!((stamp.pts_us - captured).abs() < 5_000, "frame {frame}: {}", stamp.pts_us - captured);
        }
    }
}
