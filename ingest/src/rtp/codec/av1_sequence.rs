//! What an AV1 sequence header says about size and format, and the configuration record that is made of it.
//!
//! Section numbers are those of the AV1 bitstream specification. The functions are named and ordered as its syntax
//! tables; what a sample entry does not need is read past.

use bytes::{BufMut, BytesMut};
use shoal_segmenter::frame::{TrackFormat, VideoCodec};

use super::Malformed;
use super::bits::Bits;

/// `color_primaries`, `transfer_characteristics` and `matrix_coefficients` of sRGB (5.5.2), which is never subsampled.
const SRGB: (u32, u32, u32) = (1, 13, 0);
/// The same where nothing is said.
const UNSPECIFIED: (u32, u32, u32) = (2, 2, 2);

/// Reads a sequence header (5.5.1); `whole` goes into the `av1C` record.
pub(super) fn sequence_format(payload: &[u8], whole: &[u8]) -> Result<TrackFormat, Malformed> {
    let mut bits = Bits::new(payload);
    let profile = bits.bits(3)?;
    bits.bit()?; // still_picture
    let is_reduced = bits.flag()?;
    let point = if is_reduced {
        OperatingPoint { level: bits.bits(5)?, tier: 0 }
    } else {
        operating_points(&mut bits)?
    };
    let (width, height) = frame_size_max(&mut bits)?;
    skip_tools(&mut bits, is_reduced)?;
    let color = ColorConfig::read(&mut bits, profile)?;
    let mut config = BytesMut::with_capacity(4 + whole.len());
    config.put_slice(&record_head(profile, point, color));
    config.put_slice(whole);
    Ok(TrackFormat::Video { codec: VideoCodec::Av1, width, height, config: config.freeze() })
}

/// `seq_level_idx` and `seq_tier`.
#[derive(Clone, Copy, Debug)]
struct OperatingPoint {
    level: u32,
    tier: u32,
}

/// The part of 5.5.1 that reduced headers leave out: timing and operating points. Returns the first point, which is the one
/// that an `av1C` record names.
fn operating_points(bits: &mut Bits<'_>) -> Result<OperatingPoint, Malformed> {
    let mut delay_bits = None;
    if bits.flag()? {
        skip_timing_info(bits)?;
        if bits.flag()? {
            delay_bits = Some(decoder_model_info(bits)?);
        }
    }
    let has_display_delay = bits.flag()?;
    let mut first = None;
    for _ in 0..=bits.bits(5)? {
        bits.bits(12)?; // operating_point_idc
        let level = bits.bits(5)?;
        let tier = if level > 7 { bits.bit()? } else { 0 };
        first.get_or_insert(OperatingPoint { level, tier });
        if let Some(delay_bits) = delay_bits
            && bits.flag()?
        {
            skip_operating_parameters_info(bits, delay_bits)?;
        }
        if has_display_delay && bits.flag()? {
            bits.bits(4)?; // initial_display_delay_minus_1
        }
    }
    Ok(first.expect("there is one more than is said"))
}

/// `timing_info` (5.5.3).
fn skip_timing_info(bits: &mut Bits<'_>) -> Result<(), Malformed> {
    bits.bits(32)?; // num_units_in_display_tick
    bits.bits(32)?; // time_scale
    if bits.flag()? {
        bits.unsigned_exp_golomb()?; // num_ticks_per_picture_minus_1
    }
    Ok(())
}

/// `decoder_model_info` (5.5.4): how many bits the delays of each operating point have.
fn decoder_model_info(bits: &mut Bits<'_>) -> Result<u32, Malformed> {
    let delay_bits = bits.bits(5)? + 1;
    bits.bits(32)?; // num_units_in_decoding_tick
    bits.bits(10)?; // buffer_removal_time_length_minus_1, frame_presentation_time_length_minus_1
    Ok(delay_bits)
}

/// `operating_parameters_info` (5.5.5).
fn skip_operating_parameters_info(bits: &mut Bits<'_>, delay_bits: u32) -> Result<(), Malformed> {
    bits.bits(delay_bits)?; // decoder_buffer_delay
    bits.bits(delay_bits)?; // encoder_buffer_delay
    bits.bit()?; // low_delay_mode_flag
    Ok(())
}

