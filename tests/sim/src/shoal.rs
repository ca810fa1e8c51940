//! Our own policy: real swarm cores and the real planner, driven in virtual time.
//!
//! This is the driver that a browser is for one core, for all of them: it carries out their outputs on the simulated
//! network and origin, keeps books of what each viewer holds, and stops the run if an invariant breaks. The viewer's
//! side is in `viewer.rs`, the tracker's in `tracker.rs`.

use shoal_swarm::{Input, Output, PeerId, PieceId, Place, RequestId, Span, Target, Time};
use shoal_tracker::plan;

use crate::measure::{Figures, Measure, bound};
use crate::media::{GARBAGE, Stream, block_digest};
use crate::network::Network;
use crate::origin::Origin;
use crate::people::{Visit, choose};
use crate::player::Player;
use crate::queue::Queue;
use crate::random::Random;
use crate::scenario::Scenario;
use crate::tracker::Tracker;
use crate::viewer::{Fetch, Link, Viewer};

/// A connection is noticed to be dead after this time without an answer.
const DEAD_LINK_US: u64 = 6_000_000;
/// The tracker notices a viewer that went silent without closing its socket.
const DEAD_SOCKET_US: u64 = 10_000_000;
/// Of those who leave without goodbye, this share closes a tab, which closes the socket to the tracker; the others lose
/// their network.
const TAB_CLOSED: f64 = 0.8;
/// Header bytes of a request and an answer do not count as media; they take up the line all the same.
const HTTP_HEAD_BYTES: u64 = 400;

/// What happens in virtual time. Viewers by their index in the list of visits.
#[derive(Debug)]
pub(crate) enum Event {
    Join(u32),
    Opened(u32),
    Leave(u32),
    Publish,
    Listed { viewer: u32, number: u32 },
    Wake(u32),
    Arrive { to: u32, from: u32, message: Message },
    Deliver { to: u32, from: u32, message: Message },
    Sent { viewer: u32, neighbor: u32, bytes: u32 },
    FetchBlock { viewer: u32, fetch: u32, block: u16, left_us: u64 },
    FetchEnd { viewer: u32, fetch: u32 },
    Loaded { viewer: u32, request: RequestId, rendition: u8, number: u32, began_us: u64, left_us: u64 },
    RecordLoaded { viewer: u32, rendition: u8, number: u32 },
    Append { viewer: u32, rendition: u8, number: u32 },
    Second(u32),
    Switch(u32),
    LinkUp { a: u32, b: u32 },
    LinkFailed { a: u32, b: u32 },
    LinkDown { viewer: u32, neighbor: u32, tells: bool },
    ToTracker { from: u32, message: ToTracker },
    FromTracker { to: u32, message: FromTracker },
    TrackerTick,
}

#[derive(Debug)]
pub(crate) enum Message {
    Block { header: [u8; 16], rendition: u8, number: u32, block: u16, is_bad: bool },
    Control(Box<[u8]>),
}

#[derive(Debug)]
pub(crate) enum ToTracker {
    Join { shares: bool },
    Gone,
    Connected { peer: u32, rtt_ms: u32 },
    Lost { peer: u32 },
    Report { uplink_kbps: u32, renditions: Vec<u8> },
    Accuse { peer: u32 },
}

#[derive(Debug)]
pub(crate) enum FromTracker {
    Welcome,
    Published { number: u32 },
    Plan { rendition: u8, stripes: u8, places: Vec<shoal_tracker_protocol::Place> },
    Introduce { peer: u32, offers: bool },
    Part { peer: u32 },
}

/// What can be varied for ablations and controls.
#[derive(Clone, Copy, Debug)]
pub struct Knobs {
    /// Blocks are pushed to children.
    pub push: bool,
    /// Drivers compute digests; off only to show that the invariant about bad bytes can fail.
    pub hash: bool,
    /// Settings of the planner.
    pub plan: plan::Settings,
    /// Without tracker from the start.
    pub tracker: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self { push: true, hash: true, plan: plan::Settings::default(), tracker: true }
    }
}

/// The peer id of a viewer: any one-to-one map that leaves ids without order.
#[must_use]
pub(crate) fn peer_id(viewer: u32) -> PeerId {
    (viewer + 1).wrapping_mul(0x9e37_79b1)
}

/// The viewer of a peer id.
pub(crate) fn viewer_of(peer: PeerId) -> u32 {
    // The inverse of the factor above modulo 2^32.
    peer.wrapping_mul(0x0e8b_2f51).wrapping_sub(1)
}

/// What an input brought along, for `Store` and `Hold` that may follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brought {
    rendition: u8,
    number: u32,
    block: u16,
    is_bad: bool,
}

/// A run of our policy.
pub(crate) struct World<'a> {
    scenario: &'a Scenario,
    visits: &'a [Visit],
    knobs: Knobs,
    queue: Queue<Event>,
    now_us: u64,
    end_us: u64,
    network: Network,
    origin: Origin,
    stream: Stream,
    tracker: Tracker,
    viewers: Vec<Option<Box<Viewer>>>,
    random: Random,
    measure: Measure,
    progress: &'a mut dyn FnMut(f64, &str),
    tally: Tally,
}

/// Sums of the cores' own counters, for people.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(pub std::collections::BTreeMap<&'static str, u64>);

impl std::fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("now_us", &self.now_us).field("events", &self.measure.events).finish()
    }
}

