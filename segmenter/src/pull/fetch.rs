//! HTTP towards an upstream: what may be asked of whom, and how much is read of the answer.
//!
//! Redirects are followed by hand, because each one is a new decision: whether the host may be asked at all, and
//! whether it gets the operator's headers.

use std::io::Read as _;
use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use futures::TryFutureExt as _;
use reqwest::header::{self, HeaderMap};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::timeout;

use super::config::{Config, Source, shown};
use crate::with_causes;

/// Why something could not be fetched. The texts are shown to operators: no secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FetchError {
    /// No whole answer came.
    #[error("{0}")]
    Network(String),
    /// It is not there, or not for us.
    #[error("status {0}")]
    Status(u16),
    /// More than may be read.
    #[error("larger than {0} bytes")]
    TooLarge(usize),
    /// Nothing that trying again can change.
    #[error("{0}")]
    Refused(String),
}

impl FetchError {
    /// Whether the upstream said that there is no such thing, rather than that it cannot give it now.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Status(404 | 410) | Self::TooLarge(_) | Self::Refused(_))
    }
}

/// An answer, and the URL that it came from in the end.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) url: Url,
    pub(super) body: Bytes,
}

/// Sends requests for one stream.
#[derive(Clone)]
pub(crate) struct Fetcher {
    client: Client,
    /// Whose headers they are.
    named: Url,
    headers: HeaderMap,
    hosts: Vec<String>,
    redirects_max: usize,
}

// By hand: URL and headers hold secrets.
impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("named", &self.shown()).finish_non_exhaustive()
    }
}

impl Fetcher {
    pub(super) fn new(source: &Source, config: &Config) -> Result<Self, FetchError> {
        // Somebody else of this process may have chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let refused = |text: &str| FetchError::Refused(text.to_owned());
        let named = source.parsed_url().ok_or_else(|| refused("the URL is not one of HTTP"))?;
        let headers = source.parsed_headers().ok_or_else(|| refused("a header is not NAME: VALUE"))?;
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
            .referer(false)
            .build()
            .map_err(|error| FetchError::Refused(with_causes(&error)))?;
        Ok(Self {
            client,
            named,
            headers: headers.into_iter().collect(),
            hosts: source.hosts.clone(),
            redirects_max: config.redirects_max,
        })
    }

    /// Fetches `url`, or `range` of it.
    pub(super) async fn get(
        &self,
        url: &Url,
        range: Option<Range<u64>>,
        bytes_max: usize,
        patience: Duration,
    ) -> Result<Fetched, FetchError> {
        let work = async {
            let (url, response) = self.follow(url.clone(), range.as_ref()).await?;
            let body = body(response, range, bytes_max).await?;
            Ok::<_, FetchError>(Fetched { url, body })
        };
        timeout(patience, work)
            .map_err(|_| FetchError::Network(format!("no answer within {} ms", patience.as_millis())))
            .await?
    }

    /// Asks, and goes where redirects lead.
    async fn follow(&self, mut url: Url, range: Option<&Range<u64>>) -> Result<(Url, Response), FetchError> {
        for _ in 0..=self.redirects_max {
            self.check(&url)?;
            let mut request = self.client.get(url.clone());
            if is_same_origin(&url, &self.named) {
                request = request.headers(self.headers.clone());
            }
            request = match range {
                Some(range) => request
                    .header(header::RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
                None => request.header(header::ACCEPT_ENCODING, "gzip"),
            };
            let response = request
                .send()
                .await
                .map_err(|error| FetchError::Network(with_causes(&error.without_url())))?;
            let status = response.status();
            if status.is_success() {
                return Ok((url, response));
            }
            let is_redirect = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let (true, Some(location)) = (is_redirect, location) else {
                return Err(FetchError::Status(status.as_u16()));
            };
            let mut next = url
                .join(location)
                .map_err(|_| FetchError::Network("redirected to something that is no URL".to_owned()))?;
            // A password of one host is not another's.
            if !is_same_origin(&next, &url) {
                let _ = next.set_username("");
                let _ = next.set_password(None);
            }
            url = next;
        }
        Err(FetchError::Network(format!("redirected more than {} times", self.redirects_max)))
    }

    /// Whether `url` may be asked: the operator named its host.
    pub(super) fn check(&self, url: &Url) -> Result<(), FetchError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(FetchError::Refused(format!("it leads to {}:, which is not HTTP", url.scheme())));
        }
        let is_named = |host: &String| {
            let named = Url::parse(&format!("{}://{host}/", url.scheme()));
            named.is_ok_and(|named| is_same_host(&named, url))
        };
        // From http to https on the same host is a step that the operator can be taken to want.
        let is_own = is_same_host(&self.named, url);
        if is_own || self.hosts.iter().any(is_named) {
            return Ok(());
        }
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        Err(FetchError::Refused(format!(
            "it leads to another host: add \"{}{port}\" to `hosts` of the stream in [pull] to allow that",
            url.host_str().unwrap_or("")
        )))
    }

    /// The URL that the operator named.
    pub(super) fn named(&self) -> &Url {
        &self.named
    }

    /// What may be shown of it.
    pub(super) fn shown(&self) -> String {
        shown(&self.named)
    }
}

fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme() && is_same_host(one, other)
}

/// The same host and port, where the default ports of both schemes are one.
fn is_same_host(one: &Url, other: &Url) -> bool {
    one.host() == other.host() && one.port() == other.port()
}

/// Reads the answer as far as it is wanted and allowed.
async fn body(
    mut response: Response,
    range: Option<Range<u64>>,
    bytes_max: usize,
) -> Result<Bytes, FetchError> {
    let network = |error: reqwest::Error| FetchError::Network(with_causes(&error.without_url()));
    let is_partial = response.status() == StatusCode::PARTIAL_CONTENT;
    let is_gzip = response.headers().get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
    // A server that knows no ranges sends everything: what is before the range is thrown away as it comes.
    let mut skip = match &range {
        Some(range) if !is_partial => range.start,
        _ => 0,
    };
    let wanted = range.as_ref().map(|range| range.end.saturating_sub(range.start));
    if let Some(wanted) = wanted
        && wanted > bytes_max as u64
    {
        return Err(FetchError::TooLarge(bytes_max));
    }
    if let (Some(range), true) = (&range, is_partial)
        && !starts_at(&response, range.start)
    {
        return Err(FetchError::Network("another range came than was asked for".to_owned()));
    }
    let mut body = BytesMut::new();
    while let Some(mut chunk) = response.chunk().await.map_err(network)? {
        let skipped = skip.min(chunk.len() as u64);
        skip -= skipped;
        chunk = chunk.slice(usize::try_from(skipped).unwrap_or(chunk.len())..);
        if let Some(wanted) = wanted {
            let missing = usize::try_from(wanted).unwrap_or(usize::MAX) - body.len();
            chunk.truncate(missing);
        }
        if body.len() + chunk.len() > bytes_max {
            return Err(FetchError::TooLarge(bytes_max));
        }
        body.extend_from_slice(&chunk);
        if wanted == Some(body.len() as u64) {
            break;
        }
    }
    if wanted.is_some_and(|wanted| wanted != body.len() as u64) {
        return Err(FetchError::Network("less came than was asked for".to_owned()));
    }
    if !is_gzip || range.is_some() {
        return Ok(body.freeze());
    }
    let mut plain = Vec::new();
    // One more than allowed, to see that there is more.
    let mut decoder = MultiGzDecoder::new(&body[..]).take(bytes_max as u64 + 1);
    decoder.read_to_end(&mut plain).map_err(|_| FetchError::Network("the gzip is broken".to_owned()))?;
    if plain.len() > bytes_max {
        return Err(FetchError::TooLarge(bytes_max));
    }
    Ok(plain.into())
}

/// Whether a partial answer begins where it should.
fn starts_at(response: &Response, start: u64) -> bool {
    let value = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = value.and_then(|value| value.strip_prefix("bytes ")?.split_once('-')?.0.parse::<u64>().ok());
    first == Some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetcher(url: &str, hosts: &[&str]) -> Fetcher {
        let source = Source {
            name: "s".to_owned(),
            url: url.to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            ..Source::default()
        };
        Fetcher::new(&source, &Config::default()).unwrap()
    }

    #[test]
    fn only_named_hosts_are_asked() {
        let fetcher = fetcher("http://a.example:81/x", &["cdn.example", "b.example:8080"]);
        for (url, is_allowed) in [
            ("http://a.example:81/y", true),
            ("https://a.example:81/y", true),
            ("http://a.example/y", false),
            ("http://a.example:22/y", false),
            ("http://cdn.example/y", true),
            ("https://cdn.example/y", true),
            ("http://cdn.example:8080/y", false),
            ("http://b.example:8080/y", true),
            ("http://evil.cdn.example/y", false),
            ("http://127.0.0.1/y", false),
            ("http://cdn.example@127.0.0.1/y", false),
            ("file:///etc/passwd", false),
            ("ftp://a.example:81/y", false),
        ] {
            assert_eq!(fetcher.check(&url.parse().unwrap()).is_ok(), is_allowed, "{url}");
        }
    }

    #[test]
    fn refusal_names_what_to_allow() {
        let error =
            fetcher("http://a/x", &[]).check(&"http://b:7/z?token=hidden".parse().unwrap()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("\"b:7\"") && !text.contains("hidden"), "{text}");
    }

    #[test]
    fn headers_are_for_the_same_scheme_host_and_port() {
        let url = |text: &str| text.parse::<Url>().unwrap();
        let named = url("https://a.example/x");
        assert!(is_same_origin(&named, &url("https://a.example/y")));
        for other in ["http://a.example/x", "https://a.example:444/x", "https://b.example/x"] {
            assert!(!is_same_origin(&named, &url(other)), "{other}");
        }
    }
}
