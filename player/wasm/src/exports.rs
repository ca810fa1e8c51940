//! What JavaScript calls, as listed in `README.md`.
//!
//! The module imports nothing, so no call can come in while another runs.

// Exporting a function under a fixed name is what the compiler calls unsafe here: it could clash with another crate's. Nothing
// else is: all state lies in cells, and JavaScript can only hand in numbers.
#![allow(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use shoal_swarm::{BlockDigest, Config, Epoch, Input, Peer, PieceId, Place, Span, Target, Time};
use talc::wasm::{WasmDynamicTalc, new_wasm_dynamic_allocator};

use crate::output::{self, Fields};

/// A third of the code of the standard library's allocator.
#[global_allocator]
static ALLOCATOR: WasmDynamicTalc = new_wasm_dynamic_allocator();

/// The viewer, what is handed to it and what it said last.
struct Shell {
    peer: Option<Peer>,
    /// The bytes that the next input speaks of.
    bytes: Vec<u8>,
    last: Fields,
    numbers: Vec<f64>,
}

static SHELL: Mutex<Shell> =
    Mutex::new(Shell { peer: None, bytes: Vec::new(), last: Fields::NOTHING, numbers: Vec::new() });

fn shell() -> MutexGuard<'static, Shell> {
    SHELL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A `performance.now()` value as the core's time.
fn time(ms: f64) -> Time {
    Time::from_us((ms * 1000.0) as u64)
}

fn span(ms: f64) -> Span {
    Span::from_us((ms * 1000.0) as u64)
}

fn piece(rendition: u32, msn: f64, part: u32) -> PieceId {
    PieceId { rendition: rendition as u8, msn: msn as u64, part: part as u16 }
}

fn handle(now: f64, input: Input<'_>) {
    feed(&mut shell().peer, now, input);
}

fn feed(peer: &mut Option<Peer>, now: f64, input: Input<'_>) {
    if let Some(peer) = peer {
        peer.handle_input(time(now), input);
    }
}

/// Makes the bytes' buffer this long; gives its address, to be written to before anything else is called.
#[unsafe(no_mangle)]
extern "C" fn allocate(length: usize) -> *const u8 {
    let mut shell = shell();
    shell.bytes = vec![0; length];
    shell.bytes.as_ptr()
}

/// Makes the viewer, of a recording or of a live stream; bytes: the epoch.
#[unsafe(no_mangle)]
extern "C" fn create(seed: f64, is_recording: bool) {
    let mut shell = shell();
    let epoch = shell.bytes.first_chunk().copied().map(Epoch);
    let config = epoch.map(|epoch| Config { is_recording, ..Config::new(epoch) });
    let peer = config.map(|config| Peer::new(config, seed as u64));
    // An instance is one viewer, so that there is none yet: what takes one apart would be downloaded for nothing.
    std::mem::forget(std::mem::replace(&mut shell.peer, peer));
}

#[unsafe(export_name = "setStoreBytesMax")]
extern "C" fn set_store_bytes_max(bytes: f64) {
    if let Some(peer) = &mut shell().peer {
        peer.set_store_bytes_max(bytes as u64);
    }
}

#[unsafe(no_mangle)]
extern "C" fn wake(now: f64) {
    handle(now, Input::Wake);
}

#[unsafe(no_mangle)]
extern "C" fn welcome(now: f64, peer: u32, neighbors_max: u32, upload_ratio_percent: u32, report_ms: f64) {
    let (neighbors_max, upload_ratio_percent) = (neighbors_max as u16, upload_ratio_percent as u16);
    let report_interval = span(report_ms);
    handle(now, Input::Welcome { peer, neighbors_max, upload_ratio_percent, report_interval });
}

#[unsafe(export_name = "trackerLost")]
extern "C" fn tracker_lost(now: f64) {
    handle(now, Input::TrackerLost);
}

#[unsafe(no_mangle)]
extern "C" fn record(now: f64) {
    let Shell { peer, bytes, .. } = &mut *shell();
    feed(peer, now, Input::RecordBytes { bytes });
}

#[unsafe(export_name = "recordChecked")]
extern "C" fn record_checked(now: f64, check: u32, is_signed: u32) {
    handle(now, Input::RecordChecked { check, is_signed: is_signed != 0 });
}

