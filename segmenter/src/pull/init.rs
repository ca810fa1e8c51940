//! What an upstream's initialization section says of its tracks: codec names, sizes, channels. Pure.
//!
//! Only sample entries are looked at. The bytes are anybody's: what cannot be read is none, never a panic.

use crate::boxes::{boxes, child};
use crate::codecs;
use crate::frame::VideoCodec;

/// A track of an initialization section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Track {
    /// Its RFC 6381 name.
    pub(super) codecs: String,
    /// Width and height; none for audio.
    pub(super) resolution: Option<(u32, u32)>,
    /// 0 for video.
    pub(super) channels: u8,
    /// Whether a key is needed to decode it.
    pub(super) is_encrypted: bool,
}

/// The video and audio tracks; none where this is no initialization section.
pub(super) fn tracks(init: &[u8]) -> Option<Vec<Track>> {
    let moov = child(init, b"moov")?;
    let of_track = |trak: &[u8]| {
        let mdia = child(trak, b"mdia")?;
        let handler = child(mdia, b"hdlr")?.get(8..12)?;
        let stsd = child(child(child(mdia, b"minf")?, b"stbl")?, b"stsd")?;
        // Version and flags, and the number of entries.
        let (kind, entry) = boxes(stsd.get(8..)?).next()?;
        match handler {
            b"vide" => video(kind, entry),
            b"soun" => audio(kind, entry),
            _ => None,
        }
    };
    let traks = boxes(moov).filter(|(kind, _)| kind == b"trak");
    let found: Vec<Track> = traks.filter_map(|(_, trak)| of_track(trak)).collect();
    (!found.is_empty()).then_some(found)
}

fn name(kind: [u8; 4]) -> String {
    let is_plain = kind.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    if is_plain { String::from_utf8_lossy(&kind).into_owned() } else { "unknown".to_owned() }
}

/// ISO/IEC 14496-12, section 12.1.3: 78 bytes, then boxes.
fn video(kind: [u8; 4], entry: &[u8]) -> Option<Track> {
    let size = |at: usize| Some(u32::from(u16::from_be_bytes(entry.get(at..at + 2)?.try_into().ok()?)));
    let config = |kind: &[u8; 4]| child(entry.get(78..).unwrap_or_default(), kind).unwrap_or_default();
    let codecs = match &kind {
        b"avc1" | b"avc3" => {
            let name = codecs::video(VideoCodec::H264, config(b"avcC"))?;
            name.replacen("avc1", &self::name(kind), 1)
        }
        b"vp09" => codecs::video(VideoCodec::Vp9, config(b"vpcC"))?,
        b"av01" => codecs::video(VideoCodec::Av1, config(b"av1C"))?,
        b"hvc1" | b"hev1" | b"dvh1" | b"dvhe" => hevc(kind, config(b"hvcC"))?,
        _ => name(kind),
    };
    let is_encrypted = &kind == b"encv";
    Some(Track { codecs, resolution: Some((size(24)?, size(26)?)), channels: 0, is_encrypted })
}

/// ISO/IEC 14496-15, annex E.3.
fn hevc(kind: [u8; 4], config: &[u8]) -> Option<String> {
    let [_, profile, c0, c1, c2, c3, constraints @ ..] = config else { return None };
    let (constraints, level) = (constraints.get(..6)?, constraints.get(6)?);
    let space = ["", "A", "B", "C"][usize::from(profile >> 6)];
    let tier = if profile & 0x20 == 0 { 'L' } else { 'H' };
    let compatibility = u32::from_be_bytes([*c0, *c1, *c2, *c3]).reverse_bits();
    let mut text = format!("{}.{space}{}.{compatibility:X}.{tier}{level}", name(kind), profile & 31);
    let used = constraints.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    constraints.iter().take(used).for_each(|byte| text += &format!(".{byte:X}"));
    Some(text)
}

