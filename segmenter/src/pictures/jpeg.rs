//! An encoded picture becomes a small one, and that a JPEG: libavcodec and libswscale.
//!
//! Each picture has a decoder of its own, so that nothing of one stream is left in the next one's.

use bytes::Bytes;
use ffmpeg_next::codec::{self, Context, Id, encoder};
use ffmpeg_next::format::Pixel;
use ffmpeg_next::software::scaling;
use ffmpeg_next::{Dictionary, Packet, frame};

use super::still::{Codec, Still};
use crate::transcode::libav::open_decoder;

/// JPEG's quantiser in libavcodec's scale from 2 to 31: 640x360 of a camera take some 30 kB, and look like the video.
const QUANTISER: &str = "5";

/// Why there is no picture.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Not our media, or a codec that is not known here.
    #[error("it holds no picture that is known here")]
    Unreadable,
    /// This machine's FFmpeg lacks it.
    #[error("FFmpeg has no decoder for {0:?}")]
    NoDecoder(Codec),
    /// The decoder can't make sense of it.
    #[error("it can't be decoded")]
    Broken,
    /// FFmpeg can't do the rest.
    #[error("{0}: {1}")]
    Library(&'static str, ffmpeg_next::Error),
}

impl Failure {
    /// For metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::NoDecoder(_) => "no_decoder",
            Self::Broken => "broken",
            Self::Library(..) => "library",
        }
    }
}

fn failed(action: &'static str) -> impl Fn(ffmpeg_next::Error) -> Failure {
    move |cause| Failure::Library(action, cause)
}

/// Decodes a picture.
pub(super) fn decode(still: &Still) -> Result<frame::Video, Failure> {
    let id = match still.codec {
        Codec::H264 => Id::H264,
        Codec::Hevc => Id::HEVC,
        Codec::Vp9 => Id::VP9,
        Codec::Av1 => Id::AV1,
    };
    let mut decoder = open_decoder(id).map_err(|_| Failure::NoDecoder(still.codec))?;
    decoder.send_packet(&Packet::copy(&still.data)).map_err(|_| Failure::Broken)?;
    decoder.send_eof().map_err(|_| Failure::Broken)?;
    let mut picture = frame::Video::empty();
    decoder.receive_frame(&mut picture).map_err(|_| Failure::Broken)?;
    if picture.is_corrupt() || picture.has_decode_errors() {
        return Err(Failure::Broken);
    }
    Ok(picture)
}

/// The size of a picture that keeps its shape and fits into a box; never larger than it is, and even.
pub(super) fn fit((width, height): (u32, u32), (box_width, box_height): (u32, u32)) -> (u32, u32) {
    let (width, height) = (u64::from(width.max(1)), u64::from(height.max(1)));
    let (box_width, box_height) = (u64::from(box_width), u64::from(box_height));
    let (w, h) = if width <= box_width && height <= box_height {
        (width, height)
    } else if width * box_height > height * box_width {
        (box_width, height * box_width / width)
    } else {
        (width * box_height / height, box_height)
    };
    // At most the box, which is small.
    ((w as u32 & !1).max(2), (h as u32 & !1).max(2))
}

/// The picture in another size, as JPEG wants it.
pub(super) fn scale(picture: &frame::Video, (width, height): (u32, u32)) -> Result<frame::Video, Failure> {
    let scaling = failed("scale a picture");
    let mut scaler = scaling::Context::get(
        picture.format(),
        picture.width(),
        picture.height(),
        Pixel::YUVJ420P,
        width,
        height,
        // Every pixel counts, as with a lens: thin lines do not come and go from picture to picture.
        scaling::Flags::AREA,
    )
    .map_err(&scaling)?;
    let mut scaled = frame::Video::empty();
    scaler.run(picture, &mut scaled).map_err(&scaling)?;
    Ok(scaled)
}

