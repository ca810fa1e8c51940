//! The swarm core for browsers: a wasm-bindgen shell without logic.
