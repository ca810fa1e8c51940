//! The test pattern and the flash, generated, encoded and paced in real time on a thread of its own.
//!
//! Frames lie on whole multiples of the frame interval of the publisher's wall clock, so that flash and beep begin
//! at the same instant.

use crate::{
    encode::{
        audio::{AudioEncoder, PACKET_SAMPLES},
        video::VideoEncoder,
    },
    error::Error,
    feed::Fanout,
    frame::{Frame, Track},
    options::{Options, Size, Source},
    pattern::{
        Kind, Moment, Pattern,
        tone::{self, CHANNELS, SAMPLE_RATE},
    },
    timeline::{Timeline, unix_us},
};
use ffmpeg_next::{format::Pixel, frame};
use std::time::{Duration, Instant};

/// When the encoder is this far behind (a busy machine), frames are left out rather than sent late: the clock
/// in the picture stays honest.
const LATENESS_MAX_US: i64 = 150_000;

/// Starts the thread. It ends after [`Fanout::finish`].
pub(crate) fn start(options: &Options) -> Result<Fanout, Error> {
    let mut video = (!options.no_video).then(|| PictureSource::new(options)).transpose()?;
    let mut audio = (!options.no_audio).then(|| SoundSource::new(options)).transpose()?;
    let fanout = Fanout::new(options.drift_ppm, audio_rate(options));
    let handle = fanout.clone();
    std::thread::Builder::new()
        .name("publisher-live".into())
        .spawn(move || {
            let result = generate(&fanout, video.as_mut(), audio.as_mut());
            fanout.finish(result.err());
        })
        .map_err(|source| Error::Io { step: "start the encoder thread", source })?;
    Ok(handle)
}

/// Audio ticks per second of the timeline.
pub(crate) fn audio_rate(options: &Options) -> f64 {
    f64::from(SAMPLE_RATE) * (1.0 + options.audio_drift_ppm / 1e6)
}

fn generate(
    fanout: &Fanout,
    mut video: Option<&mut PictureSource>,
    mut audio: Option<&mut SoundSource>,
) -> Result<(), Error> {
    let Some(timeline) = fanout.wait_for_start() else { return Ok(()) };
    while !fanout.is_stopped() {
        let video_due = video.as_mut().map_or(i64::MAX, |video| video.next_position_us(&timeline));
        let audio_due = audio.as_ref().map_or(i64::MAX, |audio| audio.next_position_us());
        let due = video_due.min(audio_due);
        let now = Instant::now();
        let due_at = timeline.instant(due);
        if due_at > now {
            // Never long: a stop is noticed within 50 ms.
            std::thread::sleep((due_at - now).min(Duration::from_millis(50)));
            continue;
        }
        let is_late = timeline.position_us(now) - due > LATENESS_MAX_US;
        let made = if video_due <= audio_due {
            let Some(video) = &mut video else { continue };
            if fanout.take_keyframe_request() {
                video.encoder.request_keyframe();
            }
            if is_late {
                fanout.count_skipped();
                video.skip();
                continue;
            }
            video.make(&timeline, Some(unix_us() as u64 / 1000))?
        } else {
            let Some(audio) = &mut audio else { continue };
            audio.make(|us| timeline.unix_us(us))?
        };
        if let Some(frame) = made {
            fanout.send(&frame);
        }
    }
    Ok(())
}

/// Draws and encodes.
pub(crate) struct PictureSource {
    pattern: Pattern,
    picture: frame::Video,
    pub(crate) encoder: VideoEncoder,
    fps: i64,
    /// Counts frames of the publisher's wall clock since 1970; set by the first one.
    grid: Option<i64>,
    grid_start: i64,
}

