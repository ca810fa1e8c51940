//! The seeding planner: which few viewers fetch which stripe of a rendition's blocks from the origin, who pushes them on
//! to whom, and who ought to be connected for that.
//!
//! Pure: takes what happened to viewers and links, and the time; returns messages. No clock, no socket, no unseeded
//! randomness, ordered collections only: the simulator runs it as it is. The work for an event does not depend on the
//! size of the swarm but for logarithms. Sending the messages, tokens and bans are the tracker's business.
//!
//! One [`Planner`] plans one swarm (or one sub-swarm of a very large one) with all its renditions, because a connection
//! between two viewers serves all renditions. Reading order: `links.rs`, `forest.rs`, `grow.rs`. Policy in prose and
//! the measurements behind it: `README.md` beside this file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use shoal_tracker_protocol::{PeerId, Place};

mod forest;
mod groups;
mod grow;
mod links;
mod locality;

pub use groups::Groups;
pub use locality::Locality;

use forest::{Forest, Source};
use links::{Crowd, Links};

/// Milliseconds on the caller's monotonic clock.
pub type Ms = u64;

/// The longest time between two rounds of a planner that has viewers.
pub const ROUND_MS: Ms = 500;
/// After something happened: in a small swarm a burst of reports from one pair of viewers comes within this time.
const ROUND_SOON_MS: Ms = 20;
/// The same from [`SMALL_SWARM`] viewers on. A joiner waits half of it for its first introduction.
const ROUND_LATER_MS: Ms = 100;
/// Below this number of viewers a round costs less than a millisecond.
const SMALL_SWARM: usize = 100;
/// The shortest and the longest of the usual blocks, in bytes.
const BLOCK_BYTES: RangeInclusive<u32> = 4 * 1024..=16 * 1024;
/// So much of a usual piece is worth a stripe. Each stripe has a parent of its own, and each parent costs a connection.
const STRIPE_BYTES: u32 = 8 * 1024;
/// Introductions made for the mesh in one tick. The trees come first; the mesh fills up over some seconds.
const MESH_INTRODUCTIONS_MAX: usize = 400;
/// Viewers in one tick that are looked at because one network might have too large a part of their neighbors, and
/// introductions that are tried for each.
const CROWDED_MAX: usize = 400;
const STRANGERS_MAX: usize = 16;
/// A full tour of looking for better places takes about this long.
const TOUR_MS: Ms = 20_000;
/// A tour goes no faster after a pause: everybody who moves misses what is on its way to the old place.
const PASSED_MAX_MS: Ms = 1_000;
/// Changes of a viewer's uplink below this percentage are measurement noise.
const UPLINK_STEP_PERCENT: u32 = 15;
/// The same for a rendition's rate.
const RATE_STEP_PERCENT: u32 = 20;

/// What can be tuned. The defaults are what the simulator found best; see `README.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Stripes of a rendition whose pieces have that many blocks; fewer for smaller pieces.
    pub stripes_max: u8,
    /// In how many stripes a viewer has children, once the swarm is large enough. Those who serve the same children in
    /// several stripes need fewer connections; those who leave take more from each child.
    pub interior_stripes: u32,
    /// A viewer takes up a further home stripe for each this many children that its uplink carries.
    pub home_slots_min: u32,
    /// At most this many children, over all stripes of a rendition.
    pub children_max: u32,
    /// At most this many connections and introductions under way for each viewer.
    pub neighbors_max: u32,
    /// At most this many introductions under way for each viewer.
    pub introductions_max: u32,
    /// Every viewer gets at least this many connections, to pull from when a parent fails.
    pub mesh_min: u32,
    /// At most this part of a viewer's neighbors is of one foreign autonomous system, in percent, as long as there are
    /// others to be met. 100 switches it off.
    pub network_max_percent: u32,
    /// From this many viewers on each stripe has two roots.
    pub large_swarm: u32,
    /// What is planned on for a viewer whose uplink is not known yet, in percent of the rendition's rate.
    pub uplink_unknown_percent: u32,
    /// The part of an uplink that stays unplanned where uplinks are scarce, in percent. Never 0: a full uplink delays
    /// every block it carries until children pull what is already on its way.
    pub reserve_min_percent: u32,
    /// The same where uplinks are plenty.
    pub reserve_max_percent: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stripes_max: 12,
            interior_stripes: 2,
            home_slots_min: 4,
            children_max: 36,
            neighbors_max: 30,
            introductions_max: 16,
            mesh_min: 6,
            network_max_percent: 50,
            large_swarm: 300,
            uplink_unknown_percent: 100,
            reserve_min_percent: 3,
            reserve_max_percent: 12,
        }
    }
}

