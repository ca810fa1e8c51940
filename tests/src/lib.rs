//! Whatever needs more than one folder: simulator, scenarios, end to end, and the origin under load.

pub mod origin;
