//! Playlists: the multivariant one, and media playlists with blocking reload and deltas.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use shoal_playlist::MultivariantPlaylist;
use tokio::time::{Instant, timeout_at};

use super::answer;
use super::headers::{Cache, error};
use super::request::Directives;
use crate::counters::Class;
use crate::live::{Live, Rendition};
use crate::multivariant;
use crate::rendered::Text;
use crate::streams::Streams;

/// A request for a stream that is about to begin is held for so long: its publisher's connection, the first
/// keyframe and one segment.
const START_WAIT: Duration = Duration::from_secs(10);

/// What playlists are.
pub(super) const PLAYLIST: &str = "application/vnd.apple.mpegurl";

/// `GET /live/{stream}/index.m3u8`
pub(super) async fn multivariant(
    State(streams): State<Streams>,
    Path(stream): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Some(entry) = streams.entry(&stream) else {
        return error(StatusCode::NOT_FOUND, "no such stream is live", Cache::None);
    };
    let deadline = Instant::now() + START_WAIT;
    let mut live = entry.live.subscribe();
    let live = match timeout_at(deadline, live.wait_for(Option::is_some)).await {
        Ok(Ok(live)) => live.clone(),
        _ => None,
    };
    let Some(live) = live else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the stream has not begun yet", Cache::None);
    };
    live.counters.add_request(Class::Playlist);
    // Bit rates are measured, so a rendition can be described once it has a segment.
    for rendition in &live.renditions {
        let mut progress = rendition.watch();
        while live.described(rendition).is_none() {
            if !matches!(timeout_at(deadline, progress.changed()).await, Ok(Ok(()))) {
                return error(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the first segment is not complete yet",
                    Cache::None,
                );
            }
        }
    }
    let text = live
        .multivariant
        .get(live.revision(), || multivariant_playlist(&live, &streams.config().tracker_url).render());
    // Short: a viewer who comes after a restart of the stream must find the new epoch.
    text_response(&live, &text, &headers, Cache::Seconds(1))
}

fn multivariant_playlist(live: &Live, tracker_url: &str) -> MultivariantPlaylist {
    let describe = |rendition: &Arc<Rendition>| {
        let described = live.described(rendition);
        (rendition.name.clone(), described.unwrap_or_else(|| rendition.description()))
    };
    let epoch = live.epoch_hex();
    multivariant::playlist(&multivariant::Source {
        stream: &live.name,
        epoch: &epoch,
        origin_key: &STANDARD.encode(live.origin_key.to_bytes()),
        tracker_url,
        folder: &format!("{epoch}/"),
        has_pictures: live.poster_url().is_some(),
        renditions: &live.renditions.iter().map(describe).collect::<Vec<_>>(),
        has_independent_segments: live.has_independent_segments(),
        is_complete: false,
    })
}

/// `GET /live/{stream}/{epoch}/{rendition}/playlist.m3u8`
pub(super) async fn media(
    State(streams): State<Streams>,
    Path((stream, epoch, rendition)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Some((live, rendition)) = find(&streams, &stream, &epoch, &rendition) else {
        return error(StatusCode::NOT_FOUND, "no such playlist", Cache::None);
    };
    live.counters.add_request(Class::Playlist);
    let target = live.constants.target_duration_s;
    let Ok(directives) = Directives::parse(query.as_deref().unwrap_or("")) else {
        return error(
            StatusCode::BAD_REQUEST,
            "the _HLS_ directives are not valid",
            Cache::Seconds(4 * target),
        );
    };
    let progress = rendition.watch();
    let is_ended = progress.borrow().is_ended;
    let mut cache = Cache::Seconds((target / 2).max(1));
    if let (Some(msn), false) = (directives.msn, is_ended) {
        cache = Cache::Seconds(6 * target);
        if is_too_far(&live, &rendition, msn, directives.part) {
            let text = "the playlist is not that far yet, by more than may be waited for";
            return error(StatusCode::BAD_REQUEST, text, Cache::Seconds(4 * target));
        }
        let deadline = Instant::now() + Duration::from_secs(3 * target);
        let has = || rendition.with_window(|window| window.has(msn, directives.part));
        if wait_until(&live, &rendition, has, deadline).await.is_err() {
            return error(StatusCode::SERVICE_UNAVAILABLE, "nothing was published for too long", Cache::None);
        }
    }
    let text = live.playlist(&rendition, directives.wants_delta);
    text_response(&live, &text, &headers, cache)
}

/// Section 6.2.5.2: more than two segments ahead, or more parts than the Advance Part Limit.
fn is_too_far(live: &Live, rendition: &Rendition, msn: u64, part: Option<u64>) -> bool {
    let progress = rendition.with_window(crate::window::Window::progress);
    let target_us = live.constants.part_target_us.unsigned_abs();
    let advance_max = if target_us < 1_000_000 { 3_000_000u64.div_ceil(target_us) } else { 3 };
    let parts = if msn == progress.msn { progress.parts } else { 0 };
    // `progress.msn` is one more than the last complete segment's.
    msn > progress.msn.saturating_add(1)
        || (msn >= progress.msn && part.is_some_and(|part| part >= parts.saturating_add(advance_max)))
}

/// The deadline passed.
pub(super) struct TimedOut;

/// Waits until `has` is true or the rendition has ended.
pub(super) async fn wait_until(
    live: &Live,
    rendition: &Rendition,
    has: impl Fn() -> bool,
    deadline: Instant,
) -> Result<(), TimedOut> {
    let mut progress = rendition.watch();
    let mut was_counted = false;
    loop {
        // Seen before the check, so that a change in between is not slept through.
        let is_ended = progress.borrow_and_update().is_ended;
        if has() || is_ended {
            return Ok(());
        }
        if !std::mem::replace(&mut was_counted, true) {
            live.counters.add_blocked();
        }
        match timeout_at(deadline, progress.changed()).await {
            Ok(Ok(())) => {}
            _ => return Err(TimedOut),
        }
    }
}

/// The stream and rendition that a URL names.
pub(super) fn find(
    streams: &Streams,
    stream: &str,
    epoch: &str,
    rendition: &str,
) -> Option<(Arc<Live>, Arc<Rendition>)> {
    let live = streams.entry(stream)?.live.borrow().clone().filter(|live| live.epoch_hex() == epoch)?;
    let rendition = live.rendition(rendition)?.clone();
    Some((live, rendition))
}

fn text_response(live: &Arc<Live>, text: &Text, headers: &HeaderMap, cache: Cache) -> Response {
    let live = live.clone();
    answer::text(text, PLAYLIST, headers, cache, |bytes| {
        answer::counted(bytes, move |sent| live.counters.add_sent(Class::Playlist, sent))
    })
}
