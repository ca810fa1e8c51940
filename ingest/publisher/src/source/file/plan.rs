//! Looks into a file and decides what can be sent as it is and what has to be encoded.

use super::annex_b::AnnexB;
use crate::{
    error::{Context as _, Error},
    options::{Options, Size, Transcode, VideoCodec},
    packetize,
};
use ffmpeg_next::{
    Packet, Rational, codec,
    codec::packet::side_data,
    decoder, format,
    format::{Pixel, context::Input},
    media,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// As much of a file is looked through for B-frames and keyframes, to start soon on long ones.
const SCAN_MAX_US: i64 = 60_000_000;
/// Keyframes further apart than this are no use for live: the server cuts segments at them, and viewers wait for
/// them.
const KEYFRAME_GAP_MAX: Duration = Duration::from_millis(4_100);
/// Larger pictures are scaled down when they have to be encoded: more than that needs a GPU.
const ENCODED_SIZE_MAX: Size = Size { width: 1920, height: 1080 };

/// How a file is going to be played.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) path: PathBuf,
    pub(super) video: Option<VideoPlan>,
    pub(super) audio: Option<AudioPlan>,
    /// The presentation time that counts as the file's beginning.
    pub(super) start_us: i64,
    /// What the person should know.
    pub(super) note: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct VideoPlan {
    pub(super) stream: usize,
    pub(super) mode: VideoMode,
}

#[derive(Clone, Debug)]
pub(super) enum VideoMode {
    Copy {
        profile_level_id: String,
    },
    /// `size` is the picture as stored, scaled; it is then turned clockwise by so many quarters.
    Encode {
        size: Size,
        quarter_turns: u8,
        fps: f64,
    },
}

impl VideoMode {
    /// The size that is sent.
    pub(super) fn sent_size(size: Size, quarter_turns: u8) -> Size {
        if quarter_turns.is_multiple_of(2) { size } else { Size { width: size.height, height: size.width } }
    }
}

#[derive(Clone, Debug)]
pub(super) struct AudioPlan {
    pub(super) stream: usize,
    pub(super) is_copied: bool,
}

impl Plan {
    pub(super) fn make(path: &Path, options: &Options) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Source { path: path.display().to_string(), reason };
        let mut input = open(path)?;
        let best = |kind| input.streams().best(kind).map(|stream| stream.index());
        let video_stream = best(media::Type::Video).filter(|_| !options.no_video);
        let audio_stream = best(media::Type::Audio).filter(|_| !options.no_audio);
        if video_stream.is_none() && audio_stream.is_none() {
            return Err(wrong("it has neither video nor audio that could be sent".into()));
        }
        let scan = Scan::run(&mut input, video_stream, audio_stream)?;
        let mut note = None;
        let video = match video_stream {
            None => None,
            Some(stream) => {
                let reason = match options.transcode {
                    Transcode::Always => Some("asked for".to_owned()),
                    Transcode::Auto | Transcode::Never => why_encode(&input, stream, &scan, options)?,
                };
                match (reason, scan.profile_level_id.clone()) {
                    (None, Some(profile_level_id)) => {
                        Some(VideoPlan { stream, mode: VideoMode::Copy { profile_level_id } })
                    }
                    (reason, _) => {
                        let reason = reason.unwrap_or_else(|| "it has no parameter sets".into());
                        if options.transcode == Transcode::Never {
                            return Err(wrong(format!("its video can't be sent as it is: {reason}")));
                        }
                        note = Some(format!("encoding the video: {reason}"));
                        Some(VideoPlan { stream, mode: encode_mode(&input, stream, options)? })
                    }
                }
            }
        };
        let audio = audio_stream
            .map(|stream| is_sendable_opus(&input, stream).map(|is_copied| AudioPlan { stream, is_copied }))
            .transpose()?;
        Ok(Self { path: path.into(), video, audio, start_us: scan.start_us, note })
    }

    /// The codec that sessions offer for its video.
    pub(super) fn codec(&self, options: &Options) -> (VideoCodec, String) {
        match &self.video {
            Some(VideoPlan { mode: VideoMode::Copy { profile_level_id }, .. }) => {
                (VideoCodec::H264, profile_level_id.clone())
            }
            Some(VideoPlan { mode: VideoMode::Encode { size, quarter_turns, fps }, .. }) => {
                let size = VideoMode::sent_size(*size, *quarter_turns);
                (options.video_codec, crate::source::profile_level_id(size, *fps))
            }
            None => (options.video_codec, "42e01f".into()),
        }
    }
}

