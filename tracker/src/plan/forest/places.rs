//! What viewers are told of their places, and whose have changed.

use std::cmp::Reverse;

use shoal_tracker_protocol::{PeerId, Place};

use super::{Forest, Source};

impl Forest {
    /// The viewer is to be told of its place in this stripe.
    pub(in crate::plan) fn tell(&mut self, viewer: PeerId, stripe: u8) {
        *self.dirty.entry(viewer).or_default() |= 1 << stripe;
    }

    /// What changed for whom since the last call.
    pub(in crate::plan) fn take_places(&mut self) -> Vec<(PeerId, Vec<Place>)> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut changed = Vec::with_capacity(dirty.len());
        for (viewer, stripes) in dirty {
            if !self.nodes.contains_key(&viewer) {
                continue;
            }
            let mut places = Vec::new();
            for stripe in (0..self.stripes).filter(|stripe| stripes & (1 << stripe) != 0) {
                let seat = self.seat_mut(viewer, stripe);
                seat.sent_expected_ms = seat.expected_ms;
                places.push(self.place(viewer, stripe));
            }
            changed.push((viewer, places));
        }
        changed
    }

    fn place(&self, viewer: PeerId, stripe: u8) -> Place {
        let seat = self.seat(viewer, stripe);
        let mut children = seat.children.clone();
        // Those who feed others first, the strongest of them first: every level below gains what they gain.
        children.sort_by_cached_key(|child| {
            let node = &self.nodes[child];
            let is_leaf = node.seats[usize::from(stripe)].children.is_empty() && !node.has_home(stripe);
            (is_leaf, Reverse(node.uplink_kbps), *child)
        });
        Place {
            stripe,
            root: matches!(seat.source, Source::Origin { .. }),
            parent: match seat.source {
                Source::Peer(parent) => Some(parent),
                _ => None,
            },
            children,
            expected_ms: seat.expected_ms,
        }
    }
}
