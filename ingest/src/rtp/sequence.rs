//! Numbers that wrap on the wire and don't here.

/// Extends 16-bit sequence numbers. A number is taken to be the nearest one to the highest so far, so up to 32,767
/// packets may be missing or late.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwrapper {
    highest: Option<u64>,
}

impl Unwrapper {
    /// The extended number. The first is at least 65,536, so that earlier ones can follow it.
    pub fn unwrap(&mut self, number: u16) -> u64 {
        let Some(highest) = self.highest else {
            let first = 65_536 + u64::from(number);
            self.highest = Some(first);
            return first;
        };
        let step = i64::from(number.wrapping_sub(highest as u16) as i16);
        let extended = highest.saturating_add_signed(step);
        self.highest = Some(highest.max(extended));
        extended
    }
}

/// Extends 32-bit RTP timestamps in the same way, relative to the last one seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimestampUnwrapper {
    last: Option<i64>,
}

impl TimestampUnwrapper {
    /// The extended timestamp, and from now on the reference.
    pub fn unwrap(&mut self, timestamp: u32) -> i64 {
        let extended = self.near(timestamp);
        self.last = Some(extended);
        extended
    }

    /// The extended timestamp of something that may be older, such as a report: the reference stays.
    pub fn near(&self, timestamp: u32) -> i64 {
        match self.last {
            None => i64::from(timestamp),
            Some(last) => last + i64::from(timestamp.wrapping_sub(last as u32) as i32),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sequence_numbers_pass_the_wrap_in_both_directions() {
        let mut unwrapper = Unwrapper::default();
        let first = unwrapper.unwrap(65_534);
        assert_eq!(unwrapper.unwrap(1), first + 3);
        assert_eq!(unwrapper.unwrap(65_535), first + 1, "late, from before the wrap");
        assert_eq!(unwrapper.unwrap(2), first + 4);
    }

    #[test]
    fn a_number_before_the_first_is_not_negative() {
        let mut unwrapper = Unwrapper::default();
        let first = unwrapper.unwrap(0);
        assert_eq!(unwrapper.unwrap(65_535), first - 1);
    }

    proptest! {
        #[test]
        fn extended_numbers_follow_the_true_ones(start: u16, steps in proptest::collection::vec(-200i64..400, 1..300)) {
            let mut unwrapper = Unwrapper::default();
            let first = unwrapper.unwrap(start);
            let (mut truth, mut highest) = (0i64, 0i64);
            for step in steps {
                truth = highest + step;
                highest = highest.max(truth);
                let number = (i64::from(start) + truth) as u16;
                prop_assert_eq!(unwrapper.unwrap(number) as i64 - first as i64, truth);
            }
            let _ = truth;
        }

        #[test]
        fn extended_timestamps_follow_the_true_ones(start: u32, steps in proptest::collection::vec(0u32..1_000_000_000, 1..50)) {
            let mut unwrapper = TimestampUnwrapper::default();
            let first = unwrapper.unwrap(start);
            let mut truth = 0i64;
            for step in steps {
                truth += i64::from(step);
                prop_assert_eq!(unwrapper.unwrap((i64::from(start) + truth) as u32) - first, truth);
            }
        }
    }
}
