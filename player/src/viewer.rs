//! Drives the swarm core: carries events in, outputs out, and holds the bytes.
//!
//! One task owns everything of one viewer, so nothing here is locked. Work that waits (HTTP, sockets, peer
//! connections) runs in tasks of its own that report over bounded channels.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use reqwest::{Client, Url};
use shoal_digest::{BlockDigest, PieceId, block_bytes};
use shoal_swarm::{
    Config, FetchId, HoldId, Input, Output, Peer, PeerId, Place, RequestId, Span, Target, Time,
    wire::BLOCK_HEADER_BYTES,
};
use shoal_tracker_protocol::{self as protocol, TrackerMessage, ViewerMessage};
use tokio::{sync::mpsc, task::AbortHandle, time::sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Mode, Options,
    neighbor::{ConnectionOptions, Neighbor, NeighborEvent, NeighborEventKind},
    origin::{self, OriginEvent},
    playback::{Experience, Playback},
    source::{self, Listed, SourceEvent, Stream},
    store::Store,
    tracker::{self, TrackerEvent},
    uplink::Uplink,
};

/// Events of one kind that may wait before their senders do. A block has at most 16 KiB: 4 MiB in the worst case.
const EVENTS_MAX: usize = 256;
/// Pieces whose URLs are remembered; beyond it the oldest are forgotten. Ten minutes of two renditions.
const URLS_MAX: usize = 2400;
/// The clock's step. Ten times finer than the shortest parts.
const TICK: Duration = Duration::from_millis(20);
/// The core wants to know where the playhead is about each second.
const PLAYHEAD_INTERVAL: Duration = Duration::from_secs(1);
/// A helper that plays nothing pretends to play this far behind the newest piece, so that every piece has a deadline.
const SEED_BEHIND_MS: u64 = 4000;
/// How often a piece is asked of the origin before playback goes on without it.
const LOADS_MAX: u32 = 3;

/// Where a viewer stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// What a person would notice.
    pub experience: Experience,
    /// The core's counters.
    pub swarm: shoal_swarm::Stats,
    /// Media bytes that came straight from the origin because the core could not or should not get them.
    pub direct_bytes: u64,
    /// Requests for media sent to the origin.
    pub origin_requests: u64,
    /// Pieces that nobody had any more.
    pub pieces_lost: u64,
    /// Whether the stream has ended.
    pub is_ended: bool,
}

/// Watches until the stream ends or `stop` is cancelled. `progress` is told about every second.
///
/// # Errors
/// [`Error`] if the stream can't be read at the start. Later trouble is waited out.
pub async fn run(
    options: Options,
    stop: CancellationToken,
    mut progress: impl FnMut(&Snapshot) + Send,
) -> Result<Snapshot, Error> {
    // reqwest is built without a choice of cryptography; whoever comes first in the process decides.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().build().map_err(Error::Http)?;
    let stream = source::open(&client, &options.url).await?;
    let (inbox, mut outlets) = Inbox::new();
    let mut viewer = Viewer::new(options, client, stream, inbox);
    viewer.start(&stop);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = Instant::now();
    loop {
        let wake = viewer.wake_at();
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => viewer.handle_tick(),
            () = sleep_until(wake.into()) => viewer.input(&Input::Wake, None),
            Some(event) = outlets.source.recv() => viewer.handle_source(event),
            Some(event) = outlets.tracker.recv() => viewer.handle_tracker(event),
            Some(event) = outlets.neighbors.recv() => viewer.handle_neighbor(event),
            Some(event) = outlets.origin.recv() => viewer.handle_origin(event),
        }
        if told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            progress(&viewer.snapshot());
        }
        if viewer.is_done() {
            break;
        }
    }
    let last = viewer.snapshot();
    progress(&last);
    Ok(last)
}

/// The sending halves that tasks report to.
#[derive(Clone)]
struct Inbox {
    source: mpsc::Sender<SourceEvent>,
    tracker: mpsc::Sender<TrackerEvent>,
    neighbors: mpsc::Sender<NeighborEvent>,
    origin: mpsc::Sender<OriginEvent>,
}

struct Outlets {
    source: mpsc::Receiver<SourceEvent>,
    tracker: mpsc::Receiver<TrackerEvent>,
    neighbors: mpsc::Receiver<NeighborEvent>,
    origin: mpsc::Receiver<OriginEvent>,
}

