//! H.264 (RFC 6184, packetization-mode 1): single NAL units, STAP-A and FU-A, one access unit at a time.
//!
//! Browsers put the parameter sets into a STAP-A before the keyframe, OBS sends them in packets of their own,
//! encoders repeat them with every keyframe: all that counts is what is known when a keyframe ends. Parameter
//! sets and delimiters leave the access unit; the configuration record travels in the format.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use shoal_segmenter::frame::{TrackFormat, VideoCodec};

use super::sps::{self, Sps};
use super::{Depacketizer, Malformed, PICTURE_BYTES_MAX, Picture};

const SLICE: u8 = 1;
const SLICE_IDR: u8 = 5;
const SPS: u8 = 7;
const PPS: u8 = 8;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;
/// Parameter sets remembered. Encoders use one of each; more than a few is an attempt to fill the memory.
const PARAMETER_SETS_MAX: usize = 8;
const PARAMETER_SET_BYTES_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct H264 {
    sps: BTreeMap<u32, (Sps, Bytes)>,
    /// By number: the number of the sequence parameter set it refers to, and the NAL unit.
    pps: BTreeMap<u32, (u32, Bytes)>,
    unit: BytesMut,
    /// Where the length of an unfinished fragmented NAL unit stands in `unit`.
    fragment_at: Option<usize>,
    has_keyframe_slice: bool,
    has_slice: bool,
    /// The picture parameter set of the first slice.
    pps_in_use: u32,
    /// Parameter sets that came after the last keyframe and differ from those in force.
    is_changed: bool,
}

impl H264 {
    fn add_nal(&mut self, nal: &[u8]) -> Result<(), Malformed> {
        let Some(&header) = nal.first() else { return Ok(()) };
        match header & 0x1f {
            SPS => self.add_sps(nal),
            PPS => self.add_pps(nal),
            // Delimiters, ends of sequence and stream, filler: a container has no place for them.
            9..=12 => Ok(()),
            kind @ 1..=23 => {
                self.check_slice(kind, nal)?;
                if self.unit.len() + nal.len() + 4 > PICTURE_BYTES_MAX {
                    return Err(Malformed("a picture is too large"));
                }
                self.unit.put_u32(nal.len() as u32);
                self.unit.extend_from_slice(nal);
                Ok(())
            }
            _ => Err(Malformed("a NAL unit type that packetization-mode 1 doesn't have")),
        }
    }

    /// Notes what a slice means for its picture. The first must be the picture's first: otherwise packets before
    /// it were lost before this stream's first packet, or between its pictures.
    fn check_slice(&mut self, kind: u8, head: &[u8]) -> Result<(), Malformed> {
        if kind != SLICE && kind != SLICE_IDR {
            return Ok(());
        }
        if !self.has_slice {
            let (first_mb, pps) = sps::slice_start(head)?;
            if first_mb != 0 {
                return Err(Malformed("a picture without its first slice"));
            }
            self.pps_in_use = pps;
        }
        self.has_slice = true;
        self.has_keyframe_slice |= kind == SLICE_IDR;
        Ok(())
    }

    fn add_sps(&mut self, nal: &[u8]) -> Result<(), Malformed> {
        if nal.len() > PARAMETER_SET_BYTES_MAX || nal.len() < 4 {
            return Err(Malformed("a sequence parameter set's size"));
        }
        let parsed = Sps::parse(nal)?;
        if self.sps.get(&parsed.id).is_some_and(|(_, known)| known[..] == nal[..]) {
            return Ok(());
        }
        if self.sps.len() >= PARAMETER_SETS_MAX && !self.sps.contains_key(&parsed.id) {
            self.sps.clear();
        }
        // The picture parameter sets that referred to the old one come again with the new one.
        self.pps.retain(|_, (sps, _)| *sps != parsed.id);
        self.sps.insert(parsed.id, (parsed, Bytes::copy_from_slice(nal)));
        self.is_changed = true;
        Ok(())
    }

    fn add_pps(&mut self, nal: &[u8]) -> Result<(), Malformed> {
        if nal.len() > PARAMETER_SET_BYTES_MAX {
            return Err(Malformed("a picture parameter set's size"));
        }
        let (id, sps) = sps::pps_ids(nal)?;
        if self.pps.get(&id).is_some_and(|(_, known)| known[..] == nal[..]) {
            return Ok(());
        }
        if self.pps.len() >= PARAMETER_SETS_MAX && !self.pps.contains_key(&id) {
            self.pps.clear();
        }
        self.pps.insert(id, (sps, Bytes::copy_from_slice(nal)));
        self.is_changed = true;
        Ok(())
    }

