//! Splits encoded frames into RTP payloads (RFC 6184 for H.264, RFC 7741 for VP8, RFC 7587 for Opus).
//!
//! Headers, sequence numbers and retransmission belong to `session.rs`.

use bytes::{BufMut, Bytes, BytesMut};

/// The largest RTP payload. With header, extensions, RTX sequence number and SRTP tag a packet stays under
/// 1200 bytes of UDP payload, which passes every path that QUIC passes.
pub(crate) const PAYLOAD_MAX: usize = 1160;

const TYPE_AUD: u8 = 9;
const TYPE_FILLER: u8 = 12;
const TYPE_STAP_A: u8 = 24;
const TYPE_FU_A: u8 = 28;
const TYPE_MASK: u8 = 0x1f;
const NRI_MASK: u8 = 0x60;

/// The NAL units of an Annex B access unit, without start codes.
pub(crate) fn nal_units(access_unit: &Bytes) -> Vec<Bytes> {
    let mut units = Vec::new();
    let mut unit_start = None;
    let mut zeros = 0usize;
    for (at, &byte) in access_unit.iter().enumerate() {
        if byte == 0 {
            zeros += 1;
            continue;
        }
        if byte == 1 && zeros >= 2 {
            if let Some(start) = unit_start {
                // Zeros before a start code belong to it, or are trailing_zero_8bits: never to the unit.
                units.push(access_unit.slice(start..at - zeros));
            }
            unit_start = Some(at + 1);
        }
        zeros = 0;
    }
    if let Some(start) = unit_start {
        units.push(access_unit.slice(start..access_unit.len() - zeros.min(access_unit.len() - start)));
    }
    units.retain(|unit| !unit.is_empty());
    units
}

/// H.264, packetization-mode 1: small neighbors (parameter sets) aggregated, large units fragmented. Delimiters and
/// filler are dropped: they cost bandwidth and say nothing that the marker bit does not.
pub(crate) fn h264(units: &[Bytes]) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    let mut small: Vec<&Bytes> = Vec::new();
    let mut small_bytes = 1;
    for unit in units {
        let kind = unit[0] & TYPE_MASK;
        if kind == TYPE_AUD || kind == TYPE_FILLER {
            continue;
        }
        if small_bytes + 2 + unit.len() > PAYLOAD_MAX {
            flush_small(&mut small, &mut payloads);
            small_bytes = 1;
        }
        if unit.len() > PAYLOAD_MAX {
            fragment(unit, &mut payloads);
        } else {
            small_bytes += 2 + unit.len();
            small.push(unit);
        }
    }
    flush_small(&mut small, &mut payloads);
    payloads
}

fn flush_small(small: &mut Vec<&Bytes>, payloads: &mut Vec<Bytes>) {
    match small.as_slice() {
        [] => {}
        [unit] => payloads.push(Bytes::clone(unit)),
        units => {
            let importance = units.iter().map(|unit| unit[0] & NRI_MASK).max().unwrap_or(0);
            let mut payload =
                BytesMut::with_capacity(1 + units.iter().map(|unit| 2 + unit.len()).sum::<usize>());
            payload.put_u8(importance | TYPE_STAP_A);
            for unit in units {
                payload.put_u16(unit.len() as u16);
                payload.put_slice(unit);
            }
            payloads.push(payload.freeze());
        }
    }
    small.clear();
}

fn fragment(unit: &Bytes, payloads: &mut Vec<Bytes>) {
    let (indicator, kind) = (unit[0] & !TYPE_MASK | TYPE_FU_A, unit[0] & TYPE_MASK);
    let body = &unit[1..];
    // Equal fragments: a tiny last packet costs as much as a full one.
    let count = body.len().div_ceil(PAYLOAD_MAX - 2);
    let size = body.len().div_ceil(count);
    for (number, piece) in body.chunks(size).enumerate() {
        let start = u8::from(number == 0) << 7;
        let end = u8::from((number + 1) * size >= body.len()) << 6;
        let mut payload = BytesMut::with_capacity(2 + piece.len());
        payload.put_u8(indicator);
        payload.put_u8(start | end | kind);
        payload.put_slice(piece);
        payloads.push(payload.freeze());
    }
}

