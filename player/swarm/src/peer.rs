//! The state machine of one viewer: its state, and where each input goes.
//!
//! The parts: `records` (what the origin vouches for), `blocks` (bytes that arrive, are stored and passed on),
//! `schedule` (what to pull and fetch when), `pulls` (of whom), `fetches` (from the origin), `messages` (what neighbors say),
//! `requests` (what the player wants), `upkeep` (what is done twice a second). Policy in words: `../README.md`.

mod blocks;
mod fetches;
mod messages;
mod pulls;
mod records;
mod requests;
mod schedule;
mod upkeep;

#[cfg(test)]
mod alone;
#[cfg(test)]
mod attacks;
#[cfg(test)]
mod behaviour;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod newcomers;
#[cfg(test)]
mod past;
#[cfg(test)]
mod store;
#[cfg(test)]
mod world;

use shoal_digest::{BlockDigest, PieceId};

use crate::{
    Config, Input, Output, Span, Stats, Time,
    bits::Bits,
    glut::Glut,
    input::{CheckId, HoldId, PeerId},
    map::Map,
    neighbor::Neighbor,
    origin::Origin,
    output::DisconnectReason,
    piece::Piece,
    plan::Plans,
    player::{Player, Request},
    reports::Reports,
    rng::Rng,
    starvation::Starvation,
    upload::Uploads,
    wire::{Control, Flags},
};

/// At most this many peers are remembered as banned; the oldest numbers are forgotten, which costs one bad block each.
const BANNED_MAX: usize = 256;

/// Why the core wants to be woken, for logs and the simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// An upload may be sent.
    Upload,
    /// A piece's blocks are late, or a deadline is near.
    Piece,
    /// Stored blocks are to be announced.
    Announce,
    /// A request has waited for its record.
    Request,
    /// Without a tracker: the next record can be expected.
    Record,
    /// Neighbors, rates and limits are to be looked after.
    Upkeep,
}

/// Checks that tests switch off to show what they prevent.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unsafe {
    pub(crate) no_digests: bool,
    pub(crate) no_signatures: bool,
    pub(crate) no_epoch: bool,
    pub(crate) no_holding: bool,
    pub(crate) no_pull_timeout: bool,
    pub(crate) no_fair_answers: bool,
    pub(crate) no_strikes: bool,
    pub(crate) no_stuck_limit: bool,
    pub(crate) no_talk_limit: bool,
    pub(crate) no_record_limit: bool,
    pub(crate) any_push_counts: bool,
}

/// A record whose signature the driver is checking.
#[derive(Clone, Debug)]
struct Unchecked {
    check: CheckId,
    bytes: Vec<u8>,
    from: Option<PeerId>,
}

/// A block whose record is not known yet.
#[derive(Clone, Copy, Debug)]
struct Held {
    peer: PeerId,
    piece: PieceId,
    block: u16,
    length: u32,
    digest: BlockDigest,
    is_answer: bool,
    hops: u8,
    since: Time,
}

/// A piece that the driver loaded itself, before its record came.
#[derive(Clone, Debug)]
struct Loaded {
    length: u32,
    digests: Vec<BlockDigest>,
    since: Time,
}

/// A record that nobody will send by itself, because there is no tracker.
#[derive(Clone, Copy, Debug)]
struct Hunt {
    piece: PieceId,
    /// When to ask for it.
    at: Time,
    /// How long to wait after the next refusal.
    wait: Span,
}

/// The swarm core of one viewer.
#[derive(Debug)]
pub struct Peer {
    config: Config,
    rng: Rng,
    now: Time,
    #[cfg(test)]
    pub(crate) unsafe_mode: Unsafe,

    me: PeerId,
    has_tracker: bool,
    /// The operator's switch, the viewer's switch, and what the network allows.
    is_sharing_on: bool,
    does_share: bool,
    is_metered: bool,
    upload_ratio_percent: u64,
    neighbors_max: usize,

    playing: Vec<u8>,
    player: Player,
    requests: Vec<Request>,
    /// What the player was told to load itself: to fetch that as well would be a second copy for nobody.
    plain_loads: Vec<Request>,

    pieces: Map<PieceId, Piece>,
    /// The incomplete pieces that are being obtained, and when each is to be looked at next.
    active: Vec<(PieceId, Time)>,
    store_bytes: u64,
    unchecked: Vec<Unchecked>,
    next_check: CheckId,
    held: Map<HoldId, Held>,
    next_hold: HoldId,
    loaded: Map<PieceId, Loaded>,
    /// Without a tracker: the next record of each rendition.
    hunts: Map<u8, Hunt>,
    /// Bits per second of each rendition, from its records.
    rates: Map<u8, u64>,
    newest_end_ms: u64,

