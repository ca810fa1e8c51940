//! libavcodec as encoder: raw pictures and samples in, RTP-ready frames out. No pacing, no sockets.

pub(crate) mod audio;
pub(crate) mod video;
