//! Recordings: `/vod/{stream}/{epoch}/` with playlists, media, digest records and one MP4 file; `/api/recordings`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tracing::warn;

use super::answer;
use super::headers::{Cache, error};
use super::media::immutable;
use super::pictures::{JPEG, WEB_VTT};
use super::playlists::PLAYLIST;
use super::request::{MediaFile, MediaKind};
use crate::counters::Class;
use crate::pictures::sheet::{FOLDER, VTT, picture_name, sheet_number};
use crate::pictures::{POSTER, Picture};
use crate::recording::Recordings;
use crate::recording::layout::{Header, Row, init_name, rows_name, segment_name};
use crate::recording::mp4;
use crate::rendered::Text;
use crate::storage::StorageError;
use crate::streams::Streams;

/// A recording does not change, but it may be deleted.
const CACHE: Cache = Cache::Seconds(300);
/// So many playlists of recordings are kept ready to send.
const TEXTS_MAX: usize = 32;

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Shared {
    streams: Streams,
    texts: Arc<Mutex<Texts>>,
}

/// Playlists by object, oldest first.
type Texts = VecDeque<(String, Arc<Text>)>;

impl Shared {
    pub(super) fn new(streams: Streams) -> Self {
        Self { streams, texts: Arc::default() }
    }

    fn find(&self, stream: &str, epoch: &str) -> Option<(Arc<Recordings>, Arc<Header>)> {
        let recordings = self.streams.recording_registry()?;
        Some((recordings.clone(), recordings.find(stream, epoch)?))
    }

    async fn text(&self, recordings: &Recordings, name: String) -> Result<Option<Arc<Text>>, StorageError> {
        if let Some((_, text)) = self.texts.lock().iter().find(|(known, _)| *known == name) {
            return Ok(Some(text.clone()));
        }
        let Some(bytes) = recordings.storage().get(&name).await? else { return Ok(None) };
        let plain = String::from_utf8_lossy(&bytes).into_owned();
        let text = Arc::new(Text::new(plain));
        let mut texts = self.texts.lock();
        texts.push_back((name, text.clone()));
        while texts.len() > TEXTS_MAX {
            texts.pop_front();
        }
        Ok(Some(text))
    }
}

fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "no such recording", Cache::None)
}

pub(super) fn unavailable(cause: &StorageError) -> Response {
    warn!(%cause, "a recording could not be read");
    error(StatusCode::SERVICE_UNAVAILABLE, "the storage does not answer", Cache::None)
}

fn count(sent: usize) {
    metrics::counter!("origin_vod_sent_bytes_total").increment(sent as u64);
}

/// `GET /api/recordings`
pub(super) async fn list(State(shared): State<Shared>) -> Response {
    let headers = [(header::CACHE_CONTROL, "no-store")];
    (headers, Json(shared.streams.recordings())).into_response()
}