impl Inbox {
    fn new() -> (Self, Outlets) {
        let (source, source_out) = mpsc::channel(EVENTS_MAX);
        let (tracker, tracker_out) = mpsc::channel(EVENTS_MAX);
        let (neighbors, neighbors_out) = mpsc::channel(EVENTS_MAX);
        let (origin, origin_out) = mpsc::channel(EVENTS_MAX);
        let outlets = Outlets {
            source: source_out,
            tracker: tracker_out,
            neighbors: neighbors_out,
            origin: origin_out,
        };
        (Self { source, tracker, neighbors, origin }, outlets)
    }
}

/// The viewer's side of the tracker's socket and of the swarm.
struct Swarm {
    peer: Peer,
    to_tracker: mpsc::Sender<ViewerMessage>,
    connection: ConnectionOptions,
    sharing: bool,
}

struct Viewer {
    options: Options,
    client: Client,
    stream: Stream,
    inbox: Inbox,
    base: Url,
    zero: Instant,
    swarm: Option<Swarm>,
    neighbors: BTreeMap<PeerId, Neighbor>,
    next_generation: u64,
    uplink: Arc<Uplink>,
    store: Store,
    held: HashMap<HoldId, Bytes>,
    loaded: HashMap<PieceId, Bytes>,
    fetches: HashMap<FetchId, AbortHandle>,
    urls: BTreeMap<(u64, u16, u8), Url>,
    wants: HashMap<RequestId, Listed>,
    loads: HashMap<PieceId, (Listed, u32)>,
    next_request: RequestId,
    playback: Playback,
    newest_ms: u64,
    began: BTreeMap<u8, bool>,
    told_playhead: Instant,
    was_playing: bool,
    counts: Snapshot,
    ended: usize,
}

impl Viewer {
    fn new(options: Options, client: Client, stream: Stream, inbox: Inbox) -> Self {
        let base = Url::parse(&options.url).expect("the stream was opened by this URL");
        let playback = Playback::new(stream.renditions.iter().map(|(number, _)| *number), wall_ms());
        let uplink = Arc::new(Uplink::new(options.uplink_kbps));
        Self {
            client,
            inbox,
            base,
            zero: Instant::now(),
            swarm: None,
            neighbors: BTreeMap::new(),
            next_generation: 0,
            uplink,
            store: Store::default(),
            held: HashMap::new(),
            loaded: HashMap::new(),
            fetches: HashMap::new(),
            urls: BTreeMap::new(),
            wants: HashMap::new(),
            loads: HashMap::new(),
            next_request: 0,
            playback,
            newest_ms: 0,
            began: BTreeMap::new(),
            told_playhead: Instant::now(),
            was_playing: false,
            counts: Snapshot::default(),
            ended: 0,
            options,
            stream,
        }
    }

    fn start(&mut self, stop: &CancellationToken) {
        let renditions: Vec<u8> = self.stream.renditions.iter().map(|(number, _)| *number).collect();
        if self.options.mode == Mode::Watch {
            for (number, url) in &self.stream.renditions {
                let follow =
                    source::follow(self.client.clone(), *number, url.clone(), self.inbox.source.clone());
                tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
            }
        }
        let Some(info) = self.stream.swarm.clone().filter(|_| self.options.peers) else {
            tracing::debug!(peers = self.options.peers, "no swarm");
            return;
        };
        let mut config = Config::new(info.key, info.epoch);
        config.uplink_granted_bps = self.options.uplink_kbps.map(|rate| u64::from(rate) * 1000);
        config.store_bytes_max = self.options.store_bytes_max;
        let (to_tracker, outgoing) = mpsc::channel(EVENTS_MAX);
        let loopback = is_loopback(&info.tracker);
        let join = tracker::Join {
            url: info.tracker,
            stream: info.stream,
            token: self.options.token.clone(),
            shares: self.options.shares,
            renditions: renditions.clone(),
        };
        tokio::spawn(tracker::run(join, outgoing, self.inbox.tracker.clone(), stop.clone()));
        self.swarm = Some(Swarm {
            peer: Peer::new(config, self.options.seed),
            to_tracker,
            connection: ConnectionOptions {
                ice_servers: Vec::new(),
                relay_only: false,
                loopback,
                identity: self.options.identity.clone(),
                connect_timeout: self.options.connect_timeout,
            },
            sharing: true,
        });
        self.input(&Input::Share { on: self.options.shares }, None);
        self.input(&Input::Playing { renditions: &renditions }, None);
    }

