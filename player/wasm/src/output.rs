//! Outputs and statistics as plain numbers, in the order of the tables in `README.md`.

use shoal_swarm::{Output, PieceId, Stats};

/// The most numbers that an output has.
const NUMBERS_MAX: usize = 8;

/// One output.
#[derive(Debug)]
pub struct Fields {
    /// What is to be done; 0 for nothing.
    pub tag: u8,
    /// What `field()` gives, −1 where there is nothing.
    pub numbers: [f64; NUMBERS_MAX],
    /// What `bytes()` gives.
    pub bytes: Vec<u8>,
}

impl Fields {
    /// Nothing is to be done.
    pub const NOTHING: Self = Self { tag: 0, numbers: [-1.0; NUMBERS_MAX], bytes: Vec::new() };

    fn of(tag: u8, values: &[u64]) -> Self {
        let mut fields = Self { tag, ..Self::NOTHING };
        // One too many traps at once: without its last number an output would still look like one.
        values.iter().enumerate().for_each(|(at, value)| fields.numbers[at] = *value as f64);
        fields
    }

    fn of_piece(tag: u8, piece: PieceId) -> Self {
        let (rendition, msn, part) = three(piece);
        Self::of(tag, &[rendition, msn, part])
    }
}

fn three(piece: PieceId) -> (u64, u64, u64) {
    (piece.rendition.into(), piece.msn, piece.part.into())
}

impl From<Output> for Fields {
    fn from(output: Output) -> Self {
        match output {
            Output::SendControl { peer, bytes } => Self { bytes, ..Self::of(1, &[peer.into()]) },
            Output::SendBlock { peer, header, piece, block } => {
                let (rendition, msn, part) = three(piece);
                let fields = Self::of(2, &[peer.into(), rendition, msn, part, block.into()]);
                Self { bytes: header.to_vec(), ..fields }
            }
            // Pages go around HTTP caches for all ranges, so that `is_retry` tells them nothing.
            Output::Fetch { fetch, piece, piece_length, offset, length, is_whole, is_retry: _ } => {
                let (rendition, msn, part) = three(piece);
                let (offset, length, piece_length) = (offset.into(), length.into(), piece_length.into());
                let is_whole = is_whole.into();
                let values = [fetch.into(), rendition, msn, part, offset, length, is_whole, piece_length];
                Self::of(3, &values)
            }
            Output::CancelFetch { fetch } => Self::of(4, &[fetch.into()]),
            Output::FetchRecord { piece, of_segment } => {
                let (rendition, msn, part) = three(piece);
                Self::of(5, &[rendition, msn, part, of_segment.into()])
            }
            Output::CheckRecord { check, signed } => Self { bytes: signed, ..Self::of(18, &[check.into()]) },
            Output::Store { piece, block, piece_length, held } => {
                let (rendition, msn, part) = three(piece);
                let values =
                    [rendition, msn, part, block.into(), piece_length.into(), held.unwrap_or(0).into()];
                Self::of(6, &values[..if held.is_some() { 6 } else { 5 }])
            }
            Output::Hold { hold } => Self::of(7, &[hold.into()]),
            Output::DropHeld { hold } => Self::of(8, &[hold.into()]),
            Output::KeepLoaded { piece } => Self::of_piece(9, piece),
            Output::DropLoaded { piece } => Self::of_piece(10, piece),
            Output::Evict { piece } => Self::of_piece(11, piece),
            Output::Deliver { request, first, parts } => {
                let (rendition, msn, part) = three(first);
                Self::of(12, &[request.into(), rendition, msn, part, parts.into()])
            }
            Output::Fallback { request, reason } => Self::of(13, &[request.into(), reason as u64]),
            Output::Disconnect { peer, reason } => Self::of(14, &[peer.into(), reason as u64]),
            Output::Accuse { peer, piece } => {
                let (rendition, msn, part) = three(piece);
                Self::of(15, &[peer.into(), rendition, msn, part])
            }
            Output::Report(report) => Self::of(
                16,
                &[
                    report.uplink_kbps.into(),
                    report.buffer_ms.into(),
                    report.behind_ms.into(),
                    report.peer_bytes,
                    report.origin_bytes,
                    report.sent_bytes,
                    report.waste_bytes,
                    report.rebuffer_ms.into(),
                ],
            ),
            Output::Complain { peer, rendition, stripe } => {
                Self::of(17, &[peer.into(), rendition.into(), stripe.into()])
            }
        }
    }
}

/// The counters in the order of the README: what pages show, and with the log all others.
#[must_use]
pub fn stats(stats: &Stats) -> Vec<f64> {
    let shown = [stats.duplicate_bytes, stats.late_bytes, stats.rejected_bytes, stats.uplink_bps];
    let mut numbers = Vec::new();
    for count in shown {
        numbers.push(count as f64);
    }
    #[cfg(feature = "log")]
    numbers.extend(others(stats).map(|count| count as f64));
    numbers
}

#[cfg(feature = "log")]
fn others(stats: &Stats) -> [u64; 33] {
    [
        stats.peer_bytes,
        stats.origin_bytes,
        stats.sent_bytes,
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
        stats.upload_rate_bps,
        u64::from(stats.origin_p95_ms),
        u64::from(stats.behind_ms),
        u64::from(stats.buffer_ms),
        stats.starved,
    ]
}
