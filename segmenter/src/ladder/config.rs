//! What operators write about ladders: one text for each rung, `[STREAM=]HEIGHT[:KILOBITS]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A rendition's shorter side, in pixels.
const HEIGHTS: std::ops::RangeInclusive<u32> = 48..=2160;
/// A rendition's limit, in kilobits per second.
const KILOBITS: std::ops::RangeInclusive<u32> = 50..=50_000;

/// A smaller rendition that is to be encoded, of one stream or of all that have no entries of their own.
///
/// Written as `480`, `480:1200` (at most 1,200 kbit/s), `concert=480:1200`; `concert=none` says that this stream has no
/// ladder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LadderRung {
    /// None: every stream that is not named by another entry.
    stream: Option<String>,
    /// None: no ladder.
    rung: Option<Rung>,
}

/// A rendition as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rung {
    /// The shorter side: the height, but of upright pictures the width.
    pub(crate) height: u32,
    /// The most that it may take. None: what pictures of this size need.
    pub(crate) bits_per_second: Option<u32>,
}

/// An entry that says nothing that can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a rung of a ladder: [STREAM=]HEIGHT[:KILOBITS], with a height within 48..=2160 and 50..=50000 kbit/s, or STREAM=none"
)]
pub struct LadderError(String);

impl FromStr for LadderRung {
    type Err = LadderError;

    fn from_str(text: &str) -> Result<Self, LadderError> {
        let error = || LadderError(text.to_owned());
        let (stream, rung) = match text.split_once('=') {
            Some((stream, rung)) => (Some(stream.trim()), rung.trim()),
            None => (None, text.trim()),
        };
        if stream.is_some_and(|stream| !crate::is_stream_name(stream)) {
            return Err(error());
        }
        let stream = stream.map(str::to_owned);
        if rung == "none" && stream.is_some() {
            return Ok(Self { stream, rung: None });
        }
        let within = |text: &str, range: std::ops::RangeInclusive<u32>| {
            text.parse().ok().filter(|number| range.contains(number)).ok_or_else(error)
        };
        let (height, kilobits) = match rung.split_once(':') {
            Some((height, kilobits)) => (height, Some(kilobits)),
            None => (rung, None),
        };
        let height = within(height, HEIGHTS)?;
        let kilobits = kilobits.map(|kilobits| within(kilobits, KILOBITS)).transpose()?;
        let rung = Rung { height, bits_per_second: kilobits.map(|kilobits| kilobits * 1000) };
        Ok(Self { stream, rung: Some(rung) })
    }
}

impl TryFrom<String> for LadderRung {
    type Error = LadderError;

    fn try_from(text: String) -> Result<Self, LadderError> {
        text.parse()
    }
}

impl fmt::Display for LadderRung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(stream) = &self.stream {
            write!(f, "{stream}=")?;
        }
        let Some(rung) = self.rung else { return f.write_str("none") };
        write!(f, "{}", rung.height)?;
        rung.bits_per_second.map_or(Ok(()), |bits| write!(f, ":{}", bits / 1000))
    }
}

impl From<LadderRung> for String {
    fn from(rung: LadderRung) -> Self {
        rung.to_string()
    }
}

/// The rungs of a stream, largest first. Of several with the same height the last counts.
pub(crate) fn rungs_of(entries: &[LadderRung], stream: &str) -> Vec<Rung> {
    let own: Vec<_> = entries.iter().filter(|entry| entry.stream.as_deref() == Some(stream)).collect();
    let chosen = match own.is_empty() {
        true => entries.iter().filter(|entry| entry.stream.is_none()).collect(),
        false => own,
    };
    let mut rungs: Vec<Rung> = Vec::new();
    for rung in chosen.into_iter().filter_map(|entry| entry.rung) {
        rungs.retain(|known| known.height != rung.height);
        rungs.push(rung);
    }
    rungs.sort_by_key(|rung| std::cmp::Reverse(rung.height));
    rungs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(texts: &[&str]) -> Vec<LadderRung> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn entries_are_read_as_they_are_written() {
        for text in ["480", "480:1200", "concert=720:2500", "concert=none"] {
            assert_eq!(entries(&[text])[0].to_string(), text);
        }
        for bad in ["", "none", "480p", "47", "2161", "480:49", "480:", "a b=480", "=480", "x=", "480:1:2"] {
            let error = bad.parse::<LadderRung>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn stream_with_entries_of_its_own_has_only_these() {
        let entries = entries(&["240", "480:900", "concert=360", "concert=720:2000", "talk=none"]);
        let heights = |stream| rungs_of(&entries, stream).iter().map(|rung| rung.height).collect::<Vec<_>>();
        assert_eq!(heights("any"), [480, 240]);
        assert_eq!(heights("concert"), [720, 360]);
        assert_eq!(heights("talk"), [0; 0]);
        assert_eq!(rungs_of(&entries, "concert")[0].bits_per_second, Some(2_000_000));
    }

    #[test]
    fn same_height_twice_is_one_rung() {
        let rungs = rungs_of(&entries(&["480:900", "480:700"]), "any");
        assert_eq!(rungs, [Rung { height: 480, bits_per_second: Some(700_000) }]);
    }
}
