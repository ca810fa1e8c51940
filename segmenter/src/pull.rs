//! Streams that are pulled from other HLS origins: what they publish is served here with digests and a swarm.
//!
//! Nothing is encoded, and pieces of fragmented MP4 go through as they are; they enter at [`Live::publish`], past the
//! cutters and muxers, and everything behind that is the same as for a publisher's media. Each stream has a thread with
//! a runtime of its own, because signing is work, and so that all that is published of a stream is in one order.
//!
//! The way of a piece: `prepare` looks at the upstream (`select`) and decides; for each rendition a follower (`follow`)
//! reads playlists (`cursor`), fetches (`fetch`) and publishes (`container`, `output`). What breaks off is taken up
//! anew from here, on the same timeline behind a discontinuity where it fits, else as a new epoch.

mod config;
mod container;
mod cursor;
mod fetch;
mod follow;
mod init;
mod output;
mod prepare;
mod select;
mod status;
mod ts;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::try_join_all;
use reqwest::Url;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info};

pub use config::{Config, PullConfigError, Source};
pub(crate) use status::Upstream;
pub use status::UpstreamStatus;

use self::fetch::FetchError;
pub(crate) use self::fetch::Fetcher;
use self::follow::{Follower, Shared, Stop};
use self::output::Output;
use self::prepare::{NoPlan, Plan, PlannedTrack};
use crate::live::{Description, Live, Rendition, State};
use crate::streams::Entry;
use crate::worker::unix_ms;

/// Something that only the operator can change is looked at again this often.
const REFUSED_INTERVAL: Duration = Duration::from_secs(30);
/// Whoever was followed for so long has not broken off at once.
const STEADY: Duration = Duration::from_secs(10);
/// Whether an upstream without anything new has something is looked up this often.
const NOTHING_INTERVAL: Duration = Duration::from_secs(1);

/// One stream's pulling.
pub(crate) struct Puller {
    entry: Arc<Entry>,
    config: crate::Config,
    live_shared: crate::live::Shared,
    shared: Arc<Shared>,
    named: Url,
    closing: watch::Receiver<bool>,
    current: Option<Current>,
}

/// The stream that is being published, or was last.
struct Current {
    live: Arc<Live>,
    /// Which of its renditions are of video.
    is_video: Vec<bool>,
    is_vod: bool,
    /// The ends of the renditions by number, in microseconds since the Unix epoch.
    ends_us: BTreeMap<usize, i64>,
    /// The upstream's number of the segment that the lead would have taken next.
    next_msn: u64,
    /// When an ended stream is forgotten.
    forget_at: Option<Instant>,
}

/// Makes what a puller needs of its source.
pub(crate) fn open(source: &Source, config: &Config) -> Result<(Fetcher, Arc<Upstream>, Url), PullError> {
    let fail = |error: FetchError| PullError(error.to_string());
    let fetcher = Fetcher::new(source, config).map_err(fail)?;
    let upstream = Arc::new(Upstream::new(&source.name, fetcher.shown()));
    let named = fetcher.named().clone();
    Ok((fetcher, upstream, named))
}

/// A stream cannot be pulled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PullError(pub(crate) String);

impl Puller {
    pub(crate) fn new(
        entry: Arc<Entry>,
        config: crate::Config,
        live_shared: crate::live::Shared,
        (fetcher, upstream): (Fetcher, Arc<Upstream>),
        pull: &Config,
        named: Url,
    ) -> Self {
        let shared = Arc::new(Shared {
            fetcher,
            upstream,
            config: Config { streams: Vec::new(), ..pull.clone() },
            grace: Duration::from_millis(config.grace_ms.into()),
            stream_bytes_max: config.stream_bytes_max,
            has_dvr: config.has_dvr(),
        });
        let closing = entry.closing.subscribe();
        Self { entry, config, live_shared, shared, named, closing, current: None }
    }

