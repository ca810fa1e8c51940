//! Pictures and sounds whose bytes say what they are, and the packets that they are sent in.

use bytes::Bytes;

/// x264's parameter sets for 1280x720 and 640x360, high profile.
pub const SPS_720: &str = "6764001facd9405005bb011000000300100000030320f1831960";
pub const SPS_360: &str = "6764001eacd940a02ff970110000030001000003003c0f162d96";
pub const PPS: &str = "68ebe3cb22c0";

const PAYLOAD_MAX: usize = 1100;
/// How pictures are put into packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Parameter sets in a STAP-A, as libwebrtc does.
    Browser,
    /// Parameter sets in packets of their own, four slices.
    Obs,
}

/// The NAL units of a picture: real slice headers, then its number, then bytes that follow from it.
pub fn slices(number: u32, is_keyframe: bool, bytes: usize, style: Style) -> Vec<Vec<u8>> {
    let count = if style == Style::Obs { 4 } else { 1 };
    (0..count)
        .map(|index| {
            // first_mb_in_slice 0 for the first, 1 for the others; slice_type I or P; picture parameter set 0
            let mut nal = match (is_keyframe, index) {
                (true, 0) => vec![0x65, 0x88, 0x80],
                (true, _) => vec![0x65, 0x42, 0x20],
                (false, 0) => vec![0x41, 0x9a, 0x80],
                (false, _) => vec![0x41, 0x46, 0xa0],
            };
            nal.extend(number.to_be_bytes());
            nal.push(index as u8);
            let mut state = number.wrapping_mul(2_654_435_761).wrapping_add(index);
            while nal.len() < bytes / count as usize {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                nal.push((state >> 24) as u8);
            }
            nal
        })
        .collect()
}

/// A picture as it should come out.
pub fn picture(number: u32, is_keyframe: bool, bytes: usize, style: Style) -> Bytes {
    let bytes = if is_keyframe { bytes * 4 } else { bytes };
    let mut out = Vec::new();
    for nal in slices(number, is_keyframe, bytes, style) {
        out.extend((nal.len() as u32).to_be_bytes());
        out.extend(nal);
    }
    out.into()
}

/// The number of a picture that came out.
pub fn picture_number(data: &[u8]) -> u32 {
    u32::from_be_bytes(data[7..11].try_into().unwrap())
}

/// A stereo CELT packet of 20 ms with its number.
pub fn sound(number: u32) -> Bytes {
    let mut packet = vec![0xfc];
    packet.extend(number.to_be_bytes());
    packet.resize(80, 0);
    packet.into()
}

/// Puts a NAL unit into one packet, or into several.
pub fn fragment(nal: &[u8], payloads: &mut Vec<Bytes>) {
    if nal.len() <= PAYLOAD_MAX {
        payloads.push(Bytes::copy_from_slice(nal));
        return;
    }
    let chunks: Vec<&[u8]> = nal[1..].chunks(PAYLOAD_MAX).collect();
    for (index, chunk) in chunks.iter().enumerate() {
        let start = if index == 0 { 0x80 } else { 0 };
        let end = if index + 1 == chunks.len() { 0x40 } else { 0 };
        let mut payload = vec![nal[0] & 0xe0 | 28, start | end | nal[0] & 0x1f];
        payload.extend_from_slice(chunk);
        payloads.push(payload.into());
    }
}
