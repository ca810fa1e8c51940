//! How the pulling of a stream goes, for operators: `/api/streams`, metrics and logs say the same.

use parking_lot::Mutex;
use serde::Serialize;
use tracing::{info, warn};

/// The origin that a stream is pulled from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UpstreamStatus {
    /// Its playlist's URL, without what may be secret in it.
    pub url: String,
    /// What is wrong now, in words; empty if nothing is.
    pub problem: String,
    /// Requests that failed, since the start.
    pub failures: u64,
    /// Segments that could not be had, since the start.
    pub segments_missed: u64,
}

/// See the module.
pub(crate) struct Upstream {
    status: Mutex<UpstreamStatus>,
    failures: metrics::Counter,
    segments_missed: metrics::Counter,
    restarts: metrics::Counter,
    bytes: metrics::Counter,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Upstream").field(&self.status()).finish()
    }
}

impl Upstream {
    pub(super) fn new(stream: &str, url: String) -> Self {
        let counter = |name: &'static str| metrics::counter!(name, "stream" => stream.to_owned());
        Self {
            status: Mutex::new(UpstreamStatus { url, ..UpstreamStatus::default() }),
            failures: counter("pull_failures_total"),
            segments_missed: counter("pull_segments_missed_total"),
            restarts: counter("pull_restarts_total"),
            bytes: counter("pull_received_bytes_total"),
        }
    }

    pub(crate) fn status(&self) -> UpstreamStatus {
        self.status.lock().clone()
    }

    /// Something did not work and will be tried again.
    pub(super) fn failed(&self, what: &str, cause: &dyn std::fmt::Display) {
        self.failures.increment(1);
        let mut status = self.status.lock();
        status.failures += 1;
        set(&mut status, format!("{what}: {cause}"));
    }

    /// Something is as it should not be, without a request that failed.
    pub(super) fn has_problem(&self, problem: &str) {
        set(&mut self.status.lock(), problem.to_owned());
    }

    /// What was wrong is over.
    pub(super) fn works(&self) {
        let mut status = self.status.lock();
        if !status.problem.is_empty() {
            status.problem.clear();
            info!("the upstream works again");
        }
    }

    /// Segments could not be had.
    pub(super) fn missed(&self, segments: u64) {
        self.segments_missed.increment(segments);
        self.status.lock().segments_missed += segments;
    }

    /// The stream had to be taken up anew.
    pub(super) fn restarted(&self) {
        self.restarts.increment(1);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes.increment(bytes as u64);
    }
}

/// Logged when it changes only: an upstream that is down for hours is one line.
fn set(status: &mut UpstreamStatus, problem: String) {
    if status.problem != problem {
        warn!(problem, "upstream");
        status.problem = problem;
    }
}
