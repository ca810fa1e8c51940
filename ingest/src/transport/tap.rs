//! The interceptor that ends the chain: takes media packets and sender reports out of the stack, and puts
//! keyframe requests in.
//!
//! The stack would hand packets to tracks, whose names it derives from SSRCs and layers, and drop sender reports
//! before the application. A publisher's packets need only their payload type and layer, and reports must keep
//! their place among the packets; so both leave here, after everything that counts arrivals has seen them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rtc::interceptor::{AttributedPacket, Interceptor, Packet, StreamInfo, TaggedPacket};
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtcp::sender_report::SenderReport as StackReport;
use rtc::sansio::Protocol;
use rtc::shared::TransportContext;
use rtc::shared::error::Error;

use super::{Event, RtpPacket, SenderReport};

/// What the tap and the connection that owns it share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) events: VecDeque<Event>,
    pub(super) keyframes_wanted: Vec<(Instant, u32)>,
}

/// See the module.
pub(super) struct Tap {
    rid_extension: Option<u8>,
    sender_ssrc: u32,
    shared: Arc<Mutex<Shared>>,
    reads: VecDeque<TaggedPacket>,
    writes: VecDeque<TaggedPacket>,
}

impl Tap {
    pub(super) fn new(rid_extension: Option<u8>, shared: Arc<Mutex<Shared>>) -> Self {
        Self {
            rid_extension,
            sender_ssrc: rand::random(),
            shared,
            reads: VecDeque::new(),
            writes: VecDeque::new(),
        }
    }
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for Tap {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = Error;
    type Time = Instant;

    fn handle_read(&mut self, tagged: TaggedPacket) -> Result<(), Error> {
        let mut shared = self.shared.lock();
        match tagged.message.packet {
            Packet::Rtp(packet) => {
                let rid = self.rid_extension.and_then(|id| packet.header.get_extension(id));
                shared.events.push_back(Event::Rtp(RtpPacket {
                    ssrc: packet.header.ssrc,
                    payload_type: packet.header.payload_type,
                    sequence: packet.header.sequence_number,
                    timestamp: packet.header.timestamp,
                    is_marked: packet.header.marker,
                    rid: rid.and_then(|rid| String::from_utf8(rid.to_vec()).ok()),
                    payload: packet.payload,
                }));
            }
            Packet::Rtcp(packets) => {
                for report in packets.iter().filter_map(|p| p.as_any().downcast_ref::<StackReport>()) {
                    shared.events.push_back(Event::Report(SenderReport {
                        ssrc: report.ssrc,
                        ntp_us: ntp_to_us(report.ntp_time),
                        timestamp: report.rtp_time,
                    }));
                }
            }
            _ => {}
        }
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
        let wanted = std::mem::take(&mut self.shared.lock().keyframes_wanted);
        for (now, media_ssrc) in wanted {
            let request = PictureLossIndication { sender_ssrc: self.sender_ssrc, media_ssrc };
            self.writes.push_back(TaggedPacket {
                now,
                transport: TransportContext::default(),
                message: AttributedPacket::new(Packet::Rtcp(vec![Box::new(request)])),
            });
        }
        self.writes.pop_front()
    }
}

impl Interceptor for Tap {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _: &StreamInfo) {}
}

/// From 32.32 fixed point seconds.
fn ntp_to_us(ntp: u64) -> i64 {
    let (seconds, fraction) = (ntp >> 32, ntp & 0xffff_ffff);
    (seconds * 1_000_000 + ((fraction * 1_000_000) >> 32)) as i64
}
