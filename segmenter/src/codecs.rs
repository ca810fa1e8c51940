//! RFC 6381 names of codecs, from the configuration records in sample entries.

use crate::frame::VideoCodec;

/// AAC-LC.
pub(crate) const AAC: &str = "mp4a.40.2";

/// Opus.
pub(crate) const OPUS: &str = "opus";

/// The name for `CODECS`; none where the record is too short to be one.
pub(crate) fn video(codec: VideoCodec, config: &[u8]) -> Option<String> {
    match codec {
        // ISO 14496-15: version, profile, compatibility, level.
        VideoCodec::H264 => {
            let [1, profile, compatibility, level, ..] = config else { return None };
            Some(format!("avc1.{profile:02x}{compatibility:02x}{level:02x}"))
        }
        // vpcC, a full box: version and flags, then profile, level, bit depth (4 bits).
        VideoCodec::Vp9 => {
            let [1, _, _, _, profile, level, depth, ..] = config else { return None };
            Some(format!("vp09.{profile:02}.{level:02}.{:02}", depth >> 4))
        }
        // av1C: marker and version, profile (3 bits) and level (5), tier (1) and depth.
        VideoCodec::Av1 => {
            let [0x81, profile_level, flags, ..] = config else { return None };
            let tier = if flags & 0x80 == 0 { 'M' } else { 'H' };
            let depth = match (flags & 0x40, flags & 0x20) {
                (0, _) => 8,
                (_, 0) => 10,
                _ => 12,
            };
            Some(format!("av01.{}.{:02}{tier}.{depth:02}", profile_level >> 5, profile_level & 31))
        }
        VideoCodec::Vp8 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_configuration_records() {
        for (codec, config, name) in [
            (VideoCodec::H264, &[1, 0x42, 0xe0, 0x1f, 0xff][..], "avc1.42e01f"),
            (VideoCodec::Vp9, &[1, 0, 0, 0, 0, 31, 0x82, 1, 1, 1], "vp09.00.31.08"),
            (VideoCodec::Av1, &[0x81, 0x05, 0x0c, 0], "av01.0.05M.08"),
            (VideoCodec::Av1, &[0x81, 0x2d, 0xcc, 0], "av01.1.13H.10"),
        ] {
            assert_eq!(video(codec, config).as_deref(), Some(name));
        }
        assert_eq!(video(VideoCodec::H264, &[]), None);
        assert_eq!(video(VideoCodec::Av1, &[1, 2, 3]), None);
    }
}
