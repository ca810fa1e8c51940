//! A rung's pictures: scaled by libswscale and encoded by x264, and the source's decoded by libavcodec.
//!
//! How libavcodec is set is in `transcode/libav.rs`.

use bytes::Bytes;
use ffmpeg_next::codec::{Id, decoder, encoder};
use ffmpeg_next::format::Pixel;
use ffmpeg_next::software::scaling;
use ffmpeg_next::util::color;
use ffmpeg_next::{Packet, frame, picture};

use crate::frame::{TrackFormat, VideoCodec};
use crate::transcode::h264::{AccessUnit, append_annex_b, parameter_sets};
use crate::transcode::libav::{X264, open_decoder};

/// Why a ladder's picture can't be had.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum LadderPictureError {
    #[error("the publisher's picture can't be decoded")]
    Broken,
    #[error("{0}: {1}")]
    Library(&'static str, ffmpeg_next::Error),
}

fn failed(action: &'static str) -> impl Fn(ffmpeg_next::Error) -> LadderPictureError {
    move |cause| LadderPictureError::Library(action, cause)
}

/// Decodes the source rendition.
pub(super) struct SourceDecoder {
    inner: decoder::Video,
    /// Of H.264, in Annex B.
    parameter_sets: Option<Vec<u8>>,
}

impl SourceDecoder {
    pub(super) fn open(format: &TrackFormat) -> Result<Self, LadderPictureError> {
        let TrackFormat::Video { codec, config, .. } = format else { return Err(LadderPictureError::Broken) };
        let (id, parameter_sets) = match codec {
            VideoCodec::H264 => (Id::H264, Some(parameter_sets(config).ok_or(LadderPictureError::Broken)?)),
            VideoCodec::Vp9 => (Id::VP9, None),
            VideoCodec::Av1 => (Id::AV1, None),
            VideoCodec::Vp8 => (Id::VP8, None),
        };
        let inner = open_decoder(id).map_err(failed("open a decoder"))?;
        Ok(Self { inner, parameter_sets })
    }

    /// Takes a frame; what comes of it says its `id` as its time.
    pub(super) fn send(&mut self, id: i64, is_keyframe: bool, data: &[u8]) -> Result<(), LadderPictureError> {
        let mut packet = match &self.parameter_sets {
            None => Packet::copy(data),
            Some(sets) => {
                let mut annex_b = if is_keyframe { sets.clone() } else { Vec::new() };
                if !append_annex_b(&mut annex_b, data) {
                    return Err(LadderPictureError::Broken);
                }
                Packet::copy(&annex_b)
            }
        };
        packet.set_pts(Some(id));
        self.inner.send_packet(&packet).map_err(|_| LadderPictureError::Broken)
    }

    /// The next picture, if there is one.
    pub(super) fn receive(&mut self) -> Option<frame::Video> {
        let mut shown = frame::Video::empty();
        self.inner.receive_frame(&mut shown).is_ok().then_some(shown)
    }

    /// No frame follows: lets what is held back come out.
    pub(super) fn drain(&mut self) {
        // Refused only where it was said before.
        let _ = self.inner.send_eof();
    }
}

/// Whether a decoded picture is what the publisher sent.
pub(super) fn is_whole(shown: &frame::Video) -> bool {
    !shown.is_corrupt() && !shown.has_decode_errors()
}

/// What an encoder's settings depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) width: u32,
    pub(super) height: u32,
    space: color::Space,
    primaries: color::Primaries,
    transfer: color::TransferCharacteristic,
    range: color::Range,
}

impl Look {
    pub(super) fn of(shown: &frame::Video) -> Self {
        let (width, height) = (shown.width(), shown.height());
        let mut look = Self {
            width,
            height,
            space: shown.color_space(),
            primaries: shown.color_primaries(),
            transfer: shown.color_transfer_characteristic(),
            // libswscale makes limited range of the old names for full range, and leaves all else as it is.
            range: match shown.format() {
                Pixel::YUVJ420P | Pixel::YUVJ422P | Pixel::YUVJ444P => color::Range::MPEG,
                _ => shown.color_range(),
            },
        };
        if look.space == color::Space::Unspecified {
            // Players guess by the height, and must not guess something else of the smaller picture.
            (look.space, look.primaries, look.transfer) = match height >= 720 {
                true => (color::Space::BT709, color::Primaries::BT709, color::TransferCharacteristic::BT709),
                false => (
                    color::Space::SMPTE170M,
                    color::Primaries::SMPTE170M,
                    color::TransferCharacteristic::SMPTE170M,
                ),
            };
        }
        look
    }
}

/// One rung's encoder.
pub(super) struct Encoder {
    inner: encoder::video::Encoder,
    /// With the configuration record.
    format: TrackFormat,
    last_us: i64,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("format", &self.format).finish_non_exhaustive()
    }
}

