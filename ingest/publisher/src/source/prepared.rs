//! A few seconds of the generated picture and sound, encoded beforehand and played to any number of sessions: load that
//! costs no encoding.
//!
//! Each session plays at its own place, and a keyframe request makes it jump to the next group of pictures: with
//! one shared encoder, each session's requests would disturb all others. The picture's machine-readable clock is
//! left out, as it would lie.

use super::live::{PictureSource, SoundSource, audio_rate};
use crate::{
    error::Error,
    feed::{Feed, KeyframeRequest},
    frame::{Frame, Track},
    options::Options,
    timeline::Timeline,
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::{sync::mpsc, time::sleep_until};

/// Long enough that a server's cutter sees several groups of pictures of different sizes. Whole seconds, so that the
/// beep comes each second over the seam too.
const LOOP_SECONDS: i64 = 4;
/// A session is told of frames as they come due; more than this waiting means that it does not keep up.
const QUEUE_MAX: usize = 80;

/// The material. Sessions share it.
#[derive(Debug)]
pub(crate) struct Prepared {
    video: Vec<Picture>,
    audio: Vec<Arc<[Bytes]>>,
    fps: i64,
    drift_ppm: f64,
    audio_rate: f64,
}

#[derive(Debug)]
struct Picture {
    is_keyframe: bool,
    payloads: Arc<[Bytes]>,
}

impl Prepared {
    /// Encodes the material. Blocks for about a second.
    pub(crate) fn new(options: &Options) -> Result<Self, Error> {
        let fps = i64::from(options.fps);
        // On a timeline of its own that begins with a whole second.
        let timeline = Timeline::at_unix_us(0);
        let mut video = Vec::new();
        if !options.no_video {
            let mut source = PictureSource::new(options)?;
            for _ in 0..LOOP_SECONDS * fps {
                if let Some(frame) = source.make(&timeline, None)? {
                    video.push(Picture { is_keyframe: frame.is_keyframe, payloads: frame.payloads });
                }
            }
        }
        let mut audio = Vec::new();
        if !options.no_audio {
            let packets = LOOP_SECONDS * 50;
            let mut source = SoundSource::new(options)?;
            while audio.len() < packets as usize + 1 {
                audio.extend(source.make(|us| us)?.map(|frame| frame.payloads));
            }
            // The first packet holds the encoder's silence; the one after the last continues as it should have begun.
            audio.remove(0);
        }
        Ok(Self { video, audio, fps, drift_ppm: options.drift_ppm, audio_rate: audio_rate(options) })
    }

    /// A feed that plays from the beginning, from now on. Must be called within a tokio runtime.
    pub(crate) fn feed(self: &Arc<Self>) -> Feed {
        let timeline = Timeline::start_now(self.drift_ppm);
        let keyframes = Arc::new(KeyframeRequest::default());
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let player = Player {
            material: self.clone(),
            timeline,
            keyframes: keyframes.clone(),
            frames: sender,
            video: 0,
            picture: 0,
            audio: 0,
        };
        tokio::spawn(player.play());
        Feed::new(receiver, timeline, self.audio_rate, keyframes)
    }

    /// The beginning of the group of pictures after this picture, in a circle.
    fn next_group(&self, from: usize) -> usize {
        let after = (from..self.video.len()).find(|&at| self.video[at].is_keyframe);
        // The first picture is a keyframe always.
        after.unwrap_or(0)
    }
}

struct Player {
    material: Arc<Prepared>,
    timeline: Timeline,
    keyframes: Arc<KeyframeRequest>,
    frames: mpsc::Sender<Frame>,
    /// Frames so far, and the place in the material.
    video: i64,
    picture: usize,
    audio: i64,
}

impl Player {
    async fn play(mut self) {
        loop {
            let video_us = match self.material.video.is_empty() {
                true => i64::MAX,
                false => self.video * 1_000_000 / self.material.fps,
            };
            let audio_us = match self.material.audio.is_empty() {
                true => i64::MAX,
                false => (self.audio as f64 * 960.0 * 1e6 / self.material.audio_rate) as i64,
            };
            let due = self.timeline.instant(video_us.min(audio_us));
            tokio::select! {
                () = sleep_until(due.into()) => {}
                () = self.frames.closed() => return,
            }
            let frame =
                if video_us <= audio_us { self.next_video(video_us) } else { self.next_audio(audio_us) };
            let is_video = frame.track == Track::Video;
            match self.frames.try_send(frame) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => return,
                // The session is behind; after a hole only a keyframe makes sense.
                Err(mpsc::error::TrySendError::Full(_)) if is_video => self.keyframes.set(),
                Err(mpsc::error::TrySendError::Full(_)) => {}
            }
        }
    }

    fn next_video(&mut self, position_us: i64) -> Frame {
        if self.keyframes.take() {
            self.picture = self.material.next_group(self.picture);
        }
        let picture = &self.material.video[self.picture];
        let ticks = self.video * i64::from(Track::Video.clock_rate()) / self.material.fps;
        self.video += 1;
        self.picture = (self.picture + 1) % self.material.video.len();
        Frame {
            track: Track::Video,
            ticks,
            position_us,
            is_keyframe: picture.is_keyframe,
            payloads: picture.payloads.clone(),
        }
    }

    fn next_audio(&mut self, position_us: i64) -> Frame {
        let payloads = self.material.audio[self.audio as usize % self.material.audio.len()].clone();
        let ticks = self.audio * 960;
        self.audio += 1;
        Frame { track: Track::Audio, ticks, position_us, is_keyframe: true, payloads }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Size, Source};

    fn prepared(change: impl FnOnce(&mut Options)) -> Arc<Prepared> {
        let mut options = Options::new(Source::TestPattern, "http://h/whip/a");
        options.size = Some(Size { width: 160, height: 90 });
        options.keyframe_interval_ms = 1000;
        change(&mut options);
        Arc::new(Prepared::new(&options).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn each_session_plays_in_real_time_from_a_keyframe_and_jumps_to_one_when_asked() {
        let prepared = prepared(|_| {});
        assert_eq!((prepared.video.len(), prepared.audio.len()), (120, 200));
        let mut feed = prepared.feed();
        let mut undisturbed = prepared.feed();
        let (mut video, mut keyframes, mut other_keyframes) = (Vec::new(), Vec::new(), 0);
        let mut audio = Vec::new();
        while video.len() < 60 {
            let frame = feed.frames.recv().await.unwrap();
            while let Ok(frame) = undisturbed.frames.try_recv() {
                other_keyframes += u32::from(frame.track == Track::Video && frame.is_keyframe);
            }
            if frame.track == Track::Audio {
                audio.push(frame.ticks);
                continue;
            }
            if frame.is_keyframe {
                keyframes.push(video.len());
            }
            video.push(frame.ticks);
            if video.len() == 10 {
                feed.request_keyframe();
            }
        }
        assert_eq!(keyframes[0], 0);
        assert!((10..=12).contains(&keyframes[1]), "{keyframes:?}");
        assert_eq!(keyframes.get(2), Some(&(keyframes[1] + 30)), "{keyframes:?}");
        assert!(video.windows(2).all(|pair| pair[1] - pair[0] == 3000), "continuous over the jump");
        assert!(audio.windows(2).all(|pair| pair[1] - pair[0] == 960));
        assert_eq!(other_keyframes, 2, "at 0 and 1 s: nobody else's request disturbs");
    }

    #[tokio::test]
    async fn a_session_that_is_gone_ends_its_player() {
        let prepared = prepared(|options| options.no_video = true);
        drop(prepared.feed());
        tokio::time::timeout(std::time::Duration::from_secs(5), async {
            while Arc::strong_count(&prepared) > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
