//! Outputs and statistics as plain numbers, in the order of the tables in `README.md`.

use shoal_swarm::{Output, PieceId, Stats};

/// One output.
#[derive(Debug)]
pub struct Fields {
    /// What is to be done; 0 for nothing.
    pub tag: u8,
    /// What `field()` gives, −1 where there is nothing.
    pub numbers: [f64; 8],
    /// What `bytes()` gives.
    pub bytes: Vec<u8>,
}

impl Fields {
    /// Nothing is to be done.
    pub const NOTHING: Self = Self { tag: 0, numbers: [-1.0; 8], bytes: Vec::new() };

    fn of<const N: usize>(tag: u8, values: [f64; N]) -> Self {
        let mut fields = Self { tag, ..Self::NOTHING };
        fields.numbers[..N].copy_from_slice(&values);
        fields
    }

    fn of_piece(tag: u8, piece: PieceId) -> Self {
        Self::of(tag, [f64::from(piece.rendition), piece.msn as f64, f64::from(piece.part)])
    }
}

impl From<Output> for Fields {
    fn from(output: Output) -> Self {
        let flag = |on: bool| f64::from(u8::from(on));
        let three = |piece: PieceId| (f64::from(piece.rendition), piece.msn as f64, f64::from(piece.part));
        match output {
            Output::SendControl { peer, bytes } => Self { bytes, ..Self::of(1, [f64::from(peer)]) },
            Output::SendBlock { peer, header, piece, block } => {
                let (rendition, msn, part) = three(piece);
                let fields = Self::of(2, [f64::from(peer), rendition, msn, part, f64::from(block)]);
                Self { bytes: header.to_vec(), ..fields }
            }
            Output::Fetch { fetch, piece, offset, length, is_whole, is_retry } => {
                let (rendition, msn, part) = three(piece);
                let (offset, length) = (f64::from(offset), f64::from(length));
                let fetch = f64::from(fetch);
                Self::of(3, [fetch, rendition, msn, part, offset, length, flag(is_whole), flag(is_retry)])
            }
            Output::CancelFetch { fetch } => Self::of(4, [f64::from(fetch)]),
            Output::FetchRecord { piece } => Self::of_piece(5, piece),
            Output::Store { piece, block, piece_length, held } => {
                let (rendition, msn, part) = three(piece);
                let held = held.map_or(-1.0, f64::from);
                Self::of(6, [rendition, msn, part, f64::from(block), f64::from(piece_length), held])
            }
            Output::Hold { hold } => Self::of(7, [f64::from(hold)]),
            Output::DropHeld { hold } => Self::of(8, [f64::from(hold)]),
            Output::KeepLoaded { piece } => Self::of_piece(9, piece),
            Output::DropLoaded { piece } => Self::of_piece(10, piece),
            Output::Evict { piece } => Self::of_piece(11, piece),
            Output::Deliver { request, first, parts } => {
                let (rendition, msn, part) = three(first);
                Self::of(12, [f64::from(request), rendition, msn, part, f64::from(parts)])
            }
            Output::Fallback { request, reason } => {
                Self::of(13, [f64::from(request), f64::from(reason as u8)])
            }
            Output::Disconnect { peer, reason } => Self::of(14, [f64::from(peer), f64::from(reason as u8)]),
            Output::Accuse { peer, piece } => {
                let (rendition, msn, part) = three(piece);
                Self::of(15, [f64::from(peer), rendition, msn, part])
            }
            Output::Complain { peer, rendition, stripe } => {
                Self::of(17, [f64::from(peer), f64::from(rendition), f64::from(stripe)])
            }
            Output::Report(report) => Self::of(
                16,
                [
                    f64::from(report.uplink_kbps),
                    f64::from(report.buffer_ms),
                    f64::from(report.behind_ms),
                    report.peer_bytes as f64,
                    report.origin_bytes as f64,
                    report.sent_bytes as f64,
                    report.waste_bytes as f64,
                    f64::from(report.rebuffer_ms),
                ],
            ),
        }
    }
}

/// The counters in the order of the README.
#[must_use]
pub fn stats(stats: &Stats) -> Vec<f64> {
    let counts = [
        stats.peer_bytes,
        stats.origin_bytes,
        stats.sent_bytes,
        stats.duplicate_bytes,
        stats.late_bytes,
        stats.rejected_bytes,
        stats.pieces,
        stats.pushed_blocks,
        stats.pulled_blocks,
        stats.pulls,
        stats.pulls_refused,
        stats.pulls_timed_out,
        stats.seed_fetches,
        stats.deadline_fetches,
        stats.fetches_cancelled,
        stats.fetches_failed,
        stats.delivered,
        stats.fallbacks,
        stats.records,
        stats.records_refused,
        stats.strikes,
        stats.bans,
        stats.held,
        stats.held_refused,
        stats.uploads_dropped,
        stats.shed,
        stats.evicted,
        stats.refused,
        stats.rebuffer_ms,
        u64::from(stats.neighbors),
        stats.store_bytes,
        stats.uplink_bps,
        stats.upload_rate_bps,
        u64::from(stats.origin_p95_ms),
        u64::from(stats.behind_ms),
        u64::from(stats.buffer_ms),
    ];
    counts.iter().map(|count| *count as f64).collect()
}
