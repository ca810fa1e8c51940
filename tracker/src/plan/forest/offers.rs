//! The orders in which places are offered. They are kept up to date with every change: whoever looks for a parent must not
//! have to look through all viewers.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use shoal_tracker_protocol::PeerId;

use super::{Forest, HOP_MS, Source};

impl Forest {
    pub(in crate::plan) fn reindex(&mut self, viewer: PeerId) {
        for stripe in 0..self.stripes {
            self.reindex_stripe(viewer, stripe);
        }
        let Some(node) = self.nodes.get(&viewer) else { return };
        let key = (node.free() > 0).then(|| (self.excess(node), Reverse(node.free())));
        let old = node.spare_key;
        if key != old {
            if let Some((excess, free)) = old {
                self.spare.remove(&(excess, free, viewer));
            }
            if let Some((excess, free)) = key {
                self.spare.insert((excess, free, viewer));
            }
            let node = self.nodes.get_mut(&viewer).expect("just seen");
            node.spare_key = key;
        }
    }

    pub(super) fn reindex_stripe(&mut self, viewer: PeerId, stripe: u8) {
        let at = usize::from(stripe);
        let Some(node) = self.nodes.get(&viewer) else { return };
        let seat = &node.seats[at];
        let is_open = node.has_home(stripe) && seat.source != Source::Nobody;
        let interior = || seat.children.iter().filter(|child| self.nodes[child].has_home(stripe)).count();
        let after = |children: u32| seat.expected_ms + (children + 1) * node.block_ms + 2 * HOP_MS;
        let leaf_key = (is_open && node.free() > 0).then(|| after(node.used));
        let top_key = (is_open && node.used <= node.slots).then(interior).and_then(|interior| {
            let can_displace = interior < seat.children.len();
            let interior = u32::try_from(interior).unwrap_or(u32::MAX);
            (node.free() > 0 || can_displace).then(|| after(interior))
        });
        let (old_leaf, old_top) = (seat.leaf_key, seat.top_key);
        replace(&mut self.for_leaves[at], viewer, old_leaf, leaf_key);
        replace(&mut self.for_tops[at], viewer, old_top, top_key);
        let seat = self.seat_mut(viewer, stripe);
        seat.leaf_key = leaf_key;
        seat.top_key = top_key;
    }
}

fn replace(index: &mut BTreeSet<(u32, PeerId)>, viewer: PeerId, old: Option<u32>, new: Option<u32>) {
    if old == new {
        return;
    }
    if let Some(old) = old {
        index.remove(&(old, viewer));
    }
    if let Some(new) = new {
        index.insert((new, viewer));
    }
}
