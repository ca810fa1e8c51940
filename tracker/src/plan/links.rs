//! Who is connected to whom, who is being introduced, and which pairs are known not to work.
//!
//! Shared by the trees of all renditions, because one peer connection carries them all. Decides only whether a pair
//! may be introduced; who ought to meet is decided in `grow.rs` (trees) and `mod.rs` (mesh).

use std::collections::{BTreeMap, BTreeSet};

use shoal_tracker_protocol::PeerId;

use super::locality::Locality;
use super::{Ms, Settings};

/// An introduction that neither worked nor failed for this long is counted as failed. ICE gives up after about 10 s
/// in every browser; the rest is for a report that travels.
const INTRODUCTION_MAX_MS: Ms = 13_000;
/// A pair that could not connect is not tried again for this long: the cause is nearly always the pair of NATs, which
/// does not change within a programme.
const FAILED_PAIR_MS: Ms = 300_000;
/// A connection that worked and broke may work again soon: a changed network, a page that slept.
const BROKEN_PAIR_MS: Ms = 15_000;
/// Failed pairs remembered for each viewer; the oldest is forgotten beyond it.
const FAILED_PAIRS_MAX: usize = 64;
/// Viewers of one place that are looked at when somebody near is wanted. Those behind them get their turn from others:
/// everybody starts to look at his own id.
const NEAR_MAX: usize = 8;

/// The state of a pair, as seen from one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Told to meet; nothing heard yet.
    Introduced { at: Ms },
    /// A data channel is open.
    Connected { rtt_ms: u32, uses: u32, since: Ms },
    /// Not to be introduced before this time.
    Refused { until: Ms },
}

/// What is wrong with a viewer's neighbors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crowd {
    /// The foreign network of which there are too many.
    pub(super) network: u32,
    /// How many of other networks it should have more.
    pub(super) wanted: usize,
}

/// One viewer's links.
#[derive(Debug, Default)]
struct Ends {
    links: BTreeMap<PeerId, Link>,
    connected: usize,
    introduced: usize,
    /// Attempts that worked and that failed, for guessing how reachable the viewer is.
    worked: u32,
    failed: u32,
    locality: Locality,
}

/// All links of a swarm. Kept symmetric: both ends of a pair always hold the same state.
#[derive(Debug, Default)]
pub(super) struct Links {
    ends: BTreeMap<PeerId, Ends>,
    /// Introductions under way, by when they are given up.
    expiries: BTreeSet<(Ms, PeerId, PeerId)>,
    /// Viewers of whom something is known of where they are, those near each other side by side.
    places: BTreeSet<(Locality, PeerId)>,
    /// Viewers by autonomous system; 0 where it is not known.
    networks: BTreeMap<u32, BTreeSet<PeerId>>,
    /// Of each viewer that is away, the pairs that are not to be tried when it is back.
    parked: BTreeMap<PeerId, Vec<(PeerId, Ms)>>,
}

impl Links {
    /// Takes a viewer in. What was known not to work before it was away, still does not.
    pub(super) fn add(&mut self, viewer: PeerId) {
        let network = self.ends.entry(viewer).or_default().locality.asn;
        self.networks.entry(network).or_default().insert(viewer);
        for (other, until) in self.parked.remove(&viewer).unwrap_or_default() {
            if self.ends.contains_key(&other) {
                self.set(viewer, other, Some(Link::Refused { until }));
            } else if let Some(theirs) = self.parked.get_mut(&other) {
                theirs.push((viewer, until));
            }
        }
    }

    /// As [`Self::remove`] for a viewer that may come back: its failed pairs are kept until [`Self::forget`].
    pub(super) fn park(&mut self, viewer: PeerId) -> Vec<PeerId> {
        let links = self.ends.get(&viewer).into_iter().flat_map(|ends| &ends.links);
        let refused = links.filter_map(|(other, link)| match link {
            Link::Refused { until } => Some((*other, *until)),
            _ => None,
        });
        let refused = refused.collect();
        let others = self.remove(viewer);
        self.parked.insert(viewer, refused);
        others
    }

    /// A viewer that was away is not expected any more.
    pub(super) fn forget(&mut self, viewer: PeerId) {
        self.parked.remove(&viewer);
    }

    /// Forgets a viewer; returns those who were connected to it or being introduced.
    pub(super) fn remove(&mut self, viewer: PeerId) -> Vec<PeerId> {
        let Some(ends) = self.ends.remove(&viewer) else { return Vec::new() };
        self.places.remove(&(ends.locality, viewer));
        self.leave_network(ends.locality.asn, viewer);
        let mut others = Vec::with_capacity(ends.links.len());
        for (other, link) in ends.links {
            self.unlist(viewer, other, link);
            if let Some(theirs) = self.ends.get_mut(&other) {
                theirs.links.remove(&viewer);
                theirs.count(Some(link), None);
            }
            if !matches!(link, Link::Refused { .. }) {
                others.push(other);
            }
        }
        others
    }

