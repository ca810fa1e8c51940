//! Drives the swarm core: carries events in, outputs out, and holds the bytes.
//!
//! One task owns everything of one viewer, so nothing here is locked. Work that waits (HTTP, sockets, peer
//! connections) runs in tasks of its own that report over bounded channels. What the core wants done is in `outputs`, what
//! the tracker and the neighbors say in `signaling`; here are the stream, the clock and the life of a viewer.

mod outputs;
mod signaling;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use reqwest::{Client, Url};
use shoal_digest::PieceId;
use shoal_swarm::{Config, FetchId, HoldId, Input, Peer, PeerId, RequestId, Target, Time};
use shoal_tracker_protocol::ViewerMessage;
use tokio::{sync::mpsc, task::AbortHandle, time::sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Mode, Options,
    neighbor::{ConnectionOptions, Neighbor, NeighborEvent},
    origin::OriginEvent,
    playback::{Experience, Playback},
    source::{self, Listed, SourceEvent, Stream},
    store::Store,
    tls::Tls,
    tracker::{self, TrackerEvent},
    uplink::Uplink,
};

/// Events of one kind that may wait before their senders do. A block has at most 16 KiB: 4 MiB in the worst case.
const EVENTS_MAX: usize = 256;
/// The clock's step. Ten times finer than the shortest parts.
const TICK: Duration = Duration::from_millis(20);
/// The core wants to know where the playhead is about each second.
const PLAYHEAD_INTERVAL: Duration = Duration::from_secs(1);
/// A helper that plays nothing pretends to play this far behind the newest piece, so that every piece has a deadline.
const SEED_BEHIND_MS: u64 = 4000;

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
    /// Neighbors that were left because they took no messages.
    pub neighbors_stuck: u64,
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
    let is_plain = Url::parse(&options.url).is_ok_and(|url| url.scheme() == "http");
    let tls = Tls::new(options.insecure, !is_plain).map_err(Error::Tls)?;
    let client =
        Client::builder().no_proxy().tls_backend_preconfigured(tls.http()).build().map_err(Error::Http)?;
    let stream = source::open(&client, &options.url).await?;
    let (inbox, mut outlets) = Inbox::new();
    let mut viewer = Viewer::new(options, client, stream, inbox);
    viewer.start(&tls, &stop);
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
    /// Its number in the swarm, as the last welcome gave it.
    number: Option<PeerId>,
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
            number: None,
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

    fn start(&mut self, tls: &Tls, stop: &CancellationToken) {
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
            tls: tls.socket(),
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
