//! MPEG-TS segments become fragmented MP4, picture and sound apart, without re-encoding.
//!
//! libavformat takes the segments apart; what it gives is H.264 with start codes and AAC with ADTS headers, which are
//! put into the form that MP4 wants here, and muxed as everybody's media is. Times are those of the upstream, on one
//! clock of 90 kHz that does not wrap.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use ffmpeg_next::codec::Id;
use ffmpeg_next::{Dictionary, codec, format, media};

use crate::frame::VideoCodec;
use crate::mux::{MuxError, Muxer, SampleEntry};

/// The clock of MPEG-TS wraps at this.
const WRAP: i64 = 1 << 33;
const CLOCK: i64 = 90_000;
/// Sound that is off by less is continued without a hole: encoders round.
const SOUND_SLACK: i64 = CLOCK / 20;
const PACKET_BYTES: usize = 188;

/// Whether bytes are MPEG-TS: the sync byte, where packets begin.
pub(super) fn is_ts(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x47) && bytes.get(PACKET_BYTES).is_none_or(|byte| *byte == 0x47)
}

/// A track's share of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) init: Bytes,
    pub(super) media: Bytes,
    /// When it begins, in microseconds on the upstream's clock.
    pub(super) start_us: i64,
    pub(super) duration_us: i64,
}

/// A segment taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    pub(super) video: Option<Share>,
    pub(super) audio: Option<Share>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Remuxer {
    /// The picture's newest parameter sets.
    video: Option<SampleEntry>,
    /// Where the next sample of sound is expected, and at which rate it counts.
    sound_next: Option<(i64, u32)>,
    /// Where the segment before ended, in 1/90000 s.
    end: Option<i64>,
}

/// A sample as it is to be written.
struct Sample {
    dts: i64,
    pts: i64,
    is_keyframe: bool,
    data: Bytes,
}

impl Remuxer {
    /// What comes does not continue what was.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Takes a segment apart; an error says in words why it cannot be.
    pub(super) fn remux(&mut self, segment: &[u8]) -> Result<Shares, String> {
        let result = self.take_apart(segment);
        if result.is_err() {
            // What comes next has nothing to continue.
            self.reset();
        }
        result
    }

    fn take_apart(&mut self, segment: &[u8]) -> Result<Shares, String> {
        let fail = |error: ffmpeg_next::Error| format!("its MPEG-TS cannot be read: {error}");
        let mut options = Dictionary::new();
        // Nothing else is opened, whatever the bytes say they are.
        options.set("protocol_whitelist", "data");
        options.set("format_whitelist", "mpegts");
        let url = format!("data:video/mp2t;base64,{}", STANDARD.encode(segment));
        let mut input = format::input_with_dictionary(Path::new(&url), options).map_err(fail)?;
        let (mut video, mut audio) = (None, None);
        for stream in input.streams() {
            let parameters = stream.parameters();
            match (parameters.medium(), parameters.id()) {
                (media::Type::Video, Id::H264) if video.is_none() => {
                    let decoder = codec::context::Context::from_parameters(parameters).map_err(fail)?;
                    let decoder = decoder.decoder().video().map_err(fail)?;
                    video = Some((stream.index(), decoder.width(), decoder.height()));
                }
                (media::Type::Audio, Id::AAC) if audio.is_none() => audio = Some(stream.index()),
                (media::Type::Video | media::Type::Audio, id) if video.is_none() || audio.is_none() => {
                    return Err(format!(
                        "its MPEG-TS holds {id:?}; only H264 and AAC are pulled from MPEG-TS"
                    ));
                }
                _ => {}
            }
        }
        let (mut pictures, mut sounds) = (Vec::new(), Vec::new());
        let mut near = self.end;
        for (stream, packet) in input.packets() {
            let (Some(data), Some(dts)) = (packet.data(), packet.dts().or(packet.pts())) else { continue };
            let dts = unwrap(dts, near);
            near = Some(dts);
            let pts = unwrap(packet.pts().unwrap_or(dts), Some(dts));
            let sample =
                Sample { dts, pts, is_keyframe: packet.is_key(), data: Bytes::copy_from_slice(data) };
            if video.is_some_and(|(index, ..)| index == stream.index()) {
                pictures.push(sample);
            } else if audio == Some(stream.index()) {
                sounds.push(sample);
            }
        }
        self.end = near.or(self.end);
        let size = video.map_or((0, 0), |(_, width, height)| (width, height));
        let shares = Shares { video: self.pictures(pictures, size)?, audio: self.sounds(&sounds)? };
        if shares == Shares::default() {
            return Err("its MPEG-TS holds neither picture nor sound".to_owned());
        }
        Ok(shares)
    }