    pub(super) fn locate(&mut self, viewer: PeerId, locality: Locality) {
        let Some(ends) = self.ends.get_mut(&viewer) else { return };
        let old = std::mem::replace(&mut ends.locality, locality);
        self.places.remove(&(old, viewer));
        if locality.is_known() {
            self.places.insert((locality, viewer));
        }
        self.leave_network(old.asn, viewer);
        self.networks.entry(locality.asn).or_default().insert(viewer);
    }

    fn leave_network(&mut self, network: u32, viewer: PeerId) {
        if let Some(viewers) = self.networks.get_mut(&network) {
            viewers.remove(&viewer);
            if viewers.is_empty() {
                self.networks.remove(&network);
            }
        }
    }

    /// What it costs, in milliseconds, that the two are not at the same place.
    pub(super) fn distance_ms(&self, a: PeerId, b: PeerId) -> u32 {
        match (self.ends.get(&a), self.ends.get(&b)) {
            (Some(a), Some(b)) => a.locality.distance_ms(b.locality),
            _ => Locality::default().distance_ms(Locality::default()),
        }
    }

    /// Some viewers of the same network as `viewer`, or if it has none there, of the same country. Nobody for a viewer
    /// of whom nothing is known.
    pub(super) fn near(&self, viewer: PeerId) -> Vec<PeerId> {
        let Some(mine) = self.ends.get(&viewer).map(|ends| ends.locality).filter(|mine| mine.is_known())
        else {
            return Vec::new();
        };
        for (first, last) in mine.surroundings() {
            // Onward from its own id, and around: so that all are found by somebody.
            let onward = self.places.range((mine, viewer)..=(last, PeerId::MAX));
            let around = self.places.range((first, 0)..(mine, viewer));
            let others = onward.chain(around).map(|(_, other)| *other).filter(|other| *other != viewer);
            let others: Vec<PeerId> = others.take(NEAR_MAX).collect();
            if !others.is_empty() {
                return others;
            }
        }
        Vec::new()
    }

    pub(super) fn get(&self, a: PeerId, b: PeerId) -> Option<Link> {
        self.ends.get(&a)?.links.get(&b).copied()
    }

    /// The round trip of an open link.
    pub(super) fn rtt_ms(&self, a: PeerId, b: PeerId) -> Option<u32> {
        match self.get(a, b)? {
            Link::Connected { rtt_ms, .. } => Some(rtt_ms),
            _ => None,
        }
    }

