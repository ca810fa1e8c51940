//! Frames in; CMAF parts, segments, playlists and digests out; the HTTP origin.

pub mod frame;
