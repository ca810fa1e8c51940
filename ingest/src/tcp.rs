//! Media over TCP (RFC 6544, framed by RFC 4571), for publishers whose network lets no UDP out.
//!
//! A connection is nobody's until a framed STUN request has proven whose it is. One that doesn't do that soon
//! is closed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use crate::metric;
use crate::network::Network;
use crate::transport::Protocol;

/// How long a connection may stay silent: publishers check their connection every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// By then it must have shown whose it is: publishers connect to send their first check, and strangers who don't
/// would take up all places.
const PROOF_MAX: Duration = Duration::from_secs(4);
/// Larger frames than any packet that a WebRTC stack makes.
const FRAME_BYTES_MAX: usize = 8192;
/// Frames that wait to be written. What we send is feedback: a few frames a second.
const OUTBOX_FRAMES: usize = 64;
/// How long to wait when no more connections can be accepted (file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until dropped.
pub(crate) async fn run(listener: &TcpListener, network: Arc<Network>, connections_max: usize) {
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "media over TCP: accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics::counter!(metric::DATAGRAMS_REFUSED, "reason" => "tcp_connections_max").increment(1);
            continue;
        };
        let network = Arc::clone(&network);
        tokio::spawn(async move {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            if let Err(error) = serve(stream, peer, &network).await {
                tracing::debug!(%error, "media over TCP: connection ended");
            }
            network.disconnect(peer);
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, network: &Network) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = Some(stream.local_addr()?.ip().to_canonical());
    let (reader, writer) = stream.into_split();
    let (sender, frames) = mpsc::channel(OUTBOX_FRAMES);
    let mut reader = BufReader::with_capacity(FRAME_BYTES_MAX * 2, reader);
    let reading = async {
        let mut frame = vec![0; FRAME_BYTES_MAX];
        let length = within(PROOF_MAX, read_frame(&mut reader, &mut frame)).await?;
        let is_known =
            network.sort(Instant::now(), Protocol::Tcp, peer, local, &frame[..length], Some(&sender));
        if !is_known {
            // Whoever doesn't begin with a request of a session has no business here.
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a publisher's connection"));
        }
        loop {
            let length = within(SILENCE_MAX, read_frame(&mut reader, &mut frame)).await?;
            network.sort(Instant::now(), Protocol::Tcp, peer, local, &frame[..length], Some(&sender));
        }
    };
    tokio::select! {
        result = reading => result,
        result = write(writer, frames) => result,
    }
}

async fn read_frame(reader: &mut BufReader<OwnedReadHalf>, frame: &mut [u8]) -> io::Result<usize> {
    let length = usize::from(reader.read_u16().await?);
    let frame = frame.get_mut(..length);
    let frame = frame.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame is too large"))?;
    reader.read_exact(frame).await
}

async fn within<T>(limit: Duration, reading: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(limit, reading).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn write(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        let Ok(length) = u16::try_from(frame.len()) else { continue };
        let mut framed = Vec::with_capacity(frame.len() + 2);
        framed.extend_from_slice(&length.to_be_bytes());
        framed.extend_from_slice(&frame);
        writer.write_all(&framed).await?;
    }
    Ok(())
}
