//! Carries the core's outputs out, and what the origin answers in.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Url;
use shoal_digest::{BlockDigest, PieceId, block_bytes};
use shoal_swarm::{FetchId, Input, Output, Span};
use shoal_tracker_protocol::{self as protocol, ViewerMessage};

use super::Viewer;
use crate::{
    origin::{self, OriginEvent},
    source::Listed,
};

/// Pieces whose URLs are remembered; beyond it the oldest are forgotten. Ten minutes of two renditions.
const URLS_MAX: usize = 2400;
/// How often a piece is asked of the origin before playback goes on without it.
const LOADS_MAX: u32 = 3;

impl Viewer {
    pub(super) fn carry_out(&mut self, output: Output, current: Option<&Bytes>) {
        match output {
            Output::SendControl { peer, bytes } => {
                if let Some(neighbor) = self.neighbors.get(&peer) {
                    neighbor.send_control(bytes);
                }
            }
            Output::SendBlock { peer, header, piece, block } => {
                let bytes = self.store.block(piece, block);
                let (Some(neighbor), Some(bytes)) = (self.neighbors.get(&peer), bytes) else { return };
                let buffered = neighbor.send_block(header, &bytes);
                let now = self.now();
                if let Some(swarm) = &mut self.swarm {
                    swarm.peer.handle_input(now, Input::SendQueue { peer, buffered });
                }
            }
            Output::Fetch { fetch, piece, piece_length, offset, length, is_whole, is_retry } => {
                let range = origin::Range { offset, length, is_whole, is_retry, piece_length };
                self.fetch(fetch, piece, range);
            }
            Output::CancelFetch { fetch } => {
                if let Some(task) = self.fetches.remove(&fetch) {
                    task.abort();
                }
            }
            Output::FetchRecord { piece, .. } => match self.url(piece) {
                Some(url) => {
                    let work = origin::record(self.client.clone(), piece, url, self.inbox.origin.clone());
                    tokio::spawn(work);
                }
                None => self.reply(Input::RecordFailed { piece }),
            },
            Output::Store { piece, block, piece_length, held } => {
                let bytes = match held {
                    Some(hold) => self.held.remove(&hold),
                    None => current.cloned(),
                };
                if let Some(bytes) = bytes {
                    self.store.put(piece, block, piece_length, bytes);
                }
            }
            Output::Hold { hold } => {
                if let Some(bytes) = current {
                    self.held.insert(hold, bytes.clone());
                }
            }
            Output::DropHeld { hold } => {
                self.held.remove(&hold);
            }
            Output::KeepLoaded { piece } => {
                if let Some(bytes) = self.loaded.remove(&piece) {
                    self.store.put_whole(piece, &bytes);
                }
            }
            Output::DropLoaded { piece } => {
                self.loaded.remove(&piece);
            }
            Output::Evict { piece } => self.store.remove(piece),
            Output::Deliver { request, first, .. } => {
                if let Some(listed) = self.wants.remove(&request)
                    && self.store.complete_length(first).is_some()
                {
                    self.playback.loaded(&listed);
                }
            }
            Output::Fallback { request, .. } => {
                if let Some(listed) = self.wants.remove(&request) {
                    self.load(listed);
                }
            }
            Output::Disconnect { peer, reason } => {
                tracing::debug!(peer, ?reason, "disconnected by the core");
                self.neighbors.remove(&peer);
                self.tell_tracker(ViewerMessage::Lost { peer, was_connected: true });
            }
            Output::Accuse { peer, piece } => {
                self.tell_tracker(ViewerMessage::Accuse { peer, piece: to_protocol(piece) });
            }
            Output::Complain { peer, rendition, stripe } => {
                self.tell_tracker(ViewerMessage::Silent { peer, rendition, stripe });
            }
            Output::Report(report) => self.tell_tracker(ViewerMessage::Report(protocol::Report {
                uplink_kbps: report.uplink_kbps,
                renditions: report.renditions,
                buffer_ms: report.buffer_ms,
                behind_ms: report.behind_ms,
                peer_bytes: report.peer_bytes,
                origin_bytes: report.origin_bytes,
                sent_bytes: report.sent_bytes,
                waste_bytes: report.waste_bytes,
                rebuffer_ms: report.rebuffer_ms,
            })),
        }
    }