    fn pictures(
        &mut self,
        samples: Vec<Sample>,
        (width, height): (u32, u32),
    ) -> Result<Option<Share>, String> {
        let Some(first) = samples.first().map(|sample| sample.dts) else { return Ok(None) };
        let last = samples.last().map_or(first, |sample| sample.dts);
        let config = samples.iter().find_map(|sample| avc_config(&sample.data));
        // Parameter sets stand with keyframes; a segment without any continues with those before.
        let entry = match (config, &self.video) {
            (Some(config), _) => SampleEntry::Video { codec: VideoCodec::H264, width, height, config },
            (None, Some(entry)) => entry.clone(),
            (None, None) => return Err("its picture has no parameter sets to begin with".to_owned()),
        };
        let (mut muxer, init) = open(Muxer::open_reordered(&entry))?;
        self.video = Some(entry);
        // The last picture lasts as long as they do on average: where the next one begins, the next segment says.
        let count = i64::try_from(samples.len()).unwrap_or(i64::MAX);
        let mean = if count > 1 { (last - first) / (count - 1) } else { CLOCK / 25 };
        let ends: Vec<i64> = samples.iter().skip(1).map(|sample| sample.dts).chain([last + mean]).collect();
        for (sample, end) in samples.iter().zip(ends) {
            let data = length_prefixed(&sample.data);
            let duration = (end - sample.dts).max(1);
            let written = muxer.write_reordered(sample.dts, sample.pts, duration, sample.is_keyframe, &data);
            written.map_err(|error| error.to_string())?;
        }
        let media = muxer.flush().map_err(|error| error.to_string())?;
        let (start_us, duration_us) = (micros(first, CLOCK), micros(last + mean - first, CLOCK));
        Ok(Some(Share { init, media, start_us, duration_us }))
    }

    fn sounds(&mut self, samples: &[Sample]) -> Result<Option<Share>, String> {
        let Some(head) = samples.iter().find_map(|sample| adts(&sample.data)) else {
            return match samples {
                [] => Ok(None),
                _ => Err("its AAC has no ADTS headers".to_owned()),
            };
        };
        let rate = i64::from(head.sample_rate);
        let entry = SampleEntry::Aac {
            sample_rate: head.sample_rate,
            channels: head.channels,
            config: Bytes::copy_from_slice(&head.config),
        };
        let (mut muxer, init) = open(Muxer::open(&entry))?;
        let next = self.sound_next.filter(|(_, rate)| *rate == head.sample_rate).map(|(next, _)| next);
        let (mut start, mut next) = (None, next);
        for sample in samples {
            let mut at = sample.pts * rate / CLOCK;
            let mut rest = &sample.data[..];
            // A packet may hold several frames.
            while let Some(head) = adts(rest) {
                let off = next.map_or(i64::MAX, |next| (at - next).abs());
                if off < SOUND_SLACK * rate / CLOCK {
                    at = next.unwrap_or(at);
                }
                let frame = Bytes::copy_from_slice(&rest[head.length..head.frame_length]);
                muxer.write(at, 1024, true, &frame).map_err(|error| error.to_string())?;
                start.get_or_insert(at);
                at += 1024;
                next = Some(at);
                rest = &rest[head.frame_length..];
            }
        }
        self.sound_next = next.map(|next| (next, head.sample_rate));
        let media = muxer.flush().map_err(|error| error.to_string())?;
        let (start, end) = (start.unwrap_or(0), next.unwrap_or(0));
        let (start_us, duration_us) = (micros(start, rate), micros(end - start, rate));
        Ok(Some(Share { init, media, start_us, duration_us }))
    }
}

fn micros(ticks: i64, rate: i64) -> i64 {
    i64::try_from(i128::from(ticks) * 1_000_000 / i128::from(rate.max(1))).unwrap_or(0)
}

/// The time of a clock that wraps, as one that does not: the one that is nearest.
fn unwrap(time: i64, near: Option<i64>) -> i64 {
    match near {
        None => time.rem_euclid(WRAP),
        Some(near) => {
            let off = (time - near).rem_euclid(WRAP);
            near + if off >= WRAP / 2 { off - WRAP } else { off }
        }
    }
}

/// A muxer for one segment. One for all would add up durations, of which the last one of each segment is a guess; so
/// each segment begins exactly when the upstream says.
fn open(opened: Result<(Muxer, Bytes), MuxError>) -> Result<(Muxer, Bytes), String> {
    opened.map_err(|error| error.to_string())
}

/// The NAL units between start codes, without zeros behind them.
fn units(data: &[u8]) -> Vec<&[u8]> {
    let mut starts = Vec::new();
    let mut at = 0;
    while let Some(found) = data.get(at..).and_then(|rest| rest.windows(3).position(|code| code == [0, 0, 1]))
    {
        starts.push(at + found);
        at += found + 3;
    }
    let ends = starts.iter().skip(1).copied().chain([data.len()]);
    let unit = |(start, end): (&usize, usize)| {
        let unit = &data[start + 3..end];
        let zeros = unit.iter().rev().take_while(|byte| **byte == 0).count();
        &unit[..unit.len() - zeros]
    };
    starts.iter().zip(ends).map(unit).filter(|unit| !unit.is_empty()).collect()
}

