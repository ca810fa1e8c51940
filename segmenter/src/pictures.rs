//! Pictures of a stream for people to choose by: a poster, and thumbnails of what can be gone back to.
//!
//! Now and then [`Pictures::offer`] takes the keyframe that a segment begins with; the [`Studio`], one thread of the
//! lowest priority for all streams, decodes it (`still`, `jpeg`), makes it the poster, and adds it to a sheet of
//! thumbnails (`sheet`). A stream has one picture in work at most, so that neither work nor what waits can grow. Nothing
//! ever waits for a picture, and a stream of which none can be made goes without.

mod jpeg;
pub(crate) mod sheet;
mod still;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use bytes::Bytes;
use ffmpeg_next::frame;
use parking_lot::Mutex;
use tracing::{debug, info, warn};

use self::jpeg::{Failure, decode, encode, fit, scale};
use self::sheet::{CELL, COLUMNS, Cell, Cue, FOLDER, ROWS, cells_name, is_full, picture_name, vtt};
use self::still::Still;
use crate::config::Config;
use crate::recording::Shelf;
use crate::rendered::{Cached, Text};

/// A poster fits into a square of this side: sharp on a card, and on a small player.
const POSTER_SIDE: u32 = 640;
/// A rendition whose larger side has so many pixels is good enough to make pictures of.
pub(crate) const SOURCE_SIDE: u32 = POSTER_SIDE;
/// Sheets that stay in memory where there is a storage that has them too.
const SHEETS_IN_MEMORY: usize = 2;
/// The name of the poster, in URLs as in the storage.
pub(crate) const POSTER: &str = "poster.jpg";

/// Where pictures are made. Cloning gives another handle.
#[derive(Clone, Debug)]
pub(crate) struct Studio {
    jobs: mpsc::Sender<Job>,
    interval_ms: i64,
    window_ms: i64,
    dvr_ms: i64,
}

/// A picture to be made.
#[derive(Debug)]
struct Job {
    pictures: Arc<Pictures>,
    init: Bytes,
    media: Bytes,
    msn: u64,
    date_ms: i64,
}

impl Studio {
    /// Opens it, if the configuration wants pictures.
    pub(crate) fn open(config: &Config) -> Option<Self> {
        if config.pictures_interval_ms == 0 {
            return None;
        }
        let (jobs, inbox) = mpsc::channel();
        let spawned = std::thread::Builder::new().name("pictures".to_owned()).spawn(move || work(&inbox));
        if let Err(cause) = spawned {
            warn!(%cause, "no thread for posters and thumbnails");
            return None;
        }
        let constants = config.constants();
        Some(Self {
            jobs,
            interval_ms: config.pictures_interval_ms.into(),
            window_ms: constants.window_us / 1000,
            dvr_ms: constants.dvr_us / 1000,
        })
    }

    /// The pictures of a new stream; kept on the shelf too, where there is one.
    pub(crate) fn pictures(&self, stream: &Arc<str>, shelf: Option<Shelf>) -> Arc<Pictures> {
        Arc::new(Pictures {
            stream: stream.clone(),
            studio: self.clone(),
            shelf,
            book: Mutex::default(),
            text: Cached::default(),
        })
    }
}

/// Whether this FFmpeg can make pictures of what it has decoded.
pub(crate) fn check() -> Result<(), impl std::error::Error> {
    let picture = jpeg::black(2 * CELL.0, 2 * CELL.1);
    scale(&picture, CELL).and_then(|scaled| encode(&scaled)).map(drop)
}

/// Makes pictures, one at a time, for as long as there are streams.
fn work(inbox: &mpsc::Receiver<Job>) {
    // On Linux this is about the thread, elsewhere it would be about the process.
    #[cfg(target_os = "linux")]
    if let Err(cause) = rustix::process::nice(19) {
        debug!(%cause, "pictures are made at normal priority");
    }
    while let Ok(job) = inbox.recv() {
        let begun = Instant::now();
        let made = catch_unwind(AssertUnwindSafe(|| job.make()));
        metrics::histogram!("segmenter_picture_ms").record(begun.elapsed().as_secs_f64() * 1000.0);
        job.pictures.done(made.unwrap_or(Err(Failure::Broken)));
    }
}

impl Job {
    fn make(&self) -> Result<(), Failure> {
        let still = Still::read(&self.init, &self.media).ok_or(Failure::Unreadable)?;
        self.pictures.add(self.msn, self.date_ms, &decode(&still)?)
    }
}

