//! What a server asks of its FFmpeg before the first publisher does.

use bytes::Bytes;
use ffmpeg_next::log;

use crate::audio::{AUDIO_CONFIG, AudioError, FRAME_SAMPLES, Transcoder};
use crate::mux::{MuxError, Muxer, SampleEntry};
use crate::pictures;

/// 20 ms of stereo silence (RFC 6716, section 3.1: CELT, 48 kHz, one frame; nothing in it).
const SILENCE: &[u8] = &[0xfc, 0xff, 0xfe];
/// The duration of it.
const SILENCE_US: i64 = 20_000;
/// So many packets fill some AAC frames, the encoder's delay included.
const PACKETS: i64 = 10;
/// As good as any.
const BITS_PER_SECOND: u32 = 128_000;

/// This machine's FFmpeg can't do what every stream needs.
#[derive(Debug, thiserror::Error)]
#[error("this FFmpeg is of no use here; install the distribution's complete one")]
pub struct FfmpegError(#[source] Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Audio(#[from] AudioError),
    #[error(transparent)]
    Mux(#[from] MuxError),
    #[error("silence in Opus became {0} frames of AAC")]
    Silence(usize),
}

/// Makes AAC and a fragment of it out of Opus, and a JPEG. It takes a few milliseconds, which the first publisher is
/// spared: all that is loaded for it stays.
///
/// # Errors
/// [`FfmpegError`] if there will be no sound. Without posters and thumbnails a stream goes on: the log says so.
pub fn check_ffmpeg() -> Result<(), FfmpegError> {
    // libavformat and libavcodec would else write to standard error whatever a publisher makes them say.
    log::set_level(log::Level::Fatal);
    check_sound(SILENCE).map_err(FfmpegError)?;
    if let Err(cause) = pictures::check() {
        tracing::warn!(%cause, "there will be no posters and thumbnails");
    }
    Ok(())
}

fn check_sound(packet: &[u8]) -> Result<(), Cause> {
    let mut transcoder = Transcoder::open(0, BITS_PER_SECOND)?;
    let mut frames = Vec::new();
    for index in 0..PACKETS {
        transcoder.push(index * SILENCE_US, packet, &mut frames)?;
    }
    if transcoder.broken > 0 || frames.is_empty() {
        return Err(Cause::Silence(frames.len()));
    }
    let config = Bytes::from_static(AUDIO_CONFIG);
    let entry = SampleEntry::Aac { sample_rate: crate::audio::SAMPLE_RATE as u32, channels: 2, config };
    let (mut muxer, _init) = Muxer::open(&entry)?;
    for frame in &frames {
        muxer.write(frame.start, FRAME_SAMPLES, true, &frame.data)?;
    }
    muxer.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_ffmpeg_passes_and_a_decoder_that_makes_nothing_of_opus_does_not() {
        check_ffmpeg().unwrap();
        let error = check_sound(&[]).unwrap_err();
        assert!(matches!(error, Cause::Silence(0)), "{error}");
    }
}
