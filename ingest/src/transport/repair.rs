//! The interceptor that repairs loss: turns retransmissions (RFC 4588) back into what they repeat, and asks for
//! what is missing (RFC 4585, 6.2.1).
//!
//! It stands where the stack's own NACK generator would. The stack unwraps retransmissions after its
//! generator, which therefore never sees a repair and asks again and again: 10 lost packets cost 415
//! retransmissions. Here both are one thing with one memory, and requests follow the measured round trip.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rtc::interceptor::{AttributedPacket, Interceptor, Packet, StreamInfo, TaggedPacket};
use rtc::rtcp::transport_feedbacks::transport_layer_nack::{
    TransportLayerNack, nack_pairs_from_sequence_numbers,
};
use rtc::sansio::Protocol;
use rtc::shared::TransportContext;
use rtc::shared::error::Error;

use super::Figures;
use crate::rtp::sequence::Unwrapper;

/// A gap this young may be reordering: at 2.5 Mbit/s packets come every 4 ms.
const REORDERING: Duration = Duration::from_millis(10);
/// Asking more often than this for one packet only makes duplicates, whatever the measured round trip says.
const RETRY_MIN: Duration = Duration::from_millis(20);
/// Asking more rarely than this leaves too few tries within the hold of 400 ms.
const RETRY_MAX: Duration = Duration::from_millis(150);
/// Until measured. A first guess that is too low costs one duplicate.
const ROUND_TRIP_GUESS: Duration = Duration::from_millis(60);
/// A larger gap is not repaired but skipped: it is the sender's pause or restart, or a second of lost video.
const GAP_MAX: u64 = 500;
/// Packets of one stream that are waited for; the oldest are given up for newer ones.
const MISSING_MAX: usize = 2048;
/// Retransmission streams that are told apart: a publisher has one for each layer, and new ones when it starts a track
/// anew.
const RTX_MAX: usize = 64;
/// Sequence numbers that one packet of ours asks for; more are asked for in the next.
const REQUESTED_MAX: usize = 200;

/// What the interceptor and the connection that owns it share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) figures: Figures,
}

#[derive(Debug)]
struct Missing {
    since: Instant,
    asked_at: Option<Instant>,
    times_asked: u32,
}

#[derive(Debug, Default)]
struct Log {
    sequence: Unwrapper,
    highest: Option<u64>,
    missing: BTreeMap<u64, Missing>,
    rid: Option<Vec<u8>>,
}

/// See the module.
pub struct Repair {
    /// Retransmission payload types and the payload types that they repeat.
    apt: HashMap<u8, u8>,
    /// Header extension numbers of the layer's name and the repaired layer's name.
    rid_extension: Option<u8>,
    repaired_rid_extension: Option<u8>,
    /// How long a packet is worth asking for.
    hold: Duration,
    rtx: HashMap<u32, u32>,
    logs: HashMap<u32, Log>,
    round_trip: Option<Duration>,
    next_request: Option<Instant>,
    sender_ssrc: u32,
    shared: Arc<Mutex<Shared>>,
    reads: VecDeque<TaggedPacket>,
    writes: VecDeque<TaggedPacket>,
}

impl std::fmt::Debug for Repair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repair").field("streams", &self.logs.len()).finish_non_exhaustive()
    }
}

impl Repair {
    /// One that nobody reads figures of, for tests: `apt` maps payload types of retransmissions to those that they repeat,
    /// and the numbers are those of the header extensions with the layer's name and the repaired layer's name.
    pub fn alone(apt: HashMap<u8, u8>, rid: u8, repaired_rid: u8, hold: Duration) -> Self {
        Self::new(apt, Some(rid), Some(repaired_rid), hold, Arc::default())
    }

    /// What it remembers: packets that it misses, and retransmission streams that it knows.
    pub fn held(&self) -> (usize, usize) {
        (self.logs.values().map(|log| log.missing.len()).sum(), self.rtx.len())
    }

