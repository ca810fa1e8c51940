//! The state machine of one viewer.

use std::collections::VecDeque;

use crate::{
    Config, Input, Output, PieceId, Stats, Time, input::RequestId, output::FallbackReason, rng::Rng,
};

/// Why the core wants to be woken, for logs and the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// An upload may be sent.
    Upload,
    /// A piece's blocks are late, or a deadline is near.
    Piece,
    /// A neighbor is to be asked whether it is alive.
    Neighbor,
    /// A request has waited for its record.
    Request,
    /// A report is due.
    Report,
}

/// The swarm core of one viewer.
#[derive(Debug)]
pub struct Peer {
    config: Config,
    rng: Rng,
    outputs: VecDeque<Output>,
    stats: Stats,
}

impl Peer {
    /// A viewer that knows nothing yet.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        Self { config, rng: Rng::new(seed), outputs: VecDeque::new(), stats: Stats::default() }
    }

    /// Takes in what happened at `now`. Times must not go backwards; where they do, the core acts as if no time had
    /// passed.
    pub fn handle_input(&mut self, now: Time, input: Input<'_>) {
        let _ = (now, &self.config, &mut self.rng);
        if let Input::Want { request, .. } = input {
            self.fall_back(request, FallbackReason::Starting);
        }
    }

    /// The next thing to do, or nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to hand in [`Input::Wake`] if nothing happens before, and what for.
    #[must_use]
    pub fn next_deadline(&self) -> Option<(Time, Reason)> {
        None
    }

    /// Changes the piece store's limit, for devices with little memory.
    pub fn set_store_bytes_max(&mut self, bytes: u64) {
        self.config.store_bytes_max = bytes;
    }

    /// Begins to record all inputs, so that they can be replayed: see `replay`.
    pub fn start_log(&mut self) {}

    /// The recorded inputs since `start_log`, or nothing; recording ends.
    pub fn take_log(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The pieces of a segment with their lengths, in order, once the records of all its parts are known: where to cut a
    /// segment that the driver loaded itself.
    #[must_use]
    pub fn segment_parts(&self, rendition: u8, msn: u64) -> Option<Vec<(PieceId, u32)>> {
        let _ = (rendition, msn);
        None
    }

    fn fall_back(&mut self, request: RequestId, reason: FallbackReason) {
        self.stats.fallbacks += 1;
        self.outputs.push_back(Output::Fallback { request, reason });
    }
}
