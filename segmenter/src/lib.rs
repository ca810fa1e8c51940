//! Frames in; CMAF parts, segments, playlists and digests out; the HTTP origin.

mod audio;
mod config;
mod cut;
pub mod frame;
mod mux;
mod window;

pub use config::{Config, ConfigError};
