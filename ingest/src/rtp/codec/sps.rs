//! What an H.264 sequence parameter set says about size and format (ITU-T H.264, 7.3.2.1.1).

use super::Malformed;
use super::bits::Bits;

/// The part of a sequence parameter set that a sample entry needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sps {
    /// `seq_parameter_set_id`
    pub(super) id: u32,
    /// `profile_idc`
    pub(super) profile: u8,
    /// `chroma_format_idc`
    pub(super) chroma_format: u8,
    /// `bit_depth_luma_minus8`
    pub(super) luma_depth_minus8: u8,
    /// `bit_depth_chroma_minus8`
    pub(super) chroma_depth_minus8: u8,
    /// In pixels, after cropping.
    pub(super) width: u32,
    /// In pixels, after cropping.
    pub(super) height: u32,
}

/// Profiles whose parameter sets (and configuration records) carry the chroma format.
pub(super) const PROFILES_WITH_CHROMA: [u8; 13] =
    [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135];
/// 16K: larger than any level allows.
const PIXELS_PER_SIDE_MAX: u32 = 16_384;

impl Sps {
    /// Reads a NAL unit of type 7, header included.
    pub(super) fn parse(nal: &[u8]) -> Result<Self, Malformed> {
        let rbsp = unescape(nal.get(1..).unwrap_or(&[]));
        let mut bits = Bits::new(&rbsp);
        let profile = bits.bits(8)? as u8;
        bits.bits(16)?; // constraint flags, level
        let id = bits.unsigned_exp_golomb()?;
        if id > 31 {
            return Err(Malformed("a sequence parameter set's number"));
        }
        let mut format = SampleFormat::DEFAULT;
        if PROFILES_WITH_CHROMA.contains(&profile) {
            format = SampleFormat::read(&mut bits)?;
            bits.bit()?; // qpprime_y_zero_transform_bypass_flag
            if bits.flag()? {
                skip_scaling_matrix(&mut bits, format.chroma)?;
            }
        }
        bits.unsigned_exp_golomb()?; // log2_max_frame_num_minus4
        skip_picture_order(&mut bits)?;
        bits.unsigned_exp_golomb()?; // max_num_ref_frames
        bits.bit()?; // gaps_in_frame_num_value_allowed_flag
        let (width, height) = picture_size(&mut bits, format)?;
        Ok(Self {
            id,
            profile,
            chroma_format: format.chroma as u8,
            luma_depth_minus8: format.luma_depth_minus8 as u8,
            chroma_depth_minus8: format.chroma_depth_minus8 as u8,
            width,
            height,
        })
    }
}

/// `chroma_format_idc` and the elements that follow it.
#[derive(Clone, Copy, Debug)]
struct SampleFormat {
    chroma: u32,
    has_separate_planes: bool,
    luma_depth_minus8: u32,
    chroma_depth_minus8: u32,
}

impl SampleFormat {
    /// What profiles have that don't say (7.4.2.1.1): 4:2:0, 8 bits.
    const DEFAULT: Self =
        Self { chroma: 1, has_separate_planes: false, luma_depth_minus8: 0, chroma_depth_minus8: 0 };

    fn read(bits: &mut Bits<'_>) -> Result<Self, Malformed> {
        let chroma = bits.unsigned_exp_golomb()?;
        let has_separate_planes = chroma == 3 && bits.flag()?;
        let (luma_depth_minus8, chroma_depth_minus8) =
            (bits.unsigned_exp_golomb()?, bits.unsigned_exp_golomb()?);
        if chroma > 3 || luma_depth_minus8 > 6 || chroma_depth_minus8 > 6 {
            return Err(Malformed("a sequence parameter set's sample format"));
        }
        Ok(Self { chroma, has_separate_planes, luma_depth_minus8, chroma_depth_minus8 })
    }

    /// `CropUnitX`, and `CropUnitY` of whole frames (7.4.2.1.1): in pixels, what one step of cropping takes.
    fn crop_units(self) -> (u32, u32) {
        match (self.chroma, self.has_separate_planes) {
            (0, _) | (_, true) | (3, _) => (1, 1),
            (1, _) => (2, 2),
            _ => (2, 1),
        }
    }
}

/// The scaling lists: six of 4x4 coefficients, the others of 8x8.
fn skip_scaling_matrix(bits: &mut Bits<'_>, chroma_format: u32) -> Result<(), Malformed> {
    for list in 0..if chroma_format == 3 { 12 } else { 8 } {
        if bits.flag()? {
            skip_scaling_list(bits, if list < 6 { 16 } else { 64 })?;
        }
    }
    Ok(())
}

/// `scaling_list` (7.3.2.1.1.1).
fn skip_scaling_list(bits: &mut Bits<'_>, size: u32) -> Result<(), Malformed> {
    let (mut last, mut next) = (8i32, 8i32);
    for _ in 0..size {
        if next != 0 {
            let delta = bits.signed_exp_golomb()?;
            next = (last.wrapping_add(delta).wrapping_add(256)).rem_euclid(256);
        }
        last = if next == 0 { last } else { next };
    }
    Ok(())
}

