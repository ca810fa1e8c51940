//! Deals the viewers of one swarm to groups, each with a planner of its own.
//!
//! Pure. A planner's work for an event does not depend on the swarm's size but for logarithms; a round's work, and how
//! long it keeps the next message waiting, grow with what happened since the last one. So a swarm that gets unwieldy is
//! split: each group has its own trees, and viewers meet within their group only. A split costs one more copy of each
//! piece for every group, against thousands of viewers in it.
//!
//! Who is alike comes together: viewers of one country, because packets between them are short; then those who play
//! the same renditions, because only they can feed each other.

use std::collections::BTreeMap;

use shoal_tracker_protocol::PeerId;

use super::{Locality, Output, Planner, ROUND_MS, Settings, Summary};

/// A group with less than this part of the largest size is given up when another has room for it.
const DWINDLED_PART: usize = 8;
/// The viewers of a country get a group of their own when there are as many as this part of the largest size.
const REGION_PART: usize = 10;

/// A group of viewers.
#[derive(Debug)]
struct Group {
    planner: Planner,
    /// The country and the renditions of the viewer for whom it was opened.
    country: u16,
    mix: Box<[u8]>,
    last_round_ms: u64,
    next_round_ms: Option<u64>,
}

/// All groups of a swarm.
#[derive(Debug)]
pub struct Groups {
    plan: Settings,
    viewers_max: usize,
    seed: u64,
    groups: BTreeMap<u32, Group>,
    next_number: u32,
    /// In which group each viewer is, or was before its connection broke.
    of: BTreeMap<PeerId, u32>,
    /// Viewers of each country.
    countries: BTreeMap<u16, usize>,
    /// Where viewers in a planner are; only those of whom something is known.
    localities: BTreeMap<PeerId, Locality>,
    /// The renditions' rates and blocks, for groups that are opened later.
    renditions: BTreeMap<u8, (u32, u32)>,
    outputs: Vec<Output>,
}

impl Groups {
    /// One group, empty. A further one is opened where all have `viewers_max` viewers.
    pub fn new(plan: Settings, viewers_max: u32, seed: u64) -> Self {
        let mut groups = Self {
            plan,
            viewers_max: viewers_max.max(1) as usize,
            seed,
            groups: BTreeMap::new(),
            next_number: 0,
            of: BTreeMap::new(),
            countries: BTreeMap::new(),
            localities: BTreeMap::new(),
            renditions: BTreeMap::new(),
            outputs: Vec::new(),
        };
        groups.open(0, &[]);
        groups
    }

    /// How many groups there are; one at least.
    pub fn count(&self) -> usize {
        self.groups.len()
    }

    /// Viewers that are planned with, in all groups.
    pub fn viewer_count(&self) -> usize {
        self.groups.values().map(|group| group.planner.viewer_count()).sum()
    }

