//! Follows one rendition of an upstream: playlist after playlist, piece after piece, until it ends or breaks off.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use reqwest::Url;
use shoal_playlist::{MediaPlaylist, parse_media};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::config::Config;
use super::container::{self, Reader};
use super::cursor::{self, Break, Cursor, Place, Step, hinted};
use super::fetch::{FetchError, Fetched, Fetcher};
use super::output::Output;
use super::status::Upstream;
use crate::live::State;

/// So many pieces are fetched at once where many are due, as with a recording.
const FETCHES_MAX: usize = 3;
/// A piece that the upstream says is not there is asked for so often: caches learn of it a moment later.
const TRIES_WHERE_GONE: u32 = 3;
/// The first pause between two attempts; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// A part that is listed and still does not come as it was hinted at is asked for anew after this.
const HINT_PATIENCE: Duration = Duration::from_secs(1);
/// An upstream that answers a blocking request without anything new is not asked at once again.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Why a stream cannot be followed any further as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Where it stood is not in the upstream's playlist: to be taken up anew.
    Lost(String),
    /// Nothing came for as long as a stream waits.
    Gone,
    /// Only the operator can change it.
    Refused(String),
}

/// What the renditions of a stream share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) fetcher: Fetcher,
    pub(super) upstream: Arc<Upstream>,
    pub(super) config: Config,
    /// How long the upstream may be away before the stream ends.
    pub(super) grace: Duration,
    /// The most media that a stream may hold, and whether more of it can be kept elsewhere.
    pub(super) stream_bytes_max: usize,
    pub(super) has_dvr: bool,
}

/// A media playlist and where it was in the end.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) url: Url,
    pub(super) text: String,
    pub(super) playlist: MediaPlaylist,
}

impl Shared {
    /// Fetches a text.
    pub(super) async fn text(&self, url: &Url, patience: Duration) -> Result<(Url, String), FetchError> {
        let Fetched { url, body } =
            self.fetcher.get(url, None, self.config.playlist_bytes_max, patience).await?;
        let text = String::from_utf8_lossy(&body);
        Ok((url, text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned()))
    }

    /// Fetches a media playlist.
    pub(super) async fn playlist(&self, url: &Url, patience: Duration) -> Result<Loaded, FetchError> {
        let (url, text) = self.text(url, patience).await?;
        let playlist = parse_media(&text).map_err(|error| FetchError::Network(error.to_string()))?;
        if let Some(method) = &playlist.encryption {
            let text =
                format!("it is encrypted (EXT-X-KEY:METHOD={method}), and encrypted media is not pulled");
            return Err(FetchError::Refused(text));
        }
        cursor::check(&playlist).map_err(|text| FetchError::Network(text.to_owned()))?;
        Ok(Loaded { url, text, playlist })
    }

    pub(super) fn patience(&self, target_s: u64) -> Duration {
        Duration::from_millis(self.config.request_timeout_ms).max(Duration::from_secs(3 * target_s + 2))
    }

    /// The pause before the next attempt: doubled each time, and shortened by chance, so that many pullers of one
    /// upstream do not come back together.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        let longest = Duration::from_millis(self.config.retry_max_ms);
        let pause = RETRY_MIN.saturating_mul(1 << failures.min(16)).min(longest);
        pause.mul_f64(rand::random_range(0.5..1.0))
    }

    /// Fetches a piece; an error where it cannot be had before it is of no use any more.
    pub(super) async fn piece(&self, base: &Url, place: &Place, target_s: u64) -> Result<Bytes, FetchError> {
        let patience = self.patience(target_s);
        let give_up = Instant::now() + patience;
        let mut failures = 0;
        loop {
            let url = base.join(&place.uri).map_err(|_| FetchError::Refused("a URI is none".to_owned()));
            let error = match url {
                Ok(url) => match self.get(&url, place.range.clone(), patience).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            self.upstream.failed("media", &error);
            failures += 1;
            let is_refused = matches!(error, FetchError::Refused(_));
            if is_refused || Instant::now() >= give_up || (error.is_gone() && failures >= TRIES_WHERE_GONE) {
                return Err(error);
            }
            sleep(self.backoff(failures - 1)).await;
        }
    }

    async fn get(
        &self,
        url: &Url,
        range: Option<Range<u64>>,
        patience: Duration,
    ) -> Result<Bytes, FetchError> {
        let fetched = self.fetcher.get(url, range, self.config.piece_bytes_max, patience).await?;
        if fetched.body.is_empty() {
            return Err(FetchError::Network("an empty answer".to_owned()));
        }
        self.upstream.received(fetched.body.len());
        Ok(fetched.body)
    }
}