/// The part of 5.5.1 that says how large frames may be; width and height.
fn frame_size_max(bits: &mut Bits<'_>) -> Result<(u32, u32), Malformed> {
    let (width_bits, height_bits) = (bits.bits(4)? + 1, bits.bits(4)? + 1);
    Ok((bits.bits(width_bits)? + 1, bits.bits(height_bits)? + 1))
}

/// The rest of 5.5.1 before the colors: numbers of frames, and the coding tools that are switched on.
fn skip_tools(bits: &mut Bits<'_>, is_reduced: bool) -> Result<(), Malformed> {
    if !is_reduced && bits.flag()? {
        bits.bits(7)?; // delta_frame_id_length_minus_2, additional_frame_id_length_minus_1
    }
    bits.bits(3)?; // use_128x128_superblock, enable_filter_intra, enable_intra_edge_filter
    if !is_reduced {
        bits.bits(4)?; // interintra, masked compound, warped motion, dual filter
        let has_order_hint = bits.flag()?;
        if has_order_hint {
            bits.bits(2)?; // jnt_comp, ref_frame_mvs
        }
        let screen_content = if bits.flag()? { 2 } else { bits.bit()? };
        if screen_content > 0 && !bits.flag()? {
            bits.bit()?; // seq_force_integer_mv
        }
        if has_order_hint {
            bits.bits(3)?; // order_hint_bits_minus_1
        }
    }
    bits.bits(3)?; // superres, cdef, restoration
    Ok(())
}

/// `color_config` (5.5.2).
#[derive(Clone, Copy, Debug)]
struct ColorConfig {
    is_high_depth: bool,
    is_12_bit: bool,
    is_monochrome: bool,
    /// Horizontally and vertically.
    subsampling: (u32, u32),
    sample_position: u32,
}

impl ColorConfig {
    fn read(bits: &mut Bits<'_>, profile: u32) -> Result<Self, Malformed> {
        let is_high_depth = bits.flag()?;
        let is_12_bit = profile == 2 && is_high_depth && bits.flag()?;
        let is_monochrome = profile != 1 && bits.flag()?;
        let mut description = UNSPECIFIED;
        if bits.flag()? {
            description = (bits.bits(8)?, bits.bits(8)?, bits.bits(8)?);
        }
        let (mut subsampling, mut sample_position) = ((1, 1), 0);
        if is_monochrome {
            bits.bit()?; // color_range
        } else if description == SRGB {
            subsampling = (0, 0);
        } else {
            bits.bit()?; // color_range
            subsampling = Self::read_subsampling(bits, profile, is_12_bit)?;
            if subsampling == (1, 1) {
                sample_position = bits.bits(2)?;
            }
        }
        Ok(Self { is_high_depth, is_12_bit, is_monochrome, subsampling, sample_position })
    }

    /// Only 12 bits leave a choice.
    fn read_subsampling(bits: &mut Bits<'_>, profile: u32, is_12_bit: bool) -> Result<(u32, u32), Malformed> {
        Ok(match profile {
            0 => (1, 1),
            1 => (0, 0),
            _ if is_12_bit => {
                let x = bits.bit()?;
                (x, if x == 1 { bits.bit()? } else { 0 })
            }
            _ => (1, 0),
        })
    }
}

/// The fields of an `av1C` record (AV1 Codec ISO Media File Format Binding, 2.3.3) before its sequence header.
fn record_head(profile: u32, point: OperatingPoint, color: ColorConfig) -> [u8; 4] {
    let flags = point.tier << 7
        | u32::from(color.is_high_depth) << 6
        | u32::from(color.is_12_bit) << 5
        | u32::from(color.is_monochrome) << 4
        | color.subsampling.0 << 3
        | color.subsampling.1 << 2
        | color.sample_position;
    [0x81, (profile << 5 | point.level) as u8, flags as u8, 0]
}
