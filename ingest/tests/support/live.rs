//! The publisher on a real socket, against a real endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use shoal_ingest::{Config, Ingest};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::recorder::Recorder;
use super::{FRAME_INTERVAL, Publisher, SOUND_INTERVAL};

/// How long a test waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// An endpoint on free ports of the loopback interface.
pub struct Endpoint {
    pub router: Router,
    pub recorder: Recorder,
    pub media_address: SocketAddr,
    pub cancelled: CancellationToken,
    pub running: JoinHandle<Result<(), shoal_ingest::Error>>,
}

pub fn config() -> Config {
    Config { media_address: SocketAddr::from(([127, 0, 0, 1], 0)), ..Config::default() }
}

impl Endpoint {
    pub async fn start(config: Config) -> Self {
        let recorder = Recorder::default();
        let ingest = Ingest::bind(config, Arc::new(recorder.clone())).await.unwrap();
        let (router, media_address) = (ingest.router(), ingest.media_address());
        let cancelled = CancellationToken::new();
        let running = tokio::spawn(ingest.run(cancelled.clone()));
        Self { router, recorder, media_address, cancelled, running }
    }

    pub async fn send(&self, mut request: Request<Body>) -> Response {
        let here = SocketAddr::from(([127, 0, 0, 1], 50_000));
        request.extensions_mut().get_or_insert_with(|| ConnectInfo(here));
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn post(&self, stream: &str, offer: impl Into<Body>) -> Response {
        let request = Request::post(format!("/whip/{stream}")).header("content-type", "application/sdp");
        self.send(request.body(offer.into()).unwrap()).await
    }

    pub async fn call(&self, method: Method, path: &str) -> Response {
        self.send(Request::builder().method(method).uri(path).body(Body::empty()).unwrap()).await
    }

    /// A PATCH with the fragment's type.
    pub async fn patch(&self, path: &str, if_match: Option<&str>, fragment: &str) -> Response {
        let mut request = Request::patch(path).header("content-type", "application/trickle-ice-sdpfrag");
        if let Some(tag) = if_match {
            request = request.header("if-match", tag);
        }
        self.send(request.body(Body::from(fragment.to_owned())).unwrap()).await
    }

    pub async fn stats(&self, session: &str) -> serde_json::Value {
        let response = self.call(Method::GET, &format!("{session}/stats")).await;
        assert_eq!(response.status(), StatusCode::OK);
        serde_json::from_str(&text(response).await).unwrap()
    }
}

pub async fn text(response: Response) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

pub fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name).unwrap_or_else(|| panic!("no {name} in {response:?}"));
    value.to_str().unwrap().to_owned()
}

/// A publisher that sends until it is dropped or stopped.
pub struct Live {
    pub publisher: Arc<Mutex<Publisher>>,
    pub session: String,
    pub etag: String,
    task: JoinHandle<()>,
}

impl Live {
    /// Publishes, and waits until the connection stands.
    pub async fn publish(endpoint: &Endpoint, stream: &str) -> Self {
        Self::publish_from(endpoint, stream, UdpSocket::bind("127.0.0.1:0").await.unwrap()).await
    }

    /// The same from this socket.
    pub async fn publish_from(endpoint: &Endpoint, stream: &str, socket: UdpSocket) -> Self {
        let mut publisher = Publisher::new(Instant::now(), socket.local_addr().unwrap());
        let offer = publisher.offer(Instant::now());
        let response = endpoint.post(stream, offer).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        let (session, etag) = (header(&response, "location"), header(&response, "etag"));
        publisher.accept(Instant::now(), text(response).await);
        let publisher = Arc::new(Mutex::new(publisher));
        let task = tokio::spawn(drive(Arc::clone(&publisher), socket));
        let live = Self { publisher, session, etag, task };
        until("connected", || live.publisher.lock().is_connected).await;
        live
    }

    /// Falls silent, as a machine does that loses its power.
    pub fn vanish(&self) {
        self.task.abort();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn drive(publisher: Arc<Mutex<Publisher>>, socket: UdpSocket) {
    let mut buffer = [0; 2048];
    let (mut picture_at, mut sound_at, mut report_at) = (Instant::now(), Instant::now(), Instant::now());
    loop {
        let (out, wake) = {
            let mut publisher = publisher.lock();
            let out: Vec<_> = std::iter::from_fn(|| publisher.poll_transmit()).collect();
            (out, publisher.poll_timeout())
        };
        for (to, bytes) in out {
            // An endpoint that is gone refuses; the publisher goes on as one would.
            let _ = socket.send_to(&bytes, to).await;
        }
        let wake = wake.unwrap_or(sound_at).min(picture_at).min(sound_at);
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                if let Ok((length, from)) = received {
                    publisher.lock().handle_datagram(Instant::now(), from, &buffer[..length]);
                }
            }
            () = tokio::time::sleep_until(wake.into()) => {}
        }
        let (now, mut publisher) = (Instant::now(), publisher.lock());
        if publisher.poll_timeout().is_some_and(|at| at <= now) {
            publisher.handle_timeout(now);
        }
        if picture_at <= now {
            picture_at = now + FRAME_INTERVAL;
            if publisher.is_connected {
                publisher.send_picture(now);
            }
        }
        if sound_at <= now {
            sound_at = now + SOUND_INTERVAL;
            if publisher.is_connected {
                publisher.send_sound(now);
            }
        }
        if report_at <= now && publisher.is_connected {
            report_at = now + Duration::from_secs(1);
            publisher.send_reports(now);
        }
    }
}

/// Waits for a condition.
pub async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited {PATIENCE:?} for: {what}");
}
