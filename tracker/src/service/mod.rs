//! The tracker as a service: its routes, its rooms, its beginning and end.
//!
//! Sockets, clocks and tasks are here; what is decided is decided in `../swarm` and `../plan`. `gate.rs` lets viewers
//! in, `visitor.rs` opens their sockets, `socket.rs` speaks with one viewer, `room.rs` owns one swarm, `api.rs` is the operator's.

mod announce;
mod api;
mod gate;
mod ice;
mod locate;
mod queue;
mod relay;
mod room;
mod socket;
mod stun;
mod switches;
mod token;
mod visitor;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::any;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dashmap::{DashMap, Entry};
use metrics::{counter, gauge};
use parking_lot::Mutex;
use shoal_tracker_protocol::Piece;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::swarm::{Credential, Published, Relays, Secret, Swarm, Switch};
use crate::{Config, Error, PeerPolicy, plan};
use announce::Announces;
use gate::{Gate, later_ms};
use locate::Atlas;
use room::{Control, Life, Room};
use switches::{Remembered, Switches};
use token::{Refused, Tokens};
use visitor::Visitor;

pub(crate) use gate::Proxies;

/// The longest announce: ten offers of 3 KiB and what belongs to them.
const ANNOUNCE_BYTES_MAX: usize = 64 * 1024;
/// The swarm of a recording that nobody watches is kept this long: somebody may be on the way.
const RECORDING_LINGER: Duration = Duration::from_secs(60);
/// An unknown recording may be found for so long after the start: a large store takes minutes to be looked through.
const STOCK_MAX_MS: u64 = 10 * 60_000;
/// The gauges are set this often.
const GAUGES_INTERVAL: Duration = Duration::from_secs(2);

/// The tracker's clock: milliseconds since its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    fn now_ms(self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn instant(self, at_ms: u64) -> Instant {
        self.start + Duration::from_millis(at_ms)
    }
}

/// The tracker. Clones share everything.
#[derive(Clone, Debug)]
pub struct Tracker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    secret: Secret,
    clock: Clock,
    gate: Arc<Gate>,
    streams: DashMap<String, Stream>,
    /// Which recordings can be watched.
    recordings: OnceLock<Recordings>,
    /// The operator's switch for all streams, in percent.
    percent: AtomicU8,
    /// His switches for single streams, by name.
    remembered: Remembered,
    /// None where no secret for tokens is set.
    tokens: Option<Tokens>,
    announces: Arc<Announces>,
    atlas: Atlas,
    /// The sockets of STUN and TURN until [`Tracker::run`] takes them.
    relay: Mutex<Option<relay::Sockets>>,
    /// What viewers may name as relays.
    relays: Mutex<Relays>,
    own_ice: ice::Own,
    /// Ends all swarms.
    stop: CancellationToken,
}

/// Says whether there is a recording of a stream with this epoch.
type Exists = dyn Fn(&str, [u8; 16]) -> bool + Send + Sync;

struct Recordings(Box<Exists>);

impl std::fmt::Debug for Recordings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recordings")
    }
}

#[derive(Debug)]
struct Stream {
    epoch: [u8; 16],
    room: Room,
    switches: Switches,
    /// Since when nobody watches, of a recording.
    left_at: Option<Instant>,
}