impl Settings {
    /// Of so many neighbors, those that may be of one network.
    fn most_of_one(&self, neighbors: usize) -> usize {
        neighbors * self.network_max_percent.min(100) as usize / 100
    }

    /// Neighbors of other networks that a viewer should have beside so many of one.
    fn wanted_beside(&self, count: usize) -> usize {
        let percent = self.network_max_percent.clamp(1, 100) as usize;
        (count * (100 - percent)).div_ceil(percent)
    }
}

/// What is to be sent to viewers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// These two should connect.
    Introduce {
        /// Who makes the offer.
        offers: PeerId,
        /// Who answers it.
        answers: PeerId,
    },
    /// A viewer's place changed in these stripes.
    Plan {
        /// The viewer.
        viewer: PeerId,
        /// The rendition.
        rendition: u8,
        /// How many stripes it has.
        stripes: u8,
        /// The stripes that changed, whole.
        places: Vec<Place>,
    },
    /// The two need not stay connected: one of them has no room for a connection that it needs more.
    Disconnect {
        /// One end.
        a: PeerId,
        /// The other.
        b: PeerId,
    },
}

/// What the planner knows of a viewer beside its places and links.
#[derive(Debug)]
struct Viewer {
    shares: bool,
    /// Usable uplink, none while not known.
    uplink_kbps: Option<u32>,
    renditions: BTreeSet<u8>,
}

/// Counts for metrics and for people; see [`Planner::summary`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Seats: viewers times stripes.
    pub seats: u32,
    /// Seats that are roots.
    pub roots: u32,
    /// Seats for which no parent has been found yet.
    pub unfed: u32,
    /// Slots that all uplinks together carry.
    pub slots: u32,
    /// The longest way from a root, in hops.
    pub depth_max: u32,
    /// The latest expected arrival in milliseconds.
    pub expected_max_ms: u32,
}

/// Plans one swarm. See the module's head.
#[derive(Debug)]
pub struct Planner {
    settings: Settings,
    viewers: BTreeMap<PeerId, Viewer>,
    forests: BTreeMap<u8, Forest>,
    links: Links,
    /// Viewers that may have too few connections.
    lonely: BTreeSet<PeerId>,
    /// Viewers of whose neighbors one network may have too large a part.
    crowded: BTreeSet<PeerId>,
    outputs: Vec<Output>,
    random: u64,
    /// Where the tour of looking for better places stands.
    tour_at: PeerId,
    /// Viewers times milliseconds for which the tour has not gone on yet.
    tour_owed: u64,
    last_tick: Ms,
}

