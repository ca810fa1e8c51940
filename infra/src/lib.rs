//! One program: ingest, origin and tracker behind one port.
//!
//! This crate composes and configures; it decides nothing about media or swarms. What each service does is in its
//! own folder; how they are joined is in [`serve`].

pub mod cli;
mod error;
mod http;
mod keys;
mod pages;
pub mod serve;
pub mod settings;
pub mod telemetry;

pub use error::Error;