    /// Pulls until the stream is closed and forgotten. For a thread of its own.
    pub(crate) fn run(mut self) {
        let span = tracing::info_span!("stream", name = %self.entry.name);
        let _entered = span.enter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                self.shared.upstream.has_problem(&format!("no runtime: {error}"));
                return;
            }
        };
        let mut closing = self.closing.clone();
        runtime.block_on(async {
            tokio::select! {
                () = self.pull() => {}
                // The registry lives as long as this thread.
                _ = closing.wait_for(|is_closing| *is_closing) => {}
            }
            self.entry.is_closed.store(true, Ordering::Release);
            self.end();
            sleep(Duration::from_millis(self.config.ended_keep_ms.into())).await;
        });
    }

    async fn pull(&mut self) {
        let mut seen: Option<String> = None;
        let mut failures = 0;
        let mut breaks = 0;
        // Since when nothing can be had of a stream that goes on.
        let mut lost_since: Option<Instant> = None;
        info!(url = self.shared.fetcher.shown(), "pulling");
        loop {
            let pause = match prepare::plan(&self.shared, &self.named, &self.config, seen.as_deref()).await {
                Ok(plan) => {
                    failures = 0;
                    lost_since = None;
                    self.shared.upstream.works();
                    let (is_vod, text) = (plan.is_vod, plan.seen.clone());
                    let began = Instant::now();
                    let outcome = self.follow(plan).await;
                    // An upstream that breaks off again and again is not asked in a loop.
                    breaks = if began.elapsed() > STEADY { 0 } else { breaks + 1 };
                    match outcome {
                        Ok(newest) => {
                            info!("the upstream has ended");
                            self.end();
                            if is_vod {
                                // Complete, and served for as long as the server runs.
                                std::future::pending::<()>().await;
                            }
                            seen = Some(newest);
                        }
                        Err((Stop::Lost(reason), _)) => {
                            self.shared.upstream.restarted();
                            self.shared.upstream.has_problem(&format!("taken up anew: {reason}"));
                            lost_since = Some(Instant::now());
                        }
                        Err((Stop::Gone, newest)) => {
                            info!("the upstream is gone");
                            self.end();
                            seen = Some(newest);
                        }
                        Err((Stop::Refused(reason), _)) => {
                            self.shared.upstream.has_problem(&reason);
                            self.end();
                            if is_vod {
                                std::future::pending::<()>().await;
                            }
                            seen = Some(text);
                        }
                    }
                    self.shared.backoff(breaks)
                }
                Err(NoPlan::Nothing) => NOTHING_INTERVAL,
                Err(NoPlan::Failed(reason)) => {
                    self.shared.upstream.failed("upstream", &reason);
                    failures += 1;
                    self.shared.backoff(failures - 1)
                }
                Err(NoPlan::Refused(reason)) => {
                    self.shared.upstream.failed("refused", &reason);
                    REFUSED_INTERVAL
                }
            };
            if lost_since.is_some_and(|since| since.elapsed() > self.shared.grace) {
                lost_since = None;
                self.end();
            }
            self.pause(pause).await;
        }
    }

    /// Waits, and forgets an ended stream when its time has come.
    async fn pause(&mut self, pause: Duration) {
        let until = Instant::now() + pause;
        if let Some(current) = &self.current
            && let Some(forget_at) = current.forget_at
            && forget_at < until
        {
            sleep_until(forget_at).await;
            self.entry.live.send_replace(None);
            self.current = None;
        }
        sleep_until(until).await;
    }

    fn end(&mut self) {
        if let Some(current) = &mut self.current {
            current.live.set_state(State::Ended);
            let keep = Duration::from_millis(self.config.ended_keep_ms.into());
            if !current.is_vod {
                current.forget_at.get_or_insert_with(|| Instant::now() + keep);
            }
        }
    }

    /// Carries out a plan. Gives the lead's newest playlist.
    async fn follow(&mut self, plan: Plan) -> Result<String, (Stop, String)> {
        let (is_vod, with_parts) = (plan.is_vod, plan.constants.has_parts);
        let numbers = numbers(&plan);
        let mut outputs = self.outputs(&plan, &numbers);
        let mut followers = Vec::new();
        for (source, numbers) in plan.sources.into_iter().zip(&numbers) {
            followers.push(Follower {
                shared: self.shared.clone(),
                asked: source.asked,
                loaded: source.loaded,
                cursor: source.cursor,
                with_parts,
                is_vod,
                map: source.map,
                reader: source.reader,
                outputs: numbers.iter().filter_map(|number| outputs.remove(number)).collect(),
                ahead: None,
            });
        }
        // The first that cannot go on stops the others: they are taken up together.
        let result = try_join_all(followers.iter_mut().map(|follower| follower.run())).await;
        let newest = followers[0].loaded.text.clone();
        if let Some(current) = &mut self.current {
            let ends = followers.iter().zip(&numbers).flat_map(|(follower, numbers)| {
                numbers.iter().copied().zip(follower.outputs.iter().map(Output::end_us))
            });
            current.ends_us = ends.collect();
            current.next_msn = followers[0].cursor.msn;
        }
        match result {
            Ok(_) => Ok(newest),
            Err(stop) => {
                debug!(?stop, "stopped");
                Err((stop, newest))
            }
        }
    }

    /// Where the renditions go, by number: on in the stream that there is, if they fit it, or into a new one.
    fn outputs(&mut self, plan: &Plan, numbers: &[Vec<usize>]) -> BTreeMap<usize, Output> {
        let mut tracks = BTreeMap::new();
        for (source, numbers) in plan.sources.iter().zip(numbers) {
            for (track, number) in source.tracks.iter().zip(numbers) {
                tracks.insert(*number, (track, source.description(track)));
            }
        }
        let is_video: Vec<bool> = tracks.values().map(|(_, description)| description.is_video()).collect();
        let goes_on = self.current.as_ref().filter(|current| {
            let (old, new) = (current.live.constants, plan.constants);
            current.live.state() != State::Ended
                && current.is_video == is_video
                && old.has_parts == new.has_parts
                && new.target_duration_s <= old.target_duration_s
                && (!old.has_parts || new.part_target_us <= old.part_target_us)
                && !plan.is_vod
        });
        if let Some(current) = goes_on {
            // A smaller number is an upstream that began anew.
            let missed = plan.sources[0].cursor.msn.saturating_sub(current.next_msn);
            self.shared.upstream.missed(missed);
            let live = current.live.clone();
            let end_us = |number: usize| current.ends_us.get(&number).copied().unwrap_or(0);
            live.align(live.constants.segment_us, i64::MAX, |number| end_us(usize::from(number)) / 1_000);
            // Together, also where one was longer than the other.
            let newest_us = current.ends_us.values().copied().max().unwrap_or(0);
            let resume = |(number, (track, new)): (usize, (&PlannedTrack, Description))| {
                live.renditions[number].describe(|known| {
                    known.codecs = new.codecs;
                    known.resolution = new.resolution;
                });
                let date_us = track.date_us;
                (number, Output::resume(live.clone(), number, track.init.clone(), date_us, newest_us))
            };
            return tracks.into_iter().map(resume).collect();
        }
        self.end();
        let constants = plan.constants;
        let videos = is_video.iter().filter(|is_video| **is_video).count();
        let rendition = |(number, (track, description)): (&usize, &(&PlannedTrack, Description))| {
            let name = match number.checked_sub(videos) {
                None => format!("v{number}"),
                Some(number) => format!("a{number}"),
            };
            let number = u8::try_from(*number).expect("the configuration allows few renditions");
            Arc::new(Rendition::new(number, name, constants, track.init.clone(), description.clone()))
        };
        let renditions = tracks.iter().map(rendition).collect();
        let now_ms = u64::try_from(unix_ms()).unwrap_or(0);
        let live =
            Live::start(&self.entry.name, now_ms, &self.config, constants, &self.live_shared, renditions);
        let live = Arc::new(live);
        self.entry.live.send_replace(Some(live.clone()));
        info!(renditions = live.renditions.len(), parts = constants.has_parts, "stream goes live");
        self.current = Some(Current {
            live: live.clone(),
            is_video,
            is_vod: plan.is_vod,
            ends_us: BTreeMap::new(),
            next_msn: 0,
            forget_at: None,
        });
        let output = |(number, (track, _)): (usize, (&PlannedTrack, Description))| {
            (number, Output::new(live.clone(), number, track.init.clone(), track.date_us))
        };
        tracks.into_iter().map(output).collect()
    }
}

/// The numbers of the renditions that each source makes: videos first, as in the multivariant playlist.
fn numbers(plan: &Plan) -> Vec<Vec<usize>> {
    let mut numbers: Vec<Vec<usize>> =
        plan.sources.iter().map(|source| vec![0; source.tracks.len()]).collect();
    let mut next = 0;
    for wants_video in [true, false] {
        for (source, numbers) in plan.sources.iter().zip(&mut numbers) {
            for (track, number) in source.tracks.iter().zip(numbers) {
                if source.description(track).is_video() == wants_video {
                    *number = next;
                    next += 1;
                }
            }
        }
    }
    numbers
}
