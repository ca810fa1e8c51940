//! How much each viewer may still give, and in which stripes: uplinks, the slots that they carry, homes, and what of
//! them stays unplanned.

use shoal_tracker_protocol::PeerId;

use super::{Forest, Node};

/// A line is not taken for slower than this: what is measured of it then is noise.
const LINE_MIN_KBPS: u32 = 100;

impl Forest {
    /// Sets what the viewer may be planned on for this rendition and, where it had none or has more than it can use, its home
    /// stripes; `line_kbps` is all of its uplink.
    pub(in crate::plan) fn set_uplink(&mut self, viewer: PeerId, kbps: u32, line_kbps: u32) {
        let block_ms = (self.block_bits / line_kbps.max(LINE_MIN_KBPS)).max(1);
        let slots = self.slots_of(kbps);
        let node = self.nodes.get_mut(&viewer).expect("only called for planned viewers");
        self.uplinks_kbps = self.uplinks_kbps - u64::from(node.uplink_kbps) + u64::from(kbps);
        node.uplink_kbps = kbps;
        node.block_ms = block_ms;
        self.set_slots(viewer, slots);
    }

    fn set_slots(&mut self, viewer: PeerId, slots: u32) {
        self.count_supply(viewer, -1);
        let node = self.nodes.get_mut(&viewer).expect("only called for planned viewers");
        node.slots = slots;
        if slots == 0 {
            // A leech keeps no home; those below it move (`grow.rs` sheds them).
            node.homes = 0;
        }
        let wanted = self.settings.interior_stripes.min(slots.div_ceil(self.settings.home_slots_min));
        let mut homes = node.homes;
        while homes.count_ones() < wanted.min(u32::from(self.stripes)) {
            let neediest = (0..self.stripes)
                .filter(|stripe| homes & (1 << stripe) == 0)
                .min_by_key(|stripe| (self.supply[usize::from(*stripe)], *stripe))
                .expect("fewer homes than stripes");
            homes |= 1 << neediest;
        }
        self.nodes.get_mut(&viewer).expect("just seen").homes = homes;
        self.count_supply(viewer, 1);
        self.reindex(viewer);
    }

    /// Makes the viewer interior in one more stripe.
    pub(in crate::plan) fn add_home(&mut self, viewer: PeerId, stripe: u8) {
        self.change_homes(viewer, |homes| homes | 1 << stripe);
    }

    /// Gives up homes without children where the viewer has more than it is meant to.
    pub(in crate::plan) fn drop_idle_homes(&mut self, viewer: PeerId) {
        let wanted = self.settings.interior_stripes;
        let Some(node) = self.nodes.get(&viewer) else { return };
        let mut homes = node.homes;
        for stripe in 0..self.stripes {
            let idle = node.seats[usize::from(stripe)].children.is_empty();
            if homes.count_ones() > wanted && homes & (1 << stripe) != 0 && idle {
                homes &= !(1 << stripe);
            }
        }
        if homes != node.homes {
            self.change_homes(viewer, |_| homes);
        }
    }

    fn change_homes(&mut self, viewer: PeerId, change: impl Fn(u16) -> u16) {
        self.count_supply(viewer, -1);
        if let Some(node) = self.nodes.get_mut(&viewer) {
            node.homes = change(node.homes);
        }
        self.count_supply(viewer, 1);
        self.reindex(viewer);
    }

    fn count_supply(&mut self, viewer: PeerId, sign: i32) {
        let Some(node) = self.nodes.get(&viewer) else { return };
        let share = node.slots / node.homes.count_ones().max(1);
        for stripe in 0..self.stripes {
            if node.homes & (1 << stripe) != 0 {
                let supply = &mut self.supply[usize::from(stripe)];
                *supply = supply.saturating_add_signed(sign * i32::try_from(share).unwrap_or(i32::MAX));
            }
        }
    }

    fn slots_of(&self, kbps: u32) -> u32 {
        let usable = u64::from(kbps) * u64::from(100 - self.reserve_percent);
        let slots = usable * u64::from(self.stripes) / (100 * u64::from(self.rate_kbps));
        u32::try_from(slots).unwrap_or(u32::MAX).min(self.settings.children_max)
    }

    /// In how many stripes a viewer had better have children at most: few in large swarms, so that its leaving hurts in
    /// few; as many as needed in tiny ones, where a stripe has no more than n - 1 children to give.
    pub(in crate::plan) fn homes_max(&self) -> u32 {
        let viewers = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let stripes = u32::from(self.stripes);
        if viewers <= stripes {
            stripes
        } else if viewers <= 10 * stripes {
            stripes.div_ceil(2).max(self.settings.interior_stripes + 1)
        } else {
            self.settings.interior_stripes + 1
        }
    }

    /// How many stripes too many a viewer would be interior in if it took up one more.
    pub(in crate::plan) fn excess(&self, node: &Node) -> u32 {
        (node.interior() + 1).saturating_sub(self.homes_max())
    }

    /// Adapts the part of every uplink that is left unplanned to how much the swarm has to spare: indifferent where
    /// uplinks are plenty, each percent costs a percent where they are scarce.
    pub(in crate::plan) fn adapt_reserve(&mut self) {
        let needed = u64::from(self.rate_kbps) * self.nodes.len().max(1) as u64;
        let margin_percent = self.uplinks_kbps * 100 / needed;
        let (low, high) = (self.settings.reserve_min_percent, self.settings.reserve_max_percent);
        // From the minimum at 105 % of what is needed to the maximum at 145 %.
        let above = u32::try_from(margin_percent.clamp(105, 145) - 105).expect("at most 40");
        let wanted = low + (high - low) * above / 40;
        if wanted.abs_diff(self.reserve_percent) >= 2 {
            self.reserve_percent = wanted;
            let viewers: Vec<(PeerId, u32)> = self.nodes.iter().map(|(id, n)| (*id, n.uplink_kbps)).collect();
            for (viewer, kbps) in viewers {
                let slots = self.slots_of(kbps);
                self.set_slots(viewer, slots);
            }
        }
    }
}
