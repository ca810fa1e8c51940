//! What only the operator can put right.

use shoal_segmenter::with_causes;

/// Why the program cannot start or go on. Printed as one line; the exit code is 1.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is misspelt, of the wrong kind or out of range.
    #[error("settings: {0}")]
    Settings(String),
    /// A port cannot be opened: taken, or not allowed for this user.
    #[error("{purpose} port {address} (set by {setting})")]
    Port {
        /// What the port is for.
        purpose: &'static str,
        /// The address from the settings.
        address: std::net::SocketAddr,
        /// The setting, and the flag if there is one, to choose another.
        setting: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The signing key's file cannot be read or written, or holds no key.
    #[error("signing key {path}: {reason}")]
    SigningKey {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of a viewer's identity cannot be read or written, or holds none.
    #[error("identity {path}: {reason}")]
    Identity {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A service could not be started.
    #[error("{service}: {reason}")]
    Service {
        /// Which one.
        service: &'static str,
        /// Its error and that error's causes.
        reason: String,
    },
}

impl Error {
    /// Wraps a service's error with its causes.
    pub(crate) fn service(service: &'static str, error: impl std::error::Error) -> Self {
        Self::Service { service, reason: with_causes(&error) }
    }
}
