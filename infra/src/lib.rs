//! One program: ingest, origin and tracker behind one port.
//!
//! This crate composes and configures; it decides nothing about media or swarms. What each service does is in its
//! own folder; how they are joined is in [`serve`].

mod api;
pub mod cli;
mod error;
mod http;
mod keys;
mod line;
pub mod lint;
mod pages;
pub mod publish;
pub mod runtime;
pub mod serve;
pub mod settings;
mod signals;
pub mod telemetry;
mod tls;
pub mod watch;
mod wiring;

pub use error::Error;
