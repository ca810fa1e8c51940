//! `/api/streams`: what is live, for the first page and for anybody's own.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::header;
use serde::Serialize;
use shoal_segmenter::{StreamInfo, Streams};
use shoal_tracker::Tracker;

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    stream: StreamInfo,
    /// Viewers that are connected to the tracker; those who turned sharing off are not.
    viewers: usize,
}

pub(crate) fn router(streams: Streams, tracker: Tracker) -> Router {
    Router::new().route("/api/streams", get(list)).with_state((streams, tracker))
}

async fn list(State((streams, tracker)): State<(Streams, Tracker)>) -> Response {
    let entries: Vec<Entry> = streams
        .list()
        .into_iter()
        .map(|stream| Entry { viewers: tracker.viewers(&stream.name), stream })
        .collect();
    let headers = [(header::CACHE_CONTROL, "no-store"), (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")];
    (headers, Json(entries)).into_response()
}
