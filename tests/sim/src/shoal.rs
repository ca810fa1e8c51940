//! Our own policy: real swarm cores and the real planner, driven in virtual time.
//!
//! This is the driver that a browser is for one core, for all of them: it carries out their outputs on the simulated
//! network and origin, keeps books of what each viewer holds, and stops the run if an invariant breaks. The viewer's
//! side is in `viewer.rs`, the tracker's in `tracker.rs`.

mod driver;
mod links;
mod origin_side;
mod signaling;
mod visits;

use shoal_swarm::{Input, Output, PeerId, PieceId, Place, RequestId, Span, Target, Time};
use shoal_tracker::plan;

use crate::measure::{Figures, Measure, bound};
use crate::media::{GARBAGE, Stream, block_digest};
use crate::network::Network;
use crate::origin::Origin;
use crate::people::{Manner, Visit, choose};
use crate::player::Player;
use crate::queue::Queue;
use crate::random::Random;
use crate::scenario::Scenario;
use crate::tracker::Tracker;
use crate::viewer::{Fetch, Link, Load, Viewer};

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
    Listed {
        viewer: u32,
        number: u32,
    },
    Wake(u32),
    Arrive {
        to: u32,
        from: u32,
        message: Message,
    },
    Deliver {
        to: u32,
        from: u32,
        message: Message,
    },
    Sent {
        viewer: u32,
        neighbor: u32,
        bytes: u32,
    },
    FetchBlock {
        viewer: u32,
        fetch: u32,
        block: u16,
        left_us: u64,
    },
    /// The neighbor's line has room for a block again.
    Depart {
        viewer: u32,
        to: u32,
        message: Message,
    },
    /// The block has passed the viewer's line.
    FetchedBlock {
        viewer: u32,
        fetch: u32,
        block: u16,
        left_us: u64,
    },
    FetchEnd {
        viewer: u32,
        fetch: u32,
    },
    /// The same, seen by the viewer.
    FetchedAll {
        viewer: u32,
        fetch: u32,
    },
    Load {
        viewer: u32,
        load: Load,
    },
    /// The piece has passed the viewer's line.
    Loaded {
        viewer: u32,
        load: Load,
    },
    RecordLoaded {
        viewer: u32,
        rendition: u8,
        number: u32,
    },
    RecordFailed {
        viewer: u32,
        piece: PieceId,
    },
    Append {
        viewer: u32,
        rendition: u8,
        number: u32,
    },
    Second(u32),
    Switch(u32),
    LinkUp {
        a: u32,
        b: u32,
    },
    LinkFailed {
        a: u32,
        b: u32,
    },
    LinkDown {
        viewer: u32,
        neighbor: u32,
        tells: bool,
    },
    ToTracker {
        from: u32,
        message: ToTracker,
    },
    FromTracker {
        to: u32,
        message: FromTracker,
    },
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
    Silent { peer: u32, rendition: u8, stripe: u8 },
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
    /// Milliseconds of its rate that a viewer's token bucket holds, if not as many as by default.
    pub burst_ms: Option<u32>,
    /// Milliseconds over which last calls of the origin are spread, if not as many as by default.
    pub spread_ms: Option<u32>,
    /// From which lateness on a viewer counts as short of processor time, where it is not the core's default.
    pub starved_ms: Option<u32>,
    /// Settings of the planner.
    pub plan: plan::Settings,
    /// Those whom the planner makes roots are told so.
    pub roots: bool,
    /// Without tracker from the start.
    pub tracker: bool,
    /// The tracker hears of silent parents.
    pub complaints: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            push: true,
            hash: true,
            burst_ms: None,
            spread_ms: None,
            starved_ms: None,
            plan: plan::Settings::default(),
            roots: true,
            tracker: true,
            complaints: true,
        }
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
        tracker.has_roots = knobs.roots;
        for rendition in 0..stream.renditions() {
            let rendition = rendition as u8;
            let rate_kbps = scenario.media.rates_kbps[usize::from(rendition)];
            let piece_bytes = u64::from(rate_kbps) * u64::from(scenario.media.piece_ms) / 8;
            tracker.groups.set_rendition(0, rendition, rate_kbps, piece_bytes as u32);
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
    pub(crate) fn run(mut self) -> (Figures, Tally, Vec<String>) {
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
                let used: u64 =
                    self.measure.seconds.iter().rev().take(5).map(|second| second.used_bytes).sum();
                let note = format!(
                    "{} viewers, {} events, last 5 s offload {:.3}",
                    self.tracker.groups.viewer_count(),
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
        self.tally.0.insert("plan: checked", self.tracker.checks);
        let summary = self.tracker.groups.summary(0);
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
        let timeline = self.measure.timeline(&self.origin);
        (figures, self.tally, timeline)
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

    /// When a viewer gets round to an event: now, unless its page is busy with starting.
    fn ready_us(&self, event: &Event) -> u64 {
        let (Event::Wake(viewer)
        | Event::Deliver { to: viewer, .. }
        | Event::Sent { viewer, .. }
        | Event::FetchedBlock { viewer, .. }
        | Event::FetchedAll { viewer, .. }
        | Event::Loaded { viewer, .. }
        | Event::Listed { viewer, .. }
        | Event::FromTracker { to: viewer, .. }) = event
        else {
            return self.now_us;
        };
        self.scenario.people.ready_us(self.now_us, self.visits[*viewer as usize].join_us)
    }

    fn handle(&mut self, event: Event) {
        if self.scenario.people.busy_start_ms > 0 {
            let ready_us = self.ready_us(&event);
            if ready_us > self.now_us {
                if let Event::Wake(viewer) = event
                    && let Some(state) = &mut self.viewers[viewer as usize]
                    && state.wake_us == self.now_us
                {
                    state.wake_us = ready_us;
                }
                self.queue.push(ready_us, event);
                return;
            }
        }
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
                if there_us > self.now_us + 500 || self.scenario.people.busy_start_ms > 0 {
                    self.queue.push(there_us, Event::Deliver { to, from, message });
                } else {
                    self.deliver(to, from, &message);
                }
            }
            Event::Depart { viewer, to, message } => {
                // What waited in the channel of a connection that is gone was never sent.
                let state = self.viewers[viewer as usize].as_mut();
                if state.is_some_and(|state| state.link_mut(to).is_some()) {
                    self.depart(viewer, to, message);
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
            Event::FetchedBlock { viewer, fetch, block, left_us } => {
                self.fetched_block(viewer, fetch, block, left_us);
            }
            Event::FetchEnd { viewer, fetch } => {
                let state = self.viewers[viewer as usize].as_ref();
                if let Some(fetching) = state.and_then(|state| state.fetches.get(&fetch)) {
                    let passed_us = fetching.passed_us.max(self.now_us);
                    self.queue.push(passed_us + 1, Event::FetchedAll { viewer, fetch });
                }
            }
            Event::FetchedAll { viewer, fetch } => self.fetched_all(viewer, fetch),
            Event::Load { viewer, load } => {
                let bytes = u64::from(self.stream.piece(load.rendition, u64::from(load.number)).length);
                let passed_us = self.network.receive_answer(self.now_us, viewer as usize, bytes);
                self.queue.push(passed_us, Event::Loaded { viewer, load });
            }
            Event::Loaded { viewer, load } => self.loaded(viewer, load),
            Event::RecordLoaded { viewer, rendition, number } => {
                let record = self.stream.piece(rendition, u64::from(number)).record.clone();
                self.feed(viewer, &Input::Record { record: &record }, None);
            }
            Event::RecordFailed { viewer, piece } => self.feed(viewer, &Input::RecordFailed { piece }, None),
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
