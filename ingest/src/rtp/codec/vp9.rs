//! VP9 (RFC 9628), profile 0. All spatial layers of a picture make one superframe; what is shown is the best one.

use bytes::{BufMut, Bytes, BytesMut};
use shoal_segmenter::frame::{TrackFormat, VideoCodec};

use super::bits::Bits;
use super::{Depacketizer, Malformed, PICTURE_BYTES_MAX, Picture};

/// See the module.
#[derive(Debug, Default)]
pub struct Vp9 {
    picture: BytesMut,
    is_predicted: bool,
    is_inside_frame: bool,
}

impl Depacketizer for Vp9 {
    fn push(&mut self, payload: &Bytes) -> Result<(), Malformed> {
        const SHORT: Malformed = Malformed("a VP9 descriptor ends too early");
        let &flags = payload.first().ok_or(SHORT)?;
        let has = |bit: u8| flags & bit != 0;
        let (has_id, is_predicted, has_layer, is_flexible) = (has(0x80), has(0x40), has(0x20), has(0x10));
        let (is_start, is_end, has_structure) = (has(0x08), has(0x04), has(0x02));
        let mut at = 1;
        let byte = |at: usize| payload.get(at).copied().ok_or(SHORT);
        if has_id {
            at += if byte(at)? & 0x80 != 0 { 2 } else { 1 };
        }
        if has_layer {
            at += if is_flexible { 1 } else { 2 };
        }
        if is_flexible && is_predicted {
            let mut references = 1;
            while byte(at)? & 1 != 0 {
                references += 1;
                at += 1;
                if references > 3 {
                    return Err(Malformed("a VP9 picture with more than three references"));
                }
            }
            at += 1;
        }
        if has_structure {
            let head = byte(at)?;
            at += 1;
            if head & 0x10 != 0 {
                at += 4 * (usize::from(head >> 5) + 1);
            }
            if head & 0x08 != 0 {
                let pictures = byte(at)?;
                at += 1;
                for _ in 0..pictures {
                    at += 1 + usize::from(byte(at)? >> 2 & 3);
                }
            }
        }
        if at >= payload.len() {
            return Err(SHORT);
        }
        if is_start == self.is_inside_frame {
            return Err(Malformed("a VP9 picture without its beginning"));
        }
        if self.picture.len() + payload.len() > PICTURE_BYTES_MAX {
            return Err(Malformed("a picture is too large"));
        }
        if self.picture.is_empty() {
            self.is_predicted = is_predicted;
        }
        self.is_inside_frame = !is_end;
        self.picture.extend_from_slice(&payload[at..]);
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<Picture>, Malformed> {
        let data = std::mem::take(&mut self.picture).freeze();
        if std::mem::take(&mut self.is_inside_frame) {
            return Err(Malformed("a VP9 picture without its end"));
        }
        if data.is_empty() {
            return Ok(None);
        }
        let format = if self.is_predicted { None } else { keyframe_format(&data)? };
        Ok(Some(Picture { is_keyframe: format.is_some(), format, data }))
    }

    fn reset(&mut self) {
        self.picture.clear();
        self.is_inside_frame = false;
    }
}

/// Reads the uncompressed header (VP9 bitstream specification, 6.2). `None` when it isn't a keyframe.
fn keyframe_format(data: &[u8]) -> Result<Option<TrackFormat>, Malformed> {
    let mut bits = Bits::new(data);
    if bits.bits(2)? != 2 {
        return Err(Malformed("a VP9 frame without its marker"));
    }
    let profile = bits.bit()? | bits.bit()? << 1;
    if profile != 0 {
        return Err(Malformed("a VP9 profile other than 0"));
    }
    let (shows_existing, is_inter) = (bits.flag()?, bits.flag()?);
    if shows_existing || is_inter {
        return Ok(None);
    }
    bits.bits(2)?; // show_frame, error_resilient_mode
    if bits.bits(24)? != 0x49_83_42 {
        return Err(Malformed("a VP9 keyframe without its sync code"));
    }
    let color_space = bits.bits(3)?;
    if color_space == 7 {
        return Err(Malformed("a VP9 profile other than 0"));
    }
    let is_full_range = bits.flag()?;
    let (width, height) = (bits.bits(16)? + 1, bits.bits(16)? + 1);
    let config = configuration(width, height, color_space, is_full_range);
    Ok(Some(TrackFormat::Video { codec: VideoCodec::Vp9, width, height, config }))
}

/// The contents of a `vpcC` box, version and flags included (VP Codec ISO Media File Format Binding, 1.0).
fn configuration(width: u32, height: u32, color_space: u32, is_full_range: bool) -> Bytes {
    // Largest picture of each level at 30 pictures per second or more.
    const LEVELS: [(u32, u8); 8] = [
        (36_864, 10),
        (73_728, 11),
        (122_880, 20),
        (245_760, 21),
        (552_960, 30),
        (983_040, 31),
        (2_228_224, 40),
        (8_912_896, 50),
    ];
    let level = LEVELS.iter().find(|(size, _)| width.saturating_mul(height) <= *size).map_or(60, |(_, l)| *l);
    let (primaries, transfer, matrix) = match color_space {
        1 => (5, 6, 5),
        3 => (6, 6, 6),
        4 => (7, 7, 7),
        5 => (9, 14, 9),
        _ => (1, 1, 1),
    };
    let mut record = BytesMut::with_capacity(12);
    record.put_slice(&[1, 0, 0, 0, 0, level]);
    // 8 bits, 4:2:0 with chroma between luma rows
    record.put_u8(8 << 4 | u8::from(is_full_range));
    record.put_slice(&[primaries, transfer, matrix, 0, 0]);
    record.freeze()
}
