//! The event queue: what happens next, in virtual time.
//!
//! A ring of short time slots instead of a heap: a run of ten thousand viewers has some hundred million events, nearly
//! all of them within a few seconds, and putting one into a slot costs the same however many there are. Events at the
//! same time come out in the order in which they were put in, so that a run can be repeated byte for byte.

use std::collections::BTreeMap;

/// A slot lasts 2^8 µs: with ten thousand viewers it holds about a hundred events.
const SLOT_BITS: u32 = 8;
/// Slots in the ring: a little over four seconds. What lies further ahead waits in a map.
const SLOTS: u64 = 1 << 14;

#[derive(Debug)]
struct Entry<E> {
    at: u64,
    order: u64,
    event: E,
}

/// Events by time.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    ring: Vec<Vec<Entry<E>>>,
    far: BTreeMap<u64, Vec<Entry<E>>>,
    /// The slot being worked off, latest event first.
    current: Vec<Entry<E>>,
    slot: u64,
    order: u64,
    count: usize,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            ring: (0..SLOTS).map(|_| Vec::new()).collect(),
            far: BTreeMap::new(),
            current: Vec::new(),
            slot: 0,
            order: 0,
            count: 0,
        }
    }
}

impl<E> Queue<E> {
    /// Puts in what happens at `at` (microseconds); what lies in the past happens next.
    pub(crate) fn push(&mut self, at: u64, event: E) {
        self.order += 1;
        self.count += 1;
        let entry = Entry { at, order: self.order, event };
        let slot = at >> SLOT_BITS;
        if slot <= self.slot {
            let place =
                self.current.partition_point(|other| (other.at, other.order) > (entry.at, entry.order));
            self.current.insert(place, entry);
        } else if slot < self.slot + SLOTS {
            self.ring[(slot % SLOTS) as usize].push(entry);
        } else {
            self.far.entry(slot).or_default().push(entry);
        }
    }

    /// The next event and its time.
    pub(crate) fn pop(&mut self) -> Option<(u64, E)> {
        if self.count == 0 {
            return None;
        }
        while self.current.is_empty() {
            self.slot += 1;
            // Entries of the ring belong to the slot that is now current, because they were less than a round ahead.
            std::mem::swap(&mut self.current, &mut self.ring[(self.slot % SLOTS) as usize]);
            if let Some(far) = self.far.first_entry()
                && *far.key() <= self.slot
            {
                self.current.append(&mut far.remove());
            }
            self.current.sort_unstable_by_key(|entry| std::cmp::Reverse((entry.at, entry.order)));
        }
        self.count -= 1;
        self.current.pop().map(|entry| (entry.at, entry.event))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn events_come_out_by_time_and_then_by_order_of_entry() {
        let mut queue = Queue::default();
        let mut random = Random::new(5);
        let mut expected = Vec::new();
        for order in 0..5_000_u64 {
            let at = random.below(20_000_000) / 1_000 * 1_000;
            queue.push(at, order);
            expected.push((at, order));
        }
        expected.sort_unstable();
        let popped: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(popped, expected);
        assert!(queue.is_empty());
    }

    #[test]
    fn events_put_in_while_others_come_out_keep_their_time() {
        let mut queue = Queue::default();
        let mut random = Random::new(6);
        queue.push(0, 0);
        let (mut last, mut count) = (0, 0);
        while let Some((at, _)) = queue.pop() {
            assert!(at >= last);
            last = at;
            count += 1;
            if count < 20_000 {
                queue.push(at + random.below(6_000_000), count);
                if count % 3 == 0 {
                    queue.push(at + random.below(400), count);
                }
            }
        }
        assert!(count > 20_000 && queue.is_empty());
    }
}
