//! The trees of one rendition: who sits where. Only keeps the books; who moves where is decided in `grow.rs`.
//!
//! In `forest/` are the further books: `slots.rs` how much each viewer may still give, `offers.rs` the orders in which places
//! are offered, `places.rs` who has to be told of what changed.
//!
//! Invariants, checked by [`Forest::check`] after every step of the tests, and by the simulator every few seconds:
//! - a seat with children is fed: it has a parent or is a root, so no subtree hangs in the air;
//! - the parents of a seat lead to a root (no cycles); every edge is known to both ends;
//! - a viewer has at most one child more than its uplink carries, and that one only while it moves elsewhere.

mod offers;
mod places;
mod slots;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use shoal_tracker_protocol::PeerId;

use super::links::Links;
use super::{Ms, Settings};

/// When the blocks of a piece are expected at a root: one request to the origin.
const ROOT_EXPECTED_MS: u32 = 60;
/// What a hop costs beside serialisation: half a round trip and the time of two event loops.
const HOP_MS: u32 = 15;
/// Changes of an estimate below this are not passed down the tree.
const EXPECTED_STEP_MS: u32 = 20;
/// Changes of an estimate below this (or below half of it) are not told to the viewer: it only delays pulls.
const EXPECTED_TELL_MS: u32 = 100;
/// A longer chain of parents is a bug: a tree of ten thousand viewers has less than ten levels.
const DEPTH_MAX: usize = 200;

/// Where a seat's blocks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From whoever has them: the viewer pulls.
    Nobody,
    /// From the origin at publication. `stopgap` seats were left without a parent while others depend on them, and
    /// give the role back as soon as they find one.
    Origin { stopgap: bool },
    /// Pushed by this viewer.
    Peer(PeerId),
}

/// Why a fed seat looks for another parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// It does not.
    Stay,
    /// Its parent has more children than it can feed.
    Crowded,
    /// Its parent does not deliver.
    Silent,
    /// A much better place was seen.
    Better,
    /// A root that is no longer needed as one.
    Demoted,
}

/// A viewer's place in one stripe.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) source: Source,
    pub(super) children: Vec<PeerId>,
    pub(super) expected_ms: u32,
    sent_expected_ms: u32,
    pub(super) moving: Move,
    /// When it got its source.
    pub(super) since: Ms,
    /// The parent-to-be that is being introduced, and until when it is waited for. A slot is reserved there.
    pub(super) awaits: Option<(PeerId, Ms)>,
    pub(super) due: Option<Ms>,
    pub(super) tries: u32,
    /// A former parent not to be taken again before the time given.
    pub(super) avoid: Option<(PeerId, Ms)>,
    leaf_key: Option<u32>,
    top_key: Option<u32>,
}

/// A viewer in the trees of one rendition.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) joined: Ms,
    /// What may be planned on for this rendition; 0 for those who give nothing.
    pub(super) uplink_kbps: u32,
    /// How long one of the rendition's blocks occupies the line: all of the uplink, not only what is planned on for this
    /// rendition, because blocks of different renditions rarely meet in it.
    pub(super) block_ms: u32,
    /// How many children, over all stripes, the uplink carries.
    pub(super) slots: u32,
    pub(super) used: u32,
    pub(super) reserved: u32,
    /// The stripes in which this viewer may have children, as bits.
    pub(super) homes: u16,
    pub(super) seats: Vec<Seat>,
    spare_key: Option<(u32, Reverse<u32>)>,
}

impl Node {
    pub(super) fn free(&self) -> u32 {
        self.slots.saturating_sub(self.used + self.reserved)
    }

    pub(super) fn has_home(&self, stripe: u8) -> bool {
        self.homes & (1 << stripe) != 0 && self.slots > 0
    }

    /// In how many stripes the viewer has children.
    pub(super) fn interior(&self) -> u32 {
        u32::try_from(self.seats.iter().filter(|seat| !seat.children.is_empty()).count())
            .expect("few stripes")
    }
}

