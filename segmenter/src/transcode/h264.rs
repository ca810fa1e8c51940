//! H.264 as bytes: what x264 gives taken apart for a container, and what is in a container put together for a decoder.
//!
//! Pure. Records of the Baseline, Extended and Main profiles are written; higher ones have a longer record.

use crate::frame::{TrackFormat, VideoCodec};

/// What x264 gives for a picture, taken apart.
#[derive(Debug, Default)]
pub(crate) struct AccessUnit<'a> {
    pub(crate) sps: &'a [u8],
    pub(crate) pps: &'a [u8],
    pub(crate) data: Vec<u8>,
}

impl<'a> AccessUnit<'a> {
    /// Reads Annex B.
    pub(crate) fn parse(bytes: &'a [u8]) -> Self {
        let mut unit = Self::default();
        let starts: Vec<usize> = bytes
            .windows(3)
            .enumerate()
            .filter_map(|(index, window)| (window == [0, 0, 1]).then_some(index + 3))
            .collect();
        for (index, &start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).map_or(bytes.len(), |next| next - 3);
            let mut nal = &bytes[start..end];
            // The zero that a four-byte start code begins with; NAL units never end in one.
            while let [rest @ .., 0] = nal {
                nal = rest;
            }
            match nal.first().map(|header| header & 31) {
                Some(7) => unit.sps = nal,
                Some(8) => unit.pps = nal,
                // Delimiters have no place in a container; x264's message about itself is of no use to anybody.
                Some(6 | 9) | None => {}
                Some(_) => {
                    unit.data.extend_from_slice(&(nal.len() as u32).to_be_bytes());
                    unit.data.extend_from_slice(nal);
                }
            }
        }
        unit
    }

    /// The format with its `avcC` record (ISO 14496-15, 5.3.3.1).
    pub(crate) fn format(&self, width: u32, height: u32) -> Option<TrackFormat> {
        let [_, profile, compatibility, level, ..] = *self.sps else { return None };
        let length = |nal: &[u8]| u16::try_from(nal.len()).ok().map(u16::to_be_bytes);
        let config = [
            &[1, profile, compatibility, level, 0xff, 0xe1][..],
            &length(self.sps)?,
            self.sps,
            &[1],
            &length(self.pps)?,
            self.pps,
        ]
        .concat();
        Some(TrackFormat::Video { codec: VideoCodec::H264, width, height, config: config.into() })
    }
}

/// The parameter sets of an `avcC` record in Annex B; none if it is not one.
pub(crate) fn parameter_sets(config: &[u8]) -> Option<Vec<u8>> {
    let mut annex_b = Vec::new();
    sets_of(config)?.into_iter().for_each(|nal| append(&mut annex_b, nal));
    Some(annex_b)
}

/// A picture of NAL units with 4-byte lengths, behind the parameter sets of an `avcC` record; none if it is not one.
pub(crate) fn behind_parameter_sets(config: &[u8], picture: &[u8]) -> Option<Vec<u8>> {
    let mut units = Vec::with_capacity(config.len() + 16 + picture.len());
    for nal in sets_of(config)? {
        units.extend_from_slice(&u32::try_from(nal.len()).ok()?.to_be_bytes());
        units.extend_from_slice(nal);
    }
    units.extend_from_slice(picture);
    Some(units)
}

fn sets_of<'a>(config: &'a [u8]) -> Option<Vec<&'a [u8]>> {
    let (&[1, _, _, _, _, sps_count], mut rest) = config.split_first_chunk::<6>()? else { return None };
    let mut sets = Vec::new();
    let mut take = |count: u8, rest: &mut &'a [u8]| -> Option<()> {
        for _ in 0..count {
            let (length, tail) = rest.split_first_chunk::<2>()?;
            let (nal, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            sets.push(nal);
            *rest = tail;
        }
        Some(())
    };
    take(sps_count & 31, &mut rest)?;
    let (&pps_count, tail) = rest.split_first()?;
    rest = tail;
    take(pps_count, &mut rest)?;
    Some(sets)
}

/// Appends NAL units with 4-byte lengths in Annex B; false if they are not such.
pub(crate) fn append_annex_b(out: &mut Vec<u8>, mut units: &[u8]) -> bool {
    while !units.is_empty() {
        let Some((length, tail)) = units.split_first_chunk::<4>() else { return false };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let Some((nal, tail)) = tail.split_at_checked(length) else { return false };
        append(out, nal);
        units = tail;
    }
    true
}

fn append(out: &mut Vec<u8>, nal: &[u8]) {
    out.extend_from_slice(&[0, 0, 0, 1]);
    out.extend_from_slice(nal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_apart_can_be_put_together() {
        let annex_b =
            [&[0, 0, 0, 1, 0x67, 0x4d, 0x40, 0x1f, 9][..], &[0, 0, 1, 0x68, 7], &[0, 0, 1, 0x65, 1, 2, 3]];
        let annex_b = annex_b.concat();
        let unit = AccessUnit::parse(&annex_b);
        assert_eq!(unit.data, [0, 0, 0, 4, 0x65, 1, 2, 3]);
        let Some(TrackFormat::Video { config, .. }) = unit.format(64, 36) else { panic!("a format") };
        let mut again = parameter_sets(&config).unwrap();
        assert!(append_annex_b(&mut again, &unit.data));
        let again = AccessUnit::parse(&again);
        assert_eq!((again.sps, again.pps, again.data), (unit.sps, unit.pps, unit.data));
    }

    #[test]
    fn a_picture_behind_its_parameter_sets_is_one_access_unit() {
        let config = [1, 0x42, 0xe0, 0x1f, 0xff, 0xe1, 0, 3, 0x67, 1, 2, 1, 0, 2, 0x68, 3];
        let picture = [0, 0, 0, 2, 0x65, 9];
        let units = behind_parameter_sets(&config, &picture).unwrap();
        assert_eq!(units, [0, 0, 0, 3, 0x67, 1, 2, 0, 0, 0, 2, 0x68, 3, 0, 0, 0, 2, 0x65, 9]);
        assert_eq!(behind_parameter_sets(&[2; 20], &picture), None);
    }

    #[test]
    fn garbage_is_refused() {
        for config in [&[][..], &[1, 2, 3], &[1, 0x42, 0, 0x1f, 0xff, 0xe1, 0, 9, 1], &[2; 20]] {
            assert_eq!(parameter_sets(config), None, "{config:?}");
        }
        for units in [&[1][..], &[0, 0, 0, 9, 1], &[0xff; 8]] {
            assert!(!append_annex_b(&mut Vec::new(), units), "{units:?}");
        }
    }
}
