//! Sheets of thumbnails, and the WebVTT file that says which thumbnail belongs to which time. Pure.
//!
//! A sheet fills cell by cell; what is in it never moves, so that whoever has read of a cell finds it in every later
//! version of the sheet.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use shoal_playlist::format_date_time;

/// Thumbnails beside and above each other: 25 of them are some 60 kB, four minutes at one in ten seconds.
pub(super) const COLUMNS: u32 = 5;
pub(super) const ROWS: u32 = 5;
/// The size of a cell. Pictures of another shape leave some of it black.
pub(super) const CELL: (u32, u32) = (160, 90);
/// The folder of a publication's sheets, in URLs as in the storage.
pub(crate) const FOLDER: &str = "thumbs";
/// The name of the WebVTT file, in URLs as in the storage.
pub(crate) const VTT: &str = "thumbnails.vtt";

/// A thumbnail on a sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cell {
    /// The segment that begins with it.
    pub(crate) msn: u64,
    /// Its program date time.
    pub(crate) date_ms: i64,
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

impl Cell {
    /// The cell of this index on its sheet, with a picture of this size in it.
    pub(super) fn new(index: usize, msn: u64, date_ms: i64, (width, height): (u32, u32)) -> Self {
        let index = u32::try_from(index).expect("a sheet has few cells");
        let (x, y) = (index % COLUMNS * CELL.0, index / COLUMNS * CELL.1);
        Self { msn, date_ms, x, y, width, height }
    }

    pub(super) fn corner(&self) -> (u32, u32) {
        (self.x, self.y)
    }
}

/// Whether a sheet of so many cells has room for no more.
pub(super) fn is_full(cells: usize) -> bool {
    cells >= (COLUMNS * ROWS) as usize
}

/// The name of a sheet's picture in its folder.
pub(crate) fn picture_name(sheet: u64) -> String {
    format!("{sheet}.jpg")
}

/// The name of a sheet's description beside it.
pub(crate) fn cells_name(sheet: u64) -> String {
    format!("{sheet}.json")
}

/// The number of the sheet that has this name; one spelling for each.
pub(crate) fn sheet_number(name: &str, ending: &str) -> Option<u64> {
    let digits = name.strip_suffix(ending)?;
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// A thumbnail and the time that it stands for.
#[derive(Clone, Debug)]
pub(crate) struct Cue {
    pub(crate) start_ms: i64,
    /// The sheet's URL.
    pub(crate) uri: String,
    pub(crate) cell: Cell,
}

/// The WebVTT file of thumbnails in the order of their times: each lasts up to the next, the last one up to `end_ms`.
/// A cue's identifier is its program date time: times of live streams mean something only beside it.
pub(crate) fn vtt(cues: &[Cue], end_ms: i64) -> String {
    let mut out = "WEBVTT\n".to_owned();
    let ends = cues.iter().skip(1).map(|next| next.start_ms).chain([end_ms]);
    for (Cue { start_ms, uri, cell }, end_ms) in cues.iter().zip(ends) {
        let Cell { date_ms, x, y, width, height, .. } = cell;
        // Cues without a duration are not allowed.
        let end_ms = end_ms.max(start_ms + 1);
        write!(
            out,
            "\n{}\n{} --> {}\n{uri}#xywh={x},{y},{width},{height}\n",
            format_date_time(*date_ms),
            time(*start_ms),
            time(end_ms)
        )
        .expect("a String takes any text");
    }
    out
}

fn time(ms: i64) -> String {
    let ms = ms.max(0);
    let (seconds, minutes, hours) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    format!("{hours:02}:{:02}:{:02}.{:03}", minutes % 60, seconds % 60, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_each_picture_its_time_and_its_place() {
        let date_ms = 1_700_000_000_000;
        let cue = |index: usize, start_ms: i64| Cue {
            start_ms,
            uri: "thumbs/0.jpg".to_owned(),
            cell: Cell::new(index, index as u64 * 5, date_ms + start_ms, (160, 90)),
        };
        assert_eq!(
            vtt(&[cue(0, 0), cue(6, 3_609_999)], 3_620_000),
            "WEBVTT\n\n\
             2023-11-14T22:13:20.000Z\n00:00:00.000 --> 01:00:09.999\nthumbs/0.jpg#xywh=0,0,160,90\n\n\
             2023-11-14T23:13:29.999Z\n01:00:09.999 --> 01:00:20.000\nthumbs/0.jpg#xywh=160,90,160,90\n"
        );
        assert_eq!(vtt(&[], 0), "WEBVTT\n");
    }

    #[test]
    fn sheet_has_one_name() {
        assert_eq!(sheet_number("12.jpg", ".jpg"), Some(12));
        for bad in ["012.jpg", "+1.jpg", ".jpg", "1.json", "x.jpg", "99999999999999999999.jpg"] {
            assert_eq!(sheet_number(bad, ".jpg"), None, "{bad}");
        }
    }
}