/// The pictures of one publication.
#[derive(Debug)]
pub(crate) struct Pictures {
    stream: Arc<str>,
    studio: Studio,
    shelf: Option<Shelf>,
    book: Mutex<Book>,
    text: Cached,
}

#[derive(Default)]
struct Book {
    /// The date of the first segment that was offered: where the times of thumbnails begin.
    zero_ms: Option<i64>,
    /// The next picture is to be made of a segment from this date on.
    due_ms: i64,
    is_pending: bool,
    has_failed: bool,
    /// So many pictures were made.
    made: u64,
    poster: Option<Picture>,
    /// Oldest first; the last one is being filled.
    sheets: VecDeque<Sheet>,
    /// What is on the last sheet, for the thread that adds to it.
    canvas: Option<frame::Video>,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book").field("made", &self.made).field("sheets", &self.sheets).finish_non_exhaustive()
    }
}

/// A picture as a file, and its entity tag.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) bytes: Bytes,
    pub(crate) tag: String,
}

impl Picture {
    pub(crate) fn new(bytes: Bytes) -> Self {
        let digest = shoal_digest::BlockDigest::of(&bytes);
        Self { bytes, tag: format!("\"{digest:?}\"") }
    }
}

#[derive(Debug)]
struct Sheet {
    number: u64,
    cells: Vec<Cell>,
    /// None once it is in the storage only.
    picture: Option<Picture>,
}

/// A sheet that was asked for.
#[derive(Clone, Debug)]
pub(crate) enum FoundSheet {
    Here {
        picture: Picture,
        /// Whether it will get no more thumbnails.
        is_full: bool,
    },
    /// In the storage, under this name in the publication's folder.
    Stored(String),
}

/// The beginning of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) msn: u64,
    pub(crate) date_ms: i64,
    /// Half the duration that segments are made to have.
    pub(crate) slack_ms: i64,
    /// Whether it is of the rendition that pictures are best made of. Others are taken when that one does not come.
    is_preferred: bool,
}

impl Offer {
    pub(crate) fn new(msn: u64, date_ms: i64, segment_us: i64, is_preferred: bool) -> Self {
        Self { msn, date_ms, slack_ms: segment_us / 2000, is_preferred }
    }
}

impl Pictures {
    /// Takes a segment's first part, which begins with a keyframe, if a picture is due. `media` gives the
    /// initialization section and the part.
    pub(crate) fn offer(self: &Arc<Self>, offer: Offer, media: impl FnOnce() -> Option<(Bytes, Bytes)>) {
        let interval_ms = self.studio.interval_ms;
        {
            let mut book = self.book.lock();
            if book.zero_ms.is_none() {
                (book.zero_ms, book.due_ms) = (Some(offer.date_ms), offer.date_ms);
            }
            let patience_ms = if offer.is_preferred { 0 } else { interval_ms };
            if book.is_pending || offer.date_ms < book.due_ms + patience_ms {
                return;
            }
            // At the beginning of the segment that is nearest to the interval's end.
            book.due_ms = offer.date_ms + interval_ms - offer.slack_ms.min(interval_ms / 2);
            book.is_pending = true;
        }
        let Some((init, media)) = media() else { return self.done(Err(Failure::Unreadable)) };
        let (msn, date_ms) = (offer.msn, offer.date_ms);
        // Refused only when the thread could not be started; this picture stays pending then.
        let _ = self.studio.jobs.send(Job { pictures: self.clone(), init, media, msn, date_ms });
    }

    /// The thread has finished with a picture.
    fn done(&self, result: Result<(), Failure>) {
        let mut book = self.book.lock();
        book.is_pending = false;
        match result {
            Ok(()) => metrics::counter!("segmenter_pictures_total").increment(1),
            Err(cause) => {
                metrics::counter!("segmenter_pictures_failed_total", "reason" => cause.reason()).increment(1);
                // It will be tried again, and will most likely fail again.
                if std::mem::replace(&mut book.has_failed, true) {
                    debug!(stream = %self.stream, %cause, "no picture could be made");
                } else {
                    info!(stream = %self.stream, %cause, "no picture could be made; the stream goes on without");
                }
            }
        }
    }

