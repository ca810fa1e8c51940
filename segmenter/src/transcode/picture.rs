//! One VP8 track's way to H.264: libavcodec's decoder and x264, set for live.
//!
//! A picture goes in, a picture comes out, nothing is held back. Keyframes stay keyframes, so what the segmenter asks
//! of the publisher arrives. Another size opens another encoder, and its format says so.

use bytes::Bytes;
use ffmpeg_next::codec::{Id, decoder, encoder};
use ffmpeg_next::format::Pixel;
use ffmpeg_next::{Packet, frame, picture};

use super::h264::AccessUnit;
use super::libav::{X264, open_decoder};
use crate::frame::TrackFormat;

/// Bits per second for each pixel per second, at most: 2.8 Mbit/s at 1280x720 and 30 pictures per second, which
/// x264's fastest preset needs for a talking head.
const BITS_PER_PIXEL: f64 = 0.1;
/// The lowest limit of the bit rate: small pictures cost more for each pixel.
const BITS_PER_SECOND_MIN: f64 = 300_000.0;
/// What the limit is computed for. Cameras send as many.
const FRAMES_PER_SECOND: i32 = 30;
/// Larger pictures than 4K are a mistake, and would cost gigabytes.
const SIDE_MAX: u32 = 4096;

/// What a transcoder makes of a picture.
#[derive(Debug)]
pub(crate) struct Transcoded {
    /// With every keyframe.
    pub(crate) format: Option<TrackFormat>,
    pub(crate) is_keyframe: bool,
    /// Of the picture that it was made of, in microseconds.
    pub(crate) pts_us: i64,
    /// NAL units with 4-byte lengths, without parameter sets.
    pub(crate) data: Bytes,
}

/// Why a picture didn't become another one.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum PictureError {
    /// The decoder can't make sense of it: what follows is of no use up to a keyframe.
    #[error("a VP8 picture that can't be decoded")]
    Broken,
    /// The machine's FFmpeg can't do it at all.
    #[error("{0}: {1}")]
    Library(&'static str, ffmpeg_next::Error),
    /// Not with this size.
    #[error("pictures of {0}x{1} are not transcoded")]
    Size(u32, u32),
}

struct Encoder {
    inner: encoder::video::Encoder,
    width: u32,
    height: u32,
}

/// See the module.
pub(crate) struct Transcoder {
    decoder: decoder::Video,
    encoder: Option<Encoder>,
}

fn failed(action: &'static str) -> impl Fn(ffmpeg_next::Error) -> PictureError {
    move |cause| PictureError::Library(action, cause)
}

impl Transcoder {
    pub(crate) fn open() -> Result<Self, PictureError> {
        let decoder = open_decoder(Id::VP8).map_err(failed("open the VP8 decoder"))?;
        Ok(Self { decoder, encoder: None })
    }

    /// Takes a picture; none comes out of one that isn't shown.
    pub(crate) fn push(
        &mut self,
        pts_us: i64,
        is_keyframe: bool,
        data: &[u8],
    ) -> Result<Option<Transcoded>, PictureError> {
        let mut packet = Packet::copy(data);
        packet.set_pts(Some(pts_us));
        self.decoder.send_packet(&packet).map_err(|_| PictureError::Broken)?;
        let mut shown = frame::Video::empty();
        match self.decoder.receive_frame(&mut shown) {
            Ok(()) => {}
            Err(ffmpeg_next::Error::Other { errno: ffmpeg_next::error::EAGAIN }) => return Ok(None),
            Err(_) => return Err(PictureError::Broken),
        }
        if shown.is_corrupt() || shown.has_decode_errors() || shown.format() != Pixel::YUV420P {
            return Err(PictureError::Broken);
        }
        // x264 wants even sides; the last column or row of an odd one is let go.
        let (width, height) = (shown.width() & !1, shown.height() & !1);
        if !(16..=SIDE_MAX).contains(&width) || !(16..=SIDE_MAX).contains(&height) {
            return Err(PictureError::Size(width, height));
        }
        shown.set_width(width);
        shown.set_height(height);
        let encoder = match &mut self.encoder {
            Some(encoder) if (encoder.width, encoder.height) == (width, height) => encoder,
            slot => slot.insert(Encoder { inner: open_encoder(width, height)?, width, height }),
        };
        shown.set_kind(if is_keyframe { picture::Type::I } else { picture::Type::None });
        shown.set_pts(Some(pts_us));
        encoder.inner.send_frame(&shown).map_err(failed("encode H.264"))?;
        let mut packet = Packet::empty();
        encoder.inner.receive_packet(&mut packet).map_err(failed("encode H.264"))?;
        let unit = AccessUnit::parse(packet.data().unwrap_or_default());
        let format = if packet.is_key() { unit.format(width, height) } else { None };
        Ok(Some(Transcoded {
            format,
            is_keyframe: packet.is_key(),
            pts_us: packet.pts().unwrap_or(pts_us),
            data: unit.data.into(),
        }))
    }
}

