//! What an upstream's pieces are: fragmented MP4, which goes through as it is, or MPEG-TS, which is muxed anew.

use bytes::Bytes;

use super::init::{self, Track};
use super::output::Output;
use super::ts::{Remuxer, Share, Shares};
use crate::live::Description;

/// The tracks of an initialization section, if they can be served.
pub(super) fn tracks(init: &Bytes) -> Result<Vec<Track>, String> {
    let tracks =
        init::tracks(init).ok_or_else(|| "its initialization section cannot be understood".to_owned())?;
    if tracks.iter().any(|track| track.is_encrypted) {
        return Err("its media is encrypted, and encrypted media is not pulled".to_owned());
    }
    Ok(tracks)
}

/// What the multivariant playlist is to say of a rendition with these tracks.
pub(super) fn describe(tracks: &[Track]) -> Description {
    let codecs: Vec<&str> = tracks.iter().map(|track| track.codecs.as_str()).collect();
    let codecs = codecs.join(",");
    match tracks.iter().find_map(|track| track.resolution) {
        Some((width, height)) => Description::video(codecs, width, height),
        None => Description::audio(&codecs),
    }
}

/// Reads pieces.
#[derive(Debug)]
pub(super) enum Reader {
    /// Fragmented MP4, one rendition.
    Mp4,
    /// MPEG-TS: what is in it, apart.
    Ts {
        remuxer: Box<Remuxer>,
        /// Which of its tracks are served, in the order of the outputs.
        kinds: Vec<Kind>,
    },
}

/// A track of a transport stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Video,
    Audio,
}

impl Kind {
    pub(super) fn of(self, shares: &Shares) -> Option<&Share> {
        match self {
            Self::Video => shares.video.as_ref(),
            Self::Audio => shares.audio.as_ref(),
        }
    }
}

impl Reader {
    pub(super) fn ts(kinds: Vec<Kind>) -> Self {
        Self::Ts { remuxer: Box::default(), kinds }
    }

    /// Publishes a piece; an error says in words why it is none.
    pub(super) fn publish(
        &mut self,
        bytes: &Bytes,
        duration_us: i64,
        is_last: bool,
        outputs: &mut [Output],
    ) -> Result<(), String> {
        let no_media = || "it is no media of its rendition".to_owned();
        let Self::Ts { remuxer, kinds } = self else {
            let is_media = outputs[0].piece(bytes.clone(), duration_us, is_last);
            return if is_media { Ok(()) } else { Err(no_media()) };
        };
        let shares = remuxer.remux(bytes)?;
        if kinds.first().and_then(|kind| kind.of(&shares)).is_none() {
            return Err(no_media());
        }
        for (kind, output) in kinds.iter().zip(outputs) {
            let Some(share) = kind.of(&shares) else {
                output.gap(duration_us, is_last);
                continue;
            };
            if let Ok(tracks) = tracks(&share.init) {
                let new = describe(&tracks);
                output.set_init(&share.init, |description| {
                    description.codecs = new.codecs;
                    description.resolution = new.resolution;
                });
            }
            // Sound ends where its frames end, which is not where the segment ends.
            let duration_us = if *kind == Kind::Video { duration_us } else { share.duration_us };
            if !output.piece(share.media.clone(), duration_us, is_last) {
                output.gap(duration_us, is_last);
            }
        }
        Ok(())
    }

    /// What comes does not continue what was.
    pub(super) fn reset(&mut self) {
        if let Self::Ts { remuxer, .. } = self {
            remuxer.reset();
        }
    }
}
