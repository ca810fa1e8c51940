//! ICE over TCP (RFC 6544) as the active side: the way out where UDP is blocked.
//!
//! A task for each connection frames and unframes packets (RFC 4571); the engine above sees datagrams.

use bytes::BytesMut;
use rtc::shared::tcp_framing::{TcpFrameDecoder, frame_packet};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

/// More addresses than this are not tried: servers have one or two.
const LINKS_MAX: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Packets that wait for a slow connection: half a second of video at 10 Mbit/s. Then they are dropped, as a router
/// would do it, and the receiver asks again.
const OUT_QUEUE: usize = 512;
const IN_QUEUE: usize = 256;

/// What the connections report.
#[derive(Debug)]
pub(super) enum Event {
    /// A connection from this local address is up.
    Connected(SocketAddr),
    /// A packet came.
    Packet { local_addr: SocketAddr, peer_addr: SocketAddr, message: BytesMut },
}

/// The connections of one peer. Dropping it closes them.
#[derive(Debug)]
pub(super) struct TcpLinks {
    links: Vec<(SocketAddr, mpsc::Sender<Vec<u8>>)>,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
}

impl Default for TcpLinks {
    fn default() -> Self {
        let (sender, events) = mpsc::channel(IN_QUEUE);
        Self { links: Vec::new(), tasks: JoinSet::new(), sender, events }
    }
}

impl TcpLinks {
    /// Connects to these addresses, in the background; only the first call does anything.
    pub(super) fn dial(&mut self, remotes: &[SocketAddr]) {
        if !self.links.is_empty() {
            return;
        }
        for &remote in remotes.iter().take(LINKS_MAX) {
            let (out, queue) = mpsc::channel(OUT_QUEUE);
            self.links.push((remote, out));
            let events = self.sender.clone();
            self.tasks.spawn(async move {
                if let Err(error) = run(remote, queue, events).await {
                    tracing::debug!(%error, "TCP connection ended");
                }
            });
        }
    }

    /// Queues a packet, or drops it when the connection is slow or not up.
    pub(super) fn send(&self, to: SocketAddr, packet: &[u8]) {
        if let Some((_, out)) = self.links.iter().find(|(remote, _)| *remote == to) {
            let _ = out.try_send(frame_packet(packet));
        }
    }

    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => unreachable!("`sender` is held by this very struct"),
        }
    }
}

async fn run(
    remote: SocketAddr,
    mut queue: mpsc::Receiver<Vec<u8>>,
    events: mpsc::Sender<Event>,
) -> std::io::Result<()> {
    let mut stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(remote)).await??;
    stream.set_nodelay(true)?;
    let local_addr = stream.local_addr()?;
    // What the engine wanted to send before there was a connection is stale.
    while queue.try_recv().is_ok() {}
    if events.send(Event::Connected(local_addr)).await.is_err() {
        return Ok(());
    }
    let (mut reader, mut writer) = stream.split();
    let read = async {
        let mut decoder = TcpFrameDecoder::new();
        let mut buffer = vec![0; 4096];
        loop {
            let length = reader.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            // At most 64 KiB and a read are buffered: a frame's length has 16 bits.
            decoder.extend_from_slice(&buffer[..length]);
            while let Some(packet) = decoder.next_packet() {
                let message = BytesMut::from(&packet[..]);
                let packet = Event::Packet { local_addr, peer_addr: remote, message };
                if events.send(packet).await.is_err() {
                    return Ok(());
                }
            }
        }
    };
    let write = async {
        while let Some(packet) = queue.recv().await {
            writer.write_all(&packet).await?;
        }
        Ok(())
    };
    tokio::select! {
        result = read => result,
        result = write => result,
    }
}

/// The addresses at which an answer says that the server accepts TCP.
pub(super) fn candidates(sdp: &str) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for line in sdp.lines() {
        let Some(candidate) = line.strip_prefix("a=candidate:") else { continue };
        let words: Vec<&str> = candidate.split_whitespace().collect();
        // foundation component transport priority address port typ TYPE ... (RFC 8839, section 5.1)
        let [_, "1", transport, _, address, port, ..] = words[..] else { continue };
        let is_passive = words.windows(2).any(|pair| pair == ["tcptype", "passive"]);
        if !transport.eq_ignore_ascii_case("tcp") || !is_passive {
            continue;
        }
        if let (Ok(ip), Ok(port)) = (address.parse(), port.parse()) {
            let address = SocketAddr::new(ip, port);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passive_tcp_candidates_are_found_once_and_nothing_else() {
        let sdp = "v=0\r\n\
            a=candidate:1 1 udp 2130706431 192.0.2.1 50000 typ host\r\n\
            a=candidate:2 1 tcp 1671430143 192.0.2.1 50000 typ host tcptype passive\r\n\
            a=candidate:2 1 TCP 1671430143 192.0.2.1 50000 typ host tcptype passive\r\n\
            a=candidate:3 1 tcp 1671430143 192.0.2.2 9 typ host tcptype active\r\n\
            a=candidate:4 2 tcp 1671430143 192.0.2.1 50001 typ host tcptype passive\r\n\
            a=candidate:5 1 tcp 1 name.local 50002 typ host tcptype passive\r\n\
            a=candidate:6 1 tcp 1 2001:db8::1 50003 typ host tcptype passive\r\n\
            a=candidate:\r\n";
        let expected: [SocketAddr; 2] =
            ["192.0.2.1:50000", "[2001:db8::1]:50003"].map(|text| text.parse().unwrap());
        assert_eq!(candidates(sdp), expected);
    }
}