#[unsafe(export_name = "recordFailed")]
extern "C" fn record_failed(now: f64, rendition: u32, msn: f64, part: u32) {
    handle(now, Input::RecordFailed { piece: piece(rendition, msn, part) });
}

/// Bytes: the places as 64-bit floating-point numbers, least significant byte first.
#[unsafe(no_mangle)]
extern "C" fn plan(now: f64, rendition: u32, stripes: u32) {
    let Shell { peer, bytes, .. } = &mut *shell();
    let (mut numbers, mut children) = (Vec::new(), Vec::new());
    for number in bytes.as_chunks().0 {
        let number = f64::from_le_bytes(*number);
        numbers.push(number);
        // Children are stored first, so that the places can borrow them.
        children.push(number as u32);
    }
    let mut places = Vec::new();
    let mut at = 0;
    while let Some([stripe, root, parent, expected, count]) = numbers.get(at..at + 5) {
        let first = at + 5;
        let Some(children) = children.get(first..first.saturating_add(*count as usize)) else { break };
        places.push(Place {
            stripe: *stripe as u8,
            is_root: *root != 0.0,
            parent: (*parent >= 0.0).then_some(*parent as u32),
            children,
            expected: span(*expected),
        });
        at = first + children.len();
    }
    feed(peer, now, Input::Plan { rendition: rendition as u8, stripes: stripes as u8, places: &places });
}

#[unsafe(no_mangle)]
extern "C" fn sharing(now: f64, on: u32) {
    handle(now, Input::Sharing { on: on != 0 });
}

#[unsafe(export_name = "neighborConnected")]
extern "C" fn neighbor_connected(now: f64, peer: u32) {
    handle(now, Input::NeighborConnected { peer, rtt: None });
}

#[unsafe(export_name = "neighborLost")]
extern "C" fn neighbor_lost(now: f64, peer: u32) {
    handle(now, Input::NeighborLost { peer });
}

#[unsafe(no_mangle)]
extern "C" fn message(now: f64, peer: u32) {
    let Shell { peer: core, bytes, .. } = &mut *shell();
    feed(core, now, Input::Message { peer, bytes });
}

/// Bytes: the digest of what followed the header, then the header.
#[unsafe(no_mangle)]
extern "C" fn block(now: f64, peer: u32, length: u32) {
    let Shell { peer: core, bytes, .. } = &mut *shell();
    let Some((digest, header)) = bytes.split_first_chunk() else { return };
    feed(core, now, Input::Block { peer, header, length, digest: BlockDigest(*digest) });
}

#[unsafe(export_name = "sendQueue")]
extern "C" fn send_queue(now: f64, peer: u32, buffered: u32) {
    handle(now, Input::SendQueue { peer, buffered });
}

/// Bytes: the block's digest.
#[unsafe(export_name = "fetchBlock")]
extern "C" fn fetch_block(now: f64, fetch: u32, block: u32, length: u32) {
    let Shell { peer, bytes, .. } = &mut *shell();
    let Some(digest) = bytes.first_chunk() else { return };
    feed(peer, now, Input::FetchBlock { fetch, block: block as u16, length, digest: BlockDigest(*digest) });
}

#[unsafe(export_name = "fetchFinished")]
extern "C" fn fetch_finished(now: f64, fetch: u32) {
    handle(now, Input::FetchFinished { fetch });
}

#[unsafe(export_name = "fetchFailed")]
extern "C" fn fetch_failed(now: f64, fetch: u32, status: u32) {
    handle(now, Input::FetchFailed { fetch, status: status as u16 });
}

/// Bytes: the digests of the piece's blocks.
#[unsafe(no_mangle)]
extern "C" fn loaded(now: f64, rendition: u32, msn: f64, part: u32, length: u32, took_ms: f64) {
    let Shell { peer, bytes, .. } = &mut *shell();
    let mut digests = Vec::new();
    for digest in bytes.as_chunks().0 {
        digests.push(BlockDigest(*digest));
    }
    let piece = piece(rendition, msn, part);
    feed(peer, now, Input::Loaded { piece, length, digests: &digests, took: span(took_ms) });
}

