//! Fetches from the origin over HTTP: byte ranges streamed block by block, whole pieces, records.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reqwest::{Client, StatusCode, Url, header};
use shoal_digest::{PIECE_BYTES_MAX, PieceId, block_bytes};
use shoal_swarm::FetchId;
use tokio::sync::mpsc;

/// A fetch that brings nothing for this long has failed; the core then decides anew.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// The longest `.digest` answer that is read: the records of the largest segment.
const RECORDS_BYTES_MAX: usize = 1024 * 1024;
/// Before each record of a segment.
const LENGTH_BYTES: usize = 4;

/// What a fetch brings.
#[derive(Debug)]
pub(crate) enum OriginEvent {
    /// One block of a [`fetch`].
    Block { fetch: FetchId, block: u16, bytes: Bytes },
    /// A [`fetch`] has brought everything.
    Finished { fetch: FetchId },
    /// A [`fetch`] ended early; status 0 where no HTTP answer came.
    Failed { fetch: FetchId, status: u16 },
    /// The answer to [`load`]; none where it failed.
    Loaded { piece: PieceId, bytes: Option<Bytes>, took: Duration },
    /// The answer to [`record`]; none where it failed.
    Record { piece: PieceId, bytes: Option<Bytes> },
}

/// Which bytes of a piece to fetch; begins at a block's first byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) is_whole: bool,
    pub(crate) is_retry: bool,
    pub(crate) piece_length: u32,
}

/// Fetches a byte range and reports it block by block as it arrives.
pub(crate) async fn fetch(
    client: Client,
    id: FetchId,
    url: Url,
    range: Range,
    events: mpsc::Sender<OriginEvent>,
) {
    let end = match stream_blocks(&client, id, url, range, &events).await {
        Ok(()) => OriginEvent::Finished { fetch: id },
        Err(status) => OriginEvent::Failed { fetch: id, status },
    };
    let _ = events.send(end).await;
}

async fn stream_blocks(
    client: &Client,
    id: FetchId,
    url: Url,
    range: Range,
    events: &mpsc::Sender<OriginEvent>,
) -> Result<(), u16> {
    let mut request = client.get(url);
    let last = range.offset + range.length.saturating_sub(1);
    if !range.is_whole {
        request = request.header(header::RANGE, format!("bytes={}-{last}", range.offset));
    }
    if range.is_retry {
        request = request.header(header::CACHE_CONTROL, "no-cache");
    }
    let mut response = within(request.send()).await?;
    // A server that ignores ranges sends everything: what comes before and after is not wanted.
    let mut skip = match response.status() {
        StatusCode::PARTIAL_CONTENT => 0,
        StatusCode::OK => range.offset as usize,
        status => return Err(status.as_u16()),
    };
    let mut left = range.length as usize;
    let block_bytes = block_bytes(range.piece_length);
    let mut block = range.offset / block_bytes;
    let mut buffer = BytesMut::new();
    while left > 0 {
        let Some(mut chunk) = within(response.chunk()).await? else { return Err(0) };
        let skipped = skip.min(chunk.len());
        skip -= skipped;
        chunk = chunk.slice(skipped..);
        buffer.extend_from_slice(&chunk);
        loop {
            let wanted = left.min(block_bytes as usize);
            if wanted == 0 || buffer.len() < wanted {
                break;
            }
            let bytes = buffer.split_to(wanted).freeze();
            left -= wanted;
            let number = u16::try_from(block).map_err(|_| 0_u16)?;
            block += 1;
            let event = OriginEvent::Block { fetch: id, block: number, bytes };
            events.send(event).await.map_err(|_| 0_u16)?;
        }
    }
    Ok(())
}

/// Loads a whole piece, as a player without a swarm does.
pub(crate) async fn load(client: Client, piece: PieceId, url: Url, events: mpsc::Sender<OriginEvent>) {
    let start = Instant::now();
    let bytes = get(&client, url, PIECE_BYTES_MAX as usize).await;
    let _ = events.send(OriginEvent::Loaded { piece, bytes, took: start.elapsed() }).await;
}

/// Gets the signed record beside a piece.
pub(crate) async fn record(client: Client, piece: PieceId, url: Url, events: mpsc::Sender<OriginEvent>) {
    let mut digest = url.clone();
    digest.set_path(&format!("{}.digest", url.path()));
    let bytes = get(&client, digest, RECORDS_BYTES_MAX).await;
    let bytes = bytes.and_then(|bytes| first_record(&url, bytes));
    let _ = events.send(OriginEvent::Record { piece, bytes }).await;
}

/// The records of a segment stand behind their lengths, also where the segment is one piece.
fn first_record(media: &Url, records: Bytes) -> Option<Bytes> {
    let file = media.path_segments().and_then(|mut path| path.next_back()).unwrap_or("");
    if !file.starts_with("seg-") {
        return Some(records);
    }
    let length = u32::from_be_bytes(*records.first_chunk()?) as usize;
    (records.len() - LENGTH_BYTES >= length).then(|| records.slice(LENGTH_BYTES..LENGTH_BYTES + length))
}

async fn get(client: &Client, url: Url, bytes_max: usize) -> Option<Bytes> {
    let mut response = within(client.get(url).send()).await.ok()?;
    if response.status() != StatusCode::OK {
        return None;
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = within(response.chunk()).await.ok()? {
        body.extend_from_slice(&chunk);
        if body.len() > bytes_max {
            return None;
        }
    }
    Some(body.freeze())
}

async fn within<T>(work: impl Future<Output = reqwest::Result<T>>) -> Result<T, u16> {
    match tokio::time::timeout(SILENCE_MAX, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.status().map_or(0, |status| status.as_u16())),
        Err(_) => Err(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_is_one_piece_has_its_record_behind_a_length() {
        let of = |file: &str, records: &'static [u8]| {
            let url = Url::parse(&format!("http://live.example/live/s/v0/{file}?token=x")).expect("a URL");
            first_record(&url, Bytes::from_static(records))
        };
        assert_eq!(of("part-4-1.m4s", b"record").as_deref(), Some(&b"record"[..]));
        assert_eq!(of("seg-4.m4s", b"\0\0\0\x03one\0\0\0\x03two").as_deref(), Some(&b"one"[..]));
        assert_eq!(of("seg-4.m4s", b"\0\0\0\x04one"), None);
        assert_eq!(of("seg-4.m4s", b"\0"), None);
    }
}
