//! HLS and LL-HLS playlists as text and types, and the lint; no I/O, no clock.
