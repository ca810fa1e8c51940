//! Scenarios: what a run simulates, as TOML files in `tests/scenarios`.

use serde::Deserialize;

/// The scenario files, compiled in, so that the program runs from any directory.
const FILES: &[(&str, &str)] = &[
    ("steady", include_str!("../../scenarios/steady.toml")),
    ("steady-ll", include_str!("../../scenarios/steady-ll.toml")),
    ("sessions", include_str!("../../scenarios/sessions.toml")),
    ("flash-crowd", include_str!("../../scenarios/flash-crowd.toml")),
    ("churn", include_str!("../../scenarios/churn.toml")),
    ("lab", include_str!("../../scenarios/lab.toml")),
    ("low-uplink", include_str!("../../scenarios/low-uplink.toml")),
    ("leeches", include_str!("../../scenarios/leeches.toml")),
    ("nat", include_str!("../../scenarios/nat.toml")),
    ("seeder-loss", include_str!("../../scenarios/seeder-loss.toml")),
    ("tracker-loss", include_str!("../../scenarios/tracker-loss.toml")),
    ("origin-stall", include_str!("../../scenarios/origin-stall.toml")),
    ("polluters", include_str!("../../scenarios/polluters.toml")),
    ("liars", include_str!("../../scenarios/liars.toml")),
    ("tiny", include_str!("../../scenarios/tiny.toml")),
    ("abr", include_str!("../../scenarios/abr.toml")),
    ("joins", include_str!("../../scenarios/joins.toml")),
    ("starved", include_str!("../../scenarios/starved.toml")),
];

/// Why a scenario can't be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No file of that name.
    #[error("there is no scenario '{0}'; there are: {1}")]
    Unknown(String, String),
    /// Not TOML, or a key or value that makes no sense.
    #[error("scenario '{0}': {1}")]
    Malformed(String, String),
}

/// What is simulated. Each key has a default; the files name what differs.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// What it shows, for `--list`.
    pub about: String,
    /// Viewers at a time, where the command line does not say.
    pub viewers: usize,
    /// Simulated seconds.
    pub seconds: f64,
    /// Figures count from here on: what comes before is the swarm's start.
    pub measure_from_s: f64,
    /// The stream.
    pub media: Media,
    /// How viewers play it.
    pub play: Play,
    /// Who the viewers are.
    pub people: People,
    /// How they come and go.
    pub visits: Visits,
    /// The network.
    pub network: Network,
    /// The origin and the CDN before it.
    pub origin: Origin,
    /// What goes wrong.
    pub faults: Faults,
}

/// The stream.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Media {
    /// Rates of the renditions, best first.
    pub rates_kbps: Vec<u32>,
    /// A part's duration; the segment's where there are no parts.
    pub piece_ms: u32,
    /// Parts in a segment.
    pub parts: u16,
    /// How much larger a piece with a keyframe is than the mean, in percent; the others are smaller.
    pub keyframe_percent: u32,
    /// From a piece's last frame being captured to its publication.
    pub publish_delay_ms: u32,
}

/// How viewers play.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Play {
    /// How far behind the camera the playhead is meant to be.
    pub latency_ms: u32,
    /// Playback rate while further behind than that, in percent.
    pub catch_up_percent: u32,
    /// How much must be buffered before playback starts or goes on.
    pub start_buffer_ms: u32,
    /// Share of viewers on each rendition; all on the first where absent.
    pub shares: Vec<f64>,
    /// Mean time between two switches of a viewer to another rendition; 0 for none.
    pub switch_every_s: f64,
}

