//! What an operator can set about segments, the live window and limits.

use serde::{Deserialize, Serialize};
use shoal_credentials::Secret;

use crate::ladder::LadderRung;

/// Streams: parts, segments, playlists, smaller renditions, pictures, recordings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The duration of a part in milliseconds. Shorter parts lower the latency and raise the number of requests.
    /// Allowed: 200 to 2000.
    pub part_ms: u32,
    /// The duration of a segment in milliseconds. The publisher is asked for a keyframe this often.
    /// Allowed: twice `part_ms` to 10000.
    pub segment_ms: u32,
    /// How much media a live playlist lists, in milliseconds. Allowed: six times `segment_ms` to 3600000.
    pub window_ms: u32,
    /// At most this many bytes of media are held for one stream; older media leaves the playlist earlier when
    /// the stream needs more. Allowed: 1048576 or more.
    pub stream_bytes_max: usize,
    /// At most this many streams at a time. Allowed: 1 to 100000.
    pub streams_max: usize,
    /// At most this many bytes of frames wait for a stream's worker; more is refused. Allowed: 65536 or more.
    pub queue_bytes_max: usize,
    /// How long a stream waits for its publisher to come back before it ends, in milliseconds.
    pub grace_ms: u32,
    /// How long an ended stream can still be watched, in milliseconds.
    pub ended_keep_ms: u32,
    /// How long a new stream waits for the formats of further tracks after the first, in milliseconds.
    pub settle_ms: u32,
    /// The bit rate of AAC audio in bits per second. Allowed: 32000 to 320000.
    pub audio_bps: u32,
    /// Whether the publisher's Opus is offered as it is, beside AAC: players that take Opus may choose it.
    pub opus: bool,
    /// Smaller renditions that are encoded besides a publisher's own: `[STREAM=]HEIGHT[:KILOBITS]`, as in
    /// `["480", "240:300", "concert=720:2500", "talk=none"]`. Without a name for all streams that have none of their own;
    /// the height is of the shorter side, the limit in kbit/s follows from the size unless it is given. What is not
    /// smaller than the publisher's picture, or more than the machine has room for, is left out: `/api/streams` says
    /// why. Empty: none.
    pub ladder: Vec<LadderRung>,
    /// How much video is encoded at once: VP8 tracks that are transcoded to H.264 count 1 each, rungs of ladders by their
    /// size, 1280x720 as 1, and decoding for a ladder a third of that. More is refused. 0: as much as the machine has
    /// cores. Allowed: 0 to 1000.
    pub transcodes_max: usize,
    /// How often a picture is made of each stream, in milliseconds of its media: for the poster, and for the thumbnails
    /// of what can be gone back to. One thread of the lowest priority makes them for all streams.
    /// Allowed: 1000 to 600000, or 0 for no pictures.
    pub pictures_interval_ms: u32,
    /// Where media is kept: a directory, `s3://BUCKET/PREFIX`, or `memory`, which is bounded and holds no recordings.
    /// Empty: in memory, unless `recording` or `dvr_ms` ask for more; then in the directory `recordings`. Recordings in an
    /// S3 store need a `signing_key_file` too: by its key an origin knows its own after a restart.
    pub storage: String,
    /// The address of an S3 service other than Amazon's, such as `http://127.0.0.1:9000`. Empty: Amazon's, or what
    /// AWS_ENDPOINT_URL says.
    pub s3_endpoint: String,
    /// The S3 store's access key. Empty: this, the secret key and the region are taken from the environment
    /// (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION) or from the machine's role at Amazon's.
    pub s3_access_key_id: String,
    /// The S3 store's secret key.
    pub s3_secret_access_key: Secret,
    /// Whether each stream is kept as a recording: playable under `/vod/` when it has ended, listed by
    /// `/api/recordings`.
    pub recording: bool,
    /// How far back viewers of a live stream can go, in milliseconds; what exceeds `window_ms` is read from the storage.
    /// 0: as far as `window_ms`. Allowed: 0 to 43200000 (twelve hours).
    pub dvr_ms: u32,
    /// At most this many bytes of a stream's media wait to be stored. More means that the storage can't keep up: the
    /// recording ends, the stream goes on. Allowed: 1048576 or more.
    pub storage_queue_bytes_max: usize,
    /// Recordings end, and none begins, when less than this many bytes are free where they are kept. For directories.
    pub storage_free_bytes_min: u64,
    /// How many hours recordings are kept after their end. 0: for ever.
    pub recordings_keep_hours: u32,
    /// The oldest recordings are deleted when all together take more than this many bytes. 0: no limit.
    pub recordings_bytes_max: u64,
    /// Where viewers find the tracker: a path on this server, or a `wss://` URL. Empty: they are sent to none and play
    /// from the origin alone.
    pub tracker_url: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            part_ms: 500,
            segment_ms: 2_000,
            window_ms: 60_000,
            stream_bytes_max: 128 << 20,
            streams_max: 64,
            queue_bytes_max: 16 << 20,
            grace_ms: 30_000,
            ended_keep_ms: 60_000,
            settle_ms: 1_500,
            audio_bps: 128_000,
            opus: false,
            ladder: Vec::new(),
            transcodes_max: 0,
            pictures_interval_ms: 10_000,
            storage: String::new(),
            s3_endpoint: String::new(),
            s3_access_key_id: String::new(),
            s3_secret_access_key: Secret::default(),
            recording: false,
            dvr_ms: 0,
            storage_queue_bytes_max: 32 << 20,
            storage_free_bytes_min: 1 << 30,
            recordings_keep_hours: 0,
            recordings_bytes_max: 0,
            tracker_url: "/tracker".to_owned(),
        }
    }
}

