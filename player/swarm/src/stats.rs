//! Counters since the peer was made. The core exposes values; drivers export and name them.

/// What happened so far. Byte counts are media bytes; headers are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Verified bytes stored that came from peers.
    pub peer_bytes: u64,
    /// Verified bytes stored that came from the origin, with those the driver loaded itself.
    pub origin_bytes: u64,
    /// Bytes handed to neighbors' channels.
    pub sent_bytes: u64,
    /// Bytes received that were stored already.
    pub duplicate_bytes: u64,
    /// Bytes received that nobody wants any more or whose record never came.
    pub late_bytes: u64,
    /// Bytes received that did not match their record.
    pub rejected_bytes: u64,
    /// Pieces completed and verified.
    pub pieces: u64,
    /// Blocks stored that a parent pushed.
    pub pushed_blocks: u64,
    /// Blocks stored that were pulled.
    pub pulled_blocks: u64,
    /// Blocks asked of neighbors.
    pub pulls: u64,
    /// Pulls that a neighbor refused.
    pub pulls_refused: u64,
    /// Pulls that were not answered in time.
    pub pulls_timed_out: u64,
    /// Fetches from the origin that were started because the local peer is a root.
    pub seed_fetches: u64,
    /// Fetches from the origin that were started because a deadline came near.
    pub deadline_fetches: u64,
    /// Fetches that were cancelled because the bytes came from elsewhere.
    pub fetches_cancelled: u64,
    /// Fetches that failed.
    pub fetches_failed: u64,
    /// Requests answered with bytes from the piece store.
    pub delivered: u64,
    /// Requests answered with `Fallback`.
    pub fallbacks: u64,
    /// Records accepted.
    pub records: u64,
    /// Records refused: malformed, forged, of another epoch, or contradicting an earlier one.
    pub records_refused: u64,
    /// Messages that made no sense.
    pub strikes: u64,
    /// Neighbors banned.
    pub bans: u64,
    /// Blocks held for their record.
    pub held: u64,
    /// Blocks not held because the limit was reached.
    pub held_refused: u64,
    /// Uploads not queued, or dropped from the queue, because the limit was reached or the receiver overloaded us.
    pub uploads_dropped: u64,
    /// Children that were told to look for another parent.
    pub shed: u64,
    /// How often the local peer was found short of processor time.
    pub starved: u64,
    /// Parents complained of to the tracker because they were silent.
    pub complaints: u64,
    /// Pieces evicted from the store.
    pub evicted: u64,
    /// Inputs that a limit refused: pieces, requests, neighbors.
    pub refused: u64,
    /// Milliseconds without playback for want of data.
    pub rebuffer_ms: u64,
    /// Neighbors now.
    pub neighbors: u32,
    /// Bytes in the piece store now.
    pub store_bytes: u64,
    /// The measured uplink in bit/s, 0 before the first measurement.
    pub uplink_bps: u64,
    /// The rate to which uploads are held now, in bit/s.
    pub upload_rate_bps: u64,
    /// The 95th percentile of the time from a fetch to its first block, in milliseconds.
    pub origin_p95_ms: u32,
    /// How far the playhead is behind the end of the newest known piece, in milliseconds.
    pub behind_ms: u32,
    /// Media ahead of the playhead, in milliseconds.
    pub buffer_ms: u32,
}
