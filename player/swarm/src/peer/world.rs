//! A small world for tests: a few viewers, an origin, a tracker that plans, links with delay and limited uplinks, in
//! virtual time. After every step the invariants are checked.
//!
//! Drivers here store the digest of each block's bytes instead of the bytes, which is enough to see damage. The simulator
//! in `tests/` does the same at scale; this one is for tests that look inside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use shoal_digest::{
    BLOCK_BYTES_MAX, BlockDigest, Epoch, OriginKey, PieceId, Record, block_bytes, block_count,
};

use crate::{
    Config, Input, Output, Peer, PeerId, Place, SignedRecord, Span, Target, Time,
    rng::{Rng, mix},
    wire::{BLOCK_HEADER_BYTES, BlockHeader},
};

pub(crate) const EPOCH: Epoch = Epoch([5; 16]);
const START_MS: u64 = 1_700_000_000_000;

pub(crate) fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

pub(crate) fn config() -> Config {
    Config::new(EPOCH)
}

/// The true digest of a block: no bytes are needed to have one.
pub(crate) fn truth(piece: PieceId, block: u32) -> BlockDigest {
    let a = mix(piece.msn << 20 ^ u64::from(piece.part) << 12 ^ u64::from(piece.rendition))
        .wrapping_add(u64::from(block));
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&mix(a).to_be_bytes());
    digest[8..].copy_from_slice(&mix(a ^ 1).to_be_bytes());
    BlockDigest(digest)
}

pub(crate) fn record(piece: PieceId, length: u32, start_ms: u64, duration_ms: u32, is_last: bool) -> Record {
    Record {
        epoch: EPOCH,
        piece,
        is_last_in_segment: is_last,
        is_independent: piece.part == 0,
        start_ms,
        duration_ms,
        length,
        blocks: (0..block_count(length)).map(|block| truth(piece, block)).collect(),
    }
}

pub(crate) fn sign(record: &Record) -> Arc<SignedRecord> {
    let key = signing_key();
    SignedRecord::verify(&record.sign(&key), &OriginKey::of(&key)).expect("just signed")
}

/// Takes a peer's outputs and checks the records that it asks about, as drivers do.
pub(crate) fn drain(peer: &mut Peer) -> Vec<Output> {
    let mut outputs = Vec::new();
    while let Some(output) = peer.poll_output() {
        if let Output::CheckRecord { check, signed } = output {
            let is_signed = OriginKey::of(&signing_key()).has_signed(&signed);
            peer.handle_input(peer.now, Input::RecordChecked { check, is_signed });
        } else {
            outputs.push(output);
        }
    }
    outputs
}

/// How a viewer misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    #[default]
    Honest,
    /// Sends other bytes than it was given.
    Pollutes,
    /// Has an uplink of its own, but nothing that it says it sends arrives.
    Stalls,
}

#[derive(Clone, Debug)]
enum Event {
    Wake(usize),
    Publish(u64),
    Record(usize, Arc<SignedRecord>),
    Message(usize, PeerId, Vec<u8>),
    Block { to: usize, from: PeerId, header: [u8; BLOCK_HEADER_BYTES], length: u32, digest: BlockDigest },
    Drained { viewer: usize, peer: PeerId, bytes: u32 },
    FetchBlock { viewer: usize, fetch: u32, piece: PieceId, block: u32, is_last: bool },
    Loaded { viewer: usize, piece: PieceId, took: Span },
    Tick(usize),
}

