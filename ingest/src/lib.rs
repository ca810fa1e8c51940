//! WHIP in, frames out.
