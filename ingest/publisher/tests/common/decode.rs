//! RTP packets back to pictures and sound, by FFmpeg's decoders.

use super::Seen;
use bytes::{BufMut, Bytes, BytesMut};
use ffmpeg_next::{codec, decoder, format::Pixel, frame};
use rtc::rtp::{codec::h264::H264Packet, codec::vp8::Vp8Packet, packetizer::Depacketizer};
use std::collections::BTreeMap;

/// The video packets in order of their sequence numbers, without duplicates, and the numbers that are missing.
pub(crate) fn in_order(seen: &[Seen], want_video: bool) -> (Vec<rtc::rtp::Packet>, usize) {
    let mut by_number = BTreeMap::new();
    let mut last: Option<i64> = None;
    for seen in seen {
        let Seen::Rtp { is_video, packet, .. } = seen else { continue };
        if *is_video != want_video {
            continue;
        }
        let number = i64::from(packet.header.sequence_number);
        let extended = match last {
            None => number,
            // The nearest number with these low 16 bits.
            Some(last) => last + i64::from((number as u16).wrapping_sub(last as u16) as i16),
        };
        last = Some(last.map_or(extended, |last| last.max(extended)));
        by_number.insert(extended, packet.clone());
    }
    let span =
        by_number.keys().next().zip(by_number.keys().last()).map_or(0, |(first, last)| last - first + 1);
    let missing = span as usize - by_number.len();
    (by_number.into_values().collect(), missing)
}

/// Access units with their RTP timestamps.
pub(crate) fn h264_units(packets: &[rtc::rtp::Packet]) -> Vec<(u32, Bytes)> {
    let mut depacketizer = H264Packet::default();
    units(packets, move |payload| depacketizer.depacketize(payload).unwrap())
}

pub(crate) fn vp8_frames(packets: &[rtc::rtp::Packet]) -> Vec<(u32, Bytes)> {
    units(packets, |payload| Vp8Packet::default().depacketize(payload).unwrap())
}

fn units(packets: &[rtc::rtp::Packet], mut depacketize: impl FnMut(&Bytes) -> Bytes) -> Vec<(u32, Bytes)> {
    let mut units = Vec::new();
    let mut unit = BytesMut::new();
    for packet in packets {
        unit.put_slice(&depacketize(&packet.payload));
        if packet.header.marker {
            units.push((packet.header.timestamp, std::mem::take(&mut unit).freeze()));
        }
    }
    units
}

/// A decoded picture.
pub(crate) struct Picture {
    pub(crate) timestamp: u32,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) stride: usize,
    pub(crate) luma: Vec<u8>,
}

impl Picture {
    pub(crate) fn clock(&self) -> Option<u64> {
        shoal_publisher::clock::read(&self.luma, self.stride, self.width, self.height)
    }

    /// Mean luma of the picture's middle.
    pub(crate) fn brightness(&self) -> u8 {
        let rows = self.height / 3..self.height * 2 / 3;
        let sum: u64 = rows
            .clone()
            .flat_map(|y| &self.luma[y * self.stride..y * self.stride + self.width])
            .map(|&luma| u64::from(luma))
            .sum();
        (sum / (rows.len() * self.width) as u64) as u8
    }
}

/// Decodes; each unit has to give a picture without any error.
pub(crate) fn pictures(codec: codec::Id, units: &[(u32, Bytes)]) -> Vec<Picture> {
    let codec = decoder::find(codec).unwrap();
    let mut context = codec::Context::new_with_codec(codec);
    context.set_flags(codec::Flags::LOW_DELAY);
    context.set_threading(codec::threading::Config { count: 1, ..Default::default() });
    let mut decoder = context.decoder().open_as(codec).unwrap().video().unwrap();
    let mut pictures = Vec::new();
    for (timestamp, unit) in units {
        decoder.send_packet(&codec::packet::Packet::copy(unit)).unwrap();
        let mut picture = frame::Video::empty();
        decoder.receive_frame(&mut picture).expect("one picture for each unit");
        assert_eq!(picture.format(), Pixel::YUV420P);
        assert!(!picture.has_decode_errors() && !picture.is_corrupt());
        pictures.push(Picture {
            timestamp: *timestamp,
            width: picture.width() as usize,
            height: picture.height() as usize,
            stride: picture.stride(0),
            luma: picture.data(0).to_vec(),
        });
    }
    pictures
}

/// Decodes Opus packets to mono samples at 48 kHz, with the RTP timestamp of each.
pub(crate) fn samples(packets: &[rtc::rtp::Packet]) -> Vec<(i64, f32)> {
    let codec = decoder::find_by_name("libopus").unwrap();
    let mut decoder =
        codec::Context::new_with_codec(codec).decoder().open_as(codec).unwrap().audio().unwrap();
    let first = i64::from(packets[0].header.timestamp);
    let mut samples = Vec::new();
    for packet in packets {
        decoder.send_packet(&codec::packet::Packet::copy(&packet.payload)).unwrap();
        let mut sound = frame::Audio::empty();
        decoder.receive_frame(&mut sound).unwrap();
        let channels = usize::from(sound.channels());
        let start = first + i64::from(packet.header.timestamp.wrapping_sub(first as u32) as i32);
        let bytes = &sound.data(0)[..sound.samples() * channels * 2];
        assert_eq!(sound.format().bytes(), 2, "16-bit samples");
        for (number, sample) in bytes.chunks_exact(2 * channels).enumerate() {
            let sample = f32::from(i16::from_ne_bytes([sample[0], sample[1]])) / 32_768.0;
            samples.push((start + number as i64, sample));
        }
    }
    samples
}
