//! Real pictures and sounds: x264 and libopus on the way in, FFmpeg's decoders on the way out.
//!
//! Each picture has its number in the machine-readable strip of the publisher's clock, above a pattern that moves and
//! follows from the number: a decoded picture can be told by its number and compared with what was drawn.

use bytes::Bytes;
use ffmpeg_next::codec::{self, Context, Id};
use ffmpeg_next::format::Pixel;
use ffmpeg_next::format::sample::{Sample, Type};
use ffmpeg_next::{ChannelLayout, Dictionary, Packet, frame, picture};
use shoal_publisher::clock;
use shoal_segmenter::frame::{Frame, TrackFormat};

/// Above this mean difference of luma a picture isn't the one that was drawn. Encoding at the rate used here costs less
/// than 3; one missing picture costs more than 10.
pub const DIFFERENCE_MAX: f64 = 6.0;

/// The luma of picture `number`, line after line.
pub fn drawing(number: u32, width: usize, height: usize) -> Vec<u8> {
    let mut luma: Vec<u8> = (0..width * height)
        .map(|index| {
            let (x, y) = (index % width, index / width);
            // Squares that jump with each picture: what is predicted from another picture looks wrong, and a picture has
            // so many bytes that several packets carry it.
            let seed = (x / 12 + number as usize * 7) * 31 + (y / 12) * 57 + number as usize * 13;
            (40 + seed % 160) as u8
        })
        .collect();
    clock::draw(&mut luma, width, width, height, number.into());
    luma
}

/// An encoder that draws its own pictures.
pub struct Camera {
    encoder: codec::encoder::video::Encoder,
    width: u32,
    height: u32,
}

impl Camera {
    pub fn new(width: u32, height: u32) -> Self {
        let x264 = codec::encoder::find_by_name("libx264").expect("FFmpeg has x264");
        let mut settings = Context::new_with_codec(x264).encoder().video().unwrap();
        settings.set_width(width);
        settings.set_height(height);
        settings.set_format(Pixel::YUV420P);
        settings.set_time_base((1, 30));
        settings.set_gop(100_000);
        let mut options = Dictionary::new();
        for (key, value) in [
            ("preset", "ultrafast"),
            ("tune", "zerolatency"),
            ("forced-idr", "1"),
            ("crf", "24"),
            ("x264-params", "scenecut=0:threads=1:repeat-headers=1"),
        ] {
            options.set(key, value);
        }
        Self { encoder: settings.open_with(options).unwrap(), width, height }
    }

    /// The NAL units of picture `number`.
    pub fn picture(&mut self, number: u32, is_keyframe: bool) -> Vec<Vec<u8>> {
        let luma = drawing(number, self.width as usize, self.height as usize);
        self.encode(number, is_keyframe, &luma)
    }

    /// The NAL units of a picture with this luma.
    pub fn encode(&mut self, number: u32, is_keyframe: bool, luma: &[u8]) -> Vec<Vec<u8>> {
        let mut shown = frame::Video::new(Pixel::YUV420P, self.width, self.height);
        let stride = shown.stride(0);
        for (to, from) in shown.data_mut(0).chunks_mut(stride).zip(luma.chunks(self.width as usize)) {
            to[..from.len()].copy_from_slice(from);
        }
        shown.data_mut(1).fill(128);
        shown.data_mut(2).fill(128);
        shown.set_pts(Some(number.into()));
        shown.set_kind(if is_keyframe { picture::Type::I } else { picture::Type::None });
        self.encoder.send_frame(&shown).unwrap();
        let mut packet = Packet::empty();
        self.encoder.receive_packet(&mut packet).expect("no delay with zerolatency");
        assert_eq!(packet.is_key(), is_keyframe);
        nal_units(packet.data().unwrap()).into_iter().filter(|nal| nal[0] & 31 != 6).collect()
    }
}

/// The NAL units of an Annex B access unit.
fn nal_units(bytes: &[u8]) -> Vec<Vec<u8>> {
    let starts: Vec<usize> =
        (0..bytes.len().saturating_sub(3)).filter(|&i| bytes[i..i + 3] == [0, 0, 1]).map(|i| i + 3).collect();
    let end = |index: usize| starts.get(index + 1).map_or(bytes.len(), |next| next - 3);
    starts
        .iter()
        .enumerate()
        .map(|(index, &start)| {
            let nal = &bytes[start..end(index)];
            let length = nal.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            nal[..length].to_vec()
        })
        .collect()
}

