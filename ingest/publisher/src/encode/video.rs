//! H.264 and VP8 for live sending: one frame in, one frame out, keyframes when asked.

use crate::{
    error::{Context as _, Error},
    frame::{Frame, Track},
    options::{Options, Size, VideoCodec},
    packetize,
};
use bytes::Bytes;
use ffmpeg_next::{Dictionary, Packet, Rational, codec, encoder, format::Pixel, frame, picture};
use std::time::Duration;

/// Encodes frames of one size.
pub(crate) struct VideoEncoder {
    inner: encoder::video::Encoder,
    codec: VideoCodec,
    keyframe_interval_us: i64,
    keyframe_due_us: i64,
    is_keyframe_wanted: bool,
    picture_id: u16,
}

impl std::fmt::Debug for VideoEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VideoEncoder").field("codec", &self.codec).finish_non_exhaustive()
    }
}

impl VideoEncoder {
    /// An encoder with the options' codec, bitrate and keyframe interval.
    pub(crate) fn new(options: &Options, size: Size, fps: f64) -> Result<Self, Error> {
        let name = match options.video_codec {
            VideoCodec::H264 => "libx264",
            VideoCodec::Vp8 => "libvpx",
        };
        let codec = encoder::find_by_name(name)
            .ok_or_else(|| Error::Option(format!("this FFmpeg was built without {name}")))?;
        let mut video =
            codec::Context::new_with_codec(codec).encoder().video().context("prepare the video encoder")?;
        video.set_width(size.width);
        video.set_height(size.height);
        video.set_format(Pixel::YUV420P);
        // Timestamps are RTP ticks throughout.
        video.set_time_base(Rational(1, 90_000));
        video.set_frame_rate(Some(Rational((fps * 1000.0).round() as i32, 1000)));
        video.set_bit_rate(options.bitrate.0 as usize);
        video.set_max_b_frames(0);
        // Keyframes are forced below, so that the interval restarts with each one that was asked for.
        video.set_gop(i16::MAX as u32);

        let bitrate = options.bitrate.0.to_string();
        // Half a second of rate: a keyframe may be several times an average frame and no burst lasts longer.
        let buffer = (options.bitrate.0 / 2).to_string();
        // Encoding must not compete with everything else on a small machine; large pictures need the second core.
        let threads = if size.width * size.height > 1280 * 720 { "2" } else { "1" };
        let mut dictionary = Dictionary::new();
        dictionary.set("threads", threads);
        dictionary.set("maxrate", &bitrate);
        dictionary.set("bufsize", &buffer);
        match options.video_codec {
            VideoCodec::H264 => {
                dictionary.set("preset", "ultrafast");
                dictionary.set("tune", "zerolatency");
                dictionary.set("profile", "baseline");
                dictionary.set("forced-idr", "1");
                dictionary.set("x264-params", "scenecut=0");
            }
            VideoCodec::Vp8 => {
                dictionary.set("deadline", "realtime");
                dictionary.set("cpu-used", "8");
                dictionary.set("lag-in-frames", "0");
                dictionary.set("auto-alt-ref", "0");
                dictionary.set("error-resilient", "1");
                dictionary.set("minrate", &bitrate);
            }
        }
        let inner = video.open_with(dictionary).context("open the video encoder")?;
        Ok(Self {
            inner,
            codec: options.video_codec,
            keyframe_interval_us: duration_us(options.keyframe_interval()),
            keyframe_due_us: i64::MIN,
            is_keyframe_wanted: true,
            picture_id: 0,
        })
    }

    /// The next frame shall be a keyframe.
    pub(crate) fn request_keyframe(&mut self) {
        self.is_keyframe_wanted = true;
    }

    /// Encodes a picture that is presented at `ticks` (90 kHz), `position_us` on the source's timeline.
    pub(crate) fn encode(
        &mut self,
        picture: &mut frame::Video,
        ticks: i64,
        position_us: i64,
    ) -> Result<Option<Frame>, Error> {
        let is_forced = self.is_keyframe_wanted || position_us >= self.keyframe_due_us;
        picture.set_kind(if is_forced { picture::Type::I } else { picture::Type::None });
        picture.set_pts(Some(ticks));
        self.inner.send_frame(picture).context("encode video")?;
        let mut packet = Packet::empty();
        match self.inner.receive_packet(&mut packet) {
            Ok(()) => {}
            Err(ffmpeg_next::Error::Other { errno: ffmpeg_next::error::EAGAIN }) => return Ok(None),
            Err(error) => return Err(error).context("encode video"),
        }
        let is_keyframe = packet.is_key();
        if is_keyframe {
            self.is_keyframe_wanted = false;
            self.keyframe_due_us = position_us.saturating_add(self.keyframe_interval_us);
        }
        let data = Bytes::copy_from_slice(packet.data().unwrap_or_default());
        let payloads = match self.codec {
            VideoCodec::H264 => packetize::h264(&packetize::nal_units(&data)),
            VideoCodec::Vp8 => {
                self.picture_id = self.picture_id.wrapping_add(1);
                packetize::vp8(&data, self.picture_id)
            }
        };
        Ok(Some(Frame { track: Track::Video, ticks, position_us, is_keyframe, payloads: payloads.into() }))
    }
}

fn duration_us(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Source;

    fn encode_30(codec: VideoCodec, mut ask_at: impl FnMut(i64) -> bool) -> Vec<Frame> {
        let mut options = Options::new(Source::TestPattern, "http://h/whip/a");
        options.video_codec = codec;
        options.keyframe_interval_ms = 500;
        let size = Size { width: 320, height: 180 };
        let mut encoder = VideoEncoder::new(&options, size, 30.0).unwrap();
        let mut picture = frame::Video::new(Pixel::YUV420P, 320, 180);
        (0..30)
            .map(|number| {
                for plane in 0..3 {
                    picture.data_mut(plane).fill((number * 8) as u8);
                }
                if ask_at(number) {
                    encoder.request_keyframe();
                }
                encoder.encode(&mut picture, number * 3000, number * 33_333).unwrap().unwrap()
            })
            .collect()
    }

    #[test]
    fn keyframes_come_when_asked_and_at_least_each_interval() {
        for codec in [VideoCodec::H264, VideoCodec::Vp8] {
            let frames = encode_30(codec, |number| number == 5);
            let keyframes: Vec<_> =
                frames.iter().filter(|frame| frame.is_keyframe).map(|frame| frame.ticks / 3000).collect();
            // 0 as first, 5 as asked, then 500 ms after the last one.
            assert_eq!(keyframes, [0, 5, 21], "{codec:?}");
        }
    }

    #[test]
    fn h264_keyframes_begin_with_parameter_sets_of_constrained_baseline() {
        let frames = encode_30(VideoCodec::H264, |number| number == 5);
        for frame in frames.iter().filter(|frame| frame.is_keyframe) {
            let first = &frame.payloads[0];
            assert_eq!(first[0] & 0x1f, 24, "an aggregate");
            assert_eq!(first[3] & 0x1f, 7, "of SPS and more");
            assert_eq!(first[4..6], [66, 0xc0], "profile_idc and constraint flags");
        }
    }
}
