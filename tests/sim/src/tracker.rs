//! The tracker of the simulation: the real planners and the real way of dealing viewers to them, and around it the little
//! that the simulation needs of the service.

use std::collections::BTreeMap;

use shoal_tracker::plan::{self, Groups, Locality, Output, Planner};
use shoal_tracker::swarm::Settings;
use shoal_tracker_protocol::PeerId;

use crate::shoal::{FromTracker, ToTracker, peer_id, viewer_of};

/// The planners' books are checked after a round, and not again for so long for each viewer: after about every round with a hundred
/// viewers, every four seconds with a thousand. A check looks at all of them; more often it would take a tenth of a run's time.
const CHECK_MS_PER_VIEWER: u64 = 4;

#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) groups: Groups,
    pub(crate) is_down: bool,
    /// When it is looked next whether a round is due.
    pub(crate) next_tick_ms: u64,
    /// Whether those whom the planner made roots are told so.
    pub(crate) has_roots: bool,
    /// When the planners' books are checked next, and how often they were.
    check_ms: u64,
    pub(crate) checks: u64,
    /// So many different viewers must accuse one before it is banned: a single one could be lying.
    accusers_min: usize,
    accusers: BTreeMap<u32, Vec<u32>>,
    is_banned: Vec<bool>,
}

impl Tracker {
    pub(crate) fn new(plan: plan::Settings, seed: u64, visits: usize) -> Self {
        let settings = Settings::default();
        Self {
            groups: Groups::new(plan, settings.group_viewers_max, seed),
            is_down: false,
            next_tick_ms: 0,
            has_roots: true,
            check_ms: 0,
            checks: 0,
            accusers_min: settings.accusers_min as usize,
            accusers: BTreeMap::new(),
            is_banned: vec![false; visits],
        }
    }

    pub(crate) fn hear(
        &mut self,
        now_ms: u64,
        from: u32,
        is_there: bool,
        rendition: u8,
        message: ToTracker,
    ) -> Vec<(u32, FromTracker)> {
        let id = peer_id(from);
        match message {
            ToTracker::Join { shares } if is_there && !self.is_banned[from as usize] => {
                let planner = self.groups.enter(id, Locality::default(), &[rendition]);
                planner.viewer_joined(id, shares);
                planner.viewer_plays(now_ms, id, &[rendition]);
                self.groups.hurry(now_ms, id);
                return vec![(from, FromTracker::Welcome)];
            }
            ToTracker::Join { .. } => {}
            ToTracker::Gone => return self.forget(now_ms, from),
            ToTracker::Connected { peer, rtt_ms } => {
                self.groups.connected(now_ms, id, peer_id(peer), rtt_ms);
            }
            ToTracker::Lost { peer } => {
                self.plan(now_ms, id, |planner| planner.link_lost(now_ms, id, peer_id(peer)));
            }
            ToTracker::Report { uplink_kbps, renditions } => {
                let Some(planner) = self.groups.planner(id) else { return Vec::new() };
                planner.viewer_uplink(now_ms, id, uplink_kbps);
                if !renditions.is_empty() {
                    planner.viewer_plays(now_ms, id, &renditions);
                }
            }
            ToTracker::Silent { peer, rendition, stripe } => {
                self.plan(now_ms, id, |planner| {
                    planner.parent_silent(now_ms, id, peer_id(peer), rendition, stripe);
                });
            }
            ToTracker::Accuse { peer } => {
                let accusers = self.accusers.entry(peer).or_default();
                if !accusers.contains(&from) {
                    accusers.push(from);
                }
                if accusers.len() >= self.accusers_min && !self.is_banned[peer as usize] {
                    self.is_banned[peer as usize] = true;
                    return self.forget(now_ms, peer);
                }
                self.plan(now_ms, id, |planner| planner.link_lost(now_ms, id, peer_id(peer)));
            }
        }
        Vec::new()
    }

    /// Something happened that somebody waits for: the next round comes soon.
    fn plan(&mut self, now_ms: u64, id: PeerId, happens: impl FnOnce(&mut Planner)) {
        if let Some(planner) = self.groups.planner(id) {
            happens(planner);
            self.groups.hurry(now_ms, id);
        }
    }

    /// A viewer is gone or banned: its neighbors are told to part with it.
    pub(crate) fn forget(&mut self, now_ms: u64, viewer: u32) -> Vec<(u32, FromTracker)> {
        let id = peer_id(viewer);
        let Some(planner) = self.groups.planner(id) else { return Vec::new() };
        let neighbors: Vec<u32> = planner.neighbors(id).map(viewer_of).collect();
        self.groups.leave(now_ms, id);
        self.groups.forget(id);
        neighbors.into_iter().map(|neighbor| (neighbor, FromTracker::Part { peer: viewer })).collect()
    }

    /// Panics where a plan contradicts itself.
    fn check(&mut self) {
        let mut is_seen = vec![false; self.is_banned.len()];
        // One planner for each group, to be had by its viewers only.
        for viewer in 0..is_seen.len() {
            if is_seen[viewer] {
                continue;
            }
            if let Some(planner) = self.groups.planner(peer_id(viewer as u32)) {
                planner.check();
                self.checks += 1;
                planner.viewers().for_each(|other| is_seen[viewer_of(other) as usize] = true);
            }
        }
    }

    pub(crate) fn tick(&mut self, now_ms: u64) -> Vec<(u32, FromTracker)> {
        let mut messages = Vec::new();
        let outputs = self.groups.round(now_ms);
        if self.check_ms <= now_ms {
            self.check_ms = now_ms + self.groups.viewer_count() as u64 * CHECK_MS_PER_VIEWER;
            self.check();
        }
        for output in outputs {
            match output {
                Output::Introduce { offers, answers } => {
                    let (offers, answers) = (viewer_of(offers), viewer_of(answers));
                    messages.push((offers, FromTracker::Introduce { peer: answers, offers: true }));
                    messages.push((answers, FromTracker::Introduce { peer: offers, offers: false }));
                }
                Output::Plan { viewer, rendition, stripes, mut places } => {
                    places.iter_mut().for_each(|place| place.root &= self.has_roots);
                    messages.push((viewer_of(viewer), FromTracker::Plan { rendition, stripes, places }));
                }
                Output::Disconnect { a, b } => {
                    let (a, b) = (viewer_of(a), viewer_of(b));
                    messages.push((a, FromTracker::Part { peer: b }));
                    messages.push((b, FromTracker::Part { peer: a }));
                }
            }
        }
        messages
    }
}