pub(super) fn open(path: &Path) -> Result<Input, Error> {
    format::input(path).map_err(|error| Error::Source {
        path: path.display().to_string(),
        reason: match error {
            ffmpeg_next::Error::InvalidData => "it is no media file that FFmpeg can read".into(),
            error => error.to_string(),
        },
    })
}

/// The next packet; nothing at the end. Damaged places are passed over, as players do.
pub(super) fn read(input: &mut Input, packet: &mut Packet) -> Result<bool, Error> {
    loop {
        match packet.read(input) {
            Ok(()) => return Ok(true),
            Err(ffmpeg_next::Error::Eof) => return Ok(false),
            Err(ffmpeg_next::Error::InvalidData) => {}
            Err(error) => return Err(error).context("read the file"),
        }
    }
}

pub(super) fn to_us(time: i64, base: Rational) -> i64 {
    let us = i128::from(time) * 1_000_000 * i128::from(base.numerator());
    us.div_euclid(i128::from(base.denominator().max(1))) as i64
}

/// What the packets tell.
#[derive(Debug)]
struct Scan {
    start_us: i64,
    has_reordering: bool,
    starts_with_keyframe: bool,
    keyframe_gap_us: i64,
    profile_level_id: Option<String>,
}

impl Scan {
    fn run(input: &mut Input, video: Option<usize>, audio: Option<usize>) -> Result<Self, Error> {
        let stream = video.and_then(|index| input.stream(index));
        let mut converter = stream
            .filter(|stream| stream.parameters().id() == codec::Id::H264)
            .and_then(|stream| AnnexB::new(stream.parameters()).ok());
        let mut starts = [i64::MAX; 2];
        let mut scan = Self {
            start_us: 0,
            has_reordering: false,
            starts_with_keyframe: false,
            keyframe_gap_us: 0,
            profile_level_id: None,
        };
        let (mut first_us, mut last_us, mut last_keyframe_us, mut video_packets) =
            (None, i64::MIN, None, 0u64);
        let mut packet = Packet::empty();
        while read(input, &mut packet)? {
            let index = packet.stream();
            if Some(index) != video && Some(index) != audio {
                continue;
            }
            let base = input.stream(index).map_or(Rational(1, 1), |stream| stream.time_base());
            let Some(us) = packet.pts().or(packet.dts()).map(|time| to_us(time, base)) else { continue };
            let start = &mut starts[usize::from(Some(index) == audio)];
            *start = (*start).min(us);
            if Some(index) == video {
                scan.has_reordering |= us <= last_us;
                last_us = last_us.max(us);
                // An IDR picture, not merely a recovery point: viewers join here.
                if let Some(converter) = &mut converter
                    && packet.is_key()
                    && let Ok(data) = converter.convert(&packet)
                {
                    let units = packetize::nal_units(&data);
                    if units.iter().any(|unit| unit[0] & 0x1f == 5) {
                        scan.starts_with_keyframe |= video_packets == 0;
                        let previous = last_keyframe_us.replace(us).unwrap_or(us);
                        scan.keyframe_gap_us = scan.keyframe_gap_us.max(us - previous);
                    }
                    if scan.profile_level_id.is_none() {
                        let sps = units.iter().find(|unit| unit[0] & 0x1f == 7 && unit.len() > 3);
                        scan.profile_level_id = sps.map(|sps| negotiable_profile(sps[1], sps[2], sps[3]));
                    }
                }
                video_packets += 1;
            }
            if us - *first_us.get_or_insert(us) > SCAN_MAX_US {
                break;
            }
        }
        if let Some(last_keyframe_us) = last_keyframe_us {
            scan.keyframe_gap_us = scan.keyframe_gap_us.max(last_us - last_keyframe_us);
        }
        // Audio encoders begin with some milliseconds of nothing: the picture must not wait for them at each loop.
        let [video_us, audio_us] = starts;
        let is_priming = video_us != i64::MAX && video_us.saturating_sub(audio_us) < super::PADDING_MAX_US;
        scan.start_us = if is_priming { video_us } else { video_us.min(audio_us) };
        if scan.start_us == i64::MAX {
            scan.start_us = 0;
        }
        Ok(scan)
    }
}

