//! Who gets which parent: attaching, displacing, repairing, choosing roots, bettering. Works in small steps on the seats
//! that changed, so that an event costs the same in a swarm of ten and of ten thousand.
//!
//! Moves are made before the old edge is broken: a fed seat that moves keeps its parent until the link to the new one
//! is open. The books are in `forest.rs`, the links in `links.rs`.

use shoal_tracker_protocol::PeerId;

use super::Ms;
use super::forest::{Forest, Move, Source};
use super::links::{Link, Links};

/// A pair that was told to meet is waited for this long before another candidate is tried beside it: the 95th
/// percentile of connection set-up.
const AWAIT_MS: Ms = 3_000;
/// A seat for which nobody has room is looked at again after this time, doubled with every try up to the limit.
const RETRY_MS: Ms = 1_500;
const RETRY_MAX_MS: Ms = 12_000;
/// Seats looked at in one tick. A crowd of joiners is worked off over several ticks, instead of delaying repairs.
const LOOKS_MAX: usize = 4_000;
/// Entries of an index that are examined for one seat.
const CANDIDATES_MAX: usize = 12;
/// An estimated gain below this is not worth a move.
const GAIN_MIN_MS: u32 = 80;
/// Taking up a further home stripe to help out costs as much as this delay, so that others are preferred.
const NEW_HOME_COST_MS: u32 = 120;
/// A parent that did not deliver is not given to the same child again for this long.
const AVOID_MS: Ms = 30_000;
/// A child is heard no sooner about the same stripe. Viewers complain every 2.5 s at most; this leaves them some jitter.
const COMPLAINT_MS: Ms = 2_000;
/// So long after it was moved, a seat and all below it may well have nothing yet.
const SETTLE_MS: Ms = 2_000;
/// Trees are not deeper; where one is, the complaint is believed.
const ANCESTORS_MAX: usize = 16;
/// A viewer should have stayed this long before it is made a root, where there is a choice: a third of all viewers leave
/// within the first minute.
const ROOT_AGE_MS: Ms = 60_000;
/// And so long before a root hands its role over to it: a page that has just been opened is busy with starting, and what
/// it fetched late everybody below it would get late.
const SETTLED_MS: Ms = 10_000;

/// What came of looking for a parent.
enum Found {
    /// Connected, has room.
    Linked(PeerId, u32),
    /// Has room, is being connected or to be connected.
    Unlinked(PeerId),
    Nobody,
}

/// Introductions that the trees ask for: who, to whom.
pub(super) type Wishes = Vec<(PeerId, PeerId)>;

impl Forest {
    /// One round of work on what is due. Appends the introductions that it has made to `wishes`.
    pub(super) fn grow(&mut self, now: Ms, links: &mut Links, wishes: &mut Wishes) {
        self.now = now;
        self.adapt_reserve();
        for stripe in 0..self.stripes {
            self.keep_roots(now, stripe, links);
        }
        let mut looks = 0;
        while let Some(&(due, viewer, stripe)) = self.wanting.first()
            && due <= now
            && looks < LOOKS_MAX
        {
            self.wanting.pop_first();
            self.seat_mut(viewer, stripe).due = None;
            self.look(now, viewer, stripe, links, wishes);
            looks += 1;
        }
    }

