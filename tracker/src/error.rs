//! What the operator has to act on. What viewers do wrong is no error here: they are told, and it is counted.

/// Why the tracker can't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of range or does not parse.
    #[error("tracker: {0}")]
    Config(String),
    /// The STUN port can't be had.
    #[error("tracker: STUN port {address}: {source}")]
    StunPort {
        /// The address in `stun_listen`.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}
