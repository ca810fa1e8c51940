//! Swarms, introductions and seeding plans; never sees media.
