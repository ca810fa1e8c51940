//! What the threads of a ladder share: how each rung goes, how much waits, and which rung is given up first.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;
use tracing::warn;

use crate::transcode::Reservation;

/// What a smaller rendition of a stream is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LadderState {
    /// It is being encoded.
    Running,
    /// It never began.
    Refused,
    /// It was given up; what comes in it are gaps.
    Ended,
}

/// How a rung of a stream's ladder goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LadderStatus {
    /// The height that was asked for.
    pub height: u32,
    /// The rendition's name; empty if it never began.
    pub rendition: String,
    /// What it is doing.
    pub state: LadderState,
    /// Why it is not running, in words; empty if it is.
    pub reason: String,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Of all rungs that were asked for, largest first.
    statuses: Mutex<Vec<LadderStatus>>,
    /// Those that began, largest first.
    pub(super) lanes: Vec<Lane>,
    /// What waits for the decoder: inputs of any kind, and frames among them.
    pub(super) inputs: AtomicUsize,
    pub(super) frames: AtomicUsize,
    /// The room that decoding takes.
    decoding: Mutex<Option<Reservation>>,
}

/// One rung's share.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) height: u32,
    is_ended: AtomicBool,
    /// What waits for its encoder: inputs of any kind, and pictures among them.
    pub(super) inputs: AtomicUsize,
    pub(super) pictures: AtomicUsize,
    /// Segments in a row of which too many pictures are missing.
    pub(super) bad_segments: AtomicUsize,
    /// The room that encoding takes.
    reservation: Mutex<Option<Reservation>>,
    /// Whether its thread may still publish; held while it does.
    pub(super) is_open: Mutex<bool>,
}

impl Lane {
    pub(super) fn new(height: u32, reservation: Reservation) -> Self {
        Self {
            height,
            is_ended: AtomicBool::new(false),
            inputs: AtomicUsize::new(0),
            pictures: AtomicUsize::new(0),
            bad_segments: AtomicUsize::new(0),
            reservation: Mutex::new(Some(reservation)),
            is_open: Mutex::new(true),
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Acquire)
    }
}

impl Shared {
    pub(super) fn new(statuses: Vec<LadderStatus>, lanes: Vec<Lane>, decoding: Option<Reservation>) -> Self {
        Self {
            statuses: Mutex::new(statuses),
            lanes,
            inputs: AtomicUsize::new(0),
            frames: AtomicUsize::new(0),
            decoding: Mutex::new(decoding),
        }
    }

    /// How each rung goes, largest first.
    pub(crate) fn statuses(&self) -> Vec<LadderStatus> {
        self.statuses.lock().clone()
    }

    /// Whether nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        // In the order of the way: what leaves the first queue is counted in the second before.
        self.inputs.load(Ordering::Acquire) == 0
            && self.lanes.iter().all(|lane| lane.inputs.load(Ordering::Acquire) == 0)
    }

    /// Whether no rung is running.
    pub(super) fn are_all_ended(&self) -> bool {
        self.lanes.iter().all(Lane::is_ended)
    }

    /// Gives up the largest rung that is running: it costs the most, and those who watched it can watch the one below.
    /// All others begin anew to show whether they keep up.
    pub(super) fn end_largest(&self, reason: &str) {
        if let Some(index) = self.lanes.iter().position(|lane| !lane.is_ended()) {
            self.end(index, reason);
        }
        for lane in &self.lanes {
            lane.bad_segments.store(0, Ordering::Release);
        }
    }

    pub(super) fn end(&self, index: usize, reason: &str) {
        let Some(lane) = self.lanes.get(index) else { return };
        if lane.is_ended.swap(true, Ordering::AcqRel) {
            return;
        }
        warn!(height = lane.height, reason, "a rung of the ladder ends; the stream goes on");
        metrics::counter!("segmenter_ladder_ended_total").increment(1);
        lane.reservation.lock().take();
        if self.are_all_ended() {
            self.decoding.lock().take();
        }
        for status in self.statuses.lock().iter_mut().filter(|status| status.height == lane.height) {
            status.state = LadderState::Ended;
            reason.clone_into(&mut status.reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcode::Slots;

    #[test]
    fn largest_rung_goes_first_and_gives_its_room_back_and_the_last_one_the_decoder_s() {
        let slots = Slots::new(1);
        let status = |height| LadderStatus {
            height,
            rendition: "v1".to_owned(),
            state: LadderState::Running,
            reason: String::new(),
        };
        let lane = |height, cost| Lane::new(height, slots.take(cost).unwrap());
        let lanes = vec![lane(480, 400), lane(240, 100)];
        let shared = Shared::new(vec![status(480), status(240)], lanes, slots.take(300));
        assert_eq!(slots.free(), 200);
        shared.lanes[1].bad_segments.store(2, Ordering::Release);
        shared.end_largest("too slow");
        assert_eq!((slots.free(), shared.are_all_ended()), (600, false));
        assert_eq!(shared.lanes[1].bad_segments.load(Ordering::Acquire), 0, "the other begins anew");
        shared.end_largest("still too slow");
        assert_eq!((slots.free(), shared.are_all_ended()), (1000, true));
        let told: Vec<_> =
            shared.statuses().into_iter().map(|status| (status.state, status.reason)).collect();
        let ended = |reason: &str| (LadderState::Ended, reason.to_owned());
        assert_eq!(told, [ended("too slow"), ended("still too slow")]);
    }
}
