//! Opus packets with times become packets on an unbroken sample clock, for players that take Opus as it is.
//!
//! Packets can't be stretched or cut, so the clock is kept as whole packets allow: a gap (as discontinuous transmission
//! leaves them while nobody speaks) becomes packets of silence, and one that comes when its time is taken is dropped.
//! What is left is off by less than [`DRIFT_MAX`]. Pure.

use bytes::Bytes;

use super::{SAMPLE_RATE, SoundFrame, samples};

/// The identification header (RFC 7845, 5.1), from which libavformat makes `dOps`: version, two channels, pre-skip,
/// 48 kHz, no gain, mapping family 0. A decoder of two channels also takes packets of one. The pre-skip is the delay of
/// libopus, 6.5 ms, which is what browsers and OBS encode with.
pub(crate) const OPUS_CONFIG: &[u8] =
    &[b'O', b'p', b'u', b's', b'H', b'e', b'a', b'd', 1, 2, 0x38, 0x01, 0x80, 0xbb, 0, 0, 0, 0, 0];

/// Differences below this are left alone: more than the jitter of times, and less than a packet of 20 ms. Sound and
/// picture may be apart by three times as much before anybody notices.
const DRIFT_MAX: i64 = SAMPLE_RATE * 15 / 1000;
/// A gap longer than this is the caller's to bridge.
const GAP_MAX: i64 = 10 * SAMPLE_RATE;
/// The longest packet: 120 ms (RFC 6716, 3.2).
const PACKET_MAX: i64 = SAMPLE_RATE * 120 / 1000;

/// Packets of silence and their samples, longest first: CELT, full band, one channel; the two bytes are its flag for
/// silence (RFC 6716, 4.3).
const SILENCE: [(i64, &[u8]); 4] = [
    (960, &[0xf8, 0xff, 0xfe]),
    (480, &[0xf0, 0xff, 0xfe]),
    (240, &[0xe8, 0xff, 0xfe]),
    (120, &[0xe0, 0xff, 0xfe]),
];

/// See the module.
#[derive(Debug)]
pub(crate) struct OpusClock {
    /// The sample after the last one.
    next: i64,
}

impl OpusClock {
    /// The first packet out begins at sample `start`.
    pub(crate) fn new(start: i64) -> Self {
        Self { next: start }
    }

    /// Takes a packet whose first sample is played at `pts_us`. One that is none, or whose time has passed, is dropped.
    pub(crate) fn push(&mut self, pts_us: i64, data: &Bytes, out: &mut Vec<SoundFrame>) {
        let Some(length) = duration(data) else { return };
        let ahead = samples(pts_us) - self.next;
        if !(-DRIFT_MAX..=GAP_MAX).contains(&ahead) {
            return;
        }
        if ahead > DRIFT_MAX {
            self.silence(ahead, out);
        }
        out.push(SoundFrame { start: self.next, samples: length, data: data.clone() });
        self.next += length;
    }

    /// Fills up with silence, so that the samples before `until` exist.
    pub(crate) fn fill_to(&mut self, until: i64, out: &mut Vec<SoundFrame>) {
        let missing = until - self.next;
        if missing > 0 {
            // The shortest packet is 2.5 ms.
            self.silence(missing + (-missing).rem_euclid(120), out);
        }
    }

    /// As much as whole packets can be, and not more.
    fn silence(&mut self, mut missing: i64, out: &mut Vec<SoundFrame>) {
        for (length, data) in SILENCE {
            while missing >= length {
                out.push(SoundFrame { start: self.next, samples: length, data: Bytes::from_static(data) });
                self.next += length;
                missing -= length;
            }
        }
    }
}

/// The samples of a packet at 48 kHz (RFC 6716, 3.1); none where it is no packet.
fn duration(packet: &[u8]) -> Option<i64> {
    let toc = *packet.first()?;
    let config = usize::from(toc >> 3);
    let frame = match config {
        // SILK, hybrid, CELT.
        0..12 => [480, 960, 1_920, 2_880][config % 4],
        12..16 => [480, 960][config % 2],
        _ => [120, 240, 480, 960][config % 4],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => i64::from(*packet.get(1)? & 63),
    };
    let length = frame * frames;
    (1..=PACKET_MAX).contains(&length).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const PACKET: Bytes = Bytes::from_static(&[0xfc, 1, 2, 3]);

    fn check_unbroken(frames: &[SoundFrame]) {
        for pair in frames.windows(2) {
            assert_eq!(pair[0].end(), pair[1].start);
        }
        for frame in frames {
            assert_eq!(duration(&frame.data), Some(frame.samples));
        }
    }

    #[test]
    fn durations_are_read_from_the_first_bytes() {
        for (packet, expected) in [
            (&[0xf8u8][..], Some(960)),
            (&[0x00], Some(480)),
            (&[0x18], Some(2_880)),
            (&[0x60], Some(480)),
            (&[0xe0], Some(120)),
            (&[0xf9, 0], Some(1_920)),
            (&[0xfb, 6], Some(5_760)),
            (&[0xfb, 7], None),
            (&[0xfb, 0], None),
            (&[0xfb], None),
            (&[], None),
        ] {
            assert_eq!(duration(packet), expected, "{packet:x?}");
        }
    }

    #[test]
    fn silence_of_discontinuous_transmission_is_filled_in() {
        let mut clock = OpusClock::new(0);
        let mut out = Vec::new();
        for pts_ms in
            (0..1_000).step_by(20).chain((1_000..3_000).step_by(400)).chain((3_000..4_000).step_by(20))
        {
            clock.push(pts_ms * 1000, &PACKET, &mut out);
        }
        check_unbroken(&out);
        assert_eq!(clock.next, 4 * SAMPLE_RATE);
        assert_eq!(out.iter().filter(|frame| frame.data == PACKET).count(), 50 + 5 + 50);
    }

    #[test]
    fn drifting_clock_is_followed_to_within_a_packet() {
        for interval_us in [19_960i64, 20_040] {
            let mut clock = OpusClock::new(0);
            let mut out = Vec::new();
            for index in 0..3_000 {
                clock.push(index * interval_us, &PACKET, &mut out);
                let off = samples((index + 1) * interval_us) - clock.next;
                assert!(off.abs() <= SAMPLE_RATE / 45, "{off} samples off after {index} packets");
            }
            check_unbroken(&out);
        }
    }

    #[test]
    fn broken_packets_and_broken_times_write_nothing() {
        let mut clock = OpusClock::new(0);
        let mut out = Vec::new();
        clock.push(0, &Bytes::new(), &mut out);
        clock.push(3_600_000_000, &PACKET, &mut out);
        clock.push(-3_600_000_000, &PACKET, &mut out);
        assert_eq!((out.len(), clock.next), (0, 0));
    }

    proptest! {
        #[test]
        fn clock_never_breaks(steps in vec((-200i64..2_000, any::<u8>(), any::<u8>(), any::<bool>()), 1..100)) {
            let mut clock = OpusClock::new(77);
            let (mut out, mut at_ms) = (Vec::new(), 0);
            for (step_ms, toc, count, fills) in steps {
                at_ms += step_ms;
                clock.push(at_ms * 1000, &Bytes::from(vec![toc, count]), &mut out);
                if fills {
                    clock.fill_to(samples(at_ms * 1000), &mut out);
                    prop_assert!(clock.next >= samples(at_ms * 1000));
                }
            }
            prop_assert!(out.first().is_none_or(|first| first.start == 77));
            check_unbroken(&out);
        }
    }
}
