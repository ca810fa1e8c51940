//! Opus (RFC 7587): a packet is a frame. What its first byte says about duration and channels (RFC 6716, 3.1).

/// Samples at 48 kHz and channels of a packet; `None` when it isn't Opus.
pub fn describe(packet: &[u8]) -> Option<(u32, u8)> {
    let &toc = packet.first()?;
    let frame = match toc >> 3 {
        config @ 0..=11 => [480, 960, 1920, 2880][usize::from(config % 4)],
        config @ 12..=15 => [480, 960][usize::from(config % 2)],
        config => [120, 240, 480, 960][usize::from(config % 4)],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => u32::from(packet.get(1)? & 0x3f),
    };
    let samples = frame * frames;
    // 120 ms at most
    (1..=5760).contains(&samples).then_some((samples, if toc & 4 != 0 { 2 } else { 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_and_channels_are_read_from_the_first_bytes() {
        assert_eq!(describe(&[0xfc, 0]), Some((960, 2)), "CELT fullband, 20 ms, stereo");
        assert_eq!(describe(&[0x78, 0]), Some((960, 1)), "hybrid fullband, 20 ms, mono");
        assert_eq!(describe(&[0x0b, 3]), Some((2880, 1)), "SILK, three of 20 ms");
        assert_eq!(describe(&[0x1b, 48]), None, "longer than 120 ms");
        assert_eq!(describe(&[]), None);
        assert_eq!(describe(&[3]), None);
    }
}
