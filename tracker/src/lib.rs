//! Swarms, introductions and seeding plans; never sees media.
//!
//! [`swarm`] and [`plan`] decide: pure state machines that take events and the time and return messages; the simulator
//! runs them as they are; [`webtorrent`] does the same for players that are not ours. [`Tracker`] puts them behind
//! WebSockets, with limits on everything a stranger can do. What is said on those sockets is in `protocol/PROTOCOL.md`.
//! What is published comes from the segmenter by way of the program that composes the services: this crate knows
//! neither the segmenter nor a byte of media.

mod config;
mod error;
pub mod plan;
mod range;
mod service;
pub mod swarm;
mod turn;
pub mod webtorrent;

pub use config::{Config, PeerPolicy};
pub use error::Error;
pub use service::Tracker;
pub use shoal_tracker_protocol::Piece;
