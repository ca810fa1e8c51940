//! The HTTP origin: playlists and media of all streams under `/live/`, recordings under `/vod/`.
//!
//! It only reads what the workers published. Rules of blocking, caching and errors are those of
//! draft-pantos-hls-rfc8216bis (section 6.2.5 and appendix B); the table is in `../README.md`.

mod answer;
mod headers;
mod media;
mod pictures;
mod playlists;
mod recordings;
mod request;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;

use crate::streams::Streams;
use headers::{Cache, error};
pub use headers::{accepts_coding, has_copy};

/// Makes the origin's routes.
#[derive(Clone, Copy, Debug)]
pub struct Origin;

impl Origin {
    /// The routes `/live/`, `/vod/` and `/api/recordings`, for merging into the program's router.
    pub fn router(streams: Streams) -> Router {
        let unknown = || async { error(StatusCode::NOT_FOUND, "no such resource", Cache::None) };
        let live = Router::new()
            .route("/{stream}/index.m3u8", get(playlists::multivariant))
            .route("/{stream}/poster.jpg", get(pictures::poster))
            .route("/{stream}/thumbnails.vtt", get(pictures::thumbnails))
            .route("/{stream}/{epoch}/thumbs/{file}", get(pictures::sheet))
            .route("/{stream}/{epoch}/{rendition}/playlist.m3u8", get(playlists::media))
            .route("/{stream}/{epoch}/{rendition}/{file}", get(media::file))
            .fallback(unknown)
            .with_state(streams.clone());
        let vod = Router::new()
            .route("/vod/{stream}/{epoch}/{file}", get(recordings::top))
            .route("/vod/{stream}/{epoch}/thumbs/{file}", get(recordings::sheet))
            .route("/vod/{stream}/{epoch}/{rendition}/{file}", get(recordings::file))
            .route("/api/recordings", get(recordings::list))
            .with_state(recordings::Shared::new(streams));
        Router::new().nest("/live", live).merge(vod).layer(headers::CrossOriginLayer)
    }
}