/// As browsers write it: servers compare the first two bytes literally, so flags that say nothing to a decoder are
/// normalised.
fn negotiable_profile(profile: u8, constraints: u8, level: u8) -> String {
    let constraints = match profile {
        // Baseline with constraint_set1 is constrained baseline.
        66 if constraints & 0x40 != 0 => 0xe0,
        // Constrained high.
        100 if constraints & 0x0c == 0x0c => 0x0c,
        _ => 0,
    };
    format!("{profile:02x}{constraints:02x}{:02x}", level.max(0x1f))
}

/// Why the video can't be sent as it is, if so.
fn why_encode(input: &Input, stream: usize, scan: &Scan, options: &Options) -> Result<Option<String>, Error> {
    let decoder = video_decoder(input, stream)?;
    let id = decoder.id();
    if id != codec::Id::H264 || options.video_codec != VideoCodec::H264 {
        return Ok(Some(format!("it is {}, wanted is {:?}", id.name(), options.video_codec)));
    }
    if !matches!(decoder.format(), Pixel::YUV420P | Pixel::YUVJ420P) {
        return Ok(Some("its pixel format is not the 8-bit 4:2:0 that browsers decode".into()));
    }
    if quarter_turns(input, stream) != 0 {
        return Ok(Some("it was filmed with the camera turned".into()));
    }
    if scan.has_reordering || decoder.has_b_frames() {
        return Ok(Some("it has B-frames".into()));
    }
    if !scan.starts_with_keyframe {
        return Ok(Some("it does not begin with a keyframe".into()));
    }
    let gap = Duration::from_micros(scan.keyframe_gap_us.max(0) as u64);
    if gap > KEYFRAME_GAP_MAX {
        return Ok(Some(format!("its keyframes are up to {:.1} s apart", gap.as_secs_f64())));
    }
    Ok(None)
}

pub(super) fn video_decoder(input: &Input, stream: usize) -> Result<decoder::Video, Error> {
    decoder_context(input, stream)?.decoder().video().context("open the file's video decoder")
}

pub(super) fn audio_decoder(input: &Input, stream: usize) -> Result<decoder::Audio, Error> {
    decoder_context(input, stream)?.decoder().audio().context("open the file's audio decoder")
}

fn decoder_context(input: &Input, stream: usize) -> Result<codec::Context, Error> {
    let stream = input.stream(stream).ok_or(ffmpeg_next::Error::StreamNotFound).context("find a stream")?;
    codec::Context::from_parameters(stream.parameters()).context("read the codec parameters")
}

