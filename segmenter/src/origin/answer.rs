//! Answers with entity tags, ranges and counted bodies, for live streams and recordings alike.

use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};

use super::headers::{Cache, Wanted, accepts_coding, error, has_copy, wanted};
use crate::rendered::Text;
use crate::storage::StorageError;

/// Bytes are handed to a connection in slices of this size, so that "sent" is what was really taken. Most parts are one
/// slice: 64 KiB cost an eighth of the throughput in system calls.
pub(super) const SLICE_BYTES: usize = 256 * 1024;

/// A text, compressed for who takes that. `body` makes the body, unless the client has a copy.
pub(super) fn text(
    text: &Text,
    content_type: &'static str,
    headers: &HeaderMap,
    cache: Cache,
    body: impl FnOnce(Bytes) -> Body,
) -> Response {
    let is_gzip = accepts_coding(headers, "gzip");
    let (bytes, tag) = if is_gzip {
        (text.gzip.clone(), format!("\"{}-gzip\"", text.tag))
    } else {
        (text.plain.clone(), format!("\"{}\"", text.tag))
    };
    let is_known = has_copy(headers, &tag);
    let length = bytes.len();
    let mut response = Response::new(if is_known { Body::empty() } else { body(bytes) });
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let fields = response.headers_mut();
    fields.insert(header::CACHE_CONTROL, cache.value());
    fields.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    fields.insert(header::ETAG, HeaderValue::try_from(tag).expect("hex digits are allowed in header values"));
    if !is_known {
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        fields.insert(header::CONTENT_LENGTH, length.into());
        if is_gzip {
            fields.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }
    response
}

/// What a file of bytes is answered with.
#[derive(Clone, Copy, Debug)]
pub(super) struct File<'a> {
    pub(super) length: usize,
    /// Quoted.
    pub(super) tag: &'a str,
    pub(super) content_type: &'static str,
    pub(super) cache: Cache,
}

/// A file, the wanted range of it, or word that the client has it. `body` makes the body.
pub(super) fn file(file: File<'_>, headers: &HeaderMap, body: impl FnOnce(Range<usize>) -> Body) -> Response {
    let File { length, tag, content_type, cache } = file;
    let mut response = Response::new(Body::empty());
    let fields = response.headers_mut();
    fields.insert(header::ETAG, field(tag.to_owned()));
    fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    fields.insert(header::CACHE_CONTROL, cache.value());
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
    *response.body_mut() = body(range);
    response
}

fn field(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("names and digits are allowed in header values")
}

/// A body of `bytes` that tells `count` what the connection takes.
pub(super) fn counted(bytes: Bytes, count: impl Fn(usize) + Send + 'static) -> Body {
    Body::from_stream(stream::iter(slices(bytes).map(move |slice| {
        count(slice.len());
        Ok::<_, std::convert::Infallible>(slice)
    })))
}

/// The same for bytes that are being read.
pub(super) fn counted_stream(
    chunks: BoxStream<'static, Result<Bytes, StorageError>>,
    count: impl Fn(usize) + Send + Sync + 'static,
) -> Body {
    let slices = chunks.flat_map(|chunk| match chunk {
        Ok(chunk) => stream::iter(slices(chunk).map(Ok).collect::<Vec<_>>()),
        Err(cause) => stream::iter(vec![Err(cause)]),
    });
    Body::from_stream(slices.map(move |slice| {
        match &slice {
            Ok(slice) => count(slice.len()),
            // The client sees that the body is cut off.
            Err(cause) => tracing::warn!(%cause, "stored media could not be read"),
        }
        slice
    }))
}

fn slices(bytes: Bytes) -> impl Iterator<Item = Bytes> {
    (0..bytes.len())
        .step_by(SLICE_BYTES)
        .map(move |start| bytes.slice(start..bytes.len().min(start + SLICE_BYTES)))
}