    /// When [`Self::round`] has something to do, in the caller's milliseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.groups.values().filter_map(|group| group.next_round_ms).min()
    }

    /// Who plans a viewer.
    pub fn planner(&mut self, peer: PeerId) -> Option<&mut Planner> {
        self.group(peer).map(|group| &mut group.planner)
    }

    fn group(&mut self, peer: PeerId) -> Option<&mut Group> {
        let number = self.of.get(&peer)?;
        self.groups.get_mut(number)
    }

    /// Finds a group for a viewer that is about to join its planner. One that left gets its old group, as long as that exists.
    pub fn enter(&mut self, peer: PeerId, locality: Locality, renditions: &[u8]) -> &mut Planner {
        if locality.is_known() && self.localities.insert(peer, locality).is_none() {
            *self.countries.entry(locality.country).or_default() += 1;
        }
        let known = self.of.get(&peer).copied().filter(|number| self.groups.contains_key(number));
        let number = known.unwrap_or_else(|| self.choose(locality.country, renditions));
        self.of.insert(peer, number);
        &mut self.groups.get_mut(&number).expect("chosen among those that exist").planner
    }

    fn choose(&mut self, country: u16, renditions: &[u8]) -> u32 {
        let deserves_own = |groups: &Self| {
            groups.countries.get(&country).is_some_and(|viewers| *viewers >= groups.viewers_max / REGION_PART)
        };
        let with_room =
            self.groups.iter().filter(|(_, group)| group.planner.viewer_count() < self.viewers_max);
        let best = with_room.max_by_key(|(_, group)| {
            let is_alike = (group.country == country, *group.mix == *renditions);
            // The fullest, so that there are not two half-empty ones; the first group takes everybody while it can.
            (is_alike, group.planner.viewer_count())
        });
        match best {
            Some((number, group))
                if self.groups.len() == 1
                    || group.country == country
                    || country == 0
                    || !deserves_own(self) =>
            {
                *number
            }
            _ => self.open(country, renditions),
        }
    }

    fn open(&mut self, country: u16, renditions: &[u8]) -> u32 {
        let number = self.next_number;
        self.next_number += 1;
        let mut planner = Planner::new(self.plan, self.seed ^ u64::from(number));
        for (rendition, (rate_kbps, piece_bytes)) in &self.renditions {
            planner.set_rendition(0, *rendition, *rate_kbps, *piece_bytes);
        }
        let group = Group { planner, country, mix: renditions.into(), last_round_ms: 0, next_round_ms: None };
        self.groups.insert(number, group);
        number
    }

    /// A viewer is no longer planned with. Its place is kept until [`Self::forget`].
    pub fn leave(&mut self, now_ms: u64, peer: PeerId) {
        if let Some(locality) = self.localities.remove(&peer)
            && let Some(viewers) = self.countries.get_mut(&locality.country)
        {
            *viewers -= 1;
        }
        let Some(number) = self.of.get(&peer).copied() else { return };
        let Some(group) = self.groups.get_mut(&number) else { return };
        group.planner.viewer_away(now_ms, peer);
        group.hurry(now_ms);
        self.merge(now_ms, number);
    }

    /// A viewer that left does not come back.
    pub fn forget(&mut self, peer: PeerId) {
        let number = self.of.remove(&peer);
        if let Some(group) = number.and_then(|number| self.groups.get_mut(&number)) {
            group.planner.viewer_forgotten(peer);
        }
    }

    /// Gives a group up that has dwindled, if another has room for all who are left.
    fn merge(&mut self, now_ms: u64, number: u32) {
        let count = |group: &Group| group.planner.viewer_count();
        let left = self.groups.get(&number).map_or(0, count);
        if self.groups.len() < 2 || left > self.viewers_max / DWINDLED_PART {
            return;
        }
        // A quarter of the room stays free, or the next joiners would open a group anew.
        let others = self.groups.iter().filter(|(other, _)| **other != number);
        let fitting = others.filter(|(_, group)| count(group) + left <= self.viewers_max * 3 / 4);
        let Some(to) = fitting.max_by_key(|(_, group)| count(group)).map(|(other, _)| *other) else { return };
        let Some(from) = self.groups.remove(&number) else { return };
        let viewers: Vec<PeerId> = from.planner.viewers().collect();
        let links: Vec<(PeerId, PeerId, u32)> = viewers
            .iter()
            .flat_map(|peer| from.planner.links(*peer).map(|(other, rtt_ms)| (*peer, other, rtt_ms)))
            .filter(|(peer, other, _)| peer < other)
            .collect();
        for peer in viewers {
            self.transfer(now_ms, peer, &from.planner, to);
        }
        let group = self.groups.get_mut(&to).expect("just found");
        for (a, b, rtt_ms) in links {
            group.planner.link_connected(now_ms, a, b, rtt_ms);
        }
        group.hurry(now_ms);
    }

    /// Has a viewer planned by another group; what the old one told it is taken back first.
    fn transfer(&mut self, now_ms: u64, peer: PeerId, from: &Planner, to: u32) {
        let group = self.groups.get_mut(&to).expect("only called for groups that exist");
        self.outputs.extend(from.nowhere(peer));
        let (shares, kbps) = from.gives(peer);
        group.planner.viewer_joined(peer, shares);
        group.planner.viewer_is_at(peer, self.localities.get(&peer).copied().unwrap_or_default());
        group.planner.viewer_plays(now_ms, peer, &from.plays(peer));
        if let Some(kbps) = kbps {
            group.planner.viewer_uplink(now_ms, peer, kbps);
        }
        self.of.insert(peer, to);
    }

    /// Two viewers are connected. Those of different groups (they met before the tracker was restarted) come together
    /// if one of them knows nobody in its own group yet.
    pub fn connected(&mut self, now_ms: u64, a: PeerId, b: PeerId, rtt_ms: u32) {
        let (Some(&of_a), Some(&of_b)) = (self.of.get(&a), self.of.get(&b)) else { return };
        if of_a != of_b && !self.bring_together(now_ms, (a, of_a), of_b) {
            self.bring_together(now_ms, (b, of_b), of_a);
        }
        let (Some(&of_a), Some(&of_b)) = (self.of.get(&a), self.of.get(&b)) else { return };
        if of_a == of_b
            && let Some(group) = self.groups.get_mut(&of_a)
        {
            group.planner.link_connected(now_ms, a, b, rtt_ms);
            group.hurry(now_ms);
        }
    }

    fn bring_together(&mut self, now_ms: u64, (peer, from): (PeerId, u32), to: u32) -> bool {
        let has_room =
            self.groups.get(&to).is_some_and(|group| group.planner.viewer_count() < self.viewers_max);
        let is_alone =
            self.groups.get(&from).is_some_and(|group| group.planner.neighbors(peer).next().is_none());
        if !has_room || !is_alone {
            return false;
        }
        let Some(mut group) = self.groups.remove(&from) else { return false };
        self.transfer(now_ms, peer, &group.planner, to);
        group.planner.viewer_left(now_ms, peer);
        self.groups.insert(from, group);
        true
    }

    /// [`Planner::set_rendition`] of all groups, also of those that are opened later.
    pub fn set_rendition(&mut self, now_ms: u64, rendition: u8, rate_kbps: u32, piece_bytes: u32) {
        self.renditions.insert(rendition, (rate_kbps, piece_bytes));
        for group in self.groups.values_mut() {
            group.planner.set_rendition(now_ms, rendition, rate_kbps, piece_bytes);
        }
    }

    /// Has the planner of a viewer work soon.
    pub fn hurry(&mut self, now_ms: u64, peer: PeerId) {
        if let Some(group) = self.group(peer) {
            group.hurry(now_ms);
        }
    }

    /// Has all planners work soon.
    pub fn hurry_all(&mut self, now_ms: u64) {
        self.groups.values_mut().for_each(|group| group.hurry(now_ms));
    }

    /// The rounds that are due.
    pub fn round(&mut self, now_ms: u64) -> Vec<Output> {
        let mut outputs = std::mem::take(&mut self.outputs);
        for group in self.groups.values_mut() {
            if group.next_round_ms.is_some_and(|at| at <= now_ms) {
                group.last_round_ms = now_ms;
                let is_empty = group.planner.viewer_count() == 0;
                group.next_round_ms = (!is_empty).then_some(now_ms + ROUND_MS);
                outputs.append(&mut group.planner.tick(now_ms));
            }
        }
        outputs
    }

    /// Counts over one rendition in all groups.
    pub fn summary(&self, rendition: u8) -> Summary {
        let mut sum = Summary::default();
        for group in self.groups.values() {
            let one = group.planner.summary(rendition);
            sum.seats += one.seats;
            sum.roots += one.roots;
            sum.unfed += one.unfed;
            sum.slots += one.slots;
            sum.depth_max = sum.depth_max.max(one.depth_max);
            sum.expected_max_ms = sum.expected_max_ms.max(one.expected_max_ms);
        }
        sum
    }
}