    /// Makes a decoded picture the poster and a thumbnail. Only the studio's thread comes here.
    fn add(&self, msn: u64, date_ms: i64, picture: &frame::Video) -> Result<(), Failure> {
        let size = (picture.width(), picture.height());
        let poster = scale(picture, fit(size, (POSTER_SIDE, POSTER_SIDE)))?;
        let thumbnail = scale(&poster, fit(size, CELL))?;
        let poster = Picture::new(encode(&poster)?);

        let (number, index, canvas) = {
            let mut book = self.book.lock();
            let (number, index) = match book.sheets.back() {
                Some(last) if !is_full(last.cells.len()) => (last.number, last.cells.len()),
                last => (last.map_or(0, |last| last.number + 1), 0),
            };
            (number, index, book.canvas.take().filter(|_| index > 0))
        };
        let mut canvas = canvas.unwrap_or_else(|| jpeg::black(COLUMNS * CELL.0, ROWS * CELL.1));
        let cell = Cell::new(index, msn, date_ms, (thumbnail.width(), thumbnail.height()));
        let (x, y) = cell.corner();
        jpeg::paste(&thumbnail, &mut canvas, x, y);
        let sheet = encode(&canvas).map(Picture::new);

        let mut book = self.book.lock();
        book.canvas = Some(canvas);
        let sheet = sheet?;
        if index == 0 {
            book.sheets.push_back(Sheet { number, cells: Vec::new(), picture: None });
        }
        let mut cells = Vec::new();
        if let Some(last) = book.sheets.back_mut() {
            last.cells.push(cell);
            last.picture = Some(sheet.clone());
            cells.clone_from(&last.cells);
        }
        book.made += 1;
        // Whoever sees the picture may offer the next.
        book.is_pending = false;
        book.poster = Some(poster.clone());
        let made = book.made;
        let old = self.tidy(&mut book, date_ms);
        drop(book);
        if let Some(shelf) = &self.shelf {
            // In this order: a description names what is there already.
            shelf.keep(format!("{FOLDER}/{}", picture_name(number)), sheet.bytes);
            let text = serde_json::to_vec(&cells).expect("numbers in a list");
            shelf.keep(format!("{FOLDER}/{}", cells_name(number)), text.into());
            // A recording's poster is from its second half, and written a few times only.
            if shelf.is_kept() && made.is_power_of_two() {
                shelf.keep(POSTER.to_owned(), poster.bytes);
            }
            // Recordings keep them.
            for number in old.into_iter().filter(|_| !shelf.is_kept()) {
                shelf.forget(format!("{FOLDER}/{}", picture_name(number)));
                shelf.forget(format!("{FOLDER}/{}", cells_name(number)));
            }
        }
        Ok(())
    }

    /// Lets go of sheets that nobody can go back to any more, and of what is stored elsewhere. Gives the numbers of
    /// those that are gone.
    fn tidy(&self, book: &mut Book, now_ms: i64) -> Vec<u64> {
        let first_ms = now_ms - self.span_ms();
        let mut gone = Vec::new();
        while book.sheets.len() > 1
            && book.sheets[0].cells.last().is_none_or(|newest| newest.date_ms < first_ms)
        {
            gone.extend(book.sheets.pop_front().map(|sheet| sheet.number));
        }
        if self.is_stored() {
            let surplus = book.sheets.len().saturating_sub(SHEETS_IN_MEMORY);
            book.sheets.iter_mut().take(surplus).for_each(|sheet| sheet.picture = None);
        } else {
            // What was there only is lost with it.
            book.sheets.retain(|sheet| sheet.picture.is_some());
        }
        gone
    }

    fn is_stored(&self) -> bool {
        self.shelf.as_ref().is_some_and(Shelf::works)
    }

    /// How far viewers can go back.
    fn span_ms(&self) -> i64 {
        if self.is_stored() { self.studio.dvr_ms } else { self.studio.window_ms }
    }

    /// The newest poster, if there is one.
    pub(crate) fn poster(&self) -> Option<Picture> {
        self.book.lock().poster.clone()
    }

    /// How many pictures were made: another number, another poster.
    pub(crate) fn made(&self) -> u64 {
        self.book.lock().made
    }

    /// How often there is a new one, in seconds.
    pub(crate) fn interval_s(&self) -> u64 {
        (self.studio.interval_ms.unsigned_abs() / 1000).max(1)
    }