    /// Finds a seat its parent, or its next appointment.
    fn look(&mut self, now: Ms, viewer: PeerId, stripe: u8, links: &mut Links, wishes: &mut Wishes) {
        let seat = self.seat(viewer, stripe);
        if let Some((awaited, until)) = seat.awaits
            && (until <= now || links.rtt_ms(viewer, awaited).is_some())
        {
            self.stop_awaiting(viewer, stripe);
        }
        let seat = self.seat(viewer, stripe);
        let is_settled = match (seat.source, seat.moving) {
            (Source::Nobody | Source::Origin { stopgap: true }, _) => false,
            (Source::Origin { stopgap: false }, moving) => moving != Move::Demoted,
            (Source::Peer(_), Move::Stay) => true,
            (Source::Peer(parent), Move::Crowded) => self.nodes[&parent].used <= self.nodes[&parent].slots,
            (Source::Peer(_), _) => false,
        };
        if is_settled {
            self.stop_awaiting(viewer, stripe);
            self.seat_mut(viewer, stripe).moving = Move::Stay;
            return;
        }
        let is_choosy = matches!(self.seat(viewer, stripe).moving, Move::Better);
        let expected_ms = self.seat(viewer, stripe).expected_ms;
        match self.find(now, viewer, stripe, links) {
            Found::Linked(parent, arrival_ms) if !is_choosy || arrival_ms + GAIN_MIN_MS / 2 < expected_ms => {
                self.settle(now, viewer, stripe, parent, links);
            }
            Found::Linked(..) => self.seat_mut(viewer, stripe).moving = Move::Stay,
            Found::Unlinked(parent) => {
                if matches!(links.get(viewer, parent), Some(Link::Introduced { .. })) {
                    self.await_parent(viewer, stripe, parent, now + AWAIT_MS);
                } else {
                    links.introduce(now, viewer, parent);
                    wishes.push((viewer, parent));
                    self.await_parent(viewer, stripe, parent, now + AWAIT_MS);
                }
            }
            Found::Nobody => {
                let seat = self.seat_mut(viewer, stripe);
                if seat.moving == Move::Better {
                    seat.moving = Move::Stay;
                    return;
                }
                if let (Source::Peer(parent), Move::Silent) = (seat.source, seat.moving) {
                    // It may well have sent this child away, and then would never push to it again, whatever the plan says.
                    // Who has children of its own fetches from the origin until there is somebody.
                    self.cut(now, viewer, parent, stripe, links);
                    return;
                }
                seat.tries = (seat.tries + 1).min(8);
                let wait = (RETRY_MS << (seat.tries - 1)).min(RETRY_MAX_MS);
                // The seats of one viewer need not all try in the same tick.
                self.look_at(now + wait + u64::from(stripe) * 40, viewer, stripe);
            }
        }
    }

    /// Puts a seat under a connected parent, and sees to the leaf that must make room for it.
    fn settle(&mut self, now: Ms, viewer: PeerId, stripe: u8, parent: PeerId, links: &mut Links) {
        if !self.nodes[&parent].has_home(stripe) {
            self.add_home(parent, stripe);
        }
        self.attach(viewer, stripe, Source::Peer(parent), links);
        self.shed(now, parent, stripe);
    }

    /// Has the weakest children look elsewhere while a viewer has more than it can feed; in `first` before other stripes.
    pub(super) fn shed(&mut self, now: Ms, parent: PeerId, first: u8) {
        let node = &self.nodes[&parent];
        let mut excess = node.used.saturating_sub(node.slots) as usize;
        for stripe in std::iter::once(first).chain((0..self.stripes).filter(|stripe| *stripe != first)) {
            if excess == 0 {
                return;
            }
            let mut weakest: Vec<_> = self.seat(parent, stripe).children.clone();
            weakest.sort_by_cached_key(|child| {
                let node = &self.nodes[child];
                (
                    !node.seats[usize::from(stripe)].children.is_empty(),
                    node.has_home(stripe),
                    node.uplink_kbps,
                )
            });
            for child in weakest.into_iter().take(excess) {
                excess -= 1;
                let seat = self.seat_mut(child, stripe);
                if seat.moving == Move::Stay {
                    seat.moving = Move::Crowded;
                    self.look_at(now, child, stripe);
                }
            }
        }
    }

    /// A child reports that its parent does not deliver. Says whether that is held against the parent.
    pub(super) fn parent_silent(&mut self, now: Ms, child: PeerId, parent: PeerId, stripe: u8) -> bool {
        let is_edge = self.nodes.contains_key(&child)
            && stripe < self.stripes
            && self.seat(child, stripe).source == Source::Peer(parent);
        if is_edge && self.is_explained(now, parent, stripe) {
            // Should it have sent the child away, it is to feed it again.
            self.tell(parent, stripe);
        } else if is_edge {
            let seat = self.seat_mut(child, stripe);
            if seat.avoid.is_some_and(|(_, until)| now + AVOID_MS < until + COMPLAINT_MS) {
                return false;
            }
            seat.moving = Move::Silent;
            seat.avoid = Some((parent, now + AVOID_MS));
            self.look_at(now, child, stripe);
            return true;
        }
        false
    }

