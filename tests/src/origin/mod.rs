//! The origin under load: a source of media without an encoder, raw HTTP clients by the thousand, and
//! CDNs in front. For `cargo xtask bench origin`, and for the tests that prove the same in small.

pub mod client;
pub mod crowd;
pub mod front;
pub mod source;

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since the Unix epoch: one clock for all processes of the machine.
#[must_use]
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is behind 1970");
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The value below which `share` of the values lie (nearest rank); 0 without values.
#[must_use]
pub fn percentile(values: &mut [u64], share: f64) -> u64 {
    values.sort_unstable();
    let rank = (values.len() as f64 * share).ceil().max(1.0) as usize;
    values.get(rank - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        assert_eq!(percentile(&mut [], 0.5), 0);
        assert_eq!(percentile(&mut [7], 0.99), 7);
        assert_eq!(percentile(&mut [3, 1, 2, 4], 0.5), 2);
        assert_eq!(percentile(&mut [3, 1, 2, 4], 0.99), 4);
    }
}