impl<'a> World<'a> {
    /// A world before its first event. `progress` is told now and then how far the run is.
    pub(crate) fn new(
        scenario: &'a Scenario,
        visits: &'a [Visit],
        viewers: usize,
        seed: u64,
        knobs: Knobs,
        progress: &'a mut dyn FnMut(f64, &str),
    ) -> Self {
        let root = Random::new(seed);
        let end_us = (scenario.seconds * 1e6) as u64;
        let mut stream = Stream::new(scenario.media.clone(), root.fork(10));
        while stream.published_us(stream.next_number()) == 0 {
            stream.publish();
        }
        let mut queue = Queue::default();
        for (index, visit) in (0_u32..).zip(visits) {
            queue.push(visit.join_us, Event::Join(index));
        }
        queue.push(stream.published_us(stream.next_number()), Event::Publish);
        queue.push(0, Event::TrackerTick);
        let mut tracker = Tracker::new(knobs.plan, seed, visits.len());
        for rendition in 0..stream.renditions() {
            let number = stream.next_number() - 1;
            let rendition = rendition as u8;
            let rate_kbps = scenario.media.rates_kbps[usize::from(rendition)];
            let mean_bytes = u64::from(rate_kbps) * u64::from(scenario.media.piece_ms) / 8;
            let blocks = mean_bytes.div_ceil(u64::from(shoal_swarm::BLOCK_BYTES)) as u32;
            tracker.planner.set_rendition(0, rendition, rate_kbps, blocks);
            let _ = number;
        }
        let from_us = (scenario.measure_from_s * 1e6) as u64;
        Self {
            scenario,
            visits,
            knobs,
            queue,
            now_us: 0,
            end_us,
            network: Network::new(scenario, visits, root.fork(11)),
            origin: Origin::new(scenario, viewers, root.fork(12)),
            stream,
            tracker,
            viewers: visits.iter().map(|_| None).collect(),
            random: root.fork(13),
            measure: Measure { from_us, to_us: end_us, ..Measure::default() },
            progress,
            tally: Tally::default(),
        }
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> (Figures, Tally) {
        let mut next_progress = 0;
        while let Some((at_us, event)) = self.queue.pop() {
            if at_us >= self.end_us {
                break;
            }
            self.now_us = at_us;
            self.measure.events += 1;
            if at_us >= next_progress {
                next_progress += 1_000_000;
                let (from, to) = (at_us.saturating_sub(5_000_000), at_us);
                let used: u64 = self.measure.used_by_second.iter().rev().take(5).sum();
                let note = format!(
                    "{} viewers, {} events, last 5 s offload {:.3}",
                    self.tracker.planner.viewer_count(),
                    self.measure.events,
                    1.0 - self.origin.sent(from, to) as f64 / used.max(1) as f64
                );
                (self.progress)(at_us as f64 / self.end_us as f64, &note);
            }
            self.handle(event);
        }
        self.now_us = self.end_us;
        for viewer in 0..self.viewers.len() as u32 {
            self.close_books(viewer);
        }
        let mut figures = self.measure.figures(&self.origin, bound(self.scenario, self.visits));
        if self.scenario.faults.at_s > 0.0 {
            let faults = &self.scenario.faults;
            let at_s = faults.at_s + faults.origin_stall_s;
            figures.recovery_s = Some(self.measure.recovery_s(&self.origin, at_s));
        }
        self.tally.0.insert("events", self.measure.events);
        self.tally.0.insert("control messages", self.measure.control_messages);
        self.tally.0.insert("control bytes", self.measure.control_bytes);
        let summary = self.tracker.planner.summary(0);
        for (name, value) in [
            ("plan: seats", summary.seats),
            ("plan: roots", summary.roots),
            ("plan: unfed", summary.unfed),
            ("plan: slots", summary.slots),
            ("plan: depth", summary.depth_max),
            ("plan: latest expected ms", summary.expected_max_ms),
        ] {
            self.tally.0.insert(name, u64::from(value));
        }
        (figures, self.tally)
    }

    fn time(&self) -> Time {
        Time::from_us(self.now_us)
    }

    fn is_tracker_up(&self) -> bool {
        let faults = &self.scenario.faults;
        let from = (faults.at_s * 1e6) as u64;
        let to = from + (faults.tracker_lost_s * 1e6) as u64;
        self.knobs.tracker && !(from..to).contains(&self.now_us)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Join(viewer) => self.join(viewer),
            Event::Opened(viewer) => self.opened(viewer),
            Event::Leave(viewer) => self.leave(viewer),
            Event::Publish => self.publish(),
            Event::Listed { viewer, number } => self.listed(viewer, number),
            Event::Wake(viewer) => {
                if let Some(state) = &mut self.viewers[viewer as usize]
                    && state.wake_us == self.now_us
                {
                    state.wake_us = u64::MAX;
                    self.feed(viewer, &Input::Wake, None);
                }
            }
            Event::Arrive { to, from, message } => {
                let bytes = message_bytes(&message, &self.stream);
                let there_us = self.network.receive(self.now_us, to as usize, bytes);
                // Below half a millisecond the line was as good as idle: not worth another event.
                if there_us > self.now_us + 500 {
                    self.queue.push(there_us, Event::Deliver { to, from, message });
                } else {
                    self.deliver(to, from, &message);
                }
            }
            Event::Deliver { to, from, message } => self.deliver(to, from, &message),
            Event::Sent { viewer, neighbor, bytes } => {
                if let Some(state) = &mut self.viewers[viewer as usize]
                    && let Some(link) = state.link_mut(neighbor)
                {
                    link.buffered = link.buffered.saturating_sub(bytes);
                    if link.buffered == 0 {
                        self.feed(viewer, &Input::SendQueue { peer: peer_id(neighbor), buffered: 0 }, None);
                    }
                }
            }
            Event::FetchBlock { viewer, fetch, block, left_us } => {
                self.fetch_block(viewer, fetch, block, left_us)
            }
            Event::FetchEnd { viewer, fetch } => {
                let state = self.viewers[viewer as usize].as_mut();
                if state.is_some_and(|state| state.fetches.remove(&fetch).is_some()) {
                    self.feed(viewer, &Input::FetchFinished { fetch }, None);
                }
            }
            Event::Loaded { viewer, request, rendition, number, began_us, left_us } => {
                self.loaded(viewer, request, rendition, number, began_us, left_us);
            }
            Event::RecordLoaded { viewer, rendition, number } => {
                let record = self.stream.piece(rendition, u64::from(number)).record.clone();
                self.feed(viewer, &Input::Record { record: &record }, None);
            }
            Event::Append { viewer, rendition, number } => self.append(viewer, rendition, number),
            Event::Second(viewer) => self.second(viewer),
            Event::Switch(viewer) => self.switch(viewer),
            Event::LinkUp { a, b } => self.link_up(a, b),
            Event::LinkFailed { a, b } => {
                for (viewer, peer) in [(a, b), (b, a)] {
                    self.tell_tracker(viewer, ToTracker::Lost { peer });
                }
            }
            Event::LinkDown { viewer, neighbor, tells } => self.link_down(viewer, neighbor, tells),
            Event::ToTracker { from, message } => {
                if self.is_tracker_up() {
                    self.tracker_hears(from, message);
                }
            }
            Event::FromTracker { to, message } => self.hear_tracker(to, message),
            Event::TrackerTick => self.tracker_tick(),
        }
    }