    /// Whether somebody further up has complained too, or was moved a moment ago: then all below wait for that, and moving
    /// each of them would only tear a tree apart that is about to be fed again. Who is still not fed asks once more.
    fn is_explained(&self, now: Ms, viewer: PeerId, stripe: u8) -> bool {
        let mut at = viewer;
        for _ in 0..ANCESTORS_MAX {
            let seat = self.seat(at, stripe);
            if seat.moving == Move::Silent || now.saturating_sub(seat.since) < SETTLE_MS {
                return true;
            }
            let Source::Peer(parent) = seat.source else { return false };
            at = parent;
        }
        false
    }

    /// The link to `parent` is open: the seats that wait for it, or for anybody, are looked at.
    pub(super) fn linked(&mut self, now: Ms, viewer: PeerId, other: PeerId) {
        for (child, parent) in [(viewer, other), (other, viewer)] {
            if !self.nodes.contains_key(&child) || !self.nodes.contains_key(&parent) {
                continue;
            }
            for stripe in 0..self.stripes {
                self.heard_of(now, child, parent, stripe);
                let seat = self.seat(child, stripe);
                if matches!(seat.source, Source::Nobody | Source::Origin { stopgap: true }) {
                    self.look_at(now, child, stripe);
                }
            }
        }
    }

    fn find(&self, now: Ms, viewer: PeerId, stripe: u8, links: &Links) -> Found {
        let is_top = self.nodes[&viewer].has_home(stripe);
        let offer = |other: PeerId| self.offer(now, viewer, other, stripe, (is_top, false));
        let can_meet = |other: PeerId| links.can_introduce(now, viewer, other, &self.settings);
        // Helping out in one stripe more is fine, in many not: see `Forest::homes_max`.
        let is_at_ease = |other: PeerId| {
            self.nodes.get(&other).is_some_and(|node| node.has_home(stripe) || self.excess(node) == 0)
        };
        let offer_now = |other: PeerId| self.offer(now, viewer, other, stripe, (is_top, true));
        // Whoever offers nothing needs no closer look: this is where a rush of joiners spends its time.
        let linked = |at_ease: bool| {
            let linked = links
                .connected(viewer)
                .filter_map(|(other, rtt_ms)| Some((offer_now(other)? + rtt_ms / 2, other)));
            linked.filter(|(_, other)| !at_ease || is_at_ease(*other)).min()
        };
        if let Some((arrival, parent)) = linked(true) {
            return Found::Linked(parent, arrival);
        }
        // Meetings under way serve several stripes at once, which keeps the number of connections low.
        let coming = links.introduced(viewer).filter_map(|other| Some((offer(other)?, other)));
        if let Some((_, parent)) = coming.filter(|(_, other)| is_at_ease(*other)).min() {
            return Found::Unlinked(parent);
        }
        let index = if is_top { &self.for_tops } else { &self.for_leaves };
        let index = index[usize::from(stripe)].iter().take(CANDIDATES_MAX).map(|(_, other)| *other);
        // Somebody near may be a good parent without being among the first of all: only those who are at home here, or
        // every stripe would find a further one.
        let near = links
            .near(viewer)
            .into_iter()
            .filter(|other| self.nodes.get(other).is_some_and(|node| node.has_home(stripe)));
        let best = index.chain(near).filter(|other| can_meet(*other)).filter_map(|other| {
            let unreachable = 100 - links.reachable_percent(other);
            Some((offer(other)? + 4 * unreachable + links.distance_ms(viewer, other), other))
        });
        if let Some((_, parent)) = best.min() {
            return Found::Unlinked(parent);
        }
        let spare = |limit: u32| {
            let spare =
                self.spare.iter().take_while(move |(excess, ..)| *excess <= limit).take(CANDIDATES_MAX);
            spare.map(|(_, _, other)| *other).find(|other| can_meet(*other) && offer(*other).is_some())
        };
        if let Some(parent) = spare(0) {
            return Found::Unlinked(parent);
        }
        if let Some((arrival, parent)) = linked(false) {
            return Found::Linked(parent, arrival);
        }
        spare(u32::MAX).map_or(Found::Nobody, Found::Unlinked)
    }