    pub(super) fn connected(&self, viewer: PeerId) -> impl Iterator<Item = (PeerId, u32)> + '_ {
        self.ends.get(&viewer).into_iter().flat_map(|ends| &ends.links).filter_map(|(other, link)| match link
        {
            Link::Connected { rtt_ms, .. } => Some((*other, *rtt_ms)),
            _ => None,
        })
    }

    pub(super) fn introduced(&self, viewer: PeerId) -> impl Iterator<Item = PeerId> + '_ {
        self.ends
            .get(&viewer)
            .into_iter()
            .flat_map(|ends| &ends.links)
            .filter_map(|(other, link)| matches!(link, Link::Introduced { .. }).then_some(*other))
    }

    /// Open links and introductions under way.
    pub(super) fn count(&self, viewer: PeerId) -> usize {
        self.ends.get(&viewer).map_or(0, |ends| ends.connected + ends.introduced)
    }

    pub(super) fn count_connected(&self, viewer: PeerId) -> usize {
        self.ends.get(&viewer).map_or(0, |ends| ends.connected)
    }

    /// How likely it is, in percent, that an introduction to this viewer works. Starts near the 71 % that a mixed
    /// population shows and moves with what was seen.
    pub(super) fn reachable_percent(&self, viewer: PeerId) -> u32 {
        self.ends.get(&viewer).map_or(0, |ends| (ends.worked * 100 + 215) / (ends.worked + ends.failed + 3))
    }

    /// Whether the pair may be told to meet now.
    pub(super) fn can_introduce(&self, now: Ms, a: PeerId, b: PeerId, settings: &Settings) -> bool {
        let room = |viewer: PeerId| {
            self.ends.get(&viewer).is_some_and(|ends| {
                ends.connected + ends.introduced < settings.neighbors_max as usize
                    && ends.introduced < settings.introductions_max as usize
            })
        };
        let is_refused = || match self.get(a, b) {
            None => false,
            Some(Link::Refused { until }) => until > now,
            Some(Link::Introduced { .. } | Link::Connected { .. }) => true,
        };
        let is_kept = || self.keeps(a, b, settings) || self.keeps(b, a, settings);
        a != b && room(a) && room(b) && !is_refused() && !is_kept()
    }

    fn network(&self, viewer: PeerId) -> u32 {
        self.ends.get(&viewer).map_or(0, |ends| ends.locality.asn)
    }

    /// Those who are connected to a viewer or being introduced to it.
    fn met(&self, viewer: PeerId) -> impl Iterator<Item = PeerId> + '_ {
        let links = self.ends.get(&viewer).into_iter().flat_map(|ends| &ends.links);
        links.filter(|(_, link)| !matches!(link, Link::Refused { .. })).map(|(other, _)| *other)
    }

    /// Whether all viewers are of one network, or nothing is known of where they are.
    pub(super) fn is_one_network(&self) -> bool {
        self.networks.len() < 2
    }

    /// Whether the places that `viewer` has left are kept for others than those of `other`'s network: one that owns
    /// many addresses must not fill all of them. Nothing is kept from its own network, nor for more viewers than there
    /// are who could be met.
    fn keeps(&self, viewer: PeerId, other: PeerId, settings: &Settings) -> bool {
        let (Some(mine), network) = (self.ends.get(&viewer), self.network(other)) else { return false };
        let (max, taken) = (settings.neighbors_max as usize, mine.connected + mine.introduced);
        let kept = max - settings.most_of_one(max);
        // Nearly everybody has room for all, and nothing needs to be counted.
        if network == 0 || network == mine.locality.asn || taken + kept < max {
            return false;
        }
        let is_other = |other: &PeerId| self.network(*other) != network;
        let others = self.met(viewer).filter(is_other).count();
        let refused = mine.links.iter().filter(|(_, link)| matches!(link, Link::Refused { .. }));
        let refused = refused.filter(|(other, _)| is_other(other)).count();
        let of_network = self.networks.get(&network).map_or(0, BTreeSet::len);
        let there_are = (self.ends.len() - of_network).saturating_sub(1 + refused);
        taken - others + 1 + others.max(kept.min(there_are)) > max
    }

    /// The foreign network of which too large a part of a viewer's neighbors are, if there is one.
    pub(super) fn crowd(&self, viewer: PeerId, settings: &Settings) -> Option<Crowd> {
        let (network, count) = self.commonest(viewer)?;
        let others = self.count(viewer) - count;
        let wanted = settings.wanted_beside(count).saturating_sub(others);
        let is_crowd = count > settings.mesh_min as usize / 2 && self.network(viewer) != network;
        (is_crowd && wanted > 0).then_some(Crowd { network, wanted })
    }

    /// The network of most of a viewer's neighbors, and how many they are.
    fn commonest(&self, viewer: PeerId) -> Option<(u32, usize)> {
        let mut counts = BTreeMap::<u32, usize>::new();
        for other in self.met(viewer) {
            *counts.entry(self.network(other)).or_default() += 1;
        }
        counts.into_iter().filter(|(network, _)| *network != 0).max_by_key(|(_, count)| *count)
    }

    /// Somebody who is not of this network. Drawn by network first: many addresses in one make nobody likelier.
    pub(super) fn stranger(&self, network: u32, random: u32, at: PeerId) -> Option<PeerId> {
        let others = self.networks.len() - usize::from(self.networks.contains_key(&network));
        let chosen = (random as usize).checked_rem(others)?;
        let (_, viewers) = self.networks.iter().filter(|(known, _)| **known != network).nth(chosen)?;
        viewers.range(at..).next().or_else(|| viewers.first()).copied()
    }

    pub(super) fn introduce(&mut self, now: Ms, a: PeerId, b: PeerId) {
        self.set(a, b, Some(Link::Introduced { at: now }));
        self.expiries.insert((now + INTRODUCTION_MAX_MS, a.min(b), a.max(b)));
    }

    /// A data channel opened; false if that was known. Both ends report, and a resumed viewer reports again.
    pub(super) fn open(&mut self, now: Ms, a: PeerId, b: PeerId, rtt_ms: u32) -> bool {
        if a == b || !self.ends.contains_key(&a) || !self.ends.contains_key(&b) {
            return false;
        }
        match self.get(a, b) {
            Some(Link::Connected { uses, since, rtt_ms: old }) => {
                let rtt_ms = if rtt_ms == 0 { old } else { rtt_ms };
                self.set(a, b, Some(Link::Connected { rtt_ms, uses, since }));
                false
            }
            _ => {
                self.set(a, b, Some(Link::Connected { rtt_ms, uses: 0, since: now }));
                for viewer in [a, b] {
                    self.ends.entry(viewer).and_modify(|ends| ends.worked = ends.worked.saturating_add(1));
                }
                true
            }
        }
    }

    /// The pair could not connect, or its connection broke; false if that was known.
    pub(super) fn close(&mut self, now: Ms, a: PeerId, b: PeerId) -> bool {
        let wait = match self.get(a, b) {
            Some(Link::Connected { .. }) => BROKEN_PAIR_MS,
            Some(Link::Introduced { .. }) => {
                for viewer in [a, b] {
                    self.ends.entry(viewer).and_modify(|ends| ends.failed = ends.failed.saturating_add(1));
                }
                FAILED_PAIR_MS
            }
            Some(Link::Refused { .. }) | None => return false,
        };
        self.set(a, b, Some(Link::Refused { until: now + wait }));
        for viewer in [a, b] {
            self.forget_refused(viewer);
        }
        true
    }

    /// The planner itself ended the link, to make room.
    pub(super) fn end(&mut self, a: PeerId, b: PeerId) {
        self.set(a, b, None);
    }

    /// A tree edge began (`+1`) or ceased (`-1`) to use the link.
    pub(super) fn use_by(&mut self, a: PeerId, b: PeerId, change: i32) {
        for (from, to) in [(a, b), (b, a)] {
            let link = self.ends.get_mut(&from).and_then(|ends| ends.links.get_mut(&to));
            if let Some(Link::Connected { uses, .. }) = link {
                *uses = uses.saturating_add_signed(change);
            }
        }
    }

    /// Introductions that came to nothing; they are failed from now on.
    pub(super) fn expire(&mut self, now: Ms) -> Vec<(PeerId, PeerId)> {
        let mut expired = Vec::new();
        while let Some(&(at, a, b)) = self.expiries.first()
            && at <= now
        {
            self.expiries.pop_first();
            if self.close(now, a, b) {
                expired.push((a, b));
            }
        }
        expired
    }

    /// The unused link of `viewer` that is best given up for a new one: the oldest that no tree uses and that the other
    /// end can spare, first of a foreign network that most neighbors are of. None if all are needed.
    pub(super) fn spare_link(&self, viewer: PeerId, settings: &Settings) -> Option<PeerId> {
        let ends = self.ends.get(&viewer)?;
        let commonest = self.commonest(viewer).map(|(network, _)| network);
        let foreign = commonest.filter(|network| *network != ends.locality.asn);
        let is_rare = |other: PeerId| foreign.is_some_and(|network| self.network(other) != network);
        ends.links
            .iter()
            .filter_map(|(other, link)| match link {
                Link::Connected { uses: 0, since, .. } => Some((is_rare(*other), *since, *other)),
                _ => None,
            })
            .filter(|(.., other)| self.count_connected(*other) > settings.mesh_min as usize)
            .min()
            .map(|(.., other)| other)
    }

    fn set(&mut self, a: PeerId, b: PeerId, link: Option<Link>) {
        for (from, to) in [(a, b), (b, a)] {
            let Some(ends) = self.ends.get_mut(&from) else { continue };
            let old = match link {
                Some(link) => ends.links.insert(to, link),
                None => ends.links.remove(&to),
            };
            ends.count(old, link);
            if from == a
                && let Some(old) = old
            {
                self.unlist(a, b, old);
            }
        }
    }

    fn unlist(&mut self, a: PeerId, b: PeerId, link: Link) {
        if let Link::Introduced { at } = link {
            self.expiries.remove(&(at + INTRODUCTION_MAX_MS, a.min(b), a.max(b)));
        }
    }

    fn forget_refused(&mut self, viewer: PeerId) {
        let Some(ends) = self.ends.get_mut(&viewer) else { return };
        if ends.links.len() <= ends.connected + ends.introduced + FAILED_PAIRS_MAX {
            return;
        }
        let oldest = ends.links.iter().filter_map(|(other, link)| match link {
            Link::Refused { until } => Some((*until, *other)),
            _ => None,
        });
        if let Some((_, other)) = oldest.min() {
            self.set(viewer, other, None);
        }
    }
}