fn open_encoder(width: u32, height: u32) -> Result<encoder::video::Encoder, PictureError> {
    let pixels_per_second = f64::from(width) * f64::from(height) * f64::from(FRAMES_PER_SECOND);
    let x264 = X264 {
        width,
        height,
        frames_per_second: FRAMES_PER_SECOND,
        bits_per_second: (pixels_per_second * BITS_PER_PIXEL).max(BITS_PER_SECOND_MIN) as u32,
        preset: "ultrafast",
        profile: "baseline",
    };
    x264.open(|_| {}).map_err(failed("open the x264 encoder"))
}

#[cfg(test)]
pub(super) mod tests {
    use ffmpeg_next::Dictionary;
    use ffmpeg_next::codec::{self, Context};

    use super::*;

    /// Real VP8 pictures, each brighter than the one before, with a keyframe every so many.
    pub(in crate::transcode) fn vp8(
        width: u32,
        height: u32,
        count: i64,
        keyframes_each: i64,
    ) -> Vec<(bool, Bytes)> {
        let codec = encoder::find_by_name("libvpx").expect("Debian's FFmpeg has libvpx");
        let mut settings = Context::new_with_codec(codec).encoder().video().unwrap();
        settings.set_width(width);
        settings.set_height(height);
        settings.set_format(Pixel::YUV420P);
        settings.set_time_base((1, 30));
        settings.set_bit_rate(1_000_000);
        let mut options = Dictionary::new();
        for (key, value) in [("deadline", "realtime"), ("cpu-used", "8"), ("lag-in-frames", "0")] {
            options.set(key, value);
        }
        let mut encoder = settings.open_with(options).unwrap();
        let mut pictures = Vec::new();
        for number in 0..count {
            let mut picture = frame::Video::new(Pixel::YUV420P, width, height);
            picture.data_mut(0).fill(brightness(number));
            picture.data_mut(1).fill(128);
            picture.data_mut(2).fill(128);
            picture.set_pts(Some(number));
            let is_forced = number % keyframes_each == 0;
            picture.set_kind(if is_forced { picture::Type::I } else { picture::Type::None });
            encoder.send_frame(&picture).unwrap();
            let mut packet = Packet::empty();
            encoder.receive_packet(&mut packet).unwrap();
            pictures.push((packet.is_key(), Bytes::copy_from_slice(packet.data().unwrap())));
        }
        pictures
    }

    fn brightness(number: i64) -> u8 {
        (40 + number * 5 % 150) as u8
    }

