//! A slow line: media leaves at a fixed rate, in the order in which it was handed over.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The uplink of one viewer, shared by its neighbors.
#[derive(Debug)]
pub(crate) struct Uplink {
    rate_bps: Option<u64>,
    free_at: Mutex<Instant>,
}

impl Uplink {
    /// A line of `rate_kbps`, or an unlimited one.
    pub(crate) fn new(rate_kbps: Option<u32>) -> Self {
        let rate_bps = rate_kbps.map(|rate| u64::from(rate.max(1)) * 1000);
        Self { rate_bps, free_at: Mutex::new(Instant::now()) }
    }

    /// Returns when `bytes` have left. Callers leave in the order of their calls.
    pub(crate) async fn send(&self, bytes: usize) {
        let Some(rate_bps) = self.rate_bps else { return };
        let micros = bytes as u64 * 8_000_000 / rate_bps;
        let done = {
            let mut free_at = self.free_at.lock();
            *free_at = (*free_at).max(Instant::now()) + Duration::from_micros(micros);
            *free_at
        };
        tokio::time::sleep_until(done).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_senders_share_the_rate() {
        let uplink = Uplink::new(Some(1000));
        let start = Instant::now();
        tokio::join!(uplink.send(62_500), uplink.send(62_500));
        assert_eq!(start.elapsed().as_millis(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn no_limit_does_not_wait() {
        let start = Instant::now();
        Uplink::new(None).send(usize::MAX / 16).await;
        assert_eq!(start.elapsed().as_millis(), 0);
    }
}