impl Ends {
    fn count(&mut self, old: Option<Link>, new: Option<Link>) {
        match old {
            Some(Link::Connected { .. }) => self.connected -= 1,
            Some(Link::Introduced { .. }) => self.introduced -= 1,
            _ => {}
        }
        match new {
            Some(Link::Connected { .. }) => self.connected += 1,
            Some(Link::Introduced { .. }) => self.introduced += 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(viewers: u32) -> (Links, Settings) {
        let mut links = Links::default();
        (1..=viewers).for_each(|viewer| links.add(viewer));
        (links, Settings::default())
    }

    #[test]
    fn places_are_kept_for_other_networks_as_far_as_there_are_others() {
        let (mut links, _) = links(24);
        let settings = Settings { neighbors_max: 8, introductions_max: 8, ..Settings::default() };
        for viewer in 1..=24 {
            let asn = if viewer == 1 { 100 } else { 200 + u32::from(viewer > 21) };
            links.locate(viewer, Locality { country: 1, asn, subnet: u64::from(viewer) });
        }
        let taken = (2..=21).filter(|other| {
            let may = links.can_introduce(0, 1, *other, &settings);
            if may {
                links.open(0, 1, *other, 20);
            }
            may
        });
        assert_eq!(taken.count(), 5, "three of eight are for the three others");
        assert_eq!(links.crowd(1, &settings), Some(Crowd { network: 200, wanted: 5 }));
        links.introduce(0, 1, 22);
        assert!(!links.can_introduce(0, 1, 10, &settings), "two more are there");
        links.introduce(0, 1, 23);
        links.close(0, 1, 23);
        assert!(links.can_introduce(0, 1, 10, &settings), "one of them can't be reached");
        let off = Settings { network_max_percent: 100, ..settings };
        assert!(links.can_introduce(0, 1, 11, &off) && links.crowd(1, &off).is_none());
        // Of one's own network there may be any number: they are near.
        for other in 3..=9 {
            assert!(links.can_introduce(0, 2, other, &settings));
            links.open(0, 2, other, 20);
        }
        assert_eq!(links.crowd(2, &settings), None);
    }

    #[test]
    fn introduction_that_nobody_reports_is_given_up() {
        let (mut links, settings) = links(2);
        links.introduce(0, 1, 2);
        assert!(!links.can_introduce(1, 1, 2, &settings), "it is under way");
        assert_eq!(links.expire(INTRODUCTION_MAX_MS), vec![(1, 2)]);
        assert!(!links.can_introduce(INTRODUCTION_MAX_MS, 2, 1, &settings), "its NATs have not changed");
        assert!(links.can_introduce(INTRODUCTION_MAX_MS + FAILED_PAIR_MS, 2, 1, &settings));
        assert!(links.reachable_percent(1) < 71);
    }

    #[test]
    fn both_ends_report_one_connection() {
        let (mut links, _) = links(2);
        links.introduce(0, 1, 2);
        assert!(links.open(10, 1, 2, 30));
        assert!(!links.open(11, 2, 1, 0));
        assert_eq!((links.rtt_ms(2, 1), links.count_connected(1)), (Some(30), 1));
        assert!(links.expire(100_000).is_empty(), "it worked");
    }

    #[test]
    fn leaving_viewer_takes_its_links_along() {
        let (mut links, _) = links(3);
        links.open(0, 1, 2, 5);
        links.introduce(0, 1, 3);
        assert_eq!(links.remove(1), vec![2, 3]);
        assert_eq!((links.count(2), links.count(3)), (0, 0));
        assert!(links.expire(100_000).is_empty());
    }

    #[test]
    fn failed_pairs_are_remembered_while_one_or_both_are_away() {
        let (mut links, settings) = links(3);
        for other in [2, 3] {
            links.introduce(0, 1, other);
            links.close(10, 1, other);
        }
        // One after the other, and back in the same order and in the other one.
        for back in [[1, 2], [2, 1]] {
            assert!(links.park(1).is_empty() && links.park(2).is_empty());
            links.add(back[0]);
            links.add(back[1]);
            assert!(!links.can_introduce(20, 1, 2, &settings) && !links.can_introduce(20, 3, 1, &settings));
            assert!(links.can_introduce(20, 2, 3, &settings), "control");
        }
        links.park(1);
        links.forget(1);
        links.add(1);
        assert!(links.can_introduce(20, 1, 2, &settings), "who was forgotten is somebody new");
        assert!(links.parked.is_empty());
    }

    #[test]
    fn memory_of_failed_pairs_is_bounded() {
        let (mut links, _) = links(300);
        for other in 2..=300 {
            links.introduce(u64::from(other), 1, other);
            links.close(u64::from(other), 1, other);
        }
        assert_eq!(links.ends[&1].links.len(), FAILED_PAIRS_MAX);
    }
}
