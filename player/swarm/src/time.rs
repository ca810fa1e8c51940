//! Integer time for the core: microseconds, no clock.
//!
//! The driver owns the clock and says what time it is with each input. The zero point is the driver's (the page's
//! time origin, the start of a simulation); only differences mean anything here. Program date times are Unix
//! milliseconds and never mixed with these types.

use std::ops::{Add, AddAssign, Sub};

/// A moment on the driver's monotonic clock, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

/// A length of time in microseconds, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

impl Time {
    /// The driver's zero point.
    pub const ZERO: Self = Self(0);
    /// Later than anything that will be scheduled.
    pub const NEVER: Self = Self(u64::MAX);

    /// A moment so many microseconds after the zero point.
    #[must_use]
    pub const fn from_us(us: u64) -> Self {
        Self(us)
    }

    /// A moment so many milliseconds after the zero point.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms.saturating_mul(1000))
    }

    /// Microseconds since the zero point.
    #[must_use]
    pub const fn as_us(self) -> u64 {
        self.0
    }

    /// How long `earlier` is ago at this moment; zero if it is in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved back, at most to the zero point.
    #[must_use]
    pub const fn before(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// So many microseconds.
    #[must_use]
    pub const fn from_us(us: u64) -> Self {
        Self(us)
    }

    /// So many milliseconds.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms.saturating_mul(1000))
    }

    /// So many seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    /// The length in microseconds.
    #[must_use]
    pub const fn as_us(self) -> u64 {
        self.0
    }

    /// The length in whole milliseconds, rounded down.
    #[must_use]
    pub const fn as_ms(self) -> u64 {
        self.0 / 1000
    }

    /// The length times `percent` hundredths.
    #[must_use]
    pub const fn percent(self, percent: u64) -> Self {
        Self(self.0.saturating_mul(percent) / 100)
    }

    /// The time that `bytes` take at `bits_per_second`; very long at zero.
    #[must_use]
    pub const fn of_bytes(bytes: u64, bits_per_second: u64) -> Self {
        if bits_per_second == 0 {
            return Self(u64::MAX / 4);
        }
        Self(bytes.saturating_mul(8_000_000) / bits_per_second)
    }

    /// The difference, or zero where `other` is longer.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add<Span> for Time {
    type Output = Self;

    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl AddAssign<Span> for Time {
    fn add_assign(&mut self, span: Span) {
        *self = *self + span;
    }
}

impl Add for Span {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Span {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.saturating_sub(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_never_wrap() {
        assert_eq!(Time::from_ms(1).since(Time::from_ms(2)), Span::ZERO);
        assert_eq!(Time::NEVER + Span::from_secs(1), Time::NEVER);
        assert_eq!(Time::ZERO.before(Span::from_ms(5)), Time::ZERO);
    }

    #[test]
    fn a_block_at_three_megabits_takes_44_ms() {
        assert_eq!(Span::of_bytes(16 * 1024, 3_000_000).as_ms(), 43);
    }
}