/// Settings that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A setting outside its range.
    #[error("segmenter.{key} = {value}: allowed is {}", range(*.min, *.max))]
    Range {
        /// Its name.
        key: &'static str,
        /// What it was set to.
        value: u64,
        /// The smallest that is allowed.
        min: u64,
        /// The largest; `u64::MAX` where there is none.
        max: u64,
    },
    /// The tracker's address cannot stand in a playlist.
    #[error(
        "segmenter.tracker_url = {0:?} holds a quote or a control character: neither can stand in a playlist"
    )]
    TrackerUrl(String),
    /// Something is to be kept that does not fit into memory.
    #[error("segmenter.{key} needs a storage: a directory or s3://BUCKET/PREFIX, and not \"{MEMORY}\"")]
    MemoryOnly {
        /// The setting that asks for it.
        key: &'static str,
    },
}

/// A range in words.
fn range(min: u64, max: u64) -> String {
    if max == u64::MAX { format!("at least {min}") } else { format!("{min} to {max}") }
}

/// The value of [`Config::storage`] with which nothing is kept anywhere else.
const MEMORY: &str = "memory";

impl Config {
    /// Checks every key's range.
    ///
    /// # Errors
    /// The first key that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let part_ms = u64::from(self.part_ms);
        let segment_ms = u64::from(self.segment_ms);
        let checks = [
            // Below 100 ms the 21 ms grain of AAC frames no longer fits into 85-100 % of the part target.
            ("part_ms", part_ms, 200, 2_000),
            ("segment_ms", segment_ms, 2 * part_ms, 10_000),
            // Section 6.2.2: at least three target durations; Apple's rules: at least six segments.
            ("window_ms", u64::from(self.window_ms), 6 * segment_ms, 3_600_000),
            ("stream_bytes_max", self.stream_bytes_max as u64, 1 << 20, u64::MAX),
            ("streams_max", self.streams_max as u64, 1, 100_000),
            ("queue_bytes_max", self.queue_bytes_max as u64, 64 << 10, u64::MAX),
            ("transcodes_max", self.transcodes_max as u64, 0, 1_000),
            ("ladder (entries)", self.ladder.len() as u64, 0, 1_000),
            // 0 is in the range too.
            (
                "pictures_interval_ms",
                if self.pictures_interval_ms == 0 { 1_000 } else { self.pictures_interval_ms.into() },
                1_000,
                600_000,
            ),
            // Twelve hours: a playlist of 2 s segments has 2 MB then.
            ("dvr_ms", u64::from(self.dvr_ms), 0, 12 * 3_600_000),
            ("storage_queue_bytes_max", self.storage_queue_bytes_max as u64, 1 << 20, u64::MAX),
            ("audio_bps", u64::from(self.audio_bps), 32_000, 320_000),
        ];
        checks.into_iter().try_for_each(|(key, value, min, max)| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ConfigError::Range { key, value, min, max })
            }
        })?;
        // It stands in quotes in the multivariant playlist.
        if self.tracker_url.contains(|c: char| c == '"' || c.is_control()) {
            return Err(ConfigError::TrackerUrl(self.tracker_url.clone()));
        }
        if self.storage == MEMORY {
            for (key, is_wanted) in [("recording", self.recording), ("dvr_ms", self.has_dvr())] {
                if is_wanted {
                    return Err(ConfigError::MemoryOnly { key });
                }
            }
        }
        Ok(())
    }

    /// The numbers that a stream keeps for life.
    pub(crate) fn constants(&self) -> Constants {
        let part_us = i64::from(self.part_ms) * 1000;
        let segment_us = i64::from(self.segment_ms) * 1000;
        // Whole AAC frames: audio parts of 23 and 24 frames alternate around 500 ms, and 24 of them take 512.
        let aac_frames = (part_us as u64 * 48).div_ceil(1024 * 1000);
        let part_target_us = (aac_frames * 1024 * 1000).div_ceil(48) as i64;
        Constants {
            part_us,
            part_target_us,
            segment_us,
            target_duration_s: (segment_us as u64).div_ceil(1_000_000),
            has_parts: true,
            window_us: i64::from(self.window_ms) * 1000,
            dvr_us: i64::from(self.dvr_ms.max(self.window_ms)) * 1000,
        }
    }

    /// Whether the live window is longer than memory holds.
    pub(crate) fn has_dvr(&self) -> bool {
        self.dvr_ms > self.window_ms
    }

    /// Where media is kept beyond memory, if anything is to be.
    #[must_use]
    pub fn storage_target(&self) -> Option<&str> {
        let target = if self.storage.is_empty() { "recordings" } else { &self.storage };
        (target != MEMORY && (self.recording || self.has_dvr())).then_some(target)
    }
}

