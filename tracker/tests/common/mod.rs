//! The real router on a port of its own, and viewers that are plain WebSocket clients.
#![allow(
    dead_code,
    missing_debug_implementations,
    clippy::unwrap_used,
    reason = "each test program uses a part"
)]

use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::{SinkExt as _, StreamExt as _};
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::Sha256;
use shoal_tracker::{Config, Piece, Tracker};
use shoal_tracker_protocol::{PeerId, TrackerMessage, ViewerMessage, Welcome};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine; a test that waits for it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// By which viewer tokens are signed.
pub(crate) const SECRET: &str = "a secret of the broadcaster's back end";

pub(crate) fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// A viewer token, as a broadcaster's back end signs it.
pub(crate) fn token(claims: &serde_json::Value, secret: &str) -> String {
    let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&json!({ "alg": "HS256", "typ": "JWT" })), encode(claims));
    let mut hmac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    hmac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac.finalize().into_bytes()))
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) tracker: Tracker,
    pub(crate) stop: CancellationToken,
    pub(crate) running: JoinHandle<()>,
    serving: JoinHandle<()>,
    msn: u64,
}

impl Server {
    pub(crate) async fn start(config: Config) -> Self {
        let tracker = Tracker::new(config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = tracker.router().into_make_service_with_connect_info::<SocketAddr>();
        let serving = tokio::spawn(async move {
            let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
            axum::serve(listener, service).await.unwrap();
        });
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (tracker, stop) = (tracker.clone(), stop.clone());
            async move { tracker.run(stop).await }
        });
        Self { address, tracker, stop, running, serving, msn: 0 }
    }

    /// A server with a live stream called "demo".
    pub(crate) async fn live(config: Config) -> Self {
        let mut server = Self::start(config).await;
        server.tracker.stream_started("demo", [1; 16]);
        server.publish();
        server
    }

    pub(crate) fn publish(&mut self) {
        let piece = Piece { rendition: 0, msn: self.msn, part: 0 };
        self.msn += 1;
        let uri = format!("{}/v0/part-{}-0.m4s", "01".repeat(16), piece.msn);
        self.tracker.published("demo", piece, uri, &[7; 300], 187_500);
    }

    pub(crate) async fn join(&self) -> Viewer {
        self.join_as(ViewerMessage::Join {
            version: 1,
            stream: "demo".into(),
            token: None,
            resume: None,
            shares: true,
            renditions: vec![0],
        })
        .await
    }

    pub(crate) async fn join_as(&self, join: ViewerMessage) -> Viewer {
        let mut viewer = self.connect(&[]).await.unwrap();
        viewer.say(&join).await;
        let TrackerMessage::Welcome(welcome) =
            viewer.until(|message| matches!(message, TrackerMessage::Welcome(_))).await
        else {
            unreachable!()
        };
        viewer.welcome = Some(welcome);
        viewer
    }

    /// Opens a socket without joining.
    pub(crate) async fn connect(&self, headers: &[(&'static str, &str)]) -> Result<Viewer, WsError> {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
        let mut request = format!("ws://{}/tracker", self.address).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        // With Nagle's algorithm a message would wait for the acknowledgement of the one before.
        let (socket, _) = tokio_tungstenite::connect_async_with_config(request, None, true).await?;
        Ok(Viewer { socket, welcome: None, seen: Vec::new() })
    }

    /// Waits until the tracker says so.
    pub(crate) async fn eventually(&self, what: &str, mut condition: impl FnMut(&Tracker) -> bool) {
        let wait = async {
            while !condition(&self.tracker) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never came true: {what}"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        self.serving.abort();
    }
}

pub(crate) struct Viewer {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) welcome: Option<Welcome>,
    /// What was passed over while waiting for something else.
    pub(crate) seen: Vec<TrackerMessage>,
}

impl Viewer {
    pub(crate) fn peer(&self) -> PeerId {
        self.welcome.as_ref().unwrap().peer
    }

    pub(crate) fn resume(&self) -> String {
        self.welcome.as_ref().unwrap().resume.clone()
    }

    pub(crate) async fn say(&mut self, message: &ViewerMessage) {
        self.say_text(&serde_json::to_string(message).unwrap()).await;
    }

    pub(crate) async fn say_text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next message of the protocol; none when the connection was closed.
    pub(crate) async fn next(&mut self) -> Option<TrackerMessage> {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("nothing came") {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    /// The next message of which the condition is true.
    pub(crate) async fn until(
        &mut self,
        mut condition: impl FnMut(&TrackerMessage) -> bool,
    ) -> TrackerMessage {
        loop {
            let message = self.next().await.expect("the connection was closed");
            if condition(&message) {
                return message;
            }
            self.seen.push(message);
        }
    }

    /// The code of the WebSocket close frame; everything before it is passed over.
    pub(crate) async fn close_code(&mut self) -> u16 {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("it was not closed") {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
                Some(Ok(Message::Text(text))) => self.seen.push(serde_json::from_str(&text).unwrap()),
                Some(Ok(_)) => {}
                other => panic!("closed without a code: {other:?}"),
            }
        }
    }
}