/// A step whose bytes are there.
enum Done {
    Begin {
        is_discontinuity: bool,
        date_ms: Option<i64>,
        init: Option<Option<Bytes>>,
    },
    Piece {
        bytes: Option<Bytes>,
        duration_us: i64,
        is_last: bool,
    },
    /// Of the whole segment.
    Rest {
        bytes: Option<Bytes>,
        duration_us: i64,
    },
    End,
}

/// See the module.
pub(super) struct Follower {
    pub(super) shared: Arc<Shared>,
    /// What is asked for; answers may come from elsewhere.
    pub(super) asked: Url,
    pub(super) loaded: Loaded,
    pub(super) cursor: Cursor,
    pub(super) with_parts: bool,
    /// It was complete at first sight.
    pub(super) is_vod: bool,
    pub(super) map: Option<Place>,
    pub(super) reader: Reader,
    /// The rendition, or picture and sound where the upstream has them in one.
    pub(super) outputs: Vec<Output>,
    /// The hinted part, which is asked for before it is listed.
    pub(super) ahead: Option<Ahead>,
}

impl Follower {
    /// Follows to the end of the rendition.
    pub(super) async fn run(&mut self) -> Result<(), Stop> {
        let mut grew = Instant::now();
        let mut behind: Option<Instant> = None;
        loop {
            let target_s = self.loaded.playlist.target_duration_s.max(1);
            let target = Duration::from_secs(target_s);
            let began = Instant::now();
            let mut has_news = false;
            match self.cursor.take(&self.loaded.playlist) {
                Ok(steps) => {
                    behind = None;
                    has_news = !steps.is_empty();
                    if has_news {
                        self.carry_out(steps, target_s).await?;
                        grew = Instant::now();
                        self.shared.upstream.works();
                        self.set_state(State::Live);
                    }
                }
                Err(Break::Missed(segments)) => {
                    return Err(Stop::Lost(format!(
                        "{segments} segments left its playlist before they were taken"
                    )));
                }
                // An old copy from a cache is followed by a newer one; what stays behind has begun anew.
                Err(Break::Behind) => {
                    if behind.get_or_insert(began).elapsed() > target * 2 {
                        return Err(Stop::Lost("it began anew".to_owned()));
                    }
                }
            }
            if self.loaded.playlist.is_ended && behind.is_none() {
                return Ok(());
            }
            if grew.elapsed() > target * 3 {
                self.shared.upstream.has_problem("nothing new comes");
                self.set_state(State::Away);
            }
            if grew.elapsed() > (target * 3).max(self.shared.grace) {
                return Err(Stop::Gone);
            }
            self.wait(began, has_news, target).await;
            self.loaded = self.next_playlist(target, &mut grew).await?;
        }
    }

    fn set_state(&self, state: State) {
        if let Some(output) = self.outputs.first()
            && output.live().state() != State::Ended
        {
            output.live().set_state(state);
        }
    }

    fn can_block(&self) -> bool {
        self.loaded.playlist.server_control.as_ref().is_some_and(|control| control.can_block_reload)
    }

    /// Waits until the next playlist may be asked for.
    async fn wait(&self, began: Instant, has_news: bool, target: Duration) {
        let pause = match (self.can_block(), has_news) {
            (true, true) => return,
            (true, false) => PAUSE_MIN,
            // Section 6.3.4: a target duration after a change, half of it otherwise.
            (false, true) => target,
            (false, false) => target / 2,
        };
        tokio::time::sleep_until(began + pause).await;
    }

