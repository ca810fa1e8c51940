//! What an operator can set about streams that are pulled from other origins.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use shoal_credentials::Secret;

use crate::streams::is_stream_name;

/// Streams that are pulled from other HLS origins and served with digests and a swarm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The streams, each a table that may also be written as `[[pull.streams]]`:
    /// `{ name = "news", url = "https://origin.example.org/news.m3u8", headers = ["Authorization: Bearer ..."], hosts = ["cdn.example.org"] }`.
    /// `headers` are sent to the URL's own host only. `hosts` are further hosts that its playlists and redirects may
    /// lead to, each `HOST` or `HOST:PORT`; nothing is ever fetched from others.
    pub streams: Vec<Source>,
    /// At most this many video renditions of a stream are pulled: the best, the smallest, and some between.
    /// Allowed: 1 to 32.
    pub renditions_max: usize,
    /// The largest playlist that is read, in bytes. Allowed: 1024 to 67108864.
    pub playlist_bytes_max: usize,
    /// The largest segment, part or initialization section that is read, in bytes. Allowed: 1024 to 67108864.
    pub piece_bytes_max: usize,
    /// How many redirects in a row are followed. Allowed: 0 to 20.
    pub redirects_max: usize,
    /// How long a connection may take, in milliseconds. Allowed: 100 to 60000.
    pub connect_timeout_ms: u64,
    /// How long an answer may take in all, in milliseconds; longer where the playlist's target duration says so.
    /// Allowed: 500 to 600000.
    pub request_timeout_ms: u64,
    /// The longest pause between two attempts, in milliseconds. It begins with 250 and doubles.
    /// Allowed: 250 to 600000.
    pub retry_max_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            streams: Vec::new(),
            renditions_max: 6,
            playlist_bytes_max: 4 << 20,
            piece_bytes_max: 32 << 20,
            redirects_max: 5,
            connect_timeout_ms: 5_000,
            request_timeout_ms: 15_000,
            retry_max_ms: 8_000,
        }
    }
}

/// One stream to be pulled.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// The stream's name here.
    pub name: String,
    /// The multivariant or media playlist.
    pub url: String,
    /// Headers for requests to the URL's own host, each `NAME: VALUE`.
    pub headers: Vec<Secret>,
    /// Further hosts that may be fetched from.
    pub hosts: Vec<String>,
}

// By hand: a URL may hold a password or a token.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .field("url", &Url::parse(&self.url).map(|url| shown(&url)).unwrap_or_default())
            .field("headers", &self.headers.len())
            .field("hosts", &self.hosts)
            .finish()
    }
}

/// What may be shown of a URL: no user, password, query or fragment.
pub(super) fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or(""), url.path())
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PullConfigError(String);

impl FromStr for Source {
    type Err = PullConfigError;

    /// Reads `NAME=URL`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, url) =
            text.split_once('=').ok_or_else(|| PullConfigError("has to be NAME=URL".to_owned()))?;
        let source = Self { name: name.to_owned(), url: url.to_owned(), ..Self::default() };
        source.validate()?;
        Ok(source)
    }
}

impl Source {
    /// The URL, if it is one of HTTP.
    pub(super) fn parsed_url(&self) -> Option<Url> {
        Url::parse(&self.url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
    }

    pub(super) fn parsed_headers(&self) -> Option<Vec<(HeaderName, HeaderValue)>> {
        let parse = |header: &Secret| {
            let (name, value) = header.expose().split_once(':')?;
            let mut value = HeaderValue::try_from(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name.trim()).ok()?, value))
        };
        self.headers.iter().map(parse).collect()
    }

    fn validate(&self) -> Result<(), PullConfigError> {
        let fail = |text: String| Err(PullConfigError(text));
        let name = &self.name;
        if !is_stream_name(name) {
            return fail(format!("{name:?} is no stream's name: 1 to 64 letters, digits, '-' or '_'"));
        }
        // The values are not shown: they may hold secrets.
        if self.parsed_url().is_none() {
            return fail(format!("the URL of {name} has to begin with http:// or https:// and name a host"));
        }
        if self.parsed_headers().is_none() {
            return fail(format!("a header of {name} is not NAME: VALUE"));
        }
        for host in &self.hosts {
            // As it would stand in a URL.
            let is_host = Url::parse(&format!("http://{host}/"))
                .is_ok_and(|url| url.path() == "/" && url.username().is_empty() && url.query().is_none());
            if !is_host {
                return fail(format!("{host:?} of {name} is no host: allowed is HOST or HOST:PORT"));
            }
        }
        Ok(())
    }
}

impl Config {
    /// Checks every key's range and every stream.
    ///
    /// # Errors
    /// What is wrong first, in words without secrets.
    pub fn validate(&self) -> Result<(), PullConfigError> {
        let piece_max = u64::from(shoal_digest::PIECE_BYTES_MAX);
        let checks = [
            ("renditions_max", self.renditions_max as u64, 1, 32),
            ("playlist_bytes_max", self.playlist_bytes_max as u64, 1 << 10, 64 << 20),
            ("piece_bytes_max", self.piece_bytes_max as u64, 1 << 10, piece_max),
            ("redirects_max", self.redirects_max as u64, 0, 20),
            ("connect_timeout_ms", self.connect_timeout_ms, 100, 60_000),
            ("request_timeout_ms", self.request_timeout_ms, 500, 600_000),
            ("retry_max_ms", self.retry_max_ms, 250, 600_000),
        ];
        for (key, value, min, max) in checks {
            if !(min..=max).contains(&value) {
                return Err(PullConfigError(format!("pull.{key} = {value}: allowed is {min} to {max}")));
            }
        }
        for (index, source) in self.streams.iter().enumerate() {
            source
                .validate()
                .map_err(|PullConfigError(text)| PullConfigError(format!("pull.streams: {text}")))?;
            if self.streams[..index].iter().any(|other| other.name == source.name) {
                return Err(PullConfigError(format!("pull.streams: {} stands there twice", source.name)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(source: Source) -> String {
        Config { streams: vec![source], ..Config::default() }.validate().unwrap_err().to_string()
    }

    #[test]
    fn default_configuration_is_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn flag_is_name_and_url() {
        let source: Source = "news=https://a.example/x.m3u8?a=b".parse().unwrap();
        assert_eq!((source.name.as_str(), source.url.as_str()), ("news", "https://a.example/x.m3u8?a=b"));
        for bad in
            ["news", "=http://a/", "a b=http://a/", "news=ftp://a/", "news=file:///etc/passwd", "news=/x"]
        {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        let source = |url: &str, header: &str, host: &str| Source {
            name: "news".to_owned(),
            url: url.to_owned(),
            headers: vec![header.into()],
            hosts: vec![host.to_owned()],
        };
        for (source, words) in [
            (source("ftp://user:hidden@a/", "A: b", "h"), "URL of news"),
            (source("http://a/", "hidden", "h"), "header of news"),
            (source("http://a/", "A: hidden", "http://h/x"), "no host"),
        ] {
            let text = error(source.clone());
            assert!(text.contains(words) && !text.contains("hidden"), "{text}");
            assert!(!format!("{source:?}").contains("hidden"), "{source:?}");
        }
        let twice = Config {
            streams: vec!["a=http://a/".parse().unwrap(), "a=http://b/".parse().unwrap()],
            ..Config::default()
        };
        assert!(twice.validate().unwrap_err().to_string().contains("twice"));
    }
}
