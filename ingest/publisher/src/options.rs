//! What to publish, where to, and how: the options of `shoal publish`.

use crate::error::Error;
use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

/// What is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Colour bars, moving elements, a clock for people and one for machines, a tone that beeps each second.
    TestPattern,
    /// A white flash and a beep at the same instant each second, on black and silence: for A/V sync tests.
    Flash,
    /// A media file, played in a loop.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "test-pattern" => Self::TestPattern,
            "flash" => Self::Flash,
            path => Self::File(path.into()),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TestPattern => f.write_str("test-pattern"),
            Self::Flash => f.write_str("flash"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A frame size; both sides are even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (width, height) = text.split_once('x').ok_or("want WIDTHxHEIGHT, for example 1280x720")?;
        let parse = |side: &str| side.parse::<u32>().map_err(|error| format!("{side}: {error}"));
        let size = Self { width: parse(width)?, height: parse(height)? };
        let is_even = size.width.is_multiple_of(2) && size.height.is_multiple_of(2);
        if !is_even || !(160..=3840).contains(&size.width) || !(90..=3840).contains(&size.height) {
            return Err("width 160 to 3840 and height 90 to 3840, both even".into());
        }
        Ok(size)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// The video codec to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum VideoCodec {
    /// Constrained baseline, without B-frames: what browsers send.
    #[default]
    H264,
    /// For servers that transcode, and for testing them.
    Vp8,
}

/// When a file's H.264 is encoded again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transcode {
    /// Only when its video can't be sent as it is: another codec, B-frames, or keyframes too far apart.
    #[default]
    Auto,
    /// Never: fail when it can't be sent as it is.
    Never,
    /// Always.
    Always,
}

/// How media travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// Over UDP; over TCP where no UDP path is found within 2 s and the server accepts that.
    #[default]
    Auto,
    /// Over UDP only.
    Udp,
    /// Over TCP only.
    Tcp,
}

/// A bitrate in bits per second; `2500k` and `2.5M` are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bitrate(pub u64);

impl FromStr for Bitrate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, factor) = match text.as_bytes().last() {
            Some(b'k' | b'K') => (&text[..text.len() - 1], 1e3),
            Some(b'm' | b'M') => (&text[..text.len() - 1], 1e6),
            _ => (text, 1.0),
        };
        let number: f64 = number.parse().map_err(|_| "want bits per second, 2500k or 2.5M".to_owned())?;
        let bps = number * factor;
        if !(6_000.0..=100e6).contains(&bps) {
            return Err("6k to 100M".into());
        }
        Ok(Self(bps as u64))
    }
}

impl fmt::Display for Bitrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}k", self.0 as f64 / 1e3)
    }
}

/// The options of `shoal publish`: flatten them into a clap command, or start from [`Options::new`].
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// A media file, `test-pattern`, or `flash` (a flash and a beep each second).
    pub source: Source,
    /// The WHIP endpoint, for example http://127.0.0.1:8080/whip/demo. `{n}` stands for the number of each of
    /// several publishers; without it, `-1`, `-2`.. is appended to the path.
    pub whip_url: String,
    /// The stream's key, sent as bearer token.
    #[arg(long, env = "SHOAL_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Accept any TLS certificate of the WHIP endpoint: for self-signed ones on trial systems.
    #[arg(long)]
    pub insecure: bool,
    /// Size of the generated picture; also scales a file that has to be encoded [default: 1280x720, or the file's]
    #[arg(long)]
    pub size: Option<Size>,
    /// Frames per second of the generated picture; the most for a file that has to be encoded.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub fps: u32,
    /// Bitrate of encoded video.
    #[arg(long, default_value = "2500k")]
    pub bitrate: Bitrate,
    /// Bitrate of encoded audio.
    #[arg(long, default_value = "96k")]
    pub audio_bitrate: Bitrate,
    /// Keyframes come at least this often, and whenever the server asks.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    pub keyframe_interval_ms: u64,
    /// The codec of generated pictures and of files that have to be encoded.
    #[arg(long, value_enum, default_value_t)]
    pub video_codec: VideoCodec,
    /// When a file's video is encoded again.
    #[arg(long, value_enum, default_value_t)]
    pub transcode: Transcode,
    /// How media travels.
    #[arg(long, value_enum, default_value_t)]
    pub transport: Transport,
    /// When the server can't be reached or the connection is lost, try again until it works.
    #[arg(long)]
    pub retry: bool,
    /// Send no video.
    #[arg(long, conflicts_with = "no_audio")]
    pub no_video: bool,
    /// Send no audio.
    #[arg(long)]
    pub no_audio: bool,
    /// Play a file once instead of in a loop.
    #[arg(long)]
    pub once: bool,
    /// Stop after this time.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Run several publishers in this process. A generated picture is then encoded once, beforehand, and has no
    /// readable clock.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub count: u32,
    /// For tests: the publisher's clock runs this many parts per million fast (negative: slow).
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub drift_ppm: f64,
    /// For tests: its sound card's clock runs this much faster than its own clock.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub audio_drift_ppm: f64,
}