    // ---- joining, playing, leaving -----------------------------------------------------------------------------

    fn join(&mut self, viewer: u32) {
        let visit = &self.visits[viewer as usize];
        let player = Player::new(&self.scenario.play, &self.stream, self.now_us);
        let seed = self.random.fork(u64::from(viewer)).next();
        let mut state = Viewer::new(visit, player, &self.stream, seed, self.knobs.push);
        state.seen_stall_us = 0;
        self.viewers[viewer as usize] = Some(Box::new(state));
        let rtt_us = self.network.server_rtt_us(viewer as usize);
        // The page, its scripts and the multivariant playlist are there; the media playlist takes one more exchange.
        let open_us = self.now_us + 2 * rtt_us + self.random.below(10_000);
        self.queue.push(open_us, Event::Opened(viewer));
        // WebAssembly compiles and the socket opens meanwhile.
        let socket_us = self.now_us + 3 * rtt_us + 100_000;
        let join = Event::ToTracker { from: viewer, message: ToTracker::Join { shares: visit.shares } };
        self.queue.push(socket_us, join);
        if visit.leave_us < self.end_us {
            self.queue.push(visit.leave_us, Event::Leave(viewer));
        }
        self.feed(viewer, &Input::Share { on: visit.shares }, None);
    }

    fn opened(&mut self, viewer: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        state.player.open(self.now_us, &self.stream);
        let renditions = [state.rendition];
        let listed = self.stream.next_number();
        state.listed = listed;
        self.feed(viewer, &Input::Playing { renditions: &renditions }, None);
        self.playhead(viewer);
        self.want(viewer);
        self.queue.push(self.now_us + 1_000_000, Event::Second(viewer));
        if self.scenario.play.switch_every_s > 0.0 && self.stream.renditions() > 1 {
            self.plan_switch(viewer);
        }
    }

    fn plan_switch(&mut self, viewer: u32) {
        let wait = self.random.exponential(self.scenario.play.switch_every_s);
        self.queue.push(self.now_us + (wait * 1e6) as u64, Event::Switch(viewer));
    }

    fn switch(&mut self, viewer: u32) {
        let unit = self.random.unit();
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        // The next segment comes from the other rendition.
        state.next_rendition = choose(&self.scenario.play.shares, unit);
        self.plan_switch(viewer);
    }

    fn leave(&mut self, viewer: u32) {
        let visit = &self.visits[viewer as usize];
        self.close_books(viewer);
        let Some(state) = self.viewers[viewer as usize].take() else { return };
        let closes_tab = visit.says_goodbye || self.random.chance(TAB_CLOSED);
        let half_us = self.network.server_rtt_us(viewer as usize) / 2;
        let notice_us = if closes_tab { half_us } else { DEAD_SOCKET_US };
        self.queue.push(self.now_us + notice_us, Event::ToTracker { from: viewer, message: ToTracker::Gone });
        for link in &state.links {
            let wait_us = if visit.says_goodbye {
                self.network.rtt_us(viewer as usize, link.neighbor as usize) / 2
            } else {
                DEAD_LINK_US
            };
            let down = Event::LinkDown { viewer: link.neighbor, neighbor: viewer, tells: true };
            self.queue.push(self.now_us + wait_us, down);
        }
    }

