//! libavcodec's decoders and x264, set for live: a picture goes in, a picture comes out, nothing is held back.

use ffmpeg_next::codec::{self, Context, Id, decoder, encoder};
use ffmpeg_next::format::Pixel;
use ffmpeg_next::{Dictionary, Error};

/// Larger pictures than 8K are a mistake or an attack, and would cost hundreds of megabytes each.
const PIXELS_MAX: u32 = 40_000_000;

/// Opens a decoder. It refuses larger pictures than 8K before it makes room for them.
pub(crate) fn open_decoder(id: Id) -> Result<decoder::Video, Error> {
    open_limited_decoder(id, PIXELS_MAX)
}

fn open_limited_decoder(id: Id, pixels_max: u32) -> Result<decoder::Video, Error> {
    let found = codec::decoder::find(id).ok_or(Error::DecoderNotFound)?;
    let mut context = Context::new_with_codec(found);
    // Threads of the decoder would hold pictures back.
    context.set_flags(codec::Flags::LOW_DELAY);
    context.set_threading(codec::threading::Config { count: 1, ..Default::default() });
    let mut options = Dictionary::new();
    options.set("max_pixels", &pixels_max.to_string());
    context.decoder().open_as_with(found, options).and_then(decoder::Opened::video)
}

/// What an x264 encoder is to make, in time stamps of microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct X264 {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) frames_per_second: i32,
    /// At most; what the picture needs, if that is less: a still camera costs its viewers next to nothing.
    pub(crate) bits_per_second: u32,
    /// How much processor time x264 takes for better pictures.
    pub(crate) preset: &'static str,
    /// `baseline` or `main`: higher ones have a longer record than `h264.rs` writes.
    pub(crate) profile: &'static str,
}

impl X264 {
    /// Opens it; `set` may say more of its pictures. Keyframes are where the caller wants them and nowhere else.
    pub(crate) fn open(
        self,
        set: impl FnOnce(&mut encoder::video::Video),
    ) -> Result<encoder::video::Encoder, Error> {
        let x264 = encoder::find_by_name("libx264").ok_or(Error::EncoderNotFound)?;
        let mut settings = Context::new_with_codec(x264).encoder().video()?;
        settings.set_width(self.width);
        settings.set_height(self.height);
        settings.set_format(Pixel::YUV420P);
        settings.set_time_base((1, 1_000_000));
        settings.set_frame_rate(Some((self.frames_per_second, 1)));
        settings.set_max_b_frames(0);
        settings.set_gop(i16::MAX as u32);
        set(&mut settings);
        let (rate, half_a_second) =
            (self.bits_per_second.to_string(), (self.bits_per_second / 2).to_string());
        let mut options = Dictionary::new();
        for (key, value) in [
            ("preset", self.preset),
            ("tune", "zerolatency"),
            ("profile", self.profile),
            ("forced-idr", "1"),
            ("threads", "1"),
            ("crf", "23"),
            ("maxrate", rate.as_str()),
            ("bufsize", half_a_second.as_str()),
            ("x264-params", "scenecut=0:repeat-headers=1"),
        ] {
            options.set(key, value);
        }
        settings.open_with(options)
    }
}

#[cfg(test)]
mod tests {
    use ffmpeg_next::{Packet, frame};

    use super::*;

    #[test]
    fn pictures_that_are_too_large_are_refused() {
        let (width, height) = (128, 72);
        let settings = X264 {
            width,
            height,
            frames_per_second: 30,
            bits_per_second: 300_000,
            preset: "ultrafast",
            profile: "baseline",
        };
        let mut encoder = settings.open(|_| {}).unwrap();
        let mut picture = frame::Video::new(Pixel::YUV420P, width, height);
        (0..3).for_each(|plane| picture.data_mut(plane).fill(128));
        picture.set_pts(Some(0));
        encoder.send_frame(&picture).unwrap();
        let mut packet = Packet::empty();
        encoder.receive_packet(&mut packet).unwrap();
        let decodes = |pixels_max| {
            let mut decoder = open_limited_decoder(Id::H264, pixels_max).unwrap();
            let is_taken = decoder.send_packet(&packet).is_ok() && decoder.send_eof().is_ok();
            is_taken && decoder.receive_frame(&mut frame::Video::empty()).is_ok()
        };
        assert!(decodes(2 * width * height) && !decodes(width * height / 2));
    }
}
