//! Attribute lists (`NAME=value,NAME="quoted"`), section 4.2 of the specification, and decimal seconds.

use crate::Micros;

/// The attributes of one tag, in the order in which they stand; quotes removed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Attributes<'a> {
    /// Reads a list; none where it is not one.
    pub(crate) fn parse(mut text: &'a str) -> Option<Self> {
        let mut found = Vec::new();
        while !text.is_empty() {
            let (name, rest) = text.split_once('=')?;
            let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '-';
            let name = name.trim_start();
            if name.is_empty() || !name.chars().all(is_name) {
                return None;
            }
            let (value, rest) = if let Some(quoted) = rest.strip_prefix('"') {
                let (value, rest) = quoted.split_once('"')?;
                if !rest.is_empty() && !rest.starts_with(',') {
                    return None;
                }
                (value, rest)
            } else {
                rest.split_at(rest.find(',').unwrap_or(rest.len()))
            };
            found.push((name, value));
            text = rest.strip_prefix(',').unwrap_or(rest);
        }
        Some(Self(found))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }

    pub(crate) fn is_yes(&self, name: &str) -> bool {
        self.get(name) == Some("YES")
    }

    pub(crate) fn micros(&self, name: &str) -> Option<Micros> {
        parse_seconds(self.get(name)?)
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

/// Reads decimal seconds into microseconds; finer digits are cut off.
pub(crate) fn parse_seconds(text: &str) -> Option<Micros> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let padded: String = fraction.chars().chain("000000".chars()).take(6).collect();
    seconds.checked_mul(1_000_000)?.checked_add(padded.parse().ok()?)
}

/// Writes microseconds as decimal seconds, without digits that say nothing but with one after the point, so that
/// readers that tell floats from integers by it are not misled.
pub(crate) fn format_seconds(micros: Micros) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let trimmed = text.trim_end_matches('0');
    if trimmed.ends_with('.') { format!("{trimmed}0") } else { trimmed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_commas_and_equal_signs_belong_to_the_value() {
        let attributes = Attributes::parse(r#"URI="a,b=c",DURATION=0.5,INDEPENDENT=YES"#).unwrap();
        assert_eq!(attributes.get("URI"), Some("a,b=c"));
        assert_eq!(attributes.micros("DURATION"), Some(500_000));
        assert!(attributes.is_yes("INDEPENDENT"));
    }

    #[test]
    fn broken_lists_are_refused() {
        for bad in ["URI", "=x", r#"URI="open"#, r#"URI="a"b"#, "uri=x"] {
            assert!(Attributes::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn seconds_keep_their_microseconds() {
        for (micros, text) in [(0, "0.0"), (500_000, "0.5"), (2_000_000, "2.0"), (1, "0.000001")] {
            assert_eq!(format_seconds(micros), text);
            assert_eq!(parse_seconds(text), Some(micros));
        }
        assert_eq!(parse_seconds("2"), Some(2_000_000));
        for bad in ["", ".", "-1", "1e3", "99999999999999999999"] {
            assert_eq!(parse_seconds(bad), None, "{bad}");
        }
    }
}
