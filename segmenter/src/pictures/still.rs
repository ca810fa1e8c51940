//! The first picture of a piece of media, as a decoder takes it. Pure.
//!
//! Decoders get what is in the initialization section in front of the picture itself, in the form that the codec has
//! outside of containers, so that nothing but the bytes of one packet has to be handed over. The bytes are anybody's:
//! what cannot be read is none, never a panic.

use crate::boxes::{boxes, child, number16, number32};

/// What it is encoded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    H264,
    Hevc,
    Vp9,
    Av1,
}

/// An encoded picture that can be decoded alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Still {
    pub(super) codec: Codec,
    pub(super) data: Vec<u8>,
}

/// A video track of an initialization section.
struct Track<'a> {
    id: u32,
    codec: Codec,
    config: &'a [u8],
    default_size: u32,
}

impl Still {
    /// The first sample of the video track in `media`, which begins with a keyframe; `init` is its initialization
    /// section. None where they do not fit each other, or the codec is none that is known here.
    pub(super) fn read(init: &[u8], media: &[u8]) -> Option<Self> {
        let track = Track::read(init)?;
        let sample = first_sample(media, &track)?;
        let data = match track.codec {
            Codec::H264 => h264(track.config, sample)?,
            Codec::Hevc => hevc(track.config, sample)?,
            Codec::Vp9 => sample.to_vec(),
            // The sequence header may stand in the record only; twice does no harm.
            Codec::Av1 => [track.config.get(4..)?, sample].concat(),
        };
        Some(Self { codec: track.codec, data })
    }
}

impl<'a> Track<'a> {
    fn read(init: &'a [u8]) -> Option<Self> {
        let moov = child(init, b"moov")?;
        let traks = boxes(moov).filter(|(kind, _)| kind == b"trak").map(|(_, trak)| trak);
        let mut videos = traks.filter_map(|trak| {
            let mdia = child(trak, b"mdia")?;
            (child(mdia, b"hdlr")?.get(8..12)? == b"vide").then_some((trak, mdia))
        });
        let (trak, mdia) = videos.next()?;
        let tkhd = child(trak, b"tkhd")?;
        let id = number32(tkhd, if tkhd.first() == Some(&1) { 20 } else { 12 })?;
        let stsd = child(child(child(mdia, b"minf")?, b"stbl")?, b"stsd")?;
        // Version and flags, and the number of entries; then 78 bytes of a visual sample entry and its boxes.
        let (kind, entry) = boxes(stsd.get(8..)?).next()?;
        let config = |kind: &[u8; 4]| child(entry.get(78..)?, kind);
        let (codec, config) = match &kind {
            b"avc1" | b"avc3" => (Codec::H264, config(b"avcC")?),
            b"hvc1" | b"hev1" => (Codec::Hevc, config(b"hvcC")?),
            b"vp09" => (Codec::Vp9, config(b"vpcC")?),
            b"av01" => (Codec::Av1, config(b"av1C")?),
            _ => return None,
        };
        let trex = boxes(child(moov, b"mvex")?)
            .filter(|(kind, _)| kind == b"trex")
            .find(|(_, trex)| number32(trex, 4) == Some(id));
        let default_size = trex.and_then(|(_, trex)| number32(trex, 16)).unwrap_or(0);
        Some(Self { id, codec, config, default_size })
    }
}

/// The first sample of a track in a sequence of movie fragments.
fn first_sample<'a>(media: &'a [u8], track: &Track<'_>) -> Option<&'a [u8]> {
    let mut at = 0;
    for (kind, content) in boxes(media) {
        let end = at + 8 + content.len();
        if &kind == b"moof" {
            let trafs = boxes(content).filter(|(kind, _)| kind == b"traf").map(|(_, traf)| traf);
            for traf in trafs {
                if let Some((place, size)) = first_of(traf, track) {
                    // From the fragment's beginning, or where its media begins.
                    let start = place.map_or(Some(end + 8), |place| at.checked_add(place))?;
                    return media.get(start..start.checked_add(size)?).filter(|sample| !sample.is_empty());
                }
            }
        }
        at = end;
    }
    None
}

/// Where a track fragment's first sample stands, and its size.
fn first_of(traf: &[u8], track: &Track<'_>) -> Option<(Option<usize>, usize)> {
    let tfhd = child(traf, b"tfhd")?;
    let flags = number32(tfhd, 0)?;
    if number32(tfhd, 4)? != track.id {
        return None;
    }
    let mut size = track.default_size;
    let mut at = 8;
    for (bit, width) in [(0x1, 8), (0x2, 4), (0x8, 4), (0x10, 4)] {
        if flags & bit != 0 {
            if bit == 0x10 {
                size = number32(tfhd, at)?;
            }
            at += width;
        }
    }
    let trun = child(traf, b"trun")?;
    let flags = number32(trun, 0)?;
    let mut at = 8;
    let mut place = None;
    if flags & 0x1 != 0 {
        place = Some(usize::try_from(number32(trun, at)?).ok()?);
        at += 4;
    }
    if flags & 0x4 != 0 {
        at += 4;
    }
    if flags & 0x200 != 0 {
        let duration = if flags & 0x100 != 0 { 4 } else { 0 };
        size = number32(trun, at + duration)?;
    }
    Some((place, usize::try_from(size).ok()?))
}

/// In front of each NAL unit outside of containers.
const START: [u8; 4] = [0, 0, 0, 1];

