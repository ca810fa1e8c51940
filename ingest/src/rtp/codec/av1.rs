//! AV1 (RTP Payload Format For AV1, v1.0.0): open bitstream units are put together from fragments and given the
//! size fields that the low-overhead format wants. Sequence headers are read in `av1_sequence.rs`.

use bytes::{BufMut, Bytes, BytesMut};
use shoal_segmenter::frame::TrackFormat;

use super::av1_sequence::sequence_format;
use super::bits::Bits;
use super::{Depacketizer, Malformed, PICTURE_BYTES_MAX, Picture};

const SEQUENCE_HEADER: u8 = 1;
const TEMPORAL_DELIMITER: u8 = 2;
const FRAME_HEADER: u8 = 3;
const FRAME: u8 = 6;
const TILE_LIST: u8 = 8;
const PADDING: u8 = 15;
/// Units in one temporal unit. Encoders make a handful; layers and tile groups multiply them.
const UNITS_MAX: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub struct Av1 {
    units: BytesMut,
    count: usize,
    /// A unit whose next fragment is in the next packet.
    fragment: Option<BytesMut>,
    format: Option<TrackFormat>,
    first_frame_is_key: Option<bool>,
}

impl Av1 {
    /// Adds a whole unit: type, extension and payload, with or without a size field.
    fn add_unit(&mut self, unit: &[u8]) -> Result<(), Malformed> {
        const SHORT: Malformed = Malformed("an AV1 unit ends too early");
        let &header = unit.first().ok_or(SHORT)?;
        let kind = header >> 3 & 0x0f;
        if header & 0x80 != 0 {
            return Err(Malformed("an AV1 unit's forbidden bit"));
        }
        let mut at = 1 + usize::from(header & 4 != 0);
        let extension = unit.get(1..at).ok_or(SHORT)?;
        let mut end = unit.len();
        if header & 2 != 0 {
            let (size, length) = leb128(unit.get(at..).ok_or(SHORT)?)?;
            at += length;
            end = at.checked_add(size).filter(|end| *end <= unit.len()).ok_or(SHORT)?;
        }
        let payload = unit.get(at..end).ok_or(SHORT)?;
        match kind {
            TEMPORAL_DELIMITER | TILE_LIST | PADDING => return Ok(()),
            SEQUENCE_HEADER => {
                let mut whole = BytesMut::new();
                put_unit(&mut whole, header, extension, payload);
                self.format = Some(sequence_format(payload, &whole)?);
            }
            FRAME | FRAME_HEADER if self.first_frame_is_key.is_none() => {
                let mut bits = Bits::new(payload);
                let shows_existing = bits.flag()?;
                self.first_frame_is_key = Some(!shows_existing && bits.bits(2)? == 0);
            }
            _ => {}
        }
        self.count += 1;
        if self.units.len() + unit.len() > PICTURE_BYTES_MAX || self.count > UNITS_MAX {
            return Err(Malformed("a picture is too large"));
        }
        put_unit(&mut self.units, header, extension, payload);
        Ok(())
    }
}

impl Depacketizer for Av1 {
    fn push(&mut self, payload: &Bytes) -> Result<(), Malformed> {
        const SHORT: Malformed = Malformed("an AV1 packet ends too early");
        let &aggregation = payload.first().ok_or(SHORT)?;
        let (continues, is_continued) = (aggregation & 0x80 != 0, aggregation & 0x40 != 0);
        let elements = aggregation >> 4 & 3;
        if continues != self.fragment.is_some() {
            return Err(Malformed("an AV1 unit without its beginning or end"));
        }
        let mut rest = &payload[1..];
        let mut index = 0;
        while !rest.is_empty() {
            index += 1;
            let is_last = elements != 0 && index == elements;
            let element = if is_last {
                std::mem::take(&mut rest)
            } else {
                let (size, length) = leb128(rest)?;
                let element = rest.get(length..).and_then(|tail| tail.get(..size)).ok_or(SHORT)?;
                rest = &rest[length + size..];
                element
            };
            let was_fragment = index == 1 && continues;
            let goes_on = rest.is_empty() && is_continued;
            match (self.fragment.take().filter(|_| was_fragment), goes_on) {
                (None, false) => self.add_unit(element)?,
                (None, true) => self.fragment = Some(BytesMut::from(element)),
                (Some(mut fragment), goes_on) => {
                    if fragment.len() + element.len() > PICTURE_BYTES_MAX {
                        return Err(Malformed("a picture is too large"));
                    }
                    fragment.extend_from_slice(element);
                    if goes_on {
                        self.fragment = Some(fragment);
                    } else {
                        self.add_unit(&fragment)?;
                    }
                }
            }
            if is_last && !rest.is_empty() || index == u8::MAX {
                return Err(Malformed("an AV1 packet with too many elements"));
            }
        }
        if elements != 0 && index < elements {
            return Err(SHORT);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<Picture>, Malformed> {
        let data = std::mem::take(&mut self.units).freeze();
        let (format, is_key, is_open) =
            (self.format.take(), self.first_frame_is_key.take(), self.fragment.is_some());
        self.reset();
        if is_open {
            return Err(Malformed("an AV1 unit without its beginning or end"));
        }
        let Some(is_key) = is_key else { return Ok(None) };
        // A keyframe that doesn't repeat the sequence header can't be joined at.
        let format = format.filter(|_| is_key);
        Ok(Some(Picture { is_keyframe: format.is_some(), format, data }))
    }

    fn reset(&mut self) {
        self.units.clear();
        self.count = 0;
        self.fragment = None;
        self.format = None;
        self.first_frame_is_key = None;
    }
}

fn put_unit(out: &mut BytesMut, header: u8, extension: &[u8], payload: &[u8]) {
    out.put_u8(header | 2);
    out.put_slice(extension);
    let mut size = payload.len();
    loop {
        let byte = (size & 0x7f) as u8;
        size >>= 7;
        out.put_u8(if size > 0 { byte | 0x80 } else { byte });
        if size == 0 {
            break;
        }
    }
    out.put_slice(payload);
}

/// A little-endian base 128 number and its length.
fn leb128(bytes: &[u8]) -> Result<(usize, usize), Malformed> {
    let mut value = 0usize;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok((value, index + 1));
        }
    }
    Err(Malformed("an AV1 size"))
}