/// A picture that [`scale`] made, or of that kind, as a file.
pub(super) fn encode(picture: &frame::Video) -> Result<Bytes, Failure> {
    let opening = failed("open the JPEG encoder");
    let jpeg =
        codec::encoder::find(Id::MJPEG).ok_or(ffmpeg_next::Error::EncoderNotFound).map_err(&opening)?;
    let mut context = Context::new_with_codec(jpeg);
    context.set_threading(codec::threading::Config { count: 1, ..Default::default() });
    let mut settings = context.encoder().video().map_err(&opening)?;
    settings.set_width(picture.width());
    settings.set_height(picture.height());
    settings.set_format(Pixel::YUVJ420P);
    settings.set_time_base((1, 1));
    let mut options = Dictionary::new();
    options.set("qmin", QUANTISER);
    options.set("qmax", QUANTISER);
    let mut encoder: encoder::video::Encoder = settings.open_as_with(jpeg, options).map_err(&opening)?;
    let encoding = failed("encode JPEG");
    encoder.send_frame(picture).map_err(&encoding)?;
    let mut packet = Packet::empty();
    encoder.receive_packet(&mut packet).map_err(&encoding)?;
    Ok(Bytes::copy_from_slice(packet.data().unwrap_or_default()))
}

/// An empty picture, black.
pub(super) fn black(width: u32, height: u32) -> frame::Video {
    let mut picture = frame::Video::new(Pixel::YUVJ420P, width, height);
    for (plane, value) in [(0, 0), (1, 128), (2, 128)] {
        picture.data_mut(plane).fill(value);
    }
    picture
}

/// Copies a picture into another one of the same kind, with its corner at an even place; it has to fit.
pub(super) fn paste(picture: &frame::Video, onto: &mut frame::Video, x: u32, y: u32) {
    for plane in 0..3 {
        let shift = u32::from(plane > 0);
        let (width, height) = ((picture.width() >> shift) as usize, (picture.height() >> shift) as usize);
        let (x, y) = ((x >> shift) as usize, (y >> shift) as usize);
        let (from, to) = (picture.stride(plane), onto.stride(plane));
        let (source, target) = (picture.data(plane), onto.data_mut(plane));
        for row in 0..height {
            let (source_at, target_at) = (row * from, (y + row) * to + x);
            target[target_at..target_at + width].copy_from_slice(&source[source_at..source_at + width]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_keep_their_shape_and_are_never_enlarged() {
        for (size, bounds, expected) in [
            ((1280, 720), (640, 640), (640, 360)),
            ((720, 1280), (640, 640), (360, 640)),
            ((320, 180), (640, 640), (320, 180)),
            ((640, 480), (160, 90), (120, 90)),
            ((720, 1280), (160, 90), (50, 90)),
            ((4_000, 3), (160, 90), (160, 2)),
            ((0, 0), (160, 90), (2, 2)),
            ((u32::MAX, u32::MAX), (160, 90), (90, 90)),
        ] {
            assert_eq!(fit(size, bounds), expected, "{size:?}");
        }
    }

    #[test]
    fn nonsense_is_broken_and_no_picture() {
        for codec in [Codec::H264, Codec::Hevc, Codec::Vp9, Codec::Av1] {
            let still = Still { codec, data: vec![0xa5; 3_000] };
            assert!(matches!(decode(&still), Err(Failure::Broken | Failure::NoDecoder(_))), "{codec:?}");
        }
    }

    #[test]
    fn pasted_picture_is_where_it_was_put() {
        let mut sheet = black(320, 180);
        let mut white = black(160, 90);
        white.data_mut(0).fill(255);
        paste(&white, &mut sheet, 160, 90);
        let stride = sheet.stride(0);
        let at = |x: usize, y: usize| sheet.data(0)[y * stride + x];
        assert_eq!([at(159, 90), at(160, 89), at(160, 90), at(319, 179)], [0, 0, 255, 255]);
        let file = encode(&sheet).unwrap();
        assert!(file.starts_with(&[0xff, 0xd8, 0xff]) && file.ends_with(&[0xff, 0xd9]));
    }
}
