//! What the planner tells about itself and its viewers.

use shoal_tracker_protocol::PeerId;

use super::forest::{Forest, Source};
use super::{Output, Planner, nowhere};

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

impl Planner {
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
}