/// VP8 with a 15-bit picture id, so that receivers can tell a lost frame from a late one.
pub(crate) fn vp8(frame: &Bytes, picture_id: u16) -> Vec<Bytes> {
    const DESCRIPTOR: usize = 4;
    let count = frame.len().div_ceil(PAYLOAD_MAX - DESCRIPTOR).max(1);
    let size = frame.len().div_ceil(count).max(1);
    frame
        .chunks(size)
        .enumerate()
        .map(|(number, piece)| {
            let mut payload = BytesMut::with_capacity(DESCRIPTOR + piece.len());
            let start_of_partition = u8::from(number == 0) << 4;
            payload.put_u8(0x80 | start_of_partition);
            payload.put_u8(0x80); // I: a picture id follows.
            payload.put_u16(0x8000 | picture_id & 0x7fff);
            payload.put_slice(piece);
            payload.freeze()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rtc::rtp::{codec::h264::H264Packet, codec::vp8::Vp8Packet, packetizer::Depacketizer};

    fn annex_b(units: &[Vec<u8>]) -> Bytes {
        let mut bytes = BytesMut::new();
        for (number, unit) in units.iter().enumerate() {
            bytes.put_slice(if number % 2 == 0 { &[0, 0, 0, 1] } else { &[0, 0, 1] });
            bytes.put_slice(unit);
        }
        bytes.freeze()
    }

    /// A unit as an encoder emits it: no start code inside, no zero at the end.
    fn unit() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop_oneof![Just(1u8), Just(5), Just(6), Just(7), Just(8)];
        let length = prop_oneof![3usize..40, 1150usize..1170, 2000usize..9000];
        (kind, length, 1u8..255).prop_map(|(kind, length, fill)| {
            let mut unit = vec![fill; length];
            unit[0] = 0x60 | kind;
            unit
        })
    }

    proptest! {
        #[test]
        fn an_independent_depacketizer_gets_every_unit_back(units in prop::collection::vec(unit(), 1..8)) {
            let split = nal_units(&annex_b(&units));
            prop_assert_eq!(&split.iter().map(|u| u.to_vec()).collect::<Vec<_>>(), &units);
            let payloads = h264(&split);
            let mut depacketizer = H264Packet::default();
            let mut received = BytesMut::new();
            for payload in &payloads {
                prop_assert!(payload.len() <= PAYLOAD_MAX);
                let is_whole_fragment = payload[0] & 0x1f == 28 && payload[1] & 0xc0 == 0xc0;
                prop_assert!(!is_whole_fragment, "RFC 6184 5.8: never start and end in one");
                received.put_slice(&depacketizer.depacketize(payload).unwrap());
            }
            let received: Vec<_> = nal_units(&received.freeze()).iter().map(|u| u.to_vec()).collect();
            prop_assert_eq!(received, units);
        }

        #[test]
        fn vp8_frames_survive(length in 1usize..6000, picture_id in any::<u16>()) {
            let frame = Bytes::from(vec![7u8; length]);
            let mut received = BytesMut::new();
            for (number, payload) in vp8(&frame, picture_id).iter().enumerate() {
                prop_assert!(payload.len() <= PAYLOAD_MAX);
                let mut packet = Vp8Packet::default();
                received.put_slice(&packet.depacketize(payload).unwrap());
                prop_assert_eq!(packet.s == 1, number == 0);
                prop_assert_eq!(packet.picture_id, picture_id & 0x7fff);
            }
            prop_assert_eq!(received.freeze(), frame);
        }
    }

    #[test]
    fn delimiters_and_filler_are_not_sent() {
        let unit_bytes = annex_b(&[vec![0x09, 0xf0], vec![0x0c, 0xff, 0x80], vec![0x65, 1, 2]]);
        let payloads = h264(&nal_units(&unit_bytes));
        assert_eq!(payloads, [Bytes::from_static(&[0x65, 1, 2])]);
    }

    #[test]
    fn parameter_sets_travel_together() {
        let unit_bytes = annex_b(&[vec![0x67, 1, 2], vec![0x68, 3], vec![0x65; 3000]]);
        let payloads = h264(&nal_units(&unit_bytes));
        assert_eq!(payloads[0], Bytes::from_static(&[0x78, 0, 3, 0x67, 1, 2, 0, 2, 0x68, 3]));
        assert_eq!(payloads.len(), 4);
    }

    #[test]
    fn bytes_without_start_code_are_no_units() {
        assert!(nal_units(&Bytes::from_static(&[1, 2, 3])).is_empty());
        assert!(nal_units(&Bytes::from_static(&[0, 0, 1])).is_empty());
        assert!(nal_units(&Bytes::new()).is_empty());
    }
}