/// Who the viewers are.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct People {
    /// Median and spread (sigma of the logarithm) of the uplinks.
    pub uplink_median_kbps: f64,
    /// See above.
    pub uplink_sigma: f64,
    /// Uplinks are divided by this.
    pub uplink_divisor: f64,
    /// The same uplink for everybody, instead.
    pub uplink_kbps: Option<f64>,
    /// The share of its uplink that a viewer may use.
    pub uplink_usable: f64,
    /// And at most this many times the stream's rate.
    pub uplink_cap: f64,
    /// Whether viewers were told their uplink and that all of it is for the swarm.
    pub uplink_granted: bool,
    /// So many, the first to come, have an uplink of 1 Gbit/s instead and were told nothing.
    pub free_lines: usize,
    /// Median and spread of the downlinks; never below 1.5 times the stream's rate, or nobody could watch.
    pub downlink_median_kbps: f64,
    /// See above.
    pub downlink_sigma: f64,
    /// Share of viewers who never upload.
    pub leeches: f64,
    /// Share of viewers who send garbage instead of blocks.
    pub polluters: f64,
    /// Share of viewers who name an uplink of 100 Mbit/s, take their place in the trees, answer everybody, and whose blocks never
    /// arrive, or 4 s later.
    pub liars: f64,
    /// Until then polluters and liars send what honest viewers do.
    pub attack_from_s: f64,
    /// For so long after it was opened a viewer's page is busy with starting, and so is everything it shares a machine with.
    pub busy_start_ms: u32,
    /// While it is busy it sees to what has arrived, and to its timers, only this often.
    pub busy_slice_ms: u32,
}

impl People {
    /// Whether those who mean no good have begun.
    pub(crate) fn is_attacked(&self, now_us: u64) -> bool {
        now_us as f64 >= self.attack_from_s * 1e6
    }
}

/// How viewers come and go.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Visits {
    /// The pattern.
    pub pattern: Pattern,
    /// The first audience joins within this time.
    pub join_over_s: f64,
    /// Share of the audience replaced each minute (`churn`).
    pub replaced_per_minute: f64,
    /// Share of departures without goodbye.
    pub ungraceful: f64,
    /// When the burst of a flash crowd begins.
    pub burst_at_s: f64,
    /// How long it lasts.
    pub burst_s: f64,
    /// Its share of the final audience.
    pub burst_share: f64,
}

/// A pattern of joins and leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pattern {
    /// Everybody joins at the start and stays.
    Steady,
    /// Everybody stays for an exponential time and is replaced at once.
    Churn,
    /// A third stays under a minute, the others for a film.
    Sessions,
    /// From nobody to the full audience, with a burst.
    Flash,
}

/// The network.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Network {
    /// Round trip of the access line, lowest and highest.
    pub access_rtt_ms: [f64; 2],
    /// The side of the square in which viewers live; 15 ms of round trip for 1,000 km.
    pub area_km: f64,
    /// Share of messages that come late, because something was lost.
    pub late_share: f64,
    /// By how much.
    pub late_ms: f64,
    /// Whether NATs keep some pairs apart; otherwise all pairs connect.
    pub nat: bool,
    /// Share of viewers on mobile networks, whose NATs are worse.
    pub mobile: f64,
    /// Median time to connect; the 95th percentile is about four times that.
    pub connect_median_ms: f64,
    /// After this time an attempt that can't work has failed.
    pub connect_fail_ms: f64,
}

/// The origin.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Origin {
    /// What it can send, as a multiple of what all viewers together would need; the edge of a CDN is never tight.
    pub capacity: f64,
    /// And never less than this.
    pub capacity_min_kbps: f64,
    /// Round trip beyond the viewer's access line.
    pub rtt_ms: f64,
    /// Median time from request to first byte at the edge, and its spread.
    pub answer_median_ms: f64,
    /// See above.
    pub answer_sigma: f64,
}

/// What goes wrong.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Faults {
    /// When, in seconds; the fault's kind is the keys below.
    pub at_s: f64,
    /// This share of the viewers, the strongest uploaders, vanish at that time.
    pub seeders_lost: f64,
    /// The tracker is away for this long.
    pub tracker_lost_s: f64,
    /// The origin sends nothing for this long.
    pub origin_stall_s: f64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            about: String::new(),
            viewers: 1_000,
            seconds: 120.0,
            measure_from_s: 45.0,
            media: Media::default(),
            play: Play::default(),
            people: People::default(),
            visits: Visits::default(),
            network: Network::default(),
            origin: Origin::default(),
            faults: Faults::default(),
        }
    }
}

