//! Feedback for the application: an interceptor that copies inbound RTCP.

use parking_lot::Mutex;
use rtc::{
    interceptor::{Interceptor, Packet, StreamInfo, TaggedPacket},
    rtcp,
    sansio::Protocol,
    shared::error::Error as RtcError,
};
use std::{collections::VecDeque, sync::Arc, time::Instant};

/// RTCP packets in order of arrival.
pub(super) type Seen = Arc<Mutex<Vec<Box<dyn rtcp::Packet>>>>;

/// Copies every inbound RTCP packet for [`super::Peer::poll_event`]. Marking them for delivery instead would lose some: the
/// engine drops a compound packet when its first part names no SSRC, as in an empty receiver report before a PLI.
pub(super) struct TapRtcp {
    seen: Seen,
    reads: VecDeque<TaggedPacket>,
    writes: VecDeque<TaggedPacket>,
}

impl TapRtcp {
    pub(super) fn new(seen: Seen) -> Self {
        Self { seen, reads: VecDeque::new(), writes: VecDeque::new() }
    }
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for TapRtcp {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = RtcError;
    type Time = Instant;

    fn handle_read(&mut self, message: TaggedPacket) -> Result<(), RtcError> {
        if let Packet::Rtcp(packets) = &message.message.packet {
            // Emptied after each batch of datagrams, which bounds it.
            self.seen.lock().extend(packets.iter().cloned());
        }
        self.reads.push_back(message);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<TaggedPacket> {
        self.reads.pop_front()
    }

    fn handle_write(&mut self, message: TaggedPacket) -> Result<(), RtcError> {
        self.writes.push_back(message);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<TaggedPacket> {
        self.writes.pop_front()
    }
}

impl Interceptor for TapRtcp {
    fn bind_local_stream(&mut self, _: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _: &StreamInfo) {}
}