impl Group {
    fn hurry(&mut self, now_ms: u64) {
        let at_ms = (self.last_round_ms + self.planner.spacing_ms()).max(now_ms);
        self.next_round_ms = Some(self.next_round_ms.map_or(at_ms, |next| next.min(at_ms)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(country: u16) -> Locality {
        Locality { country, ..Locality::default() }
    }

    fn join(groups: &mut Groups, peer: PeerId, locality: Locality) -> u32 {
        let planner = groups.enter(peer, locality, &[0]);
        planner.viewer_joined(peer, true);
        planner.viewer_is_at(peer, locality);
        planner.viewer_plays(0, peer, &[0]);
        groups.of[&peer]
    }

    fn groups(viewers_max: u32) -> Groups {
        let mut groups = Groups::new(Settings::default(), viewers_max, 1);
        groups.set_rendition(0, 0, 3_000, 187_500);
        groups
    }

    #[test]
    fn no_group_grows_beyond_its_limit() {
        let mut groups = groups(50);
        for peer in 1..=200 {
            join(&mut groups, peer, Locality::default());
        }
        assert_eq!(groups.count(), 4);
        assert!(groups.groups.values().all(|group| group.planner.viewer_count() == 50));
    }

    #[test]
    fn a_split_swarm_keeps_countries_together() {
        let mut groups = groups(60);
        for peer in 1..=240 {
            join(&mut groups, peer, at(1 + u16::try_from(peer % 2).unwrap()));
        }
        let late: Vec<u32> = (121..=240).filter(|peer| peer % 2 == 0).map(|peer| groups.of[&peer]).collect();
        let others: Vec<u32> =
            (121..=240).filter(|peer| peer % 2 == 1).map(|peer| groups.of[&peer]).collect();
        assert!(late.iter().all(|group| !others.contains(group)), "those who came after the split");
    }

    #[test]
    fn viewers_of_a_small_country_fill_the_room_of_others() {
        let mut groups = groups(60);
        (1..=70).for_each(|peer| {
            join(&mut groups, peer, at(1));
        });
        let lonely = join(&mut groups, 999, at(2));
        assert_eq!((groups.count(), lonely), (2, groups.of[&70]));
    }

    #[test]
    fn a_viewer_that_comes_back_finds_its_group() {
        let mut groups = groups(10);
        (1..=25).for_each(|peer| {
            join(&mut groups, peer, Locality::default());
        });
        let before = groups.of[&3];
        groups.leave(0, 3);
        join(&mut groups, 26, Locality::default());
        assert_eq!(join(&mut groups, 3, Locality::default()), before);
        groups.leave(0, 3);
        groups.forget(3);
        assert!(groups.planner(3).is_none());
    }

    #[test]
    fn a_dwindled_group_is_merged_and_its_links_go_on() {
        let mut groups = groups(16);
        (1..=32).for_each(|peer| {
            join(&mut groups, peer, Locality::default());
        });
        let second: Vec<PeerId> = (1..=32).filter(|peer| groups.of[peer] == 1).collect();
        groups.connected(0, second[0], second[1], 7);
        // The first group must have room for those who are left of the second.
        (1..=32).filter(|peer| !second.contains(peer)).take(6).for_each(|peer| groups.leave(0, peer));
        second[2..].iter().for_each(|peer| groups.leave(0, *peer));
        assert_eq!(groups.count(), 1);
        assert_eq!((groups.of[&second[0]], groups.of[&second[1]]), (0, 0));
        let planner = &groups.groups[&0].planner;
        assert!(planner.neighbors(second[0]).any(|peer| peer == second[1]));
        planner.check();
    }

    #[test]
    fn neighbors_who_come_back_into_different_groups_are_brought_together() {
        let mut groups = groups(10);
        (1..=15).for_each(|peer| {
            join(&mut groups, peer, Locality::default());
        });
        assert_ne!(groups.of[&15], groups.of[&9]);
        groups.leave(0, 1);
        groups.connected(0, 9, 15, 5);
        assert_eq!(groups.of[&15], groups.of[&9]);
        assert!(groups.planner(9).unwrap().neighbors(9).any(|peer| peer == 15));
    }
}
