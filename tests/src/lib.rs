//! Whatever needs more than one folder: simulator, scenarios, end to end, fuzz.
