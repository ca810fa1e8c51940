//! Posters and thumbnails of live streams. Those of recordings are in `recordings.rs`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::answer::{self, File};
use super::headers::{Cache, error};
use super::recordings::unavailable;
use crate::counters::Class;
use crate::live::Live;
use crate::pictures::sheet::sheet_number;
use crate::pictures::{FoundSheet, Picture, Pictures};
use crate::streams::Streams;

/// What sheets and posters are.
pub(super) const JPEG: &str = "image/jpeg";
/// What lists of thumbnails are.
pub(super) const WEB_VTT: &str = "text/vtt; charset=utf-8";

/// A stream that is watched, and its pictures.
fn find(streams: &Streams, stream: &str) -> Option<(Arc<Live>, Arc<Pictures>)> {
    let live = streams.entry(stream)?.live.borrow().clone()?;
    let pictures = live.pictures.clone()?;
    live.counters.add_request(Class::Picture);
    Some((live, pictures))
}

fn no_picture() -> Response {
    error(StatusCode::NOT_FOUND, "there is no picture", Cache::None)
}

/// While there is no newer one, and no longer than half of the time until then.
fn briefly(pictures: &Pictures) -> Cache {
    Cache::Seconds((pictures.interval_s() / 2).max(1))
}

fn respond(live: Arc<Live>, picture: Picture, cache: Cache, headers: &HeaderMap) -> Response {
    let file = File { length: picture.bytes.len(), tag: &picture.tag, content_type: JPEG, cache };
    answer::file(file, headers, |range| {
        answer::counted(picture.bytes.slice(range), move |sent| live.counters.add_sent(Class::Picture, sent))
    })
}

/// `GET /live/{stream}/poster.jpg`
pub(super) async fn poster(
    State(streams): State<Streams>,
    Path(stream): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Some((live, pictures)) = find(&streams, &stream) else { return no_picture() };
    match pictures.poster() {
        Some(poster) => respond(live, poster, briefly(&pictures), &headers),
        None => no_picture(),
    }
}

/// `GET /live/{stream}/thumbnails.vtt`
pub(super) async fn thumbnails(
    State(streams): State<Streams>,
    Path(stream): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Some((live, pictures)) = find(&streams, &stream) else { return no_picture() };
    let Some(text) = pictures.thumbnails(&live.epoch_hex()) else { return no_picture() };
    answer::text(&text, WEB_VTT, &headers, briefly(&pictures), |bytes| {
        answer::counted(bytes, move |sent| live.counters.add_sent(Class::Picture, sent))
    })
}

/// `GET /live/{stream}/{epoch}/thumbs/{file}`
pub(super) async fn sheet(
    State(streams): State<Streams>,
    Path((stream, epoch, file)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some((live, pictures)) = find(&streams, &stream) else { return no_picture() };
    let found = sheet_number(&file, ".jpg").and_then(|number| pictures.sheet(number));
    match found.filter(|_| live.epoch_hex() == epoch) {
        None => no_picture(),
        Some(FoundSheet::Here { picture, is_full }) => {
            let cache = if is_full { Cache::Immutable } else { briefly(&pictures) };
            respond(live, picture, cache, &headers)
        }
        Some(FoundSheet::Stored(name)) => {
            let Some(recordings) = streams.recording_registry() else { return no_picture() };
            match recordings.storage().get(&format!("{stream}/{epoch}/{name}")).await {
                Ok(Some(bytes)) => respond(live, Picture::new(bytes), Cache::Immutable, &headers),
                Ok(None) => no_picture(),
                Err(cause) => unavailable(&cause),
            }
        }
    }
}