    /// Fetches the playlist until it comes.
    async fn next_playlist(&mut self, target: Duration, grew: &mut Instant) -> Result<Loaded, Stop> {
        let shared = self.shared.clone();
        let patience = shared.patience(target.as_secs());
        let mut failures = 0;
        loop {
            let mut url = self.asked.clone();
            // After a failure without directives: they may be what it does not like.
            if self.can_block() && failures == 0 {
                let mut query = url.query_pairs_mut();
                query.append_pair("_HLS_msn", &self.cursor.msn.to_string());
                if self.with_parts {
                    query.append_pair("_HLS_part", &self.cursor.part().to_string());
                }
            }
            match shared.playlist(&url, patience).await {
                Ok(loaded) => {
                    if failures > 0 {
                        // What failed was not the stream's growing.
                        *grew = Instant::now();
                    }
                    return Ok(loaded);
                }
                Err(FetchError::Refused(text)) => return Err(Stop::Refused(text)),
                Err(error) => shared.upstream.failed("playlist", &error),
            }
            if grew.elapsed() > target * 3 {
                self.set_state(State::Away);
            }
            if grew.elapsed() > (target * 3).max(shared.grace) {
                return Err(Stop::Gone);
            }
            sleep(shared.backoff(failures)).await;
            failures += 1;
        }
    }

    /// Fetches what the steps name, a few at once, and publishes it in order.
    async fn carry_out(&mut self, steps: Vec<Step>, target_s: u64) -> Result<(), Stop> {
        let (shared, base) = (self.shared.clone(), self.loaded.url.clone());
        let mut hinted_part = self.take_ahead(&steps).await;
        let mut map = self.map.clone();
        let jobs = steps.into_iter().map(|step| {
            let new_map = match &step {
                Step::Begin { map: of_step, .. } if *of_step != map => {
                    map.clone_from(of_step);
                    of_step.clone()
                }
                _ => None,
            };
            let ready = match &step {
                Step::Piece { place: Some(place), .. } => {
                    hinted_part.take_if(|(hinted, _)| *hinted == *place).map(|(_, bytes)| bytes)
                }
                _ => None,
            };
            (step, new_map, ready)
        });
        let jobs: Vec<_> = jobs.collect();
        self.map = map;
        self.ask_ahead(target_s);
        let fetch = |(step, new_map, ready): (Step, Option<Place>, Option<Bytes>)| {
            let (shared, base) = (shared.clone(), base.clone());
            async move {
                match step {
                    Step::Begin { is_discontinuity, date_ms, .. } => {
                        let init = match new_map {
                            Some(place) => Some(shared.piece(&base, &place, target_s).await.ok()),
                            None => None,
                        };
                        Done::Begin { is_discontinuity, date_ms, init }
                    }
                    Step::Piece { place, duration_us, is_last } => {
                        let bytes = match (place, ready) {
                            (_, Some(ready)) => Some(ready),
                            (Some(place), None) => shared.piece(&base, &place, target_s).await.ok(),
                            (None, None) => None,
                        };
                        Done::Piece { bytes, duration_us: i64::try_from(duration_us).unwrap_or(0), is_last }
                    }
                    Step::Rest { place, duration_us } => {
                        let bytes = shared.piece(&base, &place, target_s).await.ok();
                        Done::Rest { bytes, duration_us: i64::try_from(duration_us).unwrap_or(0) }
                    }
                    Step::End => Done::End,
                }
            }
        };
        let mut done = stream::iter(jobs.into_iter().map(fetch)).buffered(FETCHES_MAX);
        while let Some(done) = done.next().await {
            self.publish(done).await?;
        }
        Ok(())
    }