    /// Decodes what came out; gives size and mean brightness of each picture.
    fn decode(units: &[Transcoded]) -> Vec<(u32, u32, u8)> {
        let h264 = codec::decoder::find(Id::H264).unwrap();
        let mut decoder = Context::new_with_codec(h264).decoder().open_as(h264).unwrap().video().unwrap();
        let mut shown = Vec::new();
        let mut receive = |decoder: &mut decoder::Video| {
            let mut picture = frame::Video::empty();
            while decoder.receive_frame(&mut picture).is_ok() {
                assert!(!picture.is_corrupt() && !picture.has_decode_errors());
                let luma = &picture.data(0)[..picture.width() as usize];
                let mean = luma.iter().map(|&value| u64::from(value)).sum::<u64>() / luma.len() as u64;
                shown.push((picture.width(), picture.height(), mean as u8));
            }
        };
        for unit in units {
            let mut annex_b = Vec::new();
            if let Some(TrackFormat::Video { config, .. }) = &unit.format {
                let sps = 8 + usize::from(u16::from_be_bytes([config[6], config[7]]));
                for nal in [&config[8..sps], &config[sps + 3..]] {
                    annex_b.extend([0, 0, 0, 1]);
                    annex_b.extend_from_slice(nal);
                }
            }
            let mut rest = &unit.data[..];
            while let Some((length, tail)) = rest.split_first_chunk::<4>() {
                let (nal, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
                annex_b.extend([0, 0, 0, 1]);
                annex_b.extend_from_slice(nal);
                rest = tail;
            }
            decoder.send_packet(&Packet::copy(&annex_b)).unwrap();
            receive(&mut decoder);
        }
        decoder.send_eof().unwrap();
        receive(&mut decoder);
        shown
    }

    fn transcode(transcoder: &mut Transcoder, pictures: &[(bool, Bytes)], first: i64) -> Vec<Transcoded> {
        let push = |(number, (is_keyframe, data)): (usize, &(bool, Bytes))| {
            transcoder.push((first + number as i64) * 33_333, *is_keyframe, data).unwrap().unwrap()
        };
        pictures.iter().enumerate().map(push).collect()
    }

    #[test]
    fn each_picture_comes_out_at_once_with_its_time_its_keyframes_and_what_it_shows() {
        let source = vp8(320, 180, 60, 20);
        let out = transcode(&mut Transcoder::open().unwrap(), &source, 0);
        for (number, (unit, (is_keyframe, _))) in out.iter().zip(&source).enumerate() {
            assert_eq!(unit.is_keyframe, *is_keyframe, "picture {number}");
            assert_eq!(unit.format.is_some(), *is_keyframe, "picture {number}");
            assert_eq!(unit.pts_us, number as i64 * 33_333);
        }
        let shown = decode(&out);
        assert_eq!(shown.len(), 60);
        for (number, (width, height, mean)) in shown.into_iter().enumerate() {
            assert_eq!((width, height), (320, 180));
            assert!(mean.abs_diff(brightness(number as i64)) <= 4, "picture {number}: {mean}");
        }
    }

    #[test]
    fn another_size_is_another_format_and_odd_sides_lose_their_last_line() {
        let mut transcoder = Transcoder::open().unwrap();
        let mut out = transcode(&mut transcoder, &vp8(320, 180, 5, 5), 0);
        out.extend(transcode(&mut transcoder, &vp8(181, 321, 5, 5), 5));
        let sizes: Vec<_> = out
            .iter()
            .filter_map(|unit| match unit.format {
                Some(TrackFormat::Video { width, height, .. }) => Some((width, height)),
                _ => None,
            })
            .collect();
        assert_eq!(sizes, [(320, 180), (180, 320)]);
        let shown = decode(&out);
        assert_eq!((shown.len(), shown[9].0, shown[9].1), (10, 180, 320));
    }

    #[test]
    fn garbage_is_broken_and_a_keyframe_after_it_is_not() {
        let mut transcoder = Transcoder::open().unwrap();
        for garbage in [&[][..], &[0], &[0x11; 40], &[0xff; 400]] {
            assert!(transcoder.push(0, true, garbage).is_err() || garbage.is_empty());
        }
        let out = transcode(&mut transcoder, &vp8(160, 90, 3, 3), 1);
        assert_eq!(decode(&out).len(), 3);
    }
}
