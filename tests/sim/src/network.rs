//! Lines and distances: when a message that is sent now arrives.
//!
//! Every viewer has one uplink and one downlink, each a queue that serves first come first. Propagation follows from
//! the access lines and the distance. A share of the messages comes late, as after a loss. Left out: congestion
//! windows of SCTP and TCP, and queues inside the network.

use crate::people::{Nat, Visit, can_connect};
use crate::random::Random;
use crate::scenario;

/// IP, UDP, DTLS and SCTP add about 90 bytes to each packet of at most 1,200.
fn on_the_wire(bytes: u64) -> u64 {
    bytes + bytes.div_ceil(1_150) * 90
}

#[derive(Debug)]
struct Line {
    up_bps: u64,
    down_bps: u64,
    up_free_us: u64,
    down_free_us: u64,
    access_us: u64,
    place: [f64; 2],
    nat: Nat,
}

/// The network between viewers, and between viewers and servers.
#[derive(Debug)]
pub(crate) struct Network {
    lines: Vec<Line>,
    random: Random,
    late_share: f64,
    late_us: u64,
    has_nat: bool,
    connect_median_us: f64,
    connect_fail_us: u64,
    server_us: u64,
}

impl Network {
    /// A network for all visits of a run.
    #[must_use]
    pub(crate) fn new(scenario: &scenario::Scenario, visits: &[Visit], random: Random) -> Self {
        let network = &scenario.network;
        let lines = visits.iter().map(|visit| Line {
            up_bps: visit.uplink_bps.max(1),
            down_bps: visit.downlink_bps.max(1),
            up_free_us: 0,
            down_free_us: 0,
            access_us: visit.access_us,
            place: visit.place,
            nat: visit.nat,
        });
        Self {
            lines: lines.collect(),
            random,
            late_share: network.late_share,
            late_us: (network.late_ms * 1e3) as u64,
            has_nat: network.nat,
            connect_median_us: network.connect_median_ms * 1e3,
            connect_fail_us: (network.connect_fail_ms * 1e3) as u64,
            server_us: (scenario.origin.rtt_ms * 1e3) as u64,
        }
    }

    /// Round trip between two viewers.
    #[must_use]
    pub(crate) fn rtt_us(&self, a: usize, b: usize) -> u64 {
        let (a, b) = (&self.lines[a], &self.lines[b]);
        let km = (a.place[0] - b.place[0]).hypot(a.place[1] - b.place[1]);
        a.access_us + b.access_us + (km * 15.0) as u64
    }

    /// Round trip between a viewer and the servers.
    #[must_use]
    pub(crate) fn server_rtt_us(&self, viewer: usize) -> u64 {
        self.lines[viewer].access_us + self.server_us
    }

    /// Sends a message: when its last byte has left, and when it arrives (before the receiver's downlink).
    pub(crate) fn send(&mut self, now_us: u64, from: usize, to: usize, bytes: u64) -> (u64, u64) {
        let half_us = self.rtt_us(from, to) / 2;
        let late_us = if self.random.chance(self.late_share) { self.late_us } else { 0 };
        let line = &mut self.lines[from];
        let sent_us = line.up_free_us.max(now_us) + on_the_wire(bytes) * 8_000_000 / line.up_bps;
        line.up_free_us = sent_us;
        (sent_us, sent_us + half_us + late_us)
    }

    /// Takes a message in at the receiver's downlink: when it is there whole.
    pub(crate) fn receive(&mut self, now_us: u64, to: usize, bytes: u64) -> u64 {
        let line = &mut self.lines[to];
        line.down_free_us = line.down_free_us.max(now_us) + on_the_wire(bytes) * 8_000_000 / line.down_bps;
        line.down_free_us
    }

    /// What a viewer can receive, in bit/s.
    #[must_use]
    pub(crate) fn down_bps(&self, viewer: usize) -> u64 {
        self.lines[viewer].down_bps
    }

    /// What comes of connecting two viewers: whether, and after what time.
    pub(crate) fn connect(&mut self, a: usize, b: usize) -> (bool, u64) {
        let works = !self.has_nat || can_connect(self.lines[a].nat, self.lines[b].nat);
        if works {
            (true, self.random.lognormal(self.connect_median_us, 0.8).min(20e6) as u64)
        } else {
            (false, self.connect_fail_us)
        }
    }
}
