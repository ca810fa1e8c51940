//! Ranges of settings, for [`Config`](crate::Config) and for the [`swarm::Settings`](crate::swarm::Settings) in it.

/// Says the key, its value and what is allowed, if the value is out of range.
pub(crate) fn check_range(key: &str, value: u32, low: u32, high: u32) -> Result<(), String> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(format!("{key} = {value} is out of range: {low} to {high}"))
    }
}
