//! HTTP for the lint: playlists with what their headers said, media up to a limit.

use std::io::Read as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use reqwest::{Client, Url};
use shoal_playlist::lint::Answer;
use shoal_segmenter::with_causes;

use crate::Error;

/// A server that says nothing for this long is not waited for: more than the three target durations of 10 s for which
/// a blocked request may be held.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// The largest playlist that is read, uncompressed.
const PLAYLIST_BYTES_MAX: usize = 16 << 20;
/// The largest segment that is read.
const MEDIA_BYTES_MAX: usize = 256 << 20;

/// Sends requests.
#[derive(Clone, Debug)]
pub(super) struct Fetcher {
    client: Client,
}

/// A playlist as it was sent, uncompressed.
#[derive(Clone, Debug)]
pub(super) struct Playlist {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) content_encoding: String,
    pub(super) text: String,
}

impl Playlist {
    pub(super) fn answer(&self) -> Answer<'_> {
        Answer {
            status: self.status,
            content_type: &self.content_type,
            content_encoding: &self.content_encoding,
            text: &self.text,
        }
    }
}

impl Fetcher {
    pub(super) fn new(headers: &[String], is_insecure: bool) -> Result<Self, Error> {
        // Somebody else of this process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fail = |reason: String| Error::Service { service: "lint", reason };
        let mut sent = HeaderMap::new();
        for text in headers {
            let refused = || fail(format!("--header {text:?}: has to be NAME: VALUE"));
            let (name, value) = text.split_once(':').ok_or_else(refused)?;
            let name = HeaderName::try_from(name.trim()).map_err(|_| refused())?;
            sent.append(name, HeaderValue::try_from(value.trim()).map_err(|_| refused())?);
        }
        let client = Client::builder()
            .default_headers(sent)
            .danger_accept_invalid_certs(is_insecure)
            .read_timeout(SILENCE_MAX)
            .user_agent(concat!("shoal-lint/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| fail(with_causes(&error)))?;
        Ok(Self { client })
    }

    /// Fetches a playlist whatever its status; an error says in words why none came.
    pub(super) async fn playlist(&self, url: &Url) -> Result<Playlist, String> {
        let request = self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "gzip");
        let response = request.send().await.map_err(|error| with_causes(&error.without_url()))?;
        let status = response.status().as_u16();
        let field = |name| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (content_type, content_encoding) = (field(header::CONTENT_TYPE), field(header::CONTENT_ENCODING));
        let body = body(response, PLAYLIST_BYTES_MAX).await?;
        let bytes = if content_encoding == "gzip" {
            let mut plain = Vec::new();
            MultiGzDecoder::new(&body[..])
                .take(PLAYLIST_BYTES_MAX as u64)
                .read_to_end(&mut plain)
                .map_err(|error| format!("the gzip is broken: {error}"))?;
            plain
        } else {
            body.to_vec()
        };
        // A byte that is no UTF-8 is a finding of the lines it stands in, not the end.
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Playlist { status, content_type, content_encoding, text })
    }

    /// Fetches media; an error is the HTTP status, 0 where no whole answer came.
    pub(super) async fn media(&self, url: Url) -> Result<Bytes, u16> {
        let response = self.client.get(url).send().await.map_err(|_| 0_u16)?;
        if !response.status().is_success() {
            return Err(response.status().as_u16());
        }
        body(response, MEDIA_BYTES_MAX).await.map_err(|_| 0)
    }
}

async fn body(mut response: reqwest::Response, bytes_max: usize) -> Result<Bytes, String> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| with_causes(&error.without_url()))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(format!("larger than {bytes_max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
