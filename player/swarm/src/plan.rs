//! The local peer's places in the seeding plan, and how long blocks take along it.

use crate::{
    Span, Time,
    input::{PeerId, Place},
    map::Map,
};

/// At most this many children in one stripe are taken from a plan or adopted: what the bound on a plan message allows,
/// and far more than an uplink of twice the stream's rate feeds.
pub(crate) const CHILDREN_MAX: usize = 48;
/// A parent is silent if this many of its stripe's blocks in a row came from elsewhere, over at least this time: a
/// parent that is only late still sends what nobody gave in the meantime, and one that has nothing itself has no blocks
/// that others have.
const SILENT_BLOCKS: u16 = 4;
const SILENT_AFTER: Span = Span::from_ms(2500);

/// The place in one stripe.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stripe {
    pub(crate) is_root: bool,
    /// By the plan, unless it sent the local peer away or fell silent.
    pub(crate) parent: Option<PeerId>,
    /// By the plan, whatever it does.
    planned_parent: Option<PeerId>,
    /// Asked by the local peer itself to push, because the plan's parent is gone.
    pub(crate) foster: Option<PeerId>,
    /// When the foster was asked.
    pub(crate) foster_since: Time,
    /// Since when the local peer is root.
    pub(crate) root_since: Time,
    /// When the last block came from the parent or foster.
    pub(crate) arrived_at: Time,
    /// Blocks that came from elsewhere since the parent's last one, and when the first of them did.
    missed: u16,
    missed_since: Time,
    has_complained: bool,
    /// By the plan, strongest uplink first, then those that asked.
    pub(crate) children: Vec<PeerId>,
    /// How many of the children are the plan's.
    pub(crate) planned: usize,
    /// What the planner expects.
    expected: Span,
    /// What was measured: mean and mean deviation, in microseconds; 0 before the first block.
    mean_us: u64,
    deviation_us: u64,
}

impl Stripe {
    /// Who pushes this stripe, by plan or by request.
    pub(crate) fn source(&self) -> Option<PeerId> {
        self.parent.or(self.foster)
    }

    /// A neighbor pushed a block, in time or not: if the plan names it, it is the parent, also after it sent the local
    /// peer away. Gives a foster parent that is no longer needed.
    pub(crate) fn pushed_by(&mut self, now: Time, peer: PeerId) -> Option<PeerId> {
        if self.planned_parent == Some(peer) {
            self.parent = Some(peer);
        }
        if self.source() != Some(peer) {
            return None;
        }
        self.arrived_at = now;
        self.missed = 0;
        self.has_complained = false;
        if self.parent == Some(peer) { self.foster.take().filter(|foster| *foster != peer) } else { None }
    }

    /// A block had to come from elsewhere.
    pub(crate) fn missed(&mut self, now: Time) {
        if self.missed == 0 {
            self.missed_since = now;
        }
        self.missed = self.missed.saturating_add(1);
    }

    /// Gives the parent if it is silent: blocks of the stripe came from elsewhere for a while, and none from it. The
    /// second time, or at once where nobody can find another, it is dropped.
    pub(crate) fn silent_parent(&mut self, now: Time, drops: bool) -> Option<PeerId> {
        let parent = self.parent?;
        if self.is_root || self.missed < SILENT_BLOCKS || now.since(self.missed_since) < SILENT_AFTER {
            return None;
        }
        if drops || self.has_complained {
            self.parent = None;
        }
        self.missed = 0;
        self.has_complained = true;
        Some(parent)
    }

    /// Learns from a pushed block how long after its record blocks of this stripe come.
    pub(crate) fn arrived(&mut self, after: Span) {
        // A block that took many seconds says that something broke, not how long blocks take.
        let sample = after.as_us().min(5_000_000);
        if self.mean_us == 0 {
            (self.mean_us, self.deviation_us) = (sample, sample / 4);
        } else {
            self.deviation_us = (self.deviation_us * 7 + self.mean_us.abs_diff(sample)) / 8;
            self.mean_us = (self.mean_us * 7 + sample) / 8;
        }
    }

    /// How long after its record a block of this stripe is expected.
    pub(crate) fn expected(&self) -> Span {
        if self.mean_us == 0 {
            return self.expected;
        }
        Span::from_us(self.mean_us + self.deviation_us)
    }
}

/// The local peer's places in one rendition.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) stripes: Vec<Stripe>,
}

impl Plan {
    pub(crate) fn new(stripes: u8) -> Self {
        let mut plan = Self { stripes: Vec::new() };
        for _ in 0..stripes.max(1) {
            plan.stripes.push(Stripe::default());
        }
        plan
    }

    pub(crate) fn stripe_count(&self) -> u8 {
        u8::try_from(self.stripes.len()).expect("made from a u8")
    }

    /// Takes over one place. Gives a foster parent that is no longer needed.
    pub(crate) fn place(&mut self, now: Time, place: &Place<'_>) -> Option<PeerId> {
        let stripe = self.stripes.get_mut(usize::from(place.stripe))?;
        if place.parent != stripe.parent || place.is_root != stripe.is_root {
            (stripe.mean_us, stripe.deviation_us) = (0, 0);
            (stripe.missed, stripe.has_complained) = (0, false);
        }
        if place.is_root && !stripe.is_root {
            stripe.root_since = now;
        }
        stripe.is_root = place.is_root;
        stripe.parent = place.parent;
        stripe.planned_parent = place.parent;
        stripe.expected = place.expected;
        let adopted: Vec<PeerId> = stripe.children.split_off(stripe.planned.min(stripe.children.len()));
        stripe.children.clear();
        stripe.children.extend_from_slice(&place.children[..place.children.len().min(CHILDREN_MAX)]);
        stripe.planned = stripe.children.len();
        for child in adopted {
            if stripe.children.len() < CHILDREN_MAX && !place.children.contains(&child) {
                stripe.children.push(child);
            }
        }
        let former = if stripe.is_root || stripe.parent.is_some() { stripe.foster.take() } else { None };
        // The plan's parent may be the very peer that was asked: it must not be told to stop.
        former.filter(|former| Some(*former) != stripe.parent)
    }

    /// Forgets a peer in all places.
    pub(crate) fn forget(&mut self, peer: PeerId) {
        for stripe in &mut self.stripes {
            stripe.parent = stripe.parent.filter(|parent| *parent != peer);
            stripe.planned_parent = stripe.planned_parent.filter(|parent| *parent != peer);
            stripe.foster = stripe.foster.filter(|foster| *foster != peer);
            stripe.remove_child(peer);
        }
    }
}

impl Stripe {
    /// Ends what a peer asked for itself; what the plan says stands.
    pub(crate) fn remove_adopted(&mut self, peer: PeerId) {
        if self.children.iter().skip(self.planned).any(|child| *child == peer) {
            self.remove_child(peer);
        }
    }

    pub(crate) fn remove_child(&mut self, peer: PeerId) -> bool {
        let Some(at) = self.children.iter().position(|child| *child == peer) else { return false };
        self.children.remove(at);
        self.planned -= usize::from(at < self.planned);
        true
    }
}

/// The plans of all renditions.
pub(crate) type Plans = Map<u8, Plan>;