impl Default for Media {
    fn default() -> Self {
        Self {
            rates_kbps: vec![3_000],
            piece_ms: 500,
            parts: 4,
            keyframe_percent: 150,
            publish_delay_ms: 200,
        }
    }
}

impl Default for Play {
    fn default() -> Self {
        Self {
            latency_ms: 2_500,
            catch_up_percent: 105,
            start_buffer_ms: 500,
            shares: Vec::new(),
            switch_every_s: 0.0,
        }
    }
}

impl Default for People {
    fn default() -> Self {
        Self {
            uplink_median_kbps: 21_600.0,
            uplink_sigma: 1.68,
            uplink_divisor: 1.0,
            uplink_kbps: None,
            uplink_usable: 0.5,
            uplink_granted: false,
            free_lines: 0,
            uplink_cap: 2.0,
            downlink_median_kbps: 150_000.0,
            downlink_sigma: 1.0,
            leeches: 0.0,
            polluters: 0.0,
            liars: 0.0,
            attack_from_s: 0.0,
            busy_start_ms: 0,
            busy_slice_ms: 1,
        }
    }
}

impl Default for Visits {
    fn default() -> Self {
        Self {
            pattern: Pattern::Steady,
            join_over_s: 15.0,
            replaced_per_minute: 0.0,
            ungraceful: 0.7,
            burst_at_s: 300.0,
            burst_s: 30.0,
            burst_share: 0.2,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            access_rtt_ms: [5.0, 30.0],
            area_km: 1_000.0,
            late_share: 0.01,
            late_ms: 200.0,
            nat: false,
            mobile: 0.3,
            connect_median_ms: 800.0,
            connect_fail_ms: 10_000.0,
        }
    }
}

impl Default for Origin {
    fn default() -> Self {
        Self {
            capacity: 2.0,
            capacity_min_kbps: 100_000.0,
            rtt_ms: 10.0,
            answer_median_ms: 8.0,
            answer_sigma: 0.8,
        }
    }
}

impl Media {
    /// How large the smallest and the largest piece of a rendition are: a tenth off the mean of their kind.
    fn piece_bytes(&self, rate_kbps: u32) -> (f64, f64) {
        let mean = f64::from(rate_kbps) * f64::from(self.piece_ms) / 8.0;
        let (keyframe, parts) = (f64::from(self.keyframe_percent) / 100.0, f64::from(self.parts));
        // The other pieces of a segment give what the one with the keyframe takes.
        let (one, other) = if self.parts == 1 {
            (1.0, 1.0)
        } else {
            (keyframe, (parts - keyframe).max(0.0) / (parts - 1.0))
        };
        (0.9 * mean * one.min(other), 1.1 * mean * one.max(other))
    }
}

impl People {
    /// When a viewer gets round to what happens now: at once, unless its page is busy with starting.
    pub(crate) fn ready_us(&self, now_us: u64, join_us: u64) -> u64 {
        let age_us = now_us.saturating_sub(join_us);
        if age_us >= u64::from(self.busy_start_ms) * 1_000 {
            return now_us;
        }
        now_us - age_us + age_us.next_multiple_of(u64::from(self.busy_slice_ms) * 1_000)
    }
}

