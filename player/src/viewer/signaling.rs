//! The tracker's messages and the neighbors that they lead to.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use shoal_digest::{BlockDigest, PieceId};
use shoal_swarm::{Input, PeerId, Place, Span, wire::BLOCK_HEADER_BYTES};
use shoal_tracker_protocol::{self as protocol, TrackerMessage, ViewerMessage};

use super::Viewer;
use crate::{
    Mode,
    neighbor::{Neighbor, NeighborEvent, NeighborEventKind},
    tracker::TrackerEvent,
};

impl Viewer {
    pub(super) fn tell_tracker(&self, message: ViewerMessage) {
        if let Some(swarm) = &self.swarm {
            // A socket that does not take messages is about to be replaced; what it would have said is old by then.
            let _ = swarm.to_tracker.try_send(message);
        }
    }

    pub(super) fn handle_tracker(&mut self, event: TrackerEvent) {
        let message = match event {
            TrackerEvent::Lost => return self.input(&Input::TrackerLost, None),
            TrackerEvent::Message(message) => *message,
        };
        match message {
            TrackerMessage::Welcome(welcome) => self.handle_welcome(welcome),
            TrackerMessage::Introduce { peer, offers } => self.introduce(peer, offers),
            TrackerMessage::Signal { from, data } => {
                if let Some(neighbor) = self.neighbors.get(&from) {
                    neighbor.signal(data);
                }
            }
            TrackerMessage::Published { piece, uri, record } => self.published(piece, &uri, &record),
            TrackerMessage::Plan { rendition, stripes, places } => {
                let places: Vec<Place<'_>> = places
                    .iter()
                    .map(|place| Place {
                        stripe: place.stripe,
                        is_root: place.root,
                        parent: place.parent,
                        children: &place.children,
                        expected: Span::from_ms(u64::from(place.expected_ms)),
                    })
                    .collect();
                self.input(&Input::Plan { rendition, stripes, places: &places }, None);
            }
            TrackerMessage::Part { peer } => {
                if self.neighbors.remove(&peer).is_some() {
                    self.input(&Input::NeighborLost { peer }, None);
                }
            }
            TrackerMessage::Sharing { on } => self.handle_sharing(on),
            TrackerMessage::Error { code, message, fatal: true, .. } => {
                tracing::warn!(?code, message, "tracker refused");
            }
            // Words of a peer that has just gone cross with the news of it.
            TrackerMessage::Error { code, message, .. } => tracing::debug!(?code, message, "tracker refused"),
            // A player hears of the end from its playlists, once it has played everything.
            TrackerMessage::Ended if self.options.mode == Mode::Seed => {
                self.ended = self.taken.len();
            }
            TrackerMessage::Drain { .. } | TrackerMessage::Ended | TrackerMessage::Pong => {}
        }
    }

    pub(super) fn handle_welcome(&mut self, welcome: protocol::Welcome) {
        if let Some(swarm) = &mut self.swarm {
            swarm.connection.ice_servers.clone_from(&welcome.ice_servers);
            swarm.connection.relay_only = welcome.relay_only;
        }
        // PROTOCOL.md, step 6: who has another number now is no longer whom the neighbors know.
        if self.number.replace(welcome.peer).is_some_and(|number| number != welcome.peer) {
            for (peer, neighbor) in std::mem::take(&mut self.neighbors) {
                if neighbor.is_open {
                    self.input(&Input::NeighborLost { peer }, None);
                }
            }
        }
        let input = Input::Welcome {
            peer: welcome.peer,
            neighbors_max: u16::try_from(welcome.neighbors_max).unwrap_or(u16::MAX),
            upload_ratio_percent: u16::try_from(welcome.upload_ratio_max_percent).unwrap_or(u16::MAX),
            report_interval: Span::from_ms(u64::from(welcome.report_interval_ms)),
        };
        self.input(&input, None);
        for (peer, _) in self.neighbors.iter().filter(|(_, neighbor)| neighbor.is_open) {
            self.tell_tracker(ViewerMessage::Connected { peer: *peer, rtt_ms: 0 });
        }
        self.handle_sharing(welcome.sharing);
        if welcome.consent_required {
            // Whoever starts this program has agreed by starting it.
            self.tell_tracker(ViewerMessage::Consent);
        }
        for published in welcome.recent {
            self.published(published.piece, &published.uri, &published.record);
        }
    }

