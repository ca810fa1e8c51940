//! The tracker of the simulation: the real planner, and around it the little that the simulation needs of the service.

use std::collections::BTreeMap;

use shoal_tracker::plan::{Output, Planner, Settings};

use crate::shoal::{FromTracker, ToTracker, peer_id, viewer_of};

/// So many different viewers must accuse one before it is banned: a single one could be lying.
const ACCUSERS_MIN: usize = 2;

#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) planner: Planner,
    pub(crate) is_down: bool,
    /// When the next round is, and when the last was.
    pub(crate) next_round_ms: u64,
    last_round_ms: u64,
    accusers: BTreeMap<u32, Vec<u32>>,
    is_banned: Vec<bool>,
}

impl Tracker {
    pub(crate) fn new(settings: Settings, seed: u64, visits: usize) -> Self {
        Self {
            planner: Planner::new(settings, seed),
            is_down: false,
            next_round_ms: 0,
            last_round_ms: 0,
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
                self.planner.viewer_joined(id, shares);
                self.planner.viewer_plays(now_ms, id, &[rendition]);
                vec![(from, FromTracker::Welcome)]
            }
            ToTracker::Join { .. } => Vec::new(),
            ToTracker::Gone => self.forget(now_ms, from),
            ToTracker::Connected { peer, rtt_ms } => {
                self.planner.link_connected(now_ms, id, peer_id(peer), rtt_ms);
                Vec::new()
            }
            ToTracker::Lost { peer } => {
                self.planner.link_lost(now_ms, id, peer_id(peer));
                Vec::new()
            }
            ToTracker::Report { uplink_kbps, renditions } => {
                self.planner.viewer_uplink(now_ms, id, uplink_kbps);
                if !renditions.is_empty() {
                    self.planner.viewer_plays(now_ms, id, &renditions);
                }
                Vec::new()
            }
            ToTracker::Silent { peer, rendition, stripe } => {
                self.planner.parent_silent(now_ms, id, peer_id(peer), rendition, stripe);
                Vec::new()
            }
            ToTracker::Accuse { peer } => {
                let accusers = self.accusers.entry(peer).or_default();
                if !accusers.contains(&from) {
                    accusers.push(from);
                }
                if accusers.len() >= ACCUSERS_MIN && !self.is_banned[peer as usize] {
                    self.is_banned[peer as usize] = true;
                    return self.forget(now_ms, peer);
                }
                self.planner.link_lost(now_ms, id, peer_id(peer));
                Vec::new()
            }
        }
    }

    /// A viewer is gone or banned: its neighbors are told to part with it.
    pub(crate) fn forget(&mut self, now_ms: u64, viewer: u32) -> Vec<(u32, FromTracker)> {
        let id = peer_id(viewer);
        let neighbors: Vec<u32> = self.planner.neighbors(id).map(viewer_of).collect();
        self.planner.viewer_left(now_ms, id);
        neighbors.into_iter().map(|neighbor| (neighbor, FromTracker::Part { peer: viewer })).collect()
    }

    /// Something happened that somebody waits for: as in the tracker's service, the next round comes soon.
    pub(crate) fn hurry(&mut self, now_ms: u64) -> u64 {
        let soon_ms = (self.last_round_ms + self.planner.spacing_ms()).max(now_ms + 1);
        self.next_round_ms = self.next_round_ms.min(soon_ms);
        self.next_round_ms
    }

    pub(crate) fn tick(&mut self, now_ms: u64) -> Vec<(u32, FromTracker)> {
        self.last_round_ms = now_ms;
        let mut messages = Vec::new();
        for output in self.planner.tick(now_ms) {
            match output {
                Output::Introduce { offers, answers } => {
                    let (offers, answers) = (viewer_of(offers), viewer_of(answers));
                    messages.push((offers, FromTracker::Introduce { peer: answers, offers: true }));
                    messages.push((answers, FromTracker::Introduce { peer: offers, offers: false }));
                }
                Output::Plan { viewer, rendition, stripes, places } => {
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