#[derive(Debug)]
pub(crate) struct Viewer {
    pub(crate) peer: Peer,
    pub(crate) id: PeerId,
    pub(crate) manner: Manner,
    pub(crate) is_gone: bool,
    pub(crate) uplink_bps: u64,
    uplink_free: Time,
    store: BTreeMap<PieceId, BTreeMap<u32, BlockDigest>>,
    held: BTreeMap<u32, (PieceId, u32, BlockDigest)>,
    buffered: BTreeMap<PeerId, u32>,
    cancelled: BTreeSet<u32>,
    connected: BTreeSet<PeerId>,
    wake_at: Option<Time>,
    position_ms: u64,
    pub(crate) buffered_until_ms: u64,
    ticked: Time,
    wanted: Option<(u32, PieceId)>,
    next_request: u32,
    pub(crate) rebuffer: Span,
    pub(crate) bad_bytes: u64,
    pub(crate) delivered: u64,
    pub(crate) banned: BTreeSet<PeerId>,
    pub(crate) accused: Vec<PeerId>,
    pub(crate) complaints: Vec<(PeerId, u8)>,
    pub(crate) received: BTreeMap<PeerId, u64>,
    pub(crate) sent: u64,
    pub(crate) outputs: u64,
    fingerprint: u64,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) viewers: Vec<Viewer>,
    events: BTreeMap<(Time, u64), Event>,
    number: u64,
    rng: Rng,
    pub(crate) part_ms: u64,
    pub(crate) blocks: u32,
    pub(crate) latency_ms: u64,
    pub(crate) delay: Span,
    pub(crate) origin_delay: Span,
    pub(crate) origin_is_down: bool,
    pub(crate) origin_lies: bool,
    pub(crate) origin_bytes: u64,
    pub(crate) published_bytes: u64,
    pub(crate) record_delay: Span,
    pub(crate) tracker_is_down: bool,
    records: BTreeMap<PieceId, Arc<SignedRecord>>,
    published: u64,
    /// Whose outputs are kept, and those.
    pub(crate) record_outputs_of: Option<usize>,
    pub(crate) recorded_outputs: Vec<Output>,
}

impl World {
    /// So many viewers, fully connected, with a plan; the first piece is published after half a second.
    pub(crate) fn new(viewers: usize, seed: u64) -> Self {
        Self::with_config(viewers, seed, config())
    }

    pub(crate) fn with_config(viewers: usize, seed: u64, config: Config) -> Self {
        let mut rng = Rng::new(seed);
        let viewers = (0..viewers).map(|index| Viewer {
            peer: Peer::new(config.clone(), rng.next()),
            id: index as PeerId + 100,
            manner: Manner::Honest,
            is_gone: false,
            uplink_bps: 40_000_000,
            uplink_free: Time::ZERO,
            store: BTreeMap::new(),
            held: BTreeMap::new(),
            buffered: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            connected: BTreeSet::new(),
            wake_at: None,
            position_ms: START_MS,
            buffered_until_ms: START_MS,
            ticked: Time::ZERO,
            wanted: None,
            next_request: 0,
            rebuffer: Span::ZERO,
            bad_bytes: 0,
            delivered: 0,
            banned: BTreeSet::new(),
            accused: Vec::new(),
            complaints: Vec::new(),
            received: BTreeMap::new(),
            sent: 0,
            outputs: 0,
            fingerprint: 0,
        });
        Self {
            now: Time::ZERO,
            viewers: viewers.collect(),
            events: BTreeMap::new(),
            number: 0,
            rng,
            part_ms: 500,
            blocks: 12,
            latency_ms: 2000,
            delay: Span::from_ms(15),
            origin_delay: Span::from_ms(30),
            origin_is_down: false,
            origin_lies: false,
            origin_bytes: 0,
            published_bytes: 0,
            record_delay: Span::from_ms(10),
            tracker_is_down: false,
            records: BTreeMap::new(),
            published: 0,
            record_outputs_of: None,
            recorded_outputs: Vec::new(),
        }
    }

    pub(crate) fn id(&self, viewer: usize) -> PeerId {
        self.viewers[viewer].id
    }

    /// As `start`, but no viewer ever reaches a tracker: they only know each other.
    pub(crate) fn start_without_tracker(&mut self) {
        self.tracker_is_down = true;
        for viewer in 0..self.viewers.len() {
            self.viewers[viewer].peer.set_id_for_test(viewer as PeerId + 100);
            self.input(viewer, Input::Playing { renditions: &[0] });
        }
        self.start_media();
    }

