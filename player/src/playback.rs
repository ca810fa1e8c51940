//! A player without pictures: a clock that consumes media and stops when there is none.
//!
//! It plays one or two renditions (video, audio) as far as all of them are loaded without a gap, begins at the
//! distance from the live edge that the playlist wants, and counts what a person would notice: how long the start
//! took, how long playback stood still, how far it is behind.

use std::collections::BTreeMap;

use crate::source::Listed;

/// Gaps in program date time below this are rounding, not missing media.
const GAP_MAX_MS: u64 = 60;

/// What was listed and is loaded of one rendition.
#[derive(Debug, Default)]
struct Track {
    /// Start and duration of loaded pieces that are not yet joined to `until_ms`.
    ahead: BTreeMap<u64, u64>,
    /// Loaded without a gap up to here.
    until_ms: Option<u64>,
}

impl Track {
    fn add(&mut self, start_ms: u64, duration_ms: u64) {
        self.ahead.insert(start_ms, duration_ms);
        let mut until = self.until_ms.unwrap_or(start_ms);
        while let Some(entry) = self.ahead.first_entry() {
            if *entry.key() > until + GAP_MAX_MS {
                break;
            }
            until = until.max(entry.key() + entry.get());
            entry.remove();
        }
        self.until_ms = Some(until);
    }
}

/// What a person would notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Experience {
    /// Milliseconds from the start of the program to the first moment of playback; none before it.
    pub startup_ms: Option<u64>,
    /// Milliseconds of standing still after the start.
    pub rebuffer_ms: u64,
    /// How often playback stopped.
    pub rebuffer_count: u64,
    /// How far the playhead is behind the wall clock, in milliseconds: program date time is capture time.
    pub latency_ms: u64,
    /// Media ahead of the playhead, in milliseconds.
    pub buffer_ms: u64,
}

/// The clock.
#[derive(Debug)]
pub(crate) struct Playback {
    tracks: BTreeMap<u8, Track>,
    /// Program date time at the playhead; none before the start position is known.
    position_ms: Option<u64>,
    is_playing: bool,
    has_started: bool,
    started_at_ms: u64,
    last_tick_ms: u64,
    experience: Experience,
}

impl Playback {
    /// A player of these renditions, at the wall-clock time `now_ms`.
    pub(crate) fn new(renditions: impl IntoIterator<Item = u8>, now_ms: u64) -> Self {
        Self {
            tracks: renditions.into_iter().map(|number| (number, Track::default())).collect(),
            position_ms: None,
            is_playing: false,
            has_started: false,
            started_at_ms: now_ms,
            last_tick_ms: now_ms,
            experience: Experience::default(),
        }
    }

    /// Decides where to begin in the first list of a rendition: the last independent piece at least `hold_back_ms`
    /// before the end, as RFC 8216bis 6.3.3 wants it. Returns the index of the first piece to load.
    pub(crate) fn start(&mut self, pieces: &[Listed], hold_back_ms: u64) -> usize {
        let Some(last) = pieces.last() else { return 0 };
        let end = last.start_ms + u64::from(last.duration_ms);
        let wanted = self.position_ms.unwrap_or(end.saturating_sub(hold_back_ms));
        let index =
            pieces.iter().rposition(|piece| piece.start_ms <= wanted && piece.is_independent).unwrap_or(0);
        self.position_ms.get_or_insert(wanted.max(pieces[index].start_ms));
        index
    }

    /// A piece is there.
    pub(crate) fn loaded(&mut self, piece: &Listed) {
        if let Some(track) = self.tracks.get_mut(&piece.piece.rendition) {
            track.add(piece.start_ms, u64::from(piece.duration_ms));
        }
    }

    /// Lets time pass until the wall-clock time `now_ms`.
    pub(crate) fn tick(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.last_tick_ms);
        self.last_tick_ms = now_ms;
        let Some(position) = self.position_ms else { return };
        let until = self.buffered_until_ms();
        let Some(until) = until else { return };
        if self.is_playing {
            let played = passed.min(until.saturating_sub(position));
            self.position_ms = Some(position + played);
            if played < passed {
                self.is_playing = false;
                self.experience.rebuffer_count += 1;
                self.experience.rebuffer_ms += passed - played;
            }
        } else {
            if self.has_started {
                self.experience.rebuffer_ms += passed;
            }
            if until > position {
                self.is_playing = true;
                if !self.has_started {
                    self.has_started = true;
                    self.experience.startup_ms = Some(now_ms.saturating_sub(self.started_at_ms));
                }
            }
        }
        let position = self.position_ms.unwrap_or(position);
        self.experience.buffer_ms = until.saturating_sub(position);
        self.experience.latency_ms = now_ms.saturating_sub(position);
    }

    /// The wall clock jumps over media that will never come.
    pub(crate) fn skip_gap(&mut self, piece: &Listed) {
        self.loaded(piece);
    }

    pub(crate) fn position_ms(&self) -> Option<u64> {
        self.position_ms
    }

    pub(crate) fn is_playing(&self) -> bool {
        self.is_playing
    }

    pub(crate) fn has_started(&self) -> bool {
        self.has_started
    }

    /// How far all tracks are loaded without a gap.
    pub(crate) fn buffered_until_ms(&self) -> Option<u64> {
        self.tracks.values().map(|track| track.until_ms).min().flatten()
    }

    pub(crate) fn experience(&self) -> Experience {
        self.experience
    }
}

#[cfg(test)]
mod tests {
    use reqwest::Url;
    use shoal_digest::PieceId;

    use super::*;

    fn piece(rendition: u8, index: u16, is_independent: bool) -> Listed {
        Listed {
            piece: PieceId { rendition, msn: 1, part: index },
            url: Url::parse("http://origin.test/p").unwrap(),
            start_ms: 10_000 + 500 * u64::from(index),
            duration_ms: 500,
            is_gap: false,
            is_independent,
        }
    }

    #[test]
    fn playback_begins_at_the_last_independent_piece_before_the_hold_back() {
        let pieces: Vec<_> = (0..8).map(|index| piece(0, index, index % 4 == 0)).collect();
        let mut playback = Playback::new([0], 0);
        assert_eq!(playback.start(&pieces, 1500), 4);
        assert_eq!(playback.position_ms(), Some(12_500));
    }

    #[test]
    fn missing_piece_stops_playback_and_is_counted() {
        let pieces: Vec<_> = (0..4).map(|index| piece(0, index, index == 0)).collect();
        let mut playback = Playback::new([0], 0);
        playback.start(&pieces[..2], 1000);
        playback.loaded(&pieces[0]);
        playback.tick(100);
        assert_eq!(playback.experience().startup_ms, Some(100));
        playback.tick(600);
        assert!(playback.is_playing());
        playback.tick(700);
        assert!(!playback.is_playing());
        playback.loaded(&pieces[2]);
        playback.tick(900);
        assert!(!playback.is_playing(), "a later piece does not close the gap");
        playback.loaded(&pieces[1]);
        playback.tick(1000);
        assert!(playback.is_playing());
        assert_eq!(playback.experience().rebuffer_ms, 400);
        assert_eq!(playback.experience().rebuffer_count, 1);
    }

    #[test]
    fn both_tracks_are_needed() {
        let mut playback = Playback::new([0, 1], 0);
        playback.start(&[piece(0, 0, true)], 500);
        playback.loaded(&piece(0, 0, true));
        playback.tick(10);
        assert!(!playback.is_playing());
        playback.loaded(&piece(1, 0, true));
        playback.tick(20);
        assert!(playback.is_playing());
    }
}