    fn publish(&mut self) {
        let number = self.stream.publish();
        for rendition in 0..self.stream.renditions() as u8 {
            if self.measure.counts(self.now_us) {
                self.measure.media_bytes += u64::from(self.stream.piece(rendition, number).length);
            }
        }
        self.queue.push(self.stream.published_us(number + 1), Event::Publish);
        let is_up = self.is_tracker_up();
        for viewer in 0..self.viewers.len() {
            let Some(state) = &self.viewers[viewer] else { continue };
            let half_us = self.network.server_rtt_us(viewer) / 2;
            let index = viewer as u32;
            if is_up && state.is_welcome {
                let message = FromTracker::Published { number: number as u32 };
                let late_us = half_us + 1_000 + self.random.below(4_000);
                self.queue.push(self.now_us + late_us, Event::FromTracker { to: index, message });
            }
            if state.player.is_open() {
                // The blocking playlist reload is answered.
                let late_us = half_us + 3_000 + self.random.below(7_000);
                self.queue
                    .push(self.now_us + late_us, Event::Listed { viewer: index, number: number as u32 });
            }
        }
    }

    fn listed(&mut self, viewer: u32, number: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        state.listed = state.listed.max(u64::from(number) + 1);
        self.want(viewer);
    }

    /// Asks for the next piece if the player wants one and does not wait for another.
    fn want(&mut self, viewer: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        if state.wanted.is_some() || !state.player.is_open() || state.player.next >= state.listed {
            return;
        }
        let number = state.player.next;
        if state.next_rendition != state.rendition && number % self.stream.parts() == 0 {
            state.rendition = state.next_rendition;
            let renditions = [state.rendition];
            self.feed(viewer, &Input::Playing { renditions: &renditions }, None);
        }
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        state.request += 1;
        let request = state.request;
        state.wanted = Some((request, number));
        let piece = self.stream.piece(state.rendition, number).id;
        self.feed(viewer, &Input::Want { request, target: Target::Piece(piece), deadline: None }, None);
    }

    fn append(&mut self, viewer: u32, rendition: u8, number: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        if state.player.next != u64::from(number) {
            return;
        }
        let had_started = state.player.startup_us.is_some();
        let begins = state.player.append(self.now_us, u64::from(number));
        self.measure.used(self.now_us, u64::from(self.stream.piece(rendition, u64::from(number)).length));
        if let (false, Some(startup_us)) = (had_started, state.player.startup_us) {
            self.measure.startup_all.add(startup_us);
            if self.visits[viewer as usize].join_us >= self.measure.from_us {
                self.measure.startup.add(startup_us);
            }
        }
        if begins || !had_started {
            self.playhead(viewer);
        }
        self.want(viewer);
    }

    fn second(&mut self, viewer: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        let was_stalled = state.player.is_stalled();
        state.player.advance(self.now_us);
        if self.measure.counts(self.now_us) {
            if state.player.startup_us.is_some() {
                self.measure.latency.add(state.player.latency_us_at(self.now_us));
            }
            self.measure.stalled_us += state.player.stalled_us - state.seen_stall_us;
            self.measure.watched_us += state.player.played_us - state.seen_play_us;
            if state.player.stalled_us > state.seen_stall_us && !state.has_stalled {
                state.has_stalled = true;
                self.measure.stalled_viewers += 1;
            }
        }
        state.seen_stall_us = state.player.stalled_us;
        state.seen_play_us = state.player.played_us;
        let _ = was_stalled;
        if viewer < 4 && std::env::var_os("SIM_DEBUG").is_some() {
            let stats = state.peer.stats();
            eprintln!(
                "{:.1} v{viewer} up {} rate {} sent {} push {} pull {} seed {} dl {} drop {} shed {} nb {} real {} dead {:?}",
                self.now_us as f64 / 1e6,
                stats.uplink_bps / 1000,
                stats.upload_rate_bps / 1000,
                stats.sent_bytes,
                stats.pushed_blocks,
                stats.pulled_blocks,
                stats.seed_fetches,
                stats.deadline_fetches,
                stats.uploads_dropped,
                stats.shed,
                stats.neighbors,
                self.visits[viewer as usize].uplink_bps / 1000,
                state.peer.next_deadline()
            );
        }
        if state.player.jump(self.now_us, &self.stream)
            && let Some((request, _)) = state.wanted.take()
        {
            self.feed(viewer, &Input::Unwant { request }, None);
        }
        self.playhead(viewer);
        self.want(viewer);
        self.queue.push(self.now_us + 1_000_000, Event::Second(viewer));
    }