#[unsafe(no_mangle)]
extern "C" fn playing(now: f64) {
    let Shell { peer, bytes, .. } = &mut *shell();
    feed(peer, now, Input::Playing { renditions: bytes });
}

#[unsafe(no_mangle)]
extern "C" fn playhead(now: f64, position: f64, buffered_until: f64, rate_percent: u32, is_stalled: u32) {
    let (position_ms, buffered_until_ms) = (position as u64, buffered_until as u64);
    let (rate_percent, is_stalled) = (rate_percent as u16, is_stalled != 0);
    handle(now, Input::Playhead { position_ms, buffered_until_ms, rate_percent, is_stalled });
}

fn want(now: f64, request: u32, target: Target) {
    handle(now, Input::Want { request, target, deadline: None });
}

#[unsafe(export_name = "wantPiece")]
extern "C" fn want_piece(now: f64, request: u32, rendition: u32, msn: f64, part: u32) {
    want(now, request, Target::Piece(piece(rendition, msn, part)));
}

#[unsafe(export_name = "wantSegment")]
extern "C" fn want_segment(now: f64, request: u32, rendition: u32, msn: f64) {
    want(now, request, Target::Segment { rendition: rendition as u8, msn: msn as u64 });
}

#[unsafe(no_mangle)]
extern "C" fn unwant(now: f64, request: u32) {
    handle(now, Input::Unwant { request });
}

#[unsafe(no_mangle)]
extern "C" fn metered(now: f64, on: u32) {
    handle(now, Input::Metered { on: on != 0 });
}

#[unsafe(no_mangle)]
extern "C" fn leave(now: f64) {
    handle(now, Input::Leave);
}

/// How many parts the segment has, with their lengths in `numbers`; −1 while it is not known.
#[unsafe(export_name = "segmentParts")]
extern "C" fn segment_parts(rendition: u32, msn: f64) -> i32 {
    let mut shell = shell();
    let parts = shell.peer.as_ref().and_then(|peer| peer.segment_parts(rendition as u8, msn as u64));
    let Some(parts) = parts else { return -1 };
    shell.numbers.clear();
    for (_, length) in &parts {
        shell.numbers.push(f64::from(*length));
    }
    shell.numbers.len() as i32
}

#[unsafe(no_mangle)]
extern "C" fn poll() -> u32 {
    let mut shell = shell();
    let output = shell.peer.as_mut().and_then(Peer::poll_output);
    shell.last = output.map_or(Fields::NOTHING, Fields::from);
    u32::from(shell.last.tag)
}

#[unsafe(no_mangle)]
extern "C" fn field(index: usize) -> f64 {
    shell().last.numbers.get(index).copied().unwrap_or(-1.0)
}

/// The address of the last output's bytes; `length` says how many.
#[unsafe(no_mangle)]
extern "C" fn bytes() -> *const u8 {
    shell().last.bytes.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn length() -> usize {
    shell().last.bytes.len()
}

/// The address of what `stats` or `segmentParts` gave.
#[unsafe(no_mangle)]
extern "C" fn numbers() -> *const f64 {
    shell().numbers.as_ptr()
}

#[unsafe(export_name = "nextDeadline")]
extern "C" fn next_deadline() -> f64 {
    let next = shell().peer.as_ref().and_then(Peer::next_deadline);
    next.map_or(-1.0, |(time, _)| time.as_us() as f64 / 1000.0)
}

/// How many counters there are, with their values in `numbers`.
#[unsafe(no_mangle)]
extern "C" fn stats() -> usize {
    let mut shell = shell();
    shell.numbers = shell.peer.as_ref().map(|peer| output::stats(&peer.stats())).unwrap_or_default();
    shell.numbers.len()
}

#[cfg(feature = "log")]
#[unsafe(export_name = "startLog")]
extern "C" fn start_log() {
    if let Some(peer) = &mut shell().peer {
        peer.start_log();
    }
}

/// Puts what was recorded since the last call where the last output's bytes are.
#[cfg(feature = "log")]
#[unsafe(export_name = "takeLog")]
extern "C" fn take_log() {
    let mut shell = shell();
    shell.last.bytes = shell.peer.as_mut().map(Peer::take_log).unwrap_or_default();
}
