//! Feeds the planners what they need to know, and says when they want to work.
//!
//! Pure. A planner (`../plan`) decides; this module measures what a rendition's rate is, guesses what a viewer plays
//! before it says so, and spaces the planners' rounds: soon after something happened in a small swarm, where a joiner
//! waits for its first plan, and less soon in a large one, where many changes in one message cost less.
//!
//! A swarm has one planner until it gets unwieldy; then viewers are dealt to several groups (`../plan/groups.rs`), so that no
//! round's work grows with the swarm.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shoal_tracker_protocol::{PeerId, Piece};

use super::settings::Settings;
use crate::plan::{self, Groups, Locality};

/// Pieces of this many milliseconds tell a rendition's rate: two or three segments, so that keyframes even out.
const RATE_WINDOW_MS: u64 = 8_000;
/// The planner looks at rates this often; at once when a rendition is new.
const RATE_INTERVAL_MS: u64 = 4_000;
/// What the first piece of a rendition is taken to last, until a second one tells.
const PIECE_MS_ASSUMED: u64 = 500;
/// A viewer that has not said what it plays is taken to play everything, in streams of up to this many renditions:
/// one video and one audio.
const GUESSED_RENDITIONS_MAX: usize = 2;
/// Renditions of one stream.
const RENDITIONS_MAX: usize = 32;

#[derive(Debug, Default)]
struct Rendition {
    pieces: VecDeque<(u64, u32)>,
    told_ms: Option<u64>,
}

/// What a joining viewer is to the planner.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newcomer<'a> {
    pub(super) peer: PeerId,
    /// What it can give: none when not known, nothing when it does not give.
    pub(super) kbps: Option<u32>,
    pub(super) renditions: &'a [u8],
    pub(super) locality: Locality,
}

/// The planners and what they live on.
#[derive(Debug)]
pub(super) struct Seeding {
    groups: Groups,
    renditions: BTreeMap<u8, Rendition>,
    /// Viewers in a planner that have not said what they play.
    guessed: BTreeSet<PeerId>,
}

