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
    /// Also listen here with TLS and HTTP/2, address and port, such as `0.0.0.0:8443`; the port above stays in clear,
    /// for a CDN's back side. Browsers give camera and microphone only to pages with TLS or from `localhost`, and
    /// Apple's players want HTTP/2 for low latency. Empty: port 8443 beside the port above if there is a certificate,
    /// and else no TLS.
    pub tls_listen: String,
    /// The certificate for TLS with those that vouch for it, as PEM. Read again when it changes, and on SIGHUP.
    pub tls_certificate_file: String,
    /// The certificate's private key, as PEM.
    pub tls_key_file: String,
    /// Make a certificate at each start, for trying out: browsers warn, and players refuse it unless told.
    pub tls_self_signed: bool,
    /// Refuse connections beyond this many. Each viewer keeps one or two for playlists and media and one for the
    /// tracker. Allowed: 10 to 10000000.
    pub connections_max: usize,
    /// Close a connection whose request header has not arrived completely after this time, and one that is idle
    /// for as long, in milliseconds. Allowed: 100 to 600000.
    pub header_timeout_ms: u64,
    /// The largest request header in bytes. Allowed: 8192 to 1048576.
    pub header_bytes_max: usize,
    /// Close a connection whose other side has not taken a byte for this long, in milliseconds. Allowed: 1000 to 600000.
    pub send_timeout_ms: u64,
    /// When stopping, wait at most this long for requests under way, in milliseconds. Closing recordings may take ten
    /// seconds more. Allowed: 0 to 600000.
    pub shutdown_grace_ms: u64,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:8080".to_owned(),
            public_url: String::new(),
            tls_listen: String::new(),
            tls_certificate_file: String::new(),
            tls_key_file: String::new(),
            tls_self_signed: false,
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
        address("http.listen", &self.listen)
    }

    /// The address to listen on with TLS; none without.
    ///
    /// # Errors
    /// [`Error::Settings`] if it is none, or there is not exactly one certificate for it.
    pub fn tls_address(&self) -> Result<Option<SocketAddr>, Error> {
        let files = [&self.tls_certificate_file, &self.tls_key_file].map(|file| !file.is_empty());
        let reason = match (files, self.tls_self_signed) {
            ([true, true], false) | ([false, false], true) => None,
            ([false, false], false) if self.tls_listen.is_empty() => return Ok(None),
            ([false, false], false) => Some(
                "http.tls_listen needs http.tls_certificate_file and http.tls_key_file, or http.tls_self_signed",
            ),
            ([true, false] | [false, true], _) => {
                Some("http.tls_certificate_file and http.tls_key_file need each other")
            }
            ([true, true], true) => {
                Some("http.tls_self_signed: there is a certificate in http.tls_certificate_file")
            }
        };
        if let Some(reason) = reason {
            return Err(Error::Settings(reason.to_owned()));
        }
        if !self.tls_listen.is_empty() {
            return address("http.tls_listen", &self.tls_listen).map(Some);
        }
        let mut beside = self.address()?;
        // Whoever lets the system choose the one lets it choose the other.
        if beside.port() != 0 {
            beside.set_port(TLS_PORT);
        }
        Ok(Some(beside))
    }

    pub(super) fn validate(&self) -> Result<(), Error> {
        self.address()?;
        self.tls_address()?;
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

/// The port for TLS beside 8080.
const TLS_PORT: u16 = 8443;

fn address(key: &str, value: &str) -> Result<SocketAddr, Error> {
    value.parse().map_err(|_| {
        Error::Settings(format!(
            "{key} = {value:?}: has to be an address and a port, such as 0.0.0.0:8080 or [::]:8080"
        ))
    })
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
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`; or a filter such as `info,shoal_tracker=debug`. A level without a
    /// name is that of Shoal's own crates; libraries tell of errors only, unless they are named (`info,hyper=debug`). At
    /// `info` and above Shoal's own lines hold no address and no key; those of libraries may.
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
