//! VP8 (RFC 7741). The segmenter transcodes it, so only size and keyframes matter here.

use bytes::{Bytes, BytesMut};
use shoal_segmenter::frame::{TrackFormat, VideoCodec};

use super::{Depacketizer, Malformed, PICTURE_BYTES_MAX, Picture};

/// See the module.
#[derive(Debug, Default)]
pub struct Vp8 {
    picture: BytesMut,
}

impl Depacketizer for Vp8 {
    fn push(&mut self, payload: &Bytes) -> Result<(), Malformed> {
        const SHORT: Malformed = Malformed("a VP8 descriptor ends too early");
        let &first = payload.first().ok_or(SHORT)?;
        let is_start = first & 0x10 != 0 && first & 0x07 == 0;
        let mut at = 1;
        if first & 0x80 != 0 {
            let &flags = payload.get(1).ok_or(SHORT)?;
            at = 2;
            if flags & 0x80 != 0 {
                at += if payload.get(at).ok_or(SHORT)? & 0x80 != 0 { 2 } else { 1 };
            }
            at += usize::from(flags & 0x40 != 0) + usize::from(flags & 0x30 != 0);
        }
        if at >= payload.len() {
            return Err(SHORT);
        }
        if is_start != self.picture.is_empty() {
            return Err(Malformed("a VP8 picture without its beginning"));
        }
        if self.picture.len() + payload.len() > PICTURE_BYTES_MAX {
            return Err(Malformed("a picture is too large"));
        }
        self.picture.extend_from_slice(&payload[at..]);
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<Picture>, Malformed> {
        let data = std::mem::take(&mut self.picture).freeze();
        let Some(&first) = data.first() else { return Ok(None) };
        // RFC 6386, 9.1
        if first & 1 != 0 {
            return Ok(Some(Picture { is_keyframe: false, format: None, data }));
        }
        let header = data.get(3..10).ok_or(Malformed("a VP8 keyframe ends too early"))?;
        if header[..3] != [0x9d, 0x01, 0x2a] {
            return Err(Malformed("a VP8 keyframe without its start code"));
        }
        let side = |at: usize| u32::from(u16::from_le_bytes([header[at], header[at + 1]]) & 0x3fff);
        let (width, height) = (side(3), side(5));
        if width == 0 || height == 0 {
            return Err(Malformed("a VP8 keyframe without size"));
        }
        let format = TrackFormat::Video { codec: VideoCodec::Vp8, width, height, config: Bytes::new() };
        Ok(Some(Picture { is_keyframe: true, format: Some(format), data }))
    }

    fn reset(&mut self) {
        self.picture.clear();
    }
}