impl Scenario {
    /// A scenario by its name.
    ///
    /// # Errors
    /// [`Error`].
    pub fn named(name: &str) -> Result<Self, Error> {
        let Some((_, text)) = FILES.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = FILES.iter().map(|(known, _)| *known).collect();
            return Err(Error::Unknown(name.to_owned(), known.join(", ")));
        };
        Self::parse(name, text)
    }

    /// Names of the scenarios.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FILES.iter().map(|(name, _)| *name)
    }

    /// How large the smallest and the largest piece of all renditions are.
    pub(crate) fn piece_bytes(&self) -> (f64, f64) {
        let pieces = self.media.rates_kbps.iter().map(|rate_kbps| self.media.piece_bytes(*rate_kbps));
        pieces.fold((f64::INFINITY, 0.0), |(least, most), (small, large)| (least.min(small), most.max(large)))
    }

    /// Has the stream and all lines carry so many times as much, or as little.
    pub(crate) fn widen(&mut self, factor: f64) -> Result<(), String> {
        for rate_kbps in &mut self.media.rates_kbps {
            *rate_kbps = (f64::from(*rate_kbps) * factor).round() as u32;
        }
        let people = &mut self.people;
        people.uplink_median_kbps *= factor;
        people.downlink_median_kbps *= factor;
        people.uplink_kbps = people.uplink_kbps.map(|kbps| kbps * factor);
        self.origin.capacity_min_kbps *= factor;
        self.validate()
    }

    /// A scenario from its text.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let malformed = |why: String| Error::Malformed(name.to_owned(), why);
        let scenario: Self = toml::from_str(text).map_err(|error| malformed(error.to_string()))?;
        scenario.validate().map_err(malformed)?;
        Ok(scenario)
    }

    fn validate(&self) -> Result<(), String> {
        let shares = self.play.shares.len();
        let share = |name: &str, value: f64| {
            if (0.0..=1.0).contains(&value) { Ok(()) } else { Err(format!("{name} = {value} is not 0 to 1")) }
        };
        share("people.leeches", self.people.leeches)?;
        share("people.polluters", self.people.polluters)?;
        share("people.liars", self.people.liars)?;
        share("people.uplink-usable", self.people.uplink_usable)?;
        share("network.late-share", self.network.late_share)?;
        share("visits.ungraceful", self.visits.ungraceful)?;
        share("faults.seeders-lost", self.faults.seeders_lost)?;
        if self.media.rates_kbps.is_empty() || self.media.rates_kbps.len() > 8 {
            return Err("media.rates-kbps must have one to eight rates".to_owned());
        }
        if shares != 0 && shares != self.media.rates_kbps.len() {
            return Err("play.shares must have one share for each rate".to_owned());
        }
        if !(20..=10_000).contains(&self.media.piece_ms) || self.media.parts == 0 {
            return Err("media.piece-ms must be 20 to 10000 and media.parts at least 1".to_owned());
        }
        // Blocks of a piece are bits of a u128 in the simulator's books.
        if self.piece_bytes().1 > 128.0 * 16_384.0 {
            return Err("pieces would have more than 128 blocks".to_owned());
        }
        if self.people.busy_slice_ms == 0 {
            return Err("people.busy-slice-ms must be at least 1".to_owned());
        }
        if self.measure_from_s >= self.seconds {
            return Err("measure-from-s must be before the end".to_owned());
        }
        if self.play.latency_ms < self.media.piece_ms + self.media.publish_delay_ms {
            return Err("play.latency-ms is shorter than a piece takes to be published".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_file_is_read() {
        for name in Scenario::names() {
            let scenario = Scenario::named(name).unwrap();
            assert!(!scenario.about.is_empty(), "{name} says what it shows");
        }
    }

    #[test]
    fn misspelt_key_and_unknown_name_are_named() {
        let error = Scenario::parse("x", "secnds = 3.0").unwrap_err().to_string();
        assert!(error.contains("secnds"), "{error}");
        let error = Scenario::named("stedy").unwrap_err().to_string();
        assert!(error.contains("stedy") && error.contains("steady-ll"), "{error}");
        let error = Scenario::parse("x", "people = { leeches = 2.0 }").unwrap_err().to_string();
        assert!(error.contains("people.leeches"), "{error}");
    }
}
