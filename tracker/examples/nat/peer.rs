//! One viewer: joins, meets the other, opens a data channel, and tells by which path and in how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;
use shoal_tracker_protocol::{IceServer, PeerId, Signal, TrackerMessage, ViewerMessage};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use webrtc::data_channel::{DataChannelEvent, RTCDataChannelInit};
use webrtc::peer_connection::{
    PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCConfigurationBuilder,
    RTCIceCandidateInit, RTCIceServer, RTCPeerConnectionIceEvent, RTCSessionDescription,
};

/// What is said as soon as one's own channel is open is lost where the other's is not yet: it is said again.
const GREETING: Duration = Duration::from_millis(200);

struct Handler(mpsc::UnboundedSender<Signal>);

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_candidate(&self, event: RTCPeerConnectionIceEvent) {
        if let Ok(candidate) = event.candidate.to_json() {
            let _ = self.0.send(Signal::Candidate { candidate: candidate.candidate, mid: None });
        }
    }
}

/// Prints one line of JSON: the path (`direct`, `relay` or `none`) and the milliseconds from introduction to open channel.
pub(crate) async fn run(tracker: String, stream: String, patience: Duration) {
    let met = tokio::time::timeout(patience, meet(tracker, stream)).await;
    let report = match met {
        Ok(Ok((path, ms))) => json!({ "path": path, "ms": ms }),
        Ok(Err(error)) => json!({ "path": "none", "why": error.to_string() }),
        Err(_) => json!({ "path": "none", "why": "nothing connected in time" }),
    };
    println!("{report}");
}

/// What happens on the data channel.
enum News {
    Opened,
    /// The other side's channel is open, too.
    Heard,
}

type Failure = Box<dyn std::error::Error>;

async fn meet(tracker: String, stream: String) -> Result<(&'static str, u64), Failure> {
    let (mut socket, _) = tokio_tungstenite::connect_async(tracker).await?;
    let join = ViewerMessage::Join {
        version: 1,
        stream,
        token: None,
        resume: None,
        shares: true,
        renditions: Vec::new(),
    };
    socket.send(Message::text(serde_json::to_string(&join)?)).await?;
    let (signals, mut own_signals) = mpsc::unbounded_channel();
    let (opened, mut open) = mpsc::channel(8);
    let mut ice_servers = Vec::new();
    let mut was_heard = false;
    let mut pair: Option<(PeerId, Arc<dyn PeerConnection>, Instant)> = None;
    loop {
        tokio::select! {
            Some(signal) = own_signals.recv() => {
                if let Some((to, ..)) = &pair {
                    let message = ViewerMessage::Signal { to: *to, data: signal };
                    socket.send(Message::text(serde_json::to_string(&message)?)).await?;
                }
            }
            Some(news) = open.recv() => {
                let Some((peer, connection, since)) = &pair else { continue };
                if matches!(news, News::Heard) {
                    was_heard = true;
                    continue;
                }
                let ms = u64::try_from(since.elapsed().as_millis())?;
                let message = ViewerMessage::Connected { peer: *peer, rtt_ms: 1 };
                socket.send(Message::text(serde_json::to_string(&message)?)).await?;
                let path = path(connection).await?;
                // The other side needs our answers until its channel is open, too: it says so through it.
                while !was_heard {
                    was_heard = matches!(open.recv().await, Some(News::Heard) | None);
                }
                tokio::time::sleep(4 * GREETING).await;
                return Ok((path, ms));
            }
            message = socket.next() => {
                let Some(Ok(Message::Text(text))) = message else { return Err("the tracker went".into()) };
                match serde_json::from_str(&text)? {
                    TrackerMessage::Welcome(welcome) => ice_servers = welcome.ice_servers,
                    TrackerMessage::Introduce { peer, offers } if pair.is_none() => {
                        let since = Instant::now();
                        let connection = connect(&ice_servers, signals.clone(), opened.clone()).await?;
                        if offers {
                            let offer = connection.create_offer(None).await?;
                            // Told before gathering begins: a candidate must not come before it.
                            signals.send(Signal::Offer { sdp: offer.sdp.clone() })?;
                            connection.set_local_description(offer).await?;
                        }
                        pair = Some((peer, connection, since));
                    }
                    TrackerMessage::Signal { from, data } => {
                        if let Some((peer, connection, _)) = &pair && *peer == from {
                            handle(connection, data, &signals).await?;
                        }
                    }
                    TrackerMessage::Error { message, .. } => eprintln!("{message}"),
                    _ => {}
                }
            }
        }
    }
}

async fn connect(
    ice_servers: &[IceServer],
    signals: mpsc::UnboundedSender<Signal>,
    opened: mpsc::Sender<News>,
) -> Result<Arc<dyn PeerConnection>, Failure> {
    let servers = ice_servers.iter().map(|server| RTCIceServer {
        urls: server.urls.clone(),
        username: server.username.clone().unwrap_or_default(),
        credential: server.credential.clone().unwrap_or_default(),
    });
    let connection: Arc<dyn PeerConnection> = Arc::new(
        PeerConnectionBuilder::new()
            .with_configuration(
                RTCConfigurationBuilder::default().with_ice_servers(servers.collect()).build(),
            )
            .with_handler(Arc::new(Handler(signals)))
            .with_udp_addrs(vec!["0.0.0.0:0"])
            .build()
            .await?,
    );
    let init = RTCDataChannelInit { negotiated: Some(0), ..RTCDataChannelInit::default() };
    let channel = connection.create_data_channel("matrix", Some(init)).await?;
    tokio::spawn(async move {
        let mut greeting = tokio::time::interval(GREETING);
        let mut is_open = false;
        loop {
            tokio::select! {
                event = channel.poll() => match event {
                    None => return,
                    Some(DataChannelEvent::OnOpen) => {
                        is_open = true;
                        let _ = opened.try_send(News::Opened);
                    }
                    Some(DataChannelEvent::OnMessage(_)) => {
                        let _ = opened.try_send(News::Heard);
                    }
                    Some(_) => {}
                },
                _ = greeting.tick(), if is_open => {
                    let _ = channel.send(BytesMut::from(&b"hello"[..])).await;
                }
            }
        }
    });
    Ok(connection)
}

async fn handle(
    connection: &Arc<dyn PeerConnection>,
    signal: Signal,
    signals: &mpsc::UnboundedSender<Signal>,
) -> Result<(), Failure> {
    match signal {
        Signal::Offer { sdp } => {
            connection.set_remote_description(RTCSessionDescription::offer(sdp)?).await?;
            let answer = connection.create_answer(None).await?;
            signals.send(Signal::Answer { sdp: answer.sdp.clone() })?;
            connection.set_local_description(answer).await?;
        }
        Signal::Answer { sdp } => {
            connection.set_remote_description(RTCSessionDescription::answer(sdp)?).await?;
        }
        Signal::Candidate { candidate, .. } if !candidate.is_empty() => {
            let init =
                RTCIceCandidateInit { candidate, sdp_mline_index: Some(0), ..RTCIceCandidateInit::default() };
            connection.add_ice_candidate(init).await?;
        }
        Signal::Candidate { .. } => {}
    }
    Ok(())
}

/// By the candidates that ICE chose.
async fn path(connection: &Arc<dyn PeerConnection>) -> Result<&'static str, Failure> {
    let sctp = connection.sctp().await.ok_or("no association")?;
    let pair = sctp.transport().ice_transport().get_selected_candidate_pair().await?;
    let pair = pair.ok_or("no selected pair")?.to_string();
    Ok(if pair.contains("relay") { "relay" } else { "direct" })
}
