//! Carries the core's outputs out, and what the origin answers in.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Url;
use shoal_digest::{BlockDigest, PieceId, block_bytes};
use shoal_swarm::{FetchId, Input, Output, PeerId, Report, RequestId, Span, wire::BLOCK_HEADER_BYTES};
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
            Output::SendControl { peer, bytes } => self.send_control(peer, bytes),
            Output::SendBlock { peer, header, piece, block } => self.send_block(peer, header, piece, block),
            Output::Fetch { fetch, piece, piece_length, offset, length, is_whole, is_retry } => {
                let range = origin::Range { offset, length, is_whole, is_retry, piece_length };
                self.fetch(fetch, piece, range);
            }
            Output::CancelFetch { fetch } => {
                if let Some(task) = self.fetches.remove(&fetch) {
                    task.abort();
                }
            }
            Output::FetchRecord { piece, .. } => self.fetch_record(piece),
            Output::CheckRecord { check, signed } => {
                let is_signed =
                    self.stream.swarm.as_ref().is_some_and(|stream| stream.key.has_signed(&signed));
                self.reply(Input::RecordChecked { check, is_signed });
            }
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
            Output::Deliver { request, first, .. } => self.deliver(request, first),
            Output::Fallback { request, .. } => {
                if let Some(listed) = self.wants.remove(&request) {
                    self.load(listed);
                }
            }
            Output::Disconnect { peer, reason } => {
                tracing::debug!(peer, ?reason, "disconnected by the core");
                self.leave(peer);
            }
            Output::Accuse { peer, piece } => {
                self.tell_tracker(ViewerMessage::Accuse { peer, piece: to_protocol(piece) });
            }
            Output::Complain { peer, rendition, stripe } => {
                self.tell_tracker(ViewerMessage::Silent { peer, rendition, stripe });
            }
            Output::Report(report) => self.tell_tracker(ViewerMessage::Report(to_report(report))),
        }
    }

    fn send_control(&mut self, peer: PeerId, bytes: Vec<u8>) {
        if self.neighbors.get(&peer).is_none_or(|neighbor| neighbor.send_control(bytes)) {
            return;
        }
        // Who asks and takes no answers would have us keep them all. The core notices only when its blocks don't leave either.
        tracing::debug!(peer, "takes no messages");
        self.counts.neighbors_stuck += 1;
        self.leave(peer);
        self.reply(Input::NeighborLost { peer });
    }

    fn send_block(&mut self, peer: PeerId, header: [u8; BLOCK_HEADER_BYTES], piece: PieceId, block: u16) {
        let bytes = self.store.block(piece, block);
        let (Some(neighbor), Some(bytes)) = (self.neighbors.get(&peer), bytes) else { return };
        let buffered = neighbor.send_block(header, &bytes);
        self.reply(Input::SendQueue { peer, buffered });
    }

    /// Closes a connection from this side once what the core has just said has left, and tells the tracker.
    fn leave(&mut self, peer: PeerId) {
        if let Some(neighbor) = self.neighbors.remove(&peer) {
            while self.closing.try_join_next().is_some() {}
            self.closing.spawn(neighbor.close_soon());
        }
        self.tell_tracker(ViewerMessage::Lost { peer, was_connected: true });
    }

    fn fetch_record(&mut self, piece: PieceId) {
        let Some(url) = self.url(piece) else { return self.reply(Input::RecordFailed { piece }) };
        tokio::spawn(origin::record(self.client.clone(), piece, url, self.inbox.origin.clone()));
    }

    fn deliver(&mut self, request: RequestId, first: PieceId) {
        let Some(listed) = self.wants.remove(&request) else { return };
        if self.store.complete_length(first).is_some() {
            self.playback.loaded(&listed);
        } else {
            self.load(listed);
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
                    self.playback.loaded(&listed);
                }
                let length = bytes.len() as u64;
                if !self.offer_loaded(piece, bytes, took) {
                    self.counts.direct_bytes += length;
                }
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

    /// Offers the core a piece that was loaded past it, to be given to others. Says whether the core has heard of it, and so counts
    /// its bytes.
    fn offer_loaded(&mut self, piece: PieceId, bytes: Bytes, took: Duration) -> bool {
        let Ok(length) = u32::try_from(bytes.len()) else { return false };
        // The core remembers the first of two that wait for the same record, and answers both by the piece alone.
        if self.swarm.is_none() || bytes.is_empty() || self.loaded.contains_key(&piece) {
            return false;
        }
        let digests: Vec<_> = bytes.chunks(block_bytes(length) as usize).map(BlockDigest::of).collect();
        self.loaded.insert(piece, bytes);
        let took = Span::from_us(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.input(&Input::Loaded { piece, length, digests: &digests, took }, None);
        true
    }
}

fn to_protocol(piece: PieceId) -> protocol::Piece {
    protocol::Piece { rendition: piece.rendition, msn: piece.msn, part: piece.part }
}

fn to_report(report: Report) -> protocol::Report {
    protocol::Report {
        uplink_kbps: report.uplink_kbps,
        renditions: report.renditions,
        buffer_ms: report.buffer_ms,
        behind_ms: report.behind_ms,
        peer_bytes: report.peer_bytes,
        origin_bytes: report.origin_bytes,
        sent_bytes: report.sent_bytes,
        waste_bytes: report.waste_bytes,
        rebuffer_ms: report.rebuffer_ms,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use reqwest::Client;
    use shoal_digest::Epoch;
    use shoal_swarm::{Config, Peer};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        Options,
        neighbor::{ConnectionOptions, Neighbor},
        source::Stream,
        uplink::Uplink,
        viewer::{Inbox, Swarm},
    };

    #[tokio::test]
    async fn a_neighbor_that_takes_no_messages_is_left_counted_and_reported() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = Options::new("http://127.0.0.1:1/live/demo/index.m3u8");
        let stream = Stream { renditions: Vec::new(), played: Vec::new(), swarm: None };
        let (inbox, _outlets) = Inbox::new();
        let connection = ConnectionOptions {
            ice_servers: Vec::new(),
            relay_only: false,
            loopback: true,
            identity: None,
            connect_timeout: options.connect_timeout,
        };
        // Nobody answers its offer, so that nothing ever leaves.
        let uplink = Arc::new(Uplink::new(None));
        let neighbor = Neighbor::connect(7, 1, true, connection.clone(), uplink, inbox.neighbors.clone());
        let mut viewer = Viewer::new(options, Client::new(), stream, inbox);
        let (to_tracker, mut told) = mpsc::channel(4);
        let config = Config::new(Epoch([0; 16]));
        let peer = Peer::new(config, 1);
        let socket = tokio::spawn(async {});
        viewer.swarm = Some(Swarm { peer, to_tracker, socket, connection, sharing: true });
        viewer.neighbors.insert(7, neighbor);
        viewer.input(&Input::NeighborConnected { peer: 7, rtt: None }, None);
        assert_eq!(viewer.snapshot().swarm.neighbors, 1);
        let mut said = 0;
        while viewer.neighbors.contains_key(&7) {
            assert!(said < 64, "{said} messages wait");
            viewer.carry_out(Output::SendControl { peer: 7, bytes: vec![0; 16 * 1024] }, None);
            said += 1;
        }
        assert!(said > 30, "a greeting fits in: {said}");
        assert_eq!(viewer.snapshot().neighbors_stuck, 1);
        assert_eq!(viewer.snapshot().swarm.neighbors, 0, "the core knows");
        let lost = told.try_recv();
        assert!(matches!(lost, Ok(ViewerMessage::Lost { peer: 7, was_connected: true })), "{lost:?}");
        // What the core had still to say to it goes nowhere.
        viewer.carry_out(Output::SendControl { peer: 7, bytes: vec![0] }, None);
        assert!(told.try_recv().is_err());
        assert_eq!(viewer.snapshot().neighbors_stuck, 1);
    }
}