fn encode_mode(input: &Input, stream: usize, options: &Options) -> Result<VideoMode, Error> {
    let decoder = video_decoder(input, stream)?;
    let (width, height) = (decoder.width(), decoder.height());
    if width == 0 || height == 0 {
        return Err(ffmpeg_next::Error::InvalidData).context("find the picture's size");
    }
    let aspect = decoder.aspect_ratio();
    let is_square = aspect.numerator() <= 0 || aspect.denominator() <= 0;
    let pixel = if is_square { 1.0 } else { f64::from(aspect) };
    let shown = (f64::from(width) * pixel, f64::from(height));
    let quarter_turns = quarter_turns(input, stream);
    // The limit is for what people see, so it is turned back to fit the stored picture.
    let limit = VideoMode::sent_size(options.size.unwrap_or(ENCODED_SIZE_MAX), quarter_turns);
    let mut scale = (f64::from(limit.width) / shown.0).min(f64::from(limit.height) / shown.1);
    if options.size.is_none() {
        scale = scale.min(1.0);
    }
    let even = |side: f64| ((side * scale / 2.0).round() as u32 * 2).max(16);
    let rate = input.stream(stream).map_or(0.0, |stream| f64::from(stream.avg_frame_rate()));
    let fps = if rate.is_finite() && rate > 0.0 { rate } else { 30.0 };
    Ok(VideoMode::Encode {
        size: Size { width: even(shown.0), height: even(shown.1) },
        quarter_turns,
        fps: fps.min(f64::from(options.fps)),
    })
}

/// By how many quarters, clockwise, the stored picture has to be turned to be upright: phones film sideways.
fn quarter_turns(input: &Input, stream: usize) -> u8 {
    let Some(stream) = input.stream(stream) else { return 0 };
    let matrix = stream.side_data().find(|data| data.kind() == side_data::Type::DisplayMatrix);
    matrix.map_or(0, |matrix| turns_of(matrix.data()))
}

/// From a display matrix: nine 32-bit integers, of which the first two are the images of the x axis.
fn turns_of(matrix: &[u8]) -> u8 {
    let cell = |at: usize| {
        let bytes = matrix.get(at * 4..at * 4 + 4).and_then(|bytes| bytes.try_into().ok());
        f64::from(bytes.map_or(0, i32::from_ne_bytes))
    };
    let degrees = cell(1).atan2(cell(0)).to_degrees();
    // Anything but quarters is a video editor's whim; the nearest quarter is upright enough.
    ((degrees / 90.0).round() as i32).rem_euclid(4) as u8
}

fn is_sendable_opus(input: &Input, stream: usize) -> Result<bool, Error> {
    let decoder = audio_decoder(input, stream)?;
    Ok(decoder.id() == codec::Id::OPUS && (1..=2).contains(&decoder.channels()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_written_as_browsers_write_them() {
        assert_eq!(negotiable_profile(66, 0xc0, 30), "42e01f");
        assert_eq!(negotiable_profile(66, 0x00, 31), "42001f");
        assert_eq!(negotiable_profile(77, 0x40, 40), "4d0028");
        assert_eq!(negotiable_profile(100, 0x00, 42), "64002a");
    }

    #[test]
    fn display_matrices_give_quarter_turns() {
        let matrix = |a: i32, b: i32| {
            let cells = [a, b, 0, -b, a, 0, 0, 0, 1 << 30];
            cells.iter().flat_map(|cell| cell.to_ne_bytes()).collect::<Vec<_>>()
        };
        let one = 1 << 16;
        assert_eq!(turns_of(&matrix(one, 0)), 0);
        assert_eq!(turns_of(&matrix(0, one)), 1);
        assert_eq!(turns_of(&matrix(-one, 0)), 2);
        assert_eq!(turns_of(&matrix(0, -one)), 3);
        assert_eq!(turns_of(&[]), 0);
    }

    #[test]
    fn time_bases_convert_without_overflow() {
        assert_eq!(to_us(i64::MAX / 1_000_000, Rational(1, 1_000_000)), i64::MAX / 1_000_000);
        assert_eq!(to_us(-90, Rational(1, 90_000)), -1000);
        assert_eq!(to_us(1, Rational(1001, 30_000)), 33_366);
    }
}
