//! From RTP packets to frames: order, pictures, codec parameters, time.
//!
//! Pure: packets and arrival times in, frames and wishes (keyframes, deadlines) out. What a packet's payload means
//! is in `codec/`; one track's way through is [`track::Track`], and the clock that all tracks of a publisher share
//! is [`clock::Clock`].

pub mod clock;
pub mod codec;
pub mod receiver;
pub mod reorder;
pub mod sequence;
pub mod track;