/// An encoded picture.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) is_keyframe: bool,
    /// NAL units with 4-byte lengths, without parameter sets.
    pub(super) data: Bytes,
}

impl Encoder {
    /// Opens one for pictures with this look, scaled to this size; the first is shown at `first_us` or later.
    pub(super) fn open(
        look: Look,
        (width, height): (u32, u32),
        bits_per_second: u32,
        first_us: i64,
    ) -> Result<Self, LadderPictureError> {
        let x264 = X264 {
            width,
            height,
            frames_per_second: 30,
            bits_per_second,
            preset: "superfast",
            profile: "main",
        };
        let inner = x264
            .open(|settings| {
                settings.set_colorspace(look.space);
                settings.set_color_primaries(look.primaries);
                settings.set_color_transfer_characteristic(look.transfer);
                settings.set_color_range(look.range);
            })
            .map_err(failed("open the x264 encoder"))?;
        let format = TrackFormat::Video { codec: VideoCodec::H264, width, height, config: Bytes::new() };
        let mut opened = Self { inner, format, last_us: first_us - 33_333 };
        // A black picture that nobody sees, for the parameter sets: what the initialization section says must be known
        // before the first picture comes.
        let mut black = frame::Video::new(Pixel::YUV420P, width, height);
        for (plane, value) in [(0, 16), (1, 128), (2, 128)] {
            black.data_mut(plane).fill(value);
        }
        let packet = opened.push(&mut black, first_us - 33_333, true)?;
        opened.format = AccessUnit::parse(packet.data().unwrap_or_default())
            .format(width, height)
            .ok_or(LadderPictureError::Library("open the x264 encoder", ffmpeg_next::Error::InvalidData))?;
        Ok(opened)
    }

    /// Its pictures' format, with the configuration record.
    pub(super) fn format(&self) -> &TrackFormat {
        &self.format
    }

    /// Encodes a picture of its size that is shown at `at_us`.
    pub(super) fn encode(
        &mut self,
        scaled: &mut frame::Video,
        at_us: i64,
        is_keyframe: bool,
    ) -> Result<Encoded, LadderPictureError> {
        let packet = self.push(scaled, at_us, is_keyframe)?;
        let unit = AccessUnit::parse(packet.data().unwrap_or_default());
        Ok(Encoded { is_keyframe: packet.is_key(), data: unit.data.into() })
    }

    fn push(
        &mut self,
        scaled: &mut frame::Video,
        at_us: i64,
        is_keyframe: bool,
    ) -> Result<Packet, LadderPictureError> {
        let at_us = at_us.max(self.last_us + 1);
        self.last_us = at_us;
        scaled.set_kind(if is_keyframe { picture::Type::I } else { picture::Type::None });
        scaled.set_pts(Some(at_us));
        self.inner.send_frame(scaled).map_err(failed("encode H.264"))?;
        let mut packet = Packet::empty();
        self.inner.receive_packet(&mut packet).map_err(failed("encode H.264"))?;
        Ok(packet)
    }
}

/// Brings pictures to one size and to what x264 takes.
pub(super) struct Scaler {
    size: (u32, u32),
    inner: Option<scaling::Context>,
    scaled: frame::Video,
}

impl Scaler {
    pub(super) fn new(size: (u32, u32)) -> Self {
        Self { size, inner: None, scaled: frame::Video::empty() }
    }

