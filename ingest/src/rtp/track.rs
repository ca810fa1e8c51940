//! One RTP stream's way from packets to frames.
//!
//! After a loss a video track gives nothing until the next keyframe: players freeze, they never show green. What
//! is thrown away is counted by [`Reason`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_segmenter::frame::{TrackFormat, VideoCodec};

use super::codec::{self, Depacketizer, Malformed, opus};
use super::reorder::{Item, Reorder};
use super::sequence::TimestampUnwrapper;
use crate::transport::RtpPacket;

/// Audio isn't retransmitted by browsers: a missing packet is only worth waiting for if it is out of order.
const AUDIO_HOLD: Duration = Duration::from_millis(60);
/// B-frames come several times a second for as long as the encoder makes them; what is rarer has another cause.
const OUT_OF_ORDER_WINDOW: Duration = Duration::from_secs(10);
/// As many are remembered as can matter.
const OUT_OF_ORDER_KEPT: usize = 1024;
/// A step back further than this is a stream that starts anew; B-frames step back by a few pictures.
const STEP_BACK_TICKS_MAX: i64 = 90_000;

/// Why a frame was thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Packets of it were lost.
    Incomplete,
    /// It builds on a frame that was lost, or nothing has been decodable yet.
    AwaitingKeyframe,
    /// Its payload isn't what the codec's format says.
    Malformed,
    /// It is presented before a frame that was decoded earlier.
    OutOfOrder,
    /// It has the time of the frame before it.
    SameTime,
    /// The segmenter, or what transcodes before it, had no room.
    QueueFull,
}

impl Reason {
    /// All reasons, in the order of [`Counters::dropped`].
    pub const ALL: [Self; 6] = [
        Self::Incomplete,
        Self::AwaitingKeyframe,
        Self::Malformed,
        Self::OutOfOrder,
        Self::SameTime,
        Self::QueueFull,
    ];

    /// The label in metrics and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::AwaitingKeyframe => "awaiting_keyframe",
            Self::Malformed => "malformed",
            Self::OutOfOrder => "out_of_order",
            Self::SameTime => "same_time",
            Self::QueueFull => "queue_full",
        }
    }
}

/// Totals of a track.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Packets that arrived, repeats included.
    pub packets: u64,
    /// Bytes of the frames that came out: repeats, which browsers send to probe for bandwidth, don't count.
    pub bytes: u64,
    /// Packets given up.
    pub packets_lost: u64,
    /// Packets that came when their place had been passed.
    pub packets_late: u64,
    /// Packets that repeated one which still waited for its turn.
    pub packets_duplicate: u64,
    /// Frames that came out.
    pub frames: u64,
    /// Keyframes among them.
    pub keyframes: u64,
    /// Frames thrown away, in the order of [`Reason::ALL`].
    pub dropped: [u64; Reason::ALL.len()],
}

/// What comes out of a track.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// The encoding from the next frame on.
    Format(TrackFormat),
    /// A frame.
    Frame {
        /// Its RTP timestamp.
        timestamp: u32,
        /// When its first packet came.
        arrival: Instant,
        /// Whether decoding can start here.
        is_keyframe: bool,
        /// Its bytes.
        data: Bytes,
    },
}

enum Content {
    Opus {
        channels: u8,
    },
    Video {
        depacketizer: Box<dyn Depacketizer>,
        /// Timestamp and arrival of the picture that is being put together.
        picture: Option<(u32, Instant)>,
        /// Whether the rest of that picture is only waited for to be thrown away.
        is_broken: bool,
        is_awaiting_keyframe: bool,
        order: TimestampUnwrapper,
        last: Option<i64>,
    },
}

/// See the module.
pub struct Track {
    reorder: Reorder,
    content: Content,
    format: Option<TrackFormat>,
    outputs: VecDeque<Output>,
    needs_keyframe: bool,
    /// When pictures came out of order, lately.
    out_of_order: VecDeque<Instant>,
    /// Totals.
    pub counters: Counters,
}

