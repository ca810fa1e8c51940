//! Drives the swarm core: carries events in, outputs out, and holds the bytes.
//!
//! One task owns everything of one viewer, so nothing here is locked. Work that waits (HTTP, sockets, peer
//! connections) runs in tasks of its own that report over bounded channels. What the core wants done is in `outputs`, what
//! the tracker and the neighbors say in `signaling`; here are the stream, the clock and the life of a viewer.

mod outputs;
mod signaling;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use reqwest::{Client, Url};
use shoal_digest::PieceId;
use shoal_swarm::{Config, FetchId, HoldId, Input, Peer, PeerId, RequestId, Target, Time};
use shoal_tracker_protocol::ViewerMessage;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinHandle, JoinSet},
    time::{sleep_until, timeout},
};
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
/// A helper that plays nothing pretends to play this far behind the newest piece with nothing in its buffer, so that every piece has
/// a deadline: by then it is obtained, whoever failed to push it.
const SEED_BEHIND_MS: u64 = 4000;
/// How long goodbyes have to leave at the end. As they do for one neighbor, and a moment for who says them.
const GOODBYES_MAX: Duration = Duration::from_millis(250);

/// Where a viewer stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Snapshot {
    /// What a person would notice.
    pub experience: Experience,
    /// The core's counters.
    pub swarm: shoal_swarm::Stats,
    /// Media bytes that came straight from the origin and that the core's counters do not hold.
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

/// Watches until the stream ends or `stop` is cancelled, and then takes leave of tracker and neighbors, for a quarter of a second at
/// most. `progress` is told about every second, and at the end how everything stood before the leave.
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
    // However it ends, also when this future is dropped: nothing that was started goes on.
    let stop = stop.child_token();
    let ends_all = stop.clone().drop_guard();
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
    // Nobody listens any more, and nobody is to wait for it.
    drop((ends_all, outlets));
    viewer.take_leave().await;
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
    /// Ends when the tracker knows that nothing more comes.
    socket: JoinHandle<()>,
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
    /// The numbers of the renditions that it plays or, as a helper, gives.
    taken: Vec<u8>,
    swarm: Option<Swarm>,
    /// Its number in the swarm, as the last welcome gave it.
    number: Option<PeerId>,
    neighbors: BTreeMap<PeerId, Neighbor>,
    /// Former neighbors to whom the last words are on their way.
    closing: JoinSet<()>,
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
    /// As a helper: the program date time at which the newest known piece ends, and where the core believes the playhead. 0: not
    /// known yet.
    newest_ms: u64,
    position_ms: u64,
    /// The renditions whose playlists have been read.
    began: BTreeSet<u8>,
    told_playhead: Instant,
    was_playing: bool,
    counts: Snapshot,
    /// How many renditions have ended.
    ended: usize,
}

impl Viewer {
    fn new(options: Options, client: Client, stream: Stream, inbox: Inbox) -> Self {
        let base = Url::parse(&options.url).expect("the stream was opened by this URL");
        let taken = stream.taken(options.mode);
        let playback = Playback::new(taken.iter().copied(), wall_ms());
        let uplink = Arc::new(Uplink::new(options.uplink_kbps));
        Self {
            client,
            inbox,
            base,
            zero: Instant::now(),
            taken,
            swarm: None,
            number: None,
            neighbors: BTreeMap::new(),
            closing: JoinSet::new(),
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
            position_ms: 0,
            began: BTreeSet::new(),
            told_playhead: Instant::now(),
            was_playing: false,
            counts: Snapshot::default(),
            ended: 0,
            options,
            stream,
        }
    }

    fn start(&mut self, tls: &Tls, stop: &CancellationToken) {
        if self.options.mode == Mode::Watch {
            for number in &self.taken {
                let url = self.stream.renditions[usize::from(*number)].clone();
                let follow = source::follow(self.client.clone(), *number, url, self.inbox.source.clone());
                tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
            }
        }
        let Some(info) = self.stream.swarm.clone().filter(|_| self.options.peers) else {
            tracing::debug!(peers = self.options.peers, "no swarm");
            return;
        };
        let mut config = Config::new(info.epoch);
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
            renditions: self.taken.clone(),
        };
        let socket = tokio::spawn(tracker::run(join, outgoing, self.inbox.tracker.clone(), stop.clone()));
        self.swarm = Some(Swarm {
            peer: Peer::new(config, self.options.seed),
            to_tracker,
            socket,
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
        self.input(&Input::Playing { renditions: &self.taken.clone() }, None);
    }

    /// Says goodbye to the neighbors and to the tracker, who would else have to find out, and waits a moment until that has left.
    async fn take_leave(mut self) {
        let Some(swarm) = &mut self.swarm else { return };
        // The tracker's socket closes when nobody can send any more. It need not hear that each neighbor is left.
        (swarm.to_tracker, _) = mpsc::channel(1);
        self.input(&Input::Leave, None);
        let Some(Swarm { socket, .. }) = self.swarm.take() else { return };
        let said = async {
            while self.closing.join_next().await.is_some() {}
            // It has nothing to give, and a panic in it is told where it happens.
            let _ = socket.await;
        };
        if timeout(GOODBYES_MAX, said).await.is_err() {
            tracing::debug!("some goodbyes were not taken in time");
        }
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
                let is_first = self.began.insert(rendition);
                let skip = if is_first { self.playback.start(&pieces, hold_back_ms) } else { 0 };
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
        let playhead = match self.options.mode {
            Mode::Watch => self.playhead(),
            Mode::Seed => self.pretended_playhead(),
        };
        if let Some(playhead) = playhead {
            self.input(&playhead, None);
        }
    }

    fn playhead(&self) -> Option<Input<'static>> {
        let position_ms = self.playback.position_ms()?;
        let until = self.playback.buffered_until_ms().unwrap_or(position_ms);
        Some(Input::Playhead {
            position_ms,
            buffered_until_ms: until.max(position_ms),
            rate_percent: 100,
            is_stalled: self.playback.has_started() && !self.playback.is_playing(),
        })
    }

    /// A helper's, where it has moved. To say again where it stands would put all deadlines off: while nothing new is published,
    /// the last pieces would never be due.
    fn pretended_playhead(&mut self) -> Option<Input<'static>> {
        self.learn_newest();
        let position_ms = self.newest_ms.saturating_sub(SEED_BEHIND_MS);
        if position_ms <= self.position_ms {
            return None;
        }
        self.position_ms = position_ms;
        Some(Input::Playhead {
            position_ms,
            buffered_until_ms: position_ms,
            rate_percent: 100,
            is_stalled: false,
        })
    }

    /// Without a tracker it is from neighbors that the core hears of new pieces.
    fn learn_newest(&mut self) {
        let behind_ms = self.swarm.as_ref().map_or(0, |swarm| swarm.peer.stats().behind_ms);
        if behind_ms > 0 {
            self.newest_ms = self.newest_ms.max(self.position_ms + u64::from(behind_ms));
        }
    }

    fn is_done(&self) -> bool {
        self.ended >= self.taken.len() && !self.playback.is_playing()
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