    fn add_fragment(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let (Some(&indicator), Some(&header)) = (payload.first(), payload.get(1)) else {
            return Err(Malformed("a fragment without a header"));
        };
        let (is_start, is_end, kind) = (header & 0x80 != 0, header & 0x40 != 0, header & 0x1f);
        let data = &payload[2..];
        if is_start {
            if self.fragment_at.is_some() {
                return Err(Malformed("a fragmented NAL unit without its end"));
            }
            let mut head = Vec::with_capacity(17);
            head.push(indicator & 0xe0 | kind);
            head.extend_from_slice(&data[..data.len().min(16)]);
            if !(1..=23).contains(&kind) {
                return Err(Malformed("a fragment of a NAL unit type that can't be fragmented"));
            }
            self.check_slice(kind, &head)?;
            self.fragment_at = Some(self.unit.len());
            self.unit.put_u32(0);
            self.unit.put_u8(head[0]);
        }
        let Some(at) = self.fragment_at else { return Err(Malformed("a fragment without its start")) };
        if self.unit.len() + data.len() > PICTURE_BYTES_MAX {
            return Err(Malformed("a picture is too large"));
        }
        self.unit.extend_from_slice(data);
        if is_end {
            self.fragment_at = None;
            let length = (self.unit.len() - at - 4) as u32;
            let kind = self.unit[at + 4] & 0x1f;
            if matches!(kind, SPS | PPS | 9..=12) {
                // Nobody fragments these, but nothing forbids it.
                let nal = self.unit.split_off(at);
                return self.add_nal(&nal[4..]);
            }
            self.unit[at..at + 4].copy_from_slice(&length.to_be_bytes());
        }
        Ok(())
    }

    /// The format that the picture parameter set of a keyframe leads to.
    fn format(&self) -> Result<TrackFormat, Malformed> {
        let (sps_id, _) = self.pps.get(&self.pps_in_use).ok_or(Malformed("a keyframe without parameters"))?;
        let (sps, nal) = self.sps.get(sps_id).ok_or(Malformed("a keyframe without parameters"))?;
        if nal.len() < 4 {
            return Err(Malformed("a sequence parameter set's size"));
        }
        let pps: Vec<&Bytes> =
            self.pps.values().filter(|(sps, _)| sps == sps_id).map(|(_, pps)| pps).collect();
        // ISO/IEC 14496-15, 5.3.3.1.2
        let mut record = BytesMut::with_capacity(32 + nal.len());
        record.put_u8(1);
        record.extend_from_slice(&nal[1..4]);
        record.put_u8(0xff);
        record.put_u8(0xe1);
        record.put_u16(nal.len() as u16);
        record.extend_from_slice(nal);
        record.put_u8(pps.len() as u8);
        for pps in pps {
            record.put_u16(pps.len() as u16);
            record.extend_from_slice(pps);
        }
        if matches!(sps.profile, 100 | 110 | 122 | 144) {
            record.put_u8(0xfc | sps.chroma_format);
            record.put_u8(0xf8 | sps.luma_depth_minus8);
            record.put_u8(0xf8 | sps.chroma_depth_minus8);
            record.put_u8(0);
        }
        Ok(TrackFormat::Video {
            codec: VideoCodec::H264,
            width: sps.width,
            height: sps.height,
            config: record.freeze(),
        })
    }
}

impl Depacketizer for H264 {
    fn push(&mut self, payload: &Bytes) -> Result<(), Malformed> {
        let Some(&header) = payload.first() else { return Ok(()) };
        let kind = header & 0x1f;
        if self.fragment_at.is_some() && kind != FU_A {
            return Err(Malformed("a fragmented NAL unit without its end"));
        }
        match kind {
            STAP_A => {
                let mut rest = &payload[1..];
                while !rest.is_empty() {
                    let Some((length, tail)) = rest.split_first_chunk::<2>() else {
                        return Err(Malformed("an aggregate ends too early"));
                    };
                    let length = usize::from(u16::from_be_bytes(*length));
                    let nal = tail.get(..length).ok_or(Malformed("an aggregate ends too early"))?;
                    self.add_nal(nal)?;
                    rest = &tail[length..];
                }
                Ok(())
            }
            FU_A => self.add_fragment(payload),
            _ => self.add_nal(payload),
        }
    }

    fn finish(&mut self) -> Result<Option<Picture>, Malformed> {
        let (has_slice, is_keyframe) = (self.has_slice, self.has_keyframe_slice);
        let is_fragment_open = self.fragment_at.is_some();
        let data = std::mem::take(&mut self.unit).freeze();
        self.reset();
        if is_fragment_open {
            return Err(Malformed("a fragmented NAL unit without its end"));
        }
        if !has_slice {
            return Ok(None);
        }
        if !is_keyframe && self.is_changed {
            // The container's parameters can only change at a keyframe.
            return Err(Malformed("parameters changed without a keyframe"));
        }
        let format = if is_keyframe { Some(self.format()?) } else { None };
        self.is_changed = false;
        Ok(Some(Picture { is_keyframe, format, data }))
    }

    fn reset(&mut self) {
        self.unit.clear();
        self.fragment_at = None;
        self.has_slice = false;
        self.has_keyframe_slice = false;
    }
}