    pub(super) fn handle_sharing(&mut self, on: bool) {
        let Some(swarm) = &mut self.swarm else { return };
        if swarm.sharing != on {
            swarm.sharing = on;
            self.input(&Input::Sharing { on }, None);
        }
    }

    pub(super) fn introduce(&mut self, peer: PeerId, offers: bool) {
        let Some(swarm) = self.swarm.as_ref().filter(|swarm| swarm.sharing) else { return };
        // A tracker that was restarted does not know who is connected already.
        if self.neighbors.get(&peer).is_some_and(|neighbor| neighbor.is_open) {
            return;
        }
        self.next_generation += 1;
        let generation = self.next_generation;
        let events = self.inbox.neighbors.clone();
        let options = swarm.connection.clone();
        let neighbor = Neighbor::connect(peer, generation, offers, options, self.uplink.clone(), events);
        self.neighbors.insert(peer, neighbor);
    }

    pub(super) fn published(&mut self, piece: protocol::Piece, uri: &str, record: &str) {
        let id = PieceId { rendition: piece.rendition, msn: piece.msn, part: piece.part };
        let Some(info) = &self.stream.swarm else { return };
        let Some(url) = self.stream.noticed_url(&self.base, piece.rendition, uri) else {
            tracing::debug!(?piece, "the tracker names a URL outside the stream");
            return;
        };
        let Ok(bytes) = BASE64.decode(record) else { return };
        let Some(signed) = self.options.records.verify(&bytes, &info.key) else {
            // The core refuses it, too, and counts it.
            return self.input(&Input::RecordBytes { bytes: &bytes }, None);
        };
        // The tracker's own words are not signed: numbers and times that no origin has given would push those of real pieces
        // out, and have a helper wait for a future that does not come.
        let record = signed.record();
        if record.piece == id && record.epoch == info.epoch {
            self.newest_ms = self.newest_ms.max(record.start_ms + u64::from(record.duration_ms));
            self.learn_url(id, url);
        }
        self.input(&Input::Record { record: &signed }, None);
    }

    pub(super) fn handle_neighbor(&mut self, event: NeighborEvent) {
        let NeighborEvent { peer, generation, kind } = event;
        let known = self.neighbors.get_mut(&peer).filter(|neighbor| neighbor.generation == generation);
        let Some(neighbor) = known else { return };
        match kind {
            NeighborEventKind::Signal(data) => self.tell_tracker(ViewerMessage::Signal { to: peer, data }),
            NeighborEventKind::Open => {
                neighbor.is_open = true;
                self.tell_tracker(ViewerMessage::Connected { peer, rtt_ms: 0 });
                self.input(&Input::NeighborConnected { peer, rtt: None }, None);
            }
            NeighborEventKind::Control(bytes) => self.input(&Input::Message { peer, bytes: &bytes }, None),
            NeighborEventKind::Block(message) => {
                let at = message.len().min(BLOCK_HEADER_BYTES);
                let payload = message.slice(at..);
                let input = Input::Block {
                    peer,
                    header: &message[..at],
                    length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
                    digest: BlockDigest::of(&payload),
                };
                self.input(&input, Some(&payload));
            }
            NeighborEventKind::Queue(buffered) => self.input(&Input::SendQueue { peer, buffered }, None),
            NeighborEventKind::Closed => {
                let was_connected = neighbor.is_open;
                self.neighbors.remove(&peer);
                self.tell_tracker(ViewerMessage::Lost { peer, was_connected });
                self.input(&Input::NeighborLost { peer }, None);
            }
        }
    }
}