    /// The tracker vanishes; what it had planned stays.
    pub(crate) fn lose_tracker(&mut self) {
        self.tracker_is_down = true;
        for viewer in 0..self.viewers.len() {
            self.input(viewer, Input::TrackerLost);
        }
    }

    /// Adds a viewer that joins now: it knows the recent records, has neighbors, and gets its plan with the others.
    pub(crate) fn join(&mut self) -> usize {
        let config = config();
        let viewer = self.viewers.len();
        let mut joining = Self::with_config(1, self.rng.next(), config).viewers.remove(0);
        joining.id = viewer as PeerId + 100;
        let live_ms = START_MS + self.published * self.part_ms;
        let start_ms =
            (live_ms - self.latency_ms - START_MS).div_ceil(self.part_ms) * self.part_ms + START_MS;
        joining.position_ms = start_ms;
        joining.buffered_until_ms = start_ms;
        self.viewers.push(joining);
        self.welcome(viewer);
        let records: Vec<_> = self.records.values().rev().take(8).cloned().collect();
        for record in &records {
            self.input(viewer, Input::Record { record });
        }
        self.at(Span::from_ms(1), Event::Tick(viewer));
        viewer
    }

    /// Adds a viewer that joins now and reaches no tracker.
    pub(crate) fn join_without_tracker(&mut self) -> usize {
        let viewer = self.viewers.len();
        let mut joining = Self::with_config(1, self.rng.next(), config()).viewers.remove(0);
        joining.id = viewer as PeerId + 100;
        joining.peer.set_id_for_test(joining.id);
        self.viewers.push(joining);
        self.input(viewer, Input::Playing { renditions: &[0] });
        viewer
    }

    fn welcome(&mut self, viewer: usize) {
        let peer = self.id(viewer);
        let report_interval = Span::from_secs(1);
        let welcome = Input::Welcome { peer, neighbors_max: 32, upload_ratio_percent: 200, report_interval };
        self.input(viewer, welcome);
        self.input(viewer, Input::Playing { renditions: &[0] });
    }

    /// Welcomes, connects and plans, and starts the players and the stream.
    pub(crate) fn start(&mut self) {
        for viewer in 0..self.viewers.len() {
            self.welcome(viewer);
        }
        self.start_media();
        self.plan();
    }