    /// When a block would reach `viewer` under `other`, as far as one can tell before they are connected; none if that
    /// place is not to be had.
    fn offer(
        &self,
        now: Ms,
        viewer: PeerId,
        other: PeerId,
        stripe: u8,
        (is_top, is_linked): (bool, bool),
    ) -> Option<u32> {
        let node = self.nodes.get(&other)?;
        let seat = &node.seats[usize::from(stripe)];
        let mine = self.seat(viewer, stripe);
        let is_avoided = matches!(mine.avoid, Some((avoided, until)) if avoided == other && until > now);
        if other == viewer
            || is_avoided
            || seat.source == Source::Nobody
            || mine.source == Source::Peer(other)
        {
            return None;
        }
        let has_home = node.has_home(stripe);
        // Where the stripe ends here, what is reserved for those who are still to be connected, and may never be, is there for
        // those who are.
        let has_room = node.free() > 0 || is_linked && seat.children.is_empty() && node.used < node.slots;
        let strength = self.nodes[&viewer].uplink_kbps;
        // Only who comes to feed others asks how many such are there already.
        let interior = || seat.children.iter().filter(|child| self.nodes[child].has_home(stripe)).count();
        let interior = if is_top { interior() } else { 0 };
        // A strong viewer takes the place of a leaf, which then finds room below it.
        let displaces =
            is_top && has_home && node.used <= node.slots && strength > 0 && interior < seat.children.len();
        if !has_room && !displaces {
            return None;
        }
        if !mine.children.is_empty() && self.is_below(stripe, other, viewer) {
            return None;
        }
        let before = if is_top { u32::try_from(interior).unwrap_or(u32::MAX) } else { node.used };
        let extra = if has_home { 0 } else { NEW_HOME_COST_MS * (1 + self.excess(node)) };
        Some(seat.expected_ms + (before + 1) * node.block_ms + extra)
    }

    /// Keeps the wanted number of roots in a stripe.
    fn keep_roots(&mut self, now: Ms, stripe: u8, links: &mut Links) {
        let at = usize::from(stripe);
        let wanted = if self.nodes.len() < self.settings.large_swarm as usize { 1 } else { 2 };
        let stopgap =
            |forest: &Self, id: &PeerId| forest.seat(*id, stripe).source == Source::Origin { stopgap: true };
        let (stopgaps, regular): (Vec<PeerId>, Vec<PeerId>) =
            self.roots[at].iter().partition(|id| stopgap(self, id));
        let mut regular: Vec<PeerId> =
            regular.into_iter().filter(|id| self.seat(*id, stripe).moving != Move::Demoted).collect();
        // A root that feeds nobody and has no room, because its uplink turned out weak or is taken in other stripes, would
        // leave everybody else in the stripe without a source for ever.
        let feeds = |forest: &Self, id: &PeerId| {
            let node = &forest.nodes[id];
            !node.seats[at].children.is_empty() || node.used < node.slots
        };
        if self.nodes.len() > 1 && !self.spare.is_empty() && !regular.iter().any(|id| feeds(self, id)) {
            for id in std::mem::take(&mut regular) {
                self.seat_mut(id, stripe).moving = Move::Demoted;
                self.look_at(now, id, stripe);
            }
        }
        if regular.len() > wanted {
            // The weakest goes below another; until it is connected there, it stays.
            let weakest = regular.iter().min_by_key(|id| (self.root_worth(now, **id, stripe), **id));
            if let Some(&weakest) = weakest {
                self.seat_mut(weakest, stripe).moving = Move::Demoted;
                self.look_at(now, weakest, stripe);
            }
        } else if regular.len() < wanted {
            // Those who already fetch cost nothing more; then those near the top, whose subtrees stay as they are.
            let near_top = self.for_tops[at].iter().take(CANDIDATES_MAX).map(|(_, id)| *id);
            let candidates = stopgaps.into_iter().chain(near_top);
            let best = candidates
                .filter(|id| !regular.contains(id))
                .max_by_key(|id| (self.root_worth(now, *id, stripe), *id));
            // The first of a stripe: nobody is fed yet. Whoever gives most starts it.
            let best = best.or_else(|| {
                let first = self.spare.iter().take(CANDIDATES_MAX).map(|(_, _, id)| *id);
                let first = first.max_by_key(|id| (self.root_worth(now, *id, stripe), *id));
                regular.is_empty().then(|| first.or_else(|| self.nodes.keys().next().copied())).flatten()
            });
            if let Some(root) = best {
                if self.nodes[&root].slots > 0 && !self.nodes[&root].has_home(stripe) {
                    self.add_home(root, stripe);
                }
                self.attach(root, stripe, Source::Origin { stopgap: false }, links);
            }
        } else if let [root] = regular[..] {
            self.share_roots(now, root, stripe, links);
        }
    }