/// What a stream's playlists declare once and never change: a changed part target or hold-back makes Apple's
/// players stop for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Constants {
    /// The duration that parts are made to have.
    pub(crate) part_us: i64,
    /// `PART-TARGET`: no part is longer.
    pub(crate) part_target_us: i64,
    /// Whether playlists list parts. Without, each segment is one part, and is listed as the segment only.
    pub(crate) has_parts: bool,
    /// The duration that segments are made to have.
    pub(crate) segment_us: i64,
    /// `EXT-X-TARGETDURATION`.
    pub(crate) target_duration_s: u64,
    /// How much media stays listed, and in memory.
    pub(crate) window_us: i64,
    /// How much media stays listed where there is a storage.
    pub(crate) dvr_us: i64,
}

impl Constants {
    /// The shortest a part may be that is not the last of its segment: 85 % of the target (section 4.4.4.9).
    pub(crate) fn part_min_us(&self) -> i64 {
        self.part_target_us * 85 / 100 + 1
    }

    /// A segment that reaches this is cut without a keyframe: beyond it `EXTINF` would round to more than the
    /// target duration.
    pub(crate) fn segment_max_us(&self) -> i64 {
        self.target_duration_s as i64 * 1_000_000 + 450_000
    }

    /// `PART-HOLD-BACK`: Apple's rules demand three part targets.
    pub(crate) fn part_hold_back_us(&self) -> u64 {
        3 * self.part_target_us as u64
    }

    /// `HOLD-BACK`.
    pub(crate) fn hold_back_us(&self) -> u64 {
        3_000_000 * self.target_duration_s
    }

    /// `CAN-SKIP-UNTIL`.
    pub(crate) fn can_skip_until_us(&self) -> u64 {
        6_000_000 * self.target_duration_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_configuration_is_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn part_target_holds_whole_audio_frames() {
        let constants = Config::default().constants();
        assert_eq!(constants.part_target_us, 512_000);
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = Config { s3_secret_access_key: "hidden".into(), ..Config::default() };
        assert!(!format!("{config:?}").contains("hidden"));
    }

    #[test]
    fn nothing_is_kept_unless_asked_for() {
        let target = |config: Config| config.storage_target().map(str::to_owned);
        let store = || "s3://b/p".to_owned();
        assert_eq!(target(Config::default()), None);
        assert_eq!(target(Config { storage: store(), ..Config::default() }), None);
        assert_eq!(target(Config { recording: true, ..Config::default() }).unwrap(), "recordings");
        assert_eq!(target(Config { dvr_ms: 600_000, storage: store(), ..Config::default() }), Some(store()));
    }

    #[test]
    fn memory_is_no_directory_and_holds_no_recordings() {
        let memory = || Config { storage: "memory".to_owned(), ..Config::default() };
        assert_eq!(memory().validate(), Ok(()));
        for config in [Config { recording: true, ..memory() }, Config { dvr_ms: 600_000, ..memory() }] {
            let text = config.validate().unwrap_err().to_string();
            assert!(text.contains("needs a storage"), "{text}");
            assert_eq!(config.storage_target(), None);
        }
    }

    #[test]
    fn error_names_key_value_and_range() {
        let text = |config: Config| config.validate().unwrap_err().to_string();
        assert_eq!(
            text(Config { part_ms: 50, ..Config::default() }),
            "segmenter.part_ms = 50: allowed is 200 to 2000"
        );
        assert_eq!(
            text(Config { queue_bytes_max: 1, ..Config::default() }),
            "segmenter.queue_bytes_max = 1: allowed is at least 65536"
        );
    }

    #[test]
    fn address_that_would_break_the_playlist_is_refused_in_words() {
        for tracker_url in ["/tracker\"", "/tracker\n#EXT-X-ENDLIST"] {
            let config = Config { tracker_url: tracker_url.to_owned(), ..Config::default() };
            let text = config.validate().unwrap_err().to_string();
            assert!(
                text.contains(&format!("tracker_url = {tracker_url:?}")) && text.contains("quote"),
                "{text}"
            );
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }
}