    pub(super) fn scale(&mut self, shown: &frame::Video) -> Result<&mut frame::Video, LadderPictureError> {
        let scaling = failed("scale");
        let (format, width, height) = (shown.format(), shown.width(), shown.height());
        let input = scaling::context::Definition { format, width, height };
        let scaler = match &mut self.inner {
            Some(scaler) if *scaler.input() == input => scaler,
            slot => {
                let flags = scaling::Flags::BILINEAR;
                let (to, (to_width, to_height)) = (Pixel::YUV420P, self.size);
                let opened = scaling::Context::get(format, width, height, to, to_width, to_height, flags);
                slot.insert(opened.map_err(&scaling)?)
            }
        };
        scaler.run(shown, &mut self.scaled).map_err(&scaling)?;
        Ok(&mut self.scaled)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use ffmpeg_next::Dictionary;
    use ffmpeg_next::codec::Context;

    use super::*;

    fn grey(width: u32, height: u32, number: i64) -> frame::Video {
        let mut picture = frame::Video::new(Pixel::YUV420P, width, height);
        for (plane, value) in [(0, 40 + number * 2 % 150), (1, 128), (2, 128)] {
            picture.data_mut(plane).fill(value as u8);
        }
        picture
    }

    /// Pictures of an encoder of ours, the first of them a keyframe.
    pub(in crate::ladder) fn h264(width: u32, height: u32, count: i64) -> (TrackFormat, Vec<(bool, Bytes)>) {
        let look = Look::of(&grey(width, height, 0));
        let mut encoder = Encoder::open(look, (width, height), 300_000, 0).unwrap();
        let picture = |number| {
            let encoded =
                encoder.encode(&mut grey(width, height, number), number * 33_333, number == 0).unwrap();
            assert_eq!(encoded.is_keyframe, number == 0);
            (encoded.is_keyframe, encoded.data)
        };
        let pictures = (0..count).map(picture).collect();
        (encoder.format().clone(), pictures)
    }

    /// Pictures of another library's encoder.
    fn foreign(name: &str, options: &[(&str, &str)]) -> Vec<(bool, Bytes)> {
        let codec = encoder::find_by_name(name).unwrap_or_else(|| panic!("Debian's FFmpeg has {name}"));
        let mut settings = Context::new_with_codec(codec).encoder().video().unwrap();
        settings.set_width(128);
        settings.set_height(72);
        settings.set_format(Pixel::YUV420P);
        settings.set_time_base((1, 30));
        settings.set_bit_rate(200_000);
        let mut dictionary = Dictionary::new();
        options.iter().for_each(|(key, value)| dictionary.set(key, value));
        let mut encoder = settings.open_with(dictionary).unwrap();
        let mut pictures = Vec::new();
        for number in 0..4 {
            let mut picture = grey(128, 72, number);
            picture.set_pts(Some(number));
            encoder.send_frame(&picture).unwrap();
            let mut packet = Packet::empty();
            while encoder.receive_packet(&mut packet).is_ok() {
                pictures.push((packet.is_key(), Bytes::copy_from_slice(packet.data().unwrap())));
            }
        }
        pictures
    }

    #[test]
    fn each_codec_that_is_passed_through_can_be_decoded_and_encoded_smaller() {
        let vp9 =
            foreign("libvpx-vp9", &[("deadline", "realtime"), ("cpu-used", "8"), ("lag-in-frames", "0")]);
        let av1 = foreign("libaom-av1", &[("usage", "realtime"), ("cpu-used", "8"), ("lag-in-frames", "0")]);
        let (h264_format, h264) = h264(128, 72, 4);
        let format = |codec| TrackFormat::Video { codec, width: 128, height: 72, config: Bytes::new() };
        for (format, pictures) in
            [(h264_format, h264), (format(VideoCodec::Vp9), vp9), (format(VideoCodec::Av1), av1)]
        {
            let mut decoder = SourceDecoder::open(&format).unwrap();
            let mut made: Option<(Encoder, Scaler)> = None;
            for (number, (is_keyframe, data)) in (0..).zip(&pictures) {
                decoder.send(number, *is_keyframe, data).unwrap();
                let shown =
                    decoder.receive().unwrap_or_else(|| panic!("picture {number} of {format:?} at once"));
                assert!(is_whole(&shown) && shown.pts() == Some(number), "{format:?}");
                let (encoder, scaler) = made.get_or_insert_with(|| {
                    let look = Look::of(&shown);
                    assert_eq!((look.width, look.height), (128, 72));
                    (Encoder::open(look, (64, 36), 200_000, 0).unwrap(), Scaler::new((64, 36)))
                });
                let scaled = scaler.scale(&shown).unwrap();
                let brightness = i64::from(scaled.data(0)[0]);
                assert!((brightness - (40 + number * 2)).abs() <= 4, "{format:?}: {brightness}");
                let is_wanted = number % 2 == 0;
                let encoded = encoder.encode(scaled, number * 33_333, is_wanted).unwrap();
                assert_eq!(encoded.is_keyframe, is_wanted, "where it is wanted and nowhere else");
            }
            assert_eq!(pictures.len(), 4, "{format:?}");
        }
    }

    #[test]
    fn colours_that_a_large_source_leaves_to_be_guessed_are_said_of_the_small_one() {
        let space = |width, height| Look::of(&grey(width, height, 0)).space;
        assert_eq!(space(1280, 720), color::Space::BT709);
        assert_eq!(space(640, 360), color::Space::SMPTE170M);
        let mut told = grey(640, 360, 0);
        told.set_color_space(color::Space::BT709);
        assert_eq!(Look::of(&told).space, color::Space::BT709);
    }

    #[test]
    fn garbage_is_broken() {
        let (format, pictures) = h264(64, 36, 1);
        let mut decoder = SourceDecoder::open(&format).unwrap();
        assert!(decoder.send(0, true, b"no NAL unit").is_err());
        decoder.send(1, true, &pictures[0].1).unwrap();
        assert!(decoder.receive().is_some_and(|shown| is_whole(&shown)));
        let nothing =
            TrackFormat::Video { codec: VideoCodec::H264, width: 64, height: 36, config: Bytes::new() };
        assert!(SourceDecoder::open(&nothing).is_err());
    }
}
