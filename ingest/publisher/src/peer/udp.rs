//! The UDP sockets that media leaves by.

use crate::error::{Context as _, Error};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::UdpSocket;

/// A UDP socket and its candidate.
#[derive(Debug)]
pub(super) struct LocalSocket {
    pub(super) socket: UdpSocket,
    /// What the candidate says: the engine compares it with where datagrams arrive.
    pub(super) address: SocketAddr,
}

/// A socket for each address family that reaches the server, with the address that the route there uses.
pub(super) async fn bind(server: &[SocketAddr]) -> Result<Vec<LocalSocket>, Error> {
    let mut sockets: Vec<LocalSocket> = Vec::new();
    for to in server {
        if sockets.iter().any(|local| local.address.is_ipv4() == to.is_ipv4()) {
            continue;
        }
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // Connecting a UDP socket sends nothing; it asks the routing table.
        let Ok(probe) = UdpSocket::bind((any, 0)).await else { continue };
        if probe.connect(to).await.is_err() {
            continue;
        }
        let Ok(route) = probe.local_addr() else { continue };
        // Bound to all addresses: the server's candidates may lie behind another interface than its HTTP port.
        let socket = UdpSocket::bind((any, 0)).await.context("open a UDP socket")?;
        let port = socket.local_addr().context("open a UDP socket")?.port();
        sockets.push(LocalSocket { socket, address: SocketAddr::new(route.ip(), port) });
    }
    if sockets.is_empty() {
        return Err(Error::Io {
            step: "find a route to the server",
            source: std::io::Error::other("no network interface leads there"),
        });
    }
    Ok(sockets)
}
