//! A native WHIP publisher: a file or a test pattern, encoded by FFmpeg, sent over WebRTC.
//!
//! For people without a camera, for tests and for load: it speaks the same protocol to the WHIP endpoint as a
//! browser does. [`run`] is what `shoal publish` calls; [`Publisher`] is the same as a handle for tests and for
//! many publishers in one process. It knows nothing of the server's crates: `ingest` is on the other side of the
//! wire. The command-line subcommand itself lives in `infra`.

pub mod clock;
mod encode;
mod error;
mod frame;
mod options;
mod packetize;
mod pattern;
mod timeline;

pub use error::Error;
pub use options::{Bitrate, Options, Size, Source, Transcode, VideoCodec};