    fn playhead(&mut self, viewer: u32) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        state.player.advance(self.now_us);
        let input = Input::Playhead {
            position_ms: Stream::unix_ms(state.player.position_us()),
            buffered_until_ms: Stream::unix_ms(state.player.buffered_us()),
            rate_percent: state.player.rate_percent(),
            is_stalled: state.player.startup_us.is_none() || state.player.is_stalled(),
        };
        self.feed(viewer, &input, None);
    }

    // ---- the core's driver -------------------------------------------------------------------------------------

    /// Hands an input to a viewer's core and carries out what it answers.
    fn feed(&mut self, viewer: u32, input: &Input<'_>, brought: Option<Brought>) {
        let Some(mut state) = self.viewers[viewer as usize].take() else { return };
        let now = self.time();
        state.peer.handle_input(now, input.clone());
        self.drain(viewer, &mut state, brought);
        while let Some(neighbor) = state.touched.pop() {
            if let Some(link) = state.link_mut(neighbor) {
                link.is_touched = false;
                let buffered = link.buffered;
                state.peer.handle_input(now, Input::SendQueue { peer: peer_id(neighbor), buffered });
                self.drain(viewer, &mut state, None);
            }
        }
        while let Some((piece, length, took_us)) = state.loaded.pop() {
            let number = self.stream.number(piece).expect("only published pieces are loaded");
            let blocks = shoal_swarm::block_count(length);
            let digests: Vec<_> =
                (0..blocks).map(|block| block_digest(piece.rendition, number, block)).collect();
            let took = Span::from_us(took_us);
            state.peer.handle_input(now, Input::Loaded { piece, length, digests: &digests, took });
            self.drain(viewer, &mut state, None);
        }
        if let Some((at, _)) = state.peer.next_deadline() {
            let at_us = at.as_us().max(self.now_us);
            if at_us < state.wake_us {
                state.wake_us = at_us;
                self.queue.push(at_us, Event::Wake(viewer));
            }
        }
        self.viewers[viewer as usize] = Some(state);
    }

    fn drain(&mut self, viewer: u32, state: &mut Viewer, brought: Option<Brought>) {
        while let Some(output) = state.peer.poll_output() {
            self.carry_out(viewer, state, output, brought);
        }
    }

    fn carry_out(&mut self, viewer: u32, state: &mut Viewer, output: Output, brought: Option<Brought>) {
        match output {
            Output::SendBlock { peer, header, piece, block } => {
                self.send_block(viewer, state, peer, header, piece, block)
            }
            Output::SendControl { peer, bytes } => {
                let to = viewer_of(peer);
                if state.link_mut(to).is_none() {
                    return;
                }
                self.measure.control_messages += 1;
                self.measure.control_bytes += bytes.len() as u64;
                let (_, arrive_us) =
                    self.network.send(self.now_us, viewer as usize, to as usize, bytes.len() as u64);
                // The control channel keeps the order.
                let link = state.link_mut(to).expect("just seen");
                link.control_us = link.control_us.max(arrive_us);
                let message = Message::Control(bytes.into_boxed_slice());
                self.queue.push(link.control_us, Event::Arrive { to, from: viewer, message });
            }
            Output::Store { piece, block, held, .. } => {
                let what = match held {
                    Some(hold) => state.held.remove(&hold).expect("only what was held is stored from there"),
                    None => brought.expect("stores follow an input with bytes"),
                };
                let number = self.stream.number(piece).expect("stored pieces exist");
                assert_eq!(
                    (what.rendition, u64::from(what.number), what.block),
                    (piece.rendition, number, block)
                );
                assert!(
                    state.store.put(piece.rendition, number, block, what.is_bad),
                    "nothing is stored twice"
                );
                if state.store.is_complete(
                    piece.rendition,
                    number,
                    self.stream.piece(piece.rendition, number).length,
                ) && self.measure.counts(self.now_us)
                {
                    let age_us = self.now_us.saturating_sub(self.stream.published_us(number));
                    self.measure.arrival.add(age_us);
                }
            }
            Output::Hold { hold } => {
                state.held.insert(hold, brought.expect("holds follow an input with bytes"));
            }
            Output::DropHeld { hold } => {
                assert!(state.held.remove(&hold).is_some(), "only what is held is dropped");
            }
            Output::KeepLoaded { piece } => {
                let number = self.stream.number(piece).expect("kept pieces exist");
                let length = self.stream.piece(piece.rendition, number).length;
                state.store.put_all(piece.rendition, number, length);
            }
            Output::DropLoaded { .. } => {}
            Output::Evict { piece } => {
                let number = self.stream.number(piece).expect("evicted pieces exist");
                state.store.evict(piece.rendition, number);
            }
            Output::Fetch { fetch, piece, offset, length, .. } => {
                self.fetch(viewer, state, fetch, piece, offset, length);
            }
            Output::CancelFetch { fetch } => {
                if let Some(fetch) = state.fetches.get_mut(&fetch) {
                    fetch.cancelled_us.get_or_insert(self.now_us);
                }
            }
            Output::FetchRecord { piece } => {
                let Some(number) = self.stream.number(piece) else { return };
                let rtt_us = self.network.server_rtt_us(viewer as usize);
                let answer = self.origin.answer(self.now_us + rtt_us / 2, 0);
                let event = Event::RecordLoaded { viewer, rendition: piece.rendition, number: number as u32 };
                self.queue.push(answer.first_us + rtt_us / 2, event);
            }
            Output::Deliver { request, first, parts } => {
                assert_eq!(parts, 1, "whole segments are not asked for here");
                let number = self.stream.number(first).expect("delivered pieces exist");
                let length = self.stream.piece(first.rendition, number).length;
                assert!(
                    state.store.is_complete(first.rendition, number, length),
                    "{first:?} is delivered before it is complete"
                );
                self.measure.bad_bytes += state.store.bad_blocks(first.rendition, number) * 16_384;
                self.answer(viewer, state, request, first.rendition, number);
            }
            Output::Fallback { request, .. } => self.load(viewer, state, request),
            Output::Disconnect { peer, .. } => {
                let other = viewer_of(peer);
                if state.drop_link(other) {
                    let half_us = self.network.rtt_us(viewer as usize, other as usize) / 2;
                    let down = Event::LinkDown { viewer: other, neighbor: viewer, tells: false };
                    self.queue.push(self.now_us + half_us, down);
                    self.tell_tracker_as(viewer, state.is_welcome, ToTracker::Lost { peer: other });
                }
            }
            Output::Accuse { peer, .. } => {
                self.tell_tracker_as(viewer, state.is_welcome, ToTracker::Accuse { peer: viewer_of(peer) });
            }
            Output::Report(report) => {
                let message =
                    ToTracker::Report { uplink_kbps: report.uplink_kbps, renditions: report.renditions };
                self.tell_tracker_as(viewer, state.is_welcome, message);
            }
        }
    }

    /// A request of the player is answered: the piece goes into its buffer.
    fn answer(&mut self, viewer: u32, state: &mut Viewer, request: RequestId, rendition: u8, number: u64) {
        let Some((wanted, wanted_number)) = state.wanted else { return };
        assert_eq!((wanted, wanted_number), (request, number), "requests are answered once");
        state.wanted = None;
        // Appending takes a moment, and happens after the core has said all it had to say.
        let event = Event::Append { viewer, rendition, number: number as u32 };
        self.queue.push(self.now_us + 2_000, event);
    }

    fn send_block(
        &mut self,
        viewer: u32,
        state: &mut Viewer,
        peer: PeerId,
        header: [u8; 16],
        piece: PieceId,
        block: u16,
    ) {
        let number = self.stream.number(piece).expect("sent pieces exist");
        let held = state.store.block(piece.rendition, number, block);
        assert!(held.is_some(), "only stored blocks are sent: {piece:?} {block}");
        let length = self.stream.block_length(piece.rendition, number, u32::from(block));
        if held == Some(true) {
            self.measure.bad_bytes += u64::from(length);
        }
        let to = viewer_of(peer);
        let Some(link) = state.link_mut(to) else { return };
        link.buffered += length;
        if !link.is_touched {
            link.is_touched = true;
            state.touched.push(to);
        }
        let (sent_us, arrive_us) =
            self.network.send(self.now_us, viewer as usize, to as usize, u64::from(length));
        self.queue.push(sent_us, Event::Sent { viewer, neighbor: to, bytes: length });
        let message = Message::Block {
            header,
            rendition: piece.rendition,
            number: number as u32,
            block,
            is_bad: state.pollutes || held == Some(true),
        };
        self.queue.push(arrive_us, Event::Arrive { to, from: viewer, message });
    }

    fn deliver(&mut self, to: u32, from: u32, message: &Message) {
        let Some(state) = &mut self.viewers[to as usize] else { return };
        if state.link_mut(from).is_none() {
            return;
        }
        let peer = peer_id(from);
        match message {
            Message::Control(bytes) => self.feed(to, &Input::Message { peer, bytes }, None),
            Message::Block { header, rendition, number, block, is_bad } => {
                let true_digest = block_digest(*rendition, u64::from(*number), u32::from(*block));
                // A driver that does not hash takes the sender's word for it.
                let digest = if *is_bad && self.knobs.hash { GARBAGE } else { true_digest };
                let length = self.stream.block_length(*rendition, u64::from(*number), u32::from(*block));
                state.received_bytes += u64::from(length);
                if state.store.block(*rendition, u64::from(*number), *block).is_some() {
                    let is_answer = header[1] & 1 != 0;
                    let stripes = state.parents.len().max(1) as u8;
                    let id = self.stream.piece(*rendition, u64::from(*number)).id;
                    let stripe = shoal_swarm::stripe_of(id, u32::from(*block), stripes);
                    let parent = state.parents.get(usize::from(stripe)).copied().flatten();
                    let kind = match (is_answer, parent) {
                        (true, _) => "duplicate: answers",
                        (false, Some(parent)) if parent == from => "duplicate: pushed by the parent",
                        (false, Some(_)) => "duplicate: pushed by another",
                        (false, None) => "duplicate: pushed, without parent",
                    };
                    *self.tally.0.entry(kind).or_default() += 1;
                }
                let brought =
                    Brought { rendition: *rendition, number: *number, block: *block, is_bad: *is_bad };
                self.feed(to, &Input::Block { peer, header, length, digest }, Some(brought));
            }
        }
    }

    // ---- the origin --------------------------------------------------------------------------------------------

    fn fetch(
        &mut self,
        viewer: u32,
        state: &mut Viewer,
        fetch: u32,
        piece: PieceId,
        offset: u32,
        length: u32,
    ) {
        let number = self.stream.number(piece).expect("fetched pieces exist");
        let block_bytes = shoal_swarm::BLOCK_BYTES;
        assert!(offset.is_multiple_of(block_bytes) && length > 0, "ranges begin at a block");
        let rtt_us = self.network.server_rtt_us(viewer as usize);
        let answer = self.origin.answer(self.now_us + rtt_us / 2, u64::from(length));
        let rate_bps = answer.rate_bps.min(self.network.down_bps(viewer as usize));
        let blocks = offset / block_bytes..(offset + length).div_ceil(block_bytes);
        let mut left_us = answer.first_us;
        for block in blocks {
            let bytes = u64::from(self.stream.block_length(piece.rendition, number, block));
            left_us += (bytes + HTTP_HEAD_BYTES / 8) * 8_000_000 / rate_bps;
            let event = Event::FetchBlock { viewer, fetch, block: block as u16, left_us };
            self.queue.push(left_us + rtt_us / 2, event);
        }
        self.queue.push(left_us + rtt_us / 2 + 1, Event::FetchEnd { viewer, fetch });
        let known =
            state.fetches.insert(fetch, Fetch { rendition: piece.rendition, number, cancelled_us: None });
        assert!(known.is_none(), "fetch numbers are used once");
    }

    fn fetch_block(&mut self, viewer: u32, fetch: u32, block: u16, left_us: u64) {
        let half_us = self.network.server_rtt_us(viewer as usize) / 2;
        let state = self.viewers[viewer as usize].as_mut();
        let Some(Fetch { rendition, number, cancelled_us }) =
            state.and_then(|state| state.fetches.get(&fetch).cloned())
        else {
            return;
        };
        if cancelled_us.is_some_and(|cancelled_us| left_us > cancelled_us + half_us) {
            return;
        }
        let length = self.stream.block_length(rendition, number, u32::from(block));
        self.origin.count(left_us, u64::from(length));
        let state = self.viewers[viewer as usize].as_mut().expect("just seen");
        state.origin_bytes += u64::from(length);
        if cancelled_us.is_some() {
            state.cancelled_bytes += u64::from(length);
            return;
        }
        let digest = block_digest(rendition, number, u32::from(block));
        let brought = Brought { rendition, number: number as u32, block, is_bad: false };
        self.feed(viewer, &Input::FetchBlock { fetch, block, length, digest }, Some(brought));
    }

    /// Loads what the player waits for over plain HTTP, because the core said so.
    fn load(&mut self, viewer: u32, state: &mut Viewer, request: RequestId) {
        let Some((wanted, number)) = state.wanted else { return };
        if wanted != request {
            return;
        }
        let rendition = state.rendition;
        let bytes = u64::from(self.stream.piece(rendition, number).length);
        let rtt_us = self.network.server_rtt_us(viewer as usize);
        let answer = self.origin.answer(self.now_us + rtt_us / 2, bytes);
        let rate_bps = answer.rate_bps.min(self.network.down_bps(viewer as usize));
        let left_us = answer.first_us + bytes * 8_000_000 / rate_bps;
        let event = Event::Loaded {
            viewer,
            request,
            rendition,
            number: number as u32,
            began_us: self.now_us,
            left_us,
        };
        self.queue.push(left_us + rtt_us / 2, event);
    }

    fn loaded(
        &mut self,
        viewer: u32,
        request: RequestId,
        rendition: u8,
        number: u32,
        began_us: u64,
        left_us: u64,
    ) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        let piece = self.stream.piece(rendition, u64::from(number));
        self.origin.count(left_us, u64::from(piece.length));
        state.origin_bytes += u64::from(piece.length);
        state.loaded.push((piece.id, piece.length, self.now_us - began_us));
        if state.wanted == Some((request, u64::from(number))) {
            state.wanted = None;
            self.queue.push(self.now_us + 2_000, Event::Append { viewer, rendition, number });
        }
        self.feed(viewer, &Input::Wake, None);
    }

    // ---- links -------------------------------------------------------------------------------------------------

    fn link_up(&mut self, a: u32, b: u32) {
        let both = self.viewers[a as usize].is_some() && self.viewers[b as usize].is_some();
        if !both {
            for (viewer, peer) in [(a, b), (b, a)] {
                self.tell_tracker(viewer, ToTracker::Lost { peer });
            }
            return;
        }
        let rtt_us = self.network.rtt_us(a as usize, b as usize);
        for (viewer, neighbor) in [(a, b), (b, a)] {
            let state = self.viewers[viewer as usize].as_mut().expect("both are there");
            if state.link_mut(neighbor).is_none() {
                state.add_link(Link { neighbor, buffered: 0, is_touched: false, control_us: 0 });
            }
        }
        for (viewer, neighbor) in [(a, b), (b, a)] {
            let input =
                Input::NeighborConnected { peer: peer_id(neighbor), rtt: Some(Span::from_us(rtt_us)) };
            self.feed(viewer, &input, None);
            let rtt_ms = (rtt_us / 1_000) as u32;
            self.tell_tracker(viewer, ToTracker::Connected { peer: neighbor, rtt_ms });
        }
    }

    fn link_down(&mut self, viewer: u32, neighbor: u32, tells: bool) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        if state.drop_link(neighbor) {
            self.feed(viewer, &Input::NeighborLost { peer: peer_id(neighbor) }, None);
            if tells {
                self.tell_tracker(viewer, ToTracker::Lost { peer: neighbor });
            }
        }
    }

    // ---- the tracker -------------------------------------------------------------------------------------------

    fn tell_tracker(&mut self, viewer: u32, message: ToTracker) {
        let is_welcome = self.viewers[viewer as usize].as_ref().is_some_and(|state| state.is_welcome);
        self.tell_tracker_as(viewer, is_welcome, message);
    }

    fn tell_tracker_as(&mut self, viewer: u32, is_welcome: bool, message: ToTracker) {
        if is_welcome {
            let half_us = self.network.server_rtt_us(viewer as usize) / 2;
            self.queue.push(self.now_us + half_us, Event::ToTracker { from: viewer, message });
        }
    }

    fn tracker_hears(&mut self, from: u32, message: ToTracker) {
        let is_there = self.viewers[from as usize].is_some();
        let rendition = self.viewers[from as usize].as_ref().map_or(0, |state| state.rendition);
        for (to, message) in self.tracker.hear(self.now_us / 1_000, from, is_there, rendition, message) {
            let half_us = self.network.server_rtt_us(to as usize) / 2;
            self.queue.push(self.now_us + half_us, Event::FromTracker { to, message });
        }
    }

    fn tracker_tick(&mut self) {
        let now_ms = self.now_us / 1_000;
        self.queue.push(self.now_us + Tracker::TICK_US, Event::TrackerTick);
        if !self.is_tracker_up() {
            self.tracker.is_down = true;
            return;
        }
        if std::mem::take(&mut self.tracker.is_down) {
            // Everybody reconnects within ten seconds and is given his old place.
            for viewer in 0..self.viewers.len() as u32 {
                if self.viewers[viewer as usize].is_none() {
                    self.tracker.forget(now_ms, viewer);
                }
            }
            for viewer in 0..self.viewers.len() as u32 {
                if self.viewers[viewer as usize].is_some() {
                    let wait_us = self.random.below(10_000_000);
                    let shares = self.visits[viewer as usize].shares;
                    let join = Event::ToTracker { from: viewer, message: ToTracker::Join { shares } };
                    self.queue.push(self.now_us + wait_us, join);
                }
            }
        }
        for (to, message) in self.tracker.tick(now_ms) {
            let half_us = self.network.server_rtt_us(to as usize) / 2;
            self.queue.push(self.now_us + half_us, Event::FromTracker { to, message });
        }
    }

    fn hear_tracker(&mut self, viewer: u32, message: FromTracker) {
        let Some(state) = &mut self.viewers[viewer as usize] else { return };
        match message {
            FromTracker::Welcome => {
                state.is_welcome = true;
                let input = Input::Welcome {
                    peer: peer_id(viewer),
                    neighbors_max: 32,
                    upload_ratio_percent: (self.scenario.people.uplink_cap * 100.0) as u16,
                    report_interval: Span::from_ms(5_000),
                };
                self.feed(viewer, &input, None);
                // The pieces of the last seconds come with it.
                let newest = self.stream.next_number();
                let rendition = self.viewers[viewer as usize].as_ref().map_or(0, |state| state.rendition);
                for number in newest.saturating_sub(12)..newest {
                    let record = self.stream.piece(rendition, number).record.clone();
                    self.feed(viewer, &Input::Record { record: &record }, None);
                }
            }
            FromTracker::Published { number } => {
                for rendition in 0..self.stream.renditions() as u8 {
                    let record = self.stream.piece(rendition, u64::from(number)).record.clone();
                    self.feed(viewer, &Input::Record { record: &record }, None);
                }
            }
            FromTracker::Plan { rendition, stripes, places } => {
                if rendition == state.rendition {
                    state.parents.resize(usize::from(stripes), None);
                    for place in &places {
                        state.parents[usize::from(place.stripe)] = place.parent.map(viewer_of);
                    }
                }
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
                self.feed(viewer, &Input::Plan { rendition, stripes, places: &places }, None);
            }
            FromTracker::Introduce { peer, offers } => {
                if offers {
                    let (works, wait_us) = self.network.connect(viewer as usize, peer as usize);
                    let (a, b) = (viewer, peer);
                    let event = if works { Event::LinkUp { a, b } } else { Event::LinkFailed { a, b } };
                    self.queue.push(self.now_us + wait_us, event);
                }
            }
            FromTracker::Part { peer } => self.link_down(viewer, peer, false),
        }
    }

    /// Adds a viewer's counters to the sums, and checks that its bytes add up.
    fn close_books(&mut self, viewer: u32) {
        let Some(state) = &self.viewers[viewer as usize] else { return };
        let stats = state.peer.stats();
        if self.now_us >= self.measure.from_us {
            self.measure.received_bytes += state.received_bytes + state.origin_bytes;
            self.measure.waste_bytes +=
                stats.duplicate_bytes + stats.late_bytes + stats.rejected_bytes + state.cancelled_bytes;
        }
        let accounted = stats.peer_bytes + stats.duplicate_bytes + stats.late_bytes + stats.rejected_bytes;
        // What the core may count twice over (a duplicate that came from the origin) makes the sum larger, never smaller,
        // but for what is still held for its record.
        let held: u64 = state.held.len() as u64 * u64::from(shoal_swarm::BLOCK_BYTES);
        assert!(
            accounted + held >= state.received_bytes,
            "viewer {viewer} received {} bytes and accounts for {accounted}",
            state.received_bytes
        );
        for (name, value) in [
            ("from peers", stats.peer_bytes),
            ("from origin", stats.origin_bytes),
            ("sent", stats.sent_bytes),
            ("duplicate", stats.duplicate_bytes),
            ("late", stats.late_bytes),
            ("rejected", stats.rejected_bytes),
            ("pushed blocks", stats.pushed_blocks),
            ("pulled blocks", stats.pulled_blocks),
            ("pulls", stats.pulls),
            ("pulls refused", stats.pulls_refused),
            ("pulls timed out", stats.pulls_timed_out),
            ("seed fetches", stats.seed_fetches),
            ("deadline fetches", stats.deadline_fetches),
            ("fetches cancelled", stats.fetches_cancelled),
            ("delivered", stats.delivered),
            ("fallbacks", stats.fallbacks),
            ("uploads dropped", stats.uploads_dropped),
            ("shed", stats.shed),
            ("bans", stats.bans),
            ("strikes", stats.strikes),
            ("held", stats.held),
            ("refused", stats.refused),
        ] {
            *self.tally.0.entry(name).or_default() += value;
        }
    }
}

fn message_bytes(message: &Message, stream: &Stream) -> u64 {
    match message {
        Message::Control(bytes) => bytes.len() as u64,
        Message::Block { rendition, number, block, .. } => {
            u64::from(stream.block_length(*rendition, u64::from(*number), u32::from(*block)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_ids_lead_back_to_their_viewers() {
        for viewer in [0, 1, 77, 9_999, 4_000_000] {
            assert_eq!(viewer_of(peer_id(viewer)), viewer);
        }
    }
}