    /// Hands in an input while outputs are being drained; the drain that is under way carries its outputs out.
    pub(super) fn reply(&mut self, input: Input<'_>) {
        let now = self.now();
        if let Some(swarm) = &mut self.swarm {
            swarm.peer.handle_input(now, input);
        }
    }

    pub(super) fn fetch(&mut self, fetch: FetchId, piece: PieceId, range: origin::Range) {
        let Some(url) = self.url(piece) else {
            return self.reply(Input::FetchFailed { fetch, status: 0 });
        };
        self.counts.origin_requests += 1;
        let work = origin::fetch(self.client.clone(), fetch, url, range, self.inbox.origin.clone());
        self.fetches.insert(fetch, tokio::spawn(work).abort_handle());
    }

    /// Loads a piece as a player without a swarm does.
    pub(super) fn load(&mut self, listed: Listed) {
        let piece = listed.piece;
        let attempts = self.loads.get(&piece).map_or(0, |(_, attempts)| *attempts) + 1;
        if attempts > LOADS_MAX {
            self.loads.remove(&piece);
            self.counts.pieces_lost += 1;
            self.playback.skip_gap(&listed);
            return;
        }
        self.counts.origin_requests += 1;
        let url = listed.url.clone();
        self.loads.insert(piece, (listed, attempts));
        tokio::spawn(origin::load(self.client.clone(), piece, url, self.inbox.origin.clone()));
    }

    pub(super) fn url(&self, piece: PieceId) -> Option<Url> {
        self.urls.get(&(piece.msn, piece.part, piece.rendition)).cloned()
    }

    pub(super) fn learn_url(&mut self, piece: PieceId, url: Url) {
        self.urls.insert((piece.msn, piece.part, piece.rendition), url);
        while self.urls.len() > URLS_MAX {
            self.urls.pop_first();
        }
    }

    pub(super) fn handle_origin(&mut self, event: OriginEvent) {
        match event {
            OriginEvent::Block { fetch, block, bytes } => {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let digest = BlockDigest::of(&bytes);
                self.input(&Input::FetchBlock { fetch, block, length, digest }, Some(&bytes));
            }
            OriginEvent::Finished { fetch } => {
                self.fetches.remove(&fetch);
                self.input(&Input::FetchFinished { fetch }, None);
            }
            OriginEvent::Failed { fetch, status } => {
                self.fetches.remove(&fetch);
                self.input(&Input::FetchFailed { fetch, status }, None);
            }
            OriginEvent::Loaded { piece, bytes: Some(bytes), took } => {
                if let Some((listed, _)) = self.loads.remove(&piece) {
                    self.counts.direct_bytes += bytes.len() as u64;
                    self.playback.loaded(&listed);
                }
                self.offer_loaded(piece, bytes, took);
            }
            OriginEvent::Loaded { piece, bytes: None, .. } => {
                if let Some((listed, _)) = self.loads.get(&piece) {
                    let listed = listed.clone();
                    self.load(listed);
                }
            }
            OriginEvent::Record { piece, bytes } => match bytes {
                Some(bytes) => self.input(&Input::RecordBytes { bytes: &bytes }, None),
                None => self.input(&Input::RecordFailed { piece }, None),
            },
        }
    }

    /// Offers the core a piece that was loaded past it, to be given to others.
    pub(super) fn offer_loaded(&mut self, piece: PieceId, bytes: Bytes, took: Duration) {
        let Ok(length) = u32::try_from(bytes.len()) else { return };
        if self.swarm.is_none() || bytes.is_empty() {
            return;
        }
        let digests: Vec<_> = bytes.chunks(block_bytes(length) as usize).map(BlockDigest::of).collect();
        self.loaded.insert(piece, bytes);
        let took = Span::from_us(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.input(&Input::Loaded { piece, length, digests: &digests, took }, None);
    }
}

fn to_protocol(piece: PieceId) -> protocol::Piece {
    protocol::Piece { rendition: piece.rendition, msn: piece.msn, part: piece.part }
}
