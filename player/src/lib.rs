//! The native headless viewer.