    pub(super) fn new(
        apt: HashMap<u8, u8>,
        rid_extension: Option<u8>,
        repaired_rid_extension: Option<u8>,
        hold: Duration,
        shared: Arc<Mutex<Shared>>,
    ) -> Self {
        Self {
            apt,
            rid_extension,
            repaired_rid_extension,
            hold,
            rtx: HashMap::new(),
            logs: HashMap::new(),
            round_trip: None,
            next_request: None,
            sender_ssrc: rand::random(),
            shared,
            reads: VecDeque::new(),
            writes: VecDeque::new(),
        }
    }

    /// Turns a retransmission into the packet that it repeats; false when that isn't known or when it is padding.
    fn unwrap_retransmission(&mut self, packet: &mut rtc::rtp::Packet) -> bool {
        let Some(&payload_type) = self.apt.get(&packet.header.payload_type) else { return false };
        let header = &mut packet.header;
        if !self.rtx.contains_key(&header.ssrc) {
            if self.rtx.len() >= RTX_MAX {
                return false;
            }
            // Simulcast layers are announced by name only; retransmissions carry the name of what they repair.
            let rid = self.repaired_rid_extension.and_then(|id| header.get_extension(id));
            let primary = match rid {
                Some(rid) => self.logs.iter().find(|(_, log)| log.rid.as_deref() == Some(&rid[..])),
                // Without any announcement there is no doubt only when there is one stream.
                None if self.logs.len() == 1 => self.logs.iter().next(),
                None => None,
            };
            let Some((&primary, _)) = primary else { return false };
            self.rtx.insert(header.ssrc, primary);
        }
        if packet.payload.len() < 2 {
            return false;
        }
        header.ssrc = self.rtx[&header.ssrc];
        header.payload_type = payload_type;
        header.sequence_number = u16::from_be_bytes([packet.payload[0], packet.payload[1]]);
        header.padding = false;
        packet.payload = packet.payload.slice(2..);
        true
    }

    fn on_packet(&mut self, now: Instant, packet: &mut rtc::rtp::Packet) {
        if self.apt.contains_key(&packet.header.payload_type) && !self.unwrap_retransmission(packet) {
            return;
        }
        let Some(log) = self.logs.get_mut(&packet.header.ssrc) else { return };
        if log.rid.is_none() {
            let rid = self.rid_extension.and_then(|id| packet.header.get_extension(id));
            log.rid = rid.map(|rid| rid.to_vec());
        }
        let sequence = log.sequence.unwrap(packet.header.sequence_number);
        let mut shared = self.shared.lock();
        let Some(highest) = log.highest else {
            log.highest = Some(sequence);
            return;
        };
        if sequence <= highest {
            let Some(missing) = log.missing.remove(&sequence) else { return };
            shared.figures.packets_repaired += 1;
            if let (Some(asked_at), 1) = (missing.asked_at, missing.times_asked) {
                // Asked for once, so this can only be the reply to that (or a late arrival, which is no longer).
                let sample = now.saturating_duration_since(asked_at);
                let smoothed = self.round_trip.map_or(sample, |old| (old * 7 + sample) / 8);
                self.round_trip = Some(smoothed);
                shared.figures.round_trip = Some(smoothed);
            }
            return;
        }
        let lost = sequence - highest - 1;
        log.highest = Some(sequence);
        shared.figures.packets_missing += lost;
        if lost > GAP_MAX {
            log.missing.clear();
            return;
        }
        for sequence in highest + 1..sequence {
            log.missing.insert(sequence, Missing { since: now, asked_at: None, times_asked: 0 });
        }
        while log.missing.len() > MISSING_MAX {
            log.missing.pop_first();
        }
        if lost > 0 {
            let at = now + REORDERING;
            self.next_request = Some(self.next_request.map_or(at, |next| next.min(at)));
        }
    }

