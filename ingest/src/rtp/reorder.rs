//! Puts one stream's packets in order, waiting a bounded time for missing ones.
//!
//! Packets come out in sequence; where some are missing for good, a [`Item::Gap`] comes out instead. Nothing waits
//! longer than the hold, and never more than [`PACKETS_MAX`] packets wait: whatever the network does, the
//! latency that is added here stays bounded.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::sequence::Unwrapper;
use crate::transport::RtpPacket;

/// 400 ms at 60 Mbit/s. With more waiting, the oldest gap is given up.
pub const PACKETS_MAX: usize = 2048;
/// A jump further than this in either direction is a stream that starts anew, not one that lost packets: more
/// than [`PACKETS_MAX`] would have had to be lost or be late.
const JUMP_MIN: u64 = 4096;

/// What comes out.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// The next packet and when it arrived.
    Packet(Instant, RtpPacket),
    /// This many packets are missing here.
    Gap(u64),
}

/// See the module.
#[derive(Debug)]
pub struct Reorder {
    hold: Duration,
    sequence: Unwrapper,
    next: Option<u64>,
    waiting: BTreeMap<u64, (Instant, RtpPacket)>,
    /// Packets that came when their place had been passed: given up, or here already. A total.
    pub late: u64,
    /// Packets that repeated one which still waited. A total.
    pub duplicate: u64,
}

impl Reorder {
    /// A buffer that waits this long for a missing packet.
    pub fn new(hold: Duration) -> Self {
        Self {
            hold,
            sequence: Unwrapper::default(),
            next: None,
            waiting: BTreeMap::new(),
            late: 0,
            duplicate: 0,
        }
    }

    /// Takes a packet in.
    pub fn push(&mut self, now: Instant, packet: RtpPacket) {
        let sequence = self.sequence.unwrap(packet.sequence);
        let next = *self.next.get_or_insert(sequence);
        if sequence < next {
            if next - sequence > JUMP_MIN {
                self.restart(now, packet);
            } else {
                self.late += 1;
            }
            return;
        }
        if sequence - next > JUMP_MIN {
            // What waits is older than the jump; it comes out, then a gap.
            self.waiting.insert(sequence, (now, packet));
            return;
        }
        if self.waiting.insert(sequence, (now, packet)).is_some() {
            self.duplicate += 1;
        }
    }

    /// A publisher that restarted its numbering: everything until now is over.
    fn restart(&mut self, now: Instant, packet: RtpPacket) {
        self.late += self.waiting.len() as u64;
        self.waiting.clear();
        self.sequence = Unwrapper::default();
        let sequence = self.sequence.unwrap(packet.sequence);
        // One number is taken as missing, so that a gap is reported.
        self.next = Some(sequence - 1);
        self.waiting.insert(sequence, (now - self.hold, packet));
    }

    /// The next packet or gap, if it is time for it.
    pub fn poll(&mut self, now: Instant) -> Option<Item> {
        let next = self.next?;
        let (&first, &(arrived, _)) = self.waiting.first_key_value()?;
        if first > next {
            let is_overdue = now >= arrived + self.hold
                || self.waiting.len() > PACKETS_MAX
                || self.waiting.last_key_value().is_some_and(|(last, _)| last - next > JUMP_MIN);
            if !is_overdue {
                return None;
            }
            self.next = Some(first);
            return Some(Item::Gap(first - next));
        }
        let (sequence, (arrived, packet)) = self.waiting.pop_first()?;
        self.next = Some(sequence + 1);
        Some(Item::Packet(arrived, packet))
    }