/// Section 12.2.3: 28 bytes, then boxes.
fn audio(kind: [u8; 4], entry: &[u8]) -> Option<Track> {
    let channels = *entry.get(17)?;
    let codecs = match &kind {
        b"mp4a" => {
            let esds = child(entry.get(28..).unwrap_or_default(), b"esds").unwrap_or_default();
            mpeg4_audio(esds).unwrap_or_else(|| codecs::AAC.to_owned())
        }
        _ => name(kind),
    };
    Some(Track { codecs, resolution: None, channels, is_encrypted: &kind == b"enca" })
}

/// ISO/IEC 14496-1: descriptors in descriptors; the object type, and the first five bits of its configuration.
fn mpeg4_audio(esds: &[u8]) -> Option<String> {
    let es = descriptor(esds.get(4..)?, 3)?;
    let flags = *es.get(2)?;
    // Fields that only streams within other systems have.
    if flags & 0xe0 != 0 {
        return None;
    }
    let decoder = descriptor(es.get(3..)?, 4)?;
    let object = *decoder.first()?;
    if object != 0x40 {
        return Some(format!("mp4a.{object:x}"));
    }
    let config = descriptor(decoder.get(13..)?, 5)?;
    let kind = match config.first()? >> 3 {
        // Escaped: six more bits.
        31 => 32 + (u16::from_be_bytes([*config.first()?, *config.get(1)?]) >> 5 & 63),
        kind => u16::from(kind),
    };
    Some(format!("mp4a.40.{kind}"))
}

/// The content of a descriptor with this tag, if it is the first one.
fn descriptor(bytes: &[u8], tag: u8) -> Option<&[u8]> {
    if *bytes.first()? != tag {
        return None;
    }
    let (mut at, mut length) = (1, 0usize);
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        length = length << 7 | usize::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
        if at > 4 {
            return None;
        }
    }
    bytes.get(at..at.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::mux::{Muxer, SampleEntry};

    fn avc() -> Bytes {
        let config = Bytes::from_static(&[
            1, 0x42, 0xe0, 0x1f, 0xff, 0xe1, 0, 4, 0x67, 0x42, 0xe0, 0x1f, 1, 0, 2, 0x68, 0,
        ]);
        let entry = SampleEntry::Video { codec: VideoCodec::H264, width: 640, height: 360, config };
        Muxer::open(&entry).unwrap().1
    }

    fn aac() -> Bytes {
        let config = Bytes::from_static(&[0x11, 0x90]);
        Muxer::open(&SampleEntry::Aac { sample_rate: 48_000, channels: 2, config }).unwrap().1
    }

    #[test]
    fn tracks_are_named_as_multivariant_playlists_name_them() {
        let track = |codecs: &str, resolution, channels| Track {
            codecs: codecs.to_owned(),
            resolution,
            channels,
            is_encrypted: false,
        };
        assert_eq!(tracks(&avc()), Some(vec![track("avc1.42e01f", Some((640, 360)), 0)]));
        assert_eq!(tracks(&aac()), Some(vec![track("mp4a.40.2", None, 2)]));
        assert_eq!(tracks(b"no init"), None);
    }

    #[test]
    fn encrypted_track_is_seen() {
        let mut init = avc().to_vec();
        let at = init.windows(4).position(|name| name == b"avc1").unwrap();
        // The brands of `ftyp` may name it too.
        let at = if at < 32 {
            at + 4 + init[at + 4..].windows(4).position(|name| name == b"avc1").unwrap()
        } else {
            at
        };
        init[at..at + 4].copy_from_slice(b"encv");
        assert!(tracks(&init).unwrap()[0].is_encrypted);
    }

    #[test]
    fn hevc_is_named_by_annex_e() {
        let config = [1, 1, 0x60, 0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 93];
        assert_eq!(hevc(*b"hvc1", &config).as_deref(), Some("hvc1.1.6.L93.B0"));
    }

    proptest! {
        #[test]
        fn damaged_sections_are_read_or_refused_without_a_panic(
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20),
            length: proptest::sample::Index,
            is_audio: bool,
        ) {
            let mut init = if is_audio { aac() } else { avc() }.to_vec();
            for (at, byte) in damage {
                let at = at.index(init.len());
                init[at] = byte;
            }
            init.truncate(length.index(init.len()) + 1);
            let _ = tracks(&init);
        }
    }
}