impl Planner {
    /// A planner without viewers. `seed` decides which strangers meet.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            viewers: BTreeMap::new(),
            forests: BTreeMap::new(),
            links: Links::default(),
            lonely: BTreeSet::new(),
            crowded: BTreeSet::new(),
            outputs: Vec::new(),
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
            tour_at: 0,
            tour_owed: 0,
            last_tick: 0,
        }
    }

    /// A rendition's rate, and the bytes of its usual piece. To be called when the first pieces are published and whenever
    /// the measured rate changed; small changes are ignored.
    pub fn set_rendition(&mut self, now: Ms, rendition: u8, rate_kbps: u32, piece_bytes: u32) {
        let block_bits = 8 * usual_block_bytes(piece_bytes);
        let known = self.forests.get(&rendition).map(|forest| (forest.rate_kbps, forest.stripes));
        // One block per piece still goes to four trees in turn, so that no viewer carries the whole rendition.
        let fitting = (piece_bytes / STRIPE_BYTES).clamp(4, u32::from(self.settings.stripes_max.max(4)));
        let stripes = u8::try_from(fitting).expect("clamped").min(self.settings.stripes_max).max(1);
        // Another number of stripes means new trees from scratch: only when pieces have clearly become other ones.
        let stripes = match known {
            Some((_, known_stripes)) if stripes * 2 > known_stripes => known_stripes,
            _ => stripes,
        };
        if let Some((known_kbps, known_stripes)) = known {
            let is_near = known_kbps.abs_diff(rate_kbps) * 100 <= known_kbps * RATE_STEP_PERCENT;
            if is_near && known_stripes == stripes {
                return;
            }
        }
        if known.is_some_and(|(_, known_stripes)| known_stripes == stripes) {
            let forest = self.forests.get_mut(&rendition).expect("known");
            forest.rate_kbps = rate_kbps.max(1);
            forest.block_bits = block_bits;
        } else {
            let members: Vec<PeerId> = self.forests.remove(&rendition).map_or_else(Vec::new, |mut forest| {
                let members: Vec<PeerId> = forest.nodes.keys().copied().collect();
                members.iter().for_each(|viewer| forest.remove(now, *viewer, &mut self.links));
                members
            });
            let mut forest = Forest::new(stripes, rate_kbps, block_bits, self.settings);
            members.iter().for_each(|viewer| forest.add(now, *viewer));
            self.forests.insert(rendition, forest);
            for (id, viewer) in &self.viewers {
                if viewer.renditions.contains(&rendition) && !members.contains(id) {
                    self.forests.get_mut(&rendition).expect("just put").add(now, *id);
                }
            }
        }
        let viewers: Vec<PeerId> = self.viewers.keys().copied().collect();
        viewers.into_iter().for_each(|viewer| self.spread_uplink(now, viewer));
    }

    /// A viewer came. Nothing is planned for it before [`Self::viewer_plays`].
    pub fn viewer_joined(&mut self, id: PeerId, shares: bool) {
        if self.viewers.contains_key(&id) {
            return;
        }
        self.viewers.insert(id, Viewer { shares, uplink_kbps: None, renditions: BTreeSet::new() });
        self.links.add(id);
        self.lonely.insert(id);
    }

    /// Where a viewer is, if anything is known of it: viewers near each other are introduced first.
    pub fn viewer_is_at(&mut self, id: PeerId, locality: Locality) {
        self.links.locate(id, locality);
    }

    /// A viewer went, with or without goodbye.
    pub fn viewer_left(&mut self, now: Ms, id: PeerId) {
        self.viewer_away(now, id);
        self.viewer_forgotten(id);
    }

    /// A viewer is not planned with for now: with which others it can't connect is remembered until it joins again or
    /// [`Self::viewer_forgotten`].
    pub fn viewer_away(&mut self, now: Ms, id: PeerId) {
        if self.viewers.remove(&id).is_none() {
            return;
        }
        for forest in self.forests.values_mut() {
            forest.remove(now, id, &mut self.links);
        }
        self.lonely.remove(&id);
        self.crowded.remove(&id);
        for other in self.links.park(id) {
            self.lonely.insert(other);
            self.crowded.insert(other);
        }
    }

    /// A viewer that was away does not come back.
    pub fn viewer_forgotten(&mut self, id: PeerId) {
        self.links.forget(id);
    }

    /// Which renditions a viewer plays from now on. One whose number is not known yet is planned as soon as it is.
    pub fn viewer_plays(&mut self, now: Ms, id: PeerId, renditions: &[u8]) {
        let Some(viewer) = self.viewers.get_mut(&id) else { return };
        let renditions: BTreeSet<u8> = renditions.iter().copied().collect();
        if viewer.renditions == renditions {
            return;
        }
        for gone in viewer.renditions.difference(&renditions) {
            if let Some(forest) = self.forests.get_mut(gone) {
                forest.remove(now, id, &mut self.links);
                let stripes = forest.stripes;
                let places = (0..stripes).map(nowhere).collect();
                self.outputs.push(Output::Plan { viewer: id, rendition: *gone, stripes, places });
            }
        }
        for new in renditions.difference(&viewer.renditions) {
            if let Some(forest) = self.forests.get_mut(new) {
                forest.add(now, id);
            }
        }
        viewer.renditions = renditions;
        self.spread_uplink(now, id);
    }

    /// What a viewer's uplink may be planned on, in kbit/s, after its own caps; 0 when it may give nothing. Until the
    /// first call [`Settings::uplink_unknown_percent`] is assumed.
    pub fn viewer_uplink(&mut self, now: Ms, id: PeerId, kbps: u32) {
        let Some(viewer) = self.viewers.get_mut(&id) else { return };
        let known = viewer.uplink_kbps;
        if known.is_some_and(|old| old.abs_diff(kbps) * 100 <= old * UPLINK_STEP_PERCENT) {
            return;
        }
        viewer.uplink_kbps = Some(kbps);
        self.spread_uplink(now, id);
    }

    /// A viewer turned giving on or off.
    pub fn viewer_shares(&mut self, now: Ms, id: PeerId, shares: bool) {
        if let Some(viewer) = self.viewers.get_mut(&id)
            && viewer.shares != shares
        {
            viewer.shares = shares;
            self.spread_uplink(now, id);
        }
    }

    /// A data channel between the two is open. Both report it; the second report only brings the round trip.
    pub fn link_connected(&mut self, now: Ms, a: PeerId, b: PeerId, rtt_ms: u32) {
        if self.links.open(now, a, b, rtt_ms) {
            self.forests.values_mut().for_each(|forest| forest.linked(now, a, b));
            self.crowded.extend([a, b]);
        }
    }

    /// The two could not connect, or their connection broke.
    pub fn link_lost(&mut self, now: Ms, a: PeerId, b: PeerId) {
        for forest in self.forests.values_mut() {
            if forest.nodes.contains_key(&a) && forest.nodes.contains_key(&b) {
                forest.unlink(now, a, b, &mut self.links);
            }
        }
        if self.links.close(now, a, b) {
            self.lonely.extend([a, b]);
            self.crowded.extend([a, b]);
        }
    }

    /// A child says that nothing comes from its parent in a stripe, though they are connected.
    pub fn parent_silent(&mut self, now: Ms, child: PeerId, parent: PeerId, rendition: u8, stripe: u8) {
        if let Some(forest) = self.forests.get_mut(&rendition) {
            forest.parent_silent(now, child, parent, stripe);
        }
    }

    /// How long after the last round the next one may be, once something happened.
    #[must_use]
    pub fn spacing_ms(&self) -> Ms {
        if self.viewers.len() < SMALL_SWARM { ROUND_SOON_MS } else { ROUND_LATER_MS }
    }

    /// Works off what happened, and returns what is to be sent. To be called every [`ROUND_MS`], and after something
    /// happened as soon as [`Self::spacing_ms`] allows: repairs and newcomers wait for it.
    pub fn tick(&mut self, now: Ms) -> Vec<Output> {
        for (a, b) in self.links.expire(now) {
            for forest in self.forests.values_mut() {
                for stripe in 0..forest.stripes {
                    forest.heard_of(now, a, b, stripe);
                    forest.heard_of(now, b, a, stripe);
                }
            }
            self.lonely.extend([a, b]);
            self.crowded.extend([a, b]);
        }
        let mut wishes = Vec::new();
        for forest in self.forests.values_mut() {
            forest.grow(now, &mut self.links, &mut wishes);
        }
        wishes.into_iter().for_each(|(a, b)| self.introduce(a, b));
        self.better_some(now);
        self.mend_mesh(now);
        self.mend_variety(now);
        self.last_tick = now;
        for (rendition, forest) in &mut self.forests {
            for (viewer, places) in forest.take_places() {
                let (rendition, stripes) = (*rendition, forest.stripes);
                self.outputs.push(Output::Plan { viewer, rendition, stripes, places });
            }
        }
        std::mem::take(&mut self.outputs)
    }

    /// Those to whom a viewer is connected.
    pub fn neighbors(&self, id: PeerId) -> impl Iterator<Item = PeerId> + '_ {
        self.links.connected(id).map(|(other, _)| other)
    }

    /// All viewers.
    pub fn viewers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.viewers.keys().copied()
    }

    /// Those to whom a viewer is connected, and the round trips in milliseconds.
    pub fn links(&self, id: PeerId) -> impl Iterator<Item = (PeerId, u32)> + '_ {
        self.links.connected(id)
    }

    /// Whether a viewer gives, and its uplink as far as it is known.
    #[must_use]
    pub fn gives(&self, id: PeerId) -> (bool, Option<u32>) {
        self.viewers.get(&id).map_or((false, None), |viewer| (viewer.shares, viewer.uplink_kbps))
    }

    /// What a viewer plays.
    #[must_use]
    pub fn plays(&self, id: PeerId) -> Vec<u8> {
        self.viewers.get(&id).map_or_else(Vec::new, |viewer| viewer.renditions.iter().copied().collect())
    }

    /// What takes a viewer's places back, for one that another planner takes over.
    #[must_use]
    pub fn nowhere(&self, id: PeerId) -> Vec<Output> {
        let is_in = |forest: &&Forest| forest.nodes.contains_key(&id);
        let taken_back =
            self.forests.iter().filter(|(_, forest)| is_in(forest)).map(|(rendition, forest)| {
                let places = (0..forest.stripes).map(nowhere).collect();
                Output::Plan { viewer: id, rendition: *rendition, stripes: forest.stripes, places }
            });
        taken_back.collect()
    }

    /// Viewers in this planner.
    #[must_use]
    pub fn viewer_count(&self) -> usize {
        self.viewers.len()
    }

    /// Counts over one rendition. Walks all viewers: for metrics every few seconds, not for each event.
    #[must_use]
    pub fn summary(&self, rendition: u8) -> Summary {
        let Some(forest) = self.forests.get(&rendition) else { return Summary::default() };
        let mut summary = Summary::default();
        for (viewer, node) in &forest.nodes {
            summary.slots += node.slots;
            for (stripe, seat) in (0..forest.stripes).zip(&node.seats) {
                summary.seats += 1;
                match seat.source {
                    Source::Nobody => summary.unfed += 1,
                    Source::Origin { .. } => summary.roots += 1,
                    Source::Peer(_) => {
                        let mut depth = 0;
                        let mut at = *viewer;
                        while let Source::Peer(parent) = forest.seat(at, stripe).source {
                            at = parent;
                            depth += 1;
                        }
                        summary.depth_max = summary.depth_max.max(depth);
                    }
                }
                summary.expected_max_ms = summary.expected_max_ms.max(seat.expected_ms);
            }
        }
        summary
    }

    /// Panics where the plan contradicts itself; for tests and the simulator.
    pub fn check(&self) {
        self.forests.values().for_each(|forest| forest.check(&self.links));
    }

    /// Splits what a viewer can give among the renditions it plays, by their rates.
    fn spread_uplink(&mut self, now: Ms, id: PeerId) {
        let Some(viewer) = self.viewers.get(&id) else { return };
        let played = || viewer.renditions.iter().filter_map(|number| self.forests.get(number));
        let rate_kbps: u64 = played().map(|forest| u64::from(forest.rate_kbps)).sum();
        let unknown_kbps = rate_kbps * u64::from(self.settings.uplink_unknown_percent) / 100;
        let uplink_kbps = match (viewer.shares, viewer.uplink_kbps) {
            (false, _) => 0,
            (true, Some(kbps)) => u64::from(kbps),
            (true, None) => unknown_kbps,
        };
        for number in viewer.renditions.clone() {
            let Some(forest) = self.forests.get_mut(&number) else { continue };
            let share = uplink_kbps * u64::from(forest.rate_kbps) / rate_kbps.max(1);
            let [share, line] = [share, uplink_kbps].map(|kbps| u32::try_from(kbps).unwrap_or(u32::MAX));
            forest.set_uplink(id, share, line);
            forest.shed(now, id, 0);
        }
    }

    fn introduce(&mut self, a: PeerId, b: PeerId) {
        // Who came later offers: the earlier one may be asked by many at once, and answering is cheaper.
        self.outputs.push(Output::Introduce { offers: a, answers: b });
        self.crowded.extend([a, b]);
    }

    /// A slow tour over all viewers, some in each tick.
    fn better_some(&mut self, now: Ms) {
        let passed = now.saturating_sub(self.last_tick).min(PASSED_MAX_MS);
        self.tour_owed += self.viewers.len() as u64 * passed;
        let count = self.tour_owed / TOUR_MS;
        self.tour_owed %= TOUR_MS;
        for _ in 0..count {
            let next = self.viewers.range(self.tour_at..).next().or_else(|| self.viewers.first_key_value());
            let Some((&id, _)) = next else { return };
            self.tour_at = id.wrapping_add(1);
            self.crowded.insert(id);
            for forest in self.forests.values_mut().filter(|forest| forest.nodes.contains_key(&id)) {
                forest.better(now, id);
            }
            // Room for what comes: a full viewer could neither get a new parent nor become one.
            if self.links.count(id) * 4 > self.settings.neighbors_max as usize * 3
                && let Some(other) = self.links.spare_link(id, &self.settings)
            {
                self.links.end(id, other);
                self.outputs.push(Output::Disconnect { a: id, b: other });
            }
        }
    }

    /// Gives viewers with few connections some more, to random others.
    fn mend_mesh(&mut self, now: Ms) {
        let lonely: Vec<PeerId> = self.lonely.iter().copied().take(MESH_INTRODUCTIONS_MAX).collect();
        for id in lonely {
            let wanted = (self.settings.mesh_min as usize).min(self.viewers.len().saturating_sub(1));
            // Ids are random, so the next one after a random number is nearly fair; and in a small swarm the walk meets
            // everybody.
            let mut at = self.next_random();
            // Half of them near, if there are such; the others anywhere, so that no place is cut off from the rest.
            for other in self.links.near(id) {
                if self.links.count(id) >= wanted.div_ceil(2) {
                    break;
                }
                if self.links.can_introduce(now, id, other, &self.settings) {
                    self.links.introduce(now, id, other);
                    self.introduce(id, other);
                }
            }
            for _ in 0..4 * wanted {
                if self.links.count(id) >= wanted {
                    break;
                }
                let other = self.viewers.range(at..).next().or_else(|| self.viewers.first_key_value());
                let Some((&other, _)) = other else { break };
                at = if self.viewers.len() > 4 * wanted { self.next_random() } else { other.wrapping_add(1) };
                if self.links.can_introduce(now, id, other, &self.settings) {
                    self.links.introduce(now, id, other);
                    self.introduce(id, other);
                }
            }
            self.lonely.remove(&id);
        }
    }

    /// Introduces viewers to some of other networks, where too large a part of their neighbors is of one. Takes nothing
    /// from anybody: who owns one network must not be all that a viewer knows, but where nearly all are of one, it serves.
    fn mend_variety(&mut self, now: Ms) {
        if self.links.is_one_network() {
            self.crowded.clear();
            return;
        }
        // Above three quarters the tour gives connections up.
        let count_max = self.settings.neighbors_max as usize * 3 / 4;
        let crowded: Vec<PeerId> = self.crowded.iter().copied().take(CROWDED_MAX).collect();
        for id in crowded {
            self.crowded.remove(&id);
            let Some(Crowd { network, mut wanted }) = self.links.crowd(id, &self.settings) else { continue };
            for _ in 0..STRANGERS_MAX {
                if wanted == 0 || self.links.count(id) >= count_max {
                    break;
                }
                let (random, at) = (self.next_random(), self.next_random());
                let Some(other) = self.links.stranger(network, random, at) else { break };
                let is_free = self.links.count(other) < count_max;
                if is_free && self.links.can_introduce(now, id, other, &self.settings) {
                    self.links.introduce(now, id, other);
                    self.introduce(id, other);
                    wanted -= 1;
                }
            }
        }
    }

    #[allow(clippy::cast_possible_truncation)]
    fn next_random(&mut self) -> PeerId {
        // xorshift64*: plenty for choosing strangers, and the same on every platform.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as PeerId
    }
}

/// The place of somebody who no longer takes part in a stripe.
fn nowhere(stripe: u8) -> Place {
    Place { stripe, root: false, parent: None, children: Vec::new(), expected_ms: 0 }
}

/// About how long the blocks of a usual piece are. The exact rule is that of the digest records; a plan needs to know how long one
/// takes.
fn usual_block_bytes(piece_bytes: u32) -> u32 {
    (piece_bytes / 12).clamp(*BLOCK_BYTES.start(), *BLOCK_BYTES.end()).min(piece_bytes.max(1))
}

#[cfg(test)]
mod tests;