    /// Packets that wait for one that is missing.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When a gap will be given up, unless it fills before.
    pub fn deadline(&self) -> Option<Instant> {
        let (_, (arrived, _)) = self.waiting.first_key_value()?;
        Some(*arrived + self.hold)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const HOLD: Duration = Duration::from_millis(400);

    fn packet(sequence: u16) -> RtpPacket {
        RtpPacket {
            ssrc: 1,
            payload_type: 96,
            sequence,
            timestamp: 0,
            is_marked: false,
            rid: None,
            payload: Bytes::new(),
        }
    }

    fn drain(reorder: &mut Reorder, now: Instant) -> Vec<i32> {
        std::iter::from_fn(|| reorder.poll(now))
            .map(|item| match item {
                Item::Packet(_, packet) => i32::from(packet.sequence),
                Item::Gap(lost) => -(lost as i32),
            })
            .collect()
    }

    #[test]
    fn packets_out_of_order_come_out_in_order_across_the_wrap() {
        let (mut reorder, now) = (Reorder::new(HOLD), Instant::now());
        for sequence in [65_534, 0, 65_535, 2, 1] {
            reorder.push(now, packet(sequence));
        }
        assert_eq!(drain(&mut reorder, now), [65_534, 65_535, 0, 1, 2]);
        assert_eq!(reorder.deadline(), None);
    }

    #[test]
    fn a_missing_packet_is_waited_for_as_long_as_the_hold_and_not_longer() {
        let (mut reorder, start) = (Reorder::new(HOLD), Instant::now());
        for sequence in [10, 12, 13] {
            reorder.push(start, packet(sequence));
        }
        assert_eq!(drain(&mut reorder, start), [10]);
        assert_eq!(reorder.deadline(), Some(start + HOLD));
        assert_eq!(drain(&mut reorder, start + HOLD - Duration::from_millis(1)), Vec::<i32>::new());
        assert_eq!(drain(&mut reorder, start + HOLD), [-1, 12, 13]);
        reorder.push(start + HOLD, packet(11));
        assert_eq!(reorder.late, 1, "the missing packet comes too late");
        assert_eq!(drain(&mut reorder, start + HOLD * 3), Vec::<i32>::new());
    }

    #[test]
    fn a_repaired_packet_lets_those_behind_it_out_at_once() {
        let (mut reorder, start) = (Reorder::new(HOLD), Instant::now());
        reorder.push(start, packet(10));
        reorder.push(start, packet(12));
        reorder.push(start + HOLD / 2, packet(11));
        reorder.push(start + HOLD / 2, packet(11));
        assert_eq!(drain(&mut reorder, start + HOLD / 2), [10, 11, 12]);
        assert_eq!(reorder.duplicate, 1);
    }

    #[test]
    fn a_stream_that_starts_its_numbers_anew_goes_on_after_a_gap() {
        let (mut reorder, start) = (Reorder::new(HOLD), Instant::now());
        reorder.push(start, packet(30_000));
        assert_eq!(drain(&mut reorder, start), [30_000]);
        reorder.push(start, packet(5_000));
        reorder.push(start, packet(5_001));
        assert_eq!(drain(&mut reorder, start), [-1, 5_000, 5_001]);
        reorder.push(start, packet(25_000));
        assert!(matches!(drain(&mut reorder, start)[..], [gap, 25_000] if gap < -10_000));
    }

    #[test]
    fn waiting_packets_are_bounded() {
        let (mut reorder, start) = (Reorder::new(HOLD), Instant::now());
        reorder.push(start, packet(0));
        for sequence in 2..4_000u16 {
            reorder.push(start, packet(sequence));
            drain(&mut reorder, start);
            assert!(reorder.waiting.len() <= PACKETS_MAX);
        }
    }

    proptest! {
        /// Whatever is lost, late or doubled: what comes out is in order, once, and gaps account for the rest.
        #[test]
        fn what_comes_out_is_ordered_and_complete(
            start: u16,
            fates in proptest::collection::vec((0u64..700, 0u8..10), 1..400),
        ) {
            let base = Instant::now();
            let mut arrivals = Vec::new();
            for (index, (delay, fate)) in fates.iter().enumerate() {
                let at = index as u64 * 5 + delay;
                match fate {
                    0 => {}
                    1 => arrivals.extend([(at, index), (at + 3, index)]),
                    _ => arrivals.push((at, index)),
                }
            }
            arrivals.sort_unstable();
            let mut reorder = Reorder::new(HOLD);
            let mut position: Option<u64> = None;
            let mut expect = |items: Vec<Item>| {
                for item in items {
                    match item {
                        Item::Gap(lost) => position = position.map(|p| p + lost),
                        Item::Packet(_, packet) => {
                            let index = u64::from(packet.sequence.wrapping_sub(start));
                            if let Some(position) = position { assert_eq!(index, position); }
                            position = Some(index + 1);
                        }
                    }
                }
            };
            for (at, index) in arrivals {
                let now = base + Duration::from_millis(at);
                reorder.push(now, packet(start.wrapping_add(index as u16)));
                expect(std::iter::from_fn(|| reorder.poll(now)).collect());
                if let Some(deadline) = reorder.deadline() { prop_assert!(deadline > now); }
            }
            let end = base + Duration::from_secs(3600);
            expect(std::iter::from_fn(|| reorder.poll(end)).collect());
            prop_assert!(reorder.waiting.is_empty());
        }
    }
}