    fn now(&self) -> Time {
        Time::from_us(u64::try_from(self.zero.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn wake_at(&self) -> Instant {
        let deadline = self.swarm.as_ref().and_then(|swarm| swarm.peer.next_deadline());
        let far = Instant::now() + Duration::from_secs(60);
        deadline.map_or(far, |(time, _)| (self.zero + Duration::from_micros(time.as_us())).min(far))
    }

    /// Hands an input to the core and carries out what it says. `current` are the bytes that a block input speaks of.
    fn input(&mut self, input: &Input<'_>, current: Option<&Bytes>) {
        let now = self.now();
        let Some(swarm) = &mut self.swarm else { return };
        swarm.peer.handle_input(now, input.clone());
        self.drain(current);
    }

    fn drain(&mut self, current: Option<&Bytes>) {
        while let Some(output) = self.swarm.as_mut().and_then(|swarm| swarm.peer.poll_output()) {
            self.carry_out(output, current);
        }
    }

    fn carry_out(&mut self, output: Output, current: Option<&Bytes>) {
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
    fn reply(&mut self, input: Input<'_>) {
        let now = self.now();
        if let Some(swarm) = &mut self.swarm {
            swarm.peer.handle_input(now, input);
        }
    }

    fn fetch(&mut self, fetch: FetchId, piece: PieceId, range: origin::Range) {
        let Some(url) = self.url(piece) else {
            return self.reply(Input::FetchFailed { fetch, status: 0 });
        };
        self.counts.origin_requests += 1;
        let work = origin::fetch(self.client.clone(), fetch, url, range, self.inbox.origin.clone());
        self.fetches.insert(fetch, tokio::spawn(work).abort_handle());
    }

    /// Loads a piece as a player without a swarm does.
    fn load(&mut self, listed: Listed) {
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

    fn url(&self, piece: PieceId) -> Option<Url> {
        self.urls.get(&(piece.msn, piece.part, piece.rendition)).cloned()
    }

    fn learn_url(&mut self, piece: PieceId, url: Url) {
        self.urls.insert((piece.msn, piece.part, piece.rendition), url);
        while self.urls.len() > URLS_MAX {
            self.urls.pop_first();
        }
    }

    fn tell_tracker(&self, message: ViewerMessage) {
        if let Some(swarm) = &self.swarm {
            // A socket that does not take messages is about to be replaced; what it would have said is old by then.
            let _ = swarm.to_tracker.try_send(message);
        }
    }

    fn handle_source(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Listed { pieces, hold_back_ms } => {
                let Some(rendition) = pieces.first().map(|listed| listed.piece.rendition) else { return };
                let skip = match self.began.insert(rendition, true) {
                    None => self.playback.start(&pieces, hold_back_ms),
                    Some(_) => 0,
                };
                for listed in &pieces {
                    self.learn_url(listed.piece, listed.url.clone());
                }
                for listed in pieces.into_iter().skip(skip) {
                    self.want(listed);
                }
            }
            SourceEvent::Ended => self.ended += 1,
            SourceEvent::Failed { rendition, error } => {
                tracing::warn!(rendition, %error, "playlist lost");
                self.ended += 1;
            }
        }
    }

    fn want(&mut self, listed: Listed) {
        if listed.is_gap {
            return self.playback.skip_gap(&listed);
        }
        if self.swarm.is_none() {
            return self.load(listed);
        }
        self.next_request = self.next_request.wrapping_add(1);
        let request = self.next_request;
        let piece = listed.piece;
        self.wants.insert(request, listed);
        self.input(&Input::Want { request, target: Target::Piece(piece), deadline: None }, None);
    }

    fn handle_tracker(&mut self, event: TrackerEvent) {
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
                self.ended = self.stream.renditions.len();
            }
            TrackerMessage::Drain { .. } | TrackerMessage::Ended | TrackerMessage::Pong => {}
        }
    }

    fn handle_welcome(&mut self, welcome: protocol::Welcome) {
        if let Some(swarm) = &mut self.swarm {
            swarm.connection.ice_servers.clone_from(&welcome.ice_servers);
            swarm.connection.relay_only = welcome.relay_only;
        }
        let input = Input::Welcome {
            peer: welcome.peer,
            neighbors_max: u16::try_from(welcome.neighbors_max).unwrap_or(u16::MAX),
            upload_ratio_percent: u16::try_from(welcome.upload_ratio_max_percent).unwrap_or(u16::MAX),
            report_interval: Span::from_ms(u64::from(welcome.report_interval_ms)),
        };
        self.input(&input, None);
        self.handle_sharing(welcome.sharing);
        if welcome.consent_required {
            // Whoever starts this program has agreed by starting it.
            self.tell_tracker(ViewerMessage::Consent);
        }
        for published in welcome.recent {
            self.published(published.piece, &published.uri, &published.record);
        }
    }

    fn handle_sharing(&mut self, on: bool) {
        let Some(swarm) = &mut self.swarm else { return };
        if swarm.sharing != on {
            swarm.sharing = on;
            self.input(&Input::Sharing { on }, None);
        }
    }

    fn introduce(&mut self, peer: PeerId, offers: bool) {
        let Some(swarm) = self.swarm.as_ref().filter(|swarm| swarm.sharing) else { return };
        self.next_generation += 1;
        let generation = self.next_generation;
        let events = self.inbox.neighbors.clone();
        let options = swarm.connection.clone();
        let neighbor = Neighbor::connect(peer, generation, offers, options, self.uplink.clone(), events);
        if let Some(old) = self.neighbors.insert(peer, neighbor)
            && old.is_open
        {
            self.input(&Input::NeighborLost { peer }, None);
        }
    }

    fn published(&mut self, piece: protocol::Piece, uri: &str, record: &str) {
        let id = PieceId { rendition: piece.rendition, msn: piece.msn, part: piece.part };
        if let Ok(url) = self.base.join(uri) {
            self.learn_url(id, url);
        }
        let Ok(bytes) = BASE64.decode(record) else { return };
        if let Ok(record) = shoal_digest::Record::decode_unverified(&bytes) {
            self.newest_ms = self.newest_ms.max(record.start_ms + u64::from(record.duration_ms));
        }
        self.input(&Input::RecordBytes { bytes: &bytes }, None);
    }

    fn handle_neighbor(&mut self, event: NeighborEvent) {
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

    fn handle_origin(&mut self, event: OriginEvent) {
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
    fn offer_loaded(&mut self, piece: PieceId, bytes: Bytes, took: Duration) {
        let Ok(length) = u32::try_from(bytes.len()) else { return };
        if self.swarm.is_none() || bytes.is_empty() {
            return;
        }
        let digests: Vec<_> = bytes.chunks(block_bytes(length) as usize).map(BlockDigest::of).collect();
        self.loaded.insert(piece, bytes);
        let took = Span::from_us(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.input(&Input::Loaded { piece, length, digests: &digests, took }, None);
    }

    fn handle_tick(&mut self) {
        let is_playing = match self.options.mode {
            Mode::Watch => {
                self.playback.tick(wall_ms());
                self.playback.is_playing()
            }
            Mode::Seed => self.newest_ms > 0,
        };
        let changed = is_playing != self.was_playing;
        if !changed && self.told_playhead.elapsed() < PLAYHEAD_INTERVAL {
            return;
        }
        self.was_playing = is_playing;
        self.told_playhead = Instant::now();
        let (position_ms, buffered_until_ms, has_started) = match self.options.mode {
            Mode::Watch => {
                let Some(position) = self.playback.position_ms() else { return };
                let until = self.playback.buffered_until_ms().unwrap_or(position);
                (position, until.max(position), self.playback.has_started())
            }
            Mode::Seed if self.newest_ms > 0 => {
                (self.newest_ms.saturating_sub(SEED_BEHIND_MS), self.newest_ms, true)
            }
            Mode::Seed => return,
        };
        let is_stalled = has_started && !is_playing;
        let input = Input::Playhead { position_ms, buffered_until_ms, rate_percent: 100, is_stalled };
        self.input(&input, None);
    }

    fn is_done(&self) -> bool {
        self.ended >= self.stream.renditions.len() && !self.playback.is_playing()
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            experience: self.playback.experience(),
            swarm: self.swarm.as_ref().map(|swarm| swarm.peer.stats()).unwrap_or_default(),
            is_ended: self.is_done(),
            ..self.counts
        }
    }
}

/// Whether a URL leads to this machine.
fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn to_protocol(piece: PieceId) -> protocol::Piece {
    protocol::Piece { rendition: piece.rendition, msn: piece.msn, part: piece.part }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        let is_loopback = |url: &str| super::is_loopback(&Url::parse(url).expect("a URL"));
        for url in [
            "http://localhost:8080/live/a/index.m3u8",
            "http://127.0.0.1/",
            "https://127.9.9.9/",
            "http://[::1]:8080/",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in [
            "http://192.168.0.1/",
            "http://localhost.example.org/",
            "http://127.0.0.1.example.org/",
            "http://[::2]/",
        ] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