    fn start_media(&mut self) {
        for a in 0..self.viewers.len() {
            for b in 0..a {
                self.connect(a, b);
            }
        }
        self.at(Span::from_ms(500), Event::Publish(0));
        for viewer in 0..self.viewers.len() {
            let phase = Span::from_ms(500 + self.latency_ms + 7 * viewer as u64);
            self.at(phase, Event::Tick(viewer));
        }
    }

    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        let (id_a, id_b) = (self.id(a), self.id(b));
        self.viewers[a].connected.insert(id_b);
        self.viewers[b].connected.insert(id_a);
        self.input(a, Input::NeighborConnected { peer: id_b, rtt: Some(self.delay + self.delay) });
        self.input(b, Input::NeighborConnected { peer: id_a, rtt: Some(self.delay + self.delay) });
    }

    /// Each stripe has one root among those present, and all the others are its children.
    pub(crate) fn plan(&mut self) {
        let present: Vec<usize> =
            (0..self.viewers.len()).filter(|viewer| !self.viewers[*viewer].is_gone).collect();
        let stripes = 12_u8;
        let root_of = |stripe: u8| present[usize::from(stripe) * present.len() / usize::from(stripes)];
        for viewer in present.clone() {
            let children: Vec<PeerId> =
                present.iter().filter(|other| **other != viewer).map(|other| self.id(*other)).collect();
            let places: Vec<Place<'_>> = (0..stripes)
                .map(|stripe| {
                    let root = root_of(stripe);
                    let is_root = root == viewer;
                    Place {
                        stripe,
                        is_root,
                        parent: (!is_root).then(|| self.id(root)),
                        children: if is_root { &children } else { &[] },
                        expected: Span::from_ms(100),
                    }
                })
                .collect();
            self.input(viewer, Input::Plan { rendition: 0, stripes, places: &places });
        }
    }

    /// The viewer is gone without a word; the others find out by themselves, or after `notice`.
    pub(crate) fn vanish(&mut self, viewer: usize) {
        self.viewers[viewer].is_gone = true;
    }

    pub(crate) fn run_for(&mut self, span: Span) {
        let end = self.now + span;
        while let Some(((time, number), _)) = self.events.first_key_value() {
            if *time > end {
                break;
            }
            let key = (*time, *number);
            self.now = key.0;
            let event = self.events.remove(&key).expect("just seen");
            self.handle(event);
        }
        self.now = end;
    }

    fn at(&mut self, after: Span, event: Event) {
        self.number += 1;
        self.events.insert((self.now + after, self.number), event);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake(viewer) => {
                if self.viewers[viewer].wake_at == Some(self.now) {
                    self.viewers[viewer].wake_at = None;
                    self.input(viewer, Input::Wake);
                }
            }
            Event::Publish(index) => self.publish(index),
            Event::Record(viewer, record) => {
                if !self.tracker_is_down {
                    self.input(viewer, Input::Record { record: &record });
                }
            }
            Event::Message(viewer, peer, bytes) => {
                if self.viewers[viewer].connected.contains(&peer) {
                    self.input(viewer, Input::Message { peer, bytes: &bytes });
                }
            }
            Event::Block { to, from, header, length, digest } => {
                if self.viewers[to].connected.contains(&from) && !self.viewers[to].is_gone {
                    *self.viewers[to].received.entry(from).or_default() += u64::from(length);
                    self.block(to, from, &header, length, digest);
                }
            }
            Event::Drained { viewer, peer, bytes } => {
                let buffered = self.viewers[viewer].buffered.entry(peer).or_default();
                *buffered -= bytes;
                let buffered = *buffered;
                if self.viewers[viewer].connected.contains(&peer) {
                    self.input(viewer, Input::SendQueue { peer, buffered });
                }
            }
            Event::FetchBlock { viewer, fetch, piece, block, is_last } => {
                if self.viewers[viewer].cancelled.contains(&fetch) || self.origin_is_down {
                    return;
                }
                if self.viewers[viewer].is_gone {
                    return;
                }
                let length = self.record_of(piece).block_length(block).expect("inside of the piece");
                self.origin_bytes += u64::from(length);
                let mut digest = truth(piece, block);
                if self.origin_lies {
                    digest.0[0] ^= 1;
                }
                let index = block as u16;
                let input = Input::FetchBlock { fetch, block: index, length, digest };
                self.input_with(viewer, input, Some((piece, block, digest)));
                if is_last {
                    self.input(viewer, Input::FetchFinished { fetch });
                }
            }
            Event::Loaded { viewer, piece, took } => {
                let record = self.record_of(piece).clone();
                self.origin_bytes += u64::from(record.length);
                let blocks = record.blocks.clone();
                self.take(viewer, piece);
                self.input(viewer, Input::Loaded { piece, length: record.length, digests: &blocks, took });
                self.want_next(viewer);
            }
            Event::Tick(viewer) => {
                self.tick(viewer);
                self.at(Span::from_ms(100), Event::Tick(viewer));
            }
        }
    }

    pub(crate) fn block(&mut self, to: usize, from: PeerId, header: &[u8], length: u32, digest: BlockDigest) {
        let about = BlockHeader::parse(header).ok().map(|h| (h.piece, u32::from(h.block), digest));
        self.input_with(to, Input::Block { peer: from, header, length, digest }, about);
    }

    pub(crate) fn piece_at(&self, index: u64) -> PieceId {
        PieceId { rendition: 0, msn: index / 4, part: (index % 4) as u16 }
    }

    pub(crate) fn record_of(&self, piece: PieceId) -> &Record {
        self.records[&piece].record()
    }

    fn publish(&mut self, index: u64) {
        let piece = self.piece_at(index);
        let length = self.blocks * BLOCK_BYTES_MAX - 100;
        let start_ms = START_MS + index * self.part_ms;
        let signed = sign(&record(piece, length, start_ms, self.part_ms as u32, piece.part == 3));
        self.records.insert(piece, Arc::clone(&signed));
        self.published = index + 1;
        self.published_bytes += u64::from(length);
        for viewer in 0..self.viewers.len() {
            let jitter = Span::from_us(self.rng.below(3000));
            self.at(self.record_delay + jitter, Event::Record(viewer, Arc::clone(&signed)));
        }
        self.at(Span::from_ms(self.part_ms), Event::Publish(index + 1));
    }

    fn tick(&mut self, viewer: usize) {
        let now = self.now;
        let v = &mut self.viewers[viewer];
        if v.is_gone {
            return;
        }
        let is_first = v.ticked == Time::ZERO;
        let elapsed = now.since(v.ticked);
        let moved = if is_first { 0 } else { elapsed.as_ms() };
        let can = v.buffered_until_ms - v.position_ms;
        if moved > can {
            // The first wait is the start-up.
            if v.delivered > 0 {
                v.rebuffer = v.rebuffer + Span::from_ms(moved - can);
            }
        }
        v.position_ms += moved.min(can);
        v.ticked = now;
        let input = Input::Playhead {
            position_ms: v.position_ms,
            buffered_until_ms: v.buffered_until_ms,
            rate_percent: 100,
            is_stalled: v.position_ms == v.buffered_until_ms,
        };
        self.input(viewer, input);
        self.want_next(viewer);
    }

    fn want_next(&mut self, viewer: usize) {
        let part_ms = self.part_ms;
        let published = self.published;
        let v = &mut self.viewers[viewer];
        let next = (v.buffered_until_ms - START_MS) / part_ms;
        if v.wanted.is_some() || next >= published || v.is_gone {
            return;
        }
        v.next_request += 1;
        let request = v.next_request;
        let piece = self.piece_at(next);
        self.viewers[viewer].wanted = Some((request, piece));
        self.input(viewer, Input::Want { request, target: Target::Piece(piece), deadline: None });
    }

    /// The player takes a piece.
    fn take(&mut self, viewer: usize, piece: PieceId) {
        let (start_ms, duration_ms) = (self.record_of(piece).start_ms, self.record_of(piece).duration_ms);
        let v = &mut self.viewers[viewer];
        assert_eq!(v.buffered_until_ms, start_ms, "pieces reach the player in order, each once");
        v.buffered_until_ms = start_ms + u64::from(duration_ms);
        v.wanted = None;
        v.delivered += 1;
    }

    pub(crate) fn input(&mut self, viewer: usize, input: Input<'_>) {
        self.input_with(viewer, input, None);
    }

    fn input_with(&mut self, viewer: usize, input: Input<'_>, bytes: Option<(PieceId, u32, BlockDigest)>) {
        if self.viewers[viewer].is_gone {
            return;
        }
        self.viewers[viewer].peer.handle_input(self.now, input);
        let mut delivered = false;
        while let Some(output) = self.viewers[viewer].peer.poll_output() {
            if self.record_outputs_of == Some(viewer) {
                self.recorded_outputs.push(output.clone());
            }
            delivered |= matches!(output, Output::Deliver { .. });
            self.carry_out(viewer, output, bytes);
        }
        self.check(viewer);
        let deadline = self.viewers[viewer].peer.next_deadline().map(|(at, _)| at);
        if let Some(at) = deadline {
            assert!(at > self.now, "a deadline that is due already would spin");
            if self.viewers[viewer].wake_at.is_none_or(|armed| armed > at || armed <= self.now) {
                self.viewers[viewer].wake_at = Some(at);
                self.at(at.since(self.now), Event::Wake(viewer));
            }
        }
        if delivered {
            self.want_next(viewer);
        }
    }

    fn carry_out(&mut self, viewer: usize, output: Output, bytes: Option<(PieceId, u32, BlockDigest)>) {
        let from = self.id(viewer);
        let v = &mut self.viewers[viewer];
        v.outputs += 1;
        v.fingerprint = mix(v.fingerprint ^ fingerprint(&output));
        match output {
            Output::SendControl { peer, bytes } => {
                assert!(v.connected.contains(&peer), "nothing is sent after a disconnect");
                assert!(bytes.len() <= crate::wire::CONTROL_BYTES_MAX);
                let to = self.index(peer);
                self.at(self.delay, Event::Message(to, from, bytes));
            }
            Output::SendBlock { peer, header, piece, block } => {
                assert!(v.connected.contains(&peer), "nothing is sent after a disconnect");
                let mut digest = v.store[&piece][&u32::from(block)];
                let length = self.records[&piece].record().block_length(u32::from(block)).expect("stored");
                v.sent += u64::from(length);
                *v.buffered.entry(peer).or_default() += length;
                let free = v.uplink_free.max(self.now) + Span::of_bytes(u64::from(length), v.uplink_bps);
                v.uplink_free = free;
                let manner = v.manner;
                if manner == Manner::Pollutes {
                    digest.0[0] ^= 1;
                }
                let to = self.index(peer);
                let buffered = self.viewers[viewer].buffered[&peer];
                let gone = free.since(self.now);
                self.at(gone, Event::Drained { viewer, peer, bytes: length });
                if manner != Manner::Stalls {
                    self.at(gone + self.delay, Event::Block { to, from, header, length, digest });
                }
                self.input(viewer, Input::SendQueue { peer, buffered });
            }
            Output::Fetch { fetch, piece, piece_length, offset, length, .. } => {
                let block = block_bytes(piece_length);
                let (first, count) = (offset / block, length.div_ceil(block));
                for block in first..first + count {
                    let after = self.origin_delay + Span::from_ms(1 + u64::from(block - first));
                    let is_last = block + 1 == first + count;
                    self.at(after, Event::FetchBlock { viewer, fetch, piece, block, is_last });
                }
            }
            Output::CancelFetch { fetch } => {
                v.cancelled.insert(fetch);
            }
            Output::FetchRecord { piece, .. } => {
                if let Some(record) = self.records.get(&piece).cloned() {
                    let input = Input::Record { record: &record };
                    self.input(viewer, input);
                } else {
                    self.input(viewer, Input::RecordFailed { piece });
                }
            }
            Output::CheckRecord { check, signed } => {
                let is_signed = OriginKey::of(&signing_key()).has_signed(&signed);
                self.input(viewer, Input::RecordChecked { check, is_signed });
            }
            Output::Store { piece, block, held, .. } => {
                let (of, index, digest) = match held {
                    Some(hold) => v.held.remove(&hold).expect("held before"),
                    None => bytes.expect("only with an input that has bytes"),
                };
                assert_eq!((of, index), (piece, u32::from(block)));
                v.store.entry(piece).or_default().insert(index, digest);
            }
            Output::Hold { hold } => {
                v.held.insert(hold, bytes.expect("only with an input that has bytes"));
            }
            Output::DropHeld { hold } => {
                v.held.remove(&hold).expect("held before");
            }
            Output::KeepLoaded { piece } => {
                let blocks = self.records[&piece].record().blocks.len() as u32;
                let blocks = (0..blocks).map(|block| (block, truth(piece, block))).collect();
                v.store.insert(piece, blocks);
            }
            Output::DropLoaded { .. } | Output::Report(_) => {}
            Output::Evict { piece } => {
                v.store.remove(&piece).expect("stored before");
            }
            Output::Deliver { request, first, parts } => {
                assert_eq!((v.wanted, parts), (Some((request, first)), 1), "each request is answered once");
                let record = self.records[&first].record();
                let stored = &v.store[&first];
                for block in 0..record.blocks.len() as u32 {
                    if stored.get(&block) != Some(&truth(first, block)) {
                        v.bad_bytes += u64::from(record.block_length(block).unwrap_or(0));
                    }
                }
                self.take(viewer, first);
            }
            Output::Fallback { request, .. } => {
                let (wanted, piece) = v.wanted.expect("a request is running");
                assert_eq!(wanted, request, "each request is answered once");
                let took = self.origin_delay + Span::from_ms(20);
                self.at(took, Event::Loaded { viewer, piece, took });
            }
            Output::Disconnect { peer, reason } => {
                v.connected.remove(&peer);
                if reason == crate::DisconnectReason::Banned || reason == crate::DisconnectReason::Malformed {
                    v.banned.insert(peer);
                }
                v.buffered.remove(&peer);
                let other = self.index(peer);
                self.viewers[other].connected.remove(&from);
                self.events.retain(|_, event| {
                    !matches!(event, Event::Drained { viewer: of, peer: to, .. }
                        if (*of == viewer && *to == peer) || (*of == other && *to == from))
                });
                self.viewers[other].buffered.remove(&from);
                if !self.viewers[other].is_gone {
                    self.input(other, Input::NeighborLost { peer: from });
                }
            }
            Output::Accuse { peer, .. } => v.accused.push(peer),
            Output::Complain { peer, stripe, .. } => v.complaints.push((peer, stripe)),
        }
    }

    fn index(&self, peer: PeerId) -> usize {
        self.viewers.iter().position(|viewer| viewer.id == peer).expect("a known peer")
    }

    /// What must be true after every step, whatever happened.
    fn check(&self, viewer: usize) {
        let v = &self.viewers[viewer];
        v.peer.check_limits();
        let stats = v.peer.stats();
        assert_eq!(stats.sent_bytes, v.sent, "sent bytes are counted once");
        let stored: u64 = v.store.keys().map(|piece| u64::from(self.records[piece].record().length)).sum();
        assert_eq!(stats.store_bytes, stored, "the store is what it is thought to be");
        assert_eq!(v.held.len(), v.peer.held.len(), "held bytes are neither lost nor kept");
        // Nothing is lost on the way: what peers sent was stored, or was a duplicate, late, rejected or is still held.
        let received: u64 = v.received.values().sum();
        let held: u64 = v.peer.held.values().map(|held| u64::from(held.length)).sum();
        let wasted = stats.duplicate_bytes + stats.late_bytes + stats.rejected_bytes;
        assert!(received <= stats.peer_bytes + wasted + held, "{received} {stats:?}");
    }

    // What tests ask.

    pub(crate) fn copies(&self) -> f64 {
        self.origin_bytes as f64 / self.published_bytes as f64
    }

    pub(crate) fn rebuffer_ms(&self) -> u64 {
        self.viewers.iter().map(|viewer| viewer.rebuffer.as_ms()).sum()
    }

    pub(crate) fn bad_bytes(&self) -> u64 {
        self.viewers.iter().map(|viewer| viewer.bad_bytes).sum()
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.viewers.iter().fold(0, |all, viewer| mix(all ^ viewer.fingerprint))
    }
}

fn fingerprint(output: &Output) -> u64 {
    let mut text = Fnv(0xcbf2_9ce4_8422_2325);
    std::fmt::Write::write_fmt(&mut text, format_args!("{output:?}")).expect("never fails");
    text.0
}

struct Fnv(u64);

impl std::fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0 =
            text.bytes().fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Ok(())
    }
}
