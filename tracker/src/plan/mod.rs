//! The seeding planner: which few viewers fetch which stripe of a rendition's blocks from the origin, who pushes them on
//! to whom, and who ought to be connected for that.
//!
//! Pure: takes what happened to viewers and links, and the time; returns messages. No clock, no socket, no unseeded
//! randomness, ordered collections only: the simulator runs it as it is. The work for an event does not depend on the
//! size of the swarm but for logarithms. Sending the messages, tokens and bans are the tracker's business.
//!
//! One [`Planner`] plans one swarm (or one sub-swarm of a very large one) with all its renditions, because a connection
//! between two viewers serves all renditions. Reading order: `links.rs`, `forest.rs`, `grow.rs`, `mesh.rs`. Policy in prose and
//! the measurements behind it: `README.md` beside this file.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use shoal_tracker_protocol::{PeerId, Place};

mod forest;
mod groups;
mod grow;
mod links;
mod locality;
mod mesh;
mod settings;
mod trust;
mod views;

pub use groups::Groups;
pub use locality::Locality;
pub use settings::Settings;
pub use views::Summary;

use forest::Forest;
use links::Links;
use trust::Trust;

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
/// Changes of a viewer's uplink below this percentage are measurement noise.
const UPLINK_STEP_PERCENT: u32 = 15;
/// The same for a rendition's rate.
const RATE_STEP_PERCENT: u32 = 20;

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
    trust: Trust,
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
    /// Viewers on whom nothing is planned, by when that ends.
    mistrusted: BTreeSet<(Ms, PeerId)>,
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
            mistrusted: BTreeSet::new(),
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
        let viewer =
            Viewer { shares, uplink_kbps: None, renditions: BTreeSet::new(), trust: Trust::default() };
        self.viewers.insert(id, viewer);
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

    /// A child says that nothing comes from its parent in a stripe, though they are connected. A parent of whom most children say
    /// so gets no more for a while.
    pub fn parent_silent(&mut self, now: Ms, child: PeerId, parent: PeerId, rendition: u8, stripe: u8) {
        let Some(forest) = self.forests.get_mut(&rendition) else { return };
        if !forest.parent_silent(now, child, parent, stripe) {
            return;
        }
        let Some(viewer) = self.viewers.get_mut(&parent) else { return };
        // Who has just come cannot know yet, but until there is proof silence speaks for the parent. Of one that was put out before
        // it does not: counted as content, those who take the places of the ones that have gone would keep it in its place.
        let judges_after = if viewer.trust.was_lost() { self.settings.judges_after_ms } else { 0 };
        let since = now.saturating_sub(judges_after);
        let children: BTreeSet<PeerId> =
            self.forests.values().flat_map(|forest| forest.children(parent, since)).collect();
        let is_content = |other: &&PeerId| **other != child && !viewer.trust.has_complained(**other);
        let content = children.iter().filter(is_content).count();
        if let Some(until) = viewer.trust.complain(now, child, content) {
            self.mistrusted.insert((until, parent));
            self.spread_uplink(now, parent);
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
        while let Some(&(until, viewer)) = self.mistrusted.first()
            && until <= now
        {
            self.mistrusted.pop_first();
            self.spread_uplink(now, viewer);
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

    /// Splits what a viewer can give among the renditions it plays, by their rates.
    fn spread_uplink(&mut self, now: Ms, id: PeerId) {
        let Some(viewer) = self.viewers.get(&id) else { return };
        let played = || viewer.renditions.iter().filter_map(|number| self.forests.get(number));
        let rate_kbps: u64 = played().map(|forest| u64::from(forest.rate_kbps)).sum();
        let unknown_kbps = rate_kbps * u64::from(self.settings.uplink_unknown_percent) / 100;
        let uplink_kbps = match (viewer.shares, viewer.uplink_kbps) {
            _ if viewer.trust.is_lost(now) => 0,
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
