//! Media: initialization sections, segments, parts and their digest records.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use tokio::time::Instant;

use super::answer::{self, SLICE_BYTES};
use super::headers::{Cache, error};
use super::playlists::{find, wait_until};
use super::recordings::{Found, stored, unavailable};
use super::request::{MediaFile, MediaKind};
use crate::counters::Class;
use crate::live::{Live, Rendition};
use crate::recording::join_records;
use crate::streams::Streams;
use crate::window::Progress;

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
    let tag = format!("\"{epoch}-{name}\"");
    match content(&rendition, file) {
        None => not_found(),
        Some(Content::Stored) => {
            let Some(recordings) = streams.recording_registry() else { return not_found() };
            match stored(recordings, &format!("{stream}/{epoch}"), &rendition.name, file).await {
                Ok(Some(Found::Bytes(bytes))) => {
                    respond(&live, &rendition, class, Content::Bytes(bytes), &headers, &tag)
                }
                Ok(Some(Found::Stored(object, place))) => {
                    let is_video = rendition.description().is_video();
                    let length = usize::try_from(place.end - place.start).unwrap_or(usize::MAX);
                    answer::file(immutable(&tag, length, class, is_video), &headers, |range| {
                        let range = place.start + range.start as u64..place.start + range.end as u64;
                        let chunks = recordings.storage().read(&object, range);
                        answer::counted_stream(chunks, move |sent| live.counters.add_sent(class, sent))
                    })
                }
                Ok(None) => not_found(),
                Err(cause) => unavailable(&cause),
            }
        }
        Some(content) => respond(&live, &rendition, class, content, &headers, &tag),
    }
}

/// How media is answered: for ever the same.
pub(super) fn immutable(tag: &str, length: usize, class: Class, is_video: bool) -> answer::File<'_> {
    let content_type = match (class, is_video) {
        (Class::Digest, _) => "application/octet-stream",
        (_, true) => "video/mp4",
        (_, false) => "audio/mp4",
    };
    answer::File { length, tag, content_type, cache: Cache::Immutable }
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
    /// Of a segment that is not in memory any more.
    Stored,
}

fn content(rendition: &Rendition, file: MediaFile) -> Option<Content> {
    rendition.with_window(|window| {
        if let MediaKind::Segment(msn) | MediaKind::Part(msn, _) = file.kind
            && let Some(length) = window.segment(msn).and_then(|segment| segment.stored_bytes())
        {
            return (length > 0).then_some(Content::Stored);
        }
        let content = match (file.kind, file.is_digest) {
            (MediaKind::Init(number), _) => Content::Bytes(window.init(number)?.clone()),
            (MediaKind::Part(msn, part), false) => Content::Bytes(window.part(msn, part)?.bytes.clone()),
            (MediaKind::Part(msn, part), true) => Content::Bytes(window.part(msn, part)?.record.clone()),
            (MediaKind::Segment(msn), false) => Content::Segment(
                msn,
                window.segment(msn)?.parts.iter().map(|part| part.bytes.len()).collect(),
            ),
            (MediaKind::Segment(msn), true) => {
                Content::Bytes(join_records(window.segment(msn)?.parts.iter().map(|part| &part.record)))
            }
        };
        // A gap has no bytes.
        let is_empty = match &content {
            Content::Bytes(bytes) => bytes.is_empty(),
            Content::Segment(_, lengths) => lengths.iter().sum::<usize>() == 0,
            Content::Stored => false,
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
        Content::Stored => 0,
    };
    let file = immutable(tag, length, class, rendition.description().is_video());
    let live = live.clone();
    answer::file(file, headers, |range| match content {
        Content::Bytes(bytes) => {
            answer::counted(bytes.slice(range), move |sent| live.counters.add_sent(class, sent))
        }
        Content::Segment(msn, lengths) => segment_body(live, rendition.clone(), msn, &lengths, range),
        Content::Stored => Body::empty(),
    })
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