impl Tracker {
    /// A tracker without streams.
    ///
    /// # Errors
    /// [`Error::Config`], as [`Config::validate`]; [`Error::StunPort`] if the STUN port is taken.
    pub fn new(config: Config) -> Result<Self, Error> {
        config.validate()?;
        let secret = Secret::new(config.secret_bytes()?.unwrap_or_else(rand::random));
        let clock = Clock { start: Instant::now() };
        let gate = Arc::new(Gate::new(&config, clock.now_ms())?);
        let percent = AtomicU8::new(config.sharing_percent);
        let tokens = config.viewer_tokens()?.map(Tokens::new);
        let bind = |address| {
            relay::Sockets::bind(address, config.turn).map_err(|source| Error::StunPort { address, source })
        };
        let relay = config.stun_address()?.map(bind).transpose()?;
        let own_ice = ice::Own {
            stun_port: relay.as_ref().and_then(|relay| relay.udp.local_addr().ok()).map(|own| own.port()),
            turn_secret: if config.turn_secret.is_empty() {
                hex::encode(rand::random::<[u8; 32]>()).into()
            } else {
                config.turn_secret.clone()
            },
        };
        let relay = Mutex::new(relay);
        let announces = Arc::new(Announces::new(&config));
        let atlas = Atlas::open(&config.mmdb_files)?;
        let remembered = Remembered::new(&config);
        let relays = Mutex::new(config.swarm_settings().relays);
        let shared = Shared {
            config,
            secret,
            clock,
            gate,
            streams: DashMap::new(),
            recordings: OnceLock::new(),
            percent,
            remembered,
            tokens,
            announces,
            atlas,
            relay,
            relays,
            own_ice,
            stop: CancellationToken::new(),
        };
        shared.open_announces();
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The routes: `/tracker` for viewers, `/announce` for WebTorrent clients, `/api/tracker` for the operator. The server has to put a
    /// `ConnectInfo<SocketAddr>` into the requests' extensions.
    pub fn router(&self) -> Router {
        let mut sockets = Router::new().route("/tracker", any(join));
        if self.shared.config.announce {
            sockets = sockets.route("/announce", any(announce));
        }
        sockets.with_state(Arc::clone(&self.shared)).merge(api::router(Arc::clone(&self.shared)))
    }

    /// A stream went live: viewers may join its swarm. A stream of the same name that was live has ended by this; what the
    /// operator switched for it stays. To be called inside a tokio runtime.
    pub fn stream_started(&self, name: &str, epoch: [u8; 16]) {
        let shared = &self.shared;
        // Taken first, so that a switch is either in what is remembered or comes after this.
        let entry = shared.streams.entry(name.to_owned());
        let switches = shared.remembered.of(name);
        let room = shared.start_room(name, &epoch, switches);
        let stream = Stream { epoch, room, switches, left_at: None };
        match entry {
            Entry::Occupied(mut old) => old.insert(stream).room.tell(Control::Ended),
            Entry::Vacant(place) => drop(place.insert(stream)),
        }
        shared.open_announces();
        info!(stream = name, "swarm opened");
    }

    /// The origin has published a piece. `uri` is relative to the multivariant playlist, `record` its signed digest
    /// record. Returns at once; unknown streams are ignored.
    pub fn published(&self, stream: &str, piece: Piece, uri: String, record: &[u8], length: u32) {
        if let Some(stream) = self.shared.streams.get(stream) {
            let record = STANDARD.encode(record);
            stream.room.tell(Control::Published(Published { piece, uri, record, length }));
        }
    }

    /// A stream has ended.
    pub fn stream_ended(&self, name: &str) {
        if let Some((_, stream)) = self.shared.streams.remove(name) {
            stream.room.tell(Control::Ended);
            self.shared.open_announces();
            info!(stream = name, "swarm closed");
        }
    }

    /// Opens a swarm for each recording that somebody watches: it is joined as `NAME/EPOCH` (in hexadecimal) and gone when all have
    /// left or the recording is deleted. `exists` is asked at each join that would open one, and every two seconds for each that is
    /// open; it must answer at once and not call the tracker. The switches are those of the stream that was recorded. To be called
    /// once, before there are viewers; later calls change nothing.
    pub fn watch_recordings(&self, exists: impl Fn(&str, [u8; 16]) -> bool + Send + Sync + 'static) {
        let _ = self.shared.recordings.set(Recordings(Box::new(exists)));
    }

    /// Viewers of a stream that are connected to the tracker.
    #[must_use]
    pub fn viewers(&self, stream: &str) -> usize {
        self.shared.streams.get(stream).map_or(0, |stream| stream.room.viewers())
    }

    /// Sets for all streams how many of the viewers may use peers, in percent; 0 switches sharing off.
    pub fn set_sharing(&self, percent: u8) {
        self.shared.set_sharing(percent);
    }

    /// The same for one stream; the smaller of the two counts. False if no stream of this name is live: then it counts as
    /// soon as one is.
    #[must_use]
    pub fn set_stream_sharing(&self, stream: &str, percent: u8) -> bool {
        self.shared.switch_stream(stream, |switches| switches.percent = percent.min(100))
    }

    /// Makes a stream private (viewers need a token) or open. A stream that turns private gets a new swarm: everybody
    /// has to join anew, and the old swarm's id and places are worth nothing. False if no stream of this name is live, as
    /// above; and, with nothing changed, if no secret for tokens is set.
    #[must_use]
    pub fn set_stream_private(&self, stream: &str, is_private: bool) -> bool {
        self.shared.tokens.is_some()
            && self.shared.switch_stream(stream, |switches| switches.is_private = is_private)
    }

    /// Sets how viewers of a stream connect to each other. [`PeerPolicy::Off`] and back are carried out at once; relays are
    /// told to those who join from now on; where addresses begin to be hidden (or end to be), everybody has to join
    /// anew. False if no stream of this name is live, as above; and, with nothing changed, if there is no relay for
    /// [`PeerPolicy::RelayOnly`].
    #[must_use]
    pub fn set_stream_policy(&self, stream: &str, policy: PeerPolicy) -> bool {
        (self.shared.has_relay() || policy != PeerPolicy::RelayOnly)
            && self.shared.switch_stream(stream, |switches| switches.policy = policy)
    }

    /// Runs until `stop`; then tells the viewers to come back, gives them the time that the settings say, and closes
    /// their connections.
    pub async fn run(&self, stop: CancellationToken) {
        let shared = &self.shared;
        let (learn, mut learned) = mpsc::unbounded_channel();
        let relay = shared.relay.lock().take().map(|sockets| {
            let (config, secret) = (shared.config.clone(), shared.own_ice.turn_secret.expose().to_owned());
            let gate = Arc::clone(&shared.gate);
            tokio::spawn(relay::serve(sockets, config, secret, gate, learn, shared.clock))
        });
        let mut gauges = tokio::time::interval(GAUGES_INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(address) = learned.recv() => shared.learn_relay(address),
                _ = gauges.tick() => {
                    shared.close_recordings(Instant::now());
                    gauge!("tracker_viewers").set(shared.gate.viewers());
                    gauge!("tracker_announce_clients").set(shared.gate.announcing());
                    gauge!("tracker_swarms").set(u32::try_from(shared.streams.len()).unwrap_or(u32::MAX));
                }
            }
        }
        shared.gate.close();
        let viewers = shared.gate.viewers();
        if viewers > 0 {
            info!(viewers, "viewers are told to come back");
            let until = Instant::now() + Duration::from_millis(shared.config.drain_ms.into());
            while shared.gate.viewers() > 0 && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        if let Some(relay) = relay {
            relay.abort();
        }
        shared.stop.cancel();
        // Closing takes as long as the slowest socket is allowed to stall.
        let until = Instant::now() + Duration::from_millis(shared.config.write_stall_max_ms.into());
        while shared.gate.connections() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Shared {
    fn start_room(&self, name: &str, epoch: &[u8; 16], switches: Switches) -> Room {
        let id = self.secret.swarm_id(name, epoch, switches.generation);
        let mut settings = self.config.swarm_settings();
        settings.relays = self.relays.lock().clone();
        settings.relay_only = switches.policy == PeerPolicy::RelayOnly;
        let seed = rand::random();
        let swarm = Swarm::new(id, self.secret.clone(), seed, settings, plan::Settings::default());
        let life = Life {
            draining: self.gate.closing(),
            reconnect_within_ms: self.config.reconnect_within_ms,
            stop: self.stop.clone(),
        };
        let room = Room::start(swarm, self.clock, life);
        room.tell(Control::Switch(self.switch(switches)));
        room
    }

    /// What counts of a stream's switches and the switch for all.
    fn switch(&self, switches: Switches) -> Switch {
        match switches.policy {
            PeerPolicy::Off => Switch { percent: 0 },
            _ => Switch { percent: switches.percent.min(self.percent.load(Ordering::Relaxed)) },
        }
    }

    /// Gives a stream of a new generation its swarm: everybody has to join anew, old ids and places are worth nothing.
    fn renew(&self, name: &str, stream: &mut Stream) {
        let room = self.start_room(name, &stream.epoch, stream.switches);
        std::mem::replace(&mut stream.room, room).tell(Control::Stop);
    }

    /// The room of a live stream or a recording, and its switches. One that is gone because of a bug is replaced: its viewers
    /// come back by themselves.
    fn room(&self, name: &str) -> Option<(Room, Switches)> {
        {
            let stream = self.streams.get(name)?;
            if !stream.room.is_gone() {
                return Some((stream.room.clone(), stream.switches));
            }
        }
        let mut stream = self.streams.get_mut(name)?;
        if stream.room.is_gone() {
            counter!("tracker_rooms_restarted_total").increment(1);
            warn!(stream = name, "the task of a swarm had ended and was started anew");
            stream.room = self.start_room(name, &stream.epoch, stream.switches);
        }
        Some((stream.room.clone(), stream.switches))
    }

    /// Whether there is such a recording.
    fn has_recording(&self, stream: &str, epoch: [u8; 16]) -> bool {
        self.recordings.get().is_some_and(|recordings| (recordings.0)(stream, epoch))
    }

    /// Of which stream the recording of this name is and its epoch, if it can be watched.
    fn recording<'a>(&self, name: &'a str) -> Option<(&'a str, [u8; 16])> {
        let (stream, hex) = name.split_once('/')?;
        let mut epoch = [0; 16];
        hex::decode_to_slice(hex, &mut epoch).ok()?;
        // Names are compared as they are: two spellings of one would be two swarms.
        (hex::encode(epoch) == hex && self.has_recording(stream, epoch)).then_some((stream, epoch))
    }

    /// Opens the swarm of a recording, if the name is one's and there is none yet. Only for those whom [`Self::check_token`]
    /// lets in: a recording's switches count for all WebTorrent clients, and a stranger must not bring that about.
    fn open_recording(&self, name: &str) {
        if self.streams.contains_key(name) {
            return;
        }
        let Some((stream, epoch)) = self.recording(name) else { return };
        self.streams.entry(name.to_owned()).or_insert_with(|| {
            let switches = self.remembered.of(stream);
            Stream { epoch, room: self.start_room(name, &epoch, switches), switches, left_at: None }
        });
        self.open_announces();
        info!(recording = name, "swarm opened");
    }

    /// Closes the swarms of recordings that nobody watches any more, and ends those of deleted ones: what was deleted must not
    /// be passed around for as long as somebody stays.
    fn close_recordings(&self, now: Instant) {
        let before = self.streams.len();
        self.streams.retain(|name, stream| {
            let recorded = stream_of(name);
            if recorded == name {
                return true;
            }
            if !self.has_recording(recorded, stream.epoch) {
                stream.room.tell(Control::Ended);
                info!(recording = name, "swarm closed, the recording was deleted");
                return false;
            }
            if stream.room.viewers() > 0 {
                stream.left_at = None;
                return true;
            }
            let is_kept = now - *stream.left_at.get_or_insert(now) < RECORDING_LINGER;
            if !is_kept {
                stream.room.tell(Control::Stop);
                info!(recording = name, "swarm closed");
            }
            is_kept
        });
        if self.streams.len() < before {
            self.open_announces();
        }
    }

    /// When those who asked for what is not there are to come back; none: never. A stream may go live at any time, but a
    /// recording that is not known has been deleted, unless the store is still being looked through: then it is asked for less
    /// and less often.
    fn unknown_retry_ms(&self, name: &str) -> Option<u32> {
        // The room of a recording that is there was closed in this moment.
        if stream_of(name) == name || self.recording(name).is_some() {
            return Some(later_ms());
        }
        let running_ms = self.clock.now_ms();
        let part_ms = u32::try_from(running_ms / 2).unwrap_or(u32::MAX);
        (running_ms < STOCK_MAX_MS).then(|| later_ms().saturating_add(part_ms))
    }

    /// The switches and the epoch that count for who joins: of a live stream, or of a recording, whether or not somebody
    /// watches it yet.
    fn terms(&self, name: &str) -> Option<(Switches, [u8; 16])> {
        let open = self.streams.get(name).map(|stream| (stream.switches, stream.epoch));
        open.or_else(|| self.recording(name).map(|(stream, epoch)| (self.remembered.of(stream), epoch)))
    }

    /// What a viewer's token allows; none for an open stream. Of what is not there the same is asked, so that the
    /// answer tells nobody which names exist, but no use of the token is counted.
    fn check_token(
        &self,
        name: &str,
        token: Option<&str>,
        resume: Option<&str>,
    ) -> Result<Option<Credential>, Refused> {
        // Who may watch a stream may watch its recording.
        let recorded = stream_of(name);
        let terms = self.terms(name);
        let is_private =
            terms.map_or_else(|| self.remembered.of(recorded), |(switches, _)| switches).is_private;
        let Some(tokens) = self.tokens.as_ref().filter(|_| is_private) else {
            return if is_private { Err(Refused::Missing) } else { Ok(None) };
        };
        let is_return = terms.is_some_and(|(switches, epoch)| {
            let id = self.secret.swarm_id(name, &epoch, switches.generation);
            resume.is_some_and(|resume| self.secret.resumed_peer(&id, resume).is_some())
        });
        tokens.check(token, recorded, terms.is_some() && !is_return, SystemTime::now()).map(Some)
    }

    /// Whether viewers are told a relay.
    fn has_relay(&self) -> bool {
        self.config.turn || !self.config.turn_urls.is_empty()
    }

    /// Changes a name's switches; whether a stream of this name is live.
    fn switch_stream(&self, name: &str, change: impl FnOnce(&mut Switches)) -> bool {
        // Held, so that a stream that starts meanwhile is either found here or finds what is remembered.
        let is_live = match self.streams.entry(name.to_owned()) {
            Entry::Occupied(mut entry) => {
                let stream = entry.get_mut();
                let is_renewed = stream.switches.change(change);
                self.remembered.set(name, stream.switches);
                if is_renewed {
                    self.renew(name, stream);
                } else {
                    stream.room.tell(Control::Switch(self.switch(stream.switches)));
                }
                true
            }
            Entry::Vacant(_place) => {
                let mut switches = self.remembered.of(name);
                switches.change(change);
                self.remembered.set(name, switches);
                false
            }
        };
        // Viewers of its recordings join anew, by what counts now: in a swarm of the same id, unless the generation is another.
        self.streams.retain(|other, stream| {
            let is_of = other != name && stream_of(other) == name;
            if is_of {
                stream.room.tell(Control::Stop);
            }
            !is_of
        });
        self.open_announces();
        is_live
    }

    /// Our own relay has given out this address. Swarms hear of it before the viewer's candidate comes, which has the way
    /// to the viewer and back before it.
    fn learn_relay(&self, address: IpAddr) {
        let learned = {
            let mut relays = self.relays.lock();
            relays.learn(address).then(|| relays.clone())
        };
        // Without the lock: a stream that starts has the streams' lock and asks for this one.
        if let Some(relays) = learned {
            self.announces.set_relays(&relays);
            self.tell_all(|| Control::Relays(relays.clone()));
        }
    }

    fn tell_all(&self, control: impl Fn() -> Control) {
        self.streams.iter().for_each(|stream| stream.room.tell(control()));
    }

    fn set_sharing(&self, percent: u8) {
        let all = percent.min(100);
        self.percent.store(all, Ordering::Relaxed);
        for stream in &self.streams {
            stream.room.tell(Control::Switch(self.switch(stream.switches)));
        }
        self.open_announces();
    }

    /// Says for how many WebTorrent clients their protocol is open. It knows neither streams nor tokens nor consent, so the
    /// strictest counts, of recordings whose swarms are open, too. Not to be called with a stream's lock held.
    fn open_announces(&self) {
        let is_open = |policy| matches!(policy, PeerPolicy::Direct | PeerPolicy::DirectThenRelay);
        let config = &self.config;
        let mut percent = self.percent.load(Ordering::Relaxed);
        if config.tokens_required || config.consent_required || !is_open(config.peer_policy) {
            percent = 0;
        }
        for stream in &self.streams {
            let switches = stream.switches;
            let allowed = if switches.is_private || !is_open(switches.policy) { 0 } else { switches.percent };
            percent = percent.min(allowed);
        }
        self.announces.set_percent(percent);
    }
}

/// The stream that a name is of: its own, or that of the recording.
fn stream_of(name: &str) -> &str {
    name.split_once('/').map_or(name, |(stream, _)| stream)
}

/// `GET /tracker` with an upgrade to WebSocket.
async fn join(State(shared): State<Arc<Shared>>, visitor: Visitor) -> Response {
    let Visitor { upgrade, address, place, host } = visitor;
    upgrade.on_upgrade(move |socket| socket::serve(socket, shared, address, place, host))
}

/// `GET /announce` with an upgrade to WebSocket.
async fn announce(State(shared): State<Arc<Shared>>, visitor: Visitor) -> Response {
    let Visitor { upgrade, address, place, .. } = visitor;
    let (announces, clock) = (Arc::clone(&shared.announces), shared.clock);
    upgrade
        // One announce carries up to ten offers.
        .max_message_size(ANNOUNCE_BYTES_MAX)
        .max_frame_size(ANNOUNCE_BYTES_MAX)
        .on_upgrade(move |socket| announces.serve(socket, clock, address, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_swarm_of_a_recording_goes_when_nobody_has_watched_for_a_minute() {
        let tracker = Tracker::new(Config::default()).unwrap();
        tracker.watch_recordings(|stream, epoch| stream == "demo" && epoch == [0xab; 16]);
        let (shared, name) = (&tracker.shared, format!("demo/{}", "ab".repeat(16)));
        for other in ["demo", "demo/", "else/x", &name.to_uppercase(), &format!("demo/{}", "cd".repeat(16))] {
            shared.open_recording(other);
            assert!(shared.streams.is_empty(), "{other}");
        }
        tracker.stream_started("demo", [1; 16]);
        shared.open_recording(&name);
        let now = Instant::now();
        shared.close_recordings(now);
        assert!(shared.streams.contains_key(&name));
        shared.close_recordings(now + RECORDING_LINGER);
        assert!(!shared.streams.contains_key(&name) && shared.streams.contains_key("demo"));
    }
}