impl PictureSource {
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let size = options.pattern_size();
        let fps = f64::from(options.fps);
        let kind = kind(options);
        let bits_per_pixel = options.bitrate.0 as f64 / fps / f64::from(size.width * size.height);
        let pattern = Pattern::new(kind, size, bits_per_pixel);
        Ok(Self {
            picture: blank_picture(&pattern, size),
            pattern,
            encoder: VideoEncoder::new(options, size, fps)?,
            fps: i64::from(options.fps),
            grid: None,
            grid_start: 0,
        })
    }

    pub(crate) fn next_position_us(&mut self, timeline: &Timeline) -> i64 {
        let start_us = timeline.unix_us(0);
        let grid = *self.grid.get_or_insert_with(|| {
            let first = ceil_div(i128::from(start_us) * i128::from(self.fps), 1_000_000);
            self.grid_start = first;
            first
        });
        self.grid_us(grid) - start_us
    }

    fn grid_us(&self, grid: i64) -> i64 {
        ceil_div(i128::from(grid) * 1_000_000, i128::from(self.fps))
    }

    pub(crate) fn skip(&mut self) {
        self.grid = self.grid.map(|grid| grid + 1);
    }

    pub(crate) fn make(
        &mut self,
        timeline: &Timeline,
        strip_unix_ms: Option<u64>,
    ) -> Result<Option<Frame>, Error> {
        let position_us = self.next_position_us(timeline);
        let number = self.grid.map_or(0, |grid| grid - self.grid_start);
        let moment = Moment { number: number as u64, unix_us: timeline.unix_us(position_us), strip_unix_ms };
        let stride = self.picture.stride(0);
        self.pattern.draw_luma(&moment, self.picture.data_mut(0), stride);
        let ticks = number * i64::from(Track::Video.clock_rate()) / self.fps;
        self.skip();
        self.encoder.encode(&mut self.picture, ticks, position_us)
    }
}

fn blank_picture(pattern: &Pattern, size: Size) -> frame::Video {
    let mut picture = frame::Video::new(Pixel::YUV420P, size.width, size.height);
    for plane in 1..3 {
        let stride = picture.stride(plane);
        pattern.draw_chroma(plane, picture.data_mut(plane), stride);
    }
    picture
}

/// Synthesizes and encodes.
pub(crate) struct SoundSource {
    kind: Kind,
    encoder: AudioEncoder,
    samples: Vec<f32>,
    next_tick: i64,
    rate: f64,
}

impl SoundSource {
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        Ok(Self {
            kind: kind(options),
            encoder: AudioEncoder::new(options)?,
            samples: vec![0.0; PACKET_SAMPLES * CHANNELS],
            next_tick: 0,
            rate: audio_rate(options),
        })
    }

    /// A packet is due when its last sample has sounded.
    pub(crate) fn next_position_us(&self) -> i64 {
        position_us(self.next_tick + PACKET_SAMPLES as i64, self.rate)
    }

    pub(crate) fn make(&mut self, unix_us: impl Fn(i64) -> i64) -> Result<Option<Frame>, Error> {
        let rate = self.rate;
        for (number, channels) in self.samples.chunks_exact_mut(CHANNELS).enumerate() {
            let us = (self.next_tick + number as i64) as f64 * 1e6 / rate;
            channels.fill(tone::sample(self.kind, unix_us(0) as f64 + us));
        }
        let ticks = self.next_tick;
        self.next_tick += PACKET_SAMPLES as i64;
        self.encoder.encode(&self.samples, ticks, |ticks| position_us(ticks, rate))
    }
}

fn position_us(ticks: i64, rate: f64) -> i64 {
    (ticks as f64 * 1e6 / rate).round() as i64
}

fn kind(options: &Options) -> Kind {
    if options.source == Source::Flash { Kind::Flash } else { Kind::Bars }
}

fn ceil_div(value: i128, by: i128) -> i64 {
    -(-value).div_euclid(by) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_lie_on_the_grid_of_the_wall_clock() {
        let mut options = Options::new(Source::Flash, "http://h/whip/a");
        options.size = Some(Size { width: 160, height: 90 });
        for fps in [30, 25, 60] {
            options.fps = fps;
            let mut pictures = PictureSource::new(&options).unwrap();
            let timeline = Timeline::start_now(0.0);
            let mut at_second = 0;
            for _ in 0..fps {
                let unix_us = timeline.unix_us(pictures.next_position_us(&timeline));
                at_second += i64::from(unix_us % 1_000_000 == 0);
                pictures.make(&timeline, None).unwrap();
            }
            assert_eq!(at_second, 1, "{fps} fps: one frame lies exactly on the second");
        }
    }

    #[test]
    fn drifting_sound_card_stretches_positions_not_ticks() {
        let mut options = Options::new(Source::Flash, "http://h/whip/a");
        options.audio_drift_ppm = 10_000.0;
        let mut sound = SoundSource::new(&options).unwrap();
        let frames: Vec<_> = (0..102).filter_map(|_| sound.make(|us| us).unwrap()).collect();
        let (first, last) = (&frames[0], &frames[100]);
        assert_eq!(last.ticks - first.ticks, 96_000);
        assert_eq!(last.position_us - first.position_us, 1_980_198);
    }
}
