//! A file's video, as it is or decoded and encoded again.

use super::{
    annex_b::AnnexB,
    plan::{self, VideoMode},
};
use crate::{
    encode::video::VideoEncoder,
    error::{Context as _, Error},
    frame::{Frame, Track},
    options::{Options, Size},
    packetize,
};
use ffmpeg_next::{
    Packet, decoder,
    format::{Pixel, context::Input},
    frame,
    software::scaling,
};

/// Something that is presented at a position: ready to be sent, or a picture to be encoded when its time has come,
/// so that keyframe requests are answered at once.
pub(super) enum Item {
    Ready(Frame),
    Picture(frame::Video),
}

/// Turns packets into items.
pub(super) enum VideoReader {
    Copy(AnnexB),
    Decode { decoder: Box<decoder::Video>, last_us: Option<i64>, interval_us: i64 },
}

impl VideoReader {
    pub(super) fn new(input: &Input, stream: usize, mode: &VideoMode) -> Result<Self, Error> {
        match mode {
            VideoMode::Copy { .. } => {
                let stream = input.stream(stream).ok_or(ffmpeg_next::Error::StreamNotFound);
                let parameters = stream.context("find the video")?.parameters();
                Ok(Self::Copy(AnnexB::new(parameters).context("prepare the video")?))
            }
            VideoMode::Encode { fps, .. } => Ok(Self::Decode {
                decoder: Box::new(plan::video_decoder(input, stream)?),
                last_us: None,
                // A picture that comes a little early still counts as in time.
                interval_us: (0.9 * 1e6 / fps) as i64,
            }),
        }
    }

    /// Takes a packet that is presented at `position_us`; the items go to `out` with their positions. Decoders
    /// return pictures in presentation order, marked with what went in.
    pub(super) fn take(
        &mut self,
        packet: &mut Packet,
        position_us: i64,
        out: &mut Vec<(i64, Item)>,
    ) -> Result<(), Error> {
        match self {
            Self::Copy(converter) => {
                let data = converter.convert(packet).context("convert the video")?;
                let units = packetize::nal_units(&data);
                let is_keyframe = units.iter().any(|unit| unit[0] & 0x1f == 5);
                let payloads = packetize::h264(&units).into();
                let ticks = ticks(position_us);
                let frame = Frame { track: Track::Video, ticks, position_us, is_keyframe, payloads };
                out.push((position_us, Item::Ready(frame)));
                Ok(())
            }
            Self::Decode { decoder, .. } => {
                packet.set_pts(Some(position_us));
                packet.set_dts(None);
                // Damaged frames are left out: the encoder then repeats nothing and viewers see a short freeze.
                if decoder.send_packet(packet).is_err() {
                    tracing::debug!(position_us, "undecodable video packet");
                }
                self.collect(out);
                Ok(())
            }
        }
    }

    /// The file ends: what the decoder still holds.
    pub(super) fn finish(&mut self, out: &mut Vec<(i64, Item)>) {
        if let Self::Decode { decoder, .. } = self
            && decoder.send_eof().is_ok()
        {
            self.collect(out);
        }
    }

    fn collect(&mut self, out: &mut Vec<(i64, Item)>) {
        let Self::Decode { decoder, last_us, interval_us } = self else { return };
        let mut picture = frame::Video::empty();
        while decoder.receive_frame(&mut picture).is_ok() {
            let picture = std::mem::replace(&mut picture, frame::Video::empty());
            let Some(position_us) = picture.timestamp() else { continue };
            if last_us.is_some_and(|last| position_us - last < *interval_us) {
                continue;
            }
            *last_us = Some(position_us);
            out.push((position_us, Item::Picture(picture)));
        }
    }
}

/// Scales and encodes pictures.
pub(super) struct PictureEncoder {
    pub(super) encoder: VideoEncoder,
    size: Size,
    quarter_turns: u8,
    scaler: Option<scaling::Context>,
    scaled: frame::Video,
    turned: frame::Video,
}

impl PictureEncoder {
    pub(super) fn new(options: &Options, size: Size, quarter_turns: u8, fps: f64) -> Result<Self, Error> {
        let sent = VideoMode::sent_size(size, quarter_turns);
        Ok(Self {
            encoder: VideoEncoder::new(options, sent, fps)?,
            size,
            quarter_turns,
            scaler: None,
            scaled: frame::Video::new(Pixel::YUV420P, size.width, size.height),
            turned: frame::Video::new(Pixel::YUV420P, sent.width, sent.height),
        })
    }

    pub(super) fn encode(
        &mut self,
        picture: &frame::Video,
        position_us: i64,
    ) -> Result<Option<Frame>, Error> {
        let is_fitting = self.scaler.as_ref().is_some_and(|scaler| {
            let input = scaler.input();
            (input.format, input.width, input.height) == (picture.format(), picture.width(), picture.height())
        });
        if !is_fitting {
            // First picture, or its size changed within the file.
            let (from, to) = ((picture.width(), picture.height()), self.size);
            self.scaler = Some(
                scaling::Context::get(
                    picture.format(),
                    from.0,
                    from.1,
                    Pixel::YUV420P,
                    to.width,
                    to.height,
                    scaling::Flags::BILINEAR,
                )
                .context("prepare scaling")?,
            );
        }
        if let Some(scaler) = &mut self.scaler {
            scaler.run(picture, &mut self.scaled).context("scale")?;
        }
        let upright = match self.quarter_turns {
            0 => &mut self.scaled,
            turns => {
                turn(&self.scaled, turns, &mut self.turned);
                &mut self.turned
            }
        };
        self.encoder.encode(upright, ticks(position_us), position_us)
    }
}

/// Turns all planes clockwise.
fn turn(from: &frame::Video, quarter_turns: u8, to: &mut frame::Video) {
    for plane in 0..3 {
        let (width, height) = (from.plane_width(plane) as usize, from.plane_height(plane) as usize);
        let (from_stride, to_stride) = (from.stride(plane), to.stride(plane));
        let (from, to) = (from.data(plane), to.data_mut(plane));
        for y in 0..height {
            for (x, &value) in from[y * from_stride..y * from_stride + width].iter().enumerate() {
                let (to_x, to_y) = match quarter_turns {
                    1 => (height - 1 - y, x),
                    2 => (width - 1 - x, height - 1 - y),
                    _ => (y, width - 1 - x),
                };
                to[to_y * to_stride + to_x] = value;
            }
        }
    }
}

fn ticks(position_us: i64) -> i64 {
    position_us * 9 / 100
}
