//! Swarms, introductions and seeding plans; never sees media.

pub mod plan;
pub mod swarm;
