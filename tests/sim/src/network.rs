//! Lines and distances: when a message that is sent now arrives.
//!
//! Every viewer has one uplink and one downlink, each a queue that serves first come first, for what comes from peers and over
//! HTTP alike. Before a downlink no more waits than an access line's buffer holds: what is sent beyond that stays with its
//! sender, as congestion control would have it. Propagation follows from the access lines and the distance. A share of the
//! messages comes late, as after a loss. Left out: how congestion windows grow, and queues inside the network.

use crate::people::{Nat, Visit, can_connect};
use crate::random::Random;
use crate::scenario;

/// IP, UDP, DTLS and SCTP add about 90 bytes to each packet of at most 1,200.
fn on_the_wire(bytes: u64) -> u64 {
    bytes + bytes.div_ceil(1_150) * 90
}

/// What waits before a full downlink takes it so long at most.
const LINE_BUFFER_US: u64 = 250_000;

#[derive(Debug)]
struct Line {
    up_bps: u64,
    down_bps: u64,
    up_free_us: u64,
    down_free_us: u64,
    /// When the downlink has taken in all that is on its way to it.
    down_due_us: u64,
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
            down_due_us: 0,
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

    /// How long a message of so many bytes waits in its sender's channel before it may leave, because the receiver's downlink is
    /// full.
    pub(crate) fn waits_us(&mut self, now_us: u64, from: usize, to: usize, bytes: u64) -> u64 {
        let arrive_us = now_us + self.rtt_us(from, to) / 2;
        let line = &mut self.lines[to];
        let queued_us = line.down_due_us.saturating_sub(arrive_us);
        line.down_due_us = line.down_due_us.max(arrive_us) + on_the_wire(bytes) * 8_000_000 / line.down_bps;
        queued_us.saturating_sub(LINE_BUFFER_US)
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

    /// Takes bytes of an answer over HTTP in, the last of which would come now were the line idle: when they are there. What
    /// came from elsewhere since the first of them left delays them.
    pub(crate) fn receive_answer(&mut self, now_us: u64, to: usize, bytes: u64) -> u64 {
        let line = &mut self.lines[to];
        let takes_us = bytes * 8_000_000 / line.down_bps;
        let begins_us = now_us.saturating_sub(takes_us);
        line.down_free_us = line.down_free_us.max(begins_us) + takes_us;
        line.down_due_us = line.down_due_us.max(begins_us) + takes_us;
        line.down_free_us.max(now_us)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two viewers, the second of which receives 4.5 Mbit/s; nothing is late by chance.
    fn network() -> Network {
        let mut scenario = scenario::Scenario::named("steady").expect("it exists");
        scenario.network.late_share = 0.0;
        let mut visits = crate::people::draw(&scenario, 2, 1);
        visits[0].uplink_bps = 1_000_000_000;
        visits[1].downlink_bps = 4_500_000;
        Network::new(&scenario, &visits, Random::new(1))
    }

    #[test]
    fn what_a_full_downlink_cannot_buffer_waits_at_its_sender() {
        let mut network = network();
        // Two seconds of the line, all at once.
        let mut waits: Vec<u64> = (0..64).map(|_| network.waits_us(0, 0, 1, 16_384)).collect();
        assert_eq!(waits[0], 0);
        waits.retain(|waits_us| *waits_us > 0);
        assert!((50..60).contains(&waits.len()), "a quarter of a second fits the buffer: {}", waits.len());
        let longest = *waits.last().expect("some wait");
        assert!((1_600_000..2_000_000).contains(&longest), "{longest} us");
        assert_eq!(network.waits_us(3_000_000, 0, 1, 16_384), 0, "by then all has passed");
    }

    #[test]
    fn peers_and_the_origin_share_a_downlink() {
        let mut network = network();
        let alone = network.receive_answer(1_000_000, 1, 56_250);
        assert_eq!(alone, 1_000_000, "a tenth of a second, which it took to come");
        // A second of the line from a neighbor, in the same moment.
        let there_us = network.receive(2_000_000, 1, 520_000);
        assert!((2_950_000..3_050_000).contains(&there_us), "{there_us}");
        let behind = network.receive_answer(2_100_000, 1, 56_250);
        assert!((3_050_000..3_150_000).contains(&behind), "{behind}");
    }
}
