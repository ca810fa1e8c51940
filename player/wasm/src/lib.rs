//! The swarm core for browsers: a wasm-bindgen shell without logic.
//!
//! Translates between JavaScript's numbers and byte arrays and the core's types, hashes blocks, and has the core check
//! signatures. What the calls mean is in `README.md`; all decisions are in `player/swarm`; the driver is `player/web`.

pub mod output;

use shoal_swarm::{
    BLOCK_BYTES, BlockDigest, Config, Epoch, Input, OriginKey, Peer, PieceId, Place, Span, Target, Time,
    wire::BLOCK_HEADER_BYTES,
};
use wasm_bindgen::prelude::wasm_bindgen;

use output::Fields;

/// One viewer's swarm core. See `README.md` for the meaning of each method.
#[wasm_bindgen]
#[derive(Debug)]
pub struct SwarmPeer {
    peer: Peer,
    last: Fields,
}

/// A `performance.now()` value as the core's time.
fn time(ms: f64) -> Time {
    Time::from_us((ms * 1000.0) as u64)
}

fn span(ms: f64) -> Span {
    Span::from_us((ms * 1000.0) as u64)
}

fn piece(rendition: u8, msn: f64, part: u16) -> PieceId {
    PieceId { rendition, msn: msn as u64, part }
}

fn deadline(ms: f64) -> Option<Time> {
    (ms >= 0.0).then(|| time(ms))
}

#[wasm_bindgen]
#[allow(missing_docs)] // documented for JavaScript, in `README.md`
impl SwarmPeer {
    #[wasm_bindgen(constructor)]
    pub fn new(origin_key: &[u8], epoch: &[u8], seed: f64) -> Result<SwarmPeer, String> {
        let key: &[u8; 32] = origin_key.try_into().map_err(|_| "origin key: 32 bytes")?;
        let epoch: [u8; 16] = epoch.try_into().map_err(|_| "epoch: 16 bytes")?;
        let key = OriginKey::from_bytes(key).map_err(|_| "origin key: not a key")?;
        let config = Config::new(key, Epoch(epoch));
        Ok(Self { peer: Peer::new(config, seed as u64), last: Fields::default() })
    }

    #[wasm_bindgen(js_name = setStoreBytesMax)]
    pub fn set_store_bytes_max(&mut self, bytes: f64) {
        self.peer.set_store_bytes_max(bytes as u64);
    }

    pub fn wake(&mut self, now: f64) {
        self.peer.handle_input(time(now), Input::Wake);
    }

    pub fn welcome(
        &mut self,
        now: f64,
        peer: u32,
        neighbors_max: u16,
        upload_ratio_percent: u16,
        report_ms: f64,
    ) {
        let report_interval = span(report_ms);
        let input = Input::Welcome { peer, neighbors_max, upload_ratio_percent, report_interval };
        self.peer.handle_input(time(now), input);
    }

    #[wasm_bindgen(js_name = trackerLost)]
    pub fn tracker_lost(&mut self, now: f64) {
        self.peer.handle_input(time(now), Input::TrackerLost);
    }

    pub fn record(&mut self, now: f64, bytes: &[u8]) {
        self.peer.handle_input(time(now), Input::RecordBytes { bytes });
    }

    #[wasm_bindgen(js_name = recordFailed)]
    pub fn record_failed(&mut self, now: f64, rendition: u8, msn: f64, part: u16) {
        self.peer.handle_input(time(now), Input::RecordFailed { piece: piece(rendition, msn, part) });
    }

    pub fn plan(&mut self, now: f64, rendition: u8, stripes: u8, places: &[f64]) {
        // Children are stored first, so that the places can borrow them.
        let children: Vec<u32> = places.iter().map(|number| *number as u32).collect();
        let mut parsed = Vec::new();
        let mut at = 0;
        while let Some([stripe, root, parent, expected, count]) = places.get(at..at + 5) {
            let first = at + 5;
            let Some(children) = children.get(first..first.saturating_add(*count as usize)) else { break };
            parsed.push(Place {
                stripe: *stripe as u8,
                is_root: *root != 0.0,
                parent: (*parent >= 0.0).then_some(*parent as u32),
                children,
                expected: span(*expected),
            });
            at = first + children.len();
        }
        self.peer.handle_input(time(now), Input::Plan { rendition, stripes, places: &parsed });
    }

    pub fn sharing(&mut self, now: f64, on: bool) {
        self.peer.handle_input(time(now), Input::Sharing { on });
    }

    #[wasm_bindgen(js_name = neighborConnected)]
    pub fn neighbor_connected(&mut self, now: f64, peer: u32, rtt_ms: f64) {
        let rtt = (rtt_ms >= 0.0).then(|| span(rtt_ms));
        self.peer.handle_input(time(now), Input::NeighborConnected { peer, rtt });
    }

    #[wasm_bindgen(js_name = neighborLost)]
    pub fn neighbor_lost(&mut self, now: f64, peer: u32) {
        self.peer.handle_input(time(now), Input::NeighborLost { peer });
    }

    pub fn message(&mut self, now: f64, peer: u32, bytes: &[u8]) {
        self.peer.handle_input(time(now), Input::Message { peer, bytes });
    }