    fn request(&mut self, now: Instant) {
        self.next_request = None;
        let round_trip = self.round_trip.unwrap_or(ROUND_TRIP_GUESS);
        let retry = (round_trip + round_trip / 4).clamp(RETRY_MIN, RETRY_MAX);
        for (&ssrc, log) in &mut self.logs {
            log.missing.retain(|_, missing| now < missing.since + self.hold);
            let mut wanted = Vec::new();
            for (&sequence, missing) in &mut log.missing {
                let due = missing.asked_at.map_or(missing.since + REORDERING, |asked| asked + retry);
                let next = if due <= now && wanted.len() < REQUESTED_MAX {
                    missing.asked_at = Some(now);
                    missing.times_asked += 1;
                    wanted.push(sequence as u16);
                    now + retry
                } else {
                    due.max(now + Duration::from_millis(1))
                };
                self.next_request = Some(self.next_request.map_or(next, |at| at.min(next)));
            }
            if wanted.is_empty() {
                continue;
            }
            self.shared.lock().figures.packets_requested += wanted.len() as u64;
            let nack = TransportLayerNack {
                sender_ssrc: self.sender_ssrc,
                media_ssrc: ssrc,
                nacks: nack_pairs_from_sequence_numbers(&wanted),
            };
            self.writes.push_back(TaggedPacket {
                now,
                transport: TransportContext::default(),
                message: AttributedPacket::new(Packet::Rtcp(vec![Box::new(nack)])),
            });
        }
    }
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for Repair {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = Error;
    type Time = Instant;

    fn handle_read(&mut self, mut tagged: TaggedPacket) -> Result<(), Error> {
        if let Packet::Rtp(packet) = &mut tagged.message.packet {
            self.on_packet(tagged.now, packet);
        }
        self.reads.push_back(tagged);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<TaggedPacket> {
        self.reads.pop_front()
    }

    fn handle_write(&mut self, tagged: TaggedPacket) -> Result<(), Error> {
        self.writes.push_back(tagged);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<TaggedPacket> {
        self.writes.pop_front()
    }

    fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        if self.next_request.is_some_and(|at| at <= now) {
            self.request(now);
        }
        Ok(())
    }

    fn poll_timeout(&mut self) -> Option<Instant> {
        self.next_request
    }
}

impl Interceptor for Repair {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}

    fn bind_remote_stream(&mut self, info: &StreamInfo) {
        // Retransmission streams are bound too; their gaps are nobody's loss.
        let has_nack = info.rtcp_feedback.iter().any(|fb| fb.typ == "nack" && fb.parameter.is_empty());
        if self.apt.contains_key(&info.payload_type) || !has_nack {
            return;
        }
        self.logs.entry(info.ssrc).or_default();
        if let Some(rtx) = info.ssrc_rtx {
            self.rtx.insert(rtx, info.ssrc);
        }
    }

    fn unbind_remote_stream(&mut self, info: &StreamInfo) {
        self.logs.remove(&info.ssrc);
        self.rtx.retain(|_, primary| *primary != info.ssrc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retransmission_streams_are_bounded_and_known_ones_go_on() {
        let apt = HashMap::from([(97, 96)]);
        let mut repair = Repair::new(apt, None, None, Duration::from_millis(400), Arc::default());
        repair.logs.insert(1, Log::default());
        let retransmission = |ssrc: u32| {
            let mut packet = rtc::rtp::Packet::default();
            packet.header.payload_type = 97;
            packet.header.ssrc = ssrc;
            packet.payload = bytes::Bytes::from_static(&[0, 7, 1]);
            packet
        };
        for ssrc in 100..10_000 {
            repair.unwrap_retransmission(&mut retransmission(ssrc));
        }
        assert_eq!(repair.rtx.len(), RTX_MAX);
        let mut packet = retransmission(100);
        assert!(repair.unwrap_retransmission(&mut packet));
        assert_eq!((packet.header.ssrc, packet.header.sequence_number), (1, 7));
    }
}