/// All trees of one rendition.
#[derive(Debug)]
pub(super) struct Forest {
    pub(super) stripes: u8,
    pub(super) rate_kbps: u32,
    /// Bits in a usual block: those of audio are much shorter than 16 KiB.
    pub(super) block_bits: u32,
    pub(super) settings: Settings,
    pub(super) nodes: BTreeMap<PeerId, Node>,
    pub(super) roots: Vec<BTreeSet<PeerId>>,
    /// Seats that look for a parent, by when they are looked at next.
    pub(super) wanting: BTreeSet<(Ms, PeerId, u8)>,
    /// For each stripe those with a free slot, by when a further leaf child would have a block.
    pub(super) for_leaves: Vec<BTreeSet<(u32, PeerId)>>,
    /// For each stripe those who could feed a further interior child, if need be instead of a leaf.
    pub(super) for_tops: Vec<BTreeSet<(u32, PeerId)>>,
    /// Those with free slots: first who is interior in few stripes, then who has most. They take up one more stripe where
    /// nobody at home in it has room.
    pub(super) spare: BTreeSet<(u32, Reverse<u32>, PeerId)>,
    /// For each stripe the slots of those who are at home in it.
    supply: Vec<u32>,
    uplinks_kbps: u64,
    reserve_percent: u32,
    /// The time of the present round of work.
    pub(super) now: Ms,
    dirty: BTreeMap<PeerId, u16>,
}

