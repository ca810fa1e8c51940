//! What is known of a neighbor.

use shoal_digest::PieceId;

use crate::{Span, Time, wire::Flags};

/// Assumed before anything was measured: a national path.
const RTT_INITIAL: Span = Span::from_ms(60);
/// Of so many renditions of a recording it is remembered what a neighbor has.
const RANGES_MAX: usize = 16;
/// Segments that may be missing in a range: some were loaded past the swarm.
const RANGE_GAP: u64 = 4;

/// What a neighbor may say on the control channel, in bit/s: 16 KiB a second, where honest ones say a few hundred bytes, and a
/// few thousand while there is no tracker.
const TALK_BPS: u64 = 8 * 16 * 1024;
/// So much more at once: the records and announcements of a greeting.
const TALK_BURST: Span = Span::from_secs(8);

/// A peer with open data channels.
#[derive(Clone, Debug)]
pub(crate) struct Neighbor {
    pub(crate) has_greeted: bool,
    pub(crate) flags: Flags,
    pub(crate) uplink_class: u8,
    pub(crate) rtt: Span,
    /// From asking for a block to getting it, smoothed; grows when a pull is not answered.
    pub(crate) service: Span,
    /// Blocks asked of it that have not come.
    pub(crate) asked: u16,
    /// Bytes in its blocks channel's send queue.
    pub(crate) buffered: u32,
    /// When something last left that channel, or began to wait in it.
    pub(crate) drained_at: Time,
    pub(crate) strikes: u32,
    /// Blocks from it that were of no use, less the useful ones: a flood shows here.
    pub(crate) useless: i32,
    pub(crate) held: u16,
    pub(crate) heard: Time,
    /// How long what it has said would have taken at the rate that it may talk at, and when that was so.
    talk: Span,
    talk_at: Time,
    /// Questions that it did not answer in time, since the last that it did.
    pub(crate) unanswered: u32,
    pub(crate) ping: Option<(Time, u32)>,
    /// It does not answer: nothing is asked or expected of it.
    pub(crate) is_suspect: bool,
    /// It said that it has too much to send: nothing is asked of it before this.
    pub(crate) busy_until: Time,
    /// Answers to its requests are queued no earlier than this, so that it gets its share and no more.
    pub(crate) answer_rank: Time,
    pub(crate) answers_queued: u16,
    /// Of a recording: from which to which segment of a rendition it has said to have something.
    ranges: Vec<(u8, u64, u64)>,
}

impl Neighbor {
    pub(crate) fn new(now: Time, rtt: Option<Span>) -> Self {
        let rtt = rtt.unwrap_or(RTT_INITIAL);
        Self {
            has_greeted: false,
            flags: Flags::default(),
            uplink_class: 0,
            rtt,
            service: rtt + rtt,
            asked: 0,
            buffered: 0,
            drained_at: Time::ZERO,
            strikes: 0,
            useless: 0,
            held: 0,
            heard: now,
            talk: Span::ZERO,
            talk_at: now,
            unanswered: 0,
            ping: None,
            is_suspect: false,
            busy_until: Time::ZERO,
            answer_rank: Time::ZERO,
            answers_queued: 0,
            ranges: Vec::new(),
        }
    }

    /// It has something of a piece of a recording. Who watches a recording has gone through it from one place on: a range
    /// says enough, and takes no more room for hours than for minutes. One that is elsewhere replaces it.
    pub(crate) fn note_range(&mut self, id: PieceId) {
        let Some((_, from, to)) = self.ranges.iter_mut().find(|range| range.0 == id.rendition) else {
            if self.ranges.len() < RANGES_MAX {
                self.ranges.push((id.rendition, id.msn, id.msn));
            }
            return;
        };
        if id.msn.saturating_add(RANGE_GAP) < *from || id.msn > to.saturating_add(RANGE_GAP) {
            (*from, *to) = (id.msn, id.msn);
        }
        (*from, *to) = ((*from).min(id.msn), (*to).max(id.msn));
    }

    /// Whether it probably has a piece of a recording.
    pub(crate) fn has_in_range(&self, id: PieceId) -> bool {
        self.ranges.iter().any(|range| range.0 == id.rendition && (range.1..=range.2).contains(&id.msn))
    }

    /// It says so many bytes. Whether they are within what it may say.
    pub(crate) fn may_say(&mut self, now: Time, bytes: usize) -> bool {
        let takes = Span::of_bytes(bytes as u64, TALK_BPS);
        self.talk = self.talk.saturating_sub(now.since(self.talk_at)) + takes;
        self.talk_at = now;
        self.talk <= TALK_BURST
    }

    /// Whether it is to be sent what it did not ask for.
    pub(crate) fn takes_pushes(&self) -> bool {
        self.has_greeted && !self.flags.refuses_pushes
    }

    /// Whether blocks may be asked of it.
    pub(crate) fn gives(&self) -> bool {
        self.has_greeted && self.flags.shares && !self.is_suspect
    }

    pub(crate) fn measured_rtt(&mut self, rtt: Span) {
        self.rtt = Span::from_us((self.rtt.as_us() * 7 + rtt.as_us()) / 8);
    }

    pub(crate) fn served(&mut self, took: Span) {
        self.service = Span::from_us((self.service.as_us() * 3 + took.as_us()) / 4);
    }

    pub(crate) fn failed(&mut self) {
        self.service = (self.service + self.service).min(Span::from_secs(5));
    }

    /// How long to wait for a block that was asked of it.
    pub(crate) fn patience(&self) -> Span {
        (self.service + self.service + self.rtt).max(Span::from_ms(150))
    }
}