impl Options {
    /// The defaults for a source and a WHIP URL.
    pub fn new(source: Source, whip_url: impl Into<String>) -> Self {
        Self {
            source,
            whip_url: whip_url.into(),
            token: None,
            insecure: false,
            size: None,
            fps: 30,
            bitrate: Bitrate(2_500_000),
            audio_bitrate: Bitrate(96_000),
            keyframe_interval_ms: 2000,
            video_codec: VideoCodec::H264,
            transcode: Transcode::Auto,
            transport: Transport::Auto,
            retry: false,
            no_video: false,
            no_audio: false,
            once: false,
            seconds: None,
            count: 1,
            drift_ppm: 0.0,
            audio_drift_ppm: 0.0,
        }
    }

    /// Checks what the types can't: call before opening anything. [`crate::run`] does.
    pub fn validate(&self) -> Result<(), Error> {
        let url = reqwest::Url::parse(&self.url_of(1))
            .map_err(|error| Error::Option(format!("{} is no URL: {error}", self.whip_url)))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(Error::Option(format!("{} is no http(s) URL", self.whip_url)));
        }
        if self.no_video && self.no_audio {
            return Err(Error::Option("--no-video and --no-audio leave nothing to send".into()));
        }
        for (name, ppm) in [("--drift-ppm", self.drift_ppm), ("--audio-drift-ppm", self.audio_drift_ppm)] {
            if !(-10_000.0..=10_000.0).contains(&ppm) {
                return Err(Error::Option(format!("{name} {ppm}: want -10000 to 10000")));
            }
        }
        if !(1..=60).contains(&self.fps) {
            return Err(Error::Option(format!("--fps {}: want 1 to 60", self.fps)));
        }
        Ok(())
    }

    /// The WHIP URL of the publisher with this number, counted from 1.
    pub fn url_of(&self, number: u32) -> String {
        if self.whip_url.contains("{n}") {
            self.whip_url.replace("{n}", &number.to_string())
        } else if self.count > 1 {
            match self.whip_url.split_once('?') {
                Some((path, query)) => format!("{path}-{number}?{query}"),
                None => format!("{}-{number}", self.whip_url),
            }
        } else {
            self.whip_url.clone()
        }
    }

    pub(crate) fn keyframe_interval(&self) -> Duration {
        Duration::from_millis(self.keyframe_interval_ms)
    }

    pub(crate) fn pattern_size(&self) -> Size {
        self.size.unwrap_or(Size { width: 1280, height: 720 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Cli::try_parse_from([&["publish"], arguments].concat()).map(|cli| cli.options)
    }

    #[test]
    fn command_line_defaults_are_the_struct_defaults() {
        let parsed = parse(&["test-pattern", "http://h/whip/a"]).unwrap();
        let built = Options::new(Source::TestPattern, "http://h/whip/a");
        assert_eq!(format!("{parsed:?}"), format!("{built:?}"));
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        for arguments in [
            &["a.mp4", "http://h/a", "--size", "1281x720"][..],
            &["a.mp4", "http://h/a", "--size", "big"],
            &["a.mp4", "http://h/a", "--bitrate", "1"],
            &["a.mp4", "http://h/a", "--fps", "0"],
            &["a.mp4", "http://h/a", "--no-video", "--no-audio"],
            &["a.mp4"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
        for url in ["nothing", "ftp://h/whip/a", "http://"] {
            assert!(Options::new(Source::TestPattern, url).validate().is_err(), "{url}");
        }
    }

    #[test]
    fn each_of_several_publishers_has_its_own_url() {
        let mut options = Options::new(Source::TestPattern, "http://h/whip/a?x=1");
        assert_eq!(options.url_of(1), "http://h/whip/a?x=1");
        options.count = 2;
        assert_eq!(options.url_of(2), "http://h/whip/a-2?x=1");
        options.whip_url = "http://h/whip/{n}/x".into();
        assert_eq!(options.url_of(2), "http://h/whip/2/x");
    }

    #[test]
    fn bitrates_take_their_usual_suffixes() {
        assert_eq!("2.5M".parse(), Ok(Bitrate(2_500_000)));
        assert_eq!("96k".parse(), Ok(Bitrate(96_000)));
        assert_eq!(Bitrate(2_500_000).to_string(), "2500k");
    }
}