/// `pic_order_cnt_type` and the elements that depend on it.
fn skip_picture_order(bits: &mut Bits<'_>) -> Result<(), Malformed> {
    match bits.unsigned_exp_golomb()? {
        0 => {
            bits.unsigned_exp_golomb()?; // log2_max_pic_order_cnt_lsb_minus4
        }
        1 => {
            bits.bit()?; // delta_pic_order_always_zero_flag
            bits.signed_exp_golomb()?; // offset_for_non_ref_pic
            bits.signed_exp_golomb()?; // offset_for_top_to_bottom_field
            let cycle = bits.unsigned_exp_golomb()?;
            if cycle > 255 {
                return Err(Malformed("a sequence parameter set's picture order"));
            }
            for _ in 0..cycle {
                bits.signed_exp_golomb()?; // offset_for_ref_frame
            }
        }
        _ => {}
    }
    Ok(())
}

/// The elements from `pic_width_in_mbs_minus1` to the cropping (7.4.2.1.1): width and height in pixels.
fn picture_size(bits: &mut Bits<'_>, format: SampleFormat) -> Result<(u32, u32), Malformed> {
    let width_in_mbs = bits.unsigned_exp_golomb()?.saturating_add(1);
    let height_in_units = bits.unsigned_exp_golomb()?.saturating_add(1);
    let is_frames_only = bits.flag()?;
    if !is_frames_only {
        bits.bit()?; // mb_adaptive_frame_field_flag
    }
    bits.bit()?; // direct_8x8_inference_flag
    let units = if is_frames_only { 1 } else { 2 };
    let width = width_in_mbs.saturating_mul(16);
    let height = height_in_units.saturating_mul(16 * units);
    let (mut cut_x, mut cut_y) = (0, 0);
    if bits.flag()? {
        let (left, right) = (bits.unsigned_exp_golomb()?, bits.unsigned_exp_golomb()?);
        let (top, bottom) = (bits.unsigned_exp_golomb()?, bits.unsigned_exp_golomb()?);
        let (unit_x, unit_y) = format.crop_units();
        cut_x = left.saturating_add(right).saturating_mul(unit_x);
        cut_y = top.saturating_add(bottom).saturating_mul(unit_y * units);
    }
    let (width, height) = (width.saturating_sub(cut_x), height.saturating_sub(cut_y));
    if !(1..=PIXELS_PER_SIDE_MAX).contains(&width) || !(1..=PIXELS_PER_SIDE_MAX).contains(&height) {
        return Err(Malformed("a sequence parameter set's picture size"));
    }
    Ok((width, height))
}

/// The number of a picture parameter set and of the sequence parameter set that it refers to; `nal` is of type 8.
pub(super) fn pps_ids(nal: &[u8]) -> Result<(u32, u32), Malformed> {
    let rbsp =
        unescape(nal.get(1..).unwrap_or(&[]).get(..16.min(nal.len().saturating_sub(1))).unwrap_or(&[]));
    let mut bits = Bits::new(&rbsp);
    let (pps, sps) = (bits.unsigned_exp_golomb()?, bits.unsigned_exp_golomb()?);
    if pps > 255 || sps > 31 {
        return Err(Malformed("a picture parameter set's number"));
    }
    Ok((pps, sps))
}

/// `first_mb_in_slice` and the picture parameter set's number of a slice, header byte included.
pub(super) fn slice_start(nal: &[u8]) -> Result<(u32, u32), Malformed> {
    let head = nal.get(1..).unwrap_or(&[]);
    let rbsp = unescape(&head[..head.len().min(16)]);
    let mut bits = Bits::new(&rbsp);
    let first = bits.unsigned_exp_golomb()?;
    bits.unsigned_exp_golomb()?; // slice_type
    Ok((first, bits.unsigned_exp_golomb()?))
}

/// Removes emulation prevention bytes.
fn unescape(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut zeros = 0;
    for &byte in bytes {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        out.push(byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_of_encoders_in_the_field_are_read() {
        let cases = [
            // x264, high, 1280x720
            ("6764001facd9405005bb011000000300100000030320f1831960", 100, 1280, 720),
            // x264, high, 1920x1080: 1088 lines, 8 cropped
            ("67640028acd940780227e5c044000003000400000300c83c60c658", 100, 1920, 1080),
        ];
        for (sps, profile, width, height) in cases {
            let sps = Sps::parse(&hex::decode(sps).unwrap()).unwrap();
            assert_eq!((sps.profile, sps.width, sps.height), (profile, width, height));
            assert_eq!((sps.chroma_format, sps.luma_depth_minus8), (1, 0));
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(nal in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Sps::parse(&nal);
            let _ = pps_ids(&nal);
            let _ = slice_start(&nal);
        }
    }
}
