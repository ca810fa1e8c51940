//! Settings that must not be seen, and the check of signed tokens.
//!
//! [`Secret`] is the type of every setting that is a key or a password. [`jwt`] checks the JSON Web Tokens of viewers and
//! of publishers by the same rules; what their claims permit is decided in `tracker` and `ingest`. Nothing here reads a
//! clock, a file or the network.
//!
//! The check is our own instead of the `jsonwebtoken` crate's. That one needs a backend: `rust_crypto` brings the `rsa`
//! crate, which has an open advisory, and `aws-lc-rs` needs a C build. It ignores `crit`, takes dates in milliseconds,
//! and has no argument for the time, so that tests could not set it. Revisit when algorithms other than HS256 and EdDSA
//! are wanted.

pub mod jwt;
mod secret;

pub use secret::{HIDDEN, Secret};
