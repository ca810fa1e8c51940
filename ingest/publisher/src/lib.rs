//! A native WHIP publisher: a file or a test pattern, encoded by FFmpeg, sent over WebRTC.
