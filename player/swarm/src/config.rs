//! Limits and margins of the core. Each has a default with a reason; simulations vary them.

use shoal_digest::Epoch;

use crate::Span;

/// How a [`Peer`](crate::Peer) behaves. [`Config::new`] gives the defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which publication of the stream is watched. Everything of another is refused.
    pub epoch: Epoch,
    /// The piece store's limit in bytes; the oldest pieces are evicted.
    pub store_bytes_max: u64,
    /// At most this many pieces are known at a time, over all renditions.
    pub pieces_max: usize,
    /// At most this many neighbors, also when the tracker allows more.
    pub neighbors_max: usize,
    /// Upload at most this share of the measured uplink, in percent.
    pub upload_uplink_percent: u64,
    /// Upload at most this share of the stream's rate, in percent. The tracker's `welcome` can lower it.
    pub upload_ratio_percent: u64,
    /// The token bucket of uploads holds what the upload rate brings in this time. A stripe's block goes to all children at
    /// the line's speed instead of one after the other at half of it.
    pub upload_burst: Span,
    /// The uplink to assume before anything was measured, in bit/s.
    pub uplink_initial_bps: u64,
    /// What may be uploaded, in bit/s, where its owner has said so: all of it is meant for the swarm, and nothing is measured.
    pub uplink_granted_bps: Option<u64>,
    /// A block may be this much later than expected before it is pulled. Wide, because pulls are duplicates in the
    /// making: 150 ms costs fourteen times as many as 250 ms.
    pub pull_margin: Span,
    /// A piece must be complete this long before the playhead reaches it: appending takes time, and a player with less
    /// in its buffer stops.
    pub append_margin: Span,
    /// Fetches for the sake of a deadline are spread over at most this long before the last call, so that viewers with
    /// the same deadline do not ask the origin in the same moment.
    pub fallback_spread: Span,
    /// How many messages that make no sense are forgiven.
    pub strikes_max: u32,
    /// Who gets round to things so much later than planned, on average, is short of processor time: it is to have no children,
    /// and takes at once from the origin what nobody pushes.
    pub starved_above: Span,
    /// At most this many blocks wait in the upload queue.
    pub upload_queue_max: usize,
    /// At most this many blocks wait for their record.
    pub held_max: usize,
    /// At most this many fetches from the origin run at a time.
    pub fetches_max: usize,
    /// Whether a recording is watched: nothing is published any more, and each viewer is somewhere else.
    pub is_recording: bool,
    /// Whether blocks are pushed to children. Off only to show what pushing gains.
    pub push: bool,
}

impl Config {
    /// The defaults for a stream.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            store_bytes_max: 64 * 1024 * 1024,
            // Two minutes of video and audio in 500 ms parts.
            pieces_max: 480,
            neighbors_max: 32,
            upload_uplink_percent: 50,
            // The smallest cap that lets a swarm with 30 % who never upload carry 95 % of a 3 Mbit/s stream.
            upload_ratio_percent: 200,
            upload_burst: Span::from_ms(350),
            // Low enough not to hurt a slow line in the seconds until the first measurement.
            uplink_initial_bps: 2_000_000,
            uplink_granted_bps: None,
            pull_margin: Span::from_ms(250),
            append_margin: Span::from_ms(150),
            fallback_spread: Span::from_ms(800),
            strikes_max: 4,
            // Simulated pages that look after things every 150 ms share without harm, every 300 ms with much.
            starved_above: Span::from_ms(75),
            // Five seconds of a 3 Mbit/s stream to one neighbor; what waits longer is late anyway.
            upload_queue_max: 128,
            held_max: 64,
            fetches_max: 6,
            is_recording: false,
            push: true,
        }
    }
}