/// NAL units behind their lengths. Parameter sets and delimiters stay: the sets may change in a segment.
fn length_prefixed(data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 16);
    for unit in units(data).into_iter().filter(|unit| unit[0] & 31 != 9) {
        out.put_u32(u32::try_from(unit.len()).unwrap_or(u32::MAX));
        out.extend_from_slice(unit);
    }
    out.freeze()
}

/// The configuration record of a picture's parameter sets (ISO/IEC 14496-15, section 5.3.3.1).
fn avc_config(data: &[u8]) -> Option<Bytes> {
    let units = units(data);
    let find = |kind: u8| units.iter().find(|unit| unit[0] & 31 == kind).copied();
    let (sps, pps) = (find(7)?, find(8)?);
    let &[_, profile, compatibility, level, ..] = sps else { return None };
    let length = |unit: &[u8]| u16::try_from(unit.len()).ok();
    let mut out = BytesMut::new();
    out.extend_from_slice(&[1, profile, compatibility, level, 0xff, 0xe1]);
    out.put_u16(length(sps)?);
    out.extend_from_slice(sps);
    out.put_u8(1);
    out.put_u16(length(pps)?);
    out.extend_from_slice(pps);
    Some(out.freeze())
}

/// An ADTS header (ISO/IEC 13818-7, section 6.2).
struct Adts {
    sample_rate: u32,
    channels: u8,
    /// AudioSpecificConfig.
    config: [u8; 2],
    /// Of the header.
    length: usize,
    /// With the header.
    frame_length: usize,
}

const SAMPLE_RATES: [u32; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350];

/// The header that the bytes begin with; none where the frame is not whole.
fn adts(data: &[u8]) -> Option<Adts> {
    let &[sync, flags, b2, b3, b4, b5, ..] = data else { return None };
    if sync != 0xff || flags & 0xf6 != 0xf0 {
        return None;
    }
    let (profile, rate, channels) = (b2 >> 6, b2 >> 2 & 15, (b2 & 1) << 2 | b3 >> 6);
    let length = if flags & 1 == 1 { 7 } else { 9 };
    let frame_length = usize::from(b3 & 3) << 11 | usize::from(b4) << 3 | usize::from(b5 >> 5);
    let sample_rate = *SAMPLE_RATES.get(usize::from(rate))?;
    // Channels that the frame itself describes (0) are not taken: the sample entry must know.
    if channels == 0 || frame_length <= length || frame_length > data.len() {
        return None;
    }
    let config = [(profile + 1) << 3 | rate >> 1, rate << 7 | channels << 3];
    let channels = if channels == 7 { 8 } else { channels };
    Some(Adts { sample_rate, channels, config, length, frame_length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_goes_on_over_its_wrap() {
        assert_eq!(unwrap(5, None), 5);
        assert_eq!(unwrap(-5, None), WRAP - 5, "as libavformat counts before a wrap");
        assert_eq!(unwrap(3, Some(WRAP - 7)), WRAP + 3);
        assert_eq!(unwrap(WRAP - 7, Some(WRAP + 3)), WRAP - 7);
        assert_eq!(unwrap(3, Some(5 * WRAP + 1)), 5 * WRAP + 3);
    }

    #[test]
    fn start_codes_become_lengths() {
        let data = [0, 0, 0, 1, 9, 0xf0, 0, 0, 1, 0x67, 1, 2, 3, 0, 0, 0, 1, 0x68, 4, 0, 0, 1, 0x65, 5, 0];
        assert_eq!(
            &length_prefixed(&data)[..],
            [0, 0, 0, 4, 0x67, 1, 2, 3, 0, 0, 0, 2, 0x68, 4, 0, 0, 0, 2, 0x65, 5]
        );
        assert_eq!(
            &avc_config(&data).unwrap()[..],
            [1, 1, 2, 3, 0xff, 0xe1, 0, 4, 0x67, 1, 2, 3, 1, 0, 2, 0x68, 4]
        );
        assert!(avc_config(&[0, 0, 1, 0x67, 1]).is_none());
    }

    #[test]
    fn what_is_no_transport_stream_is_refused_in_words() {
        // A playlist that would lead elsewhere if libavformat were free to take it for what it is.
        for bytes in [&b""[..], b"G", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x\n", &[0x47; 1880]] {
            assert!(Remuxer::default().remux(bytes).is_err(), "{bytes:?}");
        }
    }
}
