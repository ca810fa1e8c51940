//! WHIP in, frames out.
//!
//! A publisher POSTs an offer ([`whip`], RFC 9725) and becomes a session: a task that drives a sans-I/O WebRTC
//! connection ([`transport`]) fed from the one media port ([`network`]), repairs and orders its packets, makes
//! frames of them on one clock ([`rtp`]) and hands these to the segmenter ([`sink`]). Nothing here knows what a
//! segment is; nothing of it waits for the segmenter.
//!
//! ```no_run
//! # async fn example(streams: std::sync::Arc<dyn shoal_ingest::sink::Streams>) -> Result<(), shoal_ingest::Error> {
//! let ingest = shoal_ingest::Ingest::bind(shoal_ingest::Config::default(), streams).await?;
//! let app = axum::Router::new().merge(ingest.router());
//! let cancelled = tokio_util::sync::CancellationToken::new();
//! tokio::spawn(ingest.run(cancelled.clone()));
//! # drop(app); Ok(()) }
//! ```

mod admission;
mod auth;
mod config;
mod metric;
mod network;
pub mod rtp;
pub mod sdp;
pub mod sdpfrag;
mod server;
mod session;
pub mod sink;
pub mod status;
pub mod stun;
mod tcp;
pub mod transport;
mod whip;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{Config, IceServer, OpenTo};
pub use session::End;

use crate::auth::Auth;
use crate::network::Network;
use crate::server::Server;
use crate::sink::Streams;

/// How long sessions get to say goodbye to their publishers when the program stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why the ingest can't run. An operator must act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A key of the configuration has a value out of range.
    #[error("{0}")]
    Config(String),
    /// The media port can't be had.
    #[error("media port {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The media port broke.
    #[error("media port: {0}")]
    Socket(#[source] io::Error),
}

/// The ingest: its media port is open, its routes can be served.
#[derive(Clone, Debug)]
pub struct Ingest {
    server: Arc<Server>,
    listener: Option<Arc<TcpListener>>,
    media_address: SocketAddr,
}

impl Ingest {
    /// Opens the media port.
    pub async fn bind(config: Config, streams: Arc<dyn Streams>) -> Result<Self, Error> {
        config.validate().map_err(Error::Config)?;
        let auth = Auth::new(&config).map_err(Error::Config)?;
        let address = config.media_address;
        let bind = |source| Error::Bind { address, source };
        let (socket, listener) = open(address, &config).map_err(bind)?;
        let bound = socket.local_addr().map_err(bind)?;
        let mut candidates = resolve(&config.public_ips, bound).await;
        // Publishers in the same network, or on this machine, may not get back in by the public address.
        for own in network::own_addresses(bound) {
            if !candidates.contains(&own) {
                candidates.push(own);
            }
        }
        if !candidates.iter().any(|candidate| network::is_global(candidate.ip())) {
            tracing::warn!(
                "publishers are only offered private addresses; those outside of this network need ingest.public_ips"
            );
        }
        tracing::info!("who may publish: {}", auth.describe());
        let network = Network::new(socket, candidates).map_err(bind)?;
        let server = Arc::new(Server::new(config, auth, streams, Arc::new(network)));
        Ok(Self { server, listener: listener.map(Arc::new), media_address: bound })
    }

    /// Where media is received; its port is the one that was found when the configuration says 0.
    pub fn media_address(&self) -> SocketAddr {
        self.media_address
    }

    /// The routes `/whip/{stream}`, `/whip/session/{id}` and `/whip/session/{id}/stats`.
    pub fn router(&self) -> axum::Router {
        whip::router(Arc::clone(&self.server))
    }

    /// Receives media until cancelled, then says goodbye to all publishers.
    pub async fn run(self, cancelled: CancellationToken) -> Result<(), Error> {
        let network = Arc::clone(self.server.network());
        let connections_max = self.server.config().tcp_connections_max;
        let accepting = async {
            match self.listener {
                Some(listener) => tcp::run(&listener, Arc::clone(&network), connections_max).await,
                None => std::future::pending().await,
            }
        };
        // The reading thread ends with this, however it ends.
        let stop_reading = cancelled.child_token();
        let _stop_reading = stop_reading.clone().drop_guard();
        let reading = tokio::select! {
            result = network.run(stop_reading) => result,
            () = accepting => Ok(()),
            () = cancelled.cancelled() => Ok(()),
        };
        self.server.cancelled.cancel();
        self.server.tasks.close();
        // A session that doesn't end in time is dropped with the runtime; its publisher notices by silence.
        let _ = tokio::time::timeout(GOODBYE, self.server.tasks.wait()).await;
        reading.map_err(Error::Socket)
    }
}

/// Opens the UDP port, and the TCP port of the same number.
fn open(address: SocketAddr, config: &Config) -> io::Result<(std::net::UdpSocket, Option<TcpListener>)> {
    // A free UDP port's number may be taken for TCP: another one will not be.
    const ATTEMPTS: usize = 16;
    let mut attempt = 0;
    loop {
        let socket = open_udp(address, config.receive_buffer_bytes)?;
        if !config.tcp_enabled {
            return Ok((socket, None));
        }
        attempt += 1;
        match open_tcp(socket.local_addr()?) {
            Ok(listener) => return Ok((socket, Some(listener))),
            Err(_) if address.port() == 0 && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
    }
}

fn open_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // After a restart, connections of the previous run may still be closing.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn open_udp(address: SocketAddr, receive_buffer_bytes: usize) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    if address.is_ipv6() {
        // IPv4 publishers come in over the same socket.
        socket.set_only_v6(false)?;
    }
    // The kernel grants what it likes; a small buffer costs datagrams under load, which is no reason not to start.
    if let Err(error) = socket.set_recv_buffer_size(receive_buffer_bytes) {
        tracing::debug!(%error, "receive buffer");
    }
    // Linux says twice of what it grants.
    let granted = socket.recv_buffer_size().unwrap_or(receive_buffer_bytes * 2) / 2;
    if granted < receive_buffer_bytes {
        tracing::info!(
            granted,
            wanted = receive_buffer_bytes,
            "the media port's receive buffer is small; many publishers need a larger net.core.rmem_max"
        );
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The addresses of the configured names, in their order. A name may have addresses of a family that the socket doesn't
/// hear; one that the operator wrote down is taken as it is, because a NAT may translate between them.
async fn resolve(names: &[String], bound: SocketAddr) -> Vec<SocketAddr> {
    let (port, is_dual) = (bound.port(), bound.is_ipv6() && bound.ip().is_unspecified());
    let is_heard = |address: &SocketAddr| is_dual || address.is_ipv6() == bound.is_ipv6();
    let mut addresses = Vec::new();
    for name in names {
        if let Ok(ip) = name.parse::<IpAddr>() {
            addresses.push(SocketAddr::new(ip, port));
            continue;
        }
        match tokio::net::lookup_host((name.as_str(), port)).await {
            Ok(found) => {
                let before = addresses.len();
                addresses.extend(found.filter(is_heard));
                if addresses.len() == before {
                    tracing::warn!(
                        name,
                        "ingest.public_ips: no address of the media port's family, skipped; see ingest.media_address"
                    );
                }
            }
            Err(error) => tracing::warn!(name, %error, "ingest.public_ips: can't be resolved, skipped"),
        }
    }
    let mut seen = std::collections::HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}