    pub fn block(&mut self, now: f64, peer: u32, message: &[u8]) {
        let (header, payload) = message.split_at(message.len().min(BLOCK_HEADER_BYTES));
        let (length, digest) = measure(payload);
        self.peer.handle_input(time(now), Input::Block { peer, header, length, digest });
    }

    #[wasm_bindgen(js_name = sendQueue)]
    pub fn send_queue(&mut self, now: f64, peer: u32, buffered: u32) {
        self.peer.handle_input(time(now), Input::SendQueue { peer, buffered });
    }

    #[wasm_bindgen(js_name = fetchBlock)]
    pub fn fetch_block(&mut self, now: f64, fetch: u32, block: u16, bytes: &[u8]) {
        let (length, digest) = measure(bytes);
        self.peer.handle_input(time(now), Input::FetchBlock { fetch, block, length, digest });
    }

    #[wasm_bindgen(js_name = fetchFinished)]
    pub fn fetch_finished(&mut self, now: f64, fetch: u32) {
        self.peer.handle_input(time(now), Input::FetchFinished { fetch });
    }

    #[wasm_bindgen(js_name = fetchFailed)]
    pub fn fetch_failed(&mut self, now: f64, fetch: u32, status: u16) {
        self.peer.handle_input(time(now), Input::FetchFailed { fetch, status });
    }

    pub fn loaded(&mut self, now: f64, rendition: u8, msn: f64, part: u16, bytes: &[u8], took_ms: f64) {
        let digests: Vec<BlockDigest> = bytes.chunks(BLOCK_BYTES as usize).map(BlockDigest::of).collect();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let piece = piece(rendition, msn, part);
        let input = Input::Loaded { piece, length, digests: &digests, took: span(took_ms) };
        self.peer.handle_input(time(now), input);
    }

    pub fn playing(&mut self, now: f64, renditions: &[u8]) {
        self.peer.handle_input(time(now), Input::Playing { renditions });
    }

    pub fn playhead(
        &mut self,
        now: f64,
        position: f64,
        buffered_until: f64,
        rate_percent: u16,
        is_stalled: bool,
    ) {
        let (position_ms, buffered_until_ms) = (position as u64, buffered_until as u64);
        let input = Input::Playhead { position_ms, buffered_until_ms, rate_percent, is_stalled };
        self.peer.handle_input(time(now), input);
    }

    #[wasm_bindgen(js_name = wantPiece)]
    pub fn want_piece(
        &mut self,
        now: f64,
        request: u32,
        rendition: u8,
        msn: f64,
        part: u16,
        deadline_ms: f64,
    ) {
        let target = Target::Piece(piece(rendition, msn, part));
        self.peer.handle_input(time(now), Input::Want { request, target, deadline: deadline(deadline_ms) });
    }

    #[wasm_bindgen(js_name = wantSegment)]
    pub fn want_segment(&mut self, now: f64, request: u32, rendition: u8, msn: f64, deadline_ms: f64) {
        let target = Target::Segment { rendition, msn: msn as u64 };
        self.peer.handle_input(time(now), Input::Want { request, target, deadline: deadline(deadline_ms) });
    }

    pub fn unwant(&mut self, now: f64, request: u32) {
        self.peer.handle_input(time(now), Input::Unwant { request });
    }

    pub fn share(&mut self, now: f64, on: bool) {
        self.peer.handle_input(time(now), Input::Share { on });
    }

    pub fn metered(&mut self, now: f64, on: bool) {
        self.peer.handle_input(time(now), Input::Metered { on });
    }

    pub fn leave(&mut self, now: f64) {
        self.peer.handle_input(time(now), Input::Leave);
    }

    #[wasm_bindgen(js_name = segmentParts)]
    pub fn segment_parts(&self, rendition: u8, msn: f64) -> Option<Vec<f64>> {
        let parts = self.peer.segment_parts(rendition, msn as u64)?;
        Some(parts.into_iter().map(|(_, length)| f64::from(length)).collect())
    }

    pub fn poll(&mut self) -> u8 {
        self.last = self.peer.poll_output().map(Fields::from).unwrap_or_default();
        self.last.tag
    }

    pub fn field(&self, index: usize) -> f64 {
        self.last.numbers.get(index).copied().unwrap_or(-1.0)
    }

    pub fn bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.last.bytes)
    }

    #[wasm_bindgen(js_name = nextDeadline)]
    pub fn next_deadline(&self) -> f64 {
        self.peer.next_deadline().map_or(-1.0, |(time, _)| time.as_us() as f64 / 1000.0)
    }

    pub fn stats(&self) -> Vec<f64> {
        output::stats(&self.peer.stats())
    }

    #[wasm_bindgen(js_name = startLog)]
    pub fn start_log(&mut self) {
        self.peer.start_log();
    }

    #[wasm_bindgen(js_name = takeLog)]
    pub fn take_log(&mut self) -> Vec<u8> {
        self.peer.take_log()
    }
}

fn measure(bytes: &[u8]) -> (u32, BlockDigest) {
    // No block is longer, so that garbage is not worth hashing; its length alone gets it refused.
    let hashed = &bytes[..bytes.len().min(BLOCK_BYTES as usize)];
    (u32::try_from(bytes.len()).unwrap_or(u32::MAX), BlockDigest::of(hashed))
}
