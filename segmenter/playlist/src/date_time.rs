//! `EXT-X-PROGRAM-DATE-TIME` values: ISO 8601 in UTC with milliseconds.
//!
//! The calendar arithmetic is Howard Hinnant's `days_from_civil` and its inverse: proleptic Gregorian, exact for
//! every date that fits; a date library would be the crate's only large dependency.

const DAY_MS: i64 = 86_400_000;

/// Writes `2026-11-21T07:36:13.042Z` for milliseconds since the Unix epoch.
#[must_use]
pub fn format_date_time(unix_ms: i64) -> String {
    let (days, ms) = (unix_ms.div_euclid(DAY_MS), unix_ms.rem_euclid(DAY_MS));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, millis) = (ms / 1000, ms % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Reads an ISO 8601 date and time with a zone (`Z`, `+hh:mm`, `+hhmm`) into milliseconds since the Unix epoch;
/// finer fractions are cut off. None where the text is no such time.
#[must_use]
pub fn parse_date_time(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let byte = |index: usize| text.as_bytes().get(index).copied();
    if byte(4)? != b'-' || byte(7)? != b'-' || byte(10)? != b'T' || byte(13)? != b':' || byte(16)? != b':' {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let in_range =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !in_range {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut millis = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let padded: String = fraction.get(..digits)?.chars().chain("000".chars()).take(3).collect();
        millis = padded.parse::<i64>().ok()?;
        rest = fraction.get(digits..)?;
    }
    let zone_ms = zone_minutes(rest)? * 60_000;
    let (shifted_year, shifted_month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let era = shifted_year.div_euclid(400);
    let year_of_era = shifted_year.rem_euclid(400);
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(days * DAY_MS + ((hour * 60 + minute) * 60 + second) * 1000 + millis - zone_ms)
}

fn zone_minutes(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let digits: String = zone.get(1..)?.chars().filter(|c| *c != ':').collect();
    let hours: i64 = digits.get(0..2)?.parse().ok()?;
    let minutes: i64 = if digits.len() > 2 { digits.get(2..4)?.parse().ok()? } else { 0 };
    (digits.len() <= 4).then_some(sign * (hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_written_as_the_calendar_says() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_246_573_042, "2026-11-21T07:36:13.042Z"),
        ] {
            assert_eq!(format_date_time(ms), text);
            assert_eq!(parse_date_time(text), Some(ms));
        }
    }

    #[test]
    fn zones_and_fractions_are_understood() {
        assert_eq!(parse_date_time("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(parse_date_time("1969-12-31T19:00:00.5-0500"), Some(500));
        assert_eq!(parse_date_time("1970-01-01T00:00:00.0019Z"), Some(1));
        for bad in ["", "1970-01-01", "1970-01-01T00:00:00", "1970-13-01T00:00:00Z", "1970-01-01T00:00:00é"]
        {
            assert_eq!(parse_date_time(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn written_then_read_is_identity(ms in 0i64..253_402_300_800_000) {
            prop_assert_eq!(parse_date_time(&format_date_time(ms)), Some(ms));
        }
    }
}