impl Forest {
    pub(super) fn new(stripes: u8, rate_kbps: u32, block_bits: u32, settings: Settings) -> Self {
        assert!((1..=16).contains(&stripes), "stripes are bits of a u16");
        let all = usize::from(stripes);
        Self {
            stripes,
            rate_kbps: rate_kbps.max(1),
            block_bits,
            reserve_percent: settings.reserve_max_percent,
            settings,
            nodes: BTreeMap::new(),
            roots: vec![BTreeSet::new(); all],
            wanting: BTreeSet::new(),
            for_leaves: vec![BTreeSet::new(); all],
            for_tops: vec![BTreeSet::new(); all],
            spare: BTreeSet::new(),
            supply: vec![0; all],
            uplinks_kbps: 0,
            now: 0,
            dirty: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, now: Ms, viewer: PeerId) {
        let seats = (0..self.stripes).map(|_| Seat {
            source: Source::Nobody,
            children: Vec::new(),
            expected_ms: 0,
            sent_expected_ms: 0,
            moving: Move::Stay,
            since: 0,
            awaits: None,
            due: None,
            tries: 0,
            avoid: None,
            leaf_key: None,
            top_key: None,
        });
        let node = Node {
            joined: now,
            uplink_kbps: 0,
            block_ms: 0,
            slots: 0,
            used: 0,
            reserved: 0,
            homes: 0,
            seats: seats.collect(),
            spare_key: None,
        };
        let known = self.nodes.insert(viewer, node);
        assert!(known.is_none(), "a viewer is planned once");
        self.set_uplink(viewer, 0, 0);
        for stripe in 0..self.stripes {
            self.look_at(now, viewer, stripe);
            self.tell(viewer, stripe);
        }
    }

    /// Takes a viewer out. Its children become roots for the time being if others depend on them, and look for parents.
    pub(super) fn remove(&mut self, now: Ms, viewer: PeerId, links: &mut Links) {
        if !self.nodes.contains_key(&viewer) {
            return;
        }
        for stripe in 0..self.stripes {
            self.stop_awaiting(viewer, stripe);
            self.take_source(viewer, stripe, links);
            for child in std::mem::take(&mut self.seat_mut(viewer, stripe).children) {
                links.use_by(viewer, child, -1);
                self.seat_mut(child, stripe).source = Source::Nobody;
                self.orphaned(now, child, stripe);
            }
            if let Some(due) = self.seat_mut(viewer, stripe).due.take() {
                self.wanting.remove(&(due, viewer, stripe));
            }
        }
        self.set_uplink(viewer, 0, 0);
        self.nodes.remove(&viewer);
        self.dirty.remove(&viewer);
    }

    /// Gives a seat its source; takes it from the old one. The new parent must be fed, and not be below the seat.
    pub(super) fn attach(&mut self, viewer: PeerId, stripe: u8, source: Source, links: &mut Links) {
        self.stop_awaiting(viewer, stripe);
        self.take_source(viewer, stripe, links);
        let expected_ms = match source {
            Source::Nobody => return,
            Source::Origin { .. } => {
                self.roots[usize::from(stripe)].insert(viewer);
                ROOT_EXPECTED_MS
            }
            Source::Peer(parent) => {
                let expected_ms = self.arrival_ms(parent, viewer, stripe, links);
                links.use_by(viewer, parent, 1);
                let node = self.nodes.get_mut(&parent).expect("parents are planned viewers");
                node.used += 1;
                node.seats[usize::from(stripe)].children.push(viewer);
                self.reindex(parent);
                self.tell(parent, stripe);
                expected_ms
            }
        };
        let now = self.now;
        let seat = self.seat_mut(viewer, stripe);
        seat.source = source;
        seat.moving = Move::Stay;
        seat.since = now;
        seat.tries = 0;
        self.set_expected(viewer, stripe, expected_ms);
        self.reindex(viewer);
        self.tell(viewer, stripe);
    }

    /// When a block would reach `child` under `parent`: after the parent's stronger children in that stripe.
    fn arrival_ms(&self, parent: PeerId, child: PeerId, stripe: u8, links: &Links) -> u32 {
        let node = &self.nodes[&parent];
        let seat = &node.seats[usize::from(stripe)];
        let before = if self.nodes[&child].has_home(stripe) {
            seat.children.iter().filter(|other| self.nodes[other].has_home(stripe)).count()
        } else {
            seat.children.len()
        };
        let before = u32::try_from(before).unwrap_or(u32::MAX);
        seat.expected_ms
            + before.saturating_add(1).saturating_mul(node.block_ms)
            + HOP_MS
            + links.rtt_ms(parent, child).unwrap_or(40) / 2
    }

    fn set_expected(&mut self, viewer: PeerId, stripe: u8, expected_ms: u32) {
        let old = self.seat(viewer, stripe).expected_ms;
        self.seat_mut(viewer, stripe).expected_ms = expected_ms;
        if old.abs_diff(expected_ms) < EXPECTED_STEP_MS {
            return;
        }
        // Shift the whole subtree: over random moves its mean size is the mean depth, so this stays cheap.
        let shift = i64::from(expected_ms) - i64::from(old);
        let mut below = self.seat(viewer, stripe).children.clone();
        while let Some(child) = below.pop() {
            let seat = self.seat_mut(child, stripe);
            let shifted = (i64::from(seat.expected_ms) + shift).clamp(0, 60_000);
            seat.expected_ms = u32::try_from(shifted).expect("clamped");
            below.extend_from_slice(&seat.children);
            let said = seat.sent_expected_ms;
            if seat.expected_ms.abs_diff(said) > EXPECTED_TELL_MS.max(said / 2) {
                self.tell(child, stripe);
            }
            self.reindex_stripe(child, stripe);
        }
    }

    fn take_source(&mut self, viewer: PeerId, stripe: u8, links: &mut Links) {
        let source = std::mem::replace(&mut self.seat_mut(viewer, stripe).source, Source::Nobody);
        match source {
            Source::Nobody => {}
            Source::Origin { .. } => {
                self.roots[usize::from(stripe)].remove(&viewer);
            }
            Source::Peer(parent) => {
                links.use_by(viewer, parent, -1);
                let node = self.nodes.get_mut(&parent).expect("parents are planned viewers");
                node.used -= 1;
                node.seats[usize::from(stripe)].children.retain(|child| *child != viewer);
                self.reindex(parent);
                self.tell(parent, stripe);
            }
        }
        self.tell(viewer, stripe);
    }

    /// A seat lost its parent: it fetches from the origin for now if others depend on it, and looks for another.
    pub(super) fn orphaned(&mut self, now: Ms, viewer: PeerId, stripe: u8) {
        let seat = self.seat_mut(viewer, stripe);
        seat.moving = Move::Stay;
        if !seat.children.is_empty() {
            seat.source = Source::Origin { stopgap: true };
            self.roots[usize::from(stripe)].insert(viewer);
        }
        self.reindex(viewer);
        self.tell(viewer, stripe);
        self.look_at(now, viewer, stripe);
    }

    /// Takes the edge between the two away, if there is one.
    pub(super) fn cut(&mut self, now: Ms, child: PeerId, parent: PeerId, stripe: u8, links: &mut Links) {
        if self.nodes.contains_key(&child) && self.seat(child, stripe).source == Source::Peer(parent) {
            self.take_source(child, stripe, links);
            self.orphaned(now, child, stripe);
        }
    }

    /// The pair's link is gone: no edge may use it, nobody may wait for it.
    pub(super) fn unlink(&mut self, now: Ms, a: PeerId, b: PeerId, links: &mut Links) {
        for (child, parent) in [(a, b), (b, a)] {
            for stripe in 0..self.stripes {
                self.cut(now, child, parent, stripe, links);
                self.heard_of(now, child, parent, stripe);
            }
        }
    }

    /// A link that a seat waits for has opened or failed: look at the seat again.
    pub(super) fn heard_of(&mut self, now: Ms, child: PeerId, parent: PeerId, stripe: u8) {
        if let Some(node) = self.nodes.get(&child)
            && matches!(node.seats[usize::from(stripe)].awaits, Some((awaited, _)) if awaited == parent)
        {
            self.stop_awaiting(child, stripe);
            self.look_at(now, child, stripe);
        }
    }

    pub(super) fn await_parent(&mut self, viewer: PeerId, stripe: u8, parent: PeerId, until: Ms) {
        self.stop_awaiting(viewer, stripe);
        self.seat_mut(viewer, stripe).awaits = Some((parent, until));
        self.nodes.get_mut(&parent).expect("candidates are planned viewers").reserved += 1;
        self.reindex(parent);
        self.look_at(until, viewer, stripe);
    }

    pub(super) fn stop_awaiting(&mut self, viewer: PeerId, stripe: u8) {
        if let Some((parent, _)) = self.seat_mut(viewer, stripe).awaits.take()
            && let Some(node) = self.nodes.get_mut(&parent)
        {
            node.reserved = node.reserved.saturating_sub(1);
            self.reindex(parent);
        }
    }

    /// Has the seat looked at when its time comes; an earlier appointment stands.
    pub(super) fn look_at(&mut self, due: Ms, viewer: PeerId, stripe: u8) {
        let seat = self.seat_mut(viewer, stripe);
        let old = seat.due.replace(due);
        if let Some(old) = old {
            self.wanting.remove(&(old, viewer, stripe));
        }
        self.wanting.insert((due, viewer, stripe));
    }

    /// Whether `below` gets this stripe through `above`.
    pub(super) fn is_below(&self, stripe: u8, below: PeerId, above: PeerId) -> bool {
        let mut at = below;
        for _ in 0..DEPTH_MAX {
            if at == above {
                return true;
            }
            match self.nodes.get(&at).map(|node| node.seats[usize::from(stripe)].source) {
                Some(Source::Peer(parent)) => at = parent,
                _ => return false,
            }
        }
        true
    }

    pub(super) fn seat(&self, viewer: PeerId, stripe: u8) -> &Seat {
        &self.nodes[&viewer].seats[usize::from(stripe)]
    }

    /// Those who have been a viewer's children since `since` or longer, in all stripes; some of them more than once.
    pub(super) fn children(&self, viewer: PeerId, since: Ms) -> impl Iterator<Item = PeerId> {
        let seats = self.nodes.get(&viewer).into_iter().flat_map(|node| (0..).zip(&node.seats));
        let children =
            seats.flat_map(|(stripe, seat)| seat.children.iter().map(move |child| (stripe, *child)));
        children
            .filter(move |(stripe, child)| self.seat(*child, *stripe).since <= since)
            .map(|(_, child)| child)
    }

    pub(super) fn seat_mut(&mut self, viewer: PeerId, stripe: u8) -> &mut Seat {
        let node = self.nodes.get_mut(&viewer).expect("seats belong to planned viewers");
        &mut node.seats[usize::from(stripe)]
    }

    /// Panics where the books do not add up; for tests and the simulator.
    pub(super) fn check(&self, links: &Links) {
        for (viewer, node) in &self.nodes {
            let mut used = 0;
            for stripe in 0..self.stripes {
                let seat = &node.seats[usize::from(stripe)];
                used += seat.children.len();
                assert!(
                    seat.children.is_empty() || seat.source != Source::Nobody,
                    "{viewer} is not fed in stripe {stripe}"
                );
                for child in &seat.children {
                    assert_eq!(
                        self.seat(*child, stripe).source,
                        Source::Peer(*viewer),
                        "edges have two ends"
                    );
                    assert!(links.rtt_ms(*viewer, *child).is_some(), "only open links carry edges");
                }
                if let Source::Peer(parent) = seat.source {
                    assert!(self.seat(parent, stripe).children.contains(viewer), "edges have two ends");
                    assert!(!self.is_below(stripe, parent, *viewer), "{viewer} is above itself in {stripe}");
                }
                let is_root = self.roots[usize::from(stripe)].contains(viewer);
                assert_eq!(is_root, matches!(seat.source, Source::Origin { .. }));
            }
            assert_eq!(used, node.used as usize, "children of {viewer} are counted");
        }
    }
}
