//! A player as hls.js plays a live stream: starts at a distance behind live, asks for one piece after the other, stops
//! when its buffer is empty, and plays a little faster while it is further behind than it should be.

use crate::media::Stream;
use crate::scenario::Play;

/// A player this much further behind than its target jumps forward.
const JUMP_US: u64 = 15_000_000;
/// A player this much further behind than where it started plays faster.
const CATCH_UP_FROM_US: u64 = 150_000;

/// What the player does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is known yet.
    Loading,
    /// It waits for the first media.
    Starting,
    /// It plays.
    Playing,
    /// It has run out of media, since this time.
    Stalled(u64),
}

/// A viewer's player.
#[derive(Debug)]
pub(crate) struct Player {
    state: State,
    joined_us: u64,
    latency_us: u64,
    start_buffer_us: u64,
    catch_up_percent: u64,
    piece_us: u64,
    publish_delay_us: u64,
    /// The playhead, in the stream's time, and when that was.
    position_us: u64,
    at_us: u64,
    rate_percent: u64,
    buffered_us: u64,
    /// The piece to ask for next.
    pub(crate) next: u64,
    /// From joining to the first frame.
    pub(crate) startup_us: Option<u64>,
    /// Time without playback since the first frame, up to the last call.
    pub(crate) stalled_us: u64,
    /// Time since the first frame, up to the last call.
    pub(crate) played_us: u64,
    /// How often it stalled.
    pub(crate) stalls: u32,
}

impl Player {
    /// A player that was just opened.
    #[must_use]
    pub(crate) fn new(play: &Play, stream: &Stream, now_us: u64) -> Self {
        Self {
            state: State::Loading,
            joined_us: now_us,
            latency_us: u64::from(play.latency_ms) * 1_000,
            start_buffer_us: u64::from(play.start_buffer_ms) * 1_000,
            catch_up_percent: u64::from(play.catch_up_percent),
            piece_us: stream.piece_us(),
            publish_delay_us: stream.publish_delay_us(),
            position_us: 0,
            at_us: now_us,
            rate_percent: 100,
            buffered_us: 0,
            next: 0,
            startup_us: None,
            stalled_us: 0,
            played_us: 0,
            stalls: 0,
        }
    }

    /// Whether it has read the playlist.
    #[must_use]
    pub(crate) fn is_open(&self) -> bool {
        self.state != State::Loading
    }

    /// Whether it waits for media, after it had begun to play.
    #[must_use]
    pub(crate) fn is_stalled(&self) -> bool {
        matches!(self.state, State::Stalled(_))
    }

    /// Reads the playlist for the first time.
    pub(crate) fn open(&mut self, now_us: u64, stream: &Stream) {
        let edge_us = stream.next_number() * self.piece_us;
        // The distance is kept to the end of the playlist, which moves in steps: so the distances to the camera differ
        // by up to a piece, and so do the moments at which viewers run out of time.
        let behind_us = self.latency_us - self.publish_delay_us - self.piece_us / 2;
        let wanted_us = edge_us.saturating_sub(behind_us).min(edge_us - self.piece_us);
        self.position_us = wanted_us;
        self.at_us = now_us;
        // Decoding begins with a keyframe, hence at a segment's first piece.
        let number = wanted_us / self.piece_us;
        self.next = number - number % stream.parts();
        self.buffered_us = self.next * self.piece_us;
        self.state = State::Starting;
    }

