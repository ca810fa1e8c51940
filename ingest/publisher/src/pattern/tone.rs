//! The generated sound: a soft tone, and a beep at the beginning of each second of the publisher's clock.

use super::{BEEP_US, Kind};
use std::f64::consts::TAU;

/// Opus runs at 48 kHz whatever goes in.
pub(crate) const SAMPLE_RATE: u32 = 48_000;
/// Interleaved channels.
pub(crate) const CHANNELS: usize = 2;

const HUM_HZ: f64 = 220.0;
const HUM_LEVEL: f64 = 0.03;
const BEEP_HZ: f64 = 1000.0;
const BEEP_LEVEL: f64 = 0.35;
/// Fades the beep in and out: a hard edge would click. Detectors see the beep within 2 ms all the same.
const RAMP_US: f64 = 2_000.0;

/// The sample of all channels for a moment of the publisher's wall clock.
pub(crate) fn sample(kind: Kind, unix_us: f64) -> f32 {
    let since_second = unix_us.rem_euclid(1e6);
    let beep = if since_second < BEEP_US as f64 {
        let ramp = (since_second / RAMP_US).min((BEEP_US as f64 - since_second) / RAMP_US).min(1.0);
        BEEP_LEVEL * ramp * (TAU * BEEP_HZ * since_second / 1e6).sin()
    } else {
        0.0
    };
    let hum = match kind {
        // Whole periods fit a second, so the phase may be taken from the position within it.
        Kind::Bars => HUM_LEVEL * (TAU * HUM_HZ * since_second / 1e6).sin(),
        Kind::Flash => 0.0,
    };
    (beep + hum) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beep_starts_with_the_second_and_ends_after_a_tenth() {
        let peak = |from_us: i64, to_us: i64| {
            (from_us..to_us).step_by(21).map(|us| sample(Kind::Flash, us as f64).abs()).fold(0.0, f32::max)
        };
        let second = 1_790_000_000_000_000;
        assert!(peak(second, second + 5_000) > 0.3);
        assert!(peak(second + 90_000, second + 98_000) > 0.3);
        assert_eq!(peak(second + 100_000, second + 1_000_000), 0.0);
    }

    #[test]
    fn hum_has_no_step_at_the_second() {
        let second = 1_790_000_001_000_000.0;
        let step = sample(Kind::Bars, second) - sample(Kind::Bars, second - 20.0);
        assert!(step.abs() < 0.01, "{step}");
    }
}