impl Seeding {
    pub(super) fn new(mut plan: plan::Settings, settings: &Settings, seed: u64) -> Self {
        plan.neighbors_max = settings.neighbors_max;
        plan.network_max_percent = settings.neighbors_per_asn_max_percent;
        Self {
            groups: Groups::new(plan, settings.group_viewers_max, seed),
            renditions: BTreeMap::new(),
            guessed: BTreeSet::new(),
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.groups.next_deadline()
    }

    /// The rounds that are due.
    pub(super) fn round(&mut self, now_ms: u64) -> Vec<plan::Output> {
        self.groups.round(now_ms)
    }

    /// How many groups the swarm is split into.
    pub(super) fn groups(&self) -> usize {
        self.groups.count()
    }

    pub(super) fn join(&mut self, now_ms: u64, newcomer: &Newcomer<'_>) {
        let Newcomer { peer, kbps, renditions, locality } = *newcomer;
        let planner = self.groups.enter(peer, locality, renditions);
        planner.viewer_joined(peer, kbps != Some(0));
        planner.viewer_is_at(peer, locality);
        if renditions.is_empty() {
            self.guessed.insert(peer);
            self.guess(now_ms, peer);
        } else {
            planner.viewer_plays(now_ms, peer, renditions);
        }
        self.uplink(now_ms, peer, kbps);
        self.groups.hurry(now_ms, peer);
    }

    /// A viewer is out of the plan. It comes back into its old group unless it is forgotten.
    pub(super) fn leave(&mut self, now_ms: u64, peer: PeerId) {
        self.guessed.remove(&peer);
        self.groups.leave(now_ms, peer);
    }

    pub(super) fn forget(&mut self, peer: PeerId) {
        self.groups.forget(peer);
    }

    /// What a viewer can give: none when not known, nothing when it does not give.
    pub(super) fn uplink(&mut self, now_ms: u64, peer: PeerId, kbps: Option<u32>) {
        let Some(planner) = self.groups.planner(peer) else { return };
        planner.viewer_shares(now_ms, peer, kbps != Some(0));
        if let Some(kbps) = kbps {
            planner.viewer_uplink(now_ms, peer, kbps);
        }
    }

    pub(super) fn plays(&mut self, now_ms: u64, peer: PeerId, renditions: &[u8]) {
        if renditions.is_empty() {
            return;
        }
        self.guessed.remove(&peer);
        if let Some(planner) = self.groups.planner(peer) {
            planner.viewer_plays(now_ms, peer, renditions);
            self.groups.hurry(now_ms, peer);
        }
    }

    pub(super) fn connected(&mut self, now_ms: u64, a: PeerId, b: PeerId, rtt_ms: u32) {
        self.groups.connected(now_ms, a, b, rtt_ms);
    }

    pub(super) fn lost(&mut self, now_ms: u64, a: PeerId, b: PeerId) {
        if let Some(planner) = self.groups.planner(a) {
            planner.link_lost(now_ms, a, b);
            self.groups.hurry(now_ms, a);
        }
    }

    pub(super) fn silent(&mut self, now_ms: u64, child: PeerId, parent: PeerId, rendition: u8, stripe: u8) {
        if let Some(planner) = self.groups.planner(child) {
            planner.parent_silent(now_ms, child, parent, rendition, stripe);
            self.groups.hurry(now_ms, child);
        }
    }

    pub(super) fn published(&mut self, now_ms: u64, piece: Piece, length: u32) {
        let is_new = !self.renditions.contains_key(&piece.rendition);
        if is_new && self.renditions.len() >= RENDITIONS_MAX {
            return;
        }
        let rendition = self.renditions.entry(piece.rendition).or_default();
        rendition.pieces.push_back((now_ms, length));
        while rendition.pieces.front().is_some_and(|(at, _)| at + RATE_WINDOW_MS < now_ms) {
            rendition.pieces.pop_front();
        }
        let is_due = rendition.told_ms.is_none_or(|told| told + RATE_INTERVAL_MS <= now_ms);
        if is_due {
            rendition.told_ms = Some(now_ms);
            let (rate_kbps, piece_bytes) = rendition.measure();
            self.groups.set_rendition(now_ms, piece.rendition, rate_kbps, piece_bytes);
        }
        if is_new {
            let guessed: Vec<PeerId> = self.guessed.iter().copied().collect();
            guessed.into_iter().for_each(|peer| {
                self.guess(now_ms, peer);
                self.groups.hurry(now_ms, peer);
            });
            self.groups.hurry_all(now_ms);
        }
    }

    fn guess(&mut self, now_ms: u64, peer: PeerId) {
        if self.renditions.len() <= GUESSED_RENDITIONS_MAX {
            let all: Vec<u8> = self.renditions.keys().copied().collect();
            if let Some(planner) = self.groups.planner(peer) {
                planner.viewer_plays(now_ms, peer, &all);
            }
        }
    }

    /// Counts for metrics: over all renditions of the stream, by number.
    pub(super) fn summaries(&self) -> Vec<(u8, plan::Summary)> {
        self.renditions.keys().map(|number| (*number, self.groups.summary(*number))).collect()
    }
}

impl Rendition {
    /// The rate in kbit/s and the mean number of bytes of a piece.
    fn measure(&self) -> (u32, u32) {
        let count = self.pieces.len() as u64;
        let bytes: u64 = self.pieces.iter().map(|(_, length)| u64::from(*length)).sum();
        let (first_ms, last_ms) =
            (self.pieces.front().map_or(0, |p| p.0), self.pieces.back().map_or(0, |p| p.0));
        // The last piece's own duration is not in the difference of times.
        let span_ms = match (last_ms - first_ms, count) {
            (0, _) | (_, 0 | 1) => PIECE_MS_ASSUMED,
            (passed, count) => passed * count / (count - 1),
        };
        let kbps = u32::try_from(bytes * 8 / span_ms).unwrap_or(u32::MAX);
        let piece_bytes = u32::try_from(bytes / count.max(1)).unwrap_or(u32::MAX);
        (kbps.max(1), piece_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(pieces: &[(u64, u32)]) -> Rendition {
        Rendition { pieces: pieces.iter().copied().collect(), told_ms: None }
    }

    #[test]
    fn the_rate_is_measured_over_several_pieces() {
        assert_eq!(pieces(&[(0, 187_500)]).measure(), (3_000, 187_500));
        assert_eq!(pieces(&[(0, 250_000), (500, 125_000)]).measure(), (3_000, 187_500));
        assert_eq!(pieces(&[(0, 8_000), (500, 8_000), (1_000, 8_000)]).measure(), (128, 8_000));
        assert_eq!(pieces(&[(7, 1), (7, 1)]).measure(), (1, 1), "pieces that come at the same time");
    }
}