impl std::fmt::Debug for Track {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Track").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Track {
    /// An Opus track.
    pub fn opus(is_stereo: bool) -> Self {
        Self::new(AUDIO_HOLD, Content::Opus { channels: if is_stereo { 2 } else { 1 } })
    }

    /// A video track that waits this long for missing packets.
    pub fn video(codec: VideoCodec, hold: Duration) -> Self {
        Self::new(
            hold,
            Content::Video {
                depacketizer: codec::depacketizer(codec),
                picture: None,
                is_broken: false,
                is_awaiting_keyframe: true,
                order: TimestampUnwrapper::default(),
                last: None,
            },
        )
    }

    fn new(hold: Duration, content: Content) -> Self {
        Self {
            reorder: Reorder::new(hold),
            content,
            format: None,
            outputs: VecDeque::new(),
            needs_keyframe: false,
            out_of_order: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Takes a packet in.
    pub fn push(&mut self, now: Instant, packet: RtpPacket) {
        self.counters.packets += 1;
        let (late, duplicate) = (self.reorder.late, self.reorder.duplicate);
        self.reorder.push(now, packet);
        self.counters.packets_late += self.reorder.late - late;
        self.counters.packets_duplicate += self.reorder.duplicate - duplicate;
    }

    /// Ends the stream; the totals include what doesn't come out any more.
    pub fn retire(mut self) -> Counters {
        self.counters.packets_late += self.reorder.waiting() as u64;
        if matches!(self.content, Content::Video { picture: Some(_), .. }) {
            self.counters.dropped[Reason::Incomplete as usize] += 1;
        }
        self.counters
    }

    /// How many pictures came out of order in the last ten seconds.
    pub fn out_of_order_lately(&self, now: Instant) -> u64 {
        self.out_of_order.iter().filter(|at| now < **at + OUT_OF_ORDER_WINDOW).count() as u64
    }

    /// What can come out by now.
    pub fn poll(&mut self, now: Instant) -> Option<Output> {
        while self.outputs.is_empty() {
            match self.reorder.poll(now)? {
                Item::Gap(lost) => self.on_gap(lost),
                Item::Packet(arrival, packet) => self.on_packet(arrival, packet),
            }
        }
        self.outputs.pop_front()
    }

    /// When to poll again without a new packet.
    pub fn deadline(&self) -> Option<Instant> {
        self.reorder.deadline()
    }

    /// Whether nothing comes out before the next keyframe.
    pub fn is_awaiting_keyframe(&self) -> bool {
        matches!(self.content, Content::Video { is_awaiting_keyframe: true, .. })
    }

    /// Whether a keyframe must be asked for: something was lost or can't be decoded. Not yet while the first picture
    /// is coming in, which is a keyframe without asking.
    pub fn needs_keyframe(&self) -> bool {
        self.needs_keyframe
    }

    /// The encoding, once a keyframe has come out.
    pub fn format(&self) -> Option<&TrackFormat> {
        self.format.as_ref()
    }

    fn on_gap(&mut self, lost: u64) {
        self.counters.packets_lost += lost;
        if let Content::Video { depacketizer, picture, is_broken, is_awaiting_keyframe, .. } =
            &mut self.content
        {
            depacketizer.reset();
            if picture.take().is_some() {
                self.counters.dropped[Reason::Incomplete as usize] += 1;
            }
            // What follows may be the rest of a picture whose beginning is lost. The depacketizers notice that;
            // until the next picture begins there is no use in trying.
            *is_broken = false;
            *is_awaiting_keyframe = true;
            self.needs_keyframe = true;
        }
    }

    fn on_packet(&mut self, arrival: Instant, packet: RtpPacket) {
        // Browsers pad with empty packets when they probe for bandwidth, and send some while sharing a screen.
        if packet.payload.is_empty() {
            return;
        }
        match &mut self.content {
            Content::Opus { channels } => {
                let Some((_, coded)) = opus::describe(&packet.payload) else {
                    self.counters.dropped[Reason::Malformed as usize] += 1;
                    return;
                };
                *channels = coded.max(*channels);
                let format = TrackFormat::Opus { channels: *channels };
                self.emit(format, packet.timestamp, arrival, true, packet.payload);
            }
            Content::Video { picture, .. } => {
                if picture.is_some_and(|(timestamp, _)| timestamp != packet.timestamp) {
                    // A sender that doesn't mark the ends of pictures, or whose last packets carried nothing.
                    self.finish_picture();
                }
                self.add_to_picture(arrival, packet);
            }
        }
    }

    fn add_to_picture(&mut self, arrival: Instant, packet: RtpPacket) {
        let Content::Video { depacketizer, picture, is_broken, .. } = &mut self.content else { return };
        if picture.is_none() {
            *picture = Some((packet.timestamp, arrival));
            *is_broken = false;
        }
        if !*is_broken && let Err(Malformed(why)) = depacketizer.push(&packet.payload) {
            tracing::trace!(why, "picture thrown away");
            depacketizer.reset();
            *is_broken = true;
        }
        if packet.is_marked {
            self.finish_picture();
        }
    }

    fn finish_picture(&mut self) {
        let Content::Video { depacketizer, picture, is_broken, is_awaiting_keyframe, order, last } =
            &mut self.content
        else {
            return;
        };
        let Some((timestamp, arrival)) = picture.take() else { return };
        let finished = if std::mem::take(is_broken) { Err(Malformed("")) } else { depacketizer.finish() };
        let finished = match finished {
            Ok(Some(finished)) => finished,
            Ok(None) => return,
            Err(Malformed(why)) => {
                tracing::trace!(why, "picture thrown away");
                // The rest of a picture whose beginning was lost looks malformed, and is no news.
                let reason = if *is_awaiting_keyframe { Reason::Incomplete } else { Reason::Malformed };
                self.counters.dropped[reason as usize] += 1;
                *is_awaiting_keyframe = true;
                self.needs_keyframe = true;
                return;
            }
        };
        if *is_awaiting_keyframe && !finished.is_keyframe {
            self.counters.dropped[Reason::AwaitingKeyframe as usize] += 1;
            self.needs_keyframe = true;
            return;
        }
        let extended = order.near(timestamp);
        let step = last.map(|last| extended - last);
        if step == Some(0) {
            self.counters.dropped[Reason::SameTime as usize] += 1;
            return;
        }
        if step.is_some_and(|step| (-STEP_BACK_TICKS_MAX..0).contains(&step)) {
            self.counters.dropped[Reason::OutOfOrder as usize] += 1;
            self.out_of_order.retain(|at| arrival < *at + OUT_OF_ORDER_WINDOW);
            self.out_of_order.truncate(OUT_OF_ORDER_KEPT - 1);
            self.out_of_order.push_front(arrival);
            return;
        }
        *last = Some(order.unwrap(timestamp));
        *is_awaiting_keyframe = false;
        self.needs_keyframe = false;
        let Some(format) = finished.format.or_else(|| self.format.clone()) else {
            // A keyframe that doesn't say how to decode it.
            self.counters.dropped[Reason::Malformed as usize] += 1;
            return;
        };
        if finished.is_keyframe {
            self.counters.keyframes += 1;
        }
        self.emit(format, timestamp, arrival, finished.is_keyframe, finished.data);
    }

    fn emit(
        &mut self,
        format: TrackFormat,
        timestamp: u32,
        arrival: Instant,
        is_keyframe: bool,
        data: Bytes,
    ) {
        if self.format.as_ref() != Some(&format) {
            self.format = Some(format.clone());
            self.outputs.push_back(Output::Format(format));
        }
        self.counters.frames += 1;
        self.counters.bytes += data.len() as u64;
        self.outputs.push_back(Output::Frame { timestamp, arrival, is_keyframe, data });
    }
}
