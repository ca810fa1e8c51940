//! Why publishing failed, in words that tell a person what to do next.

use std::time::Duration;

/// Why a publisher could not start or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option makes no sense; the text names option and allowed values.
    #[error("{0}")]
    Option(String),
    /// The file can't be opened or holds nothing that can be published.
    #[error("can't publish {path}: {reason}")]
    Source {
        /// The file as it was given.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// FFmpeg refused something.
    #[error("{step}: {source}")]
    Media {
        /// What was being done.
        step: &'static str,
        /// FFmpeg's error.
        source: ffmpeg_next::Error,
    },
    /// No HTTP answer from the WHIP endpoint.
    #[error("no answer from {url}: {reason}; is the server running, and is the port right?")]
    Unreachable {
        /// The WHIP URL.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// 409: somebody else is live under this name.
    #[error("another publisher is live under this name (409); choose another name or stop the other one")]
    NameTaken,
    /// 401 or 403: no token, or one that the server does not accept.
    #[error("the server refused the token ({status}); pass the stream's key with --token")]
    Unauthorized {
        /// 401 or 403.
        status: u16,
    },
    /// 406 or 415: the server supports none of the codecs that were offered.
    #[error("the server takes none of the offered codecs ({status}): {body}")]
    CodecsRefused {
        /// 406 or 415.
        status: u16,
        /// What the server says.
        body: String,
    },
    /// 503: the server is full.
    #[error("the server is overloaded (503); try again in {} s", .retry_after.as_secs())]
    Overloaded {
        /// When to try again; 1 s when the server did not say.
        retry_after: Duration,
    },
    /// 404 or 405: the URL is not a WHIP endpoint.
    #[error("{url} is no WHIP endpoint ({status}); with Shoal it looks like http://HOST:8080/whip/NAME")]
    NotWhip {
        /// The URL.
        url: String,
        /// 404 or 405.
        status: u16,
    },
    /// Any other status.
    #[error("the server answered {status}: {body}")]
    Refused {
        /// The status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// 201, but not as RFC 9725 wants it.
    #[error("the server's answer is unusable: {0}")]
    BadAnswer(String),
    /// HTTP works, the media path does not.
    #[error("UDP seems blocked: no media path to the server within {} s; check firewalls for its UDP port, and \
             that the server advertises an address that can be reached from here", .after.as_secs())]
    UdpBlocked {
        /// How long it was tried.
        after: Duration,
    },
    /// ICE works, the encryption handshake does not.
    #[error("the encryption handshake (DTLS) did not finish within {} s", .after.as_secs())]
    HandshakeFailed {
        /// How long it was tried.
        after: Duration,
    },
    /// The media path was up and then went away.
    #[error("the connection to the server was lost")]
    ConnectionLost,
    /// The server closed the session.
    #[error("the server ended the session")]
    ClosedByServer,
    /// The WebRTC engine refused something.
    #[error("{step}: {source}")]
    WebRtc {
        /// What was being done.
        step: &'static str,
        /// The engine's error.
        source: rtc::shared::error::Error,
    },
    /// A local socket failed.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The cause.
        source: std::io::Error,
    },
}

impl Error {
    /// How long to wait before trying again makes sense: nothing when it does not. `was_live` tells whether this
    /// publisher held the stream before: then the server may only need to notice that it is gone.
    pub(crate) fn retry_after(&self, was_live: bool) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after } => Some(*retry_after),
            Self::NameTaken if was_live => Some(Duration::ZERO),
            Self::Refused { status, .. } if *status >= 500 => Some(Duration::ZERO),
            Self::Unreachable { .. }
            | Self::UdpBlocked { .. }
            | Self::HandshakeFailed { .. }
            | Self::ConnectionLost
            | Self::ClosedByServer => Some(Duration::ZERO),
            _ => None,
        }
    }
}

/// Attaches what was being done to a foreign error.
pub(crate) trait Context<T> {
    fn context(self, step: &'static str) -> Result<T, Error>;
}

impl<T> Context<T> for Result<T, ffmpeg_next::Error> {
    fn context(self, step: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Media { step, source })
    }
}

impl<T> Context<T> for Result<T, rtc::shared::error::Error> {
    fn context(self, step: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::WebRtc { step, source })
    }
}

impl<T> Context<T> for Result<T, std::io::Error> {
    fn context(self, step: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Io { step, source })
    }
}
