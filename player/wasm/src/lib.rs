//! The swarm core for browsers: a shell of plain exports without logic.
//!
//! Translates between JavaScript's numbers and byte arrays and the core's types. What the exports mean is in `README.md`; all
//! decisions are in `player/swarm`; the driver is `player/web`, whose `swarm/core.ts` is the other half of this boundary.
//!
//! There are no generated bindings: every export takes and gives numbers, bytes go through one buffer, nothing is imported,
//! and an instance of the module is one viewer. That saves two thirds of the bindings' JavaScript, and the code in the module
//! that owns, borrows and frees objects across the boundary.

// Natively only `output` is used, by the replay of logs.
#[cfg(target_arch = "wasm32")]
mod exports;
pub mod output;
