//! The native headless viewer: follows a stream as a player would, takes its pieces from other viewers over WebRTC
//! data channels, and counts.
//!
//! It is the second driver of the swarm core (`swarm`): the browser's is `web`. It decodes nothing; its playback is
//! a clock that consumes media and notices when there is none. It serves for load ([`Options`] with an uplink limit,
//! many in one process), for measurements, and as a helper that an operator leaves running near his viewers
//! ([`Mode::Seed`]).
//!
//! The files follow the data: `source` reads playlists, `tracker` is the socket to the tracker, `neighbor` one peer
//! connection, `identity` the certificate that it shows, `uplink` the rate that all connections share, `origin` fetches over HTTP,
//! `tls` says which servers are believed, `records` remembers what was verified, `store` holds bytes, `playback` is the clock,
//! `viewer` drives the core with all of them.

mod identity;
mod neighbor;
mod origin;
mod playback;
mod records;
mod source;
mod store;
mod tls;
mod tracker;
mod uplink;
mod viewer;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use identity::{Identity, IdentityError};
pub use records::Records;
pub use source::SourceError;
pub use viewer::{Snapshot, run};

/// What a viewer is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Follows the playlists and plays at the live edge, like a browser.
    #[default]
    Watch,
    /// Plays nothing: takes each piece of all renditions once and gives it to others.
    Seed,
}

/// How a viewer behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The multivariant playlist's URL.
    pub url: String,
    /// What it is there for.
    pub mode: Mode,
    /// Whether peers are used at all. Without, it is a plain LL-HLS client.
    pub peers: bool,
    /// Whether it gives to others.
    pub shares: bool,
    /// Sends at most this much media, in kbit/s, and may use all of it; blocks wait for their turn. None: the uplink is
    /// measured, half of it used.
    pub uplink_kbps: Option<u32>,
    /// Holds at most this many bytes of media for others.
    pub store_bytes_max: u64,
    /// A viewer token, where the stream wants one.
    pub token: Option<Token>,
    /// Who it is to its neighbors, for a token that is bound to it. None: somebody else to each.
    pub identity: Option<Identity>,
    /// Records that were verified before; viewers of one process that share them verify and keep each of them once.
    pub records: Records,
    /// Accepts any TLS certificate, of the stream's origin and of the tracker: for self-signed ones on trial systems.
    pub insecure: bool,
    /// Seeds the core's random numbers; viewers of one process take different ones.
    pub seed: u64,
    /// Gives up on a connection to a peer after this time.
    pub connect_timeout: Duration,
}

impl Options {
    /// The defaults for a stream's multivariant playlist.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            mode: Mode::Watch,
            peers: true,
            shares: true,
            uplink_kbps: None,
            store_bytes_max: 64 * 1024 * 1024,
            token: None,
            identity: None,
            records: Records::default(),
            insecure: false,
            seed: 1,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// Where the viewer token comes from.
#[derive(Clone)]
pub enum Token {
    /// One for the whole time: when it ends, the viewer goes on without a tracker.
    Fixed(String),
    /// From a file that is read for each connection to the tracker, so that whoever leaves a viewer running can renew it there.
    File(PathBuf),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(_) => f.write_str("Fixed(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Why a viewer could not start or had to stop. What happens while it runs (a lost peer, a slow origin) is counted,
/// not reported here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The stream can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The HTTP client can't be made.
    #[error("the HTTP client can't be made: {0}")]
    Http(#[source] reqwest::Error),
    /// There is no certificate on this machine by which a server could be believed.
    #[error(
        "no server can be believed over https: {0}; install your system's CA certificates or name a file of them in SSL_CERT_FILE"
    )]
    Tls(#[source] rustls::Error),
}
