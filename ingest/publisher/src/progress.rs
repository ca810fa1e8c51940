//! What a running publisher tells about itself.

use serde::Serialize;
use std::time::Duration;

/// What the publisher is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Opens the source and the encoders.
    #[default]
    Preparing,
    /// Talks to the WHIP endpoint and looks for a media path.
    Connecting,
    /// Sends.
    Live,
    /// Has ended; the result of the call tells how.
    Ended,
}

/// A snapshot, renewed once a second and at each change of state. Of several publishers in one call, rates and
/// counts are sums; loss and round trip are those of the worst.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// What is going on. Of several publishers, the least advanced one's.
    pub state: State,
    /// Publishers that are live now.
    pub live: u32,
    /// Since the publisher became live.
    pub live_for: Duration,
    /// Media and RTP headers sent in the last second, retransmissions not counted.
    pub bitrate_bps: u64,
    /// Video frames sent in the last second.
    pub fps: f64,
    /// Round trip to the server, from its receiver reports.
    pub rtt_ms: Option<f64>,
    /// Share of packets that got lost on the way before repair, 0 to 1, from its latest receiver report.
    pub loss: f64,
    /// Video frames since the start.
    pub frames_sent: u64,
    /// Keyframes among them.
    pub keyframes_sent: u64,
    /// How often the server asked for a keyframe.
    pub keyframe_requests: u64,
    /// Packets that the server asked to have again.
    pub nacked_packets: u64,
    /// RTP payload bytes since the start.
    pub bytes_sent: u64,
    /// How often the connection was made again after a loss.
    pub reconnects: u64,
    /// Something the person should know, for example that a file is being transcoded and why.
    pub note: Option<String>,
}

/// How it went, when a publisher has ended without an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Publishers that were run.
    pub publishers: u32,
    /// How long the longest of them was live.
    pub live_for: Duration,
    /// Video frames sent by all.
    pub frames_sent: u64,
    /// Keyframes among them.
    pub keyframes_sent: u64,
    /// Keyframe requests received by all.
    pub keyframe_requests: u64,
    /// Packets that servers asked to have again.
    pub nacked_packets: u64,
    /// RTP payload bytes sent by all.
    pub bytes_sent: u64,
    /// How often connections were made again after a loss.
    pub reconnects: u64,
    /// Frames that this machine was too slow to encode or send in time.
    pub frames_skipped: u64,
}

impl Summary {
    pub(crate) fn add(&mut self, progress: &Progress) {
        self.publishers += 1;
        self.live_for = self.live_for.max(progress.live_for);
        self.frames_sent += progress.frames_sent;
        self.keyframes_sent += progress.keyframes_sent;
        self.keyframe_requests += progress.keyframe_requests;
        self.nacked_packets += progress.nacked_packets;
        self.bytes_sent += progress.bytes_sent;
        self.reconnects += progress.reconnects;
    }
}