    /// Uplink, discounted for those who may be about to leave, for those who are roots already and for load.
    fn root_worth(&self, now: Ms, viewer: PeerId, stripe: u8) -> u64 {
        let node = &self.nodes[&viewer];
        let age = now.saturating_sub(node.joined).min(ROOT_AGE_MS) + 5_000;
        let others = (0..self.stripes)
            .filter(|other| {
                *other != stripe && matches!(node.seats[usize::from(*other)].source, Source::Origin { .. })
            })
            .count() as u64;
        u64::from(node.free() + u32::try_from(node.seats[usize::from(stripe)].children.len()).unwrap_or(0))
            * age
            / (1 + others)
    }

    /// In tiny swarms one viewer may have become the root of many stripes because it came first: hands one over to a
    /// connected viewer that bears less, so that everybody gives about the same part of what he can.
    fn share_roots(&mut self, now: Ms, root: PeerId, stripe: u8, links: &mut Links) {
        let load = |node: &super::forest::Node| u64::from(node.used) * 1000 / u64::from(node.slots.max(1));
        let node = &self.nodes[&root];
        let here = node.seats[usize::from(stripe)].children.len() as u64;
        if here == 0 {
            return;
        }
        let mine = load(node);
        let share = |slots: u32| here * 1000 / u64::from(slots.max(1));
        let successor = links
            .connected(root)
            .filter(|(other, _)| {
                self.nodes.get(other).is_some_and(|node| {
                    now.saturating_sub(node.joined) >= SETTLED_MS
                        && node.slots as u64 >= here
                        && node.free() as u64 >= here
                        && (node.has_home(stripe) || self.excess(node) == 0)
                        && load(node) + share(node.slots) + share(self.nodes[&root].slots) / 2 < mine
                })
            })
            .min_by_key(|(other, _)| (load(&self.nodes[other]), *other));
        let Some((successor, _)) = successor else { return };
        if !self.nodes[&successor].has_home(stripe) {
            self.add_home(successor, stripe);
        }
        self.attach(successor, stripe, Source::Origin { stopgap: false }, links);
        self.attach(root, stripe, Source::Peer(successor), links);
        let children = self.seat(root, stripe).children.clone();
        for child in children {
            if links.rtt_ms(child, successor).is_some() && self.nodes[&successor].free() > 0 {
                self.attach(child, stripe, Source::Peer(successor), links);
            } else {
                self.consider(now, child, stripe);
            }
        }
        self.drop_idle_homes(root);
    }

    /// Has a fed seat look for a better place.
    fn consider(&mut self, now: Ms, viewer: PeerId, stripe: u8) {
        let seat = self.seat_mut(viewer, stripe);
        if seat.moving == Move::Stay && matches!(seat.source, Source::Peer(_)) {
            seat.moving = Move::Better;
            self.look_at(now, viewer, stripe);
        }
    }

    /// Looks whether `viewer` could get its stripes much sooner elsewhere; part of a slow round over everybody.
    pub(super) fn better(&mut self, now: Ms, viewer: PeerId) {
        self.drop_idle_homes(viewer);
        for stripe in 0..self.stripes {
            let node = &self.nodes[&viewer];
            let seat = &node.seats[usize::from(stripe)];
            let is_top = node.has_home(stripe);
            let index = if is_top { &self.for_tops } else { &self.for_leaves };
            let Some((best, _)) = index[usize::from(stripe)].first() else { continue };
            // A leaf gains little by moving: nobody waits for it.
            let gain_min = if is_top { GAIN_MIN_MS } else { 3 * GAIN_MIN_MS };
            if best + gain_min + best / 4 < seat.expected_ms {
                self.consider(now, viewer, stripe);
            }
        }
    }
}