    /// A sheet of thumbnails.
    pub(crate) fn sheet(&self, number: u64) -> Option<FoundSheet> {
        let book = self.book.lock();
        let sheet = book.sheets.iter().find(|sheet| sheet.number == number)?;
        Some(match &sheet.picture {
            Some(picture) => {
                FoundSheet::Here { picture: picture.clone(), is_full: is_full(sheet.cells.len()) }
            }
            None => FoundSheet::Stored(format!("{FOLDER}/{}", picture_name(number))),
        })
    }

    /// The WebVTT file of thumbnails; their URLs are relative to the multivariant playlist's. Times begin with the
    /// stream.
    pub(crate) fn thumbnails(&self, epoch: &str) -> Option<Arc<Text>> {
        let made = self.made();
        (made > 0).then(|| self.text.get(made, || self.render(epoch)))
    }

    fn render(&self, epoch: &str) -> String {
        let book = self.book.lock();
        let newest_ms =
            book.sheets.back().and_then(|sheet| sheet.cells.last()).map_or(0, |cell| cell.date_ms);
        let (zero_ms, first_ms) = (book.zero_ms.unwrap_or(0), newest_ms - self.span_ms());
        let cues = book.sheets.iter().flat_map(|sheet| {
            // With the number of its thumbnails, so that no cache answers with one that has fewer.
            let name = picture_name(sheet.number);
            let uri = format!("{epoch}/{FOLDER}/{name}?{}", sheet.cells.len());
            let recent = sheet.cells.iter().filter(move |cell| cell.date_ms >= first_ms);
            recent.map(move |cell| Cue { start_ms: cell.date_ms - zero_ms, uri: uri.clone(), cell: *cell })
        });
        let cues: Vec<_> = cues.collect();
        vtt(&cues, newest_ms - zero_ms + self.studio.interval_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pictures of a stream with a window of a minute, one in ten seconds, and what is asked of the studio.
    fn pictures() -> (Arc<Pictures>, mpsc::Receiver<Job>) {
        let (jobs, inbox) = mpsc::channel();
        let studio = Studio { jobs, interval_ms: 10_000, window_ms: 60_000, dvr_ms: 60_000 };
        (studio.pictures(&Arc::from("show"), None), inbox)
    }

    /// A segment of two seconds begins.
    fn offer(pictures: &Arc<Pictures>, date_ms: i64, is_preferred: bool) {
        let offer = Offer::new(0, date_ms, 2_000_000, is_preferred);
        pictures.offer(offer, || Some((Bytes::new(), Bytes::new())));
    }

    #[test]
    fn stream_has_one_picture_in_work_and_one_in_each_interval() {
        let (pictures, inbox) = pictures();
        (0..30_000).step_by(2_000).for_each(|date_ms| offer(&pictures, date_ms, true));
        assert_eq!(inbox.try_iter().count(), 1, "the first one is not finished");
        pictures.done(Ok(()));
        for date_ms in (30_000..60_000).step_by(2_000) {
            offer(&pictures, date_ms, true);
            pictures.done(Ok(()));
        }
        let dates: Vec<_> = inbox.try_iter().map(|job| job.date_ms).collect();
        assert_eq!(dates, [30_000, 40_000, 50_000]);
    }

    #[test]
    fn another_rendition_is_taken_when_the_preferred_one_does_not_come() {
        let (pictures, inbox) = pictures();
        for date_ms in (0..40_000).step_by(2_000) {
            offer(&pictures, date_ms, false);
            pictures.done(Err(Failure::Broken));
        }
        let dates: Vec<_> = inbox.try_iter().map(|job| job.date_ms).collect();
        assert_eq!(dates, [10_000, 30_000]);
    }

    #[test]
    fn sheets_that_nobody_can_go_back_to_are_let_go() {
        let (pictures, _inbox) = pictures();
        offer(&pictures, 0, true);
        let picture = jpeg::black(64, 36);
        for index in 0..60u32 {
            pictures.add(index.into(), i64::from(index) * 10_000, &picture).unwrap();
        }
        assert!(pictures.sheet(0).is_none() && pictures.sheet(1).is_none());
        assert!(matches!(pictures.sheet(2), Some(FoundSheet::Here { is_full: false, .. })));
        let text = pictures.thumbnails("epoch").unwrap();
        let text = std::str::from_utf8(&text.plain).unwrap();
        assert_eq!(text.matches("epoch/thumbs/2.jpg?10#xywh=").count(), 7, "a minute: {text}");
    }
}
