//! Feeds the planner what it needs to know, and says when it wants to work.
//!
//! Pure. The planner (`../plan`) decides; this module measures what a rendition's rate is, guesses what a viewer plays
//! before it says so, and spaces the planner's rounds: soon after something happened in a small swarm, where a joiner
//! waits for its first plan, and seldom in a large one, where many changes in one message cost less.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shoal_tracker_protocol::{PeerId, Piece};

use super::settings::Settings;
use crate::plan::{self, Planner};

/// What a block holds: `shoal_digest::BLOCK_BYTES`, which the tracker does not import.
const BLOCK_BYTES: u64 = 16 * 1024;
/// Pieces of this many milliseconds tell a rendition's rate: two or three segments, so that keyframes even out.
const RATE_WINDOW_MS: u64 = 8_000;
/// The planner looks at rates this often; at once when a rendition is new.
const RATE_INTERVAL_MS: u64 = 4_000;
/// What the first piece of a rendition is taken to last, until a second one tells.
const PIECE_MS_ASSUMED: u64 = 500;
/// The planner's rounds when nothing happens.
const ROUND_MS: u64 = 500;
/// After something happened: in a small swarm a burst of reports from one pair of viewers comes within this time.
const ROUND_SOON_MS: u64 = 20;
/// The same from [`SMALL_SWARM`] viewers on.
const ROUND_LATER_MS: u64 = 100;
/// The same from [`LARGE_SWARM`] viewers on, where a round of a crowd that joins takes tens of milliseconds.
const ROUND_LARGE_MS: u64 = 400;
/// Below this number of viewers a round costs less than a millisecond.
const SMALL_SWARM: usize = 100;
/// From this number of viewers on rounds are seldom.
const LARGE_SWARM: usize = 1_000;
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

/// The planner and what it lives on.
#[derive(Debug)]
pub(super) struct Seeding {
    planner: Planner,
    renditions: BTreeMap<u8, Rendition>,
    /// Viewers in the planner that have not said what they play.
    guessed: BTreeSet<PeerId>,
    last_round_ms: u64,
    next_round_ms: Option<u64>,
}

impl Seeding {
    pub(super) fn new(mut plan: plan::Settings, settings: &Settings, seed: u64) -> Self {
        plan.neighbors_max = settings.neighbors_max;
        Self {
            planner: Planner::new(plan, seed),
            renditions: BTreeMap::new(),
            guessed: BTreeSet::new(),
            last_round_ms: 0,
            next_round_ms: None,
        }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.next_round_ms
    }

    /// Has the planner work soon.
    fn hurry(&mut self, now_ms: u64) {
        let spacing_ms = match self.planner.viewer_count() {
            ..SMALL_SWARM => ROUND_SOON_MS,
            SMALL_SWARM..LARGE_SWARM => ROUND_LATER_MS,
            _ => ROUND_LARGE_MS,
        };
        let at_ms = (self.last_round_ms + spacing_ms).max(now_ms);
        self.next_round_ms = Some(self.next_round_ms.map_or(at_ms, |next| next.min(at_ms)));
    }

    /// The planner's round, if it is time.
    pub(super) fn round(&mut self, now_ms: u64) -> Vec<plan::Output> {
        if self.next_round_ms.is_none_or(|at| at > now_ms) {
            return Vec::new();
        }
        self.last_round_ms = now_ms;
        self.next_round_ms = (self.planner.viewer_count() > 0).then_some(now_ms + ROUND_MS);
        self.planner.tick(now_ms)
    }

    pub(super) fn join(&mut self, now_ms: u64, peer: PeerId, kbps: Option<u32>, renditions: &[u8]) {
        self.planner.viewer_joined(peer, kbps != Some(0));
        if renditions.is_empty() {
            self.guessed.insert(peer);
            self.guess(now_ms, peer);
        } else {
            self.planner.viewer_plays(now_ms, peer, renditions);
        }
        self.uplink(now_ms, peer, kbps);
        self.hurry(now_ms);
    }

    pub(super) fn leave(&mut self, now_ms: u64, peer: PeerId) {
        self.guessed.remove(&peer);
        self.planner.viewer_left(now_ms, peer);
        self.hurry(now_ms);
    }

    /// What a viewer can give: none when not known, nothing when it does not give.
    pub(super) fn uplink(&mut self, now_ms: u64, peer: PeerId, kbps: Option<u32>) {
        self.planner.viewer_shares(now_ms, peer, kbps != Some(0));
        if let Some(kbps) = kbps {
            self.planner.viewer_uplink(now_ms, peer, kbps);
        }
    }

    pub(super) fn plays(&mut self, now_ms: u64, peer: PeerId, renditions: &[u8]) {
        if !renditions.is_empty() {
            self.guessed.remove(&peer);
            self.planner.viewer_plays(now_ms, peer, renditions);
            self.hurry(now_ms);
        }
    }

    pub(super) fn connected(&mut self, now_ms: u64, a: PeerId, b: PeerId, rtt_ms: u32) {
        self.planner.link_connected(now_ms, a, b, rtt_ms);
        self.hurry(now_ms);
    }

    pub(super) fn lost(&mut self, now_ms: u64, a: PeerId, b: PeerId) {
        self.planner.link_lost(now_ms, a, b);
        self.hurry(now_ms);
    }

    pub(super) fn silent(&mut self, now_ms: u64, child: PeerId, parent: PeerId, rendition: u8, stripe: u8) {
        self.planner.parent_silent(now_ms, child, parent, rendition, stripe);
        self.hurry(now_ms);
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
            let (rate_kbps, blocks) = rendition.measure();
            self.planner.set_rendition(now_ms, piece.rendition, rate_kbps, blocks);
        }
        if is_new {
            let guessed: Vec<PeerId> = self.guessed.iter().copied().collect();
            guessed.into_iter().for_each(|peer| self.guess(now_ms, peer));
            self.hurry(now_ms);
        }
    }

    fn guess(&mut self, now_ms: u64, peer: PeerId) {
        if self.renditions.len() <= GUESSED_RENDITIONS_MAX {
            let all: Vec<u8> = self.renditions.keys().copied().collect();
            self.planner.viewer_plays(now_ms, peer, &all);
        }
    }

    /// Counts for metrics: over all renditions of the stream, by number.
    pub(super) fn summaries(&self) -> Vec<(u8, plan::Summary)> {
        self.renditions.keys().map(|number| (*number, self.planner.summary(*number))).collect()
    }
}

impl Rendition {
    /// The rate in kbit/s and the usual number of blocks of a piece.
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
        let blocks = u32::try_from((bytes / count.max(1)).div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX);
        (kbps.max(1), blocks.max(1))
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
        assert_eq!(pieces(&[(0, 187_500)]).measure(), (3_000, 12));
        assert_eq!(pieces(&[(0, 250_000), (500, 125_000)]).measure(), (3_000, 12));
        assert_eq!(pieces(&[(0, 8_000), (500, 8_000), (1_000, 8_000)]).measure(), (128, 1));
        assert_eq!(pieces(&[(7, 1), (7, 1)]).measure(), (1, 1), "pieces that come at the same time");
    }
}