/// `GET /vod/{stream}/{epoch}/{file}`: the multivariant playlist or the MP4 file.
pub(super) async fn top(
    State(shared): State<Shared>,
    Path((stream, epoch, file)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some((recordings, recording)) = shared.find(&stream, &epoch) else { return not_found() };
    match file.as_str() {
        POSTER => picture(&recordings, &recording, POSTER, &headers).await,
        VTT => text(&shared, &recordings, VTT, WEB_VTT, &recording, &headers).await,
        "index.m3u8" => playlist(&shared, &recordings, "index.m3u8", &recording, &headers).await,
        mp4::FILE => match one_file(recordings, &recording, &headers).await {
            Ok(response) => response,
            Err(cause) => unavailable(&cause),
        },
        _ => not_found(),
    }
}

async fn playlist(
    shared: &Shared,
    recordings: &Recordings,
    file: &str,
    recording: &Header,
    headers: &HeaderMap,
) -> Response {
    text(shared, recordings, file, PLAYLIST, recording, headers).await
}

async fn text(
    shared: &Shared,
    recordings: &Recordings,
    file: &str,
    content_type: &'static str,
    recording: &Header,
    headers: &HeaderMap,
) -> Response {
    match shared.text(recordings, format!("{}/{file}", recording.folder())).await {
        Ok(Some(text)) => {
            answer::text(&text, content_type, headers, CACHE, |bytes| answer::counted(bytes, count))
        }
        Ok(None) => not_found(),
        Err(cause) => unavailable(&cause),
    }
}

/// `GET /vod/{stream}/{epoch}/thumbs/{file}`: a sheet of thumbnails.
pub(super) async fn sheet(
    State(shared): State<Shared>,
    Path((stream, epoch, file)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some((recordings, recording)) = shared.find(&stream, &epoch) else { return not_found() };
    let Some(number) = sheet_number(&file, ".jpg") else { return not_found() };
    picture(&recordings, &recording, &format!("{FOLDER}/{}", picture_name(number)), &headers).await
}

/// A picture of a recording, by its name in the folder.
async fn picture(recordings: &Recordings, recording: &Header, name: &str, headers: &HeaderMap) -> Response {
    match recordings.storage().get(&format!("{}/{name}", recording.folder())).await {
        Ok(Some(bytes)) => {
            let Picture { bytes, tag } = Picture::new(bytes);
            let file = answer::File { length: bytes.len(), tag: &tag, content_type: JPEG, cache: CACHE };
            answer::file(file, headers, |range| answer::counted(bytes.slice(range), count))
        }
        Ok(None) => not_found(),
        Err(cause) => unavailable(&cause),
    }
}

/// `GET /vod/{stream}/{epoch}/{rendition}/{file}`: a media playlist, media, or its digest records.
pub(super) async fn file(
    State(shared): State<Shared>,
    Path((stream, epoch, rendition, file)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some((recordings, recording)) = shared.find(&stream, &epoch) else { return not_found() };
    let Some(found) = recording.rendition(&rendition) else { return not_found() };
    if file == "playlist.m3u8" {
        let file = format!("{rendition}/playlist.m3u8");
        return playlist(&shared, &recordings, &file, &recording, &headers).await;
    }
    let Some(wanted) = MediaFile::parse(&file) else { return not_found() };
    let is_video = found.description.is_video();
    match stored(&recordings, &recording.folder(), &rendition, wanted).await {
        Ok(None) => not_found(),
        Err(cause) => unavailable(&cause),
        Ok(Some(Found::Bytes(bytes))) => {
            let class = if wanted.is_digest { Class::Digest } else { Class::Init };
            let tag = format!("\"{epoch}-{file}\"");
            answer::file(immutable(&tag, bytes.len(), class, is_video), &headers, |range| {
                answer::counted(bytes.slice(range), count)
            })
        }
        Ok(Some(Found::Stored(name, place))) => {
            let tag = format!("\"{epoch}-{file}\"");
            let length = usize::try_from(place.end - place.start).unwrap_or(usize::MAX);
            answer::file(immutable(&tag, length, Class::Segment, is_video), &headers, |range| {
                let range = place.start + range.start as u64..place.start + range.end as u64;
                answer::counted_stream(recordings.storage().read(&name, range), count)
            })
        }
    }
}

/// Media in the storage.
pub(super) enum Found {
    Bytes(Bytes),
    /// Bytes of an object.
    Stored(String, Range<u64>),
}

/// Media or digest records, of a recording or of what a live stream's viewers can go back to.
pub(super) async fn stored(
    recordings: &Recordings,
    folder: &str,
    rendition: &str,
    wanted: MediaFile,
) -> Result<Option<Found>, StorageError> {
    let (msn, part) = match wanted.kind {
        MediaKind::Init(number) => {
            let init = recordings.storage().get(&init_name(folder, rendition, number)).await?;
            return Ok(init.map(Found::Bytes));
        }
        MediaKind::Segment(msn) if wanted.is_digest => {
            let records = recordings.records(folder, rendition, msn).await?;
            return Ok(records.map(Found::Bytes));
        }
        MediaKind::Segment(msn) => (msn, None),
        MediaKind::Part(msn, part) => (msn, usize::try_from(part).ok()),
    };
    let Some(segment) = recordings.segment(folder, rendition, msn).await? else { return Ok(None) };
    let lengths = segment.parts.iter().map(|part| part.bytes);
    let place = match part {
        None => 0..lengths.sum(),
        Some(part) => {
            let Some(meta) = segment.parts.get(part) else { return Ok(None) };
            if wanted.is_digest {
                return Ok((!meta.is_gap).then(|| Found::Bytes(meta.record.clone())));
            }
            let start = lengths.take(part).sum();
            start..start + meta.bytes
        }
    };
    Ok((!place.is_empty()).then(|| Found::Stored(segment_name(folder, rendition, msn), place)))
}

/// The recording's best picture and its sound in one file.
async fn one_file(
    recordings: Arc<Recordings>,
    recording: &Header,
    headers: &HeaderMap,
) -> Result<Response, StorageError> {
    let folder = recording.folder();
    let mut sources = Vec::new();
    for is_video in [true, false] {
        for rendition in recording.renditions.iter().filter(|r| r.description.is_video() == is_video) {
            let source = source(&recordings, &folder, &rendition.name).await?;
            if !source.rows.is_empty() {
                sources.push(source);
                break;
            }
        }
    }
    let plan = mp4::plan(&sources).map_err(|cause| damaged(&folder, &cause))?;
    let tag = format!("\"{}-{}\"", recording.epoch, mp4::FILE);
    let length = usize::try_from(plan.length).unwrap_or(usize::MAX);
    let file = answer::File { length, tag: &tag, content_type: "video/mp4", cache: CACHE };
    let mut response = answer::file(file, headers, |range| {
        let names = sources.into_iter().map(|source| source.rendition).collect();
        let chunks = read_file(recordings, folder, names, plan, range.start as u64..range.end as u64);
        answer::counted_stream(chunks, count)
    });
    let name = format!("attachment; filename=\"{}-{}.mp4\"", recording.stream, recording.started_ms);
    let name = HeaderValue::try_from(name).expect("streams' names have no quotes");
    response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    Ok(response)
}

fn damaged(name: &str, cause: &mp4::BadMp4) -> StorageError {
    StorageError::Damaged { name: name.to_owned(), reason: cause.to_string() }
}

async fn source(recordings: &Recordings, folder: &str, rendition: &str) -> Result<mp4::Source, StorageError> {
    let name = rows_name(folder, rendition);
    let text = recordings.storage().get_all(vec![name.clone()]).await?.concat();
    let rows: Vec<Row> = serde_json::from_slice(&text)
        .map_err(|error| StorageError::Damaged { name, reason: error.to_string() })?;
    let numbers: BTreeSet<u32> = rows.iter().filter(|row| !row.is_gap).map(|row| row.init).collect();
    let names = numbers.iter().map(|number| init_name(folder, rendition, *number)).collect();
    let inits = recordings.storage().get_all(names).await?;
    let inits: BTreeMap<u32, Bytes> = numbers.into_iter().zip(inits).collect();
    Ok(mp4::Source { rendition: rendition.to_owned(), inits, rows })
}

/// A range of the file. A segment is in memory while it is changed and sent, and no other.
fn read_file(
    recordings: Arc<Recordings>,
    folder: String,
    renditions: Vec<String>,
    plan: mp4::Plan,
    range: Range<u64>,
) -> BoxStream<'static, Result<Bytes, StorageError>> {
    let head_length = plan.head.len() as u64;
    let head = plan.head.slice(range.start.min(head_length) as usize..range.end.min(head_length) as usize);
    let head = stream::iter((!head.is_empty()).then_some(Ok(head)));
    let wanted = range.clone();
    let touched = plan
        .pieces
        .into_iter()
        .filter(move |piece| piece.range.start < wanted.end && piece.range.end > wanted.start);
    let segments = stream::iter(touched.collect::<Vec<_>>()).then(move |piece| {
        let name = segment_name(&folder, &renditions[piece.track], piece.msn);
        let (recordings, range) = (recordings.clone(), range.clone());
        async move {
            let length = piece.range.end - piece.range.start;
            let mut segment = BytesMut::new();
            let mut chunks = recordings.storage().read(&name, 0..length);
            while let Some(chunk) = chunks.try_next().await? {
                segment.extend_from_slice(&chunk);
            }
            piece.change(&mut segment).map_err(|cause| damaged(&name, &cause))?;
            let start = range.start.saturating_sub(piece.range.start);
            let end = length.min(range.end - piece.range.start);
            Ok(segment.freeze().slice(start as usize..end as usize))
        }
    });
    head.chain(segments).boxed()
}