    async fn publish(&mut self, done: Done) -> Result<(), Stop> {
        match done {
            Done::Begin { is_discontinuity, date_ms, init } => {
                for (index, output) in self.outputs.iter_mut().enumerate() {
                    // The date is the picture's; sound beside it goes on by its own length.
                    output.begin(is_discontinuity, date_ms.filter(|_| index == 0 || is_discontinuity));
                }
                match init {
                    Some(Some(init)) => self.change_init(&init)?,
                    Some(None) => {
                        return Err(Stop::Lost("an initialization section cannot be had".to_owned()));
                    }
                    None => {}
                }
                if is_discontinuity {
                    self.reader.reset();
                }
            }
            Done::Piece { bytes, duration_us, is_last } => {
                self.make_room(bytes.as_ref().map_or(0, Bytes::len)).await?;
                self.publish_piece(bytes, duration_us, is_last);
            }
            Done::Rest { bytes, duration_us } => {
                // A segment is its parts one after the other.
                let taken = self.outputs.first().map_or(0, Output::open_bytes);
                match bytes {
                    Some(bytes) if bytes.len() <= taken => {
                        self.outputs.iter_mut().for_each(Output::end_segment)
                    }
                    bytes => self.publish_piece(bytes.map(|bytes| bytes.slice(taken..)), duration_us, true),
                }
            }
            Done::End => self.outputs.iter_mut().for_each(Output::end_segment),
        }
        Ok(())
    }

    /// Publishes a piece, or says that there is none.
    fn publish_piece(&mut self, bytes: Option<Bytes>, duration_us: i64, is_last: bool) {
        let published =
            bytes.map(|bytes| self.reader.publish(&bytes, duration_us, is_last, &mut self.outputs));
        if let Some(Err(reason)) = &published {
            self.shared.upstream.failed("media", reason);
        }
        if !matches!(published, Some(Ok(()))) {
            self.shared.upstream.missed(u64::from(is_last));
            self.outputs.iter_mut().for_each(|output| output.gap(duration_us, is_last));
        }
    }

    fn change_init(&mut self, init: &Bytes) -> Result<(), Stop> {
        if matches!(self.reader, Reader::Ts { .. }) {
            return Err(Stop::Lost("its MPEG-TS became something else".to_owned()));
        }
        let tracks = container::tracks(init).map_err(Stop::Refused)?;
        for output in &mut self.outputs {
            let new = container::describe(&tracks);
            output.set_init(init, |description| {
                description.codecs = new.codecs;
                description.resolution = new.resolution;
            });
        }
        Ok(())
    }

    /// A recording is fetched as fast as it comes: not faster than it can be stored, and not more than fits.
    async fn make_room(&self, bytes: usize) -> Result<(), Stop> {
        let Some(live) = self.outputs.first().map(Output::live).filter(|_| self.is_vod) else {
            return Ok(());
        };
        if !self.shared.has_dvr && live.held_bytes() + bytes > self.shared.stream_bytes_max {
            return Err(Stop::Refused(
                "it is larger than segmenter.stream_bytes_max: what fits is served; raise that, or set segmenter.dvr_ms"
                    .to_owned(),
            ));
        }
        let until = Instant::now() + Duration::from_secs(30);
        while !live.is_stored() && Instant::now() < until {
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Asks for the part that the playlist hints at: it comes the moment it is made.
    fn ask_ahead(&mut self, target_s: u64) {
        self.ahead = None;
        let Some(place) = hinted(&self.loaded.playlist).filter(|_| self.with_parts) else { return };
        let Ok(url) = self.loaded.url.join(&place.uri) else { return };
        let (shared, mut task) = (self.shared.clone(), JoinSet::new());
        // A hint may turn out to be wrong: then this fails, and nothing has.
        task.spawn(async move { shared.get(&url, None, shared.patience(target_s)).await.ok() });
        self.ahead = Some(Ahead { place, task });
    }

    /// The part that was asked for ahead, if it comes first in `steps`. If not, the hint did not hold.
    async fn take_ahead(&mut self, steps: &[Step]) -> Option<(Place, Bytes)> {
        let Ahead { place, mut task } = self.ahead.take()?;
        let first = steps.iter().find_map(|step| match step {
            Step::Piece { place, .. } => place.as_ref(),
            _ => None,
        });
        if first != Some(&place) {
            return None;
        }
        let bytes = timeout(HINT_PATIENCE, task.join_next()).await.ok()??.ok()??;
        Some((place, bytes))
    }
}

/// A part that was asked for before it was listed. Dropped, the request is given up.
#[derive(Debug)]
pub(super) struct Ahead {
    place: Place,
    task: JoinSet<Option<Bytes>>,
}
