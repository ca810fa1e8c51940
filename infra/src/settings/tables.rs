//! The tables of the configuration file that belong to no service. The comments here are the operator's manual.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::within;
use crate::Error;

/// The HTTP port: pages, WHIP, playlists, media, tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where to listen, address and port. Port 0 lets the system choose one, which is then printed.
    pub listen: String,
    /// The address by which browsers reach this server, for the links that are printed, such as
    /// `https://live.example.org`. Empty: derived from `listen`.
    pub public_url: String,
    /// Refuse connections beyond this many. Each viewer keeps one or two for playlists and media and one for the
    /// tracker.
    pub connections_max: usize,
    /// Close a connection whose request header has not arrived completely after this time, and one that is idle
    /// for as long.
    pub header_timeout_ms: u64,
    /// The largest request header in bytes.
    pub header_bytes_max: usize,
    /// Close a connection whose other side has not taken a byte for this long.
    pub send_timeout_ms: u64,
    /// When stopping, wait at most this long for requests under way.
    pub shutdown_grace_ms: u64,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:8080".to_owned(),
            public_url: String::new(),
            connections_max: 20_000,
            header_timeout_ms: 30_000,
            header_bytes_max: 32_768,
            send_timeout_ms: 30_000,
            shutdown_grace_ms: 3_000,
        }
    }
}

impl Http {
    /// The address to listen on.
    ///
    /// # Errors
    /// [`Error::Settings`] if it is none.
    pub fn address(&self) -> Result<SocketAddr, Error> {
        let value = &self.listen;
        value.parse().map_err(|_| {
            Error::Settings(format!(
                "http.listen = {value:?}: has to be an address and a port, such as 0.0.0.0:8080 or [::]:8080"
            ))
        })
    }

    pub(super) fn validate(&self) -> Result<(), Error> {
        self.address()?;
        let value = &self.public_url;
        if !(value.is_empty() || value.starts_with("http://") || value.starts_with("https://")) {
            return Err(Error::Settings(format!(
                "http.public_url = {value:?}: has to begin with http:// or https://"
            )));
        }
        within("http.connections_max", self.connections_max, 10..=10_000_000)?;
        within("http.header_timeout_ms", self.header_timeout_ms, 100..=600_000)?;
        // hyper refuses to work with less.
        within("http.header_bytes_max", self.header_bytes_max, 8_192..=1_048_576)?;
        within("http.send_timeout_ms", self.send_timeout_ms, 1_000..=600_000)?;
        within("http.shutdown_grace_ms", self.shutdown_grace_ms, 0..=600_000)
    }
}

/// The origin's identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// A file with the key that signs what viewers verify, 64 hexadecimal digits; made if it is not there. Empty: a
    /// new key at each start, which is all that a single server needs.
    pub signing_key_file: String,
}

/// Logs, on standard error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`; or a filter such as `info,shoal_tracker=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: "text".to_owned() }
    }
}

impl Log {
    pub(super) fn validate(&self) -> Result<(), Error> {
        let value = &self.format;
        if value != "text" && value != "json" {
            return Err(Error::Settings(format!("log.format = {value:?}: allowed is text or json")));
        }
        crate::telemetry::filter(&self.level).map(|_| ())
    }
}
