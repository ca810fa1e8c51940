//! Media: initialization sections, segments, parts and their digest records.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream;
use tokio::time::Instant;

use super::headers::{Cache, Wanted, error, has_copy, wanted};
use super::playlists::{find, wait_until};
use super::request::{MediaFile, MediaKind};
use crate::counters::Class;
use crate::live::{Live, Rendition};
use crate::streams::Streams;
use crate::window::Progress;

/// Bytes are handed to a connection in slices of this size, so that "sent" is what was really taken.
const SLICE_BYTES: usize = 64 * 1024;

/// `GET /live/{stream}/{epoch}/{rendition}/{file}`
pub(super) async fn file(
    State(streams): State<Streams>,
    Path((stream, epoch, rendition, name)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let not_found = || error(StatusCode::NOT_FOUND, "no such file", Cache::None);
    let Some((live, rendition)) = find(&streams, &stream, &epoch, &rendition) else { return not_found() };
    let Some(file) = MediaFile::parse(&name) else { return not_found() };
    let class = match (file.is_digest, file.kind) {
        (true, _) => Class::Digest,
        (_, MediaKind::Init(_)) => Class::Init,
        (_, MediaKind::Segment(_)) => Class::Segment,
        (_, MediaKind::Part(..)) => Class::Part,
    };
    live.counters.add_request(class);
    if let MediaKind::Part(msn, part) = file.kind
        && hold_hinted(&live, &rendition, msn, part).await.is_err()
    {
        let target = live.constants.target_duration_s;
        return error(
            StatusCode::SERVICE_UNAVAILABLE,
            "nothing was published for too long",
            Cache::Seconds(target),
        );
    }
    let Some(content) = content(&rendition, file) else { return not_found() };
    respond(&live, &rendition, class, content, &headers, &format!("\"{epoch}-{name}\""))
}

/// Holds a request for the part that the playlist hints at until it is there (section 6.2.6). Any other part is
/// there or is not.
async fn hold_hinted(
    live: &Live,
    rendition: &Rendition,
    msn: u64,
    part: u64,
) -> Result<(), super::playlists::TimedOut> {
    let Progress { msn: open, parts, is_ended } = *rendition.watch().borrow();
    // The next part; or the next segment's first, where a client is sure that this segment ends with the next part.
    let is_hinted = (msn == open && part == parts) || (msn == open + 1 && part == 0);
    if is_ended || !is_hinted {
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(3 * live.constants.target_duration_s);
    let is_settled = || {
        let Progress { msn: open, parts, .. } = rendition.with_window(crate::window::Window::progress);
        open > msn || (open == msn && parts > part)
    };
    wait_until(live, rendition, is_settled, deadline).await
}

/// Bytes that were found: by reference into the window where they are large, so that a slow client does not keep
/// media alive that the window has let go.
enum Content {
    Bytes(Bytes),
    /// The lengths of a segment's parts.
    Segment(u64, Vec<usize>),
}

fn content(rendition: &Rendition, file: MediaFile) -> Option<Content> {
    rendition.with_window(|window| {
        let content = match (file.kind, file.is_digest) {
            (MediaKind::Init(number), _) => Content::Bytes(window.init(number)?.clone()),
            (MediaKind::Part(msn, part), false) => Content::Bytes(window.part(msn, part)?.bytes.clone()),
            (MediaKind::Part(msn, part), true) => Content::Bytes(window.part(msn, part)?.record.clone()),
            (MediaKind::Segment(msn), false) => Content::Segment(
                msn,
                window.segment(msn)?.parts.iter().map(|part| part.bytes.len()).collect(),
            ),
            (MediaKind::Segment(msn), true) => {
                let mut records = BytesMut::new();
                for part in &window.segment(msn)?.parts {
                    records.put_u32(u32::try_from(part.record.len()).unwrap_or(0));
                    records.put_slice(&part.record);
                }
                Content::Bytes(records.freeze())
            }
        };
        // A gap has no bytes.
        let is_empty = match &content {
            Content::Bytes(bytes) => bytes.is_empty(),
            Content::Segment(_, lengths) => lengths.iter().sum::<usize>() == 0,
        };
        (!is_empty).then_some(content)
    })
}

fn respond(
    live: &Arc<Live>,
    rendition: &Arc<Rendition>,
    class: Class,
    content: Content,
    headers: &HeaderMap,
    tag: &str,
) -> Response {
    let length = match &content {
        Content::Bytes(bytes) => bytes.len(),
        Content::Segment(_, lengths) => lengths.iter().sum(),
    };
    let mut response = Response::new(Body::empty());
    let content_type = match (class, rendition.description().is_video()) {
        (Class::Digest, _) => "application/octet-stream",
        (_, true) => "video/mp4",
        (_, false) => "audio/mp4",
    };
    let fields = response.headers_mut();
    fields.insert(header::ETAG, HeaderValue::try_from(tag).expect("the file's name was parsed"));
    fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    fields.insert(header::CACHE_CONTROL, Cache::Immutable.value());
    if has_copy(headers, tag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let range = match wanted(headers, length, tag) {
        Wanted::Whole => 0..length,
        Wanted::Unsatisfiable => {
            let mut response =
                error(StatusCode::RANGE_NOT_SATISFIABLE, "the file has no such bytes", Cache::None);
            response.headers_mut().insert(header::CONTENT_RANGE, field(format!("bytes */{length}")));
            return response;
        }
        Wanted::Range(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let text = format!("bytes {}-{}/{length}", range.start, range.end - 1);
            response.headers_mut().insert(header::CONTENT_RANGE, field(text));
            range
        }
    };
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    fields.insert(header::CONTENT_LENGTH, range.len().into());
    *response.body_mut() = match content {
        Content::Bytes(bytes) => counted(live.clone(), class, vec![bytes.slice(range)]),
        Content::Segment(msn, lengths) => segment_body(live.clone(), rendition.clone(), msn, &lengths, range),
    };
    response
}

fn field(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("digits are allowed in header values")
}

/// A body of `chunks` that counts what the connection takes.
pub(super) fn counted(live: Arc<Live>, class: Class, chunks: Vec<Bytes>) -> Body {
    let slices: Vec<Bytes> = chunks.iter().flat_map(slices).collect();
    Body::from_stream(stream::iter(slices.into_iter().map(move |slice| {
        live.counters.add_sent(class, slice.len());
        Ok::<_, std::convert::Infallible>(slice)
    })))
}

fn slices(bytes: &Bytes) -> impl Iterator<Item = Bytes> {
    (0..bytes.len())
        .step_by(SLICE_BYTES)
        .map(|start| bytes.slice(start..bytes.len().min(start + SLICE_BYTES)))
}

/// The client was so slow that the segment was let go while it was being sent.
#[derive(Debug, thiserror::Error)]
#[error("the segment left the window while it was being sent")]
struct TooSlow;

/// A segment's bytes, taken from the window part by part as the client reads: a client that stops reading holds on
/// to one part, not to a segment.
fn segment_body(
    live: Arc<Live>,
    rendition: Arc<Rendition>,
    msn: u64,
    lengths: &[usize],
    range: Range<usize>,
) -> Body {
    let mut wanted = Vec::new();
    let mut start = 0;
    for (index, length) in lengths.iter().enumerate() {
        let (from, to) = (range.start.max(start), range.end.min(start + length));
        for slice in (from..to).step_by(SLICE_BYTES) {
            wanted.push((index as u64, slice - start..to.min(slice + SLICE_BYTES) - start));
        }
        start += length;
    }
    Body::from_stream(stream::iter(wanted.into_iter().map(move |(part, range)| {
        let bytes =
            rendition.with_window(|window| window.part(msn, part).map(|part| part.bytes.slice(range)));
        match &bytes {
            Some(bytes) => live.counters.add_sent(Class::Segment, bytes.len()),
            None => metrics::counter!("origin_slow_clients_total").increment(1),
        }
        bytes.ok_or(TooSlow)
    })))
}