/// Opus packets of 20 ms each from 48 kHz mono.
pub fn opus(samples: &[f32]) -> Vec<Bytes> {
    let codec = codec::encoder::find_by_name("libopus").expect("FFmpeg has libopus");
    let mut settings = Context::new_with_codec(codec).encoder().audio().unwrap();
    settings.set_rate(48_000);
    settings.set_channel_layout(ChannelLayout::MONO);
    settings.set_channels(1);
    settings.set_format(Sample::F32(Type::Packed));
    settings.set_bit_rate(64_000);
    settings.set_time_base((1, 48_000));
    let mut encoder = settings.open_as(codec).unwrap();
    let mut packets = Vec::new();
    for (index, chunk) in samples.chunks_exact(960).enumerate() {
        let mut sound = frame::Audio::new(Sample::F32(Type::Packed), 960, ChannelLayout::MONO);
        sound.set_rate(48_000);
        sound.set_pts(Some(index as i64 * 960));
        sound.plane_mut::<f32>(0).copy_from_slice(chunk);
        encoder.send_frame(&sound).unwrap();
        let mut packet = Packet::empty();
        encoder.receive_packet(&mut packet).expect("one packet for each frame");
        packets.push(Bytes::copy_from_slice(packet.data().unwrap()));
    }
    packets
}

/// Annex B of a frame as the segmenter gets it, with the parameter sets of its format before keyframes.
pub fn annex_b(frame: &Frame, format: &TrackFormat) -> Vec<u8> {
    let mut out = Vec::new();
    let mut add = |nal: &[u8]| {
        out.extend([0, 0, 0, 1]);
        out.extend_from_slice(nal);
    };
    if frame.is_keyframe {
        let TrackFormat::Video { config, .. } = format else { panic!("not a video format") };
        let sps_end = 8 + usize::from(u16::from_be_bytes([config[6], config[7]]));
        add(&config[8..sps_end]);
        let pps_length = usize::from(u16::from_be_bytes([config[sps_end + 1], config[sps_end + 2]]));
        add(&config[sps_end + 3..sps_end + 3 + pps_length]);
    }
    let mut rest = &frame.data[..];
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let (nal, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
        add(nal);
        rest = tail;
    }
    out
}

/// Decodes access units and compares each picture with what was drawn under its number. Gives the numbers, or what is
/// wrong first.
pub fn verify(units: &[Vec<u8>]) -> Result<Vec<u32>, String> {
    let h264 = codec::decoder::find(Id::H264).unwrap();
    let mut context = Context::new_with_codec(h264);
    context.set_flags(codec::Flags::LOW_DELAY);
    context.set_threading(codec::threading::Config { count: 1, ..Default::default() });
    let mut decoder = context.decoder().open_as(h264).unwrap().video().unwrap();
    let mut numbers = Vec::new();
    for (index, unit) in units.iter().enumerate() {
        decoder.send_packet(&Packet::copy(unit)).map_err(|error| format!("unit {index}: {error}"))?;
        let mut shown = frame::Video::empty();
        decoder
            .receive_frame(&mut shown)
            .map_err(|error| format!("unit {index} gives no picture: {error}"))?;
        if shown.is_corrupt() || shown.has_decode_errors() {
            return Err(format!("unit {index} is decoded with errors"));
        }
        let (width, height, stride) = (shown.width() as usize, shown.height() as usize, shown.stride(0));
        let luma = shown.data(0);
        let number = clock::read(luma, stride, width, height)
            .ok_or(format!("unit {index}: its number can't be read"))?;
        let number = number as u32;
        let drawn = drawing(number, width, height);
        let sum: u64 = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .map(|(x, y)| u64::from(luma[y * stride + x].abs_diff(drawn[y * width + x])))
            .sum();
        let difference = sum as f64 / (width * height) as f64;
        if difference > DIFFERENCE_MAX {
            return Err(format!("picture {number} differs by {difference:.1} from what was drawn"));
        }
        if numbers.last().is_some_and(|last| *last >= number) {
            return Err(format!("picture {number} after {numbers:?}"));
        }
        numbers.push(number);
    }
    Ok(numbers)
}