/// Parameter sets of an `avcC` record (ISO 14496-15, 5.3.3.1) and a sample, with start codes.
fn h264(config: &[u8], sample: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(config.len() + sample.len() + 64);
    let mut at = 6;
    let sps = usize::from(config.get(5)? & 31);
    at = parameter_sets(config, at, sps, &mut out)?;
    let pps = usize::from(*config.get(at)?);
    parameter_sets(config, at + 1, pps, &mut out)?;
    units(sample, usize::from(config.get(4)? & 3) + 1, &mut out)?;
    Some(out)
}

/// The same of an `hvcC` record (8.3.3.1).
fn hevc(config: &[u8], sample: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(config.len() + sample.len() + 64);
    let mut at = 23;
    for _ in 0..*config.get(22)? {
        let count = usize::from(number16(config, at + 1)?);
        at = parameter_sets(config, at + 3, count, &mut out)?;
    }
    units(sample, usize::from(config.get(21)? & 3) + 1, &mut out)?;
    Some(out)
}

/// Copies NAL units with two-byte lengths, and returns where they end.
fn parameter_sets(config: &[u8], mut at: usize, count: usize, out: &mut Vec<u8>) -> Option<usize> {
    for _ in 0..count {
        let end = at + 2 + usize::from(number16(config, at)?);
        out.extend_from_slice(&START);
        out.extend_from_slice(config.get(at + 2..end)?);
        at = end;
    }
    Some(at)
}

/// Copies NAL units with lengths of `width` bytes.
fn units(mut sample: &[u8], width: usize, out: &mut Vec<u8>) -> Option<()> {
    while !sample.is_empty() {
        let (length, rest) = sample.split_at_checked(width)?;
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let (unit, rest) = rest.split_at_checked(length)?;
        out.extend_from_slice(&START);
        out.extend_from_slice(unit);
        sample = rest;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::frame::VideoCodec;
    use crate::mux::{Muxer, SampleEntry};

    const AVCC: &[u8] = &[1, 0x42, 0xe0, 0x1f, 0xff, 0xe1, 0, 4, 0x67, 0x42, 0xe0, 0x1f, 1, 0, 2, 0x68, 0xce];

    /// What our muxer makes of two samples.
    fn muxed(codec: VideoCodec, config: &'static [u8], samples: [&'static [u8]; 2]) -> (Bytes, Bytes) {
        let entry = SampleEntry::Video { codec, width: 320, height: 180, config: Bytes::from_static(config) };
        let (mut muxer, init) = Muxer::open(&entry).unwrap();
        for (index, sample) in samples.into_iter().enumerate() {
            muxer.write(index as i64 * 3_000, 3_000, index == 0, &Bytes::from_static(sample)).unwrap();
        }
        (init, muxer.flush().unwrap())
    }

    #[test]
    fn first_picture_is_found_and_has_its_parameter_sets() {
        let samples: [&[u8]; 2] = [&[0, 0, 0, 2, 0x65, 1, 0, 0, 0, 1, 0x65], &[0, 0, 0, 1, 0x41]];
        let (init, media) = muxed(VideoCodec::H264, AVCC, samples);
        let still = Still::read(&init, &media).unwrap();
        assert_eq!(still.codec, Codec::H264);
        let expected: &[&[u8]] = &[&[0x67, 0x42, 0xe0, 0x1f], &[0x68, 0xce], &[0x65, 1], &[0x65]];
        let expected: Vec<u8> = expected.iter().flat_map(|unit| [&START, *unit].concat()).collect();
        assert_eq!(still.data, expected);
    }

    #[test]
    fn av1_has_its_sequence_header_and_vp9_needs_nothing() {
        let (init, media) =
            muxed(VideoCodec::Av1, &[0x81, 5, 0x0c, 0, 0x0a, 1, 7], [&[0x32, 1, 9], &[0x32, 1, 8]]);
        let still = Still::read(&init, &media).unwrap();
        assert_eq!((still.codec, &still.data[..]), (Codec::Av1, &[0x0a, 1, 7, 0x32, 1, 9][..]));
        let record: &[u8] = &[1, 0, 0, 0, 0, 31, 0x82, 1, 1, 1, 0, 0];
        let (init, media) = muxed(VideoCodec::Vp9, record, [&[0x82, 0x49, 0x83], &[0x86]]);
        let still = Still::read(&init, &media).unwrap();
        assert_eq!((still.codec, &still.data[..]), (Codec::Vp9, &[0x82, 0x49, 0x83][..]));
    }

    #[test]
    fn sound_has_no_picture() {
        let config = Bytes::from_static(&[0x11, 0x90]);
        let entry = SampleEntry::Aac { sample_rate: 48_000, channels: 2, config };
        let (mut muxer, init) = Muxer::open(&entry).unwrap();
        muxer.write(0, 1024, true, &Bytes::from_static(&[1; 9])).unwrap();
        assert_eq!(Still::read(&init, &muxer.flush().unwrap()), None);
    }

    proptest! {
        #[test]
        fn damaged_media_is_read_or_not_without_a_panic(at in 0usize..1_000, byte: u8, cut in 0usize..1_000) {
            let samples: [&[u8]; 2] = [&[0, 0, 0, 2, 0x65, 1], &[0, 0, 0, 1, 0x41]];
            let (init, media) = muxed(VideoCodec::H264, AVCC, samples);
            let damage = |bytes: &Bytes| {
                let mut bytes = bytes.to_vec();
                let at = at % bytes.len();
                bytes[at] = byte;
                bytes
            };
            let _ = Still::read(&damage(&init), &media);
            let _ = Still::read(&init, &damage(&media));
            let _ = Still::read(&init[..cut.min(init.len())], &media[..cut.min(media.len())]);
            let _ = h264(&damage(&Bytes::from_static(AVCC)), &[]);
            let _ = hevc(&damage(&media), &[]);
        }
    }
}