    /// Moves the playhead to now.
    pub(crate) fn advance(&mut self, now_us: u64) {
        let passed_us = now_us - self.at_us;
        self.at_us = now_us;
        match self.state {
            // Where playback is to begin is settled when the playlist was read.
            State::Loading | State::Starting => {}
            State::Playing => {
                self.played_us += passed_us;
                let wanted_us = self.position_us + passed_us * self.rate_percent / 100;
                if wanted_us >= self.buffered_us {
                    let over_us = (wanted_us - self.buffered_us) * 100 / self.rate_percent;
                    self.position_us = self.buffered_us;
                    self.state = State::Stalled(now_us - over_us);
                    self.stalled_us += over_us;
                    self.stalls += 1;
                } else {
                    self.position_us = wanted_us;
                }
            }
            State::Stalled(_) => {
                self.played_us += passed_us;
                self.stalled_us += passed_us;
            }
        }
        let late_us = self.latency_us + self.piece_us / 2 + CATCH_UP_FROM_US;
        let is_late = self.latency_us_at(now_us) > late_us;
        let has_buffer = self.buffered_us > self.position_us + self.start_buffer_us;
        self.rate_percent = if is_late && has_buffer { self.catch_up_percent } else { 100 };
    }

    /// Takes in the next piece. Returns whether playback began or went on.
    pub(crate) fn append(&mut self, now_us: u64, number: u64) -> bool {
        assert_eq!(number, self.next, "pieces are appended in order");
        self.advance(now_us);
        self.next += 1;
        self.buffered_us = self.next * self.piece_us;
        match self.state {
            State::Starting => {
                let is_ready = self.buffered_us >= self.position_us + self.start_buffer_us;
                if is_ready {
                    self.state = State::Playing;
                    self.startup_us = Some(now_us - self.joined_us);
                }
                is_ready
            }
            State::Stalled(_) if self.buffered_us >= self.position_us + self.start_buffer_us => {
                self.state = State::Playing;
                true
            }
            _ => false,
        }
    }

    /// Skips forward if it is hopelessly behind. Returns whether it did.
    pub(crate) fn jump(&mut self, now_us: u64, stream: &Stream) -> bool {
        let is_hopeless = self.is_open() && self.latency_us_at(now_us) > self.latency_us + JUMP_US;
        if is_hopeless {
            let was_playing = self.startup_us.is_some();
            self.open(now_us, stream);
            if was_playing {
                self.state = State::Stalled(now_us);
            }
        }
        is_hopeless
    }

    /// How far the playhead is behind the camera.
    #[must_use]
    pub(crate) fn latency_us_at(&self, now_us: u64) -> u64 {
        Stream::camera_us(now_us).saturating_sub(self.position_us)
    }

    /// The playhead in the stream's time.
    #[must_use]
    pub(crate) fn position_us(&self) -> u64 {
        self.position_us
    }

    /// Up to where media is buffered, in the stream's time.
    #[must_use]
    pub(crate) fn buffered_us(&self) -> u64 {
        self.buffered_us
    }

    /// The playback rate in percent.
    #[must_use]
    pub(crate) fn rate_percent(&self) -> u16 {
        self.rate_percent as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::scenario::{Media, Play};

    fn opened() -> (Player, Stream) {
        let mut stream = Stream::new(Media::default(), Random::new(1));
        while stream.published_us(stream.next_number()) == 0 {
            stream.publish();
        }
        let mut player = Player::new(&Play::default(), &stream, 100_000);
        player.open(200_000, &stream);
        (player, stream)
    }

    #[test]
    fn starts_at_a_segment_and_plays_from_its_distance() {
        let (mut player, stream) = opened();
        assert_eq!(player.next % stream.parts(), 0);
        let mut now = 300_000;
        while !player.append(now, player.next) {
            now += 50_000;
        }
        assert_eq!(player.startup_us, Some(now - 100_000));
        // What starting took it is further behind.
        let latency_us = player.latency_us_at(now) - (now - 200_000);
        assert!(latency_us.abs_diff(2_500_000) <= 260_000, "{latency_us}");
    }

    #[test]
    fn empty_buffer_stops_playback_until_a_piece_comes() {
        let (mut player, _) = opened();
        while !player.append(300_000, player.next) {}
        let left = player.buffered_us() - player.position_us();
        player.advance(300_000 + left + 700_000);
        assert!(player.is_stalled());
        assert_eq!(player.stalled_us, 700_000);
        assert!(player.append(300_000 + left + 900_000, player.next));
        assert_eq!((player.stalled_us, player.stalls), (900_000, 1));
        assert!(!player.is_stalled());
    }
}
