//! Where frames come from: generated live, generated beforehand for load, or read from a file.

mod file;
mod live;
mod prepared;

use crate::{
    error::{Context as _, Error},
    feed::{Fanout, Feed},
    frame::Track,
    options::{Options, Size, Source},
    session::Offered,
};
use prepared::Prepared;
use std::sync::Arc;

/// An opened source. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Media {
    /// What sessions have to offer.
    pub(crate) offered: Offered,
    /// What the person should know about it.
    pub(crate) note: Option<String>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Made in real time, the same for all sessions.
    Shared(Fanout),
    /// Made beforehand, played by each session for itself.
    Prepared(Arc<Prepared>),
}

impl Media {
    /// Opens files and encoders, so that what can fail fails before anybody is called. Blocks.
    pub(crate) fn open(options: &Options) -> Result<Self, Error> {
        ffmpeg_next::init().context("start FFmpeg")?;
        // Its encoders print their settings and statistics otherwise.
        ffmpeg_next::log::set_level(ffmpeg_next::log::Level::Error);
        match &options.source {
            Source::TestPattern | Source::Flash => Ok(Self {
                offered: Offered {
                    tracks: wanted_tracks(options),
                    codec: options.video_codec,
                    profile_level_id: profile_level_id(options.pattern_size(), f64::from(options.fps)),
                },
                note: None,
                kind: match options.count {
                    1 => Kind::Shared(live::start(options)?),
                    _ => Kind::Prepared(Arc::new(Prepared::new(options)?)),
                },
            }),
            Source::File(path) => {
                let file::File { fanout, offered, note } = file::start(options, path)?;
                Ok(Self { offered, note, kind: Kind::Shared(fanout) })
            }
        }
    }

    /// A feed for one more session, from now on.
    pub(crate) fn feed(&self) -> Feed {
        match &self.kind {
            Kind::Shared(fanout) => fanout.subscribe(),
            Kind::Prepared(prepared) => prepared.feed(),
        }
    }

    /// Ends the source. Returns how many frames this machine was too slow for.
    pub(crate) fn finish(&self) -> u64 {
        match &self.kind {
            Kind::Shared(fanout) => {
                fanout.finish(None);
                fanout.frames_skipped()
            }
            Kind::Prepared(_) => 0,
        }
    }

    /// Why the source ended by itself, if it failed.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        match &self.kind {
            Kind::Shared(fanout) => fanout.take_failure(),
            Kind::Prepared(_) => None,
        }
    }
}

fn wanted_tracks(options: &Options) -> Vec<Track> {
    let video = (!options.no_video).then_some(Track::Video);
    let audio = (!options.no_audio).then_some(Track::Audio);
    video.into_iter().chain(audio).collect()
}

/// Constrained baseline with the level that the picture needs (H.264, table A-1).
fn profile_level_id(size: Size, fps: f64) -> String {
    let macroblocks = u64::from(size.width.div_ceil(16)) * u64::from(size.height.div_ceil(16));
    let level = match (macroblocks, (macroblocks as f64 * fps).ceil() as u64) {
        (0..=3_600, 0..=108_000) => 0x1f,
        (0..=8_192, 0..=245_760) => 0x28,
        (0..=8_704, 0..=522_240) => 0x2a,
        _ => 0x34,
    };
    format!("42e0{level:02x}")
}