    neighbors: Map<PeerId, Neighbor>,
    banned: Vec<PeerId>,
    plans: Plans,
    flags: Flags,
    /// The upload rate that neighbors were told, in kbit/s.
    told_kbps: u64,
    next_nonce: u32,
    /// Blocks stored since the last announcement.
    fresh: Vec<(PieceId, Bits)>,
    announce_at: Time,

    origin: Origin,
    /// After an outage: when the next piece of a rendition can be expected to leave the origin.
    catching_up: Map<u8, Time>,
    uploads: Uploads,
    shed_at: Time,

    upkeep_at: Time,
    /// When there was last a neighbor, or when everything began.
    company_at: Time,
    starvation: Starvation,
    glut: Glut,
    reports: Reports,

    outputs: Vec<Output>,
    /// Those of them that the driver is taking now, before all others; the next is the last.
    polled: Vec<Output>,
    stats: Stats,
    has_begun: bool,
    #[cfg(any(test, feature = "log"))]
    recorder: Option<crate::replay::Recorder>,
}

impl Peer {
    /// A viewer that knows nothing yet.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        let upload_ratio_percent = config.upload_ratio_percent;
        let neighbors_max = config.neighbors_max;
        let uploads = match config.uplink_granted_bps {
            Some(_) => Uploads::unmeasured(),
            None => Uploads::new(config.upload_burst),
        };
        Self {
            config,
            rng: Rng::new(seed),
            now: Time::ZERO,
            #[cfg(test)]
            unsafe_mode: Unsafe::default(),
            me: 0,
            has_tracker: false,
            is_sharing_on: true,
            does_share: true,
            is_metered: false,
            upload_ratio_percent,
            neighbors_max,
            playing: Vec::new(),
            player: Player::default(),
            requests: Vec::new(),
            plain_loads: Vec::new(),
            pieces: Map::new(),
            active: Vec::new(),
            store_bytes: 0,
            unchecked: Vec::new(),
            next_check: 0,
            held: Map::new(),
            next_hold: 0,
            loaded: Map::new(),
            hunts: Map::new(),
            rates: Map::new(),
            newest_end_ms: 0,
            neighbors: Map::new(),
            banned: Vec::new(),
            plans: Plans::new(),
            flags: Flags::default(),
            told_kbps: 0,
            next_nonce: 0,
            fresh: Vec::new(),
            announce_at: Time::NEVER,
            origin: Origin::new(),
            catching_up: Map::new(),
            uploads,
            shed_at: Time::ZERO,
            upkeep_at: Time::ZERO,
            company_at: Time::ZERO,
            starvation: Starvation::new(),
            glut: Glut::default(),
            reports: Reports::new(),
            outputs: Vec::new(),
            polled: Vec::new(),
            stats: Stats::default(),
            has_begun: false,
            #[cfg(any(test, feature = "log"))]
            recorder: None,
        }
    }

    /// Takes in what happened at `now`. Times must not go backwards; where they do, the core acts as if no time had
    /// passed.
    pub fn handle_input(&mut self, now: Time, input: Input<'_>) {
        let now = now.max(self.now);
        self.now = now;
        #[cfg(any(test, feature = "log"))]
        if let Some(recorder) = &mut self.recorder {
            recorder.add(now, &input);
        }
        self.dispatch(input);
        self.run_due();
        self.pump_uploads();
        self.has_begun = true;
    }

    fn dispatch(&mut self, input: Input<'_>) {
        match input {
            Input::Wake => {}
            Input::Welcome { peer, neighbors_max, upload_ratio_percent, report_interval } => {
                self.me = peer;
                self.has_tracker = true;
                self.hunts = Map::new();
                self.neighbors_max = self.config.neighbors_max.min(usize::from(neighbors_max));
                let ratio = u64::from(upload_ratio_percent);
                self.upload_ratio_percent = self.config.upload_ratio_percent.min(ratio);
                self.reports.start(self.now, report_interval);
                self.update_rate();
            }
            Input::TrackerLost => {
                self.has_tracker = false;
                self.reports.stop();
                self.update_flags();
                self.begin_hunts();
                self.check_requests();
                self.wake_pieces();
            }
            Input::Record { record } => self.accept_record(record, None),
            Input::RecordBytes { bytes } => self.accept_record_bytes(bytes, None),
            Input::RecordChecked { check, is_signed } => self.accept_check(check, is_signed),
            Input::RecordFailed { piece } => self.record_failed(piece),
            Input::Plan { rendition, stripes, places } => self.accept_plan(rendition, stripes, places),
            Input::Sharing { on } => {
                self.is_sharing_on = on;
                if !on {
                    self.part_from_all(DisconnectReason::SharingOff);
                }
                self.update_rate();
            }
            Input::NeighborConnected { peer, rtt } => self.add_neighbor(peer, rtt),
            Input::NeighborLost { peer } => self.forget_neighbor(peer),
            Input::Message { peer, bytes } => self.accept_message(peer, bytes),
            Input::Block { peer, header, length, digest } => self.accept_block(peer, header, length, digest),
            Input::SendQueue { peer, buffered } => self.accept_send_queue(peer, buffered),
            Input::FetchBlock { fetch, block, length, digest } => {
                self.accept_fetched_block(fetch, block, length, digest);
            }
            Input::FetchFinished { fetch } => self.end_fetch(fetch, None),
            Input::FetchFailed { fetch, status } => self.end_fetch(fetch, Some(status)),
            Input::Loaded { piece, length, digests, took } => {
                self.accept_loaded(piece, length, digests, took)
            }
            Input::Playing { renditions } => {
                self.playing.clear();
                self.playing.extend_from_slice(renditions);
                // What is no longer played should not come any more, and what is needs a plan.
                self.reports.soon();
                self.update_rate();
                self.wake_pieces();
            }
            Input::Playhead { position_ms, buffered_until_ms, rate_percent, is_stalled } => {
                let stalled =
                    self.player.update(self.now, position_ms, buffered_until_ms, rate_percent, is_stalled);
                self.stats.rebuffer_ms += stalled.as_ms();
                self.update_rate();
                self.hurry_requests();
                self.wake_pieces();
            }
            Input::Want { request, target, deadline } => self.accept_want(request, target, deadline),
            Input::Unwant { request } => self.drop_request(request),
            Input::Share { on } => {
                self.does_share = on;
                self.update_rate();
            }
            Input::Metered { on } => {
                self.is_metered = on;
                self.update_rate();
            }
            Input::Leave => self.part_from_all(DisconnectReason::Left),
        }
    }

    /// The next thing to do, or nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.polled.is_empty() {
            // Two vectors, not a queue of the library, which browsers would download for this alone.
            std::mem::swap(&mut self.polled, &mut self.outputs);
            self.polled.reverse();
        }
        self.polled.pop()
    }

    /// When to hand in [`Input::Wake`] if nothing happens before, and what for. Nothing before the first input.
    #[must_use]
    pub fn next_deadline(&self) -> Option<(Time, Reason)> {
        if self.has_begun { self.find_deadline() } else { None }
    }

    /// Changes the piece store's limit, for devices with little memory.
    pub fn set_store_bytes_max(&mut self, bytes: u64) {
        self.config.store_bytes_max = bytes;
    }

    /// Begins to record all inputs, so that they can be replayed: see [`replay`](crate::replay). To be called before the
    /// first input.
    #[cfg(any(test, feature = "log"))]
    pub fn start_log(&mut self) {
        self.recorder = Some(crate::replay::Recorder::new(&self.config, self.rng.state()));
    }

    /// What was recorded since the last call, or since [`Peer::start_log`]; recording goes on. One after the other they are the
    /// log.
    #[cfg(any(test, feature = "log"))]
    pub fn take_log(&mut self) -> Vec<u8> {
        self.recorder.as_mut().map(crate::replay::Recorder::take_bytes).unwrap_or_default()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let clamp = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        // Copied whole: field by field takes more code.
        let mut stats = self.stats;
        stats.neighbors = clamp(self.neighbors.len() as u64);
        stats.store_bytes = self.store_bytes;
        stats.uplink_bps = self.uploads.uplink_bps();
        stats.upload_rate_bps = self.uploads.rate_bps();
        stats.origin_p95_ms = clamp(self.origin.p95().as_ms());
        stats.behind_ms = clamp(self.behind_ms());
        stats.buffer_ms = clamp(self.player.buffer_ms(self.now));
        stats
    }

    /// The pieces of a segment with their lengths, in order, once the records of all its parts are known: where to cut a
    /// segment that the driver loaded itself.
    #[must_use]
    pub fn segment_parts(&self, rendition: u8, msn: u64) -> Option<Vec<(PieceId, u32)>> {
        let mut parts = Vec::new();
        for part in 0..=u16::MAX {
            let id = PieceId { rendition, msn, part };
            let record = self.pieces.get(&id)?.record()?;
            parts.push((id, record.length));
            if record.is_last_in_segment {
                return Some(parts);
            }
        }
        None
    }

    /// Does what has become due.
    fn run_due(&mut self) {
        if self.upkeep_at <= self.now {
            self.upkeep();
        }
        // A check may wake other pieces; those are looked at in the same round, each at most once more than there are
        // pieces, so that nothing can spin.
        for _ in 0..=self.active.len() {
            let Some(at) = self.active.iter().position(|(_, next)| *next <= self.now) else { break };
            self.check_piece(at);
        }
        if self.requests.iter().any(|request| request.give_up <= self.now) {
            self.check_requests();
        }
        if self.hunts.values().any(|hunt| hunt.at <= self.now) {
            self.hunt();
        }
        if self.announce_at <= self.now {
            self.announce();
        }
    }

    fn find_deadline(&self) -> Option<(Time, Reason)> {
        // Never at once again: whatever is due now was done, or waits for an input.
        let soonest = self.now + Span::from_us(1);
        let mut next = (Time::NEVER, Reason::Upkeep);
        let mut consider = |at: Time, reason| next = next.min((at.max(soonest), reason));
        consider(self.announce_at, Reason::Announce);
        consider(self.upkeep_at, Reason::Upkeep);
        self.active.iter().for_each(|(_, next)| consider(*next, Reason::Piece));
        self.requests.iter().for_each(|request| consider(request.give_up, Reason::Request));
        self.hunts.values().for_each(|hunt| consider(hunt.at, Reason::Record));
        if let Some(at) = self.uploads.next_at(|peer| self.is_channel_open(peer)) {
            consider(at, Reason::Upload);
        }
        (next.0 < Time::NEVER).then_some(next)
    }

    fn send(&mut self, peer: PeerId, message: &Control<'_>) {
        self.outputs.push(Output::SendControl { peer, bytes: message.to_bytes() });
    }

    fn behind_ms(&self) -> u64 {
        if !self.player.has_started {
            return 0;
        }
        self.newest_end_ms.saturating_sub(self.player.position_ms(self.now))
    }

    /// Says something to all neighbors that want to hear it.
    fn send_to_all(&mut self, message: &Control<'_>, wants: &dyn Fn(PeerId, &Neighbor) -> bool) {
        for peer in self.neighbors.keys_where(wants) {
            self.send(peer, message);
        }
    }

    /// Whether a rendition is being played.
    // On bytes `contains` is a search by words: half a kilobyte that browsers would download to look through two numbers.
    #[allow(clippy::manual_contains)]
    fn plays(&self, rendition: u8) -> bool {
        self.playing.iter().any(|played| *played == rendition)
    }

    /// Whether anything may be uploaded at all.
    fn may_upload(&self) -> bool {
        self.is_sharing_on && self.does_share && !self.is_metered
    }

    /// A number among neighbors for a peer that no tracker gave one.
    #[cfg(test)]
    pub(crate) fn set_id_for_test(&mut self, id: PeerId) {
        self.me = id;
    }

    /// Every queue keeps its limit. Panics where one does not: for tests and the simulator.
    #[cfg(any(test, feature = "checks"))]
    pub fn check_limits(&self) {
        assert!(self.pieces.len() <= self.config.pieces_max);
        assert!(self.neighbors.len() <= self.neighbors_max);
        for (neighbor, _) in self.neighbors.iter() {
            let from = Some(*neighbor);
            assert!(
                self.unchecked.iter().filter(|waiting| waiting.from == from).count() <= records::CHECKS_MAX
            );
        }
        assert!(self.uploads.len() <= self.config.upload_queue_max);
        assert!(self.held.len() <= self.config.held_max);
        assert!(self.origin.fetches.len() <= self.config.fetches_max);
        assert!(self.active.len() <= self.pieces.len());
        assert!(self.requests.len() <= 64);
        let asked: usize = self.neighbors.values().map(|neighbor| usize::from(neighbor.asked)).sum();
        let pulls = self.pieces.values().flat_map(|piece| &piece.blocks).filter(|block| block.pull.is_some());
        assert_eq!(asked, pulls.count(), "each open question is counted once");
        let queued: usize =
            self.neighbors.values().map(|neighbor| usize::from(neighbor.answers_queued)).sum();
        assert_eq!(queued, self.uploads.answers(), "each waiting answer is counted once");
    }
}
